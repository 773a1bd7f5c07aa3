"""The gate's rules on made-up answers, whose right verdict is known."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from components.params import Gate, Register
from components.register import gate
from components.register.gate import Images, Judged, Rule

N, K = 600, 3
LABELS = np.arange(N) % 2 == 0
SOURCES = np.where(np.arange(N) < 200, "small", "large")
IMAGES = Images(LABELS, SOURCES, LABELS[:300], ["jpeg 75", "jpeg 30", "blur 1"])
SETTINGS = Register(gate=Gate(bootstrap=300))


def judged(wrong: np.ndarray | None = None, after: float = 0.2, size: int = 1000, seconds: float = 0.01) -> Judged:
    """Answers that are wrong where they are told to be, and of the degraded images, in a share of each degradation."""
    wrong = np.zeros(N, bool) if wrong is None else wrong
    rng = np.random.default_rng(0)
    missed = rng.random((300, K)) < np.array([0, after, after / 2])
    p = np.where(wrong != LABELS, 0.9, 0.1)
    q = np.where(LABELS[:300, None] != missed, 0.9, 0.1)
    return Judged(0.5, p, q, size, seconds * (1 + 0.1 * rng.random(15)))


def mistakes(where: np.ndarray, share: float) -> np.ndarray:
    return where & (np.random.default_rng(1).random(N) < share)


EVERYWHERE = np.ones(N, bool)
BASE = judged(mistakes(EVERYWHERE, 0.15))


def rules(
    champion: Judged, candidate: Judged, settings: Register = SETTINGS, images: Images = IMAGES
) -> dict[str, Rule]:
    return {rule.rule: rule for rule in gate.compare(champion, candidate, images, settings)}


def verdicts(found: dict[str, Rule]) -> dict[str, str]:
    return {name: rule.verdict for name, rule in found.items()}


def test_a_better_candidate_opens_it() -> None:
    found = rules(BASE, judged(mistakes(EVERYWHERE, 0.1)))
    assert set(verdicts(found).values()) == {"pass", "not comparable"}
    assert found["regression set"].why == "it is empty"
    assert gate.passes(list(found.values())) and gate.failed(list(found.values())) == []


@pytest.mark.parametrize(
    ("candidate", "failed"),
    [
        (judged(mistakes(EVERYWHERE, 0.3)), "balanced accuracy"),
        (judged(mistakes(EVERYWHERE, 0.1), after=0.5), "worst degradation"),
        (judged(mistakes(SOURCES == "small", 0.5)), "worst source"),
        (judged(mistakes(~LABELS, 0.4)), "real accuracy"),
        (judged(mistakes(EVERYWHERE, 0.3)), "calibration error"),
        (judged(mistakes(EVERYWHERE, 0.1), size=5000), "size"),
        (judged(mistakes(EVERYWHERE, 0.1), seconds=0.1), "latency"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_closes_it(candidate: Judged, failed: str) -> None:
    found = rules(BASE, candidate)
    assert found[failed].verdict == "fail"
    assert failed in gate.failed(list(found.values())) and not gate.passes(list(found.values()))


def test_what_the_images_cannot_tell_is_unclear() -> None:
    """The same share of mistakes on other images: neither better nor worse."""
    other = np.roll(mistakes(EVERYWHERE, 0.15), 1)
    found = rules(BASE, judged(other))
    assert found["balanced accuracy"].verdict == "unclear"
    assert not gate.passes(list(found.values())) and "balanced accuracy" not in gate.failed(list(found.values()))
    same = rules(BASE, BASE)["balanced accuracy"]
    assert (same.difference, same.interval, same.verdict) == (0, [0, 0], "unclear")


def test_figures_are_those_of_scikit_learn() -> None:
    candidate = judged(mistakes(~LABELS, 0.1) | mistakes(SOURCES == "small", 0.2))
    found = rules(BASE, candidate)
    said = candidate.probabilities >= 0.5
    assert found["balanced accuracy"].candidate == pytest.approx(sk.balanced_accuracy_score(LABELS, said))
    assert found["real accuracy"].candidate == pytest.approx(sk.recall_score(~LABELS, ~said))
    by_source = [sk.balanced_accuracy_score(LABELS[w], said[w]) for w in (SOURCES == "small", SOURCES == "large")]
    assert found["worst source"].candidate == pytest.approx(min(by_source))
    after = candidate.degraded >= 0.5
    worst = min(sk.balanced_accuracy_score(IMAGES.degraded, after[:, k]) for k in range(K))
    assert found["worst degradation"].candidate == pytest.approx(worst)
    assert "the candidate's jpeg 30" in found["worst degradation"].why


def test_pairs_tell_more_than_two_separate_intervals() -> None:
    """A candidate right wherever the champion is, and on a few images more: the pairing sees it."""
    wrong = mistakes(EVERYWHERE, 0.15)
    fewer = wrong.copy()
    fewer[np.flatnonzero(wrong)[:12]] = False
    rule = rules(judged(wrong), judged(fewer))["balanced accuracy"]
    assert rule.verdict == "pass" and rule.interval[1] - rule.interval[0] < 0.03
    assert rule.interval[0] < rule.difference < rule.interval[1]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Two detectors that err in 20 % and in 15 %, half of the latter where the former does."""
    rng = np.random.default_rng(2)
    settings = Register(gate=Gate(bootstrap=100))
    covered = 0
    for _ in range(60):
        theirs = rng.random(N) < 0.2
        own = rng.random(N) < np.where(theirs, 0.5, 0.0625)
        low, high = rules(judged(theirs), judged(own), settings)["balanced accuracy"].interval
        covered += low <= 0.05 <= high
    assert covered >= 50


def test_what_is_not_there_is_not_compared_and_does_not_close_it() -> None:
    none = np.empty((0, K))
    images = Images(LABELS, SOURCES, LABELS[:0], IMAGES.degradations)
    better = judged(mistakes(EVERYWHERE, 0.1))
    champion = Judged(0.5, BASE.probabilities, none, None, BASE.seconds)
    found = rules(champion, Judged(0.5, better.probabilities, none, 1000, better.seconds), images=images)
    for name, words in (("worst degradation", "no test image was degraded"), ("size", "isn't recorded")):
        assert found[name].verdict == "not comparable" and words in found[name].why
    assert gate.passes(list(found.values()))
    # A tiny source says nothing; with no other one nothing is comparable.
    few = Images(LABELS[:12], SOURCES[:12], IMAGES.degraded, IMAGES.degradations)
    cut = [Judged(0.5, one.probabilities[:12], one.degraded, one.size, one.seconds) for one in (BASE, better)]
    assert rules(cut[0], cut[1], images=few)["worst source"].verdict == "not comparable"


@pytest.mark.parametrize(("lost", "verdict"), [(0, "pass"), (1, "pass"), (2, "fail"), (30, "fail")])
def test_reported_mistakes_that_the_champion_gets_right_stay_right(lost: int, verdict: str) -> None:
    """Of 60 reported mistakes the champion gets 50 right, and one of these may be wrong again."""
    labels = np.arange(60) % 2 == 0
    images = Images(LABELS, SOURCES, IMAGES.degraded, IMAGES.degradations, labels, [f"{n:064d}" for n in range(60)])
    theirs, own = np.arange(60) < 50, np.arange(60) >= lost
    champion, candidate = (
        replace(judged(wrong), regression=np.where(right == labels, 0.9, 0.1))
        for wrong, right in ((mistakes(EVERYWHERE, 0.15), theirs), (mistakes(EVERYWHERE, 0.1), own))
    )
    found = rules(champion, candidate, images=images)
    rule = found["regression set"]
    assert (rule.verdict, rule.interval) == (verdict, None)
    assert rule.difference == pytest.approx(-lost / 50) and rule.candidate == pytest.approx(1 - lost / 50)
    assert f"60 reported mistakes; the champion gets 50 right, the candidate {60 - lost}" in rule.why
    assert rule.why.count("0" * 10) == min(lost, 5)
    assert gate.passes(list(found.values())) == (verdict == "pass")
    none = rules(replace(champion, regression=np.where(labels, 0.1, 0.9)), candidate, images=images)
    assert none["regression set"].verdict == "not comparable"


def test_the_table_has_a_line_for_each_rule() -> None:
    found = list(rules(BASE, judged(mistakes(EVERYWHERE, 0.1), size=2 * 2**20)).values())
    lines = gate.table(found).splitlines()
    assert len(lines) == 2 + len(found) == 10
    assert all(line.count("|") == 8 for line in lines)
    assert "| size | 0.00 MiB | 2.00 MiB | × 2097.15 | – | × 4.00 | fail |" in lines


def test_the_gate_takes_the_best_of_those_that_pass() -> None:
    scores = {
        "sharp": {"balanced_accuracy": 0.9, "auroc": 0.6},
        "sound": {"balanced_accuracy": 0.8, "auroc": 0.9},
        "weak": {"balanced_accuracy": 0.7, "auroc": 0.8},
        "unknown": {"balanced_accuracy": 0.99, "auroc": None},
    }
    winner, reasons = gate.best(scores, "balanced_accuracy", {"auroc": 0.75})
    assert winner == "sound"
    assert any(r.startswith("sharp: auroc 0.6000 is below 0.75") for r in reasons)
    assert any(r.startswith("unknown:") for r in reasons)


def test_by_what_it_says_of_collections_that_it_never_saw() -> None:
    settings = Register(metric="generalisation", min_gain=0.01, gate=Gate(bootstrap=300))
    for before, now, verdict in ((0.7, 0.72, "pass"), (0.7, 0.705, "fail"), (None, 0.9, "not comparable")):
        champion, candidate = (replace(BASE, generalisation=value) for value in (before, now))
        found = list(rules(champion, candidate, settings).values())
        assert found[0].rule == "generalisation" and found[0].verdict == verdict
        assert gate.passes(found) == (verdict == "pass" and not {"unclear", "fail"} & {r.verdict for r in found})
    assert found[0].why == "the champion was never judged on collections that it hadn't seen"
    scores = {
        name: {"balanced_accuracy": 0.9, "generalisation": at} for name, at in (("a", 0.7), ("b", 0.8), ("c", None))
    }
    assert gate.best(scores, "generalisation", {"balanced_accuracy": 0.6})[0] == "b"
