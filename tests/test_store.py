"""Content on a real S3 server by its name, and a stage's command between what is fetched and what is kept."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3
from dvc.repo import Repo

from components import store
from components.stage import StageError

ROOT = Path(__file__).parents[1]
HERE = "s3://bucket/here"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Store]:
    """A server that this process's environment points to; asked again only as s3fs does by itself."""
    with s3.serve(tmp_path_factory.mktemp("s3")) as served, pytest.MonkeyPatch.context() as patch:
        served.put("bucket", {})
        for name, value in served.environment(AWS_MAX_ATTEMPTS="1").items():
            patch.setenv(name, value)
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in folders, two of them alike, and one that is unfinished."""
    files = {"data/a/1.parquet": b"one", "data/a-b.parquet": b"two", "data/b/1.parquet": b"one", "data/about.json": b""}
    for name, content in {**files, "data/.incoming/half": b"hal"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sent(server: s3.Store, before: int) -> list[str]:
    return [request for request in server.proxy.requests[before:] if request.startswith("PUT ")]


def test_a_folder_comes_back_under_the_name_that_dvc_has_for_it(
    server: s3.Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put(folder, HERE)
    store.get(uri, tmp_path / "back")
    expected = contents(folder)
    del expected[".incoming/half"]
    assert contents(tmp_path / "back") == expected

    (tmp_path / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / ".dvc/config").write_text(
        f"[core]\n    no_scm = True\n    remote = s\n['remote \"s\"']\n    url = {HERE}\n"
    )
    with Repo() as repo:
        repo.add("data")
        assert f"md5: {store.md5(uri)}\n" in (tmp_path / "data.dvc").read_text()
        assert repo.status(cloud=True) == {}, "what is here, DVC has no need to push"


def test_nothing_is_sent_twice(server: s3.Store, folder: Path) -> None:
    uri = store.put(folder, HERE)
    (folder / "new.parquet").write_bytes(b"three")
    before = len(server.proxy.requests)
    changed = store.put(folder, HERE)
    assert changed != uri and len(sent(server, before)) == 2  # the file and the listing
    before = len(server.proxy.requests)
    assert store.put(folder, HERE) == changed and sent(server, before) == []


def test_a_put_that_failed_is_repeated(server: s3.Store, folder: Path, tmp_path: Path) -> None:
    for number in range(20):
        (folder / f"{number}.parquet").write_bytes(b"%d" % number)
    with server.failing("error", "/files/md5/[0-9]", "PUT"), pytest.raises(StageError, match="s3://bucket/again: "):
        store.put(folder, "s3://bucket/again")
    assert not [key for key in stored(server) if key.startswith("again/") and key.endswith(".dir")]
    before = len(server.proxy.requests)
    uri = store.put(folder, "s3://bucket/again")
    assert 1 < len(sent(server, before)) < 24
    store.get(uri, tmp_path / "back")
    assert contents(tmp_path / "back").keys() == contents(folder).keys() - {".incoming/half"}


def stored(server: s3.Store) -> list[str]:
    return [found["Key"] for found in server.client.list_objects_v2(Bucket="bucket").get("Contents", ())]


def test_what_is_wrong_is_said_in_one_line(server: s3.Store, folder: Path, tmp_path: Path) -> None:
    uri = store.put(folder / "a-b.parquet", "s3://bucket/wrong")

    def refusal(uri: str = uri) -> str:
        with pytest.raises(StageError) as caught:
            store.get(uri, tmp_path / "back")
        assert str(caught.value).startswith(uri.split("/files")[0])
        return str(caught.value)

    with server.failing("corrupt", "/files/md5/"):
        assert "run the same command again" in refusal()
    with server.failing("refuse", "/files/md5/"):
        assert "access denied" in refusal()
    with server.failing("error", "/files/md5/"):
        assert "run the same command again" in refusal()
    assert "not there" in refusal("s3://bucket/wrong/files/md5/00/1122")
    assert "not there" in refusal(f"s3://nobucket/files/md5/00/{'0' * 30}.dir")
    assert "no URI of stored content" in refusal("s3://bucket/data")
    assert "no place for a store" in refusal("ftpx://bucket/files/md5/00/11")
    with server.failing("drop", "/files/md5/"):
        assert "run the same command again" in refusal()
    server.put("bucket", {uri.removeprefix("s3://bucket/"): b"other"})
    assert "damaged" in refusal()
    with pytest.raises(StageError, match="not here"):
        store.put(tmp_path / "nothing", HERE)


@pytest.mark.parametrize("name", ["../../escaped.py", "/tmp/escaped.py"])
def test_a_listing_names_nothing_outside_of_its_folder(server: s3.Store, tmp_path: Path, name: str) -> None:
    listing = json.dumps([{"md5": hashlib.md5(b"").hexdigest(), "relpath": name}]).encode()
    md5 = hashlib.md5(listing).hexdigest()
    key = f"forged/files/md5/{md5[:2]}/{md5[2:]}.dir"
    server.put("bucket", {key: listing})
    with pytest.raises(StageError, match="outside of its folder"):
        store.get(f"s3://bucket/{key}", tmp_path / "a/b/back")
    assert not list(tmp_path.rglob("*.py")) and not Path("/tmp/escaped.py").exists()


def test_the_last_one_is_remembered(server: s3.Store) -> None:
    assert store.last(HERE, "artifacts/arrays") is None
    for uri in ("s3://one", "s3://two"):
        store.remember(HERE, "artifacts/arrays", uri)
        assert store.last(HERE, "artifacts/arrays") == uri


def remote(folder: Path, *arguments: str, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "components.remote", "--store", HERE, "--settings", "a: 1", *arguments, "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///none.db", **env}
    return subprocess.run([*call, *command], cwd=folder, env=environment, capture_output=True, text=True)


def python(code: str) -> list[str]:
    return ["python", "-c", f"from pathlib import Path; {code}"]


def test_a_command_between_fetching_and_keeping(server: s3.Store, folder: Path, tmp_path: Path) -> None:
    data = store.put(folder, HERE)
    code = (
        "lines = Path('log').read_text() if Path('log').exists() else ''; Path('log').write_text(lines + 'x'); "
        "Path('out').mkdir(); Path('out/seen').write_text(Path('params.yaml').read_text() + str(sorted(p.name for p in "
        "Path('data').iterdir()))); print(Path('data.dvc').read_text())"
    )
    said = tmp_path / "kfp/out"
    options = ["--fetch", "data", data, "--resume", "log", "--resume", "nothing", "--keep", "out", str(said)]
    for times in (1, 2):
        done = remote(tmp_path, *options, "--copy", "out/seen", str(tmp_path / "shown"), command=python(code))
        assert done.returncode == 0, done.stderr
        uri = said.read_text()
        assert f"out: {uri}" in done.stdout and store.md5(data) in done.stdout
        log = store.last(HERE, "log")
        assert log is not None
        store.get(log, tmp_path / f"log{times}")
        assert (tmp_path / f"log{times}").read_text() == "x" * times
        said.unlink()
    store.get(uri, tmp_path / "out")
    assert (tmp_path / "out/seen").read_text() == "a: 1['a', 'a-b.parquet', 'about.json', 'b']"
    assert (tmp_path / "shown").read_text() == (tmp_path / "out/seen").read_text()
    assert not (tmp_path / "log").exists(), "the work is done in a folder of its own"


def test_a_command_that_fails_keeps_nothing(server: s3.Store, tmp_path: Path) -> None:
    said = tmp_path / "said"
    before = len(server.proxy.requests)
    failing = python("Path('out').write_text('half'); raise SystemExit('error: the reason')")
    done = remote(tmp_path, "--keep", "out", str(said), command=failing)
    assert done.returncode == 1 and done.stderr == "error: the reason\n"
    assert not said.exists() and sent(server, before) == []
    nothing = remote(tmp_path, "--keep", "out", str(said), command=python("pass"))
    assert nothing.returncode == 1 and "out: not here" in nothing.stderr.splitlines()[-1] and not said.exists()
    unknown = remote(tmp_path, command=["no-such-program"])
    assert unknown.returncode == 1 and unknown.stderr == "error: no-such-program: no such program\n"
    del_ = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    call = [sys.executable, "-m", "components.remote", "--store", HERE, "--settings", "", "--", "true"]
    alone = subprocess.run(call, cwd=ROOT, env=del_, capture_output=True, text=True)
    assert alone.returncode == 1 and alone.stderr.startswith("error: MLFLOW_TRACKING_URI is not set")


def test_a_command_that_was_killed_goes_on_from_its_checkpoint(server: s3.Store, tmp_path: Path) -> None:
    code = (
        "import time; state = Path('work/model/state'); state.parent.mkdir(parents=True, exist_ok=True); "
        "print('begins with', state.read_text() if state.exists() else 'nothing', flush=True); "
        "time.sleep(0 if state.exists() else 60 * bool(state.write_text('epoch 3')))"
    )
    options = ["--checkpoint", "work/model", "--every", "0.2"]
    call = [sys.executable, "-m", "components.remote", "--store", HERE, "--settings", "", *options, "--", *python(code)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///none.db", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(call, cwd=ROOT, env=environment, start_new_session=True)
    end = time.monotonic() + 60
    while store.last(HERE, "work/model") is None:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = remote(tmp_path, *options, command=python(code))
    assert done.returncode == 0 and done.stdout == "begins with epoch 3\n", done.stderr
    assert store.last(HERE, "work/model") is None, "what has ended well isn't taken up again"


def test_a_stage_ends_with_the_command_that_started_it(server: s3.Store, tmp_path: Path) -> None:
    code = (
        "import os, time; from components import stage\n"
        "print(os.getpid(), flush=True)\nstage.main(lambda: time.sleep(60))"
    )
    call = [sys.executable, "-m", "components.remote", "--store", HERE, "--settings", "", "--", "python", "-c", code]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///none.db", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
