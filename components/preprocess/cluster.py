"""The same decoding on a Ray cluster: image files go out to its nodes, rows of arrays come back and are written here.

The nodes share no disk with this one and need none. What a node that is lost had in hand is done again by another.
"""

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import components
from components import shards
from components.preprocess import arrays
from components.preprocess.arrays import Equaliser, Piece
from components.stage import StageError

_READERS = 2
_REACH = 10.0  # s in which a cluster has to answer
_READ = pa.schema([("piece", pa.int64()), ("files", pa.list_(pa.large_binary())), ("error", pa.string())])
_DECODED = pa.schema([("piece", pa.int64()), ("rows", pa.list_(pa.large_binary())), ("error", pa.string())])


def decode(pieces: list[Piece], equalise: Equaliser) -> Iterator[Piece]:
    """Fill the arrays of pieces, by the cluster that RAY_ADDRESS names, or by one of this machine's cores.

    Args:
        pieces: in any number; few are under way at once.
        equalise: as in `preprocess.equalise`.

    Yields:
        Each piece when its rows are written; in no order.

    Raises:
        StageError: a shard is damaged, the cluster can't be reached or was lost, or a node has another Pillow, which
            might decode to other pixels.
    """
    if not pieces:
        return
    try:
        with _connected():
            yield from _decoded(pieces, equalise)
    except RayError as error:
        raise StageError(
            f"the Ray cluster failed ({str(error).splitlines()[0]}); run the command again: whole shards are kept"
        ) from None


def _connected() -> Any:
    """A connection that is given up at the end of its `with`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        _reach(os.environ.get("RAY_ADDRESS", ""))
        return ray.init(
            # The nodes get this very code, whatever version of it their image holds.
            runtime_env={"py_modules": [components]},
            configure_logging=True,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "on this machine")
        raise StageError(
            f"the Ray cluster {where} can't be used ({str(error).splitlines()[0]}); start it, correct RAY_ADDRESS, or "
            "set engine.preprocess to local"
        ) from None


def _reach(address: str) -> None:
    """Raise an OSError if nobody listens at HOST:PORT, which Ray itself asks for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()


def _decoded(pieces: list[Piece], equalise: Equaliser) -> Iterator[Piece]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    work = [
        {"piece": number, "path": str(piece.path.absolute()), "start": piece.rows.start, "stop": piece.rows.stop}
        for number, piece in enumerate(pieces)
    ]
    views = [list(piece.targets) for piece in pieces]
    done = (
        ray.data.from_items(work, override_num_blocks=len(work))
        .map_batches(
            _read, batch_format="pyarrow", batch_size=None, num_cpus=0, concurrency=_READERS, scheduling_strategy=here
        )
        .map_batches(
            _decode,
            fn_kwargs={"views": views, "equalise": equalise, "maker": arrays.MAKER},
            batch_format="pyarrow",
            batch_size=None,
            scheduling_strategy="SPREAD",
        )
    )
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            if row["error"]:
                raise StageError(row["error"])
            piece = pieces[row["piece"]]
            arrays.fill(piece, [dict(zip(piece.targets, row["rows"], strict=True))])
            yield piece


def _read(work: pa.Table) -> pa.Table:
    """Image files of some pieces; on this node, where the shards are."""
    rows = []
    for item in work.to_pylist():
        files, error = None, None
        try:
            files = list(shards.files(item["path"], range(item["start"], item["stop"])))
        except (StageError, FileNotFoundError) as caught:
            error = str(caught)
        rows.append({"piece": item["piece"], "files": files, "error": error})
    return pa.Table.from_pylist(rows, _READ)


def _decode(read: pa.Table, views: list[list[str]], equalise: Equaliser, maker: str) -> pa.Table:
    """Rows of arrays, one value a view; on any node."""
    rows = []
    for item in read.to_pylist():
        error, rendered = item["error"], None
        if maker != arrays.MAKER:
            error = f"a node of the Ray cluster has another Pillow ({arrays.MAKER}) than this machine ({maker})"
        if error is None:
            names = views[item["piece"]]
            images = list(arrays.render(item["files"], names, equalise))
            rendered = [b"".join(image[name] for image in images) for name in names]
        rows.append({"piece": item["piece"], "rows": rendered, "error": error})
    return pa.Table.from_pylist(rows, _DECODED)
