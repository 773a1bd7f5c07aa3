"""What bounds a flow run: the other runs in its folder, and time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Failed
from prefect.utilities.timeout import timeout

from components import troubles
from components.stage import StageError
from flows import locks


class OutOfTime(StageError):
    """A run took longer than it may."""


class _Expired(TimeoutError):
    pass


@contextmanager
def bounded(hours: float | None) -> Iterator[None]:
    """Run alone in this folder, and no longer than so many hours.

    A deployment's run waits for the one that is at work here; a person's is told of it.

    Raises:
        OutOfTime: the hours are over; what it was doing was ended.
        StageError: another run is at work here.
    """
    run, wait = str(runtime.flow_run.id), get_run_logger().info if unattended() else None
    with locks.only_run(Path("artifacts"), run, wait=wait) as killed:
        if killed:
            _tell_of_crash(killed)
        with in_time(hours):
            yield


@contextmanager
def in_time(hours: float | None) -> Iterator[None]:
    """Run no longer than so many hours, whoever else is at work in this folder.

    Raises:
        OutOfTime: the hours are over; what it was doing was ended.
    """
    try:
        with timeout(None if hours is None else hours * 3600, _Expired):
            yield
    except _Expired:
        raise OutOfTime(f"not done within {hours:g} hours; the next run goes on where this one was") from None


def _tell_of_crash(run: str) -> None:
    """Tell the server of a flow run that was killed, and couldn't: it would be running for ever."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run)).state
        except ObjectNotFound:  # of another server
            return
        if state is not None and not state.is_final():
            client.set_flow_run_state(UUID(run), Crashed(message="killed; the run after it found that"), force=True)


def failed(error: Exception) -> State[Any]:
    """The state of a run that an error ended; one that nobody could act on is raised again, for Prefect to show it."""
    said = troubles.told(error)
    if said is None:
        raise error
    return Failed(name="TimedOut" if isinstance(error, OutOfTime) else "Failed", message=said)


def unattended() -> bool:
    """Whether a deployment's run is at work, and nobody who could start it again."""
    return runtime.deployment.id is not None


def retried(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed is tried again: a person would rather see why at once."""
    return unattended()
