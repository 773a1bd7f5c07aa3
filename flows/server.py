"""Prefect servers that this machine starts by itself: a temporary one for a run, a lasting one for the schedules."""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any, BinaryIO

from components import troubles
from components.stage import StageError
from flows import commands

HOST = "127.0.0.1"
_START = 300.0  # s that a server may take to answer; the first one makes its database


def at_hand() -> None:
    """See that there is a server for the flows of this process: the one that is set, or a temporary one.

    The temporary server keeps its runs in Prefect's own database, and ends with this process, however that ends:
    Prefect's own would outlive a kill.

    Raises:
        StageError: it doesn't start, or the one that is set can't be used.
    """
    if url := configured():
        reached(url)
        return
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    print(f"no Prefect server is set: a temporary server on http://{HOST}:{port}", file=sys.stderr, flush=True)
    where = ["--host", HOST, "--port", str(port), "--log-level", "error", "--timeout-graceful-shutdown", "3"]
    said = tempfile.TemporaryFile()  # noqa: SIM115  it is the server's as long as that runs
    process = subprocess.Popen(
        commands.with_parent(
            [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", *where]
        ),
        # What Prefect says to its own temporary server: no page, no scheduler.
        env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        stdin=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,  # so that an interrupt reaches the run alone, which still has something to tell it
    )
    atexit.register(_stop, process)
    import prefect.flows  # noqa: F401  it takes its time, while the server starts

    wait_for(f"http://{HOST}:{port}/api", process, said)
    use(f"http://{HOST}:{port}/api")


def configured() -> str | None:
    """The address of the server that the environment or Prefect's profile names."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def use(url: str) -> None:
    """Let this process, and those that it starts, use the server at this address."""
    from prefect import context

    os.environ["PREFECT_API_URL"] = url
    context.refresh_global_settings_context()


def answers(url: str) -> bool:
    """Whether a server answers at this address, were it with a refusal."""
    return _silence(url) is None


def _silence(url: str) -> str | None:
    """Why no server answers at this address; null where one does."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def reached(url: str) -> list[Any]:
    """The work pools of the server that is set at this address, whose API answers us.

    Raises:
        StageError: it doesn't.
    """
    server = f"the Prefect server {troubles.shown(url)}"
    own = "unset PREFECT_API_URL (`prefect config unset PREFECT_API_URL`), so that one is started here"
    if reason := _silence(url):
        raise StageError(f"{server} doesn't answer ({reason}); start it (`prefect server start`), or {own}")
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            return client.read_work_pools()
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.UNAUTHORIZED:
            raise StageError(f"{server} doesn't know us; set PREFECT_API_AUTH_STRING as the server has it") from None
        said = f"{server} answers, but not as Prefect's API does ({troubles.line(error).partition(' for url')[0]})"
        raise StageError(f"{said}; see its log, correct PREFECT_API_URL, or {own}") from None


def wait_for(url: str, process: subprocess.Popen[bytes], log: BinaryIO, since: int = 0) -> None:
    """Wait until a server that was started answers.

    Args:
        url: where it will answer.
        process: its own.
        log: what it says.
        since: where that begins.

    Raises:
        StageError: it ended, or doesn't answer.
    """
    end = time.monotonic() + _START
    while not answers(url):
        if process.poll() is not None:
            raise StageError(f"Prefect's server for {url} ended with code {process.returncode}: {_last(log, since)}")
        if time.monotonic() > end:
            raise StageError(f"Prefect's server for {url} doesn't answer within {_START:.0f} s")
        time.sleep(0.1)


def _last(log: BinaryIO, since: int) -> str:
    """Why a server ended, by the last lines that it said: what its database says goes first."""
    log.seek(since)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()][-300:]
    for line in reversed(lines):
        if way := troubles.database(line):
            return f"its database can't be used ({line[-200:]}): {way}"
    return lines[-1][-300:] if lines else "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    process.kill()
    process.wait()
