"""The residual network: its sizes, its high-pass input, its file and its activation map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import networks
from components.detector import compile
from components.detector.file import Network
from components.stage import StageError


def high_pass(pixels: np.ndarray) -> np.ndarray:
    keras = networks.load_keras()
    network = networks.build("residual", pixels.shape[1], {"size": "xs"})
    probe = keras.Model(network.input, network.get_layer("high_pass").output)
    return np.asarray(probe.predict(pixels, verbose=0))


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize(("size", "parameters"), [("xs", 273_505), ("s", 697_793), ("m", 1_743_025), ("l", 5_035_841)])
def test_parameters(size: str, parameters: int) -> None:
    assert networks.build("residual", 32, {"size": size}).count_params() == parameters


def test_the_high_pass_of_a_constant_image_is_zero_up_to_its_border() -> None:
    pixels = np.full((1, 17, 17, 3), (255, 131, 7), np.uint8)
    np.testing.assert_allclose(high_pass(pixels), 0, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_high_pass_is_each_pixel_less_its_neighbourhood(policy: str) -> None:
    keras = networks.load_keras()
    checkerboard = np.repeat((np.indices((18, 18)).sum(0) % 2 * 255)[None, ..., None], 3, -1).astype(np.uint8)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        found = high_pass(checkerboard)[0, 1:-1, 1:-1]
    finally:
        keras.config.set_dtype_policy(before)
    # 5 of the 9 pixels around a place have its own colour, 4 the other.
    wanted = np.where(checkerboard[0, 1:-1, 1:-1] > 0, 1, -1) * 255 * 4 / 9 / 16
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(("side", "last"), [(16, 4), (33, 9), (224, 56)])
def test_any_side_and_only_the_later_stages_downsample(side: int, last: int) -> None:
    keras = networks.load_keras()
    network = networks.build("residual", side, {"size": "xs"})
    shapes = [x.output.shape for x in network.layers if isinstance(x, keras.layers.Add)]
    assert all(shape[1:] == (side, side, 16) for shape in shapes[:3])
    assert shapes[-1][1:] == (last, last, 64)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5, "stochastic_depth": 0.5}])
def test_a_step_changes_it_and_its_file_gives_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    network = networks.build("residual", 17, {"size": "xs", **options})
    pixels = noise(8, 17)
    before = network.predict(pixels, verbose=0)
    network.compile("adam", "binary_focal_crossentropy")
    assert np.isfinite(network.train_on_batch(pixels, np.arange(8)[:, None] % 2))
    after = network.predict(pixels, verbose=0)
    assert not np.allclose(before, after)
    network.save(tmp_path / "network.keras")
    again = networks.load(tmp_path / "network.keras")
    np.testing.assert_allclose(again.predict(pixels, verbose=0), after, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_skips_blocks_in_training_alone() -> None:
    network = networks.build("residual", 16, {"size": "xs", "dropout": 0.0, "stochastic_depth": 0.5})
    rates = [x.rate for x in network.layers if getattr(x, "noise_shape", None)]
    np.testing.assert_allclose(rates, np.arange(1, 10) / 9 * 0.5)
    same = np.repeat(noise(1, 16), 16, 0).astype(np.float32)
    assert np.ptp(np.asarray(network(same, training=True))) > 1e-3
    assert np.ptp(np.asarray(network(same, training=False))) < 1e-4


def test_the_activation_map_adds_up_to_the_logit(tmp_path: Path) -> None:
    network, seen = networks.build("residual", 32, {"size": "xs"}), noise(2, 32)
    network.save(tmp_path / "network.keras")
    compile.write(tmp_path / "network.keras", "32", seen, tmp_path / "network.onnx")
    said = Network(tmp_path / "network.onnx").outputs({"pixels": seen})
    assert said["map"].shape == (2, 8, 8)
    bias = float(np.asarray(network.get_layer("logit").bias)[0])
    np.testing.assert_allclose(said["map"].mean((1, 2)) + bias, said["logit"], atol=1e-4)


def test_wrong_settings_say_what_there_is() -> None:
    with pytest.raises(StageError, match=r"no size 'xl'; there are xs, s, m, l"):
        networks.build("residual", 32, {"size": "xl"})
    with pytest.raises(StageError, match=r"no option 'widht'; it has size, dropout, stochastic_depth"):
        networks.build("residual", 32, {"widht": 3})
    with pytest.raises(StageError, match=r"at least 16 px, not 15"):
        networks.build("residual", 15, {})
