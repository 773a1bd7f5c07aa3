"""Pictures that users reported: each with a JSON file beside it that says what it really is and what was decided.

`report.jpg` and `report.json`: `{"label": "real", "status": "accepted"}`. Who writes them writes the JSON first, so
that there is never an image without one. A file is written whole or not at all, and of two who decide on the same
report at once the second is told so.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components import images, stage
from components.params import Label
from components.shards import REGRESSION, REPORTED
from components.stage import StageError

MOST = 1000
"""Strangers' reports that may wait for a decision."""
Decision = Literal["accept", "reject", "relabel", "reopen"]
"""`relabel` accepts the picture with the other label than its reporter claims; `reopen` takes a decision back."""
_STATUS = {"accept": "accepted", "relabel": "accepted", "reject": "rejected", "reopen": "pending"}
_OTHER: dict[Label, Label] = {"ai": "real", "real": "ai"}


class Full(Exception):
    """So many reports wait for a decision that no more are taken."""


class Report(BaseModel):
    """What is said of a picture; other keys are left alone.

    Attributes:
        label: what it is, as far as is known: its reporter's word until somebody decides.
        status: `pending` reports wait for a decision; only accepted ones become data.
        generator: that made it, where it is `ai`.
        licence: of the picture.
        answer: the label that the detector gave.
        verdict: that the detector gave.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    label: Label
    status: Literal["accepted", "pending", "rejected"] = "accepted"
    generator: str | None = None
    licence: str | None = None
    answer: Label | None = None
    verdict: Literal["ai", "real", "uncertain"] | None = None

    @property
    def is_mistake(self) -> bool:
        """Whether the detector said something else than the truth; where its answer isn't known, it didn't."""
        said = self.answer or self.verdict
        return said is not None and said != self.label

    @property
    def claimed(self) -> Label:
        """What its reporter says that it is."""
        return (self.model_extra or {}).get("claimed", self.label)

    def said(self, key: str) -> Any:
        """Another key's value; empty where it isn't there."""
        return (self.model_extra or {}).get(key, "")


@dataclass(frozen=True)
class Entry:
    """A picture's file with what is said of it."""

    image: Path
    report: Report

    @property
    def name(self) -> str:
        """By which people call it: of what the page stored, the SHA-256 of the picture."""
        return self.image.stem


def read(image: Path) -> Report:
    """What is said of a picture.

    Raises:
        StageError: nothing, or something that can't be read.
    """
    path = image.with_suffix(".json")
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{image}: no {path.name} beside it, which says its label; nothing was ingested") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(str(key) for key in first["loc"])
        reason = f"{what}: {first['msg']}" if what else first["msg"]
        raise StageError(
            f'{path}: {reason}; it takes {{"label": "ai" or "real", "status": "accepted", "pending" or "rejected"}}. '
            "Nothing was ingested"
        ) from None


def split(report: Report, data: bytes, share: float) -> str:
    """Whether an accepted report is proof, `regression`, or something to learn from, `reported`.

    Only mistakes can be proof. The picture's own hash decides, so that a picture never changes sides.

    Args:
        report: that was accepted.
        data: the picture's file.
        share: of the mistakes that are proof.
    """
    draw = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
    return REGRESSION if report.is_mistake and draw < share else REPORTED


def store(folder: Path, data: bytes, suffix: str, said: dict[str, Any], *, trusted: bool) -> Path:
    """Keep a picture and what it really is; reported again, the later word counts.

    Args:
        folder: of reports; is made.
        data: the picture's file.
        suffix: for its name, such as `jpg`.
        said: what `Report` holds, and whatever a reviewer should see, without `status`.
        trusted: whether it is accepted as it comes. Others' reports wait, and never change what was decided before.

    Returns:
        The picture's file.

    Raises:
        Full: too many reports wait.
    """
    image = folder / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    with _only_one(folder):
        known = image.with_suffix(".json").exists() and read(image)
        if not trusted:
            if known and known.status != "pending":
                return image
            if not known and _waiting(folder) >= MOST:
                raise Full
        _write(image, {**said, "status": "accepted" if trusted else "pending", "reported": _now()})
        if not image.exists():
            stage.replace(image, lambda partial: partial.write_bytes(data))
    return image


def entries(folder: Path) -> list[Entry]:
    """All reports, the oldest first.

    Raises:
        StageError: one can't be read.
    """
    found = [Entry(image, read(image)) for image in _pictures(folder)]
    return sorted(found, key=lambda one: (str(one.report.said("reported")), one.name))


def waiting(folder: Path) -> list[Entry]:
    """The reports that wait for a decision, the oldest first."""
    return [one for one in entries(folder) if one.report.status == "pending"]


def find(folder: Path, name: str) -> Entry:
    """The report whose name begins so.

    Raises:
        StageError: there is none, or more than one.
    """
    found = [image for image in _pictures(folder) if name and image.stem.startswith(name)]
    if len(found) != 1:
        which = "no report" if not found else f"{len(found)} reports"
        raise StageError(f"{folder}: {which} called {name!r}…; `trueframe review` lists those that wait")
    return Entry(found[0], read(found[0]))


def decide(folder: Path, name: str, decision: Decision, reviewer: str, remark: str = "") -> Report:
    """Decide on a report that waits, or put one back that was decided.

    Args:
        folder: of reports.
        name: of the report, or how it begins.
        decision: see `Decision`.
        reviewer: who decides.
        remark: why; is kept.

    Returns:
        The report as it is now.

    Raises:
        StageError: there is no such report, or it was decided meanwhile.
    """
    with _only_one(folder):
        entry = find(folder, name)
        report = entry.report
        if (report.status == "pending") == (decision == "reopen"):
            by = f" by {report.said('reviewer')} at {report.said('reviewed')}" if report.said("reviewer") else ""
            raise StageError(
                f"{name}: it waits already"
                if report.status == "pending"
                else f"{name}: it was {report.status}{by} meanwhile; `trueframe review reopen {name}` puts it back"
            )
        said = json.loads(entry.image.with_suffix(".json").read_bytes())
        for key in ("reviewer", "reviewed", "remark"):
            said.pop(key, None)
        said["label"] = said.pop("claimed", report.label)
        if decision == "relabel":
            said |= {"label": _OTHER[report.label], "claimed": report.label}
        if decision != "reopen":
            said |= {"reviewer": reviewer, "reviewed": _now()} | ({"remark": remark} if remark else {})
        _write(entry.image, said | {"status": _STATUS[decision]})
        return read(entry.image)


def _waiting(folder: Path) -> int:
    """How many reports wait; a file that is none, or that can't be read, stops nobody."""
    n = 0
    for image in _pictures(folder):
        with suppress(StageError):
            n += read(image).status == "pending"
    return n


def _pictures(folder: Path) -> Iterator[Path]:
    """The pictures' files, without those that are being written."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in images.SUFFIXES and not path.name.startswith("."):
            yield path


def _write(image: Path, said: dict[str, Any]) -> None:
    text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
    stage.replace(image.with_suffix(".json"), lambda partial: partial.write_text(text))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
