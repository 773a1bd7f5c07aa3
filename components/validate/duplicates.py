"""Which images are copies of each other: exact ones by their pixels, near ones by perceptual hash and look."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from components import images, parallel, shards

_ALIKE = 0.98  # correlation of grey miniatures; re-saved and rescaled copies have 0.99 and more
_SHADE = 16  # grey levels between the means of two miniatures; in such copies they differ by one or two
_BLOCK = 4_000_000  # pairs compared at once


def find(rows: pd.DataFrame, files: dict[str, Path], distance: int) -> pd.DataFrame:
    """Find exact and near copies.

    Near copies have perceptual hashes that differ in at most `distance` bits, and grey miniatures that correlate
    and are equally bright: small or flat images can share a hash by chance.

    Args:
        rows: the manifest, with a default index.
        files: the shards, as from `shards.paths`.
        distance: bits of the perceptual hash, 0 to 7.

    Returns:
        A frame with the index of `rows` and the columns `pixels` (images with equal decoded pixels share a value;
        null where no other image has a hash nearby) and `group` (the smallest sha256 among an image, its copies,
        their copies and so on).
    """
    hashes, which = np.unique(rows["phash"].to_numpy(np.uint64), return_inverse=True)
    pairs = near_pairs(hashes, distance)
    suspicious = np.bincount(which, minlength=len(hashes)) > 1
    suspicious[pairs.ravel()] = True
    suspects = np.flatnonzero(suspicious[which])

    digests, miniatures = _looks(rows.iloc[suspects], files)
    order = np.lexsort((digests, which[suspects]))
    hash_of = which[suspects][order]
    # Among equal hashes every image is compared with the one before, so that exact copies, which stand together,
    # form a chain, and with the first. Among near hashes the first images are compared.
    starts = np.searchsorted(hash_of, np.arange(len(hashes)))
    after = np.flatnonzero(hash_of[1:] == hash_of[:-1]) + 1
    edges = np.concatenate(
        [
            np.stack([after, after - 1], 1),
            np.stack([after, starts[hash_of[after]]], 1),
            starts[pairs].reshape(-1, 2),
        ]
    )
    edges = order[edges]
    edges = edges[_alike(miniatures, edges)]
    whole = suspects[edges]
    graph = coo_matrix((np.ones(len(whole), bool), whole.T), shape=(len(rows), len(rows)))
    component = connected_components(graph, directed=False)[1]
    pixels = pd.Series(None, index=rows.index, dtype="object")
    pixels.iloc[suspects] = digests
    return pd.DataFrame({"pixels": pixels, "group": rows.groupby(component)["sha256"].transform("min")})


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of hashes that differ in at most some bits (multi-index hashing, Norouzi et al. 2012).

    Of `distance` + 1 parts of a hash at least one is equal in both, so only hashes that share a part are compared.

    Args:
        hashes: uint64, shape (n,), no two equal.
        distance: bits, 0 to 7.

    Returns:
        int64, shape (m, 2): positions, the smaller first, each pair once.
    """
    found = [np.empty((0, 2), np.int64)]
    bounds = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(bounds) if distance else ():
        part = (hashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(part, kind="stable")
        for left, right in _pairs_of_runs(part[order]):
            a, b = order[left], order[right]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
            found.append(np.sort(np.stack([a[close], b[close]], 1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _pairs_of_runs(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of all pairs of equal values in a sorted array, in blocks."""
    ends = np.searchsorted(values, values, side="right")
    partners = ends - np.arange(len(values)) - 1
    total = np.cumsum(partners)
    start = 0
    while start < len(values):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + _BLOCK, side="right")))
        n = partners[start:stop]
        left = np.repeat(np.arange(start, stop), n)
        offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        yield left, left + 1 + offset
        start = stop


def _looks(rows: pd.DataFrame, files: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the decoded pixels (object, shape (n,)) and grey miniatures (float32, shape (n, 1024))."""
    digests = np.empty(len(rows), object)
    miniatures = np.empty((len(rows), 1024), np.float32)
    numbered = rows.assign(position=np.arange(len(rows)))
    tasks = [
        (files[str(shard)], part["row"].to_numpy(), part["position"].to_numpy())
        for shard, part in numbered.groupby("shard")
    ]
    for positions, names, looks in parallel.ordered_map(_look, tasks):
        digests[positions] = names
        miniatures[positions] = looks
    return digests, miniatures


def _look(task: tuple[Path, np.ndarray, np.ndarray]) -> tuple[np.ndarray, list[str], np.ndarray]:
    path, rows, positions = task
    names, looks = [], []
    for data in shards.files(path, rows):
        image = images.decode(data)
        names.append(f"{image.width}x{image.height} {hashlib.sha256(image.tobytes()).hexdigest()}")
        looks.append(images.thumbnail(image).ravel())
    return positions, names, np.stack(looks)


def _alike(miniatures: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Whether the two miniatures of each pair look the same: bool, shape (pairs,)."""
    result = np.empty(len(edges), bool)
    for start in range(0, len(edges), 100_000):
        block = edges[start : start + 100_000]
        left, right = miniatures[block[:, 0]], miniatures[block[:, 1]]
        # A little of the mean stays in, so that flat images correlate too; their brightness tells them apart.
        a, b = (m - 0.9 * m.mean(1, keepdims=True) + 1e-3 for m in (left, right))
        correlation = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)
        equally_bright = np.abs(left.mean(1) - right.mean(1)) <= _SHADE
        result[start : start + 100_000] = (correlation >= _ALIKE) & equally_bright
    return result
