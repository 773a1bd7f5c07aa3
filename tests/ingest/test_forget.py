"""Images that were removed are gone from everything that is made of them, and stay away."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components import images, shards
from components.ingest import Outcome, ingest
from components.ingest.forget import Removed, forget
from components.params import Ingest, Preprocess, Source
from components.preprocess import forget as arrays_forget
from components.preprocess import preprocess
from components.stage import StageError
from components.validate import duplicates

Files = dict[str, bytes]
SETTINGS = Preprocess(views=["16", "crop-16x2"], validation=0.2, test=0.2)


@pytest.fixture
def files(jpeg: Callable[..., bytes]) -> Files:
    return {f"{'ai' if n % 2 else 'real'}/{n:02d}.jpg": jpeg(n, (30, 20)) for n in range(40)}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def prepare(root: Path) -> pd.DataFrame:
    found = shards.paths(root / "data", ["mine"])
    rows = shards.manifest(found)
    groups = rows[["shard", "row"]].assign(group=duplicates.find(rows, found, 4)["group"])
    groups.to_parquet(root / "groups.parquet")
    return preprocess(
        root / "data", ["mine"], root / "groups.parquet", SETTINGS, root / "arrays", root / "index.parquet"
    )


def remove(root: Path, *sha256: str, origin: str | None = None) -> Removed:
    removed = forget(root / "data", root / "receipts", sha256, origin, reason="asked for")
    arrays_forget.forget(root / "data", root / "arrays", root / "index.parquet", removed)
    return removed


def everything_under(root: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file())


def test_an_image_leaves_shards_arrays_and_index(tmp_path: Path, files: Files, store: Callable[..., Path]) -> None:
    store(files, shard_images=10)
    prepare(tmp_path)
    gone, untouched = files["ai/03.jpg"], sorted((tmp_path / "data/mine").glob("*.parquet"))
    features = tmp_path / "features/32+0123"
    (features / "mine").mkdir(parents=True)
    for shard in untouched:
        np.save(features / f"mine/{shard.stem}.npy", np.zeros((10, 4), np.float32))
    removed = remove(tmp_path, sha(gone))
    assert removed.images == 1
    left = {path.stem for path in features.rglob("*.npy")}
    assert left == {path.stem for path in (tmp_path / "data/mine").glob("*.parquet")} & {p.stem for p in untouched}
    assert gone not in everything_under(tmp_path / "data")
    assert len(set(untouched) - set((tmp_path / "data/mine").glob("*.parquet"))) == 1

    found = shards.paths(tmp_path / "data", ["mine"])
    rows = shards.manifest(found)
    assert sorted(rows["origin"]) == sorted(files.keys() - {"ai/03.jpg"})
    index = pd.read_parquet(tmp_path / "index.parquet")
    assert set(index["sha256"]) == {sha(data) for name, data in files.items() if name != "ai/03.jpg"}
    stored = {sha(data): data for data in files.values()}
    for row in index.itertuples():
        for view in SETTINGS.views:
            pixels = np.load(tmp_path / "arrays" / view / f"{row.shard}.npy", mmap_mode="r")[row.row]
            assert np.array_equal(pixels, images.render(images.decode(stored[row.sha256]), view))


def test_the_next_preprocess_decodes_nothing_and_gives_the_same_index(
    tmp_path: Path, files: Files, store: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store(files, shard_images=10)
    prepare(tmp_path)
    remove(tmp_path, sha(files["ai/03.jpg"]), sha(files["real/22.jpg"]))
    after = pd.read_parquet(tmp_path / "index.parquet")
    capsys.readouterr()
    again = prepare(tmp_path)
    assert "0 images decoded, 38 from before" in capsys.readouterr().out
    order = ["shard", "row"]
    pd.testing.assert_frame_equal(
        after.sort_values(order).reset_index(drop=True), again.sort_values(order).reset_index(drop=True)
    )


def test_it_does_not_come_back(tmp_path: Path, files: Files, store: Callable[..., Path]) -> None:
    data = store(files)
    source = Source.model_validate({"from": str(tmp_path / "incoming/mine")})
    remove(tmp_path, sha(files["ai/03.jpg"]))
    settings = Ingest.model_validate({"sources": {"mine": {}}})
    # The receipt still holds: the source isn't even read again.
    assert ingest("mine", source, settings, data, tmp_path / "receipts") == Outcome(unchanged=True)
    shutil.rmtree(tmp_path / "receipts")
    assert ingest("mine", source, settings, data, tmp_path / "receipts") == Outcome(known=39)
    assert files["ai/03.jpg"] not in everything_under(data)


def test_the_log_names_it_without_the_image(tmp_path: Path, files: Files, store: Callable[..., Path]) -> None:
    store(files)
    remove(tmp_path, sha(files["ai/03.jpg"])[:12])
    assert json.loads((tmp_path / "data/forgotten.json").read_text()) == [
        {
            "sha256": sha(files["ai/03.jpg"]),
            "label": "ai",
            "source": "mine",
            "origin": "ai/03.jpg",
            "reason": "asked for",
        }
    ]


def test_a_pattern_takes_all_that_came_from_there_and_their_copies(
    tmp_path: Path, files: Files, store: Callable[..., Path]
) -> None:
    copies = files | {"real/copy.jpg": files["real/00.jpg"], "real/bad.jpg": b"not an image"}
    store(copies)
    assert remove(tmp_path, origin="real/0*.jpg").images == 5 + 1
    assert remove(tmp_path, origin="*bad*").images == 1
    left = shards.manifest(shards.paths(tmp_path / "data", ["mine"]))["origin"]
    assert not left.str.startswith("real/0").any() and "real/copy.jpg" not in set(left)
    assert not (tmp_path / "data/mine/rejected.parquet").exists()


def test_a_shard_of_nothing_else_goes(tmp_path: Path, files: Files, store: Callable[..., Path]) -> None:
    store(files, shard_images=20)
    prepare(tmp_path)
    remove(tmp_path, *(sha(data) for name, data in files.items() if name.startswith("ai/")))
    assert len(shards.paths(tmp_path / "data", ["mine"])) == 1
    assert len(list(tmp_path.glob("arrays/16/mine/*.npy"))) == 1


@pytest.mark.parametrize(
    ("asked", "origin", "message"),
    [
        (["0123456789"], None, "0123456789: no image with this sha256 is here; nothing was removed"),
        (["0123"], None, "0123: too short to name an image; give 8 digits of its sha256 or more"),
        ([], "nowhere/*", "nowhere/*: no image comes from there; nothing was removed"),
        ([], None, "nothing to forget: give the sha256 of images, or --origin PATTERN"),
    ],
)
def test_what_is_not_here_is_refused(
    tmp_path: Path, files: Files, store: Callable[..., Path], asked: list[str], origin: str | None, message: str
) -> None:
    data = store(files)
    before = everything_under(data)
    with pytest.raises(StageError) as refusal:
        forget(data, tmp_path / "receipts", asked, origin)
    assert str(refusal.value) == message
    assert everything_under(data) == before
