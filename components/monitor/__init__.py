"""What the last predictions say: has what is asked for changed, and does the detector still do?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from components import predictions, stage
from components.monitor import drift, feedback, reference
from components.params import Monitor
from components.serve.reference import title

HISTORY = "history.jsonl"
_KEPT = 2000  # reports in the history
_QUIET = 0.2  # of the usual number of predictions, below which something is wrong
_WINDOWS = 7  # before this one, that say what is usual


@dataclass(frozen=True)
class Inputs:
    """Where things are.

    Attributes:
        predictions: folder of the log.
        feedback: folder of reports.
        data: folder of the shards.
        index: of all images.
    """

    predictions: Path
    feedback: Path
    data: Path
    index: Path


def monitor(
    settings: Monitor, model: str, sources: Sequence[str], inputs: Inputs, out: Path, now: datetime
) -> tuple[dict[str, Any], pd.DataFrame, drift.Pairs]:
    """Look at the predictions of the last window.

    Args:
        settings: the section `monitor`.
        model: name of the registered model.
        sources: that trainings take in.
        inputs: where things are.
        out: folder of the reports; what is compared with is kept here.
        now: the end of the window.

    Returns:
        What `report.json` holds; the rows of the window; and what was compared, by statistic, before and now.

    Raises:
        StageError: there is nothing to compare with.
    """
    since = now - timedelta(hours=settings.window_hours)
    rows = predictions.read(inputs.predictions, since, now)
    judged = rows[rows["error"].isna()]
    different = judged.drop_duplicates("sha256", keep="last")
    before = reference.images(inputs.data, inputs.index, settings.reference_images, out / "reference.parquet")
    notes: list[str] = []
    is_enough = len(different) >= settings.min_images
    if not is_enough:
        notes.append(
            f"{len(different):,} different pictures were judged; drift is judged from {settings.min_images:,} on "
            "(monitor.min_images)"
        )
    pairs = _pairs(model, before, different, out, notes) if is_enough else {}
    shifts = drift.compare(pairs, settings.significance, settings.min_shift)
    reports = feedback.read(inputs.feedback)
    said = _feedback(settings, reports, different, inputs.data, sources, since, now)
    result = {
        "at": now.isoformat(timespec="seconds"),
        "since": since.isoformat(timespec="seconds"),
        "n": len(rows),
        "n_images": len(different),
        "usual": _usual(settings, inputs.predictions, since),
        "verdicts": {str(k): int(v) for k, v in judged["verdict"].value_counts().items()},
        "uncertain_share": _share((judged["verdict"] == "uncertain").sum(), len(judged)),
        "warned_share": _share(judged["warnings"].map(len, na_action="ignore").gt(0).sum(), len(judged)),
        "error_share": _share(rows["error"].notna().sum(), len(rows)),
        "latency": {
            name: None if judged.empty else round(float(judged["latency"].quantile(q)), 4)
            for name, q in (("median", 0.5), ("p95", 0.95))
        },
        "versions": {
            str(version): {
                "n": len(part),
                "uncertain_share": _share((part["verdict"] == "uncertain").sum(), len(part)),
                "mean_probability": round(float(part["probability"].mean()), 4),
                "feedback": feedback.accuracy(reports[reports["model_version"] == version]),
            }
            for version, part in judged.groupby("model_version")
        },
        "drift": [asdict(shift) for shift in shifts],
        "feedback": said,
        "notes": notes,
    }
    result["problems"] = _problems(settings, result, rows)
    result["retrain"] = _reasons(settings, result)
    result["status"] = "trouble" if result["problems"] else "too few" if not is_enough else "ok"
    return result, rows, pairs


def _pairs(model: str, before: pd.DataFrame, now: pd.DataFrame, out: Path, notes: list[str]) -> drift.Pairs:
    old, new = drift.derived(before), drift.derived(now)
    pairs = {name: (old[name], new[name]) for name in (*drift.NUMBERS, *drift.WORDS)}
    own = now.loc[now["model_version"].map(title, na_action="ignore").isna(), "model_version"]
    if own.empty:
        notes.append("reference detectors alone answered, of whose test images no scores are on record here")
        return pairs
    version = str(own.iloc[-1])
    recorded = reference.scores(model, version, out)
    if isinstance(recorded, str):
        notes.append(recorded)
    elif len(recorded) < drift.FEWEST:
        notes.append(f"version {version} was tested on {len(recorded)} images, too few to compare the scores with")
    else:
        pairs[drift.SCORE] = (recorded, now.loc[now["model_version"] == version, "probability"])
    return pairs


def _feedback(
    settings: Monitor,
    reports: pd.DataFrame,
    different: pd.DataFrame,
    data: Path,
    sources: Sequence[str],
    since: datetime,
    now: datetime,
) -> dict[str, Any]:
    standing = reports[reports["status"] != "rejected"]
    wrong = standing.loc[
        standing["verdict"].isin(("ai", "real")) & (standing["label"] != standing["verdict"]), "sha256"
    ]
    reported = int(different["sha256"].isin(wrong).sum())
    within = reports[(reports["reported"] >= since) & (reports["reported"] < now)]
    return {
        "reports": len(within),
        "by_status": {str(k): int(v) for k, v in reports["status"].value_counts().items()},
        "reported": reported,
        "reported_share": _share(reported, len(different)),
        "new": feedback.new(reports, data, sources),
        **{f"judged_{key}": value for key, value in feedback.accuracy(within).items()},
    }


def _usual(settings: Monitor, folder: Path, since: datetime) -> float | None:
    """Predictions in a window as long as this one, the median of those before as far back as the log goes."""
    length = timedelta(hours=settings.window_hours)
    times = predictions.read(folder, since - _WINDOWS * length, since, ["time"])["time"]
    if times.empty:
        return None
    ago = ((since - times).dt.total_seconds() / length.total_seconds()).astype(int)
    return float(ago.value_counts().reindex(range(int(ago.max()) + 1), fill_value=0).median())


def _problems(settings: Monitor, found: dict[str, Any], rows: pd.DataFrame) -> list[dict[str, str]]:
    problems = []

    def problem(check: str, message: str) -> None:
        problems.append({"check": check, "message": message})

    for shift in found["drift"]:
        if shift["drifted"]:
            what = "the scores differ" if shift["name"] == drift.SCORE else f"{shift['name']} differs"
            problem(
                f"drift in {shift['name']}",
                f"{what} from what the detector was trained on: {shift['now']}, before {shift['before']} "
                f"(stability index {shift['psi']:.2f})",
            )
    judged = len(rows) - int(rows["error"].notna().sum())
    shares = (
        (
            "uncertain",
            found["verdicts"].get("uncertain", 0),
            judged,
            settings.max_uncertain,
            "of the verdicts are uncertain",
        ),
        ("errors", len(rows) - judged, len(rows), settings.max_errors, "of the predictions have no verdict"),
        (
            "reported",
            found["feedback"]["reported"],
            found["n_images"],
            settings.max_reported,
            "of the pictures were reported as wrong",
        ),
    )
    for check, k, n, limit, what in shares:
        # Beyond the limit even at the lower end of the interval, so that three predictions alarm nobody.
        if n and binomtest(int(k), n).proportion_ci(0.95, method="wilson").low > limit:
            problem(check, f"{k / n:.1%} {what}; {limit:.0%} may be")
    usual = found["usual"]
    if usual and usual >= settings.min_images and found["n"] < _QUIET * usual:
        problem("volume", f"{found['n']:,} predictions in {settings.window_hours:g} h; {usual:,.0f} are usual")
    return problems


def _reasons(settings: Monitor, found: dict[str, Any]) -> list[str]:
    """Why a retraining should start; none where it shouldn't."""
    drifted = [shift["name"] for shift in found["drift"] if shift["drifted"]]
    new = found["feedback"]["new"]
    return [
        *([f"drift in {', '.join(drifted)}"] if drifted else []),
        *([f"{new:,} accepted reports that are not in the data yet"] if new >= settings.new_feedback else []),
    ]


def remember(report: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Add a report to the history, in short; all of it, the oldest first."""
    path = out / HISTORY
    lines = path.read_text().splitlines() if path.exists() else []
    line = {
        **{key: report[key] for key in ("at", "status", "n", "n_images", "uncertain_share", "error_share")},
        "reported_share": report["feedback"]["reported_share"],
        "psi": {shift["name"]: shift["psi"] for shift in report["drift"]},
        "problems": [problem["check"] for problem in report["problems"]],
    }
    lines = [*lines[-_KEPT + 1 :], json.dumps(line)]
    stage.replace(path, lambda partial: partial.write_text("\n".join(lines) + "\n"))
    return [json.loads(line) for line in lines]


def _share(k: Any, n: int) -> float | None:
    return round(float(k) / n, 4) if n else None


def utc(said: str) -> datetime:
    """A time as ISO 8601; without a zone it is UTC's."""
    at = datetime.fromisoformat(said)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
