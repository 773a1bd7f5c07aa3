"""A caller's own threshold, and blocks that bound memory."""

import io
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import served
from PIL import Image

from components.serve import detector as module
from components.serve.detector import Decision, Detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.detector(tmp_path_factory.mktemp("detector"))


def load(folder: Path) -> Detector:
    return Detector(folder / "detector.onnx", "1")


def test_the_band_moves_with_the_threshold() -> None:
    fitted = Decision(0.5, 0.4, 0.7)
    assert fitted.at(0.5) == Decision(0.5, pytest.approx(0.4), pytest.approx(0.7))  # type: ignore[arg-type]
    odds = [p / (1 - p) for p in (fitted.low, fitted.threshold, fitted.high)]
    for threshold in (0.01, 0.3, 0.95):
        moved = fitted.at(threshold)
        assert moved.low < moved.threshold < moved.high
        now = [p / (1 - p) for p in (moved.low, moved.threshold, moved.high)]
        assert [b / a for a, b in zip(odds, now, strict=True)] == pytest.approx([now[1] / odds[1]] * 3)


@pytest.mark.parametrize("fitted", [Decision(0.5, 0.4, 0.7), Decision(0.2, 0.2, 0.2), Decision(0.3, 0.0, 1.0)])
def test_at_the_ends_all_is_one_thing(fitted: Decision) -> None:
    for p in (1e-12, 0.3, 1 - 1e-12):
        assert (fitted.at(0).label(p), fitted.at(0).verdict(p)) == ("ai", "ai")
        assert (fitted.at(1).label(p), fitted.at(1).verdict(p)) == ("real", "real")


def test_what_is_no_threshold_is_every_rows_error(folder: Path) -> None:
    detector = load(folder)
    for wrong in (1.5, -0.1, float("nan")):
        rows = detector.score([served.picture(1), b"x"], threshold=wrong)
        assert [row["error"] for row in rows] == ["`threshold` has to be from 0 to 1"] * 2
        assert rows[0]["label"] is rows[0]["probability"] is None


def test_small_blocks_say_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [served.picture(n, size=(200, 150)) for n in range(9)]  # enough bytes for threads
    at_once = load(folder).score(files, explain=True)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 2 * 16 * 16 * 3)
    monkeypatch.setattr(module, "_LARGE", 1000)  # one at a time
    monkeypatch.setattr(module, "_EXPLAINED", 2)
    for one, other in zip(at_once, load(folder).score(files, explain=True), strict=True):
        assert other["probability"] == pytest.approx(one["probability"], abs=1e-5)
        assert bool(one["heatmap"]) and one["verdict"] == other["verdict"]


def test_memory_does_not_grow_with_the_number_of_images(folder: Path) -> None:
    detector = load(folder)
    file = io.BytesIO()
    Image.new("RGB", (1200, 1000)).save(file, "JPEG")
    process = psutil.Process()
    detector.score([file.getvalue()] * 8)
    before, peak = process.memory_info().rss, 0

    class Watched(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal peak
            for value in super().__iter__():
                peak = max(peak, process.memory_info().rss)
                yield value

    detector.score(Watched([file.getvalue()] * 200))
    assert max(peak, process.memory_info().rss) - before < 150 * 2**20, "200 of these are 720 MB"
