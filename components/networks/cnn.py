"""A plain convolutional network after VGG (Simonyan & Zisserman 2015), with batch normalisation."""

from typing import Any

import keras
from keras import layers

from components.networks import register


@register("cnn")
def cnn(side: int, width: int = 32, blocks: int = 3, dropout: float = 0.2) -> Any:
    """Blocks of two 3 × 3 convolutions, each block with half the resolution and twice the width of the last.

    Global average pooling before the one dense unit keeps the class activation map exact (Zhou et al. 2016).

    Args:
        side: of the input in px.
        width: channels of the first block.
        blocks: how many.
        dropout: share, before the dense unit.

    Returns:
        288 thousand parameters at width 32 with three blocks.
    """
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for block in range(blocks):
        if block:
            x = layers.MaxPooling2D()(x)
        for _ in range(2):
            x = layers.Conv2D(width * 2**block, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization(momentum=0.9)(x)
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="cnn")
