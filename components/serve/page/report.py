"""The one-page report of a picture, to keep or to send."""

import hashlib
import io
import textwrap
from datetime import UTC, datetime
from typing import Any, Literal

from PIL import Image

from components import images
from components.serve.page.judged import Judged, provenance_lines, provenance_note, said

_COLOURS = {"ai": "#a33a21", "real": "#1f5f86", "uncertain": "#5f5a3a"}
_WIDTH = 112  # characters


def draw(judged: Judged, kind: Literal["pdf", "png"]) -> bytes:
    """An A4 page with the picture, its evidence, the verdict, and what it rests on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 11.69))
    y = _head(figure, judged)
    for title, lines in _sections(judged):
        y -= 0.012
        figure.text(0.08, y, title, fontsize=10.5, weight="bold", va="top")
        y -= 0.021
        for line in lines:
            for piece in textwrap.wrap(line, _WIDTH) or [""]:
                if y < 0.05:
                    break
                figure.text(0.08, y, piece, fontsize=8.6, va="top", parse_math=False)
                y -= 0.0155
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    footer = f"Trueframe, {when}. A detector's answer is a hint and no proof; judge nobody by it alone."
    figure.text(0.08, 0.028, footer, fontsize=7.5, color="#555")
    file = io.BytesIO()
    with _embedded_fonts():
        figure.savefig(file, format=kind, dpi=110)
    return file.getvalue()


def _head(figure: Any, judged: Judged) -> float:
    """Title, verdict, scale and pictures; gives the height where the text goes on."""
    row, fitted = judged.row, judged.part.fitted
    name = textwrap.shorten(judged.name, 80, placeholder="…")
    figure.text(0.08, 0.958, name, fontsize=9, color="#555", va="top", parse_math=False)
    figure.text(0.08, 0.937, judged.verdict(), fontsize=22, weight="bold", color=_COLOURS[row["verdict"]], va="top")
    says = f"Probability that it is AI-generated: {row['probability']:.0%}"
    figure.text(0.08, 0.897, says, fontsize=11, va="top")
    scale = figure.add_axes((0.08, 0.852, 0.84, 0.02))
    for left, right, colour in (
        (0, fitted["low"], "#bcd6e6"),
        (fitted["low"], fitted["high"], "#e3dfc8"),
        (fitted["high"], 1, "#efc5b9"),
    ):
        scale.axvspan(left, right, color=colour, lw=0)
    scale.axvline(row["probability"], color="black", lw=2.5)
    scale.set(xlim=(0, 1), yticks=[], xticks=[0, fitted["low"], fitted["high"], 1])
    scale.set_xticklabels(["0%", f"{fitted['low']:.0%}", f"{fitted['high']:.0%}", "100%"], fontsize=8)
    shown = [("The picture", judged.preview)]
    if judged.heatmap:
        shown.append(("Evidence: red for AI, blue against", Image.open(io.BytesIO(judged.heatmap))))
    for number, (title, image) in enumerate(shown):
        axes = figure.add_axes((0.08 + 0.43 * number, 0.565, 0.41, 0.245))
        axes.imshow(image)
        axes.set_title(title, fontsize=8.5, loc="left")
        axes.set_anchor("NW")
        axes.axis("off")
    return 0.55


def _sections(judged: Judged) -> list[tuple[str, list[str]]]:
    row, card = judged.row, judged.part.card
    data, stored = judged.data, judged.stored
    digest = hashlib.sha256(data).hexdigest()
    size = f"{stored.width} × {stored.height} px, {stored.format}, {len(data):,} bytes"
    sections = [("What this means", [judged.why()])]
    if judged.resaves:
        resaves = [f"{name}: {said(answer)}, {answer['probability']:.0%}" for name, answer in judged.resaves]
        sections.append(("The same picture re-saved", ["; ".join(resaves) + "."]))
    origin = [f"{name}: {textwrap.shorten(text, 200)}" for name, text in provenance_lines(judged)[:8]]
    sections += [
        ("What the file says of itself", [*origin, provenance_note(judged)]),
        ("How often the detector is wrong", judged.part.errors(images.jpeg_quality(stored))),
        ("Trained on", [textwrap.shorten(card.trained_on(), 4 * _WIDTH, placeholder=" …")]),
        (
            "Details",
            [
                size,
                f"SHA-256 {digest}",
                f"{judged.by()} Threshold {row['threshold']:.3f}.",
            ],
        ),
    ]
    return sections


def _embedded_fonts() -> Any:
    """Text in the PDF stays text."""
    from matplotlib import rc_context

    return rc_context({"pdf.fonttype": 42})
