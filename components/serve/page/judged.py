"""One picture, judged: the answer in words and as pieces of the page."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from components import images
from components.detector.wording import words
from components.serve.page.about import About, Part, capital, table

_SHOWN = 720  # px, the longer side of the preview


@dataclass(frozen=True)
class Resave:
    """What becomes of a picture on its way: in words, and its new file."""

    name: str
    saved: Callable[[Image.Image], bytes]


@dataclass
class Judged:
    """A picture with what the detector says of it.

    Attributes:
        name: of the file or the link.
        path: where the file is kept for a while.
        row: the detector's answer.
        about: who answered.
        heatmap: a PNG, once it is drawn.
        resaves: name and answer of each re-save, once they were judged.
    """

    name: str
    path: Path
    row: dict[str, Any]
    about: About
    heatmap: bytes | None = None
    resaves: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def part(self) -> Part:
        """The detector that answered."""
        return self.about.part(self.row)

    @property
    def data(self) -> bytes:
        """The file.

        Raises:
            FileNotFoundError: its time is over.
        """
        return self.path.read_bytes()

    @cached_property
    def preview(self) -> Image.Image:
        """At the size that the page shows; of a JPEG only as much is decoded as that takes."""
        return small(self.path)

    @property
    def stored(self) -> Image.Image:
        """With the header alone read: format, size, JPEG tables."""
        return images.open_image(self.data)

    def verdict(self) -> str:
        """In words."""
        return capital(words(self.part.fitted)[self.row["verdict"]])

    def why(self) -> str:
        """One sentence on how sure that is."""
        if self.row["warnings"]:
            return f"This picture is outside of what the detector can judge: {'; '.join(self.row['warnings'])}."
        if self.row["verdict"] == "uncertain":
            return "The score lies in the band where the detector is wrong too often to say."
        return "The score lies outside of the uncertain band. That is a hint and no proof."

    def by(self) -> str:
        """One sentence on who answered, and in whose place."""
        own = self.about.own
        if own is None or self.part is own:
            return f"Answered by {self.part.name}."
        return (
            f"Answered by {self.part.name}, since {own.name} was judged on pictures of {own.scope}, and this one is of "
            "another size or unlike those."
        )


RESAVES = (
    Resave("saved as JPEG 75", lambda image: _jpeg(image, 75)),
    Resave("saved as JPEG 50", lambda image: _jpeg(image, 50)),
    Resave("half the size", lambda image: _jpeg(_scaled(image, 0.5), 90)),
    Resave("cropped to three quarters", lambda image: _jpeg(_cropped(image, 0.75), 90)),
    Resave("screenshot at 80%", lambda image: _jpeg(_scaled(image, 0.8), 85, subsampling=0)),
)


def judge(about: About, name: str, path: Path) -> Judged:
    """Ask the detector for its verdict alone.

    Raises:
        ImageError: the file can't be judged; the message says why.
    """
    (row,) = about.detector.score([path.read_bytes()])
    if row["error"]:
        raise images.ImageError(row["error"])
    return Judged(name, path, row, about)


def explain(judged: Judged) -> None:
    """Draw where the evidence lies."""
    (row,) = judged.part.detector.score([judged.data], explain=True)
    judged.heatmap = base64.b64decode(row["heatmap"])


def resave(judged: Judged) -> None:
    """Let the same detector judge the picture again after what usually happens to pictures."""
    image = images.decode(judged.data)
    rows = judged.part.detector.score([each.saved(image) for each in RESAVES])
    judged.resaves = [(each.name, row) for each, row in zip(RESAVES, rows, strict=True)]


def verdict_html(judged: Judged) -> str:
    """The verdict, its probability, and where that lies beside the uncertain band."""
    p, fitted = judged.row["probability"], judged.part.fitted
    low, high = fitted["low"], fitted["high"]
    says = (
        f"Probability {p:.0%} on a scale from 0% to 100%. Below {low:.0%} the verdict is not AI-generated, from "
        f"{high:.0%} on AI-generated, in between uncertain."
    )
    return (
        f'<div class="verdict {judged.row["verdict"]}"><p class=file>{escape(judged.name)}</p>'
        f"<h2>{judged.verdict()}</h2><p class=p>Probability that it is AI-generated: <strong>{p:.0%}</strong></p>"
        f'<div class=scale role=img aria-label="{says}"><div class=zone style="width:{low:.2%}"></div>'
        f'<div class="zone band" style="width:{high - low:.2%}"></div><div class="zone end"></div>'
        f'<div class=mark style="left:{p:.2%}"></div></div>'
        f'<div class=ends aria-hidden=true><span>not AI</span><span class=mid style="left:{(low + high) / 2:.2%}">'
        f"uncertain</span><span>AI</span></div><p>{escape(judged.why())}</p>"
        f"<p class=quiet>{escape(judged.by())}</p></div>"
    )


def picture_html(judged: Judged) -> str:
    """The picture, and over it the evidence, with a switch between them."""
    shown = f'<img class=plain alt="The picture that was judged" src="{data_url(judged.preview)}">'
    if judged.heatmap is None:
        return f"<figure class=picture>{shown}<figcaption>Looking for where the evidence lies …</figcaption></figure>"
    drawn = base64.b64encode(judged.heatmap).decode()
    return (
        "<figure class=picture><label class=switch><input type=checkbox id=evidence> Show where the evidence lies"
        f'</label>{shown}<img class=heat alt="Heatmap of the evidence, as the detector sees the picture" '
        f'src="data:image/png;base64,{drawn}"><figcaption><span class="key ai"></span> speaks for AI '
        '<span class="key real"></span> speaks against it. The map shows the picture as the detector sees it, which '
        "may be a part of it.</figcaption></figure>"
    )


def resaves_html(judged: Judged) -> str:
    """How the verdict holds."""
    if not judged.resaves:
        return "<p class=quiet>Saving it again in several ways …</p>"
    held = sum(row["verdict"] == judged.row["verdict"] for _, row in judged.resaves)
    rows = [["after", "verdict", "AI"]]
    rows += [[name, said(row), f"{row['probability']:.0%}"] for name, row in judged.resaves]
    says = f"<p>The verdict is the same after {held} of {len(judged.resaves)}.</p>"
    return says + table("Verdicts after saving again", rows)


def said(row: dict[str, Any]) -> str:
    """A row's verdict in a word or two."""
    return row["error"] or {"ai": "AI", "real": "not AI", "uncertain": "uncertain"}[row["verdict"]]


def provenance_lines(judged: Judged) -> list[tuple[str, str]]:
    """What the file says of itself, as pairs of a name and a text; none where it says nothing."""
    found = {key: value for key, value in judged.row["provenance"].items() if key != "note"}
    return [(name, _text(value)) for name, value in _flat(found)]


def provenance_note(judged: Judged) -> str:
    """What that is worth."""
    return str(judged.row["provenance"]["note"])


def provenance_html(judged: Judged) -> str:
    """What the file says of itself."""
    lines = [["field", "what the file says"], *map(list, provenance_lines(judged))]
    said = table("What the file says of itself", lines) if len(lines) > 1 else ""
    return f"{said}<p class=quiet>{escape(provenance_note(judged))}</p>"


def errors_html(judged: Judged) -> str:
    """What the detector was trained on and how often it is wrong on such pictures."""
    card = judged.part.card
    trained = card.trained_on()
    wrong = judged.part.errors(images.jpeg_quality(judged.stored))
    said = [wrong[0], *([f"Trained on {trained}."] if trained else []), *wrong[1:]]
    return "".join(f"<p>{escape(text)}</p>" for text in said)


def small(path: Path) -> Image.Image:
    """A picture at the size that the page shows.

    Raises:
        ImageError: it is none.
    """
    image = images.open_image(path.read_bytes())
    image.draft("RGB", (_SHOWN, _SHOWN))
    shown = images.to_rgb(image)
    shown.thumbnail((_SHOWN, _SHOWN), reducing_gap=2.0)
    return shown


def data_url(image: Image.Image) -> str:
    """A JPEG in the page itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(_jpeg(image, 85)).decode()}"


def _flat(found: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(found, dict):
        return [pair for key, value in found.items() for pair in _flat(value, f"{name} {key}".strip())]
    return [] if found in (None, "", []) else [(name.replace("_", " "), found)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key.replace('_', ' ')}: {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _jpeg(image: Image.Image, quality: int, subsampling: int = 2) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) // 3
    return image.crop((left, top, left + width, top + height))
