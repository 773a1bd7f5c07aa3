"""The pipeline that is compiled for Kubeflow is valid, and is what DVC says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from components.params import Kubeflow
from components.stage import StageError
from flows import kubeflow

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
IMAGE, STORE = "registry.example.org/trueframe:1.2", "s3://bucket/prefix"
SETTINGS: dict[str, Any] = {
    "ingest": {"sources": {"sample": {}}},
    "validate": {},
    "preprocess": {"views": [32, "crop-16"]},
    "train": {
        "models": {
            "small": {"network": "cnn", "view": 32},
            "crop-a": {"network": "cnn", "view": "crop-16"},
            "wide": {"network": "cnn", "view": 32, "options": {"width": 8}},
        },
        "ensembles": {"both": ["small", "crop-a"]},
    },
    "evaluate": {},
    "kubeflow": {"resources": {"evaluate": {"cpu": 1, "memory": "4Gi"}}},
}
MODELS, ENSEMBLES = list(SETTINGS["train"]["models"]), list(SETTINGS["train"]["ensembles"])


def trueframe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flows.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copy(ROOT / "dvc.yaml", folder)
    Repo.init(str(folder), no_scm=True).close()
    return folder


@pytest.fixture(scope="module")
def documents(folder: Path) -> list[Any]:
    """What the command writes: the pipeline, and what is for Kubernetes alone."""
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    done = trueframe(folder, "kubeflow", "compile", "--image", IMAGE, "--root", STORE, "--out", "pipeline.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pipeline.yaml: 11 stages\n")
    return list(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


@pytest.fixture(scope="module")
def tasks(documents: list[Any]) -> dict[str, dict[str, Any]]:
    """The tasks by their stage's name, each with its container and the names of the stages before it."""
    pipeline = documents[0]
    found = pipeline["root"]["dag"]["tasks"]
    names = {key: task["taskInfo"]["name"] for key, task in found.items()}
    executors = pipeline["deploymentSpec"]["executors"]
    labels = {key: pipeline["components"][task["componentRef"]["name"]]["executorLabel"] for key, task in found.items()}
    return {
        names[key]: task
        | {
            "container": executors[labels[key]]["container"],
            "executor": labels[key],
            "after": {names[before] for before in task.get("dependentTasks", ())},
        }
        for key, task in found.items()
    }


def unfolded() -> dict[str, list[str]]:
    """The commands of DVC's stages."""
    commands = {}
    for stage, body in DVC.items():
        each = {"${train.models}": MODELS, "${train.ensembles}": ENSEMBLES}.get(body.get("foreach"))
        command = body.get("do", body)["cmd"]
        names = {f"{stage}@{key}": command.replace("${key}", key) for key in each} if each else {stage: command}
        commands |= {name: said.split() for name, said in names.items()}
    return commands


def test_it_is_valid(folder: Path, documents: list[Any]) -> None:
    from google.protobuf import json_format
    from kfp import components
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    loaded = components.load_component_from_text((folder / "pipeline.yaml").read_text())
    assert loaded.pipeline_spec == spec
    assert spec.root.input_definitions.parameters["root"].default_value.string_value == STORE


def test_every_stage_runs_dvcs_own_command_in_the_image(tasks: dict[str, Any]) -> None:
    own = {stage: ["python", "-m", f"components.{stage}"] for stage in ("ingest", "register")}
    expected = unfolded() | own
    assert tasks.keys() == expected.keys()
    for name, command in expected.items():
        container = tasks[name]["container"]
        assert container["image"] == IMAGE
        assert container["command"] == ["python", "-m", "components.remote"]
        assert container["args"][-len(command) - 1 :] == ["--", *command]


def test_gpus_are_for_training_alone(tasks: dict[str, Any]) -> None:
    for name, task in tasks.items():
        asked = task["container"]["resources"]
        if name.startswith("train@"):
            assert asked["accelerator"]["resourceType"] == "nvidia.com/gpu"
            assert asked["accelerator"]["resourceCount"] == "1"
            assert asked["resourceMemoryLimit"] == "16Gi"
        else:
            assert "accelerator" not in asked
            assert asked["resourceMemoryLimit"] == ("4Gi" if name.startswith("evaluate@") else "8Gi")


def test_what_touches_the_world_is_not_cached_and_all_is_tried_again(tasks: dict[str, Any]) -> None:
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == tasks.keys() - {"ingest", "register"}
    assert all(task["retryPolicy"]["maxRetryCount"] == 2 for task in tasks.values())


def test_each_network_is_a_branch_of_its_own(tasks: dict[str, Any]) -> None:
    after = {name: task["after"] for name, task in tasks.items()}
    assert after["ingest"] == set()
    assert after["validate"] == {"ingest"}
    assert after["preprocess"] == {"ingest", "validate"}
    for model in MODELS:
        assert after[f"train@{model}"] == {"preprocess"}
        assert after[f"evaluate@{model}"] == {"ingest", "preprocess", f"train@{model}"}
    trained = {f"train@{model}" for model in MODELS}
    assert after["ensemble@both"] == {"ingest", "preprocess", *trained}
    judged = {f"evaluate@{model}" for model in MODELS} | {"ensemble@both"}
    assert after["register"] == {"ingest", "preprocess", *trained, *judged}


def test_stages_are_given_the_files_that_they_depend_on(tasks: dict[str, Any]) -> None:
    """All that DVC says, by the URIs of those that made it."""
    for name in unfolded():
        arguments = tasks[name]["container"]["args"]
        fetched = {arguments[at + 1] for at, word in enumerate(arguments) if word == "--fetch"}
        kept = {arguments[at + 1] for at, word in enumerate(arguments) if word == "--keep"}
        stage, _, key = name.partition("@")
        body = DVC[stage].get("do", DVC[stage])
        deps = [dep.replace("${key}", key) for dep in body["deps"] if not dep.startswith("components/")]
        for dep in deps:
            assert any(f"{p}/".startswith(f"{dep}/") or f"{dep}/".startswith(f"{p}/") for p in fetched), (name, dep)
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in [*body["outs"], *body.get("metrics", [])]]
        for out in outs:
            assert any(f"{out.replace('${key}', key)}/".startswith(f"{path}/") for path in kept), (name, out)
    assert "--resume" in tasks["preprocess"]["container"]["args"], "arrays of old shards are not decoded again"


def test_credentials_come_from_a_secret(documents: list[Any], tasks: dict[str, Any]) -> None:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == {task["executor"] for task in tasks.values()}
    for said in executors.values():
        [secret] = said["secretAsEnv"]
        assert secret["secretName"] == "trueframe"
        assert {"secretKey": "MLFLOW_TRACKING_URI", "envVar": "MLFLOW_TRACKING_URI"} in secret["keyToEnv"]


def settings_of(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """What each stage is told."""
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return {stage.name: stage.settings for stage in kubeflow.stages()}


def test_a_setting_changes_only_the_stages_that_depend_on_it(
    folder: Path, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = settings_of(folder, SETTINGS)
    said = {name: task["inputs"]["parameters"]["settings"]["runtimeValue"]["constant"] for name, task in tasks.items()}
    assert before == said and before["register"] == yaml.safe_dump(SETTINGS)
    for path, value, expected in (
        ("train.models.wide.epochs", 3, {"train@wide", "evaluate@wide", "ensemble@both", "register"}),
        ("register.min_gain", 0.1, {"register"}),
        ("preprocess.seed", 8, {"validate", "preprocess", "register"}),
    ):
        changed = json.loads(json.dumps(SETTINGS))
        node = changed
        *above, last = path.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
        after = settings_of(folder, changed)
        assert {name for name in after if after[name] != before[name]} == expected, path


def test_what_is_missing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))

    def refusal(do: Callable[[Kubeflow], object], **section: Any) -> str:
        with pytest.raises(StageError) as caught:
            do(Kubeflow(**section))
        return str(caught.value)

    assert "kubeflow.image is not set" in refusal(kubeflow.pipeline, root=STORE)
    assert "kubeflow.root is not set" in refusal(kubeflow.pipeline, image=IMAGE)
    assert "has to end in .yaml" in refusal(partial(kubeflow.compile_to, Path("pipeline.json")), root=STORE)
    assert "data: not here" in refusal(kubeflow.push, root=STORE)
    nobody = refusal(partial(kubeflow.submit, "http://127.0.0.1:9"), image=IMAGE, root=STORE)
    assert nobody.startswith("Kubeflow Pipelines at http://127.0.0.1:9: ") and "\n" not in nobody

    alike = json.loads(json.dumps(SETTINGS))
    alike["train"]["models"]["crop_a"] = alike["train"]["models"]["crop-a"]
    (folder / "params.yaml").write_text(yaml.safe_dump(alike))
    assert "rename one" in refusal(kubeflow.pipeline, image=IMAGE, root=STORE)
