"""The static page that judges in the browser alone, against the detector that it was exported from."""

import base64
import contextlib
import io
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import pytest
from PIL import Image

from components.serve.cascade import Cascade
from components.serve.detector import Detector
from components.serve.export import export
from components.serve.files import Files
from components.serve.reference import references
from components.stage import StageError

PHOTOS = Path(os.environ.get("TRUEFRAME_TEST_DATA", ".")) / "photos.zip"
JUDGE = """async (files) => {
    const { judge } = await import("./app.js");
    const rows = [];
    for (const data of files) {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const { label, probability, verdict, warnings } = await judge(new File([bytes], "picture"));
        rows.push({ label, probability, verdict, warnings });
    }
    return rows;
}"""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(picture: Callable[..., Image.Image]) -> list[bytes]:
    """50 files: photographs and generated pictures where they are at hand, and what is awkward to decode."""
    if PHOTOS.exists():
        with zipfile.ZipFile(PHOTOS) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            pngs = [name for name in names if name.endswith(".png")][::7][:8]
            found = [archive.read(name) for name in [*names[:: len(names) // 34][:34], *pngs]]
    else:
        found = [saved(picture(n, (300 + n, 260 + 2 * n)), "JPEG", quality=60 + n) for n in range(34)]
        found += [saved(picture(n, (180 + n, 190)), "PNG") for n in range(34, 42)]
    image = Image.open(io.BytesIO(found[0])).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        *found,
        saved(image.resize((1500, 1100)), "JPEG", quality=80, exif=turned),
        saved(image.resize((1111, 1777)), "JPEG", quality=95, subsampling=0),
        saved(image.convert("L"), "JPEG"),
        saved(image.resize((90, 120)), "PNG"),
        saved(image.resize((4000, 3000)), "JPEG", quality=75, progressive=True),
        saved(image.quantize(64), "PNG"),
        saved(image, "WEBP", lossless=True),
        saved(image, "JPEG", quality=12),
    ]


@pytest.fixture(scope="module")
def exported(small: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The page's folder, and the detector that it has to agree with."""
    folder = tmp_path_factory.mktemp("browser")
    try:
        if PHOTOS.exists():
            kept = references(fast=True)
            export([one.files for one in kept], "reference", "browser", folder)
            return folder, Cascade(kept)
        export([small], "3", "browser", folder)
    except StageError as error:
        if "runtime for the browser" in str(error):
            pytest.skip(str(error))
        raise
    return folder, small.load("3")


@contextlib.contextmanager
def visit(folder: Path, browser: Any) -> Iterator[Any]:
    """The page in a browser."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context(viewport={"width": 390, "height": 800})
        context.set_default_timeout(240_000)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        page.wait_for_selector("#file:enabled", state="attached")
        yield page
        context.close()
        server.shutdown()


@pytest.fixture(scope="module")
def opened(exported: tuple[Path, Detector], browser: Any) -> Iterator[Any]:
    with visit(exported[0], browser) as page:
        yield page


def test_it_answers_as_the_server_does(exported: tuple[Path, Detector], opened: Any, pictures: list[bytes]) -> None:
    assert len(pictures) == 50
    agree(exported[1], opened, pictures)


def test_views_that_are_saved_by_themselves_are_so_in_the_browser_too(
    exported: tuple[Path, Detector], browser: Any, pictures: list[bytes], tmp_path: Path
) -> None:
    members = [detectors.member(detectors.cnn(24), view, view) for view in ("cover-24", "crop-24x2")]
    equalise = {"size": "view", "side": 160, "quality": 70}
    files = detectors.write(tmp_path / "files", *members, card="# two\n\nTwo.\n", equalise=equalise)
    export([files], "3", "onnx", tmp_path / "page")
    skipped = shutil.ignore_patterns("detector*", "model_card*")
    shutil.copytree(exported[0], tmp_path / "page", ignore=skipped, dirs_exist_ok=True)
    with visit(tmp_path / "page", browser) as page:
        agree(files.load("3"), page, pictures[30:])


def agree(detector: Any, opened: Any, pictures: list[bytes]) -> None:
    theirs = detector.score(pictures)
    own = opened.evaluate(JUDGE, [base64.b64encode(data).decode() for data in pictures])
    differences = np.abs([a["probability"] - b["probability"] for a, b in zip(own, theirs, strict=True)])
    print(f"largest difference of {len(pictures)} probabilities: {differences.max():.2e}")
    assert differences.max() < 1e-3, np.flatnonzero(differences >= 1e-3)
    assert [row["warnings"] for row in own] == [row["warnings"] for row in theirs]
    clear = [abs(row["probability"] - row["threshold"]) > 1e-3 for row in theirs]
    assert [row["label"] for row, is_clear in zip(own, clear, strict=True) if is_clear] == [
        row["label"] for row, is_clear in zip(theirs, clear, strict=True) if is_clear
    ]


def test_a_visitor_sees_the_verdict_and_nothing_leaves(
    opened: Any, pictures: list[bytes], axe: str, tmp_path: Path
) -> None:
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    (tmp_path / "picture.jpg").write_bytes(pictures[3])
    opened.set_input_files("#file", tmp_path / "picture.jpg")
    opened.wait_for_selector("#answer h2")
    assert opened.inner_text("#answer data").endswith("%")
    assert [url for url in asked if not url.startswith(("blob:", "data:", opened.url.rpartition("/")[0]))] == []
    assert opened.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)") == "TypeError"
    blocked = """new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective), {once: true});
        fetch("https://example.com/").catch(() => {});
    })"""
    assert opened.evaluate(blocked) == "connect-src"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.evaluate(axe)
    found = opened.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_what_is_no_picture_is_said_in_words(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    opened.set_input_files("#file", tmp_path / "text.jpg")
    opened.wait_for_selector("#answer .problem:has-text('no picture that the browser can read')")
