"""What the page and the report say of a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectors

from components import integrity
from components.serve.files import Files
from components.serve.page import judged as parts
from components.serve.page import report
from components.serve.page.about import About
from components.serve.page.judged import Judged
from components.serve.reference import references

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


def test_who_answered_is_named_and_how_often_that_one_is_wrong(
    small: Files, jpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    """On the page, in the report, in its table; a re-save is judged by the same detector."""
    card = small.card.read_text()
    fitted = {key: small.fitted[key] for key in ("threshold", "equalise")}
    other = card.replace("0.8587", "0.6000").replace("| art |", "| sea |")
    sides = {"min_side": 140, "max_side": None}
    detectors.write(tmp_path / "models/large", card=other, scope=sides, **fitted, low=0.05)
    integrity.write(tmp_path / "models/large")
    own = detectors.write(tmp_path / "own", card=card, scope={"min_side": 32, "max_side": 128}, **fitted)
    about = About.of("trueframe version 3", (own, own.load("3")), references(tmp_path / "models"))
    assert about.name == "trueframe version 3"
    assert about.introduction() == (
        "Trueframe version 3 answers for pictures like those that it was judged on (32 to 128 px), for others a "
        "reference detector."
    )
    tab = about.html()
    assert tab.index("<h2>Trueframe version 3</h2>") < tab.index("<h2>The reference detector large</h2>")
    judged = {}
    for name, size in (("little", (64, 48)), ("large", (300, 200))):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(jpeg(1, size))
        judged[name] = parts.judge(about, path.name, path)
    little, large = judged["little"], judged["large"]
    assert little.row["model_version"] == "3" and "Answered by trueframe version 3." in parts.verdict_html(little)
    assert "14% of the real ones" in parts.errors_html(little) and "art:" in parts.errors_html(little)
    assert large.row["model_version"] == "reference-large" and large.row["warnings"] == []
    assert (
        "Answered by the reference detector large, since trueframe version 3 was judged on pictures of 32 to 128 px, "
        "and this one is of another size or unlike those."
    ) in parts.verdict_html(large)
    assert "Below 5% the verdict" in parts.verdict_html(large) and "Below 40%" in parts.verdict_html(little)
    assert "40% of the real ones" in parts.errors_html(large) and "sea:" in parts.errors_html(large)
    parts.resave(large)  # at half its size the other one would answer
    assert {row["model_version"] for _, row in large.resaves} == {"reference-large"}
    parts.explain(large)
    assert large.heatmap and report.draw(large, "pdf").startswith(b"%PDF")
    alone = About.of("the reference detector", None, references(tmp_path / "models"))
    assert (alone.name, alone.introduction()) == ("the reference detector", "The reference detector answers.")


def test_errors_name_the_nearest_tier(small: Files) -> None:
    part = About.of("version 3", (small, None)).own
    assert "re-saved at quality 50 it judges 71% rightly" in " ".join(part.errors(60))
    assert "re-saved" not in " ".join(part.errors(None))
    assert part.card.trained_on() == "art: 241 real and 309 AI-generated pictures"
