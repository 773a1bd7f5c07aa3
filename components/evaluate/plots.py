"""The pictures of an evaluation."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from components.robustness import describe

_AI, _REAL, _GREY = "#c8553d", "#2a6f97", "#8d99ae"


def curves(labels: np.ndarray, p: np.ndarray, threshold: float, scores: dict[str, Any], path: Path) -> None:
    """ROC and precision-recall curves with the operating point, confusion matrix and reliability diagram."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
    fpr, tpr, _ = roc_curve(labels, p)
    said = p >= threshold
    at = (said & ~labels).sum() / (~labels).sum(), (said & labels).sum() / labels.sum()
    axes[0, 0].plot(fpr, tpr, color=_AI)
    axes[0, 0].plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    axes[0, 0].plot(*at, "o", color="black", label=f"threshold {threshold:.2f}")
    axes[0, 0].set(
        title=f"ROC, area {scores['auroc']:.4f}", xlabel="real images called ai", ylabel="ai images called ai"
    )
    axes[0, 0].legend(loc="lower right")

    precision, recall, _ = precision_recall_curve(labels, p)
    axes[0, 1].plot(recall, precision, color=_AI)
    axes[0, 1].set(
        title=f"Precision and recall, average precision {scores['average_precision']:.4f}",
        xlabel="recall",
        ylabel="precision",
        ylim=(min(0.45, precision.min()), 1.02),
    )

    counts = np.array(
        [[(~said & ~labels).sum(), (said & ~labels).sum()], [(~said & labels).sum(), (said & labels).sum()]]
    )
    axes[1, 0].imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for i in range(2):
        for j in range(2):
            share = counts[i, j] / counts[i].sum()
            colour = "white" if share > 0.5 else "black"
            axes[1, 0].text(j, i, f"{counts[i, j]:,}\n{share:.1%}", ha="center", va="center", color=colour, size=13)
    axes[1, 0].set(
        title="Confusion matrix",
        xticks=[0, 1],
        xticklabels=["called real", "called ai"],
        yticks=[0, 1],
        yticklabels=["is real", "is ai"],
    )

    edges = np.linspace(0, 1, 11)
    which = np.clip(np.digitize(p, edges) - 1, 0, 9)
    filled = [b for b in range(10) if (which == b).any()]
    axes[1, 1].plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    axes[1, 1].plot(
        [p[which == b].mean() for b in filled], [labels[which == b].mean() for b in filled], "o-", color=_AI
    )
    axes[1, 1].bar(
        edges[:-1] + 0.05,
        [(which == b).mean() for b in range(10)],
        width=0.09,
        color=_GREY,
        alpha=0.4,
        label="share of images",
    )
    axes[1, 1].set(
        title=f"Reliability, calibration error {scores['ece']:.4f}",
        xlabel="probability of ai",
        ylabel="share that is ai",
    )
    axes[1, 1].legend(loc="upper left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def scores_by_label(labels: np.ndarray, p: np.ndarray, decision: Any, path: Path) -> None:
    """Histograms of the probability for both labels, with the threshold and the uncertain band."""
    figure, axis = plt.subplots(figsize=(10, 3), layout="constrained")
    bins = [i / 50 for i in range(51)]
    axis.hist(p[~labels], bins, color=_REAL, alpha=0.6, label="real")
    axis.hist(p[labels], bins, color=_AI, alpha=0.6, label="ai")
    axis.axvspan(decision.low, decision.high, color=_GREY, alpha=0.25, label="uncertain")
    axis.axvline(decision.threshold, color="black", linewidth=1, label="threshold")
    axis.set(yscale="log", xlabel="probability of ai", ylabel="test images")
    axis.legend(ncols=4, loc="upper center")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def risk_coverage(scores: dict[str, Any], path: Path) -> None:
    """How often the answer is wrong among the surest images, with the point at which the uncertain band leaves it."""
    figure, axis = plt.subplots(figsize=(10, 3), layout="constrained")
    points = scores["risk_coverage"]
    axis.plot([q["coverage"] for q in points], [q["risk"] for q in points], color=_AI)
    if scores["certain_accuracy"] is not None:
        at = 1 - scores["uncertain_share"], 1 - scores["certain_accuracy"]
        axis.plot(*at, "o", color="black", label=f"answered: {at[0]:.0%}, of these wrong: {at[1]:.1%}")
        axis.legend(loc="upper left")
    axis.set(xlabel="share of images that get an answer, the surest first", ylabel="share of wrong answers")
    axis.set(xlim=(0, 1.02), ylim=(0, None))
    _percent(axis.xaxis, axis.yaxis)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def robustness(scores: dict[str, Any], path: Path) -> None:
    """Balanced accuracy under each degradation with its interval, beside that of the images as they are."""
    entries = scores["robustness"]
    figure, axis = plt.subplots(figsize=(10, 0.24 * len(entries) + 1), layout="constrained")
    low = 0.5
    for row, entry in enumerate(entries):
        value, interval = entry["balanced_accuracy"], entry["intervals"]["balanced_accuracy"]
        if value is not None:
            axis.barh(row, value, color=_REAL, alpha=0.75)
            axis.plot(interval, [row, row], color="black", linewidth=1)
            low = min(low, value)
    axis.axvline(scores["balanced_accuracy"] or 0, color=_AI, label="images as they are")
    axis.axvline(0.5, color=_GREY, linestyle="--", label="guessing")
    names = [describe(entry["degradation"], entry["strength"]) for entry in entries]
    axis.set(yticks=range(len(entries)), yticklabels=names, xlim=(max(0, low - 0.05), 1), xlabel="balanced accuracy")
    axis.invert_yaxis()
    _percent(axis.xaxis)
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def examples(rows: list[tuple[Image.Image, str, float]], path: Path, of: Sequence[str] = ()) -> None:
    """A contact sheet: images with their label and their score, and under these what each is one of."""
    columns = 8
    lines = max(1, -(-len(rows) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(10, 1.5 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (image, label, p), name in zip(axes.flat, rows, of or [""] * len(rows), strict=False):
        image.thumbnail((128, 128))
        axis.imshow(image)
        title = f"is {label}, scored {p:.2f}" + (f"\n{textwrap.shorten(name, 26, placeholder='…')}" if name else "")
        axis.set_title(title, color=_AI if label == "ai" else _REAL, size=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def explanations(rows: list[tuple[Image.Image, Image.Image, str, float]], path: Path) -> None:
    """Images in one line, each above its evidence."""
    figure, axes = plt.subplots(2, max(1, len(rows)), figsize=(10, 2.9), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (above, below), (image, overlay, label, p) in zip(axes.T, rows, strict=False):
        above.imshow(image.resize(overlay.size))
        below.imshow(overlay)
        above.set_title(f"is {label}, scored {p:.2f}", color=_AI if label == "ai" else _REAL, size=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _percent(*axes: Any) -> None:
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1, decimals=None))


def png(path: Path) -> bytes:
    """The bytes of a written picture, reduced to a palette where that saves much."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").quantize(255).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
