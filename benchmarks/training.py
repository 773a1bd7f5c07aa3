"""Training the same network on the same images: ours, plain Keras as tutorials write it, and a PyTorch loop.

Each way runs in a process of its own, one after the other, in several rounds; the figures are medians. Each gets the
precision in which it is faster on this machine: a CPU without bfloat16 takes three times as long for it. Backends that
aren't installed are left out.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

SIDE, BATCH, STEPS, WARM, ROUNDS = 32, 128, 40, 10, 3
WAYS = {
    "ours, TensorFlow": ("ours", "tensorflow"),
    "ours, PyTorch": ("ours", "torch"),
    "ours, JAX": ("ours", "jax"),
    "plain Keras `fit`, TensorFlow": ("plain", "tensorflow"),
    "PyTorch loop, channels_last": ("loop", "torch"),
}
PRECISIONS = ("float32", "bfloat16")
REFERENCES = [name for name, (way, _) in WAYS.items() if way != "ours"]


def run() -> str:
    ways = {name: way for name, way in WAYS.items() if importlib.util.find_spec(way[1])}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    precision = {
        name: max(PRECISIONS, key=lambda precision, way=way: _rate(*way, precision))  # type: ignore[misc]
        for name, way in ways.items()
    }
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rates[name].append(_rate(*way, precision[name]))
    lines = [
        f"Training `cnn` (288 thousand parameters) at {SIDE} px, batch {BATCH}, flips and shifts in ours only; "
        f"{STEPS} steps after {WARM}, median of {ROUNDS} rounds",
        "| | images/s | " + " | ".join(f"× {name.split(',')[0]}" for name in REFERENCES if name in ways) + " |",
        "|---|---|" + "---|" * sum(name in ways for name in REFERENCES),
    ]
    for name, found in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(found, rates[other], strict=True))
            for other in REFERENCES
            if other in ways
        ]
        lines.append(
            f"| {name}, {precision[name]} | {statistics.median(found):,.0f} | "
            + " | ".join(f"{r:.2f}" for r in ratios)
            + " |"
        )
    return "\n".join(lines) + "\n"


def _rate(way: str, backend: str, precision: str) -> float:
    call = [sys.executable, "-m", "benchmarks.training", way, precision]
    done = subprocess.run(call, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way} on {backend} failed: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _ours(precision: Literal["float32", "bfloat16"]) -> float:
    from benchmarks.pipeline import make_arrays
    from components import networks
    from components.params import Model

    networks.load_keras()
    from components.train.batches import LabelledBatches, Rows, drawn
    from components.train.learner import compiled
    from components.train.precision import fuse_normalisation, use_precision

    model = Model(network="cnn", view=str(SIDE), batch_size=BATCH, precision=precision)
    use_precision(model.precision)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(make_arrays(Path(folder)), Path(folder), str(SIDE))
        network = networks.build("cnn", SIDE, {})
        fuse_normalisation(network)
        learner = compiled(network, model, BATCH, STEPS, model.phases[0])
        order = drawn(len(rows), 0, 0)
        clock = _Clock()
        batches = LabelledBatches(rows, BATCH, order[: (WARM + STEPS) * BATCH])
        learner.fit(batches, shuffle=False, verbose=0, callbacks=[clock.callback()])
        return clock.rate()


def _plain(precision: str) -> float:
    """As tutorials do it: float32 arrays, `Sequential`, Adam, `fit`."""
    import keras
    import tensorflow as tf
    from keras import layers

    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    x, y = _images()
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).shuffle(10_000).batch(BATCH)
    stack = [keras.Input((SIDE, SIDE, 3)), layers.Rescaling(1 / 255)]
    for block in range(3):
        for _ in range(2):
            stack += [
                layers.Conv2D(32 * 2**block, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
        stack += [layers.MaxPooling2D()] if block < 2 else [layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*stack, layers.Dropout(0.2), layers.Dense(1, activation="sigmoid", dtype="float32")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    clock = _Clock()
    model.fit(data.prefetch(tf.data.AUTOTUNE), verbose=0, callbacks=[clock.callback()])
    return clock.rate()


def _loop(precision: str) -> float:
    import torch
    from torch import nn

    x, y = _images()
    stack: list[nn.Module] = []
    before = 3
    for block in range(3):
        for _ in range(2):
            width = 32 * 2**block
            stack += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        stack += [nn.MaxPool2d(2)] if block < 2 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*stack, nn.Dropout(0.2), nn.Linear(before, 1)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    order = torch.randperm(len(x))
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    clock = _Clock()
    for step in range(WARM + STEPS):
        which = order[step * BATCH : (step + 1) * BATCH]
        batch = images[which].permute(0, 3, 1, 2).float().div(127.5).sub(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick()
    return clock.rate()


def _images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    n = (WARM + STEPS) * BATCH
    return rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8), rng.integers(0, 2, (n, 1)).astype(np.float32)


class _Clock:
    """Times the steps after the first few, in which graphs are made."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def callback(self) -> object:
        import keras

        return keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: self.tick())

    def rate(self) -> float:
        return BATCH * STEPS / (self.times[-1] - self.times[WARM - 1])


if __name__ == "__main__":
    print({"ours": _ours, "plain": _plain, "loop": _loop}[sys.argv[1]](sys.argv[2]))
