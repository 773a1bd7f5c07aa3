"""Judge one trained network on images that it has never seen."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from components import images, parallel, shards, stage, tracking
from components.evaluate import decision as decisions
from components.evaluate import metrics as figures
from components.evaluate import robustness
from components.params import Evaluate

PREDICTIONS = ["sha256", "label", "probability", "split"]


def evaluate(
    name: str,
    view: str,
    settings: Evaluate,
    trained: Path,
    index_path: Path,
    arrays: Path,
    data: Path,
    out: Path,
) -> dict[str, Any]:
    """Score the validation and test images, fit the decision on the former, and judge on the latter.

    Args:
        name: of the candidate.
        view: what it sees.
        settings: the section `evaluate`.
        trained: folder that train wrote.
        index_path: from preprocess.
        arrays: from preprocess.
        data: folder of the shards.
        out: folder to write: `metrics.json`, `predictions.parquet`, `decision.json`, pictures and `report.html`.

    Returns:
        What `metrics.json` holds.
    """
    from components.evaluate import plots, report
    from components.networks.inference import Scorer

    index = pd.read_parquet(index_path)
    n_left_out = int(index["split"].isna().sum())
    index = index[index["split"].isin(["validation", "test"])].reset_index(drop=True)
    equalise = json.loads((arrays / "made.json").read_text())["equalise"]
    labels = (index["label"] == "ai").to_numpy()
    held, test = (index["split"] == "validation").to_numpy(), (index["split"] == "test").to_numpy()
    scorer = Scorer(trained / "network.keras")
    logits = _logits(scorer, index, arrays, view)
    decision = decisions.fit(logits[held], labels[held], settings.target_error, settings.max_uncertain)
    p = decision.probabilities(logits)

    result = _judge(index[test], labels[test], p[test], decision, settings)
    result["n_validation"], result["n_left_out"] = int(held.sum()), n_left_out
    files = shards.paths(data, index["source"].unique())
    result["robustness"] = _degraded(scorer, decision, (view, equalise), index[test], files, settings)

    out.mkdir(parents=True, exist_ok=True)
    pictures = [out / "curves.png", out / "scores.png", out / "mistakes.png", out / "examples.png"]
    plots.curves(labels[test], p[test], decision.threshold, result, pictures[0])
    plots.scores_by_label(labels[test], p[test], decision, pictures[1])
    _contact_sheets(index[test], labels[test], p[test], decision, files, pictures[2], pictures[3])
    report.write(name, result, decision, pictures, out / "report.html")
    index.assign(probability=p)[PREDICTIONS].to_parquet(out / "predictions.parquet", index=False)
    (out / "decision.json").write_text(
        json.dumps({**asdict(decision), "view": view, "equalise": equalise}, indent=2) + "\n"
    )
    stage.replace(out / "metrics.json", lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))
    _log(name, trained, result, out)
    return result


def _logits(scorer: Any, index: pd.DataFrame, arrays: Path, view: str) -> np.ndarray:
    logits = np.empty(len(index), np.float32)
    progress = parallel.Progress("images scored", len(index))
    for shard, part in index.groupby("shard"):
        pixels = np.load(arrays / view / f"{shard}.npy", mmap_mode="r")
        for block in parallel.batched(part.index, 1024):
            logits[block] = scorer.logits(pixels[index.loc[block, "row"].to_numpy()])
            progress.add(len(block))
    return logits


def _judge(
    rows: pd.DataFrame, labels: np.ndarray, p: np.ndarray, decision: decisions.Decision, settings: Evaluate
) -> dict[str, Any]:
    def summary(which: np.ndarray) -> dict[str, Any]:
        return figures.summarise(labels[which], p[which], decision.threshold, settings.bootstrap, settings.seed)

    certain = (p < decision.low) | (p >= decision.high)
    right = (p >= decision.threshold) == labels
    generator = rows["generator"]
    # A generator is judged against the real images of the sources that it occurs in.
    against = {
        str(g): (
            (generator == g) | ((rows["label"] == "real") & rows["source"].isin(rows.loc[generator == g, "source"]))
        )
        for g in sorted(generator.dropna().unique())
    }
    return {
        **summary(np.ones(len(p), bool)),
        "uncertain_share": float(1 - certain.mean()),
        "certain_accuracy": float(right[certain].mean()) if certain.any() else None,
        "threshold": decision.threshold,
        "by_source": {str(s): summary((rows["source"] == s).to_numpy()) for s in sorted(rows["source"].unique())},
        "by_generator": {g: summary(which.to_numpy()) for g, which in against.items()},
    }


def _degraded(
    scorer: Any,
    decision: decisions.Decision,
    sight: tuple[str, Any],
    rows: pd.DataFrame,
    files: dict[str, Path],
    settings: Evaluate,
) -> list[dict[str, Any]]:
    if not settings.robustness_images:
        return []
    rows = rows.sample(min(settings.robustness_images, len(rows)), random_state=settings.seed)
    rows = rows.sort_values(["shard", "row"])
    labels = (rows["label"] == "ai").to_numpy()
    batches = parallel.batched((data for _, data in shards.load(files, rows)), 100)
    parts = list(parallel.ordered_map(_degrade, ((batch, *sight) for batch in batches), patience=0))
    entries = []
    for number, (degradation, _, strength) in enumerate(robustness.GRID):
        pixels = np.concatenate([part[number] for part in parts])
        p = decision.probabilities(scorer.logits(pixels))
        scores = figures.summarise(labels, p, decision.threshold, settings.bootstrap, settings.seed)
        entries.append(
            {
                "degradation": degradation,
                "strength": strength,
                "n": len(rows),
                "intervals": {k: scores["intervals"][k] for k in ("accuracy", "balanced_accuracy", "auroc")},
                **{k: scores[k] for k in ("accuracy", "balanced_accuracy", "auroc")},
            }
        )
    return entries


def _degrade(task: tuple[list[bytes], str, Any]) -> list[np.ndarray]:
    batch, view, equalise = task
    decoded = [images.decode(data) for data in batch]
    return [
        np.stack([images.render(images.equalise(function(image, strength), equalise), view) for image in decoded])
        for _, function, strength in robustness.GRID
    ]


def _contact_sheets(
    rows: pd.DataFrame,
    labels: np.ndarray,
    p: np.ndarray,
    decision: decisions.Decision,
    files: dict[str, Path],
    mistakes: Path,
    examples: Path,
) -> None:
    from components.evaluate import plots

    # How far on the wrong side of the threshold, as a share of what is possible there.
    t = decision.threshold
    wrongness = np.where(labels, (t - p) / max(t, 1e-9), (p - t) / max(1 - t, 1e-9))
    worst = rows.index[np.argsort(-wrongness)[: min(24, int((wrongness > 0).sum()))]]
    some = rows.groupby("label").sample(12, random_state=0, replace=True).index.unique()
    score = pd.Series(p, rows.index)
    for chosen, title, path in (
        (worst, "Worst mistakes: label and probability of ai", mistakes),
        (some, "Examples: label and probability of ai", examples),
    ):
        loaded: dict[Any, Image.Image] = {
            row: images.decode(data) for row, data in shards.load(files, rows.loc[chosen])
        }
        plots.examples([(loaded[r], str(rows.loc[r, "label"]), float(score[r])) for r in chosen], title, path)


def _log(name: str, trained: Path, result: dict[str, Any], out: Path) -> None:
    mlflow = tracking.connect()
    run_id = tracking.active(mlflow, json.loads((trained / "training.json").read_text())["run_id"])
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else name):
        mlflow.log_metrics({f"test_{k}": result[k] for k in figures.NAMES if result[k] is not None})
        mlflow.log_artifacts(str(out), "evaluation")
