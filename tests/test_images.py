"""Whatever the file, the same upright 8-bit RGB pixels come out, or a message that says why not."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from components import images
from components.images import (
    MAX_PIXELS,
    ImageError,
    decode,
    equalise,
    equalised,
    open_image,
    perceptual_hashes,
    places,
    render,
    thumbnail,
    view_shape,
    view_size,
)

Encode = Callable[..., bytes]
Picture = Callable[..., Image.Image]

RED, GREEN, BLUE, WHITE, BLACK, YELLOW = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (255, 255, 0),
)
QUADRANTS = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, YELLOW]], np.uint8)  # 3 px wide, 2 px high


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def blocks(colours: np.ndarray, side: int = 16) -> np.ndarray:
    """Each pixel as a block, so that lossy codecs have something to hold on to."""
    return colours.repeat(side, 0).repeat(side, 1)


def centres(array: np.ndarray, side: int = 16) -> np.ndarray:
    return array[side // 2 :: side, side // 2 :: side].astype(int)


def png(width: int, height: int, rows: bytes = b"", *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG written by hand, to declare what no encoder would."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Where the stored row 0 and column 0 stand in the upright picture (Exif 2.32, tag 0x0112).
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[:, ::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_applied(encode: Encode, orientation: int, kind: str, options: dict[str, bool]) -> None:
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](QUADRANTS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, kind, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), QUADRANTS)


def test_exif_orientation_of_a_jpeg_is_applied(encode: Encode) -> None:
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[6](blocks(QUADRANTS))))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.shape == (32, 48, 3)
    # At quality 95 a flat block is quantised in steps of one or two.
    assert np.abs(centres(found) - QUADRANTS).max() <= 3


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_of_avif_and_heic_is_applied_once(encode: Encode, orientation: int, kind: str) -> None:
    """Their files say it twice, in a box of their own and in EXIF."""
    fuzz.valid()  # registers HEIF for writing
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](blocks(QUADRANTS))))
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = orientation, "a camera"
    found = pixels(encode(stored, kind, exif=exif.tobytes(), quality=95))
    assert found.shape == (32, 48, 3)
    # Chroma has half the resolution; a flat block of 16 px keeps its colour in the middle.
    assert np.abs(centres(found) - QUADRANTS).max() <= 8


def test_heic_is_read_by_a_process_that_never_wrote_one(encode: Encode, picture: Picture, tmp_path: Path) -> None:
    fuzz.valid()
    (tmp_path / "a.heic").write_bytes(encode(picture(1, (64, 48)), "HEIF", quality=90))
    code = (
        "import pathlib; from components import images;"
        f"image = images.open_image(pathlib.Path({str(tmp_path / 'a.heic')!r}).read_bytes());"
        "assert (image.format, images.to_rgb(image).size) == ('HEIF', (64, 48))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_orientation_that_means_nothing_is_ignored(encode: Encode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(QUADRANTS), "PNG", exif=exif)), QUADRANTS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
    ],
    ids=str,
)
def test_lossless_formats_keep_every_pixel(
    encode: Encode, picture: Picture, kind: str, options: dict[str, object]
) -> None:
    original = picture(1)
    np.testing.assert_array_equal(pixels(encode(original, kind, **options)), np.asarray(original))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
    ids=str,
)
def test_lossy_formats_keep_every_colour(encode: Encode, kind: str, options: dict[str, object]) -> None:
    found = pixels(encode(Image.fromarray(blocks(QUADRANTS)), kind, **options))
    assert found.shape == (32, 48, 3)
    # WebP rounds to the narrow range of video, 219 steps for 256.
    assert np.abs(centres(found) - QUADRANTS).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_becomes_its_colours(encode: Encode, kind: str) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette(QUADRANTS.tobytes())
    image.putdata(range(6))
    np.testing.assert_array_equal(pixels(encode(image, kind)), QUADRANTS)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_becomes_white(encode: Encode, kind: str) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette(QUADRANTS.tobytes())
    image.putdata(range(6))
    expected = QUADRANTS.copy()
    expected[1, 1] = WHITE  # index 4
    np.testing.assert_array_equal(pixels(encode(image, kind, transparency=4)), expected)


def test_a_palette_with_an_alpha_for_each_colour_is_laid_over_white(encode: Encode) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette(bytes([0, 0, 0, 255, 0, 0, 0, 0, 255]))
    image.putdata(range(3))
    found = pixels(encode(image, "PNG", transparency=bytes([51, 255, 0])))
    # A fifth of black over white.
    np.testing.assert_array_equal(found, [[[204] * 3, RED, WHITE]])


def test_grey_becomes_three_equal_channels(encode: Encode) -> None:
    values = np.array([[0, 1, 127, 254, 255]], np.uint8)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "PNG")), values[..., None].repeat(3, 2))


def test_grey_with_alpha_is_laid_over_white(encode: Encode) -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(0, 255), (0, 51), (100, 0)])
    np.testing.assert_array_equal(pixels(encode(image, "PNG"))[0], [BLACK, [204] * 3, WHITE])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_colour_with_alpha_is_laid_over_white(encode: Encode, kind: str, options: dict[str, bool]) -> None:
    image = Image.new("RGBA", (4, 1))
    image.putdata([(*RED, 255), (*RED, 51), (*BLUE, 0), (*BLACK, 204)])
    found = pixels(encode(image, kind, **options))
    np.testing.assert_array_equal(found, [[RED, (255, 204, 204), WHITE, (51, 51, 51)]])


@pytest.mark.parametrize(
    ("mode", "values", "transparent", "expected"),
    [("RGB", [RED, GREEN], GREEN, [RED, WHITE]), ("L", [0, 100], 100, [BLACK, WHITE])],
)
def test_a_single_transparent_colour_becomes_white(
    encode: Encode, mode: str, values: list[object], transparent: object, expected: list[tuple[int, int, int]]
) -> None:
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    np.testing.assert_array_equal(pixels(encode(image, "PNG", transparency=transparent)), [expected])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8_bits(encode: Encode, kind: str) -> None:
    values = np.array([[0, 257, 128 * 257, 200 * 257, 65535]], np.uint16)
    found = pixels(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 128, 200, 255]])
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, 2))


def test_a_dark_16_bit_image_stays_dark(encode: Encode) -> None:
    values = np.array([[0, 100, 255]], np.uint16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "PNG"))[0, :, 0], [0, 0, 1])


def test_floating_point_grey_is_scaled_to_8_bits(encode: Encode) -> None:
    values = np.array([[0, 0.2, 1]], np.float32)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 0], [0, 51, 255])


def test_16_bit_colour_is_scaled_to_8_bits() -> None:
    row = b"\x00" + struct.pack(">6H", 0, 128 * 257, 65535, 65535, 257, 0)
    np.testing.assert_array_equal(pixels(png(2, 1, row, depth=16)), [[(0, 128, 255), (255, 1, 0)]])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_black_and_white(encode: Encode, kind: str) -> None:
    image = Image.new("1", (9, 1))
    image.putdata([255, 0, 0, 255, 255, 0, 255, 0, 255])
    np.testing.assert_array_equal(pixels(encode(image, kind))[0, :, 1], [255, 0, 0, 255, 255, 0, 255, 0, 255])


def test_a_cmyk_jpeg_becomes_its_colours(encode: Encode) -> None:
    inks = [[(0, 255, 255, 0), (255, 0, 255, 0)], [(0, 0, 0, 0), (0, 0, 0, 255)]]
    image = Image.fromarray(blocks(np.array(inks, np.uint8)), "CMYK")
    found = centres(pixels(encode(image, "JPEG", quality=95, subsampling=0)))
    # At quality 95 a flat block is quantised in steps of one or two.
    assert np.abs(found - np.array([[RED, GREEN], [WHITE, BLACK]])).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(encode: Encode, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(data), np.full((8, 8, 3), RED))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_single_pixel_is_an_image(encode: Encode, kind: str) -> None:
    image = decode(encode(Image.new("RGB", (1, 1), WHITE), kind))
    assert image.size == (1, 1)
    assert render(image, "8").shape == render(image, "crop-8").shape == (8, 8, 3)
    assert (render(image, "8") == 255).all() and (render(image, "crop-8") == 255).all()


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^empty file$"):
        decode(b"")


@pytest.mark.parametrize("data", [b"Not a picture.\n" * 20, b"\x00" * 100, b"<svg xmlns='x'/>", b"\xff\xd8"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^not an image in a format that is read here$"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF", "JPEG2000", "HEIF"])
def test_a_file_that_ends_early_is_refused(encode: Encode, picture: Picture, kind: str) -> None:
    fuzz.valid()  # registers HEIF for writing
    data = encode(picture(2, (200, 200)), kind)
    with pytest.raises(ImageError, match=r"^(damaged|not an image)"):
        decode(data[: len(data) // 2])


def test_a_truncated_jpeg_says_so(encode: Encode, picture: Picture) -> None:
    with pytest.raises(ImageError, match=r"^damaged: .*truncated"):
        decode(encode(picture(2, (200, 200)), "JPEG")[:2000])


def test_a_png_with_a_wrong_checksum_is_refused(encode: Encode, picture: Picture) -> None:
    data = bytearray(encode(picture(3), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(ImageError, match=r"^damaged: "):
        decode(bytes(data))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    bomb = png(width, height)
    assert len(bomb) < 100
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS:,} pixels; refused as a decompression bomb"):
        decode(bomb)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiff-tags", "EXIF claims far more bytes than there are"),
        ("png-exif", "EXIF claims far more bytes than there are"),
        ("jpeg-exif", "EXIF claims far more bytes than there are"),
        ("heic-items", "parts are too many, or claim far more bytes than there are"),
        ("gif-blocks", "parts are too many"),
        ("gif-comment", "parts are too many"),
        ("jpeg-exifs", "parts are too many"),
        ("png-chunks", "parts are too many"),
        ("jpeg-scans", r"20,0\d\d scans of 3000 × 3000 pixels"),
        ("jpeg-scans-false-end", r"20,0\d\d scans of 3000 × 3000 pixels"),
        ("jpeg-scans-restarts", r"20,0\d\d scans of 3000 × 3000 pixels"),
        ("jpeg-comments", "parts are too many"),
    ],
)
def test_a_bomb_of_structure_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"{reason}.*; refused as a bomb"):
        open_image(fuzz.bombs()[name])


def test_exif_as_text_in_a_png_is_no_bomb_either() -> None:
    for exif, refused in ((fuzz.overlapping(30_000), True), (fuzz.overlapping(60_000), False)):  # no text of 1 MiB
        lines = f"\nexif\n{len(exif)}\n{exif.hex()}"
        data = fuzz.png(1, 1, extra=[(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines.encode()))])
        if refused:
            with pytest.raises(ImageError, match="EXIF claims far more bytes"):
                open_image(data)
        else:
            assert decode(data).size == (1, 1)


@pytest.mark.parametrize("strip", [1, 7, 100])
def test_strips_change_no_pixel(encode: Encode, picture: Picture, monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    rng = np.random.default_rng(0)
    alpha = picture(1).convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, alpha.size[::-1], np.uint8)))
    deep = Image.fromarray(rng.integers(0, 65536, (30, 20), np.uint16))
    bright = Image.fromarray(rng.normal(0, 1e6, (30, 20)).astype(np.float32))
    files = [encode(alpha, "PNG"), encode(deep, "PNG"), encode(bright, "TIFF")]
    whole = [pixels(data) for data in files]
    monkeypatch.setattr(images, "_STRIP", strip)
    for data, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(pixels(data), expected)


@pytest.mark.parametrize(("view", "side"), [("64", 64), ("crop-32", 32), ("cover-48", 48), ("crop-32x4", 32), ("1", 1)])
def test_a_view_names_its_side(view: str, side: int) -> None:
    assert view_size(view) == side


def test_a_view_of_the_image_s_own_size_changes_nothing(picture: Picture) -> None:
    image = picture(5, (32, 32))
    for view in ("32", "crop-32"):
        found = render(image, view)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.asarray(image))


def test_resizing_takes_the_whole_image_in() -> None:
    found = render(Image.fromarray(blocks(QUADRANTS, 40)), "60")  # 120 × 80 px to 60 × 60
    assert found.shape == (60, 60, 3)
    np.testing.assert_array_equal(found[15::30, 10::20], QUADRANTS)


def test_a_crop_is_the_centre_at_native_resolution(picture: Picture) -> None:
    image = picture(6, (51, 40))
    np.testing.assert_array_equal(render(image, "crop-32"), np.asarray(image)[4:36, 9:41])


def test_a_small_image_is_padded_by_reflection() -> None:
    image = Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], np.uint8)).convert("RGB")
    found = render(image, "crop-6")
    expected = [
        [40, 40, 50, 60, 60, 50],
        [10, 10, 20, 30, 30, 20],
        [10, 10, 20, 30, 30, 20],
        [40, 40, 50, 60, 60, 50],
        [40, 40, 50, 60, 60, 50],
        [10, 10, 20, 30, 30, 20],
    ]  # of three columns one goes left, two go right; of four rows two go above, two below
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, 2))


def test_an_image_that_is_small_one_way_only_is_cropped_the_other() -> None:
    ramp = np.arange(10, dtype=np.uint8) * 20
    image = Image.fromarray(np.stack([ramp, ramp + 10])).convert("RGB")  # 10 px wide, 2 px high
    found = render(image, "crop-4")[..., 0]
    np.testing.assert_array_equal(found[1:3], [[60, 80, 100, 120], [70, 90, 110, 130]])
    np.testing.assert_array_equal(found[[0, 3]], found[[1, 2]])


def test_padding_repeats_an_image_that_is_much_smaller() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("RGB")
    np.testing.assert_array_equal(render(image, "crop-8")[:, :, 0], [[255, 255, 0, 0, 255, 255, 0, 0]] * 8)


def test_covering_keeps_the_aspect_and_cuts_off_what_stands_over() -> None:
    image = Image.fromarray(blocks(QUADRANTS, 40))  # 120 × 80 px: three columns of 40, two rows
    found = render(image, "cover-40")
    assert found.shape == (40, 40, 3)
    # Scaled to 60 × 40: of three columns of 20 px the outer ones lose a half.
    np.testing.assert_array_equal(found[10::20, [5, 20, 35]], QUADRANTS)


def test_the_crops_with_the_most_texture_come_first() -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((64, 96, 3), 128, np.uint8)
    pixels[0:16, 0:16] = rng.integers(0, 256, (16, 16, 3))
    pixels[48:64, 80:96] = rng.integers(20, 236, (16, 16, 3))
    found = render(Image.fromarray(pixels), "crop-16x3")
    assert (found.shape, found.dtype) == ((3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(found[0], pixels[0:16, 0:16])
    np.testing.assert_array_equal(found[1], pixels[48:64, 80:96])
    assert len({crop.tobytes() for crop in found}) == 3


@pytest.mark.parametrize(("size", "side", "crops"), [((70, 50), 16, 3), ((41, 33), 9, 6), ((40, 12), 12, 2)])
def test_crops_are_the_best_by_the_sum_of_differences_between_neighbours(
    size: tuple[int, int], side: int, crops: int
) -> None:
    """Told place by place: half a side apart, and none shares more than half with a better one."""
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (*size[::-1], 3), np.uint8))
    grey = np.asarray(image.convert("L")).astype(int)
    across, down = np.abs(np.diff(grey, axis=1, append=grey[:, -1:])), np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    lefts, tops = ([*range(0, n - side, side // 2), n - side] for n in size)
    ranked = sorted(
        ((left, top) for top in tops for left in lefts),
        key=lambda at: -(across + down)[at[1] : at[1] + side, at[0] : at[0] + side].sum(),
    )
    chosen: list[tuple[int, int]] = []
    for left, top in ranked:
        shared = [max(0, side - abs(left - x)) * max(0, side - abs(top - y)) for x, y in chosen]
        if max(shared, default=0) <= side * side / 2:
            chosen.append((left, top))
    found = places(image, f"crop-{side}x{crops}")
    assert found == [(left, top, left + side, top + side) for left, top in chosen[:crops]]


@pytest.mark.parametrize("size", [(16, 16), (9, 40), (5, 5)])
def test_an_image_without_room_gives_the_same_crop_again(picture: Picture, size: tuple[int, int]) -> None:
    image = picture(3, size)
    found = render(image, "crop-16x4")
    assert found.shape == view_shape("crop-16x4") == (4, 16, 16, 3)
    # Padded by reflection, never enlarged.
    assert set(found[0].reshape(-1, 3).view("u1,u1,u1").ravel().tolist()) <= set(
        np.asarray(image).reshape(-1, 3).view("u1,u1,u1").ravel().tolist()
    )


@pytest.mark.parametrize("how", ["resize", "crop"])
def test_equalised_files_differ_in_nothing_but_the_picture(encode: Encode, picture: Picture, how: str) -> None:
    files = [
        encode(picture(1, (300, 200)), "JPEG", quality=71, subsampling=0),
        encode(picture(2, (50, 400)).convert("RGBA"), "PNG"),
        encode(picture(3, (64, 64)).convert("L"), "WEBP"),
        encode(picture(4, (9, 7)), "GIF"),
    ]
    headers = set()
    for data in files:
        equal = equalised(decode(data), how, 64, 80)
        opened = open_image(equal)
        headers.add((opened.format, opened.mode, opened.size, str(opened.quantization), str(sorted(opened.info))))
        assert equalise(decode(data), {"size": how, "side": 64, "quality": 80}).size == (64, 64)
    assert len(headers) == 1


def test_nothing_is_equalised_without_being_asked(picture: Picture) -> None:
    image = picture(1)
    assert equalise(image, None) is image


def test_an_equalised_crop_is_off_the_grid_of_an_earlier_jpeg() -> None:
    """A grid line every 8 px; where it comes to lie tells the phase of the crop."""
    pixels = np.full((256, 256, 3), 40, np.uint8)
    pixels[::8], pixels[:, ::8] = 220, 220
    found = np.asarray(equalise(Image.fromarray(pixels), {"size": "crop", "side": 160, "quality": 95}))[..., 0]
    assert set(np.flatnonzero(found[2] > 128) % 8) == set(np.flatnonzero(found[:, 2] > 128) % 8) == {4}


def miniatures(*images: Image.Image) -> np.ndarray:
    return np.stack([thumbnail(image) for image in images])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b)


def test_a_hash_does_not_depend_on_its_batch(picture: Picture) -> None:
    images = [picture(seed) for seed in range(30)]
    images += [Image.new("RGB", (40, 40), (g, g, g)) for g in (0, 7, 128, 255)]
    together = perceptual_hashes(miniatures(*images))
    assert together.dtype == np.uint64
    alone = np.concatenate([perceptual_hashes(miniatures(image)) for image in images])
    backwards = perceptual_hashes(miniatures(*images[::-1]))[::-1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, backwards)


def test_a_hash_is_the_signs_of_the_low_frequencies(picture: Picture) -> None:
    thumbnails = miniatures(*[picture(seed) for seed in range(20)])
    low = dctn(thumbnails.astype(np.float64), axes=(1, 2))[:, :8, :8].reshape(-1, 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    expected = [int("".join("01"[bit] for bit in row), 2) for row in bits.astype(int)]
    # The hash rounds coefficients to a tenth, which may turn the one that is the median.
    assert distance(perceptual_hashes(thumbnails), np.array(expected, np.uint64)).max() <= 1


def test_copies_have_near_hashes_and_others_distant_ones(encode: Encode, picture: Picture) -> None:
    originals = [picture(seed, (256, 256)) for seed in range(20)]
    resaved = [decode(encode(image, "JPEG", quality=60)) for image in originals]
    rescaled = [image.resize((64, 64), Image.Resampling.LANCZOS) for image in originals]
    hashes = perceptual_hashes(miniatures(*originals))
    # Four bits is what counts as near by default (validate.near_distance).
    assert distance(hashes, perceptual_hashes(miniatures(*resaved))).max() <= 4
    assert distance(hashes, perceptual_hashes(miniatures(*rescaled))).max() <= 4
    others = distance(hashes[:, None], hashes[None, :])[~np.eye(20, dtype=bool)]
    # 63 fair coins differ in 31.5 places on average, with a standard deviation of 4.
    assert others.min() >= 12
