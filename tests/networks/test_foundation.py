"""Encoders under a small head, and their features computed once an image."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import networks
from components.detector.file import Network
from components.networks import features
from components.stage import StageError

ROOT = Path(__file__).parents[2]
SIDE = 16
OPTIONS: dict[str, Any] = {"encoder": "cnn", "encoder_options": {"width": 4, "blocks": 2}}


def foundation(seed: int = 0, **options: Any) -> Any:
    networks.load_keras().utils.set_random_seed(seed)
    return networks.build("foundation", SIDE, {**OPTIONS, **options})


def pixels(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Pixels of two shards, as preprocess leaves them."""
    for number, shard in enumerate(("one/a-00000", "two/b-00000")):
        add(tmp_path / "arrays", shard, pixels(5, seed=number))
    return tmp_path / "arrays"


def add(arrays: Path, shard: str, values: np.ndarray, view: str = "16") -> None:
    file = arrays / view / f"{shard}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values)
    made = arrays / "made.json"
    known = json.loads(made.read_text()) if made.exists() else {"maker": "2", "equalise": None, "shards": {}}
    known["shards"][f"{view}/{shard}"] = len(values)
    made.write_text(json.dumps(known))


def remove(arrays: Path, shard: str) -> None:
    known = json.loads((arrays / "made.json").read_text())
    del known["shards"][f"16/{shard}"]
    (arrays / "made.json").write_text(json.dumps(known))


def times(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.npy")}


def test_the_encoder_is_frozen_and_its_head_learns() -> None:
    network = foundation()
    assert features.frozen(network)
    assert [v.path for v in network.trainable_variables] == ["logit/kernel", "logit/bias"]
    assert not features.frozen(foundation(frozen=False))
    assert not features.frozen(networks.build("cnn", SIDE, {"width": 4}))


def test_encoder_and_head_are_the_network() -> None:
    network = foundation(dense=3)
    encoder, head = features.split(network)
    seen = pixels(4)
    found = head.predict(encoder.predict(seen, verbose=0), verbose=0)
    np.testing.assert_allclose(found, network.predict(seen, verbose=0), rtol=1e-5, atol=1e-6)
    head.compile("sgd", "mse")
    head.fit(encoder.predict(seen, verbose=0), np.ones((4, 1)), verbose=0)
    moved = head.predict(encoder.predict(seen, verbose=0), verbose=0)
    assert not np.allclose(moved, found)
    np.testing.assert_allclose(network.predict(seen, verbose=0), moved, rtol=1e-5, atol=1e-6)


def test_only_new_shards_are_computed(arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, _ = features.split(foundation())
    out = tmp_path / "features"
    view = features.update(encoder, ["one/a-00000", "two/b-00000"], arrays, "16", "float32", out)
    assert view.startswith("16+")
    before = times(out / view)
    assert set(before) == {"one/a-00000.npy", "two/b-00000.npy"}
    found = np.load(out / view / "two/b-00000.npy")
    np.testing.assert_allclose(found, encoder.predict(pixels(5, seed=1), verbose=0), rtol=1e-5, atol=1e-6)

    add(arrays, "two/c-00000", pixels(3, seed=2))
    again = features.update(encoder, ["one/a-00000", "two/b-00000", "two/c-00000"], arrays, "16", "float32", out)
    assert again == view
    after = times(out / view)
    assert after.keys() - before.keys() == {"two/c-00000.npy"}
    assert {name: after[name] for name in before} == before

    # A training on some shards alone leaves the others'.
    features.update(encoder, ["two/c-00000"], arrays, "16", "float32", out)
    assert times(out / view) == after

    # Another shard under a known name, and one that is gone.
    add(arrays, "one/a-00000", pixels(4, seed=3))
    remove(arrays, "two/b-00000")
    features.update(encoder, ["one/a-00000", "two/c-00000"], arrays, "16", "float32", out)
    last = times(out / view)
    assert set(last) == {"one/a-00000.npy", "two/c-00000.npy"}
    assert last["two/c-00000.npy"] == after["two/c-00000.npy"]
    assert len(np.load(out / view / "one/a-00000.npy")) == 4


def test_of_several_crops_each_has_its_features(tmp_path: Path) -> None:
    encoder, _ = features.split(foundation())
    crops = pixels(6).reshape(2, 3, SIDE, SIDE, 3)
    add(tmp_path / "arrays", "one/a-00000", crops, "crop-16x3")
    view = features.update(encoder, ["one/a-00000"], tmp_path / "arrays", "crop-16x3", "float32", tmp_path / "features")
    found = np.load(tmp_path / "features" / view / "one/a-00000.npy")
    wanted = encoder.predict(pixels(6), verbose=0).reshape(2, 3, -1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_features_belong_to_an_encoder_and_a_way_to_its_pixels(arrays: Path, tmp_path: Path) -> None:
    def place(network: Any, precision: str = "float32") -> str:
        encoder, _ = features.split(network)
        return features.update(encoder, ["one/a-00000"], arrays, "16", precision, tmp_path / "features")

    first = place(foundation())
    assert place(foundation(dense=3, dropout=0.5)) == first, "another head has the same features"
    assert place(foundation(seed=1)) != first, "other weights have others"
    assert place(foundation(), "bfloat16") != first, "and so has another precision"
    foundation().save(tmp_path / "saved.keras")
    read = networks.load_keras().models.load_model(tmp_path / "saved.keras", compile=False)
    assert place(read) == first, "a saved network has the same"
    made = json.loads((arrays / "made.json").read_text())
    (arrays / "made.json").write_text(json.dumps({**made, "equalise": {"quality": 80}}))
    assert place(foundation()) != first, "other pixels have others"


def test_a_file_is_an_encoder(tmp_path: Path) -> None:
    networks.build("cnn", SIDE, {"width": 4}).save(tmp_path / "cnn.keras")
    network = networks.build("foundation", SIDE, {"encoder": str(tmp_path / "cnn.keras")})
    assert features.frozen(network)
    assert network.count_params() == networks.build("cnn", SIDE, {"width": 4}).count_params()
    with pytest.raises(StageError, match=r"cnn\.keras: sees images of \(16, 16, 3\); the candidate's view makes 32 px"):
        networks.build("foundation", 32, {"encoder": str(tmp_path / "cnn.keras")})
    with pytest.raises(StageError, match=r"none\.keras: no such encoder"):
        networks.build("foundation", SIDE, {"encoder": str(tmp_path / "none.keras")})


def test_a_network_that_joins_features_is_an_encoder(tmp_path: Path) -> None:
    style = networks.build("style", 32, {"weights": "none"})
    style.save(tmp_path / "style.keras")
    code = (
        "import sys\nfrom components import networks\n"
        "print(networks.build('foundation', 32, {'encoder': sys.argv[1]}).get_layer('features').output.shape[1])"
    )  # in a process that knows no layers of ours yet
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "style.keras")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split()[-1:] == ["4068"], done.stderr[-2000:]
    network = networks.build("foundation", 32, {"encoder": "style", "encoder_options": {"weights": "none"}})
    assert features.frozen(network) and features.split(network)[0].output.shape[1] == 4068


def test_a_fine_tuned_encoder_learns(tmp_path: Path) -> None:
    network = foundation(frozen=False)
    assert not features.frozen(network)
    encoder, _ = features.split(network)
    before = [weight.copy() for weight in encoder.get_weights()]
    network.compile("sgd", "mse")
    network.fit(pixels(4), np.ones((4, 1)), verbose=0)
    assert any((a != b).any() for a, b in zip(before, encoder.get_weights(), strict=True))


def test_wrong_settings_say_what_there_is() -> None:
    with pytest.raises(StageError, match=r"pooling is 'last'; it may be average or first"):
        foundation(pooling="last")
    with pytest.raises(StageError, match="has no tokens"):
        foundation(pooling="first")
    with pytest.raises(StageError, match="encoder_options belong to a network of cnn"):
        foundation(encoder="dinov2_base")


def test_without_keras_hub_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "keras_hub", None)
    with pytest.raises(StageError, match=r"dinov2_base .*pip install -e '.\[foundation\]'"):
        networks.build("foundation", SIDE, {"encoder": "dinov2_base"})


def test_a_folder_of_keras_hub_is_an_encoder(tmp_path: Path) -> None:
    import keras_hub

    encoder = keras_hub.models.ViTBackbone(
        image_shape=(SIDE, SIDE, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8
    )
    converter = keras_hub.layers.ViTImageConverter(image_size=(SIDE, SIDE), scale=[1 / 64] * 3, offset=[-2.0] * 3)
    encoder.save_to_preset(str(tmp_path / "vit"))
    keras_hub.models.ViTImageClassifierPreprocessor(image_converter=converter).save_to_preset(str(tmp_path / "vit"))
    # Its images are resized in the network where the view has another size.
    network = networks.build("foundation", 24, {"encoder": str(tmp_path / "vit"), "pooling": "first"})
    assert features.frozen(network)
    rescaling = next(layer for layer in network.layers if type(layer).__name__ == "Rescaling")
    assert (list(rescaling.scale), list(rescaling.offset)) == ([1 / 64] * 3, [-2.0] * 3)
    network.save(tmp_path / "network.keras")
    seen = pixels(3, 24)
    wanted = network.predict(seen, verbose=0)[:, 0]
    np.save(tmp_path / "seen.npy", seen)
    # In a process that has not imported keras-hub.
    call = ["network.keras", "24", "seen.npy", "network.onnx"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    module = [sys.executable, "-m", "components.detector.compile"]
    subprocess.run([*module, *call], cwd=tmp_path, env=environment, check=True)
    found = Network(tmp_path / "network.onnx").outputs({"pixels": seen})["logit"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(StageError, match="keras-hub can't load the encoder"):
        networks.build("foundation", 24, {"encoder": str(tmp_path)})


def test_the_published_mobilenet_tells_pictures_apart() -> None:
    folder = os.environ.get("TRUEFRAME_TEST_DATA")
    file = Path(folder or "", "weights/mobilenet_v2_1.0_224_no_top.weights.h5")
    if not folder or not file.exists():
        pytest.skip("TRUEFRAME_TEST_DATA has no weights/")
    options = {"encoder": "mobilenet", "encoder_options": {"weights": str(file)}}
    encoder, _ = features.split(networks.build("foundation", 96, options))
    assert encoder.output_shape == (None, 1280)
    flat = np.full((1, 96, 96, 3), 128, np.uint8)
    stripes = flat.copy()
    stripes[:, ::8] = 0
    found = encoder.predict(np.concatenate([flat, np.clip(flat.astype(int) + 2, 0, 255), stripes]), verbose=0)
    near, far = np.linalg.norm(found[0] - found[1]), np.linalg.norm(found[0] - found[2])
    assert near < far / 4
