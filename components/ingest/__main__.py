"""`python -m components.ingest [NAME] [--from PATH]`: images in, shards out."""

import argparse
from pathlib import Path

from components import params, stage
from components.ingest import ingest
from components.params import Source


def run() -> None:
    """Ingest one source, or every source that the settings name."""
    parser = argparse.ArgumentParser(prog="python -m components.ingest", description=__doc__)
    parser.add_argument("name", nargs="?", help="a source; all that ingest.sources names by default")
    parser.add_argument("--from", dest="from_", help="path of a folder or an archive")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--receipts", type=Path, default=Path("artifacts/ingest"))
    args = parser.parse_args()

    settings = params.load(args.params).ingest
    for name in [args.name] if args.name else settings.sources:
        source = settings.sources.get(name, Source())
        if args.from_:
            source = source.model_copy(update={"from_": args.from_})
        outcome = ingest(name, source, settings, args.data, args.receipts)
        if outcome.unchanged:
            print(f"{name}: nothing new")
        else:
            print(
                f"{name}: {outcome.added:,} images added, {outcome.known:,} already here, {outcome.rejected:,} rejected"
            )


if __name__ == "__main__":
    stage.main(run)
