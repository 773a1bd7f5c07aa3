"""The log of predictions: rows in files by day, whatever happens to the process or the disk."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import served
from PIL import Image, ImageFilter
from prometheus_client import CollectorRegistry

from components import predictions
from components.params import Monitor
from components.serve.log import Budget, Log

NOON = datetime(2026, 5, 17, 12, tzinfo=UTC)
ANSWER = {"label": "ai", "probability": 0.9, "verdict": "ai", "threshold": 0.5, "model_version": "3", "warnings": []}
AGES = (NOON - timedelta(days=1), NOON + timedelta(days=1))


def row(at: datetime = NOON, **more: Any) -> dict[str, Any]:
    return {"time": at, "sha256": "ab", "format": "PNG", "probability": 0.5, "verdict": "uncertain", **more}


def settings(folder: Path, **more: Any) -> Monitor:
    return Monitor.model_validate({"folder": str(folder), **more})


def logged(folder: Path) -> Any:
    now = datetime.now(UTC)
    return predictions.read(folder, now - timedelta(hours=1), now + timedelta(hours=1))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file())


def test_statistics_say_what_a_picture_is_like() -> None:
    data = served.picture(1, "JPEG", (96, 64))
    found = predictions.statistics(data)
    assert list(found) == predictions.STATISTICS.names
    assert (found["width"], found["height"], found["format"], found["n_bytes"]) == (96, 64, "JPEG", len(data))
    assert found["jpeg_quality"] == pytest.approx(75, abs=2)  # Pillow's own
    image = Image.open(io.BytesIO(data))

    def of(image: Image.Image) -> dict[str, Any]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return predictions.statistics(buffer.getvalue())

    blurred, dark = of(image.filter(ImageFilter.GaussianBlur(2))), of(image.point(lambda value: value // 2))
    assert blurred["sharpness"] < of(image)["sharpness"] - 2
    assert blurred["brightness"] == pytest.approx(of(image)["brightness"], abs=2) and blurred["jpeg_quality"] is None
    assert dark["brightness"] == pytest.approx(of(image)["brightness"] / 2, abs=1)
    # Sharpness is of the pixels as they are, however large the picture is.
    large = Image.new("RGB", (1024, 1024))
    large.paste(image.resize((512, 512), Image.Resampling.BICUBIC), (256, 256))
    assert of(large)["sharpness"] < of(image)["sharpness"] - 2
    broken = predictions.statistics(data[: len(data) // 2])
    assert broken["width"] == 96 and broken["brightness"] is None
    assert predictions.statistics(b"no picture")["format"] is None
    tiny = of(Image.new("RGB", (1, 1)))
    assert tiny["width"] == 1 and tiny["sharpness"] is None


def test_rows_come_back_by_time(tmp_path: Path) -> None:
    writer = predictions.Writer(tmp_path, 90)
    for hours in (0, 1, 13):
        writer.add(row(NOON + timedelta(hours=hours), error="late" if hours else None, warnings=["small"]))
    writer.flush()
    assert [name.partition("/")[0] for name in files(tmp_path)] == ["2026-05-17", "2026-05-18"]
    found = predictions.read(tmp_path, *AGES)
    assert list(found) == predictions.SCHEMA.names and len(found) == 3
    assert found["time"].tolist() == sorted(found["time"]) and found["error"].fillna("none").tolist() == [
        "none",
        "late",
        "late",
    ]
    assert list(found["warnings"][0]) == ["small"]
    assert len(predictions.read(tmp_path, NOON, NOON + timedelta(hours=1))) == 1, "the end is excluded"
    assert len(predictions.read(tmp_path, NOON + timedelta(hours=13), NOON + timedelta(hours=14))) == 1
    assert list(predictions.read(tmp_path, *AGES, ["time"])) == ["time"]
    assert predictions.read(tmp_path / "nowhere", *AGES).empty


def test_a_file_grows_until_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "_ROWS", 4)
    writer = predictions.Writer(tmp_path, 90)
    for number in range(6):
        writer.add(row(probability=number / 10))
        writer.flush()
        writer.flush()
        found = predictions.read(tmp_path, *AGES)
        assert found["probability"].tolist() == [n / 10 for n in range(number + 1)]
    assert len(files(tmp_path)) == 2
    other = predictions.Writer(tmp_path, 90)
    other.add(row())
    other.flush()
    assert len(files(tmp_path)) == 3, "two processes never share a file"


def test_old_days_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("2026-05-01", "2026-05-07", "2026-05-17", "notes", "1999-1-1 mine"):
        (tmp_path / name / predictions.IMAGES).mkdir(parents=True)
        (tmp_path / name / predictions.IMAGES / "a.png").write_text("kept with its day")
    writer = predictions.Writer(tmp_path, keep_days=10)
    writer.add(row())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1999-1-1 mine", "2026-05-07", "2026-05-17", "notes"]


def test_a_folder_that_cannot_be_written_is_said_once_and_loses_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    folder.write_text("in the way")
    writer = predictions.Writer(folder, 90)
    for number in range(3):
        writer.add(row(probability=number / 10))
        writer.flush()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "predictions can't be logged" in said and str(folder) in said
    folder.unlink()
    writer.flush()
    assert predictions.read(folder, *AGES)["probability"].tolist() == [0.0, 0.1, 0.2]
    assert "logged again" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = predictions.Writer(tmp_path, 90)
    writer.add(row(probability=0.1))
    writer.flush()
    [name] = files(tmp_path)
    partial = (tmp_path / name).with_name(f".{Path(name).stem}.partial.parquet")
    partial.symlink_to("/dev/full")
    writer.add(row(probability=0.2))
    writer.flush()
    assert predictions.read(tmp_path, *AGES)["probability"].tolist() == [0.1]
    writer.flush()
    assert predictions.read(tmp_path, *AGES)["probability"].tolist() == [0.1, 0.2]


def test_a_damaged_file_is_named_and_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for probability in (0.1, 0.2):
        writer = predictions.Writer(tmp_path, 90)
        writer.add(row(probability=probability))
        writer.flush()
    name = files(tmp_path)[0]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    assert len(predictions.read(tmp_path, *AGES)) == 1
    assert name in capfd.readouterr().err


def test_answers_reach_the_log_with_statistics_and_without_pixels(tmp_path: Path) -> None:
    good = served.picture(1)
    registry = CollectorRegistry()
    with Log(settings(tmp_path), registry) as log:
        images = [served.encoded(good), "no base64!", None, served.encoded(b"no picture")]
        log.add(images, [ANSWER, *[{"error": "why"}] * 3], 0.25)
    found = logged(tmp_path)
    assert found["sha256"].str.len().fillna(0).tolist() == [64, 0, 0, 64]
    assert found["error"].fillna("none").tolist() == ["none", "why", "why", "why"]
    first = found.iloc[0]
    assert (first["probability"], first["verdict"], first["model_version"]) == (0.9, "ai", "3")
    assert (first["width"], first["height"], first["format"], first["n_bytes"]) == (40, 30, "JPEG", len(good))
    assert first["latency"] == pytest.approx(0.25) and first["sharpness"] > 0
    assert [Path(name).suffix for name in files(tmp_path)] == [".parquet"]
    assert registry.get_sample_value("trueframe_predictions_logged_total") == 4


def test_pixels_are_kept_where_that_is_allowed(tmp_path: Path) -> None:
    good = served.picture(1)
    with Log(settings(tmp_path, keep_images=True), CollectorRegistry()) as log:
        log.add([served.encoded(good)] * 2, [ANSWER] * 2, 0.1)
    [kept] = tmp_path.glob(f"*/{predictions.IMAGES}/*")
    assert kept.read_bytes() == good and kept.suffix == ".jpeg"
    assert kept.stem == logged(tmp_path)["sha256"][0]


def test_what_is_killed_loses_nothing_that_was_sent(tmp_path: Path) -> None:
    """A gateway that gets SIGKILL leaves a log that writes what it has, and ends."""
    code = (
        "import sys, time; from prometheus_client import CollectorRegistry; import served\n"
        "from components.params import Monitor; from components.serve.log import Budget, Log\n"
        f"registry = CollectorRegistry(); answer = {ANSWER!r}\n"
        f"log = Log(Monitor(folder={str(tmp_path)!r}, flush_s=3600), registry).__enter__()\n"
        "for n in range(20): log.add([served.encoded(served.picture(n))], [answer], 0.1)\n"
        "while registry.get_sample_value('trueframe_predictions_logged_total') < 20: time.sleep(0.05)\n"
        "print('sent', flush=True); time.sleep(600)"
    )
    paths = os.pathsep.join([str(served.ROOT), str(served.ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    gateway = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert gateway.stdout is not None and gateway.stdout.readline() == b"sent\n"
    [writer] = served.descendants(gateway.pid)
    wait(lambda: os.getpriority(os.PRIO_PROCESS, writer) > os.getpriority(os.PRIO_PROCESS, 0))  # it is at work
    os.kill(writer, signal.SIGTERM)  # as systemd sends it to all at once
    gateway.kill()
    gateway.wait()
    wait(lambda: logged(tmp_path)["sha256"].nunique() == 20)


def test_a_log_that_dies_is_started_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, registry = served.encoded(served.picture(1)), CollectorRegistry()
    taken = lambda: registry.get_sample_value("trueframe_predictions_logged_total")  # noqa: E731
    with Log(settings(tmp_path, flush_s=0.1), registry) as log:
        log.add([image], [ANSWER], 0.1)
        wait(lambda: len(logged(tmp_path)) == 1)
        assert log._process is not None
        log._process.kill()
        log._process.wait()

        def again() -> bool:
            log.add([image], [ANSWER], 0.1)
            return taken() > 1

        wait(again)
    assert len(logged(tmp_path)) == taken()
    assert capfd.readouterr().err.count("started anew") == 1


def test_a_line_that_is_too_long_is_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.serve.log._FULL", 100_000)
    monkeypatch.setattr("components.serve.log._BEHIND", 50_000)
    registry = CollectorRegistry()
    log = Log(settings(tmp_path), registry)
    image = served.encoded(served.picture(1))
    whole = 50_000 // (len(image) + 1000)
    n = whole + (100_000 - whole * (len(image) + 1000)) // 1000
    log.add([image] * (n + 5), [ANSWER] * (n + 5), 0.1)  # before it works
    with log:
        pass
    assert registry.get_sample_value("trueframe_predictions_lost_total") == 5
    found = logged(tmp_path)
    assert len(found) == n and found["sha256"].nunique() == 1 and (found["n_bytes"] == len(served.picture(1))).all()
    assert found["width"].notna().sum() == whole > 0, "of those far behind, only what they are called is known"


def test_statistics_take_a_tenth_of_a_core_in_the_long_run() -> None:
    budget = Budget(100.0)
    spent = 0.0
    for tenths in range(10_000):
        if budget.is_left(100 + tenths / 10):
            budget.spend(0.05)
            spent += 0.05
    assert spent == pytest.approx(0.1 * 1000 + 10, abs=0.1)


def wait(what: Any) -> None:
    end = time.monotonic() + served.PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)
