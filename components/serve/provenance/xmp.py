"""Properties of an XMP packet (ISO 16684-1), without anything that XML could be made to do."""

from contextlib import suppress
from xml.parsers import expat

KEYWORD = "XML:com.adobe.xmp"
"""Of the PNG text chunk that holds the packet."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_WANTED = {
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType": "DigitalSourceType",
    "http://ns.adobe.com/xap/1.0/ CreatorTool": "CreatorTool",
    "http://ns.adobe.com/photoshop/1.0/ Credit": "Credit",
}
_DEEPEST = 64
_LONGEST = 2_000


class _Refused(Exception):
    """A packet that XMP doesn't allow."""


def read(packet: bytes) -> dict[str, str]:
    """Properties of the picture itself: `DigitalSourceType`, `CreatorTool`, `Credit`, where they are there.

    Those of ingredients and of steps in its history don't count. A packet with a document type, and with it entities,
    is not read; of a damaged one what comes before the damage.
    """
    found: dict[str, str] = {}
    path: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if len(path) > _DEEPEST:
            raise _Refused
        if _describes(path):
            for key, value in attributes.items():
                if key in _WANTED:
                    found.setdefault(_WANTED[key], value[:_LONGEST])
        elif name in _WANTED and _describes(path[:-1]):
            found.setdefault(_WANTED[name], attributes.get(_RDF + "resource", "")[:_LONGEST])

    def text(characters: str) -> None:
        for depth in (1, 3):  # itself, or an item in a list of alternatives
            if len(path) > depth and path[-depth] in _WANTED and _describes(path[:-depth]):
                key = _WANTED[path[-depth]]
                if len(found[key]) < _LONGEST:
                    found[key] += characters[:_LONGEST]

    def refuse(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    with suppress(expat.ExpatError, _Refused, ValueError, LookupError):  # the last for an unknown encoding
        parser.Parse(packet.rstrip(b"\0 \r\n\t"), True)
    return {key: value.strip() for key, value in found.items() if value.strip()}


def _describes(path: list[str]) -> bool:
    """Whether this is the element that describes the picture: rdf:Description in rdf:RDF, at the top."""
    return len(path) in (2, 3) and path[-1] == _RDF + "Description" and path[-2] == _RDF + "RDF"
