"""Tiny detectors in a registry, and `trueframe serve` before them."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
import yaml
from PIL import Image

import components
from components import networks

ROOT = Path(__file__).parents[1]
PARAMS: dict[str, Any] = {
    "ingest": {"sources": {"sample": {}}},
    "validate": {},
    "preprocess": {"views": [16]},
    "train": {"models": {"small": {"network": "cnn", "view": 16}}},
    "evaluate": {},
}
PATIENCE = 600.0  # s, on a machine with other work


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def detector(folder: Path, seed: int = 1, network: str = "cnn", side: int = 16, **options: Any) -> Path:
    """The files of an untrained detector to which all images are familiar."""
    import detectors

    networks.load_keras().utils.set_random_seed(seed)
    made = networks.build(network, side, options or {"width": 4})
    detectors.write(folder, detectors.member(made, str(side)))
    return folder


def packed(folder: Path) -> Path:
    """A detector as the MLflow model that a registration would make of it."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        params=ParamSchema(
            [ParamSpec("explain", DataType.boolean, False), ParamSpec("threshold", DataType.double, None)]
        ),
    )
    package = Path(components.__file__).parent
    files = {"detector": "detector.onnx", "card": "model_card.md"}
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(package / "serve/pyfunc.py"),
        artifacts={name: str(folder / file) for name, file in files.items()},
        code_paths=[str(package)],
        pip_requirements=["mlflow"],
        signature=signature,
    )
    return folder / "model"


@dataclass
class Registered:
    """A project folder whose registry holds some versions."""

    root: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"

    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def add(self, model: Path) -> str:
        """A new version of `trueframe`."""
        import mlflow

        client = self.client()
        try:
            client.create_registered_model("trueframe")
        except mlflow.exceptions.MlflowException as error:
            assert error.error_code == "RESOURCE_ALREADY_EXISTS"
        return str(client.create_model_version("trueframe", str(model)).version)

    def promote(self, version: str) -> None:
        """As the MLflow UI does."""
        self.client().set_registered_model_alias("trueframe", "champion", version)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "TRUEFRAME_API"))}
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return {**kept, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": self.uri, **more}


def project(root: Path, **serve: Any) -> Registered:
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "serve": serve}))
    (root / "dvc.yaml").write_text("stages: {}\n")
    return Registered(root)


@dataclass
class Serving:
    """A running `trueframe serve`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self, *files: bytes, timeout: float = 60, **params: Any) -> list[dict[str, Any]]:
        body = {"dataframe_records": [{"image": encoded(file)} for file in files], "params": params}
        answer = requests.post(f"{self.url}/invocations", json=body, timeout=timeout)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["predictions"])

    def metric(self, name: str) -> float:
        """A line of /metrics, by its name with its labels."""
        answer = requests.get(f"{self.url}/metrics", timeout=PATIENCE)
        values = dict(line.rpartition(" ")[::2] for line in answer.text.splitlines())
        assert name in values, f"{answer.status_code}: {answer.text[-2000:]}"
        return float(values[name])

    def wait(self, what: Any, seconds: float = PATIENCE) -> None:
        """Until something is so."""
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/health/ready", timeout=30).status_code == 200
        except requests.RequestException:
            return False

    def family(self) -> list[int]:
        """The processes that it started, and theirs."""
        return descendants(self.process.pid)


class Load:
    """Clients that ask all the time."""

    def __init__(self, server: Serving, clients: int = 3) -> None:
        self.server, self.stopped = server, threading.Event()
        self.versions: list[str] = []
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self) -> None:
        body = {"dataframe_records": [{"image": encoded(picture(1))}]}
        with requests.Session() as session:
            while not self.stopped.is_set():
                try:
                    answer = session.post(f"{self.server.url}/invocations", json=body, timeout=60)
                    self.versions.append(answer.json()["predictions"][0]["model_version"])
                except Exception as error:
                    self.failures.append(f"{type(error).__name__} {error}")
                time.sleep(0.02)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()


@contextmanager
def serve(home: Registered, *options: str, **env: str) -> Iterator[Serving]:
    """Run it until it is ready, and end it."""
    port = free_port()
    log = home.root / f"serve-{port}.log"
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=home.root, env=home.environment(**env), stdout=file, stderr=file)
    serving = Serving(process, f"http://127.0.0.1:{port}", log)
    try:
        serving.wait(serving.ready)
        yield serving
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = [], [pid]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return found
