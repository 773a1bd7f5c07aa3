"""The Hugging Face Space: its folder alone, started as it is there, gives a verdict."""

import ast
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.serve.export import export
from components.serve.files import Files
from components.serve.reference import references
from tests.live.harness import stop, wait_for

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def space(small: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    export([small], "3", "space", folder)
    return folder


def test_it_gives_a_verdict(space: Path, browser: Any, jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # Code of this project that lies elsewhere must not help.
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text(f"import sys\nsys.path[:] = [p for p in sys.path if p != {str(Path(__file__).parents[2])!r}]\n")
    env = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=space,
            env=inherited | env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, 400)
        context = browser.new_context()
        context.set_default_timeout(240_000)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#picture input[type=file]", state="attached")
        data = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": jpeg(1, (200, 160))}
        page.set_input_files("#picture input[type=file]", data)
        page.wait_for_selector("#verdict h2")
        assert "version 3 of the detector" in page.inner_text("#verdict")
        assert page.query_selector("#wrong") is None
        context.close()
    finally:
        stop(process)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_of_the_reference_detectors_each_keeps_its_name(tmp_path: Path) -> None:
    """Which its answers and corrections carry."""
    kept = references()
    export([one.files for one in kept], "reference", "space", tmp_path)
    assert [one.version for one in references(tmp_path / "models")] == [one.version for one in kept]


def test_its_front_matter_and_requirements_are_what_it_needs(space: Path) -> None:
    front = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and (space / front["app_file"]).exists()
    required = {re.split(r"[<>=!]", line)[0].lower() for line in (space / "requirements.txt").read_text().splitlines()}
    code = (
        "import sys, app, components.serve.page.blocks\nprint(*[m.__file__ for n, m in sys.modules.items() "
        "if n.partition('.')[0] in ('app', 'components', 'flows')])"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=space, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert all(Path(path).is_relative_to(space) for path in loaded)
    names = (
        {
            name.partition(".")[0]
            for path in loaded
            for node in ast.parse(Path(path).read_text()).body
            for name in _imported(node)
        }
        - sys.stdlib_module_names
        - {"components", "flows"}
    )
    distributions = importlib.metadata.packages_distributions()
    missing = {name for name in names if not {d.lower() for d in distributions[name]} & required}
    assert missing == set()


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
