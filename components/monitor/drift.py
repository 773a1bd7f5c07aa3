"""Whether what is asked for now differs from what the detector was trained on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp

NUMBERS = ("width", "height", "bytes_per_pixel", "jpeg_quality", "brightness", "contrast", "sharpness")
WORDS = ("format",)
SCORE = "probability"
FEWEST = 50  # values; fewer have no distribution
_BINS = 10
_FLOOR = 1e-4  # share of a bin, so that an empty one has a logarithm
_OTHERS = 5  # images that a word needs before; rarer ones count together

Pairs = dict[str, tuple[pd.Series, pd.Series]]
"""Values before and now, by statistic; missing ones are left out."""


@dataclass(frozen=True)
class Shift:
    """One statistic, before and now.

    Attributes:
        name: of the statistic.
        distance: Kolmogorov and Smirnov's statistic of numbers, the total variation of words: 0 to 1.
        psi: population stability index, 0 and up; from 0.1 to 0.25 a shift is called moderate, above it large.
        p: probability of a difference like this between two samples of the same, corrected for all statistics.
        drifted: whether the difference is both sure and large.
        before: a typical value.
        now: a typical value.
    """

    name: str
    distance: float
    psi: float
    p: float
    drifted: bool
    before: str
    now: str


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of statistics, with those that follow from others; what older ones name MPO is JPEG."""
    area = rows["width"].astype(float) * rows["height"]
    return rows.assign(bytes_per_pixel=rows["n_bytes"] / area, format=rows["format"].replace("MPO", "JPEG"))


def compare(pairs: Pairs, significance: float, min_shift: float) -> list[Shift]:
    """Compare distributions.

    A difference counts as drift where it is sure, by a test of Kolmogorov and Smirnov (of chi squared for words) whose
    p-values are corrected by the procedure of Benjamini and Hochberg (1995), and large, by the population stability
    index: with many predictions every trifle is sure.

    Args:
        pairs: what is compared.
        significance: rate of false discoveries.
        min_shift: the index from which a difference is large.

    Returns:
        One for each pair that has enough values, the largest index first.
    """
    found: list[tuple[str, float, float, float, str, str]] = []
    for name, both in pairs.items():
        before, now = (values.dropna() for values in both)
        if min(len(before), len(now)) < FEWEST:
            continue
        if name in WORDS:
            counts = _counts(before, now)
            shares = counts / counts.sum(1, keepdims=True)
            distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
            p = float(chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0
            said = [_commonest(before), _commonest(now)]
        else:
            old, new = before.to_numpy(float), now.to_numpy(float)
            test = ks_2samp(old, new, method="asymp")
            distance, p = float(test.statistic), float(test.pvalue)
            counts = _binned(old, new)
            said = [f"median {np.median(values):.4g}" for values in (old, new)]
        found.append((name, distance, psi(counts), p, said[0], said[1]))
    if not found:
        return []
    corrected = false_discovery_control([each[3] for each in found])
    shifts = [
        Shift(name, round(distance, 4), round(index, 4), float(p), bool(p < significance and index >= min_shift), *said)
        for (name, distance, index, _, *said), p in zip(found, corrected, strict=True)
    ]
    return sorted(shifts, key=lambda shift: -shift.psi)


def psi(counts: np.ndarray) -> float:
    """The population stability index: the symmetrised Kullback-Leibler divergence of two histograms.

    Args:
        counts: shape (2, bins).
    """
    before, now = np.maximum(counts / counts.sum(1, keepdims=True), _FLOOR)
    return float(((now - before) * np.log(now / before)).sum())


def _binned(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Histograms over bins that hold equal shares of what was before; a value that occurs often is a bin of its own."""
    inner = np.quantile(before, np.linspace(0, 1, _BINS + 1))
    values, counts = np.unique(before, return_counts=True)
    often = values[counts >= len(before) / _BINS]
    edges = np.unique(np.concatenate([inner[1:-1], often, np.nextafter(often, np.inf)]))
    return np.stack(
        [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (before, now)]
    )


def _counts(before: pd.Series, now: pd.Series) -> np.ndarray:
    was, new = before.value_counts(), now.value_counts()
    known = list(was.index[was >= _OTHERS])
    counts = np.array(
        [[part.get(word, 0) for word in known] + [part[~part.index.isin(known)].sum()] for part in (was, new)]
    )
    return counts[:, counts.sum(0) > 0]


def _commonest(words: pd.Series) -> str:
    shares = words.value_counts(normalize=True)
    return f"{shares.index[0]} {100 * shares.iloc[0]:.0f} %"
