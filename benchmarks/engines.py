"""What it costs to go past one machine, on one machine: Ray against its cores, and two processes against one.

Both ways do the same work on the same two cores, in turns, so that what differs is overhead; on two machines, half of
the work would be elsewhere. Times are wall-clock seconds of whole commands.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from components import shards

ROOT = Path(__file__).parents[1]
IMAGES, SIDE, SHARD, ROUNDS = 4000, 384, 1000, 3
TRAINED, EPOCHS, BATCH = 6400, 3, 128


def run() -> str:
    tables = []
    if importlib.util.find_spec("ray"):
        with tempfile.TemporaryDirectory() as folder:
            tables.append(_preprocess(Path(folder)))
    if importlib.util.find_spec("jax"):
        with tempfile.TemporaryDirectory() as folder:
            tables.append(_train(Path(folder)))
    return "\n".join(tables) or "Engines: left out, neither ray nor jax is installed\n"


# Preprocess


def _preprocess(root: Path) -> str:
    _write_images(root)
    arguments = ["components.preprocess", "--groups", "groups.parquet"]

    def decode(engine: str, **env: str) -> float:
        _settings(root, engine={"preprocess": engine})
        subprocess.run(["rm", "-rf", "artifacts"], cwd=root, check=True)
        return _timed(root, *arguments, **env)

    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 * 2**20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    try:
        rows = _rounds(
            {
                "`engine.preprocess: local`": lambda: decode("local"),
                "`ray`, a cluster that runs: 2 nodes of 1 core": lambda: decode("ray", RAY_ADDRESS=cluster.address),
                "`ray`, started for it": lambda: decode("ray"),
            }
        )
    finally:
        cluster.shutdown()
    return _table(f"Preprocess, {IMAGES:,} JPEG of {SIDE} px at 64 and 224 px, {os.cpu_count()} cores", IMAGES, rows)


def _write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    import io

    files = []
    for _ in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    (root / "data/drawn").mkdir(parents=True)
    for start in range(0, IMAGES, SHARD):
        rows = [
            {
                "image": {"bytes": files[n % 32], "path": f"{n}.jpg"},
                "label": shards.LABELS[n % 2],
                "source": "drawn",
                "sha256": f"{n:064x}",
            }
            for n in range(start, start + SHARD)
        ]
        shards.write(root / f"data/drawn/drawn-{start // SHARD:05}.parquet", rows)
    manifest = shards.manifest(shards.paths(root / "data", ["drawn"]))
    manifest[["shard", "row"]].assign(group=manifest["sha256"]).to_parquet(root / "groups.parquet")


# Training


def _train(root: Path) -> str:
    rng = np.random.default_rng(0)
    file = root / "arrays/32/drawn/a.npy"
    file.parent.mkdir(parents=True)
    np.save(file, rng.integers(0, 256, (TRAINED + 512, 32, 32, 3), np.uint8))
    index = pd.DataFrame({"row": range(TRAINED + 512)})
    index = index.assign(
        shard="drawn/a",
        source="drawn",
        sha256=index["row"].map("{:064x}".format),
        label=np.where(rng.random(len(index)) < 0.5, "ai", "real"),
        split=np.where(index["row"] < TRAINED, "train", "validation"),
    )
    index.to_parquet(root / "index.parquet")
    model = {"network": "cnn", "view": 32, "epochs": EPOCHS, "batch_size": BATCH, "patience": EPOCHS}
    _settings(root, train={"models": {"cnn": model}})
    rates: dict[str, list[float]] = {}

    def fit(name: str, *arguments: str, **env: str) -> float:
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
        call = ["components.train", "--model", "cnn", "--index", "index.parquet", "--arrays", "arrays"]
        seconds = _timed(root, *call, *arguments, **store, **env)
        history = pd.read_csv(root / "artifacts/models/cnn/history.csv")
        # The first epoch compiles.
        rates.setdefault(name, []).append(float(history["images_per_second"].iloc[1:].median()))
        return seconds

    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ways: dict[str, Callable[[], float]] = {
        "one process, JAX": lambda: fit("one process, JAX", **jax),
        "two processes, JAX": lambda: fit("two processes, JAX", "--processes", "2", **jax),
        "one process, TensorFlow": lambda: fit("one process, TensorFlow", KERAS_BACKEND="tensorflow"),
    }
    rows = _rounds(ways)
    what = (
        f"Training, `cnn` at 32 px, {EPOCHS} epochs of {TRAINED:,} images, global batch {BATCH}, {os.cpu_count()} cores"
    )
    extra = {name: f"{statistics.median(found):,.0f}" for name, found in rates.items()}
    return _table(what, EPOCHS * TRAINED, rows, extra)


# Both


def _settings(root: Path, **sections: object) -> None:
    settings: dict[str, object] = {
        "ingest": {"sources": {"drawn": {"from": "here"}}},
        "validate": {},
        "preprocess": {"views": [32, 64, 224] if "train" in sections else [64, 224]},
        "train": {"models": {"cnn": {"network": "cnn", "view": 64}}},
        "evaluate": {},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(settings | sections))


def _timed(root: Path, *command: str, **env: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def _rounds(ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each way, in turns, so that other work on the machine meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            found[name].append(way())
    return found


def _table(title: str, images: int, rows: dict[str, list[float]], steady: dict[str, str] | None = None) -> str:
    first = next(iter(rows.values()))
    lines = [
        f"{title}; whole commands, median of {ROUNDS} rounds",
        f"| | seconds | images/s | × the first |{' images/s after the first epoch |' if steady else ''}",
        f"|---|---:|---:|---:|{'---:|' if steady else ''}",
    ]
    for name, seconds in rows.items():
        ratio = statistics.median(s / f for s, f in zip(seconds, first, strict=True))
        median = statistics.median(seconds)
        line = f"| {name} | {median:.1f} | {images / median:,.0f} | {ratio:.2f} |"
        lines.append(line + (f" {steady[name]} |" if steady else ""))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(run())
