"""What every stage's command shares: one clear line on failure, and an end when its flow is gone."""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

FLOW_PID = "TRUEFRAME_FLOW_PID"


class StageError(Exception):
    """A failure that a person can act on. The message names the thing, the reason and the way out."""


def main(stage: Callable[[], None]) -> None:
    """Run a stage's command: exit code 0, or 1 with one line on stderr.

    When a flow started the stage (it says so in the environment), the stage ends with it: a killed flow
    leaves no training behind that would hold the files it has to take up again.
    """
    flow = os.environ.get(FLOW_PID)
    if flow:
        threading.Thread(target=_end_with, args=(int(flow),), daemon=True).start()
    try:
        stage()
    except StageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
    except OSError as error:
        if error.errno is None:
            raise
        fail(describe(error))
    except Exception as error:
        if not (reason := refused(error)):
            raise
        fail(reason)


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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}disk full; nothing half-written was kept. Free some space and run the same command again"
    return f"{where}{error.strerror}"


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write` fills a neighbour, which then takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _end_with(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        except PermissionError:
            return
        time.sleep(0.5)
