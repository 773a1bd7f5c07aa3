"""`trueframe serve --follow` where the registry or the disk fails in the middle of a move."""

import asyncio
import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from components.params import Monitor, Serve
from components.serve import clerk, supervisor
from components.serve.supervisor import Supervisor
from components.serve.worker import Orders
from components.stage import StageError


class Registry:
    """Version 2 is the champion, and `fetch` fails as it is told before it works."""

    name = "trueframe"

    def __init__(self, *failures: Exception) -> None:
        self.failures: Iterator[Exception] = iter(failures)
        self.fetched = 0

    def champion(self) -> str:
        return "2"

    def fetch(self, version: str, folder: Path) -> Path:
        self.fetched += 1
        for failure in self.failures:
            raise failure
        return folder


def outage() -> MlflowException:
    return MlflowException("the database is away\nand more of it")  # INTERNAL_ERROR


def wrapped() -> StageError:
    """As the registry tells of an outage while files are copied."""
    try:
        try:
            raise outage()
        except MlflowException:
            raise StageError("the MLflow store fails") from None
    except StageError as error:
        return error


def followed(registry: Registry, monkeypatch: pytest.MonkeyPatch, scratch: Path, seconds: float = 60) -> Supervisor:
    """Follow until version 2 answers, or for so long."""
    settings = Serve(poll_s=0.01)
    following = Supervisor("trueframe", Orders(0, settings, Monitor(), []), 1, scratch)

    async def none(_: int) -> list[Any]:
        return []

    async def ask(question: str, *arguments: Any) -> Any:
        return clerk.answer(registry, question, *arguments)  # type: ignore[arg-type]

    async def follow() -> None:
        task = asyncio.create_task(following._follow("1"))
        end = asyncio.get_running_loop().time() + seconds
        while not (following.moves.labels("done")._value.get() or task.done()):
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.01)
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    monkeypatch.setattr(following, "_start", none)
    monkeypatch.setattr(following, "_ask", ask)
    with ThreadPoolExecutor(1) as thread:  # tests with a browser leave a loop in this one
        thread.submit(asyncio.run, follow()).result()
    return following


def test_a_registry_that_goes_away_during_a_move_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    registry = Registry(outage(), outage(), wrapped(), full)
    following = followed(registry, monkeypatch, tmp_path)
    assert following.version and following.version.number == "2" and registry.fetched == 5
    assert following.failed._value.get() == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "error: models:/trueframe/2 can't be served: the database is away; VERSION 1 GOES ON",
        "error: models:/trueframe/2 can't be served: the MLflow store fails; VERSION 1 GOES ON",
        "error: models:/trueframe/2 can't be served: [Errno 28] No space left on device; VERSION 1 GOES ON",
    ]
    assert out.splitlines() == [
        "version 2 is the champion now; it is being loaded",
        "version 2 answers from now on",
    ]
    assert len(list(tmp_path.iterdir())) == 1, "of the moves that failed nothing stays"


def test_without_room_for_the_files_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(**_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    with monkeypatch.context() as patch:
        patch.setattr(supervisor.tempfile, "mkdtemp", full)
        following = followed(Registry(), monkeypatch, tmp_path, 0.5)
    assert following.version is None and following.failed._value.get() == 1
    assert following.moves.labels("failed")._value.get() > 1, "it tried again"
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and line.endswith("VERSION 1 GOES ON")


def test_a_version_that_is_at_fault_itself_is_not_tried_all_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = Registry(StageError("its files were changed"))
    following = followed(registry, monkeypatch, tmp_path, 0.5)
    assert registry.fetched == 1 and following.version is None and following.failed._value.get() == 1
