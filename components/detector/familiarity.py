"""Whether an image is like those that a detector was judged on, by the features that its decision rests on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from components import stage

_QUANTILE = 0.9975  # of each of two distances
_AT_MOST = 20_000
_WIDE = 1024  # features; of more, only the directions in which images differ most are looked at
_DIRECTIONS = 128
_FIELDS = ("scale", "means", "directions", "spread", "limits")


@dataclass(frozen=True)
class Familiarity:
    """Distance to the nearer of the two classes, in the space of pooled features: Mahalanobis (Lee et al. 2018).

    Of many features, the covariance of all would need more images than there are. Then only the directions in which
    images differ most are taken, and what lies outside of them counts by its size.

    Attributes:
        scale: float32, shape (d,): by which features are divided first, so that all vary alike within the classes.
        means: float32, shape (2, d), of `real` and of `ai`, after that.
        directions: float32, shape (d, k): orthonormal; k is d, or 128 where d is above 1,024.
        spread: float32, shape (k,): standard deviation in each direction, within the classes.
        limits: float32, shape (2,): the distance in these directions, and outside of them, that 99.75 % of the images
            stay below on which it was fitted.
    """

    scale: np.ndarray
    means: np.ndarray
    directions: np.ndarray
    spread: np.ndarray
    limits: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, seed: int = 7) -> Self:
        """Fit means and covariance on half of the images, and the limits on the other half.

        Args:
            features: float, shape (n, d).
            labels: bool, shape (n,): true for `ai`; both classes occur.
        """
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA

        everywhere = np.full(2, np.inf, np.float32)
        if not features.shape[1]:  # a network without pooled features: all is familiar
            none = np.zeros(0, np.float32)
            return cls(none, np.zeros((2, 0), np.float32), np.zeros((0, 0), np.float32), none, everywhere)
        order = np.random.default_rng(seed).permutation(len(features))[:_AT_MOST]
        features, labels = features[order].astype(np.float64), labels[order]
        half = np.zeros(len(features), bool)
        for label in (False, True):
            half[np.flatnonzero(labels == label)[::2]] = True
        means = np.stack([features[half & (labels == label)].mean(0) for label in (False, True)])
        within = features[half] - means[labels[half].astype(int)]
        scale = np.sqrt((within**2).mean(0)) + 1e-3 * np.sqrt((within**2).mean()) + 1e-12
        means, within = means / scale, within / scale
        if features.shape[1] > _WIDE:
            kept = PCA(min(_DIRECTIONS, len(within) // 4), svd_solver="randomized", random_state=seed).fit(within)
            variances, directions = kept.explained_variance_, kept.components_.T
        else:
            variances, directions = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(within).covariance_)
        # A direction in which nothing varies says nothing but rounding.
        spread = np.sqrt(np.maximum(variances, max(1e-12, 1e-6 * variances.max())))
        single = np.float32
        fitted = cls(
            scale.astype(single), means.astype(single), directions.astype(single), spread.astype(single), everywhere
        )
        rest = features if half.all() else features[~half]
        limits = np.quantile(fitted._distances(rest), _QUANTILE, axis=0)
        return replace(fitted, limits=np.maximum(limits, 1e-6).astype(np.float32))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Of features of shape (n, d), as multiples of what is familiar: float32, shape (n,); above 1 is not."""
        return np.asarray((self._distances(features) / self.limits).max(1), np.float32)

    def _distances(self, features: np.ndarray) -> np.ndarray:
        """In the directions, and outside of them: shape (n, 2)."""
        apart = (features.astype(np.float32) / self.scale)[:, None, :] - self.means[None]
        along = apart @ self.directions
        outside = (apart**2).sum(-1) - (along**2).sum(-1) if self.directions.shape[1] < self.directions.shape[0] else 0
        inside = ((along / self.spread) ** 2).sum(-1)
        both = np.stack([inside, np.broadcast_to(np.maximum(outside, 0), inside.shape)], axis=-1)
        return np.asarray(np.sqrt(both.min(1)))

    def save(self, path: Path) -> None:
        """Write an `.npz` file."""
        stage.replace(
            path,
            lambda partial: np.savez_compressed(
                partial,
                scale=self.scale,
                means=self.means,
                directions=self.directions.astype(np.float16),
                spread=self.spread,
                limits=self.limits,
            ),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(*(arrays[name].astype(np.float32) for name in _FIELDS))
