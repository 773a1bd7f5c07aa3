"""A model trained without each generator, by the command that people use."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from harness import Project

pytestmark = pytest.mark.slow

FOLDER = Path("artifacts/generalisation/small")


def without(project: Project, generator: str) -> Path:
    return project.root / FOLDER / "generator" / generator


def test_each_generator_is_left_out_once(project: Project) -> None:
    refused = project.run("trueframe", "generalise", "small")
    assert refused.returncode == 1 and "index.parquet: not here" in refused.stderr
    params = project.params
    params["train"]["models"]["small"]["epochs"] = 1
    project.params = params
    for stage in ("ingest", "validate", "preprocess"):
        project.ok("python", "-m", f"components.{stage}")

    output = project.ok("trueframe", "generalise", "small")
    assert "3 of 3: without upconv-c" in output and "mean balanced accuracy on what it never saw" in output
    table = json.loads((project.root / FOLDER / "table.json").read_text())["generator"]
    assert [row["group"] for row in table["rows"]] == ["upconv-a", "upconv-b", "upconv-c"]
    whole = pd.read_parquet(project.root / "artifacts/index.parquet")
    for row in table["rows"]:
        folder = without(project, row["group"])
        fold = pd.read_parquet(folder / "index.parquet")
        assert row["group"] not in set(fold.loc[fold["split"] != "test", "generator"])
        assert row["ai"] == (whole["generator"] == row["group"]).sum()
        low, high = row["interval"]
        assert low <= row["balanced_accuracy"] <= high
        tested = pd.read_parquet(folder / "evaluation/predictions.parquet").query("split == 'test'")
        assert len(tested) == row["ai"] + row["real"]
    csv = pd.read_csv(project.root / FOLDER / "table.csv")
    assert csv["group"].tolist() == ["upconv-a", "upconv-b", "upconv-c"]
    page = (project.root / FOLDER / "table.html").read_text()
    assert "upconv-b" in page and 'class="bar after"' in page

    code = (
        "import json, mlflow\n"
        "runs = mlflow.search_runs(experiment_names=['trueframe'], output_format='list')\n"
        "print(json.dumps([[r.info.run_id, r.data.tags.get('mlflow.parentRunId'), r.data.metrics] for r in runs]))"
    )
    runs = json.loads(project.ok("python", "-c", code).strip().splitlines()[-1])
    (parent,) = {run[1] for run in runs if run[1]}
    assert sum(run[1] == parent for run in runs) == 3
    (metrics,) = [run[2] for run in runs if run[0] == parent]
    assert metrics["unseen_balanced_accuracy"] == table["mean"]


def test_what_is_finished_is_not_trained_again(project: Project) -> None:
    networks = [without(project, f"upconv-{x}") / "models/small/network.keras" for x in "abc"]
    before = [file.stat().st_mtime_ns for file in networks]
    table = (project.root / FOLDER / "table.json").read_bytes()
    # As if it had been killed in the middle of the second one's evaluation, and before the third one's training.
    (without(project, "upconv-b") / "evaluation/metrics.json").unlink()
    shutil.rmtree(without(project, "upconv-c"))
    output = project.ok("trueframe", "generalise", "small")
    assert "without upconv-a (done before)" in output
    after = [file.stat().st_mtime_ns for file in networks]
    assert after[:2] == before[:2] and after[2] != before[2]
    assert (project.root / FOLDER / "table.json").read_bytes() == table, "the same again"


def test_one_source_cannot_be_left_out(project: Project) -> None:
    done = project.run("trueframe", "generalise", "small", "--by", "source")
    assert done.returncode == 1
    assert "1 source" in done.stderr and "leave out by generator" in done.stderr
    done = project.run("trueframe", "generalise", "smal")
    assert done.returncode == 1 and "it has small, crop" in done.stderr
