"""Shards to arrays, and the index that says which image is where and in which split."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd

from components import shards, stage
from components.params import Preprocess
from components.preprocess import arrays, splits
from components.stage import StageError, read_table

COLUMNS = ["sha256", "shard", "row", "label", "source", "generator", "collection", "split", "group"]
_CROP = ["crop_shard", "crop_row"]


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
            With `settings.crops`, `crop_shard` and `crop_row` say where an image's crop at native resolution lies,
            if it has one (see `shards.placed`).
        engine: what decodes; the arrays are the same.

    Returns:
        The index.

    Raises:
        StageError: a split lacks a class, a source of crops has none of the other one's names, the groups are missing
            or belong to other shards, a shard is damaged, or the engine can't be had or was lost.
    """
    if not groups.exists():
        raise StageError(f"{groups}: not here; run validate first")
    files = shards.paths(data, sources)
    rows = shards.manifest(files).merge(read_table(groups), on=["shard", "row"], how="left", validate="one_to_one")
    if rows["group"].isna().any():
        raise StageError(f"{groups}: made from other shards; run validate again")
    pictures = _with_crops(rows, settings.crops)
    pictures["collection"] = pictures["generator"].fillna(pictures["origin"].map(_folder)).fillna(pictures["source"])
    pictures["split"] = splits.assign(pictures, settings)
    splits.require_both_labels(pictures)
    equalise = settings.equalise.model_dump() if settings.equalise else None
    arrays.update(files, rows, settings.views, equalise, out, engine)
    result = pictures[[*COLUMNS, *(_CROP if settings.crops else [])]]
    stage.replace(index, lambda path: result.to_parquet(path, index=False))
    return result


def _with_crops(rows: pd.DataFrame, crops: Mapping[str, str]) -> pd.DataFrame:
    """The rows of pictures, each with the place of its crop, by the name that both have below their source's root."""
    pictures = rows[~rows["source"].isin(crops.values())].reset_index(drop=True)
    if crops:
        pictures = pictures.assign(crop_shard=pictures["shard"].mask(pictures["row"] >= 0), crop_row=np.int64(0))
    for of, source in crops.items():
        cut = rows[rows["source"] == source].drop_duplicates("origin")
        place = cut.set_index(_names(cut["origin"]))[["shard", "row"]]
        here = pictures["source"] == of
        names = _names(pictures.loc[here, "origin"])
        found = names.isin(place.index)
        if not found.any():
            raise StageError(
                f"preprocess.crops: no image of {source} has the name of one of {of} (such as "
                f"{names.iloc[0]}; there it is {place.index[0]}); both have to be ingested from folders or archives "
                "of one layout"
            )
        pictures.loc[names.index[found], _CROP] = place.loc[names[found]].to_numpy()
        print(f"{int(found.sum()):,} of {len(names):,} images of {of} have a crop in {source}", flush=True)
    return pictures


def _names(origins: pd.Series) -> pd.Series:
    """Paths below the folder that holds them all, without suffix."""
    parts = [PurePosixPath(origin).with_suffix("").parts for origin in origins]
    shared = next((n for n, of in enumerate(zip(*parts, strict=False)) if len(set(of)) > 1), 0)
    return pd.Series(["/".join(of[shared:]) for of in parts], origins.index)


def _folder(origin: str) -> str | None:
    """The folder above the one that an image lies in, which says the label: what it was collected as."""
    return PurePosixPath(origin).parent.parent.name or None
