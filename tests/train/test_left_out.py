"""Collections are left out whole, and weigh by the roots of their sizes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import networks
from components.params import Augment, Model
from components.train import left_out
from components.train.batches import drawn


def index(**collections: int) -> pd.DataFrame:
    """`ai_` or `real_` in front of a collection's name is its label."""
    rows = [(name.split("_")[0], name, f"{name}-{i}") for name, n in collections.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["label", "collection", "sha256"])


SEVERAL = index(
    **{f"ai_{i}": 5 + 7 * i for i in range(6)}, **{f"real_{i}": 40 - 5 * i for i in range(5)}
)  # five folds, for there are five real ones


def test_each_fold_has_whole_collections_of_both_labels() -> None:
    folds = left_out.folds(SEVERAL)
    assert folds is not None and set(folds) == set(range(5))
    assert (SEVERAL.assign(fold=folds).groupby("collection")["fold"].nunique() == 1).all()
    for fold in range(5):
        assert set(SEVERAL.loc[folds == fold, "label"]) == {"ai", "real"}
    sizes = np.bincount(folds[(SEVERAL["label"] == "ai").to_numpy()])
    assert sorted(sizes) == [17, 19, 26, 33, 40], "as even as whole collections can be: the smallest two are one"


def test_too_few_collections_are_left_as_they_are() -> None:
    assert left_out.folds(index(ai_a=5, ai_b=5, ai_c=5, ai_d=5, real_a=5, real_b=5, real_c=5)) is None
    assert left_out.folds(index(ai_a=5, ai_b=5, ai_c=5, ai_d=5)) is None


def test_labels_weigh_alike_and_collections_by_the_root_of_their_sizes() -> None:
    rows = index(ai_a=400, ai_b=100, real_a=9)
    weights = left_out.weights(rows)
    total = pd.Series(weights).groupby(rows["collection"]).sum()
    np.testing.assert_allclose([total["real_a"], total["ai_a"] / total["ai_b"]], [0.5, 2.0])
    seen = np.bincount(drawn(len(rows), 7, 0, weights), minlength=len(rows))
    assert 0.4 < seen[-9:].sum() / len(rows) < 0.6
    np.testing.assert_array_equal(drawn(9, 7, 3, weights[-9:] * 2), drawn(9, 7, 3, weights[-9:] * 2))


class Given:
    """Features in memory, as `Rows` has them."""

    crops = 1

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def pixels(self, which: np.ndarray, crops: Any = None) -> np.ndarray:
        return self.features[which]


@pytest.mark.parametrize("tells", ["label", "collection"])
def test_what_tells_a_collection_alone_tells_nothing_of_the_others(tells: str) -> None:
    """A feature that carries the label carries over; one that each collection has its own of, doesn't."""
    keras = networks.load_keras()
    rows = index(**{f"ai_{i}": 30 for i in range(4)}, **{f"real_{i}": 30 for i in range(4)})
    labels = (rows["label"] == "ai").to_numpy()
    features = np.random.default_rng(0).normal(0, 1, (len(rows), 8)).astype(np.float32)
    if tells == "label":
        features[:, 0] += np.where(labels, 3, -3)
    else:
        features += 6 * np.eye(8, dtype=np.float32)[pd.factorize(rows["collection"])[0]]
    inputs = keras.Input((8,))
    head = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(inputs))
    before = [np.array(w) for w in head.get_weights()]
    still = Augment(flip=False, shift=0)
    model = Model(network="style", view="32", batch_size=32, learning_rate=0.05, balance="collections", augment=still)
    said: list[str] = []
    found = left_out.logits(head, model, 30, rows, Given(features, labels[:, None].astype(np.float32)), said.append)  # type: ignore[arg-type]
    assert found is not None and len(said) == 4 and list(found["sha256"]) == list(rows["sha256"])
    right = ((found["logit"] > 0) == labels).mean()
    assert right > 0.9 if tells == "label" else right < 0.95, right
    assert all(np.array_equal(a, b) for a, b in zip(before, head.get_weights(), strict=True))
