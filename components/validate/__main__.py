"""`python -m components.validate`: check the shards before anything is trained."""

import argparse
from pathlib import Path

from components import params, stage
from components.validate import refuse, validate


def run() -> None:
    """Validate, print what was found, and fail on anything critical."""
    parser = argparse.ArgumentParser(prog="python -m components.validate", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/validation"))
    args = parser.parse_args()

    settings = params.load(args.params)
    report = validate(args.data, settings.ingest.sources, settings.validate_, args.out)
    counts = "; ".join(
        f"{source}: {', '.join(f'{n:,} {label}' for label, n in labels.items())}"
        for source, labels in report["by_source"].items()
    )
    print(f"{report['n_images']:,} images ({counts}), {report['n_rejected']:,} files rejected")
    for problem in report["problems"]:
        print(f"{problem['severity']}: {problem['message']}")
    refuse(report, args.out / "report.json")
    print(f"passed; Data Docs: {(args.out / 'data_docs/index.html').resolve().as_uri()}")


if __name__ == "__main__":
    stage.main(run)
