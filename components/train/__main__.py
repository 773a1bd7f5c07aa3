"""`python -m components.train --model NAME`: fit one of the candidates."""

import argparse
from pathlib import Path

from components import params, stage
from components.stage import StageError
from components.train import train


def run() -> None:
    """Train, taking up what an interrupted run left."""
    parser = argparse.ArgumentParser(prog="python -m components.train", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--arrays", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    parser.add_argument("--out", type=Path, help="artifacts/models/MODEL by default")
    args = parser.parse_args()

    candidates = params.load(args.params).train.models
    if args.model not in candidates:
        raise StageError(f"train.models has no {args.model!r}; it has {', '.join(candidates)}")
    out = args.out or Path("artifacts/models") / args.model
    state = train(args.model, candidates[args.model], args.index, args.arrays, args.checkpoints, out)
    print(f"{args.model}: best epoch {state.best_epoch} of {state.epoch}; written to {out}")


if __name__ == "__main__":
    stage.main(run)
