"""Data sets of Kaggle: downloaded whole, then read as the folders that they are."""

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import requests

from components.ingest import files
from components.ingest.source import Part, Place
from components.stage import StageError

_PLACE = re.compile(r"kaggle://(?P<name>[^/]+/[^/]+)(?:/versions/(?P<version>\d+))?/?")
_SITE = "https://www.kaggle.com"


def seen(place: Place) -> str:
    """Nothing is asked: a data set is read once, and again when the settings name another version."""
    return ""


def parts(place: Place) -> Iterator[Part]:
    """One part: the whole data set. A download that broke off goes on where it stopped.

    Raises:
        StageError: no such data set, no access to it, no connection, or a broken download; the message says what
            to do, and how to do it by hand.
    """
    found = _PLACE.fullmatch(place.where)
    if not found:
        raise StageError(f"{place.where}: not a data set of Kaggle; write kaggle://OWNER/NAME")
    folder = _download(place, found["name"], found["version"])
    # The folder's own name is the version that was downloaded.
    yield Part(f"{found['name']}/{folder.name}", lambda: files.items(folder, place.entry, place.max_bytes))


def _download(place: Place, name: str, version: str | None) -> Path:
    import kagglehub  # slow to import, and other sources don't need it
    from kagglehub.exceptions import DataCorruptionError

    handle = f"{name}/versions/{version}" if version else name
    page = f"{_SITE}/datasets/{name}"
    by_hand = f"or download it by hand from {page} and `trueframe ingest {place.name} --from PATH`"
    # Its cache, unlike a folder given as `output_dir`, keeps the first half of an archive for the next attempt.
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(place.downloads.resolve())
    try:
        return Path(kagglehub.dataset_download(handle))
    except requests.HTTPError as error:
        raise StageError(f"{place.where}: {_answer(error.response, page)}; {by_hand}") from None
    except requests.RequestException as error:
        raise StageError(
            f"{place.where}: {_trouble(error)}; what was downloaded is kept. Run the same command again, {by_hand}"
        ) from None
    except (DataCorruptionError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged(place, error, by_hand) from None
    except ValueError as error:  # what is no archive at all, or credentials that are none
        if "archive" in str(error):
            raise _damaged(place, error, by_hand) from None
        raise StageError(f"{place.where}: {_first_line(error)}; mend that, {by_hand}") from None
    finally:
        if before is None:
            del os.environ["KAGGLEHUB_CACHE"]
        else:
            os.environ["KAGGLEHUB_CACHE"] = before


def _damaged(place: Place, error: Exception, by_hand: str) -> StageError:
    """Say so, and remove the archive, which would be taken for a complete one the next time."""
    for archive in place.downloads.rglob("*.archive"):
        archive.unlink()
    reason = "its checksum is wrong" if type(error).__name__ == "DataCorruptionError" else _first_line(error)
    return StageError(
        f"{place.where}: the download is damaged ({reason}) and was removed; run the same command again, {by_hand}"
    )


def _answer(response: requests.Response, page: str) -> str:
    """What Kaggle's refusal means."""
    status = response.status_code
    if status < 400:  # some refusals come in the body of an answer that is none
        status = response.json().get("code", status)
    if status in (401, 403):
        return f"Kaggle refuses it ({status}): {_credentials()}, and accept the terms at {page} if it has any"
    if status == 404:
        return "Kaggle has no such data set or version (404); check the name"
    return f"Kaggle answers {status}; what was downloaded is kept. Run the same command again later"


def _credentials() -> str:
    from kagglehub.config import get_kaggle_credentials

    if get_kaggle_credentials():
        return "check the name and whether your account may read it"
    return f"no credentials are set. Make a token at {_SITE}/settings, set KAGGLE_API_TOKEN to it"


def _trouble(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "Kaggle doesn't answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection to Kaggle broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection to Kaggle"
    return f"the download failed ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
