"""Removal for good: the image leaves its shard, and doesn't come back."""

import fnmatch
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from components import shards, stage
from components.stage import StageError, read_json

_DIGITS = 8


@dataclass(frozen=True)
class Removed:
    """What was removed.

    Attributes:
        images: how many rows.
        shards: by the old name of each shard that held one: its new name (null where nothing remained), and which of
            its rows remained, in order.
    """

    images: int
    shards: dict[str, tuple[str | None, list[int]]] = field(default_factory=dict)


def forget(
    data: Path,
    receipts: Path,
    sha256: Iterable[str],
    origin: str | None = None,
    source: str | None = None,
    reason: str = "",
) -> Removed:
    """Remove images from the shards and from the lists beside them, and log them without the image.

    Shards are never changed: one that held an image makes room for another with the rows that remain.

    Args:
        data: folder of the shards.
        receipts: folder in which ingestions remember what they read.
        sha256: of the images, whole or their first digits (8 at least).
        origin: a pattern (`*`, `?`) for where images came from; those that match are removed too.
        source: look in this source only.
        reason: for the log.

    Raises:
        StageError: nothing was named, or a name matches no image; then nothing is removed.
    """
    asked = [digits.lower() for digits in sha256]
    if not asked and origin is None:
        raise StageError("nothing to forget: give the sha256 of images, or --origin PATTERN")
    short = [digits for digits in asked if len(digits) < _DIGITS]
    if short:
        raise StageError(f"{short[0]}: too short to name an image; give {_DIGITS} digits of its sha256 or more")
    names = [source] if source else sorted(p.name for p in data.glob("[!.]*") if p.is_dir() and shards.exist(p))
    files = shards.paths(data, names)
    rows = shards.manifest(files)
    refused = pd.concat([shards.rejected(data, name).assign(source=name) for name in names], ignore_index=True)
    known = pd.concat([rows[["sha256", "label", "source", "origin"]], refused[["sha256", "label", "source", "origin"]]])
    for digits in asked:
        if not known["sha256"].str.startswith(digits).any():
            raise StageError(f"{digits}: no image with this sha256 is here; nothing was removed")

    def chosen(frame: pd.DataFrame) -> pd.Series:
        hit = frame["sha256"].str.startswith(tuple(asked)) if asked else pd.Series(False, index=frame.index)
        return hit | frame["origin"].map(lambda o: fnmatch.fnmatchcase(o, origin)) if origin is not None else hit

    # A copy of a forgotten image is the same image.
    hashes = set(known.loc[chosen(known), "sha256"])
    if not hashes:
        raise StageError(f"{origin}: no image comes from there; nothing was removed")
    gone = rows["sha256"].isin(hashes)
    _log(data, known[known["sha256"].isin(hashes)], reason)
    moved = {
        str(name): _rewrite(files[str(name)], part.index[~gone[part.index]], part)
        for name, part in rows.groupby("shard")
        if gone[part.index].any()
    }
    for name in names:
        _drop(data / name / shards.REJECTED, hashes)
        _drop(data / name / shards.ABOUT, hashes)
    _correct(receipts, {Path(old).name: new and Path(new).name for old, (new, _) in moved.items()})
    shards.succeed(data, {new: old for old, (new, _) in moved.items() if new})
    return Removed(int(gone.sum()) + int(refused["sha256"].isin(hashes).sum()), moved)


def _log(data: Path, images: pd.DataFrame, reason: str) -> None:
    path = data / shards.FORGOTTEN
    known = read_json(path) if path.exists() else []
    entries = [row | {"reason": reason} for row in images.to_dict("records")]
    content = json.dumps(known + [e for e in entries if e not in known], indent=1) + "\n"
    stage.replace(path, lambda target: target.write_text(content))


def _rewrite(path: Path, stays: pd.Index, part: pd.DataFrame) -> tuple[str | None, list[int]]:
    """Write a shard's remaining rows as a new shard, and remove the old one."""
    kept = part.loc[stays]
    if kept.empty:
        path.unlink()
        return None, []
    identity = hashlib.sha256("".join(f"{r.sha256} {r.label}\n" for r in kept.itertuples()).encode())
    number = path.stem.rsplit("-", 1)[1]
    new = path.with_name(f"{identity.hexdigest()[:12]}-{number}.parquet")
    rows = [int(row) for row in kept["row"]]
    stage.replace(new, lambda target: shards.copy(path, rows, target))
    path.unlink()
    return f"{path.parent.name}/{new.stem}", rows


def _correct(receipts: Path, moved: dict[str, str | None]) -> None:
    """Let the receipts name the new shards, or the sources would be read again."""
    for path in receipts.glob("*.json"):
        known = read_json(path)
        names = [moved.get(Path(name).stem, Path(name).stem) for name in known["shards"]]
        content = json.dumps(known | {"shards": sorted(f"{name}.parquet" for name in names if name)})
        stage.replace(path, lambda target, content=content: target.write_text(content))  # type: ignore[misc]


def _drop(path: Path, hashes: set[str]) -> None:
    """Remove rows from one of the lists beside the shards."""
    if not path.exists():
        return
    table = pq.read_table(path)
    keep = [value not in hashes for value in table["sha256"].to_pylist()]
    if not any(keep):
        path.unlink()
    elif not all(keep):
        stage.replace(path, lambda target: pq.write_table(table.filter(keep), target))
