"""What a registered version requires is what it needs: by its text, by what it imports, in its own environment."""

import base64
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fuzz
import imports
import pytest
import requests
import signing
import yaml
from PIL import Image
from test_register import candidate, run

from components.register import Inputs
from components.register.registry import Registry
from components.serve import environment
from components.stage import StageError
from tests.live.harness import free_port, stop, wait_for

ROOT = Path(__file__).parents[2]
TRAINING = {"scipy"}  # what is measured, in modules that serving shares
TOLD = {"psutil", "pyarrow", "sqlalchemy"}  # whose errors a command's last line tells
# What makes a detector, or compiles an older one.
MAKING = {"scikit-learn", "tensorflow", "keras", "keras-hub", "onnx", "tf2onnx"}
KINDS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "jpeg2000", "heic")
OPTIONAL = ("c2pa", "pillow_heif", "sd_parsers")

# Loads a model where some modules can't be imported, and answers files: two JSON files in, one out.
ANSWER = """
import json, sys

blocked = set(json.load(open("blocked.json")))

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path[:] = [Missing(), *(one for one in sys.meta_path if "editable" not in getattr(one, "__module__", ""))]

import mlflow, pandas as pd

files = json.load(open("files.json"))
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = model.predict(pd.DataFrame({"image": list(files.values())}), params={"explain": True})
import components

assert components.__file__.startswith(sys.argv[1]), components.__file__
json.dump(dict(zip(files, rows)), open("rows.json", "w"))
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a registered version."""
    folder = tmp_path_factory.mktemp("version")
    inputs = Inputs(folder / "models", folder / "evaluation", folder / "index.parquet", folder / "data")
    candidate(inputs, "a", 0.80, 6)
    run(inputs, "a", model="anywhere")
    (folder / "fetched").mkdir()
    return Registry("anywhere").fetch("1", folder / "fetched")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """One of each kind, one that is signed, and one that is broken."""
    valid = fuzz.valid()
    signed = signing.Authority().sign(valid["jpeg-progressive"], "image/jpeg")
    return {**{kind: valid[kind] for kind in KINDS}, "signed": signed, "broken": valid["png"][:90]}


def pinned(path: Path) -> set[tuple[str, str]]:
    """Names and versions; a lock may have several of one name, for several versions of Python."""
    return set(re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text(), re.M))


def names(path: Path) -> set[str]:
    return {name for name, _ in pinned(path)}


def test_it_requires_what_its_code_imports_and_nothing_else(version: Path) -> None:
    named = {re.split(r"[;\s]", package)[0] for package in environment.PACKAGES}
    found = imports.closure(version / "code", version / "pyfunc.py")
    missing = {name: by for name, by in found.items() if not imports.distributions(name) & (named | TRAINING | TOLD)}
    assert missing == {}
    needed = {one for name in found for one in imports.distributions(name)}
    assert named <= needed, "required, and imported nowhere"
    assert needed >= TRAINING | TOLD, "an exception that is none any more"
    assert named <= names(version / "requirements.txt")


def test_its_pins_are_the_lock_s_and_those_of_all_that_they_need(version: Path) -> None:
    pins = pinned(version / "requirements.txt")
    assert pins - pinned(ROOT / "requirements.lock") == set()
    assert len(pins) == len((version / "requirements.txt").read_text().splitlines())
    found = {name for name, _ in pins}
    assert {"mlflow-skinny", "fastapi", "uvicorn", "starlette", "protobuf", "flatbuffers", "cffi"} <= found
    assert not {"prefect", "dvc", "pytest", "gradio", "trueframe", "tensorflow", "keras", "onnx", "tf2onnx"} & found
    told = yaml.safe_load((version / "python_env.yaml").read_text())
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    [*_, conda] = yaml.safe_load((version / "conda.yaml").read_text())["dependencies"]
    assert conda["pip"] == (version / "requirements.txt").read_text().splitlines()


def test_its_files_are_those_of_the_project_and_no_caches(version: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "components"], cwd=ROOT, capture_output=True, text=True, check=True)
    code = {path.relative_to(version / "code").as_posix() for path in (version / "code").rglob("*") if path.is_file()}
    assert set(listed.stdout.split()) <= code
    assert not [name for name in code if "__pycache__" in name]


def test_the_images_and_the_space_hold_what_their_code_imports() -> None:
    """The image that serves is the base, which holds what a version requires, but for its network's own packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    specified = {}
    for lines in (*project["optional-dependencies"].values(), project["dependencies"]):
        specified |= {re.split(r"[<>=!\[\s]", line)[0]: line for line in lines}
    everything = imports.closure(ROOT, *ROOT.glob("components/**/*.py"), *ROOT.glob("flows/**/*.py"))
    unnamed = {name for name in everything if not imports.distributions(name) & specified.keys()}
    # What boto3 and DVC are made of, and what is used only where somebody has it.
    assert unnamed == {"botocore", "dvc_data", "voluptuous", "torch"}

    base = {re.split(r"[<>=!\[\s]", line)[0] for line in project["dependencies"]}
    beyond = {re.split(r"[;\s]", one)[0] for one in environment.PACKAGES} - base
    assert beyond == {"mlflow"}  # of which the base has mlflow-skinny, which serves

    space = {
        re.split(r"[<>=!\[\s]", line)[0]: line
        for line in (ROOT / "space/requirements.txt").read_text().split("\n")[:-1]
    }
    assert {name: specified[name].partition(" #")[0] for name in space} == space
    registry = {"mlflow", "packaging"}  # a Space has none
    found = imports.closure(ROOT, ROOT / "space/app.py")
    assert {
        n for n in found if not imports.distributions(n) & (space.keys() | TRAINING | TOLD | MAKING | registry)
    } == set()


def installed(site: Path, name: str, version: str, *needs: str) -> None:
    """The metadata of a package, as an installer leaves it."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(head + "".join(f"Requires-Dist: {one}\n" for one in needs))


def test_pins_hold_for_every_platform_and_can_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "Aa.b", "1.0+cpu", "bb-b[fast]>=2", 'cc; extra == "more"', "dd<2; python_version > '3'")
    installed(tmp_path, "bb-b", "2.1rc1", "aa-b", 'ee; sys_platform == "win32"', 'ff; extra == "fast"')
    installed(tmp_path, "cc", "1")
    installed(tmp_path, "dd", "2", 'gg; platform_system != "Windows"', 'not-here; sys_platform == "darwin"')
    for name in ("ee", "ff", "gg"):
        installed(tmp_path, f"{name}", "3")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.pinned(["aa_b"]) == [
        "aa-b==1.0",
        "bb-b==2.1rc1",
        "dd",  # its version is one that aa-b refuses
        'ee==3; sys_platform == "win32"',
        "ff==3",
        'gg==3; sys_platform == "linux" or sys_platform == "darwin"',
    ]
    assert environment.pinned(['cc; sys_platform != "win32"', 'not-here; sys_platform == "win32"']) == [
        'cc==1; sys_platform == "linux" or sys_platform == "darwin"'
    ]
    with pytest.raises(StageError, match="not-here is not installed, and serving needs it"):
        environment.pinned(["cc", "not-here"])


# --- What answers, with some packages only ----------------------------------------------------------------------------


def answered(version: Path, files: dict[str, bytes], blocked: set[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a process of its own, to which some modules are missing."""
    folder.mkdir(exist_ok=True)
    asked = {name: base64.b64encode(data).decode() for name, data in files.items()}
    (folder / "files.json").write_text(json.dumps(asked))
    (folder / "blocked.json").write_text(json.dumps(sorted(blocked)))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    call = [sys.executable, "-c", ANSWER, str(version)]
    done = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((folder / "rows.json").read_text()))


def complete(rows: dict[str, dict[str, Any]]) -> None:
    """Every kind is judged, and says of itself what it says."""
    assert {name for name, row in rows.items() if row["error"]} == {"broken"}
    assert "damaged" in rows["broken"]["error"]
    for name in rows.keys() - {"broken"}:
        assert 0 < rows[name]["probability"] < 1 and "failed" not in rows[name]["provenance"]["note"], name
    assert rows["png"]["provenance"]["generator"]["tool"] == "AUTOMATIC1111"
    assert rows["signed"]["provenance"]["c2pa"]["state"] == "valid"
    for name in ("jpeg", "png", "webp", "tiff", "avif", "heic"):
        assert rows[name]["provenance"]["digital_source_type"]["term"] == "trainedAlgorithmicMedia", name
        assert name == "tiff" or rows[name]["provenance"]["camera"]["model"] == "EOS R5", name


def test_it_answers_with_what_it_requires_alone(version: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    """Whatever else is installed here can't be imported, nor what serving doesn't need of that."""
    allowed = names(version / "requirements.txt") - TRAINING - MAKING
    modules = importlib.metadata.packages_distributions()
    blocked = {name for name in modules if not imports.distributions(name) & allowed}
    assert {"prefect", "dvc", "keras_hub", "keras", "tensorflow", "onnx", "sklearn", "components"} <= blocked
    rows = answered(version, files, blocked - {"components"}, tmp_path)
    complete(rows)
    assert all(Image.open(io.BytesIO(base64.b64decode(rows[kind]["heatmap"]))).size for kind in KINDS)


def test_a_reader_that_is_missing_costs_its_field_and_no_request(
    version: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    rows = answered(version, files, set(OPTIONAL), tmp_path)
    assert {name for name, row in rows.items() if row["error"]} == {"broken", "heic"}
    assert "pillow-heif is missing" in rows["heic"]["error"] and "damaged" not in rows["heic"]["error"]
    said = rows["png"]["provenance"]
    assert "generator" not in said and said["camera"]["model"] == "EOS R5"
    assert said["note"].endswith("failed here: a generator's settings (the Python module sd_parsers is missing).")
    signed = rows["signed"]["provenance"]["c2pa"]
    assert signed["state"] == "unchecked" and signed["problems"] == ["the Python module c2pa is missing"]
    assert "damaged" not in json.dumps(rows["signed"]) and 0 < rows["signed"]["probability"] < 1


# --- The environment itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its `requirements.txt` and nothing else."""
    folder = tmp_path_factory.mktemp("own") / "environment"
    uv = [str(Path(sys.executable).with_name("uv"))]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    install = [*uv, "pip", "install", "--python", str(folder / "bin/python"), "-r", str(version / "requirements.txt")]
    done = subprocess.run([*install, "--offline"], capture_output=True, text=True)  # from uv's cache
    if done.returncode:
        done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "request" in done.stderr:  # it was sent, and not answered
        pytest.skip(f"neither uv's cache nor an index has the packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def serving(own: Path, version: Path, folder: Path) -> Iterator[str]:
    """`mlflow models serve` of an environment, where nothing of this project can be imported from elsewhere."""
    kept = {key: os.environ[key] for key in ("HOME", "TMPDIR", "LANG") if key in os.environ}
    port = free_port()
    call = [str(own / "bin/mlflow"), "models", "serve", "-m", str(version), "--env-manager", "local", "-p", str(port)]
    env = {**kept, "PATH": f"{own / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(call, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, 300)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        stop(server)


@pytest.mark.slow
def test_an_environment_of_its_requirements_alone_answers_every_kind_of_file(
    own: Path, version: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    there = subprocess.run(
        [own / "bin/python", "-c", "import components"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "No module named 'components'" in there.stderr

    def ask(url: str, *names: str) -> list[dict[str, Any]]:
        records = [{"image": base64.b64encode(files[name]).decode()} for name in names]
        answer = requests.post(url, json={"dataframe_records": records, "params": {"explain": True}}, timeout=300)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["predictions"])

    with serving(own, version, tmp_path) as url:
        rows = dict(zip(files, ask(url, *files), strict=True))
        alone = {name: ask(url, name)[0] for name in files}
    complete(rows)
    for name, row in rows.items():
        assert alone[name]["probability"] == pytest.approx(row["probability"], abs=1e-5), name
        assert alone[name]["provenance"] == row["provenance"] and alone[name]["error"] == row["error"], name


@pytest.mark.slow
def test_what_mlflow_would_build_an_image_of_installs_the_same(version: Path, tmp_path: Path) -> None:
    call = [str(Path(sys.executable).with_name("mlflow")), "models", "generate-dockerfile", "-m", str(version), "-d"]
    subprocess.run([*call, str(tmp_path / "image")], check=True, capture_output=True)
    text = (tmp_path / "image/Dockerfile").read_text()
    assert f"FROM python:{'.'.join(map(str, sys.version_info[:3]))}-slim" in text
    [copied] = re.findall(r"^COPY (\S+) /opt/ml/model$", text, re.M)
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert (tmp_path / "image" / copied / name).read_text() == (version / name).read_text()
