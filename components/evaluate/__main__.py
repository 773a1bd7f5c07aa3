"""`python -m components.evaluate --model NAME`: judge one of the candidates."""

import argparse
from pathlib import Path

from components import params, stage
from components.evaluate import evaluate
from components.stage import StageError


def run() -> None:
    """Evaluate, and print the main figures."""
    parser = argparse.ArgumentParser(prog="python -m components.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trained", type=Path, help="artifacts/models/MODEL by default")
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--arrays", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="artifacts/evaluation/MODEL by default")
    args = parser.parse_args()

    settings = params.load(args.params)
    if args.model not in settings.train.models:
        raise StageError(f"train.models has no {args.model!r}; it has {', '.join(settings.train.models)}")
    out = args.out or Path("artifacts/evaluation") / args.model
    trained = args.trained or Path("artifacts/models") / args.model
    view = settings.train.models[args.model].view
    result = evaluate(args.model, view, settings.evaluate, trained, args.index, args.arrays, args.data, out)
    low, high = result["intervals"]["balanced_accuracy"]
    print(
        f"{args.model}: balanced accuracy {result['balanced_accuracy']:.4f} ({low:.4f} to {high:.4f}), "
        f"AUROC {result['auroc']:.4f}, on {result['n']:,} test images; "
        f"report: {(out / 'report.html').resolve().as_uri()}"
    )


if __name__ == "__main__":
    stage.main(run)
