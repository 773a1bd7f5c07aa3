"""One look at every file: are its bytes whole, what do its headers say, and what are its pixels like?"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, JpegImagePlugin

from components import images, parallel, shards

_PIXELS = 2_000_000_000  # decoded for the audits, at most
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


@dataclass(frozen=True)
class Inspection:
    """What was found. The frames have an image's row in the manifest as their index.

    Attributes:
        intact: bool, shape (images,): whether the bytes are those that were ingested.
        headers: what a file says beside its picture, of some images (`HEADERS`).
        pixels: the plainest things to be said of a picture (`PIXELS`), of fewer.
        traces: float32, shape (len(pixels), features): see `traces_of`.
        equalised: `headers` and `pixels` of what `preprocess.equalise` makes of the images; null without it.
    """

    intact: np.ndarray
    headers: pd.DataFrame
    pixels: pd.DataFrame
    traces: np.ndarray
    equalised: tuple[pd.DataFrame, pd.DataFrame] | None


def inspect(
    rows: pd.DataFrame, files: dict[str, Path], n_images: int, equalise: dict[str, Any] | None, seed: int
) -> Inspection:
    """Read every shard once, and look more closely at some images of each label.

    Args:
        rows: the manifest.
        files: the shards, as from `shards.paths`.
        n_images: how many images are looked at, at most.
        equalise: settings of `images.equalised`, where all images go through it.
        seed: draws them.
    """
    looked_at = _draw(rows, np.arange(len(rows)), n_images, seed)
    area = (rows["width"] * rows["height"]).to_numpy()
    affordable = int(_PIXELS / max(1.0, float(area[looked_at].mean()))) if len(looked_at) else 0
    decoded = _draw(rows, looked_at, affordable, seed)
    closely = np.zeros(len(rows), np.int8)
    closely[looked_at] = 1
    closely[decoded] = 2
    tasks = [
        (path, group, index := part.index.to_numpy()[group.start : group.stop], closely[index], equalise)
        for (_, part), path in zip(rows[["shard"]].groupby(rows["shard"], sort=False), files.values(), strict=True)
        for group in shards.pieces(path)
    ]
    intact = np.empty(len(rows), bool)
    headers, pixels, traces, after = [], [], [], []
    stored = rows["sha256"].to_numpy()
    progress = parallel.Progress("images checked", len(rows))
    for (_, _, index, _, _), found in zip(tasks, parallel.ordered_map(_inspect, tasks, patience=0), strict=True):
        digests, said, seen, looks, equal = found
        intact[index] = np.array(digests, object) == stored[index]
        headers.append(said)
        pixels.append(seen)
        traces.append(looks)
        after.append(equal)
        progress.add(len(index))
    sizes = rows[["width", "height", "n_bytes"]]
    return Inspection(
        intact,
        _with_sizes(pd.concat(headers), sizes),
        pd.concat(pixels),
        np.concatenate(traces),
        (pd.concat([e[0] for e in after]), pd.concat([e[1] for e in after])) if equalise else None,
    )


def _draw(rows: pd.DataFrame, among: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Up to `n` of some rows, of both labels alike as far as there are enough."""
    if len(among) <= n:
        return among
    rng = np.random.default_rng(seed)
    ai = (rows["label"].to_numpy()[among] == "ai").astype(bool)
    few = min(ai.sum(), (~ai).sum(), n // 2)
    of = {True: few if ai.sum() <= (~ai).sum() else n - few}
    of[False] = n - of[True]
    drawn = [rng.choice(among[ai == label], min(of[label], int((ai == label).sum())), replace=False) for label in of]
    return np.sort(np.concatenate(drawn))


def _inspect(task: tuple[Path, range, np.ndarray, np.ndarray, dict[str, Any] | None]) -> tuple[Any, ...]:
    path, group, index, closely, equalise = task
    digests, headers, pixels, traces = [], {}, {}, []
    equal_headers, equal_pixels = {}, {}
    for row, depth, data in zip(index, closely, shards.files(path, group), strict=True):
        digests.append(hashlib.sha256(data).hexdigest())
        if not depth:
            continue
        try:
            image = images.open_image(data)
            headers[row] = header_of(image)
            if depth < 2:
                continue
            rgb = images.to_rgb(image)
        except images.ImageError:  # its bytes aren't intact, which is said elsewhere
            continue
        pixels[row] = pixels_of(rgb)
        traces.append(traces_of(rgb))
        if equalise:
            file = images.equalised(rgb, **equalise)
            opened = Image.open(io.BytesIO(file))
            equal_headers[row] = header_of(opened) | {
                "width": opened.width,
                "height": opened.height,
                "aspect": opened.width / opened.height,
            }
            # At one quality and size, the bytes measure how much there is in the picture.
            equal_pixels[row] = pixels_of(opened.convert("RGB")) | {
                "detail": len(file) / (opened.width * opened.height)
            }
    looks = np.stack(traces) if traces else np.empty((0, N_TRACES), np.float32)
    equal = _frame(equal_headers), _frame(equal_pixels)
    return digests, _frame(headers), _frame(pixels), looks, equal


def _frame(rows: dict[Any, dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index")


def _with_sizes(headers: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    of = sizes.loc[headers.index]
    return headers.assign(
        width=of["width"],
        height=of["height"],
        aspect=of["width"] / of["height"],
        bytes_per_pixel=of["n_bytes"] / (of["width"] * of["height"]),
    )


def header_of(image: Image.Image) -> dict[str, Any]:
    """What an opened file says beside its picture: format, mode, JPEG tables and subsampling, and whether there is
    EXIF or a colour profile.
    """
    tables = getattr(image, "quantization", None)
    subsampling = JpegImagePlugin.get_sampling(image) if tables else None
    return {
        "format": image.format,
        "mode": image.mode,
        "quantisation": _table_name(tables) if tables else "none",
        "subsampling": "none" if subsampling is None else _SUBSAMPLING.get(subsampling, "other"),
        "exif": "exif" in image.info,
        "colour_profile": bool(image.info.get("icc_profile")),
    }


def _table_name(tables: dict[int, list[int]]) -> str:
    """The quality whose tables (of the Independent JPEG Group) are nearest, and a few digits that tell tables apart."""
    mean = float(np.mean(tables[min(tables)]))
    # The group's luminance table has a mean of 57.6 at quality 50, and is scaled from there.
    scale = mean / 57.625 * 100
    quality = (200 - scale) / 2 if scale < 100 else 5000 / scale
    digits = hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:4]
    return f"quality {max(1, min(100, round(quality)))} ({digits})"


def pixels_of(image: Image.Image) -> dict[str, float]:
    """Mean colour, contrast and sharpness of a miniature of 64 px."""
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX), np.float32)
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    red, green, blue = (float(v) for v in small.mean((0, 1)))
    return {
        "red": red,
        "green": green,
        "blue": blue,
        "contrast": float(grey.std()),
        "sharpness": float(np.log1p(laplacian.var())),
    }


_BASIS = np.sqrt(2 / 8) * np.cos(np.pi * (2 * np.arange(8) + 1) * np.arange(8)[:, None] / 16)
_BASIS[0] /= np.sqrt(2)
_DCT = np.kron(_BASIS, _BASIS).astype(np.float32)  # of a block as a row of 64
_SIDE = 128
N_TRACES = 3 * 64 + 3 * 18 + 50


def traces_of(image: Image.Image) -> np.ndarray:
    """What the making of a picture leaves in its smallest details: a description that a simple classifier can use.

    Of the central 128 px, in YCbCr: the mean size of each 8 × 8 DCT coefficient, moments of first and second
    differences along both axes, and how often neighbouring second differences of the brightness occur together
    (co-occurrences, after Fridrich & Kodovsky 2012, "Rich models for steganalysis of digital images").

    Returns:
        float32, shape (`N_TRACES`,).
    """
    left, top = max(0, (image.width - _SIDE) // 2), max(0, (image.height - _SIDE) // 2)
    box = (left, top, min(left + _SIDE, image.width), min(top + _SIDE, image.height))
    planes = np.asarray(image.crop(box).convert("YCbCr"), np.float32)
    if min(planes.shape[:2]) < 8:
        planes = np.pad(planes, [(0, max(0, 8 - n)) for n in planes.shape[:2]] + [(0, 0)], mode="symmetric")
    height, width = (n // 8 * 8 for n in planes.shape[:2])
    blocks = planes[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).transpose(4, 0, 2, 1, 3)
    coefficients = np.abs(blocks.reshape(-1, 64) @ _DCT.T).reshape(3, -1, 64).mean(1)
    planes = np.ascontiguousarray(planes.transpose(2, 0, 1))
    parts = [np.log1p(coefficients).ravel(), planes.mean((1, 2)), planes.std((1, 2))]
    for axis in (1, 2):
        for order in (1, 2):
            size = np.abs(np.diff(planes, order, axis=axis)).reshape(3, -1)
            square = size * size
            power = square.mean(1)
            tail = (square * square).mean(1) / (power**2 + 1e-3)
            parts += [np.log1p(size.mean(1)), np.log1p(power), tail, (size < 1).mean(1)]
    for axis in (0, 1):
        steps = np.clip(np.round(np.diff(planes[0], 2, axis=axis) / 2), -2, 2).astype(int) + 2
        steps = np.moveaxis(steps, axis, 0)
        together = steps[:-1] * 5 + steps[1:]
        parts.append(np.bincount(together.ravel(), minlength=25) / together.size)
    return np.concatenate(parts).astype(np.float32)
