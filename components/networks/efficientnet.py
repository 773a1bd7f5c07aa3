"""EfficientNet (Tan & Le 2019) and EfficientNetV2 (Tan & Le 2021) from Keras, under one dense unit."""

from pathlib import Path
from typing import Any

import keras
from keras import layers

from components.networks import register
from components.stage import StageError

_VARIANTS = {"B0": "EfficientNetB0", "V2B0": "EfficientNetV2B0"}


@register("efficientnet")
def efficientnet(side: int, variant: str = "B0", weights: str = "auto", dropout: float = 0.2) -> Any:
    """An EfficientNet backbone with average pooling and one dense unit.

    Args:
        side: of the input in px, 32 or more.
        variant: `B0` or `V2B0`.
        weights: `imagenet` from Keras' own download, `none`, the path of a weights file, or `auto`: ImageNet
            where it can be fetched, from scratch otherwise.
        dropout: share, before the dense unit.
    """
    if variant not in _VARIANTS:
        raise StageError(f"efficientnet has no variant {variant!r}; there are {', '.join(_VARIANTS)}")
    if side < 32:
        raise StageError(f"efficientnet wants a view of at least 32 px, not {side}")
    inputs = keras.Input((side, side, 3))
    backbone = _backbone(variant, inputs, weights)
    x = layers.Dropout(dropout)(backbone.output)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="efficientnet")


def _backbone(variant: str, inputs: Any, weights: str) -> Any:
    builder = getattr(keras.applications, _VARIANTS[variant])

    def build(source: str | None) -> Any:
        return builder(include_top=False, weights=source, input_tensor=inputs, pooling="avg")

    if weights == "none":
        return _from_scratch(build(None))
    if weights in ("imagenet", "auto"):
        try:
            return build("imagenet")
        except Exception as error:  # Keras wraps whatever the network says
            if weights == "imagenet":
                raise StageError(
                    f"the ImageNet weights of {variant} can't be fetched ({error}); "
                    "set weights to none, or to the path of a file"
                ) from None
            print(f"the ImageNet weights of {variant} can't be fetched here; training from scratch", flush=True)
            return _from_scratch(build(None))
    if not Path(weights).is_file():
        raise StageError(f"{weights}: no such weights file; weights is imagenet, none, auto or a path")
    backbone = build(None)
    try:
        backbone.load_weights(weights)
    except (ValueError, OSError) as error:
        raise StageError(f"{weights}: not the weights of {variant}: {str(error).splitlines()[0]}") from None
    return backbone


def _from_scratch(backbone: Any) -> Any:
    """Keras' momentum of 0.99 is made for ImageNet; over few steps the averages would lag far behind."""
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9
    return backbone
