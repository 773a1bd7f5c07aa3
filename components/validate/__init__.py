"""Is this data worth training on? Checked before anything is trained."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components import parallel, shards, stage
from components.params import Validate
from components.stage import StageError


def validate(data: Path, sources: Iterable[str], settings: Validate, out: Path) -> dict[str, Any]:
    """Check the images of some sources.

    Writes `report.json`, the Data Docs (`data_docs/`) and `groups.parquet` (for every image, by shard and row,
    the group of its near copies) into `out`, also when the data fails.

    Returns:
        What `report.json` holds.

    Raises:
        StageError: there is no image, or a shard is damaged.
    """
    from components.validate import duplicates, expectations, leakage

    sources = list(sources)
    files = shards.paths(data, sources)
    rows = shards.manifest(files)
    copies = duplicates.find(rows, files, settings.near_distance)
    marked = _mark(rows.assign(**copies), _intact(rows, files))
    share = rows["label"].value_counts(normalize=True)
    n_rejected = sum(len(shards.rejected(data, source)) for source in sources)
    table = {
        "n_images": float(len(rows)),
        "share_ai": float(share.get("ai", 0.0)),
        "share_real": float(share.get("real", 0.0)),
        "share_rejected": n_rejected / (len(rows) + n_rejected),
    }

    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "data_docs", ignore_errors=True)
    problems = expectations.check(marked, pd.DataFrame([table]), settings, out / "data_docs")
    audit = leakage.audit(rows)
    problems += _leaks(audit)
    report = {
        "passed": not any(problem.severity == "critical" for problem in problems),
        "n_images": len(rows),
        "n_rejected": n_rejected,
        "by_source": _counts(rows),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "duplicates": {
            "exact_within_split": int(marked["repeats_in_split"].sum()),
            "exact_across_splits": int(marked["repeats_train"].sum()),
            "near_across_splits": int(marked["resembles_train"].sum()),
            "label_conflicts": int(marked["conflicting"].sum()),
        },
        "leakage": audit,
    }
    groups = marked[["shard", "row", "group"]]
    stage.replace(out / "groups.parquet", lambda path: groups.to_parquet(path, index=False))
    stage.replace(out / "report.json", lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    return report


def _mark(rows: pd.DataFrame, intact: np.ndarray) -> pd.DataFrame:
    """Add the columns that the expectations look at."""
    hashed = rows["pixels"].notna()
    # Where the publisher fixed no split, preprocess keeps copies on one side.
    split = rows["split"].fillna("undecided")
    train = split == "train"
    outside = split.isin(["validation", "test"])
    same = rows["pixels"].isin(rows.loc[train & hashed, "pixels"]) & hashed
    alike = rows["group"].isin(rows.loc[train, "group"])
    conflicts = rows[hashed].groupby("pixels")["label"].nunique()
    return rows.assign(
        intact=intact,
        shorter_side=rows[["width", "height"]].min(axis=1),
        conflicting=rows["pixels"].isin(conflicts[conflicts > 1].index),
        repeats_in_split=hashed & rows.assign(split=split).duplicated(["split", "pixels"]),
        repeats_train=outside & same,
        resembles_train=outside & alike & ~same,
    )


def _intact(rows: pd.DataFrame, files: dict[str, Path]) -> np.ndarray:
    digests = [d for shard in parallel.ordered_map(_digests, files.values()) for d in shard]
    return np.array(digests) == rows["sha256"].to_numpy()


def _digests(path: Path) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for data in shards.files(path)]


def _leaks(audit: dict[str, Any]) -> list[Any]:
    from components.validate.expectations import Problem

    auc = audit["metadata_auc"]
    if auc is None or auc < 0.75:
        return []
    worst = max(audit["by_column"], key=audit["by_column"].get)
    message = (
        f"the label can be told without the picture: AUC {auc:.2f} from the metadata, "
        f"{audit['by_column'][worst]:.2f} from {worst} alone; a detector may learn that instead"
    )
    return [Problem("leakage", "warning", message, 1)]


def _counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts = rows.groupby(["source", "label"]).size().unstack(fill_value=0)
    return {str(source): {str(k): int(v) for k, v in row.items()} for source, row in counts.iterrows()}


def refuse(report: dict[str, Any], where: Path) -> None:
    """Stop the run if the data fails.

    Raises:
        StageError: with every critical problem.
    """
    if not report["passed"]:
        critical = [p["message"] for p in report["problems"] if p["severity"] == "critical"]
        raise StageError(f"the data is not fit for training: {'; '.join(critical)}. See {where}")
