"""What an image's pixels still tell of its earlier JPEG quality after `preprocess.equalise`, by its settings.

Photographs from the folder that TRUEFRAME_TEST_DATA names are saved at quality 75 or 95 by turns. Then a classifier of
traces tells which, cross-validated: an AUC of 0.5 means that nothing of it is left.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from components import images, parallel
from components.validate import inspection, leakage

WAYS: list[dict[str, Any] | None] = [
    None,
    *({"size": "crop", "side": 224, "quality": quality} for quality in (95, 90, 80, 70)),
    *({"size": "resize", "side": side, "quality": quality} for side in (224, 160) for quality in (90, 75)),
]


def run() -> str:
    where = os.environ.get("TRUEFRAME_TEST_DATA")
    if not where:
        return "Equalised pixels: left out, TRUEFRAME_TEST_DATA names no folder with photos.zip\n"
    with zipfile.ZipFile(Path(where) / "photos.zip") as archive:
        origins = ("unsplash/real/", "web-photos/real/", "coco-imagenet/real/")
        names = [n for n in archive.namelist() if n.startswith(origins) and not n.endswith("/")]
        files = [archive.read(name) for name in names]
    traces = np.array(
        [t for part in parallel.ordered_map(_traces, parallel.batched(enumerate(files), 64)) for t in part]
    )
    labels = np.arange(len(files)) % 2 == 1
    fold = leakage.folds(labels, np.arange(len(files)), 0)
    lines = [
        f"Telling JPEG quality 75 from 95 by the pixels of {len(files):,} photographs of 256 px (AUC)",
        "| equalised by | AUC |\n|---|---|",
    ]
    for number, way in enumerate(WAYS):
        scores = leakage.out_of_fold(traces[:, number], labels, fold, 0, max_iter=100, max_bins=63)
        said = "nothing" if way is None else f"{way['size']} to {way['side']} px, quality {way['quality']}"
        lines.append(f"| {said} | {roc_auc_score(labels, scores):.2f} |")
    return "\n".join(lines) + "\n"


def _traces(batch: list[tuple[int, bytes]]) -> list[list[np.ndarray]]:
    found = []
    for number, data in batch:
        file = io.BytesIO()
        images.decode(data).save(file, "JPEG", quality=75 if number % 2 else 95, subsampling=2)
        image = images.decode(file.getvalue())
        found.append([inspection.traces_of(images.equalise(image, way)) for way in WAYS])
    return found
