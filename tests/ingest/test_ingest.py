"""Sources become shards: the same ones each time, all of them or none, and what can't be read is kept aside."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from components import shards
from components.ingest import Outcome, ingest, summary
from components.params import Ingest, Source
from components.stage import StageError

Files = dict[str, bytes]
ROOT = Path(__file__).parents[2]
ARCHIVES = ("zip", "tar", "tar.gz", "tar.xz", "tar.bz2")


@pytest.fixture(scope="session")
def cifake(jpeg: Callable[..., bytes]) -> Files:
    names = [
        f"{split}/{label}/{n:04d}.jpg" for split in ("test", "train") for label in ("FAKE", "REAL") for n in range(2)
    ]
    return {name: jpeg(seed, (32, 32)) for seed, name in enumerate(names)}


@pytest.fixture
def mine(jpeg: Callable[..., bytes]) -> Files:
    return {f"{label}/{n}.jpg": jpeg(n + 10 * (label == "ai")) for label in ("ai", "real") for n in range(3)}


@pytest.fixture
def take_in(tmp_path: Path) -> Callable[..., Outcome]:
    """Ingest a folder or an archive into `data/`."""

    def run(name: str, path: Path, *, data: str = "data", labels: dict[str, str] | None = None, **settings: Any) -> Any:
        section = Ingest.model_validate({"sources": {name: {}}, **settings})
        source = Source.model_validate({"from": str(path), "labels": labels or {}})
        return ingest(name, source, section, tmp_path / data, tmp_path / f"{data}-receipts")

    return run


def pack(path: Path, files: Files) -> Path:
    """Write files as the archive that the name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def add_member(path: Path, name: str, *, link: bool = False) -> None:
    """Put one more member into a zip or a tar: a file, or a link to one outside."""
    if path.suffix == ".zip":
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if link else 0o100644) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, "/etc/hostname")
        return
    member = tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(path, "a") as archive:
        archive.addfile(member)


def rows_of(data: Path, name: str) -> pd.DataFrame:
    return shards.manifest(shards.paths(data, [name]))


def stored(data: Path, name: str) -> list[bytes]:
    return [file for path in shards.paths(data, [name]).values() for file in shards.files(path)]


def contents(folder: Path) -> Files:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def refused(take_in: Callable[..., Outcome], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(StageError) as caught:
        take_in(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_a_folder_s_rows_say_what_its_layout_says(
    tmp_path: Path, cifake: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    outcome = take_in("cifake", write_files(tmp_path / "download", cifake))
    assert outcome == Outcome(added=8)
    rows = rows_of(tmp_path / "data", "cifake")
    assert rows["origin"].tolist() == list(cifake)  # the sorted order of a folder
    assert rows["label"].tolist() == ["ai", "ai", "real", "real"] * 2
    assert rows["split"].tolist() == ["test"] * 4 + ["train"] * 4
    assert rows["generator"].fillna("none").tolist() == (["stable-diffusion-1.4"] * 2 + ["none"] * 2) * 2
    assert rows["source"].unique().tolist() == ["cifake"]
    assert rows["sha256"].tolist() == [hashlib.sha256(data).hexdigest() for data in cifake.values()]
    assert rows["n_bytes"].tolist() == [len(data) for data in cifake.values()]
    for column, value in {"width": 32, "height": 32, "mode": "RGB", "format": "JPEG"}.items():
        assert rows[column].unique().tolist() == [value]
    assert rows["phash"].nunique() == 8
    assert stored(tmp_path / "data", "cifake") == list(cifake.values())


def test_the_columns_describe_the_file_as_it_was_stored(
    tmp_path: Path, picture: Callable[..., Any], encode: Callable[..., bytes], store: Callable[..., Path]
) -> None:
    exif = type(picture(0).getexif())()
    exif[0x0112] = 6
    data = store(
        {
            "ai/a.png": encode(picture(1, (20, 30)).convert("RGBA"), "PNG"),
            "ai/b.gif": encode(picture(2, (21, 31)), "GIF"),
            "real/c.webp": encode(picture(3, (22, 32)), "WEBP"),
            "real/d.jpg": encode(picture(4, (23, 33)), "JPEG", exif=exif),
            "real/e.tiff": encode(picture(5, (24, 34)).convert("L"), "TIFF"),
        }
    )
    rows = rows_of(data, "mine")
    assert rows["format"].tolist() == ["PNG", "GIF", "WEBP", "JPEG", "TIFF"]
    assert rows["mode"].tolist() == ["RGBA", "P", "RGB", "RGB", "L"]
    # A photograph that is stored on its side counts upright.
    assert rows["width"].tolist() == [20, 21, 22, 33, 24]
    assert rows["height"].tolist() == [30, 31, 32, 23, 34]
    assert rows["split"].isna().all() and rows["generator"].isna().all()


def test_files_whose_suffix_lies_are_known_by_their_bytes(
    jpeg: Callable[..., bytes], store: Callable[..., Path]
) -> None:
    assert rows_of(store({"ai/a.png": jpeg(0)}), "mine")["format"].tolist() == ["JPEG"]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_gives_the_rows_of_its_folder(
    tmp_path: Path, cifake: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome], kind: str
) -> None:
    take_in("cifake", write_files(tmp_path / "download", cifake))
    take_in("cifake", pack(tmp_path / f"download.{kind}", cifake), data="other")
    assert contents(tmp_path / "other/cifake") == contents(tmp_path / "data/cifake")


def test_the_catalogue_knows_the_layout_of_art(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    files = {"AiArtData/AiArtData/a.jpg": jpeg(0), "RealArt/RealArt/b c.jpg": jpeg(1), "RealArt/RealArt/d.JPG": jpeg(2)}
    take_in("art", pack(tmp_path / "archive.zip", files))
    rows = rows_of(tmp_path / "data", "art")
    assert rows["label"].tolist() == ["ai", "real", "real"]
    assert rows["origin"].tolist() == list(files)
    assert rows[["generator", "split"]].isna().all(axis=None)


PHOTOS = ("midjourney/ai/0.jpg", "midjourney/ai/more/1.jpg", "dalle2/ai/2.jpg", "unsplash/real/3.jpg")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_generator_is_the_folder_above_the_label(
    tmp_path: Path,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    take_in: Callable[..., Outcome],
    kind: str,
) -> None:
    files = {name: jpeg(seed) for seed, name in enumerate(PHOTOS)}
    path = write_files(tmp_path / "p", files) if kind == "folder" else pack(tmp_path / "p.zip", files)
    take_in("photos", path)
    rows = rows_of(tmp_path / "data", "photos").set_index("origin").loc[list(PHOTOS)]
    assert rows["generator"].fillna("none").tolist() == ["midjourney", "midjourney", "dalle2", "none"]


def test_a_folder_of_one_origin_names_the_generator_itself(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    take_in("photos", write_files(tmp_path / "midjourney", {"ai/0.jpg": jpeg(0), "real/1.jpg": jpeg(1)}))
    assert rows_of(tmp_path / "data", "photos")["generator"].fillna("none").tolist() == ["midjourney", "none"]


def test_hidden_files_and_other_files_are_left_out(jpeg: Callable[..., bytes], store: Callable[..., Path]) -> None:
    data = store(
        {
            "ai/a.jpg": jpeg(0),
            "ai/readme.txt": b"words",
            "ai/._a.jpg": b"resource fork",
            ".thumbnails/ai/a.jpg": jpeg(1),
            "__MACOSX/ai/a.jpg": jpeg(2),
        }
    )
    assert rows_of(data, "mine")["origin"].tolist() == ["ai/a.jpg"]
    assert shards.rejected(data, "mine").empty


def test_a_folder_that_is_itself_named_as_a_label(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    take_in("mine", write_files(tmp_path / "fake", {"a.jpg": jpeg(0)}))
    assert rows_of(tmp_path / "data", "mine")["label"].tolist() == ["ai"]


def test_the_params_say_what_a_folder_of_another_name_is(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    files = {"cats/a.jpg": jpeg(0), "drawn/dogs/b.jpg": jpeg(1)}
    folder = write_files(tmp_path / "pets", files)
    take_in("mine", folder, labels={"cats": "real", "drawn/dogs": "ai"})
    assert rows_of(tmp_path / "data", "mine")["label"].tolist() == ["real", "ai"]


def test_an_unknown_label_folder_is_named_with_the_way_out(
    tmp_path: Path,
    mine: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    take_in: Callable[..., Outcome],
) -> None:
    folder = write_files(tmp_path / "pets", mine | {"cats/a.jpg": jpeg(30), "cats/b.jpg": jpeg(31)})
    message = refused(take_in, "mine", folder)
    assert message.startswith(f"{folder}: unknown label folder: cats (2 files); nothing was ingested.")
    assert "ai, fake, generated" in message
    assert "Rename them, or say what they are under `labels` of the source in params.yaml" in message
    assert names_in(tmp_path / "data") == []


# Once, and the same each time


def test_ingesting_twice_adds_nothing(
    tmp_path: Path, mine: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    folder = write_files(tmp_path / "download", mine)
    assert take_in("mine", folder) == Outcome(added=6)
    before = contents(tmp_path / "data")
    assert take_in("mine", folder) == Outcome(unchanged=True)  # known without reading it
    shutil.rmtree(tmp_path / "data-receipts")
    assert take_in("mine", folder) == Outcome(known=6)
    assert take_in("mine", pack(tmp_path / "same.zip", mine)) == Outcome(known=6)
    assert contents(tmp_path / "data") == before


def test_a_removed_shard_is_ingested_again(
    tmp_path: Path, mine: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    folder = write_files(tmp_path / "download", mine)
    take_in("mine", folder, shard_images=4)
    first, second = sorted((tmp_path / "data/mine").iterdir())
    second.unlink()
    assert take_in("mine", folder, shard_images=4) == Outcome(added=2, known=4)
    assert sorted(stored(tmp_path / "data", "mine")) == sorted(mine.values())
    assert first.exists()


def test_two_ingestions_give_the_same_bytes(
    tmp_path: Path, mine: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    backwards = dict(reversed(mine.items()))
    take_in("mine", write_files(tmp_path / "a", mine), data="first", shard_images=4)
    take_in("mine", write_files(tmp_path / "b", backwards), data="second", shard_images=4)
    first = contents(tmp_path / "first")
    assert len(first) == 2  # six images, at most four in a shard
    assert contents(tmp_path / "second") == first


def test_many_images_are_read_by_several_processes_in_the_same_order(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    files = {f"{'ai' if n % 2 else 'real'}/{n:03d}.jpg": jpeg(n, (16, 16)) for n in range(800)}
    folder = write_files(tmp_path / "download", files)
    assert take_in("mine", folder, shard_images=300) == Outcome(added=800)
    assert rows_of(tmp_path / "data", "mine")["origin"].tolist() == sorted(files)
    assert [len(list(shards.files(p))) for p in shards.paths(tmp_path / "data", ["mine"]).values()] == [300, 300, 200]


def test_the_sample_makes_itself_and_only_once(tmp_path: Path) -> None:
    section = Ingest.model_validate({"sources": {"sample": {}}, "sample": {"n_images": 20, "size": 32, "seed": 3}})
    place = (tmp_path / "data", tmp_path / "receipts")
    assert ingest("sample", Source(), section, *place) == Outcome(added=20)
    assert ingest("sample", Source(), section, *place) == Outcome(unchanged=True)
    rows = rows_of(tmp_path / "data", "sample")
    assert rows["label"].value_counts().to_dict() == {"ai": 10, "real": 10}
    assert rows["generator"].notna().equals(rows["label"] == "ai")


def test_one_more_image_is_one_more_shard(
    tmp_path: Path,
    mine: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    take_in: Callable[..., Outcome],
) -> None:
    folder = write_files(tmp_path / "download", mine)
    take_in("mine", folder)
    (shard,) = (tmp_path / "data/mine").iterdir()
    before = shard.stat().st_mtime_ns, shard.read_bytes()
    write_files(folder, {"ai/new.jpg": jpeg(99)})
    assert take_in("mine", folder) == Outcome(added=1, known=6)
    assert (shard.stat().st_mtime_ns, shard.read_bytes()) == before
    (new,) = set((tmp_path / "data/mine").iterdir()) - {shard}
    assert list(shards.files(new)) == [jpeg(99)]


def test_copies_inside_a_data_set_are_kept(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    files = {"ai/a.jpg": jpeg(0), "ai/b.jpg": jpeg(0), "ai/c.jpg": jpeg(1), "real/a.jpg": jpeg(0)}
    folder = write_files(tmp_path / "download", files)
    assert take_in("mine", folder) == Outcome(added=4)
    shutil.rmtree(tmp_path / "data-receipts")
    assert take_in("mine", folder) == Outcome(known=4)
    write_files(folder, {"ai/d.jpg": jpeg(0)})
    assert take_in("mine", folder) == Outcome(added=1, known=4)
    assert stored(tmp_path / "data", "mine").count(jpeg(0)) == 4


def test_a_source_without_a_place_stays_what_it_is_or_says_where_to_get_it(
    tmp_path: Path, cifake: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    section = Ingest.model_validate({"sources": {"cifake": {}}})
    place = (tmp_path / "data", tmp_path / "receipts")
    with pytest.raises(StageError, match=r"https://www\.kaggle\.com/.*ingest cifake --from PATH"):
        ingest("cifake", Source(), section, *place)
    take_in("cifake", write_files(tmp_path / "download", cifake))
    assert ingest("cifake", Source(), section, *place) == Outcome(unchanged=True)


def test_the_summary_counts_every_source(
    tmp_path: Path, mine: Files, cifake: Files, take_in: Callable[..., Outcome]
) -> None:
    assert summary(tmp_path / "data").empty
    take_in("mine", pack(tmp_path / "mine.zip", {n: d for n, d in mine.items() if n != "ai/0.jpg"}))
    take_in("cifake", pack(tmp_path / "cifake.zip", cifake))
    assert summary(tmp_path / "data").to_dict("records") == [
        {"source": "cifake", "ai": 4, "real": 4},
        {"source": "mine", "ai": 2, "real": 3},
    ]


# What can't be read


@pytest.fixture
def bad(jpeg: Callable[..., bytes]) -> Files:
    return {"ai/cut.jpg": jpeg(40)[:900], "real/words.png": b"not a picture at all", "real/zero.gif": b""}


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
def test_unreadable_files_are_set_aside_with_the_reason(
    tmp_path: Path,
    mine: Files,
    bad: Files,
    write_files: Callable[..., Path],
    take_in: Callable[..., Outcome],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    files = mine | bad
    path = write_files(tmp_path / "d", files) if kind == "folder" else pack(tmp_path / f"d.{kind}", files)
    assert take_in("mine", path) == Outcome(added=6, rejected=3)
    rejected = shards.rejected(tmp_path / "data", "mine").set_index("origin")
    assert rejected["bytes"].to_dict() == bad
    assert rejected["label"].to_dict() == {"ai/cut.jpg": "ai", "real/words.png": "real", "real/zero.gif": "real"}
    reasons = rejected["reason"]
    assert reasons["ai/cut.jpg"].startswith("damaged: ") and "truncated" in reasons["ai/cut.jpg"]
    assert reasons["real/words.png"] == "not an image in a format that is read here"
    assert reasons["real/zero.gif"] == "empty file"
    printed = capsys.readouterr().out
    for name, reason in reasons.items():
        assert f"{name}: {reason}; moved to {tmp_path / 'data/mine/rejected.parquet'}\n" in printed
    assert sorted(stored(tmp_path / "data", "mine")) == sorted(mine.values())


def test_rejected_files_are_kept_once(
    tmp_path: Path,
    mine: Files,
    bad: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    take_in: Callable[..., Outcome],
) -> None:
    folder = write_files(tmp_path / "download", mine | bad)
    take_in("mine", folder)
    write_files(folder, {"ai/late.jpg": b"no picture either", "ai/new.jpg": jpeg(50)})
    assert take_in("mine", folder) == Outcome(added=1, known=6, rejected=1)
    assert sorted(shards.rejected(tmp_path / "data", "mine")["origin"]) == sorted([*bad, "ai/late.jpg"])


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_file_that_is_too_large_is_set_aside_without_being_read(
    tmp_path: Path, mine: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome], kind: str
) -> None:
    files = mine | {"ai/large.jpg": bytes(2**20 + 1)}
    path = write_files(tmp_path / "d", files) if kind == "folder" else pack(tmp_path / f"d.{kind}", files)
    assert take_in("mine", path, max_file_mb=1) == Outcome(added=6, rejected=1)
    row = shards.rejected(tmp_path / "data", "mine").iloc[0]
    assert (row["origin"], row["reason"], row["bytes"]) == ("ai/large.jpg", "larger than ingest.max_file_mb", None)


def test_a_source_of_unreadable_files_only_is_an_error(
    tmp_path: Path, bad: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    folder = write_files(tmp_path / "download", bad)
    for _ in range(2):  # and stays one
        message = refused(take_in, "mine", folder)
        assert message.startswith(f"{folder}: none of its images can be read")
        assert str(tmp_path / "data/mine/rejected.parquet") in message
    assert sorted(shards.rejected(tmp_path / "data", "mine")["origin"]) == sorted(bad)


# Nothing half-done


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../ai/evil.jpg", "ai/../../evil.jpg", "/tmp/ai/evil.jpg"])
def test_a_name_that_leaves_the_archive_is_refused(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome], kind: str, name: str
) -> None:
    path = pack(tmp_path / f"d.{kind}", mine)
    add_member(path, name)
    message = refused(take_in, "mine", path)
    assert message == f"{path}: {name!r} points outside the archive; refused, and nothing was ingested"
    assert names_in(tmp_path / "data") == []


@pytest.mark.parametrize("name", ["C:\\ai\\evil.jpg", "..\\ai\\evil.jpg"])
def test_a_windows_path_that_leaves_the_archive_is_refused(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome], name: str
) -> None:
    path = pack(tmp_path / "d.tar", mine)
    add_member(path, name)
    assert "points outside the archive; refused" in refused(take_in, "mine", path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_link_in_an_archive_is_refused(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome], kind: str
) -> None:
    path = pack(tmp_path / f"d.{kind}", mine)
    add_member(path, "ai/link.jpg", link=True)
    assert refused(take_in, "mine", path) == f"{path}: 'ai/link.jpg' is a link; refused, and nothing was ingested"
    assert names_in(tmp_path / "data") == []


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_an_archive_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome], kind: str, share: float
) -> None:
    path = pack(tmp_path / f"d.{kind}", mine)
    whole = path.read_bytes()
    # A plain tar is padded with zeros to 10 KiB; what may not miss are the files and one block of zeros.
    end = tarfile.BLOCKSIZE * sum(2 + len(data) // tarfile.BLOCKSIZE for data in mine.values())
    path.write_bytes(whole[: int((end if kind == "tar" else len(whole)) * share)])
    message = refused(take_in, "mine", path)
    assert message.startswith(f"{path}: damaged or cut off (")
    assert message.endswith("nothing was ingested. Download it again and repeat the command")
    assert names_in(tmp_path / "data") == []
    path.write_bytes(whole)
    assert take_in("mine", path) == Outcome(added=6)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_with_a_flipped_byte_is_refused(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome], kind: str
) -> None:
    path = pack(tmp_path / f"d.{kind}", mine)
    whole = path.read_bytes()
    for share in (0.2, 0.4, 0.6, 0.8):
        content = bytearray(whole)
        content[int(len(content) * share)] ^= 1
        path.write_bytes(content)
        assert refused(take_in, "mine", path).startswith(f"{path}: damaged or cut off (")
    assert names_in(tmp_path / "data") == []


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_is_none_is_refused(tmp_path: Path, take_in: Callable[..., Outcome], kind: str) -> None:
    path = tmp_path / f"d.{kind}"
    path.write_bytes(b"<html>Please log in to download this file.</html>" * 100)
    assert refused(take_in, "mine", path).startswith(f"{path}: damaged or cut off (")


def test_an_encrypted_zip_is_refused(tmp_path: Path, mine: Files, take_in: Callable[..., Outcome]) -> None:
    path = pack(tmp_path / "d.zip", mine)
    content = bytearray(path.read_bytes())
    # Bit 0 of the general purpose flags says so, in the central directory (offset 8) and at the file (offset 6).
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    content[content.rindex(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(content)
    assert refused(take_in, "mine", path) == f"{path}: encrypted; unpack it and ingest the folder"
    assert names_in(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "not found"), ("nowhere.zip", "not found"), ("words.txt", "neither a folder nor an archive")],
)
def test_a_path_that_can_not_be_read_is_refused(
    tmp_path: Path, take_in: Callable[..., Outcome], name: str, reason: str
) -> None:
    (tmp_path / "words.txt").write_text("words")
    message = refused(take_in, "mine", tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: {reason}")
    assert ".tar.gz" in message


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_source_without_images_is_refused(
    tmp_path: Path, write_files: Callable[..., Path], take_in: Callable[..., Outcome], kind: str
) -> None:
    files = {"ai/readme.txt": b"words"}
    path = write_files(tmp_path / "d", files) if kind == "folder" else pack(tmp_path / f"d.{kind}", files)
    message = refused(take_in, "mine", path)
    assert message.startswith(f"{path}: no images in it (.avif, .bmp, ")
    assert names_in(tmp_path / "data") == []


def test_a_failed_batch_changes_nothing_that_was_there(
    tmp_path: Path, mine: Files, bad: Files, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    take_in("mine", pack(tmp_path / "d.zip", mine | bad))
    before = contents(tmp_path / "data")
    path = pack(tmp_path / "e.tar", {f"ai/new{n}.jpg": jpeg(60 + n) for n in range(6)} | {"ai/also.png": b"bad"})
    path.write_bytes(path.read_bytes()[:6000])
    refused(take_in, "mine", path, shard_images=2)
    assert contents(tmp_path / "data") == before


def test_two_ingestions_of_a_source_at_once_are_refused(
    tmp_path: Path, mine: Files, take_in: Callable[..., Outcome]
) -> None:
    incoming = tmp_path / "data/.incoming/mine"
    incoming.mkdir(parents=True)
    path = pack(tmp_path / "d.zip", mine)
    with (incoming / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(take_in, "mine", path) == "mine: another ingestion of it is at work; wait for it"
    assert take_in("mine", path) == Outcome(added=6)
    assert names_in(tmp_path / "data") == ["mine"]


def test_what_a_killed_ingestion_of_other_images_left_is_no_part_of_the_next(
    tmp_path: Path, mine: Files, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    other = pack(tmp_path / "other.zip", {"ai/x.jpg": jpeg(90), "real/x.jpg": jpeg(91)})
    take_in("mine", other, data="elsewhere")
    part = tmp_path / "data/.incoming/mine/part-0123456789abcdef"
    shutil.copytree(tmp_path / "elsewhere/mine", part)
    (part / "done.json").write_text(json.dumps({"counts": {"added": 2}, "taken": {}, "known": []}))
    (part.parent / "plan.json").write_text(json.dumps({"seen": "something else"}))
    assert take_in("mine", pack(tmp_path / "d.zip", mine)) == Outcome(added=6)
    assert names_in(tmp_path / "data") == ["mine"]


def start(folder: Path, params: dict[str, Any]) -> subprocess.Popen[bytes]:
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return subprocess.Popen(
        [sys.executable, "-m", "components.ingest"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


SETTINGS: dict[str, Any] = {
    "ingest": {"sources": {"mine": {"from": "download"}}},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "validate": {},
    "evaluate": {},
}


def test_after_a_kill_the_next_ingestion_brings_the_complete_set(
    tmp_path: Path, jpeg: Callable[..., bytes], write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    files = {f"{'ai' if n % 2 else 'real'}/{n:03d}.jpg": jpeg(n, (16, 16)) for n in range(250)}
    folder = write_files(tmp_path / "download", files)
    # A shard an image: writing 250 of them leaves the time to kill it in between.
    process = start(tmp_path, {**SETTINGS, "ingest": {**SETTINGS["ingest"], "shard_images": 1}})
    with process:
        while len(list(tmp_path.glob("data/.incoming/mine/part-*/*.parquet"))) < 3:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert names_in(tmp_path / "data") == [".incoming"]
    assert take_in("mine", folder) == Outcome(added=250)
    assert names_in(tmp_path / "data") == ["mine"]
    assert rows_of(tmp_path / "data", "mine")["origin"].tolist() == sorted(files)


def test_after_a_kill_between_two_shards_the_next_ingestion_brings_the_rest(
    tmp_path: Path, mine: Files, write_files: Callable[..., Path], take_in: Callable[..., Outcome]
) -> None:
    folder = write_files(tmp_path / "download", mine)
    take_in("mine", folder, data="whole", shard_images=2)
    first, *_ = sorted((tmp_path / "whole/mine").iterdir())
    (tmp_path / "data/mine").mkdir(parents=True)
    shutil.copy(first, tmp_path / "data/mine")
    assert take_in("mine", folder, shard_images=2) == Outcome(added=4, known=2)
    assert sorted(stored(tmp_path / "data", "mine")) == sorted(mine.values())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 300 KiB."""
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"mounting a small disk isn't allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path,
    tiny_disk: Path,
    mine: Files,
    jpeg: Callable[..., bytes],
    write_files: Callable[..., Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    write_files(tmp_path / "download", mine)
    assert command("ingest", params=SETTINGS).returncode == 0
    before = contents(tiny_disk / "mine")
    assert len(before) == 1
    # Pictures of 29 KB, three to a shard: the first shards fit, the last ones don't.
    write_files(tmp_path / "download", {f"ai/big{n}.jpg": jpeg(70 + n, (400, 400)) for n in range(15)})
    done = command("ingest", params={**SETTINGS, "ingest": {**SETTINGS["ingest"], "shard_images": 3}})
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "disk full; nothing half-written was kept. Free some space and run the same command again" in done.stderr
    assert contents(tiny_disk / "mine") == before
    assert names_in(tiny_disk / "mine") == [*before]


# The command


def test_the_command_ingests_what_the_settings_name(
    tmp_path: Path,
    mine: Files,
    bad: Files,
    write_files: Callable[..., Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    write_files(tmp_path / "download", mine | bad)
    done = command("ingest", params=SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "mine: 6 images added, 0 already here, 3 rejected"
    assert (tmp_path / "artifacts/ingest/mine.json").exists()
    assert command("ingest", "mine", params=SETTINGS).stdout == "mine: nothing new\n"


def test_the_command_takes_a_source_from_elsewhere(
    tmp_path: Path, mine: Files, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    pack(tmp_path / "other.zip", mine)
    done = command("ingest", "art", "--from", "other.zip", params=SETTINGS)
    assert done.returncode == 1
    assert done.stderr.startswith("error: other.zip: unknown label folder: ")
    done = command("ingest", "others", "--from", "other.zip", "--data", "d", "--receipts", "r", params=SETTINGS)
    assert done.stdout == "others: 6 images added, 0 already here, 0 rejected\n"
    assert len(rows_of(tmp_path / "d", "others")) == 6
