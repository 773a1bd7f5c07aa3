"""A saved network as a function from pixels to logits, without the detours of `model.predict`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components import images, networks

_BLOCK = 256  # images in one call, at most
_BLOCK_PIXELS = 2**21  # and pixels, for what the layers of a large view hold of each
_WIDEST = 8192  # features, for what a distance among them costs


class Scorer:
    """Scores arrays with a saved network.

    Args:
        path: of a `.keras` file.
    """

    def __init__(self, path: Path) -> None:
        self.model = networks.load(path)
        self.side = int(self.model.input_shape[1])
        self._width, self._call = self._compiled(networks.load_keras())
        self._maps: Any = None

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of `ai`.

        Args:
            pixels: uint8, shape (n, side, side, 3), or (n, crops, side, side, 3): of several crops of an image, the
                mean of their logits counts.

        Returns:
            float32, shape (n,).
        """
        return self.outputs(pixels)[0]

    def outputs(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of `ai`, and the features that they rest on.

        Args:
            pixels: as `logits` takes them; of several crops, the mean of the features counts too.

        Returns:
            float32, shapes (n,) and (n, d): the output of the layer `features`; d is 0 where the network has no such
            layer, or one with more than 8,192 numbers.
        """
        if pixels.ndim == 5:
            n, crops = pixels.shape[:2]
            logits, features = self.outputs(pixels.reshape(-1, *pixels.shape[2:]))
            return logits.reshape(n, crops).mean(1), features.reshape(n, crops, features.shape[1]).mean(1)
        if not len(pixels):
            return np.empty(0, np.float32), np.empty((0, self._width), np.float32)
        block = max(1, min(_BLOCK, _BLOCK_PIXELS // self.side**2))
        blocks = [
            self._call(np.ascontiguousarray(pixels[start : start + block])) for start in range(0, len(pixels), block)
        ]
        logits, features = (np.concatenate(parts).astype(np.float32) for parts in zip(*blocks, strict=True))
        return logits[:, 0], features[:, : self._width]

    @property
    def decomposes(self) -> bool:
        """Whether the logit is the mean of what the places of the last feature map add: see `activation_map`."""
        if self._maps is None:
            self._maps = self._parted() or ()
        return bool(self._maps)

    def activation_map(self, pixels: np.ndarray) -> np.ndarray:
        """How much each place adds to the logit: the class activation map (Zhou et al. 2016).

        It is exact where what follows the global average pooling is affine, such as one dense unit: the mean of what
        the head says of each place is what it says of their mean. The map's mean plus the head's bias is the logit.

        Args:
            pixels: uint8, shape (side, side, 3).

        Returns:
            float32, shape (h, w), in logits, at the resolution of the last feature map.

        Raises:
            ValueError: the network has no such head (see `decomposes`).
        """
        if not self.decomposes:
            raise ValueError("the logit of this network is no mean over places")
        features, head = self._maps
        found = np.asarray(features(pixels[None].astype(np.float32)))[0]
        places = found.reshape(-1, found.shape[-1])
        return (head(places) - head(np.zeros_like(places[:1]))).reshape(found.shape[:2])

    def _parted(self) -> tuple[Any, Any] | None:
        """The network up to its global average pooling, and the rest if that is affine, as functions of arrays."""
        keras = networks.load_keras()
        pooling = [x for x in self.model.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
        if not pooling:
            return None
        last = next((layer for layer in pooling if layer.name == "features"), pooling[-1])
        try:
            body, top = keras.Model(self.model.input, last.input), keras.Model(last.output, self.model.output)
        except ValueError:  # something else reaches the logit by another way
            return None
        shape = (-1, *last.output.shape[1:])

        def features(pixels: np.ndarray) -> np.ndarray:
            return keras.ops.convert_to_numpy(body(pixels, training=False)).astype(np.float32)

        def head(pooled: np.ndarray) -> np.ndarray:
            return keras.ops.convert_to_numpy(top(pooled.reshape(shape), training=False))[:, 0].astype(np.float32)

        a, b = np.random.default_rng(0).normal(0, 3, (2, 16, last.output.shape[-1])).astype(np.float32)
        bent = head(a) + head(b) - head(a + b) - head(np.zeros_like(a))
        return (features, head) if np.abs(bent).max() < 1e-3 * (1 + np.abs(head(a)).max()) else None

    def _compiled(self, keras: Any) -> tuple[int, Any]:
        """How many features there are, and a function from pixels to logits and features."""
        pooled = next((x.output for x in self.model.layers if x.name == "features" and len(x.output.shape) == 2), None)
        width = 0 if pooled is None or pooled.shape[1] > _WIDEST else int(pooled.shape[1])
        logits = self.model.output
        both = keras.Model(self.model.input, [logits, pooled if width else logits])
        if keras.backend.backend() != "tensorflow":
            return width, lambda pixels: [keras.ops.convert_to_numpy(x) for x in both.predict_on_batch(pixels)]
        import tensorflow as tf

        shape = tf.TensorSpec([None, self.side, self.side, 3], tf.uint8)
        function = tf.function(
            lambda pixels: both(tf.cast(pixels, tf.float32), training=False), input_signature=[shape]
        ).get_concrete_function()
        return width, lambda pixels: [x.numpy() for x in function(tf.constant(pixels))]


@dataclass(frozen=True)
class Member:
    """One of the networks that answer together.

    Attributes:
        scorer: the network.
        view: what it sees (see `images.render`).
        temperature: that calibrates it, so that members weigh in with what they know and not with how loud they are.
    """

    scorer: Scorer
    view: str
    temperature: float = 1.0


@dataclass(frozen=True)
class Ensemble:
    """One network, or several whose calibrated logits are averaged: the geometric mean of their odds."""

    members: Sequence[Member]

    @property
    def views(self) -> list[str]:
        """What each member sees."""
        return [member.view for member in self.members]

    def render(self, image: Image.Image) -> list[np.ndarray]:
        """An RGB image as each member sees it."""
        return [images.render(image, view) for view in self.views]

    def logits(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of `ai`.

        Args:
            pixels: for each member uint8, of the shapes that `Scorer.logits` takes.

        Returns:
            float32, shape (n,).
        """
        return self.outputs(pixels)[0]

    def outputs(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits of `ai`, and all members' features side by side: float32, shapes (n,) and (n, d)."""
        each = [member.scorer.outputs(seen) for member, seen in zip(self.members, pixels, strict=True)]
        logits = [z / np.float32(m.temperature) for m, (z, _) in zip(self.members, each, strict=True)]
        return np.stack(logits).mean(axis=0), np.concatenate([features for _, features in each], axis=1)
