"""A trained Keras network as an ONNX graph: from the pixels of its view to logit, features and evidence map."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from components import images, networks, stage
from components.detector import shared
from components.detector.file import Network
from components.stage import StageError

OPSET = 17
_WIDEST = 8192  # features, for what a distance among them costs
_LOGITS, _MAPS = 1e-4, 1e-3  # by which file and network may differ, of numbers up to 1, and in proportion above


def write(saved: Path, view: str, pixels: np.ndarray, path: Path) -> None:
    """Compile a saved network and see that the file says what the network says.

    Args:
        saved: `.keras` file of a network from (n, side, side, 3) pixels, 0 to 255, to (n, 1) logits.
        view: what it sees (see `images.render`).
        pixels: uint8, shape (n, *images.view_shape(view)): real images to compare both on.
        path: of the `.onnx` file to write. Its input `pixels` is uint8, (n, side, side, 3), or
            (n, crops, side, side, 3) with any number of crops, whose means count. Its outputs are float32: `logit`,
            (n,); `features`, (n, d), where the network has a layer of that name with at most 8,192 numbers; `map`,
            (n, [crops,] h, w), where the logit is the mean of it plus a constant: how much each place adds.

    Raises:
        StageError: the graph can't be made, or differs from the network.
    """
    keras = networks.load_keras()
    if keras.backend.backend() == "tensorflow":
        graph = _checked(networks.load(saved), view, pixels)
        stage.replace(path, lambda partial: partial.write_bytes(graph))
        return
    with tempfile.TemporaryDirectory() as folder:  # the converter reads TensorFlow's graphs
        seen = Path(folder, "pixels.npy")
        np.save(seen, pixels)
        call = [sys.executable, "-m", "components.detector.compile", str(saved), view, str(seen), str(path)]
        done = subprocess.run(call, env=os.environ | {"KERAS_BACKEND": "tensorflow"}, capture_output=True, text=True)
        if done.returncode:
            raise StageError(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))


def _checked(network: Any, view: str, pixels: np.ndarray) -> bytes:
    import tensorflow as tf

    # A training may have left oneDNN's bfloat16 on, and a GPU multiplies in less than float32.
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})
    function, signature = _function(network, view)
    graph = shared.narrowed(_converted(network.name, function, signature))
    found = Network(graph)
    for block in np.array_split(pixels, max(1, len(pixels) // 8)):
        with tf.device("CPU:0"):
            wanted = {name: value.numpy() for name, value in function(block).items()}
        for name, value in found.outputs({"pixels": block}).items():
            apart = np.abs(value - wanted[name]) / np.maximum(1, np.abs(wanted[name]))
            limit = _LOGITS if name == "logit" else _MAPS
            if not (apart <= limit).all():  # a number that is none fails too
                raise StageError(
                    f"network {network.name}: compiled to ONNX, its {name} differs by {apart.max():.2g} from the "
                    f"network's own ({limit:g} is allowed); a layer of it has no exact counterpart there"
                )
    return graph


def _function(network: Any, view: str) -> tuple[Any, list[Any]]:
    """The network as a function of TensorFlow: uint8 pixels to a dict of outputs, and its signature."""
    keras = networks.load_keras()
    import tensorflow as tf

    side = images.view_size(view)
    several = len(images.view_shape(view)) == 4
    pooled = [x.output for x in network.layers if x.name == "features" and len(x.output.shape) == 2]
    has_features = bool(pooled) and pooled[0].shape[1] <= _WIDEST
    outputs = {"logit": network.output} | ({"features": pooled[0]} if has_features else {})
    weights = _place_weights(network)
    if weights is not None:
        outputs["map"] = weights[0]
    model = keras.Model(network.input, outputs)

    def mean(x: Any, crops: Any) -> Any:
        x = tf.cast(x, tf.float32)
        return tf.reduce_mean(tf.reshape(x, (-1, crops, x.shape[-1])), 1) if several else x

    def answer(pixels: Any) -> dict[str, Any]:
        crops = tf.shape(pixels)[1] if several else 1
        found = model(tf.cast(tf.reshape(pixels, (-1, side, side, 3)), tf.float32), training=False)
        answers = {"logit": mean(found["logit"], crops)[:, 0]}
        if has_features:
            answers["features"] = mean(found["features"], crops)
        if weights is not None:
            places = tf.cast(found["map"], tf.float32)
            flat = tf.matmul(tf.reshape(places, (-1, places.shape[-1])), tf.constant(weights[1][:, None]))
            shape = places.shape[1:3]
            answers["map"] = tf.reshape(flat, (-1, crops, *shape) if several else (-1, *shape))
        return answers

    signature = [tf.TensorSpec([None, *([None] if several else []), side, side, 3], tf.uint8, name="pixels")]
    return tf.function(answer, input_signature=signature), signature


def _place_weights(network: Any) -> tuple[Any, np.ndarray] | None:
    """The last feature map, and what each of its channels adds to the logit, where what follows its mean is affine.

    Then the mean of what the head says of each place is what it says of their mean: the class activation map (Zhou et
    al. 2016) is exact. Null where it isn't.
    """
    keras = networks.load_keras()
    pooling = [x for x in network.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
    if not pooling:
        return None
    last = next((layer for layer in pooling if layer.name == "features"), pooling[-1])
    try:
        top = keras.Model(last.output, network.output)
        keras.Model(network.input, last.input)
    except ValueError:  # something else reaches the logit by another way
        return None
    channels = int(last.output.shape[-1])
    shape = (-1, *last.output.shape[1:])

    def head(pooled: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(top(pooled.reshape(shape), training=False))[:, 0].astype(np.float32)

    a, b = np.random.default_rng(0).normal(0, 3, (2, 16, channels)).astype(np.float32)
    nothing = np.zeros_like(a)
    if np.abs(head(a) + head(b) - head(a + b) - head(nothing)).max() >= 1e-3 * (1 + np.abs(head(a)).max()):
        return None
    return last.input, head(np.eye(channels, dtype=np.float32)) - head(nothing[:1])


def _converted(name: str, function: Any, signature: list[Any]) -> bytes:
    import logging

    import onnx
    import tensorflow as tf
    import tf2onnx  # type: ignore[import-untyped]
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    try:
        # Tensors that layers keep beside their variables would become inputs; as constants they can't.
        concrete = function.get_concrete_function()
        frozen = convert_variables_to_constants_v2(concrete)
        names = sorted(concrete.structured_outputs)  # the order in which a function's dict comes apart
        function = tf.function(lambda pixels: dict(zip(names, frozen(pixels), strict=True)), input_signature=signature)
        graph, _ = tf2onnx.convert.from_function(
            function, signature, opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])}
        )
        onnx.checker.check_model(graph)  # what the converter doesn't know, it leaves as it is
    except Exception as error:  # whatever its rules for single operators raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(f"network {name} can't be compiled to ONNX: {reason}") from None
    return bytes(graph.SerializeToString())


def _erfc(context: Any, node: Any, name: str, _: Any) -> Any:
    """1 − erf(x), which the converter doesn't know; `gelu` is made of it."""
    kind, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    context.remove_node(node.name)
    one = context.make_const(f"{name}/one", np.array(1, np.float32))
    inputs = [one.output[0], context.make_node("Erf", node.input).output[0]]
    return context.make_node("Sub", inputs, outputs=node.output, name=name, shapes=[shape], dtypes=[kind])


def _main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("network", "view", "pixels", "out"):
        parser.add_argument(name)
    asked = parser.parse_args()
    write(Path(asked.network), asked.view, np.load(asked.pixels), Path(asked.out))


if __name__ == "__main__":
    stage.main(_main)
