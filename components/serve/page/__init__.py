"""The web page: a picture in, the detector's answer in words, on one's own machine or in public.

Nothing is sent anywhere: no telemetry, no fonts or scripts from elsewhere, and a Content-Security-Policy that would
stop them. Pictures are deleted after an hour.
"""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.serve.page.about import About
from components.stage import StageError

_ROOM = 2 * 2**30  # bytes of pictures, and of reports, at most
_CSP = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # which Gradio's page is made of
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    )
)
_HEADERS = [
    (b"content-security-policy", _CSP.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        max_bytes: of a file.
        batch: files in one table.
        queue: visitors that may wait.
        at_once: pictures that are judged at the same time.
        keep: s until a picture is deleted.
        keep_links: s until a shared report is.
    """

    max_bytes: int = 40 * 2**20
    batch: int = 100
    queue: int = 64
    at_once: int = max(1, (os.cpu_count() or 2) // 2)
    keep: float = 3600
    keep_links: float = 30 * 86400


def build(
    detector: Any,
    about: About,
    fetch: Callable[[str, int], bytes],
    *,
    feedback: Path | None = None,
    trusted: bool = False,
    links: Path | None = None,
    limits: Limits = Limits(),
) -> Any:
    """The page as an ASGI application.

    Args:
        detector: answers (see `Detector.score`).
        about: who that is.
        fetch: gets a link's bytes, at most so many, or raises `ImageError`; it decides which addresses may be asked.
        feedback: folder for corrections; null offers none.
        trusted: whether a visitor's correction is accepted as it comes; else it waits for a decision.
        links: folder for shared reports; null for a temporary one.
        limits: for visitors.

    Raises:
        StageError: Gradio isn't installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise StageError("Gradio is not installed; `pip install 'trueframe[ui]'` (or `pip install gradio`)") from None
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from components.serve.page import blocks

    shelf = Shelf(links or Path(tempfile.mkdtemp(prefix="trueframe-links-")), limits.keep_links)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report/{name}")
    def report(name: str) -> Any:
        file = shelf.find(f"{name}.png")
        if file is None:
            return PlainTextResponse("There is no such report, or not any more.", 404)
        return FileResponse(file, media_type="image/png", headers={"X-Robots-Tag": "noindex"})

    @app.get("/health")
    def health() -> Any:
        return {"status": "ok", "answers": about.name}

    demo = blocks.page(blocks.Handler(detector, about, fetch, feedback, trusted, shelf, limits))
    demo.queue(max_size=limits.queue, api_open=False)
    here = Path(__file__).parent
    gr.mount_gradio_app(
        app,
        demo,
        path="/",
        theme=blocks.theme(),
        css_paths=here / "page.css",
        head=f"<script>{(here / 'page.js').read_text()}</script>",
        max_file_size=limits.max_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
    )
    return _with_headers(app)


class Shelf:
    """A folder whose files disappear after a while, or when others need their room.

    Args:
        folder: is made.
        keep: s.
    """

    def __init__(self, folder: Path, keep: float) -> None:
        self._folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> Path:
        """Keep a file; those that were kept long enough go, and of the others the oldest ones beyond the room."""
        room = _ROOM - len(data)
        for other in sorted(self._folder.iterdir(), key=_age):
            with contextlib.suppress(FileNotFoundError):  # another visitor's picture made it go
                room -= other.stat().st_size
                if room < 0 or _age(other) > self._keep:
                    other.unlink()
        path = self._folder / name
        path.write_bytes(data)
        return path

    def find(self, name: str) -> Path | None:
        """A file that is still kept."""
        path = self._folder / Path(name).name
        return path if _age(path) <= self._keep else None


def _age(path: Path) -> float:
    """s since a file was written; of one that is gone, more than any."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _with_headers(app: Any) -> Any:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await app(scope, receive, sending)

    return wrapped
