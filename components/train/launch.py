"""Several processes of one machine that fit one network, started together and ended together."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from components.stage import FLOW_PID, StageError


def launch(count: int, arguments: list[str]) -> None:
    """Run the command of the training in several processes on this machine's cores, under JAX.

    Args:
        count: processes.
        arguments: of `python -m components.train`.

    Raises:
        StageError: one of them failed or was killed; the others were ended then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, str(number)) for number in range(count)]
        processes = [_start(number, count, address, arguments, said[number]) for number in range(count)]
        try:
            while any(process.poll() is None for process in processes):
                if any(process.returncode for process in processes):
                    break
                time.sleep(0.1)
        finally:
            ended = [process.poll() for process in processes]
            for process in processes:
                process.kill()
                process.wait()
        # Those that were killed before those that failed for it.
        for number, code in sorted(enumerate(ended), key=lambda end: end[1] or 0):
            if code:
                raise StageError(
                    f"{_reason(number, code, said[number])}; the other processes were ended. The same command goes on "
                    "after the last epoch"
                )


def _start(number: int, count: int, address: str, arguments: list[str], said: Path) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",  # several GPUs of a machine need no processes
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
        "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
        FLOW_PID: str(os.getpid()),
    }
    with said.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "components.train", *arguments],
            env=environment,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=errors,
        )


def _reason(number: int, code: int, said: Path) -> str:
    if code == -signal.SIGKILL:
        return f"process {number} was killed, most likely for want of memory"
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return f"process {number}: {lines[-1].removeprefix('error: ')}" if lines else f"process {number} ended with {code}"
