"""Corrections from the page, as the source `feedback:FOLDER` of `trueframe ingest` takes them."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from components import stage
from components.serve.page.judged import Judged

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}


def store(folder: Path, judged: Judged, label: str, status: Literal["accepted", "pending"]) -> Path:
    """Keep a picture and what it really is; reported again, the later word counts.

    Args:
        folder: of reports.
        judged: the picture.
        label: `ai` or `real`, as the person says.
        status: `pending` reports wait until somebody accepts them in their JSON.

    Returns:
        The picture's file. Its JSON is written first, so that there is never an image without one.
    """
    data, kind = judged.data, judged.stored.format or "JPEG"
    image = folder / f"{hashlib.sha256(data).hexdigest()}.{_SUFFIXES.get(kind, kind.lower())}"
    report = {
        "label": label,
        "status": status,
        "consent": True,
        "reported": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": judged.name,
        **{key: judged.row[key] for key in ("verdict", "probability", "model_version")},
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    stage.replace(image.with_suffix(".json"), lambda partial: partial.write_text(text))
    stage.replace(image, lambda partial: partial.write_bytes(data))
    return image
