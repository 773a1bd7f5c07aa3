"""Data sets of Kaggle, through its own client, from a server that speaks as much of its protocol as that needs.

The client knows no other address than https://api.kaggle.com, but it takes a proxy: the server is that proxy, and
plays the addresses behind it too, with a certificate that the client is told to trust.
"""

import base64
import hashlib
import io
import json
import os
import random
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from components import shards

ROOT = Path(__file__).parents[2]
ART = "cashbowman/ai-generated-images-vs-real-images"
HOSTS = ("api.kaggle.com", "storage.googleapis.com")
PAGE = f"https://www.kaggle.com/datasets/{ART}"
SETTINGS: dict[str, Any] = {
    "ingest": {"sources": {"sample": {}}},
    "preprocess": {"views": [32]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "validate": {},
    "evaluate": {},
}


class Kaggle(ThreadingHTTPServer):
    """Archives by name and version."""

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)
        self.archives: dict[tuple[str, int], bytes] = {}
        self.token: str | None = None  # needed to read anything
        self.cut: list[int] = []  # where the connection drops, one number a download
        self.wrong: list[bytes] = []  # what comes instead of an archive, one a download
        self.log: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Kaggle

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        """Become the host that is asked for; what comes next on the connection is a request to it."""
        assert self.path in {f"{host}:443" for host in HOSTS}
        self.host = self.path.split(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.host == "api.kaggle.com"
        self.server.log.append(f"{self.path.rsplit('/', 1)[1]} {asked.get('datasetVersionNumber', '')}".strip())
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply({"code": 403, "message": "Permission 'datasets.get' was denied"}, 403)
        name = f"{asked['ownerSlug']}/{asked['datasetSlug']}"
        versions = [version for known, version in self.server.archives if known == name]
        wanted = asked.get("datasetVersionNumber", max(versions, default=0))
        if wanted not in versions:
            return self.reply({"code": 404, "message": "Not found"}, 404)
        if self.path == "/v1/datasets.DatasetApiService/GetDataset":
            return self.reply({"ref": name, "currentVersionNumber": wanted})
        assert self.path == "/v1/datasets.DatasetApiService/DownloadDataset"
        self.send_response(302)
        self.send_header("Location", f"https://storage.googleapis.com/{name}/{wanted}")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def do_GET(self) -> None:
        assert self.host == "storage.googleapis.com" and "Authorization" not in self.headers
        owner, name, version = self.path.strip("/").split("/")
        data = self.server.archives[f"{owner}/{name}", int(version)]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        if self.server.wrong:
            data = self.server.wrong.pop(0)
        asked = self.headers.get("Range")
        start = int(asked[6:].split("-")[0]) if asked else 0
        self.server.log.append(f"GET {asked or 'all'}")
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Goog-Hash", f"md5={digest}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        until = self.server.cut.pop(0) if self.server.cut else len(data)
        self.wfile.write(data[start:until])
        if until < len(data):
            self.wfile.flush()
            self.close_connection = True

    def reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for the hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "hosts.pem"
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def kaggle(certificate: Path) -> Iterator[Kaggle]:
    server = Kaggle(certificate)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, kaggle: Kaggle, certificate: Path) -> Run:
    """The command, with nobody at the keyboard."""

    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KAGGLE") and "proxy" not in k.lower()}
        own = {"https_proxy": kaggle.url, "REQUESTS_CA_BUNDLE": str(certificate), "HOME": str(tmp_path / "home")}
        return subprocess.run(
            [sys.executable, "-m", "components.ingest", *arguments, "--params", "params.yaml"],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(ROOT)} | own | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


@pytest.fixture(scope="session")
def archive(jpeg: Callable[..., bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for n in range(3):
            packed.writestr(f"AiArtData/AiArtData/{n}.jpg", jpeg(n))
            packed.writestr(f"RealArt/RealArt/{n}.jpg", jpeg(10 + n))
        packed.writestr("more.bin", random.Random(7).randbytes(2 * 2**20))
    return file.getvalue()


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: kaggle://")
    assert last.endswith(f"or download it by hand from {PAGE} and `trueframe ingest art --from PATH`")
    return last


def waiting(folder: Path) -> list[str]:
    """What an ingestion that failed keeps for the next one."""
    return sorted(p.name for p in (folder / "data/.incoming/art/downloads").rglob("*") if p.is_file())


def test_a_data_set_is_downloaded_and_read(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives[ART, 3] = archive
    done = run("art")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "art: 6 images added, 0 already here, 0 rejected, 1 left out (1 no image)"
    rows = shards.manifest(shards.paths(tmp_path / "data", ["art"]))
    assert rows["label"].tolist() == ["ai"] * 3 + ["real"] * 3
    assert rows["origin"][0] == "AiArtData/AiArtData/0.jpg"
    assert kaggle.log == ["GetDataset", "DownloadDataset 3", "GET all"]
    # Neither the archive nor what was unpacked stays, here or in the home folder.
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["art"]
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    kaggle.log.clear()
    assert run("art").stdout == "art: nothing new\n"
    assert kaggle.log == []


def test_another_version_is_read_when_it_is_named(kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives |= {(ART, 1): archive, (ART, 2): archive}
    assert run("art", "--from", f"kaggle://{ART}/versions/1").returncode == 0
    assert kaggle.log == ["DownloadDataset 1", "GET all"]


def test_a_token_is_sent_and_its_want_is_explained(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives[ART, 1], kaggle.token = archive, "secret"
    message = the_error(run("art"))
    assert "Kaggle refuses it (403): no credentials are set. Make a token at https://www.kaggle.com/settings" in message
    assert f"set KAGGLE_API_TOKEN to it, and accept the terms at {PAGE} if it has any" in message
    message = the_error(run("art", KAGGLE_API_TOKEN="other"))
    assert "Kaggle refuses it (403): check the name and whether your account may read it" in message
    assert waiting(tmp_path) == []
    assert run("art", KAGGLE_API_TOKEN="secret").returncode == 0


def test_what_is_not_there_is_named(kaggle: Kaggle, run: Run, archive: bytes) -> None:
    assert "Kaggle has no such data set or version (404); check the name" in the_error(run("art"))
    done = run("art", "--from", "kaggle://cashbowman")
    assert "error: kaggle://cashbowman: not a data set of Kaggle; write kaggle://OWNER/NAME" in done.stderr


def test_without_a_connection_the_way_by_hand_is_named(run: Run) -> None:
    message = the_error(run("art", https_proxy="http://127.0.0.1:9"))
    assert "no connection to Kaggle; what was downloaded is kept. Run the same command again" in message


def test_images_brought_in_by_hand_need_no_connection(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    (tmp_path / "art.zip").write_bytes(archive)
    assert run("art", "--from", str(tmp_path / "art.zip")).returncode == 0
    before = sorted(path.name for path in (tmp_path / "data/art").iterdir())
    done = run("art", https_proxy="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "data/art").iterdir()) == before


def test_a_download_that_broke_off_goes_on(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives[ART, 1], kaggle.cut = archive, [3 * 2**19]
    assert "the connection to Kaggle broke off; what was downloaded is kept" in the_error(run("art"))
    assert waiting(tmp_path) == ["1.archive"]
    assert not (tmp_path / "data/art").exists()
    kaggle.log.clear()
    assert run("art").returncode == 0
    assert kaggle.log[-1] == f"GET bytes={2**20}-"  # the client keeps whole mebibytes
    assert len(shards.manifest(shards.paths(tmp_path / "data", ["art"]))) == 6


@pytest.mark.parametrize("kind", ["flipped", "page"])
def test_a_damaged_download_is_removed(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes, kind: str) -> None:
    kaggle.archives[ART, 1] = archive
    flipped = bytearray(archive)
    flipped[len(flipped) // 2] ^= 1
    kaggle.wrong = [bytes(flipped) if kind == "flipped" else b"<html>Please wait</html>"]
    assert "the download is damaged (its checksum is wrong) and was removed" in the_error(run("art"))
    assert waiting(tmp_path) == []
    assert run("art").returncode == 0


def test_what_is_no_archive_is_removed(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives[ART, 1] = b"<html>Please wait</html>"
    assert "the download is damaged (Unsupported archive type) and was removed" in the_error(run("art"))
    assert waiting(tmp_path) == []
    kaggle.archives[ART, 1] = archive[:-200]
    assert "the download is damaged (Unsupported archive type) and was removed" in the_error(run("art"))
    flipped = bytearray(archive)
    flipped[100] ^= 1
    kaggle.archives[ART, 1] = bytes(flipped)
    assert "the download is damaged (Bad CRC-32 for file 'AiArtData/AiArtData/0.jpg')" in the_error(run("art"))
    kaggle.archives[ART, 1] = archive
    assert run("art").returncode == 0


def test_a_file_of_credentials_that_is_none_is_named(tmp_path: Path, kaggle: Kaggle, run: Run, archive: bytes) -> None:
    kaggle.archives[ART, 1] = archive
    path = tmp_path / "home/.kaggle/kaggle.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert f"Kaggle credentials file at {path} is missing 'username' key; mend that" in the_error(run("art"))
