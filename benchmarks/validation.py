"""Validation of 10,000 to 1,000,000 images: seconds, and memory, against the number of rows.

The images are small JPEG files, drawn from a few thousand, each made one of its own by a comment in it. Their
perceptual hashes are drawn at random, except that 1 % are near copies of others and 1 % have equal pixels.

Memory is the most that the process and its workers held together, sampled 50 times a second; libraries that they
share count in each. `getrusage` says too much of workers: they inherit the peak of the process that starts them.
"""

import hashlib
import io
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from components import shards

ROOT = Path(__file__).parents[1]
ROWS = (10_000, 31_623, 100_000, 316_228, 1_000_000)
PICTURES, SHARD, DISTANCE = 3000, 4096, 4


def run(rows: tuple[int, ...] = ROWS) -> str:
    lines = [
        f"Validation, near copies within {DISTANCE} bits, 1 % near and 1 % exact copies. Growth: seconds per n·log n, "
        "relative to the first line",
        "| rows | near-duplicate search s | growth | of it comparing hashes s | growth | whole validation s | "
        "peak memory GiB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first: list[float] = []
    for n in rows:
        # Removed before the next: a million images take 0.9 GB.
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder)
            groups = _write(data, n)
            cells = []
            try:
                found = _measured("find", data, groups)
                units = [found[what] / (n * math.log(n)) for what in ("seconds", "hashes")]
                first = first or units
                growth = [f"{unit / one:.2f}" for unit, one in zip(units, first, strict=True)]
                cells += [f"{found['seconds']:.1f}", growth[0], f"{found['hashes']:.3f}", growth[1]]
                whole = _measured("validate", data, groups)
                cells += [f"{whole['seconds']:.1f}", f"{whole['peak']:.2f}"]
            except RuntimeError as error:
                cells.append(str(error))
            lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _pictures(rng: np.random.Generator) -> list[tuple[bytes, bytes, int, int]]:
    """Files of different pictures, each saved in two qualities, and their width and height."""
    found = []
    for _ in range(PICTURES):
        width, height = rng.integers(16, 25, 2).tolist()
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        files = [io.BytesIO(), io.BytesIO()]
        for file, quality in zip(files, (92, 75), strict=True):
            picture.save(file, "JPEG", quality=quality)
        found.append((files[0].getvalue(), files[1].getvalue(), width, height))
    return found


def _write(data: Path, n: int) -> int:
    """Write a source of `n` rows; gives the number of groups of copies back that are in it."""
    rng = np.random.default_rng(n)
    pictures = _pictures(rng)
    which = rng.integers(0, PICTURES, n)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    shuffled = rng.permutation(n)
    near, exact, others = np.split(shuffled, [n // 100, 2 * (n // 100)])
    resaved = np.zeros(n, bool)
    resaved[near] = True
    for copies in (near, exact):
        of = rng.choice(others, len(copies))
        which[copies], hashes[copies] = which[of], hashes[of]
    where = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (len(near), 1)), axis=1)[:, :3]
    bits = np.where(np.arange(3) < rng.integers(1, 4, (len(near), 1)), np.uint64(1) << where, np.uint64(0))
    hashes[near] ^= np.bitwise_or.reduce(bits, axis=1)
    splits = rng.choice(["train", "train", "train", "validation", "test"], n).tolist()

    (data / "drawn").mkdir(parents=True)
    for number, start in enumerate(range(0, n, SHARD)):
        rows = []
        for row in range(start, min(n, start + SHARD)):
            *files, width, height = pictures[which[row]]
            file = files[int(resaved[row])]
            comment = b"%012d" % row
            file = file[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + file[2:]
            label = shards.LABELS[which[row] % 2]  # of the picture, so that no copies have both
            rows.append(
                {
                    "image": {"bytes": file, "path": f"{row}.jpg"},
                    "label": label,
                    "source": "drawn",
                    "generator": "none" if label == "ai" else None,
                    "split": splits[row],
                    "sha256": hashlib.sha256(file).hexdigest(),
                    "phash": int(hashes[row]),
                    "width": width,
                    "height": height,
                    "mode": "RGB",
                    "format": "JPEG",
                    "n_bytes": len(file),
                    "origin": f"{label}/{row}.jpg",
                }
            )
        shards.write(data / f"drawn/drawn-{number:05}.parquet", rows)
    return len(others)


def _measured(what: str, data: Path, groups: int) -> dict[str, float]:
    """What a process of its own says of the time that it takes, and `peak`, the GiB of memory.

    Raises:
        RuntimeError: it failed, or found other copies than there are.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-m", "benchmarks.validation", what, str(data)]
        child = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _resident(child))
            time.sleep(0.02)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise RuntimeError(f"failed: {(err.read().decode().strip().splitlines() or ['no word'])[-1]}")
        result = json.loads(out.read().splitlines()[-1])
    if result["groups"] != groups:
        raise RuntimeError(f"{result['groups']:,} groups of copies were found, not {groups:,}")
    return result | {"peak": peak / 2**30}


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _child(what: str, data: Path) -> None:
    """Do one of both and print the seconds; those of `find` are without reading the manifest."""
    import pandas as pd

    from components.params import Validate
    from components.validate import duplicates, validate

    result = {}
    if what == "find":
        files = shards.paths(data, ["drawn"])
        rows = shards.manifest(files)
        began = time.perf_counter()
        groups = duplicates.find(rows, files, DISTANCE)["group"]
        result["seconds"] = time.perf_counter() - began
        hashes = np.unique(rows["phash"].to_numpy(np.uint64))
        times = []
        for _ in range(7):
            began = time.perf_counter()
            duplicates.near_pairs(hashes, DISTANCE)
            times.append(time.perf_counter() - began)
        result["hashes"] = min(times)
    else:
        began = time.perf_counter()
        validate(data, ["drawn"], Validate(near_distance=DISTANCE), data / "out")
        result["seconds"] = time.perf_counter() - began
        groups = pd.read_parquet(data / "out/groups.parquet", columns=["group"])["group"]
    print(json.dumps(result | {"groups": groups.nunique()}))


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]))
