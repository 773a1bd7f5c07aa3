"""Which detector answers, and the command that opens the page."""

import contextlib
import json
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

import detectors
import pytest

import components
from components import integrity, tracking
from components.serve import reference
from components.serve.files import Files
from components.serve.reference import FOLDER
from components.stage import StageError
from flows import answering, checking, ui
from tests.live.harness import stop, wait_for

ROOT = Path(__file__).parents[2]
PARTS = ("detector", "card")


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
    assert answering.name("reference-photo") == "the reference detector photo"
    with pytest.raises(
        StageError, match="no reference-huge; there are reference-small, reference-wild, reference-photo"
    ):
        answering.detector("reference-huge")
    with answering.found("reference-photo") as (photo,), answering.found(answering.REFERENCE) as kept:
        assert photo in kept
        assert [files.card.parent.parent for files in kept] == [FOLDER for _ in FOLDER.glob("*/detector.onnx")]

    with registered(project, small, monkeypatch) as client:
        assert answering.version(None) == answering.REFERENCE
        client.set_registered_model_alias("trueframe", "champion", "1")
        assert answering.version(None) == "1" and answering.name("1") == "trueframe version 1"
        with answering.found("1") as (files,):
            for name in PARTS:
                assert getattr(files, name).read_bytes() == getattr(small, name).read_bytes()
        assert not files.card.exists(), "nothing stays behind"
        rows = [one.score([jpeg(1)])[0] for one in (answering.detector("1"), small.load("1"))]
        assert rows[0] == rows[1] and rows[0]["model_version"] == "1"
        with pytest.raises(StageError, match="trueframe has no version 7"), answering.found("7"):
            pass


def test_what_the_champion_was_not_judged_on_is_answered_by_a_reference_detector(
    project: Path,
    small: Files,
    monkeypatch: pytest.MonkeyPatch,
    jpeg: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """In `check`: each line and the summary say who answered; a version that was asked for answers alone."""
    sides = {"min_side": 32, "max_side": 128}
    own = detectors.write(tmp_path / "own", threshold=small.fitted["threshold"], scope=sides)
    pictures = [tmp_path / "large.jpg", tmp_path / "little.jpg"]
    for path, size in zip(pictures, ((300, 260), (70, 60)), strict=True):
        path.write_bytes(jpeg(1, size))

    def check(version: str | None, *outputs: Path) -> tuple[list[str], list[dict[str, Any]]]:
        capsys.readouterr()
        checking.run(map(str, pictures), lambda path: path, answering.Who.of(version), checking.Wanted(outputs))
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("images checked")]
        return lines, [row for path in outputs for row in json.loads(path.read_text())]

    with registered(project, own, monkeypatch) as client:
        client.set_registered_model_alias("trueframe", "champion", "1")
        first, second, summary = check(None)[0]
        assert first.startswith(f"{pictures[0]}: ") and "by the reference detector photo)" in first
        assert second.startswith(f"{pictures[1]}: ") and "by version 1)" in second
        assert summary == (
            "trueframe version 1, the champion, was judged on pictures of 32 to 128 px: 1 of 2 pictures are of another "
            "size or unlike those, and were answered by the reference detector photo"
        )
        lines, rows = check(None, tmp_path / "out.json")
        assert [row["model_version"] for row in rows] == ["reference-photo", "1"] and lines[-1] == summary
        assert rows[0]["threshold"] != rows[1]["threshold"] == small.fitted["threshold"]
        # The same rows from before, and the same summary.
        lines, again = check(None, tmp_path / "out.json")
        assert lines[0] == "2 of 2 are known from before" and lines[-1] == summary and again == rows

        lines, alone = check("1", tmp_path / "out.json")
        assert [row["model_version"] for row in alone] == ["1", "1"] and not any("known from" in line for line in lines)
        assert "32 to 128 px" in alone[0]["warnings"][0] and "2 files" in lines[-1]
        _, kept = check("reference", tmp_path / "out.json")
        assert [row["model_version"] for row in kept] == ["reference-photo", "reference-small"]
        assert check("reference-photo", tmp_path / "out.json")[1][1]["warnings"]


def test_fast_ones_are_asked_where_any_reference_detector_may_answer() -> None:
    for alone in (False, True):  # `--version reference` too
        cascade = answering.Who(answering.REFERENCE, alone=alone, fast=True).load(answering.REFERENCE)
        assert [one.version for one in cascade.detectors] == ["reference-small", "reference-photo"]
    named = answering.Who("reference-wild", alone=True, fast=True)  # one that was asked for by its name answers
    assert [one.version for one in named.load("reference-wild").detectors] == ["reference-wild"]
    assert named.identity() == answering.Who("reference-wild", alone=True).identity()


def test_rows_from_before_hold_as_long_as_the_same_detectors_answer(
    project: Path, small: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither another registry's version of that number nor a reference detector that got better is the same."""
    shutil.copytree(FOLDER, tmp_path / "kept")
    monkeypatch.setattr(reference, "beside", lambda **_: reference.references(tmp_path / "kept"))
    with registered(project, small, monkeypatch) as client:
        said = [answering.Who("1").identity(), answering.Who("1", alone=True).identity()]
        client.set_model_version_tag("trueframe", "1", "files_sha256", "0" * 64)
        said += [answering.Who("1").identity(), answering.Who("1", alone=True).identity()]
        (tmp_path / "kept/photo/model_card.md").write_text("# Better\n")
        integrity.write(tmp_path / "kept/photo")
        said += [answering.Who("1").identity()]
        assert answering.Who("1", alone=True).identity() == said[3]
        assert answering.Who("1").identity() == said[4]
    said += [answering.Who(name).identity() for name in ("reference", "reference-photo")]
    assert len(set(said)) == len(said)


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
        page.wait_for_selector(
            "text=Trueframe version 1 answers for pictures like those",
            timeout=60_000,
        )
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
