"""The detectors that come with the project and answer until there is a champion.

`python -m components.serve.reference --model NAME --as FOLDER` makes an evaluated candidate one of them.
"""

import argparse
import json
import shutil
import tempfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import components
from components import images, integrity, networks, stage
from components.serve.detector import Detector, as_bytes
from components.stage import StageError

FOLDER = Path(components.__file__).parents[1] / "models"
VERSION = "reference"
FILES = ("network.keras", "decision.json", "familiar.npz")


class Reference:
    """One detector for each range of sizes; each picture goes to the one that was judged on its size.

    Args:
        folder: with a folder for each detector: `network.keras`, `decision.json`, `familiar.npz`, `model_card.md`,
            and `SHA256SUMS` of these.

    Raises:
        StageError: there is none, or a file is another than in that list.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._parts = sorted(
            (_Part(path.parent) for path in folder.glob("*/decision.json")), key=lambda part: part.scope["min_side"]
        )
        if not self._parts:
            raise StageError(f"{folder}: no reference detector is here; `trueframe run` trains one of your own")

    def score(self, files: list[Any], *, explain: bool = False, threshold: float | None = None) -> list[dict[str, Any]]:
        """Judge image files as `Detector.score` does."""
        places: dict[int, list[int]] = {}
        for place, file in enumerate(files):
            places.setdefault(self._part(file), []).append(place)
        rows: list[dict[str, Any]] = [{}] * len(files)
        for number, chosen in places.items():
            detector = self._parts[number].detector
            answers = detector.score([files[place] for place in chosen], explain=explain, threshold=threshold)
            for place, row in zip(chosen, answers, strict=True):
                rows[place] = row
        return rows

    def _part(self, file: Any) -> int:
        """The last detector whose pictures are no larger than this one, or the first."""
        try:
            side = min(images.open_image(as_bytes(file)).size)
        except Exception:  # which its row will say
            side = 0
        return max([number for number, part in enumerate(self._parts) if part.scope["min_side"] <= side], default=0)


class _Part:
    def __init__(self, folder: Path) -> None:
        integrity.check(folder)
        self._folder = folder
        self.scope: dict[str, Any] = json.loads((folder / "decision.json").read_text())["scope"]

    @cached_property
    def detector(self) -> Detector:
        """Loaded when a picture of its size comes."""
        network, decision, familiar = (self._folder / name for name in FILES)
        return Detector(network, decision, familiar, VERSION)


def keep(trained: Path, judged: Path, folder: Path) -> None:
    """Copy an evaluated candidate, its weights rounded to 11 significant bits and compressed to about half their size.

    Args:
        trained: folder that train wrote.
        judged: folder that evaluate wrote.
        folder: to write.

    Raises:
        StageError: the candidate isn't evaluated, or is an ensemble.
    """
    files = [judged / name for name in (*FILES[1:], "model_card.md")]
    missing = next((path for path in (trained / FILES[0], *files) if not path.exists()), None)
    if missing:
        raise StageError(f"{missing}: not here; only one network that was trained and evaluated can be kept")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / file.name)
    network = networks.load(trained / FILES[0])
    for variable in network.variables:
        variable.assign(_rounded(networks.load_keras().ops.convert_to_numpy(variable)))
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "network.keras")
        network.save(whole)
        with (
            zipfile.ZipFile(whole) as source,
            zipfile.ZipFile(folder / FILES[0], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))
    integrity.write(folder)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the last 13 bits of the mantissa zero, as half precision has it; other numbers as they are."""
    if values.dtype != np.float32:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32).reshape(values.shape)


def run() -> None:
    """Keep a candidate."""
    parser = argparse.ArgumentParser(prog="python -m components.serve.reference", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models")
    parser.add_argument("--as", dest="name", required=True, help="folder in models/")
    args = parser.parse_args()
    folder = FOLDER / args.name
    keep(Path("artifacts/models", args.model), Path("artifacts/evaluation", args.model), folder)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    stage.main(run)
