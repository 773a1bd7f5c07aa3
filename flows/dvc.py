"""DVC's locks, and what DVC means when it can't go on."""

import json
import os
import re
from pathlib import Path
from typing import Any

import psutil

from components import stage

LOCKS = Path(".dvc/tmp")

_MEANINGS = {
    r"'(?P<path>[^']+)' is busy, it is being blocked by: \(PID (?P<pid>\d+)\): (?P<cmd>.*?) If there are no.*": (
        r"\g<path> is in use by process \g<pid> (\g<cmd>), as .dvc/tmp/rwlock says; wait for it, or end it, and run "
        "the same command again"
    ),
    r"database( table)? is locked|^Timeout$": "another process works on DVC's notes of what is in which file ({said}); "
    "run the same command again when it is done",
    r"file is not a database|database disk image is malformed|Could not open pickled": "DVC's notes of what is in "
    "which file are damaged ({said}); remove /var/tmp/dvc/repo, or what `dvc config core.site_cache_dir` names: DVC "
    "makes them again",
    r"exited with (-9|137)$": "{said}: the system killed it, as it does when memory runs out; run it again",
}


def mend() -> None:
    """Clear what killed commands left in DVC's list of who works on what, `.dvc/tmp/rwlock`.

    DVC asks only whether a process has the number that an entry names, and after a restart another program may have it.
    A list that a crash cut off is removed. Call this under a run's own lock, and before this process uses DVC.
    """
    file = LOCKS / "rwlock"
    if not file.exists() or file.read_bytes().strip() == b"{}":
        return
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.lock import make_lock
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        is_hardlink = Config(".dvc")["core"].get("hardlink_lock", False)
        with make_lock(str(LOCKS / "rwlock.lock"), tmp_dir=str(LOCKS), hardlink_lock=is_hardlink):
            try:
                known = SCHEMA(json.loads(file.read_bytes()))
            except (ValueError, Invalid):
                file.unlink()
                return
            read = {path: [one for one in entries if _is_at_work(one)] for path, entries in known["read"].items()}
            kept = {
                "read": {path: entries for path, entries in read.items() if entries},
                "write": {path: one for path, one in known["write"].items() if _is_at_work(one)},
            }
            if kept != known:
                stage.replace(file, lambda path: path.write_text(json.dumps(kept)))
    except DvcException:  # its settings are damaged, or somebody is at it; DVC itself says what comes of that
        return


def _is_at_work(entry: dict[str, Any]) -> bool:
    """Whether the process that an entry names still runs what it names, or DVC; so, too, where that can't be seen.

    The entry holds Python's `sys.argv`: what follows the interpreter, and in place of `-m dvc` the path of its file.
    """
    if entry["pid"] == os.getpid():
        return False
    try:
        words = psutil.Process(entry["pid"]).cmdline()
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # zombies, too
        return False
    if "dvc" in (Path(word).stem for word in words):
        return True
    said = re.sub(r"^(-c|-m|.*/__main__\.py)(?= |$)", "", entry["cmd"]).split()
    return " ".join(words).split()[-len(said) :] == said if said else bool(words)


def told(said: str) -> str:
    """What DVC complains about, as one line that says what to do."""
    said = " ".join(said.removeprefix("unexpected error - ").partition("Having any troubles?")[0].split())
    if said.startswith("Unable to acquire lock."):
        return _locked()
    for pattern, meaning in _MEANINGS.items():
        if found := re.search(pattern, said, re.DOTALL):
            return found.expand(meaning).replace("{said}", said)
    return said[:500]


def _locked() -> str:
    """Who holds the lock of the whole folder; it ends with its process, unless `core.hardlink_lock` is set."""
    file = LOCKS / "lock"
    try:
        pid = int(file.read_text())
        who = f"process {pid} ({' '.join(psutil.Process(pid).cmdline())})"
    except (OSError, ValueError, psutil.Error):
        return (
            f"{file}: another DVC command holds it, or one that was killed left it behind; wait for it. If no DVC is "
            "at work here, on other machines neither, remove the file"
        )
    return f"{file}: {who} holds it; wait for it, or end it, and run the same command again"
