"""The model card (Mitchell et al. 2019): what a version is, what it was trained on, and what to expect of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluate import report
from components.evaluate.decision import Decision
from components.params import Evaluate
from components.robustness import describe


def write(
    name: str,
    views: Mapping[str, str],
    metrics: dict[str, Any],
    decision: Decision,
    settings: Evaluate,
    trained_on: list[dict[str, Any]],
    path: Path,
) -> None:
    """Write the card in Markdown. What stands before its first heading is its short form.

    Args:
        name: of the candidate.
        views: what its members see, by their names.
        metrics: what `metrics.json` holds.
        decision: that was fitted.
        settings: the section `evaluate`.
        trained_on: a dict for each source: `source`, `ai` and `real` (images), `generators`, `licences`.
        path: the file to write.
    """
    low, high = metrics["intervals"]["balanced_accuracy"]
    images = sum(source["ai"] + source["real"] for source in trained_on)
    what = (
        "the average of " + ", ".join(f"`{m}` (sees `{v}`)" for m, v in views.items())
        if len(views) > 1
        else f"one network that sees `{next(iter(views.values()))}`"
    )
    lines = [
        f"# {name}",
        "",
        f"A detector of AI-generated images: {what}. Trained on {images:,} images from "
        f"{', '.join(source['source'] for source in trained_on)}. Balanced accuracy {metrics['balanced_accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}), AUROC {metrics['auroc']:.4f} on {metrics['n']:,} held-out images of "
        f"the same sources; {metrics['uncertain_share']:.1%} of the answers are `uncertain`. On images from elsewhere "
        "it is worse, often much worse: it is a hint and no proof.",
        *(["", sentence] if (sentence := report.unseen(metrics)) else []),
        "",
        "## Use and limits",
        "",
        "- For: a first look at one picture or many, beside other evidence. `uncertain` is an answer.",
        "- Not for: accusing a person, or deciding anything about a picture alone and unseen.",
        "- A picture that a person painted over, or that was generated in part, is neither class; it was not trained "
        "on that.",
        "- A generator, a camera or an edit that the training data lacks can turn any answer around. "
        "`trueframe generalise` measures it.",
        "",
        "## Trained on",
        "",
        _table(
            ["source", "ai", "real", "generators", "licence"],
            [
                [
                    source["source"],
                    f"{source['ai']:,}",
                    f"{source['real']:,}",
                    _some(source["generators"]) or "not named",
                    _some(source["licences"]) or "as its publisher states: `trueframe sources`",
                ]
                for source in trained_on
            ],
        ),
        "",
        f"## Scores on {metrics['n']:,} test images",
        "",
        _table(
            ["", "value", "95 % interval"],
            [[key, report.number(metrics[key]), _interval(metrics, key)] for key in metrics["intervals"]],
        ),
    ]
    for title, key in (("By label", "by_label"), ("By source", "by_source"), ("By generator", "by_generator")):
        if metrics[key]:
            score = "accuracy" if key == "by_label" else "balanced_accuracy"
            rows = [[g, f"{m['n']:,}", report.number(m[score]), _interval(m, score)] for g, m in metrics[key].items()]
            lines += ["", f"### {title}", "", _table(["", "images", score.replace("_", " "), "95 % interval"], rows)]
    if metrics["robustness"]:
        rows = [
            [
                describe(e["degradation"], e["strength"]),
                report.number(e["balanced_accuracy"]),
                _interval(e, "balanced_accuracy"),
            ]
            for e in metrics["robustness"]
        ]
        title = f"### Degraded ({metrics['robustness'][0]['n']:,} of the test images)"
        lines += ["", title, "", _table(["", "balanced accuracy", "95 % interval"], rows)]
    lines += ["", "## How a score becomes an answer", "", report.explained(metrics, decision, settings), ""]
    path.write_text("\n".join(lines))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _interval(scores: dict[str, Any], key: str) -> str:
    interval = scores["intervals"][key]
    return "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _some(names: list[str]) -> str:
    """The first ten."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
