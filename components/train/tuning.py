"""`python -m components.train.tuning --model NAME`: search for a candidate's settings with Optuna."""

import argparse
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components import networks, params, stage, tracking
from components.params import Model, Range, Tune
from components.preprocess.arrays import identity
from components.stage import StageError, read_table
from components.train import State, train

BEST = "best.json"
_RUN = "mlflow_run_id"
_REASON = "reason"
_START = "start"  # of the trial of what params.yaml says
_OWNER = "owner"


def tune(name: str, model: Model, settings: Tune, index: Path, arrays: Path, folder: Path) -> dict[str, Any]:
    """Look for the settings with the lowest validation loss.

    A trial is a training of its own, below one MLflow run for the whole search. After each epoch, a trial that is
    worse than the median of the earlier ones at that epoch ends (Golovin et al. 2017). A search over the same data,
    space and starting point goes on where it was, and a trial that was killed goes on from its last epoch.

    Args:
        name: of the candidate.
        model: its settings, from which the search starts: they are the first trial, inside the space or not.
        settings: the section `tune`.
        index: from preprocess.
        arrays: from preprocess.
        folder: for the search's database, its checkpoints, `best.json`, `trials.csv` and `history.png`.

    Returns:
        What `best.json` holds: `values` (the best settings by dotted name), `val_loss`, `trial`, and how many trials
        were `finished`, `pruned` and `failed`.

    Raises:
        StageError: the space names a setting that doesn't exist or changes nothing, or no trial came to an end.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = settings.model_copy(update={"space": _space(model, settings)})
    for key, choices in settings.space.items():
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            _with(model, {key: value})
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=settings.storage or f"sqlite:///{folder / 'study.db'}",
        study_name=f"{name}-{_fingerprint(model, settings, index, arrays)}",
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=min(8, max(2, settings.trials // 3))),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(
            {key: _at(model, key) for key, choices in settings.space.items() if _inside(_at(model, key), choices)},
            user_attrs={_START: True},
        )
    mlflow = tracking.connect()
    run_id = tracking.active(mlflow, study.user_attrs.get(_RUN))
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else f"tune {name}") as run:
        if run_id is None:
            study.set_user_attr(_RUN, run.info.run_id)
            mlflow.set_tags({"stage": "tune", **tracking.lineage()})
            mlflow.log_params({"model": name})
        owner = f"{socket.gethostname()} {folder.resolve()}"
        _take_up(study, None if settings.storage is None else owner)
        while sum(t.state.is_finished() for t in study.trials) < settings.trials + _requeued(study):
            _trial(study, owner, name, model, settings, index, arrays, folder)
        best = _result(study)
        _write(study, best, folder)
        mlflow.log_metric("val_loss", best["val_loss"])
        # Tags: a search that goes on may find something better, and MLflow's parameters can't change.
        mlflow.set_tags({f"best.{key}": value for key, value in best["values"].items()})
        for file in (BEST, "trials.csv", "history.png"):
            mlflow.log_artifact(str(folder / file))
    return best


def _trial(
    study: Any, owner: str, name: str, model: Model, settings: Tune, index: Path, arrays: Path, folder: Path
) -> None:
    from optuna.trial import TrialState

    trial = study.ask()
    trial.set_user_attr(_OWNER, owner)
    start = _START in trial.user_attrs  # of which what lies outside of the space stays as it is
    values = {
        key: _suggest(trial, key, choices)
        for key, choices in settings.space.items()
        if not start or _inside(_at(model, key), choices)
    }
    shown = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
    print(f"trial {trial.number}: {'what params.yaml says' if start else shown}", flush=True)
    pruned = False

    def stop(state: State) -> bool:
        nonlocal pruned
        trial.report(state.history[-1]["val_loss"], state.epoch)
        pruned = trial.should_prune()
        return pruned

    try:
        state = train(name, _with(model, values), index, arrays, folder / "checkpoints", folder / "trial", stop=stop)
    except StageError as error:
        trial.set_user_attr(_REASON, str(error))
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number} failed: {error}", flush=True)
        return
    finally:
        networks.load_keras().backend.clear_session()
    loss = min(epoch["val_loss"] for epoch in state.history)
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, loss)
    print(f"trial {trial.number} {'pruned' if pruned else 'done'}: validation loss {loss:.4f}", flush=True)


def _take_up(study: Any, owner: str | None) -> None:
    """Queue again what a killed process left running; its training has its checkpoints.

    Args:
        study: it may hold trials that are at work elsewhere.
        owner: of the trials that were left here; null where all were.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if owner not in (None, trial.user_attrs.get(_OWNER)):
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        start = {_START: True} if _START in trial.user_attrs else {}
        if trial.params or start:
            print(f"trial {trial.number} was interrupted and is taken up again", flush=True)
            study.enqueue_trial(trial.params, user_attrs={"continues": trial.number, **start})


def _requeued(study: Any) -> int:
    return sum("continues" in trial.user_attrs for trial in study.trials)


def _suggest(trial: Any, key: str, choices: Range | list[Any]) -> Any:
    if isinstance(choices, list):
        return trial.suggest_categorical(key, choices)
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return trial.suggest_int(key, choices.low, choices.high, log=choices.log)
    return _short(trial.suggest_float(key, choices.low, choices.high, log=choices.log))


def _short(value: Any) -> Any:
    """Three digits are as many as a person would write, and as matter."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _inside(value: Any, choices: Range | list[Any]) -> bool:
    if isinstance(choices, list):
        return value in choices
    return value is not None and choices.low <= value <= choices.high


def _at(model: Model, key: str) -> Any:
    """A setting by its dotted name; None for one of the network's own that isn't set."""
    node: Any = model.model_dump()
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _with(model: Model, values: dict[str, Any]) -> Model:
    """The settings with some changed.

    Raises:
        StageError: there is no such setting, or it can't have that value.
    """
    raw = model.model_dump()
    for key, value in values.items():
        *path, last = key.split(".")
        node: Any = raw
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise StageError(f"tune.space: a candidate has no setting {key}")
        node[last] = value
    try:
        return Model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StageError(f"tune.space: {where} can't be {first['input']!r}: {first['msg'].lower()}") from None


def _space(model: Model, settings: Tune) -> dict[str, Range | list[Any]]:
    """The space; of the default one, what the candidate has.

    Raises:
        StageError: a setting that was asked for changes nothing, or the network has none of its name.
    """
    options = networks.options_of(model.network)
    absent = {key for key in settings.space if key.startswith("options.") and key.split(".")[1] not in options}
    idle = {"learning_rate"} & settings.space.keys() if model.freeze else set()
    if "space" not in settings.model_fields_set:
        return {key: choices for key, choices in settings.space.items() if key not in absent | idle}
    for key in absent:
        raise StageError(f"tune.space: {model.network} has no {key}; its options are {', '.join(options)}")
    for key in idle:
        raise StageError(f"tune.space: {key} changes nothing, as each phase of `freeze` has its own")
    return settings.space


def _fingerprint(model: Model, settings: Tune, index: Path, arrays: Path) -> str:
    """The same for searches whose trials can be compared."""
    digest = hashlib.sha256(identity(arrays, read_table(index)))
    digest.update(f"{model.model_dump_json()} {settings.model_dump_json(include={'space', 'seed'})}".encode())
    return digest.hexdigest()[:12]


def _result(study: Any) -> dict[str, Any]:
    from optuna.trial import TrialState

    counts = {
        word: len(study.get_trials(deepcopy=False, states=[state]))
        for word, state in (
            ("finished", TrialState.COMPLETE),
            ("pruned", TrialState.PRUNED),
            ("failed", TrialState.FAIL),
        )
    }
    counts["failed"] -= _requeued(study)
    if not counts["finished"]:
        reasons = [trial.user_attrs[_REASON] for trial in study.trials if _REASON in trial.user_attrs]
        raise StageError(f"tuning: no trial came to an end; the last one: {reasons[-1] if reasons else 'unknown'}")
    values = {key: _short(value) for key, value in study.best_params.items()}
    return {"values": values, "val_loss": study.best_value, "trial": study.best_trial.number, **counts}


def _write(study: Any, best: dict[str, Any], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = study.trials_dataframe(attrs=("number", "value", "state", "params", "duration"))
    stage.replace(folder / "trials.csv", lambda path: table.to_csv(path, index=False))
    done = table[table["state"] == "COMPLETE"]
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(done["number"], done["value"], "o", label="trial")
    axes.step(done["number"], done["value"].cummin(), where="post", label="best so far")
    axes.set(xlabel="trial", ylabel="validation loss", title="Trials that came to their end")
    axes.legend()
    stage.replace(folder / "history.png", lambda path: figure.savefig(path, dpi=120, bbox_inches="tight"))
    plt.close(figure)
    stage.replace(folder / BEST, lambda path: path.write_text(json.dumps(best, indent=2) + "\n"))


def run() -> None:
    """Search, and print the best settings."""
    parser = argparse.ArgumentParser(prog="python -m components.train.tuning", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models")
    parser.add_argument("--trials", type=int, help="instead of tune.trials")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--arrays", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--out", type=Path, help="artifacts/tuning/MODEL by default")
    args = parser.parse_args()

    settings = params.load(args.params)
    model = settings.train.models.get(args.model)
    if model is None:
        raise StageError(f"train.models has no {args.model!r}; it has {', '.join(settings.train.models)}")
    search = settings.tune.model_copy(update={"trials": args.trials} if args.trials else {})
    best = tune(args.model, model, search, args.index, args.arrays, args.out or Path("artifacts/tuning", args.model))
    print(
        f"{args.model}: validation loss {best['val_loss']:.4f} in trial {best['trial']} "
        f"({best['finished']} finished, {best['pruned']} pruned, {best['failed']} failed)"
    )
    for key, value in best["values"].items():
        print(f"  {key}: {value}")


if __name__ == "__main__":
    stage.main(run)
