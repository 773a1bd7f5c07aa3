"""The generalisation flow: a model trained anew without each generator or source, and tested on it."""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from components import params
from components.evaluate import generalisation
from components.evaluate.generalisation import By
from components.stage import StageError, read_table
from flows import commands, limits

INDEX, ARRAYS, ROOT = Path("artifacts/index.parquet"), Path("artifacts/arrays"), Path("artifacts/generalisation")


@task(task_run_name="without {group}", cache_policy=NO_CACHE)
def leave_out(model: str, group: str, folder: Path) -> State[Any]:
    """Train without a group and test on it, as far as that isn't done already."""
    trained, judged = folder / "models" / model, folder / "evaluation"
    common = ["--model", model, "--params", f"{folder}/params.yaml", "--index", f"{folder}/index.parquet"]
    common += ["--arrays", str(ARRAYS)]
    steps = {
        trained / "training.json": ["train", *common, "--checkpoints", f"{folder}/checkpoints", "--out", str(trained)],
        judged / "metrics.json": ["evaluate", *common, "--models", f"{folder}/models", "--out", str(judged)],
    }
    try:
        for result, command in steps.items():
            if not result.exists():
                commands.run(commands.stage(*command), get_run_logger().info)
    except commands.CommandFailed as error:
        return Failed(message=f"without {group}: {error}")
    return Completed(message="done")


@flow(name="generalise", persist_result=False)
def generalise(model: str, by: By = "generator", hours: float | None = None) -> State[Any]:
    """Leave out each generator (or source), and write the table; in so many hours at most."""
    try:
        settings = params.load()
        if model not in settings.train.models:
            raise StageError(f"train.models has no {model!r}; it has {', '.join(settings.train.models)}")
        if not INDEX.exists():
            raise StageError(f"{INDEX}: not here; `trueframe run` or `dvc repro preprocess` makes it")
        with limits.bounded(hours):
            return _steps(settings, model, by)
    except Exception as error:
        return limits.failed(error)


def _steps(settings: params.Params, model: str, by: By) -> State[Any]:

    index, root = read_table(INDEX), ROOT / model
    groups = generalisation.groups(index, by)
    parent = generalisation.nest(root, model, by)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        folder = generalisation.place(root, by, group)
        try:
            generalisation.prepare(generalisation.fold(index, by, group), settings, model, ARRAYS, folder)
        except generalisation.TooFew as reason:
            skipped[group] = str(reason)
            continue
        done = (folder / "evaluation/metrics.json").exists()
        get_run_logger().info(f"{number} of {len(groups)}: without {group}{' (done before)' if done else ''}")
        state = leave_out(model, group, folder, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
        generalisation.adopt(parent, folder, by, group)
        rows.append(generalisation.scores(folder, by, group, Path("artifacts/evaluation") / model / "metrics.json"))
    if not rows:
        raise StageError("; ".join(skipped.values()))
    generalisation.log(parent, root, by, generalisation.write(root, model, by, rows, skipped))
    return Completed(message=f"{len(rows)} trained without, {len(skipped)} skipped")
