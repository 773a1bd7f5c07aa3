"""Folders and archives as streams of files. Nothing of an archive is ever unpacked to disk."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components import folders, images
from components.folders import NO_IMAGE, LeftOut
from components.stage import StageError

_TABLE = 256 * 2**20  # bytes of a table beside the images
_DESCRIBING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_DESCRIPTION = 2**20  # bytes of what a tar says of a member, such as its long name
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be read."""
    return path.name.lower().endswith(ARCHIVES)


def read(path: Path, max_bytes: int, *, dotted: bool = False) -> Iterator[tuple[str, bytes | LeftOut | None]]:
    """The files of a folder or an archive: pairs of (path inside it, bytes).

    Bytes are None for an image above `max_bytes`; in their place stands why a file is left out: it is not of the
    collection (see `folders`), or no image by its name nor by its first bytes. The order is the sorted one for a
    folder and an archive's own otherwise.

    Args:
        path: the folder or archive.
        max_bytes: of larger files only the name is given.
        dotted: whether files whose names begin with a dot are like the others (see `folders.why_not`).

    Raises:
        StageError: nothing is there; the archive is damaged, ends early, is encrypted, or holds a name that
            leaves it (`../`, absolute) or a link.
    """
    return _files(path, lambda name, size, opened: _content(name, size, max_bytes, opened), dotted)


def names(path: Path) -> Iterator[str]:
    """The paths of the files in a folder or an archive, those excepted that aren't of the collection."""
    return (name for name, out in _files(path, lambda *_: None) if out is None)


_Opened = Callable[[], IO[bytes]]
_Take = Callable[[str, int, _Opened], bytes | LeftOut | None]
"""What becomes of a file, by its name, its size and how to open it."""


def _files(path: Path, take: _Take, dotted: bool = False) -> Iterator[tuple[str, bytes | LeftOut | None]]:
    if path.is_dir():
        return _folder(path, take, dotted)
    if not path.exists():
        raise StageError(f"{path}: not found; give a folder or an archive ({', '.join(ARCHIVES)})")
    if not is_archive(path):
        raise StageError(f"{path}: neither a folder nor an archive ({', '.join(ARCHIVES)})")
    return _zip(path, take, dotted) if path.suffix.lower() == ".zip" else _tar(path, take, dotted)


def _content(name: str, size: int, max_bytes: int, opened: _Opened) -> bytes | LeftOut | None:
    is_named = folders.is_named_as_image(name)
    if is_named and size > max_bytes:
        return None
    with opened() as file:
        head = b"" if is_named else file.read(images.HEAD)
        if not is_named and not images.kind(head):
            return LeftOut(name, _other(name))
        return None if size > max_bytes else head + file.read(max(0, size - len(head)))


def _other(name: str) -> str:
    """What a file is that is no image."""
    if is_archive(Path(name)):
        return "archive inside"
    return "Parquet file" if name.lower().endswith(".parquet") else NO_IMAGE


def member(path: Path, name: str) -> bytes | None:
    """One file of a folder or an archive by the end of its path: its bytes, or None if it isn't there.

    Raises:
        StageError: the archive is damaged.
    """

    def take(found: str, size: int, opened: _Opened) -> bytes | None:
        if not f"/{found}".endswith(f"/{name}"):
            return None
        if size > _TABLE:
            raise StageError(f"{path}: {name} has {size:,} bytes; a table may have {_TABLE:,}")
        with opened() as file:
            return file.read(size)

    return next((data for _, data in _files(path, take) if isinstance(data, bytes)), None)


def _folder(root: Path, take: _Take, dotted: bool) -> Iterator[tuple[str, bytes | LeftOut | None]]:
    for name, out in folders.walk(root, dotted=dotted):
        path = root / name
        yield name, out or take(name, path.stat().st_size, lambda path=path: path.open("rb"))  # type: ignore[misc]


def _zip(path: Path, take: _Take, dotted: bool) -> Iterator[tuple[str, bytes | LeftOut | None]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                (_inside(path, _named(info), link=(info.external_attr >> 28) == 0o12), info)
                for info in archive.infolist()
            ]
            for name, info in members:
                if info.filename.endswith(("/", "\\")):
                    continue
                why = folders.why_not(name, dotted=dotted)
                yield (
                    name,
                    LeftOut(name, why)
                    if why
                    else take(
                        name,
                        info.file_size,
                        lambda info=info: _unpacked(path, archive, info),  # type: ignore[misc]
                    ),
                )
    except UnicodeDecodeError:
        raise _wrongly_named(path) from None
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from None


def _tar(path: Path, take: _Take, dotted: bool) -> Iterator[tuple[str, bytes | LeftOut | None]]:
    try:
        with _decompressed(path) as stream, _opened_tar(stream) as archive:
            for member in archive:
                name = _inside(path, member.name, link=member.issym() or member.islnk())
                if member.isdir():
                    continue
                why = folders.why_not(name, dotted=dotted) or ("" if member.isfile() else "no file")
                if why:
                    yield name, LeftOut(name, why)
                    continue
                data = take(name, member.size, lambda member=member: archive.extractfile(member))  # type: ignore
                if isinstance(data, bytes) and len(data) != member.size:
                    raise EOFError(f"{member.name} is cut off")
                yield name, data
            # A tar ends with zero blocks, of which tarfile has read the first. Without one the file was cut off.
            if archive.fileobj is None or archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
                raise EOFError("no end mark")
            while stream.read(2**20):  # the checksum comes last
                pass
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _damaged(path, error) from None
    except OSError as error:  # what gzip and bz2 find damaged has no number
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None


class _Member(tarfile.TarInfo):
    """A tar's member. What only describes another one is read whole into memory, so it may not be large."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIBING and self.size > _DESCRIPTION:
            raise tarfile.ReadError(f"a description of {self.size:,} bytes")
        return super()._proc_member(tarfile_)  # type: ignore[misc]


def _opened_tar(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, encoding="utf-8", errors="surrogateescape")


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A file of a zip, opened; who reads no more than `file_size` of it is safe, whatever its data unpack to."""
    if member.flag_bits & 1:
        raise StageError(f"{path}: encrypted; unpack it and ingest the folder")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StageError(
            f"{path}: {member.filename!r} is packed in a way whose memory has no bound; unpack it and ingest the folder"
        )
    return archive.open(member)


def _decompressed(path: Path) -> IO[bytes]:
    """A tar's bytes. `tarfile` can decompress too, but doesn't verify gzip's checksum."""
    with path.open("rb") as file:
        head = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for magic, opener in openers.items() if head.startswith(magic)), open)(path, "rb")


def _inside(archive: Path, name: str, *, link: bool) -> str:
    """A member's path, in which Windows' separators count too; of one that leads elsewhere, a refusal."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        raise StageError(f"{archive}: {name!r} points outside the archive; refused, and nothing was ingested")
    if link:
        raise StageError(f"{archive}: {name!r} is a link; refused, and nothing was ingested")
    return str(path)


def _named(member: zipfile.ZipInfo) -> str:
    """A zip's name: what doesn't say that it is UTF-8 is read as DOS wrote it, but may be UTF-8 all the same."""
    try:
        return member.filename if member.flag_bits & 0x800 else member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def _wrongly_named(path: Path) -> StageError:
    return StageError(f"{path}: a name in it says that it is UTF-8, and isn't; unpack it and ingest the folder")


def _damaged(path: Path, error: Exception) -> StageError:
    return StageError(
        f"{path}: damaged or cut off ({error}); nothing was ingested. Download it again and repeat the command"
    )
