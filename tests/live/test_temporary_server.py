"""Without a Prefect server a run starts one of its own; and `prefect deploy` puts the nightly run on a real one."""

from pathlib import Path

import pytest
from harness import Project, clone, stop


def test_with_prefects_temporary_server(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", PREFECT_HOME=str(tmp_path / "prefect"))
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    project.params = params
    output = project.ok("trueframe", "run", timeout=400)
    assert "champion: trueframe version 1" in output
    assert "temporary server" in output


@pytest.fixture
def deployed(tmp_path: Path, prefect_server: dict[str, str]) -> Project:
    project = clone(tmp_path / "project", **prefect_server)
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    project.params = params
    project.ok("prefect", "work-pool", "create", "--type", "process", "trueframe")
    project.ok("prefect", "--no-prompt", "deploy", "--all")
    return project


def test_a_worker_runs_the_nightly_deployment(deployed: Project) -> None:
    worker = deployed.start("prefect", "worker", "start", "--pool", "trueframe", log="worker.log")
    try:
        output = deployed.ok("prefect", "deployment", "run", "retrain/nightly", "--watch", timeout=400)
    finally:
        stop(worker)
    assert "Completed" in output, (deployed.root / "worker.log").read_text()[-3000:]
    assert (deployed.root / "artifacts/registration.json").exists()
    assert "0 3 * * *" in deployed.ok("prefect", "deployment", "inspect", "retrain/nightly")
