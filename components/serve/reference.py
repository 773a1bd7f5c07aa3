"""The detectors that come with the project and answer until there is a champion."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import components
from components import images
from components.serve.detector import Detector, as_bytes
from components.stage import StageError

FOLDER = Path(components.__file__).parents[1] / "models"
VERSION = "reference"
FILES = ("network.keras", "decision.json", "familiar.npz")


class Reference:
    """One detector for each range of sizes; each picture goes to the one that was judged on its size.

    Args:
        folder: with a folder for each detector: `network.keras`, `decision.json`, `familiar.npz`, `model_card.md`.

    Raises:
        StageError: there is none.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._parts = sorted(
            (_Part(path.parent) for path in folder.glob("*/decision.json")), key=lambda part: part.scope["min_side"]
        )
        if not self._parts:
            raise StageError(f"{folder}: no reference detector is here; `trueframe run` trains one of your own")

    def score(self, files: list[Any], *, explain: bool = False) -> list[dict[str, Any]]:
        """Judge image files as `Detector.score` does."""
        places: dict[int, list[int]] = {}
        for place, file in enumerate(files):
            places.setdefault(self._part(file), []).append(place)
        rows: list[dict[str, Any]] = [{}] * len(files)
        for number, chosen in places.items():
            answers = self._parts[number].detector.score([files[place] for place in chosen], explain=explain)
            for place, row in zip(chosen, answers, strict=True):
                rows[place] = row
        return rows

    def _part(self, file: Any) -> int:
        """The last detector whose pictures are no larger than this one, or the first."""
        try:
            side = min(images.open_image(as_bytes(file)).size)
        except images.ImageError:
            side = 0  # which its row will say
        return max([number for number, part in enumerate(self._parts) if part.scope["min_side"] <= side], default=0)


class _Part:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.scope: dict[str, Any] = json.loads((folder / "decision.json").read_text())["scope"]

    @cached_property
    def detector(self) -> Detector:
        """Loaded when a picture of its size comes."""
        network, decision, familiar = (self._folder / name for name in FILES)
        return Detector(network, decision, familiar, VERSION)
