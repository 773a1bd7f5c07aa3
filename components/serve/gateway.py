"""What stands between callers and `mlflow models serve`: limits, keys, uploads, metrics, and errors in one line."""

import asyncio
import base64
import contextlib
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
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from components.params import Monitor, Serve
from components.serve import access, bodies
from components.serve.log import Log
from components.serve.queue import Backend, Options, Queue, Refused

KEYS = "TRUEFRAME_API_KEYS"
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
        settings: the section `serve`.
        keys: of those who may ask; none for everyone.
        monitor: the section `monitor`; predictions are logged where it names a folder. Null logs none.

    Attributes:
        app: for an ASGI server.
        queue: in front of the model servers.
        registry: of metrics.
        version: that answers now.
    """

    def __init__(self, settings: Serve, keys: Sequence[str] = (), monitor: Monitor | None = None) -> None:
        self.settings = settings
        self.version: str | None = None
        self.registry = CollectorRegistry()
        self._log = Log(monitor, self.registry) if monitor and monitor.folder else None
        self.queue = Queue(self.registry, settings.answer_s)
        self._keys = access.Keys(keys)
        self._rate = access.Rate(settings.rate) if settings.rate else None
        self._inside = 0
        self._held = 0
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
        self.app = access.with_headers(Starlette(routes=routes, exception_handlers=handlers), _HEADERS)

    @property
    def guarded(self) -> bool:
        """Whether callers need a key."""
        return len(self._keys) > 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While it works."""
        with self._log or contextlib.nullcontext():
            async with self.queue:
                yield

    async def use(self, backends: Sequence[Backend], version: str) -> None:
        """Answer with a version from now on; returns when the servers before have answered what they had."""
        self.version = version
        self._versions.clear()
        self._versions.labels(version).set(1)
        await self.queue.use(backends)

    def _measure(self) -> None:
        registry = self.registry
        ProcessCollector(registry=registry)
        self._requests = Counter("trueframe_requests", "Requests", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "trueframe_request_seconds",
            "From a request's last byte to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("trueframe_images", "Images by verdict, or `error`", ["verdict"], registry=registry)
        self._versions = Gauge(
            "trueframe_model_version", "1 for the version that answers", ["version"], registry=registry
        )
        Gauge("trueframe_requests_waiting", "Requests that are being answered", registry=registry).set_function(
            lambda: self._inside
        )
        Gauge("trueframe_model_servers", "Model servers that answer", registry=registry).set_function(
            lambda: sum(backend.url is not None for backend in self.queue.backends)
        )

    async def _invocations(self, request: Request) -> Response:
        return await self._answer(request, lambda body: bodies.from_json(request.headers, body), lambda rows, _: rows)

    async def _check(self, request: Request) -> Response:
        names: list[str | None] = []

        def read(body: bytes) -> bodies.Rows:
            files, options = bodies.from_files(request.headers, request.query_params, body, self.settings.max_images)
            names.extend(name for name, _ in files)
            return [base64.b64encode(data).decode() for _, data in files], options

        return await self._answer(request, read, lambda rows, at: {"file": names[at], **rows})

    async def _answer(
        self,
        request: Request,
        read: Callable[[bytes], bodies.Rows],
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

    async def _score(self, route: str, images: list[str | None], options: Options) -> list[dict[str, Any]]:
        self._room()
        self._inside += 1
        began = time.monotonic()
        try:
            rows = await self.queue.score(images, options) if images else []
        except Refused as refused:
            self._note(images, [{"error": refused.reason}] * len(images), time.monotonic() - began)
            raise
        finally:
            self._inside -= 1
            self._seconds.labels(route).observe(time.monotonic() - began)
        self._note(images, rows, time.monotonic() - began)
        for row in rows:
            self._images.labels("error" if row["error"] else row["verdict"]).inc()
        return rows

    def _note(self, images: list[str | None], rows: list[dict[str, Any]], seconds: float) -> None:
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
        if not self.queue.backends:
            raise Refused(503, "the model is still being loaded", 5)
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
        is_ready = self.queue.is_ready
        return _json({"live": True, "ready": is_ready, "model_version": self.version}, 200 if is_ready else 503)

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _version(self, request: Request) -> Response:
        from importlib.metadata import version

        return self._guarded(request, lambda: _json({"model_version": self.version, "trueframe": version("trueframe")}))

    async def _metrics(self, request: Request) -> Response:
        return self._guarded(
            request, lambda: Response(generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
        )

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
    return Response(orjson.dumps(said) + b"\n", status, headers, media_type="application/json")


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
