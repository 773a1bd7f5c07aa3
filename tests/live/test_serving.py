"""`trueframe serve` with real detectors: it follows the champion under load, mends itself, and ends whole.

The tests tell one story and run in order.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import served
from served import Load, Registered, Serving

README = Path(__file__).parents[2] / "README.md"
KEY = "a-key"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Versions 1 and 2 answer; 3 can't be loaded."""
    folder = tmp_path_factory.mktemp("serving")
    made = served.project(folder / "project", poll_s=0.5, answer_s=served.PATIENCE)
    for version in ("1", "2", "3"):
        assert made.add(served.packed(served.detector(folder / version, seed=int(version)))) == version
    for file in (folder / "3/model/artifacts").iterdir():
        file.write_bytes(b"")
    made.promote("1")
    return made


DEADLY = """
import os, signal
from PIL import Image

opened = Image.open


def deadly(*args, **kwargs):
    image = opened(*args, **kwargs)
    if image.size == (23, 29):
        os.kill(os.getpid(), signal.SIGSEGV)
    return image


Image.open = deadly
"""
"""On the path of all processes: a picture of 23 × 29 px brings its decoder down."""


@pytest.fixture(scope="module")
def server(home: Registered) -> Iterator[Serving]:
    inside = home.root / "inside"
    inside.mkdir()
    (inside / "sitecustomize.py").write_text(DEADLY)
    with served.serve(
        home, "--follow", PYTHONPATH=f"{inside}{os.pathsep}{home.environment()['PYTHONPATH']}"
    ) as serving:
        yield serving


def test_it_answers_and_says_so(server: Serving) -> None:
    server.wait(lambda: "try: curl" in server.log.read_text())
    said = server.log.read_text()
    assert f"version 1 is ready at {server.url}/invocations" in said
    assert f"try: curl -s -F file=@PICTURE {server.url}/v1/check" in said
    assert server.ask(served.picture(1))[0]["model_version"] == "1"
    assert requests.get(f"{server.url}/version", timeout=60).json()["model_version"] == "1"
    assert server.metric('trueframe_model_version{version="1"}') == 1


def test_it_follows_the_champion_and_back_without_a_failed_request(home: Registered, server: Serving) -> None:
    before = len(server.family())
    with Load(server) as load:
        for version in ("2", "1"):
            home.promote(version)
            server.wait(lambda version=version: load.versions[-1:] == [version])
    assert load.failures == []
    assert set(load.versions) == {"1", "2"}
    server.wait(lambda: server.metric('trueframe_moves_total{outcome="done"}') == 2)
    server.wait(lambda: len(server.family()) == before)  # the servers before are gone


def test_a_champion_that_cannot_be_loaded_changes_nothing(home: Registered, server: Serving) -> None:
    before = len(server.family())
    with Load(server) as load:
        home.promote("3")
        server.wait(lambda: server.metric("trueframe_champion_failed") == 1)
    assert load.failures == [] and set(load.versions) == {"1"}
    assert server.metric('trueframe_moves_total{outcome="failed"}') == 1
    [line] = [line for line in server.log.read_text().splitlines() if line.startswith("error: ")]
    assert "models:/trueframe/3 can't be served" in line and "VERSION 1 GOES ON" in line
    assert "detector.onnx: not an ONNX file, or damaged; VERSION" in line, "the reason"
    server.wait(lambda: len(server.family()) == before)
    home.promote("1")
    server.wait(lambda: server.metric("trueframe_champion_failed") == 0)


def test_without_a_registry_it_goes_on(home: Registered, server: Serving) -> None:
    with (home.root / "mlflow.db").open("r+b") as database:
        kept = database.read(100)
        for header, is_up in ((bytes(100), 0), (kept, 1)):
            database.seek(0)
            database.write(header)
            database.flush()
            server.wait(lambda is_up=is_up: server.metric("trueframe_registry_up") == is_up)
            assert server.ask(served.picture(1))[0]["model_version"] == "1"


def test_a_picture_that_brings_a_decoder_down_costs_what_was_asked_in_that_moment(server: Serving) -> None:
    with Load(server) as load:
        server.wait(lambda: load.versions)
        with pytest.raises(requests.ConnectionError):
            server.ask(served.picture(1, size=(23, 29)), timeout=served.PATIENCE)
        answered = len(load.versions)
        server.wait(lambda: len(load.versions) > answered + 10)
    assert len(load.failures) <= len(load.threads), "each caller's request of that moment, at most"
    assert not any("refused" in failure for failure in load.failures), "who comes meanwhile waits"
    assert server.metric("trueframe_restarts_total") == 1
    assert "started anew" in server.log.read_text()


def test_all_that_dies_is_started_anew(server: Serving) -> None:
    for pid in server.family():
        os.kill(pid, signal.SIGKILL)
    assert server.ask(served.picture(1), timeout=served.PATIENCE)[0]["error"] is None  # it waits for the new one
    assert server.metric("trueframe_restarts_total") == 2
    assert server.metric('trueframe_moves_total{outcome="done"}') == 2, "what was counted stays"


def test_the_port_is_taken(home: Registered, server: Serving) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [os.sys.executable, "-m", "flows.cli", "serve", "--port", port],  # type: ignore[attr-defined]
        cwd=home.root,
        env=home.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{port} can't be used" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def blocks(text: str) -> list[str]:
    """The fenced blocks under the heading `Serve` that hold a curl."""
    section = re.search(r"^## Serve\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, "README.md has no heading `## Serve`"
    found = re.findall(r"^```(?:sh|bash|)\n(.*?)^```", section[1], re.M | re.S)
    return [block for block in found if "curl" in block]


def test_the_curl_examples_of_the_readme_work_as_pasted(server: Serving, tmp_path: Path) -> None:
    examples = blocks(README.read_text())
    assert examples
    for name in ("photo.jpg", "other.png"):
        (tmp_path / name).write_bytes(served.picture(1, "JPEG" if name.endswith("jpg") else "PNG"))
    for example in examples:
        script = example.replace("http://127.0.0.1:5001", server.url)
        assert script != example, example
        env = {**os.environ, "TRUEFRAME_API_KEY": KEY}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{example}\n{done.stderr}"
        assert '"error":' not in done.stdout.replace('"error":null', ""), f"{example}\n{done.stdout}"
        assert '"verdict"' in done.stdout or "/health" in example or "/metrics" in example, done.stdout


def test_it_ends_with_all_that_it_started(home: Registered, server: Serving) -> None:
    family = server.family()
    assert family
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert [pid for pid in family if alive(pid)] == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux alone ends children with their parent")
def test_killed_it_leaves_nothing_behind(home: Registered) -> None:
    with served.serve(home) as serving:
        family = serving.family()
        assert family
        serving.process.kill()
        serving.process.wait()
        end = time.monotonic() + 60
        while left := [pid for pid in family if alive(pid)]:
            assert time.monotonic() < end, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
            time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
