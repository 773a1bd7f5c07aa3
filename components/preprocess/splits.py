"""Which image trains, which validates, which tests."""

import hashlib

import numpy as np
import pandas as pd

from components.params import Preprocess
from components.shards import LABELS, REGRESSION, REPORTED, SPLITS
from components.stage import StageError


def assign(rows: pd.DataFrame, settings: Preprocess) -> pd.Series:
    """A split for every image.

    What the publisher fixed stays, except that a source without validation (or test) images gives some of its
    training images for it. All others are drawn by a hash of their group, so that near copies stay together and
    an image keeps its split when others come. A published validation or test image that copies a published training
    image is left out, unless `keep_copies`.

    What users reported was chosen, mostly for being wrong, so it says nothing of the world: it trains, unless it copies
    another image, whose split it then shares. What is proof of a reported mistake stays `regression`, and all that
    copies it is left out.

    Args:
        rows: with the columns `source`, `split` (null where nobody fixed it; `reported` or `regression` of what users
            reported) and `group`.
        settings: the section `preprocess`.

    Returns:
        `train`, `validation`, `test`, `regression`, or null for what is left out, with the index of `rows`.
    """
    reports = rows["split"].isin([REPORTED, REGRESSION])
    fixed = rows["split"].mask(reports)
    # One draw decides for a whole group, so what one of its sources has counts for its copies elsewhere too.
    has = {}
    for split in ("validation", "test"):
        of_source = rows["source"].isin(rows.loc[fixed == split, "source"])
        has[split] = rows["group"].isin(rows.loc[of_source, "group"])
    draw = rows["group"].map({g: _draw(g, settings.seed) for g in rows["group"].unique()})
    drawn = pd.Series("train", index=rows.index)
    test = draw < settings.test
    drawn[test & ~has["test"]] = "test"
    drawn[(draw >= settings.test) & (draw < settings.test + settings.validation) & ~has["validation"]] = "validation"

    # A copy of a held-out image belongs to that image's side, unless the publisher put it elsewhere.
    held = pd.Series(None, index=rows.index, dtype="object")
    for split in ("validation", "test"):
        held[rows["group"].isin(rows.loc[fixed == split, "group"])] = split
    undecided = fixed.isna() & held.notna()
    result = drawn.mask(undecided, held)
    published = fixed.isin(["validation", "test"])
    result = result.mask(published, fixed)
    copies = published & rows["group"].isin(rows.loc[fixed == "train", "group"])
    result = result if settings.keep_copies else result.mask(copies, None)
    result = result.mask(reports & ~rows["group"].isin(rows.loc[~reports, "group"]), "train")
    proof = rows["split"] == REGRESSION
    return result.mask(rows["group"].isin(rows.loc[proof, "group"]), None).mask(proof, REGRESSION)


def require_both_labels(rows: pd.DataFrame) -> None:
    """Check that each split can do its work.

    Raises:
        StageError: a split has no image of a class.
    """
    counts = rows.groupby(["split", "label"]).size()
    for split in SPLITS:
        for label in LABELS:
            if counts.get((split, label), 0) == 0:
                raise StageError(
                    f"the {split} split has no image labelled {label}; add some, or change preprocess.{split}"
                    if split != "train"
                    else f"the train split has no image labelled {label}; add some"
                )


def _draw(group: str, seed: int) -> float:
    """A number in [0, 1) that depends on the group and the seed alone."""
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return float(np.frombuffer(digest[:8], ">u8")[0] / 2**64)
