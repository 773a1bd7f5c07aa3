"""Work over all cores, and word of how far it is."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

import numpy  # noqa: F401  # what is to be limited has to be loaded
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.stage import StageError

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(function: Callable[[In], Out], items: Iterable[In], *, inline: int = 2) -> Iterator[Out]:
    """`map` over processes, in order, reading only a few items ahead.

    Args:
        function: importable by name.
        items: picklable.
        inline: so few items are worked off in this process, which saves starting others.
    """
    items = iter(items)
    head = list(islice(items, inline + 1))
    workers = os.cpu_count() or 1
    if len(head) <= inline or workers == 1:
        yield from map(function, head)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        pending: deque[Future[Out]] = deque(pool.submit(function, item) for item in head)
        try:
            while pending:
                for item in islice(items, max(0, 3 * workers - len(pending))):
                    pending.append(pool.submit(function, item))
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise StageError(
                "a worker process was killed, most likely for want of memory; run the command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread each, as there is a worker for every core; and an end when the parent has one."""
    threadpool_limits(1)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def batched(items: Iterable[In], size: int) -> Iterator[list[In]]:
    """Lists of up to `size` neighbours."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


class Progress:
    """Prints a line every few seconds: how much is done, how fast, and what remains."""

    def __init__(self, what: str, total: int | None = None, every: float = 5.0) -> None:
        self.what, self.total, self.every = what, total, every
        self.done = 0
        self.began = self.said = time.monotonic()

    def add(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self.done += n
        now = time.monotonic()
        if now - self.said >= self.every:
            self.said = now
            rate = self.done / (now - self.began)
            of = f" of {self.total:,}" if self.total else ""
            left = f", {(self.total - self.done) / rate:.0f} s left" if self.total else ""
            print(f"{self.what}: {self.done:,}{of}, {rate:,.0f}/s{left}", flush=True)
