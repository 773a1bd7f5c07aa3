"""MLflow: where it is, and the tags by which a model can be traced back to its data."""

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from components.stage import StageError, refused

EXPERIMENT = "trueframe"
COMMIT = "TRUEFRAME_COMMIT"
"""The variable by which an image, which has no repository, knows the commit it was built from."""
_CODE = ("components", "dvc.yaml")
_OUTAGES = ("ABORTED", "DEADLINE_EXCEEDED", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE")


def connect() -> Any:
    """Set MLflow up and return the `mlflow` module.

    The store is MLflow's own choice: what MLFLOW_TRACKING_URI says, `mlflow.db` in this folder otherwise. A new
    database gets its tables under a lock, since several processes may come first.

    Raises:
        StageError: the store can't be reached.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = mlflow.get_tracking_uri()
    try:
        _reach(uri)
        if uri.startswith("sqlite:///"):
            with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                mlflow.set_experiment(EXPERIMENT)
        else:
            mlflow.set_experiment(EXPERIMENT)
    except (MlflowException, OSError) as error:
        if denied := refused(error):
            raise StageError(f"the MLflow store {shown(uri)} can't be used: {denied}") from None
        reason = line(error).replace(uri, shown(uri))
        raise StageError(
            f"the MLflow store {shown(uri)} can't be used ({reason}); start it, or correct MLFLOW_TRACKING_URI"
        ) from None
    return mlflow


def shown(text: str) -> str:
    """An address, or a text with addresses, as it may be printed: without the passwords in it."""
    return re.sub(r"://([^/\s:@]*):[^/\s]*@", r"://\1:…@", text)


def line(error: Exception) -> str:
    """What an error says first, without the password that may stand in an address, and without SQLAlchemy's preface."""
    lines = [text for text in str(error).strip().splitlines() if not text.startswith("(raised as a result of")]
    return shown(lines[0])[:300] if lines else type(error).__name__


def is_trouble(error: Exception) -> bool:
    """Whether this is of MLflow, or of the connection to its server."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return "mlflow" in sys.modules and bool(kinds & {"mlflow", "requests"})


def is_outage(error: Exception) -> bool:
    """Whether it may work later: the store failed or didn't answer, rather than said no."""
    if hasattr(error, "error_code"):
        return error.error_code in _OUTAGES
    answer = getattr(error, "response", None)
    return is_trouble(error) and (answer is None or answer.status_code >= 500)


def trouble(error: Exception) -> str:
    """What MLflow complains about, as one line that says what to do."""
    import mlflow

    uri = shown(mlflow.get_tracking_uri())
    return f"the MLflow store {uri} fails ({line(error)}); run the same command again once it works: nothing is lost"


def begun() -> bool:
    """Whether there is a store to look into: before the first run there is none, unless one is configured."""
    return "MLFLOW_TRACKING_URI" in os.environ or Path("mlflow.db").exists()


def _reach(uri: str) -> None:
    """Ask a server for its health once; MLflow's own client would go on asking for minutes."""
    if uri.startswith(("http://", "https://")):
        with contextlib.suppress(urllib.error.HTTPError):  # it answers, if only to refuse
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()


def active(mlflow: Any, run_id: str | None) -> str | None:
    """The run's id if the store still has it, else None (and a new run takes its place)."""
    if run_id is None:
        return None
    try:
        found = mlflow.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.exceptions.MlflowException:
        return None
    return run_id if found else None


def lineage(params: Path = Path("params.yaml")) -> dict[str, str]:
    """The tags that name the exact code, data, settings and packages, as far as they are known.

    Args:
        params: the settings.

    Returns:
        `git_commit`, `git_dirty` (whether the stages' code is another than the commit's), `data_md5`, and the md5 of
        each file of `recorded`, `dvc_lock_md5` for one.
    """
    tags = {}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git_commit"] = commit
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--", *_CODE))).lower()
    elif built_from := os.environ.get(COMMIT):
        tags["git_commit"] = built_from
    data = Path("data.dvc")
    if data.exists():
        tags["data_md5"] = yaml.safe_load(data.read_text())["outs"][0]["md5"]
    for name, text in recorded(params).items():
        tag = f"{name.removesuffix('.yaml').replace('.', '_')}_md5"
        tags[tag] = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return tags


def recorded(params: Path) -> dict[str, str]:
    """The text of the files that a version keeps, by name: `params.yaml`, `dvc.lock`, `requirements.lock`."""
    files = {"params.yaml": params, "dvc.lock": Path("dvc.lock"), "requirements.lock": Path("requirements.lock")}
    return {name: file.read_text() for name, file in files.items() if file.exists()}


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
