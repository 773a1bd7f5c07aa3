"""Data sets of Hugging Face: Parquet files one after the other, or loose images and archives."""

import contextlib
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from components import folders
from components.folders import NOT_CALLED_ONE, LeftOut
from components.ingest import files, readers, rows
from components.ingest.source import Item, Part, Place
from components.stage import StageError

_PLACE = re.compile(r"hf://(?:datasets/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CARD = "README.md"
_TOKENS = "https://huggingface.co/settings/tokens"
_TIMEOUT = 30  # s


def seen(place: Place) -> str:
    """The commit, so that a repository that grows is read again.

    Nothing is asked where the settings name a commit, or where the catalogue says the place: what was published
    once is read once.
    """
    repository = _Repository(place)
    if place.source.from_ is None or _COMMIT.fullmatch(repository.revision or ""):
        return ""
    return repository.commit()


def parts(place: Place) -> Iterator[Part]:
    """A part for each Parquet file of the repository; without one, a part for each archive and one for loose images.

    Where the catalogue names some of the archives, only those are read. All of it is of one commit. A Parquet file or
    an archive is on disk only while it is read.

    Raises:
        StageError: no such repository, no access to it, nothing to read in it, or no connection; the message says
            what to do.
    """
    repository = _Repository(place)
    commit = repository.commit()
    found = {file.path: file for file in repository.files(commit)}
    own = [path for path in found if not folders.why_not(path)]
    named = [path for path in own if any(fnmatch.fnmatch(path, pattern) for pattern in place.entry.files)]
    tables = [path for path in named if not readers.is_archive(Path(path))]
    are_picked = any(readers.is_archive(Path(pattern)) for pattern in place.entry.files)
    packed = [path for path in (named if are_picked else own) if readers.is_archive(Path(path))]
    archives = [] if tables else packed
    pictures = [] if tables or are_picked else [path for path in own if folders.is_named_as_image(path)]
    if not (tables or archives or pictures):
        raise StageError(
            f"{place.where}: no Parquet file, archive or image in it ({', '.join(place.entry.files)}); see "
            f"{repository.page}"
        )

    def covers(path: str) -> str:
        return f"{path}@{found[path].blob_id}"

    def part(path: str, read: Callable[[Path], Iterator[Item | LeftOut]]) -> Part:
        def items() -> Iterator[Item | LeftOut]:
            local = repository.download(path, commit)
            yield from read(local)
            local.unlink()

        return Part(covers(path), items, (covers(path),))

    def card() -> Path | None:
        return repository.download(_CARD, commit) if _CARD in found else None

    # What it is, only its name says: nothing is fetched to see.
    others = found.keys() - {*tables, *archives, *pictures}
    other = "no Parquet file" if tables else "no archive of its images" if are_picked else NOT_CALLED_ONE
    yield from files.left_out([LeftOut(path, folders.why_not(path) or other) for path in sorted(others)])
    limited = place.source.max_images or place.source.per_generator
    for path in sorted(tables, key=_mixed if limited else None):
        if covers(path) not in place.covered:
            yield part(path, lambda local, path=path: rows.items(local, path, place, card))  # type: ignore[misc]
    for path in sorted(archives):
        if covers(path) not in place.covered:
            yield part(
                path,
                lambda local, path=path: files.items(local, place.entry, place.max_bytes, f"{path}/", path),  # type: ignore[misc]
            )
    covered = tuple(covers(path) for path in sorted(pictures))
    if not place.covered.issuperset(covered):
        yield Part("\n".join(covered), lambda: repository.loose(pictures, commit), covered)


def _mixed(path: str) -> str:
    """An order that has nothing to do with names: the first files of some data sets are all of one generator."""
    return hashlib.sha256(path.encode()).hexdigest()


class _Repository:
    """A repository of data on the hub. Everything that goes wrong on the way becomes a StageError."""

    def __init__(self, place: Place) -> None:
        found = _PLACE.fullmatch(place.where)
        if not found:
            raise StageError(f"{place.where}: not a data set of Hugging Face; write hf://OWNER/NAME")
        from huggingface_hub import constants  # slow to import, and other sources don't need it

        self.place, self.name, self.revision = place, found["repo"], found["revision"]
        self.endpoint = constants.ENDPOINT
        self.page = f"{self.endpoint}/datasets/{self.name}"

    def commit(self) -> str:
        """The commit that the revision is now."""
        from huggingface_hub import HfApi

        with self._explained():
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=_TIMEOUT).sha)

    def files(self, commit: str) -> list[Any]:
        """All files with their paths and blob ids."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._explained():
            tree = HfApi().list_repo_tree(self.name, recursive=True, revision=commit, repo_type="dataset")
            return [entry for entry in tree if isinstance(entry, RepoFile)]

    def download(self, path: str, commit: str) -> Path:
        """One file, whole; `huggingface_hub` checks its size."""
        from huggingface_hub import hf_hub_download

        with self._explained():
            return Path(
                hf_hub_download(
                    self.name, path, repo_type="dataset", revision=commit, local_dir=self.place.downloads / "hub"
                )
            )

    def loose(self, pictures: list[str], commit: str) -> Iterator[Item | LeftOut]:
        """The images that lie in the repository as they are; what is here of them isn't fetched again."""
        from huggingface_hub import snapshot_download

        wanted = {f"*{PurePosixPath(path).suffix}" for path in pictures}
        if self.place.entry.table:
            wanted.add(f"*{self.place.entry.table.file}")
        with self._explained():
            folder = snapshot_download(
                self.name,
                repo_type="dataset",
                revision=commit,
                local_dir=self.place.downloads / "loose",
                allow_patterns=sorted(wanted),
            )
        asked = set(pictures)
        for item in files.items(Path(folder), self.place.entry, self.place.max_bytes):
            # The client's own notes lie there too, and what came because its name ends alike.
            if isinstance(item, Item) or item.name in asked:
                yield item

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

        try:
            yield
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            # The hub's client wraps what happened in a message about its cache, which isn't used here.
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
            if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError):
                raise
            raise StageError(f"{self.place.where}: {self._reason(cause)}") from None

    def _reason(self, error: BaseException) -> str:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, GatedRepoError):
            return (
                f"its publisher asks for consent ({status}): accept the terms at {self.page} and set HF_TOKEN to a "
                f"token of that account ({_TOKENS}), then run the same command again"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"it has no revision {self.revision}; see {self.page}"
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return (
                f"no such data set, or a private one ({status}): check the name at {self.page}, and set HF_TOKEN if "
                "it is private"
            )
        if status in (401, 403):
            return (
                f"access refused ({status}): set HF_TOKEN to a token that may read it ({_TOKENS}), and accept the "
                f"terms at {self.page} if it has any"
            )
        if isinstance(error, OfflineModeIsEnabled):
            return (
                f"HF_HUB_OFFLINE forbids asking the hub; unset it, or download it by hand from {self.page} and "
                f"`trueframe ingest {self.place.name} --from PATH`"
            )
        said = f"answers {status}" if status else f"can't be reached or broke off ({_first_line(error)})"
        return f"{self.endpoint} {said}; what was read is kept. Run the same command again"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
