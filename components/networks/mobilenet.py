"""MobileNetV2 (Sandler et al. 2018) from Keras, under one dense unit."""

from typing import Any

import keras
from keras import layers

from components.networks import register
from components.networks.pretrained import backbone
from components.stage import StageError


@register("mobilenet")
def mobilenet(side: int, alpha: float = 1.0, weights: str = "auto", dropout: float = 0.2) -> Any:
    """A MobileNetV2 backbone with average pooling and one dense unit.

    Args:
        side: of the input in px, 32 or more.
        alpha: factor of the width; ImageNet weights exist for 0.35, 0.5, 0.75, 1.0, 1.3 and 1.4.
        weights: `imagenet`, `none`, `auto` or the path of a weights file (see `pretrained.backbone`).
        dropout: share, before the dense unit.

    Returns:
        2.3 million parameters at alpha 1.
    """
    if side < 32:
        raise StageError(f"mobilenet wants a view of at least 32 px, not {side}")
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = backbone("MobileNetV2", x, weights, alpha=alpha).output
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="mobilenet")
