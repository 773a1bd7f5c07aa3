"""The backbones of `keras.applications`, with weights from ImageNet, from a file, or from nowhere."""

from pathlib import Path
from typing import Any

import keras
from keras import layers

from components.stage import StageError


def backbone(builder: str, x: Any, weights: str, **options: Any) -> Any:
    """A network of Keras without its top.

    Args:
        builder: its name in `keras.applications`.
        x: what it sees, shape (n, side, side, 3), in the range that it was made for.
        weights: `imagenet` from Keras' own download, `none`, the path of a weights file, or `auto`: ImageNet where
            it can be fetched, from scratch otherwise.
        options: further arguments of the builder.

    Returns:
        A model from the source of `x` to the last feature map, (n, h, w, c).

    Raises:
        StageError: the weights can't be fetched, or the file is none or of another network.
    """

    def build(source: str | None) -> Any:
        return getattr(keras.applications, builder)(include_top=False, weights=source, input_tensor=x, **options)

    if weights == "none":
        return _from_scratch(build(None))
    if weights in ("imagenet", "auto"):
        try:
            return build("imagenet")
        except Exception as error:  # Keras wraps whatever the network says
            if weights == "imagenet":
                raise StageError(
                    f"the ImageNet weights of {builder} can't be fetched ({error}); "
                    "set weights to none, or to the path of a file"
                ) from None
            print(f"the ImageNet weights of {builder} can't be fetched here; training from scratch", flush=True)
            return _from_scratch(build(None))
    if not Path(weights).is_file():
        raise StageError(f"{weights}: no such weights file; weights is imagenet, none, auto or a path")
    found = build(None)
    try:
        found.load_weights(weights)
    except (ValueError, OSError) as error:
        raise StageError(f"{weights}: not the weights of {builder}: {str(error).splitlines()[0]}") from None
    return found


def _from_scratch(found: Any) -> Any:
    for layer in found.layers:
        layer.from_scratch = True  # so that nobody freezes what has learned nothing yet
        if isinstance(layer, layers.BatchNormalization):
            # Keras' momentum of 0.99 is made for ImageNet; over few steps the averages would lag far behind.
            layer.momentum = 0.9
    return found
