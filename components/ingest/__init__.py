"""Images in: sources become shards under `data/`, atomically, in a fixed order, each image once."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from components import folders, images, parallel, shards, stage
from components.folders import LeftOut
from components.ingest import catalogue
from components.ingest.source import Item, Part, Place
from components.params import Ingest, Source
from components.stage import StageError, read_json

_SHARD_BYTES = 256 * 2**20
_SUFFIXES = ", ".join(sorted(images.SUFFIXES))
_BATCH = 256
_KINDS = {
    "sample": "sample",
    "kaggle": "kaggle",
    "hf": "huggingface",
    "s3": "s3",
    "web": "web",
    "http": "web",
    "https": "web",
    "feedback": "feedback",
}
"""The module that reads a source, by the scheme of its place; a path without one is a folder or an archive."""


@dataclass(frozen=True)
class Outcome:
    """What an ingestion did.

    Attributes:
        added: images that came in.
        known: that were here already.
        rejected: files that can't be read.
        unchanged: nothing was read, because nothing can have changed.
        left_out: files that are no part of it, by reason; not compared, because the data are the same without them.
        is_cut: the limits were reached before all was read.
    """

    added: int = 0
    known: int = 0
    rejected: int = 0
    unchanged: bool = False
    left_out: dict[str, int] = field(default_factory=dict, compare=False)
    is_cut: bool = field(default=False, compare=False)


def ingest(name: str, source: Source, settings: Ingest, data: Path, receipts: Path) -> Outcome:
    """Bring a source's new images into `data/<name>/`.

    The same files give the same shards, byte for byte, and files that are there already add nothing. All of it
    arrives or none: until the last part is read, what was read waits under `data/.incoming/`, and an ingestion that
    was stopped goes on from there. Files that can't be read go to `rejected.parquet` with the reason.

    Args:
        name: the source's name in the catalogue, or a new one for images of one's own.
        source: where it is, if not the catalogue's own place, and what of it is wanted.
        settings: the section `ingest`.
        data: folder of the shards.
        receipts: folder of small files that remember what was read, so that an unchanged source isn't read again.

    Raises:
        StageError: nothing to read, no image in it that can be read, a label that can't be told, a damaged file,
            a service that doesn't answer, or another ingestion of the same source at work.
    """
    entry = _entry(name, source)
    where = source.from_ or entry.location
    folder, incoming = data / name, data / ".incoming" / name
    if where and where != folders.spelled(where):
        raise StageError(
            f"{folders.spelled(where)}: this path isn't UTF-8, and no settings can name it; rename it, or give a link "
            "to it"
        )
    if where is None:
        if shards.exist(folder):
            return Outcome(unchanged=True)
        get = f"get it at {entry.homepage}, then " if entry.homepage else ""
        raise StageError(
            f"{folder}: source {name!r} is not here; {get}`trueframe ingest {name} --from PATH` brings it in"
        )

    with _only_one(name, incoming):
        place = Place(name, where, entry, source, settings, incoming / "downloads")
        kind = _kind(where)
        receipt = _Receipt.read(receipts / f"{name}.json")
        # Brought in by hand, from an archive of one's own, or a clone, which has the images and not the receipts.
        if source.from_ is None and receipt.where != where and where != "sample:" and shards.exist(folder):
            return Outcome(unchanged=True)
        seen = _digest(entry, source, kind.seen(place))  # reading it again brings nothing new until this changes
        if receipt.is_current(seen, folder):
            return Outcome(unchanged=True)
        # What was covered by other rules may be wanted by these.
        rules = _digest(entry, source.model_copy(update={"max_images": None, "per_generator": None}))
        if receipt.is_whole(folder) and receipt.rules == rules:
            place = dataclasses.replace(place, covered=receipt.covered)
        batch = _Batch(place, seen, data, incoming)
        batch.read(kind.parts(place))
        outcome = batch.arrive()
        if not shards.exist(folder):
            rejected = folder / shards.REJECTED
            raise StageError(
                f"{where}: none of its images can be read; {rejected} holds them with the reasons"
                if rejected.exists()
                else f"{where}: {getattr(kind, 'EMPTY', f'no images in it ({_SUFFIXES})')}"
                + (f"; {folders.counted(outcome.left_out)}" if outcome.left_out else "")
            )
        covered = place.covered | batch.covered
        stored_ = sorted(p.name for p in folder.glob("*.parquet"))
        counts = {key: getattr(outcome, key) for key in ("added", "known", "rejected", "left_out")}
        _Receipt(where, seen, rules, stored_, covered, counts).write(receipts / f"{name}.json")
        shutil.rmtree(place.downloads, ignore_errors=True)
    return outcome


def with_words(source: Source, said: dict[str, Any]) -> Source:
    """A source with what a command said of it, by the keys of `ingest.sources`; null where it said nothing.

    Raises:
        StageError: a word is not allowed there.
    """
    known = source.model_dump(by_alias=True) | {key: value for key, value in said.items() if value is not None}
    try:
        return Source.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg'].lower()}") from None


def summarised(name: str, outcome: Outcome) -> str:
    """An outcome in a line."""
    if outcome.unchanged:
        return f"{name}: nothing new"
    left_out = f", {folders.counted(outcome.left_out)}" if outcome.left_out else ""
    cut = "; the limits were reached before all was read" if outcome.is_cut else ""
    return (
        f"{name}: {outcome.added:,} images added, {outcome.known:,} already here, {outcome.rejected:,} rejected"
        f"{left_out}{cut}"
    )


def _entry(name: str, source: Source) -> catalogue.Entry:
    """The catalogue's entry, with the settings' own words laid over it."""
    entry = catalogue.load().get(name, catalogue.Entry())
    own = {key: getattr(source, key) for key in ("label", "generator", "columns") if getattr(source, key) is not None}
    if source.labels:
        # One's own words first, then the usual ones.
        said = {label: [f.split("/") for f, is_ in source.labels.items() if is_ == label] for label in shards.LABELS}
        taken = [[catalogue.folded(name) for name in rule] for rules in said.values() for rule in rules]

        def rest(usual: list[catalogue.Rule]) -> list[catalogue.Rule]:
            return [rule for rule in usual if [catalogue.folded(name) for name in rule] not in taken]

        own["labels"] = {label: said[label] + rest(usual) for label, usual in entry.labels.items()}
        own["weak"] = rest(entry.weak)
    return entry.model_copy(update=own)


def _kind(where: str) -> Any:
    scheme, colon, _ = where.partition(":")
    module = _KINDS.get(scheme.lower(), "files") if colon else "files"
    return importlib.import_module(f"components.ingest.{module}")


def _digest(*said: Any) -> str:
    text = "".join(one if isinstance(one, str) else one.model_dump_json() for one in said)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _only_one(name: str, incoming: Path) -> Iterator[None]:
    """Hold the source's lock; the system lets go of it when the process ends, however it ends."""
    incoming.mkdir(parents=True, exist_ok=True)
    with (incoming / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{name}: another ingestion of it is at work; wait for it") from None
        try:
            yield
        finally:
            kept = {path.name for path in incoming.iterdir()} - {"lock", "plan.json"}
            if not kept:
                shutil.rmtree(incoming)
                with contextlib.suppress(OSError):  # others are at work
                    incoming.parent.rmdir()


@dataclass(frozen=True)
class _Receipt:
    """What was read, so that it needn't be read again."""

    where: str | None = None
    seen: str | None = None
    rules: str = ""
    shards: list[str] = field(default_factory=list)
    covered: frozenset[str] = frozenset()
    counts: dict[str, Any] = field(default_factory=dict)  # of the last time that it was read, for people

    @classmethod
    def read(cls, path: Path) -> "_Receipt":
        try:
            known = json.loads(path.read_text())
            return cls(known["where"], known["seen"], known["rules"], known["shards"], frozenset(known["covered"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        content = json.dumps(dataclasses.asdict(self) | {"covered": sorted(self.covered)})
        stage.replace(path, lambda target: target.write_text(content))

    def is_whole(self, folder: Path) -> bool:
        return bool(self.shards) and all((folder / name).exists() for name in self.shards)

    def is_current(self, seen: str, folder: Path) -> bool:
        return self.seen == seen and self.is_whole(folder)


class _Batch:
    """What one ingestion brings: read part by part into `data/.incoming/<source>/`, then moved into place at once."""

    def __init__(self, place: Place, seen: str, data: Path, incoming: Path) -> None:
        self.place, self.folder, self.incoming = place, data / place.name, incoming
        stored = _stored(self.folder)
        self.here = Counter(zip(stored["sha256"], stored["label"], strict=True))
        self.refused_before = set(shards.rejected(data, place.name)["sha256"])
        self.forgotten = shards.forgotten(data)
        self.counts: Counter[str] = Counter()  # of this ingestion: added, known, rejected
        self.left_out: Counter[str] = Counter()
        self.is_cut = False
        # Of all that is here, for the limits: by label and by generator.
        self.taken: Counter[str] = Counter(f"label {label}" for label in stored["label"])
        self.taken.update(f"generator {generator}" for generator in stored["generator"].dropna())
        self.covered: frozenset[str] = frozenset()
        self.parts: list[Path] = []
        self.progress = parallel.Progress(f"{place.name}: images read")
        self._take_up(seen)

    def _take_up(self, seen: str) -> None:
        """Keep what an earlier, stopped ingestion of the same images read, and nothing else."""
        plan = self.incoming / "plan.json"
        if plan.exists() and read_json(plan)["seen"] == seen:
            return
        for leftover in self.incoming.glob("part-*"):
            shutil.rmtree(leftover)
        stage.replace(plan, lambda path: path.write_text(json.dumps({"seen": seen})))

    def read(self, parts: Iterator[Part]) -> None:
        """Read the parts, those that are whole already excepted."""
        for part in parts:
            folder = self.incoming / f"part-{hashlib.sha256(part.key.encode()).hexdigest()[:16]}"
            if not (folder / "done.json").exists():
                # Parts that are read count, full or not: of a killed arrival, some of their images are here already.
                if self._is_full():
                    self.is_cut = True
                    break
                self._read(part, folder)
            done = read_json(folder / "done.json")
            self.counts.update(done["counts"])
            self.left_out.update(done["left_out"])
            self.is_cut |= done["cut"]
            self.taken.update(done["taken"])
            self.here.subtract({(sha, label): n for sha, label, n in done["known"]})
            self.parts.append(folder)
            if done["whole"]:
                self.covered |= set(part.covers)

    def _read(self, part: Part, folder: Path) -> None:
        counts: Counter[str] = Counter()
        known: Counter[tuple[str, str]] = Counter()
        taken: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        refused: list[dict[str, Any]] = []
        about: list[dict[str, Any]] = []
        identity = hashlib.sha256(part.key.encode())
        whole, cut = True, False
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        def fresh() -> Iterator[tuple[Item, str]]:
            nonlocal whole, cut
            for item in part.items():
                if isinstance(item, LeftOut):
                    left_out[item.reason] += 1
                    continue
                self.progress.add()
                digest = hashlib.sha256(item.data or item.origin.encode()).hexdigest()
                if digest in self.forgotten:
                    left_out["forgotten"] += 1
                    continue
                # Copies inside one data set stay, for validation to count; only what an earlier batch brought is
                # known.
                key = digest, item.label
                if self.here[key] > known[key]:
                    known[key] += 1
                elif digest in self.refused_before:
                    left_out["rejected before"] += 1
                elif self._is_wanted(item, taken):
                    taken.update(_kinds(item.label, item.generator))
                    yield item, digest
                else:
                    whole = False
                    left_out["above the limit"] += 1
                    if self._is_full(taken):
                        cut = True
                        return

        def arrive() -> Iterator[dict[str, Any]]:
            for batch in parallel.ordered_map(_describe, parallel.batched(fresh(), _BATCH)):
                for row in batch:
                    extra = {key: row.pop(key) for key in shards.ABOUT_COLUMNS}
                    if "reason" in row:
                        refused.append(row)
                        if self.counts["rejected"] + len(refused) <= 20:
                            moved = f"moved to {self.folder / shards.REJECTED}"
                            print(f"{row['origin']}: {row['reason']}; {moved}", flush=True)
                        continue
                    if any(extra.values()):
                        about.append(extra | {key: row[key] for key in ("sha256", "label", "origin")})
                    identity.update(f"{row['sha256']} {row['label']}\n".encode())
                    yield row | {"source": self.place.name}

        try:
            names: list[str] = []
            for rows in _shardfuls(arrive(), self.place.settings.shard_images):
                names.append(f"{len(names):05d}.parquet")
                shards.write(folder / names[-1], rows)
                counts["added"] += len(rows)
            for file in names:
                (folder / file).rename(folder / f"{identity.hexdigest()[:12]}-{file}")
            for name, rows_, schema in (
                (shards.REJECTED, refused, shards.REJECTED_SCHEMA),
                (shards.ABOUT, about, shards.ABOUT_SCHEMA),
            ):
                if rows_:
                    pq.write_table(pa.Table.from_pylist(rows_, schema), folder / name)
            counts["known"], counts["rejected"] = sum(known.values()), len(refused)
            done = {
                "counts": counts,
                "left_out": left_out,
                "cut": cut,
                "taken": taken,
                "known": [[sha, label, n] for (sha, label), n in known.items()],
                "whole": whole,
            }
            stage.replace(folder / "done.json", lambda path: path.write_text(json.dumps(done)))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _is_wanted(self, item: Item, taken: Counter[str]) -> bool:
        """Whether the limits leave room for an image."""
        limits = {"label": self._per_label(), "generator": self.place.source.per_generator}
        return all(
            limits[key.split(" ", 1)[0]] is None or self.taken[key] + taken[key] < limits[key.split(" ", 1)[0]]  # type: ignore[operator]
            for key in _kinds(item.label, item.generator)
        )

    def _is_full(self, taken: Counter[str] | None = None) -> bool:
        limit = self._per_label()
        labels = [self.place.entry.label] if self.place.entry.label else shards.LABELS
        return limit is not None and all(
            self.taken[f"label {label}"] + (taken or Counter())[f"label {label}"] >= limit for label in labels
        )

    def _per_label(self) -> int | None:
        """`max_images` is shared alike by the labels that the source can have."""
        most = self.place.source.max_images
        return most if most is None or self.place.entry.label else math.ceil(most / 2)

    def arrive(self) -> Outcome:
        """Move everything into place; the shards first, so that what is killed in between is finished by a rerun."""
        parts = sorted(self.parts)
        new = [path for part in parts for path in sorted(part.glob("*-*.parquet"))]
        if self.counts["added"] or self.counts["rejected"]:
            self.folder.mkdir(exist_ok=True)
        for name, schema in ((shards.REJECTED, shards.REJECTED_SCHEMA), (shards.ABOUT, shards.ABOUT_SCHEMA)):
            added = [part / name for part in parts if (part / name).exists()]
            if added:
                old = [self.folder / name] if (self.folder / name).exists() else []
                table = pa.concat_tables([pq.read_table(path, schema=schema) for path in old + added])
                unique = table.to_pandas().drop_duplicates([c for c in schema.names if c != "bytes"])
                table = pa.Table.from_pandas(unique, schema, preserve_index=False)
                stage.replace(self.folder / name, lambda path, table=table: pq.write_table(table, path))  # type: ignore[misc]
        for path in new:
            path.rename(self.folder / path.name)
        for part in self.incoming.glob("part-*"):
            shutil.rmtree(part)
        (self.incoming / "plan.json").unlink(missing_ok=True)
        return Outcome(
            self.counts["added"],
            self.counts["known"],
            self.counts["rejected"],
            left_out=dict(self.left_out.most_common()),
            is_cut=self.is_cut,
        )


def _kinds(label: str, generator: str | None) -> list[str]:
    return [f"label {label}", *([f"generator {generator}"] if generator else [])]


def _stored(folder: Path) -> pd.DataFrame:
    found = {p.stem: p for p in shards.stored(folder)}
    return shards.manifest(found) if found else pd.DataFrame(columns=["sha256", "label", "generator"])


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
        row |= {column: getattr(item, column) for column in shards.ABOUT_COLUMNS}
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


def summary(data: Path) -> pd.DataFrame:
    """What is here: a row a source with its images by label."""
    folders = sorted(p for p in data.glob("[!.]*") if p.is_dir())
    found = {f"{folder.name}/{p.stem}": p for folder in folders for p in shards.stored(folder)}
    if not found:
        return pd.DataFrame(columns=["source", "ai", "real"])
    rows = shards.manifest(found)
    return rows.groupby(["source", "label"]).size().unstack(fill_value=0).reset_index()
