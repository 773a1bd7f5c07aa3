"""A Prefect server for the session, and a project for each module."""

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
        wait_for(f"http://127.0.0.1:{port}/api/health", server)
        yield {**env, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        stop(server)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Project:
    """A tiny project on the running server, for one module."""
    return clone(tmp_path_factory.mktemp("project"), **prefect_server)
