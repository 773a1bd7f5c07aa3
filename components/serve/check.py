"""Verdicts for files and folders, with the detector that serving uses."""

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import images, parallel, stage
from components.serve.detector import FIELDS, Detector
from components.stage import StageError

COLUMNS = ("path", *FIELDS)


def find(paths: list[Path]) -> list[Path]:
    """Files as they were named, and all images in folders, in order.

    Raises:
        StageError: a path doesn't exist, or there is no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise StageError(f"{path}: not found")
    if not found:
        raise StageError(f"{', '.join(map(str, paths))}: no images in there")
    return found


def check(detector: Detector, paths: list[Path], heatmaps: Path | None = None) -> Iterator[dict[str, Any]]:
    """Judge files in blocks.

    Args:
        detector: judges.
        paths: of the files.
        heatmaps: folder for a PNG of each picture's evidence, named after its file; null draws none.

    Returns:
        A dict with `COLUMNS` for each file, in order.
    """
    progress = parallel.Progress("images checked", len(paths))
    taken: set[str] = set()
    for block in parallel.batched(paths, 512):
        answers = detector.score([_read(path) for path in block], explain=heatmaps is not None)
        for path, row in zip(block, answers, strict=True):
            drawn = row.pop("heatmap", None)
            if heatmaps and drawn:
                heatmaps.mkdir(parents=True, exist_ok=True)
                (heatmaps / _free(path.name, taken)).write_bytes(base64.b64decode(drawn))
            yield {"path": str(path), **row}
        progress.add(len(block))


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One line a file; `provenance` and `warnings` as JSON."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in rows:
                nested = {key: json.dumps(row[key], ensure_ascii=False) for key in ("provenance", "warnings")}
                writer.writerow(row | nested)

    stage.replace(path, write)


def write_json(rows: list[dict[str, Any]], path: Path) -> None:
    """A list with an object for each file."""
    stage.replace(path, lambda partial: partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n"))


def _free(name: str, taken: set[str]) -> str:
    """`NAME.png`, with a number where another folder has a file of that name."""
    number, free = 1, f"{name}.png"
    while free in taken:
        number += 1
        free = f"{name}-{number}.png"
    taken.add(free)
    return free


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
