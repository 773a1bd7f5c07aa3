"""Folders and archives with every oddity in them: right labels or an error, and word of every file."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components import shards
from components.ingest import Outcome, ingest, summarised
from components.params import Ingest, Source
from components.stage import StageError

Files = dict[bytes, bytes]
ROOT = Path(__file__).parents[2]
KINDS = ("folder", "zip", "tar")


@pytest.fixture
def take_in(tmp_path: Path) -> Callable[..., Outcome]:
    def run(where: Any, name: str = "mine", **said: Any) -> Outcome:
        source = Source.model_validate({"from": str(where), **said})
        section = Ingest.model_validate({"sources": {name: {}}})
        return ingest(name, source, section, tmp_path / "data", tmp_path / "receipts")

    return run


def rows_of(folder: Path, name: str = "mine") -> pd.DataFrame:
    return shards.manifest(shards.paths(folder / "data", [name])).set_index("origin")


def written(kind: str, path: Path, files: Files) -> Path:
    """Files whose names are bytes, as a folder or an archive."""
    if kind == "folder":
        for name, data in files.items():
            target = path / os.fsdecode(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return path
    if kind == "tar":
        with tarfile.open(path.with_suffix(".tar"), "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(os.fsdecode(name))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path.with_suffix(".tar")
    path.with_suffix(".zip").write_bytes(plain_names(files))
    return path.with_suffix(".zip")


class Named(zipfile.ZipInfo):
    """A zip's member whose name is these bytes."""

    def __init__(self, name: bytes, flags: int) -> None:
        super().__init__(name.decode("latin-1"))
        self.raw, self.flags = name, flags

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.raw, self.flags


def plain_names(files: Files, flags: int = 0) -> bytes:
    """A zip whose names are these bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(Named(name, flags), data)
    return out.getvalue()


@pytest.fixture
def odd(jpeg: Callable[..., bytes], picture: Callable[..., Any], encode: Callable[..., bytes]) -> Files:
    return {
        # Labels: subjects of both classes, another case, GenImage's words.
        b"set/ai/nature/0.jpg": jpeg(0),
        b"set/ai/human/1.jpg": jpeg(1),
        b"set/ai/photo/real_people/2.jpg": jpeg(2),
        b"set/REAL/nature/3.jpg": jpeg(3),
        b"genimage/train/ai/4.jpg": jpeg(4),
        b"genimage/train/nature/5.jpg": jpeg(5),
        # Images by their first bytes.
        b"set/ai/without-a-suffix": jpeg(6),
        b"set/REAL/7.jpg_large": jpeg(7),
        b"set/REAL/8.mpo": encode(picture(8), "MPO", save_all=True, append_images=[picture(9)]),
        b"set/REAL/raw.dng": encode(picture(10), "TIFF", tiffinfo={50706: bytes((1, 4, 0, 0))}),
        b"set/REAL/new.jxl": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
        b"set/REAL/cut.jpg": jpeg(11)[:600],
        b"set/REAL/empty.png": b"",
        # None of the collection.
        b"set/ai/@eaDir/0.jpg/SYNOPHOTO_THUMB_XL.jpg": jpeg(12),
        b"set/ai/.trashed-1700000000-x.jpg": jpeg(13),
        b"set/ai/.pending-1700000000-x.jpg": jpeg(14),
        b"set/ai/.hidden": jpeg(15),
        b"__MACOSX/set/ai/._0.jpg": jpeg(16),
        b".Trashes/501/ai/x.jpg": jpeg(17),
        b"set/ai/Thumbs.db": b"\xd0\xcf\x11\xe0",
        b"set/ai/0.jpg~": jpeg(18),
        # No images.
        b"readme.txt": b"words",
        b"labels.csv": b"file,label\n",
        b"set/nothing": b"",
        b"set/film.mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(40),
        b"set/inner.zip": plain_names({b"ai/x.jpg": jpeg(19)}),
        # Names.
        b"set/ai/caf\xe9.jpg": jpeg(20),
        b"set/ai/caf\xc3\xa9.jpg": jpeg(21),
        b"set/REAL/" + b"x" * 251 + b".jpg": jpeg(22),
    }


ADDED = {
    "set/ai/nature/0.jpg": "ai",
    "set/ai/human/1.jpg": "ai",
    "set/ai/photo/real_people/2.jpg": "ai",
    "set/REAL/nature/3.jpg": "real",
    "genimage/train/ai/4.jpg": "ai",
    "genimage/train/nature/5.jpg": "real",
    "set/ai/without-a-suffix": "ai",
    "set/REAL/7.jpg_large": "real",
    "set/REAL/8.mpo": "real",
    "set/ai/caf\\xe9.jpg": "ai",
    "set/ai/café.jpg": "ai",
    f"set/REAL/{'x' * 251}.jpg": "real",
}
REJECTED = {
    "set/REAL/raw.dng": "camera raw, a format that isn't read here",
    "set/REAL/new.jxl": "JPEG XL, a format that isn't read here",
    "set/REAL/cut.jpg": "damaged",
    "set/REAL/empty.png": "empty file",
}
LEFT_OUT = {
    "hidden": 4,
    "no image": 4,
    "of the system": 3,
    "archive inside": 1,
    "backup or half a download": 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_oddity_at_once(tmp_path: Path, odd: Files, take_in: Callable[..., Outcome], kind: str) -> None:
    where = written(kind, tmp_path / "photo", odd)
    outcome = take_in(where)
    rows = rows_of(tmp_path)
    # A zip's names say nothing of their encoding; what isn't UTF-8 is DOS's.
    added = {name.replace("\\xe9", "Θ") if kind == "zip" else name: label for name, label in ADDED.items()}
    assert rows["label"].to_dict() == added
    rejected = shards.rejected(tmp_path / "data", "mine").set_index("origin")["reason"].to_dict()
    assert rejected.keys() == REJECTED.keys()
    assert all(rejected[name].startswith(reason) for name, reason in REJECTED.items())
    assert outcome == Outcome(added=12, rejected=4) and outcome.left_out == LEFT_OUT
    assert 12 + 4 + sum(LEFT_OUT.values()) == len(odd)
    counted = "13 left out (4 hidden, 4 no image, 3 of the system, 1 archive inside, 1 backup or half a download)"
    assert summarised("mine", outcome) == f"mine: 12 images added, 0 already here, 4 rejected, {counted}"
    receipt = json.loads((tmp_path / "receipts/mine.json").read_text())
    assert receipt["counts"] == {"added": 12, "known": 0, "rejected": 4, "left_out": LEFT_OUT}
    assert take_in(where).unchanged
    (tmp_path / "receipts/mine.json").unlink()
    again = take_in(where)
    assert again == Outcome(known=12) and again.left_out == LEFT_OUT | {"rejected before": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_both_labels_on_one_path(
    tmp_path: Path, odd: Files, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome], kind: str
) -> None:
    where = written(kind, tmp_path / "photo", odd | {b"set/ai/real/x.jpg": jpeg(50)})
    with pytest.raises(
        StageError, match=r"set/ai/real \(1 files: 'ai' says ai, 'real' says real\).*`labels: \{ai/real"
    ):
        take_in(where)
    assert not (tmp_path / "data/mine").exists()
    assert take_in(where, labels={"ai/real": "ai"}).added == 13
    assert rows_of(tmp_path).loc["set/ai/real/x.jpg", "label"] == "ai"


def test_links_of_a_folder(tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]) -> None:
    written("folder", tmp_path / "disk", {b"coco/0.jpg": jpeg(0), b"coco/1": jpeg(1), b"coco/.hidden": jpeg(2)})
    root = written("folder", tmp_path / "mine", {b"ai/2.jpg": jpeg(3)})
    (root / "real").symlink_to(tmp_path / "disk/coco")
    (root / "real_too").symlink_to(tmp_path / "disk/coco")
    (root / "ai/round").symlink_to("..")
    (root / "ai/gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "ai/pipe.jpg")
    outcome = take_in(root)
    assert rows_of(tmp_path)["label"].to_dict() == {"ai/2.jpg": "ai", "real/0.jpg": "real", "real/1": "real"}
    assert outcome.left_out == {"link seen before": 2, "hidden": 1, "broken link": 1, "no file": 1}
    assert take_in(root).unchanged
    (tmp_path / "disk/coco/new.jpg").write_bytes(jpeg(4))
    assert take_in(root) == Outcome(added=1, known=3)


def test_one_folder_under_both_labels(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    written("folder", tmp_path / "disk", {b"0.jpg": jpeg(0)})
    root = tmp_path / "mine"
    root.mkdir()
    for label in ("ai", "real"):
        (root / label).symlink_to(tmp_path / "disk")
    with pytest.raises(StageError, match="both labels are said of the same files: 'real' is a link to what 'ai/' is"):
        take_in(root)


def test_a_zip_made_on_windows(tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]) -> None:
    files = {b"set\\": b"", b"set\\ai\\0.jpg": jpeg(0), b"set\\train\\real\\1.jpg": jpeg(1), b"set\\.x\\2.jpg": jpeg(2)}
    outcome = take_in(written("zip", tmp_path / "set", files))
    rows = rows_of(tmp_path)
    assert rows["label"].to_dict() == {"set/ai/0.jpg": "ai", "set/train/real/1.jpg": "real"}
    assert rows["split"].fillna("none").tolist() == ["none", "train"]
    assert outcome.left_out == {"hidden": 1}


def test_a_table_in_a_zip_made_on_windows(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    table = ",file_name,label\n0,train_data/fotografía.jpg,1\n1,train_data/caf\u00e9.jpg,0\n".encode("latin-1")
    files = {
        b"set\\train.csv": table,
        b"set\\train_data\\fotograf\xeda.jpg": jpeg(0),
        "set\\train_data\\cafe\u0301.jpg".encode(): jpeg(1),
        b"set\\train_data\\other.jpg": jpeg(2),
    }
    outcome = take_in(written("tar", tmp_path / "set", files), "ai-vs-human")
    assert rows_of(tmp_path, "ai-vs-human")["label"].to_dict() == {"set/train_data/fotograf\\xeda.jpg": "ai"}
    table = table.decode("latin-1").encode()
    outcome = take_in(written("tar", tmp_path / "two", files | {b"set\\train.csv": table}), "ai-vs-human")
    assert outcome == Outcome(added=1) and outcome.left_out == {"not in train.csv": 2, "no image": 1}
    assert rows_of(tmp_path, "ai-vs-human")["label"].tolist().count("real") == 1


def test_names_of_zips_that_are_utf_8_and_do_not_say_so(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    files = {"ai/日本.jpg".encode(): jpeg(0), "fotografías/1.jpg".encode(): jpeg(1)}
    take_in(written("zip", tmp_path / "set", files), labels={"fotografías": "real"})
    assert rows_of(tmp_path)["label"].to_dict() == {"ai/日本.jpg": "ai", "fotografías/1.jpg": "real"}


def test_names_of_zips_that_say_that_they_are_utf_8_and_are_not(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    (tmp_path / "a.zip").write_bytes(plain_names({b"ai/caf\xe9.jpg": jpeg(0)}, flags=0x800))
    with pytest.raises(
        StageError, match=r"a\.zip: a name in it says that it is UTF-8, and isn't; unpack it and ingest"
    ):
        take_in(tmp_path / "a.zip")


def test_a_folder_of_parquet_files(tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1), b""], "label": ["ai", "real", "ai"]}), table)
    data = table.getvalue()
    files = {
        b"data/train-0.PARQUET": data,
        b"data/._train-0.parquet": b"fork",
        b".cache/x.parquet": data,
        b"README.md": b"# About",
        b"ai/loose.jpg": jpeg(2),
        b"data/caf\xe9.parquet": data,
    }
    root = written("folder", tmp_path / "set", files)
    outcome = take_in(root, columns={})
    assert outcome == Outcome(added=4, rejected=2)
    assert outcome.left_out == {"hidden": 2, "no Parquet file": 2}
    assert {origin.rsplit("/", 2)[0] for origin in rows_of(tmp_path).index} == {
        "data/train-0.PARQUET",
        "data/caf\\xe9.parquet",
    }
    outcome = take_in(root, "images")
    assert outcome == Outcome(added=1) and outcome.left_out == {"Parquet file": 2, "hidden": 2, "no image": 1}


def test_a_source_with_nothing_in_it_says_what_was_left_out(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    root = written("folder", tmp_path / "set", {b"ai/.a.jpg": jpeg(0), b"ai/a.txt": b"words", b"ai/b.zip": b"PK"})
    with pytest.raises(
        StageError, match=r"no images in it \(\.avif.*\); 3 left out \(1 archive inside, 1 hidden, 1 no"
    ):
        take_in(root)


def test_limits_and_what_was_forgotten_are_counted(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    files = {b"ai/%d.jpg" % n: jpeg(n) for n in range(4)} | {b"real/%d.jpg" % n: jpeg(9 + n) for n in range(3)}
    root = written("folder", tmp_path / "set", files)
    outcome = take_in(root, max_images=4)
    assert outcome == Outcome(added=4)
    assert outcome.left_out == {"above the limit": 3} and outcome.is_cut
    assert summarised("mine", outcome).endswith("(3 above the limit); the limits were reached before all was read")


PARAMS: dict[str, Any] = {
    "ingest": {"sources": {"mine": {"from": "set"}}},
    "validate": {},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "evaluate": {},
}


def test_names_that_the_terminal_can_not_show(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    files = {b"ai/caf\xe9.jpg": jpeg(0)[:500], "ai/日本.jpg".encode(): jpeg(0)[:500], b"ai/a.jpg": jpeg(1)}
    written("folder", tmp_path / "set", files)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    call = [sys.executable, "-m", "components.ingest"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\xe9.jpg: damaged" in done.stdout and b"1 images added, 0 already here, 2 rejected" in done.stdout


def test_a_path_that_the_settings_could_not_name(
    tmp_path: Path, jpeg: Callable[..., bytes], take_in: Callable[..., Outcome]
) -> None:
    root = written("folder", tmp_path / os.fsdecode(b"caf\xe9"), {b"ai/0.jpg": jpeg(0), b"real/1.jpg": jpeg(1)})
    with pytest.raises(StageError, match=r"caf\\xe9: this path isn't UTF-8.*; rename it, or give a link to it"):
        take_in(root)
    (tmp_path / "cafe").symlink_to(root)
    assert take_in(tmp_path / "cafe") == Outcome(added=2)
