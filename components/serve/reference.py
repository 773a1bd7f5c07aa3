"""The detectors that come with the project and answer what no champion was judged on.

`python -m components.serve.reference --model NAME --as FOLDER` makes an evaluated candidate one of them.
"""

import argparse
import shutil
import tempfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import components
from components import integrity, networks, stage
from components.serve.detector import Detector
from components.serve.files import FILES, Files
from components.stage import StageError

FOLDER = Path(components.__file__).parents[1] / "models"
VERSION = "reference"
"""All of them together; each one's answers name `reference-NAME`, by its folder."""


class Reference:
    """One of them, loaded when it is first asked.

    Args:
        folder: with `network.keras`, `decision.json`, `familiar.npz`, `model_card.md`, and `SHA256SUMS` of these.

    Raises:
        StageError: a file is another than in that list.
    """

    def __init__(self, folder: Path) -> None:
        integrity.check(folder)
        self.files = Files.kept(folder)
        self.version = f"{VERSION}-{folder.name}"
        self.scope = self.files.scope

    @cached_property
    def detector(self) -> Detector:
        """At work."""
        return self.files.detector(self.version)

    def score(self, files: list[Any], *, explain: bool = False, threshold: float | None = None) -> list[dict[str, Any]]:
        """Judge image files as `Detector.score` does."""
        return self.detector.score(files, explain=explain, threshold=threshold)


def references(folder: Path = FOLDER) -> list[Reference]:
    """All that are here, those for smaller pictures first.

    Raises:
        StageError: there is none, or a file is another than in the list beside it.
    """
    found = [Reference(path.parent) for path in sorted(folder.glob("*/decision.json"))]
    if not found:
        raise StageError(f"{folder}: no reference detector is here; `trueframe run` trains one of your own")
    return sorted(found, key=lambda one: one.scope.min_side)


def beside(folder: Path = FOLDER) -> list[Reference]:
    """Those that answer beside a champion; none where none is here.

    Raises:
        StageError: a file is another than in the list beside it.
    """
    return references(folder) if any(folder.glob("*/decision.json")) else []


def title(version: str) -> str | None:
    """How a sentence calls one of them, or all; null of another version."""
    if version == VERSION:
        return "the reference detector"
    name = version.removeprefix(f"{VERSION}-")
    return None if name == version else f"the reference detector {name}"


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
