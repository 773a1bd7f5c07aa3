"""Properties of an XMP packet (ISO 16684-1), without anything that XML could be made to do."""

from contextlib import suppress
from xml.parsers import expat

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_WANTED = {
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType": "DigitalSourceType",
    "http://ns.adobe.com/xap/1.0/ CreatorTool": "CreatorTool",
    "http://ns.adobe.com/photoshop/1.0/ Credit": "Credit",
    "http://ns.adobe.com/exif/1.0/ UserComment": "UserComment",
    "http://www.tc260.org.cn/ns/AIGC/1.0/ AIGC": "AIGC",
}
_DEEPEST = 64
_LONGEST = 16_384
_MOST_VALUES = 16


class _Refused(Exception):
    """A packet that XMP doesn't allow."""


def read(packet: bytes) -> dict[str, str]:
    """Properties of the picture itself: `DigitalSourceType`, `CreatorTool`, `Credit`, `UserComment` and `AIGC`, where
    they are there. Of one that has several values each is a line.

    Those of ingredients and of steps in its history don't count. A packet with a document type, and with it entities,
    is not read; of a damaged one what comes before the damage.
    """
    found: dict[str, list[str]] = {}
    path: list[str] = []

    def add(key: str, value: str) -> None:
        values = found.setdefault(_WANTED[key], [])
        if len(values) < _MOST_VALUES:
            values.append(value[:_LONGEST])

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if len(path) > _DEEPEST:
            raise _Refused
        if _describes(path):
            for key in attributes.keys() & _WANTED.keys():
                add(key, attributes[key])
        elif key := _property(path):
            add(key, attributes.get(_RDF + "resource", ""))

    def text(characters: str) -> None:
        if key := _property(path):
            values = found[_WANTED[key]]
            values[-1] += characters[: max(0, _LONGEST - len(values[-1]))]

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
    said = {key: dict.fromkeys(" ".join(value.split()) for value in values) for key, values in found.items()}
    return {key: "\n".join(filter(None, values)) for key, values in said.items() if any(values)}


def _property(path: list[str]) -> str:
    """The wanted property whose value an element is: itself, or an item of its list; empty for none."""
    return next(
        (path[-n] for n in (1, 3) if len(path) > n and path[-n] in _WANTED and _describes(path[:-n])),
        "",
    )


def _describes(path: list[str]) -> bool:
    """Whether this is the element that describes the picture: rdf:Description in rdf:RDF, at the top."""
    return len(path) in (2, 3) and path[-1] == _RDF + "Description" and path[-2] == _RDF + "RDF"
