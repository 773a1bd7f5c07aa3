"""What 100 thousand to 100 million images cost: slopes measured here, and a model of what isn't here.

A slope is the CPU time of a whole stage over more images less that over fewer, so that what happens once falls out; CPU
time, since other work on the machine changes it little. The model multiplies: it knows cores, links and prices, and
nothing of queues, failures or people. `python -m benchmarks.scale --help` lists its assumptions.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
FEW, MANY = 500, 2500
IMAGES = (100_000, 1_000_000, 10_000_000, 100_000_000)
HOUR = 3600


@dataclass(frozen=True)
class Slopes:
    """Core-seconds an image, bytes an image."""

    ingest: float
    validate: float
    preprocess: float
    train: float
    score: float
    file: float
    arrays: float
    row: float


@dataclass(frozen=True)
class Assumptions:
    """What can't be measured here."""

    vcpu_hour: float = 0.05
    gpu_hour: float = 3.0
    gb_month: float = 0.023
    epochs: int = 20
    gpu_images: float = 3000.0
    parameters: float = 20e6
    batch: int = 256
    link: float = 10e9
    fabric: float = 100e9
    new: float = 0.01
    tests: int = 1_000_000


HELP = {
    "vcpu_hour": "price of a core for an hour",
    "gpu_hour": "price of a GPU for an hour",
    "gb_month": "price of a GB of object storage for a month",
    "epochs": "of a training",
    "gpu_images": "images that one GPU trains a second (measure yours: python -m benchmarks training)",
    "parameters": "of the network, whose gradients are exchanged in 4 bytes each",
    "batch": "images of a GPU's share of a batch",
    "link": "bit/s between machines, and from Ray's nodes to the driver",
    "fabric": "bit/s between the GPUs of different machines",
    "new": "share of the images that are new in a night",
    "tests": "images that are judged, at most (preprocess.test)",
}


def run(assumptions: Assumptions | None = None) -> str:
    return tables(measure(), assumptions or Assumptions())


# Measured


def measure() -> Slopes:
    """The slopes of the stages' own commands on images that are drawn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds = {n: _stages(root / str(n), n) for n in (FEW, MANY)}
        slope = {stage: (seconds[MANY][stage] - seconds[FEW][stage]) / (MANY - FEW) for stage in seconds[FEW]}
        fitted, rows = _trained(root / str(MANY))
        files = list((root / str(MANY)).glob("data/drawn/*.parquet"))
        arrays = list((root / str(MANY)).glob("artifacts/arrays/**/*.npy"))
        return Slopes(
            **slope,
            train=fitted / rows,
            score=_scored(root / str(MANY)),
            file=sum(path.stat().st_size for path in files) / MANY,
            arrays=sum(path.stat().st_size for path in arrays) / MANY,
            row=_memory(root / str(MANY)),
        )


def _stages(root: Path, n: int) -> dict[str, float]:
    _draw(root / "incoming", n)
    settings = {
        "ingest": {"sources": {"drawn": {}}},
        "validate": {"audit_images": 200},  # a fixed number, however many images there are
        "preprocess": {"views": [64, 224]},
        "train": {"models": {"cnn": {"network": "cnn", "view": 64, "batch_size": 128, "patience": 99}}},
        "evaluate": {},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    return {
        "ingest": _cpu(root, "ingest", "drawn", "--from", "incoming"),
        "validate": _cpu(root, "validate"),
        "preprocess": _cpu(root, "preprocess"),
    }


def _trained(root: Path) -> tuple[float, int]:
    """CPU seconds of two epochs more, and images in them."""
    found = []
    for epochs in (1, 3):
        settings = yaml.safe_load((root / "params.yaml").read_text())
        settings["train"]["models"]["cnn"]["epochs"] = epochs
        (root / "params.yaml").write_text(yaml.safe_dump(settings))
        found.append(_cpu(root, "train", "--model", "cnn"))
    split = pd.read_parquet(root / "artifacts/index.parquet", columns=["split"])["split"]
    return found[1] - found[0], 2 * int((split == "train").sum())


def _scored(root: Path) -> float:
    code = (
        "import sys, time; import numpy as np; from pathlib import Path\n"
        "from components.detector.file import Network\n"
        "network = Network(Path('artifacts/models/cnn/network.onnx'))\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (4096, 64, 64, 3), np.uint8)\n"
        "network.outputs({'pixels': pixels[:512]}); began = time.process_time(); network.outputs({'pixels': pixels})\n"
        "print((time.process_time() - began) / len(pixels))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _memory(root: Path) -> float:
    """Bytes that a row of the manifest and of the index take in memory."""
    from components import shards

    index = pd.read_parquet(root / "artifacts/index.parquet")
    manifest = shards.manifest(shards.paths(root / "data", ["drawn"]))
    return float((index.memory_usage(deep=True).sum() + manifest.memory_usage(deep=True).sum()) / len(index))


def _draw(folder: Path, n: int, side: int = 384) -> None:
    """JPEG files of some texture, each one of its own."""
    rng = np.random.default_rng(n)
    for number in range(n):
        path = folder / ("ai" if number % 2 else "real") / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        path.write_bytes(file.getvalue())


def _cpu(root: Path, stage: str, *arguments: str) -> float:
    """CPU seconds of a stage's command and of its workers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", f"components.{stage}", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{stage} failed: {done.stderr[-2000:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


# Modelled


def tables(slopes: Slopes, assumed: Assumptions) -> str:
    each = ", ".join(f"{name} {1000 * getattr(slopes, name):.2f}" for name in STAGES)
    parts = [
        f"Measured, ms of a core for each image: {each}. Of each image {slopes.file / 1000:.0f} kB are stored, "
        f"{slopes.arrays / 1000:.0f} kB are arrays, and {slopes.row:.0f} bytes are in memory as rows of tables\n",
        _costs(slopes, assumed),
        _hours(slopes, assumed),
        _several(assumed),
    ]
    return "\n".join(parts)


STAGES = ("ingest", "validate", "preprocess", "train", "score")


def _costs(slopes: Slopes, assumed: Assumptions) -> str:
    lines = [
        "| images | raw | arrays | the table in memory | ingest | validate | preprocess | train | evaluate "
        "| first run | a night | storage a month |",
        "|---:|" + "---:|" * 11,
    ]
    for n in IMAGES:
        cores = {
            "ingest": n * slopes.ingest,
            "validate": n * slopes.validate,
            "preprocess": n * slopes.preprocess,
            "evaluate": min(0.15 * n, assumed.tests) * slopes.score,
        }
        gpu = n * assumed.epochs / assumed.gpu_images
        stored = 2 * n * slopes.file / 1e9 + n * slopes.arrays / 1e9  # raw here and on the remote
        first = sum(cores.values()) / HOUR * assumed.vcpu_hour + gpu / HOUR * assumed.gpu_hour
        # Validation reads everything again; training begins anew.
        again = assumed.new * (cores["ingest"] + cores["preprocess"]) + cores["validate"] + cores["evaluate"]
        night = again / HOUR * assumed.vcpu_hour + gpu / HOUR * assumed.gpu_hour
        lines.append(
            f"| {n:,} | {_bytes(n * slopes.file)} | {_bytes(n * slopes.arrays)} | {_bytes(n * slopes.row)} "
            + "".join(f"| {_number(cores[s] / HOUR)} " for s in ("ingest", "validate", "preprocess"))
            + f"| {_number(gpu / HOUR)} | {_number(cores['evaluate'] / HOUR)} "
            f"| {_number(first)} | {_number(night)} | {_number(stored * assumed.gb_month)} |"
        )
    return (
        "Core-hours of ingest, validate, preprocess and evaluate, GPU-hours of train, and money in the currency of the "
        f"prices; {json.dumps(asdict(assumed))}\n" + "\n".join(lines) + "\n"
    )


def _hours(slopes: Slopes, assumed: Assumptions) -> str:
    lines = [
        "| images | preprocess: 2 cores | 32 cores | Ray, 256 cores | train: 2 cores | 1 GPU | 8 GPUs | 4 × 8 GPUs |",
        "|---:|" + "---:|" * 7,
    ]
    # Files go out from the driver and rows come back over its one link.
    by_link = 8 * max(slopes.file, slopes.arrays) / assumed.link
    for n in IMAGES:
        gpu = n * assumed.epochs / assumed.gpu_images
        cells = [
            n * slopes.preprocess / 2,
            n * slopes.preprocess / 32,
            n * max(slopes.preprocess / 256, by_link),
            n * assumed.epochs * slopes.train / 2,
            gpu,
            gpu / 8 / efficiency(assumed, 8, 1),
            gpu / 32 / efficiency(assumed, 8, 4),
        ]
        lines.append(f"| {n:,} " + "".join(f"| {_number(cell / HOUR)} " for cell in cells) + "|")
    return "Hours\n" + "\n".join(lines) + "\n"


def efficiency(assumed: Assumptions, gpus: int, machines: int) -> float:
    """Share of a step that is arithmetic, when gradients go round a ring after it.

    A ring moves 2 (p - 1) / p times the gradients over its slowest link: between machines, or 300 GB/s within one.
    Nothing overlaps, which real trainings do better.
    """
    p = gpus * machines
    slowest = assumed.fabric / 8 if machines > 1 else 300e9
    exchange = 2 * (p - 1) / p * 4 * assumed.parameters / slowest
    step = assumed.batch / assumed.gpu_images
    return step / (step + exchange)


def _several(assumed: Assumptions) -> str:
    lines = ["| GPUs | machines | share of a step that is arithmetic | images/s |", "|---:|---:|---:|---:|"]
    for gpus, machines in ((1, 1), (8, 1), (8, 2), (8, 4), (8, 16)):
        share = efficiency(assumed, gpus, machines)
        total = gpus * machines
        lines.append(f"| {total} | {machines} | {share:.1%} | {total * share * assumed.gpu_images:,.0f} |")
    return "Simulated: data parallelism\n" + "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(value: float) -> str:
    units = ["kB", "MB", "GB", "TB"]
    while value >= 1e6 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{_number(value / 1000)} {units[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    for name, default in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=HELP[name])
    print(run(Assumptions(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
