"""How long a person waits on the page: a 12-megapixel photograph in a real browser on the same cores.

Times run from the choice of the file to what stands on the page, so they hold the upload, the browser's own work and
the server's.
"""

import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE, ROUNDS = (4000, 3000), 11
_SHOWN = {
    "the verdict": "#verdict h2",
    "where the evidence lies": "#shown .heat",
    "the five re-saves": "#resaves table",
}


def run() -> str:
    chromium = shutil.which("chromium")
    if not (chromium and find_spec("playwright") and find_spec("gradio")):
        return "Page: left out, Chromium, Playwright or Gradio is not installed\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "presets/sample.yaml", folder / "params.yaml")
        pictures = [_photograph(folder / f"{seed}.jpg", seed) for seed in range(ROUNDS)]
        megabytes = statistics.mean(picture.stat().st_size for picture in pictures) / 1e6
        with _page(folder) as url:
            times = _visit(url, pictures, chromium)
    lines = [
        f"A JPEG of {SIZE[0] * SIZE[1] / 1e6:.0f} megapixels ({megabytes:.1f} MB), judged by the reference detector",
        "",
        "| on the page, until there is | median s | longest s |",
        "|---|---|---|",
        *(f"| {what} | {statistics.median(said):.2f} | {max(said):.2f} |" for what, said in times.items()),
    ]
    return "\n".join(lines) + "\n"


def _photograph(path: Path, seed: int) -> Path:
    """Clouds of several scales, which fill a file as a photograph does."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 16, 64, 256, 1024):
        clouds = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        total += np.asarray(clouds.resize(SIZE, Image.Resampling.BICUBIC), np.float32)
    Image.fromarray((total / 5).astype(np.uint8)).save(path, "JPEG", quality=92)
    return path


@contextlib.contextmanager
def _page(folder: Path) -> Iterator[str]:
    """`trueframe ui`, ready; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        while "the page is ready" not in (said := (folder / "log").read_text()):
            if server.poll() is not None:
                raise RuntimeError(said)
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _visit(url: str, pictures: list[Path], chromium: str) -> dict[str, list[float]]:
    """Give the page one picture after the other; the first one warms everything up and doesn't count."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {what: [] for what in _SHOWN}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        for at, picture in enumerate(pictures):
            chosen = page.wait_for_selector("#picture input[type=file]", state="attached")
            assert chosen is not None
            began = time.perf_counter()
            chosen.set_input_files(picture)
            page.wait_for_selector(f"#verdict .file:text-is('{picture.name}')")
            for what, where in _SHOWN.items():
                page.wait_for_selector(where, state="attached")
                if at:
                    times[what].append(time.perf_counter() - began)
        browser.close()
    return times
