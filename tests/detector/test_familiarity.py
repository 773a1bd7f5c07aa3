"""Distances in feature space: what is far from both classes is unfamiliar."""

from pathlib import Path

import numpy as np
import pytest

from components.detector.familiarity import Familiarity

RNG = np.random.default_rng(0)
LABELS = np.arange(2000) % 2 == 0
MIX = RNG.normal(size=(8, 8))
FEATURES = RNG.normal(size=(2000, 8)) @ MIX + LABELS[:, None] * 6


def test_new_images_of_the_same_kind_are_familiar() -> None:
    fitted = Familiarity.fit(FEATURES, LABELS)
    more = RNG.normal(size=(2000, 8)) @ MIX + LABELS[:, None] * 6
    assert 0.97 < (fitted.distances(more) <= 1).mean() <= 1


def test_images_of_another_kind_are_not() -> None:
    fitted = Familiarity.fit(FEATURES, LABELS)
    shifted = FEATURES + 10 * MIX[0]  # along a direction in which the classes don't differ
    assert (fitted.distances(shifted) > 1).mean() > 0.95


def test_between_the_classes_is_not_near_either() -> None:
    fitted = Familiarity.fit(FEATURES * [1, 0, 0, 0, 0, 0, 0, 0] + LABELS[:, None] * 100, LABELS)
    assert fitted.distances(np.full((1, 8), 50.0))[0] > 1


def test_pickles_in_its_file_are_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "evil.npz", scale=np.array([Evil()], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Familiarity.load(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_it_survives_a_file(tmp_path: Path) -> None:
    fitted = Familiarity.fit(FEATURES, LABELS)
    fitted.save(tmp_path / "familiar.npz")
    again = Familiarity.load(tmp_path / "familiar.npz")
    assert np.allclose(again.distances(FEATURES), fitted.distances(FEATURES), rtol=0.01)
    assert np.allclose(again.limits, fitted.limits)


def test_of_many_features_the_main_directions_count() -> None:
    wide = RNG.normal(size=(8, 2000))
    fitted = Familiarity.fit(FEATURES @ wide, LABELS)
    assert fitted.directions.shape == (2000, 128)
    more = (RNG.normal(size=(500, 8)) @ MIX + LABELS[:500, None] * 6) @ wide
    assert (fitted.distances(more) <= 1).mean() > 0.95
    assert (fitted.distances(more + 10 * MIX[0] @ wide) > 1).mean() > 0.95


def test_of_many_features_what_lies_outside_of_the_main_directions_counts_too() -> None:
    wide = RNG.normal(size=(8, 2000))
    noise = RNG.normal(size=(2500, 2000))
    fitted = Familiarity.fit(FEATURES @ wide + noise[:2000], LABELS)
    more = FEATURES[:500] @ wide + noise[2000:]
    assert (fitted.distances(more) <= 1).mean() > 0.95
    assert (fitted.distances(more + RNG.normal(size=(500, 2000))) > 1).mean() > 0.95
