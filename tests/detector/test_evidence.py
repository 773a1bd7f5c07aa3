"""Explanations: exact where they say so, and pointing at what was planted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components import images, networks
from components.detector import build, compile, evidence
from components.detector.build import Member
from components.detector.familiarity import Familiarity
from components.detector.file import Network


@pytest.fixture(scope="module")
def keras() -> Any:
    return networks.load_keras()


def graph(keras: Any, path: Path, head: str, view: str = "32") -> bytes:
    """A network that finds red: a fixed 1 × 1 filter, pooled, under one of several heads."""
    layers, side = keras.layers, images.view_size(view)
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 1, name="filter", activation="relu")(x)
    x = layers.AveragePooling2D(4)(x)
    if head == "flat":
        logit = layers.Dense(1, name="logit", kernel_initializer="ones")(layers.Flatten(name="features")(x))
    else:
        x = layers.GlobalAveragePooling2D(name="features", keepdims=head == "kept")(x)
        if head == "bent":
            x = layers.Dense(8, activation="relu", kernel_initializer="ones")(x)
        if head == "softmax":
            two = layers.Dense(2, name="two")(layers.Dropout(0.5)(x))
            logit = layers.Dense(1, name="logit", use_bias=False)(two)
        else:
            flat = layers.Flatten()(x) if head == "kept" else x
            logit = layers.Dense(1, name="logit", kernel_initializer="ones", bias_initializer="ones")(flat)
    model = keras.Model(inputs, logit)
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    kernel[0, 0, :, 0] = 8, -8, -8
    model.get_layer("filter").set_weights([kernel, np.zeros(4, np.float32)])
    if head == "softmax":
        model.get_layer("two").set_weights([np.array([[-1, 3.0], *[[0, 0]] * 3]), np.array([0.2, -0.5])])
        model.get_layer("logit").set_weights([np.array([[-1.0], [1.0]])])
    seen = np.random.default_rng(0).integers(0, 256, (4, *images.view_shape(view))).astype(np.uint8)
    model.save(path.with_suffix(".keras"))
    compile.write(path.with_suffix(".keras"), view, seen, path)
    return path.read_bytes()


def detector(*members: Member) -> Network:
    unfamiliar = Familiarity.fit(np.empty((2, 0)), np.array([True, False]))
    return Network(build.finished(build.joined(members), members, unfamiliar, {}))


def picture(side: int, where: tuple[int, int, int, int]) -> Image.Image:
    """Grey with some noise, and a red patch."""
    pixels = np.random.default_rng(0).integers(100, 140, (side, side, 1)).repeat(3, axis=2).astype(np.uint8)
    left, top, right, bottom = where
    pixels[top:bottom, left:right] = 230, 20, 20
    return Image.fromarray(pixels)


@pytest.mark.parametrize("head", ["dense", "softmax", "kept"])
def test_the_map_of_an_affine_head_adds_up_to_the_logit(keras: Any, tmp_path: Path, head: str) -> None:
    found = Network(graph(keras, tmp_path / "n.onnx", head))
    pixels = np.asarray(picture(32, (16, 8, 28, 20)))
    said = found.outputs({"pixels": pixels[None]})
    [values] = said["map"]
    assert values.shape == (8, 8) and values.dtype == np.float32
    bias = {"dense": 1.0, "softmax": -0.7, "kept": 1.0}[head]
    assert values.mean() + bias == pytest.approx(float(said["logit"][0]), abs=1e-4)
    assert values[2:5, 4:7].min() > 1 and np.abs(values[5:]).max() < 1e-5


@pytest.mark.parametrize("head", ["bent", "flat"])
def test_other_heads_are_explained_by_occlusion(keras: Any, tmp_path: Path, head: str) -> None:
    found = detector(Member("n", graph(keras, tmp_path / "n.onnx", head), "32"))
    image = picture(32, (16, 8, 28, 20))
    assert not evidence.activation_maps(found, found.render(image))
    values, exact = evidence.evidence(found, image)
    assert not exact and values.shape == (256, 256)
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert 128 <= x < 224 and 64 <= y < 160, "the red patch, eight times as large"


def test_occlusion_agrees_with_the_exact_map(keras: Any, tmp_path: Path) -> None:
    found = detector(Member("n", graph(keras, tmp_path / "n.onnx", "dense"), "32"))
    seen = found.render(picture(32, (12, 4, 28, 20)))
    [occluded], [exact] = (maps(found, seen)["pixels"] for maps in (evidence.occlusion_maps, evidence.activation_maps))
    assert occluded.shape == (evidence.PATCHES, evidence.PATCHES) and occluded.dtype == np.float32
    assert evidence.agreement(exact, occluded) > 0.6
    assert np.isnan(evidence.agreement(np.zeros((8, 8)), occluded))


def test_each_crop_of_each_member_is_covered_by_itself(keras: Any, tmp_path: Path) -> None:
    """Members with different numbers of crops are asked at once, and say what they say alone."""
    members = [
        Member("many", graph(keras, tmp_path / "many.onnx", "bent", "crop-32x3"), "crop-32x3"),
        Member("one", graph(keras, tmp_path / "one.onnx", "flat", "24"), "24"),
    ]
    together = detector(*members)
    seen = together.render(picture(90, (10, 8, 60, 40)))
    maps = evidence.occlusion_maps(together, seen)
    assert [maps[name].shape[0] for name in together.inputs] == [3, 1]
    for name, member in zip(together.inputs, members, strict=True):
        alone = evidence.occlusion_maps(detector(member), {"pixels": seen[name]})["pixels"]
        np.testing.assert_allclose(maps[name], alone, atol=1e-4)


# Half a place of the last feature map, in px of the picture.
@pytest.mark.parametrize(("view", "off"), [("32", 25), ("cover-32", 19), ("crop-32", 2), ("crop-32x3", 2)])
def test_the_evidence_lies_where_the_view_shows_it(keras: Any, tmp_path: Path, view: str, off: int) -> None:
    found = detector(Member("n", graph(keras, tmp_path / "n.onnx", "dense", view), view))
    pixels = np.full((300, 400, 3), 128, np.uint8)
    texture = np.random.default_rng(1).integers(0, 255, (60, 60, 1))
    pixels[120:180, 170:230] = texture  # grey texture, for the crops that look for it
    pixels[140:160, 190:210] = 255, 0, 0
    values, exact = evidence.evidence(found, Image.fromarray(pixels))
    assert exact and values.shape == (300, 400)
    ys, xs = np.nonzero(values > values.max() / 2)
    assert abs(xs.mean() - 200) <= off and abs(ys.mean() - 150) <= off


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (10, 10)])
def test_crops_of_small_pictures_have_their_place(size: tuple[int, int]) -> None:
    """What lies inside the picture is what `render` shows there."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size[::-1], 3)).astype(np.uint8))
    for view in ("crop-32", "crop-32x2", "crop-16x3"):
        crops = images.render(image, view).reshape(-1, *images.view_shape(view)[-3:])
        for crop, (left, top, right, bottom) in zip(crops, images.places(image, view), strict=True):
            inside = image.crop((max(0, left), max(0, top), min(right, image.width), min(bottom, image.height)))
            y, x = max(0, -top), max(0, -left)
            np.testing.assert_array_equal(crop[y : y + inside.height, x : x + inside.width], inside)


def test_an_ensembles_evidence_is_that_of_its_exact_members(keras: Any, tmp_path: Path) -> None:
    exact, bent = (graph(keras, tmp_path / f"{head}.onnx", head) for head in ("dense", "bent"))
    image = picture(32, (16, 8, 28, 20))
    both, known = evidence.evidence(detector(Member("a", exact, "32", 2.0), Member("b", bent, "32", 3.0)), image)
    alone, _ = evidence.evidence(detector(Member("a", exact, "32")), image)
    assert known
    np.testing.assert_allclose(both, alone / 2, rtol=1e-5)


def test_the_overlay_is_red_for_ai_and_blue_for_real() -> None:
    values = np.zeros((64, 64), np.float32)
    values[:20], values[44:] = 2, -2
    shown = np.asarray(evidence.overlay(Image.new("RGB", (32, 32), (128, 128, 128)), values), int)
    assert shown.shape == (64, 64, 3)
    assert shown[5, 5, 0] > shown[5, 5, 2] + 50
    assert shown[60, 5, 2] > shown[60, 5, 0] + 50
    assert np.ptp(shown[32, 5]) == 0
