"""Every stage on a full disk: one line, nothing half-written, and the same command completes once there is room."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import copied, refused
from harness import Project

pytestmark = pytest.mark.slow

SIZE = 48  # MiB


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


def fill(project: Project, free: int) -> Path:
    filler = project.root / "filler"
    status = os.statvfs(project.root)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - 1024 * free))
    return filler


STAGES = {  # KiB that are free when it begins, less than it needs; and what it makes
    "ingest": (80, ["data", "artifacts/ingest"]),
    "validate": (2000, ["artifacts/validation"]),
    "preprocess": (200, ["artifacts/arrays", "artifacts/index.parquet"]),
    "train --model small": (40, ["artifacts/models/small"]),
    "evaluate --model small": (600, ["artifacts/evaluation/small"]),
    "register": (100, []),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage(disk: Project, stage: str) -> None:
    name, *arguments = stage.split()
    command = ["python", "-m", f"components.{name}", *arguments]
    free, made = STAGES[stage]
    for path in (disk.root / name for name in made):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    filler = fill(disk, free)
    line = refused(disk, *command)
    assert "disk full" in line or "disk is full" in line, line
    partial = [path for path in disk.root.rglob("*") if "partial" in path.name and path.suffix != ".pyc"]
    assert partial == [], "nothing half-written"
    filler.unlink()
    disk.ok(*command)
