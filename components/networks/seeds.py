"""The networks of public projects, as exactly as they were published: see docs/reproductions.md.

What a project didn't say is Keras' default: 3 × 3 convolutions without padding, 2 × 2 max pooling.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from components.networks import register
from components.networks.pretrained import backbone


@register("vgg16")
def vgg16(side: int, weights: str = "auto", dense: int = 256, dropout: float = 0.5) -> Any:
    """VGG16 (Simonyan & Zisserman 2015) under a dense head.

    Args:
        side: of the input in px, 32 or more.
        weights: `imagenet`, `none`, `auto` or the path of a weights file (see `pretrained.backbone`).
        dense: units of the hidden layer.
        dropout: share, before the last dense unit.

    Returns:
        23,103,809 parameters at 256 px.
    """
    inputs = keras.Input((side, side, 3))
    # Its weights were trained on blue, green and red, less their means, as Caffe reads images.
    x = keras.ops.flip(inputs, axis=-1)
    x = layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68])(x)
    x = layers.Flatten(name="features")(backbone("VGG16", x, weights).output)
    x = layers.Dense(dense, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="vgg16")


@register("seed-cnn256")
def cnn256(side: int) -> Any:
    """Three blocks of convolution, batch normalisation and pooling.

    Returns:
        29,516,257 parameters at 256 px.
    """
    inputs, x = _convolutions(side, (16, 32, 64), normalised=True)
    x = layers.Dense(512, activation="relu")(x)
    x = layers.Dropout(0.09)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="cnn256")


@register("seed-cnn150")
def cnn150(side: int) -> Any:
    """Four convolutions, each with pooling, and dropout before the dense layer.

    Returns:
        3,453,121 parameters at 150 px.
    """
    inputs, x = _convolutions(side, (32, 64, 128, 128))
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(512, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="cnn150")


@register("seed-cnn32")
def cnn32(side: int) -> Any:
    """The best of the grid in the paper of CIFAKE (Bird & Lotfi 2024): two convolutions, one dense layer.

    Returns:
        84,001 parameters at 32 px.
    """
    inputs, x = _convolutions(side, (32, 32))
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="cnn32")


@register("seed-cnn64")
def cnn64(side: int, width: int = 32, dense: int = 128, dropout: float = 0.5) -> Any:
    """Three convolutions under a softmax over two classes.

    The softmax' logits are kept as the layer `classes`, (n, 2): `real`, `ai`. Their difference is the logit, of which
    the sigmoid is the softmax' second value, and binary cross-entropy the sparse cross-entropy.

    Args:
        side: of the input in px.
        width: channels of the first convolution; the next ones have 2 and 4 times as many.
        dense: units of the hidden layer.
        dropout: share, before the last dense units.

    Returns:
        683,458 parameters at 64 px.
    """
    inputs, x = _convolutions(side, (width, 2 * width, 4 * width))
    x = layers.Dense(dense, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    real, ai = keras.ops.split(layers.Dense(2, dtype="float32", name="classes")(x), 2, axis=1)
    return keras.Model(inputs, layers.Subtract(dtype="float32", name="logit")([ai, real]), name="cnn64")


def _convolutions(side: int, widths: Sequence[int], normalised: bool = False) -> tuple[Any, Any]:
    """Convolutions with pooling on pixels in 0 to 1: the input, (n, side, side, 3), and what is left, flat."""
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for width in widths:
        x = layers.Conv2D(width, 3, activation="relu")(x)
        if normalised:
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(x)
    return inputs, layers.Flatten(name="features")(x)
