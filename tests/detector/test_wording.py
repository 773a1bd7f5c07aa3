"""What a verdict promises in words, by what was measured."""

from typing import Any

import pytest

from components.detector.wording import sentence, words

SHARES = {"ai": 0.05, "uncertain": 0.2, "real": 0.75}


def measured(missed: float) -> dict[str, Any]:
    ai = {"ai": 0.9 - missed, "uncertain": 0.1, "real": missed}
    return {"left_out": {"n": 1234, "verdicts": {"ai": ai, "real": SHARES}}}


@pytest.mark.parametrize(
    ("about", "real"),
    [
        (measured(0.2), "probably not AI-generated"),
        (measured(0.21), "no sign of generation found"),
        ({"left_out": None}, "no sign of generation found"),
        ({}, "no sign of generation found"),  # of an older detector
    ],
)
def test_real_promises_no_more_than_was_measured(about: dict[str, Any], real: str) -> None:
    assert words(about) == {"ai": "probably AI-generated", "real": real, "uncertain": "uncertain"}


def test_how_often_it_is_wrong_elsewhere_is_said_or_that_nobody_knows() -> None:
    assert sentence(measured(0.3)) == (
        "Of 100 real pictures of collections that it never saw, it calls 5 AI-generated and is uncertain about 20; of "
        "100 generated ones it finds 60, is uncertain about 10 and calls 30 real (1,234 pictures)."
    )
    assert "not measured" in sentence({})
