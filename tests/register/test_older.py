"""Versions that were registered as Keras networks, before a detector was one file: they go on as they were."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import onnxruntime
import pytest
import yaml
from PIL import Image
from served import PARAMS
from test_register import SETTINGS, candidate, register

from components import images, integrity, networks
from components.detector import build
from components.register import Inputs
from components.register.registry import CHAMPION, SUMS, Registry
from components.serve.export import export
from components.serve.files import Files
from components.stage import StageError
from flows import answering

ROOT = Path(__file__).parents[2]
CODE = """
import mlflow


class Older(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return []


mlflow.models.set_model(Older())
"""
ONE = {"view": "16", "scope": {"min_side": 16, "max_side": None}, "equalise": None}
SEVERAL = {
    "members": [
        {"name": "a", "view": "16", "temperature": 2.0},
        {"name": "b", "view": "crop-16x3", "temperature": 0.5},
    ],
    "scope": {"min_side": 16, "max_side": 512},
    "equalise": {"size": "resize", "side": 48, "quality": 90},
}
CASES = pytest.mark.parametrize("decision", [ONE, SEVERAL], ids=["one", "several"])


def older(model: str, decision: dict[str, Any], folder: Path, judged: Path | None = None) -> Registry:
    """Register it as the project did: a network or a folder of them, `decision.json`, `familiar.npz`, the card."""
    registry = Registry(model)
    mlflow = registry.mlflow
    folder.mkdir()
    seeds = {member["name"]: seed for seed, member in enumerate(decision.get("members", []))}
    network = folder / ("networks" if seeds else "network.keras")
    if seeds:
        network.mkdir()
        for name, seed in seeds.items():
            detectors.cnn(seed=seed).save(network / f"{name}.keras")
    else:
        detectors.cnn().save(network)
    fitted = {"temperature": 0.8, "threshold": 0.3, "low": 0.2, "high": 0.6, **decision}
    (folder / "decision.json").write_text(json.dumps(fitted))
    detectors.known(16 * max(1, len(seeds))).save(folder / "familiar.npz")
    (folder / "model_card.md").write_text("# older\n\nAn older detector.\n")
    (folder / "older.py").write_text(CODE)
    files = {"network": network, "decision": folder / "decision.json", "familiar": folder / "familiar.npz"}
    with mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(folder / "older.py"),
            artifacts={key: str(file) for key, file in {**files, "card": folder / "model_card.md"}.items()},
            pip_requirements=["mlflow"],
        )
        for table in ("predictions.parquet", "degraded.parquet") if judged else ():
            mlflow.log_artifact(str(judged / table), "evaluation")
    (folder / "stored").mkdir()
    stored = Path(mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(folder / "stored")))
    sums = hashlib.sha256(integrity.listed(stored).encode()).hexdigest()
    tags = {SUMS: sums, "threshold": "0.3", "network_bytes": "100000", "candidate": "older", "run_id": run.info.run_id}
    registry.client.create_registered_model(model)
    registry.client.create_model_version(model, logged.model_uri, run.info.run_id, tags=tags, model_id=logged.model_id)
    return registry


def expected(decision: dict[str, Any], image: Image.Image) -> float:
    """P(ai) by the Keras networks."""
    equal = images.equalise(image, decision["equalise"])
    logits = []
    for seed, member in enumerate(decision.get("members", [{"view": "16", "temperature": 1.0}])):
        pixels = images.render(equal, member["view"]).reshape(-1, 16, 16, 3).astype(np.float32)
        network = detectors.cnn(seed=seed) if "members" in decision else detectors.cnn()
        logits.append(network.predict(pixels, verbose=0).mean() / member["temperature"])
    return float(1 / (1 + np.exp(-np.mean(logits) / 0.8)))


def picture() -> tuple[Image.Image, bytes]:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (60, 70, 3)).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return image, file.getvalue()


@CASES
def test_it_answers_as_its_networks_do(tmp_path: Path, decision: dict[str, Any]) -> None:
    registry = older(tmp_path.name, decision, tmp_path / "older")
    detector = registry.load("1")
    image, data = picture()
    (row,) = detector.score([data], explain=True)
    assert row["probability"] == pytest.approx(expected(decision, image), abs=1e-4)
    assert (row["threshold"], row["model_version"], row["error"]) == (0.3, "1", None) and row["heatmap"]
    assert (detector.decision.low, detector.decision.high) == (0.2, 0.6)
    assert (detector.scope.min_side, detector.scope.max_side) == tuple(decision["scope"].values())
    assert registry.networks("1", tmp_path) == {}


@CASES
def test_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: dict[str, Any]) -> None:
    registry = older(tmp_path.name, decision, tmp_path / "older")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "register": {"model": registry.name}}))
    monkeypatch.chdir(tmp_path)
    with answering.found("1", networks=True) as found:
        export(found, "1", "onnx", tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/detectors.json").read_text())
    image, _ = picture()
    equal = images.equalise(image, said["equalise"])
    seen = {one["name"]: images.render(equal, one["view"])[None] for one in said["inputs"]}
    [[logit]] = onnxruntime.InferenceSession(tmp_path / "out" / said["model"]).run(["logit"], seen)
    p = 1 / (1 + np.exp(-logit / said["temperature"]))
    assert p == pytest.approx(expected(decision, image), abs=1e-4)
    assert (tmp_path / "out/model_card.md").read_text().startswith("# older\n")


def test_the_gate_compares_a_new_candidate_with_it(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path / "models", tmp_path / "evaluation", tmp_path / "index.parquet", tmp_path / "data")
    candidate(inputs, "old", 0.70, 1)
    registry = older("older-compared", ONE, tmp_path / "older", inputs.evaluations / "old")
    registry.client.set_registered_model_alias(registry.name, CHAMPION, "1")
    candidate(inputs, "new", 0.90, 2)
    settings = SETTINGS.model_copy(update={"model": registry.name})
    found = register(["new"], settings, inputs, tmp_path / "registration.json")
    assert found["version"] == "2" and "0.9000 against 0.7000 of version 1" in found["reasons"][-1]
    rules = {rule["rule"]: rule for rule in found["gate"]}
    assert rules["latency"]["champion"] > 0 and rules["latency"]["candidate"] > 0
    assert rules["size"]["verdict"] == "pass" and rules["balanced accuracy"]["verdict"] == "pass"
    registry.promote("2", force=True, reason="better")
    assert registry.rollback() == "1" and registry.load("1").version == "1"


def test_what_of_it_is_broken_is_said_in_one_line(tmp_path: Path) -> None:
    registry = older("older-broken", ONE, tmp_path / "older")
    (tmp_path / "fetched").mkdir()
    model = registry.fetch("1", tmp_path / "fetched")
    for name, data in (
        ("decision.json", b"{"),
        ("decision.json", b"[]"),
        ("decision.json", b"{}"),
        ("familiar.npz", b"PK\3\4"),
        ("familiar.npz", b""),
        ("network.keras", b"no network"),
        ("network.keras", None),
        ("model_card.md", None),
    ):
        file = model / "artifacts" / name
        before = file.read_bytes()
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
        if name == "model_card.md":
            assert Files.logged(model).load("1").version == "1"
        else:
            with pytest.raises(StageError) as refused:
                Files.logged(model)
            assert "\n" not in str(refused.value) and str(model) in str(refused.value)
        file.write_bytes(before)
        (model / "detector.onnx").unlink(missing_ok=True)
    assert build.familiar(Files.logged(model).detector) is not None


@pytest.mark.parametrize("missing", ["tensorflow", "tf2onnx"])
def test_without_what_trains_it_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """In the one line that any failure ends with."""
    registry = older(f"older-without-{missing}", ONE, tmp_path / "older")
    registry.client.set_registered_model_alias(registry.name, CHAMPION, "1")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "register": {"model": registry.name}}))
    (tmp_path / "a.png").write_bytes(picture()[1])
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["trueframe", "check", "a.png"]
from flows.cli import main

main()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": registry.mlflow.get_tracking_uri()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and f"needs {missing}: `pip install -e '.[train]'`" in line
    assert networks.load_keras()  # here, it isn't missing
