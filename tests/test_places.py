"""A clone works wherever it stands: whatever its folder is called, and after it was moved or copied."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from select import select
from sqlite3 import connect

import pytest

from components import stage
from flows import commands

Log = Callable[..., str]
Read = Callable[[Path, str], str]
ROOT = Path(__file__).parents[1]
ODD = (
    "my photos 100% #1/übung",
    'it\'s "$HOME" `x` 50%20a%2Fb?c=d&e;f \\n [a-z]* {b} @host:80 u\u0308',
)
"""Names of folders that mean something else in a URI, a shell, a pattern, or a configuration."""

SERVANT = """
import contextlib, io, json, os, sys
import mlflow, mlflow.store.tracking.sqlalchemy_store
from components import tracking

def act(folder, action, *words):
    os.chdir(folder)
    mlflow = tracking.connect()
    if action == "read":
        return mlflow.artifacts.load_text(f"runs:/{words[0]}/note.txt")
    with mlflow.start_run(run_id=words[1] if len(words) > 1 else None) as run:
        mlflow.log_text(words[0], "note.txt")
        return run.info.run_id

for line in sys.stdin:
    if os.fork() == 0:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                answer = act(*json.loads(line))
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
        print(json.dumps([answer, said.getvalue()]), flush=True)
        os._exit(0)
    os.wait()
"""
"""A process for each command, without the seconds that each would take to import MLflow."""


@pytest.fixture(scope="module")
def servant() -> Iterator[subprocess.Popen[str]]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-c", SERVANT]
    env = {**inherited, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def said(servant: subprocess.Popen[str]) -> Callable[..., list[str]]:
    """Do something in a folder with MLflow; the answer, and what was said on stderr."""

    def ask(folder: Path, *words: str) -> list[str]:
        print(json.dumps([str(folder), *words]), file=servant.stdin, flush=True)
        return json.loads(servant.stdout.readline())  # type: ignore[union-attr]

    return ask


@pytest.fixture(scope="module")
def log(said: Callable[..., list[str]]) -> Callable[..., str]:
    """Log a note in a folder, in a new run or in one that is named; its id."""
    return lambda folder, *words: said(folder, "log", *words)[0]


@pytest.fixture(scope="module")
def read(said: Callable[..., list[str]]) -> Callable[..., str]:
    """A run's note."""
    return lambda folder, run: said(folder, "read", run)[0]


def notes(folder: Path) -> list[str]:
    """What the runs whose files lie in a folder's mlruns/ say."""
    return sorted(path.read_text() for path in folder.glob("mlruns/*/*/artifacts/note.txt"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def places(folder: Path) -> list[str]:
    """Where the store says that its runs' files are."""
    with closing(connect(folder / "mlflow.db")) as store:
        return [uri for (uri,) in store.execute("SELECT artifact_uri FROM runs ORDER BY start_time")]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, log: Log) -> tuple[Path, str]:
    """A folder with a store, and the run in it."""
    folder = tmp_path_factory.mktemp("begun") / "first"
    folder.mkdir()
    return folder, log(folder, "before")


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_be_called_anything_and_moved(tmp_path: Path, log: Log, read: Read, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    run = log(folder, "before")
    assert read(folder, run) == "before" and notes(folder) == ["before"]
    moved = tmp_path / f"new {name}"
    moved.parent.mkdir(exist_ok=True)
    folder.rename(moved)
    assert read(moved, run) == "before"
    log(moved, "after")
    log(moved, "once more", run)  # as a training that is taken up again does
    assert notes(moved) == ["after", "once more"]
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("note.txt")}
    assert made == {f"new {name}".partition("/")[0]} and not folder.exists()


def test_a_move_is_said_once(tmp_path: Path, said: Callable[..., list[str]], begun: tuple[Path, str]) -> None:
    first, run = begun
    copy = shutil.copytree(first, tmp_path / "copy")
    told = [said(copy, "read", run)[1] for _ in range(2)]
    assert [line.startswith(f"this folder stood in {first} before") for line in told[0].splitlines()] == [True]
    assert told[1] == ""


def test_a_copy_uses_its_own_files_and_leaves_the_original_alone(
    tmp_path: Path, log: Log, read: Read, begun: tuple[Path, str]
) -> None:
    first, run = begun
    before = contents(first)
    copy = shutil.copytree(first, tmp_path / "copy")
    (copy / places(first)[0].removeprefix(f"{first}/") / "note.txt").write_text("of the copy")
    assert read(copy, run) == "of the copy"
    log(copy, "new")
    log(copy, "changed", run)
    assert notes(copy) == ["changed", "new"] and contents(first) == before


@pytest.mark.parametrize("with_files", [True, False])
def test_a_store_without_the_folders_name_is_moved_too(
    tmp_path: Path, log: Log, read: Read, begun: tuple[Path, str], with_files: bool
) -> None:
    """One from before the name was kept; without artifacts, the original's store tells that this is its copy."""
    first, run = begun
    copy = shutil.copytree(first, tmp_path / "copy")
    with closing(connect(copy / "mlflow.db")) as store:
        store.execute("DELETE FROM experiment_tags")
        store.commit()
    if not with_files:
        shutil.rmtree(copy / "mlruns")
    before = contents(first)
    log(copy, "new")
    assert (read(copy, run) == "before") if with_files else (notes(copy) == ["new"])
    assert contents(first) == before


def test_what_was_put_elsewhere_stays_there(tmp_path: Path, log: Log, read: Read, begun: tuple[Path, str]) -> None:
    first, run = begun
    copy = shutil.copytree(first, tmp_path / "copy")
    elsewhere = [
        "s3://bucket/mlruns/1",
        "mlflow-artifacts:/1",
        f"{tmp_path}/disk/mlruns/7",
        f"file://{first}-2/mlruns/8",
    ]
    with closing(connect(copy / "mlflow.db")) as store:
        for number, place in enumerate(elsewhere, 7):
            store.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
                " SELECT ?, ?, ?, lifecycle_stage, workspace FROM experiments WHERE experiment_id = 1",
                (number, str(number), place),
            )
        store.commit()
    read(copy, run)
    with closing(connect(copy / "mlflow.db")) as store:
        found = [row[0] for row in store.execute("SELECT artifact_location FROM experiments ORDER BY experiment_id")]
    assert found == [f"{copy}/mlruns/0", f"{copy}/mlruns/1", *elsewhere]


def test_a_store_whose_experiment_is_on_another_disk_stays_there(
    tmp_path: Path, log: Log, read: Read, begun: tuple[Path, str]
) -> None:
    """It is not taken for one that was moved, with or without the folder's name."""
    disk = tmp_path / "disk/mlruns/1"
    disk.mkdir(parents=True)
    copy = shutil.copytree(begun[0], tmp_path / "copy")
    shutil.rmtree(copy / "mlruns")
    with closing(connect(copy / "mlflow.db")) as store:
        store.execute("DELETE FROM experiment_tags")
        store.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 1", (str(disk),))
        store.commit()
    for text in ("one", "two"):
        log(copy, text)
    assert sorted(path.read_text() for path in disk.glob("*/artifacts/note.txt")) == ["one", "two"]
    assert not (copy / "mlruns").exists()


def test_files_that_stayed_behind_are_used_where_they_are(
    tmp_path: Path, log: Log, read: Read, begun: tuple[Path, str]
) -> None:
    """Only the database was moved: nothing that is there is called gone, and what is new goes here."""
    old = shutil.copytree(begun[0], tmp_path / "old")
    run = log(old, "stays")
    new = tmp_path / "new"
    new.mkdir()
    (old / "mlflow.db").rename(new / "mlflow.db")
    log(new, "here")
    assert read(new, run) == "stays" and notes(new) == ["here"]


def test_one_folder_by_two_paths_is_no_move(
    tmp_path: Path, read: Read, said: Callable[..., list[str]], begun: tuple[Path, str]
) -> None:
    folder = shutil.copytree(begun[0], tmp_path / "disk")
    read(folder, begun[1])
    (tmp_path / "home").symlink_to(folder)
    before = places(folder)
    assert said(tmp_path / "home", "read", begun[1]) == ["before", ""] and places(folder) == before


def test_a_reader_sees_the_store_before_or_after(
    tmp_path: Path, servant: subprocess.Popen[str], begun: tuple[Path, str]
) -> None:
    """As `mlflow ui` reads it; who changes it waits for its readers."""
    copy = shutil.copytree(begun[0], tmp_path / "copy")
    with closing(connect(copy / "mlflow.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        [before] = reader.execute("SELECT artifact_uri FROM runs").fetchone()
        print(json.dumps([str(copy), "read", begun[1]]), file=servant.stdin, flush=True)
        while not (copy / "mlflow.db-journal").exists():
            assert not select([servant.stdout], [], [], 0)[0], "it changed nothing"
        assert reader.execute("SELECT artifact_uri FROM runs").fetchone() == (before,)
        reader.execute("COMMIT")
        assert json.loads(servant.stdout.readline())[0] == "before"  # type: ignore[union-attr]
        assert reader.execute("SELECT artifact_uri FROM runs").fetchone()[0].startswith(str(copy))


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose data are links into its own cache."""
    folder = tmp_path_factory.mktemp("versioned") / "first é"
    (folder / "data/mine").mkdir(parents=True)
    (folder / "data/mine/a.parquet").write_bytes(b"a")
    (folder / "data/mine/b.parquet").write_bytes(b"b")
    dvc(folder, "init", "--no-scm", "-q")
    dvc(folder, "config", "cache.type", "symlink")
    dvc(folder, "add", "-q", "data")
    assert (folder / "data/mine/a.parquet").is_symlink()
    return folder


def linked(folder: Path) -> dict[str, tuple[Path, bytes]]:
    return {p.name: (p.readlink(), p.read_bytes()) for p in sorted(folder.glob("data/mine/*"))}


@pytest.mark.parametrize("original_stays", [True, False])
def test_links_lead_into_the_folders_own_cache(
    tmp_path: Path, versioned: Path, monkeypatch: pytest.MonkeyPatch, original_stays: bool
) -> None:
    first = shutil.copytree(versioned, tmp_path / "first", symlinks=True)
    monkeypatch.chdir(first)
    commands.mend()
    before = linked(first)
    assert all(target.is_relative_to(first) for target, _ in before.values())
    copy = shutil.copytree(first, tmp_path / "copy", symlinks=True)
    (copy / "data/mine/own.parquet").symlink_to(tmp_path / "elsewhere")  # nothing of DVC's
    if not original_stays:
        shutil.rmtree(first)
    monkeypatch.chdir(copy)
    commands.mend()
    assert (copy / "data/mine/own.parquet").readlink() == tmp_path / "elsewhere"
    (copy / "data/mine/own.parquet").unlink()
    found = linked(copy)
    assert all(target.is_relative_to(copy / ".dvc/cache") for target, _ in found.values())
    assert [data for _, data in found.values()] == [b"a", b"b"]
    assert "up to date" in dvc(copy, "status")
    if original_stays:
        assert linked(first) == before


def test_links_into_a_shared_cache_stay(tmp_path: Path, versioned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shutil.copytree(versioned, tmp_path / "first")
    (first / ".dvc/cache").rename(tmp_path / "shared")
    dvc(first, "cache", "dir", str(tmp_path / "shared"))
    dvc(first, "checkout", "-q", "--relink")
    before = linked(first)
    assert all(target.is_relative_to(tmp_path / "shared") for target, _ in before.values())
    moved = first.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    commands.mend()
    assert linked(moved) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_stage_by_hand_does_not_write_into_the_cache(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "cached").write_text("of another run")
    link(tmp_path / "cached", tmp_path / "out/detector.onnx")
    (tmp_path / "out/run.json").write_text("its own")
    stage.apart(tmp_path / "out")
    (tmp_path / "out/detector.onnx").write_text("new")
    assert (tmp_path / "cached").read_text() == "of another run"
    assert (tmp_path / "out/run.json").read_text() == "its own"


def planned(folder: Path) -> list[str]:
    """The commands that `make run` would run."""
    env = {key: value for key, value in os.environ.items() if "MAKE" not in key}  # of a make around the tests
    done = subprocess.run(["make", "-n", "run"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ODD)
def test_make_notices_an_environment_that_was_made_elsewhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.replace(":", "")  # which separates the folders of a PATH: venv refuses it
    folder.mkdir(parents=True)
    for file in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, folder / file)
    assert planned(folder)[0] == "python3.11 -m venv .venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=folder, check=True)
    for made in ("bin/uv", ".ready"):
        (folder / ".venv" / made).touch()
    assert planned(folder) == [".venv/bin/trueframe run"]
    copy = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    assert planned(copy)[0] == "python3.11 -m venv --clear .venv" and planned(copy)[-1] == ".venv/bin/trueframe run"
    shutil.rmtree(copy / ".venv")
    (copy / ".venv").symlink_to(folder / ".venv")  # shared on purpose, and nobody's to clear
    assert planned(copy) == [".venv/bin/trueframe run"]


def test_the_program_of_a_copied_environment_says_so(tmp_path: Path) -> None:
    """It would run the original's code. (One that was moved doesn't start: the shell says so.)"""
    program = tmp_path / ".venv/bin/trueframe"
    program.parent.mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    program.write_text(
        f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''\nfrom flows.cli import main\nmain()\n"
    )
    program.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([program, "models"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/.venv is a copy of {sys.prefix}") and "make" in done.stderr
