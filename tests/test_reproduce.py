"""What is compared when a version was made again; `tests/live` makes one again."""

from importlib import metadata
from pathlib import Path

import pytest

from components.stage import StageError
from flows import reproduce

RECORDED = {"n": 100, "accuracy": 0.9, "auroc": 0.95, "f1": None}
RECORDED["intervals"] = {"accuracy": [0.85, 0.94], "auroc": [0.93, 0.97], "f1": None}


def test_a_score_outside_of_its_interval_is_said() -> None:
    rows = {row.name: row for row in reproduce.compare(RECORDED, {"n": 100, "accuracy": 0.86, "auroc": 0.9})}
    assert list(rows) == ["accuracy", "auroc"]
    assert rows["accuracy"].within and not rows["auroc"].within
    (row,) = reproduce.compare({"n": 1, "auroc": 0.9, "intervals": {"auroc": [0.8, 1.0]}}, {"n": 1, "auroc": None})
    assert not row.within, "no longer defined"


def test_other_test_images_are_no_reproduction() -> None:
    with pytest.raises(StageError, match="recorded scores are of 100 test images and the reproduced ones of 99"):
        reproduce.compare(RECORDED, {"n": 99, "accuracy": 0.9, "auroc": 0.95})


def test_other_packages_than_in_the_lock_are_named(tmp_path: Path) -> None:
    here = metadata.version("numpy")
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"# a comment\nnumpy=={here} \\\n    --hash=sha256:00\n    # via keras\n"
        "not-installed-anywhere==1.0 \\\n    --hash=sha256:00\n"
        "pytest==0.1 ; sys_platform == 'nowhere' \\\n    --hash=sha256:00\n"
    )
    assert reproduce.differences(lock) == []
    lock.write_text("numpy==0.1 \\\n    --hash=sha256:00\n")
    (line,) = reproduce.differences(lock)
    assert line == f"1 packages are others than in the recorded lock: numpy {here} (==0.1)"
    assert "no requirements.lock was recorded" in reproduce.differences(tmp_path / "none")[0]
