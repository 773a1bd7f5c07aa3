"""The first candidate, which a reference detector of its sizes is compared with."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components import integrity, register, robustness, shards
from components.params import Register
from components.register import Inputs
from components.register.registry import Registry
from components.serve import reference
from components.serve.files import Files
from components.stage import StageError

N = 40
SIDE = 40
EVERY_OTHER = np.arange(N) % 2 == 0
ANY, NONE = np.inf, 1e-9
Make = Callable[..., dict[str, Any]]


def detector(folder: Path, scope: tuple[int, int | None], familiar: float = ANY, cut: float = 0.5) -> Any:
    """The files of an untrained detector; the limit of what is familiar to it, and where `ai` begins. Its network."""
    network = detectors.cnn(seed=len(folder.name), width=4, blocks=1)
    sides = dict(zip(("min_side", "max_side"), scope, strict=True))
    known, decision = detectors.known(4, familiar), dict.fromkeys(("threshold", "low", "high"), cut)
    member, card = detectors.member(network, name=folder.name), "# Card\n\nA detector.\n"
    detectors.write(folder, member, familiar=known, card=card, scope=sides, **decision)
    return network


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Pictures of 40 px in a shard, half of them `ai`."""
    found = Inputs(tmp_path / "models", tmp_path / "evaluation", tmp_path / "index.parquet", tmp_path / "data")
    rng, rows = np.random.default_rng(0), []
    for number in range(N):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE + 8, 3)).astype(np.uint8)).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": f"{number}.png"}
        known = {"image": image, "sha256": f"{number:064d}", "width": SIDE + 8, "height": SIDE, "source": "mine"}
        rows.append({**dict.fromkeys(shards.SCHEMA.names), **known})
    (found.data / "mine").mkdir(parents=True)
    shards.write(found.data / "mine/one-00000.parquet", rows)
    index = pd.DataFrame({"sha256": [row["sha256"] for row in rows], "source": "mine"})
    index.assign(shard="mine/one-00000", row=range(N)).to_parquet(found.index)
    return found


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where reference detectors lie; none as yet."""
    folder = tmp_path / "references"
    monkeypatch.setattr(register, "beside", lambda **_: reference.beside(folder))
    return folder


def refer(kept: Path, name: str, scope: tuple[int, int | None], familiar: float = ANY, cut: float = 0.5) -> None:
    detector(kept / name, scope, familiar, cut)
    integrity.write(kept / name)


def skilled(kept: Path, name: str, data: Path) -> np.ndarray:
    """Labels by which a reference detector is right about four of five pictures; true for `ai`."""
    [shard] = data.rglob("*.parquet")
    rows = reference.Reference(kept / name).score(list(shards.files(shard)))
    p = np.array([row["probability"] for row in rows])
    cut = float(np.median(p))
    refer(kept, name, tuple(Files.kept(kept / name).fitted["scope"].values()), cut=cut)
    return (p >= cut) ^ (np.arange(N) % 5 == 0)


@pytest.fixture
def run(inputs: Inputs) -> Make:
    """Register a candidate that is right about a share of the test images."""

    def go(
        name: str, right: float, model: str, n: int = N, is_ai: np.ndarray = EVERY_OTHER, **changed: object
    ) -> dict[str, Any]:
        (inputs.models / name).mkdir(parents=True)
        detector(inputs.evaluations / name, (16, None)).save(inputs.models / name / "network.keras")
        (inputs.evaluations / name / "run.json").write_text(json.dumps({"run_id": "0" * 32}))
        is_ai = is_ai[:n]
        p = np.where(is_ai == (np.arange(n) < round(n * right)), 0.9, 0.1)
        rows = pd.DataFrame({"sha256": [f"{i:064d}" for i in range(n)], "label": np.where(is_ai, "ai", "real")})
        rows.assign(probability=p, split="test").to_parquet(inputs.evaluations / name / "predictions.parquet")
        after = rows.iloc[:6].assign(**{str(entry): p[:6] for entry in robustness.GRID})
        after.to_parquet(inputs.evaluations / name / "degraded.parquet")
        scores = {"balanced_accuracy": right, "accuracy": right, "auroc": right, "n": n}
        (inputs.evaluations / name / "metrics.json").write_text(json.dumps(scores))
        settings = Register(model=model, min_scores={}).model_copy(update=changed)
        return register.register([name], settings, inputs, inputs.models / "registration.json")

    return go


def test_it_is_the_champion_unless_it_is_worse_than_the_reference_detector(
    run: Make, kept: Path, inputs: Inputs
) -> None:
    refer(kept, "small", (16, 64))
    refer(kept, "photo", (80, None))
    found = run("a", 1.0, "better", is_ai=skilled(kept, "small", inputs.data))
    assert found["decision"] == "champion" and found["aliases"] == {"champion": "1", "challenger": None}
    rules = {rule["rule"]: rule for rule in found["gate"]}
    assert rules["balanced accuracy"]["verdict"] == "pass" and rules["balanced accuracy"]["why"] == f"{N} images"
    assert "the reference detector small's worst is" in rules["worst degradation"]["why"]
    assert rules["worst degradation"]["why"].startswith("6 images")
    for rule in ("size", "latency", "regression set"):
        assert rules[rule]["verdict"] == "not comparable" and rules[rule]["why"]
    reason = found["reasons"][-1]
    assert reason.startswith("the first champion: balanced accuracy 1.0000 against 0.")
    assert rules["real accuracy"]["verdict"] == "pass" and rules["real accuracy"]["champion"] < 0.9
    assert f"of the reference detector small on the same {N} images" in reason and "nobody can tell" in reason
    registry = Registry("better")
    assert registry.version("1").tags["gate_against"] == "reference-small"
    described = registry.client.get_model_version("better", "1").description
    assert "Compared with the reference detector small, in the place of a champion:" in described
    assert "| balanced accuracy |" in described
    assert [(e.version, e.how) for e in registry.history()] == [("1", "gate")]


@pytest.mark.parametrize("policy", ["manual", "automatic"])
def test_where_it_is_worse_a_person_decides(run: Make, kept: Path, inputs: Inputs, policy: str) -> None:
    refer(kept, "small", (16, None))
    is_ai = skilled(kept, "small", inputs.data)
    model = f"worse-{policy}"
    found = run("a", 0.0, model, policy=policy, is_ai=is_ai)
    assert found["decision"] == "challenger" and found["aliases"] == {"champion": None, "challenger": "1"}
    assert "balanced accuracy 0.0000 against" in found["reasons"][-1] and "failed: balanced acc" in found["reasons"][-1]
    assert '`trueframe promote 1 --force --reason "..."` makes it the champion' in found["reasons"][-1]
    registry = Registry(model)
    with pytest.raises(StageError, match="fails a rule of the gate"):
        registry.promote("1")
    # The next one is the first that may become champion; then a later one is compared with that.
    assert run("bb", 1.0, model, policy=policy, is_ai=is_ai)["aliases"] == {"champion": "2", "challenger": "1"}
    assert "of version 2 on the same" in run("ccc", 1.0, model, policy=policy, is_ai=is_ai)["reasons"][-1]
    registry.promote("1", force=True, reason="knows my pictures")
    assert registry.champion() == "1"


def test_what_would_be_no_version_itself_is_no_measure(run: Make, kept: Path, inputs: Inputs) -> None:
    """It calls all real, and so is right about every real one; the candidate misses some of them."""
    refer(kept, "small", (16, 64), cut=0.999)
    found = run("a", 0.8, "chance")
    assert found["decision"] == "champion"
    first, *others = found["gate"]
    assert (first["champion"], first["verdict"]) == (0.5, "pass") and first["candidate"] == pytest.approx(0.8)
    assert {rule["verdict"] for rule in others} == {"not comparable"}
    why = "the reference detector small: balanced_accuracy 0.5000 is below 0.55 (register.min_scores)"
    assert {rule["why"] for rule in others} == {why}


@pytest.mark.parametrize(
    ("scope", "familiar", "n"),
    [((80, None), ANY, N), ((16, 39), ANY, N), ((16, 64), NONE, N), ((16, 64), ANY, 18), (None, ANY, N)],
    ids=["larger", "smaller", "unlike", "few", "none is here"],
)
def test_whom_no_reference_detector_can_be_compared_with_is_the_first_champion(
    run: Make, kept: Path, request: pytest.FixtureRequest, scope: Any, familiar: float, n: int
) -> None:
    if scope:
        refer(kept, "one", scope, familiar)
    found = run("a", 0.0, f"alone-{request.node.callspec.id.replace(' ', '-')}", n=n)
    assert (found["decision"], found["gate"], found["aliases"]["champion"]) == ("champion", [], "1")
    assert found["reasons"][-1].startswith("the first champion; compared with none, since no reference detector")


def test_the_one_that_holds_most_is_compared_with_and_not_on_all_of_them(
    run: Make, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "_MOST", 24)
    refer(kept, "photo", (80, None))
    refer(kept, "narrow", (40, 41))
    found = run("a", 1.0, "bounded")
    assert found["gate"][0]["why"] == "24 images" and "the reference detector narrow" in found["reasons"][-1]
