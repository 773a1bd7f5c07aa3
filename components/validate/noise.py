"""Which labels look wrong?

Labels that were flipped at random can't be learnt, so that they are missed by a classifier even where it is surest.
Images that are merely hard are missed where it is unsure. The share of contradicted labels among the surest images is
therefore an estimate of the share of wrong labels (compare Northcutt et al. 2021, "Confident learning").
"""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from components.validate import leakage

_FEWEST = 200  # images of a class
_SUREST = 0.2  # share of the images on which the classifier is held to its word
_GOOD = 0.85  # area under the ROC curve below which it has no say
_DOUBTFUL = 0.1  # probability of its own label at which an image becomes a candidate


@dataclass(frozen=True)
class Noise:
    """Labels that look wrong.

    Attributes:
        share: of all labels, estimated; null where the classifier is too weak to tell.
        at_least: lower end of its 95 % interval (Wilson).
        auc: of the classifier, cross-validated; null where there are too few images.
        candidates: positions of the images whose label is contradicted most, worst first.
        probability: P(ai) of each image, from folds that didn't hold it.
    """

    share: float | None
    at_least: float
    auc: float | None
    candidates: np.ndarray
    probability: np.ndarray


def find(traces: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Noise:
    """Look for wrong labels with a classifier of the traces that the making of a picture leaves.

    Args:
        traces: float32, shape (n, features).
        labels: bool, shape (n,): true for `ai`.
        groups: shape (n,); copies share one.
        seed: of the folds.
    """
    nothing = np.empty(0, np.int64)
    if min(labels.sum(), (~labels).sum()) < _FEWEST:
        return Noise(None, 0.0, None, nothing, np.full(len(labels), np.nan))
    fold = leakage.folds(labels, groups, seed)
    p = leakage.out_of_fold(traces, labels, fold, seed, max_iter=100, max_bins=63)
    auc = round(float(roc_auc_score(labels, p)), 4)
    if auc < _GOOD:
        return Noise(None, 0.0, auc, nothing, p)
    surest = np.argsort(-np.abs(p - 0.5))[: max(_FEWEST, int(_SUREST * len(p)))]
    wrong = int(((p > 0.5) != labels)[surest].sum())
    own = np.where(labels, p, 1 - p)
    candidates = np.argsort(own, kind="stable")[: int((own < _DOUBTFUL).sum())]
    return Noise(wrong / len(surest), _wilson(wrong, len(surest)), auc, candidates, p)


def _wilson(hits: int, n: int) -> float:
    """Lower end of the 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / n
    centre = share + z * z / (2 * n)
    return (centre - z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
