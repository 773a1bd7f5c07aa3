"""A reported mistake, from the report to the gate: real pictures through the real stages, with tiny networks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import pandas as pd
import pytest

from components import networks, reports, shards
from components.evaluate import evaluate
from components.ingest import Outcome, ingest
from components.params import Evaluate, Gate, Ingest, Preprocess, Register, Sample, Source
from components.preprocess import preprocess
from components.register import Inputs, register
from components.register.registry import Registry
from components.stage import StageError
from components.validate import duplicates

pytestmark = pytest.mark.slow

INGEST = Ingest(sources={"sample": Source()}, sample=Sample(n_images=60, size=32))
JUDGE = Evaluate(bootstrap=100, robustness_images=0, degraded_images=0, min_real_accuracy=0)
GATE = Register(model="reported", policy="automatic", min_scores={}, gate=Gate(bootstrap=100, degraded_images=0))


@dataclass
class House:
    """A project's folders, and the stages one after the other."""

    root: Path

    def preprocess(self, *sources: str) -> pd.DataFrame:
        files = shards.paths(self.root / "data", sources)
        rows = shards.manifest(files)
        groups = rows[["shard", "row"]].assign(group=duplicates.find(rows, files, 4)["group"])
        groups.to_parquet(self.root / "groups.parquet")
        settings = Preprocess(views=["24"], validation=0.3, test=0.3)
        where = (self.root / "groups.parquet", settings, self.root / "arrays", self.root / "index.parquet")
        return preprocess(self.root / "data", sources, *where)

    def take_in(self, feedback: Path) -> Outcome:
        source = Source.model_validate({"from": f"feedback:{feedback}"})
        return ingest("reports", source, INGEST, self.root / "data", self.root / "receipts")

    def network(self, name: str, sign: float) -> None:
        """The same untrained network each time, or what says the opposite."""
        import keras

        keras.utils.set_random_seed(3)
        model = networks.build("cnn", 24, {"width": 4, "blocks": 2})
        model.get_layer("logit").set_weights([sign * 10 * w for w in model.get_layer("logit").get_weights()])
        (self.root / "models" / name).mkdir(parents=True)
        model.save(self.root / "models" / name / "network.keras")
        (self.root / "models" / name / "network.onnx").write_bytes(detectors.compiled(model, "24"))
        (self.root / "models" / name / "training.json").write_text(json.dumps({"run_id": "0" * 32}))

    def judge(self, name: str) -> dict[str, Any]:
        where = (self.root / "models", self.root / "index.parquet", self.root / "arrays", self.root / "data")
        return evaluate(name, {name: "24"}, JUDGE, *where, self.root / "evaluation" / name)

    def register(self, name: str) -> dict[str, Any]:
        folders = [self.root / part for part in ("models", "evaluation", "index.parquet", "data")]
        return register([name], GATE, Inputs(*folders), self.root / "registration.json")


def test_a_mistake_that_was_reported_and_mended_does_not_come_back(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    house, feedback = House(tmp_path), tmp_path / "feedback"
    ingest("sample", Source(), INGEST, tmp_path / "data", tmp_path / "receipts")
    house.preprocess("sample")
    house.network("first", 1)
    assert house.judge("first")["regression"] == {"n": 0, "right": 0, "wrong": []}
    assert house.register("first")["decision"] == "champion"

    # Visitors report what the champion got wrong; a reviewer accepts all but one.
    registry = Registry(GATE.model)
    pictures = [jpeg(seed, (40, 36)) for seed in range(100, 124)]
    for data, row in zip(pictures, registry.load("1").score(pictures), strict=True):
        said = {"label": "real" if row["label"] == "ai" else "ai", "answer": row["label"], "verdict": row["verdict"]}
        reports.store(feedback, data, "jpg", said, trusted=False)
    with pytest.raises(StageError, match="no report in it is accepted yet"):
        house.take_in(feedback)
    waiting = reports.waiting(feedback)
    for one in waiting[1:]:
        reports.decide(feedback, one.name, "accept", "anna")
    reports.decide(feedback, waiting[0].name, "reject", "anna")
    assert house.take_in(feedback) == Outcome(added=23)

    index = house.preprocess("reports", "sample")
    reported = index[index["source"] == "reports"]
    proof = reported[reported["split"] == shards.REGRESSION]
    assert set(reported["split"]) == {"train", shards.REGRESSION} and 4 < len(proof) < 19
    assert not index.loc[index["split"] == "train", "group"].isin(proof["group"]).any()

    house.network("mended", -1)
    scores = house.judge("mended")
    assert scores["regression"]["n"] == len(proof) and scores["regression"]["right"] > 0
    assert scores["n"] == int((index["split"] == "test").sum()), "proof counts in no other figure"
    assert f"Of {len(proof)} mistakes that users reported" in (tmp_path / "evaluation/mended/report.html").read_text()
    mended = house.register("mended")
    assert rule(mended)["verdict"] == "not comparable" and "gets none of" in rule(mended)["why"]
    registry.promote("2", force=True, reason="what was reported is mended")

    # Another candidate that errs as the first did is refused.
    house.network("again", 1.1)
    house.judge("again")
    again = house.register("again")
    assert again["decision"] == "challenger" and again["aliases"]["champion"] == "2"
    found = rule(again)
    assert found["verdict"] == "fail" and found["candidate"] < 0.5
    assert f"{len(proof)} reported mistakes" in found["why"] and "wrong again: " in found["why"]
    named = found["why"].partition("wrong again: ")[2].split(", ")
    assert all(proof["sha256"].str.startswith(name).any() for name in named if name != "…")
    assert "| regression set | 1.0000 | 0." in registry.client.get_model_version(GATE.model, "3").description
    with pytest.raises(StageError, match=r"version 3 fails a rule of the gate \(.*regression set.*--force --reason"):
        registry.promote("3")
    assert np.isclose(json.loads(registry.version("3").tags["gate_rules"])[-1]["limit"], -0.02)


def rule(registration: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in registration["gate"] if one["rule"] == "regression set")
