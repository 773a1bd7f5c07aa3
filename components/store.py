"""Files and folders by their content, on S3 or wherever else fsspec reaches, in the layout of a DVC remote.

What is put gets a URI that names its content: `s3://BUCKET/PREFIX/files/md5/ab/cdef…`, with `.dir` at the end for a
folder. The URI is given once all of it is there, and it never means anything else. What is there already isn't sent
again, so a put that was killed is simply repeated.
"""

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components.stage import StageError

_AT_ONCE = 16  # files
_FILES = "/files/md5/"


def put(path: Path, store: str) -> str:
    """Store a file, or a folder with all that isn't hidden in it.

    Args:
        path: of the file or folder.
        store: `s3://BUCKET/PREFIX`.

    Returns:
        The URI of its content.

    Raises:
        StageError: it isn't here, or the store can't be reached or refuses.
    """
    if not path.exists():
        raise StageError(f"{path}: not here, so it can't be kept")
    fs, root = _opened(store)

    def key(name: str) -> str:
        return f"{root}{_FILES}{name[:2]}/{name[2:]}"

    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()} if path.is_dir() else {"": path}
    files = {name: file for name, file in sorted(files.items()) if not any(p[:1] == "." for p in name.split("/"))}
    with _explained(store), ThreadPoolExecutor(_AT_ONCE) as pool:
        sums = list(pool.map(_md5, files.values()))
        by_key = dict(zip(map(key, sums), files.values(), strict=True))
        missing = [k for k, there in zip(by_key, pool.map(fs.exists, by_key), strict=True) if not there]
        if missing:
            fs.put([str(by_key[k]) for k in missing], missing, batch_size=_AT_ONCE)
        if not path.is_dir():
            return str(fs.unstrip_protocol(key(sums[0])))
        # The same bytes as DVC's own, so that a folder has one name for both.
        entries = [{"md5": md5, "relpath": name} for name, md5 in zip(files, sums, strict=True)]
        listing = json.dumps(entries, sort_keys=True).encode()
        folder = key(f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir")
        if not fs.exists(folder):
            fs.pipe_file(folder, listing)
        return str(fs.unstrip_protocol(folder))


def get(uri: str, path: Path) -> None:
    """Bring what a URI names to a path at which nothing is.

    Raises:
        StageError: it isn't there or not what it was, or the store can't be reached or refuses.
    """
    fs, key = _opened(uri)
    root, _, name = key.partition(_FILES)
    if not name:
        raise StageError(f"{uri}: no URI of stored content, which has {_FILES} in it")
    expected = name.replace("/", "").removesuffix(".dir")
    with _explained(uri), ThreadPoolExecutor(_AT_ONCE) as pool:
        wanted = {path: expected}
        if uri.endswith(".dir"):
            listing = fs.cat_file(key)
            if hashlib.md5(listing, usedforsecurity=False).hexdigest() != expected:
                raise StageError(f"{uri}: damaged; remove it from the store and run what made it again")
            entries = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
            for name in entries:
                if not (path / name).resolve().is_relative_to(path.resolve()):
                    raise StageError(f"{uri}: it names {name}, outside of its folder; see who can write to the store")
            wanted = {path / name: md5 for name, md5 in entries.items()}
            path.mkdir(parents=True, exist_ok=True)
        keys = [f"{root}{_FILES}{md5[:2]}/{md5[2:]}" for md5 in wanted.values()]
        for file in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
        if wanted:
            fs.get(keys, [str(file) for file in wanted], batch_size=_AT_ONCE)
        for stored, md5, file, found in zip(keys, wanted.values(), wanted, pool.map(_md5, wanted), strict=True):
            if found != md5:
                where = fs.unstrip_protocol(stored)
                raise StageError(f"{where}: damaged ({file.name}); remove it from the store and run what made it again")


def md5(uri: str) -> str:
    """The name of a URI's content, as DVC writes it."""
    return uri.partition(_FILES)[2].replace("/", "")


def last(store: str, name: str) -> str | None:
    """The URI that was remembered last under a name; None before the first."""
    fs, root = _opened(store)
    with _explained(store):
        try:
            return str(fs.cat_file(f"{root}/last/{name}").decode().strip())
        except FileNotFoundError:
            return None


def remember(store: str, name: str, uri: str) -> None:
    """Remember a URI under a name, in place of the one before."""
    fs, root = _opened(store)
    with _explained(store):
        fs.pipe_file(f"{root}/last/{name}", f"{uri}\n".encode())


def forget(store: str, name: str) -> None:
    """Remember nothing under a name."""
    fs, root = _opened(store)
    with _explained(store), contextlib.suppress(FileNotFoundError):
        fs.rm_file(f"{root}/last/{name}")


def _opened(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    import fsspec  # type: ignore[import-untyped]

    try:
        if "://" not in uri:
            raise ValueError("it has to be like s3://BUCKET/PREFIX")
        fs, path = fsspec.core.url_to_fs(uri.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise StageError(f"{uri}: no place for a store: {error}") from None
    return fs, str(path)


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """What goes wrong on the way to the store, as one line that says what to do."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except FileNotFoundError as error:
        raise StageError(f"{uri}: not there ({error}); a bucket has to exist before it is used") from None
    except (PermissionError, NoCredentialsError) as error:
        raise StageError(
            f"{uri}: access denied ({error}); AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the pod's role, need the "
            "right to list, read and write there"
        ) from None
    except (OSError, BotoCoreError, ClientError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"{uri}: {str(error) or type(error).__name__}; nothing half-written counts, run the same command again"
        ) from None
