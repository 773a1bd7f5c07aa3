"""`trueframe check`: one photograph in a new process, and thousands in one, beside another checkout.

The reference detectors answer: all of them, and the small ones (`--fast`), which are all that the other checkout may
have. Of each file a process has seen every other run, so that all find it in the page cache.

    make bench OTHER=PATH                      PATH: a checkout with its own .venv
    python -m benchmarks check                 this checkout alone
"""

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import other

ROUNDS = 5
_FAST, _ALL = "this checkout, `--fast`", "this checkout"
_FEW = 200  # pictures for the large detector
SETS = {"CIFAKE's test files": (10_008, 32), "`photos`": (3_777, 256)}


def run() -> str:
    here = Path(__file__).parents[1]
    checkouts = {_FAST: (here, "--fast"), _ALL: (here,)}
    if beside := other():
        checkouts["the other"] = (beside,)
    with tempfile.TemporaryDirectory() as folder:
        sets = _sets(Path(folder))
        photograph = next(path for path in sorted(sets["`photos`"].rglob("*.jpg")))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
        for _ in range(ROUNDS + 1):
            for name, checkout in checkouts.items():
                found[name].append(_check(Path(folder), photograph, *checkout))
        rates: dict[str, dict[str, float]] = {name: {} for name in checkouts}
        for kind, path in sets.items():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            few = Path(folder, "few", path.name)
            few.mkdir(parents=True)
            for number, file in enumerate(files[:: len(files) // _FEW]):
                os.link(file, few / f"{number}{file.suffix}")
            for name, checkout in checkouts.items():
                n, which = (len(list(few.iterdir())), few) if name == _ALL else (len(files), path)
                rates[name][kind] = n / _check(Path(folder), which, *checkout)[0]
    lines = [
        f"`trueframe check` by the reference detectors; one photograph: median of {ROUNDS} new processes; sets: whole "
        f"process, images/s (of {_ALL} on some {_FEW})",
        "| | one photograph, s | peak memory, MiB | " + " | ".join(sets) + " |",
        "|---|---|---|" + "---|" * len(sets),
    ]
    for name, tries in found.items():
        seconds, memory = (statistics.median(values) for values in zip(*tries[1:], strict=True))
        speeds = " | ".join(f"{rate:.0f}" for rate in rates[name].values())
        lines.append(f"| {name} | {seconds:.2f} | {memory:.0f} | {speeds} |")
    if beside:
        ours, theirs = rates[_FAST], rates["the other"]
        lines += ["", ", ".join(f"{kind}: {ours[kind] / theirs[kind]:.2f} times" for kind in sets)]
    return "\n".join(lines) + "\n"


def _check(folder: Path, path: Path, checkout: Path, *options: str) -> tuple[float, float]:
    """s that a process takes, and MiB that it has at its peak."""
    python = Path(sys.executable) if checkout == Path(__file__).parents[1] else checkout / ".venv/bin/python"
    command = [python, "-m", "flows.cli", "check", path, "--csv", folder / "out.csv", *options]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    (folder / "out.csv").unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1) or b"Traceback" in said:  # 1: something is ai
        raise SystemExit(f"{checkout}: {said.decode()[-2000:]}")
    return time.monotonic() - began, used.ru_maxrss / 1024


def _sets(folder: Path) -> dict[str, Path]:
    """The sets unpacked, where `TRUEFRAME_TEST_DATA` has them; else as many made pictures of their sizes."""
    data = os.environ.get("TRUEFRAME_TEST_DATA")
    places = {name: folder / str(side) for name, (_, side) in SETS.items()}
    cifake, photos = places.values()
    if data:
        with tarfile.open(Path(data) / "cifake.tar.xz") as archive:
            members = [m for m in archive if m.isfile() and "/test/" in f"/{m.name}"]
            archive.extractall(cifake, members, filter="data")
        zipfile.ZipFile(Path(data) / "photos.zip").extractall(photos)
        return places
    for (n, side), place in zip(SETS.values(), places.values(), strict=True):
        place.mkdir()
        for number in range(n):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")
    return places
