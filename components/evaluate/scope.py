"""What a detector was judged on, so that it can say when it is asked about something else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import shards
from components.params import Equalise

_MARGIN = 2.0


def sides(
    rows: pd.DataFrame, files: dict[str, Path], views: Iterable[str], equalise: Equalise | None
) -> dict[str, Any]:
    """The sizes that a detector may be asked about: those of its validation images, with a margin of a factor of two.

    Enlarging a smaller picture shows a network what it has never seen. So does shrinking a much larger one, unless
    every picture is brought to one size first, or is looked at in native crops.

    Args:
        rows: of the index.
        files: the shards that hold them.
        views: what the networks see.
        equalise: what comes first.

    Returns:
        `min_side` and `max_side` in px, of the shorter side; the latter is null where there is no such limit.
    """
    sizes = shards.manifest(files)[["sha256", "width", "height"]].drop_duplicates("sha256")
    known = sizes[sizes["sha256"].isin(rows["sha256"])]
    low, high = np.quantile(known[["width", "height"]].min(axis=1), [0.01, 0.99])
    bounded = not (equalise and equalise.size != "crop") and any(not view.startswith("crop-") for view in views)
    return {"min_side": int(low / _MARGIN), "max_side": int(np.ceil(high * _MARGIN)) if bounded else None}
