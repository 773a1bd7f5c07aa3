"""A finished project, and the servers that a team shares."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest
import s3
from faulty import SETTINGS, Server, Stores, Waiting, copied, on
from harness import Project, clone, free_port


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage is done, made once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = base / "finished"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / ".whole").exists():
            shutil.rmtree(root, ignore_errors=True)
            project = clone(root)
            project.params = SETTINGS
            project.ok("python", "-m", "components.ingest")
            project.ok("dvc", "add", "data")
            project.ok("dvc", "repro")
            for store in (*root.glob("mlflow.db*"), root / "mlruns"):
                shutil.rmtree(store) if store.is_dir() else store.unlink()
            (root / ".whole").touch()
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """A copy of it with no store yet."""
    return copied(finished, tmp_path / "project")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with (
        postgresql.serve(free_port(), "mlflow", "secret") as database,
        s3.serve(tmp_path_factory.mktemp("s3")) as bucket,
    ):
        bucket.put("mlflow", {})
        bucket.put("dvc", {})
        port = free_port()
        uri = f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{database.port}/postgres"
        where = ["--backend-store-uri", uri, "--artifacts-destination", "s3://mlflow", "--port", str(port)]
        aws = {name: value for name, value in bucket.environment().items() if name.startswith(("AWS_", "NO_PROXY"))}
        env = {
            **aws,
            "MLFLOW_S3_ENDPOINT_URL": bucket.url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = ["mlflow", "server", *where, "--workers", "1"]
        server = Server(tmp_path_factory.mktemp("mlflow"), f"http://127.0.0.1:{port}", "/health", command, **env)
        try:
            yield Stores(database, bucket, server)
        finally:
            server.stop()


@pytest.fixture
def shared(finished: Path, tmp_path: Path, stores: Stores) -> Project:
    """A copy whose runs and versions are in the stores, in a registered model of its own."""
    return on(stores, copied(finished, tmp_path / "project"), tmp_path.name)


@pytest.fixture
def automatic(shared: Project) -> Project:
    """The gate promotes what is better, with no other rule than that."""
    loose = dict.fromkeys(("degraded", "source", "real_accuracy", "calibration"), 1.0) | {"latency": 1000.0}
    gate = {**shared.params["register"]["gate"], **loose}
    shared.params = {**shared.params, "register": {**shared.params["register"], "policy": "automatic", "gate": gate}}
    return shared


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, as they are by default, leases end with the server, and with them the runs that hold them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = ["prefect", "server", "start", "--port", str(port)]
    server = Server(home, f"http://127.0.0.1:{port}/api", "/health", command, **env)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path / "waiting")
