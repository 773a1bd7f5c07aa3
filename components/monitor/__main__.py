"""`python -m components.monitor`: look at the last predictions, and report."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from components import params, predictions, stage
from components.monitor import Inputs, monitor, remember, report, utc
from components.stage import StageError


def run() -> None:
    """Report, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m components.monitor", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/monitor"))
    parser.add_argument("--at", type=utc, help="the end of the window, ISO 8601; now by default")
    args = parser.parse_args()

    settings = params.load(args.params)
    if settings.monitor.folder is None:
        raise StageError("monitor.folder is null, so no predictions are logged; name a folder in params.yaml")
    folder = Path(settings.monitor.folder)
    now = args.at or datetime.now(UTC)
    predictions.prune(folder, settings.monitor.keep_days, datetime.now(UTC).date())
    inputs = Inputs(folder, Path(settings.monitor.feedback), args.data, args.index)
    args.out.mkdir(parents=True, exist_ok=True)
    sources = list(settings.ingest.sources)
    result, rows, pairs = monitor(settings.monitor, settings.register_.model, sources, inputs, args.out, now)
    history = remember(result, args.out)
    stage.replace(args.out / "report.json", lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    stage.replace(args.out / "report.html", lambda path: report.write(result, rows, pairs, history, path))
    report.metrics(result, args.out / "metrics.prom")
    print(f"{result['n']:,} predictions of {result['n_images']:,} different pictures since {result['since']}")
    for note in result["notes"]:
        print(note)
    for problem in result["problems"]:
        print(f"{problem['check']}: {problem['message']}")
    print(f"report: {(args.out / 'report.html').resolve().as_uri()}")


if __name__ == "__main__":
    stage.main(run)
