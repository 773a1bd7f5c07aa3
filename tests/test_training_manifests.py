"""The manifests of a training on several machines."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.train.__main__ import run

FOLDER = Path(__file__).parents[1] / "deploy/kubernetes/training"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_the_resources_are_those_of_kubeflow_trainer() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api isn't installed")
    runtime, _ = documents("runtime.yaml")
    [job] = documents("trainjob.yaml")
    for kind, document in (("TrainingRuntime", runtime), ("TrainJob", job)):
        assert document["kind"] == kind
        read = getattr(models, f"TrainerV1alpha1{kind}").from_dict(document)
        # What the schema doesn't know falls away.
        assert subset(document, read.to_dict()), kind


def test_the_pods_are_those_of_kubernetes(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate isn't installed")
    runtime, policy = documents("runtime.yaml")
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = node["template"]["spec"]
    spec["template"]["spec"]["restartPolicy"] = "Never"  # which JobSet sets
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": spec}
    for name, document in (("job", job), ("policy", policy)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    call = [sys.executable, "-m", "kubernetes_validate", "--strict", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_takes_the_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime, _ = documents("runtime.yaml")
    [job] = documents("trainjob.yaml")
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    [container] = node["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "components.train"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *job["spec"]["trainer"]["args"]])
    with pytest.raises(Exception, match=r"params\.yaml"):  # the arguments are known; there is only no project
        run()


def subset(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and all(key in other and subset(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(subset, one, other))
    return str(one) == str(other)
