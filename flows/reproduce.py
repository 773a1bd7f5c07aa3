"""Make a registered version again, from what it recorded, in a folder of its own."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from components import params
from components.register import LINEAGE
from components.register.registry import Registry, Version
from components.stage import StageError, read_json
from flows import commands, doctor


@dataclass(frozen=True)
class Row:
    """One score as it was recorded, with its 95 % bootstrap interval, and as it came out again."""

    name: str
    recorded: float
    reproduced: float
    interval: tuple[float, float]

    @property
    def within(self) -> bool:
        """Whether the difference is one that other test images of the same kind would have made too."""
        low, high = self.interval
        return low <= self.reproduced <= high


def reproduce(registry: Registry, number: str) -> list[Row]:
    """Check the recorded code out, bring the recorded data and settings, and run the stages again.

    All of it happens in a temporary git worktree with an MLflow store of its own. The registry, `data/` and
    `artifacts/` of this folder stay as they are.

    Args:
        registry: that holds the version.
        number: of the version.

    Returns:
        A row for each score that has an interval.

    Raises:
        StageError: there is no such version; what it recorded is missing; or a stage failed.
    """
    version = registry.version(number)
    name = f"{registry.name} version {number}"
    commit = _commit(version, name)
    with tempfile.TemporaryDirectory(prefix="trueframe-") as scratch:
        Path(scratch, "recorded").mkdir()
        lineage, recorded = _recorded(registry, version, name, Path(scratch, "recorded"))
        for line in differences(lineage / "requirements.lock"):
            print(f"warning: {line}", file=sys.stderr)
        with _worktree(commit, Path(scratch, "code")) as folder:
            (folder / "params.yaml").write_text((lineage / "params.yaml").read_text())
            (folder / "dvc.lock").unlink(missing_ok=True)  # nothing is to be taken from the cache
            _data(folder, Path(scratch, "cache"), version, name)
            train = params.load(folder / "params.yaml").train
            candidate = version.tags["candidate"]
            target = f"{'ensemble' if candidate in train.ensembles else 'evaluate'}@{candidate}"
            print(f"{name}: {target} and all before it, in {folder}", flush=True)
            again = commands.dvc("--cd", str(folder), "repro", "--force", "--no-run-cache", "--no-commit", target)
            own = {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db", "PYTHONPATH": str(folder)}
            try:
                commands.run(again, lambda line: print(line, flush=True), **own)
            except commands.CommandFailed as error:
                raise StageError(f"{name} can't be made again: {error}") from None
            made = read_json(folder / "artifacts/evaluation" / candidate / "metrics.json")
        return compare(recorded, made)


def compare(recorded: dict[str, Any], again: dict[str, Any]) -> list[Row]:
    """What two `metrics.json` say, score by score.

    Raises:
        StageError: they are of other numbers of test images.
    """
    if recorded["n"] != again["n"]:
        raise StageError(
            f"the recorded scores are of {recorded['n']:,} test images and the reproduced ones of {again['n']:,}; "
            "the data or its splits are not the same"
        )
    return [
        Row(name, recorded[name], float("nan") if again[name] is None else again[name], tuple(interval))
        for name, interval in recorded["intervals"].items()
        if interval
    ]


def differences(lock: Path) -> list[str]:
    """In what the packages here are others than in a `requirements.lock`; one line, or none."""
    if not lock.exists():
        return ["no requirements.lock was recorded, so the packages may be others"]
    other = []
    for line in lock.read_text().splitlines():
        try:
            wanted = Requirement(line.split(" \\")[0].split(" #")[0])
            here = metadata.version(wanted.name) if not wanted.marker or wanted.marker.evaluate() else None
        except (InvalidRequirement, metadata.PackageNotFoundError):
            continue  # a hash, a comment, or an extra that isn't installed
        if here and not wanted.specifier.contains(here, prereleases=True):
            other.append(f"{wanted.name} {here} ({wanted.specifier})")
    return [f"{len(other)} packages are others than in the recorded lock: {', '.join(other)}"] if other else []


def _commit(version: Version, name: str) -> str:
    commit = version.tags.get("git_commit")
    if not commit:
        raise StageError(f"{name} names no git commit; it was registered outside of a repository")
    if version.tags.get("git_dirty") == "true":
        raise StageError(
            f"{name} was made by code with changes that were not committed (git_dirty), so nobody has that code; "
            "commit and register anew"
        )
    if _git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise StageError(
            f"{name} was made by commit {commit}, which isn't in this repository; `git fetch` may bring it"
        )
    return commit


def _recorded(registry: Registry, version: Version, name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with the settings and locks by which the version was made, and its `metrics.json`."""
    found = []
    for artifact in (LINEAGE, "evaluation/metrics.json"):
        try:
            path = registry.mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=artifact, dst_path=str(folder)
            )
        except (registry.mlflow.exceptions.MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StageError(f"{name}: {artifact} isn't among the artifacts of its run ({reason})") from None
        found.append(Path(path))
    lineage, metrics = found
    if not (lineage / "params.yaml").exists():
        raise StageError(f"{name}: its settings were not recorded, {LINEAGE}/params.yaml of its run")
    return lineage, read_json(metrics)


@contextmanager
def _worktree(commit: str, where: Path) -> Iterator[Path]:
    """The project's folder as it was at a commit."""
    added = _git("worktree", "add", "--detach", str(where), commit)
    if added.returncode:
        raise StageError(f"git can't check {commit} out: {added.stderr.strip().splitlines()[-1]}")
    try:
        yield where / _git("rev-parse", "--show-prefix").stdout.rstrip("\n")
    finally:
        _git("worktree", "remove", "--force", str(where))


def _data(folder: Path, cache: Path, version: Version, name: str) -> None:
    """The recorded version of the data, from this folder's DVC cache, or from its remote."""
    md5 = version.tags.get("data_md5")
    if not md5:
        raise StageError(f"{name} names no version of the data (data_md5); it was registered without data.dvc")
    (folder / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5, "hash": "md5", "path": "data"}]}))
    local = Path(".dvc/config.local")
    if local.exists():
        (folder / ".dvc/config.local").write_text(local.read_text())
    said: list[str] = []
    remote = commands.remotes()
    try:
        commands.run(commands.dvc("cache", "dir"), said.append)
        cache.symlink_to(said[-1])  # DVC's settings can't hold a path with letters outside of ASCII
        for step in (("cache", "dir", "--local", str(cache)), ("pull" if remote else "checkout", "data.dvc")):
            commands.run(commands.dvc("--cd", str(folder), *step), said.append)
    except commands.CommandFailed as error:
        where = "on the DVC remote" if remote else "in the DVC cache, and no remote is configured"
        reason = doctor.remote_trouble([f"ERROR: {error}"])
        raise StageError(f"{name} was made of the data {md5}, which isn't {where}: {reason}") from None


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True)
