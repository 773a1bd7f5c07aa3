"""The backbones of `keras.applications`, with weights from ImageNet, from a file, or from nowhere."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import components
from components.stage import StageError

# ImageNet weights that come with the project, rounded to 11 significant bits: `<layer>/<number>` of each array.
_HERE = {"MobileNetV2": Path(components.__file__).parents[1] / "models/backbones/MobileNetV2.npz"}


def backbone(builder: str, x: Any, weights: str, **options: Any) -> Any:
    """A network of Keras without its top.

    Args:
        builder: its name in `keras.applications`.
        x: what it sees, shape (n, side, side, 3), in the range that it was made for.
        weights: `imagenet` from Keras' own download, `none`, the path of a weights file, or `auto`: ImageNet where
            it can be fetched or the repository holds it (MobileNetV2's, rounded), from scratch otherwise.
        options: further arguments of the builder.

    Returns:
        A model from the source of `x` to the last feature map, (n, h, w, c).

    Raises:
        StageError: the weights can't be fetched, or the file is none or of another network.
    """

    def build(source: str | None) -> Any:
        return getattr(keras.applications, builder)(include_top=False, weights=source, input_tensor=x, **options)

    if weights == "none":
        return _from_scratch(build(None), weights)
    if weights in ("imagenet", "auto"):
        try:
            return build("imagenet")
        except Exception as error:  # Keras wraps whatever the network says
            if weights == "imagenet":
                raise StageError(
                    f"the ImageNet weights of {builder} can't be fetched ({error}); "
                    "set weights to none, or to the path of a file"
                ) from None
            found = build(None)
            if _take_from_here(found, builder):
                print(
                    f"the ImageNet weights of {builder} can't be fetched here; taking those in models/backbones",
                    flush=True,
                )
                return found
            print(f"the ImageNet weights of {builder} can't be fetched here; training from scratch", flush=True)
            return _from_scratch(found, weights)
    if not Path(weights).is_file():
        raise StageError(f"{weights}: no such weights file; weights is imagenet, none, auto or a path")
    found = build(None)
    try:
        found.load_weights(weights)
    except (ValueError, OSError) as error:
        raise StageError(f"{weights}: not the weights of {builder}: {str(error).splitlines()[0]}") from None
    return found


def check_learned(backbone: Any, what: str) -> None:
    """Make sure that a model which stays as it is has learned something elsewhere.

    Raises:
        StageError: its weights couldn't be had. (Where `none` were asked for, it is as it should be.)
    """
    if any(getattr(layer, "from_scratch", None) == "auto" for layer in backbone.layers):
        raise StageError(f"{what} stays as it is, and its weights can't be fetched here; give `weights` a file of them")


def _take_from_here(found: Any, builder: str) -> bool:
    """Give a network of Keras the weights that the repository holds, if they are its."""
    if builder not in _HERE or not _HERE[builder].is_file():
        return False
    with np.load(_HERE[builder]) as there:
        learning = {f"{x.name}/{number}": w for x in found.layers for number, w in enumerate(x.weights)}
        if any(name not in there or there[name].shape != tuple(w.shape) for name, w in learning.items()):
            return False  # narrower, say
        for name, variable in learning.items():
            variable.assign(there[name])
    return True


def _from_scratch(found: Any, weights: str) -> Any:
    for layer in found.layers:
        layer.from_scratch = weights  # so that nobody freezes what has learned nothing yet
        if isinstance(layer, layers.BatchNormalization):
            # Keras' momentum of 0.99 is made for ImageNet; over few steps the averages would lag far behind.
            layer.momentum = 0.9
    return found
