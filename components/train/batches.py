"""Rows of memory-mapped arrays as training batches."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd


class Rows:
    """Images of an index, read from the arrays of one view when they are asked for."""

    def __init__(self, index: pd.DataFrame, arrays: Path, view: str) -> None:
        names = sorted(index["shard"].unique())
        self._arrays = [np.load(arrays / view / f"{name}.npy", mmap_mode="r") for name in names]
        self._shard = index["shard"].map({name: i for i, name in enumerate(names)}).to_numpy(np.int64)
        self._row = index["row"].to_numpy(np.int64)
        self.labels = (index["label"] == "ai").to_numpy(np.float32)[:, None]

    def __len__(self) -> int:
        return len(self._row)

    def pixels(self, which: np.ndarray) -> np.ndarray:
        """uint8, shape (len(which), side, side, 3)."""
        out = np.empty((len(which), *self._arrays[0].shape[1:]), np.uint8)
        shards = self._shard[which]
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            out[here] = self._arrays[shard][self._row[which[here]]]
        return out


class Batches(keras.utils.PyDataset):
    """One epoch: all images in an order that depends on the seed and the epoch alone."""

    def __init__(self, rows: Rows, batch_size: int, order: np.ndarray) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=8)
        self._rows, self._size, self._order = rows, batch_size, order

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._size)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        which = self._order[position * self._size : (position + 1) * self._size]
        return self._rows.pixels(which), self._rows.labels[which]


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation that is the same whenever this epoch is trained."""
    return np.random.default_rng([seed, epoch]).permutation(n)
