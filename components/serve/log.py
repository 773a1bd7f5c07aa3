"""Predictions on their way from the gateway to the log.

A process of its own takes them down: pictures are decoded there for their statistics, so that the gateway doesn't wait
for it, and a file that brings a decoder down takes no request with it. It ends when the gateway does, however that
ends, and writes what it has.
"""

import contextlib
import hashlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter

from components.params import Monitor
from components.serve.encoded import decoded
from components.serve.queue import Picture

_FIELDS = ("probability", "verdict", "threshold", "model_version", "warnings", "error")
_BEHIND = 16 * 2**20  # bytes that wait, from which pictures don't: their rows have no statistics
_FULL = 64 * 2**20  # bytes that wait, from which predictions are not logged
_SHARE, _BURST = 0.1, 10.0  # of a core that statistics may take in the long run, and s that they may take at once
_ROW = 1000  # bytes that a row without its picture counts
_PAUSE = 2.0  # s before a process that ended is started anew
_END = 30.0  # s that the gateway's end waits for the rest to be written


class Log:
    """Takes predictions from the gateway; never fails, and never waits.

    Args:
        settings: the section `monitor`, with a folder.
        registry: for metrics.
    """

    def __init__(self, settings: Monitor, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._line: queue.SimpleQueue[tuple[Picture, dict[str, Any], int] | None] = queue.SimpleQueue()
        self._held, self._lock = 0, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._taken = Counter("trueframe_predictions_logged", "Predictions sent to the log", registry=registry)
        self._lost = Counter("trueframe_predictions_lost", "Predictions that the log missed", registry=registry)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when all is written, or after a while: the process goes on by itself until it is."""
        self._line.put(None)
        self._thread.join(_END)

    def add(self, images: Sequence[Picture], rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Take the answer to a request.

        Args:
            images: files.
            rows: the detector's, in the same order.
            seconds: that the answer took.
        """
        now = datetime.now(UTC)
        for picture, row in zip(images, rows, strict=True):
            said = {"time": now, "latency": seconds, **{key: row.get(key) for key in _FIELDS}}
            is_behind = self._held + len(picture or b"") + _ROW > _BEHIND
            if is_behind:
                said |= _identity(_decoded(picture))
            image = None if is_behind else picture
            size = len(image or b"") + _ROW
            if self._held + size > _FULL:
                self._lost.inc()
                continue
            with self._lock:
                self._held += size
            self._line.put((image, said, size))

    def _run(self) -> None:
        self._send(None)  # so that it is there when the first one comes
        while True:
            try:
                item = self._line.get(timeout=self._settings.flush_s)
            except queue.Empty:
                self._send(None)  # it may have something to write
                continue
            if item is None:
                break
            image, row, size = item
            is_sent = self._send((image, row))
            (self._taken if is_sent else self._lost).inc()
            with self._lock:
                self._held -= size
        if self._process:
            self._end(self._process)

    def _send(self, item: Any) -> bool:
        """Whether it went off; the process is started where there is none."""
        if time.monotonic() < self._not_before:
            return False
        try:
            if self._process is None:
                self._process = subprocess.Popen([sys.executable, "-m", "components.serve.log"], stdin=subprocess.PIPE)
                pickle.dump(self._settings, self._process.stdin)  # type: ignore[arg-type]
            assert self._process.stdin is not None
            pickle.dump(item, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError:
            if self._process:
                self._end(self._process)
            print("the log of predictions ended; it is started anew", file=sys.stderr, flush=True)
            self._process, self._not_before = None, time.monotonic() + _PAUSE
            return False
        return True

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END)


def _decoded(image: Picture) -> bytes | None:
    try:
        return decoded(image) if isinstance(image, str) else image
    except ValueError:
        return None


def _identity(data: bytes | None) -> dict[str, Any]:
    return {} if data is None else {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Budget:
    """Time that may be spent: as much at once as was saved, and little in the long run, so that verdicts come first."""

    def __init__(self, now: float) -> None:
        self._saved, self._at = _BURST, now

    def is_left(self, now: float) -> bool:
        """Whether anything may be spent now, at a time in s."""
        self._saved, self._at = min(_BURST, self._saved + _SHARE * (now - self._at)), now
        return self._saved > 0

    def spend(self, seconds: float) -> None:
        """Count what was spent."""
        self._saved -= seconds


def _main() -> None:
    """Take down what comes on stdin until its end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # that a terminal or systemd sends to all; the gateway ends this
        signal.signal(number, signal.SIG_IGN)
    from components import predictions

    os.nice(5)  # verdicts come first
    settings: Monitor = pickle.load(sys.stdin.buffer)
    assert settings.folder is not None
    writer, budget = predictions.Writer(Path(settings.folder), settings.keep_days), Budget(time.monotonic())
    due = time.monotonic() + settings.flush_s
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # the gateway was killed, in the middle of a row maybe
        while True:
            item = pickle.load(sys.stdin.buffer)
            if item is not None:
                image, row = item
                data = _decoded(image)
                row |= _identity(data)
                if data is not None and budget.is_left(time.monotonic()):
                    began = time.process_time()
                    row |= predictions.statistics(data)
                    budget.spend(time.process_time() - began)
                writer.add(row, data if settings.keep_images else None)
            if time.monotonic() >= due:
                writer.flush()
                due = time.monotonic() + settings.flush_s
    writer.flush()


if __name__ == "__main__":
    _main()
