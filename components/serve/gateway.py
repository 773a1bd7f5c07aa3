"""What stands between callers and the detector: limits, keys, uploads, metrics, and errors in one line."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from components.params import Monitor, Serve
from components.serve import access, bodies
from components.serve.log import Log
from components.serve.queue import Options, Picture, Queue, Refused, Rows, Score

KEYS = "TRUEFRAME_API_KEYS"
METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of metrics that several processes keep, when `prometheus_client` is imported."""
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    *access.BASIC,
)
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BODIES = 8  # of the largest size, that all requests together may hold


class Gateway:
    """The application.

    Args:
        score: judges (see `Detector.score`), from several threads at once.
        version: of the champion, which it has.
        settings: the section `serve`.
        keys: of those who may ask; none for everyone.
        monitor: the section `monitor`; predictions are logged where it names a folder. Null logs none.

    Attributes:
        app: for an ASGI server.
        queue: in front of the detector.
        registry: of this process's metrics.
    """

    def __init__(
        self,
        score: Score,
        version: str,
        settings: Serve,
        keys: Sequence[str] = (),
        monitor: Monitor | None = None,
    ) -> None:
        self.version, self.settings = version, settings
        self.registry = CollectorRegistry()
        self._log = Log(monitor, self.registry) if monitor and monitor.folder else None
        self.queue = Queue(score, self.registry, settings.answer_s)
        self._keys = access.Keys(keys)
        self._rate = access.Rate(settings.rate) if settings.rate else None
        self._inside = 0
        self._held = 0
        self._headers = [*_HEADERS]
        self._measure()
        routes = [
            Route("/invocations", self._invocations, methods=["POST"]),
            Route("/v1/check", self._check, methods=["POST"]),
            Route("/health", self._ready),
            Route("/health/ready", self._ready),
            Route("/health/live", self._live),
            Route("/ping", self._ready),  # as MLflow's own server has it
            Route("/version", self._version),
            Route("/metrics", self._metrics),
        ]
        handlers: Any = {HTTPException: _plain, Exception: _unexpected}
        self.app = access.with_headers(Starlette(routes=routes, exception_handlers=handlers), self._headers)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While it works."""
        with self._log or contextlib.nullcontext():
            async with self.queue:
                yield

    def leave(self) -> None:
        """Tell each caller with its next answer to connect anew, since another process takes this one's place."""
        self._headers.append((b"connection", b"close"))

    def _measure(self) -> None:
        registry = self.registry
        self._requests = Counter("trueframe_requests", "Requests", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "trueframe_request_seconds",
            "From a request's last byte to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("trueframe_images", "Images by verdict, or `error`", ["verdict"], registry=registry)
        self._waiting = Gauge(
            "trueframe_requests_waiting",
            "Requests that are being answered",
            multiprocess_mode="livesum",
            registry=registry,
        )

    async def _invocations(self, request: Request) -> Response:
        return await self._answer(request, lambda body: bodies.from_json(request.headers, body), lambda rows, _: rows)

    async def _check(self, request: Request) -> Response:
        names: list[str | None] = []

        def read(body: bytes) -> tuple[list[bytes], Options]:
            files, options = bodies.from_files(request.headers, request.query_params, body, self.settings.max_images)
            names.extend(name for name, _ in files)
            return [data for _, data in files], options

        return await self._answer(request, read, lambda rows, at: {"file": names[at], **rows})

    async def _answer(
        self,
        request: Request,
        read: Callable[[bytes], tuple[Sequence[Picture], Options]],
        shape: Callable[[Any, int], Any],
    ) -> Response:
        """Check, read, score, count; whatever is refused is one line of JSON."""
        route = request.url.path
        try:
            caller = self._known(request)
            wait = self._rate.wait(caller) if self._rate else 0
            if wait:
                raise Refused(429, f"more than {self.settings.rate:,} images a minute", wait)
            self._room()
            with self._holding() as hold:
                images, options = read(await self._body(request, hold))
                if len(images) > self.settings.max_images:
                    raise Refused(413, f"{len(images):,} images; a request may have {self.settings.max_images:,}")
                if self._rate:
                    self._rate.take(caller, len(images))
                rows = await self._score(route, images, options)
            response = _json({"predictions": [shape(row, at) for at, row in enumerate(rows)]})
        except Refused as refused:
            response = _refusal(refused)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody is there to read it
        self._requests.labels(route, response.status_code).inc()
        return response

    async def _score(self, route: str, images: Sequence[Picture], options: Options) -> Rows:
        self._room()
        self._inside += 1
        self._waiting.inc()
        began = time.monotonic()
        try:
            rows = await self.queue.score(images, options) if images else []
        except Refused as refused:
            self._note(images, [{"error": refused.reason}] * len(images), time.monotonic() - began)
            raise
        finally:
            self._inside -= 1
            self._waiting.dec()
            self._seconds.labels(route).observe(time.monotonic() - began)
        self._note(images, rows, time.monotonic() - began)
        for row in rows:
            self._images.labels("error" if row["error"] else row["verdict"]).inc()
        return rows

    def _note(self, images: Sequence[Picture], rows: Rows, seconds: float) -> None:
        if self._log:
            self._log.add(images, rows, seconds)

    def _known(self, request: Request) -> str:
        """Who asks: a key, or an address where none is needed."""
        address = request.client.host if request.client else "?"
        if not self._keys:
            return address
        kind, _, said = request.headers.get("authorization", "").partition(" ")
        said = said if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
        found = self._keys.find(said.strip())
        if found is None:
            raise Refused(401, "an API key is needed: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return f"key {found}"

    def _room(self) -> None:
        if self._inside >= self.settings.max_requests:
            raise Refused(503, f"{self._inside} requests are being answered; try again", 1)

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes that a request holds while it is here."""
        own = 0

        def hold(n: int) -> None:
            nonlocal own
            if self._held + n > _BODIES * self.settings.max_body_mb * 2**20:
                raise Refused(503, "too much is being received; try again", 1, close=True)
            own += n
            self._held += n

        try:
            yield hold
        finally:
            self._held -= own

    async def _body(self, request: Request, hold: Callable[[int], None]) -> bytes:
        limit = self.settings.max_body_mb * 2**20
        too_large = Refused(413, f"a body may have {self.settings.max_body_mb} MiB", close=True)
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.read_s):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    hold(len(part))
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.settings.read_s:g} s", close=True) from None
        return b"".join(parts)

    async def _ready(self, _: Request) -> Response:
        return _json({"live": True, "ready": True, "model_version": self.version})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _version(self, request: Request) -> Response:
        from importlib.metadata import version

        return self._guarded(request, lambda: _json({"model_version": self.version, "trueframe": version("trueframe")}))

    async def _metrics(self, request: Request) -> Response:
        return self._guarded(
            request, lambda: Response(generate_latest(self._all()), headers={"Content-Type": CONTENT_TYPE_LATEST})
        )

    def _all(self) -> CollectorRegistry:
        """The metrics of all processes that keep them in one folder, with this one's own memory and CPU."""
        if METRICS not in os.environ:
            return self.registry
        found = CollectorRegistry()
        MultiProcessCollector(found)
        ProcessCollector(registry=found)
        return found

    def _guarded(self, request: Request, answer: Callable[[], Response]) -> Response:
        try:
            self._known(request)
            return answer()
        except Refused as refused:
            return _refusal(refused)


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which cuts a connection off that takes longer than `seconds` for the head of a request."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Guarded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self._is_busy():
                self._rest()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._cut)

        def _rest(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _cut(self) -> None:
            self._deadline = None
            if not self._is_busy():
                self.transport.abort()

        def _is_busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

    return Guarded


def keys() -> list[str]:
    """The API keys that the environment names (see `access.keys`)."""
    return access.keys(KEYS)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def _json(said: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    try:
        body = orjson.dumps(said)
    except TypeError:  # what a file says of itself may be no Unicode, or a number beyond 64 bits
        body = json.dumps(said).encode()
    return Response(body + b"\n", status, headers, media_type="application/json")


def _refusal(refused: Refused) -> Response:
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after + 0.5)))
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.close:
        headers["Connection"] = "close"
    return _json({"error": refused.reason}, refused.status, headers)


async def _plain(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    reason = {404: f"no {request.url.path[:80]} here", 405: f"not by {request.method[:20]}"}.get(error.status_code)
    return _json({"error": reason or _line(error.detail)}, error.status_code, dict(error.headers or {}))


async def _unexpected(_: Request, __: Exception) -> Response:
    """The trace stands in the server's own log."""
    return _json({"error": "something went wrong here; it is logged"}, 500)
