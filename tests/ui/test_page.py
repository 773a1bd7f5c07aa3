"""The web page in a browser, as a visitor uses it."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components import shards
from components.ingest import Outcome, ingest
from components.params import Ingest, Source
from components.serve import page
from components.serve.files import Files
from components.serve.page import Limits
from components.serve.page.about import About
from flows import links

pytest.importorskip("gradio", reason="gradio is not installed")
PATIENCE = 240_000  # ms; a busy machine is no failure


@dataclass
class Visit:
    """An open page, and where its corrections go."""

    page: Any
    url: str
    feedback: Path
    asked: list[str]

    def give(self, *files: Path | dict[str, Any]) -> None:
        self.page.set_input_files("#picture input[type=file]", files[0])

    def wait(self, selector: str, **how: Any) -> Any:
        return self.page.wait_for_selector(selector, **how)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in (1, 2):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed, (300, 200)))
    (folder / "broken.jpg").write_bytes(jpeg(1, (300, 200))[:500])
    (folder / "text.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def site(small: Files, served: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    feedback = tmp_path_factory.mktemp("reports")
    about = About.of("trueframe version 3", (small, small.load("3")))
    app = page.build(
        lambda: about,
        partial(links.fetch, private=True),
        feedback=feedback,
        trusted=True,
        limits=Limits(max_bytes=2**20, batch=3),
    )
    with served(app) as url:
        yield url, feedback


@pytest.fixture
def visit(browser: Any, site: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1100, "height": 900}}))
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(site[0])
    opened.wait_for_selector("#picture input[type=file]", state="attached")
    yield Visit(opened, *site, asked)
    context.close()


@pytest.fixture
def web(pictures: Path) -> Iterator[str]:
    """The pictures on a server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(pictures))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def violations(opened: Any, axe: str) -> list[str]:
    """Of the rules of axe-core, the serious ones."""
    opened.evaluate(axe)
    found = opened.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def test_an_upload_gets_a_verdict_with_all_that_belongs_to_it(
    visit: Visit, pictures: Path, small: Files, axe: str, tmp_path: Path
) -> None:
    data = (pictures / "1.jpg").read_bytes()
    (row,) = small.load("3").score([data])
    visit.give(pictures / "1.jpg")
    assert visit.wait("#verdict h2").inner_text() in ("Probably AI-generated", "Probably not AI-generated", "Uncertain")
    said = visit.page.inner_text("#verdict")
    assert f"Probability that it is AI-generated: {row['probability']:.0%}" in said
    assert "1.jpg" in said and "trueframe version 3" in said
    scale = visit.page.get_attribute("#verdict .scale", "aria-label")
    assert "Below 40%" in scale and "from 60% on" in scale

    # What takes longer: the heatmap behind its switch, re-saves, the report.
    visit.wait("#evidence")
    assert visit.page.is_visible("#shown img.plain") and not visit.page.is_visible("#shown img.heat")
    visit.page.focus("#evidence")
    visit.page.keyboard.press("Space")
    assert visit.page.is_visible("#shown img.heat") and not visit.page.is_visible("#shown img.plain")
    heat = visit.page.get_attribute("#shown img.heat", "src").partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(heat))).size[0] >= 16
    visit.wait("#resaves table")
    assert [row.inner_text().split("\t")[0] for row in visit.page.query_selector_all("#resaves tbody tr")] == [
        "saved as JPEG 75",
        "saved as JPEG 50",
        "half the size",
        "cropped to three quarters",
        "screenshot at 80%",
    ]
    assert "says nothing of its origin" in visit.page.inner_text("#provenance")
    errors = visit.page.inner_text("#errors")
    assert "14% of the real ones for AI and 16% of the AI-generated ones for real" in errors
    assert "re-saved at quality 95" in errors and "art: 241 real and 309 AI-generated" in errors
    assert violations(visit.page, axe) == []

    with visit.page.expect_download() as download:
        visit.page.click("#report")
    download.value.save_as(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    visit.page.click("#share")
    link = visit.wait("#shared a").get_attribute("href")
    answer = visit.page.request.get(f"{visit.url}/{link}")
    assert Image.open(io.BytesIO(answer.body())).size[1] > 1000
    assert visit.page.request.get(f"{visit.url}/report/{'x' * 22}").status == 404

    assert [url for url in visit.asked if not url.startswith((visit.url, "data:", "blob:"))] == []


def test_what_is_pasted_is_judged(visit: Visit, pictures: Path) -> None:
    data = base64.b64encode((pictures / "2.jpg").read_bytes()).decode()
    visit.page.evaluate(
        """(data) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "pasted.jpg",
                                        {type: "image/jpeg"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
        }""",
        data,
    )
    visit.wait("#verdict h2")
    assert "pasted.jpg" in visit.page.inner_text("#verdict")


def test_a_link_is_followed_and_a_bad_file_said_in_words(visit: Visit, pictures: Path, web: str) -> None:
    visit.page.fill("#link input, #link textarea", f"{web}/2.jpg")
    visit.page.click("#get")
    visit.wait("#verdict h2")
    assert f"{web}/2.jpg" in visit.page.inner_text("#verdict")
    visit.page.fill("#link input, #link textarea", f"{web}/text.txt")
    visit.page.keyboard.press("Enter")
    visit.wait("#verdict .problem:has-text('not to a picture')")
    visit.page.fill("#link input, #link textarea", "not a url")
    visit.page.keyboard.press("Enter")
    visit.wait("#verdict .problem:has-text('no link (http')")
    visit.give(pictures / "broken.jpg")
    visit.wait("#verdict .problem:has-text('damaged')")
    assert not visit.page.is_visible("#more")
    visit.give(pictures / "text.txt")
    visit.wait("#verdict .problem:has-text('not an image')")


def test_a_file_above_the_limit_is_refused(visit: Visit) -> None:
    visit.give({"name": "large.png", "mimeType": "image/png", "buffer": bytes(2**20 + 1)})
    visit.wait("text=/maximum|exceeds|too large/i")
    assert not visit.page.query_selector("#verdict h2")


def test_a_correction_becomes_data_of_the_next_run(visit: Visit, pictures: Path, tmp_path: Path) -> None:
    visit.give(pictures / "1.jpg")
    visit.wait("#resaves table")
    visit.page.click("#wrong button")
    visit.page.click("#send")
    visit.wait("#thanks .problem:has-text('Say what it really is')")
    visit.page.check("#truth input[value=ai]")
    visit.page.click("#send")
    visit.wait("#thanks .problem:has-text('consent')")
    assert list(visit.feedback.iterdir()) == []
    visit.page.check("#consent input")
    visit.page.click("#send")
    visit.wait("#thanks :text('Thank you')")
    image, said = sorted(path for path in visit.feedback.iterdir() if path.name != ".lock")
    assert image.read_bytes() == (pictures / "1.jpg").read_bytes()
    assert json.loads(said.read_text())["label"] == "ai"

    source = Source.model_validate({"from": f"feedback:{visit.feedback}"})
    section = Ingest.model_validate({"sources": {"reports": {}}})
    assert ingest("reports", source, section, tmp_path / "data", tmp_path / "receipts") == Outcome(added=1)
    rows = shards.manifest(shards.paths(tmp_path / "data", ["reports"]))
    assert rows["label"].tolist() == ["ai"]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_correction_that_came_by_way_of_a_proxy_waits(
    browser: Any, site: Any, jpeg: Callable[..., bytes], header: str
) -> None:
    url, feedback = site
    value = "for=203.0.113.9" if header == "Forwarded" else "203.0.113.9"
    data = jpeg({"X-Forwarded-For": 11, "Forwarded": 12, "X-Real-IP": 13}[header], (300, 200))
    context = browser.new_context(extra_http_headers={header: value})
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    opened.goto(url)
    opened.wait_for_selector("#picture input[type=file]", state="attached")
    opened.set_input_files("#picture input[type=file]", {"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": data})
    opened.wait_for_selector("#resaves table")
    opened.click("#wrong button")
    opened.check("#truth input[value=ai]")
    opened.check("#consent input")
    opened.click("#send")
    opened.wait_for_selector("#thanks :text('until somebody has looked')")
    context.close()
    said = feedback / f"{hashlib.sha256(data).hexdigest()}.json"
    assert json.loads(said.read_text())["status"] == "pending"


def test_several_files_become_a_table(visit: Visit, pictures: Path, tmp_path: Path) -> None:
    visit.page.click("button[role=tab]:has-text('Several')")
    files = [pictures / name for name in ("1.jpg", "broken.jpg", "2.jpg")]
    visit.page.set_input_files("#several input[type=file]", files)
    visit.wait("#table table")
    assert [row.inner_text().split("\t")[0] for row in visit.page.query_selector_all("#table tbody tr")] == [
        "1.jpg",
        "broken.jpg",
        "2.jpg",
    ]
    with visit.page.expect_download() as download:
        visit.page.click("#csv")
    download.value.save_as(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines()[0].startswith("path,label,probability,verdict")
    visit.page.set_input_files("#several input[type=file]", [*files, pictures / "text.txt"])
    visit.wait("#table .problem:has-text('4 files; 3 at once')")


@pytest.mark.parametrize(
    "visit", [{"viewport": {"width": 375, "height": 740}, "color_scheme": "dark", "has_touch": True}], indirect=True
)
def test_it_fits_a_phone_in_the_dark(visit: Visit, pictures: Path, axe: str) -> None:
    visit.give(pictures / "1.jpg")
    visit.wait("#evidence")
    visit.wait("#resaves table")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
    shown = visit.page.query_selector("#shown").bounding_box()
    assert shown["width"] > 250
    red, green, blue = visit.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    )
    assert max(red, green, blue) < 80
    assert violations(visit.page, axe) == []


def test_it_offers_no_correction_where_none_is_wanted(
    browser: Any, small: Files, served: Callable[[Any], Any], pictures: Path
) -> None:
    about = About.of("version 3", (small, small.load("3")))
    app = page.build(lambda: about, links.fetch)
    with served(app) as url:
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        opened = context.new_page()
        opened.goto(url)
        opened.wait_for_selector("#picture input[type=file]", state="attached")
        opened.set_input_files("#picture input[type=file]", pictures / "1.jpg")
        opened.wait_for_selector("#verdict h2")
        assert opened.query_selector("#wrong") is None
        # A link to this machine is refused.
        opened.fill("#link input, #link textarea", f"{url}/favicon.ico")
        opened.click("#get")
        opened.wait_for_selector("#verdict .problem:has-text('no public address')")
        context.close()
