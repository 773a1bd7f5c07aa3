"""The log of predictions: its schema, writing it, reading it, and the statistics of the pictures in it.

Parquet by day, `predictions/<date>/<process>-<nnnnn>.parquet`, one row an image that was asked about. Days are those of
UTC. No pixels: what is known of a picture are its hash and a few figures.
"""

import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components import images, stage

if TYPE_CHECKING:
    import pandas as pd  # writing does without

STATISTICS = pa.schema(
    [
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("n_bytes", pa.int64()),
        pa.field("jpeg_quality", pa.float32()),
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC")),
        pa.field("sha256", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("threshold", pa.float64()),
        pa.field("model_version", pa.string()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("latency", pa.float32()),  # s from the request's last byte to its answer
        *STATISTICS,
    ]
)
IMAGES = "images"
_LARGEST = 50_000_000  # px; larger pictures are not decoded for the log
_CENTRE = 512  # px, the side of the part whose sharpness is measured
_ROWS = 10_000  # in one file


def statistics(data: bytes) -> dict[str, Any]:
    """What a picture is like, by the names of `STATISTICS`; null where that can't be said.

    Args:
        data: the file.

    Returns:
        `width` and `height` in px as stored, `format`, `n_bytes`; `jpeg_quality` by the scale of libjpeg; `brightness`
        and `contrast`, the mean and standard deviation of the grey values (0 to 255) of a miniature of 64 px;
        `sharpness`, the logarithm of the variance of the Laplacian of the central 512 px at native resolution.
    """
    found: dict[str, Any] = dict.fromkeys(STATISTICS.names)
    found["n_bytes"] = len(data)
    try:
        image = images.open_image(data)
        found |= {"width": image.width, "height": image.height, "format": image.format}
        found["jpeg_quality"] = images.jpeg_quality(image)
        if image.width * image.height > _LARGEST:
            return found
        rgb = images.to_rgb(image)
    except images.ImageError:
        return found
    small = np.asarray(rgb.resize((64, 64), Image.Resampling.BOX).convert("L"), np.float32)
    found |= {"brightness": float(small.mean()), "contrast": float(small.std())}
    left, top = (max(0, side - _CENTRE) // 2 for side in rgb.size)
    box = (left, top, min(left + _CENTRE, rgb.width), min(top + _CENTRE, rgb.height))
    grey = np.asarray(rgb.crop(box).convert("L"), np.float32)
    if min(grey.shape) > 2:
        laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
        found["sharpness"] = float(np.log1p(laplacian.var()))
    return found


class Writer:
    """Writes rows as they come.

    The file that is being filled is written anew with every flush and always whole, so that there are few files, and a
    process that is killed loses what came since the last flush. While the folder can't be written, the newest rows
    wait in memory; that is said once.

    Args:
        folder: of the log.
        keep_days: days after which it is deleted.
    """

    def __init__(self, folder: Path, keep_days: int) -> None:
        self._folder, self._keep_days = folder, keep_days
        self._process, self._number = uuid.uuid4().hex[:8], 1
        self._rows: list[dict[str, Any]] = []
        self._day: date | None = None
        self._is_dirty = self._is_failing = False

    def add(self, row: dict[str, Any], data: bytes | None = None) -> None:
        """Take a row.

        Args:
            row: by the names of `SCHEMA`; what isn't known is missing.
            data: the picture's file, where it is to be kept.
        """
        day = row["time"].date()
        if day != self._day:
            self.flush()
            self._next()
            self._day = day
            prune(self._folder, self._keep_days, day)
        self._rows.append(row)
        self._is_dirty = True
        if data is not None:
            self._try(lambda: self._keep(row, data))
        if len(self._rows) >= _ROWS:
            self.flush()
            if self._is_dirty:
                del self._rows[: -_ROWS // 2]
            else:
                self._next()

    def flush(self) -> None:
        """Write what isn't written yet."""
        if not self._is_dirty:
            return
        table = pa.Table.from_pylist(self._rows, SCHEMA)
        path = self._folder / f"{self._day}/{self._process}-{self._number:05}.parquet"

        def write(partial: Path) -> None:
            pq.write_table(table, partial, compression="zstd")

        self._is_dirty = not self._try(lambda: stage.replace(path, write))

    def _next(self) -> None:
        self._rows.clear()
        self._is_dirty = False
        self._number += 1

    def _keep(self, row: dict[str, Any], data: bytes) -> None:
        path = self._folder / f"{self._day}/{IMAGES}/{row['sha256']}.{(row.get('format') or 'unknown').lower()}"
        if not path.exists():
            stage.replace(path, lambda partial: partial.write_bytes(data))

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except OSError as error:
            if not self._is_failing:
                _say(f"predictions can't be logged: {stage.describe(error)}; requests are answered all the same")
            self._is_failing = True
            return False
        if self._is_failing:
            _say("predictions are logged again")
        self._is_failing = False
        return True


def read(folder: Path, since: datetime, until: datetime, columns: Sequence[str] = SCHEMA.names) -> "pd.DataFrame":
    """The rows of a time, the oldest first; files that are damaged are named and passed over.

    Args:
        folder: of the log.
        since: with a time zone; included.
        until: with a time zone; excluded.
        columns: of `SCHEMA`, `time` among them.
    """
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    parts = []
    for day, path in sorted(_days(folder)):
        # A row belongs to the day on which it was made, whenever it was written.
        if not since.astimezone(UTC).date() <= day <= until.astimezone(UTC).date():
            continue
        for file in sorted(path.glob("[!.]*.parquet")):
            try:
                parts.append(pq.read_table(file, schema=schema))
            except (pa.ArrowException, OSError) as error:
                _say(f"{file}: passed over ({str(error).splitlines()[0]})")
    rows = (pa.concat_tables(parts) if parts else schema.empty_table()).to_pandas()
    within = rows[(rows["time"] >= since) & (rows["time"] < until)]
    return within.sort_values("time", kind="stable").reset_index(drop=True)


def prune(folder: Path, keep_days: int, today: date) -> None:
    """Delete the days of the log that are older than `keep_days`, pictures included."""
    for day, path in list(_days(folder)):
        if day < today - timedelta(days=keep_days):
            shutil.rmtree(path, ignore_errors=True)


def _days(folder: Path) -> Iterator[tuple[date, Path]]:
    """The folders that are named after a day, and no others."""
    for path in folder.glob("[0-9]*-[0-9]*-[0-9]*"):
        try:
            yield date.fromisoformat(path.name), path
        except ValueError:
            continue


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
