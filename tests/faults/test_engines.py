"""Every command of `trueframe` beside an engine, a store or a file that is broken: it works, or says why in a line."""

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import SETTINGS, Server, copied
from harness import Project, clone, free_port
from PIL import Image

pytestmark = pytest.mark.slow

COMMANDS = {
    "use": ["cifake"],
    "params": [],
    "sources": [],
    "ingest": ["sample"],
    "forget": ["--origin", "nothing*"],
    "run": [],
    "monitor": [],
    "tune": ["small", "--trials", "1"],
    "generalise": ["small"],
    "schedule": ["--port", "{port}"],
    "check": ["picture.png"],
    "serve": ["--port", "{port}"],
    "ui": ["--port", "{port}"],
    "export": ["exported"],
    "review": [],
    "models": [],
    "promote": ["1"],
    "rollback": [],
    "reproduce": ["1"],
    "doctor": [],
    "kubeflow compile": ["--image", "image", "--root", "s3://bucket/prefix"],
    "kubeflow submit": ["--image", "image", "--root", "s3://bucket/prefix", "--host", "http://127.0.0.1:1"],
    "kubeflow push": ["--root", "s3://bucket/prefix"],
}
FLOWS = {"run", "monitor", "tune", "generalise"}
REGISTRY = {"check", "serve", "ui", "export", "models", "promote", "rollback", "reproduce"}
SETTINGS_READ = {"params", "sources", "ingest", "run", "tune", "check", "serve", "ui", "models", "kubeflow compile"}
Fault = Callable[[Project], contextlib.AbstractContextManager[object]]


def prefect_is_down(project: Project) -> contextlib.AbstractContextManager[object]:
    project.env["PREFECT_API_URL"] = f"http://127.0.0.1:{free_port()}/api"
    return contextlib.nullcontext()


def mlflow_is_down(project: Project) -> contextlib.AbstractContextManager[object]:
    project.env["MLFLOW_TRACKING_URI"] = f"http://me:secret@127.0.0.1:{free_port()}"
    return contextlib.nullcontext()


def _store(project: Project) -> Path:
    project.ok("python", "-c", "from components import tracking; tracking.connect()")
    return project.root / "mlflow.db"


@contextlib.contextmanager
def the_store_is_locked(project: Project) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(_store(project), isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def the_store_is_newer(project: Project) -> contextlib.AbstractContextManager[object]:
    with contextlib.closing(sqlite3.connect(_store(project), isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    return contextlib.nullcontext()


def the_settings_are_cut_off(project: Project) -> contextlib.AbstractContextManager[object]:
    (project.root / "params.yaml").write_text("ingest: [\n")
    return contextlib.nullcontext()


def the_settings_are_not_utf8(project: Project) -> contextlib.AbstractContextManager[object]:
    file = project.root / "params.yaml"
    file.write_bytes(b"# caf\xe9\n" + file.read_bytes())
    return contextlib.nullcontext()


def a_shard_is_damaged(project: Project) -> contextlib.AbstractContextManager[object]:
    for file in (project.root / "data/sample").glob("*.parquet"):
        content = file.read_bytes()
        file.unlink()  # it may be a link into DVC's cache
        file.write_bytes(content[:-2000])
    return contextlib.nullcontext()


def s3_is_down(project: Project) -> contextlib.AbstractContextManager[object]:
    url = f"http://127.0.0.1:{free_port()}"
    keys = {
        "AWS_ACCESS_KEY_ID": "ACCESSKEY1",
        "AWS_SECRET_ACCESS_KEY": "SECRETKEY123",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    project.env |= {**keys, "AWS_ENDPOINT_URL_S3": url, "AWS_MAX_ATTEMPTS": "1"}
    project.ok("dvc", "remote", "add", "--default", "store", "s3://bucket/dvc")
    project.ok("dvc", "remote", "modify", "store", "endpointurl", url)
    return contextlib.nullcontext()


def dvcs_settings_are_cut_off(project: Project) -> contextlib.AbstractContextManager[object]:
    (project.root / "dvc.yaml").write_text("stages: [\n")
    return contextlib.nullcontext()


FAULTS: dict[str, tuple[Fault, set[str], str]] = {
    "Prefect is down": (prefect_is_down, FLOWS | {"schedule", "doctor"}, "the Prefect server"),
    "MLflow is down": (mlflow_is_down, REGISTRY | {"doctor"}, "the MLflow store http://me:…@127.0.0.1"),
    "mlflow.db is locked": (the_store_is_locked, REGISTRY | {"doctor"}, "another process is writing to it"),
    "mlflow.db is newer": (the_store_is_newer, REGISTRY | {"doctor"}, "a newer version of the program wrote it"),
    "params.yaml is cut off": (the_settings_are_cut_off, SETTINGS_READ | {"doctor"}, "params.yaml"),
    "params.yaml is not UTF-8": (the_settings_are_not_utf8, SETTINGS_READ | {"use", "doctor"}, "params.yaml"),
    "a shard is damaged": (a_shard_is_damaged, {"sources", "forget", "run", "doctor"}, "damaged"),
    "S3 is down": (s3_is_down, {"ingest", "run", "kubeflow push", "doctor"}, "onnect"),
    "dvc.yaml is cut off": (dvcs_settings_are_cut_off, {"ingest", "run", "kubeflow compile"}, "dvc.yaml"),
}
UNTOUCHED = {"use", "params", "sources", "review"}
"""Commands that are tried where the fault isn't in their way, too."""
TABLE = [
    (fault, command)
    for fault, (_, broken, _) in FAULTS.items()
    for command in COMMANDS
    if command in broken | UNTOUCHED
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with images, of which a version is known."""
    root = tmp_path_factory.mktemp("begun") / "project"
    project = clone(root)
    project.params = SETTINGS
    project.ok("python", "-m", "components.ingest")
    project.ok("dvc", "add", "data")
    Image.effect_noise((64, 64), 60).convert("RGB").save(root / "picture.png")
    return root


@pytest.mark.parametrize(("fault", "command"), TABLE)
def test_a_command_works_or_says_why(
    begun: Path, tmp_path: Path, request: pytest.FixtureRequest, fault: str, command: str
) -> None:
    project = copied(begun, tmp_path / "project", PREFECT_HOME=str(tmp_path / "prefect"))
    broken, affected, words = FAULTS[fault]
    if command in FLOWS and fault != "Prefect is down":
        server: Server = request.getfixturevalue("prefect")
        project.env["PREFECT_API_URL"] = server.url
    arguments = [argument.replace("{port}", str(free_port())) for argument in COMMANDS[command]]
    with broken(project):
        done = project.run("trueframe", *command.split(), *arguments, timeout=280)
    judged(done, command, words if command in affected else None)
    shutil.rmtree(project.root)


def judged(done: subprocess.CompletedProcess[str], command: str, words: str | None) -> None:
    """See that a command failed with these words; or, with none, worked or failed for another reason that it says."""
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said[-5000:]
    assert ":secret@" not in said
    assert len(done.stderr.splitlines()) <= 40, done.stderr
    if command == "doctor":  # whose table says it
        assert done.returncode in (0, 1) and (words is None or words in " ".join(done.stdout.split())), done.stdout
        return
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if words is None and done.returncode == 0:
        assert lines == []
        return
    assert done.returncode == (2 if command == "check" else 1), said[-3000:]
    assert len(lines) == 1 and (words is None or words in lines[0]), done.stderr
