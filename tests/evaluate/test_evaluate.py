"""The judge at work on real, tiny candidates: what it writes, and that serving says the same."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components import images, networks, robustness, shards
from components.detector import file, wording
from components.evaluate import evaluate
from components.evaluate.decision import Scored, calibrate
from components.ingest import ingest
from components.params import Evaluate, Ingest, Sample, Source
from components.preprocess import arrays
from components.serve.check import Judge, check
from components.serve.detector import Detector
from components.stage import StageError

VIEWS = {"whole": "24", "crops": "crop-16x2"}
EQUAL = {"size": "crop", "side": 28, "quality": 80}
SETTINGS = Evaluate(bootstrap=100, robustness_images=12, degraded_images=30, max_uncertain=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """126 self-made images, two networks that were never trained, judged alone and together."""
    import mlflow

    folder = tmp_path_factory.mktemp("judge")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    section = Ingest(sources={"sample": Source()}, sample=Sample(n_images=126, size=32))
    ingest("sample", Source(), section, folder / "data", folder / "receipts")
    files = shards.paths(folder / "data", ["sample"])
    rows = shards.manifest(files)
    rows["split"] = np.tile(np.repeat(["train", "validation", "test"], 6), 7)  # all generators in each
    rows["group"] = rows["sha256"]
    arrays.update(files, rows, list(VIEWS.values()), EQUAL, folder / "arrays")
    columns = ["sha256", "shard", "row", "label", "source", "generator", "split", "group"]
    rows[columns].to_parquet(folder / "index.parquet")
    keras = networks.load_keras()
    for seed, (name, view) in enumerate(VIEWS.items()):
        keras.utils.set_random_seed(seed)
        model = networks.build("cnn", images.view_size(view), {"width": 4, "blocks": 2})
        model.get_layer("logit").set_weights([10 * w for w in model.get_layer("logit").get_weights()])
        (folder / "models" / name).mkdir(parents=True)
        model.save(folder / "models" / name / "network.keras")
        (folder / "models" / name / "network.onnx").write_bytes(detectors.compiled(model, view))
        (folder / "models" / name / "training.json").write_text(json.dumps({"run_id": "0" * 32}))
    for name, members in {"whole": ["whole"], "crops": ["crops"], "both": list(VIEWS)}.items():
        judge(folder, name, members, folder / "evaluation" / name)
    return folder


def judge(root: Path, name: str, members: list[str], out: Path, settings: Evaluate = SETTINGS) -> dict[str, Any]:
    views = {member: VIEWS[member] for member in members}
    where = (root / "models", root / "index.parquet", root / "arrays", root / "data")
    return evaluate(name, views, settings, *where, out)


def test_what_is_promised_is_there(root: Path) -> None:
    folder = root / "evaluation/both"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 42 and metrics["n_validation"] == 42
    assert metrics["by_label"].keys() == {"ai", "real"}
    assert set(metrics["by_generator"]) == {"upconv-a", "upconv-b", "upconv-c"}
    recalls = [m["accuracy"] for m in metrics["by_label"].values()]
    assert np.mean(recalls) == pytest.approx(metrics["balanced_accuracy"])
    assert [(r["degradation"], r["strength"]) for r in metrics["robustness"]] == [
        (d.name, d.strength) for d in robustness.GRID
    ]
    for entry in metrics["robustness"]:
        assert entry["n"] == 12
        assert (entry["recall"] + entry["real_accuracy"]) / 2 == pytest.approx(entry["balanced_accuracy"])
    assert metrics["explanation"]["method"] == "class activation"
    assert -1 <= metrics["explanation"]["occlusion_correlation"] <= 1
    report, card = (folder / "report.html").read_text(), (folder / "model_card.md").read_text()
    for words in (
        "never seen",
        "By generator",
        "upconv-b",
        "re-saved as WebP 50",
        "uncertain",
        "Its worst mistakes",
    ):
        assert words in report, words
    assert report.count("data:image/png") == 7
    short = card.partition("\n## ")[0]
    assert "the average of `whole` (sees `24`), `crops`" in short
    assert f"{metrics['balanced_accuracy']:.4f}" in short
    for words in ("| sample | 21 | 21 | upconv-a, upconv-b, upconv-c |", "Use and limits", "temperature", "screenshot"):
        assert words in card, words


def test_everything_is_logged(root: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    run_id = json.loads((root / "evaluation/both/run.json").read_text())["run_id"]
    logged = {Path(f.path).name for f in client.list_artifacts(run_id, "evaluation")}
    assert {p.name for p in (root / "evaluation/both").iterdir()} == logged
    assert client.get_run(run_id).data.params["members"] == "whole, crops"


def test_an_ensemble_is_the_mean_of_its_calibrated_members(root: Path) -> None:
    index = pd.read_parquet(root / "index.parquet")
    index = index[index["split"] != "train"]
    labels = (index["label"] == "ai").to_numpy()
    held = (index["split"] == "validation").to_numpy()
    parts, temperatures = [], []
    for name, view in VIEWS.items():
        pixels = np.load(root / f"arrays/{view}/{index['shard'].iloc[0]}.npy")[index["row"]]
        crops = pixels.reshape(-1, *pixels.shape[-3:]).astype(np.float32)
        said = networks.load(root / f"models/{name}/network.keras").predict(crops, verbose=0)
        logits = said.reshape(len(pixels), -1).mean(1)
        temperatures.append(calibrate(Scored(logits[held], labels[held])))
        parts.append(logits / temperatures[-1])
    about = file.about(root / "evaluation/both/detector.onnx")
    assert [(m["name"], m["view"]) for m in about["members"]] == list(VIEWS.items())
    assert [m["temperature"] for m in about["members"]] == pytest.approx(temperatures, rel=1e-3)
    expected = 1 / (1 + np.exp(-np.mean(parts, axis=0) / about["temperature"]))
    found = pd.read_parquet(root / "evaluation/both/predictions.parquet")
    np.testing.assert_allclose(found["probability"], expected, atol=1e-5)
    assert found["sha256"].tolist() == index["sha256"].tolist()


@pytest.mark.parametrize("name", ["whole", "both"])
def test_serving_says_what_the_judge_said(root: Path, tmp_path: Path, name: str) -> None:
    detector = Detector(root / "evaluation" / name / "detector.onnx", "1")
    index = pd.read_parquet(root / "index.parquet")
    files = shards.paths(root / "data", ["sample"])
    recorded = pd.read_parquet(root / f"evaluation/{name}/predictions.parquet").set_index("sha256")["probability"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    test = index[index["split"] == "test"].head(6)
    paths = []
    for (row, data), folder in zip(shards.load(files, test), "ababab", strict=True):
        # Two folders with files of the same names.
        paths.append(tmp_path / folder / f"{len(paths) // 2}.jpg")
        paths[-1].write_bytes(data)
        assert detector.score([data])[0]["probability"] == pytest.approx(recorded[test.loc[row, "sha256"]], abs=1e-5)
    judge = Judge(lambda version: detector, name, fetch=lambda address: b"")
    names = [str(path) for path in (*paths, tmp_path / "gone.jpg")]
    rows = [row for block in check(judge, names, tmp_path / "maps") for row in block]
    assert len(rows) == 7 and rows[-1]["error"] and not any("heatmap" in row for row in rows)
    drawn = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert len(drawn) == 6 and "0.jpg.png" in drawn
    for path in (tmp_path / "maps").iterdir():
        image = images.decode(path.read_bytes())
        assert image.size == (256, 256) and np.ptp(np.asarray(image), axis=2).max() > 20, "coloured"


def test_what_was_decided_stands_in_the_file(root: Path) -> None:
    """Temperature, threshold and band as the figures and the card have them, the encoding, the sizes, the members."""
    metrics = json.loads((root / "evaluation/whole/metrics.json").read_text())
    about = file.about(root / "evaluation/whole/detector.onnx")
    assert about["threshold"] == metrics["threshold"] and about["low"] <= about["threshold"] <= about["high"]
    assert about["equalise"] == EQUAL and about["members"] == [{"name": "whole", "view": "24", "temperature": 1.0}]
    assert about["scope"].keys() == {"min_side", "max_side"} and about["scope"]["min_side"] <= 32
    test = pd.read_parquet(root / "evaluation/whole/predictions.parquet").query("split == 'test'")["probability"]
    assert ((about["low"] <= test) & (test < about["high"])).mean() == pytest.approx(metrics["uncertain_share"])


def test_the_same_again_gives_the_same_decision(root: Path, tmp_path: Path) -> None:
    """With the degradations in it; a decision is part of a version's identity."""
    judge(root, "both", list(VIEWS), tmp_path)
    assert (tmp_path / "detector.onnx").read_bytes() == (root / "evaluation/both/detector.onnx").read_bytes()
    assert (tmp_path / "metrics.json").read_bytes() == (root / "evaluation/both/metrics.json").read_bytes()


def test_what_was_not_trained_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"network\.onnx is missing: whole was not trained; `dvc repro train@whole`"):
        evaluate("whole", VIEWS, SETTINGS, tmp_path, root / "index.parquet", root / "arrays", root / "data", tmp_path)


def test_the_degraded_scores_are_kept_for_each_image(root: Path) -> None:
    """So that another version can be compared with this one on the same degraded images."""
    metrics = json.loads((root / "evaluation/both/metrics.json").read_text())
    after = pd.read_parquet(root / "evaluation/both/degraded.parquet")
    labels = after["label"] == "ai"
    assert list(after.columns) == ["sha256", "label", *map(str, robustness.GRID)]
    for entry, degradation in zip(metrics["robustness"], robustness.GRID, strict=True):
        said = after[str(degradation)] >= metrics["threshold"]
        assert (said == labels).mean() == pytest.approx(entry["accuracy"]), str(degradation)
    test = pd.read_parquet(root / "evaluation/both/predictions.parquet").query("split == 'test'")
    assert set(after["sha256"]) <= set(test["sha256"])


def test_too_few_degraded_images_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"degraded_images: 1 of the validation images, and none of them is (ai|real)"):
        judge(root, "whole", ["whole"], tmp_path, SETTINGS.model_copy(update={"degraded_images": 1}))


def test_without_degraded_images_the_grid_is_left_out(root: Path, tmp_path: Path) -> None:
    plain = SETTINGS.model_copy(update={"robustness_images": 0, "degraded_images": 0})
    metrics = judge(root, "whole", ["whole"], tmp_path, plain)
    assert metrics["robustness"] == []
    assert pd.read_parquet(tmp_path / "degraded.parquet").empty
    assert "After a re-save" not in (tmp_path / "report.html").read_text()
    assert "degraded" not in (tmp_path / "model_card.md").read_text()


def test_collections_that_were_left_out_decide_and_are_shown(root: Path, tmp_path: Path) -> None:
    """Scores of two members on 40 images; the collection `hard` is mostly wrong."""
    plain = SETTINGS.model_copy(update={"robustness_images": 0, "degraded_images": 0})
    index = pd.read_parquet(root / "index.parquet").head(40)
    rng = np.random.default_rng(0)
    hard = np.arange(40) < 12
    side = np.where((index["label"] == "ai") ^ hard, 2, -2)
    models = tmp_path / "models"
    shutil.copytree(root / "models", models)
    for name in VIEWS:
        logit = (side + rng.normal(0, 0.5, 40)).astype(np.float32)
        rows = index[["sha256", "label"]].assign(
            collection=np.where(hard, "hard", "easy"), fold=0, weight=1 / 40, logit=logit
        )
        rows.to_parquet(models / name / "left_out.parquet")
    out = tmp_path / "out"
    metrics = evaluate("both", VIEWS, plain, models, root / "index.parquet", root / "arrays", root / "data", out)
    found = metrics["left_out"]
    assert found["n"] == 40 and found["accuracy"] == pytest.approx(28 / 40)
    worst = min(found["by_collection"], key=lambda row: row["right"])
    assert worst["collection"] == "hard" and worst["right"] == 0
    about = file.about(out / "detector.onnx")
    assert about["left_out"]["verdicts"] == found["verdicts"]
    report, card = (out / "report.html").read_text(), (out / "model_card.md").read_text()
    said = wording.sentence(about)
    assert said in report and said in card
    assert "of the worst collections the surest wrong answers" in report
    assert not (out / "collections.png").exists()  # DVC would have to know of it


def test_views_of_crops_are_judged_on_the_crops(root: Path, tmp_path: Path) -> None:
    """With the pictures of another row in place of its crops, each image gets that one's answer."""
    index = pd.read_parquet(root / "index.parquet")
    other = index[["shard", "row"]].to_numpy()[::-1]
    crossed = index.assign(crop_shard=other[:, 0], crop_row=other[:, 1].astype(int))
    crossed.to_parquet(tmp_path / "index.parquet")
    where = (root / "models", tmp_path / "index.parquet", root / "arrays", root / "data")
    few = SETTINGS.model_copy(update={"robustness_images": 4, "degraded_images": 0})
    for name, is_moved in (("crops", True), ("whole", False)):
        evaluate(name, {name: VIEWS[name]}, few, *where, tmp_path / name)
        detector = Detector(tmp_path / name / "detector.onnx", "1")
        scored = pd.read_parquet(tmp_path / name / "predictions.parquet").set_index("sha256")["probability"]
        degraded = pd.read_parquet(tmp_path / name / "degraded.parquet").set_index("sha256")
        asked = crossed[crossed["sha256"].isin(degraded.index)].reset_index(drop=True)
        seen = shards.placed(asked, VIEWS[name])
        assert is_moved == (seen["row"] != asked["row"]).any()
        entry = robustness.GRID[1]
        for place, data in shards.load(shards.paths(root / "data", ["sample"]), seen):
            sha = asked.loc[place, "sha256"]
            degraded_file = bmp(entry(images.decode(data)))
            plain, worse = detector.score([data, degraded_file])
            assert plain["probability"] == pytest.approx(scored[sha], abs=1e-4)
            assert worse["probability"] == pytest.approx(degraded.loc[sha, str(entry)], abs=1e-4)


def bmp(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()
