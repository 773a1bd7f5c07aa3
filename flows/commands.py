"""The stages' own commands, and DVC's, as subprocesses whose lines go where the caller wants them."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from components.stage import FLOW_PID, replace
from flows import dvc as dvc_

# TensorFlow's libraries report on their own workings in this form, whatever the log level.
_CHATTER = re.compile(
    r"^([IWE]\d{4} \d\d:\d\d:|WARNING: All log messages before absl"
    # So does DVC, with the same advice after every stage.
    r"|\s*git add |\s*dvc config core|(Updating|Generating) lock file|To track the changes|To enable auto staging"
    r"|Use `dvc push`|Running stage|> python -m components)"
)


def is_chatter(line: str) -> bool:
    """Whether a line is a library's or DVC's word on its own workings."""
    return bool(_CHATTER.match(line))


class CommandFailed(Exception):
    """A command ended with another code than 0; the message is what it said last."""


def environment() -> dict[str, str]:
    """This process's environment, with the programs of this Python first, and word of who started it."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "GX_ANALYTICS_ENABLED": "False",
        FLOW_PID: str(os.getpid()),
    }


def run(command: list[str], say: Callable[[str], None], **variables: str) -> None:
    """Run a command and pass its lines on as they come.

    Args:
        command: with its arguments.
        say: takes each line.
        variables: of its environment, beside this process's.

    Raises:
        CommandFailed: it failed.
    """
    process = subprocess.Popen(
        command,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that DVC and the stage that it runs can be ended together
    )
    last: deque[str] = deque(maxlen=20)

    def follow(stream: object, remember: deque[str] | None) -> None:
        for line in stream:  # type: ignore[attr-defined]
            if line.strip() and not is_chatter(line):
                say(line.rstrip())
                if remember is not None:
                    remember.append(line.strip())

    try:
        errors = threading.Thread(target=follow, args=(process.stderr, last), daemon=True)
        errors.start()
        follow(process.stdout, None)
        errors.join()
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code:
        raise CommandFailed(_reason(list(last), command, code))


def stage(name: str, *arguments: str) -> list[str]:
    """The command of a stage that touches the world."""
    return [sys.executable, "-m", f"components.{name}", *arguments]


def dvc(*arguments: str) -> list[str]:
    """A DVC command.

    Raises:
        ModuleNotFoundError: DVC isn't installed, as where nothing is trained.
    """
    if find_spec("dvc") is None:
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")
    return [sys.executable, "-m", "dvc", *arguments]


def with_parent(command: list[str]) -> list[str]:
    """A command as one that is told to end when the process that starts it ends, however that ends (on Linux).

    To the kernel the parent is the thread that starts it, which has to be one that lasts. (A `preexec_fn` would do the
    same, and can lock up a process with several threads.)
    """
    if sys.platform != "linux":
        return command
    program = (
        "import ctypes, os, sys\n"
        f"ctypes.CDLL(None).prctl(1, {signal.SIGTERM:d})\n"  # PR_SET_PDEATHSIG
        f"if os.getppid() == {os.getpid()}: os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", program, *command]


def stale(*names: str) -> bool:
    """Whether a stage has to run, by DVC's reckoning; any stage, where none is named."""
    answer = subprocess.run(dvc("status", "--json", *names), env=environment(), capture_output=True, text=True)
    try:
        return bool(json.loads(answer.stdout))
    except ValueError:
        return True


def mend() -> None:
    """Put right what would keep DVC, or a stage, from the files that are here (see `dvc.mend`).

    Links into DVC's cache hold its absolute path, and lead to the old place, or nowhere, once the cache was moved or
    copied with its folder.
    """
    where = dvc("cache", "dir")
    dvc_.mend()
    links = [p for folder in ("data", "artifacts") for p in Path(folder).rglob("*") if p.is_symlink()]
    if not links:
        return
    answer = subprocess.run(where, env=environment(), capture_output=True, text=True)
    cache = Path(answer.stdout.rstrip("\n"))
    for link in links:
        target = link.readlink()
        cached = cache.joinpath(*target.parts[-4:])  # files/md5/ab/cdef…
        if target.parts[-4:-2] == ("files", "md5") and target != cached and cached.is_file():
            replace(link, lambda path, cached=cached: path.symlink_to(cached))  # type: ignore[misc]


def remotes() -> bool:
    """Whether a DVC remote is configured."""
    answer = subprocess.run(dvc("remote", "list"), env=environment(), capture_output=True, text=True)
    return bool(answer.stdout.strip())


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and all that it started: politely at first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def _reason(lines: list[str], command: list[str], code: int) -> str:
    """The stage's own error line where there is one; DVC's, which may go on over several lines, otherwise."""
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    for number in reversed(range(len(lines))):
        if lines[number].startswith("ERROR: "):
            rest = itertools.takewhile(lambda line: not line.startswith(("WARNING: ", "ERROR: ")), lines[number + 1 :])
            return dvc_.told(" ".join([lines[number].removeprefix("ERROR: "), *rest]))
    for number, line in enumerate(lines):
        if re.search(r"^'.+' (validation failed|is invalid)", line):  # the lines of the file, which follow, have a rule
            return " ".join(said for said in lines[number:] if not re.search(r"│|^\d+$", said))[:500]
    return lines[-1] if lines else f"{' '.join(command[1:])} ended with code {code}"
