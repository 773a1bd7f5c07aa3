"""Is the candidate good enough, and is it better than the champion on the same images?

Each rule compares the two and gives a verdict. Figures that rest on images are differences of a paired bootstrap (Efron
& Tibshirani 1993): every resample holds the same images for both, so that what is hard for both cancels out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from components import metrics
from components.params import Gate, Register

Verdict = Literal["pass", "fail", "unclear", "not comparable"]
Figure = Callable[[np.ndarray], np.ndarray]
"""Weights of the images, shape (b, n), to a figure of each weighting, shape (b,); NaN where it isn't defined."""

_NAMED = 5  # images of the regression set
FEW = 10  # images of a class, with fewer of which they say nothing


def best(
    candidates: dict[str, dict[str, Any]], metric: str, minimum: Mapping[Any, float]
) -> tuple[str | None, list[str]]:
    """The best candidate that reaches all minimum scores.

    Args:
        candidates: `metrics.json` of each, by name.
        metric: by which they are compared.
        minimum: scores that a version must have.

    Returns:
        Its name, or None where none is good enough, and the reasons.
    """
    reasons, good = [], []
    for name, scores in candidates.items():
        low = [f"{m} {_shown(scores[m])} is below {limit}" for m, limit in minimum.items() if (scores[m] or 0) < limit]
        if low:
            reasons.append(f"{name}: {', '.join(low)} (register.min_scores)")
        else:
            good.append(name)
    if not good:
        return None, reasons
    winner = max(good, key=lambda name: (candidates[name][metric] or 0, name))
    for name in good:
        what = "best candidate" if name == winner else "not the best"
        reasons.append(f"{name}: {what}, {metric} {_shown(candidates[name][metric])}")
    return winner, reasons


def _shown(value: float | None) -> str:
    return "(undefined)" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Judged:
    """What a detector says of the test images that both were asked about, and what it costs.

    Attributes:
        threshold: at or above it the answer is `ai`.
        probabilities: float, shape (n,): P(ai).
        degraded: float, shape (m, k): P(ai) of some images under k degradations.
        size: of its networks, in bytes; null where it isn't recorded.
        seconds: float, shape (r,): for one image, again and again, in turns with the other detector; null where one of
            the two can't be loaded.
        regression: float, shape (q,): P(ai) of the reported mistakes that are proof.
        name: as it stands in a sentence.
        uncosted: why its size and latency set no limit; empty where they do.
        generalisation: its balanced accuracy on collections that it never saw; null where that wasn't measured.
    """

    threshold: float
    probabilities: np.ndarray
    degraded: np.ndarray
    size: int | None
    seconds: np.ndarray | None
    regression: np.ndarray = field(default_factory=lambda: np.empty(0))
    name: str = "the champion"
    uncosted: str = ""
    generalisation: float | None = None


@dataclass(frozen=True)
class Images:
    """The images that both were asked about.

    Attributes:
        labels: bool, shape (n,): true for `ai`.
        sources: str, shape (n,).
        degraded: bool, shape (m,): the labels of those that were degraded.
        degradations: their k names.
        regression: bool, shape (q,): the labels of the reported mistakes.
        reported: their q names.
    """

    labels: np.ndarray
    sources: np.ndarray
    degraded: np.ndarray
    degradations: list[str]
    regression: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    reported: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """One line of the gate's table.

    Attributes:
        rule: its name.
        champion: the champion's figure; null where it isn't defined.
        candidate: the candidate's.
        difference: candidate less champion; a factor, where `unit` is `×`.
        interval: the difference's 95 % interval.
        limit: what the difference has to be above, or below where more is worse.
        verdict: `pass` or `fail` where the whole interval lies on one side of the limit, else `unclear`; without an
            interval the figure itself decides.
        why: no verdict was possible, or what the figures are of.
        unit: of the figures.
    """

    rule: str
    champion: float | None
    candidate: float | None
    difference: float | None
    interval: list[float] | None
    limit: float
    verdict: Verdict
    why: str = ""
    unit: str = ""


def compare(champion: Judged, candidate: Judged, images: Images, settings: Register) -> list[Rule]:
    """The table: the first rule asks for a gain, the others that nothing gets worse by more than it may.

    Args:
        champion: what it says, or the reference detector that plays its part.
        candidate: what it says of the same images.
        images: these images.
        settings: the section `register`.
    """
    gate = settings.gate
    both = (champion, candidate)

    def metric(name: str) -> tuple[Figure, Figure]:
        def of(one: Judged) -> Figure:
            return lambda w: metrics.weighted(images.labels, one.probabilities, one.threshold, w)[name]

        return of(champion), of(candidate)

    def difference(name: str, figures: tuple[Figure, Figure], n: int, limit: float, sign: int, why: str) -> Rule:
        if not n:
            return without(name, limit, why)
        before, now = (float(figure(np.ones((1, n)))[0]) for figure in figures)
        drawn = [np.stack([f(w) for f in figures]) for w in metrics.resampled(n, gate.bootstrap, gate.seed)]
        theirs, own = np.concatenate(drawn, axis=1)
        found = metrics.interval(own - theirs, now - before)
        if found is None:
            return without(name, limit, "not defined on these test images")
        return Rule(name, before, now, now - before, found, limit, _verdict(found, limit, sign), why)

    n, m = len(images.labels), len(images.degraded)
    right = [(one.probabilities >= one.threshold) == images.labels for one in both]
    after = [(one.degraded >= one.threshold) == images.degraded[:, None] for one in both]
    of_degradation = _worst_degradation(after[0], images.degraded), _worst_degradation(after[1], images.degraded)
    of_source = _worst_source(right[0], images), _worst_source(right[1], images)
    of_real = _real(right[0], images), _real(right[1], images)
    named = "no test image was degraded for both: evaluate.robustness_images or register.gate.degraded_images is 0"
    if m:
        worst = [images.degradations[int(np.argmin(_by_column(a, images.degraded)))] for a in after]
        named = f"{m:,} images; {champion.name}'s worst is {worst[0]}, the candidate's {worst[1]}"
    asked = f"{n:,} images" if n else f"{champion.name}'s answers are not on record"
    gain = (
        _generalisation(champion, candidate, settings)
        if settings.metric == "generalisation"
        else difference(settings.metric.replace("_", " "), metric(settings.metric), n, settings.min_gain, 1, asked)
    )
    return [
        gain,
        difference("worst degradation", of_degradation, m, -gate.degraded, 1, named),
        difference("worst source", of_source, n, -gate.source, 1, ""),
        difference("real accuracy", of_real, n, -gate.real_accuracy, 1, ""),
        difference("calibration error", metric("ece"), n, gate.calibration, -1, ""),
        _size(champion, candidate, gate),
        _latency(champion, candidate, gate),
        _regression(champion, candidate, images, gate),
    ]


def passes(rules: list[Rule]) -> bool:
    """Whether the gate opens by itself: the gain is there, and no rule fails or is unclear."""
    return rules[0].verdict == "pass" and all(rule.verdict in ("pass", "not comparable") for rule in rules)


def failed(rules: list[Rule]) -> list[str]:
    """The rules that a promotion breaks."""
    return [rule.rule for rule in rules if rule.verdict == "fail"]


def table(rules: list[Rule]) -> str:
    """The rules in Markdown."""
    lines = ["| rule | champion | candidate | difference | 95 % interval | limit | verdict |", "|---" * 7 + "|"]
    for rule in rules:
        known = [_number(value, rule.unit) for value in (rule.champion, rule.candidate)]
        factor = "×" if rule.unit else "+"
        change = _number(rule.difference, factor)
        low_high = "–" if rule.interval is None else " to ".join(_number(value, factor) for value in rule.interval)
        verdict = rule.verdict + (f" ({rule.why})" if rule.why else "")
        lines.append(f"| {' | '.join([rule.rule, *known, change, low_high, _number(rule.limit, factor), verdict])} |")
    return "\n".join(lines)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "+":
        return f"{value:+.4f}"
    return {"": f"{value:.4f}", "×": f"× {value:.2f}", "MiB": f"{value:.2f} MiB", "ms": f"{value:.1f} ms"}[unit]


def without(name: str, limit: float, why: str) -> Rule:
    """A rule by which the two can't be compared."""
    return Rule(name, None, None, None, None, limit, "not comparable", why)


def _verdict(interval: list[float], limit: float, sign: int) -> Verdict:
    """Where an interval lies: on the good side of the limit (above it, if `sign` is 1), the bad one, or on both."""
    worst, good = sorted(sign * value for value in interval)
    return "pass" if worst > sign * limit else "fail" if good < sign * limit else "unclear"


def _balanced(right: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Balanced accuracy, shape (b, k), of what is right (shape (n, k)); of the class that is there, if one is."""
    recalls = []
    for which in (labels, ~labels):
        if which.any():
            w = weights[:, which]
            with np.errstate(invalid="ignore"):
                recalls.append(w @ right[which] / w.sum(axis=1, keepdims=True))
    return np.mean(recalls, axis=0)


def _by_column(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return _balanced(right, labels, np.ones((1, len(labels))))[0]


def _worst_degradation(right: np.ndarray, labels: np.ndarray) -> Figure:
    return lambda weights: _balanced(right, labels, weights).min(axis=1)


def _worst_source(right: np.ndarray, images: Images) -> Figure:
    """The lowest balanced accuracy of a source; of those with enough images of the classes that they hold."""
    parts = []
    for source in np.unique(images.sources):
        which = images.sources == source
        counts = np.bincount(images.labels[which].astype(int), minlength=2)
        if all(count == 0 or count >= FEW for count in counts):
            parts.append(which)

    def figure(weights: np.ndarray) -> np.ndarray:
        if not parts:
            return np.full(len(weights), np.nan)
        each = [_balanced(right[which, None], images.labels[which], weights[:, which]) for which in parts]
        return np.concatenate(each, axis=1).min(axis=1)

    return figure


def _real(right: np.ndarray, images: Images) -> Figure:
    real = ~images.labels

    def figure(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return weights[:, real] @ right[real] / weights[:, real].sum(axis=1)

    return figure


def _regression(champion: Judged, candidate: Judged, images: Images, gate: Gate) -> Rule:
    """Of the reported mistakes that the champion gets right, the share that the candidate gets right too.

    A count and no interval: of the few images that there are at first, a bootstrap could tell nothing, and whoever
    reported a mistake sees it when it comes back.
    """
    name, limit = "regression set", -gate.regression
    theirs, own = ((one.regression >= one.threshold) == images.regression for one in (champion, candidate))
    n, known = len(theirs), int(theirs.sum())
    if not known:
        return without(
            name, limit, f"{champion.name} gets none of {n:,} reported mistakes right" if n else "it is empty"
        )
    lost = np.flatnonzero(theirs & ~own)
    share = len(lost) / known
    why = f"{n:,} reported mistakes; {champion.name} gets {known:,} right, the candidate {int(own.sum()):,}"
    if len(lost):
        named = ", ".join(images.reported[at][:12] for at in lost[:_NAMED])
        why += f"; wrong again: {named}{', …' if len(lost) > _NAMED else ''}"
    return Rule(name, 1.0, 1 - share, 0.0 - share, None, limit, "fail" if share > gate.regression else "pass", why)


def _generalisation(champion: Judged, candidate: Judged, settings: Register) -> Rule:
    """The two are of other images where data came between, so that no interval can be given."""
    name, limit = "generalisation", settings.min_gain
    before, now = champion.generalisation, candidate.generalisation
    if before is None or now is None:
        who = champion.name if before is None else "the candidate"
        return without(name, limit, f"{who} was never judged on collections that it hadn't seen")
    why = "left-out collections, each as it was evaluated"
    return Rule(name, before, now, now - before, None, limit, "pass" if now - before > limit else "fail", why)


def _size(champion: Judged, candidate: Judged, gate: Gate) -> Rule:
    if not champion.size or not candidate.size:
        return without("size", gate.size, champion.uncosted or "it isn't recorded of both")
    factor = candidate.size / champion.size
    theirs, own = champion.size / 2**20, candidate.size / 2**20
    return Rule("size", theirs, own, factor, None, gate.size, _verdict([factor, factor], gate.size, -1), "", "MiB")


def _latency(champion: Judged, candidate: Judged, gate: Gate) -> Rule:
    """The median for one image; rounds are resampled in pairs, since a busy machine slows both."""
    if champion.seconds is None or candidate.seconds is None:
        return without("latency", gate.latency, champion.uncosted or f"{champion.name} can't be loaded")
    rounds = len(champion.seconds)
    drawn = np.random.default_rng(gate.seed).integers(0, rounds, (gate.bootstrap, rounds))
    factors = np.median(candidate.seconds[drawn], axis=1) / np.median(champion.seconds[drawn], axis=1)
    theirs, own = float(np.median(champion.seconds)), float(np.median(candidate.seconds))
    found = [float(value) for value in np.percentile(factors, [2.5, 97.5])]
    verdict = _verdict(found, gate.latency, -1)
    return Rule("latency", 1000 * theirs, 1000 * own, own / theirs, found, gate.latency, verdict, "", "ms")
