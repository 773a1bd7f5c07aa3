"""`python -m components.validate`: check the shards before anything is trained."""

import argparse
from pathlib import Path
from typing import Any

from components import params, stage, tracking
from components.validate import refuse, validate


def run() -> None:
    """Validate, print what was found, and fail on anything critical."""
    parser = argparse.ArgumentParser(prog="python -m components.validate", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/validation"))
    args = parser.parse_args()

    settings = params.load(args.params)
    report = validate(args.data, settings.ingest.sources, settings.validate_, args.out, settings.preprocess.equalise)
    _log(report, args.out)
    counts = "; ".join(
        f"{source}: {', '.join(f'{n:,} {label}' for label, n in labels.items())}"
        for source, labels in report["by_source"].items()
    )
    print(f"{report['n_images']:,} images ({counts}), {report['n_rejected']:,} files rejected")
    for problem in report["problems"]:
        print(f"{problem['severity']}: {problem['message']}")
    refuse(report, args.out / "report.html")
    print(f"passed; report: {(args.out / 'report.html').resolve().as_uri()}")


def _log(report: dict[str, Any], out: Path) -> None:
    mlflow = tracking.connect()
    figures = {
        **report["duplicates"],
        "n_images": report["n_images"],
        "metadata_auc": report["leakage"]["metadata_auc"],
        "pixel_auc": report["leakage"]["pixel_auc"],
        "label_noise": report["label_noise"]["share"],
    }
    with mlflow.start_run(run_name="validate"):
        mlflow.set_tags({"stage": "validate", "passed": str(report["passed"]).lower(), **tracking.lineage()})
        mlflow.log_metrics({name: float(value) for name, value in figures.items() if value is not None})
        for name in ("report.html", "report.json", "flagged.csv"):
            mlflow.log_artifact(str(out / name), "validation")


if __name__ == "__main__":
    stage.main(run)
