"""The decision against what it promises."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from components.evaluate import decision
from components.evaluate.decision import Decision, Scored
from components.params import Evaluate

NOTHING = Scored(np.empty(0), np.empty(0, bool))


def fit(logits: np.ndarray, labels: np.ndarray, degraded: Scored = NOTHING, **settings: float) -> Decision:
    clean = Scored(logits, labels)
    return decision.fit(clean, clean, degraded, Evaluate.model_validate({"min_real_accuracy": 0, **settings}))


def real_accuracy(fitted: Decision, *scored: Scored) -> float:
    logits = np.concatenate([s.logits[~s.labels] for s in scored])
    return float((fitted.probabilities(logits) < fitted.threshold).mean())


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert fit(3 * logits, labels).temperature == pytest.approx(3, rel=0.05)


def test_the_uncertain_band_brings_the_error_down() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(5000) < 0.5
    logits = rng.normal(2 * (2 * labels - 1), 2)
    fitted = fit(logits, labels, target_error=0.08, max_uncertain=0.5)
    p = fitted.probabilities(logits)
    certain = (p < fitted.low) | (p >= fitted.high)
    wrong = (p >= fitted.threshold) != labels
    assert wrong.mean() > 0.1
    # The narrowest band: it stops where the error is reached, give or take an image.
    assert 0.08 - 0.001 < wrong[certain].mean() <= 0.08
    assert 0.5 <= certain.mean() < 1
    assert fitted.low < fitted.threshold < fitted.high
    limited = fit(logits, labels, target_error=0.0, max_uncertain=0.1)
    p = limited.probabilities(logits)
    assert 1 - ((p < limited.low) | (p >= limited.high)).mean() == pytest.approx(0.1, abs=0.001)


def test_no_band_where_the_error_is_low_already() -> None:
    labels = np.arange(100) % 2 == 0
    fitted = fit(np.where(labels, 4.0, -4.0), labels, target_error=0.05)
    assert fitted.low == fitted.threshold == fitted.high
    assert real_accuracy(fitted, Scored(np.where(labels, 4.0, -4.0), labels)) == 1


def test_the_threshold_follows_a_shifted_score() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random(4000) < 0.5
    logits = rng.normal(3 * labels + 2.0, 0.5)
    fitted = fit(logits, labels)
    said = fitted.probabilities(logits) >= fitted.threshold
    assert sk.balanced_accuracy_score(labels, said) > 0.99


def test_degraded_images_move_the_threshold_and_not_the_calibration() -> None:
    """Degradation makes all scores lower by as much as the classes are apart: a threshold between them fits both."""
    rng = np.random.default_rng(6)
    labels = rng.random(4000) < 0.5
    logits = rng.normal(6 * labels, 1.0)
    degraded = Scored(logits - 3, labels)
    alone, mixed = fit(logits, labels), fit(logits, labels, degraded)
    assert mixed.temperature == alone.temperature
    assert mixed.threshold < alone.threshold

    def accuracy(fitted: Decision) -> float:
        said = fitted.probabilities(np.concatenate([logits, degraded.logits])) >= fitted.threshold
        return float(sk.balanced_accuracy_score(np.tile(labels, 2), said))

    assert accuracy(mixed) > accuracy(alone) + 0.05


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_the_floor_holds_for_real_images_as_they_are_and_in_the_mixture(shift: float) -> None:
    rng = np.random.default_rng(7)
    labels = rng.random(4000) < 0.5
    clean, degraded = Scored(rng.normal(labels, 1.0), labels), Scored(rng.normal(labels + shift, 1.0), labels)
    free = fit(clean.logits, labels, degraded)
    assert min(real_accuracy(free, clean), real_accuracy(free, clean, degraded)) < 0.9
    held = fit(clean.logits, labels, degraded, min_real_accuracy=0.9)
    worst = min(real_accuracy(held, clean), real_accuracy(held, clean, degraded))
    assert 0.9 <= worst < 0.91, "a constraint, not a target"
    # Where nothing but calling all real reaches it, all is called real.
    hopeless = fit(clean.logits, labels, degraded, min_real_accuracy=1.0)
    assert real_accuracy(hopeless, clean, degraded) == 1


def test_scores_that_saturate_still_give_a_decision() -> None:
    labels = np.arange(100) % 2 == 0
    fitted = fit(np.full(100, 900.0), labels, min_real_accuracy=0.9)
    assert 0 < fitted.threshold < 1
    assert np.isfinite([fitted.low, fitted.high]).all()


def test_risk_falls_with_coverage_and_meets_the_band() -> None:
    rng = np.random.default_rng(8)
    labels = rng.random(20_000) < 0.5
    logits = rng.normal(2 * (2 * labels - 1), 2)
    fitted = fit(logits, labels, target_error=0.1, max_uncertain=0.4)
    p = fitted.probabilities(logits)
    points = decision.risk_coverage(p, labels, fitted.threshold)
    assert [q["coverage"] for q in points] == pytest.approx(np.arange(1, 21) / 20)
    risks = [q["risk"] for q in points]
    assert risks[-1] == pytest.approx(((p >= fitted.threshold) != labels).mean())
    assert all(a <= b + 0.002 for a, b in itertools.pairwise(risks))
    certain = (p < fitted.low) | (p >= fitted.high)
    between = np.interp(certain.mean(), [q["coverage"] for q in points], risks)
    assert between == pytest.approx(0.1, abs=0.003)
