"""The retraining as a pipeline for Kubeflow: the stages of DVC as containers that pass each other URIs.

What there is to run, what it depends on and what it makes stands in `dvc.yaml`, and is read from there by DVC itself.
"""

import dataclasses
import graphlib
import inspect
import re
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from components import params, store
from components.params import Kubeflow, Resources
from components.stage import StageError
from flows import commands

NAME = "trueframe-retrain"
_BACKOFF = "30s"
_STATE = ("data", "artifacts/ingest")
"""What an ingestion adds to: the shards, and word of what was read."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: as DVC has it, `train@cnn`.
        command: of the stage.
        settings: the text of a params.yaml with what it depends on.
        needs: paths that other stages make.
        makes: paths that it makes.
        resumes: paths that it begins with as the last run left them, where there was one.
        report: a page among what it makes.
        pure: whether it only depends on its inputs and settings, so that its outputs may be used again.
    """

    name: str
    command: tuple[str, ...]
    settings: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    resumes: tuple[str, ...] = ()
    report: str | None = None
    pure: bool = True

    @property
    def kind(self) -> str:
        """What it does: `train`."""
        return self.name.partition("@")[0]

    @property
    def checkpoint(self) -> str | None:
        """What it writes to be taken up again when it was killed."""
        return f"artifacts/checkpoints/{self.name.partition('@')[2]}" if self.kind == "train" else None


def stages() -> list[Stage]:
    """All steps for the settings of this folder, each after those that it needs something from.

    Raises:
        StageError: the settings are wrong, or two paths would have one name in Kubeflow.
    """
    members = params.load().train.members
    text = Path("params.yaml").read_text()
    raw = yaml.safe_load(text)
    ingest = Stage(
        "ingest",
        ("python", "-m", "components.ingest"),
        _dependent(raw, ["ingest"]),
        makes=("data",),
        resumes=_STATE,
        pure=False,
    )
    register = Stage(
        "register",
        ("python", "-m", "components.register"),
        text,
        needs=("artifacts/models", "artifacts/evaluation", "artifacts/index.parquet", "data"),
        makes=("artifacts/registration.json",),
        pure=False,
    )
    judged = [stage for stage in _from_dvc(raw) if stage.name not in {f"evaluate@{member}" for member in members}]
    found = [ingest, *judged, register]
    maker = {path: stage.name for stage in found for path in stage.makes}
    if len({parameter(path) for path in maker}) < len(maker):
        raise StageError("two candidates' names differ in - and _ alone, which are the same in Kubeflow; rename one")
    by_name = {
        stage.name: dataclasses.replace(
            stage, needs=tuple(path for path in maker if any(_overlap(path, need) for need in stage.needs))
        )
        for stage in found
    }
    after = {name: [maker[path] for path in stage.needs] for name, stage in by_name.items()}
    return [by_name[name] for name in graphlib.TopologicalSorter(after).static_order()]


def _from_dvc(raw: dict[str, Any]) -> list[Stage]:
    """The pure stages, with what DVC knows of them."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with Repo() as repo:
        found = []
        for stage in repo.index.stages:
            if not stage.cmd:
                continue
            watched = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
            # The code is in the image.
            deps = [d.def_path for d in stage.deps if PurePosixPath(d.def_path).parts[0] in ("data", "artifacts")]
            outs = [out.def_path for out in stage.outs]
            found.append(
                Stage(
                    stage.name,
                    tuple(shlex.split(stage.cmd)),
                    _dependent(raw, watched),
                    tuple(deps),
                    tuple(_together(outs, deps)),
                    tuple(out.def_path for out in stage.outs if out.persist),
                    next((out for out in outs if PurePosixPath(out).name == "report.html"), None),
                )
            )
        return found


def _together(outs: list[str], deps: list[str]) -> list[str]:
    """What a stage makes, several files of a folder of its own as that folder."""

    def shown(out: str) -> str:
        folder = PurePosixPath(out).parent
        shared = sum(PurePosixPath(other).parent == folder for other in outs) > 1
        own = not any(PurePosixPath(dep).is_relative_to(folder) for dep in deps)
        return str(folder) if shared and own else out

    return list(dict.fromkeys(map(shown, outs)))


def _overlap(path: str, other: str) -> bool:
    one, two = PurePosixPath(path), PurePosixPath(other)
    return one.is_relative_to(two) or two.is_relative_to(one)


def _dependent(raw: dict[str, Any], watched: Iterable[str]) -> str:
    """A params.yaml in which only what a stage depends on is said.

    All of it would do, but then a stage would run again for another one's settings.
    """
    kept: dict[str, Any] = {}
    for key in watched:
        *above, last = key.split(".")[:3]  # of a model all is said, where only its view counts
        source, target = raw, kept
        for part in above:
            source, target = source.get(part, {}), target.setdefault(part, {})
        if last in source:
            target[last] = source[last]
    # What has to be there, said as briefly as it may.
    kept.setdefault("ingest", {"sources": {"none": {}}})
    kept.setdefault("validate", {})
    kept.setdefault("evaluate", {})
    models = kept.setdefault("train", {}).setdefault("models", {})
    views = [model["view"] for model in models.values()] or raw["preprocess"]["views"]
    kept.setdefault("preprocess", {"views": list(dict.fromkeys(views))})
    if not models:
        models["none"] = {"network": "cnn", "view": kept["preprocess"]["views"][0]}
    params.Params.model_validate(kept)
    return yaml.safe_dump(kept)


def parameter(path: str) -> str:
    """What a path is called in Kubeflow: `models_cnn` for `artifacts/models/cnn`."""
    return re.sub(r"\W", "_", path.removeprefix("artifacts/"))


def signature(stage: Stage) -> inspect.Signature:
    """A component's inputs and outputs: URIs, by the names of their paths, and a page to show."""
    dsl = _kfp("dsl")
    kinds: dict[str, Any] = {"root": str, "settings": str}
    kinds |= {parameter(path): str for path in stage.needs}
    kinds |= {parameter(path): dsl.OutputPath(str) for path in stage.makes}
    if stage.report:
        kinds["report"] = dsl.Output[dsl.HTML]
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, either, annotation=kind) for name, kind in kinds.items()])


def arguments(stage: Stage, given: Mapping[str, Any]) -> list[Any]:
    """Of `python -m components.remote`, for the values that a component is given by the names of its signature."""
    listed = ["--store", given["root"], "--settings", given["settings"]]
    for path in stage.resumes:
        listed += ["--resume", path]
    if stage.checkpoint:
        listed += ["--checkpoint", stage.checkpoint]
    for path in stage.needs:
        listed += ["--fetch", path, given[parameter(path)]]
    for path in stage.makes:
        listed += ["--keep", path, given[parameter(path)]]
    if stage.report:
        listed += ["--copy", stage.report, given["report"].path]
    return [*listed, "--", *stage.command]


def container(stage: Stage, image: str) -> Any:
    """A stage as a container component."""
    dsl = _kfp("dsl")
    names = signature(stage)

    def build(*values: Any) -> Any:
        given = dict(zip(names.parameters, values, strict=True))
        return dsl.ContainerSpec(
            image=image, command=["python", "-m", "components.remote"], args=arguments(stage, given)
        )

    build.__name__ = re.sub(r"\W", "_", stage.name)
    build.__doc__ = shlex.join(stage.command)
    build.__signature__ = names  # type: ignore[attr-defined]
    return dsl.container_component(build)


def pipeline(settings: Kubeflow, component: Callable[[Stage, str], Any] = container) -> Any:
    """The pipeline for the settings of this folder.

    Args:
        settings: the section `kubeflow`.
        component: makes a component of a stage and an image.

    Raises:
        StageError: a setting is missing, or the extra is.
    """
    dsl = _kfp("dsl")
    image, root = settings.image, _root(settings)
    if image is None:
        raise StageError("kubeflow.image is not set; it, or `--image`, says of which image the containers are")
    steps = stages()

    def retrain(root: str = root) -> None:
        made: dict[str, Any] = {}
        for stage in steps:
            inputs = {parameter(path): made[path] for path in stage.needs}
            task = component(stage, image)(root=root, settings=stage.settings, **inputs)
            _configure(task, stage, settings)
            made |= {path: task.outputs[parameter(path)] for path in stage.makes}

    described = "Ingest what is new, retrain what is stale, register what is better."
    return dsl.pipeline(name=NAME, description=described)(retrain)


def _configure(task: Any, stage: Stage, settings: Kubeflow) -> None:
    wanted = settings.resources.get(stage.kind, Resources())  # type: ignore[call-overload]
    task.set_display_name(stage.name)
    task.set_caching_options(stage.pure and settings.cache)
    task.set_retry(settings.retries, backoff_duration=_BACKOFF)
    task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
    if wanted.gpus:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(wanted.gpus)
    if settings.secret:
        # As kfp-kubernetes' use_secret_as_env writes it, for old servers and new ones.
        task.platform_config["kubernetes"] = {
            "secretAsEnv": [
                {
                    "secretName": settings.secret,
                    "secretNameParameter": {"runtimeValue": {"constant": settings.secret}},
                    "keyToEnv": [{"secretKey": key, "envVar": key} for key in settings.secret_keys],
                    "optional": True,
                }
            ]
        }


def compile_to(path: Path, settings: Kubeflow) -> int:
    """Write the pipeline as Kubeflow reads it, and return how many stages it has.

    Raises:
        StageError: a setting is missing, or the name doesn't end in .yaml.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise StageError(f"{path}: its name has to end in .yaml")
    whole = pipeline(settings)
    _kfp("compiler").Compiler().compile(whole, str(path))
    return len(whole.pipeline_spec.root.dag.tasks)


def submit(host: str | None, settings: Kubeflow) -> str:
    """Run the pipeline now.

    Args:
        host: of Kubeflow Pipelines; null for what KF_PIPELINES_ENDPOINT or the cluster says.
        settings: the section `kubeflow`.

    Returns:
        The run's id.

    Raises:
        StageError: a setting is missing, or Kubeflow can't be reached or refuses.
    """
    kfp = _kfp()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        compile_to(file, settings)
        try:
            with warnings.catch_warnings(action="ignore"):
                client = kfp.Client(host=host)
            return str(client.create_run_from_pipeline_package(str(file), experiment_name="trueframe").run_id)
        except Exception as error:  # the client has none of its own for a server that isn't there
            reason = str(error).strip().splitlines()[0]
            raise StageError(
                f"Kubeflow Pipelines at {host or 'the place that the environment names'}: {reason}; `--host` or "
                "KF_PIPELINES_ENDPOINT says where it is"
            ) from None


def push(settings: Kubeflow) -> str:
    """Let the next run begin with the data of this folder, and return its URI.

    Raises:
        StageError: no store is named, it can't be reached, or there is no data here.
    """
    root = _root(settings)
    commands.mend()
    here = [path for path in _STATE if path == "data" or Path(path).exists()]  # who pulled the data has no receipts
    stored = {path: store.put(Path(path), root) for path in here}
    for path, uri in stored.items():
        store.remember(root, path, uri)
    return stored["data"]


def _root(settings: Kubeflow) -> str:
    if settings.root is None or "://" not in settings.root:
        said = "is not set" if settings.root is None else f"is {settings.root!r}"
        raise StageError(f"kubeflow.root {said}; it, or `--root`, has to be like s3://BUCKET/PREFIX")
    return settings.root


def _kfp(module: str | None = None) -> Any:
    from importlib import import_module

    return import_module(f"kfp.{module}" if module else "kfp")
