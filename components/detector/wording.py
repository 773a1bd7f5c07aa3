"""What a verdict is in words, which promise no more than was measured."""

from collections.abc import Mapping
from typing import Any

_MISSED = 0.2
_NOTHING = "no sign of generation found"


def words(about: Mapping[str, Any]) -> dict[str, str]:
    """By verdict.

    `real` says that a picture is probably not AI-generated only where, of the generated pictures of collections that
    the detector never saw, at most one in five was called so. Where more were, or nobody measured it, it says what it
    is: no sign of generation was found.

    Args:
        about: what the detector's file says of itself (see `components.detector.build.finished`).
    """
    measured = about.get("left_out")
    may_promise = measured and measured["verdicts"]["ai"]["real"] <= _MISSED
    real = "probably not AI-generated" if may_promise else _NOTHING
    return {"ai": "probably AI-generated", "real": real, "uncertain": "uncertain"}


def sentence(about: Mapping[str, Any]) -> str:
    """What to expect of it on pictures from elsewhere: how often it is wrong there, or that nobody measured it."""
    found = about.get("left_out")
    if not found:
        return "How often it is wrong on pictures from elsewhere was not measured; as a rule that is much more often."
    ai, real = (
        {verdict: f"{100 * share:.0f}" for verdict, share in found["verdicts"][label].items()}
        for label in ("ai", "real")
    )
    return (
        f"Of 100 real pictures of collections that it never saw, it calls {real['ai']} AI-generated and is uncertain "
        f"about {real['uncertain']}; of 100 generated ones it finds {ai['ai']}, is uncertain about {ai['uncertain']} "
        f"and calls {ai['real']} real ({found['n']:,} pictures)."
    )
