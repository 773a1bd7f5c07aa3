"""What a picture shows and in which style, by a frozen MobileNetV2, under one dense unit."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from components.networks import register
from components.networks.layers import Clip, Correlations
from components.networks.pretrained import backbone, check_learned
from components.stage import StageError

# Blocks with a shortcut, whose sum is a feature map.
_BLOCKS = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
_CLIP = 4.0  # standard deviations


@register("style")
def style(
    side: int, weights: str = "auto", depths: Sequence[int] = (2, 5, 8), dropout: float = 0.0, l2: float = 0.2
) -> Any:
    """Correlations of channels at some depths of a frozen MobileNetV2, and the means of its last feature map.

    The correlations tell textures and styles apart (Gatys et al. 2016), the means contents; together they carried
    over to images of other origin better than either, and than networks trained from scratch (docs/results.md).
    Features are computed once an image, so that training takes seconds.

    Args:
        side: of the input in px, 32 or more.
        weights: of MobileNetV2: `imagenet`, `none`, `auto` or the path of a weights file (see `pretrained.backbone`).
        depths: MobileNetV2's blocks after which correlations are taken: 2, 4, 5, 7, 8, 9, 11, 12, 14 or 15.
        dropout: share, before the dense unit.
        l2: weight of the penalty on the dense unit's weights; without a strong one it learns the training sets by
            heart.

    Returns:
        2.3 million parameters, of which 4,069 learn with the defaults.
    """
    if not depths or len(set(depths)) < len(depths) or not set(depths) <= set(_BLOCKS):
        raise StageError(f"style wants depths from {', '.join(map(str, _BLOCKS))}, each once, not {list(depths)}")
    if side < 32:
        raise StageError(f"style wants a view of at least 32 px, not {side}")
    inputs = keras.Input((side, side, 3))
    body = backbone("MobileNetV2", layers.Rescaling(1 / 127.5, offset=-1)(inputs), weights)
    check_learned(body, "style's MobileNetV2")
    maps = [body.get_layer(f"block_{depth}_add").output for depth in depths]
    means = layers.GlobalAveragePooling2D()(body.output)
    x = layers.Concatenate(name="features")([*(Correlations()(found) for found in maps), means])
    for layer in keras.Model(inputs, x).layers:
        layer.trainable = False
    x = layers.BatchNormalization(center=False, scale=False, momentum=0.9)(x)
    x = layers.Dropout(dropout)(Clip(_CLIP)(x))
    logit = layers.Dense(1, dtype="float32", name="logit", kernel_regularizer=keras.regularizers.L2(l2))(x)
    return keras.Model(inputs, logit, name="style")
