"""`params.yaml` as frozen models. A key that is wrong or unknown stops every command, by its name."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from components.stage import StageError

Share = Annotated[float, Field(ge=0, le=1)]
View = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    Field(pattern=r"^(crop-)?[1-9]\d{0,3}$"),
]
"""How an image becomes a square array: `64` resizes it to 64 px, `crop-64` cuts the central 64 px out of it."""


Metric = Literal["balanced_accuracy", "accuracy", "auroc", "f1", "average_precision"]


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where a source's images come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    from_: str | None = Field(None, alias="from", description="path of a folder or an archive")
    labels: dict[str, Literal["ai", "real"]] = Field({}, description="what its folders are, by name")


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


class Validate(Section):
    """What stops a run before anything is trained."""

    min_images: int = Field(100, ge=1)
    min_class_share: Share = 0.1
    max_rejected_share: Share = 0.05
    min_side: int = Field(16, ge=1, description="px; smaller images are a warning")
    near_distance: int = Field(4, ge=0, le=7, description="bits of the perceptual hash")


class Preprocess(Section):
    """Splits and arrays."""

    views: list[View] = Field(min_length=1, description="`64`: resized to 64 px; `crop-64`: the central 64 px")
    validation: Share = 0.15
    test: Share = 0.15
    seed: int = 7


class Model(Section):
    """One candidate: a network, what it sees, and how it is fitted."""

    network: str
    view: View
    options: dict[str, Any] = Field({}, description="the network's own settings")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: Share = Field(0.05, description="share of all steps")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    patience: int = Field(5, ge=1, description="epochs without a better validation loss before it stops")
    flip: bool = True
    shift: int = Field(2, ge=0, description="px, filled by reflection")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 7


class Train(Section):
    """The candidates."""

    models: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], Model] = Field(min_length=1)


class Evaluate(Section):
    """The judge."""

    bootstrap: int = Field(1000, ge=100, description="resamples")
    target_error: Share = Field(0.05, description="share of wrong verdicts that the uncertain band aims at")
    max_uncertain: Share = Field(0.25, description="share of images that may be called uncertain")
    robustness_images: int = Field(1000, ge=0, description="test images that are degraded; 0 leaves it out")
    seed: int = 7


class Register(Section):
    """What a version must reach."""

    model: str = "trueframe"
    metric: Metric = "balanced_accuracy"
    min_scores: dict[Metric, Share] = {"balanced_accuracy": 0.55}
    min_gain: float = Field(0.0, ge=0, description="by how much a candidate must beat the champion")


class Params(Section):
    """Every setting, one section a stage. Those that DVC watches have to be there, if only as `{}`."""

    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    preprocess: Preprocess
    train: Train
    evaluate: Evaluate
    register_: Register = Field(Register(), alias="register")

    @model_validator(mode="after")
    def _views_exist(self) -> Self:
        for name, model in self.train.models.items():
            if model.view not in self.preprocess.views:
                raise ValueError(
                    f"train.models.{name}.view is {model.view}, which preprocess.views "
                    f"({', '.join(self.preprocess.views)}) doesn't make"
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
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise StageError(f"{path}: " + "; ".join(_explain(e, raw) for e in error.errors())) from None


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
    if error["type"] == "value_error" and not path:
        return error["msg"].removeprefix("Value error, ")
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
