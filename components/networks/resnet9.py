"""A small residual network after ResNet-9 (Page 2018, "How to train your ResNet"), for little pictures."""

from typing import Any

import keras
from keras import layers

from components.networks import register
from components.networks.residual import with_high_pass
from components.stage import StageError

_SMALLEST = 16


@register("resnet9")
def resnet9(side: int, stem: int = 24, width: int = 64, blocks: int = 3, dropout: float = 0.2) -> Any:
    """A thin convolution at full resolution, then blocks that halve the resolution and double the width.

    Pooling follows the first convolution of a block, so that the second, which a shortcut goes around, works on a
    quarter of the places.
    It sees RGB beside its high-pass residual, and ends in global average pooling, so class activation is exact.

    Args:
        side: of the input in px, 16 or more.
        stem: channels of the first convolution.
        width: channels of the first block.
        blocks: how many.
        dropout: share, before the dense unit.

    Returns:
        1.16 million parameters with the defaults.
    """
    if side < _SMALLEST:
        raise StageError(f"resnet9 wants a view of at least {_SMALLEST} px, not {side}")
    inputs = keras.Input((side, side, 3))
    x = _normalised(_conv(with_high_pass(inputs), stem))
    for block in range(blocks):
        x = _normalised(layers.MaxPooling2D(padding="same")(_conv(x, width * 2**block)))
        x = layers.Add()([x, _normalised(_conv(x, width * 2**block))])
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="resnet9")


def _conv(x: Any, width: int) -> Any:
    return layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)


def _normalised(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
