"""Parquet tables of images under whatever column names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest import rows
from components.ingest.catalogue import Entry
from components.ingest.source import Item, Place
from components.params import Columns, Ingest, Source
from components.stage import StageError

Read = Callable[..., list[Item]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write rows to a file and read them back as images."""

    def run(
        table: list[dict[str, Any]] | pa.Table,
        columns: dict[str, Any] | None = None,
        name: str = "data/0.parquet",
        **entry: Any,
    ) -> list[Item]:
        table = table if isinstance(table, pa.Table) else pa.Table.from_pylist(table)
        path = tmp_path / "rows.parquet"
        pq.write_table(table, path)
        return list(rows.items(path, name, place(tmp_path, columns, **entry)))

    return run


def place(folder: Path, columns: dict[str, Any] | None = None, **entry: Any) -> Place:
    known = Entry(columns=Columns.model_validate(columns) if columns else None, **entry)
    settings = Ingest.model_validate({"sources": {"mine": {}}, "max_file_mb": 1})
    return Place("mine", "folder", known, Source(), settings, folder / "downloads")


def refused(read: Read, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(StageError) as caught:
        read(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_where_all_are_the_same_no_column_needs_to_say_it(read: Read) -> None:
    items = read([{"image": b"x"}, {"image": b"y"}], label="ai", generator="flux")
    assert [(item.label, item.generator) for item in items] == [("ai", "flux")] * 2


def test_images_are_bytes_or_a_struct_of_them(read: Read) -> None:
    files = pa.array([b"one", b"two"])
    labels = pa.array(["real", "real"])
    struct = pa.array([{"bytes": b"one", "path": "a.jpg"}, {"bytes": b"two", "path": None}])
    for column in (files, files.cast(pa.large_binary()), files.cast(pa.binary_view()), struct):
        items = read(pa.table({"image": column, "label": labels}))
        assert [item.data for item in items] == [b"one", b"two"]
    assert [item.origin for item in items] == ["data/0.parquet/0/a.jpg", "data/0.parquet/1/image"]


def test_columns_of_other_names_are_understood(read: Read) -> None:
    table = [
        {"file": b"x", "kind": "fake", "called": "a.png", "model": "flux", "part": "eval", "twin": 7, "terms": "CC0"},
        {"file": b"y", "kind": "real", "called": None, "model": "coco", "part": "train", "twin": None, "terms": ""},
    ]
    columns = {
        "image": "file",
        "label": "kind",
        "name": "called",
        "generator": "model",
        "split": "part",
        "splits": {"eval": "test"},
        "pair": "twin",
        "licence": "terms",
    }
    assert read(table, columns) == [
        Item(b"x", "data/0.parquet/0/a.png", "ai", "flux", "test", "7", licence="CC0"),
        Item(b"y", "data/0.parquet/1/image", "real", None, "train"),
    ]


def test_what_is_large_or_empty_is_left_to_be_rejected(read: Read) -> None:
    table = [{"image": bytes(2**20 + 1), "label": "real"}, {"image": None, "label": "real"}]
    assert [item.data for item in read(table)] == [None, b""]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00009.parquet", "train"),
        ("data/Validation-00000.parquet", "validation"),
        ("val.parquet", "validation"),
        ("default/test/0000.parquet", "test"),
        ("train/test-0.parquet", "test"),
        ("data/training.parquet", None),
        ("data/latest.parquet", None),
        ("data/publicEval/0.parquet", "test"),
        ("data/publiceval_3.parquet", "test"),
    ],
)
def test_a_split_may_stand_in_the_file_s_name(read: Read, name: str, split: str | None) -> None:
    (item,) = read([{"image": b"x", "label": "real"}], {"splits": {"publicEval": "test"}}, name)
    assert item.split == split


def test_a_column_that_is_missing_is_named_with_those_there(read: Read) -> None:
    message = refused(read, [{"img": b"x", "label": "real"}])
    assert message.startswith("data/0.parquet: no column image; it has img, label. Say which is which under `columns`")


@pytest.mark.parametrize(("image", "kind"), [("a.jpg", "str"), (7, "int"), ([1, 2], "list")])
def test_a_column_that_holds_no_images_is_named(read: Read, image: Any, kind: str) -> None:
    message = refused(read, [{"image": image, "label": "real"}])
    assert message.startswith(f"data/0.parquet: column image holds {kind}, no image files; name the right one")


@pytest.mark.parametrize("damage", ["cut", "words", "flipped"])
def test_a_damaged_file_is_named(tmp_path: Path, jpeg: Callable[..., bytes], damage: str) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([{"image": jpeg(seed), "label": "real"} for seed in range(50)])
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[:2000] = bytes(2000)
    path.write_bytes({"cut": content[:-100], "words": b"PAR1 words", "flipped": content}[damage])
    with pytest.raises(StageError) as caught:
        list(rows.items(path, "data/0.parquet", place(tmp_path)))
    assert str(caught.value).startswith(f"{path}: damaged (")
    assert str(caught.value).endswith("; put a whole copy there and run the same command again")


def test_a_file_that_is_not_there_stays_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(rows.items(tmp_path / "none.parquet", "none", place(tmp_path)))


def test_a_few_rows_are_in_memory_at_a_time(tmp_path: Path) -> None:
    """One row group of 64 MiB, as large data sets have them, in pages of a few rows."""
    path = tmp_path / "rows.parquet"
    block = bytes(range(256)) * 2048
    images = (n.to_bytes(4, "big") + block for n in range(128))
    table = pa.Table.from_pylist([{"image": image, "label": "real"} for image in images])
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=4, data_page_size=2**20)
    del table
    before = pa.total_allocated_bytes()
    most = 0
    for item in rows.items(path, "data/0.parquet", place(tmp_path)):
        most = max(most, pa.total_allocated_bytes() - before)
        assert item.data is not None
    assert most < 56 * 2**20
