"""Servers that go away in the middle: what runs goes on or ends with one line, and running it again completes it."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served
from faulty import Server, Stores, Waiting, client_of, dies, inside, refused, registered, stage, watched
from harness import Project

pytestmark = pytest.mark.slow

CLIENT = "mlflow.tracking.client:MlflowClient"
TRAIN = ["python", "-m", "components.train", "--model", "small"]
MINUTES = 5.0  # that a lease holds


def ask(prefect: Server, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{prefect.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def test_prefect_and_postgresql_restarted_while_a_flow_runs(
    shared: Project, prefect: Server, stores: Stores, waiting: Waiting
) -> None:
    project = watched(prefect, shared)
    before = {run["id"] for run in ask(prefect, "flow_runs/filter")}
    flow = inside(project, **waiting.env(f"{CLIENT}.create_registered_model")).start("trueframe", "run", log="run.log")
    waiting.until_there(flow, project.root / "run.log")
    assert "another run (process" in refused(project, "trueframe", "run")  # two at once
    ask(prefect, "v2/concurrency_limits/", name="one", limit=1)
    held = {"names": ["one"], "slots": 1, "mode": "concurrency", "lease_duration": 60 * MINUTES}
    lease = ask(prefect, "v2/concurrency_limits/increment-with-lease", **held)["lease_id"]
    prefect.kill()
    prefect.start()
    stores.database.stop()
    stores.database.start()
    ask(prefect, f"v2/concurrency_limits/leases/{lease}/renew", lease_duration=60 * MINUTES)
    waiting.go()
    assert flow.wait(300) == 0, (project.root / "run.log").read_text()[-3000:]
    assert registered(project).versions == [["champion"]]
    runs = {run["name"]: run["state_type"] for run in ask(prefect, "flow_runs/filter") if run["id"] not in before}
    assert sorted(runs.values()) == ["COMPLETED", "FAILED"]
    stage(project, "register")
    assert registered(project).versions == [["champion"]]


def test_a_worker_is_killed_with_all_that_it_started(shared: Project, prefect: Server, waiting: Waiting) -> None:
    project = watched(prefect, shared)
    project.ok("prefect", "work-pool", "create", "--type", "process", "faults")
    deploy = ["prefect", "--no-prompt", "deploy", "flows/retrain.py:retrain", "--name", "killed", "--pool", "faults"]
    project.ok(*deploy, "--concurrency-limit", "1")
    there = inside(project, **waiting.env(f"{CLIENT}.create_model_version"))
    worker = there.start("prefect", "worker", "start", "--pool", "faults", log="worker.log")
    project.ok("prefect", "deployment", "run", "retrain/killed")
    waiting.until_there(worker, project.root / "worker.log")
    for pid in [worker.pid, *served.descendants(worker.pid)]:
        os.kill(pid, signal.SIGKILL)
    worker.wait()

    def run() -> dict[str, Any]:
        return next(run for run in ask(prefect, "flow_runs/filter") if run["deployment_id"])

    def slots() -> int:
        return int(ask(prefect, "v2/concurrency_limits/filter")[0]["active_slots"])

    assert run()["state_type"] == "RUNNING" and slots() == 1
    dies(project, "dvc.rwlock:json.dump", "dvc", "repro")  # in the middle of its list of who works on what
    assert "champion" in project.ok("trueframe", "run")
    assert registered(project).versions == [["champion"]]
    assert run()["state_type"] == "CRASHED" and "killed" in run()["state"]["message"]
    assert slots() == 0, "the deployment's next run needn't wait"


def test_mlflow_is_away_while_a_network_trains(shared: Project, stores: Stores, waiting: Waiting) -> None:
    there = inside(shared, **waiting.env("components.train:_report"), MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    training = there.start(*TRAIN, log="train.log")
    waiting.until_there(training, shared.root / "train.log")
    stores.mlflow.kill()
    try:
        waiting.go()
        assert training.wait(300) == 1
    finally:
        stores.mlflow.start()
    said = (shared.root / "train.log").read_text()
    assert "MLflow gets the scores later" in said and "small: epoch 2/2:" in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"the MLflow store {stores.mlflow.url} fails" in errors[0], said[-3000:]
    assert "Traceback" not in said

    assert "taken up again after epoch 2" in shared.ok(*TRAIN)
    client = client_of(shared)
    run = client.get_run(json.loads((shared.root / "artifacts/models/small/training.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert {score.step for score in client.get_metric_history(run.info.run_id, "val_loss")} == {1, 2}
    assert "model/network.keras" in [file.path for file in client.list_artifacts(run.info.run_id, "model")]


def test_mlflow_is_started_anew_while_a_candidate_is_registered(
    shared: Project, stores: Stores, waiting: Waiting
) -> None:
    there = inside(shared, **waiting.env(f"{CLIENT}.create_model_version"))
    process = there.start("python", "-m", "components.register", log="register.log")
    waiting.until_there(process, shared.root / "register.log")
    stores.mlflow.kill()
    stores.mlflow.start()
    waiting.go()
    assert process.wait(300) == 0, (shared.root / "register.log").read_text()[-3000:]
    assert registered(shared).versions == [["champion"]]
    stage(shared, "register")
    assert registered(shared).versions == [["champion"]]


@pytest.fixture
def two(stores: Stores, tmp_path: Path) -> Iterator[served.Registered]:
    """Two versions, the first of them the champion."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(stores.mlflow.url)
    model = served.packed(served.detector(tmp_path / "detector"))
    stores.client.create_registered_model("trueframe")
    for _ in range(2):
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(model), "model")
        stores.client.create_model_version("trueframe", f"{run.info.artifact_uri}/model", run.info.run_id)
    mlflow.set_tracking_uri(before)
    home = served.project(tmp_path / "project", poll_s=0.5, answer_s=served.PATIENCE)
    yield home


def test_the_gateway_while_the_registry_is_down(two: served.Registered, stores: Stores) -> None:
    client = stores.client
    client.set_registered_model_alias("trueframe", "champion", "1")
    env = {"MLFLOW_TRACKING_URI": stores.mlflow.url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with served.serve(two, "--follow", **env) as gateway:
        stores.mlflow.kill()
        try:
            gateway.wait(lambda: gateway.metric("trueframe_registry_up") == 0)
            assert gateway.ask(served.picture(1))[0]["model_version"] == "1"
            # Even a worker that dies now is started anew.
            for pid in gateway.family():
                os.kill(pid, signal.SIGKILL)
            assert gateway.ask(served.picture(1), timeout=served.PATIENCE)[0]["model_version"] == "1"
        finally:
            stores.mlflow.start()
        client.set_registered_model_alias("trueframe", "champion", "2")
        gateway.wait(lambda: gateway.ask(served.picture(1))[0]["model_version"] == "2")
        assert gateway.metric("trueframe_registry_up") == 1
