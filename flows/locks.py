"""One retraining at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.stage import StageError


@contextmanager
def only_run(folder: Path, run: str = "") -> Iterator[str | None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends.

    Args:
        folder: in which the run works.
        run: what it is called.

    Yields:
        The run that held the lock before this one and was killed; None where none was.

    Raises:
        StageError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().partition(" ")[0]
            raise StageError(f"another run (process {pid}) is at work here; wait for it") from None
        file.seek(0)
        killed = file.read().partition(" ")[2] or None
        file.truncate(0)
        file.write(f"{os.getpid()} {run}")
        file.flush()
        try:
            yield killed
        finally:
            file.truncate(0)
