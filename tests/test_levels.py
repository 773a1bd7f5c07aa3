"""What serves works without what trains, and says how that is installed where it is asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {Requirement(line).name for line in PROJECT["dependencies"]}
TRAINING = {Requirement(line).name for line in PROJECT["optional-dependencies"]["train"]}
SERVING = (
    "components.serve.check",
    "components.serve.detector",
    "components.serve.gateway",
    "components.serve.page",
    "components.serve.page.blocks",
    "components.serve.page.report",
    "components.serve.page.review",
    "components.serve.page.reviewers",
    "components.serve.pyfunc",
    "components.serve.reference",
    "components.register.registry",
    "components.registered",
    "flows.answering",
    "flows.checking",
    "flows.cli",
    "flows.doctor",
    "flows.links",
    "flows.reviewing",
    "flows.serving",
    "flows.ui",
)
IMPORT = f"""
import importlib, sys
for name in {SERVING}:
    importlib.import_module(name)
print(sorted({{"tensorflow", "keras"}} & {{name.partition(".")[0] for name in sys.modules}}))
"""
BLOCK = """
import json, sys

blocked = set(json.loads(sys.argv.pop(1)))

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
BLOCKED = ["tensorflow", "keras", "keras_hub", "prefect", "dvc", "great_expectations", "optuna", "kagglehub", "tf2onnx"]
COMMANDS = (
    ("run", "prefect", "train"),
    ("tune cnn", "prefect", "train"),
    ("generalise cnn", "prefect", "train"),
    ("monitor", "prefect", "train"),
    ("schedule", "prefect", "train"),
    ("sources", "dvc", "train"),
    ("use cifake", "dvc", "train"),
    ("ingest sample", "dvc", "train"),
    ("forget 0123456789", "dvc", "train"),
)
"""What needs the extra, with the package that it needs first."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    for name in ("dvc.yaml", "prefect.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_"))}
    return subprocess.run(
        command, cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def blocked(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in this environment, of which a part can't be imported."""
    return run(folder, sys.executable, "-c", BLOCK + program, json.dumps(BLOCKED), *arguments)


def refusal(package: str, extra: str) -> str:
    return rf"error: {package} isn't installed here, .*`pip install -e '\.\[{extra}\]'` in the project's folder.*\n"


def test_no_package_stands_in_two_levels() -> None:
    assert TRAINING.isdisjoint(BASE)
    assert {"tensorflow", "keras", "prefect", "dvc", "great-expectations", "optuna", "mlflow"} <= TRAINING


def test_what_serves_imports_nothing_that_trains(folder: Path) -> None:
    done = blocked(folder, IMPORT)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("command", "package", "extra"), COMMANDS)
def test_what_trains_says_what_it_lacks(folder: Path, command: str, package: str, extra: str) -> None:
    done = blocked(folder, "from flows.cli import main\nmain()", *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(refusal(package, extra), done.stderr) and "`make run`" in done.stderr
    assert not (folder / "data").exists(), "nothing was begun"


@pytest.mark.parametrize(("stage", "package"), [("train", "keras"), ("validate", "great-expectations")])
def test_so_does_a_stage(folder: Path, stage: str, package: str) -> None:
    program = f"from components import stage\nwith stage.one_line():\n    import {package.replace('-', '_')}"
    done = blocked(folder, program)
    assert done.returncode == 1 and re.fullmatch(refusal(package, "train"), done.stderr), done.stderr


@pytest.mark.slow
def test_the_base_serves(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The base as `make .venv/.base` makes it, of the lock; where uv's cache has its packages, in a minute."""
    environment = tmp_path_factory.mktemp("base")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, environment)
    for name in ("components", "flows", "models", "README.md", "LICENSE"):
        (environment / name).symlink_to(ROOT / name)
    made = run(environment, "make", ".venv/.base")
    assert made.returncode == 0, made.stderr
    bin_ = environment / ".venv/bin"
    size = run(environment, "du", "-sm", ".venv").stdout.split()[0]
    assert int(size) <= 1000
    listed = run(folder, str(bin_ / "python"), "-m", "pip", "list", "--format=json").stdout
    names = {canonicalize_name(package["name"]) for package in json.loads(listed)}
    assert names >= BASE and not names & {"tensorflow", "keras", "prefect", "dvc", "great-expectations", "mlflow"}

    done = run(folder, str(bin_ / "python"), "-c", IMPORT)
    assert done.stdout == "[]\n", done.stderr
    assert "check" in run(folder, str(bin_ / "trueframe"), "--help").stdout
    for command, package, extra in (COMMANDS[0], ("kubeflow compile --image x --root s3://a/b", "kfp", "kubeflow")):
        done = run(folder, str(bin_ / "trueframe"), *command.split())
        assert done.returncode == 1 and re.fullmatch(refusal(package, extra), done.stderr), done.stderr
    examined = run(folder, str(bin_ / "trueframe"), "doctor")
    assert examined.returncode == 0 and "pip install -e '.[train]'" in examined.stdout, examined.stdout
    # The reference detectors answer, and are exported.
    Image.effect_noise((300, 200), 60).convert("RGB").save(folder / "a.jpg")
    checked = run(folder, str(bin_ / "trueframe"), "check", "a.jpg", "--csv", "out.csv", "--heatmap", "maps")
    assert checked.returncode in (0, 1), checked.stderr
    assert "reference-wild" in (folder / "out.csv").read_text() and (folder / "maps/a.jpg.png").exists()
    exported = run(folder, str(bin_ / "trueframe"), "export", "out", "--format", "onnx")
    assert exported.returncode == 0, exported.stderr
    # MLflow's own store, which the registry's commands make and read.
    for command in ("models", "promote 1", "rollback"):
        done = run(folder, str(bin_ / "trueframe"), *command.split())
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "isn't installed" not in done.stderr
    assert (folder / "mlflow.db").exists()
