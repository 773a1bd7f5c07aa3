"""Verdicts for files, folders and addresses, with the detector that serving uses."""

import base64
import csv
import fcntl
import functools
import itertools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from components import folders, images, parallel, stage
from components.folders import spelled
from components.serve.detector import FIELDS
from components.stage import StageError

COLUMNS = ("path", *FIELDS)
_BLOCK, _BLOCK_BYTES = 256, 64 * 2**20  # files that are read at once, at most

Row = dict[str, Any]
Load = Callable[[str], Any]
Fetch = Callable[[str], bytes]


def is_address(name: str) -> bool:
    """Whether a name is one of the web."""
    return name.lower().startswith(("http://", "https://"))


def find(paths: list[Path], left_out: Counter[str]) -> list[Path]:
    """Files as they were named, and all images in folders, in order.

    Args:
        paths: of files and folders.
        left_out: counts by reason what in the folders is no image, or not of the collection (see `folders`).

    Raises:
        StageError: a path doesn't exist, or there is no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += inside(path, left_out)
        elif path.exists():
            found.append(path)
        else:
            raise StageError(f"{path}: not found")
    if not found:
        others = f"; {folders.counted(left_out)}" if left_out else ""
        raise StageError(f"{', '.join(map(str, paths))}: no images in there{others}")
    return found


def inside(folder: Path, left_out: Counter[str]) -> list[Path]:
    """All images in a folder and those in it, in order; what else there is is counted by reason."""
    found: list[Path] = []
    for name, out in folders.pictures(folder):
        if out:
            left_out[out.reason] += 1
        else:
            found.append(folder / name)
    return found


@dataclass(frozen=True)
class Judge:
    """What judges, in this process or another.

    Attributes:
        load: gives a version's detector; importable by name.
        version: that it is asked for.
        fetch: gives the bytes behind an address, or raises `ImageError`; importable by name.
        threshold: in place of the fitted one.
    """

    load: Load
    version: str
    fetch: Fetch
    threshold: float | None = None

    def __call__(self, block: Sequence[tuple[str, Path | None]]) -> list[Row]:
        """Judge files or addresses; each comes with where its heatmap goes, if it is wanted.

        Returns:
            A dict with `COLUMNS` for each, in order, and `says`, the verdict in words.
        """
        detector = _loaded(self.load, self.version)
        wanted = any(heatmap for _, heatmap in block)
        read = [self._read(name) for name, _ in block]
        files = [data if isinstance(data, bytes) else b"" for data in read]
        rows: list[Row] = []
        answers = detector.score(files, explain=wanted, threshold=self.threshold)
        for (name, heatmap), data, row in zip(block, read, answers, strict=True):
            drawn = row.pop("heatmap", None)
            if heatmap and drawn:
                heatmap.parent.mkdir(parents=True, exist_ok=True)
                heatmap.write_bytes(base64.b64decode(drawn))
            says = detector.says(row)
            rows.append({"path": name, **row, "says": says, **({"error": data} if isinstance(data, str) else {})})
        return rows

    def _read(self, name: str) -> bytes | str:
        """The bytes, or why there are none."""
        try:
            data = self.fetch(name) if is_address(name) else Path(name).read_bytes()
            return data
        except OSError as error:
            return error.strerror or str(error)
        except images.ImageError as error:
            return str(error)


def check(
    judge: Judge,
    names: Sequence[str],
    heatmaps: Path | None = None,
    jobs: int = 1,
    knows: Callable[[str], bool] = lambda _: False,
) -> Iterator[list[Row]]:
    """Judge files and addresses in blocks.

    Args:
        judge: judges.
        names: paths and addresses.
        heatmaps: folder for a PNG of each picture's evidence, named after its file; null draws none.
        jobs: processes.
        knows: which of them needn't be judged again.

    Yields:
        A dict with `COLUMNS` for each, in order: the rows of a block.
    """
    maps = _maps(names, heatmaps) if heatmaps else {}
    new = [(name, maps.get(name)) for name in names if not knows(name)]
    progress = parallel.Progress("images checked", len(new))
    blocks = _blocks(new)
    done = map(judge, blocks) if jobs == 1 else parallel.ordered_map(judge, blocks, patience=0, cores=jobs)
    for rows in done:
        yield rows
        progress.add(len(rows))


class Journal:
    """Rows beside the file that they will make, written as they come: a run that was stopped goes on where it was.

    A row is kept as long as its file has the same size and time of change, and the same detector would judge it.
    Whoever removes the output begins anew.

    Args:
        output: the first file that will be made.
        identity: of what judges; rows of another are forgotten.
    """

    def __init__(self, output: Path, identity: str) -> None:
        self.path = output.with_name(f".{output.name}.rows")
        self._places: dict[str, tuple[Any, int]] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{output}: another `trueframe check` is writing it; wait for it, or end it") from None
        if not self._take_up(identity, output.exists()):
            self._places.clear()
            self._file.truncate(0)
            self._add({"identity": identity})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def knows(self, name: str) -> bool:
        """Whether there is a row that still holds."""
        known = self._places.get(name)
        return known is not None and known[0] == _state(name)

    def add(self, rows: Iterable[Row]) -> None:
        """Write a block of rows."""
        for row in rows:
            state = _state(row["path"])
            place = self._add({"state": state, "row": row})
            self._places[row["path"]] = _holds(state, row), place
        self._file.flush()

    def rows(self, names: Iterable[str]) -> Iterator[Row]:
        """The rows of these, in this order."""
        for name in names:
            self._file.seek(self._places[name][1])
            yield json.loads(self._file.readline())["row"]

    def end(self) -> None:
        """All is written where it belongs."""
        self._add({"done": True})

    def _add(self, said: dict[str, Any]) -> int:
        place = self._file.seek(0, 2)
        self._file.write(json.dumps(said).encode() + b"\n")  # in ASCII, for names that aren't UTF-8
        return place

    def _take_up(self, identity: str, is_there: bool) -> bool:
        """Read what an earlier run left; false where it is of no use."""
        self._file.seek(0)
        place, is_done = 0, False
        for number, line in enumerate(self._file):
            try:
                said = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                said = None
            if said is None:  # it was killed while it wrote
                self._file.truncate(place)
                break
            if number == 0 and said.get("identity") != identity:
                return False
            is_done = "done" in said
            if "row" in said:
                state, row = said["state"], said["row"]
                self._places[row["path"]] = _holds(state, row), place
            place += len(line)
        return place > 0 and (is_there or not is_done)


def write(rows: Iterable[Row], path: Path) -> None:
    """Write rows as the file's name says: `.csv`, `.json` or `.parquet`.

    CSV has a line a file, with `provenance` and `warnings` as JSON; JSON is a list of objects; in Parquet `warnings` is
    a list and `provenance` JSON. All are UTF-8; what isn't is spelled out.
    """
    writer = {".csv": _csv, ".json": _json, ".parquet": _parquet}[path.suffix]
    written = (row | {"path": spelled(row["path"])} for row in rows)
    stage.replace(path, lambda partial: writer(written, partial))


def _csv(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            nested = {key: _text(row[key]) for key in ("provenance", "warnings")}
            writer.writerow(row | nested)


def _json(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        between = "[\n"
        for row in rows:
            file.write(between + json.dumps(row, indent=1, ensure_ascii=False))
            between = ",\n"
        file.write("[]\n" if between == "[\n" else "\n]\n")


def _parquet(rows: Iterable[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"probability": pa.float64(), "threshold": pa.float64(), "warnings": pa.list_(pa.string())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    with pq.ParquetWriter(path, schema) as writer:
        for block in parallel.batched(rows, 4096):
            flat = [row | {"provenance": _text(row["provenance"])} for row in block]
            writer.write_table(pa.Table.from_pylist(flat, schema))


def _text(said: Any) -> str:
    return json.dumps(said, ensure_ascii=False).encode(errors="backslashreplace").decode()


@functools.cache
def _loaded(load: Load, version: str) -> Any:
    """Once in each process."""
    return load(version)


def _blocks(names: Iterable[tuple[str, Path | None]]) -> Iterator[list[tuple[str, Path | None]]]:
    block: list[tuple[str, Path | None]] = []
    size = 0
    for name, heatmap in names:
        block.append((name, heatmap))
        size += (_state(name) or [0])[0]
        if len(block) == _BLOCK or size > _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _maps(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Where each picture's heatmap goes: all of them, so that a run that goes on gives the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    longest = os.pathconf(folder, "PC_NAME_MAX")
    taken: set[str] = set()
    return {name: folder / _free(spelled(Path(name).name), taken, longest) for name in names}


def _state(name: str) -> list[int] | None:
    """Size and time of change of a file; null where there is none."""
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _holds(state: list[int] | None, row: Row) -> list[int] | str | None:
    """The state in which a row holds; what couldn't be read at all may answer another time."""
    return "never" if state is None and row["error"] else state


def _free(name: str, taken: set[str], longest: int) -> str:
    """`NAME.png`, with a number where another folder has a file of that name; of a long one what has room, in bytes.

    Names that only some systems tell apart count as one.
    """
    for number in itertools.count(1):
        end = ".png" if number == 1 else f"-{number}.png"
        free = name.encode()[: longest - len(end)].decode(errors="ignore") + end
        same = unicodedata.normalize("NFC", free).casefold()
        if same not in taken:
            break
    taken.add(same)
    return free
