"""Folds never leak what they leave out."""

import json
from pathlib import Path

import pandas as pd
import pytest

from components.evaluate import generalisation
from components.evaluate.generalisation import TooFew
from components.params import Params
from components.stage import StageError


def index(**other: list[str | None]) -> pd.DataFrame:
    """Two sources and three generators in all splits, twelve images of each kind."""
    rows = []
    for source, label, generator in (
        ("one", "ai", "x"),
        ("one", "ai", "y"),
        ("one", "real", None),
        ("two", "ai", "z"),
        ("two", "real", None),
        ("fakes", "ai", "x"),
    ):
        for number in range(12):
            split = ("train", "train", "validation", "test")[number % 4]
            name = f"{source}{label}{generator}{number}"
            rows.append((name, f"{source}/a-00000", number, label, source, generator, split, name))
    columns = ["sha256", "shard", "row", "label", "source", "generator", "split", "group"]
    return pd.DataFrame(rows, columns=columns).assign(**other)


def part(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    return frame[frame["split"] == split]


def test_a_generator_is_tested_with_all_its_images_beside_unseen_real_ones() -> None:
    before = index()
    found = generalisation.fold(before, "generator", "y")
    learning = found[found["split"] != "test"]
    assert "y" not in set(learning["generator"])
    test = part(found, "test")
    assert (test["generator"] == "y").sum() == 12, "whatever split they were in"
    real = test[test["label"] == "real"]
    assert set(real["source"]) == {"one"}, "real images of its own source"
    assert set(real["sha256"]) <= set(part(before, "test")["sha256"])
    assert set(test["label"]) == {"ai", "real"} and set(test["generator"].dropna()) == {"y"}
    assert not found["sha256"].duplicated().any()


def test_a_source_leaves_with_its_real_images() -> None:
    found = generalisation.fold(index(), "source", "two")
    assert "two" not in set(found[found["split"] != "test"]["source"])
    test = part(found, "test")
    assert set(test["source"]) == {"two"} and len(test) == 24


def test_a_source_of_one_class_is_tested_against_the_rest_of_the_test_split() -> None:
    before = index()
    test = part(generalisation.fold(before, "source", "fakes"), "test")
    real = test[test["label"] == "real"]
    assert set(real["source"]) == {"one", "two"}
    assert set(real["sha256"]) <= set(part(before, "test")["sha256"])


def test_near_copies_of_what_stays_are_not_tested() -> None:
    before = index()
    copies = before["sha256"].isin(["oneaiy0", "oneaiy3"])
    stays = before["sha256"].isin(["twoaiz1"])
    before.loc[copies | stays, "group"] = "the same picture"
    test = part(generalisation.fold(before, "generator", "y"), "test")
    assert not test["sha256"].isin(["oneaiy0", "oneaiy3"]).any()
    assert (test["generator"] == "y").sum() == 10
    # What was left out of every split stays out.
    before.loc[before["sha256"] == "oneaiy1", "split"] = None
    assert (part(generalisation.fold(before, "generator", "y"), "test")["generator"] == "y").sum() == 9


def test_what_cannot_be_left_out_says_why() -> None:
    only = index()
    only = only[(only["generator"] != "z") & (only["generator"] != "y")]
    with pytest.raises(StageError, match="1 generator"):
        generalisation.groups(only, "generator")
    assert generalisation.groups(index(), "generator") == ["x", "y", "z"]
    fakes = index()
    fakes = fakes[(fakes["source"] == "fakes") | (fakes["source"] == "one")]
    fakes = fakes[(fakes["source"] == "fakes") | (fakes["label"] == "real")]
    with pytest.raises(TooFew, match="without one, no real image is left"):
        generalisation.fold(fakes, "source", "one")


def test_a_fold_is_kept_until_what_it_was_made_from_changes(tmp_path: Path) -> None:
    settings = Params.model_validate(
        {
            "ingest": {"sources": {"one": {}}},
            "validate": {},
            "preprocess": {"views": [16]},
            "train": {"models": {"m": {"network": "cnn", "view": 16}}},
            "evaluate": {},
        }
    )
    arrays, folder = tmp_path / "arrays", generalisation.place(tmp_path, "generator", "a/b c")
    assert folder.parent == tmp_path / "generator" and folder != generalisation.place(tmp_path, "generator", "a/b_c")
    fold = generalisation.fold(index(), "generator", "y")
    generalisation.prepare(fold, settings, "m", arrays, folder)
    kept = [folder / "models/m/training.json", folder / "evaluation/metrics.json"]
    for file in kept:
        file.parent.mkdir(parents=True)
        file.write_text("{}")

    generalisation.prepare(fold, settings, "m", arrays, folder)
    assert all(file.exists() for file in kept)
    judged = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"target_error": 0.1})})
    generalisation.prepare(fold, judged, "m", arrays, folder)
    assert [file.exists() for file in kept] == [True, False], "judged again, not trained again"
    generalisation.prepare(fold.iloc[1:], judged, "m", arrays, folder)
    assert not any(file.exists() for file in kept)
    kept[0].parent.mkdir(parents=True)
    kept[0].write_text("{}")
    arrays.mkdir()
    (arrays / "made.json").write_text(json.dumps({"maker": "this", "equalise": {"quality": 90}}))
    generalisation.prepare(fold.iloc[1:], judged, "m", arrays, folder)
    assert not kept[0].exists(), "trained on other pixels"
    assert json.loads((folder / "fold.json").read_text()).keys() == {"training", "evaluation"}
