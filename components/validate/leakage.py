"""Can the label be told from what is not the picture?"""

import math
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_FEWEST = 10  # images of a class
_VALUES = 60  # of a column of words; rarer ones count as one
_FOLDS = 3


def auc(
    features: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float | None, dict[str, float]]:
    """How well a classifier tells the label from some columns, and from each of them alone.

    Args:
        features: a row an image; columns of words or truth values count as categories.
        labels: bool, shape (n,): true for `ai`.
        groups: shape (n,); copies share one, and are never on both sides of a fold.
        seed: of the folds.

    Returns:
        The cross-validated area under the ROC curve of gradient-boosted trees on all columns (0.5: nothing leaks),
        and the same by column. Null and empty where a class has too few images.
    """
    if min(labels.sum(), (~labels).sum()) < _FEWEST:
        return None, {}
    fold = folds(labels, groups, seed)
    encoded = pd.DataFrame({name: _encoded(column) for name, column in features.items()})
    words = [name for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    by_column = {
        str(name): _auc(encoded[[name]], [name] if name in words else [], labels, fold, seed) for name in features
    }
    varied = [str(name) for name in features if encoded[name].nunique() > 1]
    if len(varied) == 1:
        return by_column[varied[0]], by_column
    return _auc(encoded, words, labels, fold, seed), by_column


def at_least(auc: float, n_ai: int, n_real: int) -> float:
    """An area under the curve less two standard errors (Hanley & McNeil 1982): what a few images can't feign."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_ai - 1) * (one - auc**2) + (n_real - 1) * (two - auc**2)
    return auc - 2 * math.sqrt(max(0.0, variance) / (n_ai * n_real))


def folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """A fold for each image, with as many of each label in every fold as can be, and no group in two.

    Args:
        labels: bool, shape (n,).
        groups: shape (n,).
        seed: draws them.

    Returns:
        int64, shape (n,).
    """
    _, first, of = np.unique(groups, return_index=True, return_inverse=True)
    fold = np.empty(len(first), np.int64)
    splitter = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(first, labels[first])):
        fold[held] = number
    return fold[of]


def out_of_fold(features: Any, labels: np.ndarray, fold: np.ndarray, seed: int, **settings: Any) -> np.ndarray:
    """P(ai) of each image by gradient-boosted trees that saw neither it nor a copy of it: float64, shape (n,)."""
    leaf = 20 if len(labels) > 2000 else 5
    model = HistGradientBoostingClassifier(random_state=seed, min_samples_leaf=leaf, **settings)
    # So little work is done sooner by one thread, above all where others have the cores.
    with threadpool_limits(1):
        scores = cross_val_predict(model, features, labels, cv=PredefinedSplit(fold), method="predict_proba")
    return scores[:, 1]


def tells(name: str, column: pd.Series, labels: np.ndarray) -> str:
    """In words and figures, how a column tells the label: "format tells the label: PNG 100 % ai, JPEG 100 % real"."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.nunique() <= 4:
        shares = pd.Series(labels, column.index).groupby(column.astype(str)).agg(["mean", "size"])
        # The values that say most about most images come first.
        shares["weight"] = (shares["mean"] - labels.mean()).abs() * shares["size"]
        shares = shares.sort_values("weight", ascending=False)
        shares = shares[(shares["mean"] - 0.5).abs() > 0.1].head(4)
        said = [
            f"{value} {max(row['mean'], 1 - row['mean']):.0%} {'ai' if row['mean'] >= 0.5 else 'real'}".replace(
                "%", " %"
            )
            for value, row in shares.iterrows()
        ]
        return f"{name} tells the label: {', '.join(said)}"
    ai, real = float(column[labels].median()), float(column[~labels].median())
    return f"{name} tells the label: median {ai:.4g} of ai, {real:.4g} of real"


def _encoded(column: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        words = column.astype(str)
        common = words.value_counts().index[:_VALUES]
        return words.map({value: code for code, value in enumerate(common)}).fillna(_VALUES)
    return column.astype(float)


def _auc(features: pd.DataFrame, words: list[Any], labels: np.ndarray, fold: np.ndarray, seed: int) -> float:
    if (features.nunique() == 1).all():
        return 0.5
    scores = out_of_fold(features, labels, fold, seed, max_iter=50, categorical_features=words or None)
    return round(float(roc_auc_score(labels, scores)), 4)
