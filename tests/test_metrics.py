"""The figures against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from components import metrics


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.random(600) < 0.4
    # Two decimals make ties, which a sorted curve can get wrong.
    return labels, np.clip(np.round(rng.normal(0.35 + 0.3 * labels, 0.2), 2), 0, 1)


def test_values_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    labels, p = scored
    found = metrics.summarise(labels, p, 0.5, 100, 0)
    said = p >= 0.5
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, said))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, said))
    assert found["precision"] == pytest.approx(sk.precision_score(labels, said))
    assert found["recall"] == pytest.approx(sk.recall_score(labels, said))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, said))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, p))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, p))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, p))
    fpr, tpr, _ = sk.roc_curve(labels, p, drop_intermediate=False)
    assert found["tpr_at_fpr_01"] == pytest.approx(tpr[fpr <= 0.01].max())
    assert found["tpr_at_fpr_05"] == pytest.approx(tpr[fpr <= 0.05].max())
    assert found["n"] == 600
    for name in metrics.NAMES:
        low, high = found["intervals"][name]
        assert 0 <= low <= found[name] <= high <= 1


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(60):
        labels = rng.random(200) < 0.5
        right = rng.random(200) < 0.8
        low, high = metrics.summarise(labels, (labels == right) * 1.0, 0.5, 200, trial)["intervals"]["accuracy"]
        inside += low <= 0.8 <= high
    # Of 60 draws at 95 %, 49 or fewer have a probability below 0.0001.
    assert inside >= 50


def test_one_class_alone_has_no_auroc() -> None:
    found = metrics.summarise(np.ones(20, bool), np.linspace(0.2, 1, 20), 0.5, 100, 0)
    assert found["auroc"] is None and found["intervals"]["auroc"] is None
    assert found["balanced_accuracy"] is None
    assert found["recall"] == pytest.approx(0.6, abs=0.05)


def test_calibration_error_of_honest_and_of_boastful_scores() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(20_000)
    labels = rng.random(20_000) < p
    # A mean of some 1,300 draws a bin is off by about 0.01.
    assert metrics.summarise(labels, p, 0.5, 100, 0)["ece"] < 0.02
    boastful = np.where(p > 0.5, 0.99, 0.01)
    assert metrics.summarise(labels, boastful, 0.5, 100, 0)["ece"] > 0.2
