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
from components.networks.explain import evidence, overlay
from components.networks.familiarity import Familiarity
from components.networks.inference import Ensemble, Member, Scorer
from components.serve import provenance
from components.serve.provenance.credentials import trust_list

FIELDS = ("label", "probability", "verdict", "threshold", "model_version", "provenance", "warnings", "error")
_BLOCK = 256
_SMALL = 16  # px; below it there is nothing to see
_COARSE = 25  # JPEG quality; no detector is judged on pictures below it


@dataclass(frozen=True)
class Opened:
    """One file, decoded: what each network sees, or why there is nothing to see."""

    pixels: list[np.ndarray] | None
    image: Image.Image | None = None
    size: tuple[int, int] = (0, 0)
    quality: float | None = None
    provenance: dict[str, Any] | None = None
    error: str | None = None


class Detector:
    """A trained network, or several that answer together, with the decision.

    Args:
        network: path of a `.keras` file; of an ensemble, the folder with one for each member, named after it.
        decision: path of the `decision.json` that was fitted for it.
        familiar: path of the `familiar.npz` that was fitted for it.
        version: that answers name.
    """

    def __init__(self, network: Path, decision: Path, familiar: Path, version: str) -> None:
        trust_list()  # a wrong one is found now, and not with the first signed picture
        fitted = json.loads(decision.read_text())
        self._equalise = fitted.get("equalise")
        self.version = version
        self._temperature, self._threshold = fitted["temperature"], fitted["threshold"]
        self._low, self._high = fitted["low"], fitted["high"]
        self._min_side, self._max_side = fitted["scope"]["min_side"], fitted["scope"]["max_side"]
        self._familiar = Familiarity.load(familiar)
        if "members" in fitted:
            members = [
                Member(Scorer(network / f"{m['name']}.keras"), m["view"], m["temperature"]) for m in fitted["members"]
            ]
        else:
            members = [Member(Scorer(network), fitted["view"])]
        self._ensemble = Ensemble(members)
        self._ensemble.logits([np.zeros((1, *images.view_shape(view)), np.uint8) for view in self._ensemble.views])

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
            opened = [self._open(file, explain) for file in files]
        else:
            with ThreadPoolExecutor() as pool:
                opened = list(pool.map(lambda file: self._open(file, explain), files))
        seen = [one.pixels for one in opened if one.pixels is not None]
        answers: Iterator[tuple[float, float]] = iter(())
        if seen:
            logits, features = self._ensemble.outputs([np.stack(of_view) for of_view in zip(*seen, strict=True)])
            answers = zip(logits.tolist(), self._familiar.distances(features).tolist(), strict=True)
        for one in opened:
            if one.pixels is None:
                yield self._row(error=one.error)
                continue
            row = self._verdict(*next(answers), one)
            if explain:
                row["heatmap"] = self._heatmap(one.image)
            yield row

    def _open(self, file: Any, explain: bool) -> Opened:
        try:
            data = as_bytes(file)
            image = images.open_image(data)
            found = provenance.read(data)
            pixels = images.to_rgb(image)
            equal = images.equalise(pixels, self._equalise)
            seen = self._ensemble.render(equal)
            return Opened(seen, equal if explain else None, pixels.size, images.jpeg_quality(image), found)
        except images.ImageError as error:
            return Opened(None, error=str(error))

    def _verdict(self, logit: float, distance: float, one: Opened) -> dict[str, Any]:
        p = float(1 / (1 + np.exp(-logit / self._temperature)))
        warnings = self._outside(one, distance)
        if warnings:
            verdict = "uncertain"
        elif p >= self._high:
            verdict = "ai"
        elif p < self._low:
            verdict = "real"
        else:
            verdict = "uncertain"
        return self._row(
            label="ai" if p >= self._threshold else "real",
            probability=p,
            verdict=verdict,
            provenance=one.provenance,
            warnings=warnings,
        )

    def _outside(self, one: Opened, distance: float) -> list[str]:
        """In which ways an image is outside of what the detector was judged on."""
        reasons = []
        size, side = f"{one.size[0]} × {one.size[1]} px", min(one.size)
        if side < _SMALL:
            reasons.append(f"{size} is too small to judge")
        elif side < self._min_side or side > (self._max_side or side):
            upper = f" to {self._max_side}" if self._max_side else " or more"
            reasons.append(f"{size}: this detector was judged on pictures of {self._min_side}{upper} px")
        if one.quality is not None and one.quality < _COARSE:
            reasons.append(f"JPEG quality {one.quality:.0f} is too low to judge")
        if distance > 1:
            reasons.append("unlike the pictures that this detector was judged on")
        return reasons

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

    def _heatmap(self, image: Any) -> str:
        found, _ = evidence(self._ensemble, image)
        buffer = io.BytesIO()
        overlay(image, found).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


def as_bytes(file: Any) -> bytes:
    """A file's bytes, from what a caller sent.

    Raises:
        ImageError: it is neither bytes nor their base64 text.
    """
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str):
        raise images.ImageError("`image` is no base64 text")
    try:
        return base64.b64decode(file, validate=True)
    except (binascii.Error, ValueError):
        raise images.ImageError("`image` is not valid base64") from None
