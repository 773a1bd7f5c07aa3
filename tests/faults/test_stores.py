"""S3 that fails, a champion whose artifacts are gone, and clocks that are wrong."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from faulty import Stores, another, client_of, contents, copied, files_of, inside, refused, registered, stage
from harness import Project, free_port

from components import shards

pytestmark = pytest.mark.slow

YEAR = 365 * 24 * 3600


@pytest.fixture
def remote(shared: Project, stores: Stores, tmp_path: Path) -> Project:
    """A project with a DVC remote and a source on S3, and the address in the environment."""
    env = stores.bucket.environment()
    shared.env |= {name: value for name, value in env.items() if name.startswith(("AWS_", "NO_PROXY"))}
    shared.ok("dvc", "remote", "add", "--default", "store", f"s3://dvc/{tmp_path.name}")
    shared.ok("dvc", "remote", "modify", "store", "endpointurl", stores.bucket.url)
    return shared


def attempts(project: Project, *command: str, n: int = 3) -> list[int]:
    """Run a command until it works, and n times at most, as the flow's tasks do; its exit codes."""
    codes = []
    while len(codes) < n and codes[-1:] != [0]:
        done = project.run(*command)
        codes.append(done.returncode)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 0 or any(line.lower().startswith("error: ") for line in lines), done.stderr[-3000:]
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return codes


def test_s3_fails_half_of_the_requests_for_a_minute(remote: Project, stores: Stores, tmp_path: Path) -> None:
    bucket = stores.bucket
    images = list(shards.files(next((remote.root / "data/sample").glob("*.parquet"))))[:24]
    source = tmp_path.name.replace("_", "-")
    bucket.put(source, {f"{('ai', 'real')[n % 2]}/{n}.jpg": image for n, image in enumerate(images)})
    ingest = ["python", "-m", "components.ingest", "mine", "--from", f"s3://{source}/"]
    register = ["python", "-m", "components.register"]
    for command in (ingest, ["dvc", "push"], register):
        before = bucket.proxy.failed
        with bucket.failing("busy", method="", share=0.5):
            calm = threading.Timer(60, bucket.proxy.faults.clear)
            calm.start()
            attempts(remote, *command)
            calm.cancel()
        assert bucket.proxy.failed > before + 3, "requests did fail"
        remote.ok(*command)

    assert sum(len(list(shards.files(path))) for path in (remote.root / "data/mine").glob("*.parquet")) == 24
    cache, pushed = remote.root / ".dvc/cache/files/md5", bucket.folder / "dvc" / tmp_path.name / "files/md5"
    there = contents(pushed)
    assert there and there == {name: data for name, data in contents(cache).items() if name in there}
    assert "new" not in remote.ok("dvc", "status", "--cloud", "--json")
    assert registered(remote).versions == [["champion"]]
    detector = files_of(remote, "1", tmp_path / "version")["detector.onnx"]
    assert detector == (remote.root / "artifacts/evaluation/small/detector.onnx").read_bytes()


def lose(project: Project, stores: Stores, version: str) -> None:
    """Delete a version's artifacts behind the registry's back."""
    name = project.params["register"]["model"]
    uri = client_of(project).get_model_version(name, version).source
    model = client_of(project).get_logged_model(uri.removeprefix("models:/"))
    prefix = model.artifact_location.removeprefix("mlflow-artifacts:/")
    shutil.rmtree(stores.bucket.folder / "mlflow" / prefix)
    stores.bucket.look_again()


def test_the_champions_artifacts_are_deleted(automatic: Project, stores: Stores, tmp_path: Path) -> None:
    stage(automatic, "register")
    another(automatic)
    stage(automatic, "register")
    assert registered(automatic).versions == [[], ["champion"]]
    lose(automatic, stores, "2")

    picture = tmp_path / "picture.jpg"
    picture.write_bytes(next(shards.files(next((automatic.root / "data/sample").glob("*.parquet")))))
    for command, code in (
        (["trueframe", "check", str(picture)], 2),
        (["trueframe", "serve", "--port", str(free_port())], 1),
    ):
        line = refused(automatic, *command, code=code)
        assert "version 2 can't be loaded" in line and "`trueframe rollback` goes to the champion before" in line

    another(automatic, threshold=0.6)
    said = stage(automatic, "register")
    assert "version 2 can't be loaded" in said and "not comparable: balanced accuracy" in said
    assert registered(automatic).versions == [[], ["champion"], ["challenger"]], "no champion by default"
    automatic.ok("trueframe", "rollback")
    assert registered(automatic).versions == [["champion"], [], ["challenger"]]
    done = automatic.run("trueframe", "check", str(picture))
    assert done.returncode in (0, 1), done.stderr


def test_the_only_champions_artifacts_are_deleted(shared: Project, stores: Stores, tmp_path: Path) -> None:
    stage(shared, "register")
    lose(shared, stores, "1")
    said = stage(shared, "register")
    assert "no file of version 1" in said and "version 2: challenger" in said
    assert registered(shared).versions == [["champion"], ["challenger"]], "nothing is deleted"
    assert "detector.onnx" in files_of(shared, "2", tmp_path / "version")
    assert "registered before as version 2" in stage(shared, "register")


def test_the_clock_is_set_back(automatic: Project) -> None:
    stage(automatic, "register")
    another(automatic)
    stage(inside(automatic, CLOCK_SHIFT=str(-YEAR)), "register")
    found = registered(automatic)
    assert found.versions == [[], ["champion"]] and found.champions == ["1", "2"]
    earlier = inside(automatic, CLOCK_SHIFT=str(-2 * YEAR))
    assert "version 1 is the champion again" in earlier.ok("trueframe", "rollback")
    assert registered(automatic).champions == ["1", "2", "1"]
    stage(earlier, "register")
    assert registered(automatic).versions == [["champion"], []]


def test_files_from_the_future(finished: Path, tmp_path: Path) -> None:
    """What was written before the clock was set back isn't made again."""
    project = copied(finished, tmp_path / "project")
    for path in [project.root, *project.root.rglob("*")]:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + YEAR * 10**9))
    assert "nothing new" in stage(project, "ingest")
    assert "up to date" in project.ok("dvc", "status")
