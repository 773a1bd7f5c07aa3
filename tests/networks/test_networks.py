"""Every network: built, trained for a step, saved, reloaded, and giving the same output."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import networks
from components.detector import compile
from components.detector.file import Network
from components.stage import StageError

TINY: dict[str, tuple[int, dict[str, Any]]] = {
    "cnn": (16, {"width": 4}),
    "efficientnet": (32, {"variant": "B0", "weights": "none"}),
    "foundation": (16, {"encoder": "cnn", "encoder_options": {"width": 4}}),
    "mobilenet": (32, {"alpha": 0.35, "weights": "none"}),
    "residual": (16, {"size": "xs"}),
    "resnet9": (17, {"stem": 4, "width": 4}),
    "seed-cnn32": (16, {}),
    "seed-cnn64": (24, {"width": 4, "dense": 8}),
    "seed-cnn150": (48, {}),
    "seed-cnn256": (32, {}),
    "style": (32, {"weights": "none"}),
    "vgg16": (32, {"weights": "none", "dense": 8}),
}
FLAT = {name for name in TINY if name.startswith("seed-") or name in ("style", "vgg16")}


@pytest.mark.parametrize("name", networks.names())
def test_build_train_save_reload(name: str, tmp_path: Path) -> None:
    side, options = TINY[name]
    network = networks.build(name, side, options)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, side, side, 3)).astype(np.uint8)
    assert {"features", "logit"} <= {layer.name for layer in network.layers}
    before = network.predict(pixels, verbose=0)
    assert before.shape == (8, 1)
    assert before.dtype == np.float32
    network.compile("adam", "binary_focal_crossentropy")
    network.train_on_batch(pixels, np.arange(8)[:, None] % 2)
    after = network.predict(pixels, verbose=0)
    assert not np.allclose(before, after)

    network.save(tmp_path / "network.keras")
    again = networks.load(tmp_path / "network.keras")
    np.testing.assert_allclose(again.predict(pixels, verbose=0), after, rtol=1e-4, atol=1e-5)
    compile.write(tmp_path / "network.keras", str(side), pixels, tmp_path / "network.onnx")
    graph = Network(tmp_path / "network.onnx")
    # Other batch sizes choose other kernels; float32 sums differ in the last digits.
    for block in (1, 8):
        parts = [graph.outputs({"pixels": pixels[at : at + block]}) for at in range(0, 8, block)]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        np.testing.assert_allclose(found["logit"], after[:, 0], rtol=1e-4, atol=1e-4)
        if name not in FLAT:
            bias = float(np.asarray(again.get_layer("logit").bias)[0])
            np.testing.assert_allclose(found["map"].mean((1, 2)) + bias, after[:, 0], rtol=1e-4, atol=1e-3)
    assert ("map" in found) == (name not in FLAT)


def test_the_default_cnn_has_288_thousand_parameters() -> None:
    assert networks.build("cnn", 32, {}).count_params() == 288_481


def test_efficientnet_is_keras_own() -> None:
    # Keras' B0 without its top has 4,049,571 parameters; the dense unit adds 1,281.
    assert networks.build("efficientnet", 32, {"weights": "none"}).count_params() == 4_049_571 + 1_281


def test_every_efficientnet_of_keras_has_its_variant() -> None:
    keras = networks.load_keras()
    from components.networks.efficientnet import _VARIANTS

    there = {name for name in dir(keras.applications) if name.startswith("EfficientNet")}
    assert {f"EfficientNet{variant}" for variant in _VARIANTS} == there


def test_layers_are_numbered_as_keras_numbers_them() -> None:
    keras = networks.load_keras()
    wanted = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3)).layers[1:]
    found = networks.build("efficientnet", 32, {"weights": "none"}).layers
    # What Keras names by itself (rescaling, normalization) it numbers on.
    names, keras_names = ([re.sub(r"_\d+$", "", x.name) for x in some] for some in (found[1 : len(wanted) + 1], wanted))
    assert names == keras_names
    assert found[len(wanted) + 1].name == "features"


def test_wrong_names_say_what_there_is() -> None:
    with pytest.raises(StageError, match=r"'resnet'.*cnn, efficientnet"):
        networks.build("resnet", 32, {})
    with pytest.raises(StageError, match=r"no option 'widht'.*width"):
        networks.build("cnn", 32, {"widht": 3})
    with pytest.raises(StageError, match=r"no variant 'B99'"):
        networks.build("efficientnet", 32, {"variant": "B99"})
    with pytest.raises(StageError, match=r"nowhere\.h5: no such weights file"):
        networks.build("efficientnet", 32, {"weights": "nowhere.h5"})


def test_a_weights_file_is_taken_over(tmp_path: Path) -> None:
    import keras

    source = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    source.save_weights(tmp_path / "b0.weights.h5")
    network = networks.build("efficientnet", 32, {"weights": str(tmp_path / "b0.weights.h5")})
    np.testing.assert_array_equal(network.get_layer("stem_conv").kernel, source.get_layer("stem_conv").kernel)
    (tmp_path / "other.weights.h5").write_bytes(b"nothing")
    with pytest.raises(StageError, match="not the weights of EfficientNetB0"):
        networks.build("efficientnet", 32, {"weights": str(tmp_path / "other.weights.h5")})


def test_a_file_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """A lambda's bytecode, and any function of any module: neither is run by loading the file."""
    keras = networks.load_keras()
    ran = tmp_path / "ran"
    evil = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)])
    evil.save(tmp_path / "lambda.keras")
    with pytest.raises((ValueError, TypeError), match=r"safe_mode|unsafe|arbitrary code"):
        networks.load(tmp_path / "lambda.keras")
    call = {"module": "os", "class_name": "system", "registered_name": None, "config": {"command": f"touch {ran}"}}
    function = {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"}
    for config in (call, {**call, "module": "builtins", "class_name": "exec"}, function):
        with zipfile.ZipFile(tmp_path / "evil.keras", "w") as file:
            file.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
            file.writestr("config.json", json.dumps(config))
            file.writestr("model.weights.h5", b"")
        with pytest.raises((ValueError, TypeError), match="Could not"):
            networks.load(tmp_path / "evil.keras")
    assert not ran.exists()
    with pytest.raises(StageError, match=r"lambda\.keras: no saved network"):
        networks.take_weights(networks.build("cnn", 16, {"width": 4}), tmp_path / "lambda.keras")
