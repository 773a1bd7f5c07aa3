"""What every stage's command shares: one clear line on failure, and an end when its flow is gone."""

import contextlib
import errno
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FLOW_PID = "TRUEFRAME_FLOW_PID"
_DVC = "DVC_STAGE"


class StageError(Exception):
    """A failure that a person can act on. The message names the thing, the reason and the way out."""


def main(stage: Callable[[], None]) -> None:
    """Run a stage's command: exit code 0, or 1 with one line on stderr.

    When a flow or DVC started the stage (they say so in the environment), the stage ends with it: a killed one
    leaves no training behind that would hold the files it has to take up again.
    """
    flow = os.environ.get(FLOW_PID)
    if flow or _DVC in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(), flow), daemon=True).start()
    with one_line():
        stage()


@contextlib.contextmanager
def one_line(code: int = 1) -> Iterator[None]:
    """End the process with one line on stderr for every failure that a person can act on, and with this exit code."""
    _take_any_name()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", code)
    except BrokenPipeError:  # who read the output wants no more of it, as `head`; nor does Python when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        from components import troubles

        if reason := troubles.told(error):
            fail(reason, code)
        raise


def _take_any_name() -> None:
    """Let no name of a file end the process: what the terminal or the pipe can't show is spelled out."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def refused(error: Exception) -> str | None:
    """Of an error that says that the MLflow server doesn't let this user do something, the reason and the way out."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    match getattr(error, "error_code", None):
        case "PERMISSION_DENIED":
            return (
                f"the MLflow server doesn't allow it to {user or 'this user'}; who administers it can give the "
                "permission (EDIT on the registered model and on the experiment)"
            )
        case "UNAUTHENTICATED" | "CUSTOMER_UNAUTHORIZED":
            return (
                f"the MLflow server doesn't know {user or 'who asks'}, or the password is another; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        case _:
            return None


def fail(message: str, code: int = 1) -> None:
    """Print one line on stderr and exit."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def describe(error: OSError) -> str:
    """An operating-system error as one line that says what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if is_full(error):
        return f"{where}disk full; nothing half-written was kept. Free some space and run the same command again"
    if error.filename is None:
        return f"a connection failed ({error.strerror}); see that the other end is there, and run it again"
    match error:
        case PermissionError():
            way = "; this user may not do that: `ls -ld` says who may"
        case IsADirectoryError():
            way = "; a file belongs there, move the folder away"
        case NotADirectoryError() | FileExistsError():
            way = "; a folder belongs there, move the file away"
        case _:
            way = ""
    return f"{where}{error.strerror}{way}"


def is_full(error: Exception) -> bool:
    """Whether a disk, or this user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write` fills a neighbour, which then takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def apart(folder: Path) -> None:
    """Remove the links to DVC's cache among the outputs of an earlier run, which would be written through.

    DVC does so itself before it runs a stage; whoever runs one by hand relies on this.

    Args:
        folder: of outputs that are about to be written anew.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            path.unlink()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        StageError: it is damaged.
        FileNotFoundError: it isn't there.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StageError(_damaged(path, error)) from None


def read_table(path: Path) -> "pd.DataFrame":
    """What a Parquet file holds.

    Raises:
        StageError: it is damaged.
        FileNotFoundError: it isn't there.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StageError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).splitlines() or ["it can't be read"])[0][:200]
    return (
        f"{path}: damaged ({reason}); `dvc checkout` restores what a version has, and what a stage made is made again "
        "once the file is removed"
    )


def _end_with(parent: int, flow: str | None) -> None:
    while os.getppid() == parent and (flow is None or _lives(int(flow))):
        time.sleep(0.5)
    os._exit(1)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
