"""The detector: image files in, verdicts out. MLflow's server, the batch check and the gate all use this."""

import base64
import io
import math
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components import images, parallel
from components.detector.evidence import evidence, overlay
from components.detector.file import Network, about
from components.detector.wording import words
from components.serve import provenance
from components.serve.encoded import decoded
from components.serve.provenance.credentials import trust_list
from components.serve.provenance.text import why
from components.stage import StageError

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

    pixels: dict[str, np.ndarray] | None
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
    """One network or several that answer together, with the decision: a detector's file at work.

    Its answers may be asked for from several threads at once.

    Args:
        file: path of it (see `components.detector.file`).
        version: that answers name.

    Raises:
        StageError: it is no detector's file, or the runtime can't run it.
    """

    def __init__(self, file: Path, version: str) -> None:
        trust_list()  # a wrong one is found now, and not with the first signed picture
        fitted = about(file)
        self._network = Network(file)
        self._equalise = fitted["equalise"]
        self._words = words(fitted)
        self.version = version
        self._one_large = threading.Lock()
        try:
            self._temperature = float(fitted["temperature"])
            self.decision = Decision(*(float(fitted[key]) for key in ("threshold", "low", "high")))
            self.scope = Scope(**fitted["scope"])
            shapes = [images.view_shape(view) for view in self._network.views]
            self._block = max(1, min(_BLOCK, _BLOCK_BYTES // sum(math.prod(shape) for shape in shapes)))
            grey = images.equalise(Image.new("RGB", (64, 64), (128, 128, 128)), self._equalise)
            seen = {name: x[None] for name, x in self._network.render(grey).items()}
            if not self._network.is_large:  # which would take longer than a first answer may
                [(logit, _)] = self._answers(seen)
                _sigmoid(logit / self._temperature)
        except Exception as error:  # whatever doesn't fit together in a file that others made
            raise StageError(f"{file}: its graph and its metadata don't fit ({why(error)}); nothing answers") from None

    def score(
        self, files: list[bytes | str | Any], *, explain: bool = False, threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """Judge image files, each on its own, in blocks that bound the memory they take.

        Args:
            files: bytes of a file each, or their text (see `encoded.decoded`). Anything else is that row's error.
            explain: adds `heatmap`, a base64 PNG of where the evidence is: red for `ai`, blue for `real`; and `says`,
                the verdict in words.
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

    def says(self, row: Mapping[str, Any]) -> str | None:
        """The verdict of an answer of its own in words (see `wording.words`); null of an error."""
        return self._words.get(row["verdict"])

    def _score(self, files: list[Any], explain: bool, decision: Decision) -> Iterator[dict[str, Any]]:
        opened = self._opened(files, explain)
        seen = [one.pixels for one in opened if one.pixels is not None]
        answers: Iterator[tuple[float, float]] = iter(())
        if seen:
            answers = self._answers({name: np.stack([of[name] for of in seen]) for name in self._network.inputs})
        for one in opened:
            if one.pixels is None:
                yield self._row(decision, error=one.error)
                continue
            row = self._verdict(*next(answers), one, decision)
            if explain:
                row |= {"heatmap": self._heatmap(one.image), "says": self.says(row)}
            yield row

    def _answers(self, pixels: dict[str, np.ndarray]) -> Iterator[tuple[float, float]]:
        """Logit and distance of each picture; without features to tell by, all are familiar."""
        found = self._network.outputs(pixels, ["logit", "distance"])
        logits = found["logit"]
        return zip(logits.tolist(), found.get("distance", np.zeros_like(logits)).tolist(), strict=True)

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
                seen = self._network.render(equal)
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
        found, _ = evidence(self._network, image)
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
