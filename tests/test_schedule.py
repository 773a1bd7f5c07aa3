"""What runs when: prefect.yaml, the limits of a run, systemd's units, and the errors of `trueframe schedule`."""

import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import typer
import yaml

from components.stage import StageError
from flows import cli, commands, locks

ROOT = Path(__file__).parents[1]
TRUEFRAME = str(Path(sys.executable).parent / "trueframe")
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=[d["entrypoint"] for d in DEPLOYMENTS])
def test_each_deployment_is_of_a_flow_that_takes_its_parameters(deployment: dict) -> None:
    path, name = deployment["entrypoint"].split(":")
    if not (ROOT / path).exists():
        pytest.skip(f"{path} isn't here")
    flow = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
    taken = inspect.signature(flow.fn).parameters
    assert set(deployment.get("parameters", {})) <= set(taken)
    if deployment.get("schedules"):  # nobody is there to say what it lacks
        lacking = {n for n, p in taken.items() if p.default is p.empty} - set(deployment.get("parameters", {}))
        assert not lacking
    assert deployment["work_pool"]["name"] in ("cpu", "gpu")
    assert deployment["concurrency_limit"]["limit"] == 1
    assert deployment["parameters"]["hours"] > 0, "or a hung run would hold up all later ones"
    assert deployment["description"] and deployment["tags"]


def test_the_retraining_is_nightly_and_a_second_one_waits() -> None:
    [nightly] = [d for d in DEPLOYMENTS if d["name"] == "nightly"]
    assert nightly["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC"}]
    assert nightly["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
    assert 0 < nightly["parameters"]["hours"] < 24, "or a hung run would hold up the next night's"


def test_a_monitor_that_hangs_drops_no_later_one() -> None:
    [hourly] = [d for d in DEPLOYMENTS if d["name"] == "hourly"]
    assert hourly["schedules"] == [{"cron": "15 * * * *", "timezone": "UTC"}]
    assert hourly["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW"
    assert 0 < hourly["parameters"]["hours"] < 1


def test_the_pull_step_is_the_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.schedule import here

    monkeypatch.chdir(tmp_path)
    assert here() == {"directory": str(ROOT)}
    monkeypatch.setenv("TRUEFRAME_FOLDER", str(tmp_path))
    assert here() == {"directory": str(tmp_path)} and Path.cwd() == tmp_path


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    held, said = threading.Event(), threading.Event()
    free: list[bool] = []

    def hold() -> None:
        with locks.only_run(tmp_path):
            held.set()
            said.wait(10)
            free.append(True)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    with pytest.raises(StageError, match=rf"another run \(process {os.getpid()}\)"), locks.only_run(tmp_path):
        pass
    with locks.only_run(tmp_path, wait=lambda line: said.set()):
        assert free, "the other one still had it"
    other.join()


def test_a_hung_run_ends_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import limits

    monkeypatch.chdir(tmp_path)
    with pytest.raises(limits.OutOfTime, match="the next run goes on") as error, limits.bounded(3 / 3600):
        commands.run([sys.executable, "-c", "import time; print('on'); time.sleep(60)"], lambda line: None)
    state = limits.failed(error.value)
    assert state.name == "TimedOut" and state.is_failed()
    assert not [p for p in psutil.Process().children(recursive=True) if "time.sleep(60)" in " ".join(p.cmdline())]


def test_a_hung_monitor_ends_with_all_it_started_beside_a_retraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import monitor

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "presets/sample.yaml", "params.yaml")
    hangs = [sys.executable, "-c", "import time; print('on'); time.sleep(61)"]
    monkeypatch.setattr(monitor, "look", lambda **_: commands.run(hangs, lambda line: None))
    with locks.only_run(Path("artifacts")):  # a retraining is at work
        state = monitor.monitor.fn(hours=3 / 3600)
    assert state.name == "TimedOut" and state.is_failed() and "not done within" in state.message
    assert not [p for p in psutil.Process().children(recursive=True) if "time.sleep(61)" in " ".join(p.cmdline())]
    with locks.only_run(monitor.FOLDER):
        pass


def test_a_program_with_its_parent_ends_when_that_is_killed() -> None:
    code = (
        "import subprocess, sys, time; from flows import commands\n"
        "p = subprocess.Popen(commands.with_parent([sys.executable, '-c', 'import time; time.sleep(60)']))\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    end = time.monotonic() + 30
    # Until it is the program itself: at first it is what asks the kernel, and in between it has no command line.
    while (line := " ".join(child.cmdline())).count("time.sleep(60)") != 1 or "prctl" in line:
        assert time.monotonic() < end, line
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    if sys.platform == "linux":
        assert not psutil.wait_procs([child], timeout=30)[1]
    else:
        child.kill()


def schedule(*arguments: str, **env: str) -> str:
    """What `trueframe schedule` says when it can't, in one line."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env = {**inherited, "PREFECT_PROFILES_PATH": os.devnull, **env}
    done = subprocess.run([TRUEFRAME, "schedule", *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    [line] = done.stderr.splitlines()
    return line


def test_what_trueframe_schedule_cant_do_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = schedule("--port", str(port))
        assert f"port {port} can't be used" in line and "--port" in line
        taken.close()
        line = schedule(PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
        assert f"http://127.0.0.1:{port}/api doesn't answer" in line and "unset PREFECT_API_URL" in line
    assert "no work pool 'tpu'; it has cpu, gpu" in schedule("--pool", "tpu")


@pytest.mark.parametrize("unit", UNITS, ids=[u.stem for u in UNITS])
def test_the_commands_of_systemds_units_are_ours(unit: Path) -> None:
    [command] = re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    program, name, *arguments = command.split()
    if program == "/opt/trueframe/.venv/bin/trueframe":
        known = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
        options = {option for parameter in known.params for option in parameter.opts}
        assert {a for a in arguments if a.startswith("--")} <= options
    else:
        assert program == "/opt/trueframe/.venv/bin/prefect" and (name, arguments[0]) in (
            ("server", "start"),
            ("worker", "start"),
        )


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze isn't here")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/trueframe", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.glob("*.service")))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
