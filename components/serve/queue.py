"""Requests that wait for the detector, put together: many small ones make one call, a large one makes several."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Histogram

_IMAGES, _BYTES = 32, 8 * 2**20  # in one call, at most; a single image may be larger
_BUCKETS = (1, 2, 4, 8, 16, 32)
CALLS = 2  # at once, so that one is decoded while the other is in the network

Picture = bytes | str | None
"""A file, its text (see `encoded.decoded`), or null for what is neither."""
Rows = list[dict[str, Any]]
Score = Callable[..., Rows]


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


@dataclass(eq=False)
class _Job:
    images: list[Picture]
    options: Options
    rows: asyncio.Future[Rows]
    size: int


class Queue:
    """Brings pictures to the detector in threads, and their rows back.

    Whenever a thread is free, it gets what waits: one picture at once if it is alone, up to 32 together under load. A
    call that fails is tried once more, each request by itself, so that one can't fail others.

    Args:
        score: judges (see `Detector.score`), from several threads at once.
        registry: for metrics.
        seconds: that an answer may take.
    """

    def __init__(self, score: Score, registry: CollectorRegistry, seconds: float) -> None:
        self._score, self.seconds = score, seconds
        self._batches = Histogram(
            "trueframe_call_images", "Images in one call of the detector", buckets=_BUCKETS, registry=registry
        )
        self._failures = Counter("trueframe_call_failures", "Calls without an answer", registry=registry)
        self._jobs: deque[_Job] = deque()
        self._calls: dict[asyncio.Future[list[Rows | Refused]], float] = {}  # and when they began
        self._pump_soon: asyncio.Handle | None = None
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="score")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def is_stuck(self) -> bool:
        """Whether no thread will come back: each is in a call for more than twice as long as a request may take."""
        return len(self._calls) == CALLS and time.monotonic() - max(self._calls.values()) > 2 * self.seconds

    async def score(self, images: Sequence[Picture], options: Options) -> Rows:
        """Verdicts.

        Args:
            images: files.
            options: for all of them.

        Returns:
            The detector's rows, in order.

        Raises:
            Refused: it gave none.
        """
        jobs = [self._job(part, options) for part in _parts(images)]
        # A large request has but a few of its parts in the line, so that small ones don't wait for all of it.
        line = asyncio.Semaphore(CALLS)

        async def wait(job: _Job) -> Rows:
            async with line:
                self._jobs.append(job)
                self._pump_later()
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

    def _job(self, images: list[Picture], options: Options) -> _Job:
        size = sum(len(image) for image in images if image)
        return _Job(images, options, asyncio.get_running_loop().create_future(), size)

    def _pump_later(self) -> None:
        """Look for work as soon as all that has come is in the line."""
        if self._pump_soon is None:
            self._pump_soon = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_soon = None
        while len(self._calls) < CALLS and (jobs := self._take()):
            call = asyncio.get_running_loop().run_in_executor(self._threads, self._judge, jobs)
            self._calls[call] = time.monotonic()
            call.add_done_callback(partial(self._done, jobs))

    def _take(self) -> list[_Job]:
        """The first of the line, with those behind it that fit into one call with it."""
        while self._jobs and self._jobs[0].rows.done():
            self._jobs.popleft()
        if not self._jobs:
            return []
        first = self._jobs.popleft()
        taken, images, size = [first], len(first.images), first.size
        rest: list[_Job] = []
        while self._jobs and images < _IMAGES:
            job = self._jobs.popleft()
            fits = images + len(job.images) <= _IMAGES and size + job.size <= _BYTES
            if job.rows.done():
                continue
            if job.options != first.options or not fits:
                rest.append(job)
                continue
            taken.append(job)
            images, size = images + len(job.images), size + job.size
        self._jobs.extendleft(reversed(rest))
        return taken

    def _judge(self, jobs: list[_Job]) -> list[Rows | Refused]:
        """What each of them is told; called in a thread."""
        images, options = [image for job in jobs for image in job.images], jobs[0].options
        self._batches.observe(len(images))
        try:
            rows = iter(self._score(images, explain=options.explain, threshold=options.threshold))
            return [list(islice(rows, len(job.images))) for job in jobs]
        except Exception as error:
            self._failures.inc()
            print(f"error: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            return (
                [self._judge([job])[0] for job in jobs] if len(jobs) > 1 else [Refused(503, "the detector failed", 5)]
            )

    def _done(self, jobs: list[_Job], call: asyncio.Future[list[Rows | Refused]]) -> None:
        del self._calls[call]
        self._pump_later()
        for job, told in zip(jobs, [] if call.cancelled() else call.result(), strict=False):
            if not job.rows.done():
                job.rows.set_exception(told) if isinstance(told, Refused) else job.rows.set_result(told)


def _parts(images: Sequence[Picture]) -> list[list[Picture]]:
    """Neighbours that make one call: as many as are allowed, and no more bytes, unless one alone has more."""
    parts: list[list[Picture]] = []
    size = 0
    for image in images:
        length = len(image or "")
        if not parts or len(parts[-1]) == _IMAGES or size + length > _BYTES:
            parts.append([])
            size = 0
        parts[-1].append(image)
        size += length
    return parts
