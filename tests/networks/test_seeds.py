"""The presets that reproduce public projects: their networks have the published sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import images, networks, params

PRESETS = sorted((Path(__file__).parents[2] / "presets/seeds").glob("*.yaml"))
# Keras' own figures without the top, and what the heads add to them.
VGG16, B0, B3 = 14_714_688, 4_049_571, 10_783_535
PARAMETERS = {
    "cnn150": 3_453_121,
    "cnn256": 448 + 64 + 4_640 + 128 + 18_496 + 256 + (30 * 30 * 64 + 1) * 512 + 513,
    "cnn32": 896 + 9_248 + (6 * 6 * 32 + 1) * 64 + 65,
    "cnn64": 896 + 18_496 + 73_856 + (6 * 6 * 128 + 1) * 128 + 2 * 129,
    "efficientnet-b0": B0 + (1_280 + 1) * 128 + 129,
    "efficientnet-b3": B3 + 1_537,
    "vgg16": VGG16 + (8 * 8 * 512 + 1) * 256 + 257,
}


def candidates() -> list[Any]:
    return [pytest.param(name, model, id=name) for p in PRESETS for name, model in params.load(p).train.models.items()]


def test_each_project_has_its_preset() -> None:
    assert {p.stem for p in PRESETS} == {"art-vgg16", "cnn-efficientnet", "cifake-cnn32", "art-cnn150", "cnn64-tuned"}


@pytest.mark.parametrize(("name", "model"), candidates())
def test_each_network_is_as_large_as_published(name: str, model: params.Model) -> None:
    known = {"weights": "none"} if "weights" in model.options else {}
    network = networks.build(model.network, images.view_size(model.view), {**model.options, **known})
    assert network.count_params() == PARAMETERS[name]


def test_the_logit_of_two_classes_is_their_softmax() -> None:
    keras = networks.load_keras()
    network = networks.build("seed-cnn64", 24, {"width": 4, "dense": 8})
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3)).astype(np.float32)
    classes = keras.Model(network.input, network.get_layer("classes").output)
    softmax = keras.ops.convert_to_numpy(keras.ops.softmax(classes(pixels)))
    sigmoid = keras.ops.convert_to_numpy(keras.ops.sigmoid(network(pixels)))
    np.testing.assert_allclose(sigmoid[:, 0], softmax[:, 1], rtol=1e-5)
    for label in (0, 1):
        sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(np.full(4, label), classes(pixels))
        binary = keras.losses.BinaryCrossentropy(from_logits=True)(np.full((4, 1), label), network(pixels))
        assert float(sparse) == pytest.approx(float(binary), rel=1e-5)


def test_vgg16_sees_what_its_weights_were_trained_on() -> None:
    keras = networks.load_keras()
    network = networks.build("vgg16", 32, {"weights": "none", "dense": 8})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    prepared = keras.Model(network.input, network.get_layer("block1_conv1").input)
    wanted = keras.applications.vgg16.preprocess_input(pixels.copy())
    np.testing.assert_allclose(keras.ops.convert_to_numpy(prepared(pixels)), wanted, atol=1e-3)


@pytest.mark.parametrize(("name", "side"), [("vgg16", 32), ("seed-cnn64", 24)])
def test_mixed_precision_leaves_no_trace(name: str, side: int) -> None:
    keras = networks.load_keras()
    from components.train.precision import in_float32

    options = {"dense": 8, **({"weights": "none"} if name == "vgg16" else {"width": 4})}
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float32)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = networks.build(name, side, options)
        full = in_float32(mixed)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in full.layers if layer.weights} == {"float32"}
    # bfloat16 keeps eight bits of each product.
    np.testing.assert_allclose(full(pixels), mixed(pixels), rtol=0.1, atol=0.05)
