"""The catalogue of data sets: how a path in one gives the label, the split and the generator away."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

Rule = list[str]

_LABEL_RULES: dict[str, list[Rule]] = {
    "ai": [[name] for name in ("ai", "fake", "generated", "ai_generated", "ai-generated", "synthetic", "aiartdata")],
    "real": [[name] for name in ("real", "human", "non_ai", "non_ai_generated", "nature", "photo", "realart")],
}
_SPLIT_RULES: dict[str, list[Rule]] = {
    "train": [["train"], ["training"]],
    "validation": [["validation"], ["valid"], ["val"]],
    "test": [["test"], ["testing"]],
}


class Entry(BaseModel):
    """One data set. Without rules of its own, the usual folder names are understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    kind: Literal["sample", "files"] = "files"
    homepage: str | None = None
    labels: dict[Literal["ai", "real"], list[Rule]] = _LABEL_RULES  # type: ignore[assignment]
    splits: dict[Literal["train", "validation", "test"], list[Rule]] = _SPLIT_RULES  # type: ignore[assignment]
    generator: str | None = None
    generator_from_folder: bool = False
    licence: str = "not stated"
    citation: str | None = None

    def label(self, path: str) -> str | None:
        """The label that a path's folders say, the folder nearest to the file first."""
        return _match(self.labels, path)[0]

    def split(self, path: str) -> str | None:
        """The publisher's split, if the path's folders say one."""
        return _match(self.splits, path)[0]

    def generator_of(self, path: str) -> str | None:
        """The generator of an image labelled `ai`: the catalogue's, or the folder above the one with the label."""
        if not self.generator_from_folder:
            return self.generator
        above = _match(self.labels, path)[1] - 2
        return PurePosixPath(path).parts[above] if above >= 0 else None


def load() -> dict[str, Entry]:
    """All entries by name."""
    raw = yaml.safe_load((files(__package__) / "catalogue.yaml").read_text())
    return {name: Entry.model_validate(entry) for name, entry in raw.items()}


def _match(rules: Mapping[Any, list[Rule]], path: str) -> tuple[str | None, int]:
    """What the folders of a path say, and how many of them lead to the one that says it."""
    folders = [part.lower() for part in PurePosixPath(path).parent.parts]
    for end in range(len(folders), 0, -1):
        for value, alternatives in rules.items():
            for rule in alternatives:
                start = end - len(rule)
                if start >= 0 and all(
                    name in ("*", folder)
                    for name, folder in zip((n.lower() for n in rule), folders[start:end], strict=True)
                ):
                    return value, end
    return None, 0
