"""What a file says of its own origin. It is shown beside the score and never mixed into it.

Everything is found by walking the file's structure (`components.metadata`): words in the pixels, in a comment or
after the end of the file change nothing. It can all be forged, but for a trusted signature, and what is missing proves
nothing.
"""

from typing import Any

from components import metadata
from components.serve.provenance import credentials, generators, source_types, xmp
from components.serve.provenance.text import clean, packed_text

NOTE = (
    "This is what the file says of itself. Metadata can be forged or removed, and what is missing proves nothing; "
    "it does not change the score."
)
NOTHING = (
    "This file says nothing of its origin. That proves nothing: metadata is lost whenever a picture is re-saved or "
    "sent through most apps."
)

_MAKE, _MODEL, _SOFTWARE, _EXIF_IFD, _TAKEN, _COMMENT, _LENS = 271, 272, 305, 0x8769, 0x9003, 0x9286, 0xA434
_PROGRAM, _VERSION, _CREDIT = 65, 70, 110  # IPTC-IIM, record 2


def read(data: bytes) -> dict[str, Any]:
    """Read an image file's metadata. Never raises, whatever the bytes are.

    Args:
        data: a whole file.

    Returns:
        `note`, which says what this is worth, and of these what is there: `c2pa` (see `credentials.read`),
        `generator` (see `generators.read`), `digital_source_type` (`term` of the IPTC's vocabulary and its
        `meaning`), `camera` (`make`, `model`, `lens`, `taken`), `software`, `credit`. Texts are short and free of
        control characters; the whole can be written as JSON.
    """
    blocks = metadata.walk(data)
    exif = _exif(blocks.exif)
    texts = packed_text(blocks.text)
    properties = xmp.read(texts.pop(xmp.KEYWORD, "").encode() or blocks.xmp)
    iptc = _iptc(blocks.iptc)
    found: dict[str, Any] = {}
    if blocks.c2pa:
        found["c2pa"] = credentials.read(data, blocks.format)
    if generator := generators.read(texts, exif):
        found["generator"] = generator
    if term := properties.get("DigitalSourceType"):
        found["digital_source_type"] = source_types.explain(term)
    camera = {
        name: clean(exif[tag], 100)
        for name, tag in (("make", _MAKE), ("model", _MODEL), ("lens", _LENS), ("taken", _TAKEN))
        if tag in exif and not generators.is_workflow(exif[tag])
    }
    if camera.get("make") or camera.get("model"):
        found["camera"] = {name: value for name, value in camera.items() if value}
    program = " ".join(iptc[n] for n in (_PROGRAM, _VERSION) if n in iptc)
    for software in (exif.get(_SOFTWARE), texts.get("Software"), properties.get("CreatorTool"), program):
        if software and (said := clean(software, 100)):
            found["software"] = said
            break
    if credit := properties.get("Credit") or iptc.get(_CREDIT):
        found["credit"] = clean(credit, 200)
    return {**found, "note": NOTE if found else NOTHING}


def _exif(tiff: bytes) -> dict[int, bytes | int]:
    """The tags that are read here, of the first directory and the EXIF directory that it points to."""
    found = metadata.tags(tiff, {_MAKE, _MODEL, _SOFTWARE, _EXIF_IFD, _COMMENT})
    inner = found.pop(_EXIF_IFD, None)
    if isinstance(inner, int):
        found |= metadata.tags(tiff, {_TAKEN, _COMMENT, _LENS}, inner)
    return found


def _iptc(records: bytes) -> dict[int, str]:
    """IPTC-IIM 4.2: each data set is a marker, its record and number, a length, and text."""
    found: dict[int, str] = {}
    at = 0
    while records[at : at + 2] == b"\x1c\x02" and at + 5 <= len(records):
        number, size = records[at + 2], int.from_bytes(records[at + 3 : at + 5], "big")
        if number in (_PROGRAM, _VERSION, _CREDIT):
            found.setdefault(number, clean(records[at + 5 : at + 5 + size], 200))
        at += 5 + size
    return found
