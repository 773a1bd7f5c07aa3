"""Raw data: the schema of the Parquet shards under `data/`, reading them and writing them.

A shard is written once and never changed, `data/<source>/<batch>-<nnnnn>.parquet`, one row an image.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.stage import StageError, read_json, replace

LABELS = ("real", "ai")
SPLITS = ("train", "validation", "test")
REPORTED, REGRESSION = "reported", "regression"
"""The splits of what users reported: to learn from, and proof that is never learnt from (see docs/feedback.md)."""
REJECTED = "rejected.parquet"
ABOUT = "about.parquet"
ABOUT_COLUMNS = ("pair", "page", "licence")
FORGOTTEN = "forgotten.json"
VERSIONS = "versions.json"
_PIECE = 128

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
ABOUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("sha256", "label", "origin", *ABOUT_COLUMNS)])
_MANIFEST_COLUMNS = [name for name in SCHEMA.names if name != "image"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one shard; pages carry checksums, so that a flipped byte is found when it is read."""
    _write(path, pa.Table.from_pylist(rows, SCHEMA))


def copy(path: Path, rows: list[int], target: Path) -> None:
    """Write some rows of a shard as another one.

    Raises:
        StageError: the shard is damaged.
    """
    _write(target, _read(path).select(SCHEMA.names).take(pa.array(rows, pa.int64())).cast(SCHEMA))


def _write(path: Path, table: pa.Table) -> None:
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


def stored(folder: Path) -> list[Path]:
    """The shards of one source's folder, sorted."""
    return sorted(p for p in folder.glob("*.parquet") if p.name not in (REJECTED, ABOUT))


def exist(folder: Path) -> bool:
    """Whether a source's folder holds a shard."""
    return bool(stored(folder))


def paths(data: Path, sources: Iterable[str]) -> dict[str, Path]:
    """The shards of some sources by name (`<source>/<batch>-<nnnnn>`), sorted.

    Raises:
        StageError: a source has no shard.
    """
    found: dict[str, Path] = {}
    for source in sorted(sources):
        files = stored(data / source)
        if not files:
            raise StageError(f"{data / source}: no shard here; `trueframe ingest {source}` brings the images in")
        found |= {f"{source}/{p.stem}": p for p in files}
    return found


def manifest(shards: dict[str, Path]) -> pd.DataFrame:
    """All rows without their images, with the columns `shard` and `row` in front.

    Older shards name JPEG files of several pictures MPO: they are JPEG here.

    Raises:
        StageError: a shard is damaged or lacks a column.
    """
    parts = []
    for name, path in shards.items():
        part = _read(path, columns=_MANIFEST_COLUMNS).to_pandas()
        part.insert(0, "row", np.arange(len(part), dtype=np.int64))
        part.insert(0, "shard", name)
        parts.append(part)
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(format=rows["format"].replace("MPO", "JPEG"))


def row_groups(path: Path) -> list[range]:
    """The rows of a shard in the groups that can be read one by one.

    Raises:
        StageError: the shard is damaged.
    """
    with _opened(path, SCHEMA) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    return [range(int(start), int(end)) for start, end in zip([0, *ends], ends, strict=False)]


def pieces(path: Path) -> list[range]:
    """The rows of a shard in pieces of even work for several processes.

    Raises:
        StageError: the shard is damaged.
    """
    return [group[start : start + _PIECE] for group in row_groups(path) for start in range(0, len(group), _PIECE)]


def files(path: Path, rows: Iterable[int] | None = None) -> Iterator[bytes]:
    """The image files of a shard as they were ingested: all of them in order, or those of some rows.

    Raises:
        StageError: the shard is damaged.
    """
    if rows is None:
        column = _read(path, columns=["image"])["image"]
    else:
        wanted = np.fromiter(rows, np.int64)
        here = row_groups(path)
        of = np.searchsorted([group.start for group in here], wanted, side="right") - 1
        touched = np.unique(of)
        column = _read(path, columns=["image"], groups=touched.tolist())["image"]
        # How many rows were skipped before each group that was read.
        read = np.cumsum([0, *(len(here[group]) for group in touched)])
        skipped = np.array([here[group].start for group in touched], np.int64) - read[:-1]
        column = column.take(pa.array(wanted - skipped[np.searchsorted(touched, of)]))
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


def placed(index: pd.DataFrame, view: str) -> pd.DataFrame:
    """An index in which `shard` and `row` say where the file lies that a view is made from.

    That is another one where a picture has a crop at native resolution, and the view is a crop.
    """
    if not is_crop(view) or "crop_shard" not in index:  # the latter of an older preprocess
        return index
    has = index["crop_shard"].notna()
    return index.assign(
        shard=index["crop_shard"].where(has, index["shard"]), row=index["crop_row"].where(has, index["row"]).astype(int)
    )


def is_crop(view: str) -> bool:
    """Whether a view is cut at native resolution."""
    return view.startswith("crop-")


def crops(index: pd.DataFrame) -> set[str]:
    """The sources that hold crops of an index's pictures."""
    return set(index["crop_shard"].dropna().str.partition("/")[0]) if "crop_shard" in index else set()


def rejected(data: Path, source: str) -> pd.DataFrame:
    """The files of a source that couldn't be read: `origin`, `reason`, `label`, `sha256`, `bytes`.

    Raises:
        StageError: the list of them is damaged.
    """
    path = data / source / REJECTED
    table = _read(path, REJECTED_SCHEMA) if path.exists() else REJECTED_SCHEMA.empty_table()
    return table.to_pandas()


def about(data: Path, source: str) -> pd.DataFrame:
    """What is known of single images beyond the schema: `sha256`, `label`, `origin`, `pair`, `page`, `licence`.

    `pair` names images that belong together and must not part between splits.

    Raises:
        StageError: the list is damaged.
    """
    path = data / source / ABOUT
    table = _read(path, ABOUT_SCHEMA) if path.exists() else ABOUT_SCHEMA.empty_table()
    return table.to_pandas()


def forgotten(data: Path) -> set[str]:
    """The sha256 of images that were removed for good; they don't come back."""
    path = data / FORGOTTEN
    return {image["sha256"] for image in read_json(path)} if path.exists() else set()


def seal(data: Path) -> None:
    """Remember which shards make up this version of the data, and which made up the one before.

    Nothing happens where no shard came and none went.
    """
    known, found = _versions(data), _all(data)
    if known["current"].keys() == found.keys():
        return
    current = {}
    for name, path in found.items():
        labels = known["current"].get(name)
        if labels is None:
            column = _read(path, columns=["label"])["label"].to_pylist()
            labels = {label: column.count(label) for label in LABELS}
        current[name] = labels
    _remember(data, {"previous": known["current"], "current": current, "was": known["next"], "next": {}})


def succeed(data: Path, was: dict[str, str]) -> None:
    """Remember that shards took the place of others (new name: old name), with some images fewer."""
    known = _versions(data)
    earlier = known["next"]
    kept = {new: old for new, old in earlier.items() if new not in was.values()}
    _remember(data, known | {"next": kept | {new: earlier.get(old, old) for new, old in was.items()}})


def before(data: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """The version before this one: its images by label, by shard; and what succeeded what since (new: old name)."""
    known = _versions(data)
    if known["current"].keys() == _all(data).keys():
        return known["previous"], known["was"]
    return known["current"], known["next"]


def _versions(data: Path) -> dict[str, dict[str, Any]]:
    path = data / VERSIONS
    empty: dict[str, dict[str, Any]] = {"previous": {}, "current": {}, "was": {}, "next": {}}
    return read_json(path) if path.exists() else empty


def _remember(data: Path, versions: dict[str, dict[str, Any]]) -> None:
    content = json.dumps(versions, indent=1) + "\n"
    replace(data / VERSIONS, lambda path: path.write_text(content))


def _all(data: Path) -> dict[str, Path]:
    return paths(data, [folder.name for folder in data.glob("[!.]*") if folder.is_dir() and exist(folder)])


def _leaves() -> list[str]:
    return ["image.bytes", "image.path", *_MANIFEST_COLUMNS]


@contextlib.contextmanager
def _opened(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """A file that has the schema's columns; what is damaged in it is said in one line."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(schema.names) - set(file.schema_arrow.names)
            if missing:
                raise StageError(
                    f"{path}: column {', '.join(sorted(missing))} is missing; a shard has {', '.join(schema.names)}. "
                    "Move the file away and ingest its source again"
                )
            wrong = [f.name for f in schema if not file.schema_arrow.field(f.name).type.equals(f.type)]
            if wrong:
                raise StageError(f"{path}: column {wrong[0]} is not of type {schema.field(wrong[0]).type}")
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not there, or not to be read now
            raise
        reason = str(error).splitlines()[0]
        raise StageError(
            f"{path}: damaged ({reason}); restore it with `dvc checkout data.dvc --force` or `dvc pull`, "
            "or move it away and ingest its source again"
        ) from None


def _read(
    path: Path, schema: pa.Schema = SCHEMA, columns: list[str] | None = None, groups: list[int] | None = None
) -> pa.Table:
    with _opened(path, schema) as file:
        wanted = range(file.num_row_groups) if groups is None else groups
        table = file.read_row_groups(list(wanted), columns=columns)
        # Page headers have no checksum, and a page of an unknown kind is passed over.
        expected = sum(file.metadata.row_group(i).num_rows for i in wanted)
        if len(table) != expected:
            raise pa.ArrowInvalid(f"{len(table)} of {expected} rows")
        return table
