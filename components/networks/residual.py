"""A residual network (He et al. 2016) over the pixels and their high-pass residual, at full resolution at first."""

from typing import Any

import keras
from keras import layers

from components.networks import register
from components.stage import StageError

# Of each stage: channels, blocks.
_SIZES = {
    "xs": ((16, 3), (32, 3), (64, 3)),
    "s": ((32, 2), (64, 2), (128, 2)),
    "m": ((24, 2), (48, 2), (96, 3), (192, 2)),
    "l": ((32, 3), (64, 4), (128, 5), (256, 3)),
}
_SMALLEST = 16


@register("residual")
def residual(side: int, size: str = "s", dropout: float = 0.2, stochastic_depth: float = 0.0) -> Any:
    """Pre-activation blocks (He et al. 2016, "Identity mappings") on RGB beside its high-pass residual.

    Generators leave traces in how a pixel relates to its neighbours (Tan et al. 2024, NPR), and early downsampling
    averages them away. So the first stage works at full resolution, and only the later ones start with stride 2,
    with an averaging shortcut (ResNet-D, He et al. 2019). All layers are Keras' own: a saved file needs no code.

    Args:
        side: of the input in px, 16 or more; the time per image grows with its square.
        size: `xs`, `s`, `m` or `l`.
        dropout: share, before the dense unit.
        stochastic_depth: share of images that skip the last block in training; it grows linearly from the first
            block on (Huang et al. 2016).

    Returns:
        A model with 0.27 (`xs`), 0.70 (`s`), 1.74 (`m`) or 5.04 (`l`) million parameters.
    """
    if size not in _SIZES:
        raise StageError(f"residual has no size {size!r}; there are {', '.join(_SIZES)}")
    if side < _SMALLEST:
        raise StageError(f"residual wants a view of at least {_SMALLEST} px, not {side}")
    stages = _SIZES[size]
    inputs = keras.Input((side, side, 3))
    x = _conv(with_high_pass(inputs), stages[0][0])
    total = sum(blocks for _, blocks in stages)
    done = 0
    for stage, (width, blocks) in enumerate(stages):
        for block in range(blocks):
            done += 1
            x = _block(x, width, 2 if stage and not block else 1, stochastic_depth * done / total)
    x = layers.GlobalAveragePooling2D(name="features")(_activated(x))
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="residual")


def with_high_pass(pixels: Any) -> Any:
    """RGB in -1 to 1, and each channel less its 3 × 3 mean in units of 16 grey levels.

    NPR subtracts x enlarged again from a 2 × 2 subsampling; a sliding mean gives the same whatever the position of a
    crop, and at odd sides. It is float32 whatever the policy: in bfloat16 the mean would be off by up to half a grey
    level.

    Args:
        pixels: shape (n, side, side, 3), 0 to 255.

    Returns:
        Shape (n, side, side, 6).
    """
    rgb = layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")(pixels)
    low = layers.AveragePooling2D(3, strides=1, padding="same", dtype="float32")(pixels)
    high = layers.Subtract(dtype="float32")([pixels, low])
    high = layers.Rescaling(1 / 16, dtype="float32", name="high_pass")(high)
    return layers.Concatenate(dtype="float32")([rgb, high])


def _block(x: Any, width: int, stride: int, skipped: float) -> Any:
    """Two 3 × 3 convolutions, each after normalisation and ReLU, on top of x, (n, h, w, c).

    Returns:
        Shape (n, ⌈h/stride⌉, ⌈w/stride⌉, width).
    """
    y = _activated(x)
    if stride > 1:
        x = layers.AveragePooling2D(stride, padding="same")(y)
        x = layers.Conv2D(width, 1, use_bias=False)(x)
    y = _conv(y, width, stride)
    y = _conv(_activated(y), width)
    if skipped:
        y = layers.Dropout(skipped, noise_shape=(None, 1, 1, 1))(y)
    return layers.Add()([x, y])


def _activated(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def _conv(x: Any, width: int, stride: int = 1) -> Any:
    return layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
