"""Requests that wait for a model server, put together: many small ones make one call, a large one makes several."""

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram

_IMAGES, _BYTES = 32, 8 * 2**20  # in one call, at most; a single image may be larger
_BUCKETS = (1, 2, 4, 8, 16, 32)
CALLS = 2  # at once to one server, so that one is decoded while the other is in the network


class Refused(Exception):
    """A request that gets no verdicts.

    Args:
        status: of HTTP.
        reason: one line.
        retry_after: s after which it may be tried again.
        close: whether the connection is of no further use.
    """

    def __init__(self, status: int, reason: str, retry_after: float | None = None, *, close: bool = False) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after, self.close = status, reason, retry_after, close


@dataclass(frozen=True)
class Options:
    """What a caller may ask for beside verdicts: `params` of the body."""

    explain: bool = False
    threshold: float | None = None

    def params(self) -> dict[str, Any]:
        """Those that were asked for."""
        return {
            **({"explain": True} if self.explain else {}),
            **({"threshold": self.threshold} if self.threshold is not None else {}),
        }


@dataclass(eq=False)
class Backend:
    """A model server.

    Attributes:
        url: where it listens; null while it doesn't.
        calls: that it works on.
    """

    url: str | None = None
    calls: int = 0


@dataclass(eq=False)
class _Job:
    images: list[str | None]
    options: Options
    rows: asyncio.Future[list[dict[str, Any]]]
    size: int
    tried: bool = False  # alone from then on, so that one request can't fail others again


class Queue:
    """Brings images to model servers by `POST /invocations`, and their rows back.

    Whenever a server is free, it gets what waits: one image at once if it is alone, up to 32 together under load. A
    call that a server doesn't answer is tried once more, each request by itself.

    Args:
        registry: for metrics.
        seconds: that an answer may take.
    """

    def __init__(self, registry: CollectorRegistry, seconds: float) -> None:
        self.seconds = seconds
        self.backends: Sequence[Backend] = ()
        self._batches = Histogram(
            "trueframe_call_images", "Images in one call of a model server", buckets=_BUCKETS, registry=registry
        )
        self._failures = Counter("trueframe_call_failures", "Calls without an answer", registry=registry)
        self._jobs: deque[_Job] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._pump_soon: asyncio.Handle | None = None
        self._free = asyncio.Condition()

    async def __aenter__(self) -> Self:
        # Model servers keep idle connections longer, so none of these is closed under a request.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=self.seconds), auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self._calls:
            call.cancel()
        await self._session.close()

    @property
    def is_ready(self) -> bool:
        """Whether a model server listens."""
        return any(backend.url for backend in self.backends)

    async def use(self, backends: Sequence[Backend]) -> None:
        """Send what comes from now on to these servers; returns when those before have answered what they had."""
        before, self.backends = self.backends, backends
        self.pump()
        async with self._free:
            await self._free.wait_for(lambda: not any(backend.calls for backend in before))

    async def score(self, images: Sequence[str | None], options: Options) -> list[dict[str, Any]]:
        """Verdicts.

        Args:
            images: base64 text of a file each; null for what is no text.
            options: for all of them.

        Returns:
            The model's rows, in order.

        Raises:
            Refused: no server gave them.
        """
        if not self.backends:
            raise Refused(503, "the model is still being loaded", 5)
        jobs = [self._job(part, options) for part in _parts(images)]
        # A large request has but a few of its parts in the line, so that small ones don't wait for all of it.
        line = asyncio.Semaphore(CALLS * len(self.backends))

        async def wait(job: _Job) -> list[dict[str, Any]]:
            async with line:
                self._jobs.append(job)
                self.pump()
                return await job.rows

        waiting = [asyncio.ensure_future(wait(job)) for job in jobs]
        try:
            async with asyncio.timeout(self.seconds):
                return [row for rows in await asyncio.gather(*waiting) for row in rows]
        except TimeoutError:
            raise Refused(504, f"no answer within {self.seconds:g} s", 5) from None
        finally:
            for one in waiting:
                one.cancel()
            for job in jobs:
                job.rows.cancel()

    def pump(self) -> None:
        """Look for work as soon as all that has come is in the line."""
        if self._pump_soon is None:
            self._pump_soon = asyncio.get_running_loop().call_soon(self._pump)

    def _job(self, images: list[str | None], options: Options) -> _Job:
        size = sum(len(image) for image in images if image)
        return _Job(images, options, asyncio.get_running_loop().create_future(), size)

    def _pump(self) -> None:
        self._pump_soon = None
        while self._jobs:
            free = [backend for backend in self.backends if backend.url and backend.calls < CALLS]
            if not free:
                return
            jobs = self._take()
            if not jobs:
                return
            backend = min(free, key=lambda backend: backend.calls)
            backend.calls += 1
            call = asyncio.create_task(self._call(backend, jobs))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _take(self) -> list[_Job]:
        """The first of the line, with those behind it that fit into one call with it."""
        while self._jobs and self._jobs[0].rows.done():
            self._jobs.popleft()
        if not self._jobs:
            return []
        first = self._jobs.popleft()
        taken, images, size = [first], len(first.images), first.size
        rest: list[_Job] = []
        while self._jobs and not first.tried and images < _IMAGES:
            job = self._jobs.popleft()
            fits = images + len(job.images) <= _IMAGES and size + job.size <= _BYTES
            if job.rows.done():
                continue
            if job.tried or job.options != first.options or not fits:
                rest.append(job)
                continue
            taken.append(job)
            images, size = images + len(job.images), size + job.size
        self._jobs.extendleft(reversed(rest))
        return taken

    async def _call(self, backend: Backend, jobs: list[_Job]) -> None:
        url = backend.url
        try:
            rows = await self.ask(url, [image for job in jobs for image in job.images], jobs[0].options)
        except Exception as error:
            self._failures.inc()
            print(f"{url}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            self._failed(jobs, is_late=isinstance(error, TimeoutError))
            if isinstance(error, aiohttp.ClientConnectionError) and backend.url == url:
                backend.url = None  # until who watches over it says otherwise
        else:
            start = 0
            for job in jobs:
                if not job.rows.done():
                    job.rows.set_result(rows[start : start + len(job.images)])
                start += len(job.images)
        finally:
            backend.calls -= 1
            async with self._free:
                self._free.notify_all()
            self.pump()

    async def ask(self, url: str | None, images: Sequence[str | None], options: Options) -> list[dict[str, Any]]:
        """One call of one server.

        Raises:
            ValueError: it gave no rows, or not as many as there are images.
        """
        body = {"dataframe_records": [{"image": image} for image in images], "params": options.params()}
        headers = {"Content-Type": "application/json"}
        self._batches.observe(len(images))
        async with self._session.post(f"{url}/invocations", data=orjson.dumps(body), headers=headers) as answer:
            said = await answer.read()
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {said.decode(errors='replace')}")
        rows: list[dict[str, Any]] = orjson.loads(said)["predictions"]
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows for {len(images)} images")
        return rows

    def _failed(self, jobs: list[_Job], *, is_late: bool) -> None:
        """Put each back into the line by itself, once."""
        for job in reversed(jobs):
            if job.rows.done():
                continue
            if is_late or job.tried:
                status, reason = (504, "no answer in time") if is_late else (503, "the model server failed")
                job.rows.set_exception(Refused(status, reason, 5))
            else:
                job.tried = True
                self._jobs.appendleft(job)


def _parts(images: Sequence[str | None]) -> list[list[str | None]]:
    """Neighbours that make one call: as many as are allowed, and no more bytes, unless one alone has more."""
    parts: list[list[str | None]] = []
    size = 0
    for image in images:
        length = len(image or "")
        if not parts or len(parts[-1]) == _IMAGES or size + length > _BYTES:
            parts.append([])
            size = 0
        parts[-1].append(image)
        size += length
    return parts
