"""The champion of a folder, read from its own store without MLflow, against what MLflow says of it."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pytest

from components import integrity, registered, tracking
from components.register.registry import Gone, Registry
from components.stage import StageError

ROOT = Path(__file__).parents[1]
NAME = 'frames "100%" & über'
MODEL = """
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return []

mlflow.models.set_model(Model())
"""
LOOK = """
import sys
from pathlib import Path
from components import registered
name = sys.argv[1]
print(registered.champion(name), registered.sums(name, "2"))
print(registered.fetch(name, "2", Path(sys.argv[2])).joinpath("MLmodel").is_file())
print("mlflow" in sys.modules)
"""


def sums_of(folder: Path) -> str:
    return hashlib.sha256(integrity.listed(folder).encode()).hexdigest()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A store that MLflow made in this folder, with four versions, the second of which has the list of its files."""
    import mlflow

    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        mlflow.set_tracking_uri(tracking.STORE)
        made = Registry(NAME)
        Path("model.py").write_text(MODEL)
        with mlflow.start_run():
            logged = mlflow.pyfunc.log_model(name="model", python_model="model.py", pip_requirements=["numpy"])
        made.client.create_registered_model(NAME)
        made.client.create_registered_model("frames")
        for _ in range(4):
            made.client.create_model_version(NAME, logged.model_uri)
        made.tag("2", registered.SUMS, sums_of(place(made)))
        yield made
    mlflow.set_tracking_uri(before)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is not to be asked."""

    def asked(model: str) -> None:
        raise AssertionError(f"MLflow was asked about {model}")

    monkeypatch.setattr(registered, "_registry", asked)


def place(registry: Registry, number: str = "2") -> Path:
    """Where a version's files are."""
    found = tracking.local_path(registry.client.get_model_version_download_uri(registry.name, number))
    assert found is not None
    return found


def look(folder: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """What another process finds in a folder, and whether it needed MLflow for that."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env = {**inherited, "PYTHONPATH": str(ROOT)}
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-c", LOOK, NAME, str(scratch)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_champion_is_that_of_mlflow(registry: Registry, alone: None) -> None:
    assert registered.champion(NAME) is None and registered.champion("frames") is None
    registry.promote("2")
    assert registered.champion(NAME) == "2" and registered.champion("frames") is None
    assert registered.champion("of nobody") is None
    registry.client.set_registered_model_alias(NAME, "champion", "3")  # as the MLflow UI does
    registry.client.set_registered_model_alias(NAME, "challenger", "1")
    assert registered.champion(NAME) == registry.champion() == "3"
    registry.client.delete_model_version(NAME, "3")  # and its alias with it
    assert registered.champion(NAME) is registry.champion() is None
    registry.promote("2")
    assert registered.champion(NAME) == "2"


def test_its_files_are_copied_and_checked(registry: Registry, alone: None, tmp_path: Path) -> None:
    cache = place(registry) / "__pycache__"
    cache.mkdir()
    (cache / "model.pyc").write_text("of whoever loaded it where it lies")
    (tmp_path / "out").mkdir()
    copy = registered.fetch(NAME, "2", tmp_path / "out")
    shutil.rmtree(cache)
    assert registered.sums(NAME, "2") == sums_of(copy) == sums_of(place(registry))
    assert copy.is_relative_to(tmp_path)


@pytest.mark.parametrize("number", ["7", "02", "", "two", "2 "])
def test_who_asks_for_what_is_not_there_is_told_by_mlflow(registry: Registry, tmp_path: Path, number: str) -> None:
    for ask in (registered.sums, lambda *words: registered.fetch(*words, tmp_path)):
        with pytest.raises(StageError, match=rf"has no version {number}; versions: .*2, 4"):
            ask(NAME, number)


def test_a_deleted_version_is_gone_for_both(registry: Registry) -> None:
    registry.client.create_model_version(NAME, str(place(registry)))
    registry.tag("5", registered.SUMS, "of its files")
    registry.client.delete_model_version(NAME, "5")
    with pytest.raises(StageError, match="has no version 5"):
        registered.sums(NAME, "5")


def test_files_that_are_others_are_refused(registry: Registry, tmp_path: Path) -> None:
    own, changed, gone = (tmp_path / name for name in ("own", "changed", "gone"))
    changed.mkdir()
    gone.mkdir()
    added = place(registry) / "added.py"
    added.write_text("import os")
    with pytest.raises(StageError, match="not what was registered"):
        registered.fetch(NAME, "2", changed)
    added.unlink()
    assert not (changed / "here").exists()
    shutil.move(place(registry), own)
    try:
        with pytest.raises(Gone, match="gone or damaged"):
            registered.fetch(NAME, "2", gone)
    finally:
        shutil.move(own, place(registry))


def test_a_version_without_a_list_is_fetched_with_a_warning(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registered.sums(NAME, "1") is None
    assert registered.fetch(NAME, "1", tmp_path).joinpath("MLmodel").exists()
    assert "without a list of its files" in capsys.readouterr().err


def test_another_process_reads_it_without_mlflow(registry: Registry, tmp_path: Path) -> None:
    registry.promote("2")
    done = look(Path.cwd(), tmp_path)
    assert done.stdout.split() == ["2", registered.sums(NAME, "2"), "True", "False"], done.stderr


def test_a_folder_that_was_moved_is_put_right_by_mlflow_once(registry: Registry, tmp_path: Path) -> None:
    registry.promote("2")
    copy = shutil.copytree(Path.cwd(), tmp_path / "a copy, 50%20 #1")
    first, second = (look(copy, tmp_path / number) for number in ("first", "second"))
    assert first.stdout.split()[0] == second.stdout.split()[0] == "2"
    assert [done.stdout.split()[-1] for done in (first, second)] == ["True", "False"]
    assert "stood in" in first.stderr and second.stderr == ""


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_while_somebody_writes_it_is_read_or_mlflow_waits(registry: Registry, mode: str) -> None:
    registry.promote("2")
    with closing(connect("mlflow.db", isolation_level=None)) as writer:
        writer.execute(f"BEGIN {mode}")
        writer.execute("UPDATE registered_model_aliases SET version = 4 WHERE alias = 'champion'")
        found = registered._read("SELECT version FROM registered_model_aliases WHERE alias = 'champion'")
        assert found == ([(2,)] if mode == "IMMEDIATE" else None)
        writer.execute("ROLLBACK")
    assert registered.champion(NAME) == "2"


def test_a_store_that_is_not_this_folders_is_left_to_mlflow(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path("mlflow.db").read_bytes()
    question = "SELECT version FROM registered_model_aliases"
    assert registered._read(question) is not None
    for variable, value in (
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"),
        ("MLFLOW_TRACKING_URI", "sqlite:///other.db"),
        ("MLFLOW_REGISTRY_URI", "sqlite:///other.db"),
        ("MLFLOW_WORKSPACE", "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert registered._read(question) is None, (variable, value)
    monkeypatch.chdir(tmp_path)
    assert registered._read(question) is None
    for content in (b"", b"no database", whole[: len(whole) // 2], whole):  # the last one has come without its folder
        Path("mlflow.db").write_bytes(content)
        assert registered._read(question) is None
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "nothing is made beside it"


def test_what_a_killed_writer_left_is_not_taken_for_the_truth(registry: Registry, tmp_path: Path) -> None:
    registry.promote("2")
    copy = shutil.copytree(Path.cwd(), tmp_path / "copy")
    write = (
        "import os, sqlite3\n"
        "store = sqlite3.connect('mlflow.db', isolation_level=None)\n"
        "store.execute('PRAGMA cache_size = 1')\n"
        f"store.execute('UPDATE experiment_tags SET value = ? WHERE key = ?', ({str(copy)!r}, {tracking.FOLDER!r}))\n"
        "store.execute('BEGIN')\n"
        "store.execute(\"UPDATE registered_model_aliases SET version = 4 WHERE alias = 'champion'\")\n"
        'store.execute("UPDATE model_version_tags SET value = hex(zeroblob(200000))")\n'
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", write], cwd=copy)
    assert (copy / "mlflow.db-journal").stat().st_size > 0
    done = look(copy, tmp_path / "out")
    assert done.stdout.split()[0] == "2", done.stderr
