"""What is registered in this folder, read from MLflow's SQLite file itself: importing MLflow takes seconds.

Whatever isn't plain there, MLflow is asked: another store, a folder that was moved, a locked or damaged file, a version
that doesn't exist or isn't what was registered. So what it says, and what it puts right, stays the same.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import integrity, tracking

if TYPE_CHECKING:
    from components.register.registry import Registry

CHAMPION = "champion"
"""The alias of the version that answers."""
SUMS = "files_sha256"
"""The tag that holds the SHA-256 of the list of a version's files."""
_FILE = "mlflow.db"
_ELSEWHERE = ("MLFLOW_REGISTRY_URI", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")
_WAIT = 1.0  # s for whoever writes at this moment


def champion(model: str) -> str | None:
    """The champion's number; None where there is none.

    Args:
        model: its registered name.

    Raises:
        StageError: the store can't be reached.
    """
    found = _read("SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", model, CHAMPION)
    if found is None:
        return _registry(model).champion()
    return str(found[0][0]) if found else None


def sums(model: str, number: str) -> str | None:
    """The SHA-256 of the list of a version's files; None where it was registered without one.

    Raises:
        StageError: there is no such version, or the store can't be reached.
    """
    found = _version(model, number)
    return found[1] if found else _registry(model).version(number).tags.get(SUMS)


def fetch(model: str, number: str, folder: Path) -> Path:
    """Copy a version's files, and see that they are those that were registered (see `Registry.fetch`).

    Args:
        model: its registered name.
        number: of the version.
        folder: an empty one.
    """
    return _copied(model, number, folder) or _registry(model).fetch(number, folder)


def load(model: str, number: str) -> Any:
    """The detector of a version (see `Registry.load`)."""
    from components.serve.files import Files

    with tempfile.TemporaryDirectory(prefix="trueframe-") as scratch:
        files = _copied(model, number, Path(scratch))
        if files:
            return Files.logged(files).load(number)
    return _registry(model).load(number)


def _registry(model: str) -> "Registry":
    from components.register.registry import Registry

    return Registry(model)


def _copied(model: str, number: str, folder: Path) -> Path | None:
    """A copy of a version's files; None where they aren't plainly those that were registered."""
    place, wanted = _version(model, number) or (None, None)
    if place is None or wanted is None:
        return None
    copy = folder / "here"
    with contextlib.suppress(OSError):
        shutil.copytree(place, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if hashlib.sha256(integrity.listed(copy).encode()).hexdigest() == wanted:
            return copy
    shutil.rmtree(copy, ignore_errors=True)
    return None


def _version(model: str, number: str) -> tuple[Path | None, str | None] | None:
    """Where a version's files are, if in a folder, and the SHA-256 of their list; None where MLflow is to be asked."""
    found = _read(
        "SELECT coalesce(storage_location, source), value FROM model_versions AS v LEFT JOIN model_version_tags AS t"
        " ON t.name = v.name AND t.version = v.version AND t.workspace = v.workspace AND key = ?"
        " WHERE v.name = ? AND cast(v.version AS text) = ? AND current_stage != 'Deleted_Internal'",
        SUMS,
        model,
        number,
    )
    return (tracking.local_path(found[0][0]), found[0][1]) if found else None


def _read(question: str, *values: str) -> list[Any] | None:
    """What the file says; None where it isn't this folder's own store, as MLflow left it, or can't be read."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.STORE
    if uri != tracking.STORE or any(os.environ.get(name) for name in _ELSEWHERE) or not Path(_FILE).exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{_FILE}?mode=ro", uri=True, timeout=_WAIT)) as store:
            store.execute("BEGIN")  # both answers are of one moment
            stood = store.execute("SELECT value FROM experiment_tags WHERE key = ?", (tracking.FOLDER,)).fetchall()
            return store.execute(question, values).fetchall() if stood == [(str(Path.cwd()),)] else None
    except sqlite3.Error:
        return None
