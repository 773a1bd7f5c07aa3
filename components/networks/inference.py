"""A saved network as a function from pixels to logits, without the detours of `model.predict`."""

from pathlib import Path
from typing import Any

import numpy as np

from components import networks

_BLOCK = 256


class Scorer:
    """Scores arrays with a saved network.

    Args:
        path: of a `.keras` file.
    """

    def __init__(self, path: Path) -> None:
        keras = networks.load_keras()
        self.model = keras.models.load_model(path, compile=False)
        self.side = int(self.model.input_shape[1])
        self._call = self._compiled(keras)
        self._maps: Any = None

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of `ai`.

        Args:
            pixels: uint8, shape (n, side, side, 3), or (n, crops, side, side, 3): of several crops of an image, the
                mean of their logits counts.

        Returns:
            float32, shape (n,).
        """
        if pixels.ndim == 5:
            return self.logits(pixels.reshape(-1, *pixels.shape[2:])).reshape(pixels.shape[:2]).mean(1)
        blocks = [
            np.asarray(self._call(np.ascontiguousarray(pixels[start : start + _BLOCK])))[:, 0]
            for start in range(0, len(pixels), _BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float32)

    def activation_map(self, pixels: np.ndarray) -> np.ndarray:
        """How much each place adds to the logit: the class activation map (Zhou et al. 2016).

        It is exact for a network that ends in global average pooling and one dense unit: its mean plus the
        unit's bias is the logit.

        Args:
            pixels: uint8, shape (side, side, 3).

        Returns:
            float32, shape (h, w), at the resolution of the last feature map.
        """
        keras = networks.load_keras()
        if self._maps is None:
            pooling = [x for x in self.model.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)][-1]
            self._maps = keras.Model(self.model.input, pooling.input)
        features = keras.ops.convert_to_numpy(self._maps(pixels[None].astype(np.float32)))[0]
        weights = keras.ops.convert_to_numpy(self.model.get_layer("logit").kernel)[:, 0]
        return np.asarray(features @ weights, np.float32)

    def _compiled(self, keras: Any) -> Any:
        if keras.backend.backend() != "tensorflow":
            return lambda pixels: keras.ops.convert_to_numpy(self.model.predict_on_batch(pixels))
        import tensorflow as tf

        shape = tf.TensorSpec([None, self.side, self.side, 3], tf.uint8)
        function = tf.function(
            lambda pixels: self.model(tf.cast(pixels, tf.float32), training=False), input_signature=[shape]
        ).get_concrete_function()
        return lambda pixels: function(tf.constant(pixels)).numpy()
