"""Every stage on a full disk: one line, nothing half-written, and the same command completes once there is room."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import copied, refused
from harness import Project

SIZE = 48  # MiB
ROOM = 2**20  # bytes that are left when a stage begins, enough for it to begin to write


@pytest.fixture(scope="module")
def disk(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with its store on a disk of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk isn't allowed here: {done.stderr.strip()}")
    try:
        project = copied(finished, folder / "project")
        shutil.rmtree(project.root / ".dvc/cache/runs")
        project.ok("python", "-c", "from components import tracking; tracking.connect()")
        yield project
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(project: Project, left: int) -> Path:
    filler = project.root / "filler"
    status = os.statvfs(project.root)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - left))
    return filler


STAGES = {
    "ingest": ["data", "artifacts/ingest"],
    "validate": ["artifacts/validation"],
    "preprocess": ["artifacts/arrays", "artifacts/index.parquet"],
    "train --model small": ["artifacts/models/small"],
    "evaluate --model small": ["artifacts/evaluation/small"],
    "register": [],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage(disk: Project, finished: Path, stage: str) -> None:
    name, *arguments = stage.split()
    command = ["python", "-m", f"components.{name}", *arguments]
    for made in STAGES[stage]:
        path = disk.root / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for left in (0, ROOM):
        filler = fill(disk, left)
        line = refused(disk, *command)
        assert "disk full" in line or "disk is full" in line or "No space left" in line, line
        filler.unlink()
    disk.ok(*command)
    partial = [path for path in disk.root.rglob("*") if "partial" in path.name and ".dvc" not in path.parts]
    assert partial == []
