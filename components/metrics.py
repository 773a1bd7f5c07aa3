"""The figures by which a detector is judged, each with its bootstrap interval."""

from collections.abc import Iterator
from typing import Any

import numpy as np

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "f1",
    "auroc",
    "average_precision",
    "ece",
    "brier",
    "tpr_at_fpr_01",
    "tpr_at_fpr_05",
)
_BINS = 15
_CHUNK = 4_000_000  # weights held at once


def summarise(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    resamples: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """All metrics of a set of images.

    Args:
        labels: bool, shape (n,): true for `ai`.
        probabilities: float, shape (n,): P(ai).
        threshold: at or above it the answer is `ai`.
        resamples: of the bootstrap (Efron & Tibshirani 1993).
        seed: of the bootstrap.
        weights: float, shape (n,): how much each image counts; alike without them.

    Returns:
        `NAMES` to values, `intervals` (the same names to the 2.5 % and 97.5 % percentiles, less the bias of
        resampling) and `n`. A value is null where the images don't define it, such as the AUROC of one class alone.
    """
    n = len(labels)
    counts = np.ones(n) if weights is None else weights
    values = weighted(labels, probabilities, threshold, counts[None])
    parts = [weighted(labels, probabilities, threshold, counts * times) for times in resampled(n, resamples, seed)]
    result: dict[str, Any] = {}
    intervals: dict[str, list[float] | None] = {}
    for name in NAMES:
        value = float(values[name][0])
        found = interval(np.concatenate([part[name] for part in parts]), value)
        if found:
            result[name], intervals[name] = value, [max(0.0, found[0]), min(1.0, found[1])]
        else:
            result[name] = intervals[name] = None
    return {**result, "intervals": intervals, "n": n}


def resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """The bootstrap's resamples as how often each image occurs: float64, shape (b, n), a piece at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step := max(1, _CHUNK // max(n, 1))):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.float64)


def interval(drawn: np.ndarray, value: float) -> list[float] | None:
    """The 95 % interval of a figure, or None where it isn't defined.

    Args:
        drawn: float, shape (b,): the figure of each resample.
        value: the figure of the images as they are.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(drawn):
        return None
    # A resample repeats images, which alone makes the calibration error larger: that bias is taken off.
    low, high = np.percentile(drawn, [2.5, 97.5]) - np.median(drawn) + value
    return [float(low), float(high)]


def weighted(labels: np.ndarray, p: np.ndarray, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics under several weightings of the images (shape (b, n)) at once, each of shape (b,)."""
    order = np.argsort(-p, kind="stable")
    y, p, w = labels[order].astype(bool), p[order], weights[:, order]
    said = p >= threshold
    true_positive, false_positive = w @ (said & y), w @ (said & ~y)
    positive, negative = w @ y, w @ ~y
    total = positive + negative
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = true_positive / positive
        precision = true_positive / (true_positive + false_positive)
        specificity = 1 - false_positive / negative

        # Points of the ROC curve lie where the score changes.
        last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
        hits = np.cumsum(w * y, axis=1)[:, last]
        alarms = np.cumsum(w * ~y, axis=1)[:, last]
        tpr = np.hstack([np.zeros((len(w), 1)), hits / positive[:, None]])
        fpr = np.hstack([np.zeros((len(w), 1)), alarms / negative[:, None]])
        auroc = np.trapezoid(tpr, fpr, axis=1)
        average_precision = np.sum(np.diff(tpr, axis=1) * np.nan_to_num(hits / (hits + alarms)), axis=1)

        bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
        one_hot = np.eye(_BINS)[bins]
        ece = np.abs(w @ (one_hot * (y - p)[:, None])).sum(axis=1) / total
        return {
            "accuracy": (true_positive + negative - false_positive) / total,
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": precision,
            "recall": recall,
            "f1": 2 * true_positive / (2 * true_positive + false_positive + positive - true_positive),
            "auroc": np.where((positive > 0) & (negative > 0), auroc, np.nan),
            "average_precision": np.where(positive > 0, average_precision, np.nan),
            "ece": ece,
            "brier": w @ ((p - y) ** 2) / total,
            "tpr_at_fpr_01": _tpr_at(tpr, fpr, 0.01),
            "tpr_at_fpr_05": _tpr_at(tpr, fpr, 0.05),
        }


def _tpr_at(tpr: np.ndarray, fpr: np.ndarray, limit: float) -> np.ndarray:
    """The highest true positive rate with a false positive rate of at most `limit`."""
    defined = np.isfinite(fpr[:, -1]) & np.isfinite(tpr[:, -1])
    return np.where(defined, np.where(fpr <= limit, tpr, 0).max(axis=1), np.nan)
