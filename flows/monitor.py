"""The monitoring flow: what the last predictions say, who is told, and whether a retraining starts."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.blocks import notifications  # noqa: F401  # so that they can be loaded by name
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from components import params, stage
from components.params import Monitor
from components.stage import read_json
from flows import commands, limits, locks, retrain

FOLDER = Path("artifacts/monitor")
TAG = "monitor"
"""Of the retrainings that this starts."""
HERE = "the retraining runs in this process"
_STATE = FOLDER / "state.json"


@task(task_run_name="look", cache_policy=NO_CACHE)
def look() -> State[Any]:
    """Compare the last window with the training data, and report."""
    return retrain.run_command(commands.stage("monitor"))


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(model: str, report: dict[str, Any]) -> None:
    """Show the report in the Prefect UI, and tell automations of it."""
    create_markdown_artifact(summary(report), key="monitoring", description="What the last predictions say")
    create_link_artifact((FOLDER / "report.html").resolve().as_uri(), key="monitoring-report", link_text="The report")
    resource = {"prefect.resource.id": f"trueframe.model.{model}", "prefect.resource.name": model}
    said = {key: report[key] for key in ("status", "n", "n_images", "problems", "retrain")}
    emit_event(f"trueframe.monitor.{report['status'].replace(' ', '-')}", resource, payload=said)
    if report["retrain"]:
        emit_event("trueframe.monitor.retrain", resource, payload=said)


@task(task_run_name="alert", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def alert(block: str, subject: str, body: str) -> State[Any]:
    """Send a message by a notification block."""
    try:
        found: Any = Block.load(block)
        with found.raise_on_failure():
            found.notify(body, subject)
    except Exception as error:  # each kind of block raises what it likes
        return Failed(message=f"monitor.alert: {block} can't be notified ({str(error).splitlines()[0][:200]})")
    return Completed(message="sent")


@task(task_run_name="start", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def start(settings: Monitor, reasons: list[str]) -> State[Any]:
    """Start the retraining's deployment, unless one is at work or was started not long ago."""
    assert settings.deployment is not None
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(settings.deployment)
        except ObjectNotFound:
            return Completed(
                message=f"no deployment is called {settings.deployment}, so nothing was started; `prefect deploy "
                "--all` makes those of prefect.yaml, `trueframe monitor --retrain` retrains here"
            )
        of = FlowRunFilterDeploymentId(any_=[deployment.id])

        def latest(wanted: FlowRunFilter) -> FlowRun | None:
            return next(
                iter(client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)),
                None,
            )

        at_work = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING]))
        if running := latest(FlowRunFilter(deployment_id=of, state=at_work)):
            return Completed(message=f"the retraining {running.name} is at work already")
        # The server remembers what monitors on other machines started.
        last = latest(FlowRunFilter(deployment_id=of, tags=FlowRunFilterTags(all_=[TAG])))
        if last and last.created and (wait := _wait(settings, last.created)):
            return Completed(message=wait)
    if wait := _cooling(settings):
        return Completed(message=wait)
    run: Any = run_deployment(settings.deployment, timeout=0, tags=[TAG], as_subflow=False)
    _remember(started=_now().isoformat(), reasons=reasons)
    return Completed(message=f"{settings.deployment} was started as {run.name}")


@flow(name="monitor", persist_result=False)
def monitor(here: bool = False, hours: float | None = None) -> State[Any]:
    """Look at the last predictions, tell, and start a retraining where there is a reason.

    Args:
        here: whether the retraining runs in this process, and not as a deployment.
        hours: that it may take, a retraining in this process not counted.
    """
    try:
        settings = params.load()
        with limits.in_time(hours), locks.only_run(FOLDER):
            commands.mend()
            state = look(return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
            report = read_json(FOLDER / "report.json")
            publish(settings.register_.model, report)
            decided = _decided(settings.monitor, report["retrain"], here)
            told = _told(settings.monitor, report, str(decided.message))
        if decided.message == HERE:  # without the lock, so that the next look doesn't wait for it
            decided = retrain.retrain(return_state=True)
        if told is None and decided.is_completed():
            return Completed(message=decided.message)
        return Failed(message=f"{told}; {decided.message}" if told else decided.message)
    except Exception as error:
        return limits.failed(error)


def _decided(settings: Monitor, reasons: list[str], here: bool) -> State[Any]:
    """What is done about reasons to retrain; a deployment is started now."""
    if not reasons:
        return Completed(message="no reason to retrain")
    if not here and settings.deployment is None:
        return Completed(message="monitor.deployment is null, so no retraining was started")
    if not here:
        return start(settings, reasons, return_state=True)
    if wait := _cooling(settings):
        return Completed(message=wait)
    _remember(started=_now().isoformat(), reasons=reasons)
    return Completed(message=HERE)


def _told(settings: Monitor, report: dict[str, Any], said: str) -> str | None:
    """Send an alert where the problems are others than at the last one; why it couldn't be sent, or None."""
    checks = sorted(problem["check"] for problem in report["problems"])
    if settings.alert is None or checks == _state().get("alerted", []):
        return None
    subject = f"Trueframe: {', '.join(checks) or 'no problem any more'}"
    state = alert(settings.alert, subject, f"{summary(report)}\n\n{said}", return_state=True)
    if not state.is_completed():
        return state.message
    _remember(alerted=checks)
    return None


def summary(report: dict[str, Any]) -> str:
    """A report in Markdown."""
    lines = [
        f"**{report['status']}**: {report['n']:,} predictions of {report['n_images']:,} different pictures since "
        f"{report['since'][:16].replace('T', ' ')} UTC.",
        "",
        *(f"- {problem['check']}: {problem['message']}" for problem in report["problems"]),
        *(f"- {note}" for note in report["notes"]),
        "",
    ]
    if report["drift"]:
        lines += ["| | stability index | training | now | |", "|---|---|---|---|---|"]
        lines += [
            f"| {s['name']} | {s['psi']:.3f} | {s['before']} | {s['now']} | {'drift' if s['drifted'] else ''} |"
            for s in report["drift"]
        ]
    return "\n".join(lines)


def _cooling(settings: Monitor) -> str | None:
    started = _state().get("started")
    return _wait(settings, datetime.fromisoformat(started)) if started else None


def _wait(settings: Monitor, last: datetime) -> str | None:
    """Why a retraining has to wait, or None."""
    until = last + timedelta(hours=settings.cooldown_hours)
    if _now() >= until:
        return None
    return (
        f"a retraining was started at {last:%Y-%m-%d %H:%M}, the next may be from {until:%Y-%m-%d %H:%M} UTC on "
        "(monitor.cooldown_hours)"
    )


def _state() -> dict[str, Any]:
    return dict(read_json(_STATE)) if _STATE.exists() else {}


def _remember(**said: Any) -> None:
    text = json.dumps(_state() | said, indent=1) + "\n"
    stage.replace(_STATE, lambda path: path.write_text(text))


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    monitor()
