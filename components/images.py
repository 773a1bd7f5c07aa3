"""Bytes to pixels: the one place where it happens, for training and for serving."""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
MAX_PIXELS = 89_000_000  # Pillow's own limit for a decompression bomb is a little above


class ImageError(ValueError):
    """The bytes are no image that can be read; the message says why."""


def open_image(data: bytes) -> Image.Image:
    """Read an image's header; the pixels are not decoded yet.

    Raises:
        ImageError: no bytes, an unknown format, or more pixels than `MAX_PIXELS`.
    """
    if not data:
        raise ImageError("empty file")
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not an image in a format that is read here") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels; refused as a decompression bomb") from None
    except Exception as error:  # Pillow's plugins raise many kinds; AVIF's a RuntimeError
        raise ImageError(f"damaged header: {error}") from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width} × {image.height} is more than {MAX_PIXELS:,} pixels; refused as a decompression bomb"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit and floating-point grey is scaled to
    8 bits, and palettes, grey and CMYK are converted. Of an animation the first frame is taken.

    Raises:
        ImageError: the pixel data is damaged or ends early.
    """
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith(("I", "F")):
            image = _scaled_grey(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise many kinds, struct.error among them
        raise ImageError(f"damaged: {str(error) or type(error).__name__}") from None


def decode(data: bytes) -> Image.Image:
    """An image file's bytes as 8-bit RGB, upright (see `to_rgb`)."""
    return to_rgb(open_image(data))


def view_size(view: str) -> int:
    """Side length in px of the square arrays that a view makes."""
    return int(view.removeprefix("crop-"))


def render(image: Image.Image, view: str) -> np.ndarray:
    """An RGB image as the array that a network sees.

    Args:
        image: mode RGB, any size.
        view: `64` resizes to 64 × 64 px (Lanczos; the aspect is not kept); `crop-64` cuts the central
            64 × 64 px out at native resolution, and pads a smaller image by reflection.

    Returns:
        uint8, shape (side, side, 3).
    """
    side = view_size(view)
    if not view.startswith("crop-"):
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        return np.asarray(image)
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    pixels = np.asarray(image.crop((left, top, min(left + side, image.width), min(top + side, image.height))))
    missing = [side - n for n in pixels.shape[:2]]
    if any(missing):
        widths = [(n // 2, n - n // 2) for n in missing]
        pixels = np.pad(pixels, [*widths, (0, 0)], mode="symmetric")
    return pixels


def thumbnail(image: Image.Image) -> np.ndarray:
    """The grey 32 × 32 px miniature that `perceptual_hashes` works on: float32, 0 to 255."""
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """The DCT hash ("pHash", Zauner 2010) of grey miniatures.

    Args:
        thumbnails: float32, shape (n, 32, 32).

    Returns:
        uint64, shape (n,): a bit for each of the 8 × 8 lowest frequencies, set where the coefficient is above
        the median of those without the mean. Hashes of re-saved or rescaled copies differ in few bits.
    """
    k, x = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(math.pi * k * (2 * x + 1) / 64).astype(np.float32)
    # A float32 sum depends on its order, and a flat image has coefficients around zero: rounding keeps equal
    # pixels at equal hashes.
    coefficients = np.round((basis @ thumbnails @ basis.T).reshape(-1, 64), 1)
    bits = coefficients > np.median(coefficients[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def _scaled_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    peak = values.max(initial=0.0)
    if image.mode.startswith("I;16") or peak > 255:
        values = values / 257 if peak <= 65535 else values * (255 / peak)
    elif image.mode == "F" and peak <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
