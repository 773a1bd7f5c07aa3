"""Archives that unpack to more than they say."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from components.ingest import readers
from components.stage import StageError

LARGE = 256 * 2**20  # bytes that a bomb unpacks to
ROOM = 120 * 2**20  # bytes of memory that reading it may add
READ = """
import resource, sys
from pathlib import Path
from components.ingest import readers
from components.stage import StageError
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + int(sys.argv[2]),) * 2)
try:
    found = [None if data is None else len(data) for _, data in readers.read(Path(sys.argv[1]), 10 * 2**20)]
    print("read", found, readers.member(Path(sys.argv[1]), "table.csv") is None)
except StageError as error:
    print(error)
"""


def read(path: Path) -> str:
    """What comes of it in a process that has little memory."""
    done = subprocess.run([sys.executable, "-c", READ, str(path), str(ROOM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def packed(head: bytes = b"") -> bytes:
    """A gzip stream of something and zeros after it."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(LARGE >> 20):
            stream.write(bytes(2**20))
        stream.write(bytes(1024 if head else 0))
    return out.getvalue()


def lying_zip(path: Path, says: int) -> Path:
    """A deflated member of zeros that says that it has fewer bytes than it unpacks to."""
    data = packed()[10:-8]  # raw deflate
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ai/a.jpg", b"")
    whole = path.read_bytes()
    info = zipfile.ZipFile(path).infolist()[0]
    head = 30 + len(info.filename)
    start = whole.index(b"PK\x01\x02")
    local, central, end = bytearray(whole[:head]), bytearray(whole[start:-22]), bytearray(whole[-22:])
    struct.pack_into("<H", local, 8, zipfile.ZIP_DEFLATED)
    struct.pack_into("<III", local, 14, 0, len(data), says)
    struct.pack_into("<H", central, 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<III", central, 16, 0, len(data), says)
    struct.pack_into("<I", end, 16, head + len(data))
    path.write_bytes(bytes(local) + data + bytes(central) + bytes(end))
    return path


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    assert "damaged or cut off (Bad CRC-32" in read(lying_zip(tmp_path / "a.zip", 1000))
    assert read(lying_zip(tmp_path / "b.zip", LARGE - 1)) == "read [None] True"


def test_a_way_of_packing_without_bounds_is_refused(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("ai/a.jpg", jpeg(1))
        with pytest.raises(StageError, match=r"'ai/a\.jpg' is packed in a way whose memory has no bound; unpack it"):
            list(readers.read(tmp_path / "a.zip", 2**20))


def test_a_tar_with_a_name_of_gigabytes(tmp_path: Path) -> None:
    head = tarfile.TarInfo("././@PaxHeader")
    head.type, head.size = tarfile.XHDTYPE, LARGE
    (tmp_path / "a.tar.gz").write_bytes(packed(head.tobuf(tarfile.USTAR_FORMAT)))
    assert f"damaged or cut off (a description of {LARGE:,} bytes)" in read(tmp_path / "a.tar.gz")


def test_a_member_that_is_too_large_is_passed_over(tmp_path: Path) -> None:
    head = tarfile.TarInfo("ai/a.jpg")
    head.size = LARGE
    (tmp_path / "a.tar.gz").write_bytes(packed(head.tobuf()))
    assert read(tmp_path / "a.tar.gz") == "read [None] True"


def test_a_table_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_TABLE", 10)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", "a" * 11)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("table.csv")
        info.size = 11
        tar.addfile(info, io.BytesIO(b"a" * 11))
    for name in ("a.zip", "a.tar"):
        with pytest.raises(StageError, match=r"table\.csv has 11 bytes; a table may have 10"):
            readers.member(tmp_path / name, "table.csv")
