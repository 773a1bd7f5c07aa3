"""Parquet tables of images, as Hugging Face keeps them, under whatever column names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.folders import LeftOut
from components.ingest.catalogue import Entry
from components.ingest.source import Item, Place
from components.ingest.values import Card, Values
from components.params import Columns, Label
from components.stage import StageError

_ROWS = 64  # read at once
_BUFFER = 2**20
_SPLIT = re.compile(r"(train|validation|valid|val|test)\b", re.IGNORECASE)
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def items(path: Path, name: str, place: Place, card: Card = lambda: None) -> Iterator[Item | LeftOut]:
    """The images of one Parquet file, in order, a few rows in memory at a time.

    Those whose value the settings leave out are told as left out.

    Args:
        path: the file.
        name: what to call it in `origin`; where no column says a split, its name or a folder's does
            (`data/test-00000-of-00004.parquet`, `data/test/0.parquet`).
        place: the source; its entry's `columns` say what is what.
        card: fetches the data set's card, which may name the classes.

    Raises:
        StageError: a column is missing or of another type, nothing says what a label means, or the file is damaged.
    """
    columns = place.entry.columns or Columns()
    try:
        # Without this, Arrow reads a whole row group of images at once, which may be more than a gigabyte.
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            wanted = _columns(columns, place.entry)
            missing = [c for c in wanted if c not in file.schema_arrow.names]
            if missing:
                raise StageError(
                    f"{name}: no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}. Say which "
                    f"is which under `columns` of the source {place.name} in params.yaml"
                )
            values = None if place.entry.label else Values(file, name, columns, place, card)
            batches = file.iter_batches(_ROWS, columns=wanted)
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                label = values.of(row[columns.label]) if values else place.entry.label
                if label:
                    yield _item(row, number, name, columns, label, place)
                else:
                    yield LeftOut(f"{name}/{number}", "no label")
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise StageError(f"{path}: damaged ({reason}); put a whole copy there and run the same command again") from None


def _columns(columns: Columns, entry: Entry) -> list[str]:
    named: tuple[str | None, ...] = (columns.image, None if entry.label else columns.label, columns.name)
    named += (columns.generator, columns.split, columns.pair, columns.licence)
    return list(dict.fromkeys(c for c in named if c))


def _item(row: dict[str, Any], number: int, name: str, columns: Columns, label: Label, place: Place) -> Item:
    image = row[columns.image]
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if data is not None and not isinstance(data, bytes):
        raise StageError(
            f"{name}: column {columns.image} holds {type(data).__name__}, no image files; name the right one under "
            f"`columns: {{image: ...}}` of the source {place.name} in params.yaml"
        )
    called = (row[columns.name] if columns.name else None) or path or "image"
    generator = (str(row[columns.generator]) if columns.generator and row[columns.generator] else None) or (
        place.entry.generator
    )
    too_large = data is not None and len(data) > place.max_bytes
    return Item(
        None if too_large else data or b"",
        f"{name}/{number}/{called}",
        label,
        generator if label == "ai" else None,
        _split(row, name, columns),
        str(row[columns.pair]) if columns.pair and row[columns.pair] is not None else None,
        licence=str(row[columns.licence]) if columns.licence and row[columns.licence] else None,
    )


def _split(row: dict[str, Any], name: str, columns: Columns) -> str | None:
    if columns.split:
        value = str(row[columns.split])
        return columns.splits.get(value) or _SPLITS.get(value.lower())
    for part in reversed(name.split("/")):  # the file's name says more than a folder's
        for value, split in columns.splits.items():
            if part.lower().startswith(value.lower()):
                return split
        found = _SPLIT.match(part)
        if found:
            return _SPLITS[found[1].lower()]
    return None
