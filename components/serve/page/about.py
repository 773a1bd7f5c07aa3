"""Who answers on the page, what it was trained on, and how often it is wrong: read from its model card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Self

from components.detector import wording
from components.serve.cascade import Asked, Cascade
from components.serve.detector import Scope
from components.serve.files import Files
from components.serve.reference import VERSION, Reference, title


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

    def errors(self, elsewhere: str, quality: float | None = None) -> list[str]:
        """How often it is wrong, in sentences.

        Args:
            quality: of the JPEG file in question, which chooses the tier that is nearest to it.
            elsewhere: what is known of pictures from elsewhere, which comes first.
        """
        said = [elsewhere]
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
        said.append("Its answer is a hint and no proof.")
        return said


@dataclass(frozen=True)
class Part:
    """One detector of those that answer.

    Attributes:
        name: as it stands in a sentence, `trueframe version 3` or `the reference detector photo`.
        fitted: what its file says of itself.
        card: its model card.
        detector: itself.
    """

    name: str
    fitted: dict[str, Any]
    card: Card
    detector: Any

    @classmethod
    def of(cls, name: str, files: Files, detector: Any) -> Self:
        """From a detector's files."""
        return cls(name, files.fitted, Card.read(files.card.read_text()), detector)

    @property
    def scope(self) -> Scope:
        """The sizes that it was judged on."""
        return Scope(**self.fitted["scope"])

    def errors(self, quality: float | None = None) -> list[str]:
        """How often it is wrong, on pictures from elsewhere first (see `Card.errors`)."""
        return self.card.errors(wording.sentence(self.fitted), quality)


@dataclass(frozen=True)
class About:
    """Who answers.

    Attributes:
        own: the champion, or the version that was asked for; null where there is none.
        others: the reference detectors by their versions, for what it wasn't judged on.
        detector: all of them together (see `Detector.score`).
    """

    own: Part | None
    others: Mapping[str, Part]
    detector: Any

    @classmethod
    def of(cls, name: str, own: tuple[Files, Asked] | None, references: Sequence[Reference] = ()) -> Self:
        """From the detectors and their files.

        Args:
            name: of the own one, as it stands in a sentence.
            own: answers first.
            references: answer what it wasn't judged on, or everything where there is no own one.
        """
        others = {one.version: Part.of(str(title(one.version)), one.files, one) for one in references}
        asked = [*([own[1]] if own else []), *references]
        return cls(Part.of(name, *own) if own else None, others, Cascade(asked))

    @property
    def name(self) -> str:
        """Who answers, as it stands in a sentence: who is asked first."""
        return self.own.name if self.own else str(title(VERSION))

    def part(self, row: dict[str, Any]) -> Part:
        """The one that gave an answer."""
        known = self.others.get(row["model_version"], self.own)
        assert known is not None
        return known

    def html(self) -> str:
        """The tab about the detector."""
        parts = [*([self.own] if self.own else []), *self.others.values()]
        said = []
        for part in parts:
            said.append(
                f"<h2>{escape(capital(part.name))}</h2>"
                f"<p>It was judged on pictures whose shorter side has {part.scope}.</p>"
                + "".join(f"<p>{escape(text)}</p>" for text in part.errors())
            )
            for heading, rows in part.card.tables.items():
                said.append(f"<h3>{escape(heading)}</h3>{table(heading, rows)}")
        return f"<p>{escape(self.introduction())}</p>{''.join(said)}"

    def introduction(self) -> str:
        """Who answers what, in a sentence or two."""
        if self.own and self.others:
            return (
                f"{capital(self.own.name)} answers for pictures like those that it was judged on ({self.own.scope}), "
                f"for others a reference detector."
            )
        return f"{capital(self.name)} answers."


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that screen readers call by a title; the first row is the head, the first column names the row."""
    head = "".join(f"<th scope=col>{escape(cell) or '<span class=unseen>what</span>'}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    )
    scroll = f'<div class=scroll tabindex=0 role=region aria-label="{escape(title)}">'
    return f"{scroll}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[0].upper() + text[1:]
