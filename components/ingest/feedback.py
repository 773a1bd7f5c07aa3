"""Images that users reported, each with the corrected label in a JSON file beside it (see `components.reports`)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from components import reports
from components.folders import LeftOut, spelled
from components.ingest import files, readers
from components.ingest.source import Item, Part, Place
from components.stage import StageError

EMPTY = "no report in it is accepted yet; `trueframe review` lists those that wait"


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
    yield Part("", lambda: _accepted(folder, place.max_bytes, place.settings.regression))


def _folder(place: Place) -> Path:
    return Path(place.where.partition(":")[2]).expanduser()


def _accepted(folder: Path, max_bytes: int, regression: float) -> Iterator[Item | LeftOut]:
    pending = 0
    for name, data in readers.read(folder, max_bytes):
        if isinstance(data, LeftOut):
            if not name.endswith((".json", ".lock")):  # what belongs to the reports
                yield data
            continue
        report = reports.read(folder / name)
        pending += report.status == "pending"
        if report.status == "accepted":
            generator = report.generator if report.label == "ai" else None
            split = reports.split(report, data or b"", regression)
            yield Item(data, spelled(name), report.label, generator, split, licence=report.licence)
        else:
            yield LeftOut(name, f"{report.status} report")
    if pending:
        print(f"{folder}: {pending:,} reports wait for a decision: `trueframe review`", flush=True)
