"""Data in, and data versioned, against what one would do with the tools alone.

* CIFAKE (110,008 JPEG) from its archive into a version on an S3 server: shards, `dvc add`, `dvc push`; against
  unpacking it, `dvc add` and `dvc push` of the folder. And again with 1,000 more images.
* Arrays of the photos at 64, 150 and 224 px against the usual loop; and with one shard more.

Both take their images from the folder that TRUEFRAME_TEST_DATA names. Times are wall-clock seconds of whole commands.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
KEY, SECRET = "ACCESSKEY1", "SECRETKEY123"
SIDES = (64, 150, 224)


def run() -> str:
    where = os.environ.get("TRUEFRAME_TEST_DATA")
    if not where:
        return "Data: left out, TRUEFRAME_TEST_DATA names no folder with cifake.tar.xz and photos.zip\n"
    with tempfile.TemporaryDirectory() as folder:
        table = _versions(Path(where) / "cifake.tar.xz", Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        return table + "\n" + _arrays(Path(where) / "photos.zip", Path(folder))


# Versions


def _versions(archive: Path, root: Path) -> str:
    port = _free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    (root / "s3/bucket").mkdir(parents=True)
    command = [str(BIN / "rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*command, str(root / "s3")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_open(port)
        ways = {}
        for name in ("shards", "folder"):
            (root / name).mkdir()
            _do(root / name, environment, "git", "init", "-q")
            _do(root / name, environment, "dvc", "init", "-q")
            _do(root / name, environment, "dvc", "remote", "add", "-q", "-d", "store", f"s3://bucket/{name}")
            _do(root / name, environment, "dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{port}")
            shutil.copy(ROOT / "presets/cifake.yaml", root / name / "params.yaml")
            shutil.copy(ROOT / "dvc.yaml", root / name)
            (root / name / ".dvcignore").write_text(".incoming\n")
        new = _new_images(root / "new")
        ways["first"] = (
            _timed(lambda: _ingest(root / "shards", environment, "cifake", archive)),
            _timed(lambda: _unpack(root / "folder", environment, archive)),
        )
        ways["again"] = (
            _timed(lambda: _ingest(root / "shards", environment, "more", new)),
            _timed(lambda: _more(root / "folder", environment, new)),
        )
        objects = [
            sum(1 for p in (root / "s3/bucket" / name).rglob("*") if p.is_file()) for name in ("shards", "folder")
        ]
    finally:
        server.terminate()
        server.wait()
    lines = [
        "CIFAKE, 110,008 JPEG of 32 px, from its archive to a version on a local S3 server (s)",
        "| | Trueframe | unpacked folder, `dvc add`, `dvc push` | times faster |",
        "|---|---|---|---|",
    ]
    for key, what in (("first", "all of it"), ("again", "1,000 images more")):
        ours, theirs = ways[key]
        lines.append(f"| {what} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |")
    lines.append(f"| objects on the server | {objects[0]:,} | {objects[1]:,} | |")
    return "\n".join(lines) + "\n"


def _ingest(folder: Path, environment: dict[str, str], name: str, source: Path) -> None:
    _do(folder, environment, "trueframe", "ingest", name, "--from", str(source))


def _unpack(folder: Path, environment: dict[str, str], archive: Path) -> None:
    (folder / "data").mkdir()
    _do(folder, environment, "tar", "xf", str(archive), "-C", "data")
    _do(folder, environment, "dvc", "add", "-q", "data")
    _do(folder, environment, "dvc", "push", "-q")


def _more(folder: Path, environment: dict[str, str], new: Path) -> None:
    shutil.copytree(new, folder / "data/more")
    _do(folder, environment, "dvc", "add", "-q", "data")
    _do(folder, environment, "dvc", "push", "-q")


def _new_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(1000):
        path = folder / ("ai" if number % 2 else "real") / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return folder


# Arrays


def _arrays(archive: Path, root: Path) -> str:
    params = yaml.safe_load((ROOT / "presets/photos.yaml").read_text())
    params["preprocess"] = {"views": list(SIDES), "validation": 0.15, "test": 0.2}
    params["train"]["models"] = {"cnn": {"network": "cnn", "view": 64}}
    params["ingest"] = {"sources": {"photos": {}}, "shard_images": 512}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stage = [sys.executable, "-m"]
    _do(root, environment, *stage, "components.ingest", "photos", "--from", str(archive))
    _groups(root)
    peak = _Peak()
    ours = _timed(lambda: peak.of([*stage, "components.preprocess"], root, environment))
    held = sorted((root / "data/photos").glob("*.parquet"))[0]
    aside = root / "aside.parquet"
    held.rename(aside)
    _groups(root)
    _do(root, environment, *stage, "components.preprocess")
    aside.rename(held)
    _groups(root)
    one = _timed(lambda: _do(root, environment, *stage, "components.preprocess"))

    with zipfile.ZipFile(archive) as packed:
        files = [packed.read(name) for name in packed.namelist() if not name.endswith("/")]
    began = time.perf_counter()
    usual = {side: [_usual(data, side) for data in files] for side in SIDES}
    theirs = time.perf_counter() - began
    n = len(files)
    del usual
    return (
        f"Arrays of {n:,} photos at {', '.join(map(str, SIDES))} px, from the shards (ours, a whole process) and from "
        "files in memory (the usual loop: open, convert, LANCZOS, float32 list)\n"
        "| | seconds | images × sizes a second |\n|---|---|---|\n"
        f"| `python -m components.preprocess` | {ours:.1f} | {n * len(SIDES) / ours:,.0f} |\n"
        f"| the usual loop | {theirs:.1f} | {n * len(SIDES) / theirs:,.0f} |\n"
        f"| times faster | {theirs / ours:.1f} | |\n"
        f"| one shard of 512 more | {one:.1f} | |\n"
        f"| peak memory of the process and its workers | {peak.bytes / 2**20:,.0f} MiB | |\n"
    )


def _groups(root: Path) -> None:
    """What validation would write: here every image is a group of its own."""
    from components import shards

    rows = shards.manifest(shards.paths(root / "data", ["photos"]))
    (root / "artifacts/validation").mkdir(parents=True, exist_ok=True)
    rows[["shard", "row"]].assign(group=rows["sha256"]).to_parquet(root / "artifacts/validation/groups.parquet")


def _usual(data: bytes, side: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 255


class _Peak:
    """The largest sum of unshared memory of a command and its children, sampled ten times a second."""

    bytes = 0

    def of(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        watcher = threading.Thread(target=self._watch, args=(psutil.Process(process.pid), process))
        watcher.start()
        if process.wait():
            raise SystemExit(f"{command} failed")
        watcher.join()

    def _watch(self, root: psutil.Process, process: "subprocess.Popen[bytes]") -> None:
        while process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
                self.bytes = max(self.bytes, sum(p.memory_full_info().uss for p in tree))
            except psutil.Error:
                continue
            time.sleep(0.1)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _do(folder: Path, environment: dict[str, str], *command: str) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_open(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the S3 server did not start")


if __name__ == "__main__":
    print(run())
