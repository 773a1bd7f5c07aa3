"""Several devices and several processes train as one does."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from components.detector.file import Network
from components.stage import StageError
from components.train import distribution

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EPOCHS = 3
MODEL = {
    "network": "cnn",
    "view": 16,
    "options": {"width": 4, "blocks": 2},
    "epochs": EPOCHS,
    "batch_size": 20,
    "learning_rate": 0.01,
    "patience": EPOCHS,
    "precision": "float32",
}
TINY = ["--model", "tiny", "--index", "index.parquet", "--arrays", "arrays"]
jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax isn't installed")


def command(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """The training's command in a project's folder."""
    call = [sys.executable, "-m", "components.train", *TINY]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PYTHONUNBUFFERED": "1",
        **env,
    }
    return subprocess.Popen(
        [*call, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def project(folder: Path, arrays: tuple[Path, Path], **changes: Any) -> Path:
    """A folder with the arrays, and settings with one model."""
    folder.mkdir()
    for path in arrays:
        (folder / path.name).symlink_to(path)
    settings = {
        "ingest": {"sources": {"mine": {"from": "here"}}},
        "validate": {},
        "preprocess": {"views": [16]},
        "train": {"models": {"tiny": MODEL | changes}},
        "evaluate": {},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


def finish(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return out


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "artifacts/models/tiny/history.csv").drop(columns="images_per_second")


def scores(folder: Path, arrays: Path) -> np.ndarray:
    pixels = np.load(arrays / "16/one/a-00000.npy")
    return Network(folder / "artifacts/models/tiny/network.onnx").outputs({"pixels": pixels})["logit"]


def wait_for_epoch(folder: Path, epoch: int, *processes: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        for path in folder.glob("artifacts/checkpoints/tiny/*/state.json"):
            if json.loads(path.read_text())["epoch"] >= epoch:
                return
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    raise AssertionError(f"no epoch {epoch}")


# Processes, under JAX


@jax
def test_two_processes_train_as_one_does_and_end_together_and_go_on(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    changes = {"augment": {"jpeg": 0.2, "mixup": 0.2}, "average": 0.8, "options": MODEL["options"] | {"dropout": 0.2}}
    single = project(tmp_path / "single", arrays, **changes)
    finish(command(single, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu"))

    # As a cluster starts them: nobody watches, and each has to see for itself that another was lost.
    several = project(tmp_path / "several", arrays, **changes)
    port = free_port()
    shared = {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    first, second = (command(several, **shared, JAX_PROCESS_ID=str(number)) for number in range(2))
    try:
        wait_for_epoch(several, 1, first, second)
        second.kill()
        _, errors = first.communicate(timeout=90)
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode not in (0, -signal.SIGKILL)
    # Its own word, or JAX's, whichever sees it first.
    assert "process 0 of 2 lost another one" in errors or "another task died" in errors, errors[-3000:]

    # By the launcher, whose word is one line.
    whole = command(several, "--processes", "2")
    said = finish(whole)
    assert "tiny: taken up again after epoch" in said
    assert "2 devices in 2 processes" in said
    pd.testing.assert_frame_equal(history(several), history(single), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores(several, arrays[1]), scores(single, arrays[1]), rtol=1e-3, atol=1e-3)
    assert not (several / "artifacts/checkpoints/tiny").exists()


@jax
def test_the_launcher_ends_all_when_one_is_killed(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    import psutil

    folder = project(tmp_path / "mine", arrays, epochs=1000)
    launcher = command(folder, "--processes", "2")
    wait_for_epoch(folder, 1, launcher)
    children = psutil.Process(launcher.pid).children()
    victim = next(c for c in children if c.environ()["KERAS_DISTRIBUTION_PROCESS_ID"] == "1")
    victim.kill()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: process 1 was killed, most likely for want of memory; the other processes were ended. The same command "
        "goes on after the last epoch"
    )
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_tensorflow_in_several_processes_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = {"cluster": {"worker": ["one:1234", "two:1234"]}, "task": {"type": "worker", "index": 0}}
    for name, value in (
        ("TF_CONFIG", json.dumps(workers)),
        ("KERAS_DISTRIBUTION_NUM_PROCESSES", "2"),
        ("JAX_NUM_PROCESSES", "2"),
    ):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            with pytest.raises(StageError, match=r"MultiWorkerMirroredStrategy does not .* set KERAS_BACKEND=jax"):
                distribution.team()
    with monkeypatch.context() as environment:
        environment.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["one:1234"]}}))
        assert distribution.team().devices == 1


# Devices of one machine

TWO_CPUS = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * int(sys.argv.pop(1))
)
from components import stage
from components.train.__main__ import run
stage.main(run)
"""


def on_cpus(folder: Path, devices: int) -> subprocess.CompletedProcess[str]:
    """The training's command, under TensorFlow, with so many CPUs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    call = [sys.executable, "-c", TWO_CPUS, str(devices), *TINY]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)


def test_two_devices_of_a_machine_train_as_one_does(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    # Each device draws for its own share, so what is drawn is left out.
    changes = {"augment": {"flip": False, "shift": 0}, "options": MODEL["options"] | {"dropout": 0}}
    found = []
    for devices in (1, 2):
        folder = project(tmp_path / str(devices), arrays, **changes)
        done = on_cpus(folder, devices)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("2 devices" in done.stdout) == (devices == 2)
        found.append(history(folder))
    pd.testing.assert_frame_equal(*found, rtol=1e-3, atol=1e-4)


def test_a_batch_that_can_not_be_shared_is_refused(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    done = on_cpus(project(tmp_path / "odd", arrays, batch_size=21), 2)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: a batch of 21 images can't be shared evenly by 2 devices; make batch_size a multiple of 2"
    )


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
