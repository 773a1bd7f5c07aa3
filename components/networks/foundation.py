"""An image encoder that learned from far more images than there are here, under a small head."""

from pathlib import Path
from typing import Any, Literal

import keras
from keras import layers

from components import networks
from components.networks import register
from components.networks.layers import Resized
from components.networks.pretrained import check_learned
from components.stage import StageError


@register("foundation")
def foundation(
    side: int,
    encoder: str,
    encoder_options: dict[str, Any] | None = None,
    pooling: Literal["average", "first"] = "average",
    dense: int = 0,
    dropout: float = 0.2,
    frozen: bool = True,
) -> Any:
    """A frozen or fine-tuned encoder, its features pooled, and a linear probe or one hidden layer on them.

    A linear probe on such an encoder recognises images of unknown generators better than networks that were made for
    the task (Ojha et al. 2023). Where the encoder is frozen, training computes its features once an image (see
    `networks.features`).

    Args:
        side: of the input in px; an encoder of another fixed size gets its images resized in the network.
        encoder: another network's name, taken up to its layer `features`; the path of a `.keras` file from pixels
            (0 to 255) to features; or what keras-hub calls a preset: a name such as `dinov2_base`, `hf://OWNER/NAME`,
            `kaggle://…`, or a folder that `save_to_preset` wrote.
        encoder_options: of the other network, such as `{weights: FILE}`.
        pooling: `average` over all places or tokens, or the `first` token, where an encoder has one for the class.
        dense: units of a hidden layer; none where it is 0.
        dropout: share, before the last dense unit.
        frozen: whether the encoder stays as it is. The candidate's `freeze` goes before it.

    Raises:
        StageError: no such encoder, one that doesn't fit, or keras-hub isn't installed.
    """
    if encoder in networks.names():
        inputs, x = _of_network(networks.build(encoder, side, encoder_options or {}), encoder)
    elif encoder_options:
        raise StageError(f"foundation: encoder_options belong to a network of {', '.join(networks.names())}")
    elif encoder.endswith(".keras"):
        inputs, x = _of_file(Path(encoder), side)
    else:
        inputs, x = _of_preset(encoder, side)
    if not any(layer.name == "features" for layer in keras.Model(inputs, x).layers):
        x = _pooled(x, pooling, encoder)
    end = keras.Model(inputs, x)
    if frozen:
        check_learned(end, f"foundation's encoder {encoder}")
    for layer in end.layers:
        layer.trainable = not frozen
    if dense:
        x = layers.Dense(dense, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="logit")(x), name="foundation")


def _of_network(network: Any, name: str) -> tuple[Any, Any]:
    """Its input, and what its layer `features` pools, or its output where it joins several; else the network's end."""
    if network.inputs[0].dtype not in ("float32", "bfloat16", "float16") or len(network.inputs) > 1:
        raise StageError(f"foundation: {name} isn't made for one image of numbers from 0 to 255")
    pooled = [layer for layer in network.layers if layer.name == "features"]
    if not pooled:
        return network.input, network.output
    return network.input, pooled[0].output if isinstance(pooled[0].input, list) else pooled[0].input


def _of_file(path: Path, side: int) -> tuple[Any, Any]:
    if not path.is_file():
        raise StageError(f"{path}: no such encoder")
    try:
        network = networks.load(path)
    except (ValueError, TypeError, OSError) as error:
        raise StageError(f"{path}: no network that Keras can load: {str(error).splitlines()[0]}") from None
    if network.input_shape[1:] not in [(side, side, 3), (None, None, 3)]:
        raise StageError(f"{path}: sees images of {network.input_shape[1:]}; the candidate's view makes {side} px")
    return _of_network(network, str(path))


def _of_preset(preset: str, side: int) -> tuple[Any, Any]:
    try:
        import keras_hub
    except ImportError:
        raise StageError(
            f"foundation: {preset} is neither a network here nor a .keras file, and keras-hub, which may know it, "
            "isn't installed; `pip install -e '.[foundation]'` in the project's folder does that"
        ) from None
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
    except Exception as error:  # keras-hub wraps whatever its stores say
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(f"foundation: keras-hub can't load the encoder {preset}: {reason}") from None
    encoder = getattr(backbone, "vision_encoder", backbone)
    if len(encoder.inputs) != 1 or len(encoder.inputs[0].shape) != 4:
        raise StageError(f"foundation: {preset} doesn't see images alone")
    inputs = x = keras.Input((side, side, 3))
    height, width = encoder.inputs[0].shape[1:3]
    if (height or side, width or side) != (side, side):
        x = Resized(height, width)(x)
    x = layers.Rescaling(*_range(keras_hub, preset))(x)
    return inputs, encoder(dict.fromkeys(encoder.input, x) if isinstance(encoder.input, dict) else x)


def _range(keras_hub: Any, preset: str) -> tuple[Any, Any]:
    """Scale and offset of the pixels that an encoder was trained on; -1 to 1 where its preset doesn't say."""
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # it has none; the encoder itself could be loaded from the same place
        return 1 / 127.5, -1
    return converter.scale or 1.0, converter.offset or 0.0


def _pooled(x: Any, pooling: str, encoder: str) -> Any:
    """Features of shape (n, d) of a map (n, h, w, d), of tokens (n, t, d), or as they are."""
    if pooling not in ("average", "first"):
        raise StageError(f"foundation: pooling is {pooling!r}; it may be average or first")
    rank = len(x.shape) if isinstance(x, keras.KerasTensor) else 0
    if pooling == "first" and rank == 3:
        return layers.Identity(name="features")(x[:, 0])
    if pooling == "first" or rank not in (2, 3, 4):
        raise StageError(f"foundation: {encoder} has no {'tokens' if rank else 'single output'} to take features from")
    of_rank = {2: layers.Identity, 3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
    return of_rank[rank](name="features")(x)
