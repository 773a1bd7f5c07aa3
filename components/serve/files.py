"""The files that a detector consists of, wherever they lie."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from components.serve.detector import Detector, Scope
from components.stage import StageError

FILES = ("network.keras", "decision.json", "familiar.npz")


@dataclass(frozen=True)
class Files:
    """One detector's files.

    Attributes:
        network: a `.keras` file, or the folder with one for each member.
        decision: `decision.json`.
        familiar: `familiar.npz`.
        card: the model card, in Markdown.
    """

    network: Path
    decision: Path
    familiar: Path
    card: Path

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """Of a folder in `models/`."""
        return cls(*(folder / name for name in (*FILES, "model_card.md")))

    @classmethod
    def logged(cls, model: Path) -> Self:
        """Of a registered version's files, as MLflow lays them out.

        Raises:
            StageError: some are missing.
        """
        try:
            flavour = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]
            found = {name: model / said["path"] for name, said in flavour["artifacts"].items()}
            return cls(*(found[name] for name in ("network", "decision", "familiar", "card")))
        except (OSError, KeyError, TypeError) as error:
            raise StageError(f"{model}: no detector's files ({error!r}); register the candidate again") from None

    @property
    def fitted(self) -> dict[str, Any]:
        """What `decision.json` holds."""
        return dict(json.loads(self.decision.read_text()))

    @property
    def scope(self) -> Scope:
        """The sizes that it was judged on."""
        return Scope(**self.fitted["scope"])

    def detector(self, version: str) -> Detector:
        """The detector at work."""
        return Detector(self.network, self.decision, self.familiar, version)
