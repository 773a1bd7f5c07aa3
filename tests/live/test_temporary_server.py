"""Without a Prefect server a run starts one of its own, which ends with it, however it ends."""

import signal
import time
from pathlib import Path

import psutil
from harness import clone


def test_with_a_temporary_server(tmp_path: Path) -> None:
    project = clone(tmp_path / "project", PREFECT_HOME=str(tmp_path / "prefect"))
    params = project.params
    params["train"]["models"] = {"small": {**params["train"]["models"]["small"], "epochs": 1}}
    project.params = params
    output = project.ok("trueframe", "run", timeout=400)
    assert "champion: trueframe version 1" in output
    assert "temporary server" in output

    process = project.start("trueframe", "run", log="killed.log")
    log = project.root / "killed.log"
    end = time.monotonic() + 120
    while "Beginning flow run" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("prefect.server" in " ".join(child.cmdline()) for child in family)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(family, timeout=60)[1], "its server, or a stage, outlived it"
