"""Published data sets as they are downloaded: what is in them is known, and must come out so.

They are too large for the repository: `TRUEFRAME_TEST_DATA` names a folder with `cifake.tar.xz`, `art.zip`,
`photos.zip` and `leaky.zip`.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import images, shards
from components.ingest import Outcome, ingest
from components.params import Equalise, Ingest, Preprocess, Source, Validate
from components.preprocess import splits
from components.validate import validate

Bring = Callable[..., tuple[Outcome, pd.DataFrame]]


@pytest.fixture(scope="module")
def downloads() -> Path:
    folder = os.environ.get("TRUEFRAME_TEST_DATA")
    if not folder:
        pytest.skip("TRUEFRAME_TEST_DATA isn't set: it names the folder with the published data sets")
    return Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "data"


@pytest.fixture(scope="module")
def bring(data: Path, downloads: Path) -> Bring:
    """Ingest a download; gives the outcome and the rows back."""

    def run(name: str, path: Path) -> tuple[Outcome, pd.DataFrame]:
        if not path.exists():
            pytest.skip(f"{path.name} isn't in TRUEFRAME_TEST_DATA")
        section = Ingest.model_validate({"sources": {name: {}}})
        outcome = ingest(name, Source.model_validate({"from": str(path)}), section, data, data.parent / "receipts")
        return outcome, shards.manifest(shards.paths(data, [name]))

    return run


@pytest.fixture(scope="module")
def cifake(bring: Bring, downloads: Path) -> tuple[Outcome, pd.DataFrame]:
    return bring("cifake", downloads / "cifake.tar.xz")


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def cifake_report(cifake: tuple[Outcome, pd.DataFrame], data: Path, report_folder: Path) -> dict[str, Any]:
    settings = Validate(min_images=1000, min_class_share=0.2, min_side=32)
    return validate(data, ["cifake"], settings, report_folder)


def counts(rows: pd.DataFrame, *columns: str) -> dict[Any, int]:
    return rows.fillna({"generator": "none"}).groupby(list(columns)).size().to_dict()


def test_art(bring: Bring, downloads: Path) -> None:
    outcome, rows = bring("art", downloads / "art.zip")
    assert outcome == Outcome(added=863)
    assert counts(rows, "label") == {"ai": 480, "real": 383}
    assert rows["split"].isna().all() and rows["generator"].isna().all()
    assert rows[["width", "height"]].max(axis=1).max() <= 320


@pytest.fixture(scope="module")
def photos(bring: Bring, downloads: Path) -> tuple[Outcome, pd.DataFrame]:
    return bring("photos", downloads / "photos.zip")


def messages(report: dict[str, Any], severity: str) -> dict[str, str]:
    return {p["check"]: p["message"] for p in report["problems"] if p["severity"] == severity}


def test_photos(photos: tuple[Outcome, pd.DataFrame]) -> None:
    outcome, rows = photos
    assert outcome == Outcome(added=3777)
    assert counts(rows, "label", "generator") == {
        ("ai", "ai-generated-art"): 72,
        ("ai", "ai-generated-characters"): 56,
        ("ai", "dalle2"): 72,
        ("ai", "diffusiondb"): 880,
        ("ai", "midjourney"): 50,
        ("ai", "other"): 63,
        ("ai", "stable-diffusion"): 23,
        ("ai", "stable-diffusion-2.1-faces"): 500,
        ("real", "none"): 2061,
    }


def test_leaky_as_an_archive_and_as_a_folder(bring: Bring, downloads: Path, data: Path, tmp_path: Path) -> None:
    outcome, rows = bring("leaky", downloads / "leaky.zip")
    assert outcome == Outcome(added=100)
    assert counts(rows, "label", "format") == {("ai", "PNG"): 50, ("real", "JPEG"): 50}
    with zipfile.ZipFile(downloads / "leaky.zip") as archive:
        archive.extractall(tmp_path / "leaky")
    outcome, folder_rows = bring("leaky-folder", tmp_path / "leaky")
    assert outcome == Outcome(added=100)
    assert set(zip(folder_rows["sha256"], folder_rows["label"], strict=True)) == set(
        zip(rows["sha256"], rows["label"], strict=True)
    )

    report = validate(data, ["leaky"], Validate(min_images=100), tmp_path / "report")
    assert not report["passed"]
    assert report["leakage"]["metadata_auc"] > 0.99
    said = messages(report, "critical")
    assert list(said) == ["leakage"]
    assert "format tells the label: JPEG 100 % real, PNG 100 % ai" in said["leakage"]

    report = validate(data, ["leaky"], Validate(min_images=100), tmp_path / "equal", Equalise())
    assert report["passed"]
    assert report["leakage"]["metadata_auc"] > 0.99
    assert report["leakage"]["equalised"]["metadata_auc"] == 0.5
    assert "After preprocess.equalise it can't (AUC 0.50)" in messages(report, "warning")["leakage"]


def test_the_jpeg_tables_of_photos_tell_the_label(
    photos: tuple[Outcome, pd.DataFrame], data: Path, tmp_path: Path
) -> None:
    """Four origins of photographs and eight generators, each saved by another program."""
    report = validate(data, ["photos"], Validate(), tmp_path / "report")
    assert not report["passed"]
    message = messages(report, "critical")["leakage"]
    assert "quantisation tells the label: quality 75 (dda7) 100 % ai, quality 83 (b3b8) 100 % real" in message
    columns = report["leakage"]["by_column"]
    assert max(columns, key=columns.__getitem__) == "quantisation"
    assert columns["width"] < 0.55  # all are 256 px
    assert validate(data, ["photos"], Validate(), tmp_path / "equal", Equalise())["passed"]


def test_what_was_tampered_with_is_named(photos: tuple[Outcome, pd.DataFrame], data: Path, tmp_path: Path) -> None:
    """5 % of the labels flipped, 30 images copied into test after another save, a source of one class."""
    _, rows = photos
    rows = rows.drop_duplicates("sha256").sample(3000, random_state=0)
    rng = np.random.default_rng(1)
    flipped = set(rng.choice(rows.index, 150, replace=False))
    test = set(rng.choice(rows.index, 750, replace=False))
    copied = set(rng.choice([row for row in rows.index if row not in test], 30, replace=False))
    other = set(rows[rows["label"] == "real"].index[:60])
    for row, file in shards.load(shards.paths(data, ["photos"]), rows):
        label = str(rows.at[row, "label"])
        if row in flipped:
            label = "ai" if label == "real" else "real"
        path = (
            tmp_path / "set" / ("test" if row in test else "train") / label / f"{row}.{rows.at[row, 'format'].lower()}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
        if row in copied:
            path = tmp_path / "set/test" / label / f"copy-{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.decode(file).save(path, quality=60)
        if row in other:
            path = tmp_path / "other/real" / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.decode(file).rotate(90).save(path, quality=92)
    section = Ingest.model_validate({"sources": {"set": {}, "other": {}}})
    for name in section.sources:
        source = Source.model_validate({"from": str(tmp_path / name)})
        ingest(name, source, section, tmp_path / "data", tmp_path / "receipts")

    report = validate(tmp_path / "data", ["set", "other"], Validate(), tmp_path / "report", Equalise())
    said = messages(report, "warning")
    assert said["one_class_source"].startswith("1 of 2 sources have images of one label only: other (60 real).")
    assert report["duplicates"]["near_across_splits"] == 30
    assert said["near_across_splits"].startswith("30 images outside train look like one in train: 30 in test")
    flagged = pd.read_csv(tmp_path / "report/flagged.csv").set_index("check")
    assert set(flagged.loc["near_across_splits", "origin"].str.extract(r"copy-(\d+)")[0].astype(int)) == copied
    # 612 of the surest images give an estimate of 5 % a standard error of a point; some hard ones come to it.
    assert 0.03 < report["label_noise"]["share"] < 0.1
    assert said["label_noise"].startswith("about ")
    candidates = flagged.loc["label_noise", "origin"].str.extract(r"(\d+)\.")[0].astype(int)
    assert candidates.isin(flipped).mean() > 0.3  # 5 % by chance
    page = (tmp_path / "report/report.html").read_text()
    assert "Labels that look wrong" in page and "Near copies of training images outside train" in page


def test_cifake_comes_in_whole(cifake: tuple[Outcome, pd.DataFrame]) -> None:
    outcome, rows = cifake
    assert outcome == Outcome(added=110_008)
    assert counts(rows, "split", "label", "generator") == {
        ("test", "ai", "stable-diffusion-1.4"): 4_994,
        ("test", "real", "none"): 5_014,
        ("train", "ai", "stable-diffusion-1.4"): 50_000,
        ("train", "real", "none"): 50_000,
    }
    assert counts(rows, "width", "height", "format") == {(32, 32, "JPEG"): 110_008}


def test_the_copies_in_cifake_are_found(cifake_report: dict[str, Any]) -> None:
    assert cifake_report["passed"]
    assert cifake_report["n_images"] == 110_008
    found = cifake_report["duplicates"]
    assert found["exact_within_split"] == 930  # 920 in train, 10 in test
    assert found["exact_across_splits"] == 188
    assert found["label_conflicts"] == 0
    said = messages(cifake_report, "warning")
    assert said["exact_within_split"] == (
        "930 images repeat an earlier image of their own split: 920 in train (all ai), 10 in test (all ai)"
    )
    assert said["exact_across_splits"] == (
        "188 images outside train have pixels that are in train too: 188 in test (all ai); preprocess leaves them out "
        "(preprocess.keep_copies)"
    )
    # One encoder saved them all: nothing but the size of the file differs, and that little.
    assert cifake_report["leakage"]["metadata_auc"] < 0.65
    assert cifake_report["label_noise"]["share"] < 0.01


def test_the_copies_in_cifake_are_left_out_of_its_test_set(
    cifake: tuple[Outcome, pd.DataFrame], cifake_report: dict[str, Any], report_folder: Path
) -> None:
    _, rows = cifake
    rows = rows.merge(pd.read_parquet(report_folder / "groups.parquet"), on=["shard", "row"])
    split = splits.assign(rows, Preprocess(views=["32"], validation=0.03))
    # 188 equal ones, and one more that looks like a training image.
    assert counts(rows[split.isna()], "split", "label") == {("test", "ai"): 188, ("test", "real"): 1}
    assert (split == "test").sum() == 10_008 - 189
    kept = splits.assign(rows, Preprocess(views=["32"], validation=0.03, keep_copies=True))
    assert (kept == "test").sum() == 10_008


def test_a_second_ingestion_of_cifake_adds_nothing(
    cifake: tuple[Outcome, pd.DataFrame], bring: Bring, downloads: Path
) -> None:
    outcome, rows = bring("cifake", downloads / "cifake.tar.xz")
    assert outcome == Outcome(unchanged=True)
    assert len(rows) == 110_008
