"""Servers that can be killed and started again, and processes that end or wait at a given place."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectors
import pandas as pd
import s3
from postgresql import Postgres

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))
from harness import TINY, Project, stop, wait_for

INSIDE = Path(__file__).parent / "inside"
SETTINGS: dict[str, Any] = {
    **TINY,
    "ingest": {"sources": {"sample": {}}, "sample": {"n_images": 120, "size": 32, "seed": 7}, "shard_images": 40},
    "preprocess": {"views": [32], "validation": 0.2, "test": 0.2, "seed": 7},
    "train": {"models": {"small": TINY["train"]["models"]["small"]}},
    "evaluate": {"bootstrap": 100, "robustness_images": 4, "degraded_images": 8},
    "register": {"min_scores": {"auroc": 0.0}, "gate": {"bootstrap": 100, "degraded_images": 4}},
}


def copied(finished: Path, root: Path, **env: str) -> Project:
    shutil.copytree(finished, root)
    return Project(root, env)


class Server:
    """A program that answers at an address, killed and started again at will."""

    def __init__(self, home: Path, url: str, health: str, command: list[str], **env: str) -> None:
        self.home, self.url, self.health, self.command, self.env = home, url, health, command, env
        self.start()

    def start(self) -> None:
        self.process = Project(self.home, self.env).start(*self.command, log="server.log")
        try:
            wait_for(self.url + self.health, self.process, 300)
        except AssertionError:
            print((self.home / "server.log").read_text()[-3000:])
            raise

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        stop(self.process)


@dataclass
class Stores:
    """What a team shares: MLflow on PostgreSQL, with its artifacts on S3."""

    database: Postgres
    bucket: s3.Store
    mlflow: Server

    @property
    def client(self) -> Any:
        """MLflow's own, to look past the project."""
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.mlflow.url, registry_uri=self.mlflow.url)


def on(stores: Stores, project: Project, model: str, **register: Any) -> Project:
    project.env |= {"MLFLOW_TRACKING_URI": stores.mlflow.url}
    project.params = {**project.params, "register": {**project.params["register"], "model": model, **register}}
    return project


def watched(prefect: Server, project: Project) -> Project:
    """A project whose flows tell the Prefect server."""
    project.env |= {"PREFECT_HOME": prefect.env["PREFECT_HOME"], "PREFECT_API_URL": prefect.url}
    return project


def inside(project: Project, **env: str) -> Project:
    """The project with what is in `inside/` at work in its processes."""
    path = os.pathsep.join([str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return Project(project.root, {**project.env, "PYTHONPATH": path, **env})


def dies(project: Project, place: str, *command: str) -> str:
    """Run a command that is killed at a place, with all that it started; what it said."""
    process = inside(project, DIE_AT=place).start(*command, log="killed.log")
    code = process.wait(timeout=300)
    said = (project.root / "killed.log").read_text()
    assert code == -signal.SIGKILL, f"{place} was not reached:\n{said[-3000:]}"
    return said


class Waiting:
    """Commands that wait for each other, and for the test, at a place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def env(self, place: str) -> dict[str, str]:
        return {"WAIT_AT": place, "WAIT_IN": str(self.folder)}

    def until_there(self, process: subprocess.Popen[bytes], log: Path, n: int = 1) -> list[int]:
        """The processes that are at the place, once there are so many."""
        end = time.monotonic() + 300
        while len(found := list(self.folder.glob("here.*"))) < n:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.05)
        return [int(path.suffix[1:]) for path in found]

    def go(self) -> None:
        (self.folder / "go").touch()


def stage(project: Project, name: str, *arguments: str) -> str:
    return project.ok("python", "-m", f"components.{name}", *arguments)


def refused(project: Project, *command: str, code: int = 1) -> str:
    """The one line with which a command fails."""
    done = project.run(*command)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code and lines[-1].startswith("error: "), (done.returncode, done.stderr[-3000:])
    return lines[-1]


@dataclass
class Registered:
    """What the registry holds of a project's model.

    Attributes:
        versions: the aliases of each, the oldest first.
        tags: of each.
        champions: every move of the alias `champion`, the oldest first.
    """

    versions: list[list[str]]
    tags: list[dict[str, str]]
    champions: list[str]


def registered(project: Project) -> Registered:
    client, name = client_of(project), project.params["register"]["model"]
    model = client.get_registered_model(name)
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
    aliases = [[alias for alias, number in model.aliases.items() if number == v.version] for v in versions]
    events = [json.loads(model.tags[key]) for key in sorted(model.tags) if key.startswith("champion.")]
    return Registered(aliases, [v.tags for v in versions], [event["version"] for event in events])


def client_of(project: Project) -> Any:
    import mlflow

    uri = project.env["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def files_of(project: Project, version: str, folder: Path) -> dict[str, bytes]:
    """A version's artifacts, as somebody elsewhere gets them."""
    folder.mkdir()
    uri = f"models:/{project.params['register']['model']}/{version}"
    project.ok("mlflow", "artifacts", "download", "--artifact-uri", uri, "--dst-path", str(folder))
    return contents(folder / "artifacts")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another(project: Project, threshold: float = 0.5) -> None:
    """Make the candidate another one, right about every image, without a training."""
    folder = project.root / "artifacts/evaluation/small"
    for name in ("predictions", "degraded"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        for column in table.columns.difference(["sha256", "label", "split"]):
            table[column] = (table["label"] == "ai").astype(float)
        table.to_parquet(folder / f"{name}.parquet", index=False)
    detectors.decided(folder / "detector.onnx", threshold=threshold, low=threshold - 0.1, high=threshold + 0.1)


def until(what: Callable[[], Any], seconds: float = 300) -> Any:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found
