"""From logits to answers: calibration, threshold and the uncertain band, all fitted on validation images."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from components.params import Evaluate

_EDGE = 1e-12  # of probabilities, so that their logits stay finite


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


@dataclass(frozen=True)
class Scored:
    """Logits (float, shape (n,)) and labels (bool, shape (n,): true for `ai`) of some images."""

    logits: np.ndarray
    labels: np.ndarray


def fit(clean: Scored, half: Scored, degraded: Scored, settings: Evaluate) -> Decision:
    """Fit a decision on validation images of both classes.

    The calibration is that of the images as they are. The threshold is fitted on a mixture of as many images as they
    are and degraded: where accuracy falls on re-saved images while the AUROC stays, it is the threshold that broke. It
    has the best balanced accuracy of those that call at least `min_real_accuracy` of the real images real, both in the
    mixture and of the ones as they are. The uncertain band is the narrowest around it, equally wide in
    logits on both sides, that leaves at most `target_error` wrong answers on the mixture, or leaves out
    `max_uncertain` of it.

    Args:
        clean: all validation images, as they are.
        half: the mixture's first half: images as they are.
        degraded: its second half.
        settings: the section `evaluate`.
    """
    temperature = calibrate(clean)
    z = np.concatenate([half.logits, degraded.logits]).astype(np.float64) / temperature
    labels = np.concatenate([half.labels, degraded.labels])
    threshold = _threshold(z, labels, len(half.labels), settings.min_real_accuracy)
    width = _width(z - logit(threshold), labels, settings)
    low, high = (float(expit(logit(threshold) + side * width)) if width else threshold for side in (-1, 1))
    return Decision(temperature, threshold, low, high)


def calibrate(scored: Scored) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017)."""
    logits = scored.logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - scored.labels * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def risk_coverage(p: np.ndarray, labels: np.ndarray, threshold: float) -> list[dict[str, float]]:
    """How often the answer is wrong among the images that are the surest ones.

    The surest lie farthest from the threshold, in logits: widening the uncertain band moves along this curve
    (El-Yaniv & Wiener 2010, "On the foundations of noise-free selective classification").

    Args:
        p: float, shape (n,): P(ai).
        labels: bool, shape (n,).
        threshold: at or above it the answer is `ai`.

    Returns:
        20 points: `coverage`, the share of the images, and `risk`, the share of wrong answers among them.
    """
    wrong = ((p >= threshold) != labels)[np.argsort(-np.abs(_logit(p) - logit(threshold)), kind="stable")]
    points = []
    for coverage in np.arange(1, 21) / 20:
        n = max(1, round(coverage * len(p)))
        points.append({"coverage": float(coverage), "risk": float(wrong[:n].mean())})
    return points


def _threshold(z: np.ndarray, labels: np.ndarray, n_clean: int, min_real_accuracy: float) -> float:
    """The cut with the best balanced accuracy, within its noise, among those that reach the floor.

    The single best cut follows chance in a small validation set. All cuts within a standard error of it are as good;
    of these it is the one nearest to the share of `ai`, where the best one lies if the calibration is perfect.
    """
    order = np.argsort(z)
    p, y = expit(z[order]), labels[order]
    # Cuts lie between two different scores, so that rounding moves no image across.
    between = np.flatnonzero(np.diff(p)) + 1
    below = np.concatenate([[0], between, [len(p)]])
    cuts = np.concatenate([[p[0] / 2], (p[between] + p[between - 1]) / 2, [(1 + p[-1]) / 2]])
    missed = np.concatenate([[0], np.cumsum(y)])[below] / max(1, y.sum())
    passed = np.concatenate([[0], np.cumsum(~y)])[below] / max(1, (~y).sum())
    balanced = (1 - missed + passed) / 2
    real = np.sort(expit(z[:n_clean][~labels[:n_clean]]))
    reaches = np.minimum(passed, np.searchsorted(real, cuts) / max(1, len(real))) >= min_real_accuracy
    reaches[-1] = True  # where all is called real
    best = balanced[reaches].max()
    good = cuts[reaches & (balanced >= best - np.sqrt(best * (1 - best) / len(p)))]
    return float(np.clip(good[np.argmin(np.abs(good - labels.mean()))], _EDGE, 1 - _EDGE))


def _width(distance: np.ndarray, labels: np.ndarray, settings: Evaluate) -> float:
    """Half the width of the uncertain band, in logits."""
    order = np.argsort(np.abs(distance))
    wrong = ((distance >= 0) != labels)[order]
    # Errors among the images that are left when the nearest 0, 1, 2, … are uncertain.
    left = np.arange(len(wrong), 0, -1)
    risk = wrong[::-1].cumsum()[::-1] / left
    few = np.flatnonzero(risk <= settings.target_error)
    n = min(few[0] if len(few) else len(wrong), int(settings.max_uncertain * len(wrong)))
    # The band is open above: what lies a hair beyond the last uncertain image is certain.
    return float(np.abs(distance[order[n - 1]])) * (1 + 1e-6) if n else 0.0


def _logit(p: np.ndarray) -> np.ndarray:
    """Finite at 0 and 1."""
    return logit(np.clip(p, _EDGE, 1 - _EDGE))
