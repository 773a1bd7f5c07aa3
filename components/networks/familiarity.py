"""Whether an image is like those that a detector was judged on, by the features that its decision rests on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from components import stage

_QUANTILE = 0.995
_AT_MOST = 20_000
_WIDE = 1024  # features; of more, only the directions in which images differ most are looked at
_DIRECTIONS = 128


@dataclass(frozen=True)
class Familiarity:
    """Mahalanobis distance to the nearer of the two classes, in the space of pooled features (Lee et al. 2018).

    Attributes:
        means: float32, shape (2, d), of `real` and of `ai`.
        whitening: float32, shape (d, k): after it, features have unit variance within the classes; k is d, or 128
            where d is above 1,024.
        limit: distance that 99.5 % of the images it was fitted on stay below.
    """

    means: np.ndarray
    whitening: np.ndarray
    limit: float

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, seed: int = 7) -> Self:
        """Fit means and covariance on half of the images, and the limit on the other half.

        Args:
            features: float, shape (n, d).
            labels: bool, shape (n,): true for `ai`; both classes occur.
        """
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA

        if not features.shape[1]:  # a network without pooled features: all is familiar
            return cls(np.zeros((2, 0), np.float32), np.zeros((0, 0), np.float32), 0.0)
        order = np.random.default_rng(seed).permutation(len(features))[:_AT_MOST]
        features, labels = features[order].astype(np.float64), labels[order]
        half = np.zeros(len(features), bool)
        for label in (False, True):
            half[np.flatnonzero(labels == label)[::2]] = True
        means = np.stack([features[half & (labels == label)].mean(0) for label in (False, True)])
        within = features[half] - means[labels[half].astype(int)]
        if features.shape[1] > _WIDE:  # a covariance of all would need more images than there are
            kept = PCA(min(_DIRECTIONS, len(within) // 4), svd_solver="randomized", random_state=seed).fit(within)
            values, vectors = kept.explained_variance_, kept.components_.T
        else:
            values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(within).covariance_)
        # A direction in which nothing varies says nothing but rounding.
        whitening = vectors / np.sqrt(np.maximum(values, max(1e-12, 1e-6 * values.max())))
        rest = features if half.all() else features[~half]
        distances = cls(means.astype(np.float32), whitening.astype(np.float32), 0.0).distances(rest)
        return cls(means.astype(np.float32), whitening.astype(np.float32), float(np.quantile(distances, _QUANTILE)))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Of features of shape (n, d), float32 of shape (n,)."""
        apart = (features[:, None, :].astype(np.float32) - self.means[None]) @ self.whitening
        return np.asarray(np.sqrt((apart**2).sum(-1).min(1)), np.float32)

    def save(self, path: Path) -> None:
        """Write an `.npz` file."""
        whitening = self.whitening.astype(np.float16)
        stage.replace(
            path,
            lambda partial: np.savez_compressed(
                partial, means=self.means, whitening=whitening, limit=np.float32(self.limit)
            ),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["means"], arrays["whitening"].astype(np.float32), float(arrays["limit"]))
