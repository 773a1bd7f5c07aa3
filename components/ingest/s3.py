"""Buckets: images, archives and Parquet files under `s3://BUCKET/PREFIX`, from any server that speaks S3.

Endpoint, region, profile and credentials are the standard AWS settings, as the AWS tools themselves read them.
"""

import base64
import contextlib
import hashlib
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions as aws
import urllib3
from botocore.config import Config

from components import folders, images
from components.folders import NOT_CALLED_ONE, LeftOut
from components.ingest import files, readers, rows
from components.ingest.labels import Labels
from components.ingest.source import Item, Part, Place
from components.stage import StageError

_THREADS = 16
_AHEAD = 4 * _THREADS  # images fetched before they are read
_TRIES = 3  # of a download that breaks off, on top of botocore's own for each request
_PROGRESS = 64 * 2**20  # bytes after which a download that breaks off starts to count anew
_CHUNK = 2**18
_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    connect_timeout=10,
    read_timeout=30,
    max_pool_connections=_THREADS,
    # The server's checksums are of whole objects; a download that is taken up again only reads the rest.
    response_checksum_validation="when_required",
)

_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile in ~/.aws/config, and run the same "
    "command again"
)
_AGAIN = "what was fetched is kept; run the same command again"
_NEEDED = {
    "ListObjectsV2": "list the bucket (s3:ListBucket)",
    "GetObject": "read the object (s3:GetObject)",
    "HeadObject": "read the object (s3:GetObject)",
}
_WRONG_KEYS = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_NO_KEYS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.ProfileNotFound,
    aws.SSOError,
    aws.TokenRetrievalError,
)
_BROKEN_OFF = (
    aws.ResponseStreamingError,
    aws.IncompleteReadError,
    aws.ReadTimeoutError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


class _BrokenOff(Exception):
    """A download ended early; the rest of it may be had yet."""


@dataclass(frozen=True)
class _Object:
    """An object of a bucket; `path` is what stands below the prefix, `above` the name of the folder that this is."""

    bucket: str
    key: str
    size: int
    etag: str
    path: str
    above: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def version(self) -> str:
        """Another one, once its content has changed."""
        return f"{self.key} {self.etag}"

    @property
    def is_packed(self) -> bool:
        """Whether it holds many images."""
        return not folders.why_not(self.path) and self._suffix != ""

    @property
    def is_image(self) -> bool:
        return not folders.why_not(self.path) and folders.is_named_as_image(self.path)

    @property
    def left_out(self) -> LeftOut | None:
        """Why it isn't read, if so. What it is, only its name says: nothing is fetched to see."""
        if self.is_image or self.is_packed:
            return None
        return LeftOut(self.path, folders.why_not(self.path) or NOT_CALLED_ONE)

    @property
    def file(self) -> str:
        """What the download is called: keys can be longer than names of files, and hold anything."""
        return hashlib.sha256(f"{self.bucket}/{self.version}".encode()).hexdigest()[:40] + self._suffix

    @property
    def _suffix(self) -> str:
        return next((s for s in (*readers.ARCHIVES, ".parquet") if self.key.lower().endswith(s)), "")


def seen(place: Place) -> str:
    """Changes whenever an object does.

    Raises:
        StageError: nothing is there, or the server doesn't give it.
    """
    digest = hashlib.sha256(place.where.encode())
    for found in _listed(_client(place.where), place.where):
        if found.left_out:
            continue
        digest.update(f"{found.key}\0{found.size}\0{found.etag}\n".encode())
    return digest.hexdigest()


def parts(place: Place) -> Iterator[Part]:
    """A part for each archive and each Parquet file, and one for all images that stand by themselves.

    Only new objects and changed ones are fetched, and each is checked before it is read.

    Raises:
        StageError: nothing is there, the server doesn't give it, or a folder of images says no label.
    """
    client = _client(place.where)
    listed = _listed(client, place.where)
    new = [found for found in listed if found.version not in place.covered]
    loose = [found for found in new if found.is_image]
    labels = _labels(listed, place)
    _check_labels(loose, place, labels)  # before anything is fetched
    yield from files.left_out([found.left_out for found in listed if found.left_out])
    for found in new:
        if found.is_packed:
            yield Part(found.version, partial(_packed, client, found, place), (found.version,))
            # Who asks for the next part has this one.
            (place.downloads / found.file).unlink(missing_ok=True)
    if loose:
        versions = tuple(found.version for found in loose)
        key = hashlib.sha256("\n".join(versions).encode()).hexdigest()
        yield Part(f"images {key}", partial(_loose, client, loose, place, labels), versions)


def _client(where: str) -> Any:
    with _explained(where):
        try:
            return boto3.session.Session().client("s3", config=_CONFIG)
        except ValueError as error:  # an endpoint that is no address
            raise StageError(f"{where}: {_line(error)}; see AWS_ENDPOINT_URL_S3") from None


def _listed(client: Any, where: str) -> list[_Object]:
    """What is under an address, sorted by key: the objects in a folder, or the one of that name."""
    _, slashes, rest = where.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not slashes or not bucket:
        raise StageError(f"{where}: no address of a bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
    found = _list(client, where, bucket, f"{prefix}/" if prefix else "")
    if prefix and not found:
        # The shortest key comes first: the object itself, if there is one.
        found = [o for o in _list(client, where, bucket, prefix, 1) if o.key == prefix]
    if all(o.left_out for o in found):
        others = f"only {len(found):,} objects of other kinds" if found else "nothing"
        raise StageError(
            f"{where}: {others} under this name; wanted are images ({', '.join(sorted(images.SUFFIXES))}), archives "
            f"({', '.join(readers.ARCHIVES)}) and .parquet. Check the bucket and the prefix"
        )
    return sorted(found, key=lambda o: o.key)


def _list(client: Any, where: str, bucket: str, start: str, most: int | None = None) -> list[_Object]:
    # A folder's own name counts for labels too: `--from s3://bucket/photos/real` is a folder of real images.
    folder = start if start.endswith("/") else start[: start.rfind("/") + 1]
    above = (folder.rstrip("/") or bucket).rsplit("/", 1)[-1]
    with _explained(where):
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=start, PaginationConfig={"MaxItems": most, "PageSize": most}
        )
        entries = [e for page in pages for e in page.get("Contents", ()) if not e["Key"].endswith("/")]
    found = [(e["Key"], e["Key"].removeprefix(folder), e["Size"], e.get("ETag", "").strip('"')) for e in entries]
    return [_Object(bucket, key, size, etag, path, above) for key, path, size, etag in found]


def _labels(listed: list[_Object], place: Place) -> Labels:
    paths = [found.path for found in listed if not found.left_out]
    return Labels(place.entry, place.where, lambda: paths, listed[0].above)


def _check_labels(loose: list[_Object], place: Place, labels: Labels) -> None:
    if loose and place.entry.table:
        raise StageError(
            f"{place.where}: what the images of {place.name} are stands in {place.entry.table.file}, which is read out "
            "of an archive or a local folder only; put the archive there, or give the folder of a copy"
        )
    for found in loose:
        if labels.of(found.path) is None:
            labels.is_left_out(found.path)
    labels.check()


def _packed(client: Any, found: _Object, place: Place) -> Iterator[Item | LeftOut]:
    path = _fetch(client, found, place.downloads)
    try:
        if path.suffix == ".parquet":
            yield from rows.items(path, found.uri, place)
        else:
            yield from files.items(path, place.entry, place.max_bytes, f"{found.uri}/", found.path)
    except StageError as error:
        raise StageError(str(error).replace(str(path), found.uri)) from None


def _loose(client: Any, objects: list[_Object], place: Place, labels: Labels) -> Iterator[Item | LeftOut]:
    """The images in order, while threads fetch those that come next."""

    def fetch(found: _Object) -> Path | None:
        return _fetch(client, found, place.downloads) if found.size <= place.max_bytes else None

    with ThreadPoolExecutor(_THREADS) as pool:
        waiting = iter(objects)
        ahead: deque[Future[Path | None]] = deque(pool.submit(fetch, found) for found in islice(waiting, _AHEAD))
        try:
            for found in objects:
                path = ahead.popleft().result()
                ahead.extend(pool.submit(fetch, following) for following in islice(waiting, 1))
                data = path.read_bytes() if path else None
                label = labels.of(found.path)
                if label is None:
                    yield LeftOut(found.uri, "no label")
                    continue
                generator = labels.generator(found.path) if label == "ai" else None
                yield Item(data, found.uri, label, generator, place.entry.split_of(found.path))
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch(client: Any, found: _Object, folder: Path) -> Path:
    """Download an object, or what is missing of it: whole and checked, or not at all.

    Raises:
        StageError: the server doesn't give it, or what came isn't what the server says that it has.
        OSError: it can't be written.
    """
    path = folder / found.file
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.partial")
    failures = 0
    while True:
        before = _size(part)
        try:
            with _explained(found.uri):
                _append(client, found, part)
                wrong = _damage(client, found, part)
            if wrong is None:
                part.rename(path)
                return path
            part.unlink()
            trouble = f"damaged on the way ({wrong}); run the same command again"
        except _BrokenOff as error:
            trouble = f"the connection broke off ({error}); {_AGAIN}"
        failures = 1 if _size(part) - before >= _PROGRESS else failures + 1
        if failures == _TRIES:
            raise StageError(f"{found.uri}: {trouble}")
        time.sleep(2**failures / 4)


def _append(client: Any, found: _Object, part: Path) -> None:
    """Read what is missing."""
    start = _size(part)
    if start == found.size and part.exists():
        return
    span = {"Range": f"bytes={start}-"} if start else {}
    answer = client.get_object(Bucket=found.bucket, Key=found.key, IfMatch=f'"{found.etag}"', **span)
    _same(found, answer)
    if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
        start = 0  # a server that doesn't know ranges
    try:
        with contextlib.closing(answer["Body"]) as body, part.open("ab") as file:
            file.truncate(start)
            for chunk in body.iter_chunks(_CHUNK):
                file.write(chunk)
    except _BROKEN_OFF as error:
        raise _BrokenOff(_line(error)) from None
    except OSError as error:  # a full disk says no name
        raise OSError(error.errno, error.strerror, str(part)) from None


def _damage(client: Any, found: _Object, part: Path) -> str | None:
    """What is wrong with a download, by its size and the best checksum that the server has."""
    if _size(part) != found.size:
        return f"{_size(part):,} of {found.size:,} bytes"
    is_md5 = re.fullmatch("[0-9a-f]{32}", found.etag) is not None
    if is_md5 and _md5(part) == found.etag:
        return None
    answer = client.head_object(Bucket=found.bucket, Key=found.key, ChecksumMode="ENABLED")
    _same(found, answer)
    for name, checksum in _CHECKSUMS.items():
        said = answer.get(name, "-")
        if "-" not in said:  # that would be one of parts, whose sizes aren't known
            return None if checksum(part) == said else f"{name} is {checksum(part)}, not {said}"
    # Where the server encrypts with keys of one's own, and in directory buckets, an ETag only looks like an MD5.
    encrypted = answer.get("ServerSideEncryption", "").startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    if is_md5 and not encrypted and not found.bucket.endswith("--x-s3"):
        return f"its MD5 is {_md5(part)}, not {found.etag}"
    return None


def _same(found: _Object, answer: Any) -> None:
    """Not every server heeds If-Match."""
    if answer.get("ETag", "").strip('"') != found.etag:
        raise StageError(f"{found.uri}: changed while it was read; run the same command again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()


def _crc32(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


_CHECKSUMS: dict[str, Callable[[Path], str]] = {"ChecksumSHA256": _sha256, "ChecksumCRC32": _crc32}


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """What boto3 finds wrong, as one line that says what to do."""
    try:
        yield
    except _NO_KEYS as error:
        raise StageError(f"{where}: no credentials ({_line(error)}); {_KEYS}") from None
    except aws.ClientError as error:
        raise StageError(f"{where}: {_answered(error)}") from None
    except (aws.ConnectionError, aws.HTTPClientError, urllib3.exceptions.HTTPError) as error:
        raise StageError(
            f"{where}: the server doesn't answer ({_line(error)}); {_AGAIN}, once the network and the server "
            "(AWS_ENDPOINT_URL_S3) are all right"
        ) from None
    except aws.BotoCoreError as error:
        raise StageError(f"{where}: {_line(error)}") from None


def _answered(error: aws.ClientError) -> str:
    """What an answer means that is none."""
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    message = error.response["Error"].get("Message", "")
    said = f"{code}: {message}" if message not in ("", code) else code
    if code in _WRONG_KEYS:
        return f"the server refuses the credentials ({said}); {_KEYS}"
    if code == "InvalidObjectState":
        return f"the object is archived ({said}); restore it and run the same command again"
    if status == 403:
        needed = _NEEDED.get(error.operation_name, error.operation_name)
        return f"access denied ({said}): the credentials in use may not {needed}; have it granted, or {_KEYS}"
    if code == "NoSuchBucket":
        return "there is no such bucket; check the name, the region (AWS_REGION) and the server (AWS_ENDPOINT_URL_S3)"
    if status in (404, 412):
        return f"the object changed while the source was read ({said}); run the same command again"
    if status == 429 or status >= 500:
        return f"the server fails ({said}) and went on failing when asked again; {_AGAIN}"
    return f"{error.operation_name} failed ({status} {said})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
