"""What is left of the page on the disk when it has ended, and what outlasts it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.serve import page
from components.serve.files import Files
from components.serve.page import Shelf, temporary
from components.serve.page.about import About
from flows import links, ui
from tests.live.harness import stop, wait_for
from tests.served import free_port

pytest.importorskip("gradio", reason="gradio is not installed")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from components.serve import page
from components.serve.files import Files
from components.serve.page.about import About
from flows import ui
files = Files.kept(Path(sys.argv[1]))
about = About.of("version 3", (files, files.load("3")))
ui.run(page.build(lambda: about, lambda *_: b""), "127.0.0.1", int(sys.argv[2]))
"""
HELD = """
from components.serve.page import temporary
print(temporary.folder(), flush=True)
input()
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and its children."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pictures_go_when_the_page_is_stopped(disk: Path, small: Files, tmp_path: Path, number: int) -> None:
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(small.card.parent), str(port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, 400)
        [folder] = disk.glob("trueframe-*")
        (folder / "pictures/left").write_bytes(b"a visitor's")
        process.send_signal(number)
        process.wait(60)
    finally:
        stop(process)
    assert list(disk.glob("*trueframe-*")) == [], (tmp_path / "log").read_text()


def test_of_a_page_that_was_killed_the_next_one_clears_away(disk: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HELD],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    (killed, left), (alive, held) = start(), start()
    (left / "picture").write_bytes(b"a visitor's")
    (disk / "trueframe-else").mkdir()
    killed.kill()
    killed.wait()
    mine = temporary.folder()
    assert sorted(disk.iterdir()) == sorted([held, mine, disk / "trueframe-else"])
    alive.communicate("\n", timeout=60)
    assert alive.returncode == 0 and not held.exists(), "one that ends by itself clears away too"
    temporary.remove(mine)


def test_shared_reports_outlast_the_page(
    disk: Path, small: Files, served: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    monkeypatch.chdir(tmp_path)
    about = About.of("version 3", (small, small.load("3")))
    monkeypatch.setattr(ui, "Answering", lambda _: lambda: about)
    shared = ui._shared()
    assert shared == Path("artifacts/links")
    with served(ui.application(shared=shared)):
        Shelf(shared, 60).put("x.png", b"a report")
        Shelf(shared, 60).put("old.png", b"an old one")
        os.utime(shared / "old.png", (time.time() - 31 * 86400,) * 2)
    assert (shared / "x.png").exists() and shared.stat().st_mode & 0o077 == 0
    with served(ui.application(shared=ui._shared())) as url:
        assert requests.get(f"{url}/report/x", timeout=60).content == b"a report"
        assert requests.get(f"{url}/report/old", timeout=60).status_code == 404
        end = time.monotonic() + 60
        while (shared / "old.png").exists():  # what is over goes, though nobody shares another one
            assert time.monotonic() < end
            time.sleep(0.1)


def test_where_nothing_lasts_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.serve.page import blocks, report

    monkeypatch.chdir(tmp_path)
    Path("artifacts").write_text("no folder")
    assert ui._shared() is None
    assert "warning: artifacts/links: " in capsys.readouterr().err
    monkeypatch.setattr(report, "draw", lambda *_: b"a report")
    for lasts in (True, False):
        shelf = Shelf(tmp_path / "shelf", 60)
        handler = blocks.Handler(Any, links.fetch, None, False, shelf, shelf, page.Limits(), lasts=lasts)  # type: ignore[arg-type]
        said = handler.share(None).value  # type: ignore[arg-type]
        assert "30 days" in said and ("until this page is started anew" in said) is not lasts
