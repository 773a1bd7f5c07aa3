"""Folders and archives: the label from the names of folders, or from a table beside the images."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from components.ingest import readers, rows
from components.ingest.catalogue import Entry, Table
from components.ingest.source import Item, Part, Place
from components.params import Label
from components.stage import StageError


def seen(place: Place) -> str:
    """Changes whenever a file in it does."""
    root = Path(place.where).expanduser()
    digest = hashlib.sha256(str(root).encode())  # a relative one stays the same where the project was moved
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def parts(place: Place) -> Iterator[Part]:
    """One part: the whole folder or archive. Of a folder with Parquet files and known columns, a part a file.

    Raises:
        StageError: nothing is there.
    """
    root = Path(place.where).expanduser()
    tables = sorted(root.rglob("*.parquet")) if place.entry.columns and root.is_dir() else []
    for path in tables:
        name = path.relative_to(root).as_posix()
        yield Part(name, lambda path=path, name=name: rows.items(path, name, place))  # type: ignore[misc]
    if not tables:
        yield Part("", lambda: items(root, place.entry, place.max_bytes))


def items(root: Path, entry: Entry, max_bytes: int, prefix: str = "") -> Iterator[Item]:
    """The images of a folder or an archive, with what the catalogue's rules make of their paths.

    Args:
        root: the folder or archive.
        entry: the rules.
        max_bytes: of larger files only the name is given.
        prefix: stands before each path in `origin`.

    Raises:
        StageError: a label can't be told, or the archive is damaged.
    """
    if entry.table:
        yield from _listed(root, entry, entry.table, max_bytes, prefix)
        return
    unknown: Counter[str] = Counter()
    left_out = 0
    for path, data in readers.read(root, max_bytes):
        # The root's own name counts too: `--from photos/real` is a folder of real images.
        named = f"{root.resolve().name}/{path}" if root.is_dir() else path
        label = entry.label_of(named)
        if label is None and entry.is_unlabelled(named):
            left_out += 1
        elif label is None:
            unknown[str(Path(path).parent)] += 1
        elif not unknown:
            generator = entry.generator_of(named) if label == "ai" else None
            yield Item(data, prefix + path, label, generator, entry.split_of(path))
    if unknown:
        raise StageError(unknown_folders(str(root), unknown, entry))
    if left_out:
        print(f"{root}: {left_out:,} images without a label are left out", flush=True)


def unknown_folders(where: str, unknown: Counter[str], entry: Entry) -> str:
    """What to say of folders whose names say no label."""
    shown = ", ".join(f"{folder} ({n} files)" for folder, n in unknown.most_common(5))
    rules = "; ".join(
        f"{label}: {', '.join('/'.join(rule) for rule in alternatives)}" for label, alternatives in entry.labels.items()
    )
    return (
        f"{where}: unknown label folder: {shown}; nothing was ingested. Folders that are understood: {rules}. "
        "Rename them, or say what they are under `labels` of the source in params.yaml (or `label`, if all are the "
        "same)"
    )


def _listed(root: Path, entry: Entry, table: Table, max_bytes: int, prefix: str) -> Iterator[Item]:
    said = _read_table(root, table)
    left_out = 0
    for path, data in readers.read(root, max_bytes):
        found = next((said[name] for name in _tails(path) if name in said), None)
        if found is None:
            left_out += 1
            continue
        label, pair = found
        generator = entry.generator if label == "ai" else None
        yield Item(data, prefix + path, label, generator, entry.split_of(path), pair)
    if left_out:
        print(f"{root}: {left_out:,} images that {table.file} doesn't name are left out", flush=True)


def _tails(path: str) -> Iterator[str]:
    """A path, and what remains of it without its first folders: a table need not know what lies above it."""
    folders = path.split("/")
    return ("/".join(folders[start:]) for start in range(len(folders)))


def _read_table(root: Path, table: Table) -> dict[str, tuple[Label, str | None]]:
    """Label and pair by path."""
    data = readers.member(root, table.file)
    if data is None:
        raise StageError(f"{root}: {table.file} isn't in it, which says what its images are; download it again")
    lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    said: dict[str, tuple[Label, str | None]] = {}
    for number, line in enumerate(lines):
        try:
            path, value = line[table.path].strip(), line[table.label].strip()
        except (KeyError, AttributeError):
            raise StageError(
                f"{root}: {table.file}, line {number + 2} lacks {table.path} or {table.label}; download it again"
            ) from None
        if value not in table.values:
            raise StageError(
                f"{root}: {table.file}, line {number + 2}: {table.label} is {value!r}, not {', '.join(table.values)}"
            )
        said[path] = table.values[value], None
    if table.pairs == "neighbours":
        for first, second in zip(lines[::2], lines[1::2], strict=False):
            one, other = first[table.path].strip(), second[table.path].strip()
            if said[one][0] != said[other][0]:
                pair = min(one, other)
                said[one], said[other] = (said[one][0], pair), (said[other][0], pair)
    return said
