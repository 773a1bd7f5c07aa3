"""MLflow: where it is, and the tags by which a model can be traced back to its data."""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from components import troubles
from components.stage import StageError, refused
from components.troubles import line, shown

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

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints what it then raises

    uri = mlflow.get_tracking_uri()
    try:
        _reach(uri)
        if uri.startswith("sqlite:///"):
            with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                mlflow.set_experiment(EXPERIMENT)
        else:
            mlflow.set_experiment(EXPERIMENT)
    except Exception as error:
        if not (isinstance(error, MlflowException | ImportError | OSError) or troubles.told(error)):
            raise
        raise StageError(f"the MLflow store {shown(uri)} can't be used{_because(uri, error)}") from None
    return mlflow


def _because(uri: str, error: Exception) -> str:
    """Why a store can't be used, and what to do."""
    if denied := refused(error):
        return f": {denied}"
    said = str(error)
    if isinstance(error, ImportError):
        return f" ({line(error)}); `pip install -e '.[shared]'` brings PostgreSQL's driver, others have their own"
    if found := re.search(r"found version (\w+), but expected (\w+)", said):
        migrations = Path(str(sys.modules["mlflow"].__file__)).parent / "store/db_migrations/versions"
        if any(migrations.glob(f"{found[1]}*.py")):
            return f": an older MLflow made its tables; make a copy of it, then `mlflow db upgrade {shown(uri)}`"
        return f" (its tables are of version {found[1]}, this MLflow's of {found[2]}): {troubles.database(said)}"
    way = troubles.database(said, _file(uri))
    return f" ({line(error).replace(uri, shown(uri))}): {way or 'start it, or correct MLFLOW_TRACKING_URI'}"


def _file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    if not uri.startswith("sqlite:"):
        return None
    import sqlalchemy

    return Path(sqlalchemy.make_url(uri).database or "")


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

    uri = mlflow.get_tracking_uri()
    way = troubles.database(str(error), _file(uri)) or "run the same command again once it works: nothing is lost"
    return f"the MLflow store {shown(uri)} fails ({line(error)}); {way}"


def begun() -> bool:
    """Whether there is a store to look into: before the first run there is none, unless one is configured."""
    return "MLFLOW_TRACKING_URI" in os.environ or Path("mlflow.db").exists()


def _reach(uri: str) -> None:
    """Ask a server for its health, or a database for a connection, once; MLflow would go on asking for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        parts = urlsplit(uri)
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with contextlib.suppress(urllib.error.HTTPError):  # it answers, if only to refuse
            urllib.request.urlopen(f"{place.rstrip('/')}/health", timeout=10).close()
    elif scheme in ("postgresql", "mysql") or (scheme == "sqlite" and (file := _file(uri)) and file.exists()):
        import sqlalchemy

        options = {} if scheme == "sqlite" else {"connect_timeout": 10}
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=options)
        with engine.connect() as connection:
            if scheme == "sqlite":  # which reads nothing before it is asked
                connection.exec_driver_sql("PRAGMA schema_version")


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
