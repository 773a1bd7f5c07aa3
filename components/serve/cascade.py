"""Detectors that answer together, each for what it was judged on."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from components import images
from components.serve.detector import UNFAMILIAR, Scope, as_bytes


class Asked(Protocol):
    """A detector in a cascade."""

    @property
    def version(self) -> str:
        """That its answers name."""

    @property
    def scope(self) -> Scope:
        """The sizes that it was judged on."""

    def score(self, files: list[Any], *, explain: bool = False, threshold: float | None = None) -> list[dict[str, Any]]:
        """See `Detector.score`."""

    def says(self, row: Mapping[str, Any]) -> str | None:
        """See `Detector.says`."""


class Cascade:
    """Each picture is answered by the first detector that was judged on such pictures: of its size, and like it.

    Only those are asked, and so loaded, whose sizes hold the picture. Where it is unlike what all of these were judged
    on, the first one's `uncertain` stands; where its size is none's, that of the first of all.

    Args:
        detectors: in the order in which they are asked; one at least.
    """

    def __init__(self, detectors: Sequence[Asked]) -> None:
        self.detectors = detectors

    def score(self, files: list[Any], *, explain: bool = False, threshold: float | None = None) -> list[dict[str, Any]]:
        """Judge image files as `Detector.score` does; `model_version` and `threshold` are those of who answered."""
        sides = [_side(file) for file in files]
        rows: list[dict[str, Any]] = [{} for _ in files]

        def ask(detector: Asked, places: list[int]) -> None:
            answers = detector.score([files[place] for place in places], explain=explain, threshold=threshold)
            for place, row in zip(places, answers, strict=True):
                if not rows[place] or not row["warnings"]:
                    rows[place] = row

        for detector in self.detectors:
            held = (place for place, side in enumerate(sides) if detector.scope.holds(side))
            # What is too coarse for one is so for all.
            places = [place for place in held if not rows[place] or rows[place]["warnings"] == [UNFAMILIAR]]
            if places:
                ask(detector, places)
        if rest := [place for place, row in enumerate(rows) if not row]:
            ask(self.detectors[0], rest)
        return rows

    def says(self, row: Mapping[str, Any]) -> str | None:
        """The verdict of an answer in the words of who gave it."""
        return next(one.says(row) for one in self.detectors if one.version == row["model_version"])


def _side(file: Any) -> int:
    """A picture's shorter side in px, from its header; 0 of what is no picture, which its row will say."""
    try:
        return min(images.open_image(as_bytes(file)).size)
    except Exception:  # a reader that is missing or breaks among them
        return 0
