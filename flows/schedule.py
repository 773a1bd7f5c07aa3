"""`trueframe schedule`: pools, deployments and workers in one command, with a Prefect server where none is set."""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import yaml
from rich.table import Table

from components import troubles
from components.stage import StageError
from flows import commands, locks, server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

FILE = Path("prefect.yaml")
HOME = Path(".prefect")
"""What the server that is started here keeps: its database, its leases and what it says."""
FOLDER = "TRUEFRAME_FOLDER"
"""The environment's name for the project's folder on a worker's machine."""

_TRIES = 3  # of a run that its machine went down with
_LASTED = 300.0  # s after which a program that ends did work


def here() -> dict[str, str]:
    """The pull step of every deployment: this project's folder on the worker's machine, whatever its path there."""
    folder = os.environ.get(FOLDER) or str(Path(__file__).resolve().parents[1])
    os.chdir(folder)
    return {"directory": folder}


def run(port: int, chosen: Iterable[str], show: Callable[[Any], object]) -> None:
    """Deploy what prefect.yaml says, and work on it until SIGTERM or Ctrl-C.

    Args:
        port: of the server that is started where none is set.
        chosen: work pools whose runs are done on this machine; all of prefect.yaml's where none is named.
        show: takes a table or a line for a person.

    Raises:
        StageError: the server can't be reached or started, or something can't be deployed.
    """
    declared = _declared()
    known = sorted({d["work_pool"]["name"] for d in declared.values()})
    pools = sorted(set(chosen)) or known
    if unknown := [name for name in pools if name not in known]:
        raise StageError(f"{FILE} has no work pool {unknown[0]!r}; it has {', '.join(known)}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        children: list[_Child] = []
        url = server.configured()
        own = url is None
        if url is None:
            url = f"http://{server.HOST}:{port}/api"
            children.append(_server(url, port, stack))
        else:
            server.reached(url)
        from prefect.client.orchestration import get_client

        client = stack.enter_context(get_client(sync_client=True))
        workers = [_worker(name) for name in _pools(client, pools, show)]
        _deploy(client, declared)
        if own:
            _go_on(client, declared, None, show)
        stack.callback(_end, client, declared, workers, own)
        for worker in workers:
            worker.start()
        show(_table(client, declared))
        place = troubles.shown(url.removesuffix("/api"))
        show(f"Prefect: {place}; Ctrl-C ends what runs here, and the next start goes on with it")
        if own:
            show(f"for other commands here: export PREFECT_API_URL={url}")
        children += workers
        while True:
            time.sleep(1)
            for child in children:
                child.watch()


@dataclass
class _Child:
    """A program that works until it is told to end, and is started anew when it ends before that."""

    name: str
    command: list[str]
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ends: int = 0

    def start(self) -> subprocess.Popen[bytes]:
        out = self.log.open("ab") if self.log else None
        with out or contextlib.nullcontext():
            self.process = subprocess.Popen(
                commands.with_parent(self.command),
                env=commands.environment() | {FOLDER: str(Path.cwd())},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # so that an interrupt ends them in the right order
            )
        self.started = time.monotonic()
        return self.process

    def watch(self) -> None:
        """Start it anew if it ended, later each time."""
        if self.process is None or self.process.poll() is None:
            return
        lasted = time.monotonic() - self.started
        if lasted > _LASTED:
            self.ends = 0
        if lasted > 2**self.ends:
            where = f" ({self.log} says why)" if self.log else ""
            print(f"{self.name} ended with code {self.process.returncode}{where}; it is started anew", file=sys.stderr)
            self.ends = min(self.ends + 1, 6)
            self.start()

    def end(self) -> None:
        """End it and all that it started, politely at first."""
        if self.process is None:
            return
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


def _server(url: str, port: int, stack: contextlib.ExitStack) -> _Child:
    """Start this folder's own server, with all that it knew when it ended last.

    Raises:
        StageError: the port is taken, another one runs here, or it doesn't start.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.HOST, port))
        except OSError as error:
            there = f"; with PREFECT_API_URL={url} that server is used" if server.answers(url) else ""
            raise StageError(f"port {port} can't be used ({error.strerror}){there}; --port chooses another") from None
    stack.enter_context(locks.only_run(HOME, what="`trueframe schedule`"))
    os.environ.setdefault("PREFECT_HOME", str(HOME.resolve()))
    # In memory, where they are otherwise, a restart would lose them, and with them the runs that hold them.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )
    server.use(url)
    where = ["--host", server.HOST, "--port", str(port)]
    command = [sys.executable, "-m", "prefect", "server", "start", *where]
    child = _Child("Prefect's server", command, HOME / "server.log")
    stack.callback(child.end)
    try:
        with (HOME / "server.log").open("a+b") as log:
            since = log.tell()
            server.wait_for(url, child.start(), log, since)
    except StageError as error:
        raise StageError(f"{error} ({child.log} says more)") from None
    return child


def _worker(pool: str) -> _Child:
    where = ["--pool", pool, "--type", "process", "--name", f"{platform.node()} {pool}"]
    return _Child(f"the worker of {pool}", [sys.executable, "-m", "prefect", "worker", "start", *where])


def _interrupt(*_: object) -> NoReturn:
    """End in order, undisturbed by a second signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end(client: "SyncPrefectClient", declared: "_Declared", workers: list[_Child], own: bool) -> None:
    """End the workers and their runs, and let these go on with the next worker."""
    since = datetime.now(UTC)
    with ThreadPoolExecutor() as pool:
        list(pool.map(_Child.end, workers))
    with contextlib.suppress(Exception):  # without its server a run can't be told to go on
        _go_on(client, declared, since, print, alone=own)


_Declared = dict[tuple[str, str], dict[str, Any]]
"""The deployments of prefect.yaml by their entrypoint and name."""


def _declared() -> _Declared:
    try:
        return {(d["entrypoint"], d["name"]): d for d in yaml.safe_load(FILE.read_text())["deployments"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise StageError(f"{FILE} can't be read ({error!r})") from None


def _deployed(client: "SyncPrefectClient", declared: _Declared) -> list["DeploymentResponse"]:
    """What the server has of them, in the order of prefect.yaml."""
    order = list(declared)
    found = [d for d in client.read_deployments() if (d.entrypoint, d.name) in declared]
    return sorted(found, key=lambda d: order.index((str(d.entrypoint), d.name)))


def _pools(client: "SyncPrefectClient", names: list[str], show: Callable[[Any], object]) -> list[str]:
    """Make the work pools that aren't there, and tell which of them a worker here can serve."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    served = []
    for name in names:
        try:
            pool = client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            pool = client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        if pool.type == "process":
            served.append(name)
        else:
            show(f"the work pool {name} is of type {pool.type}; `prefect worker start --pool {name}` serves it")
    return served


def _deploy(client: "SyncPrefectClient", declared: _Declared) -> None:
    """`prefect deploy --all`; what a person paused stays paused.

    Raises:
        StageError: prefect.yaml can't be deployed.
    """
    before = _deployed(client, declared)
    paused = {d.id for d in before if d.paused}
    off = {(d.id, s.schedule.model_dump_json()) for d in before for s in d.schedules if not s.active}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        env=commands.environment() | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise StageError(f"{FILE} can't be deployed: {said[-1] if said else 'no reason given'}")
    for deployment in _deployed(client, declared):
        if deployment.id in paused:
            client.pause_deployment(deployment.id)
        for schedule in deployment.schedules:
            if (deployment.id, schedule.schedule.model_dump_json()) in off:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)


def _go_on(
    client: "SyncPrefectClient",
    declared: _Declared,
    since: datetime | None,
    show: Callable[[Any], object],
    *,
    alone: bool = True,
) -> None:
    """Put runs that ended with their worker back into the queue; a training goes on after its last epoch.

    Args:
        client: of the server.
        declared: whose runs.
        since: when the workers were told to end; null where they ended without.
        show: takes a line for each.
        alone: whether no other machine works for this server, so that what runs without a process here is dead.
    """
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State
    from prefect.states import AwaitingRetry, Crashed

    types = [*(["CRASHED"] if since else []), *(["RUNNING", "PENDING"] if alone else [])]
    ours = [d.id for d in _deployed(client, declared)]
    wanted = FlowRunFilter.model_validate({"deployment_id": {"any_": ours}, "state": {"type": {"any_": types}}})
    for run in client.read_flow_runs(flow_run_filter=wanted):
        assert run.state is not None
        if run.state.is_crashed() and since and run.state.timestamp < since:
            continue
        if not run.state.is_crashed() and _alive(run):
            continue
        if run.run_count > _TRIES:
            state: State[Any] = Crashed(message=f"its worker ended {run.run_count} times while it ran")
        else:
            state = AwaitingRetry(message="it ended with its worker, and goes on with the next")
            show(f"the run {run.name} ended with its worker; it goes on with the next")
        client.set_flow_run_state(run.id, state, force=True)


def _alive(run: "FlowRun") -> bool:
    """Whether a process on this machine is at work on a run."""
    with contextlib.suppress(psutil.Error, ValueError):
        process = psutil.Process(int(run.infrastructure_pid or ""))
        return process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
    return False


def _table(client: "SyncPrefectClient", declared: _Declared) -> Table:
    """What runs when and where."""
    table = Table("deployment", "when", "next run", "work pool", "ends after")
    for d in _deployed(client, declared):
        active = [] if d.paused else [s.schedule for s in d.schedules if s.active]
        when = [getattr(s, "cron", None) or f"every {getattr(s, 'interval', '?')}" for s in active]
        hours = d.parameters.get("hours")
        table.add_row(
            f"{client.read_flow(d.flow_id).name}/{d.name}",
            "; ".join(f"{text} ({getattr(s, 'timezone', None) or 'UTC'})" for text, s in zip(when, active, strict=True))
            or ("paused" if d.schedules else "on demand"),
            _next(client, d) if active else "–",
            str(d.work_pool_name),
            f"{hours:g} h" if hours else "–",
        )
    return table


def _next(client: "SyncPrefectClient", deployment: "DeploymentResponse") -> str:
    """When a deployment runs next, once the server has planned it; it looks every few seconds."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [deployment.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    )
    end = time.monotonic() + 20
    while time.monotonic() < end:
        runs = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=1)
        if runs and runs[0].expected_start_time:
            return runs[0].expected_start_time.astimezone().strftime("%a %d %b %H:%M %Z")
        time.sleep(0.5)
    return "–"
