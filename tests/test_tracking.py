"""What is said of MLflow's store."""

import pytest

from components import tracking
from components.stage import StageError


def test_no_password_is_shown() -> None:
    assert tracking.shown("postgresql://me:secret@db:5432/mlflow") == "postgresql://me:…@db:5432/mlflow"
    assert tracking.shown("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    error = OSError("no route to http://me:secret@host/health\nand more")
    assert tracking.line(error) == "no route to http://me:…@host/health"


def test_an_error_is_told_by_its_reason() -> None:
    said = (
        "(raised as a result of Query-invoked autoflush; consider …)\n(sqlite3.OperationalError) disk is full\n[SQL: …]"
    )
    assert tracking.line(RuntimeError(said)) == "(sqlite3.OperationalError) disk is full"
    assert tracking.line(RuntimeError()) == "RuntimeError"


def test_a_store_that_is_not_there_is_one_line_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    # What an earlier test of this process set would go before the variable.
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://me:secret@127.0.0.1:1")
    with pytest.raises(StageError) as caught:
        tracking.connect()
    said = str(caught.value)
    assert said.startswith("the MLflow store http://me:…@127.0.0.1:1 can't be used") and "secret" not in said
