"""What images that were removed leave behind in the arrays and in the index, removed too."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import stage
from components.preprocess import arrays
from components.stage import read_table


def forget(data: Path, out: Path, index: Path, removed: Any) -> None:
    """Take images out of the arrays and the index, without decoding the others again; and out of their features.

    Args:
        data: folder of the shards, from which they are gone already.
        out: folder of the arrays.
        index: written by preprocess; it need not be there.
        removed: `shards` by old name: the new name, or null, and which rows remained.
    """
    for name, (new, rows) in removed.shards.items():
        for path in list(out.glob(f"*/{name}.npy")):
            target = path.parents[1] / f"{new}.npy"
            if new:
                pixels = np.load(path, mmap_mode="r")[rows]
                stage.replace(target, lambda partial, pixels=pixels: _save(partial, pixels))  # type: ignore[misc]
            path.unlink()
            view = path.parents[1].name
            size = (data / f"{new}.parquet").stat().st_size if new else None
            arrays.succeed(out, f"{view}/{name}", f"{view}/{new}", size)
        for path in out.with_name("features").glob(f"*/{name}.npy"):
            path.unlink()
    if index.exists():
        table = read_table(index)
        result = _renumbered(table, removed.shards)
        stage.replace(index, lambda path: result.to_parquet(path, index=False))


def _save(path: Path, pixels: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, numpy would add its own suffix
        np.save(file, pixels)


def _renumbered(table: pd.DataFrame, changed: dict[str, tuple[str | None, list[int]]]) -> pd.DataFrame:
    parts = [table[~table["shard"].isin(changed)]]
    for name, (new, rows) in changed.items():
        part = table[(table["shard"] == name) & table["row"].isin(rows)]
        place = {row: number for number, row in enumerate(rows)}
        parts.append(part.assign(shard=new, row=part["row"].map(place)))
    result = pd.concat(parts, ignore_index=True)
    for name, (new, rows) in changed.items() if "crop_shard" in result else ():
        of = result["crop_shard"] == name
        there = result["crop_row"].map({row: number for number, row in enumerate(rows)})
        result["crop_shard"] = result["crop_shard"].mask(of, new if new else None).mask(of & there.isna(), None)
        result["crop_row"] = result["crop_row"].mask(of, there.fillna(0).astype(int))
    return result
