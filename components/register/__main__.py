"""`python -m components.register`: the best candidate into the registry."""

import argparse
from pathlib import Path

from components import params, stage
from components.register import Inputs, register


def run() -> None:
    """Register, and print the decision with its reasons."""
    parser = argparse.ArgumentParser(prog="python -m components.register", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--models", type=Path, default=Path("artifacts/models"))
    parser.add_argument("--evaluations", type=Path, default=Path("artifacts/evaluation"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/registration.json"))
    args = parser.parse_args()

    settings = params.load(args.params)
    inputs = Inputs(args.models, args.evaluations, args.index, args.data, args.params)
    result = register(list(settings.train.candidates), settings.register_, inputs, args.out)
    for reason in result["reasons"]:
        print(reason)
    if result["version"]:
        print(f"{result['model_name']} version {result['version']}: {result['decision']}")
    else:
        print("no candidate is good enough; nothing was registered")


if __name__ == "__main__":
    stage.main(run)
