"""The detector: image files in, verdicts out. MLflow's server, the batch check and the gate all use this."""

import base64
import binascii
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components import images, parallel
from components.networks.inference import Scorer
from components.serve import provenance

FIELDS = ("label", "probability", "verdict", "threshold", "model_version", "provenance", "warnings", "error")
_BLOCK = 256
_SMALL = 16  # px; below it there is nothing to see


@dataclass(frozen=True)
class Opened:
    """One file, decoded: what the network sees, or why there is nothing to see."""

    pixels: np.ndarray | None
    size: tuple[int, int] = (0, 0)
    provenance: dict[str, Any] | None = None
    error: str | None = None


class Detector:
    """A trained network with its decision.

    Args:
        network: path of a `.keras` file.
        decision: path of the `decision.json` that was fitted for it.
        version: that answers name.
    """

    def __init__(self, network: Path, decision: Path, version: str) -> None:
        fitted = json.loads(decision.read_text())
        self.view: str = fitted["view"]
        self._equalise = fitted.get("equalise")
        self.version = version
        self._temperature, self._threshold = fitted["temperature"], fitted["threshold"]
        self._low, self._high = fitted["low"], fitted["high"]
        self._scorer = Scorer(network)
        self._scorer.logits(np.zeros((1, self._scorer.side, self._scorer.side, 3), np.uint8))

    def score(self, files: list[bytes | str | Any], *, explain: bool = False) -> list[dict[str, Any]]:
        """Judge image files, each on its own.

        Args:
            files: bytes of a file each, or their base64 text. Anything else is that row's error.
            explain: adds `heatmap`, a base64 PNG of where the evidence is: red for `ai`, blue for `real`.

        Returns:
            A dict with `FIELDS` for each file, in order. Where `error` is set, `label`, `probability` and `verdict`
            are null.
        """
        return [row for block in parallel.batched(files, _BLOCK) for row in self._score(block, explain)]

    def _score(self, files: list[Any], explain: bool) -> Iterator[dict[str, Any]]:
        if len(files) < 8:
            opened = [self._open(file) for file in files]
        else:
            with ThreadPoolExecutor() as pool:
                opened = list(pool.map(self._open, files))
        seen = [one.pixels for one in opened if one.pixels is not None]
        logits = iter(self._scorer.logits(np.stack(seen)) if seen else ())
        for one in opened:
            if one.pixels is None:
                yield self._row(error=one.error)
                continue
            row = self._verdict(float(next(logits)), one)
            if explain:
                row["heatmap"] = self._heatmap(one.pixels[0] if one.pixels.ndim == 4 else one.pixels)
            yield row

    def _open(self, file: Any) -> Opened:
        try:
            data = _bytes(file)
            image = images.open_image(data)
            found = provenance.read(image)
            pixels = images.to_rgb(image)
            return Opened(images.render(images.equalise(pixels, self._equalise), self.view), pixels.size, found)
        except images.ImageError as error:
            return Opened(None, error=str(error))

    def _verdict(self, logit: float, one: Opened) -> dict[str, Any]:
        p = float(1 / (1 + np.exp(-logit / self._temperature)))
        warnings = []
        if p >= self._high:
            verdict = "ai"
        elif p < self._low:
            verdict = "real"
        else:
            verdict = "uncertain"
        if min(one.size) < _SMALL:
            verdict = "uncertain"
            warnings.append(f"{one.size[0]} × {one.size[1]} px is too small to judge")
        return self._row(
            label="ai" if p >= self._threshold else "real",
            probability=p,
            verdict=verdict,
            provenance=one.provenance,
            warnings=warnings,
        )

    def _row(self, **known: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "label": None,
            "probability": None,
            "verdict": None,
            "provenance": {},
            "warnings": [],
            "error": None,
        }
        row = {**empty, **known, "threshold": self._threshold, "model_version": self.version}
        return {field: row[field] for field in FIELDS}

    def _heatmap(self, pixels: np.ndarray) -> str:
        evidence = self._scorer.activation_map(pixels)
        evidence = evidence / (np.abs(evidence).max() or 1)
        grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"), np.float32)
        layer = Image.fromarray((np.abs(evidence) * 255).astype(np.uint8)).resize(pixels.shape[1::-1])
        sign = Image.fromarray(((evidence > 0) * 255).astype(np.uint8)).resize(
            pixels.shape[1::-1], Image.Resampling.NEAREST
        )
        strength = np.asarray(layer, np.float32)[..., None] / 255 * 0.6
        colour = np.where(np.asarray(sign)[..., None] > 0, [200.0, 60, 40], [40.0, 90, 200])
        buffer = io.BytesIO()
        Image.fromarray((grey * (1 - strength) + colour * strength).astype(np.uint8)).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


def _bytes(file: Any) -> bytes:
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str):
        raise images.ImageError("`image` is no base64 text")
    try:
        return base64.b64decode(file, validate=True)
    except (binascii.Error, ValueError):
        raise images.ImageError("`image` is not valid base64") from None
