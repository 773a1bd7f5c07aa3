"""Backbones that learned elsewhere, on a machine that can't fetch their weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import networks
from components.networks import features
from components.stage import StageError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    networks.load_keras()
    for module in ("mobilenet_v2", "efficientnet"):
        monkeypatch.setattr(f"keras.src.applications.{module}.file_utils.get_file", fetch)


def test_mobilenets_weights_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = networks.build("mobilenet", 32, {}), networks.build("mobilenet", 32, {})
    assert "taking those in models/backbones" in capsys.readouterr().out
    with np.load(Path(__file__).parents[2] / "models/backbones/MobileNetV2.npz") as known:
        for name in ("Conv1", "block_5_depthwise", "Conv_1"):
            here, there = (each.get_layer(name).get_weights()[0] for each in (first, second))
            assert np.array_equal(here, there) and np.array_equal(here, known[f"{name}/0"])
    networks.unfreeze(first, None)
    assert not first.get_layer("Conv1").trainable, "they have learned something"


def test_a_narrower_one_learns_from_scratch(capsys: pytest.CaptureFixture[str]) -> None:
    network = networks.build("mobilenet", 32, {"alpha": 0.35})
    assert "training from scratch" in capsys.readouterr().out
    networks.unfreeze(network, None)
    assert network.get_layer("Conv1").trainable


def test_what_stays_as_it_is_needs_weights() -> None:
    assert features.frozen(networks.build("style", 32, {}))
    efficientnet = {"encoder": "efficientnet", "encoder_options": {"variant": "B0"}}
    with pytest.raises(StageError, match="encoder efficientnet stays as it is, and its weights can't be fetched here"):
        networks.build("foundation", 32, efficientnet)
    assert not features.frozen(networks.build("foundation", 32, {**efficientnet, "frozen": False}))
