"""The IPTC's vocabulary of digital source types (https://cv.iptc.org/newscodes/digitalsourcetype/) in plain words."""

import re
from typing import Any

from components.serve.provenance.text import clean

MEANINGS = {
    "trainedAlgorithmicMedia": "made by AI: a model that was trained on examples",
    "compositeWithTrainedAlgorithmicMedia": "put together or edited with parts that AI made",
    "algorithmicMedia": "made by a program that was not trained on examples",
    "algorithmicallyEnhanced": "a picture that a program enhanced",
    "dataDrivenMedia": "drawn by a program from data",
    "digitalCapture": "taken with a digital camera",
    "computationalCapture": "taken with a digital camera and put together from several exposures",
    "negativeFilm": "scanned from negative film",
    "positiveFilm": "scanned from slide film",
    "print": "scanned from a print",
    "humanEdits": "edited by a person",
    "minorHumanEdits": "edited by a person a little",
    "digitalCreation": "made by a person on a computer",
    "digitalArt": "made by a person on a computer",
    "softwareImage": "made by a person on a computer",
    "virtualRecording": "recorded in a virtual world",
    "screenCapture": "a picture of a screen",
    "composite": "put together from several pictures",
    "compositeCapture": "put together from several photographs",
    "compositeSynthetic": "put together from parts of which some are synthetic",
    "trainedAlgorithmicData": "data made by AI",
    "empty": "begun from nothing",
}

_VOCABULARY = re.compile(
    r"(?:(?:https?:)?//)?(?:www\.)?(?:(?:cv\.)?iptc\.org/newscodes|c2pa\.org)/digitalsourcetype[/#]|digsrctype:", re.I
)
_TERMS = {term.lower(): term for term in MEANINGS}


def explain(uri: Any) -> dict[str, str]:
    """`term` of a digital source type, and `meaning` where it is a known one.

    Args:
        uri: its address as programs write it (with or without `www.`, a slash or a language behind it, in any case),
            its QCode (`digsrctype:print`), or the term as it stands.
    """
    text = clean(uri, 200)
    begins = _VOCABULARY.match(text)
    code = re.split(r"[/?#]", text[begins.end() :])[0] if begins else text
    term = _TERMS.get(code.strip().lower(), code)
    return {"term": term} | ({"meaning": MEANINGS[term]} if term in MEANINGS else {})
