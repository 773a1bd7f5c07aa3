"""One HTML page that a person reads."""

from html import escape
from pathlib import Path
from typing import Any

from components import page
from components.evaluate import plots

_TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "auroc": "Area under the ROC curve",
    "average_precision": "Average precision",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
    "tpr_at_fpr_01": "ai found at 1 % false alarms",
    "tpr_at_fpr_05": "ai found at 5 % false alarms",
}


def write(name: str, metrics: dict[str, Any], decision: Any, pictures: list[Path], path: Path) -> None:
    """Write the report: headline, metrics with intervals, by source, by generator, degraded, pictures."""
    value, (low, high) = metrics["balanced_accuracy"], metrics["intervals"]["balanced_accuracy"]
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p><span class=big>{value:.1%}</span> balanced accuracy on {metrics['n']:,} held-out test images "
        f"(95 % interval {low:.1%} to {high:.1%}).</p>",
        f"<p class=quiet>{metrics['uncertain_share']:.1%} of them are called uncertain; of the others "
        f"{metrics['certain_accuracy']:.1%} are right. Threshold {decision.threshold:.3f}, uncertain from "
        f"{decision.low:.3f} to {decision.high:.3f}, temperature {decision.temperature:.2f}, all fitted on "
        f"{metrics['n_validation']:,} validation images.</p>",
        *(
            [
                f"<p class=quiet>{metrics['n_left_out']:,} more images of the published test and validation sets copy "
                "a training image; they are left out.</p>"
            ]
            if metrics["n_left_out"]
            else []
        ),
        "<p class=quiet>These figures hold for images like the ones it was trained on. On other generators and other "
        "cameras a detector is worse, often much worse.</p>",
        "<h2>Metrics</h2>",
        page.table(
            ["", "value", "95 % interval"],
            [[title, _number(metrics[key]), _interval(metrics["intervals"][key])] for key, title in _TITLES.items()],
        ),
    ]
    for title, groups in (("By source", metrics["by_source"]), ("By generator", metrics["by_generator"])):
        if groups:
            keys = ["balanced_accuracy", "auroc", "recall"]
            rows = [
                [group, f"{m['n']:,}", *(_number(m[k]) for k in keys), _interval(m["intervals"][keys[0]])]
                for group, m in groups.items()
            ]
            head = ["", "images", "balanced accuracy", "AUROC", "ai found", "interval of the first"]
            parts += [f"<h2>{title}</h2>", page.table(head, rows)]
    if metrics["robustness"]:
        rows = [
            [r["degradation"], f"{r['strength']:g}", _number(r["balanced_accuracy"]), _number(r["auroc"])]
            for r in metrics["robustness"]
        ]
        n = metrics["robustness"][0]["n"]
        parts += [
            f"<h2>Degraded</h2><p class=quiet>{n:,} of the test images, at the same threshold.</p>",
            page.table(["", "strength", "balanced accuracy", "AUROC"], rows),
        ]
    parts.append("<h2>Pictures</h2>")
    parts += [page.picture(plots.png(picture), picture.stem) for picture in pictures]
    page.write(path, f"{name}: evaluation", parts)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(value: list[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.4f} to {value[1]:.4f}"
