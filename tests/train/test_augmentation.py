"""What training does to images, against Pillow where Pillow does the same."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from components import networks
from components.params import Augment

networks.load_keras()

import keras  # noqa: E402

from components.train import augmentation as layers  # noqa: E402


def as_array(values: object) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values))


@pytest.fixture
def pictures(picture: Callable[..., Image.Image]) -> Callable[..., np.ndarray]:
    """Float32 pictures of one size, (n, height, width, 3)."""
    return lambda n, width=48, height=40: np.stack(
        [np.asarray(picture(seed, (width, height)), np.float32) for seed in range(n)]
    )


def by_pillow(pixels: np.ndarray, quality: int, subsample: bool) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    return np.asarray(Image.open(file), np.float64)


@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (48, 40), (37, 51), (17, 16)])
def test_jpeg_is_pillows(pictures: Callable[..., np.ndarray], size: tuple[int, int], subsample: bool) -> None:
    pixels = pictures(6, *size)
    quality = np.array([20, 40, 50, 75, 90, 100])
    ours = as_array(layers.jpeg(pixels, np.float32(quality)[:, None, None, None], subsample))
    theirs = np.stack([by_pillow(one, int(q), subsample) for one, q in zip(pixels, quality, strict=True)])
    difference = np.abs(ours - theirs)
    # A coefficient halfway between two steps may fall to the other side; then a block differs.
    assert difference.mean() < 0.2
    assert np.all(difference.mean((1, 2, 3)) < 1)
    assert np.all(10 * np.log10(255**2 / np.mean(difference**2, (1, 2, 3))) > 43)  # dB


def test_rescaling_is_pillows(pictures: Callable[..., np.ndarray]) -> None:
    pixels = pictures(4, 48, 40)
    factors = np.float32([0.4, 0.55, 0.75, 1.0])
    ours = as_array(layers.rescale(pixels, factors[:, None, None, None]))
    for one, mine, factor in zip(pixels, ours, factors, strict=True):
        small = (max(1, round(48 * float(factor))), max(1, round(40 * float(factor))))
        image = Image.fromarray(one.astype(np.uint8)).resize(small, Image.Resampling.BILINEAR)
        theirs = np.asarray(image.resize((48, 40), Image.Resampling.BILINEAR), np.float64)
        assert np.abs(mine - theirs).mean() < 0.05
        assert np.abs(mine - theirs).max() <= 1


def test_a_blur_is_a_gaussian(pictures: Callable[..., np.ndarray]) -> None:
    from scipy.ndimage import gaussian_filter

    pixels = pictures(3)
    sigmas = np.float32([0.0, 0.7, 1.5])
    ours = as_array(layers.blur(pixels, sigmas[:, None, None, None]))
    for one, mine, sigma in zip(pixels, ours, sigmas, strict=True):
        theirs = gaussian_filter(one.astype(np.float64), (sigma, sigma, 0), mode="nearest", radius=5)
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.parametrize("layer", [layers.Colour, layers.Rescale, layers.Blur, layers.Noise, layers.JPEG])
def test_a_degradation_touches_its_share_and_leaves_what_a_file_holds(
    layer: type, pictures: Callable[..., np.ndarray]
) -> None:
    pixels = pictures(20)
    degrade = layer(0.3, 5)
    np.testing.assert_array_equal(degrade(pixels), pixels)  # only in training
    once, again = (as_array(degrade(pixels, training=True)) for _ in range(2))
    for out in (once, again):
        touched = np.any(out != pixels, axis=(1, 2, 3))
        assert 3 <= touched.sum() <= 6, "a drawn strength may be next to none"
        np.testing.assert_array_equal(out, np.clip(np.round(out), 0, 255))
    assert not np.array_equal(once, again)
    degrade.strength.assign(0.0)
    weak = np.abs(as_array(degrade(pixels, training=True)) - pixels).mean()
    assert weak < min(1, np.abs(once - pixels).mean())


def test_degradations_come_in_chains(pictures: Callable[..., np.ndarray]) -> None:
    settings = Augment(flip=False, shift=0, rescale=0.5, blur=0.5, noise=0.5, jpeg=0.5)
    inputs = keras.Input(batch_shape=(20, 40, 48, 3)), keras.Input(batch_shape=(20, 1))
    model = keras.Model(inputs, layers.augmented(*inputs, settings, 1))
    acts = [layer for layer in model.layers if isinstance(layer, layers._Degrade)]
    assert [type(layer).__name__ for layer in acts] == ["Rescale", "Blur", "Noise", "JPEG"]
    pixels, times = pictures(20), np.zeros(20, int)
    for layer in acts:
        out = as_array(layer(pixels, training=True))
        times += np.any(out != pixels, axis=(1, 2, 3))
        pixels = out
    assert times.max() > 1 and times.min() < 2


def test_images_move_by_whole_pixels(pictures: Callable[..., np.ndarray]) -> None:
    pixels = pictures(12)
    moved = as_array(layers.Place(True, 2, 3)(pixels, training=True))
    mirrors, shifts = set(), set()
    for one, out in zip(pixels, moved, strict=True):
        padded = np.pad(one, [(2, 2), (2, 2), (0, 0)], mode="symmetric")
        found = [
            (mirror, y, x)
            for mirror in (False, True)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[y : y + 40, x : x + 48][:, :: -1 if mirror else 1], out)
        ]
        assert len(found) == 1
        mirrors.add(found[0][0])
        shifts.add(found[0][1:])
    assert mirrors == {False, True} and len(shifts) > 3


def test_turning_keeps_the_centre_and_right_angles_are_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3)).astype(np.float32)
    layer = layers.Turn(90, 0, 1)
    layer._uniform = lambda n, low, high: np.full((n, 1, 1, 1), high, np.float32)  # the full angle, zoom 1 + 0
    np.testing.assert_allclose(as_array(layer(pixels, training=True))[0], np.rot90(pixels[0], 1), atol=1)
    turned = as_array(layers.Turn(20, 0.1, 1)(pixels, training=True))
    assert turned.shape == pixels.shape and not np.array_equal(turned, pixels)


@pytest.mark.parametrize("layer", [layers.MixUp, layers.CutMix])
def test_labels_are_mixed_as_the_images_are(layer: type) -> None:
    labels = np.float32(np.arange(40) % 2)[:, None]
    pixels = np.broadcast_to(labels[:, :, None, None] * 200, (40, 16, 16, 3)).astype(np.float32)
    out, mixed = (as_array(x) for x in layer(0.5, 2)([pixels, labels], training=True))
    np.testing.assert_allclose(out.mean((1, 2, 3)) / 200, mixed[:, 0], atol=0.003)
    assert 2 < np.sum((mixed > 0.01) & (mixed < 0.99)) <= 20
    values = np.unique(out)
    assert (len(values) > 3) if layer is layers.MixUp else set(values) == {0, 200}
    same, untouched = layer(0.5, 2)([pixels, labels])
    assert np.array_equal(same, pixels) and np.array_equal(untouched, labels)
