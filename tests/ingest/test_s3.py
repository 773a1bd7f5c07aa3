"""Buckets as sources, on a real S3 server: only what is new is read, and no fault leaves half of it behind."""

import base64
import hashlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3
import yaml

from components import shards
from components.ingest import Outcome, ingest
from components.ingest import s3 as source
from components.params import Ingest, Source
from components.stage import StageError

Files = dict[str, bytes]
Whole = tuple[str, Files]
ROOT = Path(__file__).parents[2]
ARCHIVE, TABLE, IMAGE = "all/archive.zip", "all/test.parquet", "all/photos/ai/0.jpg"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Store]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as served:
        yield served


_numbers = itertools.count()


@pytest.fixture
def bucket(store: s3.Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and this process's settings for the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(_numbers)}"
    store.put(name, {})
    return name


def zipped(files: Files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture(scope="module")
def everything(jpeg: Callable[..., bytes], encode: Callable[..., bytes], picture: Callable[..., Any]) -> Files:
    """Loose images, an archive and a Parquet file; the last two are large enough to break off in the middle."""
    loose = {
        f"all/photos/{label}/{n}.jpg": jpeg(n + 10 * (label == "ai")) for label in ("ai", "real") for n in range(3)
    }
    large = {f"train/{label}/{n}.png": encode(picture(20 + 2 * n + (label == "FAKE"), (400, 400)), "PNG")
             for label in ("FAKE", "REAL") for n in range(3)}  # fmt: skip
    images = [{"bytes": encode(picture(40 + n, (400, 400)), "PNG"), "path": f"{n}.png"} for n in range(4)]
    table = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": ["ai", "real", "ai", "real"]}), table, compression="none")
    return {**loose, ARCHIVE: zipped(large), TABLE: table.getvalue(), "all/README.md": b"words"}


class Here:
    """Where a test ingests to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    def run(self, where: str, **said: Any) -> Outcome:
        wanted = Source.model_validate({"from": where, **said})
        return ingest("mine", wanted, Ingest.model_validate(PARAMS["ingest"]), self.root / "data", self.root / "seen")

    def command(self, where: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "--from", where],
            cwd=self.root,
            env={**env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def shards(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.root / "data/mine").glob("*")}

    @property
    def rows(self) -> pd.DataFrame:
        return shards.manifest(shards.paths(self.root / "data", ["mine"])).set_index("origin")


PARAMS: dict[str, Any] = {
    "ingest": {"sources": {"mine": {}}},
    "validate": {},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "evaluate": {},
}
COMMAND = [sys.executable, "-m", "components.ingest", "mine", "--params", "params.yaml", "--receipts", "seen"]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path / "here")


def refused(done: subprocess.CompletedProcess[str], here: Here) -> str:
    """The one line of a command that failed and left nothing in the data."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: s3://"), done.stderr
    assert here.shards == {}
    return lines[0]


def test_images_an_archive_and_a_table_in_one_prefix(
    store: s3.Store, bucket: str, everything: Files, here: Here
) -> None:
    store.put(bucket, everything)
    where = f"s3://{bucket}/all"
    with store.reads() as read:
        assert here.run(where) == Outcome(added=16)
    assert read == sorted(key for key in everything if not key.endswith(".md"))
    rows = here.rows
    assert rows.loc[f"s3://{bucket}/{IMAGE}", "label"] == "ai"
    inside = rows.loc[f"s3://{bucket}/{ARCHIVE}/train/REAL/1.png"]
    assert (inside["label"], inside["split"]) == ("real", "train")
    row = rows.loc[f"s3://{bucket}/{TABLE}/2/2.png"]
    assert (row["label"], row["split"]) == ("ai", "test")
    assert rows["label"].value_counts().to_dict() == {"ai": 8, "real": 8}
    assert not (here.root / "data/.incoming").exists()

    with store.reads() as read:
        assert here.run(where).unchanged
    assert read == []
    before = here.shards

    store.put(bucket, {"all/photos/real/new.jpg": everything[IMAGE] + b"\0"})
    with store.reads() as read:
        assert here.run(where) == Outcome(added=1)
    assert read == ["all/photos/real/new.jpg"]
    assert before.items() < here.shards.items()

    # An object of another content is another image.
    store.put(bucket, {"all/photos/real/new.jpg": everything[IMAGE] + b"\1"})
    with store.reads() as read:
        assert here.run(where) == Outcome(added=1)
    assert read == ["all/photos/real/new.jpg"]


def test_what_is_left_out_is_counted_and_labels_are_those_of_a_folder(
    store: s3.Store, bucket: str, here: Here, jpeg: Callable[..., bytes]
) -> None:
    first = {"set/train/ai/0.jpg": jpeg(0), "set/train/nature/1.jpg": jpeg(1)}
    others = ("set/ai/.a.jpg", "set/@eaDir/b.jpg", "set/._c.parquet", "set/notes.txt", "set/train/ai/picture")
    store.put(bucket, first | dict.fromkeys(others, jpeg(2)))
    where = f"s3://{bucket}/set"
    outcome = here.run(where)
    assert outcome == Outcome(added=2)
    assert outcome.left_out == {"hidden": 2, "not called an image": 2, "of the system": 1}
    # What says that these are photographs was read before.
    store.put(bucket, {"set/train/nature/2.jpg": jpeg(3)})
    assert here.run(where) == Outcome(added=1)
    assert here.rows["label"].value_counts().to_dict() == {"real": 2, "ai": 1}
    store.put(bucket, {"set/train/ai/real/3.jpg": jpeg(4)})
    with pytest.raises(StageError, match=r"train/ai/real \(1 files: 'ai' says ai, 'real' says real\); nothing was ing"):
        here.run(where)


@pytest.fixture(scope="module")
def undisturbed(store: s3.Store, everything: Files, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A bucket, and the shards that it becomes where nothing goes wrong."""
    store.put("whole", everything)
    where = "s3://whole/all"
    here = Here(tmp_path_factory.mktemp("undisturbed"))
    done = here.command(where, store.environment())
    assert done.returncode == 0, done.stderr
    return where, here.shards


@pytest.fixture
def local(bucket: str, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket for this process, which doesn't wait before it asks again."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return undisturbed[0]


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("error", r"whole\?$", "InternalError"),
        ("error", ARCHIVE, "InternalError"),
        ("refuse", r"whole\?$", "s3:ListBucket"),
        ("refuse", TABLE, "s3:GetObject"),
        ("drop", ARCHIVE, "broke off"),
        ("drop", TABLE, "broke off"),
        ("drop", IMAGE, "broke off"),
        ("corrupt", ARCHIVE, "damaged on the way"),
    ],
)
def test_no_fault_leaves_half_of_it(
    store: s3.Store,
    local: str,
    undisturbed: Whole,
    here: Here,
    kind: s3.Kind,
    path: str,
    said: str,
) -> None:
    where, whole = undisturbed
    with store.failing(kind, path):
        line = refused(here.command(where, store.environment()), here)
    assert said in line and f"s3://whole/{path if path in (ARCHIVE, TABLE, IMAGE) else 'all'}: " in line
    assert "run the same command again" in line
    here.run(where)
    assert here.shards == whole


def test_faults_that_pass_are_not_noticed(store: s3.Store, local: str, undisturbed: Whole, here: Here) -> None:
    with store.failing("error", times=3):
        assert here.run(local).added == 16
    assert here.shards == undisturbed[1]
    for kind in ("drop", "corrupt"):
        other = Here(here.root / kind)
        with store.failing(kind, ARCHIVE, times=2):
            other.run(local)
        assert other.shards == undisturbed[1]


def test_a_rerun_reads_the_rest_only(store: s3.Store, local: str, everything: Files, here: Here) -> None:
    store.proxy.sent.clear()
    with store.failing("drop", ARCHIVE), pytest.raises(StageError, match="broke off"):
        here.run(local)
    with store.reads() as read:
        here.run(local)
    # What a connection brought last before it broke may be lost.
    size = len(everything[ARCHIVE])
    assert size <= store.proxy.sent[f"/whole/{ARCHIVE}"] < size + 4 * source._CHUNK
    assert read.count(ARCHIVE) == 1

    other = Here(here.root / "other")
    last = "all/photos/real/2.jpg"
    with store.failing("drop", last), pytest.raises(StageError, match="broke off"):
        other.run(local)
    with store.reads() as read:
        other.run(local)
    assert read == [last], "what was whole is read again"


def test_an_object_that_changes_meanwhile(
    store: s3.Store, bucket: str, everything: Files, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(bucket, everything)
    append = source._append

    def changing(*arguments: Any) -> None:
        store.put(bucket, {ARCHIVE: zipped({"REAL/0.jpg": everything[IMAGE]})})
        append(*arguments)

    with monkeypatch.context() as patched, pytest.raises(StageError, match=r"archive\.zip: changed while it was read"):
        patched.setattr(source, "_append", changing)
        here.run(f"s3://{bucket}/all")
    assert here.run(f"s3://{bucket}/all").added == 11


def test_credentials(store: s3.Store, undisturbed: Whole, here: Here) -> None:
    where = undisturbed[0]
    line = refused(here.command(where, store.environment(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")), here)
    assert "no credentials" in line and "AWS_PROFILE" in line
    line = refused(here.command(where, store.environment(AWS_SECRET_ACCESS_KEY="another")), here)
    assert "refuses the credentials (SignatureDoesNotMatch" in line
    line = refused(here.command(where, store.environment(AWS_PROFILE="nobody")), here)
    assert "nobody" in line

    # Endpoint and keys from files, as for all tools of AWS.
    (here.root / "config").write_text(
        f"[profile shared]\nregion = us-east-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {store.url}\n"
    )
    (here.root / "keys").write_text(f"[shared]\naws_access_key_id={s3.KEY}\naws_secret_access_key={s3.SECRET}\n")
    nothing = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"), "")
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "keys", "AWS_PROFILE": "shared"}
    done = here.command(where, store.environment(**nothing, **files))
    assert done.returncode == 0, done.stderr
    assert here.shards == undisturbed[1]


def test_wrong_places(store: s3.Store, bucket: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    store.put(bucket, {"some/words.txt": b"words", "somewhere/ai/0.jpg": b"0"})
    for where, said in {
        "s3://no-such-bucket/all": "no such bucket",
        f"s3://{bucket}/nothing": "nothing under this name",
        f"s3://{bucket}/some": "only 1 objects of other kinds",
        f"s3://{bucket}/somewher": "nothing under this name",
        "s3:bucket": "s3://BUCKET/PREFIX",
        "s3://": "s3://BUCKET/PREFIX",
        "s3://not a name/all": "Invalid bucket name",
    }.items():
        with pytest.raises(StageError, match=said) as caught:
            here.run(where)
        assert str(caught.value).startswith(where)
    with store.down(), pytest.raises(StageError, match=r"doesn't answer .*kept; run the same command again"):
        here.run(f"s3://{bucket}/somewhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no address")
    with pytest.raises(StageError, match="AWS_ENDPOINT_URL_S3"):
        here.run(f"s3://{bucket}/somewhere")
    assert not (here.root / "data/mine").exists()


def test_labels_come_from_folders(
    store: s3.Store, bucket: str, jpeg: Callable[..., bytes], here: Here, tmp_path: Path
) -> None:
    store.put(bucket, {
        "photos/real/0.jpg": jpeg(0),
        "photos/real/a b+ü&%2F?.jpg": jpeg(1),
        "photos/real/.hidden/2.jpg": jpeg(2),
        "photos/real2/3.jpg": jpeg(3),
        "photos/real/train/": b"",
        "photos/one.jpg": jpeg(4),
        "photos/broken.zip": b"none",
    })  # fmt: skip
    # The folder's own name says it; a neighbour's that only begins like it doesn't count.
    assert here.run(f"s3://{bucket}/photos/real").added == 2
    assert set(here.rows["label"]) == {"real"}
    assert f"s3://{bucket}/photos/real/a b+ü&%2F?.jpg" in here.rows.index

    with store.reads() as read, pytest.raises(StageError, match=r"photos: unknown label folder: .*real2 \(1 files\)"):
        Here(tmp_path / "unknown").run(f"s3://{bucket}/photos")
    assert read == [], "the listing is enough to see it"
    said = Here(tmp_path / "said")
    with pytest.raises(StageError, match=rf"^s3://{bucket}/photos/broken.zip: damaged"):
        said.run(f"s3://{bucket}/photos", label="real")
    store.client.delete_object(Bucket=bucket, Key="photos/broken.zip")
    assert said.run(f"s3://{bucket}/photos", label="real").added == 4

    one = Here(tmp_path / "one")
    assert one.run(f"s3://{bucket}/photos/one.jpg", label="ai").added == 1
    assert list(one.rows["label"]) == ["ai"]


def test_a_long_listing_and_limits(
    store: s3.Store, bucket: str, jpeg: Callable[..., bytes], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"{label}/{n:03}.jpg": jpeg(n + 200 * (label == "ai")) for label in ("ai", "real") for n in range(90)}
    store.put(bucket, images)
    for number in range(1000):  # a page of the listing
        (store.folder / bucket / f"in between {number}.txt").touch()
    (store.folder / bucket / "real/large.jpg").write_bytes(bytes(2**20 + 1))
    store.look_again()
    monkeypatch.setitem(PARAMS["ingest"], "max_file_mb", 1)
    assert here.run(f"s3://{bucket}") == Outcome(added=180, rejected=1)
    assert store.proxy.requests.count(f"GET /{bucket}?") == 4, "two listings of two pages"
    rejected = shards.rejected(here.root / "data", "mine")
    assert list(rejected["origin"]) == [f"s3://{bucket}/real/large.jpg"] and rejected["bytes"].isna().all()

    few = Here(here.root / "few")
    with store.reads() as read:
        assert few.run(f"s3://{bucket}/ai", max_images=5, label="ai").added == 5
    assert len(read) <= 5 + source._AHEAD, "far more is fetched than is wanted"


class Fake:
    """Answers of other servers than the one here."""

    def __init__(self, data: bytes, **answer: Any) -> None:
        self.data, self.answer = data, answer

    def get_object(self, **wanted: Any) -> Any:
        class Body(io.BytesIO):
            def iter_chunks(self, size: int) -> Iterator[bytes]:
                yield self.read()

        return {"Body": Body(self.data), "ETag": wanted["IfMatch"]}  # no ranges

    def head_object(self, **wanted: Any) -> Any:
        assert wanted["ChecksumMode"] == "ENABLED"
        return self.answer


DATA = bytes(range(256)) * 10


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


@pytest.mark.parametrize(
    ("etag", "bucket_name", "answer", "whole"),
    [
        (hashlib.md5(DATA).hexdigest(), "any", {}, True),
        (hashlib.md5(b"").hexdigest(), "any", {}, False),
        (hashlib.md5(b"").hexdigest(), "any", {"ServerSideEncryption": "AES256"}, False),
        (hashlib.md5(b"").hexdigest(), "any", {"ServerSideEncryption": "aws:kms"}, True),
        (hashlib.md5(b"").hexdigest(), "any", {"SSECustomerAlgorithm": "AES256"}, True),
        (hashlib.md5(b"").hexdigest(), "any--use1-az4--x-s3", {}, True),
        (hashlib.md5(b"").hexdigest() + "-3", "any", {}, True),
        ("ab-3", "any", {"ChecksumSHA256": b64(hashlib.sha256(DATA).digest())}, True),
        ("ab-3", "any", {"ChecksumSHA256": b64(hashlib.sha256(b"").digest())}, False),
        ("ab-3", "any", {"ChecksumSHA256": b64(hashlib.sha256(b"").digest()) + "-3"}, True),
        ("ab-3", "any", {"ChecksumCRC32": b64(zlib.crc32(DATA).to_bytes(4, "big"))}, True),
        ("ab-3", "any", {"ChecksumCRC32": b64(zlib.crc32(b"").to_bytes(4, "big"))}, False),
    ],
)
def test_every_kind_of_checksum(
    etag: str, bucket_name: str, answer: dict[str, str], whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    client = Fake(DATA, ETag=f'"{etag}"', **answer)
    found = source._Object(bucket_name, "0.jpg", len(DATA), etag, "0.jpg", "ai/0.jpg")
    (tmp_path / f"{found.file}.partial").write_bytes(b"the beginning of something else")
    if whole:
        assert source._fetch(client, found, tmp_path).read_bytes() == DATA
    else:
        with pytest.raises(StageError, match=rf"s3://{bucket_name}/0\.jpg: damaged on the way"):
            source._fetch(client, found, tmp_path)
        assert list(tmp_path.iterdir()) == []


FULL = """
set -u
mount -t tmpfs -o size=1m none disk || exit 77
for size in 3 64; do
    "$@" --data disk/data --receipts disk/seen 2>disk.$size
    echo $? >>codes
    ls disk/data/mine >>shards 2>/dev/null
    mount -o remount,size=${size}m disk
done
"$@" --data disk/data --receipts disk/seen && cp -r disk/data .
"""


def test_a_full_disk(store: s3.Store, undisturbed: Whole, here: Here) -> None:
    """Once while an archive is fetched and once while its shard is written; then there is room."""
    (here.root / "disk").mkdir()
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no file system of a given size can be made here (unshare -rm)")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", FULL, "sh", *COMMAND, "--from", undisturbed[0]],
        cwd=here.root,
        env={**store.environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77:
        pytest.skip(f"no file system of a given size can be made here ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    assert (here.root / "codes").read_text().split() == ["1", "1"]
    assert not (here.root / "shards").read_text()
    for name in ("disk.3", "disk.64"):
        lines = (here.root / name).read_text().splitlines()
        assert len(lines) == 1 and "disk full" in lines[0] and "run the same command again" in lines[0], lines
    assert here.shards == undisturbed[1]
