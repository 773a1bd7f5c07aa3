"""What the page and the report say of a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.serve.files import Files
from components.serve.page import judged as parts
from components.serve.page import report
from components.serve.page.about import About
from components.serve.page.judged import Judged

ROW: dict[str, Any] = {
    "label": "ai",
    "probability": 0.93,
    "verdict": "ai",
    "threshold": 0.45,
    "model_version": "3",
    "warnings": [],
    "error": None,
    "provenance": {
        "camera": {"make": "Make <b>", "model": "One"},
        "c2pa": {"valid": True, "signer": "Somebody", "actions": [{"action": "created", "software": "X"}]},
        "note": "It can be forged.",
    },
}


def test_provenance_is_shown_apart_and_as_text(small: Files, jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    one = Judged("a $x$ <i>.jpg", tmp_path / "a.jpg", ROW, About.of("version 3", (small, None)))
    assert dict(parts.provenance_lines(one)) == {
        "camera make": "Make <b>",
        "camera model": "One",
        "c2pa valid": "yes",
        "c2pa signer": "Somebody",
        "c2pa actions": "action: created; software: X",
    }
    html = parts.provenance_html(one)
    assert "Make &lt;b&gt;" in html and "It can be forged." in html
    verdict = parts.verdict_html(one)
    assert "Probably AI-generated" in verdict and "93%" in verdict and "&lt;i&gt;" in verdict
    assert "Somebody" not in verdict
    assert report.draw(one, "pdf").startswith(b"%PDF") and report.draw(one, "png").startswith(b"\x89PNG")


def test_without_a_verdict_the_reason_stands_there(small: Files, tmp_path: Path) -> None:
    row = ROW | {"verdict": "uncertain", "warnings": ["8 × 8 px is too small to judge"]}
    one = Judged("a", tmp_path / "a", row, About.of("version 3", (small, None)))
    assert one.verdict() == "Uncertain" and "8 × 8 px is too small to judge" in one.why()


def test_errors_name_the_nearest_tier(small: Files) -> None:
    card = About.of("version 3", (small, None)).own.card
    assert "re-saved at quality 50 it judges 71% rightly" in " ".join(card.errors(60))
    assert "re-saved" not in " ".join(card.errors(None))
    assert card.trained_on() == "art: 241 real and 309 AI-generated pictures"
