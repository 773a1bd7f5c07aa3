"""Is the candidate better than the champion, on the same images?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def best(
    candidates: dict[str, dict[str, Any]], metric: str, minimum: Mapping[Any, float]
) -> tuple[str | None, list[str]]:
    """The best candidate that reaches all minimum scores.

    Args:
        candidates: `metrics.json` of each, by name.
        metric: by which they are compared.
        minimum: scores that a version must have.

    Returns:
        Its name, or None where none is good enough, and the reasons.
    """
    reasons, good = [], []
    for name, scores in candidates.items():
        low = [f"{m} {_shown(scores[m])} is below {limit}" for m, limit in minimum.items() if (scores[m] or 0) < limit]
        if low:
            reasons.append(f"{name}: {', '.join(low)} (register.min_scores)")
        else:
            good.append(name)
    if not good:
        return None, reasons
    winner = max(good, key=lambda name: (candidates[name][metric], name))
    for name in good:
        what = "best candidate" if name == winner else "not the best"
        reasons.append(f"{name}: {what}, {metric} {candidates[name][metric]:.4f}")
    return winner, reasons


def _shown(value: float | None) -> str:
    return "(undefined)" if value is None else f"{value:.4f}"


def score(metric: str, labels: pd.Series, probabilities: pd.Series, threshold: float) -> float:
    """One of the metrics that `register.metric` allows."""
    from sklearn import metrics as sk

    truth = (labels == "ai").to_numpy()
    p = probabilities.to_numpy()
    if metric == "auroc":
        return float(sk.roc_auc_score(truth, p))
    if metric == "average_precision":
        return float(sk.average_precision_score(truth, p))
    said = p >= threshold
    function = {
        "balanced_accuracy": sk.balanced_accuracy_score,
        "accuracy": sk.accuracy_score,
        "f1": sk.f1_score,
    }
    return float(np.float64(function[metric](truth, said)))
