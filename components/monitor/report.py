"""The page on the last window, and its figures for Prometheus."""

from collections.abc import Iterable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from components import page
from components.monitor import drift, plots

_WORDS = {"ok": "nothing unusual", "too few": "too few predictions to judge drift", "trouble": "something has changed"}


def write(
    result: dict[str, Any], rows: pd.DataFrame, pairs: drift.Pairs, history: list[dict[str, Any]], path: Path
) -> None:
    """Write the page: the verdict, problems, drift, volume, versions, feedback, and how it went before.

    Args:
        result: what `report.json` holds.
        rows: predictions of the window.
        pairs: what was compared.
        history: of reports, this one last.
        path: the file to write.
    """
    since, at = (datetime.fromisoformat(result[key]) for key in ("since", "at"))
    parts = [
        "<h1>The last predictions</h1>",
        f"<p><span class=big>{escape(_WORDS[result['status']])}</span></p>",
        f"<p class=quiet>{result['n']:,} predictions from {since:%Y-%m-%d %H:%M} to {at:%Y-%m-%d %H:%M} UTC, of "
        f"{result['n_images']:,} different pictures.</p>",
        *(f"<p class=quiet>{escape(note)}</p>" for note in result["notes"]),
        "<h2>Problems</h2>",
        page.table(
            ["check", "what"],
            [[problem["check"], page.Cell(escape(problem["message"]))] for problem in result["problems"]],
        )
        if result["problems"]
        else "<p>None.</p>",
        *(f"<p><b>A reason to retrain:</b> {escape(reason)}</p>" for reason in result["retrain"]),
        *_drift(result, pairs),
        "<h2>Predictions</h2>",
        page.table(["", ""], list(_figures(result))),
        page.picture(plots.volume(rows, since, at), "predictions by verdict over the window"),
        *_versions(result),
        *_feedback(result["feedback"]),
    ]
    if len(history) > 1:
        parts += ["<h2>Before</h2>", page.picture(plots.history(history), "shifts and shares of earlier reports")]
    page.write(path, "Monitoring", parts)


def _figures(result: dict[str, Any]) -> Iterable[list[str]]:
    verdicts, latency = result["verdicts"], result["latency"]
    yield ["ai, real, uncertain", ", ".join(f"{verdicts.get(v, 0):,}" for v in ("ai", "real", "uncertain"))]
    yield ["share of uncertain verdicts", _percent(result["uncertain_share"])]
    yield ["share with a warning", _percent(result["warned_share"])]
    yield ["share without a verdict (errors)", _percent(result["error_share"])]
    yield ["usual number of predictions", "–" if result["usual"] is None else f"{result['usual']:,.0f}"]
    if latency["median"] is not None:
        yield ["latency, median and 95th percentile", f"{latency['median']:.3f} s, {latency['p95']:.3f} s"]


def _drift(result: dict[str, Any], pairs: drift.Pairs) -> Iterable[str]:
    if not result["drift"]:
        return
    yield (
        "<h2>Compared with the training data</h2><p class=quiet>Each picture counts once. The distance is Kolmogorov "
        "and Smirnov’s (of words the total variation), the stability index the usual PSI: above 0.1 a moderate shift, "
        "above 0.25 a large one. Drift is what is both large and sure.</p>"
    )
    yield page.table(
        ["", "stability index", "distance", "p", "training", "now", ""],
        [
            [
                shift["name"].replace("_", " "),
                f"{shift['psi']:.3f}",
                f"{shift['distance']:.3f}",
                f"{shift['p']:.2g}",
                shift["before"],
                shift["now"],
                page.Cell("<span class=critical>drift</span>" if shift["drifted"] else ""),
            ]
            for shift in result["drift"]
        ],
    )
    shown = {shift["name"]: pairs[shift["name"]] for shift in result["drift"]}
    drifted = {shift["name"] for shift in result["drift"] if shift["drifted"]}
    yield page.picture(plots.distributions(shown, drifted), "distributions before and now")


def _versions(result: dict[str, Any]) -> Iterable[str]:
    yield "<h2>By version</h2>"
    yield page.table(
        ["version", "predictions", "uncertain", "mean probability of ai", "reports", "of these right"],
        [
            [
                version,
                f"{of['n']:,}",
                _percent(of["uncertain_share"]),
                f"{of['mean_probability']:.3f}",
                f"{of['feedback']['n']:,}",
                _percent(of["feedback"]["accuracy"]),
            ]
            for version, of in result["versions"].items()
        ],
    )


def _feedback(said: dict[str, Any]) -> Iterable[str]:
    yield (
        "<h2>Reports</h2><p class=quiet>Whom the detector convinces doesn’t report: the share of right verdicts among "
        "reports is far below the share among all.</p>"
    )
    statuses = ", ".join(f"{n:,} {status}" for status, n in said["by_status"].items())
    yield page.table(
        ["", ""],
        [
            ["reports in this window", f"{said['reports']:,}"],
            ["pictures of this window that were reported as wrong", f"{said['reported']:,}"],
            ["share of these", _percent(said["reported_share"])],
            ["right verdicts among this window’s accepted reports", _percent(said["judged_accuracy"])],
            ["all reports", statuses or "none"],
            ["accepted and not in the data yet", f"{said['new']:,}"],
        ],
    )


def metrics(result: dict[str, Any], path: Path) -> None:
    """Write the figures in Prometheus' text format, for the textfile collector of its node exporter."""
    registry = CollectorRegistry()

    def gauge(name: str, what: str, values: dict[str, float | None], label: str | None = None) -> None:
        made = Gauge(f"trueframe_monitor_{name}", what, [label] if label else [], registry=registry)
        for key, value in values.items():
            if value is not None:
                (made.labels(key) if label else made).set(value)

    drifted: dict[str, float | None] = {shift["name"]: float(shift["drifted"]) for shift in result["drift"]}
    gauge("time_seconds", "When the report was made", {"": datetime.fromisoformat(result["at"]).timestamp()})
    gauge("predictions", "Predictions in the window", {"": result["n"]})
    gauge("images", "Different pictures in the window", {"": result["n_images"]})
    gauge("problems", "Problems found", {"": len(result["problems"])})
    gauge("psi", "Population stability index", {s["name"]: s["psi"] for s in result["drift"]}, "statistic")
    gauge("drift", "Whether a statistic drifted", drifted, "statistic")
    shares: dict[str, float | None] = {key: result[f"{key}_share"] for key in ("uncertain", "warned", "error")}
    gauge("share", "Share of predictions", shares | {"reported": result["feedback"]["reported_share"]}, "what")
    gauge("new_feedback", "Accepted reports that are not in the data", {"": result["feedback"]["new"]})
    write_to_textfile(str(path), registry)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
