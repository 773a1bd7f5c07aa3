"""Each shard decoded once for each view, in parallel, into arrays that are memory-mapped."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import PIL

from components import images, parallel, shards, stage
from components.stage import StageError, read_json

# Arrays are made again when the way from bytes to pixels changes.
MAKER = f"2, Pillow {PIL.__version__}"
MADE = "made.json"
Equaliser = dict[str, Any] | None


class Piece(NamedTuple):
    """Some rows of a shard, and the arrays by view whose rows of the same numbers they fill."""

    path: Path
    rows: range
    targets: dict[str, Path]


def update(
    files: dict[str, Path],
    rows: pd.DataFrame,
    views: list[str],
    equalise: Equaliser,
    out: Path,
    engine: Literal["local", "ray"] = "local",
) -> None:
    """Make the arrays that are missing and remove those whose shard or view is gone.

    Args:
        files: the shards, as from `shards.paths`.
        rows: the manifest; its length by shard is that of the arrays.
        views: as in `preprocess.views`.
        equalise: as in `preprocess.equalise`; null leaves the images as they are.
        out: folder of the arrays.
        engine: what decodes: the cores of this machine or a Ray cluster.

    Raises:
        StageError: a shard is damaged, or the engine can't be had or was lost.
    """
    wanted = {f"{view}/{shard}": path.stat().st_size for view in views for shard, path in files.items()}
    made = {
        name: size
        for name, size in _made(out, equalise).items()
        if wanted.get(name) == size and _file(out, name).exists()
    }
    keep = {_file(out, name) for name in made}
    for path in [p for p in out.rglob("*.npy") if p not in keep]:
        path.unlink()
    for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()

    missing = {
        shard: [view for view in views if f"{view}/{shard}" not in made]
        for shard in files
        if any(f"{view}/{shard}" not in made for view in views)
    }
    lengths = rows.groupby("shard").size()
    progress = parallel.Progress("images decoded", int(sum(lengths[shard] for shard in missing)))
    pieces = [
        Piece(path, group, {view: _partial(out, view, shard) for view in missing[shard]})
        for shard, path in files.items()
        if shard in missing
        for group in shards.pieces(path)
    ]
    remaining = {shard: int(lengths[shard]) for shard in missing}
    try:
        for shard, absent in missing.items():
            for view in absent:
                _reserve(_partial(out, view, shard), (int(lengths[shard]), *images.view_shape(view)))
        for piece in _engine(engine)(pieces, equalise):
            progress.add(len(piece.rows))
            shard = f"{piece.path.parent.name}/{piece.path.stem}"
            remaining[shard] -= len(piece.rows)
            if not remaining[shard]:
                for view in missing[shard]:
                    _partial(out, view, shard).replace(_file(out, f"{view}/{shard}"))
                    made[f"{view}/{shard}"] = wanted[f"{view}/{shard}"]
                _remember(out, made, equalise)
    finally:
        for leftover in out.rglob("*.partial"):
            leftover.unlink()
    _remember(out, made, equalise)
    print(f"{progress.done:,} images decoded, {len(rows) - progress.done:,} from before", flush=True)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """An empty array's file, for several processes to fill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + math.prod(shape))


def fill(piece: Piece, rendered: Iterable[dict[str, bytes]]) -> None:
    """Write the rows of a piece into its arrays.

    Args:
        piece: which rows of which arrays.
        rendered: by view, one or several rows at a time, in their order.
    """
    with contextlib.ExitStack() as stack:
        streams = {view: stack.enter_context(target.open("r+b")) for view, target in piece.targets.items()}
        for view, stream in streams.items():
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            stream.seek(piece.rows.start * math.prod(images.view_shape(view)), 1)
        for rows in rendered:
            for view, stream in streams.items():
                stream.write(rows[view])


def render(files: Iterable[bytes], views: Iterable[str], equalise: Equaliser) -> Iterator[dict[str, bytes]]:
    """Image files as rows of arrays, by view."""
    for data in files:
        image = images.equalise(images.decode(data), equalise)
        yield {view: images.render(image, view, equalise).tobytes() for view in views}


def _engine(name: str) -> Any:
    """What fills the arrays of pieces and says which are done."""
    if name == "local":
        return _on_this_machine
    try:
        from components.preprocess import cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise StageError(
            "engine.preprocess is ray, which is not installed; `pip install -e '.[ray]'` in the project's folder, or "
            "make it local"
        ) from None
    return cluster.decode


def _on_this_machine(pieces: list[Piece], equalise: Equaliser) -> Iterator[Piece]:
    done = parallel.ordered_map(_decode, ((piece, equalise) for piece in pieces), patience=0)
    for piece, _ in zip(pieces, done, strict=True):
        yield piece


def _decode(task: tuple[Piece, Equaliser]) -> None:
    piece, equalise = task
    fill(piece, render(shards.files(piece.path, piece.rows), piece.targets, equalise))


def succeed(out: Path, old: str, new: str, size: int | None) -> None:
    """Remember that another array took an array's place, made from a shard of some size; or none, where it is null."""
    known = read_json(out / MADE)
    known["shards"].pop(old, None)
    if size is not None:
        known["shards"][new] = size
    _remember(out, known["shards"], known["equalise"])


def identity(out: Path, index: pd.DataFrame) -> bytes:
    """Equal where the same images, in the same splits, came to pixels in the same way.

    Args:
        out: folder of the arrays.
        index: rows of preprocess's.
    """
    rows = index[["sha256", "shard", "row", "label", "split"]]
    return pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes() + json.dumps(made(out)).encode()


def made(out: Path) -> tuple[Any, Any]:
    """The way from bytes to pixels that arrays were made by."""
    try:
        known = read_json(out / MADE)
    except FileNotFoundError:
        known = {}
    return known.get("maker"), known.get("equalise")


def _file(out: Path, name: str) -> Path:
    return out / f"{name}.npy"


def _partial(out: Path, view: str, shard: str) -> Path:
    return out / f"{view}/{shard}.partial"


def _made(out: Path, equalise: Equaliser) -> dict[str, int]:
    """What the arrays here were made from: the size of each one's shard."""
    try:
        known = json.loads((out / MADE).read_text())
        return known["shards"] if (known["maker"], known["equalise"]) == (MAKER, equalise) else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _remember(out: Path, made: dict[str, int], equalise: Equaliser) -> None:
    content = json.dumps({"maker": MAKER, "equalise": equalise, "shards": dict(sorted(made.items()))}, indent=1)
    stage.replace(out / MADE, lambda path: path.write_text(content))
