"""Verdicts for many files: in order, taken up again where they were stopped, in several processes."""

import csv
import functools
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import served

from components import stage
from components.serve import check
from components.serve.check import COLUMNS, Journal, Judge
from components.serve.detector import Detector
from components.stage import StageError
from flows import answering, checking, links

Run = Callable[..., int]
COUNTED: list[int] = []


@functools.cache
def load(folder: str) -> Any:
    detector = Detector(Path(folder, "detector.onnx"), "5")
    score = detector.score

    def counted(files: list[Any], **options: Any) -> Any:
        COUNTED.append(len(files))
        return score(files, **options)

    detector.score = counted  # type: ignore[method-assign]
    return detector


class Folder(answering.Who):
    """A detector in a folder, in place of a registry."""

    load = staticmethod(load)

    def identity(self) -> str:
        return self.number


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(served.detector(tmp_path_factory.mktemp("detector")))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for n in range(6):
        (folder / ("deep" if n % 2 else "") / f"{n}.jpg").write_bytes(served.picture(n))
    return folder


@pytest.fixture
def run(detector: str, tmp_path: Path) -> Run:
    def go(*asked: Any, outputs: tuple[str, ...] = (), **wanted: Any) -> int:
        COUNTED.clear()
        files = [tmp_path / name for name in outputs]
        return checking.run(map(str, asked), lambda path: path, Folder(detector), checking.Wanted(files, **wanted))

    return go


def rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def test_what_is_missing_keeps_nobody_from_the_others(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run(pictures / "0.jpg", tmp_path / "none.jpg", outputs=("out.json",)) == checking.ERROR
    first, second = rows(tmp_path / "out.json")
    assert first["error"] is None and first["verdict"] and second["path"].endswith("none.jpg") and second["error"]
    with pytest.raises(StageError, match="not found"):
        run(tmp_path / "none.jpg")


def test_the_three_formats_say_the_same(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"broken")
    assert run(pictures, outputs=("out.csv", "out.json", "out.parquet")) == checking.ERROR
    said = rows(tmp_path / "out.json")
    names = ["0.jpg", "2.jpg", "4.jpg", "broken.png", "1.jpg", "3.jpg", "5.jpg"]
    assert [Path(row["path"]).name for row in said] == names
    assert all(tuple(row) == COLUMNS for row in said)
    table = pd.read_parquet(tmp_path / "out.parquet")
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == tuple(table.columns) == COLUMNS
    for row, line, (_, flat) in zip(said, lines, table.iterrows(), strict=True):
        assert row["path"] == line["path"] == flat["path"]
        assert json.loads(line["warnings"]) == row["warnings"] == list(flat["warnings"])
        assert json.loads(line["provenance"]) == row["provenance"] == json.loads(flat["provenance"])
        if row["error"]:
            assert line["error"] == flat["error"] == row["error"] and line["probability"] == ""
        else:
            assert float(line["probability"]) == row["probability"] == flat["probability"]


def test_unchanged_files_keep_their_rows(run: Run, pictures: Path, tmp_path: Path) -> None:
    run(pictures, outputs=("out.json",))
    before = rows(tmp_path / "out.json")
    assert sum(COUNTED) == 6
    run(pictures, outputs=("out.json",))
    assert COUNTED == [] and rows(tmp_path / "out.json") == before
    (pictures / "0.jpg").write_bytes(served.picture(100))
    (pictures / "new.jpg").write_bytes(served.picture(7))
    (pictures / "2.jpg").unlink()
    run(pictures, outputs=("out.json", "out.csv"))
    assert sum(COUNTED) == 2
    after = {row["path"]: row for row in rows(tmp_path / "out.json")}
    assert len(after) == 6 and str(pictures / "2.jpg") not in after
    assert after[str(pictures / "4.jpg")] in before and after[str(pictures / "0.jpg")] not in before
    run(pictures, outputs=("out.json",), threshold=0.2)
    assert sum(COUNTED) == 6, "another decision, other rows"
    (tmp_path / "out.json").unlink()
    run(pictures, outputs=("out.json",), threshold=0.2)
    assert sum(COUNTED) == 6, "without its output it begins anew"


def test_a_check_that_was_killed_goes_on(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_BLOCK", 2)
    judged = check.Judge.__call__

    def killed(self: Judge, block: Any) -> Any:
        if len(COUNTED) == 2:
            raise KeyboardInterrupt
        return judged(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(check.Judge, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run(pictures, outputs=("out.csv",))
    [journal] = tmp_path.glob(".out.csv.rows")
    with journal.open("ab") as file:
        file.write(b'{"state": [1, 2], "row": {"pa')  # it was killed while it wrote
    run(pictures, outputs=("out.csv",))
    assert sum(COUNTED) == 2
    with (tmp_path / "out.csv").open() as file:
        assert len({line["path"] for line in csv.DictReader(file)}) == 6


def test_two_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.csv", "a"), pytest.raises(StageError, match="another"):
        Journal(tmp_path / "out.csv", "a")


def test_several_processes_say_the_same(run: Run, pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run(pictures, outputs=("one.json",))
    monkeypatch.setattr(check, "_BLOCK", 1)
    run(pictures, outputs=("two.json",), jobs=2)
    for one, two in zip(rows(tmp_path / "one.json"), rows(tmp_path / "two.json"), strict=True):
        assert two["probability"] == pytest.approx(one.pop("probability"), abs=1e-5)
        assert {key: two[key] for key in one} == one


def test_exit_codes(run: Run, pictures: Path, detector: str) -> None:
    [row] = load(detector).score([(pictures / "0.jpg").read_bytes()])
    p = row["probability"]
    assert run(pictures / "0.jpg", threshold=p / 4) == checking.AI
    assert run(pictures / "0.jpg", threshold=1 - (1 - p) / 4) == checking.REAL
    assert run(pictures / "0.jpg", threshold=p) == checking.REAL, "uncertain"
    assert run(pictures / "0.jpg", threshold=p, is_strict=True) == checking.AI
    (pictures / "x.jpg").write_bytes(b"x")
    assert run(pictures, threshold=p / 4) == checking.ERROR


def test_a_list_on_stdin(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [pictures / "0.jpg", "", pictures / "deep", pictures / "0.jpg", tmp_path / "none.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(str, listed))))
    assert run("-", outputs=("out.json",)) == checking.ERROR
    said = rows(tmp_path / "out.json")
    assert [Path(row["path"]).name for row in said] == ["0.jpg", "1.jpg", "3.jpg", "5.jpg", "none.jpg"]
    assert said[-1]["error"] == "No such file or directory"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(StageError, match="list is empty"):
        run("-")


@pytest.fixture
def site() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.jpg" else 404)
            data = served.picture(1) if self.path == "/a.jpg" else b""
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_addresses(run: Run, site: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (f"{site}/a.jpg", f"{site}/none.jpg", pictures / "0.jpg")
    assert run(*asked, outputs=("out.json",)) == checking.ERROR
    said = rows(tmp_path / "out.json")
    assert all("no public address" in row["error"] for row in said[:2]) and said[2]["error"] is None
    assert all(row["label"] is None for row in said[:2])
    # What was refused may be answered another time; here because this machine counts as public now.
    monkeypatch.setattr(checking, "fetch", lambda url: links.fetch(url, 2**20, private=True))
    assert run(*asked, outputs=("out.json",)) == checking.ERROR
    said = rows(tmp_path / "out.json")
    assert said[0]["error"] is None and "404" in said[1]["error"]
    assert sum(COUNTED) == 2
    run(*asked, outputs=("out.json",))
    assert sum(COUNTED) == 1, "what an address gave is not asked for again"


def test_what_ingestion_leaves_out_is_not_judged(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = served.picture(7)
    left_out = (
        "._0.jpg",
        "__MACOSX/0.jpg",
        ".Trashes/0.jpg",
        "deep/@eaDir/0.jpg",
        ".hidden",
        ".trashed-0.jpg",
        "0.jpg~",
    )
    for name in left_out:
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(picture)
    (pictures / "readme.txt").write_text("words")
    (pictures / "0.jpg_large").write_bytes(picture)
    (pictures / "1.jxl").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50))
    (pictures / "round").symlink_to(".")
    os.mkfifo(pictures / "pipe.jpg")
    assert run(pictures, outputs=("out.json",)) == checking.ERROR
    said = {Path(row["path"]).name: row["error"] for row in rows(tmp_path / "out.json")}
    assert said == dict.fromkeys(["0.jpg", "0.jpg_large", *(f"{n}.jpg" for n in range(1, 6))]) | {
        "1.jxl": "JPEG XL, a format that isn't read here"
    }
    others = "1 backup or half a download, 1 link seen before, 1 no file, 1 no image"
    end = f"1 errors; 10 left out (4 hidden, 2 of the system, {others})"
    assert capsys.readouterr().out.splitlines()[-1].endswith(end)
    (tmp_path / "only").mkdir()
    (tmp_path / "only/Thumbs.db").write_bytes(picture)
    with pytest.raises(StageError, match=r"no images in there; 1 left out \(1 of the system\)"):
        run(tmp_path / "only")


def test_names_that_are_not_utf_8(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = pictures / os.fsdecode(b"caf\xe9.jpg")
    odd.write_bytes(served.picture(8))
    (pictures / "日本.jpg").write_bytes(served.picture(9))
    outputs = ("out.csv", "out.json", "out.parquet")
    assert run(pictures, outputs=outputs, heatmaps=tmp_path / "maps") != checking.ERROR
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        names = [Path(line["path"]).name for line in csv.DictReader(file)]
    assert names == [Path(row["path"]).name for row in json.loads((tmp_path / "out.json").read_text("utf-8"))]
    assert names == [Path(path).name for path in pd.read_parquet(tmp_path / "out.parquet")["path"]]
    assert {"caf\\xe9.jpg", "日本.jpg"} < set(names)
    assert {"caf\\xe9.jpg.png", "日本.jpg.png"} < {path.name for path in (tmp_path / "maps").iterdir()}
    assert run(pictures, outputs=outputs, heatmaps=tmp_path / "maps") != checking.ERROR
    assert COUNTED == [], "the journal knows it by its own name"
    run(odd)
    assert f"{pictures}/caf\\xe9.jpg: " in capsys.readouterr().out
    listed = io.TextIOWrapper(io.BytesIO(os.fsencode(odd) + b"\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", listed)
    with stage.one_line():
        assert run("-", outputs=("listed.json",)) != checking.ERROR


def test_heatmaps_of_long_names(run: Run, pictures: Path, tmp_path: Path) -> None:
    long = ["x" * 251 + ".jpg", "é" * 125 + ".jpg"]
    for name in long:
        for folder in (pictures, pictures / "deep"):
            (folder / name).write_bytes(served.picture(8))
    assert run(pictures, outputs=("out.json",), heatmaps=tmp_path / "maps") != checking.ERROR
    assert len(rows(tmp_path / "out.json")) == 10
    made = {path.name for path in (tmp_path / "maps").iterdir()}
    assert len(made) == 10 and all(len(name.encode()) <= 255 for name in made)
    assert {"x" * 251 + ".png", "x" * 249 + "-2.png", "é" * 125 + "..png", "é" * 124 + "-2.png"} < made


def test_heatmaps_keep_their_names_where_a_run_goes_on(run: Run, pictures: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    (pictures / "deep/0.JPG").write_bytes(served.picture(100))
    run(pictures, outputs=("out.json",), heatmaps=maps)
    before = {path.name: path.read_bytes() for path in maps.iterdir()}
    assert {"0.jpg.png", "0.JPG-2.png"} < before.keys()
    os.utime(pictures / "deep/0.JPG", (0, 0))
    run(pictures, outputs=("out.json",), heatmaps=maps)
    assert sum(COUNTED) == 1
    assert {path.name: path.read_bytes() for path in maps.iterdir()} == before


def test_heatmaps_of_files_of_the_same_name(run: Run, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(pictures / "0.jpg", pictures / "deep/0.jpg")
    run(pictures, heatmaps=tmp_path / "maps")
    assert {"0.jpg.png", "0.jpg-2.png", "1.jpg.png"} <= {path.name for path in (tmp_path / "maps").iterdir()}
