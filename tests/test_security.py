"""What docs/security.md promises beyond the parts that have tests of their own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
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


LOCK = ROOT / "requirements.lock"


def locked() -> dict[tuple[str, str], str]:
    """What the lock says of each package, by name and version."""
    entries = re.split(r"^(?=[\w.-]+==)", LOCK.read_text(), flags=re.MULTILINE)[1:]
    names = [re.match(r"([\w.-]+)==([^\s;\\]+)", entry) for entry in entries]
    found = {(name[1].lower(), name[2]): entry for name, entry in zip(names, entries, strict=True) if name}
    assert len(found) > 100
    return found


def make(*arguments: str, cwd: Path = ROOT) -> str:
    """What `make` says, with this Python's programs; the virtual environment counts as made."""
    programs = f"BIN={Path(sys.executable).parent}"
    # Not as a part of the `make` that runs the tests.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", programs, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_audit_reads_the_lock() -> None:
    [line] = make("-n", "-o", ".venv/.dev", "audit").splitlines()
    said = shlex.split(line)
    assert "pip-audit" in said[0] and {"--require-hashes", "--disable-pip", "--strict"} <= set(said)
    assert [after for option, after in pairwise(said) if option == "--requirement"] == [LOCK.name]
    # It is that which `make lock` makes of all extras, those of the images too, and there is no other.
    made = shlex.split(make("-n", "-o", ".venv/bin/uv", "lock").replace("\\\n", ""))
    assert {"--all-extras", "--generate-hashes", "pyproject.toml"} <= set(made) and made[-1] == LOCK.name
    names = subprocess.run(["git", "ls-files", "*.lock"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert names.stdout.split() == [LOCK.name]


def test_the_sbom_names_every_locked_package(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed")
    for name in ("Makefile", "pyproject.toml", LOCK.name):
        shutil.copy(ROOT / name, tmp_path / name)
    make("-o", ".venv/.dev", "sbom", cwd=tmp_path)
    parts = json.loads((tmp_path / "sbom.json").read_text())["components"]
    assert locked().keys() <= {(part["name"].lower(), part.get("version")) for part in parts}
    assert subprocess.run(["git", "check-ignore", "-q", "sbom.json"], cwd=ROOT).returncode == 0


def test_every_locked_package_has_hashes() -> None:
    assert all("--hash=sha256:" in entry for entry in locked().values())


def test_what_is_installed_is_installed_by_its_hashes(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    lines = make("-n", ".venv/.base", ".venv/.dev", cwd=tmp_path).splitlines()
    image = (ROOT / "deploy/Dockerfile").read_text()
    installs = [line for line in (*lines, *image.splitlines()) if re.search(r"\bpip install\b", line)]
    assert len(installs) == 9
    for line in installs:
        # The packages of a level, by the one lock; this one, which brings none along; and what installs them.
        lock = "--require-hashes -c requirements.lock -r pyproject.toml" in line
        assert lock or " --no-deps -e" in line or " --no-deps --editable" in line or line.endswith("pip install -q uv")
