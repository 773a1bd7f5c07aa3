"""Whole projects in temporary folders, driven by the commands that people use."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Small, and yet real: images from the embedded source, two networks, every stage.
TINY = {
    "ingest": {"sources": {"sample": {}}, "sample": {"n_images": 240, "size": 32, "seed": 7}, "shard_images": 100},
    "validate": {"min_images": 50},
    "preprocess": {"views": [32, "crop-16"], "validation": 0.2, "test": 0.2, "seed": 7},
    "train": {
        "models": {
            "small": {"network": "cnn", "view": 32, "options": {"width": 4}, "epochs": 2, "batch_size": 32},
            "crop": {"network": "cnn", "view": "crop-16", "options": {"width": 4}, "epochs": 2, "batch_size": 32},
        }
    },
    "evaluate": {"bootstrap": 100, "robustness_images": 40},
    "register": {"min_scores": {"auroc": 0.0}},
}


@dataclass
class Project:
    """A clone with settings of its own."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "DVC_"))}
        # The package is installed with another folder, in which a worker would run its flows.
        own = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TRUEFRAME_FOLDER": str(self.root)}
        return {**inherited, **own, **self.env}

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd or self.root, env=self.environment(), capture_output=True, text=True, timeout=timeout
        )

    def ok(self, *command: str, timeout: float = 300) -> str:
        done = self.run(*command, timeout=timeout)
        assert done.returncode == 0, (
            f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def start(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.root / log).open("wb") as file:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def params(self) -> dict:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    @params.setter
    def params(self, value: dict) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(value, sort_keys=False))


def clone(root: Path, **env: str) -> Project:
    """What git would clone, with the tiny settings, as a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and name != "dvc.lock":
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    project = Project(root, env)
    project.params = TINY
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        project.ok(*git, *arguments)
    return project


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server for {url} ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {seconds} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
            process.wait(timeout=15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
