"""What is compiled says what the Keras network says; what doesn't is not written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import images, networks
from components.detector import compile
from components.detector.file import Network
from components.stage import StageError
from components.train import precision

keras = networks.load_keras()
RNG = np.random.default_rng(0)


@keras.saving.register_keras_serializable("test")
class Restless(keras.layers.Layer):
    """Another answer each time, also where nothing is trained."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), stddev=50, seed=self.seeds)


@keras.saving.register_keras_serializable("test")
class Drawn(keras.layers.Layer):
    """The same by TensorFlow's own random numbers, which ONNX has too."""

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x), stddev=50)


@keras.saving.register_keras_serializable("test")
class Sorted(keras.layers.Layer):
    """By an operator that has no counterpart."""

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return x + tf.cast(tf.strings.length(tf.strings.as_string(tf.reduce_sum(x))), tf.float32)


def network(*between: Any, side: int = 16, last: str = "features") -> Any:
    """A convolution, and layers between it and its mean."""
    inputs = keras.Input((side, side, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    for layer in between:
        x = layer(x)
    x = keras.layers.GlobalAveragePooling2D(name=last)(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x), name="made")


def pixels(view: str, n: int = 12) -> np.ndarray:
    return RNG.integers(0, 256, (n, *images.view_shape(view))).astype(np.uint8)


def write(model: Any, folder: Path, view: str = "16") -> Path:
    model.save(folder / "network.keras")
    compile.write(folder / "network.keras", view, pixels(view), folder / "network.onnx")
    return folder / "network.onnx"


@pytest.mark.parametrize("view", ["16", "cover-16", "crop-16", "crop-16x3"])
def test_logits_features_and_maps_are_those_of_keras(tmp_path: Path, view: str) -> None:
    """On pixels that it wasn't compared on, one by one and many at once; of several crops the mean."""
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    model.get_layer("logit").set_weights([RNG.normal(0, 3, (4, 1)), np.array([0.5])])
    found = Network(write(model, tmp_path, view))
    seen = pixels(view, 30)
    both = keras.Model(model.input, [model.output, model.get_layer("features").output])
    logits, features = both.predict(seen.reshape(-1, 16, 16, 3).astype(np.float32), verbose=0)
    said = found.outputs({"pixels": seen})
    np.testing.assert_allclose(said["logit"], logits.reshape(30, -1).mean(1), atol=1e-4)
    np.testing.assert_allclose(said["features"], features.reshape(30, -1, 4).mean(1), atol=1e-4)
    alone = np.concatenate([found.outputs({"pixels": one[None]})["logit"] for one in seen])
    np.testing.assert_allclose(alone, said["logit"], atol=1e-4)
    places = said["map"].reshape(30, -1).mean(1)
    np.testing.assert_allclose(places + 0.5, said["logit"], atol=1e-3)
    if view == "crop-16x3":  # any number of crops
        first = found.outputs({"pixels": seen[:, :1]})["logit"]
        np.testing.assert_allclose(first, logits.reshape(30, 3)[:, 0], atol=1e-4)


def test_it_is_compared_in_float32_whatever_the_training_before_took(tmp_path: Path) -> None:
    """oneDNN's bfloat16, which is a setting of the process, where the CPU has it."""
    precision.use_precision("bfloat16")
    keras.utils.set_random_seed(3)
    model = networks.build("cnn", 16, {"width": 8, "blocks": 2})
    model.get_layer("logit").set_weights([RNG.normal(0, 9, w.shape) for w in model.get_layer("logit").get_weights()])
    found, seen = Network(write(model, tmp_path)), pixels("16")
    precision.use_precision("float32")
    wanted = networks.load(tmp_path / "network.keras").predict(seen.astype(np.float32), verbose=0)[:, 0]
    np.testing.assert_allclose(found.outputs({"pixels": seen})["logit"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Drawn, r"network made: compiled to ONNX, its (logit|features|map) differs by \S+ from the network's own"),
        (Restless, "network made can't be compiled to ONNX: "),
        (Sorted, "network made can't be compiled to ONNX: .*StringLength"),
        (
            lambda: keras.layers.Resizing(9, 9, interpolation="lanczos5"),
            "can't be compiled to ONNX: .*ScaleAndTranslate",
        ),
    ],
    ids=["random", "random with a state", "unknown", "resized otherwise"],
)
def test_what_has_no_counterpart_is_refused_and_nothing_is_written(
    tmp_path: Path, made: Callable[[], Any], said: str
) -> None:
    with pytest.raises(StageError, match=said) as refused:
        write(network(made()), tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["network.keras"]


@pytest.mark.parametrize("output", ["logit", "features", "map"])
@pytest.mark.parametrize("by", [np.nan, 0.01])
def test_each_output_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, by: float) -> None:
    """A converter that errs in one of them, by a little or by everything."""
    import onnx

    converted = compile._converted

    def erring(*given: Any) -> bytes:
        model = onnx.load_model_from_string(converted(*given))
        for node in model.graph.node:
            node.output[:] = [f"{name}/right" if name == output else name for name in node.output]
            node.input[:] = [f"{name}/right" if name == output else name for name in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(by, np.float32), "error"))
        model.graph.node.append(onnx.helper.make_node("Add", [f"{output}/right", "error"], [output]))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(compile, "_converted", erring)
    with pytest.raises(StageError, match=rf"network made: compiled to ONNX, its {output} differs by (0\.01|nan)"):
        write(network(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.keras"]


def test_the_command_that_other_backends_run_ends_with_the_same_line(tmp_path: Path) -> None:
    network(keras.layers.Resizing(9, 9, interpolation="lanczos5")).save(tmp_path / "network.keras")
    np.save(tmp_path / "pixels.npy", pixels("16"))
    call = [sys.executable, "-m", "components.detector.compile", "network.keras", "16", "pixels.npy", "network.onnx"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: network made can't be compiled to ONNX: "), done.stderr
    assert not (tmp_path / "network.onnx").exists()
