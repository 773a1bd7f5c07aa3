"""Where in a picture a detector finds what it says."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from components import images
from components.networks.inference import Ensemble, Scorer

PATCHES = 8
_AI, _REAL = (200.0, 60.0, 40.0), (40.0, 90.0, 200.0)
_SHOWN = (256, 512)  # px, the least and the most of the longer side


def occlusion_map(scorer: Scorer, pixels: np.ndarray) -> np.ndarray:
    """By how much the logit falls when a patch is blurred beyond recognition (Zeiler & Fergus 2014).

    It needs nothing of the network but its answers. Blurring takes a patch's traces away and, unlike grey, adds no
    edges that the network has never seen.

    Args:
        scorer: any network.
        pixels: uint8, shape (side, side, 3).

    Returns:
        float32, shape (`PATCHES`, `PATCHES`), in logits: above 0 where the patch speaks for `ai`.
    """
    side = len(pixels)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(side / PATCHES)))
    edges = np.linspace(0, side, PATCHES + 1).round().astype(int)
    covered = np.repeat(pixels[None], PATCHES**2 + 1, axis=0)
    for number in range(PATCHES**2):
        y, x = divmod(number, PATCHES)
        patch = slice(edges[y], edges[y + 1]), slice(edges[x], edges[x + 1])
        covered[number][patch] = blurred[patch]
    logits = scorer.logits(covered)
    return (logits[-1] - logits[:-1]).reshape(PATCHES, PATCHES)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two maps, the first brought to the other's resolution; NaN where one is flat."""
    from scipy.stats import spearmanr

    small = Image.fromarray(one.astype(np.float32)).resize(other.shape[::-1], Image.Resampling.BOX)
    ranks = np.asarray(small).ravel(), other.ravel()
    return float(spearmanr(*ranks).statistic) if min(np.ptp(values) for values in ranks) > 0 else float("nan")


def evidence(ensemble: Ensemble, image: Image.Image) -> tuple[np.ndarray, bool]:
    """The evidence in a picture: the mean of the members' maps, each laid where its crops lie.

    Members whose activation map is exact speak alone where there are any; otherwise all are asked by occlusion.

    Args:
        ensemble: one network or several.
        image: mode RGB, as it is rendered for them (after `images.equalise`).

    Returns:
        float32, shape (h, w): of the picture at 256 to 512 px, above 0 for `ai`; and whether it is exact.
    """
    scale = np.clip(max(image.size), *_SHOWN) / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    canvas = np.zeros((height, width), np.float32)
    exact = [member for member in ensemble.members if member.scorer.decomposes]
    for member in exact or ensemble.members:
        crops = images.render(image, member.view).reshape(-1, *images.view_shape(member.view)[-3:])
        for pixels, place in zip(crops, images.places(image, member.view), strict=True):
            values = member.scorer.activation_map(pixels) if exact else occlusion_map(member.scorer, pixels)
            _lay(canvas, values / (member.temperature * len(crops)), [scale * edge for edge in place])
    return canvas, bool(exact)


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
