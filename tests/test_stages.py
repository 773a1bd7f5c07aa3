"""The stages of DVC, of the flow and of `components/` are the same."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import params
from flows import retrain

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def names(**candidates: list[str]) -> list[str]:
    """What `dvc.yaml` unfolds to for some `models` and `ensembles`."""
    unfolded = []
    for stage, body in DVC.items():
        each = body.get("foreach", "").removeprefix("${train.").removesuffix("}")
        unfolded += [f"{stage}@{name}" for name in candidates[each]] if each else [stage]
    return unfolded


def test_the_flow_runs_every_stage_of_dvc_and_no_other() -> None:
    assert sorted(retrain.stages(["a", "b"], ["c"])) == sorted(names(models=["a", "b"], ensembles=["c"]))


def test_dvc_unfolds_settings_with_ensembles_and_without(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    settings = yaml.safe_load((ROOT / "presets/sample.yaml").read_text())
    for ensembles in (None, {"both": ["cnn", "cnn-crop"]}):
        if ensembles:
            settings["train"]["ensembles"] = ensembles
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
        dvc = [sys.executable, "-m", "dvc"]
        if not (tmp_path / ".dvc").exists():
            subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
        done = subprocess.run([*dvc, "stage", "list", "--name-only"], cwd=tmp_path, capture_output=True, text=True)
        train = params.load(tmp_path / "params.yaml").train
        assert sorted(done.stdout.split()) == sorted(retrain.stages(train.models, train.ensembles)), done.stderr


def test_every_stage_of_dvc_is_the_command_of_a_component() -> None:
    for stage, body in DVC.items():
        command = body.get("do", body)["cmd"]
        component = "evaluate" if stage == "ensemble" else stage
        assert command.startswith(f"python -m components.{component}")
        assert (ROOT / "components" / component / "__main__.py").exists()


def test_every_component_with_a_command_is_run_by_the_flow() -> None:
    commands = {path.parent.name for path in (ROOT / "components").glob("*/__main__.py")}
    touching_the_world = {"ingest", "register"}
    assert commands == set(DVC) - {"ensemble"} | touching_the_world | {"monitor"}  # which looks on from beside
    source = (ROOT / "flows/retrain.py").read_text()
    for stage in touching_the_world:
        assert f'commands.stage("{stage}")' in source


def test_stages_run_after_what_they_depend_on() -> None:
    made_by = {}
    for name in retrain.stages(["a"], ["b"]):
        body = DVC[name.split("@")[0]]
        body = body.get("do", body)
        for out in [*body.get("outs", []), *body.get("metrics", [])]:
            made_by[next(iter(out)) if isinstance(out, dict) else out] = name
        for dependency in body["deps"]:
            if dependency.startswith("artifacts/"):
                assert any(made.startswith(dependency) for made in made_by), f"{name} runs before {dependency} is made"


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").rglob("*.yaml")), ids=lambda p: p.stem)
def test_presets_name_stages_that_dvc_can_unfold(preset: Path) -> None:
    models = list(params.load(preset).train.models)
    assert len(retrain.stages(models)) == 2 + 2 * len(models)


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").rglob("*.yaml")), ids=lambda p: p.stem)
def test_presets_hold_every_section_that_dvc_watches(preset: Path) -> None:
    settings = yaml.safe_load(preset.read_text())
    for body in DVC.values():
        for watched in body.get("do", body)["params"]:
            assert watched.split(".")[0] in settings


def test_components_know_nothing_of_orchestration() -> None:
    for path in (ROOT / "components").rglob("*.py"):
        source = path.read_text()
        assert "import prefect" not in source and "from prefect" not in source, path
        assert "from flows" not in source and "import flows" not in source, path


def test_where_the_work_is_done_makes_no_stage_stale() -> None:
    for body in DVC.values():
        watched = body.get("do", body)["params"]
        assert not any(setting.split(".")[0] == "engine" for setting in watched)


def test_a_run_says_what_it_did() -> None:
    assert retrain.headline(True, "1", "2") == "retrained"
    assert retrain.headline(False, "1", "1") == retrain.headline(False, "1", None) == retrain.UNCHANGED
    assert "version 2 was registered" in retrain.headline(False, "1", "2")
