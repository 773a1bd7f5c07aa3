"""`trueframe serve --follow` where the registry or the disk fails in the middle of a move."""

import asyncio
import errno
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from components.params import Serve
from components.serve.gateway import Gateway
from components.stage import StageError
from flows import serving
from flows.serving import _Service


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


def followed(registry: Registry, monkeypatch: pytest.MonkeyPatch, seconds: float = 60) -> _Service:
    """Follow until version 2 answers, or for so long."""

    async def started(*_: Any) -> None: ...

    async def follow() -> _Service:
        settings = Serve(poll_s=0.01)
        front = Gateway(settings)
        service = _Service(registry, settings, front, 1)  # type: ignore[arg-type]
        monkeypatch.setattr(service, "_started", started)
        async with front.open():
            following = asyncio.create_task(service._follow("1"))
            end = asyncio.get_running_loop().time() + seconds
            while front.version != "2" and not following.done() and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.01)
            if following.done():
                following.result()
            following.cancel()
            await asyncio.gather(following, *service.old, return_exceptions=True)
        return service

    with ThreadPoolExecutor(1) as thread:  # tests with a browser leave a loop in this one
        return thread.submit(asyncio.run, follow()).result()


def test_a_registry_that_goes_away_during_a_move_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    registry = Registry(outage(), outage(), wrapped(), full)
    service = followed(registry, monkeypatch)
    assert service.gateway.version == "2" and registry.fetched == 5
    assert service.failed._value.get() == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "error: the database is away; VERSION 1 GOES ON",
        "error: models:/trueframe/2 can't be served: the MLflow store fails; VERSION 1 GOES ON",
        "error: [Errno 28] No space left on device; VERSION 1 GOES ON",
    ]
    assert out.splitlines() == [
        "version 2 is the champion now; it is being loaded",
        "version 2 answers from now on",
    ]
    assert len(list(tmp_path.iterdir())) == 1, "of the moves that failed nothing stays"


def test_without_room_for_the_files_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    with monkeypatch.context() as patch:
        patch.setattr(serving.tempfile, "mkdtemp", full)
        service = followed(Registry(), monkeypatch, 0.5)
    assert service.gateway.version is None and service.failed._value.get() == 1
    assert service.moves.labels("failed")._value.get() > 1, "it tried again"
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and line.endswith("VERSION 1 GOES ON")


def test_a_version_that_is_at_fault_itself_is_not_tried_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(StageError("its files were changed"))
    service = followed(registry, monkeypatch, 0.5)
    assert registry.fetched == 1 and service.gateway.version is None and service.failed._value.get() == 1
