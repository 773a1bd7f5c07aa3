"""Images in: sources become shards under `data/`, atomically, in a fixed order, each image once."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components import images, parallel, shards, stage
from components.ingest import catalogue, readers, sample
from components.params import Ingest, Sample, Source
from components.stage import StageError

_SHARD_BYTES = 256 * 2**20
_BATCH = 256


@dataclass(frozen=True)
class Item:
    """An image file on its way in; `data` is None where it is larger than allowed."""

    data: bytes | None
    origin: str
    label: str
    generator: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What an ingestion did."""

    added: int = 0
    known: int = 0
    rejected: int = 0
    unchanged: bool = False


def ingest(name: str, source: Source, settings: Ingest, data: Path, receipts: Path) -> Outcome:
    """Bring a source's new images into `data/<name>/`.

    The same files give the same shards, byte for byte, and files that are there already add nothing. Either the
    whole batch arrives or none of it. Files that can't be read go to `rejected.parquet` with the reason.

    Args:
        name: the source's name in the catalogue, or a new one for a folder or an archive of one's own.
        source: where it is, if not the catalogue's own place.
        settings: the section `ingest`.
        data: folder of the shards.
        receipts: folder of small files that remember what was read, so that an unchanged source isn't read again.

    Raises:
        StageError: nothing to read, no image in it that can be read, a folder whose label is unknown, or a damaged
            archive.
    """
    entry = _entry(name, source)
    folder = data / name
    if entry.kind != "sample" and source.from_ is None:
        if _has_shards(folder):
            return Outcome(unchanged=True)
        raise StageError(_how_to_get(name, entry, folder))

    receipt = receipts / f"{name}.json"
    seen = _fingerprint(entry, source, settings)
    if _is_current(receipt, seen, folder):
        return Outcome(unchanged=True)
    _clear_leftovers(data)
    outcome = _store(name, _items(entry, source, settings), settings, data)
    if not _has_shards(folder):
        rejected = folder / shards.REJECTED
        raise StageError(
            f"{source.from_}: none of its images can be read; {rejected} holds them with the reasons"
            if rejected.exists()
            else f"{source.from_}: no images in it ({', '.join(sorted(readers.SUFFIXES))})"
        )
    content = json.dumps({"seen": seen, "shards": sorted(p.name for p in folder.glob("*.parquet"))})
    stage.replace(receipt, lambda path: path.write_text(content))
    return outcome


def _has_shards(folder: Path) -> bool:
    return any(p.name != shards.REJECTED for p in folder.glob("*.parquet"))


def _entry(name: str, source: Source) -> catalogue.Entry:
    entry = catalogue.load().get(name, catalogue.Entry())
    if source.labels:
        # One's own words first, then the usual ones.
        own = {label: [f.split("/") for f, said in source.labels.items() if said == label] for label in shards.LABELS}
        taken = [rule for rules in own.values() for rule in rules]
        rules = {
            label: own[label] + [rule for rule in usual if rule not in taken] for label, usual in entry.labels.items()
        }
        entry = entry.model_copy(update={"labels": rules})
    return entry


def _how_to_get(name: str, entry: catalogue.Entry, folder: Path) -> str:
    where = f"download it from {entry.homepage}, then" if entry.homepage else "then"
    return f"{folder}: source {name!r} is not here; {where} `trueframe ingest {name} --from PATH`"


def _fingerprint(entry: catalogue.Entry, source: Source, settings: Ingest) -> str:
    """Changes whenever reading the source again could bring something new."""
    digest = hashlib.sha256(entry.model_dump_json().encode() + source.model_dump_json().encode())
    if entry.kind == "sample":
        digest.update(settings.sample.model_dump_json().encode())
        return digest.hexdigest()
    root = Path(str(source.from_)).expanduser()
    digest.update(str(root.resolve()).encode())
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_current(receipt: Path, seen: str, folder: Path) -> bool:
    try:
        known = json.loads(receipt.read_text())
        return known["seen"] == seen and all((folder / name).exists() for name in known["shards"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _items(entry: catalogue.Entry, source: Source, settings: Ingest) -> Iterator[Item]:
    if entry.kind == "sample":
        yield from _sample_items(settings.sample)
        return
    root = Path(str(source.from_)).expanduser()
    unknown: Counter[str] = Counter()
    for path, data in readers.read(root, settings.max_file_mb * 2**20):
        # The root's own name counts too: `--from photos/real` is a folder of real images.
        named = f"{root.resolve().name}/{path}" if root.is_dir() else path
        label = entry.label(named)
        if label is None:
            unknown[str(Path(path).parent)] += 1
        elif not unknown:
            yield Item(data, path, label, entry.generator_of(named) if label == "ai" else None, entry.split(path))
    if unknown:
        shown = ", ".join(f"{folder} ({n} files)" for folder, n in unknown.most_common(5))
        rules = "; ".join(
            f"{label}: {', '.join('/'.join(rule) for rule in alternatives)}"
            for label, alternatives in entry.labels.items()
        )
        raise StageError(
            f"{root}: unknown label folder: {shown}; nothing was ingested. Folders that are understood: {rules}. "
            "Rename them, or say what they are under `labels` of the source in params.yaml"
        )


def _sample_items(settings: Sample) -> Iterator[Item]:
    tasks = ((index, settings.size, settings.seed) for index in range(settings.n_images))
    progress = parallel.Progress("sample: images made", settings.n_images)
    for made in parallel.ordered_map(_make_samples, parallel.batched(tasks, 64)):
        progress.add(len(made))
        yield from made


def _make_samples(tasks: list[tuple[int, int, int]]) -> list[Item]:
    made = []
    for index, size, seed in tasks:
        data, label = sample.make_image(index, size=size, seed=seed)
        made.append(Item(data, f"{label}/{index:06d}.jpg", label, sample.generator_name(index)))
    return made


def _store(name: str, items: Iterator[Item], settings: Ingest, data: Path) -> Outcome:
    folder, incoming = data / name, data / f".incoming-{os.getpid()}"
    here = _known(folder)
    refused_before = set(shards.rejected(data, name)["sha256"])
    counts = Counter[str]()
    refused: list[dict[str, Any]] = []
    identity = hashlib.sha256()
    progress = parallel.Progress(f"{name}: images read")

    def fresh() -> Iterator[tuple[Item, str]]:
        for item in items:
            progress.add()
            digest = hashlib.sha256(item.data or item.origin.encode()).hexdigest()
            # Copies inside one data set stay, for validation to count; only what an earlier batch brought is known.
            if here[digest, item.label] > 0:
                here[digest, item.label] -= 1
                counts["known"] += 1
            elif digest not in refused_before:
                yield item, digest

    def arrive() -> Iterator[dict[str, Any]]:
        for batch in parallel.ordered_map(_describe, parallel.batched(fresh(), _BATCH)):
            for row in batch:
                if "reason" in row:
                    refused.append(row)
                    if len(refused) <= 20:
                        print(
                            f"{row['origin']}: {row['reason']}; moved to {folder / shards.REJECTED}",
                            flush=True,
                        )
                    continue
                identity.update(f"{row['sha256']} {row['label']}\n".encode())
                yield row | {"source": name}

    try:
        incoming.mkdir(parents=True)
        parts = 0
        for rows in _shardfuls(arrive(), settings.shard_images):
            shards.write(incoming / f"{parts:05d}.parquet", rows)
            counts["added"] += len(rows)
            parts += 1
        if refused:
            table = pa.concat_tables(
                [
                    pa.Table.from_pandas(shards.rejected(data, name), shards.REJECTED_SCHEMA, preserve_index=False),
                    pa.Table.from_pylist(refused, shards.REJECTED_SCHEMA),
                ]
            )
            pq.write_table(table, incoming / shards.REJECTED)
        if parts or refused:
            folder.mkdir(exist_ok=True)
        batch_name = identity.hexdigest()[:12]
        for part in range(parts):
            (incoming / f"{part:05d}.parquet").rename(folder / f"{batch_name}-{part:05d}.parquet")
        if refused:
            (incoming / shards.REJECTED).replace(folder / shards.REJECTED)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return Outcome(counts["added"], counts["known"], len(refused))


def _known(folder: Path) -> Counter[tuple[str, str]]:
    """How often each (sha256, label) is stored."""
    found = {p.stem: p for p in folder.glob("*.parquet") if p.name != shards.REJECTED}
    if not found:
        return Counter()
    rows = shards.manifest(found)
    return Counter(zip(rows["sha256"], rows["label"], strict=True))


def _shardfuls(rows: Iterator[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        shard.append(row)
        size += row["n_bytes"]
        if len(shard) >= limit or size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _describe(batch: list[tuple[Item, str]]) -> list[dict[str, Any]]:
    """Decode a batch of files and fill in the columns; a file that can't be read gets a `reason` instead."""
    rows: list[dict[str, Any]] = []
    miniatures: list[np.ndarray] = []
    for item, digest in batch:
        row: dict[str, Any] = {"origin": item.origin, "label": item.label, "sha256": digest}
        try:
            if item.data is None:
                raise images.ImageError("larger than ingest.max_file_mb")
            opened = images.open_image(item.data)
            kind = {"mode": opened.mode, "format": opened.format}
            pixels = images.to_rgb(opened)
            miniatures.append(images.thumbnail(pixels))
        except images.ImageError as error:
            rows.append(row | {"reason": str(error), "bytes": item.data})
            continue
        rows.append(
            row
            | kind
            | {
                "image": {"bytes": item.data, "path": item.origin.rsplit("/", 1)[-1]},
                "generator": item.generator,
                "split": item.split,
                "width": pixels.width,
                "height": pixels.height,
                "n_bytes": len(item.data),
            }
        )
    hashes = iter(images.perceptual_hashes(np.stack(miniatures)) if miniatures else ())
    for row in rows:
        if "reason" not in row:
            row["phash"] = int(next(hashes))
    return rows


def _clear_leftovers(data: Path) -> None:
    """Remove what a killed ingestion left; one that still runs keeps its own."""
    for leftover in data.glob(".incoming-*"):
        if not _is_running(leftover.name.rsplit("-", 1)[1]):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()  # in containers the ids of different runs are often the same


def summary(data: Path) -> pd.DataFrame:
    """What is here: a row a source with its images by label."""
    found = {f"{p.parent.name}/{p.stem}": p for p in sorted(data.glob("*/*.parquet")) if p.name != shards.REJECTED}
    if not found:
        return pd.DataFrame(columns=["source", "ai", "real"])
    rows = shards.manifest(found)
    return rows.groupby(["source", "label"]).size().unstack(fill_value=0).reset_index()
