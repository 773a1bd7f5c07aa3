"""Where in a picture a detector finds what it says."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter

from components import images
from components.detector.file import Network

PATCHES, FEW_PATCHES = 8, 4  # in a row; few where a network is large
_AI, _REAL = (200.0, 60.0, 40.0), (40.0, 90.0, 200.0)
_SHOWN = (256, 512)  # px, the least and the most of the longer side


def occlusion_maps(network: Network, pixels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By how much a member's logit falls when a patch is blurred beyond recognition (Zeiler & Fergus 2014).

    It needs nothing of the network but its answers. Blurring takes a patch's traces away and, unlike grey, adds no
    edges that the network has never seen.

    Args:
        network: of a detector.
        pixels: of one picture, for each of its inputs: uint8, shape (side, side, 3) or (crops, side, side, 3).

    Returns:
        For each input float32, shape (crops, p, p), for `PATCHES` in a row or `FEW_PATCHES`, in logits: above 0 where
        the patch speaks for `ai`. Each crop counts as if it were the only one.
    """
    patches = FEW_PATCHES if network.is_large else PATCHES
    crops = {name: x.reshape(-1, *x.shape[-3:]) for name, x in pixels.items()}
    falls = []
    for number in range(max(map(len, crops.values()))):
        # All members at once, each on its own crop; of one that has fewer, the last comes again.
        covered = {name: _covered(x[min(number, len(x) - 1)], patches) for name, x in crops.items()}
        seen = {name: x if pixels[name].ndim == 3 else x[:, None] for name, x in covered.items()}
        logits = network.outputs(seen, ["logits"])["logits"]
        falls.append((logits[-1] - logits[:-1]).reshape(patches, patches, -1))
    maps = np.stack(falls)
    return {name: maps[: len(crops[name]), ..., member] for member, name in enumerate(network.inputs)}


def _covered(pixels: np.ndarray, patches: int) -> np.ndarray:
    """A picture with each of its patches blurred in turn, and as it is: uint8, (patches² + 1, side, side, 3)."""
    side = len(pixels)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(side / patches)))
    edges = np.linspace(0, side, patches + 1).round().astype(int)
    covered = np.repeat(pixels[None], patches**2 + 1, axis=0)
    for number in range(patches**2):
        y, x = divmod(number, patches)
        patch = slice(edges[y], edges[y + 1]), slice(edges[x], edges[x + 1])
        covered[number][patch] = blurred[patch]
    return covered


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two maps, the first brought to the other's resolution; NaN where one is flat."""
    from scipy.stats import spearmanr

    small = Image.fromarray(one.astype(np.float32)).resize(other.shape[::-1], Image.Resampling.BOX)
    ranks = np.asarray(small).ravel(), other.ravel()
    return float(spearmanr(*ranks).statistic) if min(np.ptp(values) for values in ranks) > 0 else float("nan")


def evidence(network: Network, image: Image.Image) -> tuple[np.ndarray, bool]:
    """The evidence in a picture: the mean of the members' maps, each laid where its crops lie.

    Members whose activation map is exact speak alone where there are any; otherwise all are asked by occlusion.

    Args:
        network: of a detector.
        image: mode RGB, as it is rendered for it (after `images.equalise`).

    Returns:
        float32, shape (h, w): of the picture at 256 to 512 px, above 0 for `ai`; and whether it is exact.
    """
    scale = np.clip(max(image.size), *_SHOWN) / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    canvas = np.zeros((height, width), np.float32)
    pixels = network.render(image)
    exact = activation_maps(network, pixels)
    maps = exact or occlusion_maps(network, pixels)
    for name, member in zip(network.inputs, network.about["members"], strict=True):
        for values, place in zip(maps.get(name, ()), images.places(image, member["view"]), strict=False):
            _lay(canvas, values / (member["temperature"] * len(maps[name])), [scale * edge for edge in place])
    return canvas, bool(exact)


def activation_maps(network: Network, pixels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How much each place adds to a member's logit: the class activation map (Zhou et al. 2016).

    It is exact where what follows the global average pooling is affine: the map's mean plus a constant is the logit.

    Args:
        network: of a detector.
        pixels: of one picture, for each of its inputs.

    Returns:
        float32, shape (crops, h, w), in logits, by the names of the inputs whose members have such a map.
    """
    names = {name: name.replace("pixels", "map") for name in network.inputs}
    wanted = [output for output in names.values() if network.has(output)]
    if not wanted:
        return {}
    found = network.outputs({name: x[None] for name, x in pixels.items()}, wanted)
    return {
        name: found[output].reshape(-1, *found[output].shape[-2:]) for name, output in names.items() if output in found
    }


def overlay(image: Image.Image, found: np.ndarray) -> Image.Image:
    """The picture in grey under its evidence: red for `ai`, blue for `real`, the strongest place full."""
    grey = np.asarray(image.resize(found.shape[::-1], Image.Resampling.BICUBIC).convert("L"), np.float32)[..., None]
    strength = (np.abs(found) / (np.abs(found).max() or 1))[..., None] * 0.65
    colour = np.where(found[..., None] > 0, _AI, _REAL)
    return Image.fromarray((grey * (1 - strength) + colour * strength).astype(np.uint8))


def _lay(canvas: np.ndarray, values: np.ndarray, place: Sequence[float]) -> None:
    """Add a map to its part of the canvas, smoothly enlarged."""
    left, top, right, bottom = (round(edge) for edge in place)
    size = max(1, right - left), max(1, bottom - top)
    large = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    inside = canvas[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    y, x = max(0, -top), max(0, -left)
    inside += large[y : y + inside.shape[0], x : x + inside.shape[1]]
