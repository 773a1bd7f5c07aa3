"""Each shard decoded once for each view, in parallel, into arrays that are memory-mapped."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import PIL

from components import images, parallel, shards, stage

# Arrays are made again when the way from bytes to pixels changes.
_MAKER = f"1, Pillow {PIL.__version__}"


def update(files: dict[str, Path], rows: pd.DataFrame, views: list[str], out: Path) -> None:
    """Make the arrays that are missing and remove those whose shard or view is gone.

    Args:
        files: the shards, as from `shards.paths`.
        rows: the manifest; its length by shard is that of the arrays.
        views: as in `preprocess.views`.
        out: folder of the arrays.
    """
    wanted = {f"{view}/{shard}": path.stat().st_size for view in views for shard, path in files.items()}
    made = {name: size for name, size in _made(out).items() if wanted.get(name) == size and _file(out, name).exists()}
    keep = {_file(out, name) for name in made}
    for path in [p for p in out.rglob("*.npy") if p not in keep]:
        path.unlink()
    for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()

    lengths = rows.groupby("shard").size()
    tasks = []
    for shard, path in files.items():
        missing = [view for view in views if f"{view}/{shard}" not in made]
        if missing:
            tasks.append((path, int(lengths[shard]), {view: _file(out, f"{view}/{shard}") for view in missing}))
    progress = parallel.Progress("images decoded", sum(n for _, n, _ in tasks))
    for (_, n, targets), _ in zip(tasks, parallel.ordered_map(_decode, tasks), strict=True):
        progress.add(n)
        made |= {(name := str(t.relative_to(out).with_suffix(""))): wanted[name] for t in targets.values()}
        _remember(out, made)
    _remember(out, made)
    print(f"{progress.done:,} images decoded, {len(rows) - progress.done:,} from before", flush=True)


def _decode(task: tuple[Path, int, dict[str, Path]]) -> None:
    path, length, targets = task
    partial = {view: target.with_suffix(".partial") for view, target in targets.items()}
    streams = {}
    try:
        for view, target in partial.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            side = images.view_size(view)
            streams[view] = target.open("wb")
            header = {"descr": "|u1", "fortran_order": False, "shape": (length, side, side, 3)}
            np.lib.format.write_array_header_1_0(streams[view], header)
        for data in shards.files(path):
            image = images.decode(data)
            for view, stream in streams.items():
                stream.write(images.render(image, view).tobytes())
        for view, stream in streams.items():
            stream.close()
            partial[view].replace(targets[view])
    finally:
        for view, stream in streams.items():
            stream.close()
            partial[view].unlink(missing_ok=True)


def _file(out: Path, name: str) -> Path:
    return out / f"{name}.npy"


def _made(out: Path) -> dict[str, int]:
    """What the arrays here were made from: the size of each one's shard."""
    try:
        known = json.loads((out / "made.json").read_text())
        return known["shards"] if known["maker"] == _MAKER else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _remember(out: Path, made: dict[str, int]) -> None:
    content = json.dumps({"maker": _MAKER, "shards": dict(sorted(made.items()))}, indent=1)
    stage.replace(out / "made.json", lambda path: path.write_text(content))
