"""One run at a time in a folder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from components.stage import StageError


@contextmanager
def only_run(folder: Path, *, wait: Callable[[str], object] | None = None, what: str = "another run") -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends.

    Args:
        folder: whose lock it is.
        wait: takes the word that another one is at work, after which this one waits; null doesn't wait.
        what: holds it.

    Raises:
        StageError: another one holds it, and this one doesn't wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            said = f"{what} (process {file.read().strip()}) is at work here"
            if wait is None:
                raise StageError(f"{said}; wait for it, or end it") from None
            wait(f"{said}; this one waits for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
