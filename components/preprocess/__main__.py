"""`python -m components.preprocess`: shards to arrays and splits."""

import argparse
from pathlib import Path

from components import params, stage
from components.preprocess import preprocess
from components.shards import LABELS, REGRESSION, SPLITS

_FEW = 20


def run() -> None:
    """Decode what is new, assign the splits, and print them."""
    parser = argparse.ArgumentParser(prog="python -m components.preprocess", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--groups", type=Path, default=Path("artifacts/validation/groups.parquet"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/arrays"))
    parser.add_argument("--index", type=Path, default=Path("artifacts/index.parquet"))
    args = parser.parse_args()

    settings = params.load(args.params)
    index = preprocess(
        args.data,
        settings.ingest.sources,
        args.groups,
        settings.preprocess,
        args.out,
        args.index,
        settings.engine.preprocess,
    )
    left_out = int(index["split"].isna().sum())
    if left_out:
        print(
            f"{left_out:,} images are left out: published validation and test images that copy a training image "
            "(preprocess.keep_copies), and what copies a reported mistake that is proof"
        )
    for split in (*SPLITS, REGRESSION):
        counts = index.loc[index["split"] == split, "label"].value_counts()
        if len(counts):
            print(f"{split}: {', '.join(f'{counts.get(label, 0):,} {label}' for label in reversed(LABELS))}")
        for label in LABELS:
            if split in ("validation", "test") and counts.get(label, 0) < _FEW:
                print(
                    f"warning: {split} has {counts.get(label, 0)} {label} images only, so what is "
                    f"{'fitted' if split == 'validation' else 'measured'} on them is rough; ingest more, or raise "
                    f"preprocess.{split}"
                )


if __name__ == "__main__":
    stage.main(run)
