"""Splits that stay, copies that stay together, and arrays that hold exactly what a network would see."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components import images, shards
from components import preprocess as preprocessing
from components.ingest import forget
from components.params import Equalise, Preprocess
from components.preprocess import forget as arrays_of_preprocess
from components.preprocess import preprocess, splits
from components.stage import StageError
from components.validate import duplicates

Files = dict[str, bytes]
VIEWS = ["16", "crop-24"]
SETTINGS = Preprocess(views=VIEWS, validation=0.2, test=0.2)


@pytest.fixture
def many(jpeg: Callable[..., bytes]) -> Files:
    """Sixty pictures without a split: each of the six parts gets some, whatever the draw."""
    return {f"{'ai' if n % 2 else 'real'}/{n:02d}.jpg": jpeg(n, (30, 20)) for n in range(60)}


@pytest.fixture
def published(jpeg: Callable[..., bytes]) -> Files:
    """Forty pictures to train and ten to test, as a publisher would have it."""
    names = [
        f"{split}/{label}/{n:02d}.jpg"
        for split, each in (("train", 20), ("test", 5))
        for label in ("ai", "real")
        for n in range(each)
    ]
    return {name: jpeg(seed + 200, (30, 20)) for seed, name in enumerate(names)}


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """Find the groups as validation does, and preprocess; gives the index back, with the origin of each image."""

    def run(data: Path, *sources: str, settings: Preprocess = SETTINGS) -> pd.DataFrame:
        names = sources or ("mine",)
        files = shards.paths(data, names)
        rows = shards.manifest(files)
        groups = rows[["shard", "row"]].assign(group=duplicates.find(rows, files, 4)["group"])
        groups.to_parquet(tmp_path / "groups.parquet")
        index = tmp_path / "index.parquet"
        returned = preprocess(data, names, tmp_path / "groups.parquet", settings, tmp_path / "arrays", index)
        written = pd.read_parquet(index)
        pd.testing.assert_frame_equal(returned, written)
        return written.merge(rows[["shard", "row", "origin"]], validate="one_to_one")

    return run


def split_of(index: pd.DataFrame) -> dict[str, str]:
    return dict(zip(index["origin"], index["split"], strict=True))


def arrays(tmp_path: Path) -> dict[str, int]:
    """The arrays that are here, and when each was written."""
    found = sorted((tmp_path / "arrays").rglob("*.npy"))
    return {str(p.relative_to(tmp_path / "arrays")): p.stat().st_mtime_ns for p in found}


# Splits


def test_the_publisher_s_splits_stay(
    published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    split = split_of(prepare(store(published)))
    assert {name for name in split if name.startswith("test/")} == {n for n, s in split.items() if s == "test"}


def test_a_missing_validation_split_is_carved_out_of_train(
    published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    index = prepare(store(published))
    carved = index[index["split"] == "validation"]
    assert carved["origin"].str.startswith("train/").all()
    # A fifth of 40 is 8, with a standard deviation of 2.5.
    assert 2 <= len(carved) <= 16


def test_a_validation_split_of_the_publisher_is_not_added_to(
    published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    renamed = {name.replace("test/", "val/"): data for name, data in published.items()}
    index = prepare(store(renamed))
    assert index.loc[index["split"] == "validation", "origin"].str.startswith("val/").all()
    assert index.loc[index["split"] == "test", "origin"].str.startswith("train/").all()
    assert (index["split"] == "validation").sum() == 10


def test_shares_are_those_of_the_settings() -> None:
    rows = pd.DataFrame({"source": "mine", "split": None, "group": [f"{n:064x}" for n in range(5000)]})
    drawn = splits.assign(rows, Preprocess(views=["16"], validation=0.1, test=0.3)).value_counts(normalize=True)
    # The standard deviation of a share of 5,000 is 0.007 at most.
    assert abs(drawn["test"] - 0.3) < 0.03 and abs(drawn["validation"] - 0.1) < 0.03


def test_another_seed_draws_other_splits() -> None:
    rows = pd.DataFrame({"source": "mine", "split": None, "group": [f"{n:064x}" for n in range(200)]})
    one, same, other = (splits.assign(rows, Preprocess(views=["16"], seed=seed)) for seed in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)


def test_near_copies_share_a_split(
    many: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
) -> None:
    copies = {}
    for n in range(20):
        image = picture(n + 300, (128, 128))
        copies[f"ai/copy-{n}-a.png"] = encode(image, "PNG")
        copies[f"real/copy-{n}-b.jpg"] = encode(image, "JPEG", quality=80)
    index = prepare(store(many | copies))
    pairs = index[index["origin"].str.contains("copy")].assign(n=lambda f: f["origin"].str.split("-").str[1])
    assert pairs.groupby("n")["group"].nunique().eq(1).all()
    assert index.groupby("group")["split"].nunique().eq(1).all()
    assert pairs["split"].nunique() == 3  # twenty pairs, somewhere in each


def test_a_copy_of_a_published_image_goes_where_that_is(
    published: Files, many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    store(published, "published")
    # Copies of every published image, in a source that has no splits of its own.
    copies = {f"ai/{name.replace('/', '-')}": name for name in published}
    data = store(many | {copy: published[name] for copy, name in copies.items()})
    index = prepare(data, "mine", "published")
    assert index["group"].nunique() == len(many) + len(published)
    split = split_of(index)
    assert {copy: split[copy] for copy in copies} == {copy: split[name] for copy, name in copies.items()}
    assert {split[name] for name in published} == {"train", "validation", "test"}


def test_an_image_keeps_its_split_when_others_come(
    many: Files, jpeg: Callable[..., bytes], store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    before = split_of(prepare(store(many)))
    after = split_of(prepare(store({f"ai/new{n}.jpg": jpeg(n + 400) for n in range(30)})))
    assert len(after) == len(before) + 30
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("label", "split", "advice"),
    [
        ("real", "test", "add some, or change preprocess.test"),
        ("ai", "validation", "add some, or change preprocess.validation"),
        ("ai", "train", "add some"),
    ],
)
def test_a_split_without_a_class_is_refused_by_name(
    tmp_path: Path,
    jpeg: Callable[..., bytes],
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
    label: str,
    split: str,
    advice: str,
) -> None:
    parts = [(s, k) for s in ("train", "validation", "test") for k in ("ai", "real") if (s, k) != (split, label)]
    data = store({f"{s}/{k}/{n}.jpg": jpeg(10 * n + i) for i, (s, k) in enumerate(parts) for n in range(2)})
    with pytest.raises(StageError) as caught:
        prepare(data)
    assert str(caught.value) == f"the {split} split has no image labelled {label}; {advice}"
    assert not (tmp_path / "index.parquet").exists()


# Arrays and index


def test_the_arrays_hold_what_render_makes_of_each_image(
    tmp_path: Path,
    many: Files,
    picture: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    many |= {
        "ai/wide.png": encode(picture(500, (90, 30)).convert("RGBA"), "PNG"),
        "ai/tiny.gif": encode(picture(501, (5, 7)), "GIF"),
        "real/turned.jpg": encode(picture(502, (60, 40)), "JPEG", exif=exif),
        "real/grey.tiff": encode(picture(503).convert("L"), "TIFF"),
    }
    index = prepare(store(many, shard_images=25))
    assert len(arrays(tmp_path)) == 3 * len(VIEWS)
    for view, side in (("16", 16), ("crop-24", 24)):
        for shard, part in index.groupby("shard"):
            array = np.load(tmp_path / f"arrays/{view}/{shard}.npy", mmap_mode="r")
            assert array.dtype == np.uint8
            assert array.shape == (len(part), side, side, 3)
            for row, origin in zip(part["row"], part["origin"], strict=True):
                np.testing.assert_array_equal(array[row], images.render(images.decode(many[origin]), view))


def test_published_test_images_that_copy_a_training_image_are_left_out(
    published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    copies = {f"test/ai/copy{n}.jpg": published[f"train/ai/0{n}.jpg"] for n in (3, 5)}
    index = prepare(store(published | copies))
    assert set(index.loc[index["split"].isna(), "origin"]) == set(copies)
    assert (index["split"] == "test").sum() == 10
    kept = prepare(store(published | copies), settings=SETTINGS.model_copy(update={"keep_copies": True}))
    assert kept["split"].notna().all()
    assert (kept["split"] == "test").sum() == 12


def test_equalised_arrays_hold_what_every_image_becomes(
    tmp_path: Path, many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    data = store(many)
    plain = prepare(data)
    shard = plain["shard"].iloc[0]
    before = np.load(tmp_path / f"arrays/crop-24/{shard}.npy")
    equal = Preprocess.model_validate({"views": VIEWS, "equalise": {"side": 24, "quality": 60}})
    index = prepare(data, settings=equal)
    for view in VIEWS:
        array = np.load(tmp_path / f"arrays/{view}/{shard}.npy")
        for row, origin in zip(index["row"], index["origin"], strict=True):
            image = images.equalise(images.decode(many[origin]), {"size": "resize", "side": 24, "quality": 60})
            np.testing.assert_array_equal(array[row], images.render(image, view))
    prepare(data)  # and back
    np.testing.assert_array_equal(np.load(tmp_path / f"arrays/crop-24/{shard}.npy"), before)


def test_views_that_are_saved_by_themselves_are_each_a_file_of_their_own(
    many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    views, equalise = ["cover-16", "crop-8x2"], {"size": "view", "quality": 60}
    settings = SETTINGS.model_copy(update={"views": views, "equalise": Equalise.model_validate(equalise)})
    index = prepare(store(many), settings=settings)
    for row in index.head(5).itertuples():
        image = images.decode(many[row.origin])
        for view in views:
            seen = np.load(tmp_path / "arrays" / view / f"{row.shard}.npy")[row.row]
            squares = images.render(image, view).reshape(-1, *seen.shape[-3:])
            for square, here in zip(squares, seen.reshape(squares.shape), strict=True):
                file = io.BytesIO()
                Image.fromarray(square).save(file, "JPEG", quality=60, subsampling=2)
                np.testing.assert_array_equal(here, np.asarray(Image.open(file)))


# Crops


def test_crops_are_taken_from_the_source_that_holds_them(
    many: Files,
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
    jpeg: Callable[..., bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = {name.replace(".jpg", ".png"): jpeg(n + 900, (24, 24)) for n, name in enumerate(many) if n % 3}
    store(cut, "cut")
    settings = SETTINGS.model_copy(update={"crops": {"mine": "cut"}})
    index = prepare(store(many), "mine", "cut", settings=settings)
    assert set(index["source"]) == {"mine"} and len(index) == 60
    assert "40 of 60 images of mine have a crop in cut" in capsys.readouterr().out
    for view, files in (
        ("16", many),
        ("crop-24", {name: cut.get(name.replace("jpg", "png"), many[name]) for name in many}),
    ):
        placed = shards.placed(index, view)
        for place, origin in zip(placed[["shard", "row"]].itertuples(index=False), index["origin"], strict=True):
            seen = np.load(tmp_path / "arrays" / view / f"{place.shard}.npy")[place.row]
            np.testing.assert_array_equal(seen, images.render(images.decode(files[origin]), view))


def test_crops_follow_what_is_forgotten(
    many: Files,
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
    jpeg: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    cut = {name: jpeg(n + 900, (24, 24)) for n, name in enumerate(many)}
    store(cut, "cut")
    data = store(many)
    index = prepare(data, "mine", "cut", settings=SETTINGS.model_copy(update={"crops": {"mine": "cut"}}))
    held = shards.manifest(shards.paths(data, ["cut"]))
    gone = held.iloc[[3]]
    removed = forget.forget(data, tmp_path / "receipts", gone["sha256"])
    arrays_of_preprocess.forget(data, tmp_path / "arrays", tmp_path / "index.parquet", removed)
    after = pd.read_parquet(tmp_path / "index.parquet").merge(index[["sha256", "origin"]], on="sha256")
    assert after.loc[after["origin"] == gone["origin"].iloc[0], "crop_shard"].isna().all()
    placed = shards.placed(after, "crop-24")
    for place, origin in zip(placed[["shard", "row"]].itertuples(index=False), after["origin"], strict=True):
        seen = np.load(tmp_path / "arrays/crop-24" / f"{place.shard}.npy")[place.row]
        file = many[origin] if origin == gone["origin"].iloc[0] else cut[origin]
        np.testing.assert_array_equal(seen, images.render(images.decode(file), "crop-24"))


def test_a_source_without_the_names_of_the_pictures_is_refused(
    many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame], jpeg: Callable[..., bytes]
) -> None:
    store({f"{label}/other{n}.jpg": jpeg(n + 900) for label in ("ai", "real") for n in range(3)}, "cut")
    with pytest.raises(StageError, match=r"no image of cut has the name of one of mine \(such as ai/01; there it is"):
        prepare(store(many), "mine", "cut", settings=SETTINGS.model_copy(update={"crops": {"mine": "cut"}}))


# Arrays again


def test_a_shard_of_several_row_groups_is_decoded_in_order(
    tmp_path: Path, jpeg: Callable[..., bytes], store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    files = {f"{'ai' if n % 2 else 'real'}/{n:04d}.jpg": jpeg(n, (12, 12)) for n in range(1100)}
    index = prepare(store(files), settings=Preprocess(views=["crop-8x2"], validation=0.2, test=0.2))
    array = np.load(tmp_path / f"arrays/crop-8x2/{index['shard'].iloc[0]}.npy", mmap_mode="r")
    assert array.shape == (1100, 2, 8, 8, 3)
    for row, origin in list(zip(index["row"], index["origin"], strict=True))[::37]:
        np.testing.assert_array_equal(array[row], images.render(images.decode(files[origin]), "crop-8x2"))


def test_the_index_says_where_each_image_is(
    tmp_path: Path, published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    data = store(published, shard_images=20)
    index = prepare(data)
    stored = pd.read_parquet(tmp_path / "index.parquet")
    assert list(stored.columns) == preprocessing.COLUMNS
    manifest = shards.manifest(shards.paths(data, ["mine"]))
    for column in ("sha256", "shard", "row", "label", "source"):
        assert stored[column].tolist() == manifest[column].tolist()
    assert stored.groupby("shard")["row"].apply(list).tolist() == [list(range(20)), list(range(20)), list(range(10))]
    assert set(index["split"]) == {"train", "validation", "test"}
    assert stored["group"].tolist() == stored["sha256"].tolist()  # no copies: each image is its own group


def test_a_second_run_decodes_nothing(
    tmp_path: Path,
    many: Files,
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = store(many)
    first = prepare(data)
    before = arrays(tmp_path)
    assert capsys.readouterr().out.endswith("60 images decoded, 0 from before\n")
    second = prepare(data)
    assert capsys.readouterr().out == "0 images decoded, 60 from before\n"
    assert arrays(tmp_path) == before
    pd.testing.assert_frame_equal(first, second)


def test_a_new_shard_decodes_only_itself(
    tmp_path: Path,
    many: Files,
    jpeg: Callable[..., bytes],
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(store(many))
    before = arrays(tmp_path)
    capsys.readouterr()
    index = prepare(store({f"ai/new{n}.jpg": jpeg(n + 400) for n in range(3)}))
    assert capsys.readouterr().out == "3 images decoded, 60 from before\n"
    after = arrays(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    assert len(index) == 63


def test_a_new_view_is_made_and_one_that_is_not_wanted_goes(
    tmp_path: Path, many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    data = store(many)
    prepare(data)
    before = arrays(tmp_path)
    prepare(data, settings=SETTINGS.model_copy(update={"views": ["16", "8"]}))
    after = arrays(tmp_path)
    assert {Path(name).parts[0] for name in after} == {"16", "8"}
    assert not (tmp_path / "arrays/crop-24").exists()
    kept = {name for name in before if name.startswith("16/")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_the_arrays_of_a_removed_source_go(
    tmp_path: Path, many: Files, published: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    store(published, "published")
    data = store(many)
    prepare(data, "mine", "published")
    assert {Path(name).parts[1] for name in arrays(tmp_path)} == {"mine", "published"}
    index = prepare(data, "mine")
    assert {Path(name).parts[1] for name in arrays(tmp_path)} == {"mine"}
    assert not (tmp_path / "arrays/16/published").exists()
    assert index["source"].unique().tolist() == ["mine"]


def test_an_array_that_was_lost_is_made_again(
    tmp_path: Path, many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame]
) -> None:
    data = store(many)
    prepare(data)
    lost = next((tmp_path / "arrays/16").rglob("*.npy"))
    before = lost.read_bytes()
    lost.unlink()
    prepare(data)
    assert lost.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut off", "flipped"])
def test_a_damaged_shard_is_refused_and_leaves_no_array(
    tmp_path: Path, many: Files, store: Callable[..., Path], prepare: Callable[..., pd.DataFrame], damage: str
) -> None:
    data = store(many)
    (path,) = shards.paths(data, ["mine"]).values()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # the images are the greater part of it
    path.write_bytes(content if damage == "flipped" else content[:-10])
    with pytest.raises(StageError, match=rf"^{path}: damaged .*restore it with `dvc checkout data\.dvc --force`"):
        prepare(data)
    assert arrays(tmp_path) == {}
    assert not (tmp_path / "index.parquet").exists()


def test_groups_of_other_shards_are_refused(
    tmp_path: Path,
    many: Files,
    jpeg: Callable[..., bytes],
    store: Callable[..., Path],
    prepare: Callable[..., pd.DataFrame],
) -> None:
    prepare(store(many))
    data = store({"ai/new.jpg": jpeg(400)})
    groups = tmp_path / "groups.parquet"
    with pytest.raises(StageError, match=rf"^{groups}: made from other shards; run validate again$"):
        preprocess(data, ["mine"], groups, SETTINGS, tmp_path / "arrays", tmp_path / "index.parquet")


def test_the_command_says_what_is_in_each_split(
    tmp_path: Path, many: Files, store: Callable[..., Path], command: Callable[..., Any]
) -> None:
    data = store(many)
    params = {
        "ingest": {"sources": {"mine": {}}},
        "preprocess": {"views": [16], "validation": 0.2, "test": 0.2},
        "train": {"models": {"small": {"network": "cnn", "view": 16}}},
        "validate": {},
        "evaluate": {},
    }
    done = command("preprocess", params=params)
    assert done.returncode == 1
    assert done.stderr == "error: artifacts/validation/groups.parquet: not here; run validate first\n"

    rows = shards.manifest(shards.paths(data, ["mine"]))
    groups = tmp_path / "artifacts/validation/groups.parquet"
    groups.parent.mkdir(parents=True)
    rows[["shard", "row"]].assign(group=rows["sha256"]).to_parquet(groups)
    done = command("preprocess", params=params)
    assert done.returncode == 0, done.stderr
    index = pd.read_parquet(tmp_path / "artifacts/index.parquet")
    counts = index.groupby(["split", "label"]).size()
    lines = done.stdout.splitlines()
    for split in ("train", "validation", "test"):
        assert f"{split}: {counts[split, 'ai']} ai, {counts[split, 'real']} real" in lines
    rough = f"warning: test has {counts['test', 'real']} real images only, so what is measured on them is rough"
    assert counts["test", "real"] < 20 and rough in done.stdout, "of sixty pictures"
    assert "warning: train" not in done.stdout


def test_reports_train_or_are_proof_and_judge_nothing() -> None:
    """Whatever they copy: no proof has a copy that is trained on, and no report is a test of its own."""
    rows = pd.DataFrame({"source": "mine", "split": None, "group": [f"g{n:03d}" for n in range(200)]})
    told = pd.DataFrame({"source": "reports", "split": ["reported", "regression"] * 50})
    told["group"] = [f"r{n // 4:03d}" if n % 4 > 1 else f"r{n:03d}" for n in range(100)]
    copies = pd.DataFrame({"source": "reports", "split": ["reported", "regression"] * 20})
    copies["group"] = [f"g{n:03d}" for n in range(40)]
    fixed = pd.DataFrame({"source": "other", "split": ["train", "test"], "group": ["g001", "g003"]})
    everything = pd.concat([rows, told, copies, fixed], ignore_index=True)
    split = splits.assign(everything, SETTINGS)

    proof = everything["split"] == "regression"
    assert (split[proof] == "regression").all() and not (split[~proof] == "regression").any()
    assert split[~proof & everything["group"].isin(everything.loc[proof, "group"])].isna().all()
    alone = (everything["split"] == "reported") & ~everything["group"].isin(everything.loc[proof, "group"])
    own = alone & everything["group"].str.startswith("r")
    assert own.any() and (split[own] == "train").all()
    of_group = split[everything["source"] == "mine"].set_axis(rows["group"])
    copied = alone & everything["group"].str.startswith("g")
    assert split[copied].tolist() == of_group[everything.loc[copied, "group"]].tolist()
    assert set(split[copied]) == {"train", "validation", "test"}
    # Other images keep their splits, whatever is reported.
    before = splits.assign(pd.concat([rows, fixed], ignore_index=True), SETTINGS)
    kept = split[: len(rows)].notna()
    assert split[: len(rows)][kept].tolist() == before[: len(rows)][kept].tolist()


def test_a_collection_is_a_generator_or_the_folder_above_the_label() -> None:
    for origin, name in (("camera/real/1.jpg", "camera"), ("set.zip/a/b/real/2.jpg", "b"), ("real/3.jpg", None)):
        assert preprocessing._folder(origin) == name
