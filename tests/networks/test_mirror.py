"""A network that answers with the mean of an image and its mirror image."""

from pathlib import Path

import numpy as np
import pytest

from components import networks
from components.detector import compile
from components.detector.file import Network
from components.stage import StageError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 17, 17, 3)).astype(np.uint8)


def test_its_logit_is_the_mean_of_both_and_its_map_adds_up(pixels: np.ndarray, tmp_path: Path) -> None:
    network = networks.build("resnet9", 17, {"stem": 4, "width": 4})
    mirrored = networks.mirrored(network)
    mirrored.save(tmp_path / "network.keras")
    logits = network.predict(np.concatenate([pixels, pixels[:, :, ::-1]]), verbose=0)[:, 0].reshape(2, -1)
    assert not np.allclose(*logits, rtol=1e-3, atol=1e-4)
    again = networks.load(tmp_path / "network.keras")
    np.testing.assert_allclose(again.predict(pixels, verbose=0)[:, 0], logits.mean(0), rtol=1e-4, atol=1e-5)
    compile.write(tmp_path / "network.keras", "17", pixels, tmp_path / "network.onnx")
    said = Network(tmp_path / "network.onnx").outputs({"pixels": pixels})
    np.testing.assert_allclose(said["logit"], logits.mean(0), rtol=1e-4, atol=1e-4)
    bias = float(np.asarray(again.get_layer("logit").bias)[0])
    np.testing.assert_allclose(said["map"].mean((1, 2)) + bias, said["logit"], atol=1e-4)


def test_another_training_can_start_from_it(pixels: np.ndarray, tmp_path: Path) -> None:
    first, second = (networks.build("cnn", 17, {"width": 4}) for _ in range(2))
    networks.mirrored(first).save(tmp_path / "network.keras")
    networks.take_weights(second, tmp_path / "network.keras")
    np.testing.assert_allclose(second.predict(pixels, verbose=0), first.predict(pixels, verbose=0), rtol=1e-5)


def test_a_network_without_average_pooling_is_named() -> None:
    with pytest.raises(StageError, match="no global average pooling"):
        networks.mirrored(networks.build("seed-cnn32", 16, {}))
