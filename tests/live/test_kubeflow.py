"""The pipeline for Kubeflow, run by `kfp.local` against a real S3 server, makes what the flow makes.

The tests tell one story and run in order.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3
import yaml
from harness import Project, clone

from components import store

pytestmark = pytest.mark.slow

BUCKET = "s3://bucket/pipeline"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Store]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as served, pytest.MonkeyPatch.context() as patch:
        served.put("bucket", {})
        for name, value in served.environment().items():
            patch.setenv(name, value)
        yield served


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Project:
    """A project after `trueframe run`."""
    project = clone(tmp_path_factory.mktemp("flow"), **prefect_server)
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    params["evaluate"] = {"bootstrap": 100, "robustness_images": 20, "degraded_images": 20}
    project.params = params
    project.ok("trueframe", "run", timeout=1500)
    return project


@pytest.fixture(scope="module")
def cluster(
    server: s3.Store, flow: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, str]]:
    """What stands for the cluster, after a run: the code and settings without any data; and what was made, as URIs."""
    root = tmp_path_factory.mktemp("cluster")
    aws = {name: value for name, value in server.environment().items() if name.startswith("AWS_")}
    project = clone(root, **aws, MLFLOW_TRACKING_URI=f"sqlite:///{root}/mlflow.db", TRUEFRAME_COMMIT="c0ffee")
    project.params = flow.params
    output = project.ok(sys.executable, str(Path(__file__).with_name("local_kubeflow.py")), BUCKET, timeout=1500)
    made = dict(re.findall(r"^\s*(\S+): (s3://\S+)$", output, re.MULTILINE))
    return project, made


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_comes_out(
    flow: Project, cluster: tuple[Project, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, made = cluster
    back = tmp_path_factory.mktemp("back")
    for path, uri in made.items():
        store.get(uri, back / path)
    # DVC's name for the data, and the bytes of the index and of all arrays.
    assert store.md5(made["data"]) == yaml.safe_load((flow.root / "data.dvc").read_text())["outs"][0]["md5"]
    assert (back / "artifacts/index.parquet").read_bytes() == (flow.root / "artifacts/index.parquet").read_bytes()
    arrays = contents(flow.root / "artifacts/arrays")
    assert len([name for name in arrays if name.endswith(".npy")]) == 6
    assert contents(back / "artifacts/arrays") == arrays
    for name in ("metrics.json", "detector.onnx", "predictions.parquet", "degraded.parquet"):
        path = f"artifacts/evaluation/small/{name}"
        assert (back / path).read_bytes() == (flow.root / path).read_bytes(), path
    ours, theirs = (json.loads((root / "artifacts/registration.json").read_text()) for root in (back, flow.root))
    assert ours["decision"] == "champion" and ours["version"] == "1"
    assert [ours[key] for key in ("candidate", "scores")] == [theirs[key] for key in ("candidate", "scores")]


def test_the_report_is_for_kubeflows_page(cluster: tuple[Project, dict[str, str]]) -> None:
    project, _ = cluster
    reports = [path.read_text() for path in (project.root / "local_outputs").rglob("report")]
    assert len(reports) == 2 and all("<html" in report for report in reports)


def test_the_version_names_its_data_and_code(cluster: tuple[Project, dict[str, str]]) -> None:
    project, made = cluster
    code = (
        "import json; from components.register.registry import Registry\n"
        "print(json.dumps(Registry('trueframe').alias('champion').tags))"
    )
    tags = json.loads(project.ok("python", "-c", code).strip().splitlines()[-1])
    assert tags["data_md5"] == store.md5(made["data"])
    assert tags["git_commit"] == "c0ffee"


def test_what_is_there_is_not_made_again(
    server: s3.Store, cluster: tuple[Project, dict[str, str]], tmp_path: Path
) -> None:
    """A later run has the same URIs, so that Kubeflow finds them in its cache, and decodes new shards alone."""
    project, made = cluster
    from flows import kubeflow

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        steps = {stage.name: stage for stage in kubeflow.stages()}
    for name, said in (("ingest", "data: "), ("preprocess", "0 images decoded, 240 from before")):
        stage = steps[name]
        given = {"root": BUCKET, "settings": stage.settings}
        given |= {kubeflow.parameter(path): made[path] for path in stage.needs}
        given |= {kubeflow.parameter(path): str(tmp_path / path) for path in stage.makes}
        before = len(server.proxy.requests)
        assert said in project.ok("python", "-m", "components.remote", *kubeflow.arguments(stage, given))
        assert {path: (tmp_path / path).read_text() for path in stage.makes} == {p: made[p] for p in stage.makes}
        sent = [request for request in server.proxy.requests[before:] if request.startswith("PUT ")]
        assert all("/last/" in request for request in sent), sent


def test_pushed_data_is_what_the_next_run_begins_with(server: s3.Store, flow: Project) -> None:
    project = Project(flow.root, {**flow.env, **{k: v for k, v in server.environment().items() if k[:4] == "AWS_"}})
    pushed = project.ok("trueframe", "kubeflow", "push", "--root", "s3://bucket/other").strip().splitlines()[-1]
    assert store.md5(pushed) in (flow.root / "data.dvc").read_text()
    assert store.last("s3://bucket/other", "data") == pushed
