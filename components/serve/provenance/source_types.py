"""The IPTC's vocabulary of digital source types (https://cv.iptc.org/newscodes/digitalsourcetype/) in plain words."""

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

_BEGINNINGS = ("cv.iptc.org/newscodes/digitalsourcetype/", "c2pa.org/digitalsourcetype/")


def explain(uri: Any) -> dict[str, str]:
    """`term` of a digital source type, from its address or as it stands, and `meaning` where it is a known one."""
    term = clean(uri, 200)
    for beginning in _BEGINNINGS:
        term = term.removeprefix("http://").removeprefix("https://").removeprefix(beginning)
    return {"term": term} | ({"meaning": MEANINGS[term]} if term in MEANINGS else {})
