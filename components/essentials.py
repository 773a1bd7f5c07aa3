"""What of an image file its pixels need, so that nothing else can keep them from being decoded.

Text, EXIF, colour profiles, previews and later frames are left out, damaged or not, and so is what lies behind the end
of the picture. The file is walked as `components.metadata` walks it, nothing is decoded, and nothing is raised: a file
that can't be followed is kept as it is, for the decoder to say what is wrong with it.
"""

import struct
from dataclasses import dataclass
from typing import Literal

from components import metadata

_TRANSPARENT = {0: 2, 2: 6}  # bytes of the transparent colour, by a PNG's colour type
_TIFF_METADATA = {700, 33723, 34377, 34665, 34675, 34853, 37724, 40965}
"""Tags: XMP, IPTC, Photoshop's resources, EXIF, ICC profile, GPS, Photoshop's layers, interoperability."""


@dataclass
class Essentials:
    """What is left of a file.

    Attributes:
        data: a file of the same format.
        parts: of a JPEG how many segments come after the first scan's header, other scans among them.
        scans: passes over the picture that a JPEG asks for.
    """

    data: bytes
    parts: int = 0
    scans: int = 1


def of(data: bytes) -> Essentials:
    """Leave out of an image file what its pixels don't need (see the module)."""
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == metadata.PNG:
            return Essentials(_png(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Essentials(_webp(data))
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return Essentials(_gif(data))
        if data[:4] in metadata.TIFF:
            return Essentials(_tiff(data))
        if data[4:8] == b"ftyp":
            return Essentials(_heif(data))
        if data[4:8] == b"jP  ":
            return Essentials(_jpeg2000(data))
    except (struct.error, IndexError):  # the file ends where something should be
        pass
    return Essentials(data)


def _jpeg(data: bytes) -> Essentials:
    """Frame, tables, and scans up to the end of the image, where libjpeg stops too.

    Of the application segments libjpeg looks at two, which say how colours are stored.
    """
    found = Essentials(data, scans=0)
    kept, first, last = [b"\xff\xd8"], 0, len(data)
    components = b""  # of a frame that one scan can hold
    for marker, at, end in metadata.segments(data):
        found.parts += first > 0
        if marker == 0xD9:
            last = end
            break
        if marker == 0xDA:
            found.scans += 1
            first = first or at - 4
            if data[at : at + 1] == components:
                break  # libjpeg takes a second scan of such a frame for an error
        elif marker in (0xC0, 0xC1):  # sequential; all other frames are progressive, lossless or rare
            components = data[at + 5 : at + 6]
        if not first and not _is_metadata(marker, data[at:end]):
            kept.append(data[at - 4 : end])
    if first:
        found.data = b"".join([*kept, memoryview(data)[first:last]])
    return found


def _is_metadata(marker: int, segment: bytes) -> bool:
    if marker == 0xE0:
        return segment[:5] != b"JFIF\0" or len(segment) < 14
    if marker == 0xEE:
        return segment[:5] != b"Adobe" or len(segment) < 12
    return 0xE1 <= marker <= 0xEF or marker == 0xFE


def _png(data: bytes) -> bytes:
    """Header, palette, transparency and pixels; of an animation the picture that all programs show."""
    view, colour, pixels = memoryview(data), -1, False
    kept: list[bytes | memoryview] = [data[:8]]
    for name, at, end in metadata.chunks(data):
        if name == b"IHDR":
            colour = data[at + 9]
        needed = name in (b"IHDR", b"IDAT", b"IEND") or (name == b"PLTE" and colour == 3)
        if needed or (name == b"tRNS" and _is_transparency(data, at, end, colour)):
            kept.append(view[at - 8 : end + 4])
        pixels |= name == b"IDAT"
    return b"".join(kept) if pixels else data


def _is_transparency(data: bytes, at: int, end: int, colour: int) -> bool:
    """Whether a chunk says which colours are transparent; a damaged one is left out, as libpng does."""
    if not metadata.is_sound(data, at, end):
        return False
    return 0 < end - at <= 256 if colour == 3 else end - at >= _TRANSPARENT.get(colour, 1 << 32)


def _webp(data: bytes) -> bytes:
    """The first frame, and what says how it is shown. The file's stated size is not believed."""
    kept: list[bytes] = []
    for name, at, end in metadata.riff_chunks(data):
        if end > len(data):
            break
        if name in (b"VP8X", b"ANIM", b"ALPH", b"ANMF", b"VP8 ", b"VP8L"):
            kept += [data[at - 8 : end], bytes((end - at) % 2)]
        if name in (b"ANMF", b"VP8 ", b"VP8L"):
            return b"RIFF" + struct.pack("<L", 4 + sum(map(len, kept))) + b"WEBP" + b"".join(kept)
    return data


def _gif(data: bytes) -> bytes:
    """The first frame, and what says which of its colours is transparent."""
    kept, at = [], 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept.append(data[:at])
    while data[at] in (0x21, 0x2C):
        start, frame = at, data[at] == 0x2C
        at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0) if frame else 2
        while data[at]:
            at += 1 + data[at]
        at += 1
        if frame:
            return b"".join([*kept, data[start:at], b";"])
        if data[start : start + 3] == b"!\xf9\4":
            kept.append(data[start:at])
    return data


def _tiff(data: bytes) -> bytes:
    """The first page, with a directory that lacks the other tags, in its place."""
    at, width, offset, entries = metadata.directory(data)
    raw = [data[at + n * width : at + (n + 1) * width] for n in range(entries)]
    order: Literal["big", "little"] = "big" if data[:1] == b"M" else "little"
    kept = [entry for entry in raw if int.from_bytes(entry[:2], order) not in _TIFF_METADATA]
    following = at + entries * width
    if following + offset > len(data) or (len(kept) == entries and not any(data[following : following + offset])):
        return data
    counted = at - (8 if offset == 8 else 2)
    patched = bytearray(data)
    patched[counted:at] = len(kept).to_bytes(at - counted, order)
    patched[at : following + offset] = b"".join(kept).ljust(following + offset - at, b"\0")
    return bytes(patched)


def _jpeg2000(data: bytes) -> bytes:
    """Without the resolution among the header's boxes."""
    patched = bytearray(data)
    for name, start, end in metadata.boxes(data, 0, len(data)):
        if name == b"jp2h":
            for inner, at, _ in metadata.boxes(data, start, end):
                if inner == b"res ":
                    patched[at - 4 : at] = b"skip"
    return bytes(patched)


def _heif(data: bytes) -> bytes:
    """With items of EXIF and XMP that nothing says the meaning of, and that belong to no picture."""
    patched = bytearray(data)
    for name, start, end in metadata.boxes(data, 0, len(data)):
        if name != b"meta":
            continue
        for inner, first, last in metadata.boxes(data, start + 4, end):
            if inner == b"iinf":
                for at, _, _ in metadata.item_kinds(data, first, last):
                    if data[at : at + 4] in (b"Exif", b"mime"):
                        patched[at : at + 4] = b"skip"
            elif inner == b"iref":
                for kind, at, _ in metadata.boxes(data, first + 4, last):
                    if kind == b"cdsc":
                        patched[at - 4 : at] = b"skip"
    return bytes(patched)
