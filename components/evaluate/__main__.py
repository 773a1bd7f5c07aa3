"""`python -m components.evaluate --model NAME`: judge one of the candidates."""

import argparse
from pathlib import Path

from components import params, stage
from components.evaluate import evaluate
from components.stage import StageError


def run() -> None:
    """Evaluate, and print the main figures."""
    parser = argparse.ArgumentParser(prog="python -m components.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models or train.ensembles")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--models", type=Path, default=Path("artifacts/models"), help="what train wrote")
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--arrays", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="artifacts/evaluation/MODEL by default")
    args = parser.parse_args()

    settings = params.load(args.params)
    members = settings.train.candidates.get(args.model)
    if members is None:
        raise StageError(f"there is no candidate {args.model!r}; there are {', '.join(settings.train.candidates)}")
    out = args.out or Path("artifacts/evaluation") / args.model
    views = {member: settings.train.models[member].view for member in members}
    result = evaluate(args.model, views, settings.evaluate, args.models, args.index, args.arrays, args.data, out)
    low, high = result["intervals"]["balanced_accuracy"]
    print(
        f"{args.model}: balanced accuracy {result['balanced_accuracy']:.4f} ({low:.4f} to {high:.4f}), "
        f"AUROC {result['auroc']:.4f}, on {result['n']:,} test images; "
        f"report: {(out / 'report.html').resolve().as_uri()}"
    )


if __name__ == "__main__":
    stage.main(run)
