"""A Prefect server and an MLflow server for the session, and a project for each module."""

from collections.abc import Iterator

import pytest
from harness import Project, clone, free_port, stop, wait_for


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Prefect server; the environment that points to it."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    env = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = Project(home, env).start("prefect", "server", "start", "--port", str(port), log="server.log")
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, 300)
        yield {**env, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        stop(server)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running MLflow server that keeps the artifacts too, and sends webhooks to this machine."""
    from cryptography.fernet import Fernet

    root = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    env = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    where = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts", "--port", str(port)]
    server = Project(root, env).start("mlflow", "server", *where, "--workers", "1", log="server.log")
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, 300)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Project:
    """A tiny project on the running server, for one module."""
    return clone(tmp_path_factory.mktemp("project"), **prefect_server)
