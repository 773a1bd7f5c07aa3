"""What a small head on frozen features says of collections that it never saw: each left out once, in folds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from components.params import Model
from components.train import learner as learning
from components.train.batches import LabelledBatches, PixelBatches, Rows, drawn, drawn_crops

FOLDS = 10
_FEWEST = 4  # collections of a label


def folds(index: pd.DataFrame) -> np.ndarray | None:
    """The fold of each image: whole collections, of each label as many images in all folds as can be.

    Returns:
        int, shape (n,); null where a label has fewer than four collections, so that leaving one out says little.
    """
    if "collection" not in index:  # of an older preprocess
        return None
    counts = index.groupby(["label", "collection"], observed=True).size().sort_values(ascending=False, kind="stable")
    fewest = min(len(counts.xs(label)) if label in counts else 0 for label in ("ai", "real"))
    if fewest < _FEWEST:
        return None
    sizes = {label: np.zeros(min(FOLDS, fewest), int) for label in ("ai", "real")}
    place: dict[str, int] = {}
    for (label, collection), n in zip(counts.index, counts, strict=True):
        # A collection with both labels is left out as one.
        fold = place.setdefault(collection, int(np.argmin(sizes[label])))
        sizes[label][fold] += n
    return index["collection"].map(place).to_numpy()


def weights(index: pd.DataFrame) -> np.ndarray:
    """How often an image is drawn: both labels alike, and within one the collections by the root of their sizes.

    Returns:
        float64, shape (n,), with the sum 1.
    """
    sizes = index.groupby(["label", "collection"], observed=True)["sha256"].transform("size")
    w = 1 / np.sqrt(sizes.to_numpy(float))
    for label in ("ai", "real"):
        of_label = (index["label"] == label).to_numpy()
        w[of_label] /= 2 * w[of_label].sum()
    return w


def logits(
    head: Any, model: Model, epochs: int, index: pd.DataFrame, rows: Rows, say: Callable[[str], None]
) -> pd.DataFrame | None:
    """Fit the head anew without each fold, and ask it about that fold.

    Args:
        head: from features to a logit; its own weights stay as they are.
        model: the candidate's settings.
        epochs: for so long.
        index: of all images, without those of the test split.
        rows: their features.
        say: tells how far it is.

    Returns:
        `sha256`, `label`, `collection`, `weight` (see `weights`), `fold` and `logit` of each image; null where there
        are too few collections.
    """
    import keras

    place = folds(index)
    if place is None:
        return None
    found = np.empty(len(index), np.float32)
    for fold in range(place.max() + 1):
        inside = np.flatnonzero(place == fold)
        outside = np.flatnonzero(place != fold)
        batch = min(model.batch_size, len(outside))
        steps = math.ceil(len(outside) / batch)
        fresh = keras.models.clone_model(head)
        phase = model.phases[0].model_copy(update={"epochs": epochs})
        learner = learning.compiled(fresh, model, batch, steps, phase)
        w = weights(index.iloc[outside]) if model.balance == "collections" else None
        for epoch in range(epochs):
            learning.prepare(learner, model.seed, epoch, 1.0)
            order = outside[drawn(len(outside), model.seed, epoch, w)]
            batches = LabelledBatches(rows, batch, order, drawn_crops(rows, model.seed, epoch))
            learner.fit(batches, shuffle=False, verbose=0)
        found[inside] = fresh.predict(PixelBatches(rows, 512, inside), verbose=0)[:, 0]
        say(f"without fold {fold + 1} of {place.max() + 1}: {len(inside):,} images of collections it never saw")
    return index[["sha256", "label", "collection"]].assign(weight=weights(index), fold=place, logit=found)
