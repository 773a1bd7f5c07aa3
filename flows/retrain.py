"""The retraining flow: images in, a judged and registered model out."""

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from components import params
from components.register import gate
from components.stage import read_json
from flows import commands, doctor, limits

SOLO = ("validate", "preprocess")
EACH = ("train", "evaluate")
UNCHANGED = "nothing changed: no stage had to run"


def stages(models: Iterable[str], ensembles: Iterable[str] = (), members: Container[str] = ()) -> list[str]:
    """DVC's names of the pure stages, in the order in which they run.

    Args:
        models: all that are trained.
        ensembles: of them.
        members: models that are no candidates by themselves.
    """
    each = [f"{stage}@{model}" for model in models for stage in EACH if stage == "train" or model not in members]
    return [*SOLO, *each, *(f"ensemble@{ensemble}" for ensemble in ensembles)]


@task(
    task_run_name="ingest",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[60, 600],
    retry_condition_fn=limits.retried,
)
def ingest() -> State[Any]:
    """Bring in what is new in the sources."""
    return run_command(commands.stage("ingest"))


@task(task_run_name="version", cache_policy=NO_CACHE)
def version() -> State[Any]:
    """Give the data its version: `data.dvc`."""
    return run_command(commands.dvc("add", "data"))


@task(task_run_name="push", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 30])
def push() -> State[Any]:
    """Send the data to the remote, where one is configured."""
    return _send("data.dvc")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def reproduce(name: str, stale: bool) -> State[Any]:
    """Run a pure stage, if DVC finds it stale; `stale` says whether anything was when the flow began."""
    if not stale or not commands.stale(name):
        return Completed(message="up to date")
    return run_command(commands.dvc("repro", "--single-item", name))


@task(task_run_name="register", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def register() -> State[Any]:
    """Put the best candidate into the registry."""
    return run_command(commands.stage("register"))


@task(task_run_name="share", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 30])
def share() -> State[Any]:
    """Send what the stages made to the remote too, so that a clone that pulls has nothing to run."""
    return _send()


@task(task_run_name="show data", cache_policy=NO_CACHE)
def show_data() -> None:
    """Link what validation found, good or bad, in the Prefect UI."""
    for name, key, text in (
        ("report.html", "data", "What is wrong with the data"),
        ("data_docs/index.html", "data-docs", "Great Expectations Data Docs"),
    ):
        path = Path("artifacts/validation", name)
        if path.exists():
            create_link_artifact(path.resolve().as_uri(), key=key, link_text=text)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(candidates: Iterable[str]) -> None:
    """Show what came out in the Prefect UI."""
    create_markdown_artifact(summary(candidates), key="retraining", description="What was trained and decided")


@flow(name="retrain", persist_result=False)
def retrain(hours: float | None = None) -> State[Any]:
    """Ingest, version, push, validate, preprocess, train, evaluate, register, share; in so many hours at most."""
    try:
        with limits.bounded(hours):
            return _steps(params.load().train)
    except Exception as error:
        return limits.failed(error)


def prepare(names: Iterable[str] = ()) -> tuple[State[Any] | None, bool]:
    """Ingest, version, push, validate and preprocess, inside a flow.

    Returns:
        The state of the step that failed, or None; and whether any of the named stages, or any at all, was stale.
    """
    commands.mend()
    for step in (ingest, version, push):
        state = step(return_state=True)
        if not state.is_completed():
            return state, True
    stale = commands.stale(*names)
    for name in SOLO:
        state = reproduce(name, stale, return_state=True)
        if name == "validate":
            show_data(return_state=True)  # without a link the run goes on
        if not state.is_completed():
            return state, stale
    return None, stale


def _steps(train: params.Train) -> State[Any]:
    names = stages(train.models, train.ensembles, train.members)
    failed, stale = prepare(names)
    if failed is not None:
        return Failed(message=failed.message)
    for name in names[len(SOLO) :]:
        state = reproduce(name, stale, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    before = _registered()
    state = register(return_state=True)
    if not state.is_completed():
        return Failed(message=state.message)
    publish(train.candidates, return_state=True)
    state = share(return_state=True)
    if not state.is_completed():
        return Failed(message=state.message)
    return Completed(message=headline(stale, before, _registered()))


def headline(stale: bool, before: str | None, after: str | None) -> str:
    """What a run did, in a few words.

    Args:
        stale: whether any stage had to run.
        before: the version that was registered last before it.
        after: the same after it.
    """
    if stale:
        return "retrained"
    if after and after != before:  # other rules, or a version that was deleted
        return f"no stage had to run; version {after} was registered"
    return UNCHANGED


def _registered() -> str | None:
    file = Path("artifacts/registration.json")
    return read_json(file)["version"] if file.exists() else None


def summary(candidates: Iterable[str]) -> str:
    """What was trained, the scores, the decision, and where to look, in Markdown."""
    registration = read_json(Path("artifacts/registration.json"))
    report = read_json(Path("artifacts/validation/report.json"))
    lines = [
        f"**{registration['decision']}**: {registration['model_name']} version {registration['version']} "
        f"(`{registration['candidate']}`)"
        if registration["version"]
        else "**Nothing was registered.**",
        "",
        *(f"- {reason}" for reason in registration["reasons"]),
        "",
        *([gate.table([gate.Rule(**rule) for rule in registration["gate"]]), ""] if registration["gate"] else []),
        f"Data: {report['n_images']:,} images from {', '.join(report['by_source'])}.",
        *(f"- {p['severity']}: {p['message']}" for p in report["problems"]),
        "",
        "| candidate | balanced accuracy | 95 % interval | AUROC | test images | report |",
        "|---|---|---|---|---|---|",
    ]
    for candidate in candidates:
        folder = Path("artifacts/evaluation") / candidate
        scores = read_json(folder / "metrics.json")
        low, high = scores["intervals"]["balanced_accuracy"]
        lines.append(
            f"| {candidate} | {scores['balanced_accuracy']:.4f} | {low:.4f} to {high:.4f} | {scores['auroc']:.4f} "
            f"| {scores['n']:,} | [report]({(folder / 'report.html').resolve().as_uri()}) |"
        )
    return "\n".join(lines)


def run_command(command: list[str]) -> State[Any]:
    """Run a command as the body of a task; its lines go to the task's log."""
    try:
        commands.run(command, get_run_logger().info)
    except commands.CommandFailed as error:
        return Failed(message=str(error))
    return Completed(message="done")


def _send(*targets: str) -> State[Any]:
    if not commands.remotes():
        return Completed(message="no remote is configured")
    said: list[str] = []
    show = get_run_logger().info  # of this thread: those that read the command's lines belong to no run

    def say(line: str) -> None:
        said.append(line)
        show(line)

    try:
        commands.run(commands.dvc("push", *targets), say)
    except commands.CommandFailed:
        return Failed(message=f"the DVC remote: {doctor.remote_trouble(said)}")
    return Completed(message="done")


if __name__ == "__main__":
    retrain()
