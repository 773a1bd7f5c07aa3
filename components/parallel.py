"""Work over all cores, and word of how far it is."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

import numpy  # noqa: F401  # what is to be limited has to be loaded
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.stage import StageError

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(
    function: Callable[[In], Out], items: Iterable[In], *, patience: float = 0.5, cores: int | None = None
) -> Iterator[Out]:
    """`map` over all cores, in order, reading only a few items ahead.

    This process works too, while the next result isn't there. So short work is done before workers have started, which
    takes them most of a second.

    Args:
        function: importable by name.
        items: picklable.
        patience: s of work in this process before others are started; nought for items that each take long.
        cores: processes, this one included; null for as many as there are cores.

    Raises:
        StageError: a worker was killed.
    """
    items = iter(items)
    cores = cores or os.cpu_count() or 1
    began = time.monotonic()
    for item in items:
        if cores > 1 and time.monotonic() - began >= patience:
            items = chain([item], items)
            break
        yield function(item)
    else:
        return
    context = multiprocessing.get_context("spawn")
    workers, limit = cores - 1, 3 * cores
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool, threadpool_limits(1):
        results: deque[Future[Out]] = deque()
        try:
            while True:
                waiting = sum(not result.done() for result in results)
                for item in islice(items, max(0, min(2 * workers - waiting, limit - len(results)))):
                    results.append(pool.submit(function, item))
                if not results:
                    return
                own = islice(items, 0 if results[0].done() else max(0, limit - len(results)))
                for item in own:
                    results.append(Future())
                    results[-1].set_result(function(item))
                    break
                else:
                    yield results.popleft().result()
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
