"""Workers that hold the champion: started, watched over, and followed by others when the champion moves."""

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.multiprocess import mark_process_dead

from components.serve import clerk, worker
from components.serve.gateway import METRICS
from components.serve.queue import CALLS
from components.serve.worker import Orders
from components.stage import StageError

_START = 600.0  # s that loading a version may take
_SILENT = 60.0  # s without a sign of life after which a worker is started anew
_RETRY = 300.0  # s after which a champion that failed to load is tried again
_WRITES = 45.0  # s for a worker's last predictions, at its end


@dataclass(eq=False)
class _Worker:
    """A process that is told what to do (see `components.serve.worker` and `components.serve.clerk`)."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, module: str, first: Any, **environment: str) -> "_Worker":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            env={**environment, **os.environ},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[first.listening] if isinstance(first, Orders) else [],
            start_new_session=True,  # so that an interrupt reaches the supervisor alone
        )
        started = cls(process)
        started.tell(first)
        return started

    def tell(self, what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(what))

    async def hear(self, seconds: float) -> str:
        """Its next line; none of a process that ended, or is silent for so long."""
        assert self.process.stdout is not None
        with contextlib.suppress(TimeoutError):
            return (await asyncio.wait_for(self.process.stdout.readline(), seconds)).decode().strip()
        return ""

    async def expect(self, line: str, seconds: float = _SILENT) -> None:
        """Wait for a line.

        Raises:
            StageError: there comes another one, or none.
        """
        while (said := await self.hear(seconds)) == worker.ALIVE:
            pass
        if said != line:
            raise StageError(said or await self.ended(0))

    async def ended(self, seconds: float) -> str:
        """End it, by force after so long, and say how it ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), max(seconds, 1))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            how = "its process was silent"
        else:
            how = f"its process ended with code {self.process.returncode}"
        if METRICS in os.environ:
            mark_process_dead(self.process.pid)
        return how


@dataclass(eq=False)
class _Version:
    """A version at work.

    Attributes:
        folder: of its own.
        files: in there, checked, and kept, so that a worker can be started anew while the registry is down.
        workers: that hold it.
        watches: over each of them.
    """

    number: str
    folder: Path
    files: Path = Path()
    workers: list[_Worker] = field(default_factory=list)
    watches: list[asyncio.Task[None]] = field(default_factory=list)


class Supervisor:
    """Keeps workers with the champion behind one socket, whatever ends them.

    Args:
        name: of the registered model.
        orders: for each worker.
        workers: how many.
        scratch: folder for the files of versions.
    """

    def __init__(self, name: str, orders: Orders, workers: int, scratch: Path) -> None:
        self.name, self.orders, self.n, self.scratch = name, orders, workers, scratch
        self.version: _Version | None = None
        self._all: set[_Worker] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        threads = str(
            max(1, (os.cpu_count() or 1) // (workers * CALLS))
        )  # more cost a small network a third of its time
        self._environment = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads}
        self._clerk: _Worker | None = None
        self._asking = asyncio.Lock()
        metrics = CollectorRegistry()  # which nobody asks: workers show what all have written

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, multiprocess_mode="mostrecent", registry=metrics)

        self.restarts = Counter("trueframe_restarts", "Workers that ended and were started anew", registry=metrics)
        self.moves = Counter("trueframe_moves", "Moves to a new champion", ["outcome"], registry=metrics)
        self.known = gauge("trueframe_registry_up", "Whether the registry answered last time")
        self.failed = gauge("trueframe_champion_failed", "1 while the champion can't be loaded and another answers")
        self.versions = gauge("trueframe_model_version", "1 for the version that answers", "version")
        self.known.set(1)
        self.failed.set(0)

    async def run(self, listening: socket.socket, *, follow: bool) -> None:
        """Until SIGTERM or SIGINT.

        Args:
            listening: that `orders` name.
            follow: whether to move to new champions.

        Raises:
            StageError: there is no champion, or it can't be loaded.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        tasks = [asyncio.create_task(self._work(listening, follow)), asyncio.create_task(stop.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            listening.close()  # no new requests; those that are here are answered
            tasks += [*self._leaving, *(self.version.watches if self.version else ())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end(list(self._all), self.orders.settings.answer_s + _WRITES)

    async def _work(self, listening: socket.socket, follow: bool) -> None:
        host, port = listening.getsockname()[:2]
        # Workers import what they need while the registry is asked, which takes longest.
        champion, workers = await asyncio.gather(self._ask("champion"), self._start(self.n))
        if champion is None:
            raise StageError("there is no champion yet; `trueframe run` trains one")
        await self._move(champion, workers)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        key = " -H 'X-API-Key: KEY'" if self.orders.keys else ""
        print(f"version {champion} is ready at {address}/invocations")
        print(f"try: curl -s{key} -F file=@PICTURE {address}/v1/check", flush=True)
        if follow:
            await self._follow(champion)
        if self._clerk:  # which takes more memory than all else
            await self._end([self._clerk])
            self._clerk = None
        await asyncio.Event().wait()

    async def _start(self, n: int) -> list[_Worker]:
        return [await self._started(worker.__name__, self.orders, **self._environment) for _ in range(n)]

    async def _started(self, module: str, first: Any, **environment: str) -> _Worker:
        self._all.add(one := await _Worker.start(module, first, **environment))
        return one

    async def _ask(self, question: str, *arguments: Any) -> Any:
        """What the registry says (see `clerk.answer`)."""
        async with self._asking:
            one = self._clerk or await self._started(clerk.__name__, self.name)
            self._clerk, how = None, ""
            try:
                one.tell((question, *arguments))
                if line := await one.hear(_START):
                    self._clerk = one
            finally:
                if self._clerk is None:  # it ended, or nobody waits for what it will say
                    how = await self._end([one])
            if line:
                return clerk.read(line)
            raise clerk.Unanswered(f"no answer from the registry: {how}")

    async def _end(self, workers: Iterable[_Worker], seconds: float = 0) -> str:
        """End processes, by force after so long, and say how."""

        async def end(one: _Worker) -> str:
            self._all.discard(one)
            return await one.ended(seconds)

        return ", ".join(await asyncio.gather(*(end(one) for one in workers)))

    async def _move(self, number: str, workers: list[_Worker] | None = None) -> None:
        """Start workers with a version; when all have it they take the place of those before.

        Raises:
            StageError: it can't be loaded; the workers before go on.
        """
        version = _Version(number, Path(tempfile.mkdtemp(dir=self.scratch)))
        try:
            version.workers = workers or await self._start(self.n)
            await self._fetch(version)
            await asyncio.gather(*(self._load(one, version) for one in version.workers))
            await asyncio.gather(*(self._serve(one) for one in version.workers))
        except BaseException as error:
            await self._end(version.workers)
            shutil.rmtree(version.folder, ignore_errors=True)
            if isinstance(error, StageError):
                raise type(error)(f"models:/{self.name}/{number} can't be served: {error}") from None
            raise
        version.watches = [asyncio.create_task(self._watch(version, one)) for one in version.workers]
        before, self.version = self.version, version
        if before:
            await self._leave(before)
        self.versions.labels(number).set(1)

    async def _fetch(self, version: _Version) -> None:
        version.folder.mkdir(exist_ok=True)
        version.files = Path(await self._ask("fetch", version.number, version.folder))

    async def _load(self, one: _Worker, version: _Version) -> None:
        one.tell((version.files, version.number))
        await one.expect(worker.LOADED, _START)

    async def _serve(self, one: _Worker) -> None:
        one.tell(True)
        await one.expect(worker.SERVING)

    async def _leave(self, version: _Version) -> None:
        """Let a version's workers answer what they have and end; returns when they take nothing more."""
        for watch in version.watches:
            watch.cancel()
        await asyncio.gather(*version.watches, return_exceptions=True)
        for one in version.workers:
            one.tell(True)
        await asyncio.gather(*(one.expect(worker.LEAVING) for one in version.workers), return_exceptions=True)
        self.versions.labels(version.number).set(0)
        task = asyncio.create_task(self._left(version))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _left(self, version: _Version) -> None:
        settings = self.orders.settings
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(worker.IDLE + settings.read_s + settings.answer_s + _WRITES):
                await asyncio.gather(*(one.process.wait() for one in version.workers))
        await self._end(version.workers)
        shutil.rmtree(version.folder, ignore_errors=True)

    async def _watch(self, version: _Version, one: _Worker) -> None:
        """Start a worker anew whenever it ends or is silent, at once where the one before did serve."""
        tries = 0
        while True:
            while await one.hear(_SILENT):
                pass
            self.restarts.inc()
            _say(f"version {version.number}: {await self._end([one])}; it is started anew")
            version.workers.remove(one)
            await asyncio.sleep(min(30, 2**tries - 1))
            tries += 1
            [one] = await self._start(1)
            version.workers.append(one)
            try:
                if not (version.files / "MLmodel").exists():  # temporary folders may be swept
                    await self._fetch(version)
                await self._load(one, version)
                await self._serve(one)
                tries = 0
            except BaseException as error:
                await self._end([one])
                if not isinstance(error, Exception):  # another version takes this one's place
                    version.workers.remove(one)
                    raise
                _say(f"error: {error}")  # the registry's or the disk's too: the next try follows

    async def _follow(self, version: str) -> None:
        """Look for a new champion, and move to it.

        Where the registry or the disk fails meanwhile, the next look tries again; a version that is at fault itself
        waits for `_RETRY`.
        """
        failed, when, is_up, said = "", 0.0, True, ""
        while True:
            await asyncio.sleep(self.orders.settings.poll_s)
            try:
                champion = await self._ask("champion")
            except Exception as error:
                if is_up:
                    _say(f"the registry doesn't answer ({str(error)[:200]}); version {version} goes on")
                is_up = False
                self.known.set(0)
                continue
            is_up = True
            self.known.set(1)
            if champion is None or champion == version:
                self.failed.set(0)
                failed = said = ""
                continue
            if champion == failed and time.monotonic() - when < _RETRY:
                continue
            if not said:
                print(f"version {champion} is the champion now; it is being loaded", flush=True)
            try:
                await self._move(champion)
            except Exception as error:
                self.failed.set(1)
                self.moves.labels("failed").inc()
                reason = f"{error}; VERSION {version} GOES ON"
                if reason != said:
                    _say(f"error: {reason}")
                said = reason if isinstance(error, clerk.Unanswered | OSError) else ""
                failed, when = "" if said else champion, time.monotonic()
                continue
            version, failed, said = champion, "", ""
            self.failed.set(0)
            self.moves.labels("done").inc()
            print(f"version {version} answers from now on", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
