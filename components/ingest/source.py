"""What every kind of source is made of: images on their way in, and the parts in which they arrive."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.folders import LeftOut
from components.ingest.catalogue import Entry
from components.params import Ingest, Source


@dataclass(frozen=True)
class Item:
    """An image file on its way in; `data` is None where it is larger than allowed.

    `pair` names images that belong together (a photograph and its generated twin): they never part between
    splits. `page` and `licence` say where an image from the web stood, and on what terms.
    """

    data: bytes | None
    origin: str
    label: str
    generator: str | None = None
    split: str | None = None
    pair: str | None = None
    page: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Part:
    """Images that arrive together: a folder, an archive, one of many Parquet files.

    An ingestion that is stopped goes on after its last whole part.

    Attributes:
        key: names the part among those of its source, and changes when its content does.
        items: reads it; called at most once, and not at all when the part is here already. Files that are left out
            are in it, each with its reason.
        covers: names of what it reads (files, objects) that the next ingestion needn't read again.
    """

    key: str
    items: Callable[[], Iterator[Item | LeftOut]]
    covers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a source is and what is wanted of it.

    Attributes:
        name: the source's name.
        where: a path, or a URI such as `s3://bucket/prefix`.
        entry: what the catalogue says, with the settings' own words laid over it.
        source: what the settings say.
        settings: the section `ingest`.
        downloads: a folder that is the source's own until its images are in; what is in it survives a failure.
        covered: what earlier ingestions of this source covered, by the names that their parts gave.
    """

    name: str
    where: str
    entry: Entry
    source: Source
    settings: Ingest
    downloads: Path
    covered: frozenset[str] = frozenset()

    @property
    def max_bytes(self) -> int:
        """Larger files are rejected."""
        return self.settings.max_file_mb * 2**20
