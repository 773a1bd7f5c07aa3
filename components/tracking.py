"""MLflow: where it is, and the tags by which a model can be traced back to its data."""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from components import troubles
from components.stage import StageError, refused
from components.troubles import line, shown

EXPERIMENT = "trueframe"
COMMIT = "TRUEFRAME_COMMIT"
"""The variable by which an image, which has no repository, knows the commit it was built from."""
_CODE = ("components", "dvc.yaml")
STORE = "sqlite:///mlflow.db"
"""MLflow's own choice. Where nothing is set, it escapes the folder's name in it, which SQLite takes literally."""
FOLDER = "trueframe.folder"
"""The tag of the experiment that holds the folder in which the store stood last."""
_PLACES = (
    "experiments.artifact_location",
    "runs.artifact_uri",
    "logged_models.artifact_location",
    "model_versions.source",
    "model_versions.storage_location",
)
"""The columns in which MLflow keeps where files are, as absolute paths or URIs."""
_OUTAGES = ("ABORTED", "DEADLINE_EXCEEDED", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE")


def connect() -> Any:
    """Set MLflow up and return the `mlflow` module.

    The store is MLflow's own choice: what MLFLOW_TRACKING_URI says, `mlflow.db` in this folder otherwise. A new
    database gets its tables under a lock, since several processes may come first. One that came here with its folder
    names its files by their new paths from now on.

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
    if uri.startswith("sqlite:") and not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(uri := STORE)
    try:
        _reach(uri)
        database = _database(uri)
        with _alone(database) if database else contextlib.nullcontext():
            if database and not database.exists():
                _begin(uri)
            experiment = mlflow.set_experiment(EXPERIMENT)
            if database:
                _settle(database, experiment)
    except Exception as error:
        if not (isinstance(error, MlflowException | ImportError | OSError | sqlite3.Error) or troubles.told(error)):
            raise
        raise StageError(f"the MLflow store {shown(uri)} can't be used{_because(uri, error)}") from None
    return mlflow


def _database(uri: str) -> Path | None:
    """The file of a store in SQLite."""
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite"):
        return None
    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def _begin(uri: str) -> None:
    """Make a store's tables. MLflow's own first step writes a bare path into a statement, which a quote in it ends."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, (Path.cwd() / "mlruns").as_uri())


@contextlib.contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Hold the lock of a database; what can only be read here has none, for nobody writes it."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(Path(f"{database}.lock").open("w"))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES) or not database.exists():
                raise
        else:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _settle(database: Path, experiment: Any) -> None:
    """Let a store name the files in this folder where they are, after both were moved or copied together.

    What was put elsewhere on purpose, on S3 or another disk, stays as it is.

    Raises:
        StageError: it would have to, and can't be written.
    """
    here = Path.cwd()
    location = experiment.artifact_location
    beside = database.resolve().parent == here  # a store elsewhere may be that of several folders
    known = experiment.tags.get(FOLDER) if beside else str(here)
    before = Path(known or _stood(location, here))
    if known == str(here) and location == _moved(location, here, here):
        return
    moved = before != here and not (before.exists() and before.samefile(here))
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as store:
            store.execute("BEGIN IMMEDIATE")  # whoever reads meanwhile sees all of it or nothing
            n_changed = 0
            for column in _PLACES:
                table, _, name = column.partition(".")
                rows = store.execute(f"SELECT rowid, {name} FROM {table} WHERE {name} IS NOT NULL").fetchall()
                changed = [
                    (new, row)
                    for row, old in rows
                    if (new := _moved(old, before, here)) != old
                    and (table == "experiments" or not _stayed(old, new, before))  # what is to come goes here
                ]
                store.executemany(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", changed)
                n_changed += len(changed)
            tag = (FOLDER, str(here), experiment.experiment_id)
            if beside:
                store.execute(
                    "INSERT OR REPLACE INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)", tag
                )
            store.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "readonly" not in str(error):
            raise
        if moved:
            raise StageError(
                f"{database}: its folder stood in {before} before, and what it says of its files can't be put right, "
                "since it can't be written here; make a copy of the folder where you may write, and work there"
            ) from None
        return
    if moved and n_changed:
        print(f"this folder stood in {before} before; MLflow's store now names its files here", file=sys.stderr)


def _stood(location: str, here: Path) -> Path:
    """Where a store without the tag stood: where its experiment's files were to go, if they are here now."""
    path = local_path(location)
    if path is None or path.parent.name != "mlruns":
        return here
    before = path.parents[1]
    return before if Path("mlruns", path.name).exists() or (before / "mlflow.db").exists() else here


def _moved(location: str, before: Path, here: Path) -> str:
    """An artifact location after its folder was moved; one that isn't in there as it is."""
    path = local_path(location)
    folder = next((folder for folder in (before, here) if path and path.is_relative_to(folder / "mlruns")), None)
    if path is None or folder is None:
        return location
    new = here / path.relative_to(folder)
    uri = new.as_uri()
    # MLflow unescapes a bare path too, so only one with nothing to escape means the same in both ways.
    return str(new) if uri == f"file://{new}" else uri


def _stayed(location: str, new: str, before: Path) -> bool:
    """Whether files are still in the old place, and nowhere else: the database was moved without them."""
    old, here = local_path(location), local_path(new)
    return bool(old and here and old.exists() and not here.exists()) and not (before / "mlflow.db").exists()


def local_path(location: str) -> Path | None:
    """The path of an artifact location, where it is one, as it was meant: MLflow writes bare ones unescaped."""
    if location.startswith("file:"):
        parts = urlsplit(location)
        return None if parts.netloc else Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


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
    way = troubles.database(said, _database(uri)) or "start it, or correct MLFLOW_TRACKING_URI"
    way = way.replace("its address", "MLFLOW_TRACKING_URI")
    return f" ({line(error).replace(uri, shown(uri))}): {way}"


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
    way = troubles.database(str(error), _database(uri)) or "run the same command again once it works: nothing is lost"
    return f"the MLflow store {shown(uri)} fails ({line(error)}); {way}"


def begun() -> bool:
    """Whether there is a store to look into: before the first run there is none, unless one is configured."""
    return "MLFLOW_TRACKING_URI" in os.environ or Path("mlflow.db").exists()


def _reach(uri: str) -> None:
    """Ask a server for its health, or a database for a connection, once; MLflow would go on asking for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        import urllib.error  # what answers a picture from here doesn't need them
        import urllib.request

        parts = urlsplit(uri)
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with contextlib.suppress(urllib.error.HTTPError):  # it answers, if only to refuse
            urllib.request.urlopen(f"{place.rstrip('/')}/health", timeout=10).close()
    elif scheme in ("postgresql", "mysql") or (scheme == "sqlite" and (file := _database(uri)) and file.exists()):
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
