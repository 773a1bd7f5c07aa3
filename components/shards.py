"""Raw data: the schema of the Parquet shards under `data/`, reading them and writing them.

A shard is written once and never changed, `data/<source>/<batch>-<nnnnn>.parquet`, one row an image.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.stage import StageError

LABELS = ("real", "ai")
SPLITS = ("train", "validation", "test")
REJECTED = "rejected.parquet"

_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}  # Hugging Face `datasets` reads this
SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.string()),
        pa.field("source", pa.string()),
        pa.field("generator", pa.string()),
        pa.field("split", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("format", pa.string()),
        pa.field("n_bytes", pa.int64()),
        pa.field("origin", pa.string()),
    ],
    metadata={"huggingface": json.dumps(_FEATURES)},
)
REJECTED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("origin", "reason", "label", "sha256")] + [("bytes", pa.binary())]
)
_MANIFEST_COLUMNS = [name for name in SCHEMA.names if name != "image"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one shard; pages carry checksums, so that a flipped byte is found when it is read."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    plain = ["image.bytes", "image.path", "sha256", "phash", "origin"]
    pq.write_table(
        table,
        path,
        row_group_size=1024,
        compression={c: "none" if c == "image.bytes" else "zstd" for c in _leaves()},
        use_dictionary=[c for c in _leaves() if c not in plain],
        write_page_checksum=True,
        write_statistics=[c for c in _leaves() if not c.startswith("image.")],
    )


def paths(data: Path, sources: Iterable[str]) -> dict[str, Path]:
    """The shards of some sources by name (`<source>/<batch>-<nnnnn>`), sorted.

    Raises:
        StageError: a source has no shard.
    """
    found: dict[str, Path] = {}
    for source in sorted(sources):
        files = sorted(p for p in (data / source).glob("*.parquet") if p.name != REJECTED)
        if not files:
            raise StageError(f"{data / source}: no shard here; `trueframe ingest {source}` brings the images in")
        found |= {f"{source}/{p.stem}": p for p in files}
    return found


def manifest(shards: dict[str, Path]) -> pd.DataFrame:
    """All rows without their images, with the columns `shard` and `row` in front.

    Raises:
        StageError: a shard is damaged or lacks a column.
    """
    parts = []
    for name, path in shards.items():
        part = _read(path, columns=_MANIFEST_COLUMNS).to_pandas()
        part.insert(0, "row", np.arange(len(part), dtype=np.int64))
        part.insert(0, "shard", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def files(path: Path, rows: Iterable[int] | None = None) -> Iterator[bytes]:
    """The image files of a shard as they were ingested: all of them in order, or those of some rows.

    Raises:
        StageError: the shard is damaged.
    """
    wanted = None if rows is None else np.asarray(list(rows), np.int64)
    column = _read(path, columns=["image"])["image"]
    if wanted is not None:
        column = column.take(pa.array(wanted))
    for chunk in column.chunks:
        yield from (value.as_py() for value in chunk.field("bytes"))


def load(shards: dict[str, Path], rows: pd.DataFrame) -> Iterator[tuple[Any, bytes]]:
    """The image files of some rows, shard by shard: pairs of (row label of the frame, bytes).

    Args:
        shards: as from `paths`.
        rows: with the columns `shard` and `row`.
    """
    for shard, part in rows.groupby("shard", sort=True):
        yield from zip(part.index, files(shards[str(shard)], part["row"]), strict=True)


def rejected(data: Path, source: str) -> pd.DataFrame:
    """The files of a source that couldn't be read: `origin`, `reason`, `label`, `sha256`, `bytes`.

    Raises:
        StageError: the list of them is damaged.
    """
    path = data / source / REJECTED
    table = _read(path, REJECTED_SCHEMA) if path.exists() else REJECTED_SCHEMA.empty_table()
    return table.to_pandas()


def _leaves() -> list[str]:
    return ["image.bytes", "image.path", *_MANIFEST_COLUMNS]


def _read(path: Path, schema: pa.Schema = SCHEMA, columns: list[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(schema.names) - set(file.schema_arrow.names)
            if missing:
                raise StageError(
                    f"{path}: column {', '.join(sorted(missing))} is missing; a shard has {', '.join(schema.names)}. "
                    "Remove the file and ingest its source again"
                )
            wrong = [f.name for f in schema if not file.schema_arrow.field(f.name).type.equals(f.type)]
            if wrong:
                raise StageError(f"{path}: column {wrong[0]} is not of type {schema.field(wrong[0]).type}")
            table = file.read(columns=columns)
            # Page headers have no checksum, and a page of an unknown kind is passed over.
            if len(table) != file.metadata.num_rows:
                raise pa.ArrowInvalid(f"{len(table)} of {file.metadata.num_rows} rows")
            return table
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).splitlines()[0]
        raise StageError(
            f"{path}: damaged ({reason}); restore it with `dvc checkout data.dvc --force` or `dvc pull`, "
            "or remove it and ingest its source again"
        ) from None
