"""What works here and what doesn't."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from components import params, tracking
from components.stage import StageError
from flows import commands


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
        except (StageError, OSError) as error:
            yield Finding(what, False, str(error))


def _versions() -> str:
    names = ("tensorflow", "keras", "mlflow", "prefect", "dvc", "great-expectations")
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


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
    return f"store {mlflow.get_tracking_uri()} answers"


def _prefect() -> str:
    import urllib.request

    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return "no server is set (PREFECT_API_URL); a temporary one is started for each run"
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError as error:
        raise StageError(f"server {url} doesn't answer ({error}); start it with `prefect server start`") from None
    return f"server {url} answers"


def _remote() -> str:
    listed = subprocess.run(commands.dvc("remote", "list"), env=commands.environment(), capture_output=True, text=True)
    if listed.returncode:
        raise StageError(f"DVC doesn't work here: {(listed.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    if not listed.stdout.strip():
        return "no remote; the data has no second copy. `dvc remote add --default NAME s3://BUCKET/PATH` adds one"
    try:
        answer = subprocess.run(
            commands.dvc("status", "--cloud", "--json", "data.dvc"),
            env=commands.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise StageError("the remote doesn't answer within a minute") from None
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StageError(f"the remote doesn't answer: {reason.removeprefix('ERROR: ')}")
    return f"{' '.join(listed.stdout.split()[:2])} answers"


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
    "Prefect": _prefect,
    "DVC remote": _remote,
    "disk": _disk,
}
