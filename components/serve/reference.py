"""The detectors that come with the project and answer what no champion was judged on.

`python -m components.serve.reference --model NAME --as FOLDER` makes an evaluated candidate one of them.
"""

import argparse
import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import components
from components import integrity, stage
from components.serve.detector import Detector
from components.serve.files import DETECTOR, Files
from components.stage import StageError

FOLDER = Path(components.__file__).parents[1] / "models"
VERSION = "reference"
"""All of them together; each one's answers name `reference-NAME`, by its folder."""


class Reference:
    """One of them, loaded when it is first asked.

    Args:
        folder: with `detector.onnx`, `model_card.md`, and `SHA256SUMS` of these.

    Raises:
        StageError: a file is another than in that list.

    Attributes:
        is_fast: whether it has no large encoder, which takes tenths of a second for a picture.
    """

    def __init__(self, folder: Path) -> None:
        integrity.check(folder)
        self.files = Files.kept(folder)
        self.version = f"{VERSION}-{folder.name}"
        self.scope = self.files.scope
        self.is_fast = not self.files.is_large

    @cached_property
    def detector(self) -> Detector:
        """At work."""
        return self.files.load(self.version)

    def says(self, row: Mapping[str, Any]) -> str | None:
        """The verdict of an answer of its own in words."""
        return self.detector.says(row)

    def score(self, files: list[Any], *, explain: bool = False, threshold: float | None = None) -> list[dict[str, Any]]:
        """Judge image files as `Detector.score` does."""
        return self.detector.score(files, explain=explain, threshold=threshold)


def references(folder: Path = FOLDER, *, fast: bool = False) -> list[Reference]:
    """All that are here, or the fast ones: those for smaller pictures first, and of two for the same the better one.

    Raises:
        StageError: there is none, or a file is another than in the list beside it.
    """
    found = [Reference(path.parent) for path in sorted(folder.glob(f"*/{DETECTOR}"))]
    if not found:
        raise StageError(f"{folder}: no reference detector is here; `trueframe run` trains one of your own")
    kept = [one for one in found if one.is_fast or not fast]
    return sorted(kept, key=lambda one: (one.scope.max_side or math.inf, one.is_fast, one.scope.min_side))


def beside(folder: Path = FOLDER, *, fast: bool = False) -> list[Reference]:
    """Those that answer beside a champion, or the fast ones of them; none where none is here.

    Raises:
        StageError: a file is another than in the list beside it.
    """
    return references(folder, fast=fast) if any(folder.glob(f"*/{DETECTOR}")) else []


def title(version: str) -> str | None:
    """How a sentence calls one of them, or all; null of another version."""
    if version == VERSION:
        return "the reference detector"
    name = version.removeprefix(f"{VERSION}-")
    return None if name == version else f"the reference detector {name}"


def keep(judged: Path, folder: Path) -> None:
    """Copy an evaluated candidate, its weights rounded to 11 significant bits, which compress to about half their size.

    The weights of an encoder that comes with the project stay with that.

    Args:
        judged: folder that evaluate wrote.
        folder: to write.

    Raises:
        StageError: the candidate isn't evaluated.
    """
    import onnx

    from components.detector import shared

    kept, source = Files.kept(folder), Files.kept(judged)
    missing = next((path for path in (source.detector, source.card) if not path.exists()), None)
    if missing:
        raise StageError(f"{missing}: not here; `trueframe run` trains and evaluates the candidate")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.card, kept.card)
    model = onnx.load(source.detector)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(_rounded(onnx.numpy_helper.to_array(tensor)), tensor.name))
    kept.detector.write_bytes(shared.parted(model.SerializeToString()))
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
    parser.add_argument("--model", required=True, help="a key of train.models or train.ensembles")
    parser.add_argument("--as", dest="name", required=True, help="folder in models/")
    args = parser.parse_args()
    folder = FOLDER / args.name
    keep(Path("artifacts/evaluation", args.model), folder)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    stage.main(run)
