"""Folders and archives as streams of files. Nothing of an archive is ever unpacked to disk."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components import images
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


def read(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    """The image files of a folder or an archive: pairs of (path inside it, bytes).

    Bytes are None for a file above `max_bytes`. The order is the sorted one for a folder and an archive's own
    otherwise. Files whose suffix is no image's are left out, and so are hidden ones.

    Raises:
        StageError: nothing is there; the archive is damaged, ends early, is encrypted, or holds a name that
            leaves it (`../`, absolute) or a link.
    """
    if path.is_dir():
        return _folder(path, max_bytes)
    if not path.exists():
        raise StageError(f"{path}: not found; give a folder or an archive ({', '.join(ARCHIVES)})")
    if not is_archive(path):
        raise StageError(f"{path}: neither a folder nor an archive ({', '.join(ARCHIVES)})")
    return _zip(path, max_bytes) if path.suffix.lower() == ".zip" else _tar(path, max_bytes)


def member(path: Path, name: str) -> bytes | None:
    """One file of a folder or an archive by the end of its path: its bytes, or None if it isn't there.

    Raises:
        StageError: the archive is damaged.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob(PurePosixPath(name).name) if _ends(p.relative_to(path).as_posix(), name))
        return found[0].read_bytes() if found else None
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                found_ = next((info for info in archive.infolist() if _ends(info.filename, name)), None)
                return _unpacked(path, archive, found_) if found_ and _fits(path, name, found_.file_size) else None
        with _decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.isfile() and _ends(entry.name, name) else None
                if file and _fits(path, name, entry.size):
                    return file.read()
        return None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _damaged(path, error) from None


def _ends(path: str, name: str) -> bool:
    return f"/{path}".endswith(f"/{name}")


def _folder(root: Path, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if wanted(name):
            yield name, path.read_bytes() if path.stat().st_size <= max_bytes else None


def _zip(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _refuse(path, member.filename, link=(member.external_attr >> 28) == 0o12)
            for member in members:
                if member.is_dir() or not wanted(member.filename):
                    continue
                if member.flag_bits & 1:
                    raise StageError(f"{path}: encrypted; unpack it and ingest the folder")
                too_large = member.file_size > max_bytes
                yield member.filename, None if too_large else _unpacked(path, archive, member)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from None


def _tar(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    try:
        with _decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                _refuse(path, member.name, link=member.issym() or member.islnk())
                if not member.isfile() or not wanted(member.name):
                    continue
                if member.size > max_bytes:
                    yield member.name, None
                    continue
                file = archive.extractfile(member)
                data = file.read() if file else b""
                if len(data) != member.size:
                    raise EOFError(f"{member.name} is cut off")
                yield str(PurePosixPath(member.name)), data
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


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file of a zip, and no byte more than it says that it has, whatever its data unpack to."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StageError(
            f"{path}: {member.filename!r} is packed in a way whose memory has no bound; unpack it and ingest the folder"
        )
    with archive.open(member) as file:
        return file.read(member.file_size)


def _fits(path: Path, name: str, size: int) -> bool:
    if size > _TABLE:
        raise StageError(f"{path}: {name} has {size:,} bytes; a table may have {_TABLE:,}")
    return True


def _decompressed(path: Path) -> IO[bytes]:
    """A tar's bytes. `tarfile` can decompress too, but doesn't verify gzip's checksum."""
    with path.open("rb") as file:
        head = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for magic, opener in openers.items() if head.startswith(magic)), open)(path, "rb")


def _refuse(archive: Path, name: str, *, link: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        raise StageError(f"{archive}: {name!r} points outside the archive; refused, and nothing was ingested")
    if link:
        raise StageError(f"{archive}: {name!r} is a link; refused, and nothing was ingested")


def wanted(name: str) -> bool:
    """Whether a path is that of an image file: by its suffix, hidden files and what macOS adds left out."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts[:-1]) or path.name.startswith("._")
    return path.suffix.lower() in images.SUFFIXES and "__MACOSX" not in path.parts and not hidden


def _damaged(path: Path, error: Exception) -> StageError:
    return StageError(
        f"{path}: damaged or cut off ({error}); nothing was ingested. Download it again and repeat the command"
    )
