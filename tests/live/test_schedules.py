"""`trueframe schedule` with the server that it starts itself: a night's run, a second one that waits, and an end.

The tests tell one story and run in order.
"""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from harness import Project, clone, free_port, stop

pytestmark = pytest.mark.slow

EPOCHS = 80  # more than are done before the end of all; some milliseconds each
RETRAIN = {"name": {"any_": ["retrain"]}}


class Scheduled:
    """A project whose `prefect.yaml` retrains every few seconds, and its `trueframe schedule`."""

    def __init__(self, project: Project, port: int) -> None:
        self.project, self.port = project, port
        self.api = f"http://127.0.0.1:{port}/api"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = project.root / "schedule.log"

    def start(self) -> None:
        self.process = self.project.start("trueframe", "schedule", "--port", str(self.port), log=self.log.name)
        self.until(lambda: "Ctrl-C" in self.said())

    def said(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], Any], seconds: float = 400) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process is not None and self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() < end, self.said()[-3000:]
            time.sleep(0.3)
        return found

    def ask(self, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=200) as answer:
            return json.loads(answer.read() or "null")

    def run(self, number: str) -> dict:
        return self.ask(f"flow_runs/{number}")

    def begun(self) -> list[dict]:
        """The retrainings that are at work, or were."""
        found = self.ask("flow_runs/filter", {"flows": RETRAIN, "sort": "START_TIME_ASC"})
        return [run for run in found if run["start_time"]]

    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def at_work(self) -> list[str]:
        """The commands of the processes that work in the project's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.project.root):
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduled]:
    root = tmp_path_factory.mktemp("scheduled")
    quick = {
        "PREFECT_PROFILES_PATH": os.devnull,
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "2",  # planned at once, not all of an hour's
    }
    project = clone(root / "project", **quick)
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": EPOCHS}}
    project.params = params
    file = project.root / "prefect.yaml"
    prefect = yaml.safe_load(file.read_text())
    prefect["deployments"][0]["schedules"] = [{"interval": 20}]
    file.write_text(yaml.safe_dump(prefect))
    found = Scheduled(project, free_port())
    try:
        yield found
    finally:
        if found.process:
            stop(found.process)


def when(run: dict, what: str) -> datetime:
    return datetime.fromisoformat(run[what])


def test_a_schedule_fires_by_itself_and_a_second_run_waits(scheduled: Scheduled) -> None:
    scheduled.start()
    table = scheduled.said()
    deployments = ("retrain/nightly", "monitor/hourly", "tune/on-demand", "generalise/on-demand")
    for words in (*deployments, "gpu", "on demand", "20 h"):
        assert words in table
    first = scheduled.until(scheduled.begun)[0]
    assert first["auto_scheduled"]
    waiting = {"flows": RETRAIN, "flow_runs": {"state": {"name": {"any_": ["AwaitingConcurrencySlot"]}}}}
    second = scheduled.until(lambda: scheduled.ask("flow_runs/filter", waiting))[0]
    assert scheduled.begun()[0]["id"] == first["id"] and len(scheduled.begun()) == 1
    # Enough of them: a person pauses the schedule in the page, which deletes what was planned and didn't begin.
    scheduled.ask(f"deployments/{first['deployment_id']}/pause_deployment", {})
    for run in scheduled.ask("flow_runs/filter", waiting):
        if run["id"] != second["id"]:
            scheduled.ask(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    scheduled.until(lambda: "small: epoch 3/" in scheduled.said())


def test_told_to_end_it_ends_with_its_runs(scheduled: Scheduled) -> None:
    assert scheduled.process is not None
    family = scheduled.family()
    assert any("components.train" in command for command in scheduled.at_work())
    scheduled.process.send_signal(signal.SIGTERM)
    assert scheduled.process.wait(timeout=150) == 0, scheduled.said()[-3000:]
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert scheduled.at_work() == []
    assert f"small: epoch {EPOCHS}/" not in scheduled.said()
    assert "it goes on with the next" in scheduled.said()


def test_the_next_start_goes_on(scheduled: Scheduled) -> None:
    scheduled.start()
    assert "paused" in scheduled.said(), "what a person paused stays paused"

    def done() -> list[dict]:
        completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
        runs = scheduled.ask("flow_runs/filter", {"flows": RETRAIN, "flow_runs": completed})
        return sorted(runs, key=lambda run: run["end_time"]) if len(runs) > 1 else []

    first, second = scheduled.until(done)
    assert first["auto_scheduled"] and "taken up again after epoch" in scheduled.said()
    assert when(second, "start_time") >= when(first, "end_time")
    assert (scheduled.project.root / "artifacts/registration.json").exists()


def test_a_kill_leaves_nothing_behind(scheduled: Scheduled) -> None:
    assert scheduled.process is not None
    family = scheduled.family()
    assert len(family) >= 3, "a server and two workers"
    scheduled.process.send_signal(signal.SIGKILL)
    scheduled.process.wait()
    assert not psutil.wait_procs(family, timeout=90)[1]
