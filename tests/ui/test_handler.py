"""What the page answers where something is amiss, without a browser."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.serve import page
from components.serve.files import Files
from components.serve.page import Shelf
from components.serve.page.about import About
from components.stage import StageError

pytest.importorskip("gradio", reason="gradio is not installed")

from components import reports
from components.serve.page import blocks, judged

DIRECT: Any = SimpleNamespace(headers={"host": "127.0.0.1:7860", "user-agent": "a browser"})


@pytest.fixture
def handler(small: Files, tmp_path: Path) -> blocks.Handler:
    about = About.of("version 3", (small, small.load("3")))
    shelf = Shelf(tmp_path / "shelf", 60)
    return blocks.Handler(lambda: about, _unasked, tmp_path / "feedback", True, shelf, shelf, page.Limits())


def _unasked(url: str, most: int) -> bytes:
    raise AssertionError(f"{url} is asked")


def report(handler: blocks.Handler, data: bytes, request: Any = DIRECT) -> str:
    one = judged.judge(handler.answering(), "dog.jpg", handler.files.put("picture", data))
    return handler.correct(one, "ai", True, "", request)


@pytest.mark.parametrize("link", ["not a url", "", "hello", "example.org/a.png", "ftp://example.org/a.png", "http://"])
def test_what_is_no_link_is_said_to_be_none(handler: blocks.Handler, link: str) -> None:
    assert "that is no link (http://… or https://…)" in handler.judge_link(link)[1]


@pytest.mark.parametrize("link", ["http://[::1/a.png", "https://exa mple.org/a.png"])
def test_what_only_begins_like_a_link_is_none(handler: blocks.Handler, link: str) -> None:
    assert "that is no link" in handler.judge_link(link)[1]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        *((name, "pending") for name in ("X-Forwarded-For", "x-forwarded-host", "Forwarded", "X-Real-IP", "Via")),
        ("Accept", "accepted"),
    ],
)
def test_only_what_came_by_way_of_no_proxy_is_trusted(
    handler: blocks.Handler, header: str, status: str, jpeg: Any
) -> None:
    says = report(handler, jpeg(1), SimpleNamespace(headers={header: "x"}))
    [said] = (handler.feedback or Path()).glob("*.json")
    assert json.loads(said.read_text())["status"] == status
    assert ("until somebody has looked" in says) is (status == "pending")


@pytest.mark.parametrize(
    "failure", [StageError("feedback/stray.jpg: no stray.json beside it"), OSError(errno.ENOSPC, "disk full")]
)
def test_a_correction_that_cannot_be_stored_is_said_kindly_and_logged(
    handler: blocks.Handler,
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jpeg: Any,
) -> None:
    def store(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(reports, "store", store)
    says = report(handler, jpeg(1))
    assert "can&#x27;t be kept just now" in says and "stray" not in says and "full" not in says
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: a correction wasn't stored: {failure}"
