"""The detector: image files in, verdicts out. MLflow's server, the batch check and the gate all use this."""

import base64
import io
import json
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components import images, parallel
from components.networks.explain import evidence, overlay
from components.networks.familiarity import Familiarity
from components.networks.inference import Ensemble, Member, Scorer
from components.serve import provenance
from components.serve.encoded import decoded
from components.serve.provenance.credentials import trust_list
from components.serve.provenance.text import why

FIELDS = ("label", "probability", "verdict", "threshold", "model_version", "provenance", "warnings", "error")
_BLOCK = 256  # images in one go, at most
_BLOCK_BYTES = 64 * 2**20  # that they take as the network sees them, at most
_EXPLAINED = 4  # images that are kept whole until their evidence is drawn
_LARGE = 16_000_000  # px; larger images are decoded one at a time
_MANY = 2**16  # bytes of files from which threads pay
_SMALL = 16  # px; below it there is nothing to see
_COARSE = 25  # JPEG quality; no detector is judged on pictures below it
UNFAMILIAR = "unlike the pictures that this detector was judged on"
"""The warning of a picture whose size a detector knows, and its content doesn't: another one may know it."""


@dataclass(frozen=True)
class Opened:
    """One file, decoded: what each network sees, or why there is nothing to see."""

    pixels: list[np.ndarray] | None
    image: Image.Image | None = None
    size: tuple[int, int] = (0, 0)
    quality: float | None = None
    provenance: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Decision:
    """From a probability to words.

    Attributes:
        threshold: from which on the label is `ai`.
        low: below it the verdict is `real`.
        high: from which on the verdict is `ai`; between the two it is `uncertain`.
    """

    threshold: float
    low: float
    high: float

    def at(self, threshold: float) -> "Decision":
        """The decision with another threshold: the uncertain band moves along by the same distance in log-odds.

        At 0 everything is `ai`, at 1 nothing; there the band has no width.
        """
        own, low, high = (_logit(min(max(p, 1e-9), 1 - 1e-9)) for p in (self.threshold, self.low, self.high))
        by = _logit(threshold) - own
        low, high = _sigmoid(low + by), _sigmoid(high + by)
        return Decision(threshold, low, high)

    def label(self, p: float) -> str:
        """`ai` or `real`."""
        return "ai" if p >= self.threshold else "real"

    def verdict(self, p: float) -> str:
        """`ai`, `real` or `uncertain`."""
        return "ai" if p >= self.high else "real" if p < self.low else "uncertain"


@dataclass(frozen=True)
class Scope:
    """The sizes of the pictures that a detector was judged on.

    Attributes:
        min_side: px of the shorter side, at least.
        max_side: px of the shorter side, at most; null for no such limit.
    """

    min_side: int
    max_side: int | None

    def holds(self, side: int) -> bool:
        """Whether a picture's shorter side, in px, lies in there."""
        return self.min_side <= side <= (self.max_side or side)

    def __str__(self) -> str:
        return f"{self.min_side}{f' to {self.max_side}' if self.max_side else ' or more'} px"


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
        self._temperature = fitted["temperature"]
        self.decision = Decision(fitted["threshold"], fitted["low"], fitted["high"])
        self.scope = Scope(**fitted["scope"])
        self._familiar = Familiarity.load(familiar)
        if "members" in fitted:
            members = [
                Member(Scorer(network / f"{m['name']}.keras"), m["view"], m["temperature"]) for m in fitted["members"]
            ]
        else:
            members = [Member(Scorer(network), fitted["view"])]
        self._ensemble = Ensemble(members)
        shapes = [images.view_shape(view) for view in self._ensemble.views]
        self._block = max(1, min(_BLOCK, _BLOCK_BYTES // sum(math.prod(shape) for shape in shapes)))
        self._one_large = threading.Lock()
        self._ensemble.logits([np.zeros((1, *shape), np.uint8) for shape in shapes])

    def score(
        self, files: list[bytes | str | Any], *, explain: bool = False, threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """Judge image files, each on its own, in blocks that bound the memory they take.

        Args:
            files: bytes of a file each, or their text (see `encoded.decoded`). Anything else is that row's error.
            explain: adds `heatmap`, a base64 PNG of where the evidence is: red for `ai`, blue for `real`.
            threshold: in place of the fitted one, from 0 to 1; the uncertain band moves along (see `Decision.at`).
                Any other number is every row's error.

        Returns:
            A dict with `FIELDS` for each file, in order. Where `error` is set, `label`, `probability` and `verdict`
            are null.
        """
        decision = self.decision
        if threshold is not None:
            if not 0 <= threshold <= 1:
                return [self._row(decision, error="`threshold` has to be from 0 to 1") for _ in files]
            decision = decision.at(float(threshold))
        blocks = parallel.batched(files, min(self._block, _EXPLAINED) if explain else self._block)
        return [row for block in blocks for row in self._score(block, explain, decision)]

    def _score(self, files: list[Any], explain: bool, decision: Decision) -> Iterator[dict[str, Any]]:
        opened = self._opened(files, explain)
        seen = [one.pixels for one in opened if one.pixels is not None]
        answers: Iterator[tuple[float, float]] = iter(())
        if seen:
            logits, features = self._ensemble.outputs([np.stack(of_view) for of_view in zip(*seen, strict=True)])
            answers = zip(logits.tolist(), self._familiar.distances(features).tolist(), strict=True)
        for one in opened:
            if one.pixels is None:
                yield self._row(decision, error=one.error)
                continue
            row = self._verdict(*next(answers), one, decision)
            if explain:
                row["heatmap"] = self._heatmap(one.image)
            yield row

    def _opened(self, files: list[Any], explain: bool) -> list[Opened]:
        if sum(len(file) for file in files if isinstance(file, bytes | str)) < _MANY or len(files) == 1:
            return [self._open(file, explain) for file in files]
        return list(self._threads.map(lambda file: self._open(file, explain), files))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def _open(self, file: Any, explain: bool) -> Opened:
        try:
            data = as_bytes(file)
            image = images.open_image(data)
            # Decoded it takes some hundred MB, and in every thread that many.
            with self._one_large if image.width * image.height > _LARGE else nullcontext():
                found = provenance.read(data)
                pixels = images.to_rgb(image)
                equal = images.equalise(pixels, self._equalise)
                seen = self._ensemble.render(equal)
                quality = images.jpeg_quality(image)
            return Opened(seen, equal if explain else None, pixels.size, quality, found)
        except images.ImageError as error:
            return Opened(None, error=str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a decoder does costs its own row
            return Opened(None, error=f"can't be read here: {why(error)}")

    def _verdict(self, logit: float, distance: float, one: Opened, decision: Decision) -> dict[str, Any]:
        p = _sigmoid(logit / self._temperature)
        warnings = self._outside(one, distance)
        return self._row(
            decision,
            label=decision.label(p),
            probability=p,
            verdict="uncertain" if warnings else decision.verdict(p),
            provenance=one.provenance,
            warnings=warnings,
        )

    def _outside(self, one: Opened, distance: float) -> list[str]:
        """In which ways an image is outside of what the detector was judged on."""
        reasons = []
        size, side = f"{one.size[0]} × {one.size[1]} px", min(one.size)
        if side < _SMALL:
            reasons.append(f"{size} is too small to judge")
        elif not self.scope.holds(side):
            reasons.append(f"{size}: this detector was judged on pictures of {self.scope}")
        if one.quality is not None and one.quality < _COARSE:
            reasons.append(f"JPEG quality {one.quality:.0f} is too low to judge")
        if distance > 1:
            reasons.append(UNFAMILIAR)
        return reasons

    def _row(self, decision: Decision, **known: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "label": None,
            "probability": None,
            "verdict": None,
            "provenance": {},
            "warnings": [],
            "error": None,
        }
        row = {**empty, **known, "threshold": decision.threshold, "model_version": self.version}
        return {field: row[field] for field in FIELDS}

    def _heatmap(self, image: Any) -> str:
        found, _ = evidence(self._ensemble, image)
        buffer = io.BytesIO()
        overlay(image, found).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


def as_bytes(file: Any) -> bytes:
    """A file's bytes, from what a caller sent.

    Raises:
        ImageError: it is neither bytes nor a text of them (see `encoded.decoded`).
    """
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str):
        raise images.ImageError("`image` is no base64 text")
    try:
        return decoded(file)
    except ValueError as error:
        raise images.ImageError(f"`image` is {error}") from None


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
