"""Training on real, tiny arrays. Killing and resuming stands in tests/live."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from components import networks
from components.params import Augment, Model, Unfreeze
from components.stage import StageError
from components.train import State, train

MODEL = Model(
    network="cnn", view="16", options={"width": 4, "blocks": 2}, epochs=2, batch_size=16, augment=Augment(shift=1)
)


def fit(model: Model, arrays: tuple[Path, Path], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    train("tiny", model, *arrays, tmp_path / "checkpoints", out)
    return out


def test_it_learns_and_writes_what_it_says(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"epochs": 12, "learning_rate": 0.02, "patience": 12})
    out = fit(model, arrays, tmp_path)
    history = pd.read_csv(out / "history.csv")
    assert history["epoch"].tolist() == list(range(1, 13))
    assert history["val_balanced_accuracy"].max() > 0.9
    assert {p.name for p in out.iterdir()} == {"network.keras", "network.onnx", "history.csv", "training.json"}
    assert not (tmp_path / "checkpoints/tiny").exists(), "checkpoints of a finished training are removed"


def test_on_other_pixels_a_training_begins_anew(
    arrays: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(state: State) -> bool:
        raise KeyboardInterrupt

    def begin(equalise: object) -> str:
        (arrays[1] / "made.json").write_text(json.dumps({"maker": "this", "equalise": equalise, "shards": {}}))
        with pytest.raises(KeyboardInterrupt):
            train("tiny", MODEL, *arrays, tmp_path / "checkpoints", tmp_path / "out", stop=interrupt)
        return capsys.readouterr().out

    begin(None)
    assert "taken up again after epoch 1" in begin(None)
    assert "taken up again" not in begin({"side": 16, "quality": 90})


def test_two_trainings_give_the_same_network(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    keras = networks.load_keras()
    first, second = (
        keras.models.load_model(fit(MODEL, arrays, tmp_path / name) / "network.keras") for name in ("1", "2")
    )
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_several_crops_each_epoch_draws_one_the_same_every_time(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    index, folder = arrays
    for path in list(folder.glob("16/*/*.npy")):
        one = np.load(path)
        target = folder / "crop-16x3" / path.relative_to(folder / "16")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.stack([one, one + 1, one + 2], 1))
    networks.load_keras()
    from components.train.batches import LabelledBatches, Rows, drawn_crops

    rows = Rows(pd.read_parquet(index), folder, "crop-16x3")
    crops = drawn_crops(rows, 0, 4)
    assert crops is not None and set(crops) == {0, 1, 2}
    np.testing.assert_array_equal(crops, drawn_crops(rows, 0, 4))
    order = np.arange(len(rows))
    drawn, first = (LabelledBatches(rows, 96, order, drawn)[0][0][0] for drawn in (crops, None))
    np.testing.assert_array_equal(drawn, first + crops[:, None, None, None].astype(np.uint8))
    model = MODEL.model_copy(update={"view": "crop-16x3"})
    assert (fit(model, arrays, tmp_path) / "network.keras").exists()


def test_early_stopping_keeps_the_best_epoch(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"epochs": 30, "learning_rate": 0.05, "patience": 2})
    history = pd.read_csv(fit(model, arrays, tmp_path) / "history.csv")
    best = history["val_loss"].idxmin()
    assert len(history) < 30
    assert len(history) - 1 - best == 2


def test_a_loss_that_is_no_number_stops_with_a_reason(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"learning_rate": 1e38, "weight_decay": 0.0, "epochs": 5, "patience": 5})
    with pytest.raises(StageError, match=r"not a number.*train\.models\.tiny\.learning_rate"):
        fit(model, arrays, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_order_belongs_to_its_epoch() -> None:
    networks.load_keras()
    from components.train.batches import drawn

    assert sorted(drawn(50, 7, 3)) == list(range(50))
    np.testing.assert_array_equal(drawn(50, 7, 3), drawn(50, 7, 3))
    assert not np.array_equal(drawn(50, 7, 3), drawn(50, 7, 4))


def test_rows_come_from_their_shards(arrays: tuple[Path, Path]) -> None:
    networks.load_keras()
    from components.train.batches import Rows

    index = pd.read_parquet(arrays[0])
    index = index[index["split"] == "train"]
    which = np.array([40, 3, 3, 20])
    found = Rows(index, arrays[1], "16").pixels(which)
    for pixels, (_, row) in zip(found, index.iloc[which].iterrows(), strict=True):
        np.testing.assert_array_equal(pixels, np.load(arrays[1] / f"16/{row['shard']}.npy")[row["row"]])


def test_a_lost_loss_ends_the_training_within_steps(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"learning_rate": 1e38, "weight_decay": 0.0, "batch_size": 1, "warmup": 0.0})
    with pytest.raises(StageError, match=r"epoch 1, step ([1-9]|[1-5]\d);"):  # of 60
        fit(model, arrays, tmp_path)


@pytest.mark.parametrize(
    ("split", "label", "said"), [("validation", "ai", "validation"), ("train", "real", "training")]
)
def test_a_training_without_images_of_a_class_is_refused(
    arrays: tuple[Path, Path], tmp_path: Path, split: str, label: str, said: str
) -> None:
    index = pd.read_parquet(arrays[0])
    index[(index["split"] != split) | (index["label"] != label)].to_parquet(arrays[0])
    with pytest.raises(StageError, match=rf"tiny: no {said} image is labelled {label}; ingest"):
        fit(MODEL, arrays, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


EVERYTHING = Augment.model_validate(
    {
        **dict.fromkeys(("colour", "rescale", "blur", "noise", "jpeg", "mixup", "cutmix"), 0.3),
        **{"rotate": 10, "zoom": 0.1, "ramp": 0.5},
    }
)
ENCODER = {"encoder": "cnn", "encoder_options": {"width": 4, "blocks": 2}}
PHASES = [
    Unfreeze(epochs=1, learning_rate=0.01),
    Unfreeze(epochs=2, learning_rate=0.005, unfreeze_from=4),
    Unfreeze(epochs=1, learning_rate=0.001, unfreeze_from=0),
]


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": EVERYTHING, "average": 0.9, "epochs": 2},
        {"freeze": PHASES, "optimizer": "sgd", "average": 0.8},
        {"network": "foundation", "options": ENCODER, "average": 0.8},
        {"optimizer": "muon", "average": 0.8},
    ],
    ids=["augmented and averaged", "in phases", "on features", "with Muon"],
)
def test_a_training_that_was_ended_goes_on_as_if_it_had_not_been(
    arrays: tuple[Path, Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    model = MODEL.model_copy(update=changes)
    whole = fit(model, arrays, tmp_path / "whole")
    rows = pd.read_csv(whole / "history.csv")

    class Ended(Exception):
        pass

    def end(state: State) -> bool:
        raise Ended

    for _ in range(len(rows)):
        with pytest.raises(Ended):
            train("tiny", model, *arrays, tmp_path / "parts/checkpoints", tmp_path / "parts/out", stop=end)
        networks.load_keras().backend.clear_session()
    parts = fit(model, arrays, tmp_path / "parts")
    timing = ["images_per_second"]
    pd.testing.assert_frame_equal(rows.drop(columns=timing), pd.read_csv(parts / "history.csv").drop(columns=timing))
    keras = networks.load_keras()
    first, second = (keras.models.load_model(folder / "network.keras") for folder in (whole, parts))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_head_learns_on_features_that_are_kept(
    arrays: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keras = networks.load_keras()
    model = MODEL.model_copy(
        update={"network": "foundation", "options": ENCODER, "epochs": 15, "learning_rate": 0.1, "patience": 15}
    )
    out = fit(model, arrays, tmp_path / "one")
    assert "features are computed once an image" in capsys.readouterr().out
    history = pd.read_csv(out / "history.csv")
    best = history.loc[history["val_loss"].idxmin(), "val_balanced_accuracy"]
    assert best > 0.7, "features of random weights, and yet better than chance"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")}
    assert [path.relative_to(path.parents[1]).as_posix() for path in sorted(kept)] == [
        "one/a-00000.npy",
        "two/b-00000.npy",
    ]

    # The saved network is whole, from pixels to logits, and gives on them what its head learned on features.
    saved = keras.models.load_model(out / "network.keras")
    index = pd.read_parquet(arrays[0])
    held = index[index["split"] == "validation"]
    pixels = np.concatenate(
        [np.load(arrays[1] / f"16/{shard}.npy")[part["row"]] for shard, part in held.groupby("shard")]
    )
    right = (saved.predict(pixels, verbose=0)[:, 0] > 0) == (held["label"] == "ai").to_numpy()
    assert right.mean() == pytest.approx(best, abs=0.05)  # one of 24 may lie on the border
    keras.utils.set_random_seed(model.seed)
    untouched = networks.build("foundation", 16, ENCODER)
    for trained, new in list(zip(saved.layers, untouched.layers, strict=True))[:-2]:  # up to dropout and logit
        for a, b in zip(trained.get_weights(), new.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    # Another head needs no image.
    fit(model.model_copy(update={"options": {**ENCODER, "dense": 4}, "epochs": 1}), arrays, tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")} == kept

    # With phases of its own, the encoder learns from augmented images as any other.
    (tmp_path / "features").rename(tmp_path / "before")
    fit(model.model_copy(update={"freeze": [Unfreeze(epochs=1, learning_rate=0.01)]}), arrays, tmp_path / "three")
    assert not (tmp_path / "features").exists()


def test_only_what_is_unfrozen_changes() -> None:
    network = networks.build("cnn", 16, {"width": 4, "blocks": 2})
    names = [layer.name for layer in network.layers]
    convolutions = [number for number, name in enumerate(names) if name.startswith("conv")]
    networks.unfreeze(network, convolutions[-1])
    assert {layer.name for layer in network.layers if layer.trainable and layer.weights} == {
        *names[convolutions[-1] : convolutions[-1] + 2],
        "logit",
    }
    networks.unfreeze(network, None)
    assert [w.path.split("/")[0] for w in network.trainable_weights] == ["logit", "logit"]
    networks.unfreeze(network, 0)
    assert all(layer.trainable for layer in network.layers)
    nothing_to_keep = networks.build("mobilenet", 32, {"alpha": 0.35, "weights": "none"})
    networks.unfreeze(nothing_to_keep, None)
    assert nothing_to_keep.get_layer("Conv1").trainable
    keras = networks.load_keras()
    inputs = keras.Input((4,))
    with pytest.raises(StageError, match="`features`"):
        networks.unfreeze(keras.Model(inputs, keras.layers.Dense(1)(inputs), name="other"), 0)


def test_an_average_has_its_own_batch_statistics(arrays: tuple[Path, Path]) -> None:
    """They are the mean over the batches of what its own weights give, and the weights come back after it."""
    keras = networks.load_keras()
    from components.train.batches import LabelledBatches, Rows
    from components.train.learner import averaged, compiled

    model = MODEL.model_copy(update={"average": 0.5, "augment": Augment(flip=False, shift=0), "learning_rate": 0.05})
    index = pd.read_parquet(arrays[0])
    rows = Rows(index, arrays[1], "16")
    batches = LabelledBatches(rows, 16, np.arange(len(rows)))
    network = networks.build("cnn", 16, {"width": 4, "blocks": 1, "dropout": 0.0})
    learner = compiled(network, model, 16, len(batches), model.phases[0])
    learner.fit(batches, shuffle=False, verbose=0)
    raw = [np.array(value) for value in network.get_weights()]
    with averaged(learner, batches):
        first = next(layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
        before = keras.Model(network.input, first.input)
        seen = [keras.ops.convert_to_numpy(before(batches[i][0][0].astype("float32"))) for i in range(len(batches))]
        np.testing.assert_allclose(
            first.moving_mean, np.mean([x.mean((0, 1, 2)) for x in seen], 0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(first.moving_variance, np.mean([x.var((0, 1, 2)) for x in seen], 0), rtol=1e-3)
        assert not np.array_equal(network.get_weights()[0], raw[0])
    for value, kept in zip(network.get_weights(), raw, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_a_full_disk_is_said_and_the_training_goes_on_later(
    arrays: tuple[Path, Path], tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk isn't allowed here: {done.stderr.strip()}")
    try:
        settings = yaml.safe_load((Path(__file__).parents[2] / "presets/sample.yaml").read_text())
        settings["preprocess"]["views"] = [16]
        settings["train"]["models"] = {"tiny": MODEL.model_copy(update={"epochs": 3}).model_dump()}
        call = ["train", "--model", "tiny", "--index", str(arrays[0]), "--arrays", str(arrays[1])]
        call += ["--checkpoints", str(folder / "checkpoints"), "--out", str(tmp_path / "out")]
        filler = folder / "filler"
        filler.write_bytes(bytes(70_000))
        full = command(*call, params=settings)
        assert full.returncode == 1
        last = full.stderr.splitlines()[-1]
        assert last.startswith(f"error: {folder}/checkpoints/tiny/") and "disk full" in last
        assert "run the same command again" in last
        filler.unlink()
        again = command(*call, params=settings)
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "out/network.keras").exists()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_it_starts_from_the_weights_of_another(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    keras = networks.load_keras()
    before = fit(MODEL, arrays, tmp_path / "before") / "network.keras"
    still = MODEL.model_copy(update={"start": str(before), "epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    after = fit(still, arrays, tmp_path / "after") / "network.keras"
    one, other = (keras.models.load_model(path, compile=False) for path in (before, after))
    for a, b in zip(one.trainable_variables, other.trainable_variables, strict=True):
        assert np.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("width", "said"), [(8, "can't be the start of a cnn"), (None, "no saved network")])
def test_a_start_that_does_not_fit_is_refused(
    arrays: tuple[Path, Path], tmp_path: Path, width: int | None, said: str
) -> None:
    start = tmp_path / "start.keras"
    if width:
        networks.build("cnn", 16, {"width": width, "blocks": 2}).save(start)
    with pytest.raises(StageError, match=said):
        fit(MODEL.model_copy(update={"start": str(start)}), arrays, tmp_path)


def test_fused_normalisation_is_keras_own() -> None:
    keras = networks.load_keras()
    from components.train.precision import fuse_normalisation

    pixels = np.random.default_rng(0).normal(100, 40, (8, 5, 4, 3)).astype(np.float32)
    results = []
    for fused in (False, True):
        inputs = keras.Input((5, 4, 3))
        layer = keras.layers.BatchNormalization(momentum=0.7)
        network = keras.Model(inputs, layer(inputs))
        usual = layer.call
        if fused:
            fuse_normalisation(network)
        assert (layer.call != usual) == fused
        outputs = network(pixels, training=True), network(pixels)
        results.append([keras.ops.convert_to_numpy(x) for x in (*outputs, layer.moving_mean, layer.moving_variance)])
        layer.trainable = False  # frozen, it takes its statistics as they are
        np.testing.assert_allclose(network(pixels, training=True), outputs[1], rtol=1e-5, atol=1e-5)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
