"""What training does to images so that a network learns the picture, not the file: written on `keras.ops` alone.

Every layer takes and gives float32 pixels of shape (n, height, width, 3), 0 to 255, with n known; those that mix images
take and give labels of shape (n, 1) beside them. They act in training only. Degradations work on a fixed number of
images of each batch, drawn anew, so that 30 % JPEG costs 30 %, and leave whole numbers behind, as a file would. What is
random follows from a layer's seed generator.
"""

import math
from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import ops

from components.params import Augment

# In float32, TensorFlow may multiply matrices in TF32 or bfloat16, which is too coarse for pixels.
_EXACT = "float64" if keras.backend.backend() == "tensorflow" else "float32"


def augmented(pixels: Any, labels: Any, settings: Augment, seed: int) -> tuple[Any, Any]:
    """Put the layers that some settings ask for behind symbolic inputs.

    Args:
        pixels: shape (n, height, width, 3), n fixed.
        labels: shape (n, 1).
        settings: `train.models.<name>.augment`.
        seed: of the layers' generators; one after another count up from it.

    Returns:
        Pixels and labels for the network, of the same shapes.
    """
    if settings.flip or settings.shift:
        pixels = Place(settings.flip, settings.shift, seed)(pixels)
    if settings.rotate or settings.zoom:
        pixels = Turn(settings.rotate, settings.zoom, seed + 1)(pixels)
    if settings.colour:
        pixels = Colour(settings.colour, seed + 2)(pixels)
    if settings.mixup:
        pixels, labels = MixUp(settings.mixup, seed + 3)([pixels, labels])
    if settings.cutmix:
        pixels, labels = CutMix(settings.cutmix, seed + 4)([pixels, labels])
    for number, (layer, share) in enumerate(
        [(Rescale, settings.rescale), (Blur, settings.blur), (Noise, settings.noise), (JPEG, settings.jpeg)]
    ):
        if share:
            pixels = layer(share, seed + 5 + number)(pixels)
    return pixels, labels


class _Random(keras.layers.Layer):
    """A layer that draws."""

    def __init__(self, seed: int) -> None:
        super().__init__(dtype="float32")
        self.seed_generator = keras.random.SeedGenerator(seed)

    def _uniform(self, n: int, low: Any = 0.0, high: Any = 1.0) -> Any:
        """A number for each of n images, shape (n, 1, 1, 1)."""
        return low + (high - low) * keras.random.uniform((n, 1, 1, 1), seed=self.seed_generator)


class Place(_Random):
    """Mirrors half of the images and shifts each by whole pixels, filled by reflection.

    Args:
        flip: whether to mirror.
        shift: px, at most, along each axis.
        seed: of its generator.
    """

    def __init__(self, flip: bool, shift: int, seed: int) -> None:
        super().__init__(seed)
        self.flip, self.shift = flip, shift

    def call(self, pixels: Any, training: bool = False) -> Any:
        """Pixels in new places."""
        if not training:
            return pixels
        n, height, width, channels = _shape(pixels)
        rows, columns = self._places(n, height), self._places(n, width)
        if self.flip:
            mirrored = keras.random.uniform((n, 1), seed=self.seed_generator) < 0.5
            columns = ops.where(mirrored, width - 1 - columns, columns)
        image = _range(n, "int32")[:, None, None] * (height * width)
        flat = image + rows[:, :, None] * width + columns[:, None, :]
        moved = ops.take(ops.reshape(pixels, (n * height * width, channels)), ops.reshape(flat, (-1,)), axis=0)
        return ops.reshape(moved, (n, height, width, channels))

    def _places(self, n: int, length: int) -> Any:
        """From where each pixel comes: int32, shape (n, length)."""
        here = _range(length, "int32")[None]
        if not self.shift:
            return ops.tile(here, (n, 1))
        shift = min(self.shift, length - 1)
        moved = ops.add(keras.random.randint((n, 1), -shift, shift + 1, dtype="int32", seed=self.seed_generator), here)
        moved = ops.where(moved < 0, -1 - moved, moved)
        return ops.where(moved >= length, 2 * length - 1 - moved, moved)


class Turn(_Random):
    """Turns and scales every image about its centre, bilinear, filled by reflection.

    Args:
        angle: degrees, at most, either way.
        zoom: share by which an image may grow or shrink.
        seed: of its generator.
    """

    def __init__(self, angle: float, zoom: float, seed: int) -> None:
        super().__init__(seed)
        self.angle, self.zoom = math.radians(angle), zoom

    def call(self, pixels: Any, training: bool = False) -> Any:
        """Turned pixels."""
        if not training:
            return pixels
        n, height, width, _ = _shape(pixels)
        angle = self._uniform(n, -self.angle, self.angle)[:, 0, 0, 0]
        scale = 1 / self._uniform(n, 1 - self.zoom, 1 + self.zoom)[:, 0, 0, 0]
        cos, sin = ops.cos(angle) * scale, ops.sin(angle) * scale
        x, y = (width - 1) / 2, (height - 1) / 2
        nought = ops.zeros_like(cos)
        transforms = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, nought, nought]
        turned = ops.image.affine_transform(
            pixels, ops.stack(transforms, axis=1), interpolation="bilinear", fill_mode="reflect"
        )
        return _whole(turned)


class MixUp(_Random):
    """Blends images, and their labels, with others of the batch (Zhang et al. 2018), by Beta(0.2, 0.2).

    Args:
        share: of the batch that is blended.
        seed: of its generator.
    """

    def __init__(self, share: float, seed: int) -> None:
        super().__init__(seed)
        self.share = share

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        """Mixed pixels and labels."""
        pixels, labels = inputs
        if not training:
            return pixels, labels
        order = keras.random.shuffle(_range(_shape(pixels)[0], "int32"), seed=self.seed_generator)
        n = _count(self.share, pixels)
        mine, partner = order[:n], ops.roll(order, 1)[:n]
        own = self._own(n, *_shape(pixels)[1:3])
        mixed = own * ops.take(pixels, mine, axis=0) + (1 - own) * ops.take(pixels, partner, axis=0)
        weight = ops.mean(own, axis=(1, 2))
        label = weight * ops.take(labels, mine, axis=0) + (1 - weight) * ops.take(labels, partner, axis=0)
        return _put(pixels, mine, _whole(mixed)), _put(labels, mine, label)

    def _own(self, n: int, height: int, width: int) -> Any:
        """How much each pixel keeps of its own image."""
        return keras.random.beta((n, 1, 1, 1), 0.2, 0.2, seed=self.seed_generator)


class CutMix(MixUp):
    """Replaces a rectangle of an image, and that share of its label, by another's (Yun et al. 2019)."""

    def _own(self, n: int, height: int, width: int) -> Any:
        half = ops.sqrt(self._uniform(n)) / 2
        y, x = self._uniform(n), self._uniform(n)
        down = (_range(height) + 0.5)[None, :, None, None] / height
        across = (_range(width) + 0.5)[None, None, :, None] / width
        inside = ops.logical_and(ops.abs(down - y) < half, ops.abs(across - x) < half)
        return 1 - ops.cast(inside, "float32")


class _Degrade(_Random):
    """Does something to some images of each batch.

    `strength`, 0 to 1, is a variable that training sets: how much of the full range is drawn from.

    Args:
        share: of the batch.
        seed: of its generator.
    """

    def __init__(self, share: float, seed: int) -> None:
        super().__init__(seed)
        self.share = share
        self.strength = self.add_weight(shape=(), initializer="ones", trainable=False, name="strength")

    def call(self, pixels: Any, training: bool = False) -> Any:
        """The batch with some images degraded."""
        if not training:
            return pixels
        order = keras.random.shuffle(_range(_shape(pixels)[0], "int32"), seed=self.seed_generator)
        some = order[: _count(self.share, pixels)]
        return _put(pixels, some, _whole(self._degraded(ops.take(pixels, some, axis=0))))

    @abstractmethod
    def _degraded(self, pixels: Any) -> Any:
        """Some images after it."""


class Colour(_Degrade):
    """Brightness, contrast and saturation by factors of 0.7 to 1.3 each."""

    def _degraded(self, pixels: Any) -> Any:
        n = _shape(pixels)[0]
        low, high = 1 - 0.3 * self.strength, 1 + 0.3 * self.strength
        brightness, contrast, saturation = (self._uniform(n, low, high) for _ in range(3))
        pixels = ops.clip(pixels * brightness, 0, 255)
        mean = ops.mean(_grey(pixels), axis=(1, 2), keepdims=True)
        pixels = ops.clip(mean + (pixels - mean) * contrast, 0, 255)
        grey = _grey(pixels)
        return grey + (pixels - grey) * saturation


class Rescale(_Degrade):
    """Scales down, by 0.4 to 1, and up again, both with Pillow's bilinear filter, which widens on the way down."""

    def _degraded(self, pixels: Any) -> Any:
        return rescale(pixels, self._uniform(_shape(pixels)[0], 1 - 0.6 * self.strength, 1.0))


class Blur(_Degrade):
    """A Gaussian blur of 0 to 1.5 px."""

    def _degraded(self, pixels: Any) -> Any:
        return blur(pixels, self._uniform(_shape(pixels)[0], 0.0, 1.5 * self.strength))


class Noise(_Degrade):
    """Gaussian noise, of each channel on its own, with a standard deviation of 0 to 0.12 of white."""

    def _degraded(self, pixels: Any) -> Any:
        sigma = self._uniform(_shape(pixels)[0], 0.0, 0.12 * 255 * self.strength)
        return pixels + sigma * keras.random.normal(_shape(pixels), seed=self.seed_generator)


class JPEG(_Degrade):
    """JPEG compression of quality 30 to 95, every other image with 4:2:0 chroma."""

    def _degraded(self, pixels: Any) -> Any:
        n = _shape(pixels)[0]
        quality = ops.round(self._uniform(n, 95 - 65 * self.strength, 95.0))
        cut = (n + 1) // 2
        parts = [jpeg(pixels[:cut], quality[:cut], subsample=True)]
        if n > cut:
            parts.append(jpeg(pixels[cut:], quality[cut:], subsample=False))
        return ops.concatenate(parts, axis=0)


def rescale(pixels: Any, factor: Any) -> Any:
    """Down and up again, each to whole numbers, as `Image.resize(..., BILINEAR)` does it twice.

    Args:
        pixels: shape (n, height, width, 3).
        factor: of each image's sides, 0 to 1, shape (n, 1, 1, 1).
    """
    _, height, width, _ = _shape(pixels)
    sides = [(side, ops.maximum(ops.round(factor[:, 0] * side), 1.0)) for side in (height, width)]
    down = [_resampling(side, side * ops.ones_like(small), small) for side, small in sides]
    up = [_resampling(side, small, side * ops.ones_like(small)) for side, small in sides]
    return _resampled(_resampled(pixels, *down), *up)


def _resampling(size: int, before: Any, after: Any) -> Any:
    """Matrices (n, size, size) that resample `before` places to `after`, both (n, 1, 1); places beyond give nought."""
    place = _range(size)
    target, source = place[None, :, None], place[None, None, :]
    scale = before / after
    distance = ops.abs(source + 0.5 - (target + 0.5) * scale) / ops.maximum(scale, 1.0)
    weight = ops.maximum(1 - distance, 0.0) * ops.cast(ops.logical_and(source < before, target < after), "float32")
    return weight / ops.maximum(ops.sum(weight, axis=2, keepdims=True), 1e-6)


def _resampled(pixels: Any, down: Any, across: Any) -> Any:
    """Pixels after a matrix along each axis, rounded after each as Pillow does it."""
    for axis, matrix in ((2, across), (1, down)):
        x = ops.swapaxes(pixels, 1, axis)
        n, length, others, channels = _shape(x)
        x = ops.reshape(ops.cast(x, _EXACT), (n, length, others * channels))
        x = ops.reshape(ops.matmul(ops.cast(matrix, _EXACT), x), (n, length, others, channels))
        pixels = _whole(ops.cast(ops.swapaxes(x, 1, axis), "float32"))
    return pixels


def blur(pixels: Any, sigma: Any) -> Any:
    """A Gaussian blur, cut off at 5 px, of edges that go on as they end.

    Args:
        pixels: shape (n, height, width, 3).
        sigma: px, shape (n, 1, 1, 1).
    """
    offsets = range(-5, 6)
    taps = [ops.exp(-(offset**2) / (2 * ops.maximum(sigma, 0.05) ** 2)) for offset in offsets]
    total = sum(taps)
    for axis in (1, 2):
        size = _shape(pixels)[axis]
        padded = ops.take(pixels, np.clip(np.arange(-5, size + 5), 0, size - 1), axis=axis)
        windows = [padded[:, i : i + size] if axis == 1 else padded[:, :, i : i + size] for i in range(len(taps))]
        pixels = sum(window * tap for window, tap in zip(windows, taps, strict=True)) / total
    return pixels


_HALF = 0.5 + 1e-4

# ITU T.81, annex K, as libjpeg takes them for quality 50.
_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
_TABLES = np.array([_LUMA.split(), _CHROMA.split()], np.float32)
_COSINES = np.cos(np.pi / 16 * np.arange(8)[:, None] * (2 * np.arange(8)[None] + 1)) / 2
_COSINES[0] /= np.sqrt(2)
# Of a block's 64 pixels: along its rows, along its columns, and both at once.
_ACROSS, _DOWN, _BOTH = np.kron(np.eye(8), _COSINES), np.kron(_COSINES, np.eye(8)), np.kron(_COSINES, _COSINES)


def jpeg(pixels: Any, quality: Any, subsample: bool) -> Any:
    """What is left of pixels in a JPEG file as libjpeg writes and reads it.

    Args:
        pixels: whole numbers, shape (n, height, width, 3).
        quality: 1 to 100, shape (n, 1, 1, 1).
        subsample: whether the chroma has half the resolution (4:2:0).

    Returns:
        Whole numbers, of the same shape.
    """
    _, height, width, _ = _shape(pixels)
    scale = ops.where(quality < 50, ops.floor(5000 / quality), 200 - 2 * quality)[:, :, :, 0]
    luma, chroma = (ops.clip(ops.floor((ops.convert_to_tensor(table) * scale + 50) / 100), 1, 255) for table in _TABLES)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    y = ops.round(0.299 * red + 0.587 * green + 0.114 * blue)
    cb = ops.round(128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue)
    cr = ops.round(128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue)
    y = _coded(y, luma)
    if subsample:
        cb, cr = (_doubled(_coded(_halved(plane), chroma))[:, :height, :width] - 128 for plane in (cb, cr))
    else:
        cb, cr = (_coded(plane, chroma) - 128 for plane in (cb, cr))
    red = y + 1.402 * cr
    green = y - 0.344136286 * cb - 0.714136286 * cr
    blue = y + 1.772 * cb
    return _whole(ops.stack([red, green, blue], axis=-1))


def _coded(plane: Any, table: Any) -> Any:
    """A plane (n, height, width) after its blocks' coefficients were rounded to multiples of `table`, (n, 1, 64)."""
    _, height, width = _shape(plane)
    high, wide = -(-height // 8), -(-width // 8)
    x = _extended(plane, high * 8, wide * 8)
    x = ops.transpose(ops.reshape(x, (-1, high, 8, wide, 8)), (0, 1, 3, 2, 4))
    x = ops.cast(ops.reshape(x, (-1, high * wide, 64)) - 128, _EXACT)
    # As in libjpeg's integers: rows at 4 √8 times their size, then all at 8 times, and halves away from nought. Whole
    # pixels make halves common; the nudge keeps them on the same side whatever the arithmetic.
    x = ops.floor(ops.matmul(x, (4 * 8**0.5 * _ACROSS.T).astype(_EXACT)) + _HALF)
    x = ops.floor(ops.matmul(x, (8**0.5 / 4 * _DOWN.T).astype(_EXACT)) + _HALF)
    table = ops.cast(table, _EXACT)
    x = ops.sign(x) * ops.floor(ops.abs(x) / (8 * table) + _HALF) * table
    x = ops.cast(ops.matmul(x, _BOTH.astype(_EXACT)), "float32") + 128
    x = ops.transpose(ops.reshape(x, (-1, high, wide, 8, 8)), (0, 1, 3, 2, 4))
    return _whole(ops.reshape(x, (-1, high * 8, wide * 8))[:, :height, :width])


def _halved(plane: Any) -> Any:
    """Means over 2 × 2 pixels. As in libjpeg, halves are rounded down and up by turns, and width is made up first."""
    _, height, width = _shape(plane)
    high, wide = -(-height // 2), -(-width // 16) * 8
    x = ops.reshape(_extended(plane, high * 2, wide * 2), (-1, high, 2, wide, 2))
    return ops.floor(ops.sum(x, axis=(2, 4)) / 4 + ops.tile(ops.convert_to_tensor([0.25, 0.5]), wide // 2))


def _doubled(plane: Any) -> Any:
    """Twice as high and wide: libjpeg's "fancy upsampling", ¾ of the nearer and ¼ of the farther neighbour."""
    _, high, wide = _shape(plane)
    before, after = (ops.take(plane, np.clip(np.arange(high) + step, 0, high - 1), axis=1) for step in (-1, 1))
    x = ops.reshape(ops.stack([3 * plane + before, 3 * plane + after], axis=2), (-1, 2 * high, wide))
    before, after = (ops.take(x, np.clip(np.arange(wide) + step, 0, wide - 1), axis=2) for step in (-1, 1))
    x = ops.stack([ops.floor((3 * x + before + 8) / 16), ops.floor((3 * x + after + 7) / 16)], axis=3)
    return ops.reshape(x, (-1, 2 * high, 2 * wide))


def _extended(plane: Any, high: int, wide: int) -> Any:
    """A plane (n, height, width) made higher and wider by repeating its last row and column."""
    for axis, size in ((1, high), (2, wide)):
        own = _shape(plane)[axis]
        if own != size:
            plane = ops.take(plane, np.minimum(np.arange(size), own - 1), axis=axis)
    return plane


def _grey(pixels: Any) -> Any:
    red, green, blue = pixels[..., :1], pixels[..., 1:2], pixels[..., 2:]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _whole(pixels: Any) -> Any:
    return ops.clip(ops.floor(pixels + 0.5), 0, 255)


def _count(share: float, batch: Any) -> int:
    """How many images a share of the batch is: one at least."""
    return max(1, round(share * _shape(batch)[0]))


def _put(batch: Any, which: Any, values: Any) -> Any:
    """The batch with some of its rows replaced."""
    return ops.scatter_update(batch, which[:, None], values)


def _range(n: int, dtype: str = "float32") -> Any:
    return ops.arange(n, dtype=dtype)


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape)
