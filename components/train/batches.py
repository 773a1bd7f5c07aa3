"""Rows of memory-mapped arrays as training batches."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd


class Rows:
    """Images of an index, or their features, read from the arrays of one view when they are asked for."""

    def __init__(self, index: pd.DataFrame, arrays: Path, view: str) -> None:
        names = sorted(index["shard"].unique())
        self._arrays = [np.load(arrays / view / f"{name}.npy", mmap_mode="r") for name in names]
        self._shard = index["shard"].map({name: i for i, name in enumerate(names)}).to_numpy(np.int64)
        self._row = index["row"].to_numpy(np.int64)
        # Pixels have 4 dimensions and features 2, and one more where there are several crops of an image.
        self._several = self._arrays[0].ndim % 2 == 1
        self.labels = (index["label"] == "ai").to_numpy(np.float32)[:, None]

    def __len__(self) -> int:
        return len(self._row)

    @property
    def crops(self) -> int:
        """How many crops of each image there are."""
        return self._arrays[0].shape[1] if self._several else 1

    def pixels(self, which: np.ndarray, crops: np.ndarray | None = None) -> np.ndarray:
        """Some images, and of each one crop: the first, or that of `crops`.

        Returns:
            uint8, shape (len(which), side, side, 3); of features float32, shape (len(which), d).
        """
        one = self._arrays[0]
        out = np.empty((len(which), *one.shape[2 if self._several else 1 :]), one.dtype)
        shards = self._shard[which]
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            rows: Any = self._row[which[here]]
            if self._several:
                rows = rows, 0 if crops is None else crops[here]
            out[here] = self._arrays[shard][rows]
        return out


class PixelBatches(keras.utils.PyDataset):
    """Some images in order, of each its first crop."""

    def __init__(self, rows: Rows, size: int, which: np.ndarray) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=8)
        self._rows, self._size, self._which = rows, size, which

    def __len__(self) -> int:
        return math.ceil(len(self._which) / self._size)

    def __getitem__(self, position: int) -> tuple[Any]:
        return (self._rows.pixels(self._which[position * self._size :][: self._size]),)


class LabelledBatches(keras.utils.PyDataset):
    """One epoch: images in some order, and of each one crop: the first, or that of `crops`.

    All batches are of one size, which compilers and batch normalisation like best: the last one is filled up with the
    first images. Of several processes each reads a part of every batch: `part` is its number and how many there are.
    """

    def __init__(
        self,
        rows: Rows,
        size: int,
        order: np.ndarray,
        crops: np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=8)
        self._rows, self._size, self._length = rows, size, math.ceil(len(order) / size)
        number, parts = part
        self._part = slice(number * size // parts, (number + 1) * size // parts)
        n = self._length * size
        self._order, self._crops = np.resize(order, n), None if crops is None else np.resize(crops, n)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        start = position * self._size
        here = slice(start + self._part.start, start + self._part.stop)
        which = self._order[here]
        crops = None if self._crops is None else self._crops[here]
        labels = self._rows.labels[which]
        return (self._rows.pixels(which, crops), labels), labels


def drawn(n: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The images of an epoch in their order, the same whenever it is trained: each once, or as its weight says.

    Args:
        n: images.
        seed: of the training.
        epoch: its number.
        weights: float, shape (n,), with the sum 1.
    """
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(n) if weights is None else rng.choice(n, n, p=weights)


def drawn_crops(rows: Rows, seed: int, epoch: int) -> np.ndarray | None:
    """A crop for each image of an epoch, the same whenever it is trained; None where there is one only."""
    if rows.crops == 1:
        return None
    return np.random.default_rng([seed, epoch, 1]).integers(rows.crops, size=len(rows))
