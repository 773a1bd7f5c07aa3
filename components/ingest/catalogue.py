"""The catalogue of data sets: where each one lives, and how a path or a table in it gives label and split away."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from components.params import Columns, Label

Rule = list[str]
Split = Literal["train", "validation", "test"]

_LABEL_RULES: dict[str, list[Rule]] = {
    "ai": [[name] for name in ("ai", "fake", "generated", "ai_generated", "ai-generated", "synthetic", "aiartdata")],
    "real": [[name] for name in ("real", "human", "non_ai", "non_ai_generated", "nature", "photo", "realart")],
}
_SPLIT_RULES: dict[str, list[Rule]] = {
    "train": [["train"], ["training"]],
    "validation": [["validation"], ["valid"], ["val"]],
    "test": [["test"], ["testing"]],
}


class Table(BaseModel):
    """A CSV file that says which of the images is what; images that it doesn't name are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    path: str
    label: str
    values: dict[str, Label]
    pairs: Literal["neighbours"] | None = None
    """`neighbours`: each two rows that follow each other are an image and its twin."""


class Entry(BaseModel):
    """One data set. Without rules of its own, the usual folder names are understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    location: Annotated[str, Field(pattern=r"^(kaggle|hf|s3)://|^sample:$")] | None = None
    label: Label | None = None
    labels: dict[Label, list[Rule]] = _LABEL_RULES  # type: ignore[assignment]
    splits: dict[Split, list[Rule]] = _SPLIT_RULES  # type: ignore[assignment]
    unlabelled: list[Rule] = []
    """Folders whose images the publisher gave no label; they are left out."""
    table: Table | None = None
    columns: Columns | None = None
    files: list[str] = ["*.parquet"]
    """Which files of a repository hold its rows."""
    generator: str | None = None
    generator_from_folder: bool = False
    licence: str = "not stated"
    citation: str | None = None

    @property
    def homepage(self) -> str | None:
        """Where a person finds it."""
        scheme, _, name = (self.location or "").partition("://")
        pages = {"kaggle": "https://www.kaggle.com/datasets/", "hf": "https://huggingface.co/datasets/"}
        return pages[scheme] + name if scheme in pages else None

    def label_of(self, path: str) -> Label | None:
        """The label that a path's folders say, the folder nearest to the file first; the one of all, if it has one."""
        return self.label or _match(self.labels, path)[0]

    def is_unlabelled(self, path: str) -> bool:
        """Whether an image without a label is known to have none."""
        return bool(_match({"unlabelled": self.unlabelled}, path)[0])

    def split_of(self, path: str) -> Split | None:
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


def _match(rules: Mapping[Any, list[Rule]], path: str) -> tuple[Any, int]:
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
