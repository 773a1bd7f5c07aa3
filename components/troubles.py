"""What the libraries raise when an engine, a store or a file is in the way, as one line that says what to do.

None of them is imported for that: an error is known by the names of its class and of those that this derives from.
"""

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import stage

_DATABASES = {
    r"database( table)? is locked|lock timeout|Lock wait timeout": "another process is writing to it{holders}; run the "
    "same command again when that is done, or end it",
    r"Can't locate revision|out-of-date database schema": "a newer version of the program wrote it, and this one can't "
    "read it. Bring this environment up to date (`git pull`, `make .venv/.ready`), or use the version that wrote it; "
    "nothing in it is lost",
    r"unable to open database file": "its folder isn't there, a folder is in its place, or this user may not write it",
    r"readonly database|read-only": "this user may not write to it; `ls -l` says who may",
    r"disk is full|No space left|disk I/O error": "its disk is full or broken; free some space and run it again",
    r"not a database|malformed|is encrypted": "it is damaged; put a backup in its place, or see what `sqlite3 FILE "
    ".recover` saves",
    r"authentication failed|no pg_hba|Access denied|role .* does not exist": "the user or the password isn't the "
    "database's; correct the address, or PGUSER and PGPASSWORD",
    r"database .* does not exist|Unknown database": "the server has no database of this name; create it, or correct "
    "the address",
    r"too many (clients|connections)|connection slots|QueuePool limit": "it has no connection left; run the same "
    "command again later",
    r"onnect|[Tt]imed? ?out|resolve|translate host": "it doesn't answer; start it, or correct its address",
}
"""What databases say, and what to do."""

_STORES = {
    r"locate credentials|partial credentials|config profile": "no credentials for it; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    r"NoSuchBucket|bucket does not exist": "its bucket doesn't exist; create it, or correct the address",
    r"RequestTimeTooSkewed|difference between the request time": "this machine's clock is wrong; set it right",
    r"ExpiredToken|TokenRefreshRequired|token.*expired": "the credentials in use have expired; get new ones",
    r"\b403\b|AccessDenied|Forbidden|SignatureDoesNotMatch|InvalidAccessKeyId": "access denied (403): the "
    "credentials in use are wrong, or may not do this",
    r"InternalError|ServiceUnavailable|SlowDown|Internal Server Error|\b50[0234]\b": "the server fails; run the same "
    "command again, which goes on with what is missing",
    r"connect|timed? ?out|resolve": "it doesn't answer; once it does, run the same command again, which goes on with "
    "what is missing",
    r"no space left|quota": "its disk is full",
}
"""What S3 and its clients say, and what to do."""

_DAMAGED = re.compile(r"[Pp]arquet|magic bytes|footer|thrift|[Cc]orrupt|CRC|checksum|end of stream|IPC|Snappy|ZSTD")


def told(error: BaseException) -> str | None:
    """An error as one line with the thing, the reason and the way out; None where it is a fault of the program.

    An error that was raised because of another one in so many words (`raise … from …`) is what that one is.
    """
    if isinstance(error, stage.StageError):
        return str(error)
    for one in _chain(error):
        for kind in type(one).__mro__:
            look = _KINDS.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
            if look and (said := look(one)):
                return shown(said)
    return stage.describe(error) if isinstance(error, OSError) and error.errno is not None else None


def shown(text: str) -> str:
    """An address, or a text with addresses, as it may be printed: without the passwords in it."""
    return re.sub(r"://([^/\s:@]*):[^/\s]*@", r"://\1:…@", text)


def line(error: BaseException) -> str:
    """What an error says first, without the password that may stand in an address, and without SQLAlchemy's preface."""
    lines = [text for text in str(error).strip().splitlines() if not text.startswith("(raised as a result of")]
    return shown(lines[0])[:300] if lines else type(error).__name__


def database(said: str, file: Path | None = None) -> str | None:
    """What to do about what a database says; None where this isn't known.

    Args:
        said: by the database, or by what works with it.
        file: of SQLite.
    """
    return next(
        (
            way.replace("{holders}", _holders(file) if file else "")
            for text, way in _DATABASES.items()
            if re.search(text, said)
        ),
        None,
    )


def store(said: str) -> str | None:
    """What to do about what S3 or its client says; None where this isn't known."""
    return next((way for text, way in _STORES.items() if re.search(text, said, re.IGNORECASE)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _chain(one)
        return
    yield error
    if error.__cause__ is not None and not isinstance(error, TypeError | AttributeError | LookupError | AssertionError):
        yield from _chain(error.__cause__)


def _holders(file: Path) -> str:
    """The other processes that have a file open, as far as this user may see them."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(Path(one.path) == file.resolve() for one in process.open_files()):
                found.append(f"process {process.pid}, {' '.join(process.cmdline())[:100]}")
        except (psutil.Error, OSError):
            continue
    return f" ({'; '.join(found)})" if found else ""


def _reason(error: BaseException) -> str:
    """Of a connection that failed, the system's word, which libraries hide below their own."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror and not below.strerror.startswith("Multiple exceptions"):
            return os.strerror(below.errno) if below.errno and below.errno > 0 else below.strerror
        within = getattr(below, "reason", None)  # urllib's
        below = within if isinstance(within, OSError) else below.__cause__ or below.__context__
    return line(error)


def _place(error: Any) -> tuple[str, str]:
    """The server that a request went to, and the variable that names it."""
    url = ""
    for holder in (error, getattr(error, "request", None), getattr(error, "request_info", None)):
        try:
            url = url or str(getattr(holder, "url", None) or getattr(holder, "real_url", None) or "")
        except (AttributeError, RuntimeError):  # httpx, where there is no request
            continue
    if not url:
        found = re.search(r"https?://[^\s'\"]+", str(error))
        url = found[0] if found else ""
    parts = urlsplit(url)
    server = f"{parts.scheme}://{parts.netloc}" if parts.netloc else getattr(error, "host", "")
    names = [name for name, value in os.environ.items() if parts.netloc and f"//{parts.netloc}" in value]
    return (f"the server {server}" if server else "a server that this needs"), ", ".join(sorted(names)[:1])


def _silent(error: Any) -> str:
    """A server that doesn't answer."""
    server, variable = _place(error)
    return f"{server} doesn't answer ({_reason(error)}); start it, or correct {variable or 'its address'}"


def _refusal(error: Any) -> str:
    """A server that answers with an error."""
    server, variable = _place(error)
    answer = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(answer, "status_code", None)
    if status is None:
        return _silent(error)
    if status in (401, 403):
        way = "it doesn't know who asks, or doesn't allow it; correct the user, the password or the token"
        way = "set PREFECT_API_AUTH_STRING as the server has it" if variable == "PREFECT_API_URL" else way
    elif status >= 500 or status == 429:
        way = "it fails; see its own log, and run the same command again when it works"
    else:
        way = f"another program may answer there, or another version of it; correct {variable or 'its address'}"
    return f"{server} answers with status {status}: {way}"


def _database(error: Any) -> str | None:
    said = line(error)
    way = database(said)
    return f"a database can't be used ({said}): {way}" if way else None


def _store(error: Any) -> str | None:
    said = line(error)
    way = store(f"{type(error).__name__} {said}")
    return f"S3 ({said}): {way or 'correct the address and the credentials'}"


def _memory(error: Any) -> str:
    return f"memory ran out ({line(error)}); end other programs, or choose a smaller batch_size, or fewer jobs"


def _damaged(error: Any) -> str | None:
    if not _DAMAGED.search(str(error)):
        return None
    return (
        f"a file is damaged ({line(error)}); `dvc checkout` restores what a version has, and `dvc repro --force STAGE` "
        "makes it again"
    )


def _absent(error: ImportError) -> str | None:
    """A package that this project names, and that isn't installed: of which extra it is, by the project's metadata."""
    module = (error.name or "").partition(".")[0]
    try:
        required = importlib.metadata.requires("trueframe") or ()
    except importlib.metadata.PackageNotFoundError:  # where MLflow serves a version by itself
        return None
    for package in required:
        name, extra = re.split(r"[^\w.-]", package)[0], re.search(r"extra == ['\"](.+?)['\"]", package)
        if _PACKAGES.get(module, module).replace("_", "-").lower() == name.lower():
            bring = f"`pip install -e '.[{extra[1]}]'`" if extra else "`pip install -e .`"
            also = "`make run`, or " if extra and extra[1] == "train" else ""
            return f"{name} isn't installed here, and this needs it; {also}{bring} in the project's folder brings it"
    return None


def _dvc(error: Any) -> str:
    return f"DVC: {' '.join(str(error).split())[:300] or line(error)}; `dvc status` says more"


def _mlflow(error: Any) -> str:
    from components import tracking

    return stage.refused(error) or tracking.trouble(error)


_PACKAGES = {"psycopg2": "psycopg2-binary", "sklearn": "scikit-learn"}
"""What is called otherwise where it is imported."""

_KINDS: dict[str, Callable[[Any], str | None]] = {
    "mlflow.MlflowException": _mlflow,
    "sqlalchemy.DatabaseError": _database,
    "sqlalchemy.InterfaceError": _database,
    "sqlalchemy.TimeoutError": _database,
    "sqlite3.DatabaseError": _database,
    "alembic.CommandError": _database,
    "httpx.HTTPStatusError": _refusal,
    "httpx.RequestError": _silent,
    "httpx.InvalidURL": _silent,
    "httpcore.NetworkError": _silent,
    "httpcore.TimeoutException": _silent,
    "huggingface_hub.HfHubHTTPError": _refusal,
    "requests.HTTPError": _refusal,
    "requests.RequestException": _silent,
    "urllib3.HTTPError": _silent,
    "urllib.HTTPError": _refusal,
    "urllib.URLError": _silent,
    "aiohttp.ClientResponseError": _refusal,
    "aiohttp.ClientError": _silent,
    "botocore.ClientError": _store,
    "botocore.BotoCoreError": _store,
    "boto3.Boto3Error": _store,
    "dvc.DvcException": _dvc,
    "git.GitError": _dvc,
    "scmrepo.SCMError": _dvc,
    "pyarrow.ArrowMemoryError": _memory,
    "builtins.MemoryError": _memory,
    "builtins.ModuleNotFoundError": _absent,
    "builtins.TimeoutError": _silent,
    "tensorflow.ResourceExhaustedError": _memory,
    "pyarrow.ArrowException": _damaged,
    "zipfile.BadZipFile": lambda error: f"a file is damaged ({line(error)}); fetch it or make it again",
}
