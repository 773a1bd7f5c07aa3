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

from components import images, networks, shards, stage, tracking
from components.detector import compile
from components.params import Augment, Model, Unfreeze
from components.preprocess.arrays import identity
from components.stage import StageError, read_json, read_table
from components.train import distribution
from components.train.distribution import Team

DONE = "training.json"
NETWORK = "network.keras"
GRAPH = "network.onnx"
UNSEEN = "left_out.parquet"
_COMPARED = 64  # images on which the compiled network is compared with its original


@dataclass
class State:
    """Where a training stands; kept beside its checkpoint."""

    run_id: str
    epoch: int = 0
    best_epoch: int = 0
    phase: int = 0
    begun: int = 0  # the epoch after which the phase began
    logged: int = 0  # epochs that MLflow has
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

    Several devices share each batch, and so do several processes where the environment asks for them (see
    `distribution`): all read the arrays, the first one alone logs, keeps checkpoints and writes.

    Args:
        name: of the candidate.
        model: its settings.
        index_path: from preprocess.
        arrays: from preprocess. Beside it lies the folder `features`, for what frozen encoders make of them.
        checkpoints: folder in which a killed training is taken up again.
        out: folder to write: `network.keras`, `network.onnx` (see `detector.compile`), `training.json`,
            `history.csv`, and `left_out.parquet` (see `left_out.logits`) of a frozen encoder's head.
        stop: is asked after each epoch whether that was the last.

    Raises:
        StageError: a class is missing, the loss is not a number, an option is wrong, MLflow can't be reached,
            another process was lost, or the network can't be compiled.
    """
    team = distribution.team()
    index = shards.placed(read_table(index_path), model.view)
    index = index[index["split"].isin(["train", "validation"])]
    _check_classes(name, index)
    fingerprint = _fingerprint(model, index, arrays)
    folder = checkpoints / name / fingerprint
    if team.number:
        agreed = _agree(name, team, fingerprint, State(""))
        _fit(name, model, index, arrays, folder, agreed, None, stop, team)
        return agreed
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
            mlflow.set_tags({"stage": "train", "devices": str(team), **tracking.lineage()})
            _log_data(mlflow, index)
            _save_state(folder, state)
        elif state.epoch:
            print(f"{name}: taken up again after epoch {state.epoch}", flush=True)
        _agree(name, team, fingerprint, state)
        network, unseen = _fit(name, model, index, arrays, folder, state, mlflow, stop, team)
        _report(mlflow, state)
        _write(out, network, state, unseen)
        compile.write(out / NETWORK, model.view, _some(index, arrays, model.view), out / GRAPH)
        mlflow.log_artifacts(str(out), "model")
    shutil.rmtree(checkpoints / name, ignore_errors=True)
    return state


def _agree(name: str, team: Team, fingerprint: str, state: State) -> State:
    """Where the training stands, as the first process knows it; all have to have the same in hand."""
    with team.together(name):
        said = team.told({"fingerprint": fingerprint, "state": asdict(state)})
    if said["fingerprint"] != fingerprint:
        raise StageError(
            f"{name}: process {team.number} has other images, settings or packages than the first; give all processes "
            "the same index, params.yaml and image"
        )
    return State(**said["state"])


def _fit(
    name: str,
    model: Model,
    index: pd.DataFrame,
    arrays: Path,
    folder: Path,
    state: State,
    mlflow: Any,
    stop: Callable[[State], bool],
    team: Team,
) -> tuple[Any, pd.DataFrame | None]:
    """The network, and what a head on a frozen encoder says of collections that it never saw."""
    keras = networks.load_keras()
    from components.networks import features
    from components.train import learner as learning
    from components.train import left_out
    from components.train.batches import LabelledBatches, PixelBatches, Rows, drawn, drawn_crops
    from components.train.precision import fuse_normalisation, in_float32, use_precision

    first = team.number == 0

    def say(line: str) -> None:
        if first:
            print(f"{name}: {line}", flush=True)

    def build() -> Any:
        network = networks.build(model.network, images.view_size(model.view), model.options)
        if model.start:
            networks.take_weights(network, Path(model.start))
        return network

    keras.utils.set_random_seed(model.seed)
    precision = use_precision(model.precision)
    say(precision)
    network = build()
    if model.mirror:
        networks.mirrored(network)  # or it would fail after the training
    alone, view = network, model.view
    if not model.freeze and features.frozen(network):
        if team.processes > 1:
            raise StageError(
                f"{name}: its encoder is frozen, so that there is little to fit; train it in one process, where its "
                "features are computed once an image"
            )
        team = Team()
        say("its encoder is frozen: features are computed once an image, without augmentation")
        encoder, alone = features.split(network)
        kept = arrays.with_name("features")
        arrays, view = kept, features.update(encoder, sorted(index["shard"].unique()), arrays, view, precision, kept)
        model = model.model_copy(update={"augment": Augment(flip=False, shift=0)})
    # `alone` is this process's own; `fitted` is the same one, or its twin on all devices.
    fitted = team.twin(alone, build)
    if team.devices == 1:
        fuse_normalisation(network)
    learning_rows = index[index["split"] == "train"]
    weights = left_out.weights(learning_rows) if model.balance == "collections" else None
    rows = Rows(learning_rows, arrays, view)
    held = Rows(index[index["split"] == "validation"], arrays, view)
    batch = min(model.batch_size, len(rows))
    call = team.batch(batch)
    steps = math.ceil(len(rows) / batch)
    phases = model.phases
    epochs = sum(phase.epochs for phase in phases)
    several = f" on {team}" if team.devices > 1 else ""
    say(f"{network.count_params():,} parameters, {len(rows):,} images, {steps} steps an epoch{several}")

    def ready(phase: Unfreeze) -> Any:
        if model.freeze:
            networks.unfreeze(fitted, phase.unfreeze_from)
        with team.scope():
            return learning.compiled(fitted, model, call, steps, phase)

    def predicted(which: np.ndarray) -> np.ndarray:
        return alone.predict(PixelBatches(held, 512, which), verbose=0)[:, 0]

    learner = ready(phases[state.phase])
    if state.epoch:
        with team.together(name):
            _load(folder / f"epoch-{state.epoch}.npz", learning.variables(learner), team)
    progress = learning.Progress(name, epochs, steps, state.epoch, quiet=not first)
    stopped = False
    while not stopped:
        phase = phases[state.phase]
        done, waited = state.epoch - state.begun, state.epoch - max(state.begun, state.best_epoch)
        if done and waited >= model.patience:
            say(f"no better validation loss for {model.patience} epochs; stopped")
        if done == phase.epochs or waited >= model.patience:
            if state.phase == len(phases) - 1:
                break
            state.phase, state.begun = state.phase + 1, state.epoch
            learner = ready(phases[state.phase])
            continue
        epoch = progress.epoch = state.epoch
        began = time.monotonic()
        seen = drawn(len(rows), model.seed, epoch, weights), drawn_crops(rows, model.seed, epoch)
        batches = LabelledBatches(rows, batch, *seen, part=(team.number, team.processes))
        with team.together(name):
            ramp = max(1e-9, model.augment.ramp * epochs)
            learning.prepare(learner, model.seed, epoch, min(1.0, (epoch + 1) / ramp))
            with team.scope():
                # Keras would shuffle the batches once more, from a state that a killed process takes with it.
                trained = learner.fit(batches, shuffle=False, verbose=0, callbacks=[progress])
        seconds = time.monotonic() - began
        with team.together(name), learning.averaged(learner, LabelledBatches(rows, call, *seen)):
            team.bring(fitted, alone)
            logits = team.gathered(len(held), predicted)
            scores = {
                "loss": float(trained.history["loss"][0]),
                **_scores(logits, held.labels[:, 0]),
                "learning_rate": float(keras.ops.convert_to_numpy(learner.optimizer.learning_rate)),
                "images_per_second": len(rows) / seconds,
            }
            if progress.lost or not math.isfinite(scores["loss"] + scores["val_loss"]):
                raise StageError(
                    f"{name}: the loss is not a number in epoch {epoch + 1}, step {progress.lost or steps}; lower "
                    f"train.models.{name}.learning_rate ({phase.learning_rate}) or set its precision to float32"
                )
            state.epoch = epoch + 1
            state.history.append(scores)
            best = min(range(state.epoch), key=lambda e: state.history[e]["val_loss"]) + 1
            if first and best == state.epoch:
                _save(folder / f"best-{best}.npz", alone.variables)
        state.best_epoch = best
        if first:
            _checkpoint(folder, learning.variables(learner), state)
            try:
                _report(mlflow, state)
            except mlflow.exceptions.MlflowException as error:
                say(f"MLflow gets the scores later ({str(error).splitlines()[0]})")
        say(
            f"epoch {state.epoch}/{epochs}: loss {scores['loss']:.4f}, validation loss "
            f"{scores['val_loss']:.4f}, balanced accuracy {scores['val_balanced_accuracy']:.4f}; "
            f"{scores['images_per_second']:,.0f} images/s"
        )
        stopped = stop(state)
    team.leave()
    if not first:
        return None, None
    _load(folder / f"best-{state.best_epoch}.npz", alone.variables, Team())
    unseen = None
    if alone is not network:
        unseen = left_out.logits(alone, model, state.best_epoch, index, Rows(index, arrays, view), say)
    network = in_float32(network)
    return networks.mirrored(network) if model.mirror else network, unseen


def _check_classes(name: str, index: pd.DataFrame) -> None:
    """A network can't learn, and nobody can tell whether it did, without images of both kinds."""
    for split in ("train", "validation"):
        for label in ("ai", "real"):
            if not ((index["split"] == split) & (index["label"] == label)).any():
                raise StageError(
                    f"{name}: no {'training' if split == 'train' else split} image is labelled {label}; ingest a "
                    "source that holds some, or change preprocess.validation, and run preprocess again"
                )


def _scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    logits = logits.astype(np.float64)
    right = (logits > 0) == (labels > 0.5)
    return {
        "val_loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "val_balanced_accuracy": float((right[labels > 0.5].mean() + right[labels < 0.5].mean()) / 2),
    }


def _report(mlflow: Any, state: State) -> None:
    """Log the epochs that MLflow doesn't have yet. The last one may be logged twice where a training was killed."""
    for epoch in range(state.logged, state.epoch):
        mlflow.log_metrics(state.history[epoch], step=epoch + 1)
        state.logged = epoch + 1


def _checkpoint(folder: Path, variables: list[Any], state: State) -> None:
    _save(folder / f"epoch-{state.epoch}.npz", variables)
    _save_state(folder, state)
    for old in folder.glob("*.npz"):
        if old.name not in (f"epoch-{state.epoch}.npz", f"best-{state.best_epoch}.npz"):
            old.unlink()


def _save(path: Path, variables: list[Any]) -> None:
    """Write variables in their order, as NumPy does: of a full disk it says so, where HDF5 fails in many ways."""
    keras = networks.load_keras()

    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        stage.replace(path, lambda partial: np.savez(partial, *values))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _load(path: Path, variables: list[Any], team: Team) -> None:
    """Give variables the values of a file that the first process has."""
    if team.number:
        values = [np.zeros(variable.shape, variable.dtype) for variable in variables]
    else:
        with np.load(path) as file:
            values = list(file.values())
    for variable, value in zip(variables, team.shared(values), strict=True):
        variable.assign(value)


def _save_state(folder: Path, state: State) -> None:
    content = json.dumps(asdict(state))
    stage.replace(folder / "state.json", lambda path: path.write_text(content))


def _resume(folder: Path) -> State | None:
    try:
        return State(**read_json(folder / "state.json"))
    except FileNotFoundError:
        return None


def _fingerprint(model: Model, index: pd.DataFrame, arrays: Path) -> str:
    """Two trainings with the same fingerprint give the same network."""
    keras = networks.load_keras()

    digest = hashlib.sha256(identity(arrays, index))
    digest.update(f"{model.model_dump_json()} {keras.backend.backend()} {keras.__version__}".encode())
    if model.start and Path(model.start).is_file():
        digest.update(Path(model.start).read_bytes())
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


def _some(index: pd.DataFrame, arrays: Path, view: str) -> np.ndarray:
    """Pixels of some validation images, spread over all shards: uint8, as the view makes them."""
    rows = index[index["split"] == "validation"]
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, _COMPARED).astype(int))]
    return np.concatenate(
        [
            np.load(arrays / view / f"{shard}.npy", mmap_mode="r")[part["row"].to_numpy()]
            for shard, part in rows.groupby("shard")
        ]
    )


def _write(out: Path, network: Any, state: State, unseen: pd.DataFrame | None) -> None:
    stage.apart(out)
    for earlier in (GRAPH, UNSEEN):
        (out / earlier).unlink(missing_ok=True)
    if unseen is not None:
        stage.replace(out / UNSEEN, lambda path: unseen.to_parquet(path, index=False))
    stage.replace(out / NETWORK, network.save)
    history = pd.DataFrame(state.history)
    history.insert(0, "epoch", range(1, len(history) + 1))
    history.to_csv(out / "history.csv", index=False)
    (out / DONE).write_text(json.dumps({k: v for k, v in asdict(state).items() if k != "history"}, indent=2) + "\n")
