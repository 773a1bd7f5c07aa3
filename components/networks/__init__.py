"""The networks by name. Each takes pixels as they are, 0 to 255, and gives one logit: above 0 leans to `ai`.

A new network is one file in this folder: a function under `@register`, which the list below imports.
"""

import ast
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from components.stage import StageError

_MODULES = {
    "cnn": "cnn",
    "efficientnet": "efficientnet",
    "foundation": "foundation",
    "mobilenet": "mobilenet",
    "residual": "residual",
    "resnet9": "resnet9",
    "seed-cnn32": "seeds",
    "seed-cnn64": "seeds",
    "seed-cnn150": "seeds",
    "seed-cnn256": "seeds",
    "style": "style",
    "vgg16": "seeds",
}
_BUILDERS: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function known as the builder of a network."""

    def remember(builder: Callable[..., Any]) -> Callable[..., Any]:
        _BUILDERS[name] = builder
        return builder

    return remember


@cache
def options_of(name: str) -> tuple[str, ...]:
    """The settings of a network, read from its builder's source: Keras takes seconds to import.

    Raises:
        StageError: no such network.
    """
    if name not in _MODULES:
        raise StageError(f"no network is called {name!r}; there are {', '.join(names())}")
    source = Path(__file__).with_name(f"{_MODULES[name]}.py").read_text()
    [builder] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and f"register({name!r})" in map(ast.unparse, node.decorator_list)
    ]
    return tuple(argument.arg for argument in builder.args.args[1:])


def check(name: str, options: Iterable[str]) -> None:
    """See that there is such a network, with such options.

    Raises:
        StageError: there is none.
    """
    known = options_of(name)
    for option in sorted(set(options) - set(known)):
        raise StageError(f"network {name} has no option {option!r}; it has {', '.join(known)}")


def build(name: str, side: int, options: dict[str, Any]) -> Any:
    """A new network.

    Args:
        name: one of `names()`.
        side: of the input in px.
        options: the network's own settings.

    Returns:
        A `keras.Model` from (n, side, side, 3), 0 to 255, to (n, 1) float32 logits.

    Raises:
        StageError: no such network, or an option that it doesn't have.
    """
    check(name, options)
    load_keras()
    import_module(f"{__name__}.{_MODULES[name]}")
    return _BUILDERS[name](side, **options)


def unfreeze(network: Any, from_layer: int | None) -> None:
    """Let the later layers of a network's backbone learn, and keep the earlier ones as they are.

    Args:
        network: its backbone ends in the layer called `features`; what comes after always learns, and so does a
            pretrained backbone whose weights couldn't be had.
        from_layer: the first layer that learns, by its number in `network.layers`; null for none of the backbone.

    Raises:
        StageError: it has no such layer.
    """
    names = [layer.name for layer in network.layers]
    if "features" not in names:
        raise StageError(f"network {network.name} has no layer called `features`, so no part of it can be frozen")
    end = names.index("features")
    for number, layer in enumerate(network.layers):
        new = number > end or hasattr(layer, "from_scratch")
        layer.trainable = new or (from_layer is not None and number >= from_layer)


def take_weights(network: Any, path: Path) -> None:
    """Give a network the weights of a saved one.

    Raises:
        StageError: there is no such file, or its network is another one.
    """
    try:
        saved = load(path)
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: no saved network ({str(error).splitlines()[0]})") from None
    shapes, found = [v.shape for v in network.variables], [v.shape for v in saved.variables]
    if shapes != found:
        raise StageError(
            f"{path}: a {saved.name} with {saved.count_params():,} parameters can't be the start of a {network.name} "
            f"with {network.count_params():,}; give both the same options and view"
        )
    for variable, value in zip(network.variables, saved.variables, strict=True):
        variable.assign(value)


def mirrored(network: Any) -> Any:
    """The mean of what a network says of an image and of its mirror image, as one network.

    The last feature map of the mirror image is turned back and averaged with the image's own, so that class activation
    stays exact. It shares the network's weights, and takes twice its time.

    Args:
        network: from pixels to a logit, with global average pooling as its layer `features` and a chain after it.

    Raises:
        StageError: it has no such layer.
    """
    keras = load_keras()
    pooling = next((layer for layer in network.layers if layer.name == "features"), None)
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D):
        raise StageError(f"network {network.name} has no global average pooling before its head; take `mirror` out")
    body = keras.Model(network.input, pooling.input, name="body")
    pixels = keras.Input(network.input_shape[1:])

    def turned(x: Any) -> Any:
        return keras.ops.take(x, list(range(x.shape[2]))[::-1], axis=2)

    # Both in one batch: the network runs once, over twice as many images.
    found = body(keras.ops.concatenate([pixels, turned(pixels)], axis=0))
    own, other = keras.ops.unstack(keras.ops.reshape(found, (2, -1, *found.shape[1:])), axis=0)
    average = keras.layers.Average(dtype=pooling.dtype_policy)  # in whatever the network itself computes in
    x = pooling(average([own, turned(other)]))
    for layer in network.layers[network.layers.index(pooling) + 1 :]:
        x = layer(x)
    return keras.Model(pixels, x, name=network.name)


def names() -> list[str]:
    """All networks."""
    return sorted(_MODULES)


def load(path: Path) -> Any:
    """A saved network, not compiled. A file that holds code of its own is refused (Keras' safe mode)."""
    keras = load_keras()
    import_module(f"{__name__}.layers")
    return keras.models.load_model(path, compile=False, safe_mode=True)


def load_keras() -> Any:
    """Import Keras and its backend without the lines that TensorFlow's libraries print while they start."""
    with _muted():
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.list_physical_devices()
    return keras


@contextmanager
def _muted() -> Iterator[None]:
    """Hold back what is written to the process's stderr; it is shown if the body fails."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
