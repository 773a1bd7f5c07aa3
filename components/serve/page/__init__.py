"""The web page: a picture in, the detector's answer in words, on one's own machine or in public.

Nothing is sent anywhere: no telemetry, no fonts or scripts from elsewhere, and a Content-Security-Policy that would
stop them. Pictures are deleted after an hour, and when the page ends.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.serve.access import BASIC, Rate, with_headers
from components.serve.page import temporary
from components.serve.page.about import About

if TYPE_CHECKING:
    from components.serve.page.reviewers import Reviewers

_ROOM = 2 * 2**30  # bytes of pictures, of reports, and of uploads that nobody asked about yet, at most
_WORDS = 2**20  # bytes of a request that brings no file
_PAUSE = 600.0  # s between two looks for files whose time is over
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
_HEADERS = [(b"content-security-policy", _CSP.encode()), *BASIC]


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        max_bytes: of a file.
        batch: files in one table.
        queue: visitors that may wait.
        at_once: pictures that are judged at the same time.
        rate: requests a minute from one address, of those that ask for work.
        keep: s until a picture is deleted.
        keep_links: s until a shared report is.
    """

    max_bytes: int = 40 * 2**20
    batch: int = 100
    queue: int = 64
    at_once: int = max(1, (os.cpu_count() or 2) // 2)
    rate: int = 300
    keep: float = 3600
    keep_links: float = 30 * 86400


def build(
    answering: Callable[[], About],
    fetch: Callable[[str, int], bytes],
    *,
    feedback: Path | None = None,
    trusted: bool = False,
    reviewers: "Reviewers | None" = None,
    links: Path | None = None,
    limits: Limits = Limits(),
) -> Any:
    """The page as an ASGI application.

    Args:
        answering: says who answers the next visitor.
        fetch: gets a link's bytes, at most so many, or raises `ImageError`; it decides which addresses may be asked.
        feedback: folder for corrections; null offers none.
        trusted: whether a visitor's correction is accepted as it comes; else it waits for a decision, and so does one
            that came by way of a proxy.
        reviewers: decide on those that wait, under `/review`; null for nobody.
        links: folder for shared reports; null for one that ends with the page.
        limits: for visitors.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from components.serve.page import blocks

    own = temporary.folder()
    shelf = Shelf(links or own / "links", limits.keep_links)
    pictures = Shelf(own / "pictures", limits.keep)

    @contextlib.asynccontextmanager
    async def lasting(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(_sweep(shelf, pictures))
        try:
            yield
        finally:
            looking.cancel()
            temporary.remove(own)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lasting)

    @app.get("/report/{name}")
    @app.get("/review/report/{name}")  # the link is relative
    def report(name: str) -> Any:
        file = shelf.find(f"{name}.png")
        if file is None:
            return PlainTextResponse("There is no such report, or not any more.", 404)
        return FileResponse(file, media_type="image/png", headers={"X-Robots-Tag": "noindex"})

    @app.get("/health")
    def health() -> Any:
        return {"status": "ok", "answers": answering().name}

    handler = blocks.Handler(answering, fetch, feedback, trusted, pictures, shelf, limits, lasts=links is not None)
    here = Path(__file__).parent

    def mount(path: str, **who: Any) -> None:
        demo = blocks.page(handler, for_reviewers=bool(who))
        demo.queue(max_size=limits.queue, api_open=False)
        gr.mount_gradio_app(
            app,
            demo,
            path=path,
            theme=blocks.theme(),
            css_paths=here / "page.css",
            head=f"<script>{(here / 'page.js').read_text()}</script>",
            max_file_size=limits.max_bytes,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=False,
            **who,
        )

    if reviewers:
        reviewers.add_door(app)
        mount("/review", auth_dependency=lambda request: reviewers.who(request.cookies))
    mount("/")
    guarded = reviewers.guard(app) if reviewers else app
    return with_headers(_within(limits, Path(gr.utils.get_upload_folder()), guarded), _HEADERS)


class Shelf:
    """A folder whose files disappear after a while, or when others need their room.

    Args:
        folder: is made.
        keep: s.
    """

    def __init__(self, folder: Path, keep: float) -> None:
        self._folder, self._keep = folder, keep
        folder.mkdir(0o700, parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> Path:
        """Keep a file; those that were kept long enough go, and of the others the oldest ones beyond the room."""
        self.sweep(len(data))
        path = self._folder / name
        path.write_bytes(data)
        return path

    def sweep(self, needed: int = 0) -> None:
        """Let files go whose time is over, and of the others the oldest ones beyond the room, less what is needed."""
        room = _ROOM - needed
        for other in sorted(self._folder.iterdir(), key=_age):
            with contextlib.suppress(FileNotFoundError):  # another visitor's picture made it go
                room -= other.stat().st_size
                if room < 0 or _age(other) > self._keep:
                    other.unlink()

    def find(self, name: str) -> Path | None:
        """A file that is still kept."""
        path = self._folder / Path(name).name
        return path if _age(path) <= self._keep else None


async def _sweep(*shelves: Shelf) -> None:
    while True:
        for shelf in shelves:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(shelf.sweep)
        await asyncio.sleep(_PAUSE)


def _age(path: Path) -> float:
    """s since a file was written; of one that is gone, more than any."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _within(limits: Limits, uploads: Path, app: Any) -> Any:
    """An ASGI application that turns those away who ask too much, and uploads while there are too many."""
    from starlette.responses import PlainTextResponse

    rate = Rate(limits.rate)

    async def within(scope: Any, receive: Any, send: Any) -> None:
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST":
            caller = (scope.get("client") or ("?",))[0]
            is_upload = scope["path"].endswith("/upload")
            most = limits.max_bytes * (limits.batch + 1) if is_upload else _WORDS
            said = dict(scope["headers"]).get(b"content-length", b"")
            if wait := rate.wait(caller):
                refusal = PlainTextResponse("Too many requests.", 429, {"Retry-After": str(round(wait + 1))})
            elif said.isdigit() and int(said) > most:
                refusal = PlainTextResponse("Too large.", 413)
            elif is_upload and _size(uploads) > _ROOM:
                refusal = PlainTextResponse("There is no room for pictures just now.", 503, {"Retry-After": "600"})
            else:
                rate.take(caller)
                receive = _up_to(most, receive)
        await (refusal or app)(scope, receive, send)

    return within


def _up_to(most: int, receive: Any) -> Any:
    """A request's body as far as that many bytes, where the request ends as if its sender had gone."""
    taken = 0

    async def bounded() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= most else {"type": "http.disconnect"}

    return bounded


def _size(folder: Path) -> int:
    """Bytes of the files in it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
