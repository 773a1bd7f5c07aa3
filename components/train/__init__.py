"""Fit one network: resumable after every epoch, the same result as if it had never stopped."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import images, networks, stage, tracking
from components.params import Model
from components.stage import StageError

DONE = "training.json"
NETWORK = "network.keras"


@dataclass
class State:
    """Where a training stands; kept beside its checkpoint."""

    run_id: str
    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    name: str,
    model: Model,
    index_path: Path,
    arrays: Path,
    checkpoints: Path,
    out: Path,
    stop: Callable[[State], bool] = lambda state: False,
) -> State:
    """Fit a network on the index's training images and keep its best epoch by validation loss.

    Args:
        name: of the candidate.
        model: its settings.
        index_path: from preprocess.
        arrays: from preprocess.
        checkpoints: folder in which a killed training is taken up again.
        out: folder to write: `network.keras`, `training.json` and `history.csv`.
        stop: is asked after each epoch whether that was the last.

    Raises:
        StageError: the loss is not a number, an option is wrong, or MLflow can't be reached.
    """
    index = pd.read_parquet(index_path)
    index = index[index["split"] != "test"]
    folder = checkpoints / name / _fingerprint(model, index)
    mlflow = tracking.connect()
    state = _resume(folder)
    if state is not None and tracking.active(mlflow, state.run_id) is None:
        state = None
    with mlflow.start_run(
        run_id=state.run_id if state else None, run_name=None if state else name, log_system_metrics=True, nested=True
    ) as run:
        if state is None:
            state = State(run.info.run_id)
            mlflow.log_params({"model": name, **_flat(model.model_dump())})
            mlflow.set_tags({"stage": "train", **tracking.lineage()})
            _log_data(mlflow, index)
            _save_state(folder, state)
        elif state.epoch:
            print(f"{name}: taken up again after epoch {state.epoch} of {model.epochs}", flush=True)
        network = _fit(name, model, index, arrays, folder, state, mlflow, stop)
        _write(out, network, state)
        mlflow.log_artifacts(str(out), "model")
    shutil.rmtree(checkpoints / name, ignore_errors=True)
    return state


def _fit(
    name: str,
    model: Model,
    index: pd.DataFrame,
    arrays: Path,
    folder: Path,
    state: State,
    mlflow: Any,
    stop: Callable[[State], bool],
) -> Any:
    keras = networks.load_keras()
    from components.train.batches import Batches, Rows, drawn_crops, shuffled
    from components.train.precision import use_precision

    keras.utils.set_random_seed(model.seed)
    print(f"{name}: {use_precision(model.precision)}", flush=True)
    rows = Rows(index[index["split"] == "train"], arrays, model.view)
    held = Rows(index[index["split"] == "validation"], arrays, model.view)
    steps = math.ceil(len(rows) / model.batch_size)
    network = networks.build(model.network, images.view_size(model.view), model.options)
    learner = compiled(network, model, steps)
    print(
        f"{name}: {network.count_params():,} parameters, {len(rows):,} images, {steps} steps an epoch",
        flush=True,
    )
    if state.epoch:
        learner.load_weights(folder / f"epoch-{state.epoch}.weights.h5")

    everything = np.arange(len(held))
    progress = _EpochProgress(name, model.epochs, steps, state.epoch)
    for epoch in range(state.epoch, model.epochs):
        if epoch - state.best_epoch >= model.patience:
            print(f"{name}: no better validation loss for {model.patience} epochs; stopped", flush=True)
            break
        _reseed(learner, model.seed, epoch)
        began = time.monotonic()
        order, crops = shuffled(len(rows), model.seed, epoch), drawn_crops(rows, model.seed, epoch)
        batches = Batches(rows, model.batch_size, order, crops)
        # Keras would shuffle the batches once more, from a state that a killed process takes with it.
        fitted = learner.fit(batches, shuffle=False, verbose=0, callbacks=[progress.callback(epoch)])
        seconds = time.monotonic() - began
        logits = learner.predict(Batches(held, 512, everything), verbose=0)[:, 0]
        scores = {
            "loss": float(fitted.history["loss"][0]),
            **_scores(logits, held.labels[:, 0]),
            "learning_rate": float(keras.ops.convert_to_numpy(learner.optimizer.learning_rate)),
            "images_per_second": len(rows) / seconds,
        }
        if not math.isfinite(scores["loss"] + scores["val_loss"]):
            raise StageError(
                f"{name}: the loss is not a number after epoch {epoch + 1}; lower "
                f"train.models.{name}.learning_rate ({model.learning_rate}) or set its precision to float32"
            )
        state.epoch = epoch + 1
        state.history.append(scores)
        best = min(range(state.epoch), key=lambda e: state.history[e]["val_loss"]) + 1
        _checkpoint(folder, learner, state, best)
        mlflow.log_metrics(scores, step=state.epoch)
        print(
            f"{name}: epoch {state.epoch}/{model.epochs}: loss {scores['loss']:.4f}, validation loss "
            f"{scores['val_loss']:.4f}, balanced accuracy {scores['val_balanced_accuracy']:.4f}; "
            f"{scores['images_per_second']:,.0f} images/s",
            flush=True,
        )
        if stop(state):
            break
    learner.load_weights(folder / f"epoch-{state.best_epoch}.weights.h5")
    return network


def compiled(network: Any, model: Model, steps: int) -> Any:
    """The network behind its augmentation, ready to fit: AdamW with warm-up and cosine decay."""
    import keras

    total = steps * model.epochs
    warmup = max(1, round(total * model.warmup))
    schedule = keras.optimizers.schedules.CosineDecay(
        model.learning_rate / 100,
        decay_steps=max(1, total - warmup),
        warmup_target=model.learning_rate,
        warmup_steps=warmup,
    )
    augmentation: list[Any] = []
    if model.flip:
        augmentation.append(keras.layers.RandomFlip("horizontal", seed=model.seed))
    if model.shift:
        share = model.shift / images.view_size(model.view)
        augmentation.append(
            keras.layers.RandomTranslation(share, share, fill_mode="reflect", interpolation="nearest", seed=model.seed)
        )
    learner = keras.Sequential([keras.Input(network.input_shape[1:]), *augmentation, network])
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=model.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(learner.trainable_variables)  # or a checkpoint's moments would find no place
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=model.label_smoothing)
    learner.compile(optimizer, loss)
    return learner


def _scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    logits = logits.astype(np.float64)
    right = (logits > 0) == (labels > 0.5)
    return {
        "val_loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "val_balanced_accuracy": float((right[labels > 0.5].mean() + right[labels < 0.5].mean()) / 2),
    }


def _reseed(learner: Any, seed: int, epoch: int) -> None:
    """Set all random layers to states that depend on the seed and the epoch alone."""
    for number, layer in enumerate(learner._flatten_layers()):
        generator = getattr(layer, "seed_generator", None) or getattr(layer, "generator", None)
        if generator is not None and hasattr(generator, "state"):
            generator.state.assign(np.array([seed + 1_000_003 * number, epoch], np.uint32))


def _checkpoint(folder: Path, learner: Any, state: State, best: int) -> None:
    state.best_epoch = best
    file = folder / f"epoch-{state.epoch}.weights.h5"
    partial = folder / "partial.weights.h5"
    learner.save_weights(partial)
    partial.replace(file)
    _save_state(folder, state)
    keep = {file.name, f"epoch-{best}.weights.h5"}
    for old in folder.glob("epoch-*.weights.h5"):
        if old.name not in keep:
            old.unlink()


def _save_state(folder: Path, state: State) -> None:
    content = json.dumps(asdict(state))
    stage.replace(folder / "state.json", lambda path: path.write_text(content))


def _resume(folder: Path) -> State | None:
    try:
        return State(**json.loads((folder / "state.json").read_text()))
    except FileNotFoundError:
        return None


def _fingerprint(model: Model, index: pd.DataFrame) -> str:
    """Two trainings with the same fingerprint give the same network."""
    keras = networks.load_keras()

    rows = index[["sha256", "shard", "row", "label", "split"]]
    digest = hashlib.sha256(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    digest.update(f"{model.model_dump_json()} {keras.backend.backend()} {keras.__version__}".encode())
    return digest.hexdigest()[:16]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _log_data(mlflow: Any, index: pd.DataFrame) -> None:
    counts = (index["split"] + "." + index["label"]).value_counts()
    mlflow.log_params({f"images.{name}": int(n) for name, n in counts.items()})
    columns = index[["sha256", "label", "source", "split"]]
    digest = hashlib.sha256(pd.util.hash_pandas_object(columns, index=False).to_numpy().tobytes()).hexdigest()
    mlflow.log_input(
        mlflow.data.from_pandas(columns.head(1), name="images", digest=digest[:16]),
        context="training",
        tags={"data_md5": tracking.lineage().get("data_md5", "")},
    )


def _write(out: Path, network: Any, state: State) -> None:
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"partial-{NETWORK}"
    network.save(partial)
    partial.replace(out / NETWORK)
    history = pd.DataFrame(state.history)
    history.insert(0, "epoch", range(1, len(history) + 1))
    history.to_csv(out / "history.csv", index=False)
    (out / DONE).write_text(json.dumps({k: v for k, v in asdict(state).items() if k != "history"}, indent=2) + "\n")


class _EpochProgress:
    """A line every ten seconds with the time that the whole training still needs."""

    def __init__(self, name: str, epochs: int, steps: int, first: int) -> None:
        self.name, self.epochs, self.steps, self.first = name, epochs, steps, first
        self.began = self.said = time.monotonic()

    def callback(self, epoch: int) -> Any:
        """For one call of `fit`."""
        import keras

        def say(step: int, logs: Any) -> None:
            now = time.monotonic()
            if now - self.said < 10:
                return
            self.said = now
            done = (epoch - self.first) * self.steps + step + 1
            left = (now - self.began) / done * ((self.epochs - self.first) * self.steps - done)
            print(
                f"{self.name}: epoch {epoch + 1}/{self.epochs}, step {step + 1}/{self.steps}, "
                f"at most {left / 60:.1f} min left",
                flush=True,
            )

        return keras.callbacks.LambdaCallback(on_train_batch_end=say)
