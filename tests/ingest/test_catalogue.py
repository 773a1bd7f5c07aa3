"""Each data set of the catalogue, from a small replica of its layout."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import shards
from components.ingest import Outcome, catalogue, ingest
from components.params import Ingest, Source
from components.stage import StageError

Files = dict[str, bytes]


@dataclass(frozen=True)
class Replica:
    """Paths of images, and what each of them is: label, generator, split."""

    images: dict[str, tuple[str, str | None, str | None]]
    left_out: tuple[str, ...] = ()  # images that don't come in
    others: Files = field(default_factory=dict)


def all_are(label: str, generator: str | None, *paths: str) -> Replica:
    return Replica(dict.fromkeys(paths, (label, generator, None)), others={"readme.txt": b"words"})


ART = "ai_art_classification"
REPLICAS = {
    "cifake": Replica(
        {
            "test/FAKE/0 (10).jpg": ("ai", "stable-diffusion-1.4", "test"),
            "test/REAL/0001 (10).jpg": ("real", None, "test"),
            "train/FAKE/1000 (2).jpg": ("ai", "stable-diffusion-1.4", "train"),
            "train/REAL/0000.jpg": ("real", None, "train"),
        }
    ),
    "art": Replica(
        {
            "AiArtData/AiArtData/a.jpg": ("ai", None, None),
            "RealArt/RealArt/b c.jpg": ("real", None, None),
            "RealArt/RealArt/d.JPG": ("real", None, None),
            "RealArt/RealArt/.amazonaws.com2Fpublic2F600x480.png": ("real", None, None),
        }
    ),
    "photos": Replica(
        {
            "midjourney/ai/0.jpg": ("ai", "midjourney", None),
            "flux/ai/more/1.jpg": ("ai", "flux", None),
            "unsplash/real/2.jpg": ("real", None, None),
        }
    ),
    "wild": Replica({"gpt-image-2/ai/0.jpg": ("ai", "gpt-image-2", None), "memes/real/1.jpg": ("real", None, None)}),
    "wild-crops": Replica({"sd3/ai/0.jpg": ("ai", "sd3", None), "documents/real/1.jpg": ("real", None, None)}),
    "ai-and-human-art": Replica(
        {
            f"{ART}/train/AI_GENERATED/0.jpg": ("ai", None, "train"),
            f"{ART}/train/AI_GENERATED/1.jpg": ("ai", None, "train"),
            f"{ART}/train/NON_AI_GENERATED/3.jpg": ("real", None, "train"),
        },
        left_out=(f"{ART}/test/5.jpg", f"{ART}/test/6.jpg"),
    ),
    "ai-vs-human": Replica(
        {
            "train_data/a6dc.jpg": ("ai", None, None),
            "train_data/041b.jpg": ("real", None, None),
            "train_data/615d.jpg": ("ai", None, None),
            "train_data/8542.jpg": ("real", None, None),
        },
        left_out=("test_data_v2/1a2d.jpg", "test_data_v2/ab59.jpg"),
        others={
            "train.csv": b",file_name,label\n"
            b"0,train_data/a6dc.jpg,1\n1,train_data/041b.jpg,0\n2,train_data/615d.jpg,1\n3,train_data/8542.jpg,0\n",
            "test.csv": b"id\ntest_data_v2/1a2d.jpg\ntest_data_v2/ab59.jpg\n",
        },
    ),
    "generated-artwork": Replica(
        {"FAKE/0.jpg": ("ai", "latent-diffusion", None), "REAL/1.jpg": ("real", None, None)},
    ),
    "famous-paintings": all_are("real", None, "davinci/1.jpg", "frida kahlo/2.jpg", "van gough/3.png"),
    "indian-paintings": all_are(
        "real", None, "gond painting/a.webp", "kerala mural/b.jpeg", "mandana art drawing/c.png"
    ),
    "art-styles": all_are("real", None, "Anime/1.jpg", "Comic/2.jpg", "Semi Realism/3.jpg"),
    "anime-chibi": all_are("real", None, "images/1.png", "images/2.png"),
    "dalle-march-2023": all_are("ai", "dalle-2", "DALL·E 2023-03-01 a fox.png", "DALL·E 2023-03-02 an owl.png"),
    "dalle-robots": all_are("ai", "dalle", "robots/DALL·E a robot as Monet.png"),
    "midjourney-prompts": Replica(
        dict.fromkeys(("images/1.png", "images/2.png"), ("ai", "midjourney", None)),
        others={"prompts.csv": b"file,prompt\n1.png,a real photograph\n"},
    ),
    "abstract-diffusion": all_are("ai", "diffusion", "generated/0.png", "generated/1.png"),
    "cartoon-cats-and-dogs": Replica(
        {
            "train/cat/1.png": ("ai", "midjourney", "train"),
            "train/dog/2.png": ("ai", "midjourney", "train"),
            "test/dog/3.png": ("ai", "midjourney", "test"),
        }
    ),
}
"""By name; Community Forensics, which comes in Parquet files, has its own tests."""


def take_in(folder: Path, name: str, place: Path, **source: Any) -> Outcome:
    section = Ingest.model_validate({"sources": {name: {}}})
    said = Source.model_validate({"from": str(place), **source})
    return ingest(name, said, section, folder / "data", folder / "receipts")


def rows_of(folder: Path, name: str) -> pd.DataFrame:
    return shards.manifest(shards.paths(folder / "data", [name])).set_index("origin")


def files_of(replica: Replica, jpeg: Callable[..., bytes]) -> Files:
    names = [*replica.images, *replica.left_out]
    return {name: jpeg(seed, (24, 20)) for seed, name in enumerate(names)} | replica.others


def pack(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_every_data_set_is_tried_here() -> None:
    known = set(catalogue.load())
    assert known == {*REPLICAS, "sample", "community-forensics", "community-forensics-small"}


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("name", REPLICAS)
def test_a_data_set_s_layout_is_understood(
    tmp_path: Path,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    name: str,
    kind: str,
) -> None:
    replica = REPLICAS[name]
    files = files_of(replica, jpeg)
    place = write_files(tmp_path / "3", files) if kind == "folder" else pack(tmp_path / "archive.zip", files)
    outcome = take_in(tmp_path, name, place)
    assert outcome == Outcome(added=len(replica.images))
    assert sum(outcome.left_out.values()) == len(replica.left_out) + len(replica.others)
    assert outcome.left_out.get("no image", 0) == len(replica.others)
    rows = rows_of(tmp_path, name)
    found = rows[["label", "generator", "split"]].astype(object)
    found = found.where(found.notna(), None)
    assert {path: tuple(said) for path, said in zip(found.index, found.to_numpy(), strict=True)} == replica.images


def test_twins_of_ai_vs_human_are_pairs(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    place = write_files(tmp_path / "3", files_of(REPLICAS["ai-vs-human"], jpeg))
    take_in(tmp_path, "ai-vs-human", place)
    pairs = shards.about(tmp_path / "data", "ai-vs-human").groupby("pair")["origin"].agg(set).tolist()
    assert sorted(map(sorted, pairs)) == [
        ["train_data/041b.jpg", "train_data/a6dc.jpg"],
        ["train_data/615d.jpg", "train_data/8542.jpg"],
    ]


def test_rows_of_one_label_are_no_pair(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    files = files_of(REPLICAS["ai-vs-human"], jpeg)
    files["train.csv"] = files["train.csv"].replace(b"8542.jpg,0", b"8542.jpg,1")
    take_in(tmp_path, "ai-vs-human", write_files(tmp_path / "3", files))
    pairs = shards.about(tmp_path / "data", "ai-vs-human")
    assert sorted(pairs["origin"]) == ["train_data/041b.jpg", "train_data/a6dc.jpg"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "train.csv isn't in it, which says what its images are"),
        ((b"label\n", b"class\n"), "train.csv, line 2 lacks file_name or label"),
        ((b"615d.jpg,1", b"615d.jpg,2"), "train.csv, line 4: label is '2', not 1, 0"),
    ],
)
def test_a_table_that_does_not_say_it_is_named(
    tmp_path: Path,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    change: tuple[bytes, bytes] | None,
    reason: str,
) -> None:
    files = files_of(REPLICAS["ai-vs-human"], jpeg)
    table = files.pop("train.csv")
    if change:
        files["train.csv"] = table.replace(*change)
    place = write_files(tmp_path / "3", files)
    with pytest.raises(StageError) as caught:
        take_in(tmp_path, "ai-vs-human", place)
    assert str(caught.value).startswith(f"{place}: {reason}")
    assert not (tmp_path / "data/ai-vs-human").exists()


def test_an_unlabelled_folder_that_has_labels_after_all_comes_in(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    files = {f"{ART}/test/AI_GENERATED/0.jpg": jpeg(0), f"{ART}/test/NON_AI_GENERATED/1.jpg": jpeg(1)}
    take_in(tmp_path, "ai-and-human-art", write_files(tmp_path / "3", files))
    rows = rows_of(tmp_path, "ai-and-human-art")
    assert rows["label"].tolist() == ["ai", "real"]
    assert rows["split"].tolist() == ["test", "test"]


def test_images_without_a_label_elsewhere_are_an_error(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    place = write_files(tmp_path / "3", {f"{ART}/more/0.jpg": jpeg(0)})
    with pytest.raises(StageError, match=rf"unknown label folder: {ART}/more \(1 files\)"):
        take_in(tmp_path, "ai-and-human-art", place)


def parquet(jpeg: Callable[..., bytes], seed: int, rows: list[tuple[int, str, str]]) -> bytes:
    """Columns and types as Community Forensics has them; a row is label, model and split."""
    table = pa.Table.from_pylist(
        [
            {
                "image_name": f"{n:08d}.png",
                "format": "PNG",
                "resolution": [24, 20],
                "mode": "RGB",
                "image_data": jpeg(100 * seed + n, (24, 20)),
                "model_name": model,
                "nsfw_flag": False,
                "prompt": "a fox",
                "real_source": "LAION",
                "subset": "Systematic",
                "split": split,
                "label": label,
                "architecture": "LatDiff" if label else "real",
            }
            for n, (label, model, split) in enumerate(rows)
        ]
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def test_community_forensics_small_is_understood(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    files = {
        "data/HFCF_small_0.parquet": parquet(jpeg, 0, [(1, "a/b", "train"), (1, "a/c", "test")]),
        "data/HFCF_small_117.parquet": parquet(jpeg, 1, [(0, "coco", "train"), (0, "ffhq", "train")]),
        "README.md": b"# About",
    }
    place = write_files(tmp_path / "small", files)
    assert take_in(tmp_path, "community-forensics-small", place) == Outcome(added=4)
    rows = rows_of(tmp_path, "community-forensics-small").sort_index()
    assert rows.index.tolist() == [
        "data/HFCF_small_0.parquet/0/00000000.png",
        "data/HFCF_small_0.parquet/1/00000001.png",
        "data/HFCF_small_117.parquet/0/00000000.png",
        "data/HFCF_small_117.parquet/1/00000001.png",
    ]
    assert rows["label"].tolist() == ["ai", "ai", "real", "real"]
    assert rows["generator"].fillna("none").tolist() == ["a/b", "a/c", "none", "none"]
    assert rows["split"].tolist() == ["train", "test", "train", "train"]


def test_the_evaluation_set_of_community_forensics_stays_for_tests(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    files = {
        "data/systematic/0.parquet": parquet(jpeg, 0, [(1, "a/b", "train")]),
        "data/manual/0.parquet": parquet(jpeg, 1, [(1, "a/c", "train")]),
        "data/commercial/0.parquet": parquet(jpeg, 2, [(1, "midjourney", "train")]),
        "data/publicEval/0.parquet": parquet(jpeg, 3, [(1, "a/d", "eval"), (0, "coco", "eval")]),
    }
    take_in(tmp_path, "community-forensics", write_files(tmp_path / "all", files))
    rows = rows_of(tmp_path, "community-forensics").reset_index()
    rows["set"] = rows["origin"].str.split("/").str[1]
    said = rows[["set", "label", "generator", "split"]].fillna("none").to_numpy().tolist()
    assert sorted(said) == [
        ["commercial", "ai", "midjourney", "none"],
        ["manual", "ai", "a/c", "none"],
        ["publicEval", "ai", "a/d", "test"],
        ["publicEval", "real", "none", "test"],
        ["systematic", "ai", "a/b", "none"],
    ]
    entry = catalogue.load()["community-forensics"]
    assert {Path(pattern).parent.name for pattern in entry.files} == {Path(path).parent.name for path in files}


def test_where_a_data_set_lives_and_on_what_terms() -> None:
    known = catalogue.load()
    assert (
        known["ai-vs-human"].homepage
        == "https://www.kaggle.com/datasets/alessandrasala79/ai-vs-human-generated-dataset"
    )
    assert known["community-forensics"].homepage == "https://huggingface.co/datasets/OwensLab/CommunityForensics"
    for name, entry in known.items():
        assert entry.title, name
        assert entry.location or name in ("photos", "wild", "wild-crops"), name
        assert not (entry.label == "real" and entry.generator), name
