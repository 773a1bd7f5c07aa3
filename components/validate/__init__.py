"""Is this data worth training on? Checked before anything is trained."""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from components import shards, stage
from components.params import Equalise, Validate
from components.stage import StageError


def validate(
    data: Path, sources: Iterable[str], settings: Validate, out: Path, equalise: Equalise | None = None
) -> dict[str, Any]:
    """Check the images of some sources.

    Writes into `out`, also when the data fails: `report.json`, the same as a page with pictures (`report.html`), the
    Data Docs (`data_docs/`), every image with a problem (`flagged.csv`), and `groups.parquet`: for every image, by
    shard and row, the group of its copies and of the images that belong to it.

    Args:
        data: folder of the shards.
        sources: which of them.
        settings: the section `validate`.
        out: folder to write.
        equalise: `preprocess.equalise`; the audits are repeated on what it makes of the images.

    Returns:
        What `report.json` holds.

    Raises:
        StageError: there is no image, or a shard is damaged.
    """
    from components.validate import drift, duplicates, expectations, findings, inspection, noise, report

    sources = list(sources)
    files = shards.paths(data, sources)
    rows = shards.manifest(files)
    rows = rows.assign(**duplicates.find(rows, files, settings.near_distance))
    encoding = equalise.model_dump() if equalise else None
    seen = inspection.inspect(rows, files, settings.audit_images, encoding, settings.seed)
    rows = findings.mark(rows, seen.intact)
    audit = findings.audit(rows, seen, settings)
    labels = (rows["label"] == "ai").to_numpy()
    looked_at = seen.pixels.index.to_numpy()
    group_of = rows["group"].to_numpy()[looked_at]
    doubts = noise.find(seen.traces, labels[looked_at], group_of, settings.seed)
    moved = drift.compare(rows, data)
    n_rejected = sum(len(shards.rejected(data, source)) for source in sources)

    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "data_docs", ignore_errors=True)
    figures = findings.figures(rows, n_rejected, audit, doubts, moved, settings)
    problems = expectations.check(rows, findings.details(rows), figures, settings, out / "data_docs")
    result = {
        "passed": not any(problem.severity == "critical" for problem in problems),
        "n_images": len(rows),
        "n_rejected": n_rejected,
        "by_source": _counts(rows, "source"),
        "by_split": _counts(rows, "split"),
        "by_generator": _counts(rows, "generator"),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "duplicates": {
            "exact_within_split": int(rows["repeats_in_split"].sum()),
            "exact_across_splits": int(rows["repeats_train"].sum()),
            "near_across_splits": int(rows["resembles_train"].sum()),
            "label_conflicts": int(rows["conflicting"].sum()),
        },
        "leakage": audit,
        "label_noise": {
            "share": doubts.share,
            "at_least": round(doubts.at_least, 4),
            "auc": doubts.auc,
            "candidates": len(doubts.candidates),
        },
        "drift": moved,
    }
    flagged = findings.flagged(rows, looked_at, doubts)
    stage.replace(out / "flagged.csv", lambda path: flagged.to_csv(path, index=False))
    groups = rows[["shard", "row"]].assign(group=_with_pairs(rows, data, sources))
    stage.replace(out / "groups.parquet", lambda path: groups.to_parquet(path, index=False))
    stage.replace(out / "report.html", lambda path: report.write(result, rows, flagged, files, settings, path))
    stage.replace(out / "report.json", lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))
    return result


def _with_pairs(rows: pd.DataFrame, data: Path, sources: list[str]) -> pd.Series:
    """The groups of copies, joined where images belong together by what their source says."""
    listed = [shards.about(data, source).assign(source=source) for source in sources]
    pairs = pd.concat(listed).dropna(subset=["pair"])[["source", "sha256", "pair"]].drop_duplicates()
    if pairs.empty:
        return rows["group"]
    known = rows.reset_index(names="image")[["image", "source", "sha256", "group"]].merge(
        pairs, on=["source", "sha256"]
    )
    pair = known.groupby(["source", "pair"]).ngroup().to_numpy()
    group, names = pd.factorize(rows["group"])
    # A graph of groups and pairs: an image that is in both joins them.
    nodes = len(names) + int(pair.max()) + 1
    edges = (np.ones(len(known), bool), (group[known["image"]], len(names) + pair))
    component = connected_components(coo_matrix(edges, shape=(nodes, nodes)), directed=False)[1][: len(names)]
    smallest = pd.Series(names).groupby(component).transform("min").to_numpy()
    return pd.Series(smallest[group], rows.index)


def _counts(rows: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    counts = rows.groupby([column, "label"]).size().unstack(fill_value=0)
    return {str(value): {str(k): int(v) for k, v in row.items()} for value, row in counts.iterrows()}


def refuse(report: dict[str, Any], where: Path) -> None:
    """Stop the run if the data fails.

    Raises:
        StageError: with every critical problem.
    """
    if not report["passed"]:
        critical = [p["message"] for p in report["problems"] if p["severity"] == "critical"]
        raise StageError(f"the data is not fit for training: {'; '.join(critical)}. See {where}")
