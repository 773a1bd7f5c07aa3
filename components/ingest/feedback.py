"""Images that users reported, each with the corrected label in a JSON file beside it.

`report.jpg` and `report.json`: `{"label": "real", "status": "accepted"}`. Who writes them writes the JSON first, so
that there is never an image without one.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.ingest import files, readers
from components.ingest.source import Item, Part, Place
from components.params import Label
from components.stage import StageError


class Report(BaseModel):
    """What is said of an image; other keys are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    label: Label
    status: Literal["accepted", "pending", "rejected"] = "accepted"
    generator: str | None = None
    licence: str | None = None


def seen(place: Place) -> str:
    """Changes whenever a file in the folder does."""
    return files.seen(dataclasses.replace(place, where=str(_folder(place))))


def parts(place: Place) -> Iterator[Part]:
    """One part: the images whose reports were accepted.

    Raises:
        StageError: no such folder.
    """
    folder = _folder(place)
    if not folder.is_dir():
        raise StageError(f"{folder}: no folder of reports; name it as feedback:FOLDER")
    yield Part("", lambda: _accepted(folder, place.max_bytes))


def _folder(place: Place) -> Path:
    return Path(place.where.partition(":")[2]).expanduser()


def _accepted(folder: Path, max_bytes: int) -> Iterator[Item]:
    pending = 0
    for name, data in readers.read(folder, max_bytes):
        report = _report(folder / name)
        pending += report.status == "pending"
        if report.status == "accepted":
            generator = report.generator if report.label == "ai" else None
            yield Item(data, name, report.label, generator, licence=report.licence)
    if pending:
        print(f"{folder}: {pending:,} reports wait for a decision (`status` in their JSON is pending)", flush=True)


def _report(image: Path) -> Report:
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
