"""Which detector answers, and the command that opens the page."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import components
from components import tracking
from components.serve.files import Files
from components.serve.reference import FOLDER
from components.stage import StageError
from flows import answering, ui
from tests.live.harness import stop, wait_for

ROOT = Path(__file__).parents[2]
PARTS = ("network", "decision", "familiar", "card")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and a registry of its own."""
    shutil.copy(ROOT / "presets/sample.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@contextlib.contextmanager
def registered(project: Path, small: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The project's registry, with the small detector as version 1 and no champion."""
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")  # which sets the variable too
    try:
        tracking.connect()  # a page that looks for a champion may come first, and both would make the tables
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", artifact_location=str(project / "runs")))
        mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(Path(components.__file__).parent / "serve/pyfunc.py"),
            artifacts={name: str(getattr(small, name)) for name in PARTS},
            pip_requirements=[],
            registered_model_name="trueframe",
        )
        yield mlflow.MlflowClient()
    finally:
        mlflow.set_tracking_uri(before)


def test_the_reference_answers_until_there_is_a_champion(
    project: Path, small: Files, monkeypatch: pytest.MonkeyPatch, jpeg: Callable[..., bytes]
) -> None:
    assert answering.version(None) == answering.REFERENCE
    assert answering.name(answering.REFERENCE) == "the reference detector"
    with answering.found(answering.REFERENCE) as kept:
        assert [files.network.parent.parent for files in kept] == [FOLDER for _ in FOLDER.glob("*/decision.json")]

    with registered(project, small, monkeypatch) as client:
        assert answering.version(None) == answering.REFERENCE
        client.set_registered_model_alias("trueframe", "champion", "1")
        assert answering.version(None) == "1" and answering.name("1") == "trueframe version 1"
        with answering.found("1") as (files,):
            for name in PARTS:
                assert getattr(files, name).read_bytes() == getattr(small, name).read_bytes()
        assert not files.card.exists(), "nothing stays behind"
        rows = [one.score([jpeg(1)])[0] for one in (answering.detector("1"), small.detector("1"))]
        assert rows[0] == rows[1] and rows[0]["model_version"] == "1"
        with pytest.raises(StageError, match="trueframe has no version 7"), answering.found("7"):
            pass


def test_files_that_are_no_detector_are_named(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {artifacts: {network: {path: n.keras}}}}")
    with pytest.raises(StageError, match="register the candidate again"):
        Files.logged(tmp_path)


def test_the_command_opens_the_page_and_follows_the_champion(
    project: Path, tmp_path: Path, small: Files, monkeypatch: pytest.MonkeyPatch, browser: Any
) -> None:
    params = project / "params.yaml"
    params.write_text(f"{params.read_text()}\nserve: {{poll_s: 0.5}}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=project, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, 400)
        assert b"the reference detector" in urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
        headers = urllib.request.urlopen(f"http://127.0.0.1:{port}/").headers
        assert "default-src 'self'" in headers["content-security-policy"]
        said = log.read_text()
        assert f"the page is ready at http://127.0.0.1:{port}" in said
        assert "trueframe ingest reports --from feedback:feedback" in said
        with registered(project, small, monkeypatch) as client:
            client.set_registered_model_alias("trueframe", "champion", "1")
            end = time.monotonic() + 120
            while b"trueframe version 1" not in urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read():
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.5)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("text=Trueframe version 1 answers", timeout=60_000)
        page.close()
    finally:
        stop(process)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match=f"port {port} is taken"):
            ui.serve(None, "127.0.0.1", port, None, ui.Limits())
