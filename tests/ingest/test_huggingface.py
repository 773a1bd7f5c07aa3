"""Data sets of Hugging Face, from a server that speaks the hub's protocol."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlparse

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components import shards

ROOT = Path(__file__).parents[2]
SMALL = "OwensLab/CommunityForensics-Small"
SETTINGS: dict[str, Any] = {
    "ingest": {"sources": {"sample": {}}},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "validate": {},
    "evaluate": {},
}


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a list of commits, the newest last; a commit is files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.cut: dict[str, list[int]] = {}  # where the connection drops, one number a request
        self.failing = False
        self.log: list[str] = []
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def sha(files: dict[str, bytes]) -> str:
        return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()

    def commit(self, name: str, revision: str) -> dict[str, bytes] | None:
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1]
        return next((files for files in commits if self.sha(files) == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.log.append(f"{self.command} {self.path}")
        url = urlparse(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if self.server.failing:
            return self.refuse(503, "", "try later")
        if parts[:2] == ["api", "datasets"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
        elif parts[0] == "datasets":
            name, rest = "/".join(parts[1:3]), parts[3:]
        else:
            return self.refuse(404, "", "no such page")
        if name not in self.server.repositories:
            # As the hub says it to those who gave no token.
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        files = self.server.commit(name, rest[1] if rest else "main")
        if files is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if not rest or rest[0] == "revision":
            return self.reply({"id": name, "sha": self.server.sha(files), "tags": [], "siblings": []})
        if rest[0] == "tree":
            return self.tree(name, rest[1], files, int(parse_qs(url.query).get("cursor", ["0"])[0]))
        token = self.headers.get("Authorization")
        if name in self.server.gated and token != "Bearer hf_accepted":
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this dataset is restricted")
        return self.file("/".join(rest[2:]), files, rest[1])

    def tree(self, name: str, revision: str, files: dict[str, bytes], start: int) -> None:
        folders = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
        entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        for path, data in files.items():
            oid = hashlib.sha1(data).hexdigest()
            large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append({"type": "file", "path": path, "oid": oid, "size": len(data), "lfs": large})
        following = f"{self.server.url}/api/datasets/{name}/tree/{revision}?recursive=True&cursor={start + 3}"
        link = {"Link": f'<{following}>; rel="next"'} if start + 3 < len(entries) else {}
        self.reply(entries[start : start + 3], link)

    def file(self, path: str, files: dict[str, bytes], revision: str) -> None:
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = files[path]
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.downloads.append(path)
        cuts = self.server.cut.get(path)
        until = cuts.pop(0) if cuts else len(data)
        self.wfile.write(data[start:until])
        if until < len(data):
            self.wfile.flush()
            self.close_connection = True

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.reply({"error": message}, headers, status)

    def reply(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, hub: Hub) -> Run:
    """The command, told that the hub is the test's own."""

    def call(*arguments: str, source: dict[str, Any] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        ingest = {"sources": {"mine": source}} if source else SETTINGS["ingest"]
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({**SETTINGS, "ingest": ingest}))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        return subprocess.run(
            [sys.executable, "-m", "components.ingest", *arguments, "--params", "params.yaml"],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return file.getvalue()


@pytest.fixture(scope="session")
def small(jpeg: Callable[..., bytes]) -> dict[str, bytes]:
    """A repository laid out like Community Forensics (small): files of one label each, sorted by generator."""

    def file(number: int) -> bytes:
        label = int(number < 2)
        return parquet(
            [
                {
                    "image_name": f"{row:08d}.jpg",
                    "format": "JPEG",
                    "resolution": [24, 20],
                    "mode": "RGB",
                    "image_data": jpeg(10 * number + row, (24, 20)),
                    "model_name": f"someone/model-{number}-{row // 2}" if label else "coco",
                    "nsfw_flag": False,
                    "prompt": "",
                    "real_source": "COCO",
                    "subset": "Systematic",
                    "split": "train",
                    "label": label,
                    "architecture": "LatDiff" if label else "real",
                }
                for row in range(4)
            ]
        )

    return {"README.md": b"# About", **{f"data/HFCF_small_{n}.parquet": file(n) for n in range(4)}}


def rows_of(folder: Path, name: str) -> pd.DataFrame:
    return shards.manifest(shards.paths(folder / "data", [name])).sort_values("origin", ignore_index=True)


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "data").rglob("*.parquet")) if (folder / "data").exists() else []


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr: the client's warnings and progress stand before it."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_a_data_set_is_read_file_by_file(tmp_path: Path, hub: Hub, run: Run, small: dict[str, bytes]) -> None:
    hub.repositories[SMALL] = [small]
    done = run("community-forensics-small")
    assert done.returncode == 0, done.stderr
    last = "community-forensics-small: 16 images added, 0 already here, 0 rejected, 1 left out (1 no Parquet file)"
    assert done.stdout.splitlines()[-1] == last
    rows = rows_of(tmp_path, "community-forensics-small")
    assert rows["label"].tolist() == ["ai"] * 8 + ["real"] * 8
    assert rows["generator"].fillna("none").tolist() == [
        *(f"someone/model-{file}-{pair}" for file in (0, 1) for pair in (0, 0, 1, 1)),
        *["none"] * 8,
    ]
    assert rows["split"].unique().tolist() == ["train"]
    assert rows["origin"][5] == "data/HFCF_small_1.parquet/1/00000001.jpg"
    # Every file once and by the commit, and nothing of it stays.
    assert sorted(hub.downloads) == sorted(path for path in small if path.endswith(".parquet"))
    assert all(hub.sha(small) in line for line in hub.log if "/resolve/" in line or "/tree/" in line)
    assert not (tmp_path / "data/.incoming").exists()
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_what_was_published_is_not_asked_for_again(hub: Hub, run: Run, small: dict[str, bytes]) -> None:
    hub.repositories[SMALL] = [small]
    assert run("community-forensics-small").returncode == 0
    hub.log.clear()
    assert run("community-forensics-small").stdout == "community-forensics-small: nothing new\n"
    assert hub.log == []


def test_limits_read_no_more_files_than_they_need_in_a_mixed_order(
    tmp_path: Path, hub: Hub, run: Run, small: dict[str, bytes]
) -> None:
    hub.repositories[SMALL] = [small]
    done = run("community-forensics-small", "--max-images", "4", "--per-generator", "1")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, "community-forensics-small")
    assert rows["label"].value_counts().to_dict() == {"ai": 2, "real": 2}
    assert rows["generator"].dropna().is_unique
    names = sorted(
        (path for path in small if path.endswith(".parquet")), key=lambda p: hashlib.sha256(p.encode()).hexdigest()
    )
    assert hub.downloads == names[: len(hub.downloads)] and len(hub.downloads) < len(names)
    assert names != sorted(names)


def test_a_connection_that_drops_keeps_what_was_read(
    tmp_path: Path, hub: Hub, run: Run, small: dict[str, bytes]
) -> None:
    hub.repositories[SMALL] = [small]
    second = "data/HFCF_small_1.parquet"
    hub.cut = {second: [len(small[second]) // 2] * 20}
    message = the_error(run("community-forensics-small"))
    assert message.startswith(f"error: hf://{SMALL}: {hub.url} can't be reached or broke off (")
    assert message.endswith("what was read is kept. Run the same command again")
    assert not (tmp_path / "data/community-forensics-small").exists()
    assert hub.downloads.count("data/HFCF_small_0.parquet") == 1

    hub.cut, hub.downloads = {}, []
    done = run("community-forensics-small")
    assert done.stdout.splitlines()[-1].endswith(
        "16 images added, 0 already here, 0 rejected, 1 left out (1 no Parquet file)"
    )
    assert hub.downloads == [second, "data/HFCF_small_2.parquet", "data/HFCF_small_3.parquet"]
    assert len(rows_of(tmp_path, "community-forensics-small")) == 16


def test_a_connection_that_drops_once_goes_on(hub: Hub, run: Run, small: dict[str, bytes]) -> None:
    hub.repositories[SMALL] = [small]
    path = "data/HFCF_small_1.parquet"
    hub.cut = {path: [1000]}
    done = run("community-forensics-small")
    assert done.returncode == 0, done.stderr
    assert hub.downloads.count(path) == 2


@pytest.mark.parametrize(("token", "status"), [("", 401), ("hf_other", 403)])
def test_a_gated_data_set_says_where_to_accept_the_terms(
    tmp_path: Path, hub: Hub, run: Run, small: dict[str, bytes], token: str, status: int
) -> None:
    hub.repositories[SMALL], hub.gated = [small], {SMALL}
    message = the_error(run("community-forensics-small", **({"HF_TOKEN": token} if token else {})))
    assert f"its publisher asks for consent ({status}): accept the terms at {hub.url}/datasets/{SMALL} and" in message
    assert "set HF_TOKEN to a token of that account" in message
    assert left_behind(tmp_path) == []
    done = run("community-forensics-small", HF_TOKEN="hf_accepted")
    assert done.returncode == 0, done.stderr


def test_what_is_not_there_is_named(hub: Hub, run: Run, small: dict[str, bytes]) -> None:
    hub.repositories["me/pets"] = [small]
    message = the_error(run("mine", "--from", "hf://me/cats"))
    assert f"hf://me/cats: no such data set, or a private one (401): check the name at {hub.url}/datasets/me/cats" in (
        message
    )
    message = the_error(run("mine", "--from", "hf://me/pets@v9"))
    assert f"hf://me/pets@v9: it has no revision v9; see {hub.url}/datasets/me/pets" in message
    message = the_error(run("mine", "--from", "hf://pets"))
    assert "hf://pets: not a data set of Hugging Face; write hf://OWNER/NAME" in message
    hub.repositories["me/words"] = [{"README.md": b"# Words"}]
    assert "no Parquet file, archive or image in it (*.parquet)" in the_error(run("mine", "--from", "hf://me/words"))


def test_a_hub_that_does_not_answer_is_one_line(hub: Hub, run: Run, small: dict[str, bytes]) -> None:
    hub.repositories[SMALL] = [small]
    hub.failing = True
    message = the_error(run("community-forensics-small"))
    assert message.endswith(f"{hub.url} answers 503; what was read is kept. Run the same command again")
    message = the_error(run("community-forensics-small", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 can't be reached or broke off (" in message
    message = the_error(run("community-forensics-small", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE forbids asking the hub; unset it, or download it by hand" in message
    assert "`trueframe ingest community-forensics-small --from PATH`" in message


PETS = pa.schema(
    [("picture", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("kind", pa.int64())],
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "picture": {"_type": "Image"},
                        "kind": {"_type": "ClassLabel", "names": ["synthetic", "drawn"]},
                    }
                }
            }
        )
    },
)


def pets(jpeg: Callable[..., bytes], seeds: range) -> bytes:
    """Class 0 is the generated one, which numbers alone would have the other way round."""
    return parquet(
        [{"picture": {"bytes": jpeg(seed, (24, 20)), "path": f"{seed}.jpg"}, "kind": seed % 2} for seed in seeds], PETS
    )


COLUMNS = {"image": "picture", "label": "kind", "values": {"drawn": "real"}}


def test_class_names_in_the_file_say_what_the_numbers_mean(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes]
) -> None:
    files = {
        "data/train-00000-of-00001.parquet": pets(jpeg, range(4)),
        "data/test-00000-of-00001.parquet": pets(jpeg, range(4, 6)),
    }
    hub.repositories["me/pets"] = [files]
    source = {"from": "hf://me/pets", "columns": COLUMNS, "generator": "flux"}
    message = the_error(run(source={**source, "columns": {"image": "picture", "label": "kind"}}))
    assert (
        "data/test-00000-of-00001.parquet: column kind holds 0 ('synthetic'), 1 ('drawn'), and nothing says" in message
    )
    assert "whether 1 is ai or real" in message
    done = run(source=source)
    assert done.stdout.splitlines()[-1] == "mine: 6 images added, 0 already here, 0 rejected"
    rows = rows_of(tmp_path, "mine")
    assert rows["origin"][0] == "data/test-00000-of-00001.parquet/0/4.jpg"
    assert rows["label"].tolist() == ["ai", "real"] * 3
    assert rows["generator"].fillna("none").tolist() == ["flux", "none"] * 3
    assert rows["split"].tolist() == ["test"] * 2 + ["train"] * 4


def numbers(jpeg: Callable[..., bytes], seeds: range) -> bytes:
    """Labels without names of classes."""
    return parquet([{"image": jpeg(seed, (24, 20)), "label": seed % 2} for seed in seeds])


CARD = b"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': fake
          '1': real
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# Numbers
"""


def test_class_names_in_the_card_say_what_the_numbers_mean(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes], write_files: Callable[..., Path]
) -> None:
    files = {f"data/train-{n}.parquet": numbers(jpeg, range(4 * n, 4 * n + 4)) for n in range(2)}
    hub.repositories["me/numbers"] = [{**files, "README.md": CARD}]
    done = run("mine", "--from", "hf://me/numbers")
    others = "1 left out (1 no Parquet file)"
    assert done.stdout.splitlines()[-1] == f"mine: 8 images added, 0 already here, 0 rejected, {others}", done.stderr
    assert rows_of(tmp_path, "mine")["label"].tolist() == ["ai", "real"] * 4
    # A copy of the repository says the same.
    place = write_files(tmp_path / "copy", {**files, "README.md": CARD})
    done = run(source={"from": str(place), "columns": {}})
    assert done.stdout.splitlines()[-1] == f"mine: 0 images added, 8 already here, 0 rejected, {others}", done.stderr


def test_numbers_that_nothing_explains_are_asked_for_and_the_answer_works(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes]
) -> None:
    files = {"data/train-0.parquet": numbers(jpeg, range(4)), "data/train-1.parquet": numbers(jpeg, range(4, 5))}
    hub.repositories["me/numbers"] = [{**files, "README.md": b"# Numbers"}]
    message = the_error(run("mine", "--from", "hf://me/numbers", "--max-images", "4"))
    assert "column label holds 0" in message and "and nothing says for sure whether 0" in message
    assert not (tmp_path / "data/mine").exists()
    answer = message.split("`")[-2]
    assert answer == "mine: {from: 'hf://me/numbers', max_images: 4, columns: {values: {0: ai, 1: real}}}"
    done = run(source=yaml.safe_load(answer)["mine"])
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, "mine")
    assert rows["label"].tolist() == [["ai", "real"][int(origin.split("/")[2]) % 2] for origin in rows["origin"]]


def test_a_file_without_any_label_is_left_out(tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes]) -> None:
    """Publishers of a challenge keep the labels of its test set to themselves."""
    hidden = parquet([{"image": jpeg(seed, (24, 20)), "label": -1} for seed in range(10, 13)])
    hub.repositories["me/numbers"] = [{"data/test-0.parquet": hidden, "data/train-0.parquet": numbers(jpeg, range(4))}]
    source = {"from": "hf://me/numbers", "columns": {"values": {0: "ai", 1: "real", -1: None}}}
    done = run(source=source)
    last = "mine: 4 images added, 0 already here, 0 rejected, 3 left out (3 no label)"
    assert done.stdout.splitlines()[-1] == last, done.stderr
    assert rows_of(tmp_path, "mine")["label"].tolist() == ["ai", "real"] * 2
    assert run(source=source).stdout == "mine: nothing new\n"


def test_of_a_repository_that_grows_only_what_is_new_is_fetched(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes]
) -> None:
    first = {"data/train-00000.parquet": pets(jpeg, range(4))}
    hub.repositories["me/pets"] = [first]
    source = {"from": "hf://me/pets", "columns": COLUMNS}
    assert run(source=source).returncode == 0
    assert run(source=source).stdout == "mine: nothing new\n"
    hub.repositories["me/pets"].append({**first, "data/train-00001.parquet": pets(jpeg, range(4, 6))})
    hub.downloads.clear()
    assert run(source=source).stdout.splitlines()[-1] == "mine: 2 images added, 0 already here, 0 rejected"
    assert hub.downloads == ["data/train-00001.parquet"]
    assert len(rows_of(tmp_path, "mine")) == 6
    # A commit that is named needs nobody to be asked whether it changed.
    pinned = {"from": f"hf://me/pets@{hub.sha(first)}", "columns": COLUMNS}
    assert run(source=pinned).returncode == 0
    hub.log.clear()
    assert run(source=pinned).stdout == "mine: nothing new\n"
    assert hub.log == []


def test_loose_images_and_archives_are_read_by_their_folders(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes]
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for n in range(2):
            archive.writestr(f"fake/{n}.jpg", jpeg(20 + n))
    hub.repositories["me/photos"] = [
        {
            "README.md": b"# Photos",
            "train/real/a.jpg": jpeg(0),
            "train/real/b.JPEG": jpeg(1),
            "test/fake/c.png": jpeg(2),
            "more/later.zip": packed.getvalue(),
            "notes.txt": b"words",
            "train/real/.a.jpg": jpeg(3),
        }
    ]
    done = run("mine", "--from", "hf://me/photos")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("0 rejected, 3 left out (2 not called an image, 1 hidden)")
    rows = rows_of(tmp_path, "mine").set_index("origin")
    assert rows["label"].to_dict() == {
        "more/later.zip/fake/0.jpg": "ai",
        "more/later.zip/fake/1.jpg": "ai",
        "test/fake/c.png": "ai",
        "train/real/a.jpg": "real",
        "train/real/b.JPEG": "real",
    }
    assert rows["split"].fillna("none").tolist() == ["none", "none", "test", "train", "train"]
    assert "README.md" not in hub.downloads and "notes.txt" not in hub.downloads


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def tarred(files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def a_replica(name: str, jpeg: Callable[..., bytes]) -> tuple[str, dict[str, bytes], dict[str, tuple[str, ...]]]:
    """A repository whose images come in archives, and what each of them is: label, generator, split."""
    if name == "diffusiondb":
        return (
            "poloclub/diffusiondb",
            {
                "metadata.parquet": parquet([{"image_name": "a.png", "prompt": "a fox"}]),
                "images/part-000001.zip": zipped({"a.png": jpeg(0), "part-000001.json": b"{}"}),
                "images/part-000002.zip": zipped({"b.png": jpeg(1), "part-000002.json": b"{}"}),
                "diffusiondb-large-part-1/part-000001.zip": zipped({"a.webp": jpeg(2)}),
            },
            {
                "images/part-000001.zip/a.png": ("ai", "stable-diffusion", "none"),
                "images/part-000002.zip/b.png": ("ai", "stable-diffusion", "none"),
            },
        )
    if name == "dragon":
        return (
            "lesc-unifi/dragon",
            {
                "train/dragon_train_000.tar": tarred({"0.png": jpeg(0), "0.json": b"{}"}),
                "train/xs/dragon_train_xs.tar": tarred({"0.png": jpeg(1)}),
                "test/dragon_test_00.tar": tarred({"0.png": jpeg(2)}),
            },
            {
                "train/dragon_train_000.tar/0.png": ("ai", "none", "train"),
                "test/dragon_test_00.tar/0.png": ("ai", "none", "test"),
            },
        )
    if name == "journeydb":
        return (
            "JourneyDB/JourneyDB",
            {
                "data/train/train_anno.jsonl.tgz": tarred({"train_anno.jsonl": b"{}"}, "w:gz"),
                "data/train/imgs/000.tgz": tarred({"000/a.jpg": jpeg(0)}, "w:gz"),
                "data/valid/imgs/000.tgz": tarred({"000/b.jpg": jpeg(1)}, "w:gz"),
            },
            {
                "data/train/imgs/000.tgz/000/a.jpg": ("ai", "midjourney", "train"),
                "data/valid/imgs/000.tgz/000/b.jpg": ("ai", "midjourney", "validation"),
            },
        )
    return (
        "aharley/rvl_cdip",
        {
            "data/train.txt": b"a/b/1.tif 3\n",
            "data/rvl-cdip.tar.gz": tarred({"images/a/b/1.tif": jpeg(0), "images/a/test/2.tif": jpeg(1)}, "w:gz"),
        },
        {
            "data/rvl-cdip.tar.gz/images/a/b/1.tif": ("real", "none", "none"),
            "data/rvl-cdip.tar.gz/images/a/test/2.tif": ("real", "none", "none"),
        },
    )


@pytest.mark.parametrize("name", ["diffusiondb", "dragon", "journeydb", "rvl-cdip"])
def test_a_data_set_s_archives_are_understood(
    tmp_path: Path, hub: Hub, run: Run, jpeg: Callable[..., bytes], name: str
) -> None:
    repository, files, wanted = a_replica(name, jpeg)
    hub.repositories[repository] = [{"README.md": b"# About"} | files]
    done = run(name)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, name).set_index("origin")[["label", "generator", "split"]].fillna("none")
    assert {path: tuple(said) for path, said in zip(rows.index, rows.to_numpy(), strict=True)} == wanted
    # What isn't wanted isn't fetched.
    assert all("large" not in path and "xs" not in path and ".parquet" not in path for path in hub.downloads)


def test_archives_that_the_catalogue_does_not_name_are_no_way_out(
    hub: Hub, run: Run, jpeg: Callable[..., bytes]
) -> None:
    hub.repositories["poloclub/diffusiondb"] = [{"moved/part-000001.zip": zipped({"a.png": jpeg(0)})}]
    message = the_error(run("diffusiondb"))
    assert "no Parquet file, archive or image in it (images/*.zip); see " in message
    assert hub.downloads == []
