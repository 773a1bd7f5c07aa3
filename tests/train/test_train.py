"""Training on real, tiny arrays. Killing and resuming stands in tests/live."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components import networks
from components.params import Model
from components.stage import StageError
from components.train import train

MODEL = Model(network="cnn", view="16", options={"width": 4, "blocks": 2}, epochs=2, batch_size=16, shift=1)


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
    assert {p.name for p in out.iterdir()} == {"network.keras", "history.csv", "training.json"}
    assert not (tmp_path / "checkpoints/tiny").exists(), "checkpoints of a finished training are removed"


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
    from components.train.batches import Batches, Rows, drawn_crops

    rows = Rows(pd.read_parquet(index), folder, "crop-16x3")
    crops = drawn_crops(rows, 0, 4)
    assert crops is not None and set(crops) == {0, 1, 2}
    np.testing.assert_array_equal(crops, drawn_crops(rows, 0, 4))
    order = np.arange(len(rows))
    drawn, first = Batches(rows, 96, order, crops)[0][0], Batches(rows, 96, order)[0][0]
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
    model = MODEL.model_copy(update={"learning_rate": 1e30, "weight_decay": 0.0, "epochs": 5, "patience": 5})
    with pytest.raises(StageError, match=r"not a number.*train\.models\.tiny\.learning_rate"):
        fit(model, arrays, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_order_belongs_to_its_epoch() -> None:
    networks.load_keras()
    from components.train.batches import shuffled

    assert sorted(shuffled(50, 7, 3)) == list(range(50))
    np.testing.assert_array_equal(shuffled(50, 7, 3), shuffled(50, 7, 3))
    assert not np.array_equal(shuffled(50, 7, 3), shuffled(50, 7, 4))


def test_rows_come_from_their_shards(arrays: tuple[Path, Path]) -> None:
    networks.load_keras()
    from components.train.batches import Rows

    index = pd.read_parquet(arrays[0])
    index = index[index["split"] == "train"]
    which = np.array([40, 3, 3, 20])
    found = Rows(index, arrays[1], "16").pixels(which)
    for pixels, (_, row) in zip(found, index.iloc[which].iterrows(), strict=True):
        np.testing.assert_array_equal(pixels, np.load(arrays[1] / f"16/{row['shard']}.npy")[row["row"]])
