"""The whole loop in a folder with an unusual name whose data are links, and after that folder was moved or copied.

The tests tell one story and run in order: each takes the project on where the last one left it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import TINY, Project, clone, free_port, stop, wait_for
from PIL import Image

PLACE = "my photos 100% #1/übung"


def tiny(project: Project, seed: int = 7) -> None:
    """One network, one epoch."""
    model = {**TINY["train"]["models"]["small"], "epochs": 1, "seed": seed}
    sample = {"ingest": {**TINY["ingest"], "sample": {"n_images": 120, "size": 32, "seed": 7}}}
    rest = {"preprocess": {**TINY["preprocess"], "views": [32]}, "train": {"models": {"small": model}}}
    project.params = {**TINY, **sample, **rest, "evaluate": {"bootstrap": 100, "robustness_images": 10}}


def begin(root: Path, cache_type: str, env: dict[str, str]) -> Project:
    root.mkdir(parents=True)
    project = clone(root, **env)
    tiny(project)
    project.ok("dvc", "config", "cache.type", cache_type)
    project.ok("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "settings")
    return project


def versions(project: Project) -> list[str]:
    code = (
        "from components.register.registry import Registry\n"
        "for v in Registry('trueframe').versions(): print(v.number, *v.aliases)"
    )
    return project.ok("python", "-c", code).splitlines()


def check(project: Project) -> str:
    done = project.run("trueframe", "check", "docs/page.png")
    assert done.returncode in (0, 1), done.stderr
    return done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes | str]:
    """Files and links, Python's own caches excepted."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if (p.is_file() or p.is_symlink()) and "__pycache__" not in p.parts
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Iterator[Project]:
    yield begin(tmp_path_factory.mktemp("place") / PLACE, "symlink", prefect_server)


def test_the_loop_in_a_folder_with_an_unusual_name(project: Project) -> None:
    rng = np.random.default_rng(3)
    for label in ("ai", "real"):
        folder = project.root / "mine 50% #2" / label
        folder.mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"ü {number}.png")
    assert "24 images added" in project.ok("trueframe", "ingest", "mine", "--from", "mine 50% #2")
    output = project.ok("trueframe", "run", timeout=600)
    assert "champion: trueframe version 1" in output and "my%20photos%20100%25%20%231/%C3%BCbung" in output
    assert versions(project) == ["1 champion"]
    assert (project.root / "artifacts/models/small/network.keras").is_symlink()
    check(project)
    assert [path.name for path in project.root.parents[1].iterdir()] == [PLACE.partition("/")[0]]


def test_it_goes_on_after_the_folder_was_moved(project: Project) -> None:
    before = project.root
    project.root = before.parents[1] / "moved ü 50%20"
    before.rename(project.root)
    before.parent.rmdir()
    assert f"this folder stood in {before} before" in check(project)
    assert "nothing changed" in project.ok("trueframe", "run", timeout=600)
    tiny(project, seed=8)
    project.ok("trueframe", "run", timeout=600)
    assert versions(project) == ["2 challenger", "1 champion"]
    assert not before.parent.exists(), "the next run writes into the new place"
    project.ok("trueframe", "promote", "2", "--force", "--reason", "a try")
    port = free_port()
    server = project.start("trueframe", "serve", "--port", str(port), log="serve.log")
    try:
        wait_for(f"http://127.0.0.1:{port}/health/ready", server, 300)
    finally:
        stop(server)


@pytest.mark.slow
def test_a_copy_leaves_the_original_alone(project: Project) -> None:
    original = Project(project.root, project.env)
    copy = Project(original.root.with_name("copy's $HOME"), project.env)
    shutil.copytree(original.root, copy.root, symlinks=True)
    before = contents(original.root)
    tiny(copy, seed=9)
    copy.ok("trueframe", "run", timeout=600)
    copy.ok("trueframe", "reproduce", "3", timeout=600)
    assert versions(copy) == ["3 challenger", "2 champion", "1"]
    assert contents(original.root) == before
    shutil.rmtree(original.root)
    check(copy)
    assert "nothing changed" in copy.ok("trueframe", "run", timeout=600)
    project.root = copy.root


@pytest.mark.slow
def test_what_is_gone_is_told_without_advice_that_destroys(project: Project) -> None:
    (project.root / "mlruns").rename(project.root / "kept")
    refused = project.run("trueframe", "check", "docs/page.png")
    assert refused.returncode == 2 and "from a copy" in refused.stderr and "delete" not in refused.stderr
    examined = project.run("trueframe", "doctor")
    assert examined.returncode == 1 and "can't be loaded" in examined.stdout
    (project.root / "kept").rename(project.root / "mlruns")
    check(project)


@pytest.mark.slow
@pytest.mark.parametrize("cache_type", ["hardlink", "reflink,copy"])
def test_every_kind_of_cache(tmp_path: Path, prefect_server: dict[str, str], cache_type: str) -> None:
    project = begin(tmp_path / "first", cache_type, prefect_server)
    project.ok("dvc", "cache", "dir", str(tmp_path / "shared"))
    project.ok("trueframe", "run", timeout=600)
    cached = contents(tmp_path / "shared")
    assert cached and versions(project) == ["1 champion"]
    project.root = project.root.rename(tmp_path / "second")
    # By hand, as DVC would not be asked.
    project.ok("python", "-m", "components.train", "--model", "small")
    project.ok("python", "-m", "components.evaluate", "--model", "small")
    assert contents(tmp_path / "shared") == cached, "the cache belongs to others too"
    project.ok("trueframe", "run", timeout=600)
    assert json.loads((project.root / "artifacts/registration.json").read_text())["version"] in ("1", "2")
