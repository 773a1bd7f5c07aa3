"""EfficientNet (Tan & Le 2019) and EfficientNetV2 (Tan & Le 2021) from Keras, under a small head."""

from typing import Any

import keras
from keras import layers

from components.networks import register
from components.networks.pretrained import backbone
from components.stage import StageError

_VARIANTS = (*(f"B{n}" for n in range(8)), *(f"V2B{n}" for n in range(4)), "V2S", "V2M", "V2L")


@register("efficientnet")
def efficientnet(side: int, variant: str = "B0", weights: str = "auto", dense: int = 0, dropout: float = 0.2) -> Any:
    """An EfficientNet backbone with average pooling and one dense unit.

    Args:
        side: of the input in px, 32 or more.
        variant: `B0` to `B7`, `V2B0` to `V2B3`, `V2S`, `V2M` or `V2L`.
        weights: `imagenet`, `none`, `auto` or the path of a weights file (see `pretrained.backbone`).
        dense: units of a hidden layer before the last one; none where it is 0.
        dropout: share, before the last dense unit.

    Returns:
        Between 4.1 (`B0`) and 117.7 million parameters (`V2L`).
    """
    if variant not in _VARIANTS:
        raise StageError(f"efficientnet has no variant {variant!r}; there are {', '.join(_VARIANTS)}")
    if side < 32:
        raise StageError(f"efficientnet wants a view of at least 32 px, not {side}")
    inputs = keras.Input((side, side, 3))
    x = backbone(f"EfficientNet{variant}", inputs, weights).output
    x = layers.GlobalAveragePooling2D(name="features")(x)
    if dense:
        x = layers.Dense(dense, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="efficientnet")
