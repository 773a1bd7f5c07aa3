"""Shards to arrays, and the index that says which image is where and in which split."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from components import shards, stage
from components.params import Preprocess
from components.preprocess import arrays, splits
from components.stage import StageError, read_table

COLUMNS = ["sha256", "shard", "row", "label", "source", "generator", "collection", "split", "group"]


def preprocess(
    data: Path,
    sources: Iterable[str],
    groups: Path,
    settings: Preprocess,
    out: Path,
    index: Path,
    engine: Literal["local", "ray"] = "local",
) -> pd.DataFrame:
    """Decode what is new and write the index.

    Args:
        data: folder of the shards.
        sources: which of them.
        groups: near copies, as validation wrote them.
        settings: the section `preprocess`.
        out: folder of the arrays, `<view>/<shard>.npy`: uint8, shape (images, side, side, 3), or
            (images, crops, side, side, 3) for a view of several crops.
        index: Parquet file to write: a row an image with `COLUMNS`. `split` is null where an image was left out.
        engine: what decodes; the arrays are the same.

    Returns:
        The index.

    Raises:
        StageError: a split lacks a class, the groups are missing or belong to other shards, a shard is damaged, or
            the engine can't be had or was lost.
    """
    if not groups.exists():
        raise StageError(f"{groups}: not here; run validate first")
    files = shards.paths(data, sources)
    rows = shards.manifest(files).merge(read_table(groups), on=["shard", "row"], how="left", validate="one_to_one")
    if rows["group"].isna().any():
        raise StageError(f"{groups}: made from other shards; run validate again")
    rows["collection"] = rows["generator"].fillna(rows["origin"].map(_folder)).fillna(rows["source"])
    rows["split"] = splits.assign(rows, settings)
    splits.require_both_labels(rows)
    equalise = settings.equalise.model_dump() if settings.equalise else None
    arrays.update(files, rows, settings.views, equalise, out, engine)
    result = rows[COLUMNS]
    stage.replace(index, lambda path: result.to_parquet(path, index=False))
    return result


def _folder(origin: str) -> str | None:
    """The folder above the one that an image lies in, which says the label: what it was collected as."""
    return PurePosixPath(origin).parent.parent.name or None
