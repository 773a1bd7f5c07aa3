"""Images that users reported."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components import shards
from components.ingest import Outcome, ingest
from components.params import Ingest, Source
from components.stage import StageError


@pytest.fixture
def take_in(tmp_path: Path) -> Callable[[], Outcome]:
    def run() -> Outcome:
        source = Source.model_validate({"from": f"feedback:{tmp_path / 'reports'}"})
        section = Ingest.model_validate({"sources": {"reports": {}}})
        return ingest("reports", source, section, tmp_path / "data", tmp_path / "receipts")

    return run


@pytest.fixture
def report(tmp_path: Path, jpeg: Callable[..., bytes]) -> Callable[..., Path]:
    """Write an image and what is said of it."""

    def write(name: str, seed: int, said: Any) -> Path:
        path = tmp_path / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(said if isinstance(said, str) else json.dumps(said))
        path.write_bytes(jpeg(seed))
        return path

    return write


def rows_of(folder: Path) -> pd.DataFrame:
    return shards.manifest(shards.paths(folder / "data", ["reports"])).set_index("origin")


def test_accepted_reports_come_in_with_the_corrected_label(
    tmp_path: Path,
    take_in: Callable[[], Outcome],
    report: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    report("a.jpg", 0, {"label": "real"})
    report("week 2/b.v2.png", 1, {"label": "ai", "status": "accepted", "generator": "flux", "licence": "CC0", "by": 7})
    report("c.jpg", 2, {"label": "real", "generator": "flux", "note": "a photograph"})
    report("d.jpg", 3, {"label": "ai", "status": "pending"})
    report("e.jpg", 4, {"label": "ai", "status": "rejected"})
    assert take_in() == Outcome(added=3)
    rows = rows_of(tmp_path)
    assert rows["label"].to_dict() == {"a.jpg": "real", "c.jpg": "real", "week 2/b.v2.png": "ai"}
    assert rows["generator"].dropna().to_dict() == {"week 2/b.v2.png": "flux"}
    assert shards.about(tmp_path / "data", "reports")[["origin", "licence"]].to_numpy().tolist() == [
        ["week 2/b.v2.png", "CC0"]
    ]
    assert f"{tmp_path / 'reports'}: 1 reports wait for a decision" in capsys.readouterr().out


def test_a_report_that_is_accepted_later_comes_in_then(
    tmp_path: Path, take_in: Callable[[], Outcome], report: Callable[..., Path]
) -> None:
    report("a.jpg", 0, {"label": "real"})
    report("b.jpg", 1, {"label": "ai", "status": "pending"})
    assert take_in() == Outcome(added=1)
    assert take_in() == Outcome(unchanged=True)
    path = tmp_path / "reports/b.json"
    path.write_text(json.dumps({"label": "ai"}))
    os.utime(path, (0, 0))
    assert take_in() == Outcome(added=1, known=1)
    assert sorted(rows_of(tmp_path)["label"]) == ["ai", "real"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ({}, "label: Field required"),
        ({"label": "fake"}, "label: Input should be 'ai' or 'real'"),
        ({"label": "ai", "status": "maybe"}, "status: Input should be 'accepted', 'pending' or 'rejected'"),
        ({"label": "ai", "generator": 3}, "generator: Input should be a valid string"),
    ],
)
def test_a_report_that_can_not_be_read_is_named(
    tmp_path: Path, take_in: Callable[[], Outcome], report: Callable[..., Path], said: Any, reason: str
) -> None:
    report("a.jpg", 0, {"label": "real"})
    path = report("b.jpg", 1, said).with_suffix(".json")
    with pytest.raises(StageError) as caught:
        take_in()
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert str(caught.value).endswith("Nothing was ingested")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*.parquet"))
    path.write_text(json.dumps({"label": "ai"}))
    assert take_in() == Outcome(added=2)


def test_an_image_of_which_nothing_is_said_is_named(
    tmp_path: Path, take_in: Callable[[], Outcome], report: Callable[..., Path]
) -> None:
    path = report("a.jpg", 0, {"label": "real"})
    path.with_suffix(".json").unlink()
    with pytest.raises(StageError) as caught:
        take_in()
    assert str(caught.value) == f"{path}: no a.json beside it, which says its label; nothing was ingested"


def test_a_report_without_its_image_yet_is_left_alone(
    tmp_path: Path, take_in: Callable[[], Outcome], report: Callable[..., Path]
) -> None:
    report("a.jpg", 0, {"label": "real"})
    (tmp_path / "reports/b.json").write_text(json.dumps({"label": "ai"}))
    assert take_in() == Outcome(added=1)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, take_in: Callable[[], Outcome]) -> None:
    with pytest.raises(StageError, match=r"reports: no folder of reports; name it as feedback:FOLDER"):
        take_in()
