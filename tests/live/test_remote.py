"""Data and all that was made of it on an S3 remote: what one clone pushes, another one pulls and has nothing to run.

The tests tell one story and run in order.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3
from harness import Project, clone

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Store]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as served:
        served.put("bucket", {})
        yield served


@pytest.fixture(scope="module")
def remote(store: s3.Store, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with everything made that the stages make, and a remote that knows nothing of it."""
    # The endpoint stands in DVC's configuration; keys come from the environment, asked for once only.
    env = store.environment(AWS_ENDPOINT_URL_S3="", AWS_MAX_ATTEMPTS="1")
    project = clone(tmp_path_factory.mktemp("remote"), **{k: v for k, v in env.items() if k.startswith("AWS_")})
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    project.params = params
    project.ok("dvc", "remote", "add", "--default", "store", "s3://bucket/here")
    project.ok("dvc", "remote", "modify", "store", "endpointurl", store.url)
    project.ok("python", "-m", "components.ingest", "sample")
    project.ok("dvc", "add", "data")
    project.ok("dvc", "repro")
    project.ok(*GIT, "add", "-A")
    project.ok(*GIT, "commit", "-qm", "made")
    return project


def finding(project: Project, **env: str) -> tuple[bool, str]:
    """What `trueframe doctor` says of the remote."""
    code = "from flows import doctor\ntry: print('ok', doctor._remote())\nexcept Exception as e: print('no', e)"
    said = Project(project.root, {**project.env, **env}).ok("python", "-c", code).strip().splitlines()
    assert len(said) == 1, said
    verdict, text = said[0].split(" ", 1)
    return verdict == "ok", text


def stored(store: s3.Store) -> list[str]:
    return [found["Key"] for found in store.client.list_objects_v2(Bucket="bucket").get("Contents", ())]


def task(project: Project, name: str) -> str:
    """Run a step of the flow by itself."""
    code = (
        "from prefect.logging import disable_run_logger; from flows import retrain\n"
        f"with disable_run_logger(): state = retrain.{name}.fn()\n"
        "print(state.name, state.message)"
    )
    return project.ok("python", "-c", code).strip().splitlines()[-1]


def test_doctor_tells_what_is_wrong(remote: Project, store: s3.Store) -> None:
    healthy, text = finding(remote)
    assert healthy and text.startswith("store s3://bucket/here answers; ")
    status = remote.ok("dvc", "status", "--cloud", "--json")
    new = json.loads(status.splitlines()[0])
    assert set(new.values()) == {"new"}
    folders = {"data", "artifacts/arrays", "artifacts/models/small", "artifacts/validation/data_docs"}
    assert folders < set(new)
    assert f"{len(new) - len(folders)} files of this version aren't on it yet: `dvc push`" in text

    assert finding(remote, AWS_SECRET_ACCESS_KEY="wrong")[1].startswith("store s3://bucket/here: access denied (403)")
    nobody = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    assert "no credentials for it; set AWS_ACCESS_KEY_ID" in finding(remote, **nobody)[1]
    with store.failing("error"):
        healthy, text = finding(remote)
        assert not healthy and "the server fails" in text
    with store.down():
        done = remote.run("trueframe", "doctor")
        assert done.returncode == 1
        line = " ".join(done.stdout.split())
        assert "store s3://bucket/here: it doesn't answer" in line and store.url in line
    remote.ok("dvc", "remote", "modify", "store", "url", "s3://elsewhere/here")
    healthy, text = finding(remote)
    assert not healthy and "its bucket doesn't exist" in text
    remote.ok("dvc", "remote", "modify", "store", "url", "s3://bucket/here")


@pytest.mark.parametrize(("kind", "said"), [("error", "the server fails"), ("refuse", "access denied (403)")])
def test_a_push_that_fails(remote: Project, store: s3.Store, kind: s3.Kind, said: str) -> None:
    with store.failing(kind, "/files/md5/", "PUT"):
        assert task(remote, "push").startswith(f"Failed the DVC remote: {said}")
    assert stored(store) == []


def test_a_failed_ingestion_leaves_the_version(remote: Project, store: s3.Store) -> None:
    before = (remote.root / "data.dvc").read_bytes()
    store.put("images", {f"{label}/{n}.jpg": b"none" for label in ("ai", "real") for n in range(3)})
    elsewhere = Project(remote.root, {**remote.env, "AWS_ENDPOINT_URL_S3": store.url})
    with store.failing("error", "/images/"):
        done = elsewhere.run("trueframe", "ingest", "mine", "--from", "s3://images/")
    assert done.returncode == 1
    assert done.stderr.startswith("error: s3://images") and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (remote.root / "data.dvc").read_bytes() == before
    assert not remote.ok("git", "status", "--porcelain", "data.dvc", "params.yaml")
    # Nor would a version that is taken now hold anything of it.
    remote.ok("dvc", "add", "data")
    assert (remote.root / "data.dvc").read_bytes() == before
    shutil.rmtree(remote.root / "data/.incoming", ignore_errors=True)


def test_a_clone_that_pulls_has_nothing_to_run(
    remote: Project, store: s3.Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Some files go wrong; what went right isn't sent again.
    with store.failing("drop", "/files/md5/[0-3]", "PUT"):
        assert task(remote, "share").startswith("Failed the DVC remote: it doesn't answer")
    there = stored(store)
    before = len(store.proxy.requests)
    assert task(remote, "push") == "Completed done"
    assert task(remote, "share") == "Completed done"
    sent = [r.removeprefix("PUT /bucket/") for r in store.proxy.requests[before:] if r.startswith("PUT ")]
    assert there and sorted(there + sent) == stored(store)
    healthy, text = finding(remote)
    assert healthy and text.endswith("answers; all of this version is on it and here")

    root = tmp_path_factory.mktemp("clones") / "clone"
    subprocess.run(["git", "clone", "-q", remote.root, root], check=True)
    other = Project(root, remote.env)
    files = [key for key in stored(store) if not key.endswith(".dir")]
    healthy, text = finding(other)
    assert healthy and f"{len(files)} files of this version aren't here: `dvc pull` brings them" in text
    other.ok("dvc", "pull")
    assert "up to date" in other.ok("dvc", "status")
    assert "Running stage" not in other.ok("dvc", "repro")
    assert not other.ok("git", "status", "--porcelain")
    for path in (Path("artifacts/index.parquet"), Path("artifacts/evaluation/small/metrics.json")):
        assert (root / path).read_bytes() == (remote.root / path).read_bytes()
    assert finding(other)[1].endswith("all of this version is on it and here")


def test_what_is_nowhere(remote: Project, store: s3.Store) -> None:
    shutil.rmtree(store.folder / "bucket")
    store.look_again()
    store.put("bucket", {})
    shutil.rmtree(remote.root / ".dvc/cache")
    shutil.rmtree(remote.root / ".dvc/tmp")
    healthy, text = finding(remote)
    assert not healthy and "neither on it nor here" in text


def test_without_a_remote(remote: Project) -> None:
    remote.ok("dvc", "remote", "remove", "store")
    assert task(remote, "share") == "Completed no remote is configured"
    assert "no second copy" in finding(remote)[1]
