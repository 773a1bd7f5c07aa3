"""The version of the data: `dvc add` and `dvc push` in this process, which saves starting DVC twice."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from components.stage import StageError
from flows import doctor, dvc

_LOGGERS = ("dvc", "dvc_data", "dvc_objects")


def version() -> None:
    """Give the data its version, and send it to the remote, where one is configured; under a run's own lock.

    Raises:
        StageError: DVC can't, or the remote doesn't take it.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc_data.hashfile.cache import DiskError, Timeout

    dvc.mend()
    with _listening() as said:
        try:
            with Repo() as repo:
                repo.add("data")
                if repo.config["remote"]:
                    try:
                        repo.push(["data.dvc"])
                    except Exception as error:  # what the remote's own library raises is of many kinds
                        trouble = doctor.remote_trouble([*said, f"ERROR: {error}"])
                        raise StageError(
                            "data.dvc names this version of the data, but it isn't on the DVC remote yet: "
                            f"{trouble}; `dvc push` sends it"
                        ) from None
        except NotDvcRepoError:
            raise StageError("this is no DVC repository, so the data gets no version; `dvc init` makes one") from None
        except (DvcException, DiskError, Timeout, sqlite3.Error) as error:
            reason = dvc.told(str(error) or type(error).__name__)
            raise StageError(f"DVC gave the data no version: {reason}") from None


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What DVC complains about, collected in the form of its own lines instead of printed."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reason = f" - {record.exc_info[1]}" if record.exc_info else ""
            said.append(f"ERROR: {record.getMessage()}{reason}")

    listener = Listener(logging.ERROR)
    before = {name: logging.getLogger(name).handlers[:] for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).handlers[:] = [listener]
        yield said
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).handlers[:] = before[name]
