"""The review in a browser: what a reviewer sees and does, and what everybody else doesn't."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components import reports
from components.serve import page
from components.serve.files import Files
from components.serve.page.about import About
from components.stage import StageError
from flows import links, ui

pytest.importorskip("gradio", reason="gradio is not installed")
PATIENCE = 240_000  # ms; a busy machine is no failure
KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def site(
    small: Files, served: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    from components.serve.page.reviewers import Reviewers

    folder = tmp_path_factory.mktemp("reports")
    about = About.of("version 3", (small, small.load("3")))
    people = Reviewers([f"anna:{KEY}", f"ben:{KEY}!"])
    app = page.build(lambda: about, links.fetch, feedback=folder, reviewers=people)
    with served(app) as url:
        yield url, folder


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def said(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def test_a_visitor_s_report_waits_and_the_review_is_not_for_visitors(
    site: tuple[str, Path], opened: Any, jpeg: Callable[..., bytes]
) -> None:
    url, folder = site
    opened.goto(url)
    opened.wait_for_selector("#picture input[type=file]", state="attached")
    data = {"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": jpeg(1, (300, 200))}
    opened.set_input_files("#picture input[type=file]", data)
    opened.wait_for_selector("#resaves table")
    opened.click("#wrong button")
    opened.check("#truth input[value=ai]")
    opened.fill("#note textarea, #note input", "<i>six fingers</i>")
    opened.check("#consent input")
    opened.click("#send")
    opened.wait_for_selector("#thanks :text('until somebody has looked')")
    [waiting] = reports.waiting(folder)
    assert (waiting.report.label, waiting.report.said("note")) == ("ai", "<i>six fingers</i>")
    assert waiting.report.answer in ("ai", "real") and waiting.report.said("model_version") == "3"

    assert opened.query_selector("#review") is None and "Review" not in opened.content()
    ask = opened.request
    assert ask.get(f"{url}/review/").url == f"{url}/review/key"
    assert ask.get(f"{url}/review").url == f"{url}/review/key"
    for path in ("config", "gradio_api/info", "gradio_api/startup-events", "report/x", "theme.css"):
        assert ask.get(f"{url}/review/{path}").status == 401, path
    for path in ("gradio_api/queue/join", "gradio_api/upload", "gradio_api/run/predict"):
        assert ask.post(f"{url}/review/{path}", data="{}").status == 401, path
    form = ask.get(f"{url}/review/key").headers
    assert form["cache-control"] == "no-store" and "frame-ancestors 'none'" in form["content-security-policy"]
    assert form["x-content-type-options"] == "nosniff"


def test_a_reviewer_decides_by_keyboard(
    site: tuple[str, Path], opened: Any, jpeg: Callable[..., bytes], axe: str
) -> None:
    url, folder = site
    row = {"answer": "real", "verdict": "real", "probability": 0.31, "model_version": "2", "note": "my own photograph"}
    one, other = (
        reports.store(folder, jpeg(seed, (300, 200)), "jpg", {"label": "ai", **row}, trusted=False).stem
        for seed in (2, 3)
    )
    opened.goto(f"{url}/review/")
    opened.fill("input[name=key]", "another key")
    opened.keyboard.press("Enter")
    opened.wait_for_selector(":text('This is no key.')")
    opened.fill("input[name=key]", f"anna:{KEY}")
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#waiting :text('3 reports wait')")
    [cookie] = opened.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], len(cookie["value"]) > 40) == (True, "Strict", True)

    # The oldest first, everything of it as text, the picture drawn.
    shown = opened.inner_text("#reported")
    for words in ("note\t<i>six fingers</i>", "name of the file\tdog.jpg", "reported as\tAI-generated"):
        assert words in shown
    assert opened.evaluate("document.querySelector('#reported img').naturalWidth") == 300
    opened.evaluate(axe)
    found = opened.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []

    opened.focus("#review-accept")
    opened.keyboard.press("l")  # later
    opened.wait_for_selector("#reported :text('my own photograph')")
    shown = opened.inner_text("#reported")
    assert all(words in shown for words in ("31.0%", "said\tnot AI-generated", "version\t2", "reported at\t20"))
    opened.fill("#remark textarea, #remark input", "a camera's noise")  # letters are letters there
    opened.focus("#review-accept")
    opened.keyboard.press("o")  # it is the other one
    opened.wait_for_selector("#waiting :text('2 reports wait')")
    [decided] = [name for name in (one, other) if said(folder, name)["status"] == "accepted"]
    expected = {"label": "real", "claimed": "ai", "reviewer": "anna", "remark": "a camera's noise"}
    assert expected.items() <= said(folder, decided).items()
    opened.keyboard.press("u")  # undo
    opened.wait_for_selector("#waiting :text('3 reports wait')")
    assert said(folder, decided)["status"] == "pending" and said(folder, decided)["label"] == "ai"

    # Somebody else decides while this one is being looked at.
    shown = opened.inner_text("#reported")
    [looked_at] = [name for name in (one, other) if name in shown]
    reports.decide(folder, looked_at, "reject", "ben")
    opened.keyboard.press("a")
    opened.wait_for_selector("#waiting .problem:has-text('rejected by ben')")
    assert said(folder, looked_at)["status"] == "rejected"
    for left in ("1 report waits", "No report waits"):
        opened.keyboard.press("r")
        opened.wait_for_selector(f"#waiting :text('{left}')")
    assert {one.report.status for one in reports.entries(folder)} == {"rejected"}

    opened.click("#leave button")
    opened.wait_for_selector("input[name=key]")
    assert opened.request.get(f"{url}/review/config").status == 401


def test_keys_are_not_guessed(site: tuple[str, Path], opened: Any) -> None:
    url, _ = site
    for n in range(200):  # as many as a slow machine needs to be faster than the limit
        status = opened.request.post(f"{url}/review/key", form={"key": f"guess {n}"}).status
        assert status == (401 if n < 9 else status)
        if status == 429:
            break
    assert status == 429
    assert opened.request.post(f"{url}/review/key", data=b"key=" + bytes(5000)).status in (413, 429)


def test_who_asks_too_much_waits(small: Files, served: Callable[[Any], Any], opened: Any) -> None:
    limits = page.Limits(rate=5)
    about = About.of("version 3", (small, small.load("3")))
    app = page.build(lambda: about, links.fetch, limits=limits)
    with served(app) as url:
        answers = [opened.request.post(f"{url}/gradio_api/upload") for _ in range(8)]
        assert [answer.status for answer in answers][-2:] == [429, 429]
        assert int(answers[-1].headers["retry-after"]) > 0
        assert opened.request.get(f"{url}/health").status == 200


def test_keys_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ui.reviewers() is None
    monkeypatch.setenv("TRUEFRAME_REVIEW_KEYS", "anna:short")
    with pytest.raises(StageError, match="fewer than 16 characters"):
        ui.reviewers()
    monkeypatch.setenv("TRUEFRAME_REVIEW_KEYS", "anna:" + "x" * 16)
    with pytest.raises(StageError, match="name a folder with --feedback"):
        ui.serve(None, "0.0.0.0", 1, None, ui.Limits())
