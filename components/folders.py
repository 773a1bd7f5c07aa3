"""Which files of a folder or an archive are of the collection: one rule for all that read them."""

import contextlib
import heapq
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components import images

NO_IMAGE = "no image"
NOT_CALLED_ONE = "not called an image"
"""Where nothing is fetched to see how it begins."""
_SYSTEM = {
    "__macosx", "lost+found", "system volume information", "$recycle.bin", "recycler", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
}  # fmt: skip
"""Names that file systems, macOS, Windows, Synology and QNAP give to what is theirs, in lower case."""
_UNFINISHED = ("~", ".bak", "_original", ".part", ".partial", ".crdownload")
"""How editors, exiftool and browsers end the names of backups and of downloads that aren't whole."""


@dataclass(frozen=True)
class LeftOut:
    """A file that doesn't come in.

    Attributes:
        name: its path.
        reason: why, in a word or two that can be counted.
        same_as: of a link to what is read by another name, that name; a folder's ends in a slash.
    """

    name: str
    reason: str
    same_as: str | None = None


def why_not(name: str, *, dotted: bool = False) -> str | None:
    """Why a file isn't of the collection, by its path inside it; null for all others.

    What is hidden, what systems put beside people's files, backups and halves of downloads are no part of it.

    Args:
        name: its path.
        dotted: whether files whose names begin with a dot are known to be like the others here.
    """
    parts = name.lower().split("/")
    if not _SYSTEM.isdisjoint(parts):
        return "of the system"
    hidden = (part.startswith("._" if dotted and part is parts[-1] else ".") for part in parts if part.strip("."))
    if any(hidden):
        return "hidden"
    if parts[-1].endswith(_UNFINISHED) or (parts[-1].startswith("#") and parts[-1].endswith("#")):
        return "backup or half a download"
    return None


def is_named_as_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return PurePosixPath(name).suffix.lower() in images.SUFFIXES


def walk(root: Path, *, dotted: bool = False) -> list[tuple[str, LeftOut | None]]:
    """All files in a folder by their path inside it, in order, each with why it is left out, if it is.

    No file is opened. Links are followed, but what they lead to is read once: by its own name, where it has one in
    the folder, or else by that of the first link. What is neither file nor folder is left out: a pipe would never
    end.

    Args:
        root: the folder.
        dotted: see `why_not`.

    Raises:
        OSError: the folder can't be read.
    """
    top = os.path.realpath(root)
    found: dict[str, LeftOut | None] = {}
    names = {top: ""}  # by real path: what is read by which name; of files only those that a link led to
    folders = [("", top)]
    links: list[tuple[list[str], str]] = []  # followed last, so that what has a name of its own has had its turn

    def left_out(name: str, reason: str, same_as: str | None = None) -> None:
        found[name] = LeftOut(name, reason, same_as)

    def follow(name: str, link: str) -> None:
        target = os.path.realpath(link)
        folder, file = os.path.split(target)
        at = Path(target)
        known = names.get(target)
        if known is None and folder in names and at.is_file():
            own = _join(names[folder], file)
            known = None if why_not(own, dotted=dotted) else own
        if known is not None:
            left_out(name, "link seen before", f"{known}/" if at.is_dir() else known)
        elif at.is_dir():
            if _is_above(target, top) or _is_above(target, link):
                left_out(name, "link to a folder above")
            else:
                names[target] = name
                folders.append((name, target))
        elif at.is_file():
            names[target] = name
            found[name] = None if os.access(target, os.R_OK) else LeftOut(name, "not readable")
        else:
            left_out(name, "no file" if at.exists() else "broken link")

    while folders or links:
        if not folders:
            parts, link = heapq.heappop(links)
            follow("/".join(parts), link)
            continue
        above, folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            if folder == top:
                raise
            left_out(above, "not readable")
            continue
        for entry in entries:
            name = _join(above, entry.name)
            reason = why_not(name, dotted=dotted)
            if entry.is_dir(follow_symlinks=False):
                if entry.path in names:
                    left_out(name, "link seen before", f"{names[entry.path]}/")
                    continue
                if not reason:
                    names[entry.path] = name
                folders.append((name, entry.path))  # what is in there is counted
            elif reason:
                left_out(name, reason)
            elif entry.is_symlink():
                heapq.heappush(links, (name.split("/"), entry.path))
            elif not entry.is_file():
                left_out(name, "no file")
            elif entry.path in names:
                left_out(name, "link seen before", names[entry.path])
            else:
                found[name] = None if os.access(entry.path, os.R_OK) else LeftOut(name, "not readable")
    return sorted(found.items(), key=lambda item: item[0].split("/"))


def pictures(root: Path) -> Iterator[tuple[str, LeftOut | None]]:
    """As `walk`, with what is no image left out: what isn't called one is known by its first bytes."""
    for name, out in walk(root):
        if out or is_named_as_image(name):
            yield name, out
            continue
        head = b""
        with contextlib.suppress(FileNotFoundError), (root / name).open("rb") as file:
            head = file.read(images.HEAD)
        yield name, None if images.kind(head) else LeftOut(name, NO_IMAGE)


def counted(reasons: Mapping[str, int]) -> str:
    """How many files were left out, and why, in words."""
    parts = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return f"{sum(reasons.values()):,} left out ({', '.join(f'{n:,} {reason}' for reason, n in parts)})"


def spelled(name: str) -> str:
    r"""A name that can be written and shown anywhere: bytes that aren't UTF-8 are spelled out (`caf\xe9.jpg`)."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return name.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name


def _is_above(folder: str, path: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
