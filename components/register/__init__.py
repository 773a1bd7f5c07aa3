"""The best candidate becomes a version in the registry, and the champion if it beats the one there."""

import hashlib
import json
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pandas as pd

import components
from components import parallel, shards, stage, tracking
from components.params import Register
from components.register import gate
from components.register.registry import CHALLENGER, CHAMPION, Registry, Version
from components.stage import StageError

_IDENTITY = "detector_sha256"
_DECISION = "gate"
_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow", "pyyaml")


@dataclass(frozen=True)
class Inputs:
    """Where the stages before left their work.

    Attributes:
        models: folder of the trained networks.
        evaluations: folder of the evaluations.
        index: the index of all images.
        data: folder of the shards.
    """

    models: Path
    evaluations: Path
    index: Path
    data: Path


def register(names: list[str], settings: Register, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Register the best candidate and decide whether it becomes the champion.

    The same candidate is registered once, however often this runs, and what was decided for it stays decided:
    a rollback isn't undone by a run that brought nothing new.

    Args:
        names: of the candidates.
        settings: the section `register`.
        inputs: from the stages before.
        out: `registration.json` to write.

    Returns:
        What `registration.json` holds.

    Raises:
        StageError: a candidate isn't evaluated yet, or MLflow can't be reached.
    """
    scores = {name: _read(inputs.evaluations / name / "metrics.json") for name in names}
    winner, reasons = gate.best(scores, settings.metric, settings.min_scores)
    decision, version = "rejected", None
    registry = Registry(settings.model)
    if winner is not None:
        identity = _identity(inputs, winner)
        version = next((v for v in registry.versions() if v.tags.get(_IDENTITY) == identity), None)
        if version is None:
            version = _create(registry, winner, scores[winner], identity, inputs)
        if _DECISION in version.tags:
            decision = version.tags[_DECISION]
            reasons.append(f"registered before as version {version.number}; nothing new to decide")
        else:
            decision, why = _decide(registry, version, winner, settings, inputs)
            reasons.append(why)
            registry.client.set_model_version_tag(settings.model, version.number, _DECISION, decision)
    result = {
        "decision": decision,
        "reasons": reasons,
        "model_name": settings.model,
        "candidate": winner,
        "version": version.number if version else None,
        "aliases": {alias: v.number if (v := registry.alias(alias)) else None for alias in (CHAMPION, CHALLENGER)},
        "scores": {
            name: {k: s[k] for k in ("accuracy", "balanced_accuracy", "auroc", "n")} for name, s in scores.items()
        },
    }
    stage.replace(out, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise StageError(f"{path}: not here; `dvc repro` or `trueframe run` evaluates the candidate first") from None


def _networks(inputs: Inputs, name: str) -> dict[str, Path]:
    """The files of a candidate's networks, by the names of its members."""
    members = _read(inputs.evaluations / name / "decision.json").get("members", [{"name": name}])
    return {m["name"]: inputs.models / m["name"] / "network.keras" for m in members}


def _identity(inputs: Inputs, name: str) -> str:
    """Equal for equal weights and decisions: the rest of a Keras file holds a date and Python's object ids."""
    digest = hashlib.sha256()
    for file in _networks(inputs, name).values():
        with zipfile.ZipFile(file) as network:
            digest.update(network.read("model.weights.h5"))
    digest.update((inputs.evaluations / name / "decision.json").read_bytes())
    return digest.hexdigest()


def _packages(inputs: Inputs, name: str) -> list[str]:
    """What serving a candidate needs; keras-hub only where an encoder is made of its layers."""
    configs = [zipfile.ZipFile(file).read("config.json") for file in _networks(inputs, name).values()]
    return [*_REQUIREMENTS, *(["keras-hub"] if any(b'"keras_hub' in config for config in configs) else [])]


def _create(registry: Registry, name: str, scores: dict[str, Any], identity: str, inputs: Inputs) -> Version:
    """Log the pyfunc to the run that judged the candidate, and make it a version with its lineage."""
    mlflow, client = registry.mlflow, registry.client
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    # Any type, so that a row that holds no text fails by itself and not the whole request.
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        params=ParamSchema([ParamSpec("explain", DataType.boolean, False)]),
    )
    package = Path(components.__file__).parent
    run_id = tracking.active(mlflow, _read(inputs.evaluations / name / "run.json")["run_id"])
    card = inputs.evaluations / name / "model_card.md"
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=run_id, run_name=None if run_id else name) as run,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*[Ii]nput example.*")
        logged = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(package / "serve" / "pyfunc.py"),
            artifacts={
                "network": str(_gathered(_networks(inputs, name), Path(folder))),
                "decision": str(inputs.evaluations / name / "decision.json"),
                "familiar": str(inputs.evaluations / name / "familiar.npz"),
                "card": str(card),
            },
            code_paths=[str(package)],
            pip_requirements=[f"{package}=={installed(package)}" for package in _packages(inputs, name)],
            signature=signature,
        )
    try:
        client.create_registered_model(registry.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    threshold = _read(inputs.evaluations / name / "decision.json")["threshold"]
    tags = {
        _IDENTITY: identity,
        "candidate": name,
        "run_id": run.info.run_id,
        "threshold": repr(threshold),
        **{k: f"{scores[k]:.4f}" for k in ("balanced_accuracy", "accuracy", "auroc") if scores[k] is not None},
        "test_images": str(scores["n"]),
        **tracking.lineage(),
    }
    made = client.create_model_version(
        registry.name,
        logged.model_uri,
        run.info.run_id,
        tags=tags,
        description=_description(card.read_text()),
        model_id=logged.model_id,
    )
    return next(v for v in registry.versions() if v.number == str(made.version))


def _gathered(networks: dict[str, Path], folder: Path) -> Path:
    """The one network's file, or a folder with those of all members."""
    if len(networks) == 1:
        return next(iter(networks.values()))
    together = folder / "networks"
    together.mkdir()
    for name, file in networks.items():
        shutil.copy(file, together / f"{name}.keras")
    return together


def _description(card: str) -> str:
    """The card's short form: what stands before its first heading."""
    short = card.partition("\n## ")[0].partition("\n")[2].strip()
    return f"{short}\n\nThe card and the report are among the run's artifacts, in `evaluation/`."


def _decide(registry: Registry, version: Version, name: str, settings: Register, inputs: Inputs) -> tuple[str, str]:
    champion = registry.alias(CHAMPION)
    if champion is not None and champion.number == version.number:
        return "champion", "it is the champion already"
    if champion is None:
        registry.promote(version.number)
        return "champion", "the first champion"
    predictions = pd.read_parquet(inputs.evaluations / name / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    theirs, threshold = _champion_scores(registry, champion, test, inputs)
    own = gate.score(settings.metric, test["label"], test["probability"], float(version.tags["threshold"]))
    other = gate.score(settings.metric, test["label"], theirs, threshold)
    on = (
        f"{settings.metric} {own:.4f} against {other:.4f} of version {champion.number} on the same {len(test):,} images"
    )
    if own > other + settings.min_gain:
        registry.promote(version.number)
        return "champion", f"better than the champion: {on}"
    registry.challenge(version.number)
    return "challenger", f"not better than the champion: {on}"


def _champion_scores(
    registry: Registry, champion: Version, test: pd.DataFrame, inputs: Inputs
) -> tuple[pd.Series, float]:
    """The champion's probabilities of the test images: as recorded, and computed now for those it hasn't seen."""
    known = _recorded(registry, champion)
    theirs = test["sha256"].map(known)
    missing = test.loc[theirs.isna(), "sha256"].unique()
    if len(missing):
        print(f"scoring {len(missing):,} test images with the champion, version {champion.number}", flush=True)
        detector = registry.load(champion.number)
        index = pd.read_parquet(inputs.index)
        rows = index[index["sha256"].isin(missing)].drop_duplicates("sha256")
        files = shards.paths(inputs.data, rows["source"].unique())
        new: dict[str, float] = {}
        for block in parallel.batched(shards.load(files, rows), 512):
            for (row, _), answer in zip(block, detector.score([data for _, data in block]), strict=True):
                new[rows.loc[row, "sha256"]] = answer["probability"]
        theirs = theirs.fillna(test["sha256"].map(new))
    return theirs, float(champion.tags.get("threshold", 0.5))


def _recorded(registry: Registry, champion: Version) -> dict[str, float]:
    mlflow = registry.mlflow
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=champion.run_id, artifact_path="evaluation/predictions.parquet"
        )
        rows = pd.read_parquet(path)
    except (mlflow.exceptions.MlflowException, OSError):
        return {}
    return dict(zip(rows["sha256"], rows["probability"], strict=True))
