"""What came, what went, and how what came differs from what was there."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from components import shards

_FEWEST = 20  # new images; fewer have no distribution
_NUMBERS = ("width", "height", "aspect", "bytes_per_pixel")
_WORDS = ("label", "source", "generator", "format", "mode")


def compare(rows: pd.DataFrame, data: Path) -> dict[str, Any] | None:
    """Compare this version of the data with the one before.

    Args:
        rows: the manifest of the sources in use.
        data: folder of the shards, with the list of its versions.

    Returns:
        `came` and `went` (images by label), and `columns`: for each the distance between the new images and the
        earlier ones (0 to 1: Kolmogorov and Smirnov's statistic of numbers, the total variation of words), and a
        typical value of both. Null where there is no earlier version.
    """
    sources = set(rows["source"])
    earlier, succeeded = shards.before(data)
    before = {name: labels for name, labels in earlier.items() if name.split("/")[0] in sources}
    if not before:
        return None
    now = rows.groupby(["shard", "label"]).size()
    was = {new: old for new, old in succeeded.items() if old in before}
    here = rows["shard"].unique()
    fresh = rows["shard"].isin([name for name in here if name not in before and name not in was])

    went = dict.fromkeys(shards.LABELS, 0)
    left = {was.get(name, name): name for name in here}
    for name, labels in before.items():
        for label in went:
            went[label] += labels.get(label, 0) - int(now.get((left.get(name, ""), label), 0))
    came = rows.loc[fresh, "label"].value_counts()
    return {
        "came": {label: int(came.get(label, 0)) for label in shards.LABELS},
        "went": went,
        "columns": _columns(_described(rows[~fresh]), _described(rows[fresh])) if fresh.sum() >= _FEWEST else {},
    }


def _described(rows: pd.DataFrame) -> pd.DataFrame:
    area = rows["width"] * rows["height"]
    return rows.assign(aspect=rows["width"] / rows["height"], bytes_per_pixel=rows["n_bytes"] / area)


def _columns(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if old.empty:
        return found
    for name in _NUMBERS:
        distance = ks_2samp(old[name].to_numpy(), new[name].to_numpy()).statistic
        found[name] = {
            "distance": round(float(distance), 4),
            "before": f"median {old[name].median():.4g}",
            "new": f"median {new[name].median():.4g}",
        }
    for name in _WORDS:
        shares = [part[name].fillna("none").value_counts(normalize=True) for part in (old, new)]
        both = pd.concat(shares, axis=1).fillna(0).to_numpy()
        said = [f"{share.index[0]} {share.iloc[0]:.0%}".replace("%", " %") for share in shares]
        found[name] = {
            "distance": round(float(np.abs(both[:, 0] - both[:, 1]).sum() / 2), 4),
            "before": said[0],
            "new": said[1],
        }
    return found
