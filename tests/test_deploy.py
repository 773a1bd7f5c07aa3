"""The image, the compose file and the manifests of Kubernetes against each other and against what they run."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import composed
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
EXAMPLE = composed.read_variables((ROOT / "deploy/.env.example").read_text())
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
MANIFESTS: list[dict[str, Any]] = [
    document
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
SERVING, TEAM = "trueframe:latest", "trueframe-team:latest"


def of(kind: str) -> dict[str, dict[str, Any]]:
    """The manifests of a kind by their names; jobs by how theirs begin."""
    meta = [(document["metadata"], document) for document in MANIFESTS if document["kind"] == kind]
    return {(m.get("name") or m["generateName"].rstrip("-")): document for m, document in meta}


@cache
def pods() -> dict[str, dict[str, Any]]:
    """The pod templates of everything that runs, the work pools' jobs among it."""
    made = {name: document["spec"]["template"] for name, document in (of("Deployment") | of("Job")).items()}
    return made | {f"pool {pool}": rendered(pool)["spec"]["template"] for pool in ("cpu", "gpu")}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def rendered(pool: str, **variables: Any) -> dict[str, Any]:
    """The Job that a worker makes of a run in a pool, as a worker with a password in its environment would make it."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="`pip install prefect-kubernetes`")
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    template = json.loads((FOLDER / f"pools/{pool}.json").read_text())
    configuration = worker.KubernetesWorkerJobConfiguration

    async def render() -> Any:
        client = PrefectClient("http://127.0.0.1:1/api")  # there are no blocks to ask for
        return await configuration.from_template_and_values(template, variables, client=client)

    with temporary_settings(
        {PREFECT_API_AUTH_STRING: "trueframe:a-secret", PREFECT_API_URL: "http://prefect:4200/api"}
    ):
        made = asyncio.run(render())
        made.prepare_for_flow_run(FlowRun(flow_id="00000000-0000-0000-0000-000000000000", name="Some Run"))
    job = dict(made.job_manifest)
    # Prefect insists on these where Kubernetes, which passes over what it doesn't know, has no such fields.
    assert [job["spec"]["template"]["spec"].pop(name) for name in ("parallelism", "completions")] == [1, 1]
    return job


def test_the_manifests_are_valid() -> None:
    utils = pytest.importorskip("kubernetes_validate.utils", reason="`pip install kubernetes-validate`")
    import jsonschema
    import referencing

    # As its `validate(…, strict=True)` does for one document, but with the definitions read once for all of them.
    schemas = "kubernetes-json-schema/v1.31.0-local-strict"
    definitions = referencing.Resource.from_contents(utils.schema_contents(f"{schemas}/_definitions.json", "1.31"))
    registry = (definitions @ referencing.Registry()).crawl()
    for document in [*MANIFESTS, rendered("cpu"), rendered("gpu")]:
        version = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document["apiVersion"])
        schema = utils.schema_contents(f"{schemas}/{document['kind'].lower()}-{version}.json", "1.31")
        registry = referencing.Resource.from_contents(schema) @ registry
        jsonschema.Draft202012Validator(schema, registry=registry).validate(document)
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    by_hand = {"train.yaml", "mlflow-users.yaml", "deployments.yaml"}  # jobs: they run when they are made
    assert {*listed["resources"], *by_hand, "kustomization.yaml"} == {path.name for path in FOLDER.glob("*.yaml")}
    for generated in listed["configMapGenerator"]:
        assert all((FOLDER / file).is_file() for file in generated["files"])


def test_everything_runs_with_as_few_rights_as_it_can() -> None:
    for name, pod in pods().items():
        spec = pod["spec"]
        said = spec["securityContext"]
        assert said["runAsNonRoot"] and said["runAsUser"] >= 1000 and said["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["enableServiceLinks"] is False, name
        assert spec.get("automountServiceAccountToken") is (None if name == "worker" else False), name
        for container in containers(pod):
            where = f"{name}/{container['name']}"
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"], where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert "/tmp" in mounts.values(), where
            assert set(mounts) <= {volume["name"] for volume in spec["volumes"]}, where
    for service, said in COMPOSE.items():
        if "build" in said:
            assert said["read_only"] and said["cap_drop"] == ["ALL"], service
            assert said["security_opt"] == ["no-new-privileges:true"], service


def test_what_serves_has_the_serving_image_and_the_rest_the_other() -> None:
    serve = {"gateway", "page"}
    for name, pod in pods().items():
        image = SERVING if name in serve else f"{TEAM}-gpu" if name in ("train", "pool gpu") else TEAM
        assert {container["image"] for container in containers(pod)} == {image}, name
    for service, said in COMPOSE.items():
        if "build" in said:
            image = SERVING if service in serve else f"{TEAM}-gpu" if service == "worker-gpu" else TEAM
            assert f":-{image}}}" in said["image"], service
            extras = said["build"].get("args", {}).get("EXTRAS", "").split()
            assert extras == [] if service in serve else extras[:2] == ["--extra", "team"], service
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    assert [image["name"] for image in listed] == [image.split(":")[0] for image in (SERVING, TEAM)]


def test_a_gpu_is_asked_for_where_one_is_needed() -> None:
    for name, pod in pods().items():
        asked = [c["resources"]["limits"].get("nvidia.com/gpu") for c in pod["spec"]["containers"]]
        assert asked == (["1"] if name in ("train", "pool gpu") else [None] * len(asked)), name
    assert (
        rendered("gpu", gpus="2")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        == "2"
    )


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_pool_takes_what_prefect_lets_a_deployment_say(pool: str) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="`pip install prefect-kubernetes`")
    from prefect.server.schemas.actions import validate_base_job_template
    from prefect.utilities.schema_tools.validation import is_valid_schema, validate

    validate_base_job_template(json.loads((ROOT / "deploy/process-pool.json").read_text()))
    template = json.loads((FOLDER / f"pools/{pool}.json").read_text())
    standard = worker.KubernetesWorker.get_default_base_job_template()
    assert set(standard["variables"]["properties"]) <= set(template["variables"]["properties"])
    assert set(standard["job_configuration"]) == set(template["job_configuration"])
    validate_base_job_template(template)
    is_valid_schema(template["variables"], preprocess=False)
    resources = {"cpu_request": "1", "memory_request": "4Gi"}
    said = {"image": "elsewhere/trueframe:2", **resources, "env": {"TF_CPP_MIN_LOG_LEVEL": "2"}}
    assert validate(said, template["variables"]) == []
    job = rendered(pool, **said)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "elsewhere/trueframe:2"
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "4Gi"}
    assert {"name": "TF_CPP_MIN_LOG_LEVEL", "value": "2"} in container["env"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert job["metadata"]["namespace"] == "trueframe"
    # With variables of its own, too, a deployment gets the password from the Secret, not as text from the worker.
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names)) and "PREFECT_API_AUTH_STRING" in names
    assert "a-secret" not in json.dumps(job)


def test_no_manifest_holds_a_secret() -> None:
    assert not of("Secret")
    for name, pod in pods().items():
        for container in containers(pod):
            for entry in container.get("env", ()):
                secret = entry.get("valueFrom", {}).get("secretKeyRef")
                if secret:
                    assert secret["name"] == "trueframe" and secret["key"] in EXAMPLE, (name, entry)
                else:
                    assert not re.search("PASSWORD|SECRET|AUTH_STRING|(ACCESS|API|REVIEW)_KEY", entry["name"]), (
                        name,
                        entry,
                    )
    assert not [key for key in of("ConfigMap")["trueframe"]["data"] if re.search("PASSWORD|SECRET|_KEY", key)]
    secrets = [name for name, said in EXAMPLE.items() if not said or said.endswith(":")]
    assert len(secrets) == 10
    for said in COMPOSE.values():
        for name, value in said.get("environment", {}).items():
            for variable, sign in re.findall(r"\$\{(\w+):(.)", value):
                assert variable in EXAMPLE, name
                assert (sign == "?") == (variable in secrets), f"{name}: a secret has no default"


def command(pod: str, container: int = 0) -> list[str]:
    return list(pods()[pod]["spec"]["containers"][container]["command"])


def test_the_commands_are_those_that_compose_starts() -> None:
    for name in ("mlflow", "prefect", "gateway", "page", "mlflow-users"):
        assert command(name) == COMPOSE[name]["command"], name
    assert pods()["mlflow"]["spec"]["initContainers"][0]["command"] == COMPOSE["mlflow-schema"]["command"]
    for number, pool in enumerate(("cpu", "gpu")):
        kubernetes = shlex.join(command("worker", number)).replace("=", " ")
        template = f"--base-job-template /pools/{pool}.json "
        composes = shlex.join(COMPOSE["worker" if pool == "cpu" else "worker-gpu"]["command"])
        assert kubernetes.replace(template, "").replace("kubernetes", "process") == composes


def test_the_page_on_the_shared_set_up_has_the_same_commands() -> None:
    page = (ROOT / "docs/shared.md").read_text()
    for name, said in COMPOSE.items():
        if "command" in said and name not in ("page", "worker-gpu"):
            words = shlex.join([*said.get("entrypoint", ()), *said["command"]])
            if name != "gateway":
                words = words.replace("0.0.0.0", "127.0.0.1")
            assert words.removesuffix(" /data") in page, name
    # Prefect's own home and address are what they are by default.
    own = set(COMPOSE["prefect"]["environment"]) - {"PREFECT_HOME", "PREFECT_SERVER_UI_API_URL"}
    assert [name for name in own if f"{name}=" not in page] == []
    # Two workers on one machine can't both answer health checks at one port.
    ports = re.findall(
        r"^(?:PREFECT_WORKER_WEBSERVER_PORT=(\d+) )?prefect worker start .*--with-healthcheck$", page, re.M
    )
    assert len(set(ports)) == len(ports) == 2
    script = [line[4:] for line in (ROOT / "deploy/.env.example").read_text().splitlines() if line.startswith("#   ")]
    assert "\n".join(script) in page


def test_the_commands_exist() -> None:
    import typer

    from flows.cli import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands = [
        container["command"] for pod in pods().values() for container in containers(pod) if "command" in container
    ]
    own = [said for said in commands if said[0] == "trueframe"]
    assert len(own) == 3
    for _, name, *words in own:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, name
    for said in commands:
        for word in said:
            assert not word.startswith("deploy/") or (ROOT / word).is_file()


def test_ports_and_probes_lead_to_what_listens() -> None:
    from starlette.testclient import TestClient

    from components.params import Serve
    from components.serve.gateway import Gateway

    gateway = TestClient(Gateway(list, "1", Serve()).app)
    ports = {name: f"{composed.PORTS[name]}" for name in ("mlflow", "prefect", "gateway", "page")}
    for name, port in ports.items():
        [container] = pods()[name]["spec"]["containers"]
        assert f"--port {port}" in shlex.join(container["command"]).replace("=", " ")
        assert container["ports"] == [{"name": "http", "containerPort": int(port)}]
        assert of("Service")[name]["spec"]["ports"] == [{"name": "http", "port": int(port), "targetPort": "http"}]
        assert of("Service")[name]["spec"]["selector"] == of("Deployment")[name]["spec"]["selector"]["matchLabels"]
        [checked] = re.findall(rf"http://127.0.0.1:{port}(/\S+)'", COMPOSE[name]["healthcheck"]["test"][-1])
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
        assert {probe["port"] for probe in probes.values()} == {"http"}
        assert probes["readiness"]["path"] == checked
        if name == "gateway":
            answers = {probe["path"]: gateway.get(probe["path"]).status_code for probe in probes.values()}
            assert set(answers.values()) <= {200, 503}, answers
        assert [said for said in COMPOSE[name]["ports"] if said.endswith(f":{port}:{port}")]
    data = of("ConfigMap")["trueframe"]["data"]
    assert data["MLFLOW_TRACKING_URI"] == "http://mlflow:5000" and data["PREFECT_API_URL"] == "http://prefect:4200/api"
    for container in pods()["worker"]["spec"]["containers"]:
        listens = {entry["name"]: entry.get("value") for entry in container["env"]}["PREFECT_WORKER_WEBSERVER_PORT"]
        assert container["ports"] == [{"name": container["name"], "containerPort": int(listens)}]


def test_the_monitor_sees_what_the_gateway_was_asked() -> None:
    from components import params

    settings = params.load(ROOT / "params.yaml").monitor
    folders = {"gateway": str(settings.folder), "page": settings.feedback}
    for name, folder in folders.items():
        assert COMPOSE[name]["volumes"] == [f"../{folder}:/srv/trueframe/{folder}"]
        assert claims(name) == {f"/srv/trueframe/{folder}": folder}
    assert "..:/srv/trueframe" in COMPOSE["worker"]["volumes"]
    said = command("page")
    assert said[said.index("--feedback") + 1] == settings.feedback
    for name in ("pool cpu", "pool gpu", "train"):
        beside = {f"/srv/trueframe/{folder}": folder for folder in folders.values()}
        assert claims(name) == {"/srv/trueframe": "work", **beside}
        assert pods()[name]["spec"]["containers"][0]["workingDir"] == "/srv/trueframe"
    for name in set(folders.values()):
        assert of("PersistentVolumeClaim")[name]["spec"]["accessModes"] == ["ReadWriteMany"]


def claims(pod: str) -> dict[str, str]:
    """The volumes that outlive a pod, by where its container has them; its user may write to them."""
    spec = pods()[pod]["spec"]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    kept = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    mounts = spec["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: kept[mount["name"]] for mount in mounts if mount["name"] in kept}


def test_the_page_has_keys_for_its_review(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import ui

    assert ui.KEYS in COMPOSE["page"]["environment"]
    [entry] = [each for each in pods()["page"]["spec"]["containers"][0]["env"] if each["name"] == ui.KEYS]
    assert entry["valueFrom"]["secretKeyRef"] == {"name": "trueframe", "key": ui.KEYS, "optional": True}
    unit = (ROOT / "deploy/systemd/trueframe-page.service").read_text()
    assert f"{ui.KEYS}_FILE" in unit and "\nEnvironmentFile=-/etc/trueframe.env\n" in unit
    # As the commands in deploy/.env.example fill it in.
    monkeypatch.setenv(ui.KEYS, EXAMPLE[ui.KEYS] + "0" * 48)
    assert ui.reviewers() is not None
    assert all(ui.KEYS in (ROOT / f"docs/{page}.md").read_text() for page in ("shared", "kubernetes"))


CLONES = {
    **{
        pool: json.loads((FOLDER / f"pools/{pool}.json").read_text())["job_configuration"]["job_manifest"]
        for pool in ("cpu", "gpu")
    },
    **{name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("deployments", "train")},
}


class Team:
    """A repository with data on a DVC remote, and the empty volume of the Jobs that work in its clone."""

    def __init__(self, root: Path) -> None:
        self.clone, self.programs = root / "clone", root / "programs"
        path = f"{self.programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {name: said for name, said in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
        own = {"HOME": str(root), "PATH": path, "DVC_SITE_CACHE_DIR": str(root / "site"), "DVC_NO_ANALYTICS": "1"}
        self.env = {**inherited, **own, "TRUEFRAME_REPOSITORY": str(root / "origin")}
        origin = root / "origin"
        for folder in (self.clone, self.programs, origin / "data"):
            folder.mkdir(parents=True)
        shutil.copy(ROOT / ".gitignore", origin)
        (origin / "README.md").write_text("of a team")
        (origin / "data/a").write_text("pictures")
        dvc = ["dvc init -q", f"dvc remote add -q -d shared {root / 'remote'}", "dvc add -q data", "dvc push -q"]
        git = "git -c user.name=test -c user.email=test@localhost"
        for line in ("git init -q", *dvc, "git add -A", f"{git} commit -qm start"):
            subprocess.run(shlex.split(line), cwd=origin, env=self.env, check=True)

    def start(self) -> subprocess.Popen[str]:
        """A Job's first container."""
        [container] = CLONES["train"]["spec"]["template"]["spec"]["initContainers"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(container["command"], cwd=self.clone, env=self.env, text=True, **streams)

    def kill_at(self, program: str, word: str, last: str) -> None:
        """Let a program kill who called it with a word, after it did something."""
        whole = shutil.which(program, path=self.env["PATH"])
        stub = self.programs / program
        stub.write_text(f'#!/bin/sh\n[ "$1" != {word} ] || {{ {last}; kill -9 $PPID; exit 1; }}\nexec {whole} "$@"\n')
        stub.chmod(0o755)

    def check(self) -> None:
        """That all of it is there, and nothing else."""
        assert (self.clone / "data/a").read_text() == "pictures"
        assert (self.clone / "README.md").read_text() == "of a team"
        status = ["git", "status", "--porcelain"]
        assert subprocess.run(status, cwd=self.clone, env=self.env, capture_output=True, check=True).stdout == b""
        assert (self.clone / "feedback").is_dir() and (self.clone / "predictions").is_dir()  # to mount volumes at


@pytest.fixture
def team(tmp_path: Path) -> Team:
    if not shutil.which("flock"):
        pytest.skip("flock isn't here; the image has it")
    return Team(tmp_path)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def test_every_job_makes_the_clone_by_the_same_command() -> None:
    found = [made["spec"]["template"]["spec"]["initContainers"] for made in CLONES.values()]
    assert len({json.dumps(container["command"]) for [container] in found}) == 1
    for [container] in found:
        work = {"name": "work", "mountPath": container["workingDir"], "subPath": "clone"}
        assert [mount for mount in container["volumeMounts"] if mount["name"] != "tmp"] == [work]


def test_the_data_is_pulled_with_the_clone_and_never_again(team: Team) -> None:
    code, said = finished(team.start())
    assert code == 0, said
    team.check()
    # A retraining was killed between `ingest` and `dvc add`: `dvc pull` would refuse to remove what is new.
    (team.clone / "data/new").write_text("of no version")
    assert finished(team.start()) == (0, "")
    assert (team.clone / "data/new").exists()


@pytest.mark.parametrize(
    ("program", "word", "last"),
    [
        ("git", "clone", "mkdir -p .clone/.git; touch .clone/.git/HEAD"),
        ("git", "reset", "echo half > README.md; touch .git/index.lock"),
        ("dvc", "pull", "mkdir -p data .dvc/tmp; echo half > .dvc/tmp/rwlock"),
    ],
)
def test_a_clone_that_was_killed_is_made_again(team: Team, program: str, word: str, last: str) -> None:
    team.kill_at(program, word, last)
    assert finished(team.start())[0] == -9
    (team.programs / program).unlink()
    code, said = finished(team.start())
    assert code == 0, said
    team.check()


def test_of_two_jobs_at_once_one_makes_the_clone(team: Team) -> None:
    said = [finished(process) for process in [team.start(), team.start()]]
    assert [code for code, _ in said] == [0, 0], said
    assert sum("Cloning into" in text for _, text in said) == 1
    team.check()


def test_a_restart_of_prefect_s_server_loses_no_lease() -> None:
    name, storage = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    kubernetes = {entry["name"]: entry.get("value") for entry in pods()["prefect"]["spec"]["containers"][0]["env"]}
    assert COMPOSE["prefect"]["environment"][name] == kubernetes[name] == storage
    home = COMPOSE["prefect"]["environment"]["PREFECT_HOME"]
    assert (
        COMPOSE["prefect"]["volumes"] == [f"prefect:{home}"]
        and f"1000 {home}\n" in (ROOT / "deploy/Dockerfile").read_text()
    )


def test_every_pool_has_a_worker_with_and_without_a_gpu() -> None:
    pools = {each["work_pool"]["name"] for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    for profile in ("cpu", "gpu"):
        started = [said.get("command", []) for said in COMPOSE.values() if {profile} >= set(said.get("profiles", []))]
        served = [words[words.index("--pool") + 1] for words in started if "worker" in words]
        assert sorted(served) == sorted(pools), profile


def test_who_may_talk_to_whom() -> None:
    policies = of("NetworkPolicy")
    assert policies["nothing-else"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {name: pod["metadata"]["labels"]["app.kubernetes.io/name"] for name, pod in pods().items()}
    assert set(labels.values()) == set(policies) - {"nothing-else", "names"}

    def allowed(label: str, direction: str, other: str, port: int) -> bool:
        """Whether a rule of a pod's policy names the other pod with that port."""
        for rule in policies[label]["spec"].get(direction, ()):
            peers = json.dumps(rule.get("to" if direction == "egress" else "from", []))
            if f'"{other}"' in peers and port in [said["port"] for said in rule["ports"]]:
                return True
        return False

    open_to_all = {"gateway", "page"}
    for caller, service, port in (
        ("gateway", "mlflow", 5000),
        ("page", "mlflow", 5000),
        ("mlflow-users", "mlflow", 5000),
        ("job", "mlflow", 5000),
        ("job", "prefect", 4200),
        ("worker", "prefect", 4200),
    ):
        assert allowed(caller, "egress", service, port) and allowed(service, "ingress", caller, port), (caller, service)
    for name in open_to_all:
        assert [said["port"] for rule in policies[name]["spec"]["ingress"] for said in rule["ports"]] == [
            composed.PORTS[name]
        ]


def test_the_gateway_scales_and_is_never_away() -> None:
    scaler = of("HorizontalPodAutoscaler")["gateway"]["spec"]
    deployment = of("Deployment")["gateway"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "gateway" and "replicas" not in deployment
    assert scaler["minReplicas"] > of("PodDisruptionBudget")["gateway"]["spec"]["minAvailable"] > 0
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert of("PodDisruptionBudget")["gateway"]["spec"]["selector"] == deployment["selector"]
    from components.params import Serve

    pause = int(command_of_hook(deployment)[-1])
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > Serve().answer_s + pause


def command_of_hook(deployment: dict[str, Any]) -> list[str]:
    return list(deployment["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])


def test_the_image_is_made_of_the_lock_and_of_nothing_secret() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    stages = text.split("\nFROM ")[1:]
    assert len(stages) == 2
    assert "--require-hashes -c requirements.lock -r pyproject.toml" in stages[0] and "pip install" not in stages[1]
    assert re.search(r"^USER 1000:1000$", stages[1], re.M) and "HEALTHCHECK" in stages[1]
    [default] = re.findall(r"^CMD (.*)$", stages[1], re.M)
    assert json.loads(default) == COMPOSE["gateway"]["command"]
    [checked] = re.findall(r"^    CMD (.*)$", stages[1], re.M)
    assert json.loads(checked) == COMPOSE["gateway"]["healthcheck"]["test"][1:]
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*" and "!deploy/.env" not in rules
    for rule in rules[1:]:
        if rule.startswith("!"):
            assert list(ROOT.glob(rule[1:])), rule
    for needed in ("mlflow-auth.ini", "mlflow_users.py"):
        assert f"!deploy/{needed}" in rules
    assert os.popen(f"git -C {ROOT} check-ignore deploy/.env").read().strip() == "deploy/.env"


@pytest.mark.parametrize("text", re.findall(r'EXTRAS="(.*)"', (ROOT / "deploy/Dockerfile").read_text()))
def test_the_images_extras_exist(text: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(text.split()[::2]) == {"--extra"} and set(text.split()[1::2]) <= known.keys()
