"""A registered version is made again from what it recorded, and what is missing is said.

The tests tell one story and run in order: each takes the project on where the last one left it.
"""

import json
import shutil
from pathlib import Path

import pytest
from harness import Project, clone

pytestmark = pytest.mark.slow

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one version, of settings and data that nobody committed."""
    project = clone(tmp_path_factory.mktemp("reproduced"))
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    params["evaluate"] = {"bootstrap": 100, "robustness_images": 20, "degraded_images": 20}
    project.params = params
    for command in ("components.ingest sample", "dvc add data", "dvc repro", "components.register"):
        project.ok("python", "-m", *command.split(), timeout=900)
    return project


def tag(project: Project, key: str, value: str) -> None:
    """Change what the version recorded."""
    code = (
        "import sys; from components.register.registry import Registry\n"
        "Registry('trueframe').client.set_model_version_tag('trueframe', '1', *sys.argv[1:])"
    )
    project.ok("python", "-c", code, key, value)


def snapshot(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_scores_come_out(registered: Project) -> None:
    """Although settings and data have moved on since."""
    made = {name: snapshot(registered.root / name) for name in ("artifacts", "mlruns")}
    params = registered.params
    registered.params = {**params, "preprocess": {**params["preprocess"], "seed": 8}}
    shutil.rmtree(registered.root / "data")
    output = registered.ok("trueframe", "reproduce", "1", timeout=900)
    metrics = json.loads((registered.root / "artifacts/evaluation/small/metrics.json").read_text())
    rows = [line for line in output.splitlines() if "│" in line]
    assert len(rows) == sum(bool(interval) for interval in metrics["intervals"].values())
    for row in rows:
        name, recorded, again, difference, _, verdict = (cell.strip() for cell in row.strip("│").split("│"))
        assert recorded == again == f"{metrics[name]:.4f}" and difference == "+0.0000" and verdict == "within"
    assert {name: snapshot(registered.root / name) for name in made} == made
    assert len(registered.ok("git", "worktree", "list").strip().splitlines()) == 1
    assert versions(registered) == ["1 champion"]
    registered.params = params
    registered.ok("dvc", "checkout", "data")


def versions(project: Project) -> list[str]:
    code = (
        "from components.register.registry import Registry\n"
        "for v in Registry('trueframe').versions(): print(v.number, *v.aliases)"
    )
    return project.ok("python", "-c", code).strip().splitlines()


def refused(project: Project) -> str:
    """The one line that says why a version can't be made again."""
    done = project.run("trueframe", "reproduce", "1")
    assert done.returncode == 1 and not done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def test_what_is_missing_is_said(registered: Project) -> None:
    head = registered.ok("git", "rev-parse", "HEAD").strip()
    tag(registered, "git_commit", "0" * 40)
    assert f"commit {'0' * 40}, which isn't in this repository" in refused(registered)
    tag(registered, "git_commit", head)
    tag(registered, "git_dirty", "true")
    assert "changes that were not committed" in refused(registered)
    tag(registered, "git_dirty", "false")
    tag(registered, "data_md5", f"{'0' * 32}.dir")
    assert f"{'0' * 32}.dir, which isn't in the DVC cache, and no remote is configured" in refused(registered)
    done = registered.run("trueframe", "reproduce", "9")
    assert done.returncode == 1 and "has no version 9" in done.stderr
    assert len(registered.ok("git", "worktree", "list").strip().splitlines()) == 1
