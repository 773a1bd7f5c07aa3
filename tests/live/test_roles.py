"""Who may do what in a registry with MLflow's own authentication on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import served
from harness import Project, free_port, stop, wait_for

from components.register import registry as module
from components.register.registry import Registry
from components.stage import StageError

pytestmark = pytest.mark.slow

pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "the password of the admin"}
INI = """[mlflow]
default_permission = READ
database_uri = sqlite:///{root}/auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass
class Shared:
    """A server, and a project's folder that uses it."""

    uri: str
    home: served.Registered

    def run(self, user: str, *command: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        own = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or f"the password of {user}"}
        env = self.home.environment(**own, MLFLOW_TRACKING_URI=self.uri)
        whole = [sys.executable, "-m", "flows.cli", *command]
        return subprocess.run(whole, cwd=self.home.root, env=env, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Two versions of `trueframe`, of which the first is the champion."""
    root = tmp_path_factory.mktemp("roles")
    (root / "auth.ini").write_text(INI.format(root=root))
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    port = free_port()
    where = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts", "--port", str(port)]
    command = ["mlflow", "server", "--app-name", "basic-auth", *where, "--workers", "1"]
    server = Project(root, env).start(*command, log="server.log")
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{uri}/health", server, 300)
        yield Shared(uri, served.project(root / "project"))
    finally:
        stop(server)


@pytest.fixture
def admin(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow's clients as the administrator."""
    import mlflow
    from mlflow.server import get_app_client

    before = mlflow.get_tracking_uri()
    for name, value in ADMIN.items():
        monkeypatch.setenv(name, value)
    yield mlflow.MlflowClient(shared.uri, shared.uri), get_app_client("basic-auth", tracking_uri=shared.uri)
    mlflow.set_tracking_uri(before)


def registry(user: str, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry as a user sees it."""
    import mlflow

    monkeypatch.setattr(module, "_SETTLE", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"the password of {user}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    mlflow.set_tracking_uri(shared.uri)
    return Registry("trueframe")


def one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert "password of" not in done.stdout + done.stderr


def test_who_only_reads_sees_everything_and_moves_nothing(
    shared: Shared, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, users = admin
    client.create_experiment("trueframe")
    client.create_registered_model("trueframe")
    for _ in range(2):
        client.create_model_version("trueframe", "s3://nowhere/detector")
    client.set_registered_model_alias("trueframe", "champion", "1")  # as the MLflow UI does: there is a move to note
    for name in ("rita", "emil"):
        users.create_user(name, f"the password of {name}")
    users.grant_user_permission("emil", "registered_model", "trueframe", "EDIT")

    rita = registry("rita", shared, monkeypatch)
    assert [version.aliases for version in rita.versions()] == [[], ["champion"]]
    assert rita.history() == [], "nothing is noted in her name"
    with pytest.raises(StageError, match="the MLflow server doesn't allow it to rita"):
        rita.challenge("2")
    one_line(shared.run("rita", "promote", "2"), "the MLflow server doesn't allow it to rita")
    assert client.get_registered_model("trueframe").aliases == {"champion": "1"}

    done = shared.run("emil", "promote", "2", "--reason", "better")
    assert done.returncode == 0 and "version 2 is the champion" in done.stdout, done.stderr
    rita = registry("rita", shared, monkeypatch)
    noted = [(event.version, event.how, event.by.split("@")[0], event.reason) for event in rita.history()]
    assert noted == [("1", "found", "emil", ""), ("2", "promoted", "emil", "better")]
    with pytest.raises(StageError, match="the MLflow server doesn't allow it to rita"):
        rita.rollback()
    assert client.get_registered_model("trueframe").aliases == {"champion": "2"}


def test_who_is_nobody_sees_nothing(shared: Shared) -> None:
    one_line(shared.run("rita", "models", password="a guess"), "the MLflow server doesn't know rita, or the password")
