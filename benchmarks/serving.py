"""Images over HTTP: `trueframe serve` beside the usual pyfunc, which calls `model.predict` for each request.

All servers run on this machine with the same network and are asked in turns: ours as `trueframe serve`, and three by
`mlflow models serve`: ours without the gateway, the usual one, and one that returns a constant, which is the floor.

    python -m benchmarks serving
    make bench OTHER=PATH                       beside `trueframe serve` of another checkout with its own .venv
    python -m benchmarks.serving --soak 10      at 80 % of the measured peak: errors and memory
    python -m benchmarks.serving --overload     at three times the peak
    python -m benchmarks.serving --corpus       broken files by the thousand
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from PIL import Image

import benchmarks
from components import networks
from components.serve.queue import CALLS

ROOT = Path(__file__).parents[1]
SIDE, CLIENTS, BATCH = 32, (1, 8, 32), 256
OURS, OTHER = "trueframe serve", "trueframe serve of the other checkout"
PLAIN, USUAL, FLOOR = "its model alone", "usual pyfunc", "constant"

MODELS = {
    USUAL: """
import base64, io
import mlflow
import numpy as np
from PIL import Image


class Usual(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        import keras
        self.model = keras.models.load_model(context.artifacts["network"], compile=False)

    def predict(self, context, model_input, params=None):
        images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in model_input["image"]]
        pixels = np.stack([np.asarray(image.resize((32, 32)), "float32") for image in images])
        return [{"logit": float(logit)} for logit in self.model.predict(pixels, verbose=0)[:, 0]]


mlflow.models.set_model(Usual())
""",
    FLOOR: """
import mlflow


class Constant(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [{"logit": 0.0} for _ in range(len(model_input))]


mlflow.models.set_model(Constant())
""",
}


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    to_ready: float

    def memory(self) -> float:
        """MiB that it and its processes hold, shared pages counted once."""
        return self._sum(lambda process: process.memory_full_info().pss) / 2**20

    def work(self) -> float:
        """s of CPU that it and its processes have used, which other work on the machine doesn't change much."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def _sum(self, of: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        own = psutil.Process(self.process.pid)
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += of(process)
        return total


@dataclass
class Heard:
    """What a load heard.

    Attributes:
        times: s, of answers with verdicts.
        refused: s, of 429 and 503.
        statuses: how many of each; 0 for no answer.
        seconds: that it took.
    """

    times: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds


def run(seconds: float = 6, requests: int = 200) -> str:
    """The table; each cell takes `seconds`, and the latency of one image so many requests."""
    beside = benchmarks.other()  # in place of the usual pyfunc
    with _servers((OURS, OTHER, FLOOR) if beside else (OURS, PLAIN, USUAL, FLOOR), beside) as servers:
        return asyncio.run(_table(servers, seconds, requests)) + "\n"


async def _table(servers: dict[str, Server], seconds: float, requests: int) -> str:
    one, many = _body(_jpeg(0)), _body(*(_jpeg(n) for n in range(BATCH)))
    alone: dict[str, list[float]] = {name: [] for name in servers}
    rates: dict[tuple[str, int], list[float]] = {}
    batches: dict[str, list[float]] = {name: [] for name in servers}
    work: dict[str, list[float]] = {name: [] for name in servers}
    async with _client() as client:
        for turn in range(requests + 20):
            for name, server in servers.items():
                status, took = await _ask(client, server, one)
                assert status == 200, name
                if turn >= 20:
                    alone[name].append(took)
        for clients in CLIENTS:
            for _ in range(2):
                for name, server in servers.items():
                    before = server.work()
                    heard = await _closed(server, one, clients, seconds / 2)
                    if clients == 8:
                        work[name].append((server.work() - before) / max(1, len(heard.times)) * 1e3)
                    rates.setdefault((name, clients), []).append(heard.rate)
        for _ in range(3):
            for name, server in servers.items():
                status, took = await _ask(client, server, many)
                assert status == 200, name
                batches[name].append(BATCH / took)
    own = _own(requests)
    head = [
        "",
        "median",
        "99th",
        *(f"{n} clients" for n in CLIENTS),
        "CPU each",
        f"batches of {BATCH}",
        "memory",
        "ready after",
    ]
    lines = [
        f"JPEG of {SIDE} px on this machine: ms for one; requests/s; images/s; MiB; s",
        _row(head),
        _row(["---"] * 9),
    ]
    for name, server in servers.items():
        figures = [statistics.median(alone[name]) * 1e3, statistics.quantiles(alone[name], n=100)[-1] * 1e3]
        speeds = [statistics.mean(rates[name, n]) for n in CLIENTS]
        cells = [f"{v:.1f}" for v in [*figures, *speeds, statistics.mean(work[name]), statistics.median(batches[name])]]
        lines.append(_row([name, *cells, f"{server.memory():.0f}", f"{server.to_ready:.1f}"]))
    beside = OTHER if OTHER in servers else USUAL
    times = [f"{statistics.mean(rates[OURS, n]) / statistics.mean(rates[beside, n]):.2f} with {n}" for n in CLIENTS]
    floor = statistics.median(alone[FLOOR]) * 1e3
    ours = statistics.median(alone[OURS]) * 1e3
    lines += [
        "",
        f"requests/s, as times those of `{beside}`: {', '.join(times)} clients",
        f"median of one: {ours / (own + floor):.2f} × (decode and network {own:.2f} ms + floor {floor:.2f} ms)",
    ]
    return "\n".join(lines)


async def soak(server: Server, minutes: float, seconds: float) -> str:
    """32 clients at 80 % of the peak: errors, and by how much memory grows from the first fifth on."""
    body = _body(_jpeg(0))
    peak = (await _closed(server, body, 32, seconds)).rate
    memory: list[float] = []
    end = time.monotonic() + minutes * 60

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(await asyncio.to_thread(server.memory))
            await asyncio.sleep(min(10, minutes * 60 / 30))

    watching = asyncio.create_task(watch())
    heard = await _open(server, body, 0.8 * peak, minutes * 60, 32)
    await watching
    warm = memory[len(memory) // 5 :]
    slope = float(np.polyfit(np.arange(len(warm)), warm, 1)[0]) * len(warm)
    wrong = {status: n for status, n in heard.statuses.items() if status != 200}
    return (
        f"soak of {minutes:g} min by 32 clients at {0.8 * peak:.0f} requests/s (peak {peak:.0f}): "
        f"{heard.statuses[200]:,} answers, others {wrong or 'none'}; median {_ms(heard.times)} ms; "
        f"memory {warm[0]:.0f} MiB, {slope / warm[0]:+.1%} over it\n"
    )


async def overload(server: Server, seconds: float) -> str:
    """Three times the peak: what is refused is refused quickly, and the rest waits little longer than at the peak."""
    body = _body(_jpeg(0))
    usual = await _closed(server, body, 32, seconds)
    heard = await _open(server, body, 3 * usual.rate, seconds)
    return (
        f"peak: {usual.rate:.0f} requests/s with 32 clients, median {_ms(usual.times)} ms; at three times as many: "
        f"{dict(sorted(heard.statuses.items()))}, answered {heard.rate:.0f}/s with median {_ms(heard.times)} ms, "
        f"99th percentile {statistics.quantiles(heard.times, n=100)[-1] * 1e3:.0f} ms; "
        f"refused after {_ms(heard.refused)} ms\n"
    )


async def corpus(server: Server) -> str:
    """All broken files of the fuzzer, each 31 with a good one, and what is no request at all."""
    sys.path.insert(0, str(ROOT / "tests"))
    import fuzz

    good, alive = _jpeg(0), []
    counts: Counter[str] = Counter()
    broken = [data for _, data in fuzz.corpus()]
    random.Random(0).shuffle(broken)
    began = time.monotonic()
    async with _client() as client:

        async def rows(files: list[bytes]) -> None:
            async with client.post(f"{server.url}/invocations", data=_body(*files), headers=_JSON) as answer:
                said = await answer.text()
            counts["traces"] += "Traceback" in said
            if answer.status != 200:
                counts[f"status {answer.status}"] += 1
                return
            *found, last = json.loads(said)["predictions"]
            alive.append(last["error"] is None)
            counts["files"] += len(found)
            counts["with an error of their own"] += sum(row["error"] is not None for row in found)

        for start in range(0, len(broken), 31):
            await rows([*broken[start : start + 31], good])
        wrong = [b"[" * 10**6, b'{"dataframe_records":' * 10**5, os.urandom(10**6), b"x" * 2**27, b"", b"{}", b"null"]
        for body in wrong:
            with contextlib.suppress(aiohttp.ClientError):  # cut off while it still sent
                async with client.post(f"{server.url}/invocations", data=body, headers=_JSON) as answer:
                    counts[f"no request: status {answer.status}"] += 1
                    counts["traces"] += b"Traceback" in await answer.read()
        slow = [await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2])) for _ in range(200)]
        for _, writer in slow:
            writer.write(b"POST /invocations HTTP/1.1\r\nContent-Le")
        status, took = await _ask(client, server, _body(good))
        for _, writer in slow:
            writer.close()
    return (
        f"corpus: {dict(counts)}, all {len(alive)} good ones between them answered: {all(alive)}; "
        f"with 200 slow callers one answer {status} in {took * 1e3:.0f} ms; {time.monotonic() - began:.0f} s; "
        f"the server is {'up' if server.process.poll() is None else 'DOWN'}\n"
    )


_JSON = {"Content-Type": "application/json"}


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4), timeout=aiohttp.ClientTimeout(total=120)
    )


async def _ask(client: aiohttp.ClientSession, server: Server, body: bytes) -> tuple[int, float]:
    began = time.perf_counter()
    try:
        async with client.post(f"{server.url}/invocations", data=body, headers=_JSON) as answer:
            await answer.read()
            return answer.status, time.perf_counter() - began
    except (aiohttp.ClientError, TimeoutError):
        return 0, time.perf_counter() - began


def _note(heard: Heard, status: int, took: float) -> None:
    heard.statuses[status] += 1
    if status == 200:
        heard.times.append(took)
    elif status in (429, 503):
        heard.refused.append(took)


async def _closed(server: Server, body: bytes, clients: int, seconds: float) -> Heard:
    """Clients that each wait for their answer."""
    where, heard, began = _request(server, body), Heard(), time.perf_counter()

    async def one() -> None:
        caller = _Caller()
        while (before := time.perf_counter()) - began < seconds:
            _note(heard, await caller.ask(*where), time.perf_counter() - before)

    await asyncio.gather(*(one() for _ in range(clients)))
    heard.seconds = time.perf_counter() - began
    return heard


async def _open(server: Server, body: bytes, rate: float, seconds: float, clients: int = 10**6) -> Heard:
    """Requests at random times with this mean rate, whether the ones before are answered or not; times run from when
    a request was due, be it that all clients were waiting for answers then."""
    where = _request(server, body)
    heard, began, asked, chance = Heard(), time.perf_counter(), set(), random.Random(0)
    due = began
    idle: list[_Caller] = []
    free = asyncio.Semaphore(clients)

    async def one() -> None:
        before = time.perf_counter()
        async with free:
            caller = idle.pop() if idle else _Caller()
            try:
                status = await asyncio.wait_for(caller.ask(*where), 120)
            except (OSError, TimeoutError):
                status = 0
            if status and not caller.is_closed:
                idle.append(caller)
        _note(heard, status, time.perf_counter() - before)

    while (now := time.perf_counter()) - began < seconds:
        while due <= now:
            task = asyncio.create_task(one())
            asked.add(task)
            task.add_done_callback(asked.discard)
            due += chance.expovariate(rate)
        await asyncio.sleep(max(0, min(due - time.perf_counter(), 0.05)))
    heard.seconds = time.perf_counter() - began
    await asyncio.gather(*asked)
    return heard


def _request(server: Server, body: bytes) -> tuple[str, int, bytes]:
    """Host, port, and the bytes of a request."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /invocations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return host, int(port), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Caller(asyncio.Protocol):
    """One connection. A client library takes more of the two cores for a request than the gateway does, and so would
    decide the result."""

    is_closed = True

    async def ask(self, host: str, port: int, request: bytes) -> int:
        """The status; 0 where the connection was closed under it."""
        loop = asyncio.get_running_loop()
        self._got, self._answer = bytearray(), loop.create_future()
        if self.is_closed:
            self._transport, _ = await loop.create_connection(lambda: self, host, port)
            self.is_closed = False
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if found:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length and not self._answer.done():
                self._answer.set_result(int(head.split()[1]))

    def connection_lost(self, _: Exception | None) -> None:
        self.is_closed = True
        if not self._answer.done():
            self._answer.set_result(0)


def _own(requests: int) -> float:
    """ms for the detector itself to judge one image, in a process with a worker's threads."""
    code = f"from benchmarks import serving; print(serving.own({requests}))"
    threads = str(max(1, (os.cpu_count() or 1) // CALLS))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def own(requests: int) -> float:
    """As `_own`, in this process."""
    import mlflow

    data, times = _jpeg(0), []
    with tempfile.TemporaryDirectory() as folder:
        model = _project(ROOT, Path(folder))
        detector = mlflow.pyfunc.load_model(str(model)).unwrap_python_model().detector
        for _ in range(requests):
            began = time.perf_counter()
            detector.score([data])
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


@contextlib.contextmanager
def _servers(names: tuple[str, ...], other: Path | None = None) -> Iterator[dict[str, Server]]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root, servers = Path(folder), {}
        model = _project(ROOT, root / "ours")
        if other:
            _project(other, root / "other")
        for name in names:
            python = str(other / ".venv/bin/python") if other and name == OTHER else sys.executable
            if name in (OURS, OTHER):
                command = [python, "-m", "flows.cli", "serve"]
            else:
                served = model if name == PLAIN else _model(root / name.split()[0], MODELS[name])
                command = [python, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", str(served)]
            where = (root / "other", other) if other and name == OTHER else (root / "ours", ROOT)
            servers[name] = stack.enter_context(_serving(command, *where))
        yield servers


def _project(checkout: Path, root: Path) -> Path:
    """A project whose champion is an untrained CIFAKE network, as a checkout makes it; its MLflow model."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; import served\n"
        "home = served.project(Path(sys.argv[1]))\n"
        f"model = served.packed(served.detector(home.root / 'detector', side={SIDE}, width=32))\n"
        "home.promote(home.add(model)); print(model)"
    )
    python = sys.executable if checkout == ROOT else checkout / ".venv/bin/python"
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run([python, "-c", code, root], cwd=checkout, env=env, capture_output=True, text=True, check=True)
    (root / "params.yaml").write_text((ROOT / "presets/cifake.yaml").read_text())
    return Path(done.stdout.split()[-1])


def _model(folder: Path, code: str) -> Path:
    """What others would serve."""
    import mlflow

    folder.mkdir()
    (folder / "model.py").write_text(code)
    networks.build("cnn", SIDE, {}).save(folder / "network.keras")
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(folder / "model.py"),
        artifacts={"network": str(folder / "network.keras")},
        pip_requirements=["mlflow"],
    )
    return folder / "model"


@contextlib.contextmanager
def _serving(command: list[str], root: Path, code: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning"}
    env = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(code),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
        **quiet,
    }
    log = root / f"{port}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=root, env=env, stdout=file, stderr=file)
    try:
        server = Server(process, f"http://127.0.0.1:{port}", 0.0)
        asyncio.run(_until(lambda: _is_ready(server), process, log))
        server.to_ready = time.monotonic() - began
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def _is_ready(server: Server) -> bool:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with _client() as client, client.get(f"{server.url}/ping") as answer:
            return answer.status == 200
    return False


async def _until(what: Callable[[], Awaitable[bool]], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while not await what():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        await asyncio.sleep(0.1)


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _body(*files: bytes) -> bytes:
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(data).decode()} for data in files]}).encode()


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e3:.1f}" if times else "–"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--corpus", action="store_true")
    args = parser.parse_args()
    if not (args.soak or args.overload or args.corpus):
        print(run(args.seconds))
        return
    with _servers((OURS,)) as servers:
        [server] = servers.values()
        if args.overload:
            print(asyncio.run(overload(server, args.seconds)), flush=True)
        if args.corpus:
            print(asyncio.run(corpus(server)), flush=True)
        if args.soak:
            print(asyncio.run(soak(server, args.soak, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
