"""Which images are copies of each other: exact ones by their pixels, near ones by perceptual hash and look."""

import hashlib
from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from components import images, parallel, shards

_ALIKE = 0.98  # correlation of grey miniatures; re-saved and rescaled copies have 0.99 and more
_SHADE = 16  # grey levels between the means of two miniatures; in such copies they differ by one or two
_BLOCK = 1_000_000  # pairs held at once
_FEW = 64  # images or hashes of which every pair is compared
_CLOSEST = 8  # images that an image of a larger crowd is compared with
_PIXELS = 32 * 32  # of a miniature


def find(rows: pd.DataFrame, files: dict[str, Path], distance: int) -> pd.DataFrame:
    """Find exact and near copies.

    Near copies have perceptual hashes that differ in at most `distance` bits, and grey miniatures that correlate
    and are equally bright: small or flat images can share a hash by chance. Which miniatures are compared, see
    `_candidates`.

    An image with a hash nearby takes about 1.2 KB of memory, a pair of near hashes 24 bytes.

    Args:
        rows: the manifest, with a default index.
        files: the shards, as from `shards.paths`.
        distance: bits of the perceptual hash, 0 to 7.

    Returns:
        A frame with the index of `rows` and the columns `pixels` (images with equal decoded pixels share a value;
        null where no other image has a hash nearby) and `group` (the smallest sha256 among an image, its copies,
        their copies and so on).

    Raises:
        StageError: a shard is damaged.
    """
    hashes, which = np.unique(rows["phash"].to_numpy(np.uint64), return_inverse=True)
    pairs = near_pairs(hashes, distance)
    suspicious = np.bincount(which, minlength=len(hashes)) > 1
    suspicious[pairs.ravel()] = True
    suspects = np.flatnonzero(suspicious[which])

    digests, miniatures = _looks(rows[["shard", "row"]].iloc[suspects], files)
    labels = _joined(miniatures, which[suspects], pairs)
    pixels = np.full(len(rows), None, object)
    pixels[suspects] = digests
    return pd.DataFrame(
        {"pixels": pd.Series(pixels, rows.index, dtype="object"), "group": _named(rows["sha256"], suspects, labels)}
    )


def near_pairs(hashes: np.ndarray, distance: int, *, _extra: int | None = None) -> np.ndarray:
    """All pairs of hashes that differ in at most some bits.

    The tables of Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling". Of `distance` + k
    blocks of a hash at least k are equal in both. So for every choice of k blocks, a table, the hashes are sorted by
    these, and those that agree in them are compared. A larger k makes more tables, with fewer pairs to compare; the
    one that costs least is taken (`_plan`). At distance 4 these are 5 tables up to 40,000 random hashes, 15 up to
    ten million, 35 up to 500 million.

    Hashes of real images crowd together. Blocks are cut so that each tells as much as the others (a bit that
    nearly all share tells nothing), and a crowd that agrees in its blocks is searched for itself in the same way.

    Memory: about 80 bytes a hash, 24 bytes a pair found, and blocks of candidates of fixed size.

    Args:
        hashes: uint64, shape (n,), no two equal.
        distance: bits, 0 to 7.
        _extra: k, where it is not to be chosen.

    Returns:
        int64, shape (m, 2): positions, the smaller first, each pair once, sorted.
    """
    n = len(hashes)
    found = [np.empty(0, np.int64)]
    if distance and n > 1:
        found += [np.minimum(a, b) * n + np.maximum(a, b) for a, b in _close(hashes, distance, _extra)]
    codes = np.concatenate(found)
    del found
    codes.sort()
    return np.stack(np.divmod(codes, max(n, 1)), 1)


def _close(hashes: np.ndarray, distance: int, extra: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of `near_pairs` in blocks, each once, in no order."""
    masks, k = _plan(hashes, distance, extra)
    if not k:
        yield from _compared(hashes, distance)
        return
    for chosen in combinations(range(len(masks)), k):
        key = np.bitwise_or.reduce(masks[list(chosen)])
        skipped = [masks[block] for block in range(chosen[-1]) if block not in chosen]
        for a, b in _agreeing(hashes, key, distance):
            differ = hashes[a] ^ hashes[b]
            # A pair is in several tables; it counts in the one whose blocks are the first that agree.
            here = (differ & key) == 0
            for mask in skipped:
                here &= (differ & mask) != 0
            yield a[here], b[here]


def _plan(hashes: np.ndarray, distance: int, extra: int | None) -> tuple[np.ndarray, int]:
    """The blocks as masks (uint64, shape (distance + k,)) and the k that costs least; 0: compare every pair.

    The expected number of pairs that agree in a block follows from how often each bit is set.
    """
    n = len(hashes)
    # Nanoseconds as measured: to compare every pair, and for a table, a hash in it and a pair that agrees.
    all_pairs, table, row, agreeing_pair = n**2 / 2, 1e5, 40, 30
    if not extra and all_pairs / 2 <= (distance + 1) * table:
        return np.empty(0, np.uint64), 0
    sample = np.ascontiguousarray(hashes[:: max(1, n // 2**16)], "<u8").view(np.uint8).reshape(-1, 8)
    ones = np.unpackbits(sample, axis=1, bitorder="little").mean(axis=0)
    # Pairs of images that agree in a bit: 1 tells nothing, a half tells most.
    told = -np.log2(ones**2 + (1 - ones) ** 2) + 1e-9
    behind = np.concatenate([[0], np.cumsum(told)])
    plans = []
    for k in (extra,) if extra else range(1, 9):
        ends = np.searchsorted(behind, np.linspace(0, behind[-1], distance + k + 1)[1:-1]).tolist()
        cuts = [0, *ends, 64]
        agreeing = np.exp2(-np.diff(behind[cuts]))
        # The k-th elementary symmetric polynomial: the sum over all choices of the product of their shares.
        pairs = n**2 / 2 * abs(np.poly(agreeing)[k])
        masks = np.array([(1 << high) - (1 << low) for low, high in pairwise(cuts)], np.uint64)
        plans.append((comb(distance + k, k) * (table + row * n) + agreeing_pair * pairs, k, masks))
    cost, k, masks = min(plans, key=lambda plan: plan[:2])
    # Bits hang together, so that the estimate is too low: tables have to promise half at least.
    return masks, k if extra or cost < all_pairs / 2 else 0


def _agreeing(hashes: np.ndarray, key: np.uint64, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of the pairs that agree in the bits of `key`, and may of others, and differ in few bits at most."""
    # Only equal keys need to stand together, so the key is hashed to two digits, which numpy sorts by radix.
    mixed = (((hashes & key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.uint32)
    order = np.argsort(mixed.astype(np.uint16), kind="stable")
    order = order[np.argsort((mixed >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]
    starts, lengths = _runs(mixed[order])
    several = np.flatnonzero(lengths > 1)
    starts, lengths = starts[several], lengths[several]
    few, crowds = lengths <= _FEW, lengths > _FEW
    for left, right in _pairs_of_runs(starts[few], lengths[few]):
        a, b = order[left], order[right]
        near = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
        yield a[near], b[near]
    for start, length in zip(starts[crowds].tolist(), lengths[crowds].tolist(), strict=True):
        members = order[start : start + length]
        # A crowd of nearly all would meet the same plan again.
        search = _close if length < 0.9 * len(hashes) else _compared
        for a, b in search(hashes[members], distance):
            yield members[a], members[b]


def _compared(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The near pairs, found by comparing every pair."""
    n, start = len(hashes), 0
    while start < n:
        stop = min(n, start + max(1, _BLOCK // (n - start)))
        near = np.bitwise_count(hashes[start:stop, None] ^ hashes[None, start:]) <= distance
        a, b = np.divmod(np.flatnonzero(near), n - start)  # much faster than nonzero in two dimensions
        yield a[a < b] + start, b[a < b] + start
        start = stop


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the runs of equal neighbours."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    return starts, np.diff(starts, append=len(values))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The positions of all runs, one run after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def _blocks(sizes: np.ndarray) -> Iterator[slice]:
    """Neighbours whose sizes add up to at most `_BLOCK`, or single ones."""
    total, start = np.cumsum(sizes), 0
    while start < len(sizes):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + _BLOCK, side="right")))
        yield slice(start, stop)
        start = stop


def _gathered(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same pairs in fewer and larger blocks."""
    lefts: list[np.ndarray] = []
    rights: list[np.ndarray] = []
    n = 0
    for left, right in blocks:
        lefts.append(left)
        rights.append(right)
        n += len(left)
        if n >= _BLOCK:
            yield np.concatenate(lefts), np.concatenate(rights)
            lefts, rights, n = [], [], 0
    if lefts:
        yield np.concatenate(lefts), np.concatenate(rights)


def _pairs_of_runs(starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of all pairs within each run, in blocks."""
    positions = _ranges(starts, lengths)
    partners = np.repeat(starts + lengths, lengths) - positions - 1
    for block in _blocks(partners):
        yield np.repeat(positions[block], partners[block]), _ranges(positions[block] + 1, partners[block])


def _looks(rows: pd.DataFrame, files: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the decoded pixels (object, shape (n,)) and grey miniatures (uint8, shape (n, 1024))."""
    digests = np.empty(len(rows), object)
    miniatures = np.empty((len(rows), _PIXELS), np.uint8)
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
        try:
            image = images.decode(data)
        except images.ImageError:  # its bytes aren't intact, which is said elsewhere; it is like no other
            names.append(f"damaged {hashlib.sha256(data).hexdigest()}")
            looks.append(np.zeros(1024, np.uint8))
            continue
        names.append(f"{image.width}x{image.height} {hashlib.sha256(image.tobytes()).hexdigest()}")
        looks.append(images.thumbnail(image).ravel().astype(np.uint8))  # a thumbnail holds whole grey levels
    return positions, names, np.stack(looks)


def _joined(miniatures: np.ndarray, hash_of: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which images hang together by looking alike: int, shape (n,), equal for those that do.

    Args:
        miniatures: uint8, shape (n, 1024).
        hash_of: int64, shape (n,): the position of each image's hash.
        pairs: int64, shape (m, 2): positions of near hashes.
    """
    brightness = miniatures.sum(axis=1, dtype=np.int64)
    squares = np.empty(len(miniatures), np.int64)
    for start in range(0, len(miniatures), 512):
        part = miniatures[start : start + 512].astype(np.int32)
        squares[start : start + 512] = np.vecdot(part, part)
    labels = np.arange(len(miniatures))
    for left, right in _gathered(_candidates(miniatures, brightness, hash_of, pairs)):
        # Those that hang together already need no look.
        worth = (labels[left] != labels[right]) & (np.abs(brightness[left] - brightness[right]) <= _SHADE * _PIXELS)
        a, b = left[worth], right[worth]
        alike = _alike(miniatures, brightness, squares, a, b)
        if alike.any():
            n = labels.max() + 1
            ends = labels[a[alike]], labels[b[alike]]
            graph = coo_matrix((np.ones(len(ends[0]), bool), ends), shape=(n, n))
            labels = connected_components(graph, directed=False)[1][labels]
    return labels


def _candidates(
    miniatures: np.ndarray, brightness: np.ndarray, hash_of: np.ndarray, pairs: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of images to compare, in blocks: positions, positions.

    - Images with one hash and one miniature: each with the one before. Of them one stands for all below.
    - Up to 64 looks of one hash: each with each. In a larger crowd: each with the 8 next in brightness and the 8
      closest by a miniature of the miniature.
    - Near hashes: each look of the hash that has more with the 8 of the other that are closest in brightness.
      Of more than 64 looks of a hash 64 are taken, from dark to bright.
    """
    looks = np.frombuffer(b"".join(hashlib.blake2b(m, digest_size=8).digest() for m in miniatures), np.uint64)
    order = np.lexsort((looks, brightness, hash_of))
    again = np.zeros(len(order), bool)
    again[1:] = (hash_of[order][1:] == hash_of[order][:-1]) & (looks[order][1:] == looks[order][:-1])
    after = np.flatnonzero(again)
    yield order[after], order[after - 1]

    order = order[~again]
    starts, lengths = _runs(hash_of[order])
    few = lengths <= _FEW
    for left, right in _pairs_of_runs(starts[few], lengths[few]):
        yield order[left], order[right]
    for start, length in zip(starts[~few].tolist(), lengths[~few].tolist(), strict=True):
        crowd = order[start : start + length]
        for step in range(1, _CLOSEST + 1):
            yield crowd[:-step], crowd[step:]
        small = miniatures[crowd].reshape(-1, 4, 8, 4, 8).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
        closest = cKDTree(small).query(small, _CLOSEST + 1, eps=1)[1]
        yield np.repeat(crowd, _CLOSEST + 1), crowd[closest.ravel()]

    shown = np.minimum(lengths, _FEW)
    within = _ranges(np.zeros_like(shown), shown)
    order = order[np.repeat(starts, shown) + within * np.repeat(lengths, shown) // np.repeat(shown, shown)]
    starts = np.cumsum(shown) - shown
    place = hash_of[order].astype(np.int64) * (256 * _PIXELS) + brightness[order]
    # Every hash of a pair has images here, and the runs are in the order of the hashes.
    more, fewer = np.searchsorted(hash_of[order[starts]], pairs).T
    more, fewer = np.where(shown[more] >= shown[fewer], (more, fewer), (fewer, more))
    for block in _blocks(shown[more] * _CLOSEST):
        left = _ranges(starts[more[block]], shown[more[block]])
        other = np.repeat(fewer[block], shown[more[block]])
        near = np.searchsorted(place, hash_of[order[starts[other]]] * (256 * _PIXELS) + brightness[order[left]])
        width = np.minimum(shown[other], _CLOSEST)
        first = np.clip(near - _CLOSEST // 2, starts[other], starts[other] + shown[other] - width)
        yield order[np.repeat(left, width)], order[_ranges(first, width)]


def _alike(
    miniatures: np.ndarray, sums: np.ndarray, squares: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Whether the two miniatures of each pair correlate: bool, shape (pairs,).

    Args:
        miniatures: uint8, shape (n, 1024).
        sums: int64, shape (n,), of their pixels.
        squares: int64, shape (n,), the sums of their squared pixels.
        left: positions, shape (pairs,).
        right: positions, shape (pairs,).
    """
    # A little of the mean stays in, so that flat images correlate too; their brightness tells them apart.
    shift = 1e-3 - 0.9 * sums / _PIXELS
    norm = np.sqrt(squares + 2 * shift * sums + _PIXELS * shift**2)
    dots = np.empty(len(left))
    for start in range(0, len(left), 512):  # so few stay in the cache
        part = slice(start, start + 512)
        a, b = (miniatures[side[part]].astype(np.float32) for side in (left, right))
        dots[part] = np.vecdot(a, b)
    product = dots + shift[left] * sums[right] + shift[right] * sums[left] + _PIXELS * shift[left] * shift[right]
    return product >= _ALIKE * np.maximum(norm[left] * norm[right], 1e-9)


def _named(sha256: pd.Series, suspects: np.ndarray, labels: np.ndarray) -> pd.Series:
    """The smallest sha256 of each image's group; `labels` are the groups of the suspects, all others are alone."""
    members = np.flatnonzero(np.bincount(labels)[labels] > 1) if len(labels) else suspects
    names = sha256.iloc[suspects[members]].to_numpy(object)
    order = np.argsort(names)
    _, first, group = np.unique(labels[members][order], return_index=True, return_inverse=True)
    smallest = np.empty_like(names)
    smallest[order] = names[order[first]][group]
    result = sha256.copy()
    result.iloc[suspects[members]] = smallest
    return result
