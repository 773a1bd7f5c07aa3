"""Degradations: what the grid holds, and that each does what its name says."""

import io
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from components import robustness
from components.images import MAX_PIXELS
from components.robustness import GRID, Degradation

Picture = Callable[..., Image.Image]


def test_the_grid_holds_what_is_promised() -> None:
    strengths: dict[str, set[float]] = {}
    for degradation in GRID:
        strengths.setdefault(degradation.name, set()).add(degradation.strength)
    assert {95, 75, 50, 30} <= strengths["jpeg"]
    assert {0.5, 1.0, 1.5} <= strengths["blur"]
    assert {0.75, 0.5} <= strengths["rescale"]
    assert {"webp", "noise", "crop", "screenshot"} <= strengths.keys()
    words = {robustness.describe(d.name, d.strength) for d in GRID}
    assert len(words) == len(GRID) and "re-saved as JPEG 30" in words


@pytest.mark.parametrize(
    ("name", "size"), [("webp", (20, 20_000)), ("screenshot", (20, 60_000)), ("screenshot", (9_500, 9_300))]
)
def test_what_a_format_or_we_cannot_hold_is_scaled_down(name: str, size: tuple[int, int]) -> None:
    degradation = [entry for entry in GRID if entry.name == name][-1]
    image = degradation(Image.new("RGB", size))
    assert image.width * image.height <= MAX_PIXELS and max(image.size) > 9_000


@pytest.mark.parametrize("degradation", GRID, ids=lambda d: f"{d.name}-{d.strength:g}")
def test_each_changes_the_picture_the_same_way_every_time(degradation: Degradation, picture: Picture) -> None:
    image = picture(1, (61, 47))
    once, twice = degradation(image), degradation(image)
    assert once.mode == "RGB"
    np.testing.assert_array_equal(once, twice)
    if degradation.name not in ("crop", "screenshot"):
        assert once.size == image.size
        assert (np.asarray(once) != np.asarray(image)).any()
    else:
        assert once.size != image.size
    degradation(Image.new("RGB", (1, 1)))


def test_stronger_is_farther_from_the_original(picture: Picture) -> None:
    image = picture(2, (64, 64))
    for name in ("jpeg", "webp", "blur", "noise", "rescale"):
        grid = [d for d in GRID if d.name == name]
        far = [np.abs(np.asarray(d(image), float) - np.asarray(image, float)).mean() for d in grid]
        assert far == sorted(far), name


def test_jpeg_is_pillows_with_subsampled_chroma(picture: Picture) -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "JPEG", quality=50, subsampling="4:2:0")
    np.testing.assert_array_equal(robustness.jpeg(picture(3), 50), Image.open(buffer))


def test_noise_is_of_its_strength_and_differs_between_pictures(picture: Picture) -> None:
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    added = np.asarray(robustness.noise(grey, 0.05), float) - 128
    # 30,000 draws; the rounding to whole grey levels adds 1/12.
    assert added.std() == pytest.approx(0.05 * 255, rel=0.03)
    other = np.asarray(robustness.noise(Image.new("RGB", (100, 100), (127, 127, 127)), 0.05), float) - 127
    assert abs(np.corrcoef(added.ravel(), other.ravel())[0, 1]) < 0.05


def test_an_image_keeps_its_draw_when_others_come() -> None:
    names = [f"{i:064x}" for i in range(5000)]
    drawn = robustness.draw(names, 7)
    np.testing.assert_array_equal(drawn[1000:1100], robustness.draw(names[1000:1100], 7))
    assert (drawn != robustness.draw(names, 8)).any()
    counts = Counter(drawn.tolist())
    # Of 5,000 draws each of 20 entries has 250 ± 15.
    assert set(counts) == set(range(len(GRID))) and min(counts.values()) > 180
