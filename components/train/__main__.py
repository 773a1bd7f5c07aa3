"""`python -m components.train --model NAME`: fit one of the candidates."""

import argparse
import os
import sys
from pathlib import Path

from components import params, stage
from components.stage import StageError
from components.train import distribution, launch, train


def run() -> None:
    """Train, taking up what an interrupted run left."""
    parser = argparse.ArgumentParser(prog="python -m components.train", description=__doc__)
    parser.add_argument("--model", required=True, help="a key of train.models")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--arrays", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    parser.add_argument("--out", type=Path, help="artifacts/models/MODEL by default")
    parser.add_argument("--processes", type=int, default=1, help="on this machine's cores, under JAX")
    args = parser.parse_args()

    candidates = params.load(args.params).train.models
    if args.model not in candidates:
        raise StageError(f"train.models has no {args.model!r}; it has {', '.join(candidates)}")
    processes = distribution.asked()[0]
    if args.processes > processes:
        return launch.launch(args.processes, sys.argv[1:])
    out = args.out or Path("artifacts/models") / args.model
    try:
        state = train(args.model, candidates[args.model], args.index, args.arrays, args.checkpoints, out)
    except StageError as error:
        if processes == 1:
            raise
        # The usual end would wait for the others.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)
    if not distribution.asked()[1]:
        print(f"{args.model}: best epoch {state.best_epoch} of {state.epoch}; written to {out}")


if __name__ == "__main__":
    stage.main(run)
