"""The best candidate becomes a version in the registry; the gate compares it with the champion there."""

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import components
from components import images, integrity, metrics, parallel, robustness, shards, stage, tracking
from components.params import Register
from components.register import gate
from components.register.registry import (
    CHALLENGER,
    CHAMPION,
    FAILED,
    LINEAGE,
    NETWORKS,
    SUMS,
    Gone,
    Registry,
    Version,
)
from components.serve import environment
from components.serve.files import Files
from components.serve.reference import Reference, beside, title
from components.stage import StageError, read_json, read_table

_IDENTITY = "detector_sha256"
_DECISION = "gate"
_AGAINST = "gate_against"
_RULES = "gate_rules"
_GENERALISATION = "generalisation"
_SIZE = "network_bytes"
_ROUNDS = 15  # of one image through both detectors
_AT_ONCE = 8  # degraded pictures held in memory
_MOST = 2000  # test images that a reference detector is asked about
_UNSEEN = "no reference detector that is here was judged on pictures like its test images"


@dataclass(frozen=True)
class Inputs:
    """Where the stages before left their work.

    Attributes:
        models: folder of the trained networks.
        evaluations: folder of the evaluations.
        index: the index of all images.
        data: folder of the shards.
        params: the settings by which all of it was made.
    """

    models: Path
    evaluations: Path
    index: Path
    data: Path
    params: Path = Path("params.yaml")


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
    for judged in scores.values():
        judged[_GENERALISATION] = (judged.get("left_out") or {}).get("balanced_accuracy")
    winner, reasons = gate.best(scores, settings.metric, settings.min_scores)
    decision, version, rules = "rejected", None, []
    registry = Registry(settings.model)
    if winner is not None:
        identity = _identity(inputs, winner)
        version = _known(registry, identity)
        if version is not None and _is_gone(registry, version):
            reasons.append(f"no file of version {version.number}, the same network, is left, so it is registered again")
            registry.tag(version.number, _IDENTITY, f"{identity} (no file is left)")
            version = None
        if version is None:
            _create(registry, winner, scores[winner], identity, inputs)
            version = _known(registry, identity)
            assert version is not None
        if _DECISION in version.tags:
            decision, rules = version.tags[_DECISION], [asdict(rule) for rule in _rules(version)]
            reasons.append(f"registered before as version {version.number}; nothing new to decide")
        else:
            decision, found, why = _decide(registry, version, winner, settings, inputs)
            reasons.append(why)
            rules = [asdict(rule) for rule in found]
            registry.tag(version.number, _DECISION, decision)
    result = {
        "decision": decision,
        "reasons": reasons,
        "model_name": settings.model,
        "policy": settings.policy,
        "gate": rules,
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
        return dict(read_json(path))
    except FileNotFoundError:
        raise StageError(f"{path}: not here; `dvc repro` or `trueframe run` evaluates the candidate first") from None


def _networks(inputs: Inputs, name: str) -> dict[str, Path]:
    """A candidate's Keras networks, by the names of its members."""
    members = _detector(inputs, name).fitted["members"]
    return {m["name"]: inputs.models / m["name"] / "network.keras" for m in members}


def _detector(inputs: Inputs, name: str) -> Files:
    files = Files.kept(inputs.evaluations / name)
    if not files.detector.exists():
        raise StageError(f"{files.detector}: not here; `dvc repro` or `trueframe run` evaluates the candidate first")
    return files


def _identity(inputs: Inputs, name: str) -> str:
    """Equal for equal weights and decisions: the rest of a Keras file holds a date and Python's object ids."""
    digest = hashlib.sha256()
    for file in _networks(inputs, name).values():
        with zipfile.ZipFile(file) as network:
            digest.update(network.read("model.weights.h5"))
    digest.update(json.dumps(_detector(inputs, name).fitted, sort_keys=True).encode())
    return digest.hexdigest()


def _known(registry: Registry, identity: str) -> Version | None:
    """The version of a candidate; of several the first, and the others go.

    Two machines may register the same candidate at the same moment, and MLflow's client asks again where an answer got
    lost. Numbers only grow, so whoever looks after its own registration sees the first one.
    """
    same = [v for v in registry.versions() if v.tags.get(_IDENTITY) == identity]
    same.sort(key=lambda v: (not v.aliases and _DECISION not in v.tags, int(v.number)))
    for twin in same[1:]:
        if not twin.aliases and _DECISION not in twin.tags:
            # Another process may have done so already, or this user may not.
            with contextlib.suppress(registry.mlflow.exceptions.MlflowException):
                registry.client.delete_model_version(registry.name, twin.number)
    return same[0] if same else None


def _is_gone(registry: Registry, version: Version) -> bool:
    try:
        registry.look(version.number)
    except Gone:
        return True
    return False


def _rules(version: Version) -> list[gate.Rule]:
    """What the gate said of a version."""
    return [gate.Rule(**rule) for rule in json.loads(version.tags.get(_RULES, "[]"))]


def _create(registry: Registry, name: str, scores: dict[str, Any], identity: str, inputs: Inputs) -> None:
    """Log the pyfunc to the run that judged the candidate, and make it a version with its lineage."""
    mlflow, client = registry.mlflow, registry.client
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    # Any type, so that a row that holds no text fails by itself and not the whole request.
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        params=ParamSchema(
            [ParamSpec("explain", DataType.boolean, False), ParamSpec("threshold", DataType.double, None)]
        ),
    )
    package = Path(components.__file__).parent
    run_id = tracking.active(mlflow, _read(inputs.evaluations / name / "run.json")["run_id"])
    own = _detector(inputs, name)
    with (
        tempfile.TemporaryDirectory() as scratch,
        mlflow.start_run(run_id=run_id, run_name=None if run_id else name) as run,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*[Ii]nput example.*")
        # Copies, since DVC may keep a link to its cache at each path, and MLflow refuses what leads elsewhere.
        files = {
            key: Path(shutil.copyfile(file, Path(scratch, file.name)))
            for key, file in (("detector", own.detector), ("card", own.card))
        }
        sums = integrity.sums({file.name: file for file in files.values()})
        files["sums"] = Path(scratch, integrity.NAME)
        files["sums"].write_text(sums)
        logged = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(package / "serve" / "pyfunc.py"),
            artifacts={key: str(file) for key, file in files.items()},
            code_paths=[str(package)],
            pip_requirements=environment.pinned(environment.PACKAGES),
            signature=signature,
        )
        stored = _stored(mlflow, logged.model_uri, sums, Path(scratch, "stored"))
        for file, text in {**tracking.recorded(inputs.params), integrity.NAME: stored}.items():
            mlflow.log_text(text, f"{LINEAGE}/{file}")
        for member, network in _networks(inputs, name).items():
            copy = shutil.copyfile(network, Path(scratch, f"{member}.keras"))
            mlflow.log_artifact(str(copy), NETWORKS)
    try:
        client.create_registered_model(registry.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        _IDENTITY: identity,
        SUMS: hashlib.sha256(stored.encode()).hexdigest(),
        "candidate": name,
        "run_id": run.info.run_id,
        "threshold": repr(own.fitted["threshold"]),
        **{
            k: f"{scores[k]:.4f}"
            for k in ("balanced_accuracy", "accuracy", "auroc", _GENERALISATION)
            if scores[k] is not None
        },
        "test_images": str(scores["n"]),
        _SIZE: str(own.detector.stat().st_size),
        **tracking.lineage(inputs.params),
    }
    client.create_model_version(
        registry.name,
        logged.model_uri,
        run.info.run_id,
        tags=tags,
        description=_description(own.card.read_text()),
        model_id=logged.model_id,
    )


def _stored(mlflow: Any, uri: str, sums: str, folder: Path) -> str:
    """The list of all files of a logged model, code included, as the store gives them back.

    Raises:
        StageError: the detector's own files came back as others.
    """
    folder.mkdir()
    model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    changed = integrity.differences(sums, integrity.listed(model / "artifacts"))
    if changed:
        raise StageError(f"the artifact store gave back other files than it was given: {changed}; register again")
    return integrity.listed(model)


def _description(card: str) -> str:
    """The card's short form: what stands before its first heading."""
    short = card.partition("\n## ")[0].partition("\n")[2].strip()
    return f"{short}\n\nThe card and the report are among the run's artifacts, in `evaluation/`."


def _decide(
    registry: Registry, version: Version, name: str, settings: Register, inputs: Inputs
) -> tuple[str, list[gate.Rule], str]:
    """The decision, the gate's rules, and the reason; noted on the version before the aliases move."""
    events = registry.history()  # notes a champion that was chosen in the UI
    if version.number in {event.version for event in events}:  # killed before it could note its decision
        return "champion", _rules(version), "it was made the champion before"
    champion = registry.alias(CHAMPION)
    other = _Champion(registry, champion) if champion else _Reference.chosen(name, inputs)
    rules = _compared(registry, other, version, name, settings, inputs) if other else []
    if registry.champion() != (champion.number if champion else None):  # another retraining, or a person, was faster
        return _decide(registry, version, name, settings, inputs)
    if not (other and rules):
        registry.promote(version.number, how="gate")
        return "champion", [], f"the first champion; compared with none, since {_UNSEEN}"
    failed, gain = gate.failed(rules), rules[0]
    tags = {
        FAILED: ", ".join(failed),
        _AGAINST: other.version,
        _RULES: json.dumps([asdict(rule) for rule in rules]),
    }
    for key, value in tags.items():
        registry.tag(version.number, key, value)
    card = (inputs.evaluations / name / "model_card.md").read_text()
    against = f"Compared with {other.title}, {other.part}:\n\n{gate.table(rules)}"
    registry.describe(version.number, f"{_description(card)}\n\n{against}")
    on = f"{gain.rule} {_shown(gain.candidate)} against {_shown(gain.champion)} of {other.title}" + (
        f" on the same {gain.why}{other.caveat}" if gain.candidate is not None else f": {gain.why}"
    )
    if champion and settings.policy == "automatic" and gate.passes(rules):
        registry.promote(version.number, how="gate")
        return "champion", rules, f"every rule of the gate passes: {on}"
    named = {verdict: [r.rule for r in rules if r.verdict == verdict] for verdict in ("unclear", "not comparable")}
    said = [f"{word}: {', '.join(found)}" for word, found in (("failed", failed), *named.items()) if found]
    why = f"{on}; {'; '.join(said) or 'every rule of the gate passes'}"
    if not (champion or failed):
        registry.promote(version.number, how="gate")
        return "champion", rules, f"the first champion: {why}"
    registry.challenge(version.number)
    force = ' --force --reason "..."' if failed else ""
    return "challenger", rules, f"{why}. `trueframe promote {version.number}{force}` makes it the champion"


def _number(tag: str | None) -> float | None:
    return None if tag is None else float(tag)


def _shown(value: float | None) -> str:
    return "(undefined)" if value is None else f"{value:.4f}"


def _compared(
    registry: Registry, other: "_Champion", version: Version, name: str, settings: Register, inputs: Inputs
) -> list[gate.Rule]:
    """The gate's rules for a candidate, on its own test images; none where they say nothing of the two."""
    predictions, index = _tested(name, inputs)
    theirs = other.scores(predictions["sha256"], index, inputs.data)
    predictions = predictions.assign(champion=theirs)[theirs.notna()]
    test, proof = (predictions[predictions["split"] == split] for split in ("test", shards.REGRESSION))
    if not other.is_enough(test):
        return []
    own_after = read_table(inputs.evaluations / name / "degraded.parquet").drop_duplicates("sha256")
    their_after = other.degraded(own_after, settings.gate.degraded_images, index, inputs.data)
    own_after = own_after.set_index("sha256").loc[their_after.index]
    names = list(their_after.columns)
    labels = (test["label"] == "ai").to_numpy()
    has_cost = other.detector and not other.uncosted
    seconds = _latencies([other.detector, registry.load(version.number)]) if has_cost else [None, None]
    rules = gate.compare(
        gate.Judged(
            other.threshold,
            test["champion"].to_numpy(),
            their_after.to_numpy(),
            other.size,
            seconds[0],
            proof["champion"].to_numpy(),
            other.name,
            other.uncosted,
            other.generalisation,
        ),
        gate.Judged(
            float(version.tags["threshold"]),
            test["probability"].to_numpy(),
            own_after[names].to_numpy(),
            int(version.tags[_SIZE]),
            seconds[1],
            proof["probability"].to_numpy(),
            generalisation=_number(version.tags.get(_GENERALISATION)),
        ),
        gate.Images(
            labels,
            index.loc[test["sha256"], "source"].to_numpy(str),
            (own_after["label"] == "ai").to_numpy(),
            names,
            (proof["label"] == "ai").to_numpy(),
            proof["sha256"].tolist(),
        ),
        settings,
    )
    why = other.no_measure(labels, test["champion"].to_numpy(), settings)
    return [rules[0], *(gate.without(rule.rule, rule.limit, why) for rule in rules[1:])] if why else rules


def _tested(name: str, inputs: Inputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A candidate's test images and reported mistakes with its answers, and the index of all images by sha256."""
    predictions = pd.read_parquet(inputs.evaluations / name / "predictions.parquet")
    index = pd.read_parquet(inputs.index).drop_duplicates("sha256").set_index("sha256")
    return predictions[predictions["split"].isin(["test", shards.REGRESSION])], index


class _Champion:
    """What the champion says of a candidate's test images: as recorded, and computed now for those it hasn't seen.

    Attributes:
        version: that its answers name.
        title: how the reasons call it.
        name: how the rules call it.
        part: that it plays.
        caveat: of a comparison with it.
        threshold: at or above it the answer is `ai`.
        size: of its networks, in bytes; null where it isn't recorded.
        generalisation: its balanced accuracy on left-out collections; null where that wasn't measured.
        uncosted: why its size and latency set no limit; empty where they do.
    """

    name, part, caveat, uncosted = "the champion", "the champion then", "", ""

    def __init__(self, registry: Registry, version: Version) -> None:
        self._registry, self._version = registry, version
        self.version, self.title = version.number, f"version {version.number}"
        self.threshold = float(version.tags.get("threshold", 0.5))
        self.size = int(version.tags[_SIZE]) if _SIZE in version.tags else None
        self.generalisation = _number(version.tags.get(_GENERALISATION))

    @cached_property
    def detector(self) -> Any:
        """Null where its artifacts are gone: then what is on record of it has to do."""
        try:
            return self._registry.load(self._version.number)
        except Gone as error:
            print(error, flush=True)
            return None

    def is_enough(self, test: pd.DataFrame) -> bool:
        """Whether the test images of which it says something are worth a comparison."""
        return True

    def no_measure(self, labels: np.ndarray, probabilities: np.ndarray, settings: Register) -> str:
        """Why nothing but the gain may be asked for; empty where all may."""
        return ""

    def scores(self, wanted: pd.Series, index: pd.DataFrame, data: Path) -> pd.Series:
        """P(ai) of test images.

        Args:
            wanted: their sha256.
            index: of all images, by sha256.
            data: folder of the shards.
        """
        recorded = self._recorded("predictions.parquet")
        known = wanted.map(dict(zip(recorded["sha256"], recorded["probability"], strict=True)) if len(recorded) else {})
        missing = wanted[known.isna()].unique()
        if len(missing) and self.detector is None:
            missing = missing[:0]
        new: dict[str, float | None] = {}
        progress = parallel.Progress(f"test images scored with {self.title}", len(missing))
        for block in parallel.batched(_files(missing, index, data), 512):
            answers = self.detector.score([file for _, file in block])
            new |= {sha: self._said(answer) for (sha, _), answer in zip(block, answers, strict=True)}
            progress.add(len(block))
        return known.astype(float).fillna(wanted.map(new)).astype(float)

    def degraded(self, own: pd.DataFrame, limit: int, index: pd.DataFrame, data: Path) -> pd.DataFrame:
        """P(ai) under each degradation (columns) of some images (rows), by sha256.

        Args:
            own: the candidate's table.
            limit: images in it; more only where they are recorded.
            index: of all images, by sha256.
            data: folder of the shards.
        """
        names = [str(entry) for entry in robustness.GRID]
        recorded = self._recorded("degraded.parquet").drop_duplicates("sha256")
        if not set(names) <= set(recorded.columns):
            recorded = pd.DataFrame(columns=["sha256", *names])
        recorded = recorded.set_index("sha256").loc[lambda rows: rows.index.isin(own["sha256"]), names]
        missing = sorted(set(own["sha256"]) - set(recorded.index))[: max(0, limit - len(recorded))]
        if missing and self.detector is None:
            missing = []
        new: dict[str, list[float]] = {}
        progress = parallel.Progress(f"degraded images scored with {self.title}", len(missing))
        for sha, file in _files(missing, index, data):
            image = images.decode(file)
            degraded = (_bmp(entry(image)) for entry in robustness.GRID)
            blocks = [self.detector.score(block) for block in parallel.batched(degraded, _AT_ONCE)]
            new[sha] = [answer["probability"] for block in blocks for answer in block]
            progress.add()
        return pd.concat([recorded, pd.DataFrame.from_dict(new, orient="index", columns=names)]).astype(float).dropna()

    @staticmethod
    def _said(answer: dict[str, Any]) -> float | None:
        """P(ai), whatever it warns of: who is compared with the champion is so on all of the test images."""
        probability: float | None = answer["probability"]
        return probability

    def _recorded(self, name: str) -> pd.DataFrame:
        """A table that its evaluation logged; empty where it is gone."""
        mlflow = self._registry.mlflow
        try:
            path = mlflow.artifacts.download_artifacts(run_id=self._version.run_id, artifact_path=f"evaluation/{name}")
            return pd.read_parquet(path)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            if stage.is_full(error):
                raise
            return pd.DataFrame({"sha256": []})


class _Reference(_Champion):
    """A reference detector in the champion's place, on the test images that it was judged on: of its sizes, not too
    many, and like those that it knows.

    Args:
        reference: it.
        asked: sha256 of the images that it is asked about.
    """

    part = "in the place of a champion"
    caveat = (
        " that it answers without a warning (whether it was trained on some of them, nobody can tell; if so, it looks "
        "better than it is)"
    )
    uncosted = "a reference detector is no measure of what a champion may cost"

    def __init__(self, reference: Reference, asked: set[str]) -> None:
        self.detector, self._asked = reference, asked
        self.version = reference.version
        self.title = self.name = str(title(reference.version))
        self.threshold = float(reference.files.fitted["threshold"])
        self.size = None
        self.generalisation = (reference.files.fitted.get("left_out") or {}).get("balanced_accuracy")

    @classmethod
    def chosen(cls, name: str, inputs: Inputs) -> "_Reference | None":
        """The one whose sizes hold the most test images of a candidate; null where none holds any."""
        predictions, index = _tested(name, inputs)
        sources = [s for s in index.loc[predictions["sha256"], "source"].unique() if shards.exist(inputs.data / s)]
        references = beside(fast=True)
        if not (sources and references):
            return None
        stored = shards.manifest(shards.paths(inputs.data, sources)).drop_duplicates("sha256").set_index("sha256")
        sides = predictions["sha256"].map(stored[["width", "height"]].min(axis=1))
        held = [predictions[sides.map(one.scope.holds)].sort_values("sha256") for one in references]
        reference, most = max(zip(references, held, strict=True), key=lambda pair: len(pair[1]))
        return cls(reference, set(most.groupby("split").head(_MOST)["sha256"])) if len(most) else None

    def is_enough(self, test: pd.DataFrame) -> bool:
        """Whether there are some of both classes."""
        return all((test["label"] == label).sum() >= gate.FEW for label in shards.LABELS)

    def no_measure(self, labels: np.ndarray, probabilities: np.ndarray, settings: Register) -> str:
        """It isn't good enough for a version itself: who calls all images real is right about all real ones."""
        found = metrics.weighted(labels, probabilities, self.threshold, np.ones((1, len(labels))))
        scores = {name: float(values[0]) for name, values in found.items()}
        metric = settings.metric if settings.metric in scores else Register().metric
        good, reasons = gate.best({self.name: scores}, metric, Register().min_scores | settings.min_scores)
        return "" if good else reasons[0]

    def scores(self, wanted: pd.Series, index: pd.DataFrame, data: Path) -> pd.Series:
        """See `_Champion.scores`; nothing of those that it isn't asked about."""
        found = super().scores(wanted[wanted.isin(self._asked)], index, data)
        self._asked = set(wanted[found[found.notna()].index])
        return found.reindex(wanted.index)

    def degraded(self, own: pd.DataFrame, limit: int, index: pd.DataFrame, data: Path) -> pd.DataFrame:
        """See `_Champion.degraded`; of those that it said something about."""
        return super().degraded(own[own["sha256"].isin(self._asked)], limit, index, data)

    @staticmethod
    def _said(answer: dict[str, Any]) -> float | None:
        """P(ai), where the picture is like those that it was judged on."""
        return None if answer["warnings"] else answer["probability"]

    def _recorded(self, name: str) -> pd.DataFrame:
        return pd.DataFrame({"sha256": []})


def _files(wanted: Any, index: pd.DataFrame, data: Path) -> Iterator[tuple[str, bytes]]:
    """Image files by their sha256."""
    rows = index.loc[wanted]
    yield from shards.load(shards.paths(data, rows["source"].unique()), rows)


def _bmp(image: Image.Image) -> bytes:
    """A file that loses nothing and takes no time."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


def _latencies(detectors: list[Any]) -> np.ndarray:
    """Seconds for one JPEG of 512 px, shape (detectors, rounds), in turns, since other work comes and goes."""
    buffer = io.BytesIO()
    coarse = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    seconds = np.empty((_ROUNDS + 1, len(detectors)))
    for turn in seconds:
        for number, detector in enumerate(detectors):
            began = time.perf_counter()
            detector.score([buffer.getvalue()])
            turn[number] = time.perf_counter() - began
    return seconds[1:].T
