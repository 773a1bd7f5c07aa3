"""What libraries raise when an engine, a store or a file is in the way, raised by themselves and told in one line."""

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import s3

from components import stage, tracking, troubles
from components.stage import StageError
from flows import server

ROOT = Path(__file__).parents[1]


def raised(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"


Answering = Callable[..., str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Start a server that answers everything alike; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes = b"<html>here is another program</html>") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do

            def log_message(self, *args: object) -> None:
                """Nothing is printed."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def clients(url: str) -> dict[str, Callable[[], object]]:
    """One question to a server, by each library that asks."""
    import aiohttp
    import httpx
    import requests
    import urllib3

    async def ask() -> None:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            await session.get(url)

    return {
        "httpx": lambda: httpx.get(url).raise_for_status(),
        "requests": lambda: requests.get(url).raise_for_status(),
        "aiohttp": lambda: asyncio.run(ask()),
        "urllib": lambda: urllib.request.urlopen(url.replace("me:secret@", "")),
        "urllib3": lambda: urllib3.PoolManager(retries=False).request("GET", url.replace("me:secret@", "")),
    }


@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "urllib", "urllib3"])
def test_a_server_that_is_not_there(library: str, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_URL", nowhere)
    said = troubles.told(raised(clients(nowhere)[library]))
    assert said is not None and "doesn't answer" in said and "efused" in said and "secret" not in said
    assert library not in ("httpx", "requests") or said.endswith("start it, or correct SOME_URL")


@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "urllib"])
def test_a_server_that_refuses_or_fails(library: str, answering: Answering) -> None:
    for status, way in ((401, "the password"), (404, "another program"), (500, "its own log")):
        said = troubles.told(raised(clients(answering(status))[library]))
        assert said is not None and f"answers with status {status}: " in said and way in said


def test_what_was_raised_because_of_it_is_the_same(nowhere: str) -> None:
    def wrapped(kind: type[Exception]) -> None:
        try:
            clients(nowhere)["httpx"]()
        except Exception as error:
            raise kind("no API") from error

    assert "doesn't answer" in str(troubles.told(raised(lambda: wrapped(RuntimeError))))
    assert troubles.told(raised(lambda: wrapped(KeyError))) is None
    group = ExceptionGroup("tasks", [raised(clients(nowhere)["httpx"])])
    assert "doesn't answer" in str(troubles.told(group))


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with sqlite3.connect(":memory:") as database:
        faults: list[Callable[[], object]] = [
            lambda: database.execute("SELECT nothing FROM nowhere"),
            lambda: {}["key"],
            lambda: len(3),  # type: ignore[arg-type]
            lambda: json.loads("{"),
            lambda: np.zeros(3).reshape(2),
            lambda: pd.DataFrame({"a": [1]})["b"],
        ]
        for fault in faults:
            assert troubles.told(raised(fault)) is None
            with pytest.raises(Exception, match=r".") as caught, stage.one_line():
                fault()
            assert not isinstance(caught.value, SystemExit)


def test_memory_that_runs_out() -> None:
    assert "memory ran out" in str(troubles.told(raised(lambda: np.ones(2**58))))


def test_a_damaged_table(tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    pd.DataFrame({"a": range(1000)}).to_parquet(file)
    for damaged in (file.read_bytes()[:-100], b"PAR1" + b"x" * 500, b""):
        file.write_bytes(damaged)
        assert "a file is damaged" in str(troubles.told(raised(lambda: pd.read_parquet(file))))


def test_s3_that_fails_and_refuses(tmp_path: Path) -> None:
    import boto3
    from botocore.config import Config

    def listing(url: str, bucket: str = "here", key: str | None = s3.KEY) -> str:
        session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=key and s3.SECRET)
        client = session.client(
            "s3", endpoint_url=url, region_name="us-east-1", config=Config(retries={"total_max_attempts": 1})
        )
        said = troubles.told(raised(lambda: client.list_objects_v2(Bucket=bucket)))
        assert said is not None and "\n" not in said
        return said

    with s3.serve(tmp_path) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        store.put("here", {})
        assert "its bucket doesn't exist" in listing(store.url, "elsewhere")
        assert "access denied (403)" in listing(store.url, key="ANOTHERKEY1")
        assert "no credentials for it" in listing(store.url, key=None)
        with store.failing("error"):
            assert "the server fails" in listing(store.url)
        with store.down():
            assert "it doesn't answer" in listing(store.url)


def database(folder: Path) -> Path:
    """A database of MLflow's, made by itself."""
    done = connected(f"sqlite:///{folder}/mlflow.db")
    assert done.returncode == 0, done.stderr
    return folder / "mlflow.db"


def connected(uri: str) -> subprocess.CompletedProcess[str]:
    """A process that uses a store."""
    code = "from components import stage, tracking\nwith stage.one_line():\n    tracking.connect()"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return database(tmp_path_factory.mktemp("made")).read_bytes()


@pytest.fixture
def use() -> Iterator[Callable[[str], None]]:
    """Makes a store this process's, and gives the one before back in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        yield lambda uri: patch.setenv("MLFLOW_TRACKING_URI", uri)


@pytest.fixture
def store(made: bytes, tmp_path: Path, use: Callable[[str], None]) -> Path:
    """A copy of it, which is this process's store."""
    file = tmp_path / "a folder" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(made)
    use(f"sqlite:///{file}")
    return file


def refused() -> str:
    with pytest.raises(StageError) as caught:
        tracking.connect()
    return str(caught.value)


def test_a_locked_store_names_who_holds_it(store: Path) -> None:
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE'); "
    code += "print('here', flush=True); sys.stdin.read()"
    call = [sys.executable, "-c", code, str(store)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        said = refused()
        assert "database is locked" in said and f"another process is writing to it (process {holder.pid}, " in said
        holder.kill()
    assert sqlite3.connect(store).execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


@pytest.mark.parametrize(
    ("version", "way"),
    [
        ("fedcba987654", "a newer version of the program wrote it"),
        ("451aebb31d03", "an older MLflow made its tables; make a copy of it, then `mlflow db upgrade sqlite:///"),
    ],
)
def test_a_store_of_another_version(store: Path, version: str, way: str) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
    said = connected(f"sqlite:///{store}").stderr
    assert way in said and "delete" not in said and said.count("\n") == 1
    assert ("mlflow db upgrade" in said) == (version == "451aebb31d03")


def test_a_store_that_is_damaged_or_a_folder(store: Path) -> None:
    store.write_bytes(b"garbage" * 999)
    assert "it is damaged; put a backup in its place" in refused()
    store.unlink()
    store.mkdir()
    assert "unable to open database file): its folder isn't there, a folder is in its place" in refused()


def test_a_database_server_that_is_not_there(nowhere: str, use: Callable[[str], None]) -> None:
    pytest.importorskip("psycopg2")
    uri = nowhere.replace("http", "postgresql") + "/mlflow"
    use(uri)
    said = refused()
    assert "it doesn't answer; start it" in said and "secret" not in said
    use(uri.replace("postgresql", "mysql+pymysql"))
    assert "driver" in refused()


def test_a_store_with_a_password_in_its_address_is_asked(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    place = answering(200, b"OK").replace("//", "//me:secret@")
    tracking._reach(place)


def test_a_prefect_server_that_cant_be_used(answering: Answering, nowhere: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for place, word in (
        (nowhere, "doesn't answer"),
        ("no address", "doesn't answer"),
        (answering(401), "set PREFECT_API_AUTH_STRING"),
        (answering(500), "500 Internal Server Error"),
        (f"{answering(500)}/401", "500 Internal Server Error"),
        (answering(200), "not as Prefect's API does"),
        (answering(200, b"[]"), "not as Prefect's API does"),
    ):
        with temporary_settings({PREFECT_API_URL: f"{place}/api"}), pytest.raises(StageError) as caught:
            server.at_hand()
        said = str(caught.value)
        assert word in said and "PREFECT_API_" in said and "secret" not in said and "\n" not in said


def test_who_reads_no_further_is_no_error() -> None:
    code = "from components import stage\nwith stage.one_line():\n    [print('line') for _ in range(100_000)]"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1', shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_an_error_of_the_system_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for action, way in (
        (tmp_path.read_text, "move the folder away"),
        ((tmp_path / "file/below").read_text, "move the file away"),
        (lambda: socket.create_connection(("name.invalid", 1)), "a connection failed"),
        (lambda: socket.create_connection(("127.0.0.1", 1), timeout=5), "a connection failed"),
    ):
        assert way in str(troubles.told(raised(action)))
