"""How the detector holds up on images that were re-saved, blurred, or scaled after they were made."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    """Re-saved as JPEG with 4:2:0 chroma, as most services do."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality), subsampling=2)
    return Image.open(buffer).convert("RGB")


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur, sigma in px."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def noise(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian noise, sigma as a share of the full range."""
    pixels = np.asarray(image, np.float32)
    rng = np.random.default_rng(np.asarray(pixels.shape))
    noisy = pixels + rng.normal(0, 255 * sigma, pixels.shape)
    return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Scaled down by a factor and up again."""
    small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


GRID: list[tuple[str, Callable[[Image.Image, float], Image.Image], float]] = [
    ("jpeg", jpeg, 95),
    ("jpeg", jpeg, 75),
    ("jpeg", jpeg, 50),
    ("blur", blur, 0.5),
    ("blur", blur, 1.0),
    ("noise", noise, 0.02),
    ("noise", noise, 0.05),
    ("rescale", rescale, 0.75),
    ("rescale", rescale, 0.5),
]
"""Degradation, function, strength."""
