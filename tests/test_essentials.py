"""What a picture's pixels don't need keeps no picture from being read, and bombs stay bombs."""

import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import fuzz
import numpy as np
import pytest
from PIL import Image, ImageOps

from components import essentials, images, metadata
from components.images import ImageError, decode, open_image

Encode = Callable[..., bytes]
Picture = Callable[..., Image.Image]

MEBIBYTE = 1 << 20
EXIF = Image.Exif()
EXIF[272], EXIF[274] = "a camera", 6
VIDEO = b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd9\xff\xda" * 40_000


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", crc)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def png_with(*chunks: bytes, behind: bytes = b"") -> Callable[[bytes], bytes]:
    """With chunks after the header, and others after the pixels."""
    return lambda data: data[:33] + b"".join(chunks) + data[33:-12] + behind + data[-12:]


def jpeg_with(*segments: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:2] + b"".join(segments) + data[2:]


def in_pieces(between: bytes) -> Callable[[bytes], bytes]:
    """A PNG whose pixels stand in two chunks, with another one between them."""

    def cut(data: bytes) -> bytes:
        packed = next(data[at:end] for name, at, end in metadata.chunks(data) if name == b"IDAT")
        return data[:33] + chunk(b"IDAT", packed[:90]) + between + chunk(b"IDAT", packed[90:]) + data[-12:]

    return cut


PNG = {
    "a profile of 2 MB": png_with(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2 * MEBIBYTE)))),
    "a profile that is no zlib": png_with(chunk(b"iCCP", b"icc\0\0" + b"?" * 99)),
    "a profile packed in an unknown way": png_with(chunk(b"iCCP", b"icc\0\1" + zlib.compress(b"icc"))),
    "an empty profile": png_with(chunk(b"iCCP", b"")),
    "packed text of 2 MB": png_with(chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(2 * MEBIBYTE)))),
    "the same after the pixels": png_with(behind=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * MEBIBYTE)))),
    "international text of 2 MB": png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"a" * 2 * MEBIBYTE))),
    "100 MB of text": png_with(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MEBIBYTE)))] * 100),
    "text packed in an unknown way": png_with(chunk(b"zTXt", b"a\0\7abc")),
    "a wrong checksum of text": png_with(chunk(b"tEXt", b"Software\0a", crc=1)),
    "a wrong checksum of gamma": png_with(chunk(b"gAMA", b"\0\0\xb1\x8f", crc=1)),
    "a wrong checksum of a time": png_with(chunk(b"tIME", bytes(7), crc=1)),
    "a wrong checksum of a profile": png_with(chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"icc"), crc=1)),
    "a wrong checksum of EXIF": png_with(chunk(b"eXIf", EXIF.tobytes()[6:], crc=1)),
    "a wrong checksum of transparency": png_with(chunk(b"tRNS", bytes(6), crc=1)),
    "a wrong checksum of a suggested palette": png_with(chunk(b"PLTE", bytes(6), crc=1)),
    "a wrong checksum of something unknown": png_with(chunk(b"abCd", bytes(9), crc=1)),
    "a wrong checksum of text after the pixels": png_with(behind=chunk(b"tEXt", b"Software\0a", crc=1)),
    "transparency that is too short": png_with(chunk(b"tRNS", b"\0\0\0")),
    "too short ones": png_with(*(chunk(name, b"\1") for name in (b"gAMA", b"pHYs", b"cHRM", b"acTL", b"fcTL"))),
    "empty ones": png_with(*(chunk(name, b"") for name in (b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"))),
    "something unknown of 5 MB": png_with(chunk(b"abCd", bytes(5 * MEBIBYTE))),
    "EXIF as digits that are none": png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz!")),
    "EXIF as an odd number of digits": png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n4578696")),
    "EXIF that is none": png_with(chunk(b"eXIf", b"no EXIF at all")),
    "junk after the end": lambda data: data + VIDEO,
    "no end": lambda data: data[:-12],
    "text that ends early after the pixels": lambda data: data[:-12] + chunk(b"tEXt", b"a\0" + b"b" * 99)[:50],
    "text among the pixels": in_pieces(chunk(b"tEXt", b"a\0b")),
    "an animation whose frames are out of order": png_with(
        chunk(b"acTL", struct.pack(">LL", 2, 0)), chunk(b"fcTL", struct.pack(">LLLLLHHBB", 7, 48, 40, 0, 0, 1, 1, 0, 0))
    ),
}  # fmt: skip
JPEG = {
    "EXIF that is none": jpeg_with(segment(0xE1, b"Exif\0\0no EXIF at all")),
    "EXIF that ends early": jpeg_with(segment(0xE1, b"Exif\0\0MM\0*\0\0")),
    "EXIF whose directory lies behind its end": jpeg_with(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "a part of a profile": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\2\3" + bytes(90))),
    "a profile without numbers": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    "Photoshop's resources that end early": jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4")),
    "a short JFIF segment": jpeg_with(segment(0xE0, b"JFIF\0")),
    "a short Adobe segment": jpeg_with(segment(0xEE, b"Adobe\0")),
    "a damaged list of pictures": jpeg_with(
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0\0\0\0\0")
    ),
    "a list of pictures that is none": jpeg_with(segment(0xE2, b"MPF\0")),
    "a preview with scans of its own": jpeg_with(segment(0xE1, b"Exif\0\0II*\0" + b"\xff\xda\xff\xd9" * 9_000)),
    "fill before a marker": jpeg_with(b"\xff\xff\xff"),
    "a marker that means nothing": jpeg_with(b"\xff\1"),
    "junk between segments": lambda data: data[:20] + b"abc" + data[20:],
    "a length of nothing": jpeg_with(b"\xff\xfe\0\0"),
    "a video behind its end": lambda data: data + VIDEO,
    "a second picture behind its end": lambda data: data + data,
    "the scans of another behind its end": lambda data: data + data[data.index(b"\xff\xda") :],
}
WEBP = {
    "a size that is too large": lambda data: data[:4] + struct.pack("<L", 1 << 24) + data[8:],
    "a size that is too small": lambda data: data[:4] + struct.pack("<L", 30) + data[8:],
    "a size of nothing": lambda data: data[:4] + bytes(4) + data[8:],
    "bytes behind its end": lambda data: data + VIDEO,
}
GIF = {
    "an empty loop": b"!\xff\x0bNETSCAPE2.0\0",
    "an application without a name": b"!\xff\0",
    "control that is too short": b"!\xf9\1\0\0",
    "empty control": b"!\xf9\0",
    "something unknown": b"!\x77\3abc\0",
}


@pytest.mark.parametrize("what", GIF)
@pytest.mark.parametrize("kind", ["gif", "gif-animated"])
def test_a_gif_is_read_whatever_extension_it_holds(what: str, kind: str) -> None:
    data = fuzz.valid()[kind]
    at = 13 + (3 << (data[10] & 7) + 1)  # behind the palette
    np.testing.assert_array_equal(pixels(data[:at] + GIF[what] + data[at:]), pixels(data))


@pytest.mark.parametrize("resolution", [b"", b"\0\0\0\x0aresc\0\1", b"\xff" * 7])
def test_a_jpeg_2000_is_read_whatever_its_resolution(resolution: bytes) -> None:
    data = fuzz.valid()["jpeg2000"]
    start, end = next((start, end) for name, start, end in metadata.boxes(data, 0, len(data)) if name == b"jp2h")
    box = struct.pack(">L4s", 8 + len(resolution), b"res ") + resolution
    header = struct.pack(">L4s", 8 + end - start + len(box), b"jp2h") + data[start:end] + box
    np.testing.assert_array_equal(pixels(data[: start - 8] + header + data[end:]), pixels(data))


@pytest.mark.parametrize("what", PNG)
def test_a_png_is_read_whatever_else_it_holds(encode: Encode, picture: Picture, what: str) -> None:
    data = encode(picture(1), "PNG")
    np.testing.assert_array_equal(pixels(PNG[what](data)), np.asarray(picture(1)))


@pytest.mark.parametrize("progressive", [False, True], ids=["sequential", "progressive"])
@pytest.mark.parametrize("what", JPEG)
def test_a_jpeg_is_read_whatever_else_it_holds(encode: Encode, picture: Picture, what: str, progressive: bool) -> None:
    data = encode(picture(1, (400, 300)), "JPEG", progressive=progressive)
    np.testing.assert_array_equal(pixels(JPEG[what](data)), pixels(data))


@pytest.mark.parametrize("kind", ["webp-lossless", "webp-animated"])
@pytest.mark.parametrize("what", WEBP)
def test_a_webp_is_read_whatever_size_it_states(what: str, kind: str) -> None:
    data = fuzz.valid()[kind]
    np.testing.assert_array_equal(pixels(WEBP[what](data)), pixels(data))


@pytest.mark.parametrize("kind", [kind for kind, data in fuzz.valid().items() if fuzz.said(data)])
def test_damage_in_metadata_changes_no_pixel(kind: str) -> None:
    """Orientation apart, which is metadata too: the picture is then as it is stored."""
    data = fuzz.valid()[kind]
    found, rng, refused = pixels(data), random.Random(0), 0
    for _ in range(60):
        broken = bytearray(data)
        start, end = rng.choice(fuzz.said(data))
        for at in rng.sample(range(start, end), min(end - start, rng.choice((1, 8, 1 << 20)))):
            broken[at] = rng.randrange(256)
        seen = pixels(bytes(broken))
        turned = [np.asarray(Image.fromarray(found).transpose(turn)) for turn in Image.Transpose]
        assert any(np.array_equal(seen, each) for each in (found, *turned))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ImageOps.exif_transpose(Image.open(io.BytesIO(broken)))
            except Exception:  # whatever Pillow's plugins raise
                refused += 1
    if kind in ("png", "avif", "heic"):
        assert refused, "the damage is none to Pillow either"


@pytest.mark.parametrize("kind", ["apng", "webp-animated", "gif-animated"])
def test_of_an_animation_whose_later_frames_are_damaged_the_first_is_read(kind: str) -> None:
    data = fuzz.valid()[kind]
    names = {"apng": b"fdAT", "webp-animated": b"ANMF", "gif-animated": b"\0,"}
    start = data.index(names[kind], len(data) // 2)  # of the last frame, or the one before
    for broken in (data[: start + 30], data[: start + 30] + b"\xff" * 300 + data[start + 330 :]):
        np.testing.assert_array_equal(pixels(broken), pixels(data))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_of_a_tiff_the_first_page_is_read_without_what_else_it_holds(
    encode: Encode, picture: Picture, compression: str, big: bool
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    exif[700], exif[274] = b"an XMP packet", 6
    data = bytearray(
        encode(
            picture(1), "TIFF", save_all=True, append_images=[picture(2)], exif=exif, compression=compression,
            big_tiff=big,
        )
    )  # fmt: skip
    expected = np.asarray(picture(1).transpose(Image.Transpose.ROTATE_270))
    at, width, offset, entries = metadata.directory(bytes(data))
    following = at + entries * width
    np.testing.assert_array_equal(pixels(bytes(data)), expected)
    packet = next(at + n * width for n in range(entries) if data[at + n * width : at + n * width + 2] == b"\xbc\2")
    data[packet + 2] = 2  # it is text now, not bytes
    np.testing.assert_array_equal(pixels(bytes(data)), expected)
    second = int.from_bytes(data[following : following + offset], "little")
    data[second : second + 400] = os.urandom(400)[: len(data[second : second + 400])]
    np.testing.assert_array_equal(pixels(bytes(data)), expected)
    data[following : following + offset] = b"\xff" * offset
    np.testing.assert_array_equal(pixels(bytes(data)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_place_does_not_hide_how_a_picture_is_turned(encode: Encode, picture: Picture, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    data = encode(picture(1), kind, exif=exif)
    intact = pixels(data)
    start = data.index(b"MM\0*")
    gps = int(metadata.tags(data[start:], {0x8825})[0x8825])
    broken = data[: start + gps] + b"\xff" * 30 + data[start + gps + 30 :]
    if kind == "PNG":
        at, end = next((at, end) for name, at, end in metadata.chunks(broken) if name == b"eXIf")
        broken = broken[:end] + struct.pack(">L", zlib.crc32(broken[at - 4 : end])) + broken[end + 4 :]
    assert intact.shape == (48, 40, 3)
    np.testing.assert_array_equal(pixels(broken), intact)


LINES = f"\nexif\n{len(EXIF.tobytes())}\n{EXIF.tobytes().hex()}".encode()
XMP = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "turned",
    [
        png_with(chunk(b"eXIf", EXIF.tobytes()[6:])),
        png_with(behind=chunk(b"eXIf", EXIF.tobytes()[6:])),
        png_with(chunk(b"tEXt", b"Raw profile type exif\0" + LINES)),
        png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LINES))),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        png_with(behind=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
    ],
    ids=["EXIF", "EXIF after the pixels", "digits", "packed digits", "XMP", "packed XMP after the pixels"],
)
def test_a_png_is_turned_as_it_says(encode: Encode, picture: Picture, turned: Callable[[bytes], bytes]) -> None:
    found = pixels(turned(encode(picture(1), "PNG")))
    np.testing.assert_array_equal(found, np.asarray(picture(1).transpose(Image.Transpose.ROTATE_270)))


def test_what_else_a_file_says_is_still_known(encode: Encode, picture: Picture) -> None:
    """The leakage audit asks whether there is EXIF and a colour profile."""
    for kind in ("JPEG", "PNG", "WEBP"):
        opened = open_image(encode(picture(1), kind, exif=EXIF, icc_profile=b"a profile"))
        assert opened.info["icc_profile"] == b"a profile" and "exif" in opened.info, kind
        assert {"icc_profile", "exif"}.isdisjoint(open_image(encode(picture(1), kind)).info), kind


def test_a_wrong_checksum_of_pixels_is_no_reason_while_their_own_fits(encode: Encode, picture: Picture) -> None:
    """The packed stream has a checksum of its own, which is what counts."""
    data = encode(picture(1), "PNG")
    end = next(end for name, _, end in metadata.chunks(data) if name == b"IDAT")
    wrong = data[:end] + b"\1\2\3\4" + data[end + 4 :]
    np.testing.assert_array_equal(pixels(wrong), pixels(data))


@pytest.mark.parametrize(("name", "colour"), [(b"IHDR", 2), (b"PLTE", 3)])
def test_a_wrong_checksum_of_what_pixels_need_is_told(name: bytes, colour: int) -> None:
    data = fuzz.png(1, 1, zlib.compress(b"\0\0\0\0"), colour=colour, extra=[(b"PLTE", bytes(3))])
    at = data.index(name)
    broken = data[: at + 4] + data[at + 4 :].replace(
        struct.pack(">L", zlib.crc32(data[at : at + 4 + int.from_bytes(data[at - 4 : at], "big")])), b"\0\0\0\1", 1
    )
    assert decode(data).size == (1, 1)
    with pytest.raises(
        ImageError, match=rf"^damaged, or of a kind that is not read here: .*checksum in b'{name.decode()}"
    ):
        decode(broken)


def test_a_kind_of_jpeg_that_is_not_read_is_named(encode: Encode, picture: Picture) -> None:
    data = encode(picture(1), "JPEG")
    at = data.index(b"\xff\xc0") + 4
    with pytest.raises(ImageError, match=r"of a kind that is not read here: cannot handle 12-bit layers$"):
        decode(data[:at] + b"\x0c" + data[at + 1 :])


def test_pictures_behind_the_first_make_no_other_format(encode: Encode, picture: Picture) -> None:
    """MPO (CIPA DC-007), as phones write for two cameras or a gain map, is JPEG with more behind it."""
    data = encode(picture(1), "MPO", save_all=True, append_images=[picture(2)])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "MPO"
    found = open_image(data)
    assert (found.format, found.quantization) == ("JPEG", Image.open(io.BytesIO(data)).quantization)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(found)), pixels(encode(picture(1), "JPEG")))


SNIPPETS = (
    b"\xff\xd9", b"\xff\xff\xd9", b"\xff\xda", b"\xff\xfe\0\6\xff\xd9\xff\xd9", b"\xff\xd0", b"\xff\1", b"\xff\xd8",
    b"\xff\xe5\0\0\xff\xd9", b"\xff\xc4\0\2", b"\xff\xdd\0\4\0\1",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "jpeg-cmyk", "mpo"])
def test_libjpeg_reads_nothing_behind_the_end_that_is_found(kind: str) -> None:
    """With false ends, restarts, and scans behind the end: what is left out changes nothing that libjpeg decodes."""
    rng, data, read = random.Random(1), fuzz.valid()[kind], 0
    for _ in range(400):
        broken = data
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(2, len(broken))
            broken = broken[:at] + rng.choice(SNIPPETS) + broken[at:]
        if rng.random() < 0.3:
            broken += data[data.index(b"\xff\xda") :]
        left = essentials.of(broken)
        assert left.scans >= 1 or left.data == broken
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                whole = np.asarray(Image.open(io.BytesIO(broken), formats=["JPEG"]))
            except Exception:  # whatever Pillow's plugins raise
                continue
        read += 1
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(left.data))), whole)
    assert read > 100


def test_a_scan_is_counted_where_libjpeg_finds_one() -> None:
    data = fuzz.valid()["jpeg-progressive"]
    scans = data.count(b"\xff\xda")
    assert essentials.of(data).scans == scans > 5
    assert essentials.of(data + VIDEO).scans == scans
    first = data.index(b"\xff\xda")
    again = data[first : first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")]
    for between in (b"", b"\xff\xfe\0\6\xff\xd9\xff\xd9", b"\xff\xd9"):
        found = essentials.of(data[:-2] + between + again * 50 + b"\xff\xd9").scans
        assert found == (scans if between == b"\xff\xd9" else scans + 50)


@pytest.mark.parametrize("name", ["png-text", "png-texts", "png-itxt", "png-icc"])
def test_a_bomb_that_pixels_do_not_need_is_left_out(name: str) -> None:
    bomb = fuzz.bombs()[name]
    assert decode(bomb).size == (1, 1)
    assert len(essentials.of(bomb).data) < 100


@pytest.mark.skipif("TRUEFRAME_TEST_DATA" not in os.environ, reason="TRUEFRAME_TEST_DATA names no folder of real data")
@pytest.mark.parametrize("archive", ["art.zip", "photos.zip", "wild.zip", "leaky.zip"])
def test_real_pictures_have_the_pixels_that_pillow_gives(archive: str) -> None:
    with ZipFile(Path(os.environ["TRUEFRAME_TEST_DATA"]) / archive) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/")]
        for name in random.Random(0).sample(names, min(60, len(names))):
            data = packed.read(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plain = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            if plain.mode in ("RGB", "L", "CMYK"):
                np.testing.assert_array_equal(pixels(data), np.asarray(plain.convert("RGB")), name)
