"""The history of champions, in a real MLflow store."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from components.register import registry as module
from components.register.registry import Event, Gone, Registry, line
from components.stage import StageError


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process is at work here."""
    monkeypatch.setattr(module, "_SETTLE", 0)


def made(name: str, versions: int, tmp_path: Path) -> Registry:
    """A registered model with some versions."""
    registry = Registry(name)
    registry.client.create_registered_model(name)
    for _ in range(versions):
        registry.client.create_model_version(name, str(tmp_path))
    return registry


def champion(registry: Registry) -> str | None:
    found = registry.alias("champion")
    return found.number if found else None


def test_rollback_goes_back_along_the_line(tmp_path: Path) -> None:
    registry = made("line", 3, tmp_path)
    for number in "123":
        registry.promote(number)
    assert registry.rollback() == "2"
    assert registry.rollback("too many false alarms") == "1"
    with pytest.raises(StageError, match="no earlier champion"):
        registry.rollback()
    registry.promote("3")
    assert registry.rollback() == "1"
    assert [e.version for e in registry.history()] == ["1", "2", "3", "2", "1", "3", "1"]
    assert registry.history()[4].reason == "too many false alarms"


def test_a_move_in_the_ui_is_found_at_the_next_look(tmp_path: Path) -> None:
    registry = made("moved", 3, tmp_path)
    for number in "123":
        registry.promote(number)
    registry.client.set_registered_model_alias("moved", "champion", "1")  # as the MLflow UI does
    registry.promote("2")
    assert [(e.version, e.how) for e in registry.history()][-2:] == [("1", "found"), ("2", "promoted")]
    assert registry.rollback() == "1"
    assert registry.rollback() == "3"
    assert len(registry.history()) == len(registry.history()), "looking again finds nothing new"


def test_deleted_versions_are_skipped(tmp_path: Path) -> None:
    registry = made("deleted", 4, tmp_path)
    for number in "1234":
        registry.promote(number)
    registry.client.delete_model_version("deleted", "3")
    assert registry.rollback() == "2"
    registry.promote("4")
    registry.client.delete_model_version("deleted", "4")  # and its alias with it
    assert champion(registry) is None
    assert registry.rollback() == "2"


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_promotion_that_was_killed_leaves_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made("killed", 3, tmp_path)
    registry.promote("1")
    registry.promote("2")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("3")
    assert (champion(registry), line(registry.history())) == ("3", ["1", "2", "3"])
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.rollback()
    assert (champion(registry), line(registry.history())) == ("3", ["1", "2", "3"])
    assert registry.rollback() == "2"


@pytest.mark.parametrize(
    ("what", "write", "seen"),
    [
        ("set_registered_model_alias", lambda registry: registry.challenge("1"), ["challenger"]),
        ("set_model_version_tag", lambda registry: registry.tag("1", "decision", "champion"), {"decision": "champion"}),
        ("update_model_version", lambda registry: registry.describe("1", "a card"), "a card"),
    ],
)
def test_a_write_that_another_process_got_in_the_way_of_is_made_again(
    what: str, write: Callable[[Registry], None], seen: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    registry = made(f"busy-{what}", 1, tmp_path)
    monkeypatch.setattr(module, "_WAITS", (0, 0))
    done, refusals, writes = getattr(registry.client, what), [2], []

    def busy(*values: str) -> None:
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise MlflowException("UNIQUE constraint failed")
        writes.append(done(*values))

    monkeypatch.setattr(registry.client, what, busy)
    write(registry)
    assert len(writes) == 1
    version = registry.client.get_model_version(registry.name, "1")
    assert [list(version.aliases), version.tags, version.description].count(seen) == 1
    refusals[0] = 9
    with pytest.raises(StageError, match=f"{what.replace('_', ' ')} failed: .*UNIQUE"):
        write(registry)


def test_events_stay_in_order_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    registry = made("clocks", 2, tmp_path)
    monkeypatch.setattr(module, "_now", lambda: datetime(2030, 1, 1, tzinfo=UTC))
    registry.promote("1")
    monkeypatch.setattr(module, "_now", lambda: datetime(2029, 1, 1, tzinfo=UTC))
    registry.promote("2")
    assert [e.version for e in registry.history()] == ["1", "2"]
    assert registry.rollback() == "1"


def test_a_full_disk_says_nothing_of_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made("full", 1, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/somewhere")

    monkeypatch.setattr(registry.mlflow.artifacts, "download_artifacts", full)
    with pytest.raises(StageError, match="disk full") as error:
        registry.fetch("1", tmp_path)
    assert not isinstance(error.value, Gone)


def test_the_line_of_champions() -> None:
    def of(*moves: str) -> list[str]:
        return line([Event("", m.lstrip("<"), "rolled back" if m[0] == "<" else "promoted", "") for m in moves])

    assert of("1", "2", "3", "<2", "<1") == ["1"]
    assert of("1", "2", "3", "<2", "<2") == ["1", "2"], "two rolled back at once"
    assert of("2", "1", "2", "<1") == ["2", "1"]
    assert of("1", "1", "2", "2") == ["1", "2"], "two noted the same move"
    assert of("1", "2", "<1", "3") == ["1", "3"]


def test_what_cannot_be_done_says_why() -> None:
    with pytest.raises(StageError, match="no version 7; versions: none yet"):
        Registry("absent").promote("7")
    with pytest.raises(StageError, match="no earlier champion"):
        Registry("absent").rollback()
