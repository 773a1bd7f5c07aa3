"""The embedded data set: random scenes, half seen by a camera and half drawn by a generator's decoder.

Every image starts as a *dead-leaves* scene: opaque discs, ellipses and polygons that hide one another, with
radii that follow the power law r^-3, which gives images the scale invariance, edges and heavy-tailed
derivatives of natural ones (Lee, Mumford & Huang 2001, "Occlusion models for natural images").

* ``real``: the scene passes through a camera: lens blur, shot and read noise on the linear light behind an
  RGGB colour filter array, white balance, bilinear demosaicing and gamma. The noise model and the order of
  the steps are those of Brooks et al. 2019, "Unprocessing images for learned raw denoising".
* ``ai``: a decoder draws the picture from a latent of a quarter of the resolution, in two stages that each
  double it by a transposed convolution and add a band of detail (Denton et al. 2015, "Deep generative image
  models using a Laplacian pyramid of adversarial networks"). Because the phases of a transposed convolution
  have unequal gains, it leaves a checkerboard (Odena et al. 2016, "Deconvolution and checkerboard artifacts")
  and copies of the spectrum, here at multiples of a quarter of the sampling rate (Zhang, Karaman & Chang
  2019, "Detecting and simulating artifacts in GAN fake images"; Durall et al. 2020, "Watch your
  up-convolution"). As in the simulator of Zhang et al., the decoder redraws an existing picture rather than
  inventing one.

The classes share everything else: scenes, blur, noise level, mean spectrum, size, JPEG tables and chroma
subsampling. What separates them is the trace of the process, not the subject, the sharpness or the file size.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate, gaussian_filter

from components import parallel
from components.ingest.source import Item, Part, Place
from components.params import Sample

Array = NDArray[np.float32]

GENERATORS = ("upconv-a", "upconv-b", "upconv-c")

LEAVES = 48
POLYGONS = 16  # of these leaves; the others are ellipses
MAX_SIDES = 6
GAMMA = 2.2

# Standard deviation of the errors that training is taken to leave in the decoder's kernels. It sets how hard
# the classes are to tell apart: here a small VGG-like network (0.29 M weights) that sees 2,400 images of 64
# pixels for 12 epochs gets about 19 of 20 unseen ones right.
TRACE = 0.0075
# The share of a detail band's amplitude that the decoder restores.
DETAIL = 0.98

# Bilinear demosaicing: the kernel of each colour plane (red, green, blue), which is zero where the filter
# array hides that colour.
_RED_BLUE = [[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]
_GREEN = [[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]]
_DEMOSAIC = np.array([_RED_BLUE, _GREEN, _RED_BLUE], np.float32)
# The share of the sensor's pixels that see each colour.
_DENSITY = np.array([0.25, 0.5, 0.25], np.float32)[:, None, None]


@dataclass(frozen=True)
class _Exposure:
    """What varies from picture to picture, drawn alike for both classes."""

    blur: float  # standard deviation of the lens's point spread, pixels
    shot: float  # variance of the noise per unit of light
    read: float  # standard deviation of the noise without light
    gains: Array  # white balance, (3, 1, 1)
    quality: int  # JPEG quality
    subsampling: int  # Pillow's code: 0 is 4:4:4, 2 is 4:2:0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Exposure":
        return cls(
            blur=rng.uniform(0.4, 0.8),
            shot=10 ** rng.uniform(-4.0, -2.8),
            read=10 ** rng.uniform(-3.0, -2.2),
            gains=np.array([rng.uniform(1.9, 2.4), 1.0, rng.uniform(1.5, 1.9)], np.float32)[:, None, None],
            quality=int(rng.integers(70, 96)),
            subsampling=int(rng.choice([0, 2])),
        )


def seen(place: Place) -> str:
    """Changes with the settings of the set."""
    return place.settings.sample.model_dump_json()


def parts(place: Place) -> Iterator[Part]:
    """One part: the whole set."""
    yield Part("", lambda: _items(place.settings.sample))


def _items(settings: Sample) -> Iterator[Item]:
    tasks = ((index, settings.size, settings.seed) for index in range(settings.n_images))
    progress = parallel.Progress("sample: images made", settings.n_images)
    for made in parallel.ordered_map(_make_items, parallel.batched(tasks, 64)):
        progress.add(len(made))
        yield from made


def _make_items(tasks: list[tuple[int, int, int]]) -> list[Item]:
    made = []
    for index, size, seed in tasks:
        data, label = make_image(index, size=size, seed=seed)
        made.append(Item(data, f"{label}/{index:06d}.jpg", label, generator_name(index)))
    return made


def make_image(index: int, *, size: int = 64, seed: int = 7) -> tuple[bytes, str]:
    """Make one image of the set; the same arguments always give the same bytes.

    Args:
        index: Number of the image, from 0.
        size: Width and height in pixels, a multiple of 4 and at least 16.
        seed: Names the set: its scenes and the kernels of its generators.

    Returns:
        A JPEG file (8-bit RGB) and its label: "real" for even, "ai" for odd indices.

    Raises:
        ValueError: If the index or the seed is negative, or the size is not allowed.
    """
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    if size < 16 or size % 4:
        raise ValueError(f"size must be a multiple of 4 and at least 16, got {size}")
    rng = np.random.default_rng([seed, index])
    exposure = _Exposure.draw(rng)
    light = gaussian_filter(_dead_leaves(rng, size), (0, exposure.blur, exposure.blur), truncate=3)
    noise = _sensor_noise(light, exposure, rng)
    if generator_name(index) is None:
        picture = _develop((light + noise) * _filter_array(size))
        label = "real"
    else:
        # The decoder's training photographs gave it their look: their mean spectrum of signal and of noise,
        # without the period of the filter array.
        photograph = _develop(light * _DENSITY + noise * np.sqrt(_DENSITY))
        picture = _decode(photograph, _up_convolutions(seed)[_generator(index)])
        label = "ai"
    return _jpeg(picture, exposure), label


def generator_name(index: int) -> str | None:
    """Name the generator that drew an image: one of GENERATORS, or None for a real one."""
    return GENERATORS[_generator(index)] if index % 2 else None


def _generator(index: int) -> int:
    return index // 2 % len(GENERATORS)


def _dead_leaves(rng: np.random.Generator, size: int) -> Array:
    """Draw a scene: linear light in [0, 1], shape (3, size, size)."""
    visible = _visibility(rng, size)
    # One palette for the scene: leaves differ more in brightness than in hue.
    count = len(visible)
    brightness = rng.uniform(-2.6, -0.2, (1, count))
    hue = rng.normal(0, 0.3, (3, count)) + rng.normal(0, 0.15, (3, 1))
    slope = rng.normal(0, 0.25, (2, count))
    roughness = rng.gamma(1.0, 0.12, (2, count))
    # Each pixel takes its coefficients from the leaf that it sees.
    coefficients = np.concatenate([brightness + hue, slope, roughness]).astype(np.float32)
    fields = (coefficients @ visible).reshape(-1, size, size)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shading = fields[3] * ramp + fields[4] * ramp[:, None]
    texture = fields[5:7] * _pink_noise(rng, size)
    return np.minimum(np.exp(fields[:3] + shading + texture[0] + texture[1]), 1)


def _visibility(rng: np.random.Generator, size: int) -> Array:
    """Draw leaves and how much of each pixel shows each one: (LEAVES + 1, size * size).

    The last row is the background.
    """
    grid = _grid(size)
    # Inverse of the distribution function of r^-3 between two bounds.
    shortest, longest = size / 24, size / 2
    radii = (rng.uniform(longest**-2, shortest**-2, (LEAVES, 1)) ** -0.5).astype(np.float32)
    centres = rng.uniform(-0.1 * size, 1.1 * size, (LEAVES, 2))
    turns = rng.uniform(0, 2 * np.pi, LEAVES)
    # Signed distances of the pixels to the outlines. In place, as fresh memory costs more than sums.
    cover = np.empty((LEAVES + 1, size * size), np.float32)
    polygons, ellipses = cover[:POLYGONS], cover[POLYGONS:LEAVES]

    # A polygon's distance is the largest one to its sides. Fewer sides than MAX_SIDES repeat the first ones.
    sides = rng.integers(3, MAX_SIDES + 1, (POLYGONS, 1))
    side = np.arange(MAX_SIDES) % sides
    jitter = np.take_along_axis(rng.uniform(-0.25, 0.25, (POLYGONS, MAX_SIDES)), side, axis=1)
    normals = turns[:POLYGONS, None] + 2 * np.pi * (side + jitter) / sides
    lines = _affine(np.cos(normals), np.sin(normals), centres[:POLYGONS, None])
    np.matmul(lines[:, 0], grid, out=polygons)
    for number in range(1, MAX_SIDES):
        np.maximum(polygons, lines[:, number] @ grid, out=polygons)
    polygons -= 0.8 * radii[:POLYGONS]

    # An ellipse's is taken to first order along its short axis.
    aspect = rng.uniform(0.4, 1.0, LEAVES - POLYGONS)
    cos, sin, centre = np.cos(turns[POLYGONS:]), np.sin(turns[POLYGONS:]), centres[POLYGONS:]
    np.square(_affine(cos * aspect, sin * aspect, centre) @ grid, out=ellipses)
    ellipses += np.square(_affine(-sin, cos, centre) @ grid)
    np.sqrt(ellipses, out=ellipses)
    ellipses -= radii[POLYGONS:]

    # A leaf's share of a pixel falls from 1 to 0 across an outline one pixel wide (antialiasing).
    np.subtract(0.5, cover[:LEAVES], out=cover[:LEAVES])
    np.clip(cover[:LEAVES], 0, 1, out=cover[:LEAVES])
    # From front to back, a leaf shows where those before it leave a gap.
    gap = np.ones(size * size, np.float32)
    for leaf in rng.permutation(LEAVES):
        cover[leaf] *= gap
        gap -= cover[leaf]
    cover[LEAVES] = gap
    return cover


def _affine(x: NDArray[np.float64], y: NDArray[np.float64], centre: NDArray[np.float64]) -> Array:
    """The rows (x, y, offset) of linear functions on the grid that vanish at their centre."""
    offset = -(x * centre[..., 0] + y * centre[..., 1])
    return np.stack([x, y, offset], axis=-1).astype(np.float32)


@lru_cache(maxsize=4)
def _grid(size: int) -> Array:
    """Homogeneous pixel coordinates, (3, size * size)."""
    y, x = np.mgrid[:size, :size].reshape(2, -1)
    return np.stack([x, y, np.ones_like(x)]).astype(np.float32)


def _pink_noise(rng: np.random.Generator, size: int) -> Array:
    """Two independent textures of unit variance whose amplitude falls as 1/f, (2, size, size)."""
    # The real and the imaginary part of one complex field are independent.
    white = rng.standard_normal((2, size, size), np.float32)
    pink = np.fft.ifft2((white[0] + 1j * white[1]) * _pink_amplitude(size))
    return np.stack([pink.real, pink.imag])


@lru_cache(maxsize=4)
def _pink_amplitude(size: int) -> Array:
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency, frequency[:, None])
    radius[0, 0] = np.inf
    amplitude = 1 / radius
    return (amplitude * size / np.sqrt(np.mean(amplitude**2))).astype(np.float32)


def _sensor_noise(light: Array, exposure: _Exposure, rng: np.random.Generator) -> Array:
    """Shot and read noise of a pixel of each colour, in white-balanced units of light."""
    # White balance divides the light that the sensor sees and multiplies its noise.
    variance = exposure.shot * light / exposure.gains + exposure.read**2
    return rng.standard_normal(light.shape, np.float32) * np.sqrt(variance) * exposure.gains


@lru_cache(maxsize=4)
def _filter_array(size: int) -> Array:
    """Bayer's RGGB array: 1 where a pixel sees a colour, else 0, (3, size, size)."""
    array = np.zeros((3, size, size), np.float32)
    array[0, ::2, ::2] = array[1, ::2, 1::2] = array[1, 1::2, ::2] = array[2, 1::2, 1::2] = 1
    return array


def _develop(planes: Array) -> Array:
    """Interpolate the colour planes and apply gamma: linear light to display values in [0, 1]."""
    # Mirroring at the border keeps the parity of the filter array.
    rgb = np.stack([correlate(p, k, mode="mirror") for p, k in zip(planes, _DEMOSAIC, strict=True)])
    return np.clip(rgb, 0, 1) ** np.float32(1 / GAMMA)


def _decode(photograph: Array, layers: tuple[Array, Array]) -> Array:
    """Redraw a photograph from a latent of a quarter of its resolution."""
    half = _halve(photograph)
    latent = _halve(half)
    picture = _up_convolve(latent, layers[0]) + DETAIL * (half - _up_convolve(latent, _bilinear()))
    return _up_convolve(picture, layers[1]) + DETAIL * (photograph - _up_convolve(half, _bilinear()))


def _halve(picture: Array) -> Array:
    """Average blocks of 2 x 2 pixels."""
    rows = picture[:, ::2] + picture[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _up_convolve(picture: Array, weights: Array) -> Array:
    """Double a picture's resolution by a transposed convolution of stride 2 on its rectified features.

    Inserting zeros and filtering with a 6 x 6 kernel is the same as filtering with four 3 x 3 kernels, one
    for each phase of the output, and interleaving the results.
    """
    channels, height, width = picture.shape
    # Two signs of a channel, each cut at zero, keep it whole but meet other kernels
    # (concatenated rectifiers, Shang et al. 2016).
    centred = np.pad(picture - 0.5, ((0, 0), (1, 1), (1, 1)), mode="edge")
    features = np.concatenate([np.maximum(centred, 0), np.minimum(centred, 0)])
    shifts = [features[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    phases = weights @ np.stack(shifts).reshape(-1, height * width)
    interleaved = phases.reshape(channels, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
    return interleaved.reshape(channels, 2 * height, 2 * width) + 0.5


@lru_cache(maxsize=1)
def _bilinear() -> Array:
    """The weights for `_up_convolve` that interpolate linearly: (3 * 2 * 2 outputs, 3 * 3 * 6 inputs)."""
    phases = np.array([[0.25, 0.75, 0], [0, 0.75, 0.25]], np.float32)
    channels = np.tile(np.eye(3, dtype=np.float32), 2)
    return np.einsum("py,qx,cf->cpqyxf", phases, phases, channels).reshape(12, 54)


@lru_cache(maxsize=4)
def _up_convolutions(seed: int) -> list[tuple[Array, Array]]:
    """The weights of the two layers of each generator."""
    # A spawned stream is apart from those of all images.
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    # Training corrects a shift of brightness or colour first; what stays is the difference between phases.
    errors = rng.normal(0, TRACE, (len(GENERATORS), 2, 3, 4, 54))
    errors -= errors.mean(axis=3, keepdims=True)
    weights = _bilinear() + errors.reshape(-1, 2, 12, 54).astype(np.float32)
    return [(first, second) for first, second in weights]


def _jpeg(picture: Array, exposure: _Exposure) -> bytes:
    pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        file, "JPEG", quality=exposure.quality, subsampling=exposure.subsampling
    )
    return file.getvalue()
