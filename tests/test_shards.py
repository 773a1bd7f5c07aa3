"""Shards give back what was written, and a damaged one says which it is and what to do."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import shards
from components.stage import StageError

COLUMNS = [
    "image",
    "label",
    "source",
    "generator",
    "split",
    "sha256",
    "phash",
    "width",
    "height",
    "mode",
    "format",
    "n_bytes",
    "origin",
]  # the contract, in this order


def row(number: int, data: bytes, **columns: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": data, "path": f"{number}.jpg"},
        "label": "ai",
        "source": "mine",
        "generator": "diffusion",
        "split": None,
        "sha256": f"{number:064x}",
        "phash": 2**64 - 1 - number,
        "width": 48,
        "height": 40,
        "mode": "RGB",
        "format": "JPEG",
        "n_bytes": len(data),
        "origin": f"ai/{number}.jpg",
    } | columns


@pytest.fixture
def rows(jpeg: Callable[..., bytes]) -> list[dict[str, Any]]:
    return [
        row(0, jpeg(0)),
        row(1, jpeg(1), label="real", generator=None, split="test"),
        row(2, jpeg(2), split="train"),
        row(3, b""),
    ]


@pytest.fixture
def data(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    folder = tmp_path / "data/mine"
    folder.mkdir(parents=True)
    shards.write(folder / "abc-00000.parquet", rows[:3])
    shards.write(folder / "abc-00001.parquet", rows[3:])
    return tmp_path / "data"


def test_what_is_written_is_read_back(data: Path, rows: list[dict[str, Any]]) -> None:
    files = shards.paths(data, ["mine"])
    assert list(files) == ["mine/abc-00000", "mine/abc-00001"]
    manifest = shards.manifest(files)
    assert list(manifest.columns) == ["shard", "row", *COLUMNS[1:]]
    assert manifest["shard"].tolist() == ["mine/abc-00000"] * 3 + ["mine/abc-00001"]
    assert manifest["row"].tolist() == [0, 1, 2, 0]
    assert manifest["phash"].dtype == np.uint64  # a hash may need all 64 bits
    for column in COLUMNS[1:]:
        found = [None if pd.isna(value) else value for value in manifest[column]]
        assert found == [r[column] for r in rows]
    stored = [file for path in files.values() for file in shards.files(path)]
    assert stored == [r["image"]["bytes"] for r in rows]


def test_mpo_of_older_shards_is_jpeg(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    rows = [row(n, jpeg(n), format=kind) for n, kind in enumerate(["MPO", "JPEG", "PNG", "MPO"])]
    (tmp_path / "mine").mkdir()
    shards.write(tmp_path / "mine/abc-00000.parquet", rows)
    assert shards.manifest(shards.paths(tmp_path, ["mine"]))["format"].tolist() == ["JPEG", "JPEG", "PNG", "JPEG"]


def test_some_rows_are_read_in_the_order_asked_for(data: Path, rows: list[dict[str, Any]]) -> None:
    path = data / "mine/abc-00000.parquet"
    assert list(shards.files(path, [2, 0])) == [rows[2]["image"]["bytes"], rows[0]["image"]["bytes"]]
    assert list(shards.files(path, [])) == []


def test_rows_of_several_shards_come_with_their_labels(data: Path, rows: list[dict[str, Any]]) -> None:
    files = shards.paths(data, ["mine"])
    chosen = shards.manifest(files).iloc[[3, 1]]
    assert sorted(shards.load(files, chosen)) == [(i, rows[i]["image"]["bytes"]) for i in (1, 3)]


def test_the_columns_are_those_of_the_contract(data: Path) -> None:
    schema = pq.read_schema(data / "mine/abc-00000.parquet")
    assert schema.names == COLUMNS
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("phash").type == pa.uint64()


def test_hugging_face_sees_images(data: Path) -> None:
    metadata = pq.read_schema(data / "mine/abc-00000.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}


def test_equal_rows_give_equal_files(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for name in ("a", "b"):
        shards.write(tmp_path / name, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_in_an_image_is_found(data: Path, rows: list[dict[str, Any]]) -> None:
    path = data / "mine/abc-00000.parquet"
    # The page's header and the footer may hold short images as statistics; the page's own copy comes in between.
    stored = b"".join(struct.pack("<I", len(r["image"]["bytes"])) + r["image"]["bytes"] for r in rows[:3])
    flip(path, path.read_bytes().index(stored) + 2000)
    with pytest.raises(StageError) as caught:
        list(shards.files(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged (")
    assert "dvc checkout data.dvc --force" in message and "move it away and ingest its source again" in message
    assert "\n" not in message


def test_no_flipped_byte_changes_an_image(data: Path, rows: list[dict[str, Any]]) -> None:
    path = data / "mine/abc-00000.parquet"
    whole = path.read_bytes()
    found = 0
    for position in [*range(60), *range(60, len(whole), 37)]:  # the start holds the header of the images' page
        flip(path, position)
        try:
            assert list(shards.files(path)) == [r["image"]["bytes"] for r in rows[:3]]
        except StageError:
            found += 1
        path.write_bytes(whole)
    assert found > 100  # a third of the file is the images


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1], ids=["nothing", "three bytes", "half", "all but a byte"])
def test_a_shard_that_is_cut_off_is_refused(data: Path, keep: float) -> None:
    path = data / "mine/abc-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(StageError, match=rf"^{path}: damaged \("):
        shards.manifest(shards.paths(data, ["mine"]))


def test_a_missing_column_is_named(data: Path) -> None:
    path = data / "mine/abc-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["phash", "origin"]), path)
    with pytest.raises(StageError) as caught:
        shards.manifest(shards.paths(data, ["mine"]))
    assert str(caught.value).startswith(f"{path}: column origin, phash is missing; a shard has {', '.join(COLUMNS)}")
    assert "ingest its source again" in str(caught.value)


def test_a_column_of_another_type_is_named(data: Path) -> None:
    path = data / "mine/abc-00001.parquet"
    table = pq.read_table(path)
    position = table.schema.get_field_index("width")
    pq.write_table(table.set_column(position, "width", table["width"].cast(pa.string())), path)
    with pytest.raises(StageError, match=rf"^{path}: column width is not of type int32"):
        shards.manifest(shards.paths(data, ["mine"]))


def test_paths_are_sorted_and_leave_the_rejected_files_out(data: Path, rows: list[dict[str, Any]]) -> None:
    (data / "a").mkdir()
    shards.write(data / "a/x-00000.parquet", rows)
    (data / "mine/rejected.parquet").touch()
    assert list(shards.paths(data, ["mine", "a"])) == ["a/x-00000", "mine/abc-00000", "mine/abc-00001"]


@pytest.mark.parametrize("prepared", ["nothing", "empty folder", "rejected files only"])
def test_a_source_without_shards_says_how_to_get_them(tmp_path: Path, prepared: str) -> None:
    if prepared != "nothing":
        (tmp_path / "mine").mkdir()
    if prepared == "rejected files only":
        (tmp_path / "mine/rejected.parquet").touch()
    with pytest.raises(StageError) as caught:
        shards.paths(tmp_path, ["mine"])
    assert str(caught.value) == f"{tmp_path / 'mine'}: no shard here; `trueframe ingest mine` brings the images in"


def test_rejected_files_of_a_source_without_any_are_an_empty_table(tmp_path: Path) -> None:
    found = shards.rejected(tmp_path, "mine")
    assert found.empty
    assert list(found.columns) == ["origin", "reason", "label", "sha256", "bytes"]


def test_a_damaged_file_of_rejected_files_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine/rejected.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(StageError, match=rf"^{path}: damaged"):
        shards.rejected(tmp_path, "mine")
