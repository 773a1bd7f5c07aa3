"""What a report says of predictions whose pictures, scores and reports are known."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import served
import yaml
from PIL import Image, ImageFilter

from components import predictions, shards
from components.monitor import Inputs, drift, feedback, monitor, reference
from components.monitor import __main__ as command
from components.params import Monitor
from components.stage import StageError

NOW = datetime(2026, 5, 17, 12, tzinfo=UTC)
TRAINED = 300


def picture(seed: int, size: int = 32, blur: float = 0, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(rng.integers(0, 60), 256, (8, 8, 3)).astype(np.uint8))
    image = coarse.resize((size, size), Image.Resampling.BICUBIC)
    noise = rng.normal(0, rng.uniform(3, 9), (size, size, 1))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(blur)).save(buffer, kind)
    return buffer.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data, an index, and the recorded scores of version 1."""
    root = tmp_path_factory.mktemp("trained")
    (root / "data/mine").mkdir(parents=True)
    rows = []
    for seed in range(TRAINED):
        data = picture(seed)
        rows.append(
            {
                "image": {"bytes": data, "path": None},
                "label": ("real", "ai")[seed % 2],
                "source": "mine",
                "generator": None,
                "split": None,
                "sha256": sha(data),
                "phash": seed,
                "width": 32,
                "height": 32,
                "mode": "RGB",
                "format": "PNG",
                "n_bytes": len(data),
                "origin": str(seed),
            }
        )
    for number, part in enumerate((rows[:200], rows[200:])):
        shards.write(root / f"data/mine/a-{number:05}.parquet", part)
    (root / "artifacts/monitor").mkdir(parents=True)
    index = shards.manifest(shards.paths(root / "data", ["mine"])).assign(split="train", group=0)
    index.to_parquet(root / "artifacts/index.parquet", index=False)
    scores = pd.DataFrame({"probability": np.random.default_rng(1).beta(0.5, 0.5, 400)})
    scores.to_parquet(root / "artifacts/monitor/scores-1.parquet", index=False)
    return root


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    for name in ("data", "artifacts"):
        for file in (trained / name).rglob("*.parquet"):
            target = tmp_path / file.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    (tmp_path / "artifacts/monitor/reference.parquet").unlink(missing_ok=True)
    return tmp_path


def log(
    root: Path, files: list[bytes], at: datetime = NOW - timedelta(hours=1), said: Callable[[int], dict] = lambda _: {}
) -> None:
    """Predictions of version 1, with scores like those of its test images."""
    writer = predictions.Writer(root / "predictions", 90)
    scores = np.random.default_rng(2).beta(0.5, 0.5, len(files))
    for number, (data, p) in enumerate(zip(files, scores, strict=True)):
        answer = {"probability": p, "verdict": "ai" if p > 0.5 else "real", "threshold": 0.5, "model_version": "1"}
        row = {"time": at, "latency": 0.1, "warnings": [], "error": None, "sha256": sha(data), **answer}
        writer.add(row | predictions.statistics(data) | said(number))
    writer.flush()


def report(root: Path, now: datetime = NOW, **settings: Any) -> dict[str, Any]:
    inputs = Inputs(root / "predictions", root / "feedback", root / "data", root / "artifacts/index.parquet")
    wanted = Monitor.model_validate({"min_images": 100, **settings})
    return monitor(wanted, "trueframe", ["mine"], inputs, root / "artifacts/monitor", now)[0]


def drifted(found: dict[str, Any]) -> set[str]:
    return {shift["name"] for shift in found["drift"] if shift["drifted"]}


FRESH = [picture(seed) for seed in range(1000, 1250)]


def test_more_of_the_same_is_no_drift(project: Path) -> None:
    log(project, FRESH)
    found = report(project)
    assert found["status"] == "ok" and found["problems"] == [] and found["retrain"] == []
    assert {shift["name"] for shift in found["drift"]} == {
        *("width", "height", "bytes_per_pixel", "brightness", "contrast", "sharpness", "format", "probability")
    }, "jpeg_quality has nothing to say of PNG"
    assert (found["n"], found["n_images"]) == (250, 250)
    assert sum(found["verdicts"].values()) == 250 and found["latency"]["median"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"blur": 2}, "sharpness"), ({"size": 40}, "width"), ({"kind": "JPEG"}, "format")],
    ids=["blurred", "of another size", "in another format"],
)
def test_other_pictures_are_drift_and_a_reason_to_retrain(project: Path, change: dict[str, Any], name: str) -> None:
    log(project, [picture(seed, **change) for seed in range(1000, 1120)])
    found = report(project)
    assert name in drifted(found) and "brightness" not in drifted(found) and "probability" not in drifted(found)
    assert found["status"] == "trouble"
    assert f"drift in {name}" in {problem["check"] for problem in found["problems"]}
    [reason] = found["retrain"]
    assert reason.startswith("drift in ") and name in reason


def test_scores_that_moved_are_drift_though_the_pictures_are_the_same(project: Path) -> None:
    log(project, FRESH, said=lambda number: {"probability": 0.5 + number / 1000})
    assert drifted(report(project)) == {"probability"}


def test_scores_are_not_compared_while_the_registry_is_down_and_that_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{served.free_port()}")
    log(project, FRESH, said=lambda _: {"model_version": "2"})
    found = report(project)
    assert "probability" not in {shift["name"] for shift in found["drift"]} and found["drift"]
    assert any("version 2" in note for note in found["notes"])


def test_the_reference_detectors_answers_are_not_a_versions_scores(project: Path) -> None:
    log(project, FRESH, said=lambda n: {"model_version": "1" if n % 2 else "reference-photo"})
    found = report(project)
    assert set(found["versions"]) == {"1", "reference-photo"} and found["notes"] == []
    assert "probability" in {shift["name"] for shift in found["drift"]}


def test_where_reference_detectors_alone_answered_no_scores_are_compared_and_that_is_said(project: Path) -> None:
    log(project, FRESH, said=lambda _: {"model_version": "reference-photo"})
    found = report(project)
    assert "probability" not in {shift["name"] for shift in found["drift"]} and found["drift"]
    assert any("reference detectors alone" in note for note in found["notes"])


def test_too_few_scores_to_compare_with_are_said(project: Path) -> None:
    scores = project / "artifacts/monitor/scores-1.parquet"
    pd.read_parquet(scores).head(48).to_parquet(scores, index=False)
    log(project, FRESH)
    found = report(project)
    assert "probability" not in {shift["name"] for shift in found["drift"]} and found["drift"]
    assert any("tested on 48 images" in note for note in found["notes"])


def test_many_predictions_make_no_drift_of_a_trifle() -> None:
    rng = np.random.default_rng(0)
    before, now = pd.Series(rng.normal(0, 1, 20_000)), pd.Series(rng.normal(0.05, 1, 100_000))
    words = [pd.Series(rng.choice(["JPEG", "PNG"], n, p=[p, 1 - p])) for n, p in ((20_000, 0.5), (100_000, 0.53))]
    for shift in drift.compare({"brightness": (before, now), "format": (words[0], words[1])}, 0.01, 0.2):
        assert shift.p < 1e-6 and not shift.drifted and shift.psi < 0.02


def test_mpo_of_an_older_log_is_no_drift() -> None:
    rows = pd.DataFrame({"width": 8, "height": 8, "n_bytes": 9, "format": ["MPO"] * 200})
    before, now = drift.derived(rows), drift.derived(rows.assign(format="JPEG"))
    (shift,) = drift.compare({"format": (before["format"], now["format"])}, 0.01, 0.2)
    assert (shift.distance, shift.drifted) == (0, False)


def test_few_predictions_make_no_drift_by_chance() -> None:
    """Of 200 looks at eight statistics that haven't changed, none cries with as many pictures as a report asks for."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        pairs = {f"{n}": (pd.Series(rng.normal(size=2000)), pd.Series(rng.normal(size=200))) for n in range(8)}
        assert not any(shift.drifted for shift in drift.compare(pairs, 0.01, 0.2))


def test_the_stability_index_is_that_of_the_textbook() -> None:
    before, now = np.array([0.1, 0.2, 0.4, 0.2, 0.1]), np.array([0.1, 0.1, 0.3, 0.3, 0.2])
    expected = sum((n - b) * np.log(n / b) for b, n in zip(before, now, strict=True))
    assert drift.psi(np.stack([before * 1000, now * 10])) == pytest.approx(expected)


def test_too_few_pictures_are_said_in_place_of_a_verdict(project: Path) -> None:
    log(project, [picture(seed, blur=3) for seed in range(1000, 1060)])
    found = report(project)
    assert found["status"] == "too few" and found["drift"] == [] and found["retrain"] == []
    assert "60 different pictures were judged" in found["notes"][0]
    assert report(project, NOW + timedelta(days=3))["n"] == 0


def test_a_picture_counts_once_however_often_it_is_asked_about(project: Path) -> None:
    log(project, [*FRESH, *[picture(5000, blur=3)] * 2000])
    found = report(project)
    assert (found["n"], found["n_images"]) == (2250, 251) and not drifted(found)


def test_shares_beyond_their_limits(project: Path) -> None:
    def said(number: int) -> dict[str, Any]:
        if number < 50:
            return {"error": "damaged", "probability": None, "verdict": None, "warnings": None}
        return {"verdict": "uncertain", "warnings": ["too small"]} if number < 200 else {}

    log(project, FRESH, said=said)
    found = report(project)
    assert (found["error_share"], found["uncertain_share"]) == (0.2, 0.75) and found["warned_share"] == 0.75
    assert {"uncertain", "errors"} <= {problem["check"] for problem in found["problems"]}
    assert found["retrain"] == [], "for a person to look at; training cures no broken file"
    few = report(project, max_uncertain=0.72, max_errors=0.19)
    assert few["problems"] == [], "within the interval of so few predictions"


def test_a_volume_that_breaks_down(project: Path) -> None:
    for days in range(1, 6):
        log(project, FRESH, NOW - timedelta(days=days, hours=1))
    log(project, FRESH[:20])
    found = report(project)
    assert found["usual"] == 250
    assert [problem["check"] for problem in found["problems"]] == ["volume"]


def store(root: Path, data: bytes, name: str | None = None, **said: Any) -> None:
    folder = root / "feedback"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name or sha(data)}.png"
    path.write_bytes(data)
    path.with_suffix(".json").write_text(json.dumps(said))


def test_reports_are_counted_by_what_they_say(project: Path) -> None:
    log(project, FRESH)
    at = {"reported": (NOW - timedelta(minutes=30)).isoformat(), "model_version": "1"}
    for data in FRESH[:20]:
        store(project, data, label="ai", status="accepted", verdict="real", **at)
    store(project, FRESH[20], label="ai", status="pending", verdict="real", **at)
    store(project, FRESH[21], label="ai", status="rejected", verdict="real", **at)
    store(project, FRESH[22], label="ai", status="accepted", verdict="ai", **at)
    store(project, FRESH[23], label="ai", status="accepted", verdict="uncertain", **at)
    store(project, picture(1), label="real", status="accepted")  # a training image
    store(project, FRESH[24], "by hand", label="real")
    (project / "feedback/notes.json").write_text("[]")
    (project / "feedback/alone.png").write_bytes(FRESH[25])
    found = report(project, new_feedback=23)
    said = found["feedback"]
    assert said["by_status"] == {"accepted": 24, "pending": 1, "rejected": 1}
    assert (said["reports"], said["reported"], said["reported_share"]) == (24, 21, 0.084)
    assert (said["judged_n"], said["judged_accuracy"]) == (21, pytest.approx(1 / 21, abs=1e-4))
    assert found["versions"]["1"]["feedback"]["n"] == 21
    assert said["new"] == 23, "accepted, but for the training image"
    assert [problem["check"] for problem in found["problems"]] == ["reported"]
    assert found["retrain"] == ["23 accepted reports that are not in the data yet"]
    assert report(project, new_feedback=24)["retrain"] == []


def test_what_was_forgotten_or_rejected_does_not_come_back_as_new(project: Path) -> None:
    for number in range(3):
        store(project, FRESH[number], label="ai")
    (project / "data/forgotten.json").write_text(json.dumps([{"sha256": sha(FRESH[0])}]))
    assert feedback.new(feedback.read(project / "feedback"), project / "data", ["mine", "elsewhere"]) == 2


def test_the_reference_is_computed_once_and_follows_the_data(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = project / "artifacts/monitor/reference.parquet"
    index = project / "artifacts/index.parquet"
    first = reference.images(project / "data", index, 200, kept)
    assert len(first) == 200 and first["sharpness"].notna().all()
    one = first.iloc[0]
    data = next(picture(seed) for seed in range(TRAINED) if sha(picture(seed)) == one["sha256"])
    assert one["sharpness"] == pytest.approx(predictions.statistics(data)["sharpness"])
    wider = reference.images(project / "data", index, 250, kept).set_index("sha256")
    pd.testing.assert_frame_equal(wider.loc[first["sha256"]].reset_index()[list(first)], first)
    index.unlink()  # as while a retraining makes it anew
    assert len(reference.images(project / "data", index, 250, kept)) == 250
    kept.unlink()
    with pytest.raises(StageError, match="nothing to compare with"):
        reference.images(project / "data", index, 250, kept)


def test_the_command_writes_the_page_the_figures_and_the_history(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "ingest": {"sources": {"mine": {}}},
        "validate": {},
        "preprocess": {"views": [16]},
        "train": {"models": {"small": {"network": "cnn", "view": 16}}},
        "evaluate": {},
        "monitor": {"min_images": 100, "keep_days": 100_000},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    log(project, [picture(seed, blur=2) for seed in range(1000, 1120)])
    monkeypatch.chdir(project)
    for hour in ("11:59", "12:00"):
        monkeypatch.setattr(sys, "argv", ["monitor", "--at", f"2026-05-17T{hour}"])
        command.run()
    out = project / "artifacts/monitor"
    said = capsys.readouterr().out
    assert "drift in sharpness" in said and (out / "report.html").resolve().as_uri() in said
    result = json.loads((out / "report.json").read_text())
    assert result["at"] == "2026-05-17T12:00:00+00:00" and "sharpness" in drifted(result)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page and "drift" in page
    figures = (out / "metrics.prom").read_text()
    assert 'trueframe_monitor_drift{statistic="sharpness"} 1.0' in figures
    assert "trueframe_monitor_predictions 120.0" in figures
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["at"][11:16] for line in lines] == ["11:59", "12:00"] and lines[1]["psi"]["sharpness"] > 0.2
