"""What a file says of its own origin. It is shown beside the score and never mixed into it.

Everything is found by walking the file's structure (`components.metadata`): words in the pixels, in a comment or
after the end of the file change nothing. It can all be forged, but for a trusted signature, and what is missing proves
nothing.
"""

from collections.abc import Callable
from typing import Any

from components import metadata
from components.serve.provenance import aigc, credentials, generators, source_types, xmp
from components.serve.provenance.text import clean, decoded, packed_text, user_comment, why

NOTE = (
    "This is what the file says of itself. Metadata can be forged or removed, and what is missing proves nothing; "
    "it does not change the score."
)
NOTHING = (
    "This file says nothing of its origin. That proves nothing: metadata is lost whenever a picture is re-saved or "
    "sent through most apps."
)

_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _EXIF_IFD = 270, 271, 272, 305, 0x8769
_TAKEN, _MAKER_NOTE, _COMMENT, _LENS = 0x9003, 0x927C, 0x9286, 0xA434
_PROGRAM, _VERSION, _CREDIT = 65, 70, 110  # IPTC-IIM, record 2


def read(data: bytes) -> dict[str, Any]:
    """Read an image file's metadata. Never raises, whatever the bytes are and whichever reader is missing or breaks.

    Args:
        data: a whole file.

    Returns:
        `note`, which says what this is worth and which readers failed, and of these what is there: `c2pa` (see
        `credentials.read`), `generator` (see `generators.read`), `digital_source_type` (`term` of the IPTC's
        vocabulary and its `meaning`; where a file has several, all of them are `digital_source_types`), `aigc` (see
        `aigc.read`), `camera` (`make`, `model`, `lens`, `taken`), `software`, `credit`. Texts are short and free of
        control characters; the whole can be written as JSON.
    """
    unread: list[str] = []

    def read_by(reader: Callable[..., Any], what: str, *given: Any) -> Any:
        """What a reader finds; one that is missing or breaks costs its own field and no other."""
        try:
            return reader(*given)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            unread.append(f"{what} ({why(error)})")

    blocks = read_by(metadata.walk, "metadata", data) or metadata.Blocks()
    exif = read_by(_exif, "EXIF", blocks.exif) or {}
    texts = read_by(packed_text, "texts", blocks.text) or {}
    properties = read_by(xmp.read, "XMP", blocks.xmp) or {}
    iptc = read_by(_iptc, "IPTC", blocks.iptc) or {}
    found: dict[str, Any] = {}
    if blocks.c2pa and (checked := read_by(credentials.read, "Content Credentials", data, blocks.format)):
        found["c2pa"] = checked
    own = [*properties.get("AIGC", "").split("\n"), texts.pop("AIGC", "")]
    others = [*map(_said, exif.items()), *(texts.get(key, "") for key in ("Comment", "Description", "parameters"))]
    label = read_by(aigc.read, "China's label", own, others)
    comment = properties.get("UserComment", "")
    if generator := read_by(generators.read, "a generator's settings", texts, exif, comment):
        found["generator"] = generator
    if kinds := read_by(_kinds, "a digital source type", properties.get("DigitalSourceType", "")):
        found["digital_source_type"] = kinds[0]
        if len(kinds) > 1:
            found["digital_source_types"] = kinds
    if label:
        found["aigc"] = label
    camera = {
        name: clean(exif[tag], 100)
        for name, tag in (("make", _MAKE), ("model", _MODEL), ("lens", _LENS), ("taken", _TAKEN))
        if tag in exif and not generators.is_settings(exif[tag])
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
    if unread:
        return {**found, "note": f"{NOTE} Not read, as its reader failed here: {', '.join(unread)}."}
    return {**found, "note": NOTE if found else NOTHING}


def _kinds(lines: str) -> list[dict[str, str]]:
    """Digital source types, one a line, each once."""
    kinds = map(source_types.explain, lines.split("\n")) if lines else ()
    return list({kind["term"]: kind for kind in kinds}.values())


def _exif(tiff: bytes) -> dict[int, bytes | int]:
    """The tags that are read here, of the first directory and the EXIF directory that it points to."""
    found = metadata.tags(tiff, {_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _EXIF_IFD, _COMMENT})
    inner = found.pop(_EXIF_IFD, None)
    if isinstance(inner, int):
        found |= metadata.tags(tiff, {_TAKEN, _MAKER_NOTE, _COMMENT, _LENS}, inner)
    return found


def _said(entry: tuple[int, bytes | int]) -> str:
    """An EXIF value as text."""
    tag, value = entry
    if not isinstance(value, bytes):
        return ""
    return user_comment(value) if tag == _COMMENT else decoded(value)


def _iptc(records: bytes) -> dict[int, str]:
    """IPTC-IIM 4.2: each data set is a marker, its record and number, a length, and text; those of record 2 count.

    Zeros between them are padding.
    """
    found: dict[int, str] = {}
    at = 0
    while at + 5 <= len(records):
        if records[at] == 0:
            at += 1
            continue
        if records[at] != 0x1C:
            break
        record, number, size = records[at + 1], records[at + 2], int.from_bytes(records[at + 3 : at + 5], "big")
        at += 5
        if size & 0x8000:  # an extended data set: so many bytes say how long it is
            width = size & 0x7FFF
            size = int.from_bytes(records[at : at + width], "big")
            at += width
        if record == 2 and number in (_PROGRAM, _VERSION, _CREDIT):
            found.setdefault(number, clean(records[at : at + size], 200))
        at += size
    return found
