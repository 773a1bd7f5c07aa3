"""Model servers behind the gateway: started, watched over, and followed from champion to champion."""

import asyncio
import base64
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvicorn
from PIL import Image
from prometheus_client import Counter, Gauge

from components import stage, tracking
from components.params import Monitor, Serve
from components.register.registry import Registry
from components.serve import gateway
from components.serve.gateway import Gateway
from components.serve.queue import CALLS, Backend, Options
from components.stage import StageError
from flows import commands

_LOCAL = ("--env-manager", "local")
_START = 600.0  # s that a model server may take to answer
_SILENT = 60.0  # s without an answer after which a model server is started anew
_RETRY = 300.0  # s after which a champion that failed to load is tried again
_CONNECTIONS = 1000
_ERROR = re.compile(r"[\w.]*(Error|Exception): ")


def serve(name: str, settings: Serve, monitor: Monitor, host: str, port: int, workers: int, *, follow: bool) -> None:
    """Serve the champion until told to end.

    Args:
        name: of the registered model.
        settings: the section `serve`.
        monitor: the section `monitor`.
        host: of the gateway.
        port: of the gateway.
        workers: model servers.
        follow: whether to move to new champions.

    Raises:
        StageError: there is no champion, the port is taken, or the model can't be loaded.
    """
    keys = gateway.keys()
    registry = Registry(name)
    champion = registry.champion()
    if champion is None:
        raise StageError("there is no champion yet; `trueframe run` trains one")
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StageError(f"{host}:{port} can't be used ({error.strerror}); choose another one with --port") from None
    with listening:
        # Answers leave at once: asyncio asks for this only where a socket names its protocol, and this one doesn't.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # who doesn't read the answer is cut off
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(settings.read_s * 1000))
        service = _Service(registry, settings, Gateway(settings, keys, monitor), workers)
        asyncio.run(service.run(listening, champion, follow))


@dataclass(eq=False)
class _Server:
    """One `mlflow models serve`, started anew whenever it ends.

    Attributes:
        model: what it serves, by its address in the registry.
        files: of the model, checked, and here, so that it can be started anew while the registry is down.
        backend: how the gateway knows it.
        said: its last lines, for the reason why it ended.
    """

    model: str
    files: Path
    threads: int
    seconds: float
    backend: Backend = field(default_factory=Backend)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=500))
    process: asyncio.subprocess.Process | None = None
    port: int = 0
    wanted: bool = True
    _reader: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--timeout", str(round(self.seconds))]
        self.process = await asyncio.create_subprocess_exec(
            *commands.with_parent(
                [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(self.files), *_LOCAL, *where]
            ),
            env=commands.environment() | _quiet() | _threads(self.threads),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # so that an interrupt reaches the gateway alone, and a group can be ended
        )
        self._reader = asyncio.create_task(self._read(self.process.stdout))
        if not self.wanted:  # another version took its place meanwhile
            await self.stop()

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while line := await stream.readline():
            text = line.decode(errors="replace").rstrip()
            if text and not commands.is_chatter(text):
                self.said.append(text)
                print(f"{self.model}: {text}", file=sys.stderr, flush=True)

    def why(self) -> str:
        """What it said when it ended: of several errors the first, which the others follow from."""
        errors = [line for line in self.said if _ERROR.match(line)]
        return (errors or list(self.said)[-1:] or ["it said nothing"])[0][:300]

    async def answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/ping") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def stop(self) -> None:
        """End it and all that it started: politely at first."""
        self.backend.url = None
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(self.process.pid, number)
            end = time.monotonic() + 10
            while _signal(self.process.pid, 0) and time.monotonic() < end:
                await asyncio.sleep(0.05)
        await self.process.wait()
        if self._reader:
            self._reader.cancel()


class _Service:
    def __init__(self, registry: Registry, settings: Serve, front: Gateway, workers: int) -> None:
        self.registry, self.settings, self.gateway, self.workers = registry, settings, front, workers
        self.servers: list[_Server] = []
        self.old: set[asyncio.Task[None]] = set()
        metrics = front.registry
        self.restarts = Counter(
            "trueframe_restarts", "Model servers that ended and were started anew", registry=metrics
        )
        self.moves = Counter("trueframe_moves", "Moves to a new champion", ["outcome"], registry=metrics)
        self.known = Gauge("trueframe_registry_up", "Whether the registry answered last time", registry=metrics)
        self.failed = Gauge(
            "trueframe_champion_failed", "1 while the champion can't be loaded and another answers", registry=metrics
        )

    async def run(self, listening: socket.socket, champion: str, follow: bool) -> None:
        """Until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        timeout = aiohttp.ClientTimeout(total=5)
        async with self.gateway.open(), aiohttp.ClientSession(timeout=timeout) as self.session:
            http = _http(self.gateway, self.settings)
            tasks = [asyncio.create_task(http.serve(sockets=[listening])), asyncio.create_task(stop.wait())]
            try:
                tasks.append(asyncio.create_task(self._work(listening, champion, follow)))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                http.should_exit = True  # no new requests; those that are here are answered
                for task in [*tasks[1:], *self.old]:
                    task.cancel()
                await asyncio.gather(*tasks, *self.old, return_exceptions=True)
                await _end(self.servers)

    async def _work(self, listening: socket.socket, champion: str, follow: bool) -> None:
        await self._move(champion)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        key = " -H 'X-API-Key: KEY'" if self.gateway.guarded else ""
        print(f"version {champion} is ready at {address}/invocations")
        print(f"try: curl -s{key} -F file=@PICTURE {address}/v1/check", flush=True)
        await asyncio.gather(self._watch(), *([self._follow(champion)] if follow else []))

    async def _move(self, version: str) -> None:
        """Start a version's servers, send all new requests there, and end those before when they have answered.

        Raises:
            StageError: it can't be loaded; the servers before go on.
        """
        cores = os.cpu_count() or 1
        model = f"models:/{self.registry.name}/{version}"
        threads = max(1, cores // (self.workers * CALLS))  # more of them cost a small network a third of its time
        folder = Path(tempfile.mkdtemp(prefix="trueframe-"))
        servers: list[_Server] = []
        try:
            files = await asyncio.to_thread(self.registry.fetch, version, folder)
            servers += [_Server(model, files, threads, self.settings.answer_s) for _ in range(self.workers)]
            await asyncio.gather(*(self._started(server, version) for server in servers))
        except BaseException as error:
            await _end(servers)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, StageError) and not servers:
                raise StageError(f"{model} can't be served: {error}") from None
            raise
        before, self.servers = self.servers, servers
        for server in servers:
            server.backend.url = server.url
        done = asyncio.create_task(self._replace(before, version))
        self.old.add(done)
        done.add_done_callback(self.old.discard)

    async def _replace(self, before: list[_Server], version: str) -> None:
        try:
            await self.gateway.use([server.backend for server in self.servers], version)
        finally:
            await _end(before)

    async def _started(self, server: _Server, version: str) -> None:
        """Start a server, and see that it answers with this version.

        Raises:
            StageError: it doesn't.
        """
        await server.start()
        assert server.process is not None
        end = time.monotonic() + _START
        while not await server.answers(self.session):
            if server.process.returncode is not None:
                await asyncio.sleep(0.2)  # for its last lines
                raise StageError(f"{server.model} can't be served: its server ended ({server.why()})")
            if time.monotonic() > end:
                raise StageError(f"{server.model} can't be served: no answer within {_START:.0f} s")
            await asyncio.sleep(0.2)
        try:
            [row] = await self.gateway.queue.ask(server.url, [_picture()], Options())
        except Exception as error:
            raise StageError(f"{server.model} can't be served: it doesn't answer ({str(error)[:200]})") from None
        if row["error"] or row["model_version"] != version:
            raise StageError(f"{server.model} can't be served: it answers {row}")

    async def _watch(self) -> None:
        """Start servers anew that ended or are silent."""
        heard: dict[_Server, float] = {}
        tries: dict[_Server, int] = {}
        busy: dict[_Server, asyncio.Task[None]] = {}

        async def again(server: _Server, why: str) -> None:
            self.restarts.inc()
            print(f"{server.model}: {why}; it is started anew", file=sys.stderr, flush=True)
            await server.stop()
            await asyncio.sleep(min(30, 2 ** tries.get(server, 0) - 1))
            tries[server] = tries.get(server, 0) + 1
            if not server.wanted:
                return
            version = server.model.rpartition("/")[2]
            try:
                if not (server.files / "MLmodel").exists():  # temporary folders may be swept
                    server.files.mkdir(exist_ok=True)
                    await asyncio.to_thread(self.registry.fetch, version, server.files)
                await self._started(server, version)
            except Exception as error:  # the registry's or the disk's too: the next look tries again
                print(f"error: {_line(error)}", file=sys.stderr, flush=True)

        async def look(server: _Server) -> None:
            assert server.process is not None
            if server.process.returncode is not None:
                await again(server, f"the model server ended with code {server.process.returncode}")
            elif await server.answers(self.session):
                heard[server] = time.monotonic()
                if server.backend.url is None and server in self.servers:
                    server.backend.url = server.url
                    self.gateway.queue.pump()
                elif server.backend.url:
                    tries.pop(server, None)
            elif time.monotonic() - heard.setdefault(server, time.monotonic()) > _SILENT:
                await again(server, f"no answer for {_SILENT:.0f} s")
                heard.pop(server, None)

        try:
            while True:
                for server in self.servers:
                    if server not in busy or busy[server].done():
                        busy[server] = asyncio.create_task(look(server))
                await asyncio.sleep(1)
                for gone in [server for server in busy if server not in self.servers and busy[server].done()]:
                    del busy[gone]
        finally:
            for task in busy.values():
                task.cancel()

    async def _follow(self, version: str) -> None:
        """Look for a new champion, and move to it.

        Where the registry or the disk fails meanwhile, the next look tries again; a version that is at fault itself
        waits for `_RETRY`.
        """
        failed, when, is_up, said = "", 0.0, True, ""
        self.known.set(1)
        while True:
            await asyncio.sleep(self.settings.poll_s)
            try:
                champion = await asyncio.to_thread(self.registry.champion)
            except Exception as error:
                if is_up:
                    reason = str(error).splitlines()[0][:200]
                    print(
                        f"the registry doesn't answer ({reason}); version {version} goes on",
                        file=sys.stderr,
                        flush=True,
                    )
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
                reason = f"{_line(error)}; VERSION {version} GOES ON"
                if reason != said:
                    print(f"error: {reason}", file=sys.stderr, flush=True)
                said = reason if _passes(error) else ""
                failed, when = "" if said else champion, time.monotonic()
                continue
            version, failed, said = champion, "", ""
            self.failed.set(0)
            self.moves.labels("done").inc()
            print(f"version {version} answers from now on", flush=True)


def _passes(error: BaseException | None) -> bool:
    """Whether a failure says nothing of the version, since the registry or this machine's disk was in the way."""
    if not isinstance(error, StageError):
        return True
    while error := error.__context__:
        if isinstance(error, Exception) and (tracking.is_outage(error) or stage.is_full(error)):
            return True
    return False


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, StageError) else tracking.line(error)


async def _end(servers: list[_Server]) -> None:
    for server in servers:
        server.wanted = False
    await asyncio.gather(*(server.stop() for server in servers))
    for server in servers:
        shutil.rmtree(server.files, ignore_errors=True)


class _Http(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's, which ends this server first and the model servers after it."""
        yield


def _http(front: Gateway, settings: Serve) -> _Http:
    return _Http(
        uvicorn.Config(
            front.app,
            http=gateway.protocol(settings.read_s),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=round(settings.answer_s),
            proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,  # only who is named there may say who asks
        )
    )


def _picture() -> str:
    """A small picture as base64, to see whether a server answers."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _threads(n: int) -> dict[str, str]:
    """As many threads for each server; what the environment says goes first."""
    return {name: os.environ.get(name, str(n)) for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}


def _quiet() -> dict[str, str]:
    """MLflow's server without a line for each request, and with connections that outlast the gateway's."""
    return {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning", "UVICORN_TIMEOUT_KEEP_ALIVE": "75"}


def _signal(group: int, number: int) -> bool:
    """Whether a process group is still there to be signalled; 0 only asks."""
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
