"""What stops a run, what is only said, and how copies are counted."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components import shards
from components.params import Validate
from components.stage import StageError
from components.validate import refuse, validate
from components.validate.duplicates import find, near_pairs

Files = dict[str, bytes]
LENIENT = Validate(min_images=1)


@pytest.fixture
def clean(jpeg: Callable[..., bytes]) -> Files:
    """Twelve different pictures of each class."""
    return {f"{label}/{n:02d}.jpg": jpeg(n + 50 * (label == "ai")) for label in ("ai", "real") for n in range(12)}


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Validate the source `mine`; gives the report as it stands on disk back."""

    def run(data: Path, settings: Validate = LENIENT, sources: tuple[str, ...] = ("mine",)) -> dict[str, Any]:
        returned = validate(data, sources, settings, tmp_path / "out")
        written = json.loads((tmp_path / "out/report.json").read_text())
        assert returned == written
        return written

    return run


def problems(report: dict[str, Any], severity: str = "critical") -> dict[str, str]:
    return {p["check"]: p["message"] for p in report["problems"] if p["severity"] == severity}


# What the report holds


def test_a_clean_set_passes(
    tmp_path: Path, clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean), Validate(min_images=24))
    assert report["passed"] is True
    assert report["n_images"] == 24
    assert report["problems"] == []
    assert report["duplicates"] == dict.fromkeys(report["duplicates"], 0)
    assert report["by_source"] == {"mine": {"ai": 12, "real": 12}}
    assert report["n_rejected"] == 0
    refuse(report, tmp_path / "out/report.json")  # raises nothing
    assert "Data Docs" in (tmp_path / "out/data_docs/index.html").read_text()


def test_the_report_has_the_keys_that_others_rely_on(
    clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean), Validate(min_images=25))
    contract = {"passed", "n_images", "problems", "duplicates", "leakage"}
    assert set(report) == contract | {"n_rejected", "by_source"}
    assert set(report["duplicates"]) == {
        "exact_within_split",
        "exact_across_splits",
        "near_across_splits",
        "label_conflicts",
    }
    assert set(report["leakage"]) == {"metadata_auc", "by_column"}
    assert [set(problem) for problem in report["problems"]] == [{"check", "severity", "message", "count"}]


def test_every_image_has_a_group(
    tmp_path: Path, clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    check(store(clean, shard_images=10))
    groups = pd.read_parquet(tmp_path / "out/groups.parquet")
    assert list(groups.columns) == ["shard", "row", "group"]
    assert groups.groupby("shard")["row"].apply(list).tolist() == [list(range(10)), list(range(10)), list(range(4))]
    assert groups["group"].nunique() == 24


# What stops a run


def test_too_few_images_fail(
    tmp_path: Path, clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean), Validate(min_images=25))
    assert report["passed"] is False
    assert problems(report) == {"n_images": "24 images are fewer than 25 (validate.min_images)"}
    where = tmp_path / "out/report.json"
    with pytest.raises(StageError) as caught:
        refuse(report, where)
    assert str(caught.value) == (
        f"the data is not fit for training: 24 images are fewer than 25 (validate.min_images). See {where}"
    )


def test_one_class_only_fails(clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]) -> None:
    report = check(store({name: data for name, data in clean.items() if name.startswith("ai")}))
    assert report["passed"] is False
    message = "only 0.0% of the images are labelled real, less than 10% (validate.min_class_share)"
    assert problems(report) == {"share_real": message}
    assert report["leakage"] == {"metadata_auc": None, "by_column": {}}


def test_a_rare_class_fails(clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]) -> None:
    few = {name: data for name, data in clean.items() if name.startswith("real") or name < "ai/03"}
    report = check(store(few), Validate(min_images=1, min_class_share=0.25))
    message = "only 20.0% of the images are labelled ai, less than 25% (validate.min_class_share)"
    assert problems(report) == {"share_ai": message}


def test_too_many_unreadable_files_fail(
    clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean | {f"ai/bad{n}.png": f"bad {n}".encode() for n in range(6)}))
    message = "20.0% of the files could not be read, more than 5% (validate.max_rejected_share)"
    assert problems(report) == {"share_rejected": message}
    assert (report["n_images"], report["n_rejected"]) == (24, 6)


def test_equal_pixels_with_both_labels_fail(
    clean: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    conflict = {"ai/x.png": encode(picture(90), "PNG"), "real/x.bmp": encode(picture(90), "BMP")}
    report = check(store(clean | conflict))
    assert report["passed"] is False
    message = "2 images have equal pixels and both labels: remove the wrong ones"
    assert problems(report) == {"label_conflict": message}
    assert report["duplicates"]["label_conflicts"] == 2
    assert report["duplicates"]["exact_within_split"] == 1


def test_bytes_that_are_not_those_that_came_in_fail(
    clean: Files, jpeg: Callable[..., bytes], store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    data = store(clean)
    (path,) = shards.paths(data, ["mine"]).values()
    rows = pq.read_table(path).to_pylist()
    for row in (rows[3], rows[20]):
        row["image"]["bytes"] = jpeg(99)  # a whole image, only not this one
    shards.write(path, rows)
    report = check(data)
    assert report["passed"] is False
    message = "2 images are not the bytes that were ingested: restore their shards"
    assert problems(report) == {"integrity": message}
    assert [p["count"] for p in report["problems"] if p["check"] == "integrity"] == [2]


@pytest.mark.parametrize(("column", "value"), [("label", "cat"), ("label", None), ("split", "holdout")])
def test_a_label_or_split_that_is_none_fails(
    clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]], column: str, value: str | None
) -> None:
    data = store(clean)
    (path,) = shards.paths(data, ["mine"]).values()
    rows = pq.read_table(path).to_pylist()
    rows[3][column] = value
    shards.write(path, rows)
    message = problems(check(data))[column]
    assert message.startswith("1 images have ")
    assert str(value) in message if value else "no label" in message


def test_a_damaged_shard_is_refused_by_name(
    clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    data = store(clean)
    (path,) = shards.paths(data, ["mine"]).values()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match=rf"^{path}: damaged"):
        check(data)


def test_small_images_are_a_warning(
    clean: Files, jpeg: Callable[..., bytes], store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean | {"ai/s1.jpg": jpeg(91, (15, 40)), "real/s2.jpg": jpeg(92, (40, 8))}))
    assert report["passed"] is True
    assert problems(report, "warning")["size"] == "2 images have a side below 16 px"


# Copies


def test_exact_copies_are_counted_within_and_across_splits(
    clean: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    one, two, three = (picture(seed) for seed in (80, 81, 82))
    files = {f"train/{name}": data for name, data in clean.items()} | {
        # Three of one in train: two repeat an earlier one. Other encodings of the same pixels count.
        "train/ai/one-a.png": encode(one, "PNG"),
        "train/ai/one-b.png": encode(one, "PNG"),
        "train/ai/one-c.bmp": encode(one, "BMP"),
        # Two of it in test: one repeats an earlier one of test, both are in train.
        "test/ai/one-d.png": encode(one, "PNG"),
        "test/ai/one-e.tiff": encode(one, "TIFF"),
        # One of another in train, one in validation.
        "train/real/two-a.png": encode(two, "PNG"),
        "val/real/two-b.webp": encode(two, "WEBP", lossless=True),
        # Validation and test share a third, which is not in train.
        "val/real/three-a.png": encode(three, "PNG"),
        "test/real/three-b.png": encode(three, "PNG"),
    }
    report = check(store(files))
    assert report["duplicates"] == {
        "exact_within_split": 3,
        "exact_across_splits": 3,
        "near_across_splits": 0,
        "label_conflicts": 0,
    }
    assert report["passed"] is True
    warnings = problems(report, "warning")
    assert warnings["exact_within_split"] == "3 images repeat an earlier image of their own split"
    assert warnings["exact_across_splits"] == "3 images outside train have pixels that are in train too"


def test_copies_without_a_split_repeat_each_other(
    jpeg: Callable[..., bytes], clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    duplicates = check(store(clean | {"ai/copy.jpg": clean["ai/00.jpg"]}))["duplicates"]
    assert (duplicates["exact_within_split"], duplicates["exact_across_splits"]) == (1, 0)


def test_near_copies_across_splits_are_counted(
    tmp_path: Path,
    clean: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    original = picture(80, (128, 128))
    files = {f"train/{name}": data for name, data in clean.items()} | {
        "train/ai/a.png": encode(original, "PNG"),
        "test/ai/resaved.jpg": encode(original, "JPEG", quality=80),
        "test/ai/rescaled.png": encode(original.resize((64, 64), Image.Resampling.LANCZOS), "PNG"),
        "test/ai/other.png": encode(picture(81, (128, 128)), "PNG"),
        "test/real/other.png": encode(picture(82, (128, 128)), "PNG"),
    }
    data = store(files)
    report = check(data)
    assert report["duplicates"]["near_across_splits"] == 2
    assert report["duplicates"]["exact_across_splits"] == 0
    assert problems(report, "warning")["near_across_splits"] == "2 images outside train look like one in train"

    rows = shards.manifest(shards.paths(data, ["mine"])).merge(pd.read_parquet(tmp_path / "out/groups.parquet"))
    together = rows[rows["group"].duplicated(keep=False)]
    assert set(together["origin"]) == {"train/ai/a.png", "test/ai/resaved.jpg", "test/ai/rescaled.png"}
    assert together["group"].unique().tolist() == [together["sha256"].min()]


def test_flat_images_are_copies_in_the_same_colour_only(
    clean: Files, encode: Callable[..., bytes], store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    """Flat images have one hash in common, so that only a look at them tells them apart."""
    flat = {
        name: encode(Image.new("RGB", (32, 32), (grey, grey, grey)), "PNG")
        for name, grey in {
            "train/ai/black.png": 0,
            "train/ai/light.png": 200,
            "test/real/dark.png": 60,
            "test/real/white.png": 255,
            "test/ai/almost-light.png": 201,
        }.items()
    }
    duplicates = check(store({f"train/{name}": data for name, data in clean.items()} | flat))["duplicates"]
    assert duplicates["exact_across_splits"] == duplicates["label_conflicts"] == 0
    assert duplicates["near_across_splits"] == 1


def brute_force(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    a, b = np.nonzero(np.triu(bits <= distance, 1))
    return list(zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("distance", range(8))
def test_near_pairs_are_those_of_brute_force(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = list(rng.integers(0, 2**64, 600, dtype=np.uint64))
    for bits in range(1, 10):  # neighbours at every distance, some a little too far
        for _ in range(20):
            flipped = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, bits, replace=False).astype(np.uint64))
            hashes.append(rng.choice(hashes[:600]) ^ flipped)
    # A crowd in one bucket of every part.
    hashes += [np.uint64(1) << np.uint64(bit) for bit in range(64)]
    values = rng.permutation(np.unique(np.array(hashes, np.uint64)))
    expected = brute_force(values, distance)
    assert [tuple(pair) for pair in near_pairs(values, distance).tolist()] == expected
    assert len(expected) >= 20 * distance


@pytest.mark.parametrize("n", [0, 1])
def test_so_few_hashes_have_no_pairs(n: int) -> None:
    assert near_pairs(np.arange(n, dtype=np.uint64), 4).shape == (0, 2)


def test_distance_nought_finds_equal_hashes_only(
    picture: Callable[..., Image.Image], encode: Callable[..., bytes], store: Callable[..., Path]
) -> None:
    original = picture(3, (128, 128))
    files = shards.paths(
        store(
            {
                "ai/a.png": encode(original, "PNG"),
                "ai/b.bmp": encode(original, "BMP"),
                "ai/c.jpg": encode(original, "JPEG", quality=60),
            }
        ),
        ["mine"],
    )
    rows = shards.manifest(files)
    hashes = rows["phash"].to_numpy()
    assert hashes[0] == hashes[1] and 0 < np.bitwise_count(hashes[0] ^ hashes[2]) <= 7
    assert find(rows, files, 0)["group"].nunique() == 2
    assert find(rows, files, 7)["group"].nunique() == 1


# Leakage


def test_a_label_that_the_format_gives_away_is_a_warning(
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    files = {f"ai/{n}.png": encode(picture(n), "PNG") for n in range(30)}
    files |= {f"real/{n}.jpg": encode(picture(n + 100), "JPEG", quality=95) for n in range(30)}
    report = check(store(files))
    leakage = report["leakage"]
    # 30 of each class in 3 folds: a column that splits them leaves nothing to chance.
    assert leakage["metadata_auc"] > 0.99
    assert leakage["by_column"]["format"] > 0.99
    assert leakage["by_column"]["width"] == leakage["by_column"]["mode"] == 0.5  # the same in all
    assert report["passed"] is True
    message = problems(report, "warning")["leakage"]
    assert message.startswith("the label can be told without the picture: AUC 1.00 from the metadata, 1.00 from ")
    assert any(f"from {column} alone" in message for column in ("format", "bytes_per_pixel"))


def test_equal_encodings_leak_nothing(
    jpeg: Callable[..., bytes], store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store({f"{'ai' if n % 2 else 'real'}/{n}.jpg": jpeg(n) for n in range(80)}))
    # The file's size alone is left, which is chance: 40 of each class give a standard error of 0.06.
    assert report["leakage"]["metadata_auc"] < 0.7
    assert "leakage" not in problems(report, "warning")


# The command

SETTINGS: dict[str, Any] = {
    "ingest": {"sources": {"mine": {}}},
    "validate": {"min_images": 20},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "evaluate": {},
}


def test_the_command_says_what_it_found(
    tmp_path: Path, clean: Files, store: Callable[..., Path], command: Callable[..., Any]
) -> None:
    store(clean)
    done = command("validate", params=SETTINGS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "24 images (mine: 12 ai, 12 real), 0 files rejected"
    assert lines[-1] == f"passed; Data Docs: {(tmp_path / 'artifacts/validation/data_docs/index.html').as_uri()}"
    assert (tmp_path / "artifacts/validation/data_docs/index.html").exists()


def test_the_command_fails_with_everything_that_is_critical(
    tmp_path: Path,
    clean: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    command: Callable[..., Any],
) -> None:
    image = Image.open(io.BytesIO(clean["real/00.jpg"]))
    store(clean | {"ai/x.png": encode(image, "PNG")})
    done = command("validate", params={**SETTINGS, "validate": {"min_images": 30}})
    assert done.returncode == 1
    assert done.stderr.startswith("error: the data is not fit for training: ")
    assert done.stderr.count("\n") == 1
    assert "25 images are fewer than 30 (validate.min_images)" in done.stderr
    assert "2 images have equal pixels and both labels" in done.stderr
    assert done.stderr.endswith("See artifacts/validation/report.json\n")
    assert json.loads((tmp_path / "artifacts/validation/report.json").read_text())["passed"] is False
