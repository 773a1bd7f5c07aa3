"""What the input pipeline costs in training: batches read from shuffled arrays against one constant batch in memory."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from components import networks
from components.params import Model

IMAGES, SIDE, BATCH, STEPS, ROUNDS = 40_000, 32, 128, 40, 5


def run() -> str:
    keras = networks.load_keras()
    from components.train.batches import LabelledBatches, Rows, drawn
    from components.train.learner import compiled
    from components.train.precision import fuse_normalisation, use_precision

    class Constant(keras.utils.PyDataset):
        def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
            super().__init__()
            self.batch = (x, y), y

        def __len__(self) -> int:
            return STEPS

        def __getitem__(self, position: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
            return self.batch

    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(make_arrays(Path(folder)), Path(folder), str(SIDE))
        model = Model(network="cnn", view=str(SIDE), batch_size=BATCH)
        precision = use_precision(model.precision)
        network = networks.build("cnn", SIDE, {})
        fuse_normalisation(network)
        fitted = compiled(network, model, BATCH, STEPS, model.phases[0])
        order = drawn(len(rows), 0, 0)
        constant = Constant(rows.pixels(order[:BATCH]), rows.labels[order[:BATCH]])
        fitted.fit(constant, verbose=0)
        times: dict[str, list[float]] = {"constant": [], "arrays": []}
        for turn in range(ROUNDS):
            batches = LabelledBatches(rows, BATCH, order[turn * STEPS * BATCH : (turn + 1) * STEPS * BATCH])
            for name, data in (("constant", constant), ("arrays", batches)):
                began = time.perf_counter()
                fitted.fit(data, verbose=0)
                times[name].append(time.perf_counter() - began)
    rate = {name: STEPS * BATCH / statistics.median(seconds) for name, seconds in times.items()}
    cost = statistics.median(a / c - 1 for a, c in zip(times["arrays"], times["constant"], strict=True))
    return (
        f"Training input, 288 thousand parameters at {SIDE} px, batch {BATCH}, {precision}, median of {ROUNDS} rounds\n"
        f"| one constant batch in memory | {rate['constant']:,.0f} images/s |\n"
        f"| shuffled from memory-mapped arrays | {rate['arrays']:,.0f} images/s |\n"
        f"| cost of the pipeline (paired) | {cost:+.1%} |\n"
    )


def make_arrays(folder: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for shard in range(IMAGES // 4000):
        file = folder / f"{SIDE}/x/{shard}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rng.integers(0, 256, (4000, SIDE, SIDE, 3), np.uint8))
        parts.append(pd.DataFrame({"shard": f"x/{shard}", "row": range(4000)}))
    index = pd.concat(parts, ignore_index=True)
    return index.assign(label=np.where(rng.random(len(index)) < 0.5, "ai", "real"))
