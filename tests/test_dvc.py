"""What killed DVC commands leave behind, and what DVC means when it can't go on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.stage import StageError
from flows import commands, dvc, versions

WAITS = "import sys; print('here', flush=True); sys.stdin.read()"
Start = Callable[..., int]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with something to add, in which the test is at work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("1")
    return tmp_path


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program that waits, and give its number back."""
    running: list[subprocess.Popen[str]] = []

    def started(*command: str) -> int:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        return process.pid

    yield started
    for process in running:
        process.kill()
        process.communicate()


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def held(repository: Path, pid: Any, cmd: str = "/x/dvc/__main__.py add data", mode: str = "write") -> Path:
    """Put an entry into the list, as DVC does."""
    file = repository / ".dvc/tmp/rwlock"
    file.parent.mkdir(exist_ok=True)
    entry = {"pid": pid, "cmd": cmd}
    file.write_text(json.dumps({mode: {str(repository / "data"): [entry] if mode == "read" else entry}}))
    return file


def add() -> None:
    """What a run does: with the list mended, by DVC's own command."""
    dvc.mend()
    commands.run(commands.dvc("add", "data"), lambda line: None)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_an_entry_whose_number_another_program_has_is_cleared(repository: Path, start: Start, mode: str) -> None:
    held(repository, start(sys.executable, "-c", WAITS, "add", "other"), mode=mode)
    with pytest.raises(commands.CommandFailed):  # DVC by itself believes it
        commands.run(commands.dvc("add", "data"), lambda line: None)
    add()
    assert (repository / "data.dvc").exists()


def test_an_entry_whose_number_this_process_or_nobody_has_is_cleared(repository: Path) -> None:
    for pid in (os.getpid(), dead(), 2**40, -5):
        held(repository, pid, " ".join(["/bin/trueframe", *sys.argv[1:]]))
        dvc.mend()
        assert json.loads((repository / ".dvc/tmp/rwlock").read_text()) == {"read": {}, "write": {}}


def test_a_process_that_ended_and_that_nobody_waits_for_holds_nothing(repository: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    held(repository, process.pid)
    dvc.mend()
    assert json.loads((repository / ".dvc/tmp/rwlock").read_text())["write"] == {}
    process.wait()


@pytest.mark.parametrize(
    ("program", "cmd"),
    [
        (["-c", WAITS, "dvc", "repro"], "/x/dvc/__main__.py repro"),  # DVC, or its command in another folder
        (["waits.py", "add", "a b"], "waits.py add a b"),  # a program that uses DVC as a library
        (["-m", "waits", "add"], "/x/waits/__main__.py add"),
    ],
)
def test_an_entry_of_a_process_at_work_is_kept_and_told(
    repository: Path, start: Start, program: list[str], cmd: str
) -> None:
    (repository / "waits.py").write_text(WAITS)
    pid = start(sys.executable, *program)
    file = held(repository, pid, cmd)
    before = file.read_text()
    dvc.mend()
    assert file.read_text() == before
    with pytest.raises(commands.CommandFailed) as failed:
        add()
    with pytest.raises(StageError) as refused:
        versions.version()
    for error in (failed, refused):
        said = str(error.value)
        assert f"{repository}/data is in use by process {pid} ({cmd}), as .dvc/tmp/rwlock says; wait for it" in said
        assert "\n" not in said


def test_what_is_at_work_keeps_its_entry_beside_one_that_is_cleared(repository: Path, start: Start) -> None:
    here = {"pid": start(sys.executable, "-c", WAITS, "dvc"), "cmd": "dvc repro"}
    gone = {"pid": start(sys.executable, "-c", WAITS), "cmd": "/venv/bin/trueframe ingest mine"}
    (repository / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"/a": [here, gone], "/b": [gone]}, "write": {}}))
    dvc.mend()
    assert json.loads((repository / ".dvc/tmp/rwlock").read_text()) == {"read": {"/a": [here]}, "write": {}}


@pytest.mark.parametrize(
    "content", [b"", b'{"read": {', b"\0" * 40, b"\xff\xfe", b"[]", b"null", b'{"write": {"/a": 1}}']
)
def test_a_list_that_a_crash_cut_off_is_removed(repository: Path, content: bytes) -> None:
    (repository / ".dvc/tmp/rwlock").write_bytes(content)
    add()
    assert (repository / "data.dvc").exists()


def test_who_holds_the_lock_of_the_whole_folder_is_told(repository: Path, start: Start) -> None:
    holds = "import sys, zc.lockfile; lock = zc.lockfile.LockFile('.dvc/tmp/lock'); " + WAITS.removeprefix(
        "import sys; "
    )
    pid = start(sys.executable, "-c", holds)
    with pytest.raises(commands.CommandFailed, match=rf"^\.dvc/tmp/lock: process {pid} \(.*\) holds it; wait for it"):
        add()


def test_a_lock_that_a_killed_process_left_behind_is_told(repository: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.hardlink_lock", "true"], check=True)
    code = (
        "import os; from dvc.lock import make_lock; "
        "make_lock('.dvc/tmp/lock', tmp_dir='.dvc/tmp', hardlink_lock=True).lock(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code])
    with pytest.raises(
        commands.CommandFailed, match=r"^\.dvc/tmp/lock: .* If no DVC is at work here.* remove the file"
    ):
        add()
    (repository / ".dvc/tmp/lock").unlink()
    add()


def test_damaged_notes_are_told(repository: Path) -> None:
    add()
    for file in (repository / "site").rglob("cache.db*"):
        file.write_bytes(b"garbage" * 999)
    with pytest.raises(commands.CommandFailed, match=r"damaged .* remove /var/tmp/dvc/repo"):
        add()
    with pytest.raises(StageError, match=r"damaged .* remove /var/tmp/dvc/repo"):
        versions.version()


def test_a_complaint_of_several_lines_is_told_whole(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("stages:\n  a:\n    cmd: 'true'\n    dep: [x]\n")
    with pytest.raises(commands.CommandFailed, match=r"dvc\.yaml.*(stages|dep)"):
        commands.run(commands.dvc("repro"), lambda line: None)
