"""What works here and what doesn't."""

import json
import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path, PurePosixPath

from components import params, tracking, troubles
from components.stage import StageError
from flows import commands, dvc, server


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    text: str


def examine() -> Iterator[Finding]:
    """Look at everything, one after the other."""
    for what, look in _LOOKS.items():
        try:
            yield Finding(what, True, look())
        except ModuleNotFoundError as error:
            absent = troubles.told(error)
            if absent is None:
                raise
            yield Finding(what, True, absent)  # where nothing is trained, that is no fault
        except Exception as error:
            text = str(error) if isinstance(error, StageError | OSError) else troubles.told(error)
            if text is None:
                raise
            yield Finding(what, False, text)


def _versions() -> str:
    names = ("tensorflow", "keras", "mlflow-skinny", "prefect", "dvc", "great-expectations")
    here = [f"{name} {version(name)}" for name in names if any(distributions(name=name))]
    return ", ".join([f"python {platform.python_version()}", *here])


def _settings() -> str:
    found = params.load()
    return f"params.yaml: sources {', '.join(found.ingest.sources)}; models {', '.join(found.train.models)}"


def _device() -> str:
    from components import networks

    networks.load_keras()
    import tensorflow as tf

    gpus = [
        tf.config.experimental.get_device_details(g).get("device_name", g.name)
        for g in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join(gpus) if gpus else f"no GPU; {os.cpu_count()} CPU cores"


def _data() -> str:
    from components.ingest import summary

    here = summary(Path("data"))
    if here.empty:
        return "no images yet; `trueframe run` or `trueframe ingest` brings them in"
    return "; ".join(f"{r.source}: {r.ai:,} ai, {r.real:,} real" for r in here.itertuples())


def _mlflow() -> str:
    mlflow = tracking.connect()
    uri = tracking.shown(mlflow.get_tracking_uri())
    if not uri.startswith(("http://", "https://")):
        return f"store {uri} answers"
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    said = f"server {uri} answers{f' {user}' if user else ''}"
    place = mlflow.get_experiment_by_name(tracking.EXPERIMENT).artifact_location
    if not place.startswith("mlflow-artifacts:"):
        return f"{said}; artifacts go past it, to {tracking.shown(place)}"
    try:
        mlflow.artifacts.list_artifacts(artifact_uri=place)
    except Exception as error:
        raise StageError(f"{said}, but not its artifacts' store ({tracking.line(error)})") from None
    return f"{said}; artifacts go through it"


def _champion() -> str:
    from flows import answering

    number = answering.champion()
    if number is None:
        return "none yet; `trueframe run` trains one"
    from components.register.registry import Registry

    registry = Registry(params.load().register_.model)
    registry.look(number)
    return f"{registry.name} version {number}, and its files are there"


def _prefect() -> str:
    url = server.configured()
    if not url:
        return "no server is set (PREFECT_API_URL); a temporary one is started for each run"
    shown = tracking.shown(url)
    status, _ = _answer(f"{url}/ready")
    if status == 503:
        raise StageError(f"server {shown} answers, but not its database")
    pools = [pool for pool in server.reached(url) if pool.type != "prefect-agent"]
    states = [f"{pool.name} ({'a worker is there' if pool.status == 'READY' else 'no worker'})" for pool in pools]
    return f"server {shown} answers; work pools: {', '.join(states) or 'none yet'}"


def _gateway() -> str:
    url = os.environ.get("TRUEFRAME_GATEWAY_URL")
    if not url:
        return "none is set (TRUEFRAME_GATEWAY_URL); `trueframe serve` starts one"
    status, text = _answer(f"{url.rstrip('/')}/health/ready")
    shown = tracking.shown(url)
    if status == 200:
        return f"{shown} answers with version {json.loads(text)['model_version']}"
    if status == 503:
        raise StageError(f"{shown} answers, but has no model yet")
    raise StageError(f"{shown} doesn't answer ({text})")


def _answer(url: str) -> tuple[int, str]:
    """What a server says to a question: status and text; 0 and the reason where it says nothing."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, f"status {error.code}"
    except OSError as error:
        return 0, str(error)


def _remote() -> str:
    listed = subprocess.run(commands.dvc("remote", "list"), env=commands.environment(), capture_output=True, text=True)
    if listed.returncode:
        raise StageError(f"DVC doesn't work here: {(listed.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    remotes = listed.stdout.strip().splitlines()
    if not remotes:
        return "no remote; the data has no second copy. `dvc remote add --default NAME s3://BUCKET/PATH` adds one"
    name = " ".join(next((r for r in remotes if r.endswith("(default)")), remotes[0]).split()[:2])
    try:
        answer = subprocess.run(
            commands.dvc("status", "--cloud", "--json"),
            env=commands.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise StageError(f"{name}: it doesn't answer within a minute") from None
    if answer.returncode:
        raise StageError(f"{name}: {remote_trouble(answer.stderr.splitlines())}")
    different = json.loads(answer.stdout or "{}")
    folders = {str(folder) for path in different for folder in PurePosixPath(path).parents}
    files = Counter(status for path, status in different.items() if path not in folders)
    said = [f"{files[status]:,} {what}" for status, what in _FILES.items() if files[status]]
    text = "; ".join([f"{name} answers", *(said or ["all of this version is on it and here"])])
    if files["missing"]:
        raise StageError(text)
    return text


_FILES = {
    "new": "files of this version aren't on it yet: `dvc push` sends them",
    "deleted": "files of this version aren't here: `dvc pull` brings them",
    "missing": "files of this version are neither on it nor here: `dvc push` them from where they are",
}
"""What DVC's words for a file mean."""


def remote_trouble(said: Iterable[str]) -> str:
    """What DVC's complaint about a remote means, as one line that says what to do.

    Args:
        said: the lines of the command that failed; of many files, the first one's trouble is told.
    """
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    reason = next(iter(errors), "no reason given").removeprefix("unexpected error - ")
    reason = re.sub(r"^failed to transfer '\w+' - |\[Errno 121\] ", "", reason)
    if re.search("no remote specified", reason):
        return f"none is the default; `dvc remote default NAME` says which is ({reason})"
    meaning = troubles.store(reason)
    return f"{meaning} ({reason})" if meaning else dvc.told(reason)


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 2:
        raise StageError(f"only {free:.1f} GiB are free here")
    return f"{free:.0f} GiB free"


_LOOKS: dict[str, Callable[[], str]] = {
    "versions": _versions,
    "settings": _settings,
    "device": _device,
    "data": _data,
    "MLflow": _mlflow,
    "champion": _champion,
    "Prefect": _prefect,
    "gateway": _gateway,
    "DVC remote": _remote,
    "disk": _disk,
}
