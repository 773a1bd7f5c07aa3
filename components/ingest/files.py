"""Folders and archives: the label from the names of folders, or from a table beside the images."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from components import folders
from components.folders import LeftOut, spelled
from components.ingest import readers, rows
from components.ingest.catalogue import Entry, Table, composed
from components.ingest.labels import Labels
from components.ingest.source import Item, Part, Place
from components.params import Label
from components.stage import StageError


def seen(place: Place) -> str:
    """Changes whenever a file in it does."""
    root = Path(place.where).expanduser()
    digest = hashlib.sha256(os.fsencode(root))  # a relative one stays the same where the project was moved
    for name, out in folders.walk(root, dotted=place.entry.dotted) if root.is_dir() else [("", None)]:
        try:
            status = (root / name).stat()
        except OSError:
            status = None
        said = f"{status.st_size}\0{status.st_mtime_ns}" if status and not out else f"{out}"
        digest.update(os.fsencode(f"{name}\0{said}\n"))
    return digest.hexdigest()


def parts(place: Place) -> Iterator[Part]:
    """One part: the whole folder or archive. Of a folder with Parquet files and known columns, a part a file.

    Raises:
        StageError: nothing is there.
    """
    root = Path(place.where).expanduser()
    found = folders.walk(root) if place.entry.columns and root.is_dir() else []
    tables = {name: None for name, out in found if not out and name.lower().endswith(".parquet")}
    if not tables:
        yield Part("", lambda: items(root, place.entry, place.max_bytes))
        return
    yield from left_out([out or LeftOut(name, "no Parquet file") for name, out in found if name not in tables])
    for name in tables:
        yield Part(
            spelled(name),
            lambda name=name: rows.items(  # type: ignore[misc]
                _plain(root / name, place.downloads), spelled(name), place, lambda: root / "README.md"
            ),
        )


def left_out(files: list[LeftOut]) -> Iterator[Part]:
    """A part of nothing but files that are left out, if there are any."""
    if files:
        key = "\n".join(f"{file.name}: {file.reason}" for file in files)
        yield Part(f"left out: {spelled(key)}", lambda: iter(files))


def _plain(path: Path, folder: Path) -> Path:
    """A file by a name in UTF-8, which Arrow wants."""
    if spelled(str(path)) == str(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.parquet"
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())
    return link


def items(root: Path, entry: Entry, max_bytes: int, prefix: str = "", above: str = "") -> Iterator[Item | LeftOut]:
    """The images of a folder or an archive, with what the catalogue's rules make of their paths.

    Args:
        root: the folder or archive.
        entry: the rules.
        max_bytes: of larger files only the name is given.
        prefix: stands before each path in `origin`.
        above: where an archive lies in its source; these folders may say the split too.

    Raises:
        StageError: a label can't be told, or the archive is damaged.
    """
    if entry.table:
        yield from _listed(root, entry, entry.table, max_bytes, prefix)
        return
    # The root's own name counts too: `--from photos/real` is a folder of real images.
    own = spelled(root.resolve().name) if root.is_dir() else ""
    labels = Labels(entry, spelled(str(root)), lambda: map(spelled, readers.names(root)), own)
    for path, data in readers.read(root, max_bytes, dotted=entry.dotted):
        name = spelled(path)
        if isinstance(data, LeftOut):
            labels.hold_together(data)
            yield data
            continue
        label = labels.of(name)
        if label is None:
            if labels.is_left_out(name):
                yield LeftOut(name, "no label")
        elif labels.is_all_told:
            generator = labels.generator(name) if label == "ai" else None
            yield Item(data, prefix + name, label, generator, entry.split_of(str(PurePosixPath(above, name))))
    labels.check()


def _listed(root: Path, entry: Entry, table: Table, max_bytes: int, prefix: str) -> Iterator[Item | LeftOut]:
    said = _read_table(root, table)
    for path, data in readers.read(root, max_bytes, dotted=entry.dotted):
        name = spelled(path)
        found = next((said[tail] for tail in _tails(composed(name)) if tail in said), None)
        if isinstance(data, LeftOut) or found is None:
            yield data if isinstance(data, LeftOut) else LeftOut(name, f"not in {table.file}")
            continue
        label, pair = found
        generator = entry.generator if label == "ai" else None
        yield Item(data, prefix + name, label, generator, entry.split_of(name), pair)


def _tails(path: str) -> Iterator[str]:
    """A path, and what remains of it without its first folders: a table need not know what lies above it."""
    folders = path.split("/")
    return ("/".join(folders[start:]) for start in range(len(folders)))


def _read_table(root: Path, table: Table) -> dict[str, tuple[Label, str | None]]:
    """Label and pair by path."""
    data = readers.member(root, table.file)
    if data is None:
        raise StageError(f"{root}: {table.file} isn't in it, which says what its images are; download it again")
    text = composed(spelled(data.decode("utf-8-sig", "surrogateescape")))
    lines = list(csv.DictReader(io.StringIO(text)))
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
