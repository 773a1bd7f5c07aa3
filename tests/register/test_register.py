"""The gate and the registry, on a real MLflow store."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import detectors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components import images, networks, robustness, shards
from components.params import Register
from components.register import LINEAGE, Inputs, _Champion, register
from components.register.registry import Gone, Registry
from components.stage import StageError

SETTINGS = Register(min_scores={"balanced_accuracy": 0.6}, policy="automatic")


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path / "models", tmp_path / "evaluation", tmp_path / "index.parquet", tmp_path / "data")


def judged(inputs: Inputs, name: str, *members: detectors.Member, card: str) -> None:
    """A candidate's files as evaluate writes them."""
    detectors.write(inputs.evaluations / name, *members, card=card, low=0.5, high=0.5)


def scores(network: Path, seen: np.ndarray) -> np.ndarray:
    """Logits of a saved network."""
    return np.asarray(networks.load(network).predict(seen.astype(np.float32), verbose=0)[:, 0])


def candidate(inputs: Inputs, name: str, accuracy: float, seed: int) -> None:
    """A network with test predictions of which a given share is right."""
    network = detectors.cnn(seed=seed, width=4, blocks=1)
    (inputs.models / name).mkdir(parents=True)
    network.save(inputs.models / name / "network.keras")
    card = f"# {name}\n\nA detector, right in {accuracy:.0%}.\n\n## Use and limits\n\nNone.\n"
    judged(inputs, name, detectors.member(network, name=name), card=card)
    (inputs.evaluations / name / "run.json").write_text(json.dumps({"run_id": "0" * 32}))
    labels = np.arange(200) % 2 == 0
    right = np.arange(200) < round(200 * accuracy)
    rows = pd.DataFrame(
        {
            "sha256": [f"{i:064d}" for i in range(200)],
            "label": np.where(labels, "ai", "real"),
            "probability": np.where(labels == right, 0.9, 0.1),
            "split": "test",
        }
    )
    rows.to_parquet(inputs.evaluations / name / "predictions.parquet")
    rows[["sha256"]].assign(source="mine", shard="mine/none", row=0).to_parquet(inputs.index)
    after = rows.iloc[::2].drop(columns=["probability", "split"])
    after = after.assign(**{str(entry): rows["probability"] for entry in robustness.GRID})
    after.to_parquet(inputs.evaluations / name / "degraded.parquet")
    scores = {"balanced_accuracy": accuracy, "accuracy": accuracy, "auroc": accuracy, "n": 200}
    scores["intervals"] = {"balanced_accuracy": [accuracy - 0.03, accuracy + 0.03]}
    (inputs.evaluations / name / "metrics.json").write_text(json.dumps(scores))


def run(inputs: Inputs, *names: str, model: str, **changed: object) -> dict:
    """Register, and put the predictions where the evaluation would have logged them."""
    settings = SETTINGS.model_copy(update={"model": model, **changed})
    result = register(list(names), settings, inputs, inputs.models / "registration.json")
    if result["version"]:
        registry = Registry(model)
        version = next(v for v in registry.versions() if v.number == result["version"])
        for name in ("predictions.parquet", "degraded.parquet"):
            file = inputs.evaluations / result["candidate"] / name
            registry.client.log_artifact(version.run_id, str(file), "evaluation")
    assert json.loads((inputs.models / "registration.json").read_text()) == result
    return result


def test_champion_challenger_and_nothing_twice(inputs: Inputs) -> None:
    candidate(inputs, "a", 0.80, 1)
    candidate(inputs, "b", 0.75, 2)
    candidate(inputs, "c", 0.90, 3)
    first = run(inputs, "a", "b", model="story")
    assert (first["decision"], first["candidate"], first["version"]) == ("champion", "a", "1")
    assert run(inputs, "a", "b", model="story")["version"] == "1"

    worse = run(inputs, "b", model="story")
    assert (worse["decision"], worse["version"]) == ("challenger", "2")
    assert worse["aliases"] == {"champion": "1", "challenger": "2"}
    assert "balanced accuracy 0.7500 against 0.8000 of version 1 on the same 200 images" in worse["reasons"][-1]

    better = run(inputs, "a", "b", "c", model="story")
    assert (better["decision"], better["version"]) == ("champion", "3")
    assert better["aliases"]["champion"] == "3"

    registry = Registry("story")
    assert [v.number for v in registry.versions()] == ["3", "2", "1"]
    assert registry.rollback() == "1"
    # What was decided stays decided: a run that brings nothing new doesn't undo the rollback.
    again = run(inputs, "a", "b", "c", model="story")
    assert again["aliases"]["champion"] == "1"
    assert len(registry.versions()) == 3


def test_a_registration_that_was_killed_is_finished(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate(inputs, "a", 0.80, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(inputs, "a", model="killed")
    assert [v.aliases for v in Registry("killed").versions()] == [[]]
    finished = run(inputs, "a", model="killed")
    assert (finished["decision"], finished["version"]) == ("champion", "1")
    assert finished["aliases"]["champion"] == "1"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_outputs_that_are_links_into_dvcs_cache_are_registered(
    inputs: Inputs, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    candidate(inputs, "linked", 0.8, 23)
    files = [p for folder in (inputs.models, inputs.evaluations) for p in folder.rglob("*") if p.is_file()]
    for number, file in enumerate(files):
        file.chmod(0o444)
        link(file.rename(cache / str(number)), file)
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in cache.iterdir()}
    result = run(inputs, "linked", model=f"linked-{link.__name__}")
    fetched = Registry(result["model_name"]).fetch("1", tmp_path / "fetched")
    stored = (fetched / "artifacts/detector.onnx").read_bytes()
    assert stored == (inputs.evaluations / "linked/detector.onnx").read_bytes()
    [network] = Registry(result["model_name"]).networks("1", tmp_path).values()
    assert network.read_bytes() == (inputs.models / "linked/network.keras").read_bytes()
    assert {path: (path.read_bytes(), path.stat().st_mode) for path in cache.iterdir()} == before


def test_a_version_without_files_is_said_and_registered_again(inputs: Inputs, tmp_path: Path) -> None:
    candidate(inputs, "lost", 0.8, 24)
    run(inputs, "lost", model="lost")
    registry = Registry("lost")
    registry.look("1")
    place = Path(registry.client.get_model_version_download_uri("lost", "1"))
    kept = place.rename(tmp_path / "kept")
    with pytest.raises(Gone, match=f"Put them back into {place} from a copy") as caught:
        registry.look("1")
    assert "delete" not in str(caught.value) and "remove" not in str(caught.value)
    again = run(inputs, "lost", model="lost")
    assert (again["decision"], again["version"]) == ("challenger", "2") and "no file of version 1" in again["reasons"][
        1
    ]
    assert [v.aliases for v in registry.versions()] == [["challenger"], ["champion"]], "nothing is lost"
    registry.look("2")
    assert run(inputs, "lost", model="lost")["version"] == "2"
    kept.rename(place)
    registry.load("1")  # as it was


def test_scores_below_the_minimum_register_nothing(inputs: Inputs) -> None:
    candidate(inputs, "a", 0.55, 5)
    result = run(inputs, "a", model="weak")
    assert (result["decision"], result["version"]) == ("rejected", None)
    assert "balanced_accuracy 0.5500 is below 0.6" in result["reasons"][0]
    assert Registry("weak").versions() == []


def test_the_version_loads_without_this_project_on_the_path(inputs: Inputs, tmp_path: Path) -> None:
    candidate(inputs, "a", 0.80, 6)
    run(inputs, "a", model="portable")
    registry = Registry("portable")
    detector = registry.load("1")
    assert detector.version == "1"
    assert detector.score([b"nothing"])[0]["error"]
    folder = Path(registry.mlflow.artifacts.download_artifacts("models:/portable/1"))
    assert (folder / "code/components/serve/detector.py").exists()
    required = (folder / "requirements.txt").read_text()
    assert "onnxruntime==" in required and "tensorflow" not in required and "://" not in required
    assert (folder / "artifacts/model_card.md").read_text().startswith("# a\n")
    described = registry.client.get_model_version("portable", "1").description
    assert described.startswith("A detector, right in 80%.") and "Use and limits" not in described


def test_files_that_are_not_what_was_registered_are_not_loaded(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The networks, the code, whatever is added: nothing runs, and what is other is named."""
    candidate(inputs, "a", 0.80, 40)
    candidate(inputs, "b", 0.80, 41)
    run(inputs, "a", model="sealed")
    registry = Registry("sealed")
    assert capsys.readouterr().err.count("warning") == 0 and registry.load("1").version == "1"
    where = Path(registry.mlflow.artifacts.download_artifacts("models:/sealed/1"))
    network, code = where / "artifacts/detector.onnx", where / "code/components/serve/detector.py"
    whole = {path: path.read_bytes() for path in (network, code)}

    def refused(says: str) -> None:
        with pytest.raises(StageError) as caught:
            registry.load("1")
        assert f"sealed version 1 is not what was registered: {says}. Nothing of it was loaded" in str(caught.value)

    shutil.copy(inputs.evaluations / "b/detector.onnx", network)
    refused("artifacts/detector.onnx was changed")
    with pytest.raises(StageError, match=r"not the files of its SHA256SUMS: detector\.onnx was changed"):
        registry.mlflow.pyfunc.load_model("models:/sealed/1")  # as `mlflow models serve` does
    network.write_bytes(whole[network])
    code.write_bytes(whole[code] + f"\nPath({str(tmp_path / 'ran')!r}).touch()\n".encode())
    (where / "code/components/more.py").touch()
    refused("code/components/more.py was added, code/components/serve/detector.py was changed")
    assert not (tmp_path / "ran").exists()
    code.unlink()
    (where / "code/components/more.py").unlink()
    refused("code/components/serve/detector.py is missing")
    # Who changes the list that was logged, too, is found out by the version's tag.
    run_id = registry.version("1").run_id
    registry.client.log_text(run_id, "", f"{LINEAGE}/SHA256SUMS")
    refused(f"the list of its files is not the one that was registered either ({LINEAGE}/SHA256SUMS of its run)")
    code.write_bytes(whole[code])
    assert registry.load("1").version == "1"


def test_an_ensemble_is_one_version_with_all_its_members(inputs: Inputs, tmp_path: Path) -> None:
    candidate(inputs, "a", 0.70, 20)
    candidate(inputs, "b", 0.75, 21)
    candidate(inputs, "both", 0.80, 22)
    for file in (inputs.models / "both").iterdir():
        file.unlink()
    members = [
        detectors.member(networks.load(inputs.models / name / "network.keras"), view, name, temperature)
        for name, view, temperature in (("a", "16", 2.0), ("b", "crop-16", 0.5))
    ]
    judged(inputs, "both", *members, card="# both\n\nTwo.\n")
    result = run(inputs, "a", "b", "both", model="together")
    assert (result["candidate"], result["version"]) == ("both", "1")

    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (answer,) = Registry("together").load("1").score([buffer.getvalue()], explain=True)
    logits = [
        scores(inputs.models / m.name / "network.keras", images.render(Image.fromarray(pixels), m.view)[None])
        / m.temperature
        for m in members
    ]
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-np.mean(logits))), abs=1e-6)
    assert answer["heatmap"]
    assert run(inputs, "a", "b", "both", model="together")["version"] == "1", "registered twice"
    kept = Registry("together").networks("1", tmp_path)
    for name in ("a", "b"):
        assert kept[name].read_bytes() == (inputs.models / name / "network.keras").read_bytes()
    # Another member is another detector.
    candidate(inputs, "c", 0.70, 23)
    (inputs.models / "c/network.keras").replace(inputs.models / "a/network.keras")
    assert run(inputs, "a", "b", "both", model="together")["version"] == "2"


def test_once_there_is_a_champion_a_person_promotes(inputs: Inputs) -> None:
    candidate(inputs, "a", 0.80, 10)
    candidate(inputs, "b", 0.90, 11)
    candidate(inputs, "c", 0.70, 12)
    first = run(inputs, "a", model="person", policy="manual")
    assert (first["decision"], first["gate"]) == ("champion", [])
    better = run(inputs, "b", model="person", policy="manual")
    assert (better["decision"], better["policy"]) == ("challenger", "manual")
    assert better["aliases"] == {"champion": "1", "challenger": "2"}
    assert "`trueframe promote 2` makes it the champion" in better["reasons"][-1]
    rules = {rule["rule"]: rule for rule in better["gate"]}
    assert list(rules) == [
        "balanced accuracy",
        "worst degradation",
        "worst source",
        "real accuracy",
        "calibration error",
        "size",
        "latency",
        "regression set",
    ]
    verdicts = {name: rule["verdict"] for name, rule in rules.items() if name != "latency"}
    assert verdicts.pop("regression set") == "not comparable" and set(verdicts.values()) == {"pass"}
    assert rules["balanced accuracy"]["difference"] == pytest.approx(0.1)
    assert rules["latency"]["champion"] > 0 and rules["size"]["difference"] == pytest.approx(1, rel=0.1)

    registry = Registry("person")
    registry.promote("2", reason="better")
    assert {v.number: v.aliases for v in registry.versions()} == {"2": ["champion"], "1": []}
    # What was decided is told again, with its table.
    assert run(inputs, "b", model="person", policy="manual")["gate"] == better["gate"]
    described = registry.client.get_model_version("person", "2").description
    assert described.startswith("A detector, right in 90%.")
    assert "Compared with version 1" in described and "| worst source | 0.8000 | 0.9000 | +0.1000 |" in described

    run(inputs, "c", model="person", policy="manual")
    with pytest.raises(StageError, match=r"version 3 fails a rule of the gate \(balanced accuracy, .*--force --reason"):
        registry.promote("3")
    with pytest.raises(StageError, match="fails a rule"):
        registry.promote("3", force=True)
    registry.promote("3", force=True, reason="knows a new generator")
    overruled = registry.version("3").tags["gate_overruled"]
    assert "knows a new generator (failed: balanced accuracy, " in overruled and "@" in overruled
    assert registry.alias("champion").number == "3"
    assert [(e.version, e.how, e.reason) for e in registry.history()] == [
        ("1", "gate", ""),
        ("2", "promoted", "better"),
        ("3", "promoted", "knows a new generator"),
    ]


def test_a_version_keeps_the_settings_and_locks_by_which_it_was_made(inputs: Inputs, tmp_path: Path) -> None:
    candidate(inputs, "a", 0.80, 13)
    settings = tmp_path / "mine.yaml"
    settings.write_text("ingest: {}\n")
    run(Inputs(inputs.models, inputs.evaluations, inputs.index, inputs.data, settings), "a", model="kept")
    registry = Registry("kept")
    version = registry.version("1")
    folder = Path(registry.mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=LINEAGE))
    assert (folder / "params.yaml").read_text() == "ingest: {}\n"
    assert (folder / "requirements.lock").read_text() == Path("requirements.lock").read_text()
    assert {"git_commit", "git_dirty", "data_md5", "params_md5", "requirements_lock_md5"} <= version.tags.keys()


def test_the_champion_scores_what_it_has_not_seen(inputs: Inputs) -> None:
    """Images as they are and degraded, a bounded number of the latter, by the same path as the judge's."""
    candidate(inputs, "a", 0.80, 14)
    run(inputs, "a", model="unseen")
    registry = Registry("unseen")
    champion = _Champion(registry, registry.version("1"))
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (24, 30, 3)).astype(np.uint8)) for _ in range(3)]
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, "PNG")
    names = [f"new {number}" for number in range(3)]
    rows = [
        {**dict.fromkeys(shards.SCHEMA.names), "image": {"bytes": file.getvalue(), "path": name}, "sha256": name}
        for name, file in zip(names, files, strict=True)
    ]
    (inputs.data / "mine").mkdir(parents=True)
    shards.write(inputs.data / "mine/one-00000.parquet", rows)
    index = pd.DataFrame({"sha256": names, "source": "mine", "shard": "mine/one-00000", "row": range(3)})
    index = index.set_index("sha256")

    def expected(seen: list[Image.Image]) -> np.ndarray:
        rendered = np.stack([images.render(image, "16") for image in seen])
        return 1 / (1 + np.exp(-scores(inputs.models / "a/network.keras", rendered)))

    known = f"{5:064d}"
    scored = champion.scores(pd.Series([names[1], known, names[0]]), index, inputs.data)
    np.testing.assert_allclose(scored, [expected(pictures)[1], 0.1, expected(pictures)[0]], atol=1e-6)

    own = pd.DataFrame({"sha256": [*names, f"{4:064d}"]})
    table = champion.degraded(own, 3, index, inputs.data)
    assert list(table.index) == [f"{4:064d}", *names[:2]] and (table.iloc[0] == 0.9).all()
    after = [entry(pictures[0]) for entry in robustness.GRID]
    np.testing.assert_allclose(table.loc[names[0]], expected(after), atol=1e-6)
    assert list(champion.degraded(own, 0, index, inputs.data).index) == [f"{4:064d}"]


def test_what_cannot_be_done_says_why(inputs: Inputs) -> None:
    with pytest.raises(StageError, match=r"metrics\.json: not here"):
        run(inputs, "never-evaluated", model="absent")
