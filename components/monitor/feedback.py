"""What people reported: how often the verdict was wrong, and what of it isn't in the data yet."""

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from components import images, reports, shards
from components.stage import StageError

_HASH = re.compile("[0-9a-f]{64}")  # what the page calls its files
COLUMNS = ("sha256", "label", "status", "verdict", "model_version", "reported")


def read(folder: Path) -> pd.DataFrame:
    """All reports of a folder (see `components.reports`), one row an image with `COLUMNS`.

    `reported` is a time in UTC, null where the report names none. What is no report is left out: `trueframe ingest`
    says what is wrong with it.
    """
    rows = []
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower() not in images.SUFFIXES:
            continue
        try:
            report = reports.read(image)
        except (StageError, OSError):
            continue
        rows.append(
            {
                "sha256": image.stem if _HASH.fullmatch(image.stem) else hashlib.sha256(image.read_bytes()).hexdigest(),
                "label": report.label,
                "status": report.status,
                "verdict": report.verdict,
                "model_version": report.said("model_version") or None,
                "reported": _time(report.said("reported")),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"reported": "datetime64[us, UTC]"})


def new(found: pd.DataFrame, data: Path, sources: Iterable[str]) -> int:
    """How many accepted reports are about images that no ingestion has seen."""
    accepted = set(found.loc[found["status"] == "accepted", "sha256"]) - shards.forgotten(data)
    for source in sources:
        if shards.exist(data / source):
            accepted -= set(shards.manifest(shards.paths(data, [source]))["sha256"])
            accepted -= set(shards.rejected(data, source)["sha256"])
    return len(accepted)


def accuracy(found: pd.DataFrame) -> dict[str, Any]:
    """How accepted reports judge the verdicts that they are about: `n`, and the share that was right among those that
    weren't uncertain.
    """
    judged = found[(found["status"] == "accepted") & found["verdict"].isin(("ai", "real"))]
    right = (judged["verdict"] == judged["label"]).mean() if len(judged) else None
    return {"n": len(judged), "accuracy": None if right is None else round(float(right), 4)}


def _time(said: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(said)
    except (TypeError, ValueError):
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
