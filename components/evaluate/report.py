"""One HTML page that a person reads."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from components import page
from components.detector import wording
from components.evaluate import plots
from components.evaluate.decision import Decision
from components.params import Evaluate
from components.robustness import describe

_MEANINGS = {
    "balanced_accuracy": ("Balanced accuracy", "right answers, both classes counting alike; guessing gives 0.5"),
    "accuracy": ("Accuracy", "right answers among all images"),
    "auroc": ("Area under the ROC curve", "how often an ai image scores above a real one; guessing gives 0.5"),
    "average_precision": ("Average precision", "the area under the curve of precision and recall"),
    "precision": ("Precision", "of those called ai, how many are"),
    "recall": ("Recall", "of the ai images, how many are found"),
    "f1": ("F1", "the harmonic mean of the two"),
    "ece": ("Calibration error", "how far the probabilities are off, on average (ECE); 0 is best"),
    "brier": ("Brier score", "mean squared error of the probabilities; 0 is best, saying 0.5 to all gives 0.25"),
    "tpr_at_fpr_01": ("ai found at 1 % false alarms", "if the threshold let one real image in a hundred be called ai"),
    "tpr_at_fpr_05": ("ai found at 5 % false alarms", "the same with five in a hundred"),
}


def write(
    name: str,
    members: list[str],
    metrics: dict[str, Any],
    decision: Decision,
    settings: Evaluate,
    pictures: dict[str, Path],
    path: Path,
) -> None:
    """Write the report: what to expect of it, the groups, degraded images, the decision, pictures.

    Args:
        name: of the candidate.
        members: the models that it is made of.
        metrics: what `metrics.json` holds.
        decision: that was fitted.
        settings: the section `evaluate`.
        pictures: PNG files by what they show.
        path: the file to write.
    """
    value, (low, high) = metrics["balanced_accuracy"], metrics["intervals"]["balanced_accuracy"]
    made_of = f" An ensemble of {', '.join(map(escape, members))}." if len(members) > 1 else ""
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p><span class=big>{value:.1%}</span> balanced accuracy on {metrics['n']:,} test images that it has never "
        f"seen (95 % interval {low:.1%} to {high:.1%}; guessing gives 50 %).{made_of}</p>",
        f"<p><b>{sentence}</b></p>" if (sentence := unseen(metrics)) else "",
        f"<ul>{''.join(f'<li>{line}</li>' for line in _findings(metrics))}</ul>",
        "<p><b>The other figures hold for images like the ones that it was trained on.</b> On other generators and "
        "other cameras a detector is worse, often much worse. <code>trueframe generalise</code> measures by how "
        "much.</p>",
        *_collections(metrics, pictures),
        "<h2>Scores</h2>",
        page.table(
            ["", "value", "95 % interval", "what it is"],
            [
                [title, number(metrics[key]), _interval(metrics["intervals"][key]), page.Cell(meaning)]
                for key, (title, meaning) in _MEANINGS.items()
            ],
        ),
        _picture(pictures["curves"], "ROC curve, precision and recall, confusion matrix, reliability"),
        *_groups(metrics),
        *_degraded(metrics, pictures["robustness"]),
        *_decided(metrics, decision, settings, pictures),
        *_evidence(metrics["explanation"], pictures["explanations"]),
        "<h2>Its worst mistakes</h2><p class=quiet>The test images with the surest wrong answers: what each is, and "
        "the probability of ai that it got. Some may be wrong labels.</p>",
        _picture(pictures["mistakes"], "the worst mistakes"),
        "<h2>Some of the test images</h2><p class=quiet>Drawn at random.</p>",
        _picture(pictures["examples"], "examples"),
        "<p class=quiet><a href='model_card.md'>model_card.md</a> is this in short, <a href='metrics.json'>"
        "metrics.json</a> all figures, predictions.parquet the score of every image.</p>",
    ]
    page.write(path, f"{name}: evaluation", parts)


def unseen(metrics: dict[str, Any]) -> str:
    """What to expect of it on pictures from elsewhere, in a sentence; empty where no collection was left out."""
    found = metrics.get("left_out")
    if not found:
        return ""
    return (
        f"{wording.sentence(metrics)} Balanced accuracy {found['balanced_accuracy']:.1%}, AUROC {found['auroc']:.3f}; "
        "threshold, band and probability were fitted on these."
    )


def _collections(metrics: dict[str, Any], pictures: dict[str, Path]) -> Iterable[str]:
    found = metrics.get("left_out")
    if not found:
        return
    worst = sorted(found["by_collection"], key=lambda row: row["right"])
    yield "<h2>Collections that it never saw, the worst first</h2>"
    yield page.table(
        ["collection", "label", "images", "right", "called ai", "uncertain", "called real"],
        [
            [
                row["collection"],
                row["label"],
                f"{row['n']:,}",
                *(f"{row[key]:.0%}" for key in ("right", "called_ai", "called_uncertain", "called_real")),
            ]
            for row in worst
        ],
    )
    yield _picture(pictures["collections"], "of the worst collections the surest wrong answers")


def _findings(metrics: dict[str, Any]) -> Iterable[str]:
    """What to take home, in sentences."""
    by_label = metrics["by_label"]
    if {"ai", "real"} <= by_label.keys():
        missed, alarms = (1 - by_label[label]["accuracy"] for label in ("ai", "real"))
        yield f"It misses {missed:.1%} of the ai images, and calls {alarms:.1%} of the real ones ai."
    if metrics["certain_accuracy"] is not None:
        real = metrics["certain_by_label"]["real"]
        yield (
            f"It says “uncertain” to {metrics['uncertain_share']:.1%} of the images. Of its other answers "
            f"{metrics['certain_accuracy']:.1%} are right"
            + (f", of those to real images {real:.1%}." if real is not None else ".")
        )
    entries = [e for e in metrics["robustness"] if e["balanced_accuracy"] is not None]
    if entries:
        worst = min(entries, key=lambda e: e["balanced_accuracy"])
        words = describe(worst["degradation"], worst["strength"])
        yield (
            f"Of {len(entries)} ways to degrade an image, it is worst on those {words}: balanced accuracy "
            f"{worst['balanced_accuracy']:.1%}."
        )
    found = {g: m["recall"] for g, m in metrics["by_generator"].items() if m["recall"] is not None}
    if len(found) > 1:
        hardest = min(found, key=lambda g: found[g])
        yield f"The generator that it misses most is {escape(hardest)}: {found[hardest]:.1%} of its images are found."
    yield f"When it says 80 %, it means it to within {metrics['ece']:.1%} on average (calibration error)."
    if metrics["regression"]["n"]:
        yield (
            f"Of {metrics['regression']['n']:,} mistakes that users reported and that it never trained on, it gets "
            f"{metrics['regression']['right']:,} right."
        )
    if metrics["n_left_out"]:
        yield (
            f"{metrics['n_left_out']:,} images of the published test and validation sets copy a training image; they "
            "are left out."
        )


def _groups(metrics: dict[str, Any]) -> Iterable[str]:
    yield "<h2>By label</h2>"
    yield page.table(
        ["", "images", "right answers", "95 % interval"],
        [
            [label, f"{m['n']:,}", number(m["accuracy"]), _interval(m["intervals"]["accuracy"])]
            for label, m in metrics["by_label"].items()
        ],
    )
    for title, key, note in (
        ("By source", "by_source", ""),
        ("By generator", "by_generator", "Each beside the real images of the sources that it occurs in."),
    ):
        if len(metrics[key]) > 1:
            rows = [
                [
                    group,
                    f"{m['n']:,}",
                    number(m["balanced_accuracy"]),
                    _interval(m["intervals"]["balanced_accuracy"]),
                    number(m["auroc"]),
                    number(m["recall"]),
                    page.bars(("after", m["accuracy"])),
                ]
                for group, m in sorted(metrics[key].items(), key=lambda item: item[1]["accuracy"])
            ]
            head = ["", "images", "balanced accuracy", "95 % interval", "AUROC", "ai found", "right answers"]
            yield f"<h2>{title}</h2>" + (f"<p class=quiet>{note}</p>" if note else "")
            yield page.table(head, rows)


def _degraded(metrics: dict[str, Any], picture: Path) -> Iterable[str]:
    entries = metrics["robustness"]
    if not entries:
        return
    yield (
        f"<h2>After a re-save, blur, noise</h2><p class=quiet>{entries[0]['n']:,} of the test images, each degraded in "
        "every way, judged at the same threshold. Where the AUROC stays and the rest falls, the scores have moved "
        "past the threshold.</p>"
    )
    yield _picture(picture, "balanced accuracy under degradation")
    yield page.table(
        ["", "balanced accuracy", "95 % interval", "AUROC", "ai found", "real called real"],
        [
            [
                describe(e["degradation"], e["strength"]),
                number(e["balanced_accuracy"]),
                _interval(e["intervals"]["balanced_accuracy"]),
                *(number(e[key]) for key in ("auroc", "recall", "real_accuracy")),
            ]
            for e in entries
        ],
    )


def _decided(
    metrics: dict[str, Any], decision: Decision, settings: Evaluate, pictures: dict[str, Path]
) -> Iterable[str]:
    yield "<h2>How a score becomes an answer</h2>"
    yield f"<p>{escape(explained(metrics, decision, settings))}</p>"
    yield _picture(pictures["scores"], "scores of both labels, threshold and uncertain band")
    yield (
        "<p class=quiet>How often it is wrong when it answers only where it is surest: leaving more images uncertain "
        "leaves fewer errors.</p>"
    )
    yield _picture(pictures["risk"], "risk and coverage")


def _evidence(explanation: dict[str, Any], picture: Path) -> Iterable[str]:
    yield "<h2>Where it sees it</h2>"
    if explanation["method"] == "class activation":
        how = "Class activation maps: what each place adds to the score; exact, for this kind of network."
        agreement = explanation["occlusion_correlation"]
        if agreement is not None:
            how += (
                " Blurring the picture patch by patch, which asks the network in another way, ranks the patches alike "
                f"with a correlation of {agreement:.2f} (1 the same, 0 unrelated; where it is low, no map "
                "tells the whole story)."
            )
    else:
        how = "By occlusion: how far the score falls when a patch is blurred."
    yield f"<p class=quiet>Red speaks for ai, blue for real. {how}</p>"
    yield _picture(picture, "evidence in some images")


def explained(metrics: dict[str, Any], decision: Decision, settings: Evaluate) -> str:
    """How calibration, threshold and uncertain band came about."""
    mixed = (
        f"as they are and as many of them degraded (at most {settings.degraded_images:,}), each in a way of its own"
        if settings.degraded_images
        else "as they are"
    )
    both = ", in this mixture and as they are" if settings.degraded_images else ""
    band = (
        f"From {decision.low:.3f} to {decision.high:.3f} it is “uncertain”: as wide a band as "
        f"{settings.target_error:.0%} wrong answers on these images ask for, that leaves no more than "
        f"{settings.max_uncertain:.0%} of them aside."
        if decision.high > decision.low
        else f"No band of “uncertain” was needed for {settings.target_error:.0%} wrong answers."
    )
    return (
        f"From a probability of {decision.threshold:.3f} on the label is ai. This threshold has the best balanced "
        f"accuracy on {metrics['n_validation']:,} validation images {mixed}, among those that call at least "
        f"{settings.min_real_accuracy:.0%} of the real ones real{both}. {band} Probabilities are calibrated on the "
        f"validation images as they are (temperature {decision.temperature:.2f})."
    )


def _picture(path: Path, says: str) -> str:
    return page.picture(plots.png(path), says)


def number(value: float | None) -> str:
    """Four digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def _interval(value: list[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.4f} to {value[1]:.4f}"
