"""Published data sets as they are downloaded: what is in them is known, and must come out so.

They are too large for the repository: `TRUEFRAME_TEST_DATA` names a folder with `cifake.tar.xz`, `art.zip`,
`photos.zip` and `leaky.zip`.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components import shards
from components.ingest import Outcome, ingest
from components.params import Ingest, Source, Validate
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
def cifake_report(
    cifake: tuple[Outcome, pd.DataFrame], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    # The settings of the preset: so small images share near hashes by chance.
    settings = Validate(min_images=1000, min_class_share=0.2, min_side=32, near_distance=2)
    return validate(data, ["cifake"], settings, tmp_path_factory.mktemp("report"))


def counts(rows: pd.DataFrame, *columns: str) -> dict[Any, int]:
    return rows.fillna({"generator": "none"}).groupby(list(columns)).size().to_dict()


def test_art(bring: Bring, downloads: Path) -> None:
    outcome, rows = bring("art", downloads / "art.zip")
    assert outcome == Outcome(added=863)
    assert counts(rows, "label") == {"ai": 480, "real": 383}
    assert rows["split"].isna().all() and rows["generator"].isna().all()
    assert rows[["width", "height"]].max(axis=1).max() <= 320


def test_photos(bring: Bring, downloads: Path) -> None:
    outcome, rows = bring("photos", downloads / "photos.zip")
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
    assert report["passed"]
    assert report["leakage"]["metadata_auc"] > 0.99
    assert [p["check"] for p in report["problems"]].count("leakage") == 1


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


def test_a_second_ingestion_of_cifake_adds_nothing(
    cifake: tuple[Outcome, pd.DataFrame], bring: Bring, downloads: Path
) -> None:
    outcome, rows = bring("cifake", downloads / "cifake.tar.xz")
    assert outcome == Outcome(unchanged=True)
    assert len(rows) == 110_008
