"""Layers that Keras doesn't have. Whoever loads a saved network imports this first."""

from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("trueframe")
class Correlations(keras.layers.Layer):
    """How the channels of a feature map go together over its places: what tells one style from another.

    The Gram matrix of Gatys et al. (2016), freed of the channels' means and sizes: from (n, h, w, c) to the
    c·(c − 1)/2 correlations of different channels.
    """

    def call(self, x: Any) -> Any:
        """Correlations of shape (n, c·(c − 1)/2), each from -1 to 1."""
        places, channels = x.shape[1] * x.shape[2], x.shape[3]
        x = ops.reshape(x, (-1, places, channels))
        x = x - ops.mean(x, axis=1, keepdims=True)
        x = x / ops.sqrt(ops.mean(ops.square(x), axis=1, keepdims=True) + 1e-6)
        all_pairs = ops.reshape(ops.matmul(ops.transpose(x, (0, 2, 1)), x) / places, (-1, channels**2))
        i, j = np.triu_indices(channels, 1)
        return ops.take(all_pairs, i * channels + j, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        """(n, c·(c − 1)/2)."""
        return input_shape[0], input_shape[3] * (input_shape[3] - 1) // 2


@keras.saving.register_keras_serializable("trueframe")
class Clip(keras.layers.Layer):
    """Values beyond a limit are the limit: one strange feature can't decide by itself.

    Args:
        limit: on both sides of 0.
    """

    def __init__(self, limit: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def call(self, x: Any) -> Any:
        """The same shape."""
        return ops.clip(x, -self.limit, self.limit)

    def get_config(self) -> dict[str, Any]:
        """With the limit."""
        return {**super().get_config(), "limit": self.limit}


@keras.saving.register_keras_serializable("trueframe")
class Resized(keras.layers.Layer):
    """Images of another size: bilinear, and where they shrink, over as many pixels as become one.

    Two products of matrices, so that every runtime computes the same.

    Args:
        height: in px.
        width: in px.
    """

    def __init__(self, height: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width = height, width

    def call(self, x: Any) -> Any:
        """From (n, h, w, c) to (n, height, width, c)."""
        _, height, width, channels = x.shape
        rows = ops.cast(_shares(height, self.height), x.dtype)
        columns = ops.cast(_shares(width, self.width), x.dtype)
        x = ops.matmul(rows, ops.reshape(x, (-1, height, width * channels)))
        return ops.matmul(columns, ops.reshape(x, (-1, self.height, width, channels)))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """(n, height, width, c)."""
        return input_shape[0], self.height, self.width, input_shape[3]

    def get_config(self) -> dict[str, Any]:
        """With the size."""
        return {**super().get_config(), "height": self.height, "width": self.width}


def _shares(before: int, after: int) -> np.ndarray:
    """How much each of `before` pixels in a line adds to each of `after`: float32, shape (after, before)."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    shares = np.maximum(0, 1 - np.abs(np.arange(before) + 0.5 - centres[:, None]) / max(1, scale))
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)
