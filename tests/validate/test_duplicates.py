"""Near hashes against brute force, and copies among images that share a hash by chance."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components import shards
from components.validate import duplicates
from components.validate.duplicates import find, near_pairs

BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def brute_force(hashes: np.ndarray, distance: int) -> np.ndarray:
    found = []
    for a in range(len(hashes)):
        near = np.bitwise_count(hashes[a + 1 :] ^ hashes[a]) <= distance
        found += [(a, a + 1 + b) for b in np.flatnonzero(near).tolist()]
    return np.array(found, np.int64).reshape(-1, 2)


def flipped(rng: np.random.Generator, hashes: np.ndarray, bits: int) -> np.ndarray:
    """Each hash with so many of its bits the other way."""
    where = rng.permuted(np.tile(np.arange(64), (len(hashes), 1)), axis=1)[:, :bits]
    return hashes ^ np.bitwise_or.reduce(BITS[where], axis=1, initial=np.uint64(0))


def uniform(rng: np.random.Generator) -> np.ndarray:
    hashes = rng.integers(0, 2**64, 700, dtype=np.uint64)
    return np.concatenate([hashes, *(flipped(rng, hashes[:25], bits) for bits in range(1, 10))])


def clustered(rng: np.random.Generator) -> np.ndarray:
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    near = [flipped(rng, np.repeat(centres, 40), bits) for bits in range(6)]
    return np.concatenate([*near, rng.integers(0, 2**64, 200, dtype=np.uint64)])


def skewed(rng: np.random.Generator) -> np.ndarray:
    """A third agree in 50 bits, as flat images do, a third hold each bit with another probability."""
    flat = rng.integers(0, 2**14, 300, dtype=np.uint64) << np.uint64(30)
    biased = np.packbits(rng.random((300, 64)) < rng.random(64) ** 4, axis=1).view(np.uint64).ravel()
    return np.concatenate([flat | np.uint64(1), biased, rng.integers(0, 2**64, 300, dtype=np.uint64)])


def alone(rng: np.random.Generator) -> np.ndarray:
    """All within a few bits, more of them than `distance` + k blocks can be cut from."""
    return rng.integers(0, 2**9, 400, dtype=np.uint64) << np.uint64(55)


# Near hashes


@pytest.mark.parametrize("extra", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("distance", range(8))
@pytest.mark.parametrize("kind", [uniform, clustered, skewed, alone])
def test_near_pairs_are_those_of_brute_force(
    kind: Callable[[np.random.Generator], np.ndarray], distance: int, extra: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng([distance, extra or 0])
    hashes = rng.permutation(np.unique(kind(rng)))
    monkeypatch.setattr(duplicates, "_FEW", 8)  # crowds in a small test
    monkeypatch.setattr(duplicates, "_BLOCK", 500)
    pairs = near_pairs(hashes, distance, _extra=extra)
    assert pairs.dtype == np.int64
    expected = brute_force(hashes, distance)
    np.testing.assert_array_equal(pairs, expected)
    assert len(expected) > 20 or distance < 2


def test_a_large_crowd_is_searched_with_tables_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    crowd = rng.integers(0, 2**36, 20_000, dtype=np.uint64)
    hashes = np.unique(np.concatenate([crowd, rng.integers(0, 2**64, 20_000, dtype=np.uint64)]))
    plans = []
    plan = duplicates._plan
    monkeypatch.setattr(duplicates, "_plan", lambda *of: plans.append((len(of[0]), plan(*of)[1])) or plan(*of))
    pairs = near_pairs(hashes, 4)
    assert any(10_000 < n < 25_000 and k for n, k in plans[1:])
    block = 500
    expected = 0
    for start in range(0, len(hashes), block):
        bits = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        expected += int(np.count_nonzero(np.triu(bits <= 4, 1)))
    assert len(pairs) == expected > 100
    assert (np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= 4).all()


@pytest.mark.parametrize(("n", "k"), [(500, 0), (10_000, 1), (1_000_000, 2)])
def test_more_hashes_are_cut_in_more_blocks(n: int, k: int) -> None:
    masks, chosen = duplicates._plan(np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64), 4, None)
    assert chosen == k
    assert len(masks) == (4 + k if k else 0)
    if k:
        assert np.bitwise_or.reduce(masks) == np.uint64(2**64 - 1)
        assert np.bitwise_count(masks).sum() == 64


def test_bits_that_nearly_all_share_do_not_fill_a_block() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 2**32, 100_000, dtype=np.uint64)
    masks, _ = duplicates._plan(low | np.uint64(0xABCD) << np.uint64(40), 4, 2)
    assert all(np.bitwise_count(masks & np.uint64(2**32 - 1)) >= 5)


@pytest.mark.parametrize("extra", [None, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_so_few_hashes(n: int, extra: int | None) -> None:
    pairs = near_pairs(np.arange(n, dtype=np.uint64), 4, _extra=extra)
    assert pairs.shape == ((1, 2) if n == 2 else (0, 2))


# Copies


@pytest.fixture
def groups(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., list[int]]:
    """Store images under hashes that are given; returns the group of each as the position of its first image."""

    def run(stored: list[tuple[Image.Image, int]], distance: int = 4) -> list[int]:
        rows = []
        for number, (image, phash) in enumerate(stored):
            data = encode(image, "PNG")
            rows.append(
                {
                    "image": {"bytes": data, "path": None},
                    "label": "real",
                    "source": "mine",
                    "sha256": hashlib.sha256(data + bytes([number % 256, number // 256])).hexdigest(),
                    "phash": phash,
                }
            )
        (tmp_path / "mine").mkdir()
        for shard in range(0, len(rows), 150):
            shards.write(tmp_path / f"mine/a-{shard:05}.parquet", rows[shard : shard + 150])
        files = shards.paths(tmp_path, ["mine"])
        manifest = shards.manifest(files)
        found = find(manifest, files, distance)
        assert found.index.equals(manifest.index)
        smallest = manifest["sha256"].groupby(found["group"].to_numpy()).min()
        assert (smallest.index == smallest).all()
        first = {name: number for number, name in reversed(list(enumerate(found["group"])))}
        return [first[name] for name in found["group"]]

    return run


def resaved(image: Image.Image, seed: int) -> Image.Image:
    """The same picture with other noise."""
    noise = np.random.default_rng([seed, 1]).normal(0, 2, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def test_copies_are_found_among_unlike_images_of_one_hash(
    picture: Callable[..., Image.Image], groups: Callable[..., list[int]]
) -> None:
    originals = [picture(seed) for seed in range(20)]
    copies = [resaved(image, seed) for seed, image in enumerate(originals)]
    assert groups([(image, 7) for image in originals + copies]) == [*range(20), *range(20)]


def test_copies_are_found_across_near_hashes_whichever_image_comes_first(
    picture: Callable[..., Image.Image], groups: Callable[..., list[int]]
) -> None:
    originals = [picture(seed) for seed in range(6)]
    copies = [resaved(image, seed) for seed, image in enumerate(originals)]
    stored = [(image, 7) for image in originals] + [(image, 3) for image in copies]
    stored += [(originals[0], 0xFFFF)]  # the same picture, but too many bits away
    assert groups(stored) == [*range(6), *range(6), 12]


def test_copies_are_found_in_a_crowd_of_one_hash(
    picture: Callable[..., Image.Image], groups: Callable[..., list[int]]
) -> None:
    originals = [picture(seed) for seed in range(120)]
    copies = [resaved(image, seed) for seed, image in enumerate(originals)]
    exact = originals[:30] * 3
    expected = [*range(120), *range(120), *[*range(30)] * 3]
    assert groups([(image, 7) for image in originals + copies + exact]) == expected


def test_flat_images_of_one_hash_hang_together_where_their_shades_are_close(
    groups: Callable[..., list[int]],
) -> None:
    shades = [*range(0, 80), *range(150, 230)]
    stored = [(Image.new("RGB", (32, 32), (shade,) * 3), 0) for shade in shades]
    assert groups(stored) == [0] * 80 + [80] * 80


def test_a_crowd_meets_a_near_hash(picture: Callable[..., Image.Image], groups: Callable[..., list[int]]) -> None:
    """Of a large crowd 64 images are compared with those of near hashes: from dark to bright, so flat ones meet."""
    crowd = [(Image.new("RGB", (32, 32), (shade,) * 3), 0) for shade in range(0, 250)]
    others = [(Image.new("RGB", (31, 31), (shade,) * 3), 1) for shade in (3, 128, 249)]
    assert groups([*crowd, *others, (picture(1), 1)]) == [0] * 253 + [253]


def test_no_suspects(picture: Callable[..., Image.Image], groups: Callable[..., list[int]]) -> None:
    assert groups([(picture(1), 0), (picture(1), 0xFFFF)]) == [0, 1]


def test_pixels_are_named_for_suspects_only(
    tmp_path: Path, picture: Callable[..., Image.Image], store: Callable[..., Path], encode: Callable[..., bytes]
) -> None:
    one, other = picture(1), picture(2)
    files = shards.paths(
        store({"ai/a.png": encode(one, "PNG"), "ai/b.bmp": encode(one, "BMP"), "ai/c.png": encode(other, "PNG")}),
        ["mine"],
    )
    rows = shards.manifest(files)
    found = find(rows, files, 2)
    named = found["pixels"][rows["origin"] != "ai/c.png"]
    assert named.notna().all() and named.nunique() == 1
    assert found["pixels"][rows["origin"] == "ai/c.png"].isna().all()
    assert isinstance(found["group"].dtype, type(rows["sha256"].dtype))


def test_looks_are_those_of_the_formula(picture: Callable[..., Image.Image]) -> None:
    """The sums that are kept give the correlation that whole miniatures give."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 1024))
    noisy = np.clip(base + rng.normal(0, rng.integers(1, 40, (40, 1)), base.shape), 0, 255)
    flat = np.full((4, 1024), np.array([[0], [1], [128], [255]]))
    miniatures = np.concatenate([base, noisy, flat, flat]).astype(np.uint8)
    left = np.concatenate([np.arange(40), np.arange(80, 84), [80, 81]])
    right = np.concatenate([np.arange(40, 80), np.arange(84, 88), [83, 3]])
    a, b = (
        m - 0.9 * m.mean(1, keepdims=True) + 1e-3 for m in (miniatures[side].astype(float) for side in (left, right))
    )
    expected = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)) >= duplicates._ALIKE
    wide = miniatures.astype(np.int64)
    alike = duplicates._alike(miniatures, wide.sum(1), (wide**2).sum(1), left, right)
    np.testing.assert_array_equal(alike, expected)
    assert 4 < expected.sum() < 40
