"""Broken image files by the thousand: valid files of every format, mutated with a seed, and bombs.

`corpus()` gives the same names in the same order for a seed. `damaged` breaks a file of one's own in the same ways.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pillow_heif
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from components import metadata

XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    b' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    b' xmp:CreatorTool="a tool" Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/'
    b'trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
SETTINGS = "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Model: sd, Size: 8x8"


def corpus(each: int = 80, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Broken files as (name, bytes): `each` of every valid file, and all bombs. Some can still be read."""
    for kind, data in valid().items():
        for number, broken in enumerate(damaged(data, each, seed)):
            yield f"{kind}-{number}", broken
    yield from bombs().items()


@cache
def valid() -> dict[str, bytes]:
    """Small valid files of every format that is read, in their variants and with all kinds of metadata."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    picture = coarse.resize((72, 56), Image.Resampling.BICUBIC)
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    alpha = picture.convert("RGBA")
    alpha.putalpha(picture.convert("L"))
    frames = [picture.rotate(angle) for angle in (90, 180)]
    exif = Image.Exif()
    exif[271], exif[272], exif[274], exif[305] = "Canon", "EOS R5", 6, "a program"
    exif.get_ifd(0x8769).update({0x9003: "2024:05:06 07:08:09", 0xA434: "RF 50mm", 0x9286: b"UNICODE\0" + b"\0s\0d"})
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngInfo()
    text.add_text("parameters", SETTINGS)
    text.add_text("Comment", SETTINGS, zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    text.add_itxt("Description", SETTINGS, zip=True)
    all_kinds = {"exif": exif, "xmp": XMP, "icc_profile": icc}

    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    pillow_heif.register_heif_opener()
    return {
        "jpeg": saved(picture, "JPEG", quality=90, comment=b"said", **all_kinds),
        "jpeg-progressive": saved(picture, "JPEG", progressive=True),
        "jpeg-cmyk": saved(picture.convert("CMYK"), "JPEG", restart_marker_blocks=1),
        "mpo": saved(picture, "MPO", save_all=True, append_images=frames),
        "png": saved(picture, "PNG", pnginfo=text, exif=exif, icc_profile=icc),
        "png-16": saved(grey16, "PNG"),
        "png-palette": saved(picture.quantize(16), "PNG", transparency=0),
        "png-alpha": saved(alpha, "PNG"),
        "apng": saved(picture, "PNG", save_all=True, append_images=frames),
        "webp": saved(picture, "WEBP", **all_kinds),
        "webp-lossless": saved(alpha, "WEBP", lossless=True),
        "webp-animated": saved(picture, "WEBP", save_all=True, append_images=frames),
        "gif": saved(picture, "GIF", comment=b"said"),
        "gif-animated": saved(picture, "GIF", save_all=True, append_images=frames),
        "bmp": saved(picture, "BMP"),
        "bmp-palette": saved(picture.quantize(16), "BMP"),
        "tiff": saved(picture, "TIFF", exif=exif, icc_profile=icc, tiffinfo={700: XMP}),
        "tiff-lzw": saved(picture, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": saved(picture, "TIFF", compression="jpeg"),
        "tiff-float": saved(grey16.convert("F"), "TIFF", compression="tiff_adobe_deflate", big_tiff=True),
        "tiff-fax": saved(picture.convert("1"), "TIFF", compression="group4"),
        "avif": saved(picture, "AVIF", **all_kinds),
        "avif-alpha": saved(alpha, "AVIF"),
        "heic": saved(picture, "HEIF", quality=60, **all_kinds),
        "heic-alpha": saved(alpha, "HEIF"),
        "jpeg2000": saved(picture, "JPEG2000"),
        "jpeg2000-alpha": saved(alpha, "JPEG2000", irreversible=True),
    }


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Mutations of a file: one to three kinds of damage each, some of which know its parts."""
    rng = random.Random(seed)
    for _ in range(count):
        broken = data
        for damage in rng.sample(_DAMAGES, rng.choice((1, 1, 2, 3))):
            broken = damage(broken, rng) if broken else broken
        yield broken


def parts(data: bytes) -> list[tuple[int, int, int]]:
    """Segments, chunks or boxes of a file, as far as they can be followed: (start, end, width of the length field).

    A width of 2 is a JPEG segment's, after its marker; -4 a little-endian one after the name (RIFF), 8 a PNG's
    (its length comes before the name, a checksum at the end), 4 that of a box.
    """
    found: list[tuple[int, int, int]] = []
    if data[:2] == b"\xff\xd8":
        at, header, kind = 2, ">2xH", 2
    elif data[:4] == b"RIFF":
        at, header, kind = 12, "<4xL", -4
    elif data[:4] == b"\x89PNG":
        at, header, kind = 8, ">L4x", 8
    elif data[4:8] in (b"ftyp", b"jP  "):
        at, header, kind = 0, ">L4x", 4
    else:
        return found
    while at + struct.calcsize(header) <= len(data) and len(found) < 1000:
        (length,) = struct.unpack_from(header, data, at)
        end = at + {2: 2 + length, -4: 8 + length + length % 2, 8: 12 + length, 4: max(8, length)}[kind]
        if end > len(data) or (kind == 2 and data[at : at + 2] == b"\xff\xda"):
            break
        found.append((at, end, kind))
        if kind == 4 and data[at + 4 : at + 8] in (b"meta", b"jp2h"):
            inner = at + (12 if data[at + 4 : at + 8] == b"meta" else 8)
            while inner + 8 <= end:
                (length,) = struct.unpack_from(">L", data, inner)
                found.append((inner, inner + max(8, length), 4))
                inner += max(8, length)
        at = end
    return [part for part in found if part[1] <= len(data)]


def said(data: bytes) -> list[tuple[int, int]]:
    """Where the metadata of a valid file lies, content without the lengths: (start, end) of each piece."""
    if data[:2] == b"\xff\xd8":
        pieces = [(at, end) for kind, at, end in metadata.segments(data) if 0xE0 <= kind <= 0xEF or kind == 0xFE]
        return [(at, end) for at, end in pieces if data[at : at + 5] != b"Adobe"]
    if data[:8] == metadata.PNG:
        return [
            (at, end + 4) for name, at, end in metadata.chunks(data) if name[:1].islower() and name not in (b"tRNS",)
        ]
    if data[:4] == b"RIFF":
        return [(at, end) for name, at, end in metadata.riff_chunks(data) if name in (b"EXIF", b"XMP ", b"ICCP")]
    if data[:3] == b"GIF":
        return [(at + 3, at + 3 + data[at + 2]) for at in [data.find(b"!\xfe")] if at > 0]
    if data[:4] in metadata.TIFF:
        values = metadata.tags(data, {271, 272, 305, 700, 34665, 34675})
        blocks = [value for value in values.values() if isinstance(value, bytes) and len(value) > 8]
        inner = [(at, at + 60) for at in (values.get(34665),) if isinstance(at, int)]
        return [(data.index(block), data.index(block) + len(block)) for block in blocks] + inner
    blocks = metadata.walk(data)
    found = [(data.index(block), len(block)) for block in (blocks.exif, blocks.xmp) if block]
    return [(at, at + size) for at, size in found]


@cache
def bombs() -> dict[str, bytes]:
    """Files that are far larger unpacked than packed, or claim to be, and metadata of that kind."""
    zeros, million = (zlib.compress(bytes(n)) for n in (16 << 20, 1 << 20))
    deep = b"<a>" * 50_000 + b"</a>" * 50_000
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (n + 1, b"&l%d;" % n * 10) for n in range(12))
    laughs = b'<!DOCTYPE x [<!ENTITY l0 "lol">' + laughs + b"]><x>&l12;</x>"
    outside = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'
    jpeg, tiff = valid()["jpeg-progressive"], overlapping(60_000)
    blank = io.BytesIO()
    Image.new("1", (9_400, 9_400)).save(blank, "TIFF", compression="group4")
    found = {
        "png-declared": png(60_000, 60_000),
        "png-declared-widest": png(2**31 - 1, 2**31 - 1),
        "png-declared-within": png(9_400, 9_400),
        "png-zero": png(0, 0),
        "png-pixels": png(9_400, 9_400, zlib.compress(bytes(9_400 * (1 + 9_400 // 8))), depth=1, colour=0),
        "png-many-pixels": png(8, 8, zeros),
        "png-text": png(1, 1, extra=[(b"zTXt", b"parameters\0\0" + zeros)]),
        "png-texts": png(1, 1, extra=[(b"zTXt", b"k%d\0\0" % n + million) for n in range(200)]),
        "png-itxt": png(1, 1, extra=[(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros)]),
        "png-icc": png(1, 1, extra=[(b"iCCP", b"icc\0\0" + zeros)]),
        "png-exif": png(1, 1, extra=[(b"eXIf", tiff)]),
        "png-chunks": png(1, 1, extra=[(b"tEXt", b"a\0b")] * 50_000),
        "png-json": png(1, 1, extra=[(b"tEXt", b"prompt\0" + b"[" * 500_000)]),
        "png-c2pa-boxes": png(1, 1, extra=[(b"caBX", _nested_store(100_000))]),
        "png-c2pa-claim": png(1, 1, extra=[(b"caBX", _deep_claim(1_000_000))]),
        "tiff-tags": tiff,
        "tiff-blank": blank.getvalue(),
        "tiff-loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "gif-declared": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
        "gif-blocks": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 200_000 + b";",
        "gif-comment": b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + b"a" * 255) * 4_000 + b"\0;",
        "bmp-declared": b"BM" + struct.pack("<LLLLllHHLLllLL", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "webp-declared": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
        "jpeg-declared": _dimensions(jpeg, 65_500, 65_500),
        "jpeg-declared-within": _dimensions(jpeg, 9_400, 9_400),
        "jpeg-scans": _scans(_dimensions(jpeg, 3_000, 3_000), 20_000),
        # The end of the image where decoders see none: in a comment between scans, whose length says how long it is.
        "jpeg-scans-false-end": _scans(_dimensions(jpeg, 3_000, 3_000), 20_000, b"\xff\xfe\0\6\xff\xd9\xff\xd9"),
        "jpeg-scans-restarts": _scans(_dimensions(jpeg, 3_000, 3_000), 20_000, b"\xff\xd0\xff\1\xff\xff\xd7"),
        "jpeg-comments": jpeg[:-2] + b"\xff\xfe\0\2" * 200_000 + jpeg[-2:],
        "jpeg-segments": b"\xff\xd8" + b"\xff\xe3\0\2" * 200_000 + jpeg[2:],
        "jpeg-exifs": b"\xff\xd8" + _app1(b"1234") * 100_000 + jpeg[2:],
        "jpeg-exif": b"\xff\xd8"
        + b"".join(_app1(tiff[n : n + 65_000]) for n in range(0, len(tiff), 65_000))
        + jpeg[2:],
        "heic-declared": _ispe(valid()["heic"], 30_000, 30_000),
        "heic-declared-within": _ispe(valid()["heic"], 9_400, 9_400),
        "avif-declared": _ispe(valid()["avif"], 30_000, 30_000),
        "avif-declared-within": _ispe(valid()["avif"], 9_400, 9_400),
        "heic-items": _items(900, 100_000),
        "boxes": b"\0\0\0\x0cftypheic" + b"\0\0\0\x08free" * 100_000,
        "boxes-nested": b"\0\0\0\x0cftypheic" + b"".join(struct.pack(">L", n) + b"moov" for n in range(80_000, 0, -8)),
        "jp2-declared": _siz(valid()["jpeg2000"], 9_400, 9_400),
    }
    for name, xml in {"deep": deep, "laughs": laughs, "outside": outside}.items():
        found[f"xmp-{name}"] = png(1, 1, extra=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xml)])
    return found


def png(
    width: int,
    height: int,
    packed: bytes = zlib.compress(bytes(8)),
    *,
    depth: int = 8,
    colour: int = 2,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """A PNG written by hand, to declare what no encoder would; `extra` chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *(extra or []), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _flip(data: bytes, rng: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.choice((1, 4, 32))):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    """Where headers are."""
    return _flip(data[:400], rng) + data[400:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _without(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 2, 16, 500)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice((rng.randbytes(rng.choice((1, 7, 300))), bytes(64), b"\xff" * 64)) + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at : at + rng.choice((4, 50, 1000))] * rng.choice((2, 100)) + data[at:]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Counts, offsets and lengths, wherever they may be."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, len(data)))
    at = rng.randrange(max(1, min(len(data), 1200) - width))
    return data[:at] + (value % 2 ** (8 * width)).to_bytes(width, order) + data[at + width :]


def _lie(data: bytes, rng: random.Random) -> bytes:
    """A part says that it is longer or shorter than it is."""
    found = parts(data)
    if not found:
        return _number(data, rng)
    start, end, kind = rng.choice(found)
    at, width = {2: (start + 2, 2), -4: (start + 4, 4), 8: (start, 4), 4: (start, 4)}[kind]
    size = end - start
    value = rng.choice((0, 1, 2, size - 1, size + 1, size * 2, 2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1))
    order = "little" if kind == -4 else "big"
    return data[:at] + (value % 2 ** (8 * width)).to_bytes(width, order) + data[at + width :]


def _swap(data: bytes, rng: random.Random) -> bytes:
    found = [part for part in parts(data) if part[0] > 0]
    if len(found) < 2:
        return _flip(data, rng)
    (a, b, _), (c, d, _) = sorted(rng.sample(found, 2))
    if b > c:  # one within the other
        return data[:a] + data[c:d] + data[b:]
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _double(data: bytes, rng: random.Random) -> bytes:
    found = parts(data)
    if not found:
        return _repeat(data, rng)
    start, end, _ = rng.choice(found)
    return data[:end] + data[start:end] * rng.choice((1, 2, 60)) + data[end:]


def _resealed(data: bytes, rng: random.Random) -> bytes:
    """Damage within a part; a PNG's checksum is made to fit again."""
    found = [part for part in parts(data) if part[1] - part[0] > 16]
    if not found:
        return _flip_early(data, rng)
    start, end, kind = rng.choice(found)
    inner = _flip(data[start + 8 : end - 4], rng)
    seal = struct.pack(">L", zlib.crc32(data[start + 4 : start + 8] + inner)) if kind == 8 else data[end - 4 : end]
    return data[: start + 8] + inner + seal + data[end:]


_DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _flip_early,
    _cut,
    _without,
    _insert,
    _repeat,
    _number,
    _lie,
    _swap,
    _double,
    _resealed,
]


def overlapping(tags: int) -> bytes:
    """A TIFF whose every tag claims the whole file as its value."""
    size = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHLL", tag, 7, size, 0) for tag in range(1000, 1000 + tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + entries + bytes(4)


def _nested_store(depth: int) -> bytes:
    """A C2PA store of boxes within boxes."""
    inner = _described(b"c2as")
    boxes = b"".join(struct.pack(">L4s", (8 + len(inner)) * (depth - n), b"jumb") + inner for n in range(depth))
    return _store(b"c2pa", boxes)


def _deep_claim(depth: int) -> bytes:
    """A C2PA store whose claim is lists within lists."""
    lists = struct.pack(">L4s", 9 + depth, b"cbor") + b"\x81" * depth + b"\0"
    manifest = _store(b"c2cl", lists) + _store(b"c2as", _store(b"cbor", lists)) + _store(b"c2cs", lists)
    return _store(b"c2pa", _store(b"c2ma", manifest))


def _store(kind: bytes, content: bytes) -> bytes:
    described = _described(kind)
    return struct.pack(">L4s", 8 + len(described) + len(content), b"jumb") + described + content


def _described(kind: bytes) -> bytes:
    """A JUMBF box's description: its type and label."""
    labels = {b"c2pa": b"c2pa", b"c2cl": b"c2pa.claim.v2", b"c2as": b"c2pa.assertions", b"c2cs": b"c2pa.signature"}
    content = kind + bytes.fromhex("00110010800000aa00389b71") + b"\3" + labels.get(kind, b"urn:c2pa:x") + b"\0"
    return struct.pack(">L4s", 8 + len(content), b"jumd") + content


def _app1(exif: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif


def _dimensions(jpeg: bytes, width: int, height: int) -> bytes:
    at = next(start for start, _, _ in parts(jpeg) if jpeg[start + 1] in (0xC0, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _scans(jpeg: bytes, count: int, between: bytes = b"") -> bytes:
    """With its first scan, emptied, again and again behind some bytes."""
    start = jpeg.index(b"\xff\xda")
    (size,) = struct.unpack_from(">H", jpeg, start + 2)
    return jpeg[:-2] + between + jpeg[start : start + 2 + size] * count + b"\xff\xd9"


def _items(count: int, size: int) -> bytes:
    """A HEIC with items that are all the same bytes of the file."""
    data = valid()["heic"]
    inner = {data[start + 4 : start + 8]: data[start:end] for start, end, _ in parts(data)}

    def box(name: bytes, *content: bytes) -> bytes:
        inside = b"".join(content)
        return struct.pack(">L4s", 8 + len(inside), name) + inside

    named = (
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH", 99 + n, 0) + b"mimeX\0application/rdf+xml\0")
        for n in range(count)
    )
    places = b"".join(struct.pack(">HHHLL", 99 + n, 0, 1, 0, size) for n in range(count))
    meta = bytes(4) + inner[b"hdlr"] + inner[b"pitm"]
    meta += box(b"iinf", bytes(4), struct.pack(">H", count), *named)
    meta += box(b"iloc", bytes(4), b"\x44\0", struct.pack(">H", count), places)
    return inner[b"ftyp"] + box(b"meta", meta) + bytes(size)


def _ispe(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">LL", width, height) + data[at + 8 :]


def _siz(data: bytes, width: int, height: int) -> bytes:
    """In the JP2 header, and in the code stream's own, for the image and its one tile."""
    at = data.index(b"ihdr") + 4
    data = data[:at] + struct.pack(">LL", height, width) + data[at + 8 :]
    at = data.index(b"\xff\x4f\xff\x51") + 8
    return data[:at] + struct.pack(">LLLLLL", width, height, 0, 0, width, height) + data[at + 24 :]
