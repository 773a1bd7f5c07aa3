"""Who answers on the page, what it was trained on, and how often it is wrong: read from its model card."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Self

from components.serve.files import Files


@dataclass(frozen=True)
class Card:
    """A model card as `components.evaluate.card` writes it.

    Attributes:
        summary: what stands before its first heading.
        tables: the rows of each section's table, by its heading; the first row is the head.
    """

    summary: str
    tables: dict[str, list[list[str]]]

    @classmethod
    def read(cls, text: str) -> Self:
        """From its Markdown."""
        head, *sections = re.split(r"^##+ ", text, flags=re.MULTILINE)
        tables = {}
        for section in sections:
            title, _, body = section.partition("\n")
            lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
            if len(lines) > 2:
                tables[title.strip()] = [lines[0], *lines[2:]]
        return cls(head.partition("\n")[2].strip(), tables)

    def rows(self, title: str) -> list[list[str]]:
        """Of the section whose heading begins so, without the head; none where there is no such section."""
        return next((rows[1:] for name, rows in self.tables.items() if name.startswith(title)), [])

    def trained_on(self) -> str:
        """In words."""
        said = []
        for source, ai, real, generators, *_ in self.rows("Trained on"):
            named = "" if generators == "not named" else f" ({generators})"
            said.append(f"{source}: {real} real and {ai} AI-generated pictures{named}")
        return "; ".join(said)

    def errors(self, quality: float | None = None) -> list[str]:
        """How often it is wrong on held-out images, in sentences.

        Args:
            quality: of the JPEG file in question, which chooses the tier that is nearest to it.
        """
        said = []
        right = {row[0]: float(row[2]) for row in self.rows("By label")}
        if {"ai", "real"} <= set(right):
            said.append(
                f"On pictures held out from the same sources, it takes {1 - right['real']:.0%} of the real ones for AI "
                f"and {1 - right['ai']:.0%} of the AI-generated ones for real."
            )
        tiers = {
            int(found[1]): float(row[1])
            for row in self.rows("Degraded")
            if (found := re.fullmatch(r"re-saved as JPEG (\d+)", row[0]))
        }
        if quality is not None and tiers:
            tier = min(tiers, key=lambda q: abs(q - quality))
            said.append(
                f"This file is a JPEG of quality {quality:.0f}; of such pictures re-saved at quality {tier} it judges "
                f"{tiers[tier]:.0%} rightly."
            )
        uncertain = re.search(r"([\d.]+)% of the answers are `uncertain`", self.summary)
        if uncertain:
            said.append(f"{float(uncertain[1]):.0f}% of its answers are “uncertain”.")
        said.append("On pictures from elsewhere it is worse, often much worse: a hint and no proof.")
        return said


@dataclass(frozen=True)
class Part:
    """One detector of those that answer: what was fitted, and its card."""

    fitted: dict[str, Any]
    card: Card


@dataclass(frozen=True)
class About:
    """Who answers.

    Attributes:
        name: as it stands in a sentence, `the reference detector` or `trueframe version 3`.
        parts: of the reference detector one for each range of sizes; else one.
        detector: answers (see `Detector.score`).
    """

    name: str
    parts: Sequence[Part]
    detector: Any

    @classmethod
    def of(cls, name: str, files: Sequence[Files], detector: Any) -> Self:
        """From the detectors' files."""
        return cls(name, [Part(one.fitted, Card.read(one.card.read_text())) for one in files], detector)

    def part(self, row: dict[str, Any]) -> Part:
        """The one that gave an answer: its threshold tells."""
        return next((part for part in self.parts if part.fitted["threshold"] == row["threshold"]), self.parts[0])

    def html(self) -> str:
        """The tab about the detector."""
        said = []
        for part in self.parts:
            scope = part.fitted["scope"]
            upper = f" to {scope['max_side']}" if scope["max_side"] else " or more"
            said.append(
                f"<p>It was judged on pictures whose shorter side has {scope['min_side']}{upper} px.</p>"
                + "".join(f"<p>{escape(text)}</p>" for text in part.card.errors())
            )
            for title, rows in part.card.tables.items():
                said.append(f"<h3>{escape(title)}</h3>{table(title, rows)}")
        return f"<p>Answers come from <strong>{escape(self.name)}</strong>.</p>{''.join(said)}"


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that screen readers call by a title; the first row is the head, the first column names the row."""
    head = "".join(f"<th scope=col>{escape(cell) or '<span class=unseen>what</span>'}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    )
    scroll = f'<div class=scroll tabindex=0 role=region aria-label="{escape(title)}">'
    return f"{scroll}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
