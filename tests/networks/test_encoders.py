"""The encoder that comes with the project is CLIP's, and what doesn't fit is named."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from components import networks, weights
from components.networks import encoders, features
from components.stage import StageError

NAME = "clip-vit-base-patch16"
OPTIONS = {"encoder": NAME, "pooling": "first", "tokens": [4, "mean 3", "last"]}


@pytest.fixture(scope="module")
def encoder() -> Any:
    return features.split(networks.build("foundation", 224, OPTIONS))[0]


def scene(seed: int) -> Image.Image:
    """Soft shapes in some colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)


def seen(encoder: Any, *images: Image.Image) -> np.ndarray:
    found = encoder.predict(np.stack([np.asarray(image, np.float32) for image in images]), verbose=0)
    return np.asarray(found)


def test_near_copies_are_close_and_other_pictures_far(encoder: Any) -> None:
    one = scene(1)
    last = seen(encoder, one, one.filter(ImageFilter.GaussianBlur(1)), scene(2), scene(3))[:, -768:]
    last /= np.linalg.norm(last, axis=1, keepdims=True)
    near, *far = last[1:] @ last[0]
    assert near > 0.95 and near > max(far) + 0.02


def test_the_features_are_those_of_clip_in_plain_arithmetic(encoder: Any) -> None:
    """The transformer written out once more, with the file's own numbers."""
    image = scene(5)
    tokens = written_out(np.asarray(image, np.float64))
    wanted = np.concatenate([tokens[3][0], tokens[2][1:].mean(0), tokens["last"][0]])
    np.testing.assert_allclose(seen(encoder, image)[0], wanted, atol=1e-3)


def written_out(pixels: np.ndarray) -> dict[Any, np.ndarray]:
    w = {name: x.astype(np.float64) for name, x in encoders.widened(encoders.constants(NAME)).items()}

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}/gamma"] + w[f"{name}/beta"]

    means, deviations = encoders._PIXELS
    x = (pixels / 255 - means) / deviations
    patches = x.reshape(14, 16, 14, 16, 3).transpose(0, 2, 1, 3, 4).reshape(196, -1)
    x = np.concatenate(
        [w["embedding/class_embedding"][None], patches @ w["embedding/patch_embedding/kernel"].reshape(-1, 768)]
    )
    x = normed(x + w["embedding/position_embedding/embeddings"], "pre_layer_norm")
    found: dict[Any, np.ndarray] = {}
    for number in range(12):
        block = f"encoder_block_{number}"
        y = normed(x, f"{block}/layer_norm_1")
        q, k, v = (
            np.einsum("td,dhk->htk", y, w[f"{block}/attention/{part}/kernel"])
            + w[f"{block}/attention/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / 8)
        heads = scores / scores.sum(-1, keepdims=True) @ v
        output = f"{block}/attention/attention_output"
        x = x + np.einsum("htk,hkd->td", heads, w[f"{output}/kernel"]) + w[f"{output}/bias"]
        y = normed(x, f"{block}/layer_norm_2") @ w[f"{block}/dense_1/kernel"] + w[f"{block}/dense_1/bias"]
        x = x + (y / (1 + np.exp(-1.702 * y))) @ w[f"{block}/dense_2/kernel"] + w[f"{block}/dense_2/bias"]
        found[number] = x
    return found | {"last": normed(x, "layer_norm")}


@pytest.mark.parametrize("token", [0, 13, "mean 13", "first", "mean", 2.5])
def test_a_token_that_does_not_exist_is_named(token: Any) -> None:
    with pytest.raises(StageError, match=rf"no token {token!r}: {NAME} has blocks 1 to 12"):
        networks.build("foundation", 224, {**OPTIONS, "tokens": [4, token]})


def test_tokens_of_what_is_no_transformer() -> None:
    with pytest.raises(StageError, match="keras-hub can't load the encoder style"):
        networks.build("foundation", 32, {"encoder": "style", "tokens": [1]})


def test_a_file_that_is_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "encoder"
    place.mkdir()
    for name in (f"{NAME}.onnx", "SHA256SUMS"):
        shutil.copy(weights.PLACE / name, place)
    monkeypatch.setattr(weights, "PLACE", place)
    file = place / f"{NAME}.onnx"
    with file.open("r+b") as opened:
        opened.seek(10**6)
        opened.write(b"other")
    with pytest.raises(StageError, match="not the encoder that SHA256SUMS names"):
        networks.build("foundation", 224, OPTIONS)
    file.unlink()
    (place / "SHA256SUMS").unlink()
    with pytest.raises(StageError, match="can't load the encoder"):
        networks.build("foundation", 224, OPTIONS)
