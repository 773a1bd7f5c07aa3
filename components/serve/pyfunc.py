"""The detector as MLflow's own kind of model, logged from this file as code."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml


class TrueframeModel(mlflow.pyfunc.PythonModel):
    """Image files in a column `image` (base64 text, or bytes), verdicts out."""

    def load_context(self, context: Any) -> None:
        """Load the detector once, if its files are those that were registered."""
        from components import integrity
        from components.serve.detector import Detector

        if "sums" in context.artifacts:
            integrity.check(Path(context.artifacts["sums"]).parent)
        file = Path(context.artifacts["detector"])
        self.detector = Detector(file, _version(file))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A dict for each row (see `Detector.score`). A bad row has its `error`, and the others their answers."""
        asked = params or {}
        images = model_input["image"].tolist() if "image" in model_input else [None] * len(model_input)
        if len(images) == 1 and isinstance(images[0], list):  # what MLflow makes of `inputs` and `instances`
            images = images[0]
        return self.detector.score(images, explain=bool(asked.get("explain")), threshold=asked.get("threshold"))


def _version(file: Path) -> str:
    """The version in the registry, which MLflow writes beside a model that it loads from there."""
    for folder in file.parents:
        meta = folder / "registered_model_meta"
        if meta.exists():
            return str(yaml.safe_load(meta.read_text())["model_version"])
        if (folder / "MLmodel").exists():
            break
    return "unregistered"


mlflow.models.set_model(TrueframeModel())
