"""Work over all cores gives what `map` gives, in order, and never reads far ahead."""

import os
import time
from collections.abc import Iterator

import pytest

from components.parallel import batched, ordered_map
from components.stage import StageError


def work(item: tuple[int, float]) -> tuple[int, int]:
    number, seconds = item
    time.sleep(seconds)
    return number, os.getpid()


def die(item: int) -> int:
    if os.getpid() != item:
        os._exit(9)
    time.sleep(0.05)
    return item


def test_short_work_is_done_in_this_process() -> None:
    found = list(ordered_map(work, ((n, 0.0) for n in range(50))))
    assert found == [(n, os.getpid()) for n in range(50)]


@pytest.mark.skipif(os.cpu_count() == 1, reason="there is one core only")
def test_long_work_is_shared_and_stays_in_order() -> None:
    found = list(ordered_map(work, [(n, 0.05 if n % 3 else 0.15) for n in range(40)], patience=0))
    assert [number for number, _ in found] == list(range(40))
    assert len({pid for _, pid in found}) > 1


def test_only_a_few_items_are_read_ahead() -> None:
    read = 0

    def items() -> Iterator[tuple[int, float]]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield number, 0.0

    results = ordered_map(work, items(), patience=0)
    for taken in range(1, 200):
        next(results)
        assert read <= taken + 3 * (os.cpu_count() or 1)
    results.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(os.cpu_count() == 1, reason="there is one core only")
def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(StageError, match="a worker process was killed"):
        list(ordered_map(die, [os.getpid()] * 60, patience=0))


def test_batches_keep_the_order_and_the_rest() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
