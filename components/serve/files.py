"""The files that a detector consists of, wherever they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from components import stage
from components.detector import file, older
from components.serve.detector import Detector, Scope
from components.stage import StageError

DETECTOR, CARD = "detector.onnx", "model_card.md"


@dataclass(frozen=True)
class Files:
    """One detector's files.

    Attributes:
        detector: `detector.onnx` (see `components.detector.file`).
        card: the model card, in Markdown.
        networks: its Keras networks by the names of the members, where they are at hand.
    """

    detector: Path
    card: Path
    networks: Mapping[str, Path] | None = None

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """Of a folder in `models/`."""
        return cls(folder / DETECTOR, folder / CARD)

    @classmethod
    def logged(cls, model: Path) -> Self:
        """Of a registered version's files, as MLflow lays them out. One that holds Keras files is compiled beside them.

        Raises:
            StageError: some are missing, or can't be compiled.
        """
        try:
            flavour = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]
            found = {name: model / said["path"] for name, said in flavour["artifacts"].items()}
            if "detector" in found:
                return cls(found["detector"], found["card"])
            keras = (found["network"], found["decision"], found["familiar"])
            return cls(older.compiled(*keras, model / DETECTOR), found.get("card", model / CARD))
        except (OSError, KeyError, TypeError) as error:
            if stage.is_full(error):
                raise
            raise StageError(f"{model}: no detector's files ({error!r}); register the candidate again") from None

    @cached_property
    def fitted(self) -> dict[str, Any]:
        """What the detector's file says of itself: see `components.detector.build.finished`."""
        return file.about(self.detector)

    @property
    def is_large(self) -> bool:
        """Whether it has an encoder, its own or one that it shares, with which a picture takes tenths of a second."""
        return "encoder" in self.fitted or self.detector.stat().st_size > file.LARGE

    @property
    def scope(self) -> Scope:
        """The sizes that it was judged on."""
        return Scope(**self.fitted["scope"])

    def load(self, version: str) -> Detector:
        """The detector at work."""
        return Detector(self.detector, version)
