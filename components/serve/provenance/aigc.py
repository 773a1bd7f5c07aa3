"""The label that China demands of pictures made by AI (GB 45438-2025, appendix E): a JSON object named `AIGC`."""

import json
from html import unescape
from typing import Any

from components.serve.provenance.text import clean

_MEANINGS = {"1": "made by AI", "2": "possibly made by AI", "3": "suspected to be made by AI"}
_FIELDS = {
    "Label": "label",
    "ContentProducer": "producer",
    "ProduceID": "produce_id",
    "ContentPropagator": "propagator",
    "PropagateID": "propagate_id",
}
_LONGEST = 16_384


def read(own: list[str], others: list[str]) -> dict[str, str]:
    """The label, wherever a file keeps it.

    Args:
        own: texts of places that are meant for it: XMP's property, a PNG's text of that name.
        others: texts that can hold anything; there the object has its name, or says who made or spread the picture.

    Returns:
        Of these what is there: `label`; its `meaning`, of 1 to 3; `producer` and `produce_id`, who made the picture
        and its number there; `propagator` and `propagate_id`, who spread it. Empty where there is no label.
    """
    for text in [*own, *others]:
        found = _parsed(text)
        label = _parsed(found["AIGC"]) if "AIGC" in found else found
        shown = {name: clean(label.get(key), 100) for key, name in _FIELDS.items()}
        shown = {name: value for name, value in shown.items() if value}
        if shown and (label is not found or text in own or {"producer", "propagator"} & shown.keys()):
            return shown | ({"meaning": _MEANINGS[shown["label"]]} if shown.get("label") in _MEANINGS else {})
    return {}


def _parsed(value: Any) -> dict[str, Any]:
    """A JSON object, which may be written as a text, escaped once or twice; empty for what is none."""
    for _ in range(3):
        if isinstance(value, dict):
            return value
        if not isinstance(value, str) or len(value) > _LONGEST:
            break
        value = value.strip("\0 \r\n\t")
        if value[:1] not in ("{", '"', "&"):
            break
        value = unescape(value) if "&quot;" in value else value
        try:
            value = json.loads(f'"{value}"' if value.startswith('{\\"') else value)
        except (ValueError, RecursionError):
            break
    return value if isinstance(value, dict) else {}
