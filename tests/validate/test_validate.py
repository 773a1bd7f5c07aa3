"""What stops a run, what is only said, and how copies are counted."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components import shards
from components.ingest import ingest
from components.ingest.forget import forget
from components.params import Equalise, Ingest, Source, Validate
from components.stage import StageError
from components.validate import leakage, noise, refuse, validate
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

    def run(
        data: Path,
        settings: Validate = LENIENT,
        sources: tuple[str, ...] = ("mine",),
        equalise: Equalise | None = None,
    ) -> dict[str, Any]:
        returned = validate(data, sources, settings, tmp_path / "out", equalise)
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


def test_a_folder_may_be_called_anything(tmp_path: Path, clean: Files, store: Callable[..., Path]) -> None:
    out = tmp_path / "a $HOME ${X} 100% #1?" / "übung"
    validate(store(clean), ("mine",), LENIENT, out)
    assert "Data Docs" in (out / "data_docs/index.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a $HOME ${X} 100% #1?", "data", "incoming", "receipts"]


def test_the_report_has_the_keys_that_others_rely_on(
    clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store(clean), Validate(min_images=25))
    contract = {"passed", "n_images", "problems", "duplicates", "leakage"}
    more = {"n_rejected", "by_source", "by_split", "by_generator", "label_noise", "drift"}
    assert set(report) == contract | more
    assert set(report["duplicates"]) == {
        "exact_within_split",
        "exact_across_splits",
        "near_across_splits",
        "label_conflicts",
    }
    assert set(report["leakage"]) >= {"metadata_auc", "by_column"}
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
    assert (report["leakage"]["metadata_auc"], report["leakage"]["by_column"]) == (None, {})


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
    message = (
        "2 images have equal pixels and both labels: remove the wrong ones with `trueframe forget`: 2 without a split "
        "(1 ai, 1 real); the first is ai/x.png of mine"
    )
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
    message = (
        "2 images are not the bytes that were ingested: restore their shards: 2 without a split (1 ai, 1 real); the "
        "first is ai/03.jpg of mine"
    )
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
    assert warnings["exact_within_split"] == (
        "3 images repeat an earlier image of their own split: 2 in train (all ai), 1 in test (all ai)"
    )
    assert warnings["exact_across_splits"] == (
        "3 images outside train have pixels that are in train too: 1 in validation (all real), 2 in test (all ai); "
        "preprocess leaves them out (preprocess.keep_copies)"
    )


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
    assert problems(report, "warning")["near_across_splits"] == (
        "2 images outside train look like one in train: 2 in test (all ai); preprocess leaves them out "
        "(preprocess.keep_copies)"
    )

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


def test_a_label_that_the_format_gives_away_stops_the_run(
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    files = {f"ai/{n}.png": encode(picture(n), "PNG") for n in range(30)}
    files |= {f"real/{n}.jpg": encode(picture(n + 100), "JPEG", quality=95) for n in range(30)}
    data = store(files)
    report = check(data)
    leakage = report["leakage"]
    # 30 of each class in 3 folds: a column that splits them leaves nothing to chance.
    assert leakage["metadata_auc"] > 0.99
    assert leakage["by_column"]["format"] > 0.99
    assert leakage["by_column"]["width"] == leakage["by_column"]["mode"] == 0.5  # the same in all
    assert report["passed"] is False
    message = problems(report)["leakage"]
    assert message.startswith("the label can be told without the picture (AUC 1.00, more than 0.75): ")
    assert "format tells the label: JPEG 100 % real, PNG 100 % ai (AUC 1.00)" in message
    assert "Set preprocess.equalise: true" in message

    # With all images in one encoding it passes, and says what it was.
    report = check(data, equalise=Equalise(side=32))
    assert report["passed"] is True
    assert report["leakage"]["equalised"]["metadata_auc"] == 0.5
    assert report["leakage"]["metadata_auc"] > 0.99
    assert problems(report, "warning")["leakage"].endswith("After preprocess.equalise it can't (AUC 0.50)")


def test_pictures_behind_the_first_give_no_label_away(
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    """Phones write two pictures into one JPEG file (MPO), which is read as any other."""
    files = {f"ai/{n}.jpg": encode(picture(n), "JPEG", quality=95) for n in range(30)}
    for n in range(30):
        both = {"save_all": True, "append_images": [picture(n + 200)], "quality": 95}
        files[f"real/{n}.jpg"] = encode(picture(n + 100), "MPO", **both)
    data = store(files)
    assert set(shards.manifest(shards.paths(data, ["mine"]))["format"]) == {"JPEG"}
    report = check(data)
    assert report["leakage"]["by_column"]["format"] == 0.5
    assert "format" not in problems(report, "warning")
    assert "MPO" not in str(report["problems"])


def test_a_label_that_the_jpeg_tables_give_away_is_named(
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    qualities = {"ai": (75, 80), "real": (85, 95)}
    files = {
        f"{label}/{n}.jpg": encode(picture(n + 100 * (label == "ai")), "JPEG", quality=of[n % 2])
        for label, of in qualities.items()
        for n in range(30)
    }
    message = problems(check(store(files)))["leakage"]
    assert "quantisation tells the label: quality 7" in message or "quantisation tells the label: quality 8" in message
    assert "100 % ai" in message and "100 % real" in message


def test_a_few_images_do_not_leak_by_chance() -> None:
    # A classifier that guesses gets 0.75 of 12 and 12 images right now and then; never of 1,000 and 1,000.
    assert leakage.at_least(0.8, 12, 12) < 0.75 < leakage.at_least(0.8, 1000, 1000)
    assert leakage.at_least(1.0, 30, 30) == 1.0


def test_equal_encodings_leak_nothing(
    jpeg: Callable[..., bytes], store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    report = check(store({f"{'ai' if n % 2 else 'real'}/{n}.jpg": jpeg(n) for n in range(80)}))
    # The file's size alone is left, which is chance: 40 of each class give a standard error of 0.06.
    assert report["leakage"]["metadata_auc"] < 0.7
    assert report["passed"] is True


# Labels that look wrong


def test_flipped_labels_are_estimated_and_found() -> None:
    rng = np.random.default_rng(0)
    n, flipped = 4000, 200
    labels = np.arange(n) % 2 == 1
    traces = (rng.normal(0, 1, (n, 6)) + np.where(labels, 0.8, -0.8)[:, None]).astype(np.float32)
    wrong = rng.choice(n, flipped, replace=False)
    said = labels.copy()
    said[wrong] ^= True
    groups = np.arange(n)
    found = noise.find(traces, said, groups, 0)
    # 5 % are flipped; 800 of the surest images give a standard error of 0.8 points.
    assert found.share == pytest.approx(0.05, abs=0.02)
    assert found.at_least > 0.02
    # Of the candidates most are flipped, and the worst ones nearly all.
    assert np.isin(found.candidates, wrong).mean() > 0.6
    assert np.isin(found.candidates[:100], wrong).mean() > 0.9

    clean = noise.find(traces, labels, groups, 0)
    assert clean.at_least < 0.01


def test_a_classifier_that_knows_little_doubts_no_label() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 2 == 1
    found = noise.find(rng.normal(0, 1, (1000, 6)).astype(np.float32), labels, np.arange(1000), 0)
    assert (found.share, len(found.candidates)) == (None, 0)
    few = noise.find(np.zeros((20, 6), np.float32), np.arange(20) % 2 == 1, np.arange(20), 0)
    assert (few.share, few.auc) == (None, None)


# Balance, pairs, drift, the page


def bring(root: Path, name: str, files: Files, write_files: Callable[..., Path]) -> None:
    source = Source.model_validate({"from": str(write_files(root / "incoming" / name, files))})
    section = Ingest.model_validate({"sources": {name: {}}})
    ingest(name, source, section, root / "data", root / "receipts")


def test_a_source_of_one_class_is_named(
    tmp_path: Path,
    clean: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    bring(tmp_path, "mine", clean, write_files)
    bring(tmp_path, "others", {f"real/{n}.jpg": jpeg(300 + n) for n in range(5)}, write_files)
    report = check(tmp_path / "data", sources=("mine", "others"))
    message = problems(report, "warning")["one_class_source"]
    assert message.startswith("1 of 2 sources have images of one label only: others (5 real).")
    assert report["passed"] is True


def test_images_that_belong_together_share_a_group(
    tmp_path: Path, clean: Files, store: Callable[..., Path], check: Callable[..., dict[str, Any]]
) -> None:
    data = store(clean)
    rows = shards.manifest(shards.paths(data, ["mine"]))
    sha = rows.set_index("origin")["sha256"]
    about = [
        {"sha256": sha[f"{label}/{n:02d}.jpg"], "label": label, "origin": f"{label}/{n:02d}.jpg", "pair": f"pair {n}"}
        for label in ("ai", "real")
        for n in range(6)
    ]
    table = pa.Table.from_pylist([{name: row.get(name) for name in shards.ABOUT_SCHEMA.names} for row in about])
    pq.write_table(table.cast(shards.ABOUT_SCHEMA), data / "mine" / shards.ABOUT)
    check(data)
    groups = rows.merge(pd.read_parquet(tmp_path / "out/groups.parquet")).set_index("origin")["group"]
    assert groups.nunique() == 24 - 6
    assert all(groups[f"ai/{n:02d}.jpg"] == groups[f"real/{n:02d}.jpg"] for n in range(6))


def test_what_came_and_went_since_the_version_before_is_said(
    tmp_path: Path,
    clean: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    bring(tmp_path, "mine", clean, write_files)
    data = tmp_path / "data"
    assert check(data)["drift"] is None
    shards.seal(data)
    assert check(data)["drift"] is None  # the first version has none before it
    bring(tmp_path, "mine", {f"ai/new{n}.jpg": jpeg(400 + n, (96, 40)) for n in range(30)}, write_files)
    gone = forget(data, tmp_path / "receipts", [], "real/00.jpg")
    assert gone.images == 1
    for _ in range(2):  # before and after this version is sealed
        report = check(data)
        assert (report["drift"]["came"], report["drift"]["went"]) == ({"ai": 30, "real": 0}, {"ai": 0, "real": 1})
        assert report["drift"]["columns"]["width"] == {"distance": 1.0, "before": "median 48", "new": "median 96"}
        message = problems(report, "warning")["drift"]
        assert message.startswith("the 30 new images differ from the earlier ones (distance 1.00, more than 0.2): ")
        assert "width: median 48, now median 96" in message
        shards.seal(data)


def test_the_page_and_the_list_show_the_images_with_problems(
    tmp_path: Path,
    clean: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    check: Callable[..., dict[str, Any]],
) -> None:
    files = {f"train/{name}": data for name, data in clean.items()} | {
        "train/real/a.png": encode(picture(80), "PNG"),
        "test/ai/a.bmp": encode(picture(80), "BMP"),
        "test/real/other.png": encode(picture(82), "PNG"),
    }
    check(store(files))
    flagged = pd.read_csv(tmp_path / "out/flagged.csv").set_index("check")
    across = flagged.loc["exact_across_splits"]
    assert (across["origin"], across["twin_origin"], across["split"]) == ("test/ai/a.bmp", "train/real/a.png", "test")
    assert set(flagged.loc["label_conflict", "origin"]) == {"test/ai/a.bmp", "train/real/a.png"}
    page = (tmp_path / "out/report.html").read_text()
    assert "not fit for training" in page
    assert "Equal pixels, both labels" in page and "Copies of training images outside train" in page
    assert page.count("data:image/png;base64,") == 2
    assert "Can the label be told without the picture?" in page


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
    lines = [line for line in done.stdout.splitlines() if not line.endswith("s left")]  # on a slow machine
    assert lines[0] == "24 images (mine: 12 ai, 12 real), 0 files rejected"
    assert lines[-1] == f"passed; report: {(tmp_path / 'artifacts/validation/report.html').as_uri()}"
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
    assert done.stderr.endswith("See artifacts/validation/report.html\n")
    assert json.loads((tmp_path / "artifacts/validation/report.json").read_text())["passed"] is False
