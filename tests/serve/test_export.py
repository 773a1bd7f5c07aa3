"""What other programs get: the same answers, from files that need nothing of this project."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components import images, networks
from components.networks.familiarity import Familiarity
from components.networks.inference import Ensemble, Member, Scorer
from components.serve.export import export
from components.serve.files import Files
from components.serve.reference import references
from components.stage import StageError

pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
PHOTOS = Path(os.environ.get("TRUEFRAME_TEST_DATA", ".")) / "photos.zip"
SCOPE = {"min_side": 16, "max_side": None}


@pytest.fixture(scope="module")
def pictures(picture: Callable[..., Image.Image]) -> list[Image.Image]:
    """Real ones where they are at hand."""
    if not PHOTOS.exists():
        return [picture(seed, (200, 180)) for seed in range(6)]
    with zipfile.ZipFile(PHOTOS) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        return [images.decode(archive.read(name)) for name in names[:: len(names) // 6][:6]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two networks that answer together, one of them on several crops, with a familiarity of fewer directions."""
    files = Files.kept(tmp_path_factory.mktemp("pair"))
    files.network.mkdir()
    networks.build("cnn", 16, {"width": 4}).save(files.network / "whole.keras")
    networks.build("cnn", 24, {"width": 4}).save(files.network / "crops.keras")
    members = [
        {"name": "whole", "view": "16", "temperature": 0.7},
        {"name": "crops", "view": "crop-24x3", "temperature": 1.6},
    ]
    fitted = {"temperature": 0.8, "threshold": 0.5, "low": 0.4, "high": 0.6, "members": members, "scope": SCOPE}
    files.decision.write_text(json.dumps(fitted))
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(32, 8)))[0].astype(np.float32)
    spread, limits = np.full(8, 0.5, np.float32), np.array([3.0, 2.0], np.float32)
    means = rng.normal(0, 0.1, (2, 32)).astype(np.float32)
    Familiarity(np.full(32, 0.3, np.float32), means, directions, spread, limits).save(files.familiar)
    files.card.write_text("# pair\n\nTwo networks.\n\n## Trained on\n")
    return files


def expected(files: Files, pictures: list[Image.Image]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs by name, and the answers, with the Keras networks."""
    fitted = files.fitted
    members = fitted.get("members", [{"view": fitted.get("view"), "temperature": 1.0}])
    paths = [files.network / f"{m['name']}.keras" if "name" in m else files.network for m in members]
    ensemble = Ensemble(
        [Member(Scorer(path), m["view"], m["temperature"]) for path, m in zip(paths, members, strict=True)]
    )
    seen = [ensemble.render(images.equalise(image, fitted.get("equalise"))) for image in pictures]
    pixels = [np.stack(of_view) for of_view in zip(*seen, strict=True)]
    logits, features = ensemble.outputs(pixels)
    answers = {
        "logit": logits,
        "probability": 1 / (1 + np.exp(-logits / fitted["temperature"])),
        "distance": Familiarity.load(files.familiar).distances(features),
    }
    return {f"pixels{i or ''}": p.astype(np.float32) for i, p in enumerate(pixels)}, answers


def check(found: dict[str, np.ndarray], answers: dict[str, np.ndarray]) -> None:
    """Equal to 1e-4; distances, which are long sums, relatively."""
    assert found["probability"] == pytest.approx(answers["probability"], abs=1e-4)
    assert found["logit"] == pytest.approx(answers["logit"], abs=1e-3)
    assert found["distance"] == pytest.approx(answers["distance"], rel=1e-2)
    assert np.ptp(answers["logit"]) > 1e-3 and answers["distance"].max() > 0


@pytest.fixture(scope="module", params=["pair", "reference"])
def some(request: pytest.FixtureRequest) -> Files:
    return request.getfixturevalue("pair") if request.param == "pair" else references()[-1].files


def test_onnx_answers_as_keras_does(some: Files, pictures: list[Image.Image], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    inputs, answers = expected(some, pictures)
    export([some], "3", "onnx", tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/detectors.json").read_text())
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / said["model"]))
    assert [each["name"] for each in said["inputs"]] == list(inputs)
    names = ["logit", "probability", "distance"]
    check(dict(zip(names, session.run(names, inputs), strict=True)), answers)
    fitted = some.fitted
    assert {key: said[key] for key in ("threshold", "low", "high", "scope")} == {
        key: fitted[key] for key in ("threshold", "low", "high", "scope")
    }
    assert said["version"] == "3" and said["equalise"] == fitted.get("equalise")
    assert (tmp_path / "out/model_card.md").read_text() == some.card.read_text()


def test_litert_answers_as_keras_does(some: Files, pictures: list[Image.Image], tmp_path: Path) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    inputs, answers = expected(some, pictures)
    export([some], "3", "litert", tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/detectors.json").read_text())
    runner = litert.Interpreter(str(tmp_path / "out" / said["model"])).get_signature_runner()
    rows: list[dict[str, Any]] = [
        runner(**{name: values[i : i + 1] for name, values in inputs.items()}) for i in range(len(pictures))
    ]
    check({key: np.concatenate([row[key] for row in rows]) for key in answers}, answers)


@pytest.mark.parametrize("module", ["keras.layers", "keras_hub.src.models.vit.vit_backbone"])
def test_a_space_requires_what_its_networks_are_made_of(pair: Files, tmp_path: Path, module: str) -> None:
    network = shutil.copytree(pair.network, tmp_path / "networks") / "crops.keras"
    with zipfile.ZipFile(network, "w") as file:
        file.writestr("config.json", json.dumps({"layers": [{"module": module}]}))
    export([replace(pair, network=network.parent)], "1", "space", tmp_path / "space")
    required = (tmp_path / "space/requirements.txt").read_text().splitlines()
    assert ("keras-hub" in required) == (module != "keras.layers") and "sd-parsers" in required


def test_nothing_is_written_over(pair: Files, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(StageError, match="is there already"):
        export([pair], "3", "onnx", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_runtime_that_is_another_is_refused(pair: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry/onnxruntime-web/-"
    registry.mkdir(parents=True)
    shutil.make_archive(str(registry / "made"), "gztar", tmp_path / "registry", "onnxruntime-web")
    (registry / "made.tar.gz").rename(registry / "onnxruntime-web-1.30.0.tgz")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "registry").as_uri())
    with pytest.raises(StageError, match="not the file that is known by that name"):
        export([pair], "3", "browser", tmp_path / "out")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "nowhere").as_uri())
    with pytest.raises(StageError, match="NPM_CONFIG_REGISTRY names another registry"):
        export([pair], "3", "browser", tmp_path / "other")
