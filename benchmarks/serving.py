"""One image over HTTP: our scoring model against the usual pyfunc, which calls `model.predict` for each request.

Both are served by `mlflow models serve` on this machine, with the same network, and are asked in turns.
"""

import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import components
from components import networks

SIDE, REQUESTS = 32, 300

USUAL = """
import base64, io
import mlflow
import numpy as np
from PIL import Image


class Usual(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        import keras
        self.model = keras.models.load_model(context.artifacts["network"])

    def predict(self, context, model_input, params=None):
        images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in model_input["image"]]
        pixels = np.stack([np.asarray(image.resize((32, 32)), "float32") for image in images])
        return [{"logit": float(logit)} for logit in self.model.predict(pixels, verbose=0)[:, 0]]


mlflow.models.set_model(Usual())
"""


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        servers = {}
        try:
            for name, path in _models(root).items():
                port = _free_port()
                servers[name] = (_serve(path, port, root / f"{name}.log"), port)
            times = _ask(servers)
        finally:
            for process, _ in servers.values():
                process.terminate()
            for process, _ in servers.values():
                process.wait()
    lines = [f"One JPEG of {SIDE} px over HTTP on this machine, {REQUESTS} requests each, in turns (ms)"]
    for name, values in times.items():
        median, slow = statistics.median(values) * 1e3, statistics.quantiles(values, n=100)[-1] * 1e3
        lines.append(f"| {name} | median {median:.1f} | 99th percentile {slow:.1f} |")
    return "\n".join(lines) + "\n"


def _models(root: Path) -> dict[str, Path]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    networks.build("cnn", SIDE, {}).save(root / "network.keras")
    decision = {"temperature": 1.0, "threshold": 0.5, "low": 0.5, "high": 0.5, "view": str(SIDE)}
    (root / "decision.json").write_text(json.dumps(decision))
    (root / "usual.py").write_text(USUAL)
    import mlflow

    package = Path(components.__file__).parent
    artifacts = {"network": str(root / "network.keras"), "decision": str(root / "decision.json")}
    requirements = ["mlflow", "tensorflow"]
    for name, code in (("trueframe", package / "serve/pyfunc.py"), ("usual pyfunc", root / "usual.py")):
        mlflow.pyfunc.save_model(
            str(root / name), python_model=str(code), artifacts=artifacts, pip_requirements=requirements
        )
    return {name: root / name for name in ("trueframe", "usual pyfunc")}


def _serve(model: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env={**os.environ, "PATH": path}, stdout=file, stderr=file
        )
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")


def _ask(servers: dict[str, tuple[subprocess.Popen[bytes], int]]) -> dict[str, list[float]]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "JPEG")
    body = json.dumps({"dataframe_records": [{"image": base64.b64encode(buffer.getvalue()).decode()}]})
    clients = {name: http.client.HTTPConnection("127.0.0.1", port) for name, (_, port) in servers.items()}
    times: dict[str, list[float]] = {name: [] for name in servers}
    for turn in range(REQUESTS + 30):
        for name, client in clients.items():
            began = time.perf_counter()
            client.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
            if turn >= 30:
                times[name].append(time.perf_counter() - began)
    return times


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
