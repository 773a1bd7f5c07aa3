"""A folder that goes with its process."""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "trueframe-ui-"


def folder() -> Path:
    """A new one, which is removed when the process ends; those of processes that were killed are removed now.

    Its process holds a lock on it, which the system lets go of however that ends.
    """
    _sweep()
    hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    with contextlib.suppress(OSError):  # a file system without locks: then none of them is swept
        fcntl.flock(os.open(hidden, os.O_RDONLY), fcntl.LOCK_EX)  # open until the process ends
    made = hidden.rename(hidden.with_name(hidden.name[1:]))  # seen by others now that it is locked
    atexit.register(remove, made)
    return made


def remove(path: Path) -> None:
    """Remove a folder, and whatever is in it."""
    shutil.rmtree(path, ignore_errors=True)


def _sweep() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(path):  # in use, or another user's
            remove(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
