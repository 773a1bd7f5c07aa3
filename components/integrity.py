"""Which files a detector consists of, by their SHA-256, in the form that `sha256sum --check` reads."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from components import stage
from components.stage import StageError

NAME = "SHA256SUMS"
_OTHERS = (NAME, "registered_model_meta")  # the latter is MLflow's, beside what it downloads
_SHOWN = 5


def sums(files: Mapping[str, Path]) -> str:
    """A line for each file.

    Args:
        files: by the name that it has in the list.
    """
    return "".join(f"{digest(file)}  {name}\n" for name, file in sorted(files.items()))


def listed(folder: Path) -> str:
    """A line for each file of a folder, this list itself excepted."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return sums({name: path for name, path in names.items() if name not in _OTHERS})


def write(folder: Path) -> None:
    """Put the list into the folder."""
    stage.replace(folder / NAME, lambda path: path.write_text(listed(folder)))


def check(folder: Path) -> None:
    """See that a folder's files are those of the list in it.

    Raises:
        StageError: they aren't, or there is no list.
    """
    try:
        recorded = (folder / NAME).read_text()
    except FileNotFoundError:
        raise StageError(f"{folder}: no {NAME} is here, so nobody knows whether its files are the right ones") from None
    changed = differences(recorded, listed(folder))
    if changed:
        raise StageError(f"{folder}: not the files of its {NAME}: {changed}; nothing of it was loaded")


def differences(recorded: str, found: str) -> str:
    """What is other in one list than in another, in words; empty where nothing is."""
    before, now = ({line[66:]: line[:64] for line in text.splitlines()} for text in (recorded, found))
    changed = [
        *(f"{name} is missing" for name in before.keys() - now.keys()),
        *(f"{name} was added" for name in now.keys() - before.keys()),
        *(f"{name} was changed" for name in before.keys() & now.keys() if before[name] != now[name]),
    ]
    more = f" and {len(changed) - _SHOWN:,} more" if len(changed) > _SHOWN else ""
    return ", ".join(sorted(changed)[:_SHOWN]) + more


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
