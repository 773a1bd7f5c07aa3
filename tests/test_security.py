"""What docs/security.md promises beyond the parts that have tests of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import served

from components import params, tracking
from components.stage import StageError

ROOT = Path(__file__).parents[1]
MARKER = "marker-of-a-secret"


def test_every_line_of_the_threat_model_has_tests_that_exist() -> None:
    tables = (ROOT / "docs/security.md").read_text().split("\n\n")
    rows = [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables if table[:2] == "| "]
    promises = [row for table in rows if table[0][-1] == "test" for row in table[2:]]
    assert len(promises) > 50
    for row in promises:
        named = re.findall(r"`(\w[\w/]*\.py)::(test_\w+)`", row[-1])
        assert named, f"no test beside: {' | '.join(row)}"
        for file, test in named:
            path = ROOT / "tests" / file
            assert path.exists() and f"def {test}(" in path.read_text(), f"{file}::{test} is not there"


def test_passwords_in_addresses_are_not_shown(tmp_path: Path) -> None:
    for uri in (f"postgresql://us:{MARKER}@db:5432/mlflow", f"https://us:{MARKER}@mlflow.example.org"):
        assert tracking.shown(uri) == uri.replace(MARKER, "…")
    for uri in ("sqlite:///mlflow.db", "http://127.0.0.1:5000", "postgresql://us@db/mlflow", "http://[broken"):
        assert tracking.shown(uri) == uri
    home = served.project(tmp_path)
    env = home.environment(MLFLOW_TRACKING_URI=f"http://us:{MARKER}@127.0.0.1:1")
    command = [sys.executable, "-m", "flows.cli", "models"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "http://us:…@127.0.0.1:1" in done.stderr
    assert MARKER not in done.stdout + done.stderr


def test_a_password_among_the_settings_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (ROOT / "presets/sample.yaml").read_text()
    path.write_text(f"{text}\ntune: {{storage: 'postgresql://us:{MARKER}@db/optuna'}}\n")
    with pytest.raises(StageError, match=r"tune\.storage holds a password.*PGPASSWORD") as caught:
        params.load(path)
    assert MARKER not in str(caught.value)
    path.write_text(f"{text}\ntune: {{storage: 'postgresql://us@db/optuna'}}\n")
    assert params.load(path).tune.storage


def test_the_sbom_names_every_locked_package(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed")
    out = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "requirements.lock", "--no-validate"]
    subprocess.run([*command, "--output-file", str(out)], cwd=ROOT, check=True, capture_output=True)
    listed = {(one["name"].lower(), one.get("version")) for one in json.loads(out.read_text())["components"]}
    lock = (ROOT / "requirements.lock").read_text()
    locked = {(name.lower(), version) for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock, re.MULTILINE)}
    assert len(locked) > 100 and locked <= listed


def test_every_locked_package_has_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    packages = re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) > 100 and all("--hash=sha256:" in package for package in packages)
