"""A stage's command on a machine that keeps nothing: what it needs is fetched by URI, and what it made is stored.

`python -m components.remote --store s3://BUCKET/PREFIX --settings "$(cat params.yaml)" --fetch data URI
--keep artifacts/validation FILE -- python -m components.validate` lays what the URI names at `data` in an empty
folder, runs the command there, stores `artifacts/validation`, and writes its URI to FILE. Without an error all of it is
stored; with one, nothing is.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from components import stage, store
from components.stage import FLOW_PID, StageError

_LINKED = ("models", "requirements.lock")
"""What a stage may read beside its inputs: networks to start from, and the exact packages."""


def run() -> None:
    """Fetch, run, store, and write the URIs."""
    parser = argparse.ArgumentParser(prog="python -m components.remote", description=__doc__)
    parser.add_argument("--store", required=True, help="s3://BUCKET/PREFIX")
    parser.add_argument("--settings", required=True, help="the text of params.yaml")
    pairs: dict[str, Any] = {"nargs": 2, "action": "append", "default": []}
    parser.add_argument("--fetch", **pairs, metavar=("PATH", "URI"), help="what is to be there before")
    parser.add_argument("--keep", **pairs, metavar=("PATH", "FILE"), help="what to store, and where to write its URI")
    parser.add_argument("--copy", **pairs, metavar=("PATH", "FILE"), help="what to copy to another file")
    parser.add_argument(
        "--resume", action="append", default=[], metavar="PATH", help="what to begin with as the last run left it"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="what to begin with as a run left it that was killed")
    parser.add_argument("--every", type=float, default=300, metavar="S", help="s between two looks at the checkpoint")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()

    if "MLFLOW_TRACKING_URI" not in os.environ:
        raise StageError("MLFLOW_TRACKING_URI is not set; what the stage logs would go with this machine")
    # A store that is busy for a minute is no reason to train again.
    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "10")
    with tempfile.TemporaryDirectory(prefix="trueframe-") as folder:
        work = Path(folder)
        _prepare(work, args)
        with _checkpointed(work, args):
            _work(work, args.command)
        resumed = [path for path in args.resume if (work / path).exists()]
        paths = dict.fromkeys([*resumed, *(path for path, _ in args.keep)])
        stored = {path: store.put(work / path, args.store) for path in paths}
        for path in resumed:
            store.remember(args.store, path, stored[path])
        for path, file in args.copy:
            _written(Path(file)).write_bytes((work / path).read_bytes())
        for path, file in args.keep:
            _written(Path(file)).write_text(stored[path])
            print(f"{path}: {stored[path]}", flush=True)
        if args.checkpoint:
            store.forget(args.store, args.checkpoint)


def _prepare(work: Path, args: argparse.Namespace) -> None:
    (work / "params.yaml").write_text(args.settings)
    for name in _LINKED:
        if Path(name).exists():
            (work / name).symlink_to(Path(name).resolve())
    known = [*args.resume, *([args.checkpoint] if args.checkpoint else [])]
    begin = [(path, uri) for path in known if (uri := store.last(args.store, path))]
    for path, uri in [*args.fetch, *begin]:
        store.get(uri, work / path)
        if path == "data":  # the version by which MLflow's runs and the registry name their data
            (work / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": store.md5(uri), "path": "data"}]}))


@contextlib.contextmanager
def _checkpointed(work: Path, args: argparse.Namespace) -> Iterator[None]:
    """Store the checkpoint every few minutes while a command runs."""
    over = threading.Event()

    def keep() -> None:
        kept: object = {}
        while not over.wait(args.every):
            # Where it was written meanwhile, or the store is busy, the next one will do.
            with contextlib.suppress(StageError, OSError), tempfile.TemporaryDirectory() as folder:
                before = _listed(work / args.checkpoint)
                copy = shutil.copytree(work / args.checkpoint, Path(folder) / "copy")
                if before != kept and before == _listed(work / args.checkpoint):
                    store.remember(args.store, args.checkpoint, store.put(copy, args.store))
                    kept = before

    thread = threading.Thread(target=keep, daemon=True)
    if args.checkpoint:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if args.checkpoint:
            thread.join()


def _listed(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: ((found := p.stat()).st_mtime_ns, found.st_size) for p in folder.rglob("*") if p.is_file()}


def _work(work: Path, command: list[str]) -> None:
    """Run the command in the folder, with this process's code and Python."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise StageError(f"{command[0]}: no such program")
    code = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": code, "PYTHONUNBUFFERED": "1", FLOW_PID: str(os.getpid())}
    ended = subprocess.run([program, *command[1:]], cwd=work, env=environment).returncode
    if ended:  # the command has said why
        raise SystemExit(ended if ended > 0 else 128 - ended)


def _written(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    stage.main(run)
