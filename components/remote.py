"""A stage's command on a machine that keeps nothing: what it needs is fetched by URI, and what it made is stored.

`python -m components.remote --store s3://BUCKET/PREFIX --settings "$(cat params.yaml)" --fetch data URI
--keep artifacts/validation FILE -- python -m components.validate` lays what the URI names at `data` in an empty
folder, runs the command there, stores `artifacts/validation`, and writes its URI to FILE. Without an error all of it is
stored; with one, nothing is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
    pairs = {"nargs": 2, "action": "append", "default": []}
    parser.add_argument("--fetch", **pairs, metavar=("PATH", "URI"), help="what is to be there before")
    parser.add_argument("--keep", **pairs, metavar=("PATH", "FILE"), help="what to store, and where to write its URI")
    parser.add_argument("--copy", **pairs, metavar=("PATH", "FILE"), help="what to copy to another file")
    parser.add_argument(
        "--resume", action="append", default=[], metavar="PATH", help="what to begin with as the last run left it"
    )
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
        _work(work, args.command)
        paths = dict.fromkeys([*args.resume, *(path for path, _ in args.keep)])
        stored = {path: store.put(work / path, args.store) for path in paths}
        for path in args.resume:
            store.remember(args.store, path, stored[path])
        for path, file in args.copy:
            _written(Path(file)).write_bytes((work / path).read_bytes())
        for path, file in args.keep:
            _written(Path(file)).write_text(stored[path])
            print(f"{path}: {stored[path]}", flush=True)


def _prepare(work: Path, args: argparse.Namespace) -> None:
    (work / "params.yaml").write_text(args.settings)
    for name in _LINKED:
        if Path(name).exists():
            (work / name).symlink_to(Path(name).resolve())
    begin = [(path, uri) for path in args.resume if (uri := store.last(args.store, path))]
    for path, uri in [*args.fetch, *begin]:
        store.get(uri, work / path)
        if path == "data":  # the version by which MLflow's runs and the registry name their data
            (work / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": store.md5(uri), "path": "data"}]}))


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
