"""Bytes to pixels: the one place where it happens, for training and for serving."""

import io
import itertools
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from components import essentials, metadata

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF")
MAX_PIXELS = 89_000_000  # Pillow's own limit for a decompression bomb is a little above

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation (Exif 2.32, tag 0x0112)."""
_PARTS = 50_000  # segments or chunks of a file
_COPIED = 1 << 30  # bytes, for metadata that is glued together piece by piece
_SCANNED = 2_000_000_000  # pixels in all scans of a JPEG; a progressive photograph has ten scans
_STRIP = 1 << 20  # pixels at a time, where more would multiply the memory that an image takes

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".heic",
    ".heif", ".hif", ".mpo", ".jpg_large",
}  # fmt: skip
"""What image files are called."""
HEAD = 64
"""By how many of its first bytes a file is known as an image."""
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"8BPS": "Photoshop",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"qoif": "QOI",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"FOVb": "camera raw",
    b"IIU\0": "camera raw",
    b"IIRO": "camera raw",
    b"IIRS": "camera raw",
    b"MMOR": "camera raw",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "camera raw"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"), "HEIF"
)
_BMP_HEADERS = [size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)]
_DNG_VERSION, _SUBFILE = 50706, 254


class ImageError(ValueError):
    """The bytes are no image that can be read; the message says why."""


def kind(data: bytes) -> str | None:
    """Which kind of image file this is by how it begins (`HEAD` bytes will do); null for what is none.

    It is one of `FORMATS`, or the name of a format that isn't read here. A raw photograph that is a TIFF file is
    told from others by more of its bytes only.
    """
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            if name != "TIFF":
                return name
            # The first picture of a raw photograph is a preview.
            said = metadata.tags(data, {_DNG_VERSION, _SUBFILE})
            preview = said.get(_SUBFILE, 0)
            is_raw = data[8:10] == b"CR" or _DNG_VERSION in said or (isinstance(preview, int) and preview & 1)
            return "camera raw" if is_raw else name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    # Two letters are little; the size of the second header is one of a few.
    if data[:2] == b"BM" and data[6:10] == bytes(4) and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        size = int.from_bytes(data[:4], "big")
        brands = [data[at : at + 4] for at in range(8, min(size, HEAD), 4) if at != 12]  # there stands a version
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return None


def open_image(data: bytes) -> Image.Image:
    """Read an image's header; the pixels are not decoded yet.

    Metadata that is damaged, too large or unknown keeps no picture from being opened: see `components.essentials`.

    Raises:
        ImageError: no bytes, an unknown format, more pixels than `MAX_PIXELS`, or metadata that would fill the
            memory.
    """
    if not data:
        raise ImageError("empty file")
    Image.init()
    unread = _register_heif() if data[4:8] == b"ftyp" else ""
    blocks = metadata.walk(data)
    _refuse_bomb(blocks.exif)
    needed = essentials.of(data)
    if blocks.claimed > 4 * len(data) or blocks.copied > _COPIED or max(blocks.parts, needed.parts) > _PARTS:
        raise ImageError("its parts are too many, or claim far more bytes than there are; refused as a bomb")
    found = kind(data)
    if found and found not in FORMATS:
        raise ImageError(f"{found}, a format that isn't read here")
    if blocks.format in ("image/jpeg", "image/png", "image/tiff"):
        image = _opened(needed.data, unread)
        # A TIFF's EXIF is the file itself.
        said = {"exif": blocks.exif if image.format != "TIFF" else b"", "xmp": blocks.xmp, "icc_profile": blocks.icc}
        image.info |= {key: value for key, value in said.items() if value}
    else:  # of the others all that can be damaged is read with the header
        try:
            image = _opened(data, unread)
        except ImageError:
            image = _opened(needed.data, unread)
            image.info |= {"exif": blocks.exif} if image.format == "WEBP" and blocks.exif else {}
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width} × {image.height} is more than {MAX_PIXELS:,} pixels; refused as a decompression bomb"
        )
    if needed.scans * image.width * image.height > _SCANNED:
        raise ImageError(f"{needed.scans:,} scans of {image.width} × {image.height} pixels; refused as a bomb")
    return image


def _opened(data: bytes, unread: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageError(_unread(data) + unread) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels; refused as a decompression bomb") from None
    except Exception as error:  # Pillow's plugins raise many kinds; AVIF's a RuntimeError
        raise ImageError(f"damaged header: {error}") from None


def _unread(data: bytes) -> str:
    """Why no plugin of Pillow's opens a file: the words of the one that knows how its format begins."""
    for factory, accept in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        if accept is not None and accept(data[:16]) is True:
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:
                return f"damaged, or of a kind that is not read here: {str(error) or type(error).__name__}"
    return "not an image in a format that is read here"


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit and floating-point grey is scaled to
    8 bits, and palettes, grey and CMYK are converted. Of an animation the first frame is taken.

    Raises:
        ImageError: the pixel data is damaged or ends early.
    """
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith(("I", "F")):
            image = _scaled_grey(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            return _over_white(image)
        return image.convert("RGB")
    except Exception as error:  # Pillow's plugins raise many kinds, struct.error among them
        raise ImageError(f"damaged: {str(error) or type(error).__name__}") from None


def _orientation(image: Image.Image) -> Any:
    """What EXIF, or else XMP, says; 1 where neither can be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # whatever can be wrong with metadata
        return 1


def decode(data: bytes) -> Image.Image:
    """An image file's bytes as 8-bit RGB, upright (see `to_rgb`)."""
    return to_rgb(open_image(data))


def view_size(view: str) -> int:
    """Side length in px of the square arrays that a view makes."""
    return int(view.rsplit("-", 1)[-1].split("x")[0])


def view_shape(view: str) -> tuple[int, ...]:
    """Shape of what `render` makes: (side, side, 3), or (crops, side, side, 3) for a view of several crops."""
    side, _, crops = view.rsplit("-", 1)[-1].partition("x")
    return (*((int(crops),) if crops else ()), int(side), int(side), 3)


def render(image: Image.Image, view: str, settings: Mapping[str, Any] | None = None) -> np.ndarray:
    """An RGB image as the array that a network sees.

    Args:
        image: mode RGB, any size; after `equalise`.
        view: `64` resizes to 64 × 64 px (Lanczos; the aspect is not kept); `cover-64` keeps the aspect and cuts off
            what stands over; `crop-64` cuts the central 64 × 64 px out at native resolution; `crop-64x4` the four
            crops with the most texture, that with the most first. Crops pad a smaller image by reflection.
        settings: those of `equalised`; with the size `view` each square is saved and read again here.

    Returns:
        uint8, of shape `view_shape(view)`.
    """
    if settings and settings["size"] == "view":
        squares = render(image, view).reshape(-1, *view_shape(view)[-3:])
        read = [np.asarray(decode(_saved(square, settings["quality"]))) for square in squares]
        return np.stack(read).reshape(view_shape(view))
    side = view_size(view)
    if view.startswith("crop-"):
        shape = view_shape(view)
        if len(shape) == 3:
            return _cut(image, (image.width - side) // 2, (image.height - side) // 2, side)
        return np.stack([_cut(image, left, top, side) for left, top in _textured(image, side, shape[0])])
    if view.startswith("cover-"):
        scale = side / min(image.size)
        image = _resized(image, (max(side, round(image.width * scale)), max(side, round(image.height * scale))))
        return _cut(image, (image.width - side) // 2, (image.height - side) // 2, side)
    if image.size != (side, side):
        image = _resized(image, (side, side))
    return np.asarray(image)


def places(image: Image.Image, view: str) -> list[tuple[int, int, int, int]]:
    """Which parts of an RGB image its `render`ed crops show: (left, top, right, bottom) in px, one for each crop.

    Crops of a smaller image reach beyond its edges.
    """
    width, height = image.size
    side = view_size(view) if view.startswith("crop-") else min(image.size)
    if not view.startswith(("crop-", "cover-")):
        return [(0, 0, width, height)]
    corners = [(max(0, width - side) // 2, max(0, height - side) // 2)]
    if len(view_shape(view)) == 4:
        corners = _textured(image, side, view_shape(view)[0])
    padded, above = (max(0, side - n) // 2 for n in image.size)
    return [(left - padded, top - above, left - padded + side, top - above + side) for left, top in corners]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Lanczos; to a quarter or less by way of averages over blocks of pixels, which saves most of the work."""
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _cut(image: Image.Image, left: int, top: int, side: int) -> np.ndarray:
    left, top = max(0, left), max(0, top)
    pixels = np.asarray(image.crop((left, top, min(left + side, image.width), min(top + side, image.height))))
    missing = [side - n for n in pixels.shape[:2]]
    if any(missing):
        widths = [(n // 2, n - n // 2) for n in missing]
        pixels = np.pad(pixels, [*widths, (0, 0)], mode="symmetric")
    return pixels


def _textured(image: Image.Image, side: int, crops: int) -> list[tuple[int, int]]:
    """Where the crops with the most texture begin: (left, top), the one with the most first.

    Crops begin half a side apart and may share at most half of their pixels; where an image has no room for so
    many, they come again.
    """
    grey = np.asarray(image.convert("L"))

    def places(length: int) -> list[int]:
        last = max(0, length - side)
        return sorted({*range(0, last + 1, max(1, side // 2)), last})

    # Sums of the gradient between all lines where crops begin or end: a crop's is that of some cells.
    tops, lefts = (np.array(places(length)) for length in grey.shape)
    ys, xs = (
        np.unique([*starts, *np.minimum(starts + side, n)]) for starts, n in zip((tops, lefts), grey.shape, strict=True)
    )
    total = np.zeros((len(ys), len(xs)), np.int64)
    for row, (top, bottom) in enumerate(itertools.pairwise(ys), 1):
        band = grey[top : bottom + 1].astype(np.int16)
        sums = np.abs(np.diff(band, axis=0)).sum(0, dtype=np.int64)
        sums[:-1] += np.abs(np.diff(band[: bottom - top], axis=1)).sum(0, dtype=np.int64)
        total[row, 1:] = np.add.reduceat(sums, xs[:-1]).cumsum()
    total = total.cumsum(0)

    (y0, y1), (x0, x1) = (
        [np.searchsorted(lines, at) for at in (starts, np.minimum(starts + side, n))]
        for lines, starts, n in ((ys, tops, grey.shape[0]), (xs, lefts, grey.shape[1]))
    )
    texture = (total[y1][:, x1] - total[y0][:, x1] - total[y1][:, x0] + total[y0][:, x0]).ravel()
    found = [(left, top) for top in tops.tolist() for left in lefts.tolist()]
    chosen: list[tuple[int, int]] = []
    for place in np.argsort(-texture, kind="stable"):
        left, top = found[place]
        if all(max(0, side - abs(left - x)) * max(0, side - abs(top - y)) <= side * side / 2 for x, y in chosen):
            chosen.append((left, top))
        if len(chosen) == crops:
            break
    return [chosen[i % len(chosen)] for i in range(crops)]


def equalised(image: Image.Image, size: str, side: int, quality: int) -> bytes:
    """An RGB image as the file that every image becomes, so that nothing but the picture tells one from another.

    Args:
        image: mode RGB, any size.
        size: `crop` takes the central pixels as they are, `resize` scales the central square down; `view` is for
            `render`, and the same as `resize` here.
        side: px; a smaller image is padded by reflection, never enlarged.
        quality: of the JPEG.

    Returns:
        A JPEG file of side × side px with 4:2:0 chroma.
    """
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if size != "crop" and min(left, top) > 0:
        return _saved(render(image, f"cover-{side}"), quality)
    elif min(left, top) > 4:
        # Off the 8 × 8 grid that an earlier JPEG left, so that the new one covers it.
        left, top = left // 8 * 8 + 4, top // 8 * 8 + 4
    return _saved(_cut(image, left, top, side), quality)


def _saved(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2)
    return file.getvalue()


def equalise(image: Image.Image, settings: Mapping[str, Any] | None) -> Image.Image:
    """What the pixels are after `equalised` with some settings; the image itself where it's left to `render`."""
    return decode(equalised(image, **settings)) if settings and settings["size"] != "view" else image


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


@cache
def _register_heif() -> str:
    """Only for files that may be HEIC: it loads libraries of 20 MB. Says why it can't, or nothing."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    except Exception as error:  # missing, or made for other libraries than are here
        return f"; HEIC isn't, since the package pillow-heif is missing or doesn't work ({error})"
    return ""


def _refuse_bomb(exif: bytes) -> None:
    if metadata.overlaps(exif):
        raise ImageError("its EXIF claims far more bytes than there are; refused as a bomb")


def _over_white(image: Image.Image) -> Image.Image:
    """A transparent image as RGB, in strips that keep memory small."""
    rgba = image if image.mode == "RGBA" and "transparency" not in image.info else image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size)
    rows = max(1, _STRIP // rgba.width)
    for top in range(0, rgba.height, rows):
        strip = rgba.crop((0, top, rgba.width, min(rgba.height, top + rows)))
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def _scaled_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    strips = np.array_split(pixels, math.ceil(pixels.size / _STRIP))
    peak = max(_finite(strip).max(initial=0.0) for strip in strips)
    grey = np.empty(pixels.shape, np.uint8)
    for strip, into in zip(strips, np.array_split(grey, len(strips)), strict=True):
        values = _finite(strip)
        if image.mode.startswith("I;16") or peak > 255:
            values = values / 257 if peak <= 65535 else values * (255 / peak)
        elif image.mode == "F" and peak <= 1:
            values = values * 255
        into[:] = np.clip(np.round(values), 0, 255)
    return Image.fromarray(grey)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def jpeg_quality(image: Image.Image) -> float | None:
    """The quality of a JPEG file by the scale of libjpeg (1 to 100), from its luminance table; None of other files."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    # The mean of the standard's luminance table (ITU T.81, Annex K), which quality 50 leaves as it is.
    scale = 100 * float(np.mean(next(iter(tables.values())))) / 57.625
    return 100 - scale / 2 if scale <= 100 else 5000 / scale
