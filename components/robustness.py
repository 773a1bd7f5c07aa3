"""How the detector holds up on images that were re-saved, blurred, scaled or cropped after they were made."""

import hashlib
import io
import math
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from components.images import MAX_PIXELS

_LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # px of a side, of what the formats can hold


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    """Re-saved as JPEG with 4:2:0 chroma, as most services do."""
    return _saved(image, "JPEG", quality=int(quality), subsampling=2)


def webp(image: Image.Image, quality: float) -> Image.Image:
    """Re-saved as lossy WebP."""
    return _saved(image, "WEBP", quality=int(quality))


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur, sigma in px."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def noise(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian noise, sigma as a share of the full range; the same picture always gets the same noise."""
    pixels = np.asarray(image)
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    noisy = pixels + 255 * sigma * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Scaled down by a factor and up again."""
    return _scaled(image, factor, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, share: float) -> Image.Image:
    """A part with this share of both sides, off the centre, so that an earlier encoder's grid shifts too."""
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) // 3
    return image.crop((left, top, left + width, top + height))


def screenshot(image: Image.Image, factor: float) -> Image.Image:
    """As a screen shows it, scaled by a factor that is no whole number, and saved as JPEG 85 with 4:4:4 chroma."""
    return _saved(_scaled(image, factor, Image.Resampling.BILINEAR), "JPEG", quality=85, subsampling=0)


class Degradation(NamedTuple):
    """One entry of the grid: its name, what it does to an RGB image, and how strongly."""

    name: str
    function: Callable[[Image.Image, float], Image.Image]
    strength: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image after it."""
        return self.function(image, self.strength)

    def __str__(self) -> str:
        return f"{self.name} {self.strength:g}"


GRID = [
    Degradation(function.__name__, function, strength)
    for function, strengths in (
        (jpeg, (95, 75, 50, 40, 30)),
        (webp, (80, 50)),
        (blur, (0.5, 0.7, 1.0, 1.5)),
        (noise, (0.02, 0.05, 0.1)),
        (rescale, (0.75, 0.5)),
        (crop, (0.9, 0.75)),
        (screenshot, (0.8, 1.25)),
    )
    for strength in strengths
]


NONE = -1
"""In the place of a place in `GRID`: the image as it is."""

_WORDS = {
    "jpeg": "re-saved as JPEG {:g}",
    "webp": "re-saved as WebP {:g}",
    "blur": "blurred, σ {:g} px",
    "noise": "with noise of σ {:.0%}",
    "rescale": "scaled to {:.0%} and back",
    "crop": "cropped to {:.0%} of both sides",
    "screenshot": "as a screenshot at {:.0%}",
}


def describe(name: str, strength: float) -> str:
    """An entry of the grid in words."""
    return _WORDS[name].format(strength)


def draw(identities: Iterable[str], seed: int) -> np.ndarray:
    """For each image (by its sha256) a place in `GRID`, int64: its own, whatever other images there are."""
    digests = (hashlib.sha256(f"{seed} {identity}".encode()).digest() for identity in identities)
    return np.array([int.from_bytes(digest[:8], "big") % len(GRID) for digest in digests], np.int64)


def _saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    factor = min(_LONGEST[kind] / max(image.size), math.sqrt(MAX_PIXELS / (image.width * image.height)))
    if factor < 1:  # a service would scale it down too
        width, height = (max(1, int(factor * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


def _scaled(image: Image.Image, factor: float, how: Image.Resampling) -> Image.Image:
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), how)
