"""The loop by itself, on a real Prefect server with a real worker: at night, on drift, on a reported mistake.

The tests tell one story and run in order.
"""

import hashlib
import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from harness import TINY, Project, free_port, stop, wait_for
from PIL import Image, ImageFilter

pytestmark = pytest.mark.slow

NIGHTLY, HOURLY = "flows/retrain.py:retrain", "flows/monitor.py:monitor"
PATIENCE = 600.0  # s, on a machine with other work


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[str]]]:
    """A web hook's address, and what was sent to it."""
    said: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", said
    server.shutdown()


@pytest.fixture(scope="module")
def home(project: Project, told: tuple[str, list[str]]) -> Project:
    """The project with one small network, and an alert."""
    params = json.loads(json.dumps(TINY))
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    params["evaluate"]["robustness_images"] = 10
    params["ingest"]["sample"]["n_images"] = 300  # so that there are test images enough to compare scores with
    params["monitor"] = {"flush_s": 0.5, "min_images": 50, "alert": "custom-webhook/story"}
    project.params = params
    project.ok(
        "python",
        "-c",
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook\n"
        f"Hook(name='story', url={told[0]!r}, json_data={{'text': '{{{{subject}}}}\\n{{{{body}}}}'}}).save('story')",
    )
    return project


@pytest.fixture(scope="module")
def worker(home: Project) -> Iterator[None]:
    """Workers for all pools that the deployments name."""
    document = yaml.safe_load((home.root / "prefect.yaml").read_text())
    started = []
    for pool in sorted({each["work_pool"]["name"] for each in document["deployments"]}):
        home.ok("prefect", "work-pool", "create", "--type", "process", "--overwrite", pool)
        env = {**home.env, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        impatient = Project(home.root, env)
        started.append(impatient.start("prefect", "worker", "start", "--pool", pool, log=f"worker-{pool}.log"))
    yield
    for process in started:
        stop(process)


def deploy(project: Project, entrypoint: str) -> str:
    """Deploy as `prefect.yaml` says, but for the hour: the schedule fires in some seconds. The deployment's name."""
    path = project.root / "prefect.yaml"
    document = yaml.safe_load(path.read_text())
    [found] = [each for each in document["deployments"] if each["entrypoint"] == entrypoint]
    assert found["schedules"], "it runs by itself"

    def to_server(*schedules: dict[str, Any]) -> float:
        start, found["schedules"] = time.monotonic(), list(schedules)
        path.with_name("soon.yaml").write_text(yaml.safe_dump({**document, "deployments": [found]}))
        project.ok("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "soon.yaml")
        return time.monotonic() - start

    # The server has to know of it some seconds before, or the first run would be tomorrow's.
    lead = timedelta(seconds=10 + 2 * to_server())
    begin = (datetime.now(UTC) + lead).isoformat()
    to_server({"interval": 86400, "anchor_date": begin, "timezone": "UTC"})
    flow = entrypoint.rpartition(":")[2]
    return f"{flow}/{found['name']}"


def ask(project: Project, path: str, **body: Any) -> Any:
    return requests.post(f"{project.env['PREFECT_API_URL']}/{path}", json=body, timeout=60).json()


def runs(project: Project, deployment: str, **wanted: Any) -> list[dict[str, Any]]:
    """The runs of a deployment that have begun or ended, the first one first."""
    url = f"{project.env['PREFECT_API_URL']}/deployments/name/{deployment}"
    number = requests.get(url, timeout=60).json()["id"]
    found = ask(project, "flow_runs/filter", flow_runs={"deployment_id": {"any_": [number]}}, sort="START_TIME_ASC")
    return [run for run in found if run["state_type"] not in ("SCHEDULED", "PENDING") and wanted.items() <= run.items()]


def wait(project: Project, what: Any) -> Any:
    """Until something is so."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        logs = "\n".join(log.read_text()[-3000:] for log in project.root.glob("*.log"))
        assert time.monotonic() < end, logs
        time.sleep(1)
    return found


def completed(project: Project, deployment: str, **wanted: Any) -> dict[str, Any]:
    """The first run of a deployment that ends, if it ended well."""

    def ended() -> list[dict[str, Any]]:
        found = runs(project, deployment, **wanted)
        return [run for run in found if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]

    run = wait(project, ended)[0]
    assert run["state_type"] == "COMPLETED", run["state"]
    return run


def versions(project: Project) -> list[str]:
    code = (
        "from components.register.registry import Registry\nfor v in Registry('trueframe').versions(): print(v.number)"
    )
    return project.ok("python", "-c", code).split()


def photo(seed: int, size: int = 48, blur: float = 1.5) -> bytes:
    """A picture unlike those of the training data: larger, and out of focus."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)).save(buffer, "PNG")
    return buffer.getvalue()


MISTAKE = photo(0)


def test_the_nightly_deployment_fires_and_completes(home: Project, worker: None) -> None:
    run = completed(home, deploy(home, NIGHTLY))
    assert run["auto_scheduled"] is True
    assert run["state"]["message"] == "retrained" and versions(home) == ["1"]


@pytest.fixture(scope="module")
def gateway(home: Project) -> Iterator[str]:
    port = free_port()
    process = home.start("trueframe", "serve", "--port", str(port), log="serve.log")
    wait_for(f"http://127.0.0.1:{port}/health/ready", process, PATIENCE)
    yield f"http://127.0.0.1:{port}"
    stop(process)


def test_drifted_predictions_start_a_retraining(home: Project, gateway: str, told: tuple[str, list[str]]) -> None:
    pictures = [MISTAKE, *(photo(n) for n in range(1, 60))]
    for start in (40, 20, 0):
        files = [("file", (f"{n}.png", pictures[n], "image/png")) for n in range(start, start + 20)]
        answer = requests.post(f"{gateway}/v1/check", files=files, timeout=PATIENCE)
        assert answer.status_code == 200 and not any(row["error"] for row in answer.json()["predictions"])
    report(home, MISTAKE, answer.json()["predictions"][0]["label"])
    wait(home, lambda: list(home.root.glob("predictions/*/*.parquet")))
    time.sleep(2)  # for the last rows

    monitor = completed(home, deploy(home, HOURLY))
    assert "was started as" in monitor["state"]["message"]
    found = json.loads((home.root / "artifacts/monitor/report.json").read_text())
    assert {"width", "sharpness"} <= {shift["name"] for shift in found["drift"] if shift["drifted"]}
    assert "probability" in {shift["name"] for shift in found["drift"]}, "the scores were compared with version 1's"
    [message] = told[1]
    assert "drift in width" in message and "was started as" in message

    retraining = completed(home, "retrain/nightly", auto_scheduled=False)
    assert "monitor" in retraining["tags"]
    with urllib.request.urlopen(f"{home.env['PREFECT_API_URL']}/artifacts/monitoring/latest") as artifact:
        assert "| sharpness |" in json.load(artifact)["data"]
    # Events reach the server's log a moment later.
    wanted = {"event": {"name": ["trueframe.monitor.trouble", "trueframe.monitor.retrain"]}}
    wait(home, lambda: len(ask(home, "events/filter", filter=wanted)["events"]) == 2)


def report(project: Project, data: bytes, answered: str) -> None:
    """What the page stores when somebody reports a mistake, another person's decision, and what is set for it."""
    folder = project.root / "feedback"
    folder.mkdir(exist_ok=True)
    image = folder / f"{hashlib.sha256(data).hexdigest()}.png"
    label = "real" if answered == "ai" else "ai"
    said = {"label": label, "status": "pending", "answer": answered, "verdict": answered, "model_version": "1"}
    image.with_suffix(".json").write_text(json.dumps(said))
    image.write_bytes(data)
    assert image.stem[:8] in project.ok("trueframe", "review")
    project.ok("trueframe", "review", "accept", image.stem[:8])
    params = project.params
    params["ingest"]["sources"]["reports"] = {"from": "feedback:feedback"}
    params["train"]["models"]["small"]["seed"] = 11  # so that there is a candidate to judge
    params["ingest"]["regression"] = 1.0
    project.params = params


def test_it_does_not_start_another_one(home: Project) -> None:
    said = home.ok("trueframe", "monitor")
    assert "a retraining was started at" in said and "monitor.cooldown_hours" in said and "drift" in said
    assert len(runs(home, "retrain/nightly")) == 2


def test_the_reported_mistake_is_in_the_regression_set(home: Project) -> None:
    index = pd.read_parquet(home.root / "artifacts/index.parquet").set_index("sha256")
    assert index.loc[hashlib.sha256(MISTAKE).hexdigest(), "split"] == "regression"
    registration = json.loads((home.root / "artifacts/registration.json").read_text())
    assert registration["version"] == "2"
    [rule] = [rule for rule in registration["gate"] if rule["rule"] == "regression set"]
    assert "1 reported mistakes" in rule["why"]
