"""Each data set of the catalogue, from a small replica of its layout."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
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
    "genimage": Replica(
        {
            "Midjourney/train/ai/0_midjourney_1.png": ("ai", "Midjourney", "train"),
            "Midjourney/train/nature/n01440764_1.JPEG": ("real", None, "train"),
            "Midjourney/val/ai/0_midjourney_2.png": ("ai", "Midjourney", "validation"),
            "Midjourney/val/nature/ILSVRC2012_val_00000293.JPEG": ("real", None, "validation"),
            "Stable Diffusion V1.4/train/ai/000_sdv4_00000.png": ("ai", "Stable Diffusion V1.4", "train"),
            "Stable Diffusion V1.5/val/nature/ILSVRC2012_val_00000294.JPEG": ("real", None, "validation"),
        }
    ),
    "chameleon": Replica({"0_real/0a.jpg": ("real", None, "test"), "1_fake/0b.jpg": ("ai", None, "test")}),
    "synthbuster": Replica(
        {
            "synthbuster/dalle2/r000da54ft.png": ("ai", None, "test"),
            "synthbuster/firefly/r000da54ft.png": ("ai", None, "test"),
        },
        others={"synthbuster/prompts.csv": b"image name,Prompt\nr000da54ft,a real photograph\n"},
    ),
    "diffusiondb": Replica(
        dict.fromkeys(
            ("images/part-000001/3bfcd9cf.png", "images/part-000002/5f47c66c.png"), ("ai", "stable-diffusion", None)
        ),
        others={"images/part-000001/part-000001.json": b'{"3bfcd9cf.png": {"p": "a real photograph"}}'},
    ),
    "journeydb": Replica(
        {
            "data/train/imgs/000/0a.jpg": ("ai", "midjourney", "train"),
            "data/valid/imgs/001/0b.jpg": ("ai", "midjourney", "validation"),
            "data/test/imgs/002/0c.jpg": ("ai", "midjourney", "test"),
        }
    ),
    "danbooru2020": all_are("real", None, "512px/0000/1000.jpg", "512px/0999/2999.jpg"),
    "rvl-cdip": Replica(
        dict.fromkeys(("images/a/train/1-2.tif", "images/b/test/3-4.tif"), ("real", None, None)),
        others={"labels/train.txt": b"a/train/1-2.tif 3\n"},
    ),
}
"""By name; those whose images come in Parquet files follow."""


@dataclass(frozen=True)
class Tables:
    """Parquet files by path: their rows, without the image, and what each of them is: label, generator, split."""

    rows: dict[str, list[tuple[dict[str, Any], tuple[str, str | None, str | None]]]]
    image: str = "image"


def of_openfake(label: str, model: str) -> dict[str, Any]:
    return {"prompt": "a fox", "label": label, "model": model, "type": "base", "release_date": "2025-05-01"}


def of_screen(file: str, **more: Any) -> dict[str, Any]:
    return {"file_name": file} | more


def of_form(number: int) -> dict[str, Any]:
    return {"id": str(number), "words": ["TO:"], "bboxes": [[1, 2, 3, 4]], "ner_tags": [3]}


OPENFAKE = Tables(
    {
        "core/train-00000-of-00002.parquet": [
            (of_openfake("fake", "flux.1-dev"), ("ai", "flux.1-dev", "train")),
            (of_openfake("real", "real"), ("real", None, "train")),
        ],
        "core/validation-00000-of-00001.parquet": [
            (of_openfake("fake", "gpt-image-1"), ("ai", "gpt-image-1", "validation"))
        ],
        "core/test-00000-of-00001.parquet": [(of_openfake("real", "real"), ("real", None, "test"))],
        "reddit/test-00000-of-00005.parquet": [(of_openfake("fake", "unknown"), ("ai", "unknown", "test"))],
    }
)
TABLES = {
    "openfake": OPENFAKE,
    "openfake-tiny": OPENFAKE,
    "wikiart": Tables(
        {
            "data/train-00000-of-00072.parquet": [({"artist": 22, "genre": 4, "style": 21}, ("real", None, "train"))],
            "data/train-00001-of-00072.parquet": [({"artist": 1, "genre": 0, "style": 1}, ("real", None, "train"))],
        }
    ),
    "screenspot": Tables(
        {
            "data/test-00000-of-00003.parquet": [
                (
                    of_screen("mobile_1.png", bbox=[0.1, 0.2, 0.3, 0.4], instruction="view", data_type="icon"),
                    ("real", None, "test"),
                ),
                (
                    of_screen("pc_2.png", bbox=[0.1, 0.2, 0.3, 0.4], instruction="close", data_type="text"),
                    ("real", None, "test"),
                ),
            ]
        }
    ),
    "rico-screens": Tables(
        {
            f"data/{name}-00000-of-00001.parquet": [
                (of_screen("54137.jpg", screenId=54137, captions=["a page"]), ("real", None, split))
            ]
            for name, split in (("train", "train"), ("val", "validation"), ("test", "test"))
        }
    ),
    "funsd": Tables(
        {
            "data/train-00000-of-00001.parquet": [(of_form(0), ("real", None, "train"))],
            "data/test-00000-of-00001.parquet": [(of_form(0), ("real", None, "test"))],
        }
    ),
}
"""By name; Community Forensics has its own tests below, and those that come in archives in `test_huggingface.py`."""


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
    assert known == {*REPLICAS, *TABLES, "dragon", "sample", "community-forensics", "community-forensics-small"}


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


@pytest.mark.parametrize("name", TABLES)
def test_a_data_set_s_tables_are_understood(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], name: str
) -> None:
    tables, files, wanted, seed = TABLES[name], {"README.md": b"# About"}, {}, 0
    for path, rows in tables.rows.items():
        table = []
        for number, (row, said) in enumerate(rows):
            called = row.get("file_name") or row.get("id") or "a.jpg"
            wanted[f"{path}/{number}/{called}"] = said
            table.append({tables.image: {"bytes": jpeg(seed, (24, 20)), "path": "a.jpg"}} | row)
            seed += 1
        files[path] = written(table)
    assert all(any(fnmatch(path, p) for p in catalogue.load()[name].files) for path in tables.rows)
    assert take_in(tmp_path, name, write_files(tmp_path / "3", files)) == Outcome(added=len(wanted))
    found = rows_of(tmp_path, name)[["label", "generator", "split"]].astype(object)
    found = found.where(found.notna(), None)
    assert {path: tuple(said) for path, said in zip(found.index, found.to_numpy(), strict=True)} == wanted


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


def written(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def parquet(jpeg: Callable[..., bytes], seed: int, rows: list[tuple[int, str, str]]) -> bytes:
    """Columns and types as Community Forensics has them; a row is label, model and split."""
    return written(
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
    assert known["genimage"].homepage == "https://genimage-dataset.github.io"
    for name, entry in known.items():
        assert entry.title, name
        assert entry.location or entry.page or name in ("photos", "wild", "wild-crops"), name
        assert not (entry.label == "real" and entry.generator), name


def test_what_a_person_has_to_get_says_where(tmp_path: Path) -> None:
    section = Ingest.model_validate({"sources": {"genimage": {}}})
    with pytest.raises(StageError) as caught:
        ingest("genimage", Source(), section, tmp_path / "data", tmp_path / "receipts")
    assert str(caught.value).endswith(
        "source 'genimage' is not here; get it at https://genimage-dataset.github.io, then "
        "`trueframe ingest genimage --from PATH` brings it in"
    )


@pytest.mark.parametrize(("name", "inside"), [("chameleon", "1_fake"), ("synthbuster", "dalle2")])
def test_what_judges_detectors_stays_for_tests_whatever_part_of_it_is_given(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], name: str, inside: str
) -> None:
    take_in(tmp_path, name, write_files(tmp_path / inside, {"a.jpg": jpeg(0)}))
    assert rows_of(tmp_path, name)[["label", "split"]].to_numpy().tolist() == [["ai", "test"]]
