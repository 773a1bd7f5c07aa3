"""The catalogue of data sets: where each one lives, and how a path or a table in it gives label and split away."""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from components.params import Columns, Label

Rule = list[str]
Split = Literal["train", "validation", "test"]

_LABEL_WORDS = {
    "ai": "ai, fake, generated, ai_generated, ai-generated, synthetic, aiartdata, not_real, not-real",
    "real": "real, human, non_ai, non-ai, not_ai, not-ai, non_ai_generated, non-ai-generated, not_fake, not-fake, "
    "nature, photo, realart",
}
_LABEL_RULES: dict[str, list[Rule]] = {
    label: [[word] for word in words.split(", ")] for label, words in _LABEL_WORDS.items()
}
_WEAK = [["human"], ["nature"], ["photo"]]
_SPLIT_RULES: dict[str, list[Rule]] = {
    "train": [["train"], ["training"]],
    "validation": [["validation"], ["valid"], ["val"]],
    "test": [["test"], ["testing"]],
}


@dataclass(frozen=True)
class Match:
    """A rule that fits some neighbouring folders of a path: those from `start` to before `end`."""

    value: Any
    rule: Rule
    start: int
    end: int

    def covers(self, other: "Match") -> bool:
        """Whether it says more exactly what another one says of the same folders."""
        own, others = (self.end - self.start, len(self._words)), (other.end - other.start, len(other._words))
        return self.start <= other.start and other.end <= self.end and own > others

    @property
    def _words(self) -> list[str]:
        return [name for name in self.rule if name != "*"]


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
    page: str | None = Field(None, exclude=True)
    """Where a person gets what has no location that can be read; not among the rules, so that it may move."""
    label: Label | None = None
    labels: dict[Label, list[Rule]] = _LABEL_RULES  # type: ignore[assignment]
    weak: list[Rule] = _WEAK
    """Those of the labels' words that also name subjects: they count only beside a folder of the other label."""
    splits: dict[Split, list[Rule]] = _SPLIT_RULES  # type: ignore[assignment]
    unlabelled: list[Rule] = []
    """Folders whose images the publisher gave no label; they are left out."""
    dotted: bool = False
    """Whether pictures whose names begin with a dot are the publisher's own, and not hidden."""
    table: Table | None = None
    columns: Columns | None = None
    files: list[str] = ["*.parquet"]
    """Which files of a repository hold its rows, or which of its archives hold its images."""
    generator: str | None = None
    generator_from_folder: bool = False
    licence: str = "not stated"
    citation: str | None = None

    @property
    def homepage(self) -> str | None:
        """Where a person finds it."""
        scheme, _, name = (self.location or "").partition("://")
        pages = {"kaggle": "https://www.kaggle.com/datasets/", "hf": "https://huggingface.co/datasets/"}
        return pages[scheme] + name if scheme in pages else self.page

    def is_unlabelled(self, path: str) -> bool:
        """Whether an image without a label is known to have none."""
        return any(matches({"unlabelled": self.unlabelled}, str(PurePosixPath(path).parent)))

    def split_of(self, path: str) -> Split | None:
        """The publisher's split, if the path's folders say one; the folder nearest to the file counts."""
        found = max(matches(self.splits, str(PurePosixPath(path).parent)), key=lambda match: match.end, default=None)
        return found.value if found else None


def load() -> dict[str, Entry]:
    """All entries by name."""
    raw = yaml.safe_load((files(__package__) / "catalogue.yaml").read_text())
    return {name: Entry.model_validate(entry) for name, entry in raw.items()}


def matches(rules: Mapping[Any, list[Rule]], folder: str) -> Iterator[Match]:
    """Which rules fit the names on the way to a folder."""
    names = [folded(name) for name in PurePosixPath(folder).parts]
    for value, alternatives in rules.items():
        for rule in alternatives:
            wanted = [folded(name) for name in rule]
            for start in range(len(names) - len(rule) + 1):
                if all(w in ("*", name) for w, name in zip(wanted, names[start:], strict=False)):
                    yield Match(value, rule, start, start + len(rule))


def folded(name: str) -> str:
    """A name as it is compared: whatever its case, and however its accents are stored."""
    return composed(name).lower()


def composed(name: str) -> str:
    """A name whose accents are stored as one way of several, whatever system wrote them."""
    return unicodedata.normalize("NFC", name)
