"""What other programs get: the same answers, from files that need nothing of this project."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from components import images, networks
from components.detector.familiarity import Familiarity
from components.serve.export import export
from components.serve.files import Files
from components.serve.reference import references
from components.stage import StageError

PHOTOS = Path(os.environ.get("TRUEFRAME_TEST_DATA", ".")) / "photos.zip"
MEMBERS = {"whole": ("16", 0.7), "crops": ("crop-24x3", 1.6)}


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(picture: Callable[..., Image.Image]) -> list[Image.Image]:
    """Real ones where they are at hand."""
    if not PHOTOS.exists():
        return [picture(seed, (200, 180)) for seed in range(6)]
    with zipfile.ZipFile(PHOTOS) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        return [images.decode(archive.read(name)) for name in names[:: len(names) // 6][:6]]


def familiar() -> Familiarity:
    """Of fewer directions than there are features."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(32, 8)))[0].astype(np.float16).astype(np.float32)
    spread, limits = np.full(8, 0.5, np.float32), np.array([3.0, 2.0], np.float32)
    means = rng.normal(0, 0.1, (2, 32)).astype(np.float32)
    return Familiarity(np.full(32, 0.3, np.float32), means, directions, spread, limits)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two networks that answer together, one of them on several crops."""
    folder = tmp_path_factory.mktemp("pair")
    members = []
    kept = {name: folder / f"{name}.keras" for name in MEMBERS}
    for name, (view, temperature) in MEMBERS.items():
        network = detectors.cnn(images.view_size(view))
        network.save(kept[name])
        members.append(detectors.member(network, view, name, temperature))
    card = "# pair\n\nTwo networks.\n\n## Trained on\n"
    files = detectors.write(folder / "files", *members, familiar=familiar(), card=card, temperature=0.8)
    return Files(files.detector, files.card, kept)


def expected(files: Files, pictures: list[Image.Image]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs by name, and the answers, with the Keras networks."""
    keras = networks.load_keras()
    inputs, logits, features = {}, [], []
    for number, (name, (view, temperature)) in enumerate(MEMBERS.items()):
        pixels = np.stack([images.render(image, view) for image in pictures])
        network = networks.load(files.networks[name])
        both = keras.Model(network.input, [network.output, network.get_layer("features").output])
        found = both.predict(pixels.reshape(-1, *pixels.shape[-3:]).astype(np.float32), verbose=0)
        of_logit, of_features = (x.reshape(len(pictures), -1, x.shape[-1]).mean(1) for x in found)
        logits.append(of_logit[:, 0] / temperature)
        features.append(of_features)
        inputs[f"pixels{number or ''}"] = pixels
    logit = np.mean(logits, axis=0)
    distance = familiar().distances(np.concatenate(features, axis=1))
    return inputs, {"logit": logit, "probability": 1 / (1 + np.exp(-logit / 0.8)), "distance": distance}


def check(found: dict[str, np.ndarray], answers: dict[str, np.ndarray]) -> None:
    """Equal to 1e-4; distances, which are long sums, relatively."""
    for name, values in found.items():
        assert values == pytest.approx(answers[name], **{"rel": 1e-2} if name == "distance" else {"abs": 1e-4})
    assert np.ptp(answers["logit"]) > 1e-3 and answers["distance"].max() > 0


def test_onnx_answers_as_keras_does(pair: Files, pictures: list[Image.Image], tmp_path: Path) -> None:
    """By what `detectors.json` says of it, and nothing else."""
    inputs, answers = expected(pair, pictures)
    export([pair], "3", "onnx", tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/detectors.json").read_text())
    session = onnxruntime.InferenceSession(tmp_path / "out" / said["model"])
    assert [(one["name"], tuple(one["shape"])) for one in said["inputs"]] == [
        (name, pixels.shape[1:]) for name, pixels in inputs.items()
    ]
    given = {one["name"]: inputs[one["name"]].astype(one["dtype"]) for one in said["inputs"]}
    found = dict(zip(("logit", "distance"), session.run(["logit", "distance"], given), strict=True))
    check({**found, "probability": 1 / (1 + np.exp(-found["logit"] / said["temperature"]))}, answers)
    for key in ("equalise", "threshold", "low", "high", "scope"):
        assert said[key] == pair.fitted[key]
    assert said["version"] == "3" and said["about"] == "Two networks."
    assert (tmp_path / "out/model_card.md").read_text() == pair.card.read_text()


def test_of_the_reference_detectors_each_is_exported_as_it_answers(pictures: list[Image.Image], tmp_path: Path) -> None:
    kept = sorted(references(), key=lambda one: (one.scope.min_side, not one.is_fast))
    export([one.files for one in reversed(kept)], "reference", "onnx", tmp_path)
    for said, one in zip(json.loads((tmp_path / "detectors.json").read_text()), kept, strict=True):
        session = onnxruntime.InferenceSession(tmp_path / said["model"])
        equal = [images.equalise(image, said["equalise"]) for image in pictures]
        seen = {
            m["name"]: np.stack([images.render(image, m["view"], said["equalise"]) for image in equal])
            for m in said["inputs"]
        }
        [logits] = session.run(["logit"], seen)
        rows = one.score([encoded(image) for image in pictures])
        found = 1 / (1 + np.exp(-logits / said["temperature"]))
        assert found == pytest.approx([row["probability"] for row in rows], abs=1e-5)
        assert said["version"] == one.version == rows[0]["model_version"]


def test_litert_answers_as_keras_does(pair: Files, pictures: list[Image.Image], tmp_path: Path) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    inputs, answers = expected(pair, pictures)
    export([pair], "3", "litert", tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/detectors.json").read_text())
    given = {one["name"]: inputs[one["name"]].astype(one["dtype"]) for one in said["inputs"]}
    runner = litert.Interpreter(str(tmp_path / "out" / said["model"])).get_signature_runner()
    rows: list[dict[str, Any]] = [
        runner(**{name: values[i : i + 1] for name, values in given.items()}) for i in range(len(pictures))
    ]
    check({key: np.concatenate([row[key] for row in rows]) for key in answers}, answers)


@pytest.mark.parametrize("kept", [None, {}, {"whole": Path("whole.keras")}])
def test_without_the_keras_networks_litert_is_refused(
    pair: Files, tmp_path: Path, kept: dict[str, Path] | None
) -> None:
    with pytest.raises(StageError, match="none are kept; `--format onnx` needs none"):
        export([Files(pair.detector, pair.card, kept)], "3", "litert", tmp_path / "out")


def test_keras_networks_that_are_others_are_not_exported(pair: Files, tmp_path: Path) -> None:
    """As somebody may have laid them beside the version, whose own files have a list of their hashes."""
    others = {name: tmp_path / f"{name}.keras" for name in MEMBERS}
    for seed, (name, (view, _)) in enumerate(MEMBERS.items()):
        detectors.cnn(images.view_size(view), seed=seed).save(others[name])
    with pytest.raises(StageError, match="the Keras networks that its run keeps are others; nothing was exported"):
        export([Files(pair.detector, pair.card, others)], "3", "litert", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tflite"))


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
