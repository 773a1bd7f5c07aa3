"""One run at a time in a folder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from components.stage import StageError


@contextmanager
def only_run(
    folder: Path, run: str = "", *, wait: Callable[[str], object] | None = None, what: str = "another run"
) -> Iterator[str | None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends.

    Args:
        folder: whose lock it is.
        run: what this one is called.
        wait: takes the word that another one is at work, after which this one waits; null doesn't wait.
        what: holds it.

    Yields:
        The run that held the lock before this one and was killed; None where none was.

    Raises:
        StageError: another one holds it, and this one doesn't wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            said = f"{what} (process {file.read().partition(' ')[0]}) is at work here"
            if wait is None:
                raise StageError(f"{said}; wait for it, or end it") from None
            wait(f"{said}; this one waits for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        killed = file.read().partition(" ")[2] or None
        file.truncate(0)
        file.write(f"{os.getpid()} {run}")
        file.flush()
        try:
            yield killed
        finally:
            file.truncate(0)
