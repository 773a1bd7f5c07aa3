"""The pictures of a report."""

import io
from datetime import datetime
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import dates
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from components.monitor.drift import Pairs

_COLOURS = {"real": "#2a6f97", "ai": "#c8553d", "uncertain": "#8d99ae", "error": "#222222"}
_BEFORE, _NOW = "#8d99ae", "#2a6f97"
_SHOWN = 300  # reports


def distributions(pairs: Pairs, drifted: set[str]) -> bytes:
    """Histograms before and now, those that drifted with a red title."""
    columns = 3
    lines = max(1, -(-len(pairs) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(10, 2.2 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, (name, pair) in zip(axes.flat, pairs.items(), strict=False):
        before, now = (values.dropna() for values in pair)
        if pd.api.types.is_numeric_dtype(before.dtype):
            both = np.concatenate([before.to_numpy(float), now.to_numpy(float)])
            low, high = np.quantile(both, [0.005, 0.995]) if len(both) else (0, 1)
            bins = np.linspace(low, high if high > low else low + 1, 31)
            for values, colour in ((before, _BEFORE), (now, _NOW)):
                weights = np.full(len(values), 1 / max(1, len(values)))
                axis.hist(np.clip(values, bins[0], bins[-1]), bins, weights=weights, color=colour, alpha=0.6)
        else:
            shares = [part.value_counts(normalize=True) for part in (before, now)]
            words = sorted(set(shares[0].index) | set(shares[1].index))
            places = np.arange(len(words))
            for share, colour, by in zip(shares, (_BEFORE, _NOW), (-0.2, 0.2), strict=True):
                axis.bar(places + by, [share.get(word, 0) for word in words], 0.4, color=colour)
            axis.set_xticks(places, words)
        axis.set_title(name.replace("_", " "), color=_COLOURS["ai"] if name in drifted else "black")
        axis.set_yticks([])
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (_BEFORE, _NOW)]
    figure.legend(handles, ["training", "now"], loc="outside upper right", ncols=2)
    return _png(figure)


def volume(rows: pd.DataFrame, since: datetime, until: datetime) -> bytes:
    """Predictions over the window by verdict."""
    figure, axis = plt.subplots(figsize=(10, 2.6), layout="constrained")
    edges = np.linspace(dates.date2num(since), dates.date2num(until), 49)
    verdicts = rows["verdict"].where(rows["error"].isna(), "error")
    base = np.zeros(len(edges) - 1)
    for name, colour in _COLOURS.items():
        counts, _ = np.histogram(dates.date2num(rows.loc[verdicts == name, "time"]), edges)
        axis.bar(edges[:-1], counts, width=edges[1] - edges[0], bottom=base, align="edge", color=colour, label=name)
        base = base + counts
    axis.xaxis_date()
    axis.set(ylabel="predictions", xlim=(since, until))
    axis.legend(ncols=4, loc="upper left")
    return _png(figure)


def history(reports: list[dict[str, Any]]) -> bytes:
    """The largest shift, and the shares, of the reports so far."""
    shown = reports[-_SHOWN:]
    at = [datetime.fromisoformat(report["at"]) for report in shown]
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 4), layout="constrained", sharex=True)
    shifts = [max(report["psi"].values(), default=np.nan) for report in shown]
    above.plot(at, shifts, ".-", color=_NOW, label="largest stability index")
    scores = [report["psi"].get("probability", np.nan) for report in shown]
    above.plot(at, scores, ".-", color=_COLOURS["ai"], label="of the scores")
    above.set(ylim=(0, None))
    for key, name in (("uncertain_share", "uncertain"), ("error_share", "error")):
        values = [np.nan if report[key] is None else report[key] for report in shown]
        below.plot(at, values, ".-", color=_COLOURS[name], label=f"share of {name}")
    reported = [np.nan if report["reported_share"] is None else report["reported_share"] for report in shown]
    below.plot(at, reported, ".-", color=_COLOURS["ai"], label="share reported as wrong")
    for axis in (above, below):
        axis.legend(loc="upper left", ncols=3)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()
