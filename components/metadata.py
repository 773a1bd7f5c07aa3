"""Where an image file keeps its metadata: the file's own structure, walked segment by segment, chunk by chunk.

What lies in pixels, in comments, in a segment of another kind or after the end of the file is not found, since nothing
is searched for. A walk reads headers only, takes time linear in the file's size at most, and never raises: a damaged
file has the metadata that comes before the damage.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification part 3, JPEG 2000
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # C2PA specification, embedding into BMFF
_C2PA_JUMBF = bytes.fromhex("6332706100110010800000aa00389b71")  # C2PA specification, JUMBF type of a store
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # of TIFF's types
_MOST = 1 << 20  # bytes of one block, of a PNG's text unpacked
_MOST_ICC = 1 << 22  # bytes of a PNG's colour profile, unpacked; printers' profiles have two or three million
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of those without content the end of the image alone
_RESOURCES = (b"8BIM", b"8B64", b"AgHg", b"DCSR", b"MeSa", b"PHUT")  # signatures that Photoshop's resources have


@dataclass
class Blocks:
    """A file's metadata, each kind as raw bytes; empty where there is none.

    Attributes:
        format: media type by the first bytes, empty for what is no image that is known here.
        exif: a TIFF stream; a TIFF file's is the file itself.
        xmp: an XMP packet, XML.
        icc: a colour profile.
        iptc: records of IPTC-IIM.
        text: a PNG's text chunks as (chunk's name, content), packed as they are (see `unpacked`).
        c2pa: whether there is a C2PA manifest store.
        claimed: bytes of all items, as a HEIF or AVIF file states them; they may overlap.
        parts: how many segments, chunks, boxes or blocks were walked.
        copied: bytes that are copied by who glues a GIF's comments together piece by piece.
    """

    format: str = ""
    exif: bytes = b""
    xmp: bytes = b""
    icc: bytes = b""
    iptc: bytes = b""
    text: list[tuple[bytes, bytes]] = field(default_factory=list)
    c2pa: bool = False
    claimed: int = 0
    parts: int = 0
    copied: int = 0


def walk(data: bytes) -> Blocks:
    """Find a file's metadata (see `Blocks`). Blocks of more than 1 MiB are left out, EXIF excepted."""
    found = Blocks()
    try:
        if data[:3] == b"\xff\xd8\xff":
            found.format = "image/jpeg"
            _jpeg(data, found)
        elif data[:8] == PNG:
            found.format = "image/png"
            _png(data, found)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found.format = "image/webp"
            _webp(data, found)
        elif data[:6] in (b"GIF87a", b"GIF89a"):
            found.format = "image/gif"
            _gif(data, found)
        elif data[:4] in TIFF:
            found.format = "image/tiff"
            _tiff(data, found)
        elif data[4:8] == b"ftyp":
            found.format = "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
            _bmff(data, found)
        elif data[4:12] == b"jP  \r\n\x87\n":
            found.format = "image/jp2"
            _bmff(data, found)
    except (struct.error, IndexError):  # the file ends where something should be
        pass
    return found


def tags(tiff: bytes, wanted: set[int], ifd: int | None = None) -> dict[int, bytes | int]:
    """Values of some tags of a TIFF directory.

    Args:
        tiff: of an EXIF block, or a TIFF file.
        wanted: numbers of tags.
        ifd: where the directory begins; null is the first one.

    Returns:
        Of the tags that are there a number, for a single SHORT or LONG, or the raw bytes, of at most 1 MiB.
    """
    found: dict[int, bytes | int] = {}
    try:
        for tag, kind, count, at in _entries(tiff, ifd):
            size = count * _SIZES.get(kind, 0)
            if tag not in wanted or not 0 < size <= _MOST or at + size > len(tiff):
                continue
            value = tiff[at : at + size]
            if count == 1 and kind in (3, 4, 13, 16):
                found[tag] = int.from_bytes(value, "big" if tiff[:1] == b"M" else "little")
            else:
                found[tag] = value
    except struct.error:
        pass
    return found


def overlaps(tiff: bytes) -> bool:
    """Whether the first directory's values claim far more bytes than there are, so that reading them all is a bomb."""
    claimed = 0
    try:
        for _, kind, count, at in _entries(tiff, None):
            size = count * _SIZES.get(kind, 0)
            claimed += size if at + size <= len(tiff) else 0
    except struct.error:
        pass
    return claimed > 4 * len(tiff)


def directory(tiff: bytes, ifd: int | None = None) -> tuple[int, int, int, int]:
    """Where a directory's entries begin, the width of one, that of an offset, and how many there are, all in bytes.

    Raises:
        struct.error: the file ends before.
    """
    order = ">" if tiff[:1] == b"M" else "<"
    big = tiff[2:4] in (b"+\0", b"\0+")
    if ifd is None:
        (ifd,) = struct.unpack_from(order + ("Q" if big else "L"), tiff, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), tiff, ifd)
    return (ifd + 8, 20, 8, min(count, 1 << 16)) if big else (ifd + 2, 12, 4, count)


def _entries(tiff: bytes, ifd: int | None) -> Iterator[tuple[int, int, int, int]]:
    """A directory's entries: tag, type, count, and where the value is."""
    at, width, inline, entries = directory(tiff, ifd)
    order = ">" if tiff[:1] == b"M" else "<"
    entry, offset = ("HHQ8s", "Q") if inline == 8 else ("HHL4s", "L")
    for n in range(entries):
        tag, kind, number, value = struct.unpack_from(order + entry, tiff, at + n * width)
        place = at + n * width + width - inline
        if number * _SIZES.get(kind, 0) > inline:
            (place,) = struct.unpack(order + offset, value)
        yield tag, kind, number, place


def _jpeg(data: bytes, found: Blocks) -> None:
    """ITU T.81, segments before the first scan."""
    exif: list[bytes] = []
    photoshop: list[bytes] = []
    profile: list[bytes] = []
    for marker, at, end in segments(data):
        found.parts += 1
        segment = data[at:end]
        if marker in (0xD9, 0xDA):
            break
        if marker == 0xE1 and segment[:6] == b"Exif\0\0":
            exif.append(segment[6:])
        elif marker == 0xE1 and segment.startswith(_XMP_JPEG):
            found.xmp = segment[len(_XMP_JPEG) :]
        elif marker == 0xE2 and segment[:12] == b"ICC_PROFILE\0":
            profile.append(segment[14:])
        elif marker == 0xED and segment.startswith(b"Photoshop 3.0\0"):
            photoshop.append(segment[14:])  # what is too long for one segment goes on in the next
        elif marker == 0xEB and segment[:2] == b"JP":
            # Common identifier, instance and sequence number, then a superbox and its description.
            found.c2pa |= segment[12:16] == b"jumb" and segment[20:24] == b"jumd" and segment[24:40] == _C2PA_JUMBF
    found.exif, found.icc, found.iptc = b"".join(exif), b"".join(profile), _photoshop(b"".join(photoshop))


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """A JPEG's segments, with the end of the image as the last: marker, and where the content begins and ends.

    Like every decoder this goes on at the next marker after junk, and after a scan, whose length nothing says: within
    one 0xFF is followed by 0, or it is a restart.
    """
    at = 2
    while marker := _MARKER.search(data, at):
        at = marker.end()
        kind = data[at - 1]
        if kind == 0xD9:
            yield kind, at, at
            return
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        yield kind, at + 2, end
        at = end


def _photoshop(resources: bytes) -> bytes:
    """The IPTC records among Photoshop's image resources (id 0x0404)."""
    at, records = 0, b""
    while True:
        if resources[at : at + 4] not in _RESOURCES and resources[max(0, at - 1) : at + 3] in _RESOURCES:
            at -= 1  # not every program pads what is of odd length
        if resources[at : at + 4] not in _RESOURCES:
            return records[:_MOST]
        kind, name = resources[at + 4 : at + 6], int.from_bytes(resources[at + 6 : at + 7], "big")
        at += 6 + (name + 2) // 2 * 2  # a Pascal string, padded to an even length
        size = int.from_bytes(resources[at : at + 4], "big")
        if kind == b"\x04\x04":
            records += resources[at + 4 : at + 4 + size]
        at += 4 + (size + 1) // 2 * 2


def _png(data: bytes, found: Blocks) -> None:
    """ISO/IEC 15948, chunks up to IEND."""
    for name, at, end in chunks(data):
        found.parts += 1
        content = data[at:end]
        if end + 4 > len(data):
            break
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            if end - at <= _MOST and len(found.text) < 256:
                found.text.append((name, content))
        elif name == b"eXIf" and is_sound(data, at, end):
            found.exif = content.removeprefix(b"Exif\0\0")
        elif name == b"iCCP":
            found.icc = _inflated(content.partition(b"\0")[2][1:], _MOST_ICC)
        elif name == b"caBX":
            found.c2pa = True
    last = {content.partition(b"\0")[0]: (name, content) for name, content in found.text}
    if packet := last.get(b"XML:com.adobe.xmp"):
        found.xmp = unpacked(*packet)
    # Old versions of ImageMagick write the others as text.
    if not found.exif and (lines := last.get(b"Raw profile type exif")):
        found.exif = _hexadecimal(unpacked(*lines)).removeprefix(b"Exif\0\0")
    if lines := last.get(b"Raw profile type iptc"):
        found.iptc = _photoshop(_hexadecimal(unpacked(*lines)))


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """A PNG's chunks up to IEND: name, and where the content begins and ends; after it stands a checksum.

    The last may reach beyond the file's end. What follows a name that can't be one is not followed.
    """
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8].isalnum():
        name, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        yield name, at + 8, end
        if name == b"IEND":
            return
        at = end + 4


def is_sound(data: bytes, at: int, end: int) -> bool:
    """Whether a PNG chunk's checksum fits what lies between two places."""
    return zlib.crc32(data[at - 4 : end]).to_bytes(4, "big") == data[end : end + 4]


def unpacked(name: bytes, content: bytes) -> bytes:
    """Text of a PNG chunk (`tEXt`, `zTXt` or `iTXt`); empty for what is damaged, or of more than 1 MiB."""
    text = content.partition(b"\0")[2]
    packed = name == b"zTXt"
    if packed:
        text = text[1:]  # the method, which is always deflate
    elif name == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    return _inflated(text, _MOST) if packed else text


def _inflated(packed: bytes, most: int) -> bytes:
    unpack = zlib.decompressobj()
    try:
        content = unpack.decompress(packed, most)
    except zlib.error:
        return b""
    return content if unpack.eof else b""


def _hexadecimal(lines: bytes) -> bytes:
    """What a "Raw profile" holds: a line of its name and one of its length, then its bytes as digits."""
    try:
        return bytes.fromhex(b"".join(lines.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _webp(data: bytes, found: Blocks) -> None:
    """RFC 9649, chunks within the RIFF's stated size."""
    last = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for name, at, end in riff_chunks(data):
        if end > last:
            break
        if name == b"EXIF":
            found.exif = found.exif or data[at:end].removeprefix(b"Exif\0\0")
        elif name == b"XMP " and end - at <= _MOST:
            found.xmp = found.xmp or data[at:end]
        elif name == b"ICCP":
            found.icc = found.icc or data[at:end]
        elif name == b"C2PA":
            found.c2pa = True


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Chunks of a RIFF file: name, and where the content begins and ends, which may be beyond the file's end."""
    at = 12
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, end
        at = end + end % 2


def _gif(data: bytes, found: Blocks) -> None:
    """GIF89a: application extensions up to the trailer."""
    comment = 0
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while True:
        name, picture, said = b"", data[at] == 0x2C, data[at : at + 2] == b"!\xfe"
        if picture:  # an image: its descriptor, colours, and code size
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        elif data[at] == 0x21:
            name = data[at + 3 : at + 3 + data[at + 2]] if data[at + 1] == 0xFF else b""
            at += 2
        else:
            break
        start = at + 12
        while data[at]:
            found.parts += not picture
            if said:
                comment += data[at]
                found.copied += comment
            at += 1 + data[at]
        if name == b"XMP DataXMP" and at - start <= _MOST:
            # Not cut into sub-blocks, but with a trailer (1, 255, 254, ...) that ends a reader of sub-blocks.
            found.xmp = found.xmp or data[start:at].partition(b"\x01\xff\xfe")[0]
        found.c2pa |= name == b"C2PA_GIF\x01\x00\x00"
        at += 1


def _tiff(data: bytes, found: Blocks) -> None:
    """TIFF 6.0, the first directory's tags."""
    found.exif = data
    values = {tag: value for tag, value in tags(data, {700, 33723, 34377, 34675}).items() if isinstance(value, bytes)}
    found.xmp, found.icc = values.get(700, b""), values.get(34675, b"")
    found.iptc = values.get(33723) or _photoshop(values.get(34377, b""))
    found.c2pa = any(tag == 52545 for tag, _, _, _ in _entries(data, None))


def _bmff(data: bytes, found: Blocks) -> None:
    """ISO/IEC 14496-12, boxes of the file and items of the image's `meta`; JPEG 2000 has boxes of the same kind."""
    for name, start, end in boxes(data, 0, len(data)):
        if name == b"uuid":
            kind = data[start : start + 16]
            found.c2pa |= kind == _C2PA_BOX and found.format != "image/jp2"  # which C2PA has no place for
            if kind == _XMP_BOX and end - start <= _MOST:
                found.xmp = found.xmp or data[start + 16 : end]
        elif name == b"meta" and found.format != "image/jp2":
            _items(data, start + 4, end, found)


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of ISO/IEC 14496-12 between two places: name, and where the content begins and ends."""
    while start + 8 <= end:
        (size,) = struct.unpack_from(">L", data, start)
        name, header = data[start + 4 : start + 8], 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        last = start + size if size else end
        if last > end or last < start + header:
            return
        yield name, start + header, last
        start = last


def _items(data: bytes, start: int, end: int, found: Blocks) -> None:
    """ISO/IEC 23008-12: EXIF and XMP are items, `iinf` names them and `iloc` says where they are."""
    inside: dict[bytes, tuple[int, int]] = {}
    for name, first, last in boxes(data, start, end):
        inside.setdefault(name, (first, last))
    kinds: dict[int, bytes] = {}
    if b"iinf" in inside:
        for at, stop, number in item_kinds(data, *inside[b"iinf"]):
            kind = data[at : at + 4]
            if kind == b"mime":
                kind = (data[at + 4 : min(stop, at + 300)] + b"\0").split(b"\0")[1]
            kinds[number] = kind
    if b"iloc" not in inside:
        return
    store = inside.get(b"idat", (0, 0))[0]
    for number, method, extents in _locations(data, *inside[b"iloc"]):
        found.claimed += sum(min(size, len(data)) for _, size in extents)
        wanted = kinds.get(number)
        if wanted not in (b"Exif", b"application/rdf+xml") or sum(size for _, size in extents) > _MOST:
            continue
        content = b"".join(data[at : at + size] for at, size in ((at + method * store, size) for at, size in extents))
        if wanted == b"Exif":
            # Its first four bytes say how far away the TIFF header is.
            found.exif = found.exif or content[4 + int.from_bytes(content[:4], "big") :].removeprefix(b"Exif\0\0")
        else:
            found.xmp = found.xmp or content


def item_kinds(data: bytes, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Where an `iinf` box says of what kind an item is (four bytes, and more where it is `mime`), and its number."""
    for name, at, stop in boxes(data, first + (6 if data[first] == 0 else 8), last):
        if name == b"infe" and data[at] >= 2:
            wide = 2 if data[at] == 2 else 4
            yield at + 6 + wide, stop, int.from_bytes(data[at + 4 : at + 4 + wide], "big")


def _locations(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Items of an `iloc` box: number, 0 where the file or 1 where `idat` holds it, and (start, size) of its extents."""
    version = data[at]
    widths = [n >> shift & 15 for n in data[at + 4 : at + 6] for shift in (4, 0)]
    offset, length, base, index = widths[0], widths[1], widths[2], widths[3] if version in (1, 2) else 0
    number = 4 if version == 2 else 2
    if length not in (4, 8):
        return

    def read(width: int) -> int:
        nonlocal at
        at += width
        if at > end:
            raise struct.error
        return int.from_bytes(data[at - width : at], "big")

    at += 6
    for _ in range(read(number)):
        item = read(number)
        method = read(2) & 15 if version in (1, 2) else 0
        read(2)  # in which other file; none of ours is
        start = read(base)
        extents = []
        for _ in range(read(2)):
            read(index)
            begins = start + read(offset)
            extents.append((begins, read(length)))
        if method <= 1:
            yield item, method, extents
