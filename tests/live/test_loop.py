"""The whole loop with the real tools: a Prefect server, DVC, MLflow's registry and its scoring server.

The tests tell one story and run in order: each takes the project on where the last one left it.
"""

import base64
import csv
import io
import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from harness import Project, clone, free_port, stop, wait_for
from PIL import Image

from components import shards
from components.serve.detector import FIELDS

MARK = "-".join(("mark", "of", "a", "secret"))  # in pieces, for this file is among those that are searched
SECRETS = {
    name: f"{MARK}-{name}"
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "KAGGLE_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "PGPASSWORD",
        "TRUEFRAME_API_KEYS",
        "TRUEFRAME_REVIEW_KEYS",
    )
}
STAGES = ["validate", "preprocess", "train@small", "evaluate@small", "train@crop", "evaluate@crop", "ensemble@both"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Project:
    """A tiny project in whose environment there are secrets."""
    return clone(tmp_path_factory.mktemp("project"), **prefect_server, **SECRETS)


def ran(output: str) -> list[str]:
    """The pure stages that did something, by the flow's own log."""
    done = [line for line in output.splitlines() if "Finished in state Completed('done')" in line]
    return [stage for stage in STAGES if any(f"'{stage}'" in line for line in done)]


def versions(project: Project) -> list[str]:
    code = (
        "from components.register.registry import Registry\n"
        "for v in Registry('trueframe').versions(): print(v.number, *v.aliases)"
    )
    return project.ok("python", "-c", code).strip().splitlines()


def test_a_run_ends_with_a_champion(project: Project) -> None:
    params = project.params
    params["train"]["ensembles"] = {"both": ["small", "crop"]}
    project.params = params
    output = project.ok("trueframe", "run", timeout=500)
    assert ran(output) == STAGES
    assert "champion: trueframe version 1" in output and MARK not in output
    assert "balanced accuracy" in output and "report:" in output and "trueframe check" in output

    registration = json.loads((project.root / "artifacts/registration.json").read_text())
    assert registration["decision"] == "champion"
    assert (registration["model_name"], registration["version"]) == ("trueframe", "1")
    assert registration["aliases"]["champion"] == "1"
    assert registration["reasons"]
    for model in ("small", "crop", "both"):
        folder = project.root / "artifacts/evaluation" / model
        metrics = json.loads((folder / "metrics.json").read_text())
        assert {"accuracy", "auroc", "ece", "tpr_at_fpr_01", "by_source", "by_generator", "robustness", "n"} <= set(
            metrics
        )
        low, high = metrics["intervals"]["balanced_accuracy"]
        assert low <= metrics["balanced_accuracy"] <= high
        predictions = pd.read_parquet(folder / "predictions.parquet")
        assert list(predictions.columns) == ["sha256", "label", "probability", "split"]
        test = predictions[predictions["split"] == "test"]
        assert len(test) == metrics["n"]
        said = np.where(test["probability"] >= metrics["threshold"], "ai", "real")
        assert (said == test["label"]).mean() == pytest.approx(metrics["accuracy"])
        assert "data:image/png;base64," in (folder / "report.html").read_text()


def test_the_version_names_its_exact_origin(project: Project) -> None:
    code = (
        "import json; from components.register.registry import Registry\n"
        "r = Registry('trueframe'); v = r.alias('champion')\n"
        "[run] = r.mlflow.search_runs(filter_string=\"tags.stage = 'train'\", max_results=1, output_format='list')\n"
        "print(json.dumps({'tags': v.tags, 'params': run.data.params, 'metrics': run.data.metrics,"
        " 'judged': 'test_balanced_accuracy' in r.mlflow.get_run(v.run_id).data.metrics,"
        " 'datasets': [d.dataset.digest for d in run.inputs.dataset_inputs]}))"
    )
    found = json.loads(project.ok("python", "-c", code).strip().splitlines()[-1])
    head = project.ok("git", "rev-parse", "HEAD").strip()
    assert found["tags"]["git_commit"] == head
    assert found["tags"]["data_md5"] in (project.root / "data.dvc").read_text()
    assert len(found["tags"]["dvc_lock_md5"]) == 32
    assert found["params"]["epochs"] == "2"
    assert "test_balanced_accuracy" in found["metrics"] and "val_loss" in found["metrics"]
    assert found["datasets"]
    assert found["judged"], "the version's own run, of a model or of an ensemble, holds its scores"


def test_the_flow_publishes_what_came_out(project: Project) -> None:
    request = urllib.request.Request(
        f"{project.env['PREFECT_API_URL']}/artifacts/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        artifacts = {a["key"]: a["data"] for a in json.load(answer)}
    assert "balanced accuracy" in artifacts["retraining"]
    assert "champion" in artifacts["retraining"]
    assert "data_docs/index.html" in artifacts["data-docs"]


def test_no_secret_is_left_anywhere(project: Project) -> None:
    """Neither in the data, the artifacts, MLflow's store and files, nor in Prefect's database."""
    folders = (project.root, Path(project.env["PREFECT_HOME"]))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "prefect.db", "registration.json", "SHA256SUMS"} <= {path.name for path in files}
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []


def test_nothing_new_runs_no_stage(project: Project) -> None:
    output = project.ok("trueframe", "run")
    assert ran(output) == []
    assert "nothing changed" in output
    assert versions(project) == ["1 champion"]


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[str]:
    """The address of `mlflow models serve` for the champion."""
    port = free_port()
    where = ["--env-manager", "local", "--port", str(port)]
    process = project.start("mlflow", "models", "serve", "-m", "models:/trueframe@champion", *where, log="serve.log")
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        stop(process)


def ask(server: str, rows: list[dict], **params: object) -> list[dict]:
    body = json.dumps({"dataframe_records": rows, **({"params": params} if params else {})}).encode()
    request = urllib.request.Request(server, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def test_the_server_answers_each_row_by_itself(project: Project, server: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    rows = []
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        rows.append({"image": base64.b64encode(buffer.getvalue()).decode()})
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    garbage = [
        {"image": "not base64!"},
        {"image": base64.b64encode(b"no image").decode()},
        {"image": 7},
        {"image": None},
    ]
    answers = ask(server, [*rows, *garbage, {"image": base64.b64encode(tiny.getvalue()).decode()}])
    assert len(answers) == 8
    for answer in answers:
        assert list(answer) == list(FIELDS)
        assert answer["model_version"] == "1"
    for answer in answers[:3]:
        assert answer["error"] is None
        assert answer["label"] == ("ai" if answer["probability"] >= answer["threshold"] else "real")
        assert answer["verdict"] in ("ai", "real", "uncertain")
    for answer in answers[3:7]:
        assert answer["error"]
        assert answer["label"] is answer["probability"] is answer["verdict"] is None
    assert answers[7]["verdict"] == "uncertain" and "too small" in answers[7]["warnings"][0]


def test_the_server_explains_on_request(project: Project, server: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(buffer, "PNG")
    rows = [{"image": base64.b64encode(buffer.getvalue()).decode()}]
    assert "heatmap" not in ask(server, rows)[0]
    heatmap = Image.open(io.BytesIO(base64.b64decode(ask(server, rows, explain=True)[0]["heatmap"])))
    assert heatmap.format == "PNG"


def test_check_agrees_with_the_evaluation_to_the_image(project: Project) -> None:
    registration = json.loads((project.root / "artifacts/registration.json").read_text())
    champion, version = registration["candidate"], registration["version"]
    index = pd.read_parquet(project.root / "artifacts/index.parquet")
    index = index[index["split"] == "test"].reset_index(drop=True)
    folder = project.root / "checks"
    folder.mkdir()
    for row, data in shards.load(shards.paths(project.root / "data", ["sample"]), index):
        (folder / f"{index.loc[row, 'sha256']}.jpg").write_bytes(data)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    # From another folder, with relative paths, as people do. By its number, the version answers by itself.
    outputs = ["--csv", "out.csv", "--json", "out.json"]
    done = project.run("trueframe", "check", ".", "--version", version, *outputs, cwd=folder)
    assert done.returncode == 2, done.stderr  # for the broken one
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", *FIELDS]
    assert [Path(r["path"]).name for r in json.loads((folder / "out.json").read_text())] == [
        Path(r["path"]).name for r in rows
    ]
    said = {Path(r["path"]).stem: r for r in rows}
    assert said.pop("broken")["error"]
    recorded = pd.read_parquet(project.root / "artifacts/evaluation" / champion / "predictions.parquet").set_index(
        "sha256"
    )
    metrics = json.loads((project.root / "artifacts/evaluation" / champion / "metrics.json").read_text())
    assert len(said) == metrics["n"]
    truth = index.set_index("sha256")["label"]
    assert np.mean([row["label"] == truth[sha] for sha, row in said.items()]) == metrics["accuracy"]
    for sha, row in said.items():
        # float32 sums in another order
        assert float(row["probability"]) == pytest.approx(recorded.loc[sha, "probability"], abs=1e-5)


def test_one_image_more_in_a_folder_runs_the_stages(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(2)

    def add(label: str, name: str) -> None:
        (folder / label).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / label / name)

    for number in range(12):
        add("ai", f"{number}.png")
        add("real", f"{number}.png")
    before = {p: p.stat().st_mtime_ns for p in (project.root / "artifacts/arrays").rglob("*.npy")}
    output = project.ok("trueframe", "ingest", "mine", "--from", str(folder))
    assert "24 images added" in output and "ingest.sources.mine" in output
    # One network is enough from here on.
    params = project.params
    params["train"] = {"models": {"small": params["train"]["models"]["small"]}}
    project.params = params
    add("real", "one more.png")
    output = project.ok("trueframe", "run")
    assert "mine: 1 images added" in output
    assert ran(output) == ["validate", "preprocess", "train@small", "evaluate@small"]
    after = {p: p.stat().st_mtime_ns for p in (project.root / "artifacts/arrays").rglob("*.npy")}
    assert {p: after[p] for p in before} == before, "arrays of old shards were made again"
    assert len(after) == len(before) + 4, "two new shards in two views"


def test_a_killed_training_goes_on_where_it_was(project: Project) -> None:
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 5, "seed": 11}}
    project.params = params
    registered = versions(project)
    process = project.start("trueframe", "run", log="killed.log")
    log = project.root / "killed.log"
    end = time.monotonic() + 120
    while "small: epoch 2/5:" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    output = project.ok("trueframe", "run")
    assert "taken up again after epoch" in output
    assert ran(output) == ["train@small", "evaluate@small"]
    assert len(versions(project)) == len(registered) + 1
    history = pd.read_csv(project.root / "artifacts/models/small/history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_promote_and_rollback(project: Project) -> None:
    newest = versions(project)[0].split()[0]
    assert versions(project) == [f"{newest} challenger", *map(str, range(int(newest) - 1, 1, -1)), "1 champion"]
    rules = [rule["rule"] for rule in json.loads((project.root / "artifacts/registration.json").read_text())["gate"]]
    assert {"worst degradation", "regression set"} < set(rules)
    with urllib.request.urlopen(f"{project.env['PREFECT_API_URL']}/artifacts/retraining/latest") as answer:
        assert "| worst degradation |" in json.load(answer)["data"]
    project.ok("trueframe", "promote", newest, "--force", "--reason", "a try")
    assert f"{newest} champion" in versions(project)
    assert "version 1 is the champion again" in project.ok("trueframe", "rollback")
    history = project.ok("trueframe", "models", "--history")
    assert "a try" in history and "rolled back" in history
    # A run that brings nothing new doesn't undo what a person decided.
    project.ok("trueframe", "run")
    assert "1 champion" in versions(project)
    table = project.ok("trueframe", "models")
    assert "champion" in table and newest in table
    refused = project.run("trueframe", "promote", "99")
    assert refused.returncode == 1
    assert "has no version 99" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


def test_doctor_and_sources(project: Project) -> None:
    table = project.ok("trueframe", "doctor")
    assert "no remote" in table and "answers" in table
    table = project.ok("trueframe", "sources")
    assert "cifake" in table and "mine" in table


def test_two_runs_at_once(project: Project) -> None:
    import fcntl

    with (project.root / "artifacts/.run.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = project.run("trueframe", "run")
        brought = project.run("trueframe", "ingest", "mine")
    assert done.returncode == brought.returncode == 1
    assert "another run" in done.stderr
    assert "another run" in brought.stderr, "its version would be said to be of data that it never saw"


def test_a_failing_check_stops_the_run_before_training(project: Project) -> None:
    params = project.params
    params["validate"]["min_images"] = 10_000
    project.params = params
    done = project.run("trueframe", "run")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "fewer than 10000" in errors[0]
    assert ran(done.stdout + done.stderr) == []
    report = json.loads((project.root / "artifacts/validation/report.json").read_text())
    assert report["passed"] is False
    params["validate"]["min_images"] = 50
    project.params = params


def test_an_unreachable_store_is_one_line(project: Project) -> None:
    env = {**project.environment(), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    elsewhere = Project(project.root, env)
    done = elsewhere.run("trueframe", "models")
    assert done.returncode == 1
    assert "can't be used" in done.stderr and "MLFLOW_TRACKING_URI" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_that_is_told_to_end_ends_with_all_it_started(project: Project) -> None:
    before = project.params
    project.params = {**before, "train": {"models": {"small": {**before["train"]["models"]["small"], "epochs": 9000}}}}
    process = project.start("trueframe", "run", log="ended.log")
    log = project.root / "ended.log"
    end = time.monotonic() + 120
    while "small: epoch 1/9000:" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert log.read_text().endswith("stopped; the same command goes on where this one was\n")
    project.params = before
    project.ok("trueframe", "run")


def test_no_training_is_left_behind(project: Project) -> None:
    """The stages of the runs that were killed and ended above ended with them."""
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "components.train" in command and (entry / "cwd").readlink() == project.root:
                left.append(command)
        except OSError:
            continue
    assert left == []
