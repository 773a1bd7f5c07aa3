"""The tuning flow: the data prepared as for a retraining, and a search for a candidate's settings on it."""

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from components.stage import read_json
from flows import commands, limits, retrain, settings

FOLDER = Path("artifacts/tuning")


@task(task_run_name="search {model}", cache_policy=NO_CACHE)
def search(model: str, trials: int | None) -> State[Any]:
    """Run the trials."""
    more = ["--trials", str(trials)] if trials else []
    return retrain.run_command(commands.stage("train.tuning", "--model", model, *more))


@flow(name="tune", persist_result=False)
def tune(model: str, trials: int | None = None, apply: bool = False, hours: float | None = None) -> State[Any]:
    """Search for the settings of one candidate, in so many hours; with `apply`, put the best into params.yaml."""
    try:
        with limits.bounded(hours):
            failed, _ = retrain.prepare()
            if failed is not None:
                return Failed(message=failed.message)
            state = search(model, trials, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
    except Exception as error:
        return limits.failed(error)
    best = read_json(FOLDER / model / "best.json")
    table = "\n".join(f"| {key} | {value} |" for key, value in best["values"].items())
    create_markdown_artifact(
        f"Validation loss {best['val_loss']:.4f}\n\n| setting | best |\n|---|---|\n{table}", key="tuning"
    )
    create_image_artifact((FOLDER / model / "history.png").resolve().as_uri(), key="tuning-history")
    if apply:
        return Completed(message=settings.remember_model(model, best["values"]))
    return Completed(message="`--apply` puts these settings into params.yaml")
