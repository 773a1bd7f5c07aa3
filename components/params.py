"""`params.yaml` as frozen models. A key that is wrong or unknown stops every command, by its name."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from components import networks
from components.stage import StageError

Share = Annotated[float, Field(ge=0, le=1)]
View = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    Field(pattern=r"^((cover-|crop-)?[1-9]\d{0,3}|crop-[1-9]\d{0,3}x[1-9]\d?)$"),
]
"""How an image becomes a square array: see `components.images.render`."""


Metric = Literal["balanced_accuracy", "accuracy", "auroc", "f1", "average_precision"]


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Label = Literal["ai", "real"]


def _as_word(key: Any) -> Any:
    """What YAML makes of `0:`, `true:` and `null:`, as the text that it was."""
    return json.dumps(key) if key is None or isinstance(key, bool | int | float) else key


Word = Annotated[str, BeforeValidator(_as_word)]


class Columns(Section):
    """Which columns of a table say what; `values` says which value of the label column is which label."""

    image: str = "image"
    label: str = "label"
    values: dict[Word, Label | None] = Field(
        {}, description="beside the usual words and names of classes; null leaves the images of a value out"
    )
    name: str | None = None
    generator: str | None = None
    split: str | None = None
    splits: dict[Word, Literal["train", "validation", "test"]] = Field({}, description="by value of the split column")
    pair: str | None = None
    licence: str | None = None


class Source(Section):
    """Where a source's images come from, and which of them are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    from_: str | None = Field(
        None,
        alias="from",
        description="a folder or an archive, s3://BUCKET/PREFIX, hf://OWNER/NAME, kaggle://OWNER/NAME, "
        "web:LIST, feedback:FOLDER",
    )
    labels: dict[Word, Label] = Field({}, description="what its folders are, by name")
    label: Label | None = Field(None, description="what all of its images are")
    generator: str | None = Field(None, description="what made its images labelled ai")
    columns: Columns | None = Field(None, description="of its Parquet files")
    max_images: int | None = Field(None, ge=1, description="at most so many, of both labels alike")
    per_generator: int | None = Field(None, ge=1, description="at most so many of one generator")
    private: bool = Field(False, description="whether pages of private networks may be fetched")


class Sample(Section):
    """The data set that makes itself."""

    n_images: int = Field(4000, ge=20)
    size: int = Field(64, ge=32, le=512, description="px")
    seed: int = 7


class Ingest(Section):
    """Images in, shards out."""

    sources: dict[str, Source] = Field(min_length=1, description="what the next run trains on, by name")
    sample: Sample = Sample()
    shard_images: int = Field(4096, ge=1, description="images in a shard, at most")
    max_file_mb: int = Field(100, ge=1, description="larger files are rejected")
    regression: Share = Field(
        0.5, description="share of the reported mistakes that are proof and never trained on; the rest is trained on"
    )


class Validate(Section):
    """What stops a run before anything is trained."""

    min_images: int = Field(100, ge=1)
    min_class_share: Share = 0.1
    max_rejected_share: Share = 0.05
    min_side: int = Field(16, ge=1, description="px; smaller images are a warning")
    near_distance: int = Field(4, ge=0, le=7, description="bits of the perceptual hash")
    max_metadata_auc: float = Field(
        0.75, ge=0.5, le=1, description="how well the label may be told from what is not the picture"
    )
    max_pixel_auc: float = Field(0.75, ge=0.5, le=1, description="the same from its mean colour and sharpness")
    max_label_noise: Share = Field(0.02, description="share of labels that look wrong before it is said")
    max_drift: Share = Field(0.2, description="distance of new images' distributions from the earlier ones'")
    audit_images: int = Field(20_000, ge=100, description="images that the audits look at, at most")
    seed: int = 7


class Equalise(Section):
    """The one encoding that every image goes through before it becomes pixels, so that none gives its label away."""

    size: Literal["resize", "crop", "view"] = Field(
        "resize", description="the central square scaled down; native pixels; or each view by itself"
    )
    side: int = Field(160, ge=16, le=4096, description="px; smaller images are padded by reflection; not for view")
    quality: int = Field(90, ge=30, le=100, description="of the JPEG, with 4:2:0 chroma")


class Preprocess(Section):
    """Splits and arrays."""

    views: list[View] = Field(
        min_length=1,
        description="`64`: resized to 64 px; `cover-64`: the same with the aspect kept; `crop-64`: the central 64 px; "
        "`crop-64x4`: the 4 crops with the most texture",
    )
    validation: Share = 0.15
    test: Share = 0.15
    seed: int = 7
    equalise: Annotated[
        Equalise | None, BeforeValidator(lambda value: {} if value is True else None if value is False else value)
    ] = Field(None, description="`true`, or its settings: all images through the same size and JPEG encoding")
    crops: dict[str, str] = Field(
        {},
        description="for a source of scaled pictures, another one that holds crops of them at native resolution under "
        "the same names: `crop-` views are cut from those",
    )
    keep_copies: bool = Field(
        False, description="whether published test images that copy a training image stay in the test set"
    )


class Augment(Section):
    """What training does to its images. Shares are of each batch; an image may get several degradations."""

    flip: bool = Field(True, description="mirrors half of the images")
    shift: int = Field(2, ge=0, description="px at most, filled by reflection")
    rotate: float = Field(0, ge=0, le=180, description="degrees at most, either way")
    zoom: float = Field(0, ge=0, lt=1, description="share by which an image may grow or shrink")
    colour: Share = Field(0, description="brightness, contrast and saturation by factors of 0.7 to 1.3")
    rescale: Share = Field(0, description="down by 0.4 to 1 and up again")
    blur: Share = Field(0, description="Gaussian, of 0 to 1.5 px")
    noise: Share = Field(0, description="Gaussian, of 0 to 0.12 of white")
    jpeg: Share = Field(0, description="of quality 30 to 95")
    mixup: Share = Field(0, description="blends two images and their labels")
    cutmix: Share = Field(0, description="replaces a rectangle by another image's")
    ramp: Share = Field(0, description="share of the epochs over which degradations grow to their full range")


class Unfreeze(Section):
    """One phase of a training in which a part of the network stays as it is."""

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    unfreeze_from: int | None = Field(
        None, ge=0, description="the backbone's first layer that learns, by number; null for none, 0 for all"
    )


class Model(Section):
    """One candidate: a network, what it sees, and how it is fitted."""

    network: str
    view: View
    options: dict[str, Any] = Field({}, description="the network's own settings")
    start: str | None = Field(None, description="a network.keras of the same kind, whose weights it starts from")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    freeze: list[Unfreeze] = Field([], description="phases one after the other, in place of epochs and learning_rate")
    optimizer: Literal["adamw", "sgd", "muon"] = Field(
        "adamw", description="sgd: with Nesterov momentum of 0.9; muon: for convolutions, AdamW for the rest"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    weight_decay: float = Field(1e-4, ge=0)
    warmup: Share = Field(0.05, description="share of all steps")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    average: float = Field(0, ge=0, lt=1, description="momentum of a moving average of the weights; 0 for none")
    patience: int = Field(5, ge=1, description="epochs without a better validation loss before it (or its phase) stops")
    augment: Augment = Augment()
    mirror: bool = Field(
        False, description="to answer with the mean of an image and its mirror image, in twice the time"
    )
    balance: Literal["none", "collections"] = Field(
        "none", description="collections: labels are drawn alike, and their collections by the root of their sizes"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 7
    alone: bool = Field(True, description="whether it is a candidate by itself, and not only a part of ensembles")

    @model_validator(mode="after")
    def _network_is_there(self) -> Self:
        try:
            networks.check(self.network, self.options)
        except StageError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def phases(self) -> list[Unfreeze]:
        """What the training consists of."""
        return self.freeze or [Unfreeze(epochs=self.epochs, learning_rate=self.learning_rate)]


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Train(Section):
    """The candidates."""

    models: dict[Name, Model] = Field(min_length=1)
    ensembles: dict[Name, Annotated[list[str], Field(min_length=2)]] = Field(
        {}, description="candidates that are the calibrated average of others, by name: two models or more"
    )

    @property
    def candidates(self) -> dict[str, list[str]]:
        """All candidates with the models that they are made of, the ensembles last."""
        return {**{name: [name] for name in self.models if name not in self.members}, **self.ensembles}

    @property
    def members(self) -> set[str]:
        """The models that are parts of ensembles only."""
        return {name for name, model in self.models.items() if not model.alone}


class Range(Section):
    """Numbers between two; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high < self.low or (self.log and self.low <= 0):
            raise ValueError(f"no range: from {self.low} to {self.high}{', on a log scale' if self.log else ''}")
        return self


class Tune(Section):
    """The search for a candidate's settings."""

    trials: int = Field(20, ge=1, description="trainings, those of earlier runs of the same search included")
    space: dict[str, Range | list[Any]] = Field(
        {
            "learning_rate": Range(low=3e-4, high=1e-2, log=True),
            "weight_decay": Range(low=1e-5, high=1e-1, log=True),
            "label_smoothing": [0.0, 0.02, 0.05],
            "options.dropout": Range(low=0.0, high=0.5),
        },
        min_length=1,
        description="settings of the candidate by name, dotted: a range {low, high, log}, or a list to choose from",
    )
    storage: str | None = Field(None, description="Optuna's database, shared by several machines; else a file here")
    seed: int = 7


class Evaluate(Section):
    """The judge."""

    bootstrap: int = Field(1000, ge=100, description="resamples")
    min_real_accuracy: Share = Field(
        0.85, description="share of real images that the threshold has to call real, whatever it costs elsewhere"
    )
    degraded_images: int = Field(
        3000, ge=0, description="validation images that are also degraded to fit the threshold, at most"
    )
    target_error: Share = Field(0.05, description="share of wrong verdicts that the uncertain band aims at")
    max_uncertain: Share = Field(0.25, description="share of images that may be called uncertain")
    robustness_images: int = Field(1000, ge=0, description="test images that are degraded; 0 leaves it out")
    seed: int = 7


class Gate(Section):
    """What a candidate may cost, compared with the champion on the same images."""

    degraded: Share = Field(0.02, description="balanced accuracy that may be lost in the worst degradation")
    source: Share = Field(0.02, description="balanced accuracy that may be lost in the worst source")
    real_accuracy: Share = Field(0.02, description="share of real images called real that may be lost")
    calibration: Share = Field(0.02, description="by how much the expected calibration error may grow")
    size: float = Field(4.0, gt=0, description="times as large as the champion's networks, at most")
    latency: float = Field(3.0, gt=0, description="times as long for one image, at most")
    regression: Share = Field(
        0.02, description="of the reported mistakes that the champion gets right, the share that may be wrong again"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples")
    degraded_images: int = Field(
        200, ge=0, description="test images that the champion has scored under every degradation, or scores now"
    )
    seed: int = 7


class Register(Section):
    """What a version must reach."""

    model: str = "trueframe"
    metric: Literal[Metric, "generalisation"] = Field(
        "balanced_accuracy",
        description="by which candidates are compared; generalisation: balanced accuracy on left-out collections",
    )
    min_scores: dict[Metric, Share] = {"balanced_accuracy": 0.55}
    min_gain: float = Field(0.0, ge=0, description="by how much a candidate must beat the champion")
    policy: Literal["manual", "automatic"] = Field(
        "manual",
        description="who makes a candidate the champion once there is one: a person, or the gate if every rule passes",
    )
    gate: Gate = Gate()


class Serve(Section):
    """The gateway: its limits, and who answers."""

    max_body_mb: int = Field(64, ge=1, description="MiB of a request's body, at most")
    max_images: int = Field(256, ge=1, description="images in a request, at most")
    max_requests: int = Field(64, ge=1, description="that are answered at once; more are turned away with 503")
    rate: int | None = Field(
        None, ge=1, description="images a minute for each API key, or address where none is needed"
    )
    read_s: float = Field(20, gt=0, description="s in which a request has to be here")
    answer_s: float = Field(60, ge=1, description="s in which it is answered")
    poll_s: float = Field(5, gt=0, description="s between two looks at the registry for a new champion")
    workers: int = Field(1, ge=1, description="processes that answer, each with the champion in memory")
    references: Literal["fast"] | bool = Field(
        True, description="whether the reference detectors, or the fast ones, answer what the champion wasn't judged on"
    )


class Resources(Section):
    """What a stage's pod asks for."""

    cpu: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)] = Field(
        "2", pattern=r"^(\d+|\d*\.\d+|\d+m)$", description="cores, or thousandths of one: 500m"
    )
    memory: str = Field("8Gi", pattern=r"^\d+([EPTGMK]i?)?$", description="at most")
    gpus: int = Field(0, ge=0)


Stage = Literal["ingest", "validate", "preprocess", "train", "evaluate", "ensemble", "register"]
_RESOURCES: dict[Stage, Resources] = {"train": Resources(cpu="4", memory="16Gi", gpus=1)}


class Kubeflow(Section):
    """The pipeline for Kubeflow."""

    image: str | None = Field(None, description="of the containers")
    root: str | None = Field(
        None, pattern=r"^[a-z0-9]+://[^/]+", description="s3://BUCKET/PREFIX for what stages pass on to each other"
    )
    resources: Annotated[dict[Stage, Resources], AfterValidator(lambda given: {**_RESOURCES, **given})] = Field(
        _RESOURCES, description="by stage"
    )
    accelerator: str = Field("nvidia.com/gpu", description="what a GPU is called in the cluster")
    retries: int = Field(2, ge=0, description="of a stage that failed")
    cache: bool = Field(True, description="whether a pure stage whose inputs were seen before is left out")
    secret: str | None = Field("trueframe", description="of Kubernetes, with the environment of the stages")
    secret_keys: list[str] = Field(
        [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ENDPOINT_URL_S3",
            "AWS_DEFAULT_REGION",
            "MLFLOW_TRACKING_URI",
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
        ],
        description="variables that the secret may hold",
    )


class Engine(Section):
    """Where the work is done. What comes out is the same, so a change here makes nothing stale."""

    preprocess: Literal["local", "ray"] = Field(
        "local", description="the cores of this machine, or the Ray cluster that RAY_ADDRESS names"
    )


class Monitor(Section):
    """The log of predictions, what is looked for in it, and what follows."""

    folder: str | None = Field("predictions", description="of the log that the gateway writes; null for none")
    keep_days: int = Field(90, ge=1, description="days after which the log is deleted")
    keep_images: bool = Field(False, description="whether the pictures are kept too, as long as the log")
    flush_s: float = Field(10, gt=0, description="s for which predictions are in memory alone")
    window_hours: float = Field(24, gt=0, description="h before now that a report is about")
    min_images: int = Field(200, ge=50, description="different pictures below which drift isn't judged")
    reference_images: int = Field(5000, ge=100, description="training images that are compared with, at most")
    significance: float = Field(0.01, gt=0, lt=1, description="rate of false discoveries among what is called drift")
    min_shift: float = Field(
        0.2, gt=0, description="population stability index below which a difference is too small to be drift"
    )
    max_uncertain: Share = Field(0.4, description="share of uncertain verdicts")
    max_errors: Share = Field(0.05, description="share of predictions without a verdict")
    max_reported: Share = Field(0.05, description="share of pictures whose verdict somebody reported as wrong")
    feedback: str = Field("feedback", description="folder of reports")
    new_feedback: int = Field(50, ge=1, description="accepted reports, not in the data yet, that start a retraining")
    deployment: str | None = Field(
        "retrain/nightly", description="that is run on drift or on enough new feedback; null for none"
    )
    cooldown_hours: float = Field(24, ge=0, description="h between two retrainings that the monitor starts")
    alert: str | None = Field(
        None, pattern="^[^/]+/[^/]+$", description="a notification block of Prefect, TYPE/NAME: slack-webhook/ops"
    )


class Params(Section):
    """Every setting, one section a stage. Those that DVC watches have to be there, if only as `{}`."""

    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    preprocess: Preprocess
    train: Train
    evaluate: Evaluate
    register_: Register = Field(Register(), alias="register")
    tune: Tune = Tune()
    serve: Serve = Serve()
    kubeflow: Kubeflow = Kubeflow()
    engine: Engine = Engine()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if self.tune.storage and urlsplit(self.tune.storage).password:
            raise ValueError(
                "tune.storage holds a password, and these settings are kept with every version; leave it out and set "
                "PGPASSWORD, or write ~/.pgpass"
            )
        return self

    @model_validator(mode="after")
    def _views_exist(self) -> Self:
        for name, model in self.train.models.items():
            if model.view not in self.preprocess.views:
                raise ValueError(
                    f"train.models.{name}.view is {model.view}, which preprocess.views "
                    f"({', '.join(self.preprocess.views)}) doesn't make"
                )
        for name, members in self.train.ensembles.items():
            if name in self.train.models:
                raise ValueError(f"train.ensembles.{name} has the name of a model; choose another one")
            for member in members:
                if member not in self.train.models:
                    raise ValueError(
                        f"train.ensembles.{name} names {member!r}, which train.models "
                        f"({', '.join(self.train.models)}) doesn't have"
                    )
            if len(set(members)) < len(members):
                raise ValueError(f"train.ensembles.{name} names a model twice")
        if spare := self.train.members.difference(*self.train.ensembles.values()):
            raise ValueError(f"train.models.{min(spare)} isn't alone and in no train.ensembles, so nothing judges it")
        for of, crops in self.preprocess.crops.items():
            if missing := {of, crops} - self.ingest.sources.keys():
                raise ValueError(f"preprocess.crops names {min(missing)}, which isn't among ingest.sources")
        equalise = self.preprocess.equalise
        for view in self.preprocess.views if equalise and equalise.size != "view" else ():
            side = int(view.rsplit("-", 1)[-1].split("x")[0])
            if view.startswith("crop-") and side > equalise.side:  # type: ignore[union-attr]
                raise ValueError(
                    f"preprocess.views: {view} is larger than what preprocess.equalise leaves ({equalise.side} px)"  # type: ignore[union-attr]
                )
        if self.preprocess.validation + self.preprocess.test > 0.9:
            raise ValueError("preprocess.validation and preprocess.test leave less than a tenth for training")
        return self


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check the settings.

    Raises:
        StageError: the file is missing, is no YAML, or holds a wrong or unknown key; the message names the key
            and what is allowed there.
    """
    try:
        raw = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: not here; `trueframe use sample` writes one") from None
    except yaml.YAMLError as error:
        raise StageError(f"{path}: not YAML: {error}") from None
    for name in _passwords(raw):
        raise StageError(
            f"{path}: {name} holds a password, and this file is logged with every model; let the environment hold it "
            "(PGPASSWORD, AWS_SECRET_ACCESS_KEY, …)"
        )
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise StageError(f"{path}: " + "; ".join(_explain(e, raw) for e in error.errors())) from None


def _passwords(node: Any, name: str = "") -> Iterator[str]:
    """The names of settings that are addresses with a password in them."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _passwords(value, f"{name}.{key}" if name else str(key))
    if isinstance(node, str) and re.search(r"://[^/@:]*:[^/@]+@", node):
        yield name


def _explain(error: Any, raw: Any) -> str:
    path = [str(part) for part in error["loc"] if part != "[key]"]
    name = ".".join(path) or "the file"
    if error["type"] == "extra_forbidden":
        allowed = _allowed(path[:-1])
        close = difflib.get_close_matches(path[-1], allowed, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown key {name} ({hint}allowed: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "model_type":
        return f"{name} is {error['input']!r}, not a section; it has the keys {', '.join(_allowed(path))}"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return ": ".join([*filter(None, [".".join(path)]), error["msg"].removeprefix("Value error, ")])
    return f"{name} is {error['input']!r}: {error['msg'].lower()}"


def _allowed(path: list[str]) -> list[str]:
    """The keys that may stand at a place in the settings."""
    schema: dict[str, Any] = Params.model_json_schema(by_alias=True)
    node = schema
    for part in path:
        node = node.get("properties", {}).get(part) or _resolve_map(node)
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return sorted(node.get("properties", {}))


def _resolve_map(node: dict[str, Any]) -> dict[str, Any]:
    values: Any = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), {})
    return values if isinstance(values, dict) else {}
