"""From logits to answers: calibration, threshold and the uncertain band, all fitted on validation images."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit


@dataclass(frozen=True)
class Decision:
    """How a logit becomes a verdict.

    Attributes:
        temperature: logits are divided by it (Guo et al. 2017).
        threshold: at or above it the label is `ai`.
        low: below it the verdict is `real`.
        high: at or above it the verdict is `ai`; in between it is `uncertain`.
    """

    temperature: float
    threshold: float
    low: float
    high: float

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """P(ai), float64, of logits of any shape."""
        return expit(logits.astype(np.float64) / self.temperature)


def fit(logits: np.ndarray, labels: np.ndarray, target_error: float, max_uncertain: float) -> Decision:
    """Fit a decision on validation images of both classes.

    Args:
        logits: float, shape (n,).
        labels: bool, shape (n,): true for `ai`.
        target_error: share of wrong answers that is aimed at among the certain ones.
        max_uncertain: share of images that may be uncertain.
    """
    temperature = _temperature(logits.astype(np.float64), labels)
    p = expit(logits.astype(np.float64) / temperature)
    threshold = _threshold(p, labels)
    low, high = _band(p, labels, threshold, target_error, max_uncertain)
    return Decision(temperature, threshold, low, high)


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _threshold(p: np.ndarray, labels: np.ndarray) -> float:
    """The cut with the best balanced accuracy, within its noise.

    The single best cut follows chance in a small validation set. All cuts within a standard error of it are as good;
    of these it is the one nearest to the share of `ai`, where the best one lies if the calibration is perfect.
    """
    order = np.argsort(p)
    p, y = p[order], labels[order]
    cuts = np.concatenate([[0.0], (p[1:] + p[:-1]) / 2, [1.0]])
    missed = np.concatenate([[0], np.cumsum(y)]) / max(1, y.sum())
    passed = np.concatenate([[0], np.cumsum(~y)]) / max(1, (~y).sum())
    balanced = (1 - missed + passed) / 2
    best = balanced.max()
    good = cuts[balanced >= best - np.sqrt(best * (1 - best) / len(p))]
    # Cuts lie between two scores, so that rounding moves no image across.
    return float(good[np.argmin(np.abs(good - labels.mean()))])


def _band(
    p: np.ndarray, labels: np.ndarray, threshold: float, target_error: float, max_uncertain: float
) -> tuple[float, float]:
    """The narrowest band around the threshold, equal in rank on both sides, that leaves few enough errors."""
    wrong = (p >= threshold) != labels
    # Distance from the threshold as the share of its side that lies closer.
    above = p >= threshold
    depth = np.empty(len(p))
    for side in (above, ~above):
        distance = np.abs(p[side] - threshold)
        depth[side] = distance.argsort().argsort() / max(1, side.sum())
    for share in np.arange(0, max_uncertain + 1e-9, 0.01):
        certain = depth >= share
        if not certain.any() or wrong[certain].mean() <= target_error:
            break
    inside = p[depth < share]
    low = min([threshold, *inside[inside < threshold]])
    high = max([threshold, *inside[inside >= threshold]])
    return float(low), float(np.nextafter(high, 1) if high > threshold else high)
