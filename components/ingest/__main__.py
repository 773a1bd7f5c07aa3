"""`python -m components.ingest [NAME] [--from PATH]`: images in, shards out."""

import argparse
from pathlib import Path

from components import params, shards, stage
from components.ingest import ingest, summarised, with_words
from components.params import Source


def run() -> None:
    """Ingest one source, or every source that the settings name."""
    parser = argparse.ArgumentParser(prog="python -m components.ingest", description=__doc__)
    parser.add_argument("name", nargs="?", help="a source; all that ingest.sources names by default")
    parser.add_argument(
        "--from",
        dest="from_",
        help="a folder or an archive, s3://BUCKET/PREFIX, hf://OWNER/NAME, kaggle://OWNER/NAME, web:LIST, "
        "feedback:FOLDER",
    )
    parser.add_argument("--label", choices=shards.LABELS, help="what all of its images are")
    parser.add_argument("--generator", help="what made its images labelled ai")
    parser.add_argument("--max-images", type=int, help="at most so many, of both labels alike")
    parser.add_argument("--per-generator", type=int, help="at most so many of one generator")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--receipts", type=Path, default=Path("artifacts/ingest"))
    args = parser.parse_args()

    settings = params.load(args.params).ingest
    for name in [args.name] if args.name else settings.sources:
        source = settings.sources.get(name, Source())
        said = {key: getattr(args, key) for key in ("label", "generator", "max_images", "per_generator")}
        source = with_words(source, said | {"from": args.from_})
        print(summarised(name, ingest(name, source, settings, args.data, args.receipts)), flush=True)
    if not args.name and args.data.exists():
        shards.seal(args.data)


if __name__ == "__main__":
    stage.main(run)
