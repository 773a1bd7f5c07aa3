"""SIGKILL at exact places: nothing is lost, nothing is registered twice, and running it again completes it."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import (
    Stores,
    Waiting,
    another,
    client_of,
    contents,
    copied,
    dies,
    files_of,
    inside,
    on,
    registered,
    stage,
    until,
)
from harness import Project

pytestmark = pytest.mark.slow

INGEST = [
    "components.shards:write*2",  # in the middle of the images
    "pathlib:Path.rename*5",  # all three shards have their names, and one of them is in its place
    "components.ingest:_Receipt.write",
    "components.shards:seal",
]
DVC = [
    "components.validate.report:write",
    "dvc.dvcfile:Lockfile.dump_stages",  # validation is done, and DVC hasn't noted it
    "components.preprocess.arrays:_remember*2",  # two arrays of three are made
    "components.train:_report",  # the first epoch is saved, and MLflow doesn't know of it
    "components.evaluate:_after_degradation",
]
CLIENT = "mlflow.tracking.client:MlflowClient"
REGISTER = [
    f"{CLIENT}.create_registered_model",  # it is uploaded
    f"{CLIENT}.create_model_version",
    f"{CLIENT}.create_model_version+",
    "components.register.registry:Registry._note",  # the alias is set
    f"{CLIENT}.set_model_version_tag",  # the decision is made
    "components.stage:replace",  # all but registration.json
]


def removed(project: Project, *names: str) -> None:
    for name in names:
        path = project.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_ingest(finished: Path, project: Project) -> None:
    removed(project, "data", "artifacts/ingest")
    for place in INGEST:
        dies(project, place, "python", "-m", "components.ingest")
    stage(project, "ingest")
    assert contents(project.root / "data") == contents(finished / "data")
    assert "nothing new" in stage(project, "ingest")


def test_ingest_with_a_limit(finished: Path, project: Project) -> None:
    """Killed when half of what it may bring is in its place, and the rest is in another part."""
    rows = pd.concat(map(pd.read_parquet, sorted((finished / "data/sample").glob("*.parquet"))))
    rows = rows.groupby("label").head(20)
    (project.root / "tables").mkdir()
    for number in range(2):
        part = rows.groupby("label").nth(slice(10 * number, 10 * number + 10))
        table = [
            {"image": {"bytes": i["bytes"]}, "label": label}
            for i, label in zip(part["image"], part["label"], strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(table), project.root / f"tables/{number}.parquet")
    source = {"from": "tables", "columns": {"image": "image", "label": "label"}, "max_images": 40}
    project.params = {**project.params, "ingest": {**project.params["ingest"], "sources": {"mine": source}}}
    # Each part's shard gets its name first.
    dies(project, "pathlib:Path.rename*4", "python", "-m", "components.ingest")
    mine = project.root / "data/mine"
    assert len(list(mine.glob("*.parquet"))) == 1
    stage(project, "ingest")
    assert sorted(pd.concat(map(pd.read_parquet, mine.glob("*.parquet")))["sha256"]) == sorted(rows["sha256"])


def test_every_stage_of_dvc(finished: Path, shared: Project) -> None:
    removed(shared, *(f"artifacts/{made}" for made in ("validation", "arrays", "models", "evaluation")))
    removed(shared, "artifacts/index.parquet", "dvc.lock", ".dvc/cache/runs")
    for place in DVC:
        dies(shared, place, "dvc", "repro")
    assert "Running stage 'train@small'" not in shared.ok("dvc", "repro")
    assert "up to date" in shared.ok("dvc", "status")

    made, whole = shared.root / "artifacts", finished / "artifacts"
    assert contents(made / "arrays") == contents(whole / "arrays")
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "index.parquet") for folder in (made, whole)))
    columns = ["epoch", "loss", "val_loss", "val_balanced_accuracy", "learning_rate"]
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / "models/small/history.csv")[columns] for folder in (made, whole))
    )
    predictions = [pd.read_parquet(folder / "evaluation/small/predictions.parquet") for folder in (made, whole)]
    np.testing.assert_array_equal(*(table["probability"] for table in predictions))
    run = json.loads((made / "models/small/training.json").read_text())["run_id"]
    scores = client_of(shared).get_metric_history(run, "val_loss")
    assert {score.step for score in scores} == {1, 2}, "MLflow has every epoch"


def test_dvc_alone(shared: Project, waiting: Waiting) -> None:
    """Its stage ends with it, and the next one has the folder for itself."""
    removed(shared, ".dvc/cache/runs")
    there = inside(shared, **waiting.env("components.train:_report"))
    process = there.start("dvc", "repro", "--force", "--single-item", "train@small", log="dvc.log")
    [pid] = waiting.until_there(process, shared.root / "dvc.log")
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert "taken up again after epoch 1" in shared.ok("dvc", "repro", "--force", "--single-item", "train@small")


def test_the_first_registration(shared: Project, tmp_path: Path) -> None:
    for place in REGISTER:
        dies(shared, place, "python", "-m", "components.register")
    assert "version 1: champion" in stage(shared, "register")
    found = registered(shared)
    assert found.versions == [["champion"]] and found.champions == ["1"]
    assert found.tags[0]["gate"] == "champion"
    detector = files_of(shared, "1", tmp_path / "version")["detector.onnx"]
    assert detector == (shared.root / "artifacts/evaluation/small/detector.onnx").read_bytes()


def test_a_promotion_by_the_gate(automatic: Project) -> None:
    stage(automatic, "register")
    another(automatic)
    dies(automatic, "components.register.registry:Registry.promote", "python", "-m", "components.register")
    assert registered(automatic).versions == [["champion"], []]
    dies(automatic, "components.register.registry:Registry._note", "python", "-m", "components.register")
    assert "it was made the champion before" in stage(automatic, "register")
    found = registered(automatic)
    assert found.versions == [[], ["champion"]] and found.champions == ["1", "2"]
    result = json.loads((automatic.root / "artifacts/registration.json").read_text())
    assert (result["decision"], result["version"], len(result["gate"])) == ("champion", "2", 8)
    assert "version 1 is the champion again" in automatic.ok("trueframe", "rollback")
    stage(automatic, "register")
    assert registered(automatic).versions == [["champion"], []], "what was decided stays decided"


def test_a_promotion_and_a_rollback_by_a_person(shared: Project) -> None:
    stage(shared, "register")
    client, name = client_of(shared), shared.params["register"]["model"]
    first = client.get_model_version(name, "1")
    client.create_model_version(name, first.source, first.run_id, model_id=first.source.removeprefix("models:/"))
    promote, rollback = ["trueframe", "promote", "2"], ["trueframe", "rollback"]
    dies(shared, "components.register.registry:Registry._note", *promote)
    shared.ok(*promote)
    assert (registered(shared).versions, registered(shared).champions) == ([[], ["champion"]], ["1", "2"])
    dies(shared, f"{CLIENT}.set_registered_model_alias", *rollback)
    assert "version 1 is the champion again" in shared.ok(*rollback)
    assert registered(shared).versions == [["champion"], []]


@pytest.mark.parametrize(
    "step",
    [
        "create_model_version",  # neither sees the other's version before
        "set_model_version_tag",  # both note what was decided
    ],
)
def test_two_machines_register_the_same_at_once(
    finished: Path, stores: Stores, waiting: Waiting, tmp_path: Path, step: str
) -> None:
    clones = [on(stores, copied(finished, tmp_path / name), tmp_path.name) for name in ("one", "other")]
    place = waiting.env(f"{CLIENT}.{step}")
    running = [
        inside(project, **place).start("python", "-m", "components.register", log="register.log") for project in clones
    ]
    waiting.until_there(running[0], clones[0].root / "register.log", 2)
    waiting.go()
    for process, project in zip(running, clones, strict=True):
        assert process.wait(300) == 0, (project.root / "register.log").read_text()[-3000:]
    found = registered(clones[0])
    assert found.versions == [["champion"]] and set(found.champions) == {"1"}
    for project in clones:
        assert json.loads((project.root / "artifacts/registration.json").read_text())["version"] == "1"
        stage(project, "register")
    assert registered(clones[0]).versions == [["champion"]]
