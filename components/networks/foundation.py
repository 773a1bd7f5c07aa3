"""An image encoder that learned from far more images than there are here, under a small head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
from keras import layers

from components import networks, weights
from components.networks import encoders, register
from components.networks.layers import Clip, Resized
from components.networks.pretrained import check_learned
from components.stage import StageError

_CLIP = 4.0  # standard deviations


@register("foundation")
def foundation(
    side: int,
    encoder: str,
    encoder_options: dict[str, Any] | None = None,
    pooling: Literal["average", "first"] = "average",
    tokens: Sequence[int | str] = (),
    dense: int = 0,
    dropout: float = 0.2,
    l2: float = 0.0,
    frozen: bool = True,
) -> Any:
    """A frozen or fine-tuned encoder, its features pooled, and a linear probe or one hidden layer on them.

    A linear probe on such an encoder recognises images of unknown generators better than networks that were made for
    the task (Ojha et al. 2023). Where the encoder is frozen, training computes its features once an image (see
    `networks.features`).

    Args:
        side: of the input in px; an encoder of another fixed size gets its images resized in the network.
        encoder: one that comes with the project (`clip-vit-base-patch16`, see `networks.encoders`); another network's
            name, taken up to its layer `features`; the path of a `.keras` file from pixels (0 to 255) to features; or
            what keras-hub calls a preset: a name such as `dinov2_base`, `hf://OWNER/NAME`, `kaggle://…`, or a folder
            that `save_to_preset` wrote.
        encoder_options: of the other network, such as `{weights: FILE}`.
        pooling: `average` over all places or tokens, or the `first` token, where an encoder has one for the class.
        tokens: of a transformer, what is taken at several depths in place of its end: `4` for the class token after
            block 4 (of the first, where there is one; their mean for `pooling: average`), `mean 4` for the mean of the
            others there, `last` for the class token at the end. Low blocks see what a picture was made of, high ones
            what it shows (Koutlis & Papadopoulos 2024, "RINE"). Features are then scaled to one variance and clipped.
        dense: units of a hidden layer; none where it is 0.
        dropout: share, before the last dense unit.
        l2: weight of the penalty on the last dense unit's weights.
        frozen: whether the encoder stays as it is. The candidate's `freeze` goes before it.

    Raises:
        StageError: no such encoder, one that doesn't fit, or keras-hub isn't installed.
    """
    if tokens:
        inputs, x = _tokens(*_transformer(encoder, side), tokens, encoder, pooling)
    elif encoder in networks.names():
        inputs, x = _of_network(networks.build(encoder, side, encoder_options or {}), encoder)
    elif encoder_options:
        raise StageError(f"foundation: encoder_options belong to a network of {', '.join(networks.names())}")
    elif encoder.endswith(".keras"):
        inputs, x = _of_file(Path(encoder), side)
    else:
        inputs, seen, transformer = _transformer(encoder, side)
        x = transformer(seen)
    if not any(layer.name == "features" for layer in keras.Model(inputs, x).layers):
        x = _pooled(x, pooling, encoder)
    end = keras.Model(inputs, x)
    if frozen:
        check_learned(end, f"foundation's encoder {encoder}")
    for layer in end.layers:
        layer.trainable = not frozen
    if tokens:
        x = Clip(_CLIP)(layers.BatchNormalization(center=False, scale=False, momentum=0.9)(x))
    if dense:
        x = layers.Dense(dense, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    penalty = keras.regularizers.L2(l2) if l2 else None
    logit = layers.Dense(1, dtype="float32", name="logit", kernel_regularizer=penalty)(x)
    return keras.Model(inputs, logit, name="foundation")


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


def _transformer(name: str, side: int) -> tuple[Any, Any, Any]:
    """An input of pixels, what the encoder sees of them, and the encoder."""
    if name in weights.names():
        encoder, scale, offset = encoders.build(name)
    else:
        encoder, scale, offset = _of_preset(name)
    if len(encoder.inputs) != 1 or len(encoder.inputs[0].shape) != 4:
        raise StageError(f"foundation: {name} doesn't see images alone")
    inputs = x = keras.Input((side, side, 3))
    height, width = encoder.inputs[0].shape[1:3]
    if (height or side, width or side) != (side, side):
        x = Resized(height, width)(x)
    x = layers.Rescaling(scale, offset)(x)
    return inputs, dict.fromkeys(encoder.input, x) if isinstance(encoder.input, dict) else x, encoder


def _tokens(
    inputs: Any, seen: Any, encoder: Any, tokens: Sequence[int | str], name: str, pooling: str
) -> tuple[Any, Any]:
    """The input, and what is taken of the encoder's blocks side by side."""
    blocks = _blocks(encoder)
    taken = []
    for token in tokens:
        kind, _, block = str(token).rpartition(" ")
        if token == "last":
            taken.append(("", encoder.output))
        elif kind in ("", "mean") and block.isdecimal() and 1 <= int(block) <= len(blocks):
            taken.append((kind, blocks[int(block) - 1].output))
        else:
            there = f"blocks 1 to {len(blocks)}" if blocks else "no blocks that can be told apart"
            raise StageError(
                f"foundation: there is no token {token!r}: {name} has {there}; a token is a block's number, "
                "`mean NUMBER` or `last`"
            )
    outputs = keras.Model(encoder.input, [output for _, output in taken])(seen)
    found = [
        layers.GlobalAveragePooling1D()(x[:, 1:] if kind else x) if kind or pooling == "average" else x[:, 0]
        for (kind, _), x in zip(taken, outputs, strict=True)
    ]
    return inputs, layers.Concatenate(name="features")(found) if len(found) > 1 else layers.Identity(name="features")(
        found[0]
    )


def _blocks(encoder: Any) -> list[Any]:
    """The layers of the kind that an encoder has most of between tokens and tokens, in order."""
    kinds: dict[type, list[Any]] = {}
    for layer in encoder.layers:
        if layer.variables and isinstance(layer.output, keras.KerasTensor) and len(layer.output.shape) == 3:
            kinds.setdefault(type(layer), []).append(layer)
    most = max(kinds.values(), key=len, default=[])
    return most if len(most) > 1 else []


def _of_preset(preset: str) -> tuple[Any, Any, Any]:
    """A network of keras-hub, and scale and offset of the pixels that it was trained on."""
    try:
        import keras_hub
    except ImportError:
        here = ", ".join([*networks.names(), *weights.names()])
        raise StageError(
            f"foundation: {preset} is none of {here}, nor a .keras file, and keras-hub, which may know it, "
            "isn't installed; `pip install -e '.[foundation]'` in the project's folder does that"
        ) from None
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
    except Exception as error:  # keras-hub wraps whatever its stores say
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(f"foundation: keras-hub can't load the encoder {preset}: {reason}") from None
    return getattr(backbone, "vision_encoder", backbone), *_range(keras_hub, preset)


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
