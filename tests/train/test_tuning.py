"""Searching for settings, on the arrays of the training tests: real trials, a real database."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from components.params import Model, Range, Tune, Unfreeze
from components.stage import StageError
from components.train import train, tuning

MODEL = Model(network="cnn", view="16", options={"width": 4, "blocks": 2}, epochs=2, batch_size=32)
SPACE = {"learning_rate": Range(low=1e-4, high=0.05, log=True), "options.width": [4, 8]}


def search(arrays: tuple[Path, Path], folder: Path, trials: int, **space: object) -> dict[str, object]:
    return tuning.tune("tiny", MODEL, Tune(trials=trials, space=space or SPACE), *arrays, folder)


def test_it_finds_the_best_and_goes_on_where_it_was(
    arrays: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    search(arrays, tmp_path, 2)
    [parent] = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.stage = 'tune'", max_results=1, output_format="list"
    )
    below = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    children = mlflow.search_runs(search_all_experiments=True, filter_string=below, output_format="list")
    assert len(children) == 2, "each trial is a run below the search"
    assert all("val_loss" in child.data.metrics for child in children)
    capsys.readouterr()

    best = search(arrays, tmp_path, 3)
    said = capsys.readouterr().out
    assert "trial 2:" in said and "trial 1:" not in said
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert len(trials) == 3 == best["finished"] + best["pruned"]
    assert trials.loc[0, "params_learning_rate"] == MODEL.learning_rate, "the search starts from what is there"
    assert best["val_loss"] == trials.loc[trials["state"] == "COMPLETE", "value"].min()
    assert json.loads((tmp_path / "best.json").read_text()) == best
    assert (tmp_path / "history.png").stat().st_size > 1000


def test_bad_trials_are_pruned(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    best = search(arrays, tmp_path, 6, learning_rate=[0.001, 1e-8])
    trials = pd.read_csv(tmp_path / "trials.csv")
    pruned = trials[trials["state"] == "PRUNED"]
    assert best["pruned"] == len(pruned) > 0
    assert set(pruned["params_learning_rate"]) == {1e-8}


def test_a_trial_that_fails_does_not_end_the_search(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    best = search(arrays, tmp_path, 3, learning_rate=[0.001, 1e30])
    assert best["failed"] >= 1
    assert best["values"] == {"learning_rate": 0.001}


@pytest.mark.parametrize(
    ("space", "said"),
    [({"options.widht": [4]}, "widht"), ({"learning_rat": [1e-3]}, "learning_rat"), ({"flip": ["up"]}, "flip")],
)
def test_a_setting_that_does_not_exist_is_named(
    arrays: tuple[Path, Path], tmp_path: Path, space: dict[str, object], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        search(arrays, tmp_path, 1, **space)


def test_the_first_trial_is_what_params_yaml_says(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    """Outside of the space too, so that a search can't end with something worse."""
    best = search(arrays, tmp_path, 1, learning_rate=[1e-9], **{"options.width": [4, 8]})
    assert best["values"] == {"options.width": 4}
    plain = tmp_path / "plain"
    train("tiny", MODEL, *arrays, plain / "checkpoints", plain)
    assert pd.read_csv(plain / "history.csv")["val_loss"].min() == pytest.approx(best["val_loss"])


def test_of_the_usual_space_a_candidate_searches_what_it_has(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    seed = Model(network="seed-cnn32", view="16", freeze=[Unfreeze(epochs=1, learning_rate=0.001)])
    best = tuning.tune("tiny", seed, Tune(trials=3), *arrays, tmp_path)
    assert best["failed"] == 0
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert {name for name in trials.columns if name.startswith("params_")} == {
        "params_weight_decay",
        "params_label_smoothing",
    }
    with pytest.raises(StageError, match="learning_rate changes nothing"):
        tuning.tune("tiny", seed, Tune(space={"learning_rate": [0.1]}), *arrays, tmp_path)


def test_a_trial_at_work_on_another_machine_is_left_alone(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    import optuna

    shared = Tune(trials=1, space=SPACE, storage=f"sqlite:///{tmp_path}/shared.db")
    tuning.tune("tiny", MODEL, shared, *arrays, tmp_path / "one")
    [name] = optuna.get_all_study_names(shared.storage)
    study = optuna.load_study(study_name=name, storage=shared.storage)
    trial = study.ask()
    trial.set_user_attr("owner", "another machine's folder")
    tuning.tune("tiny", MODEL, shared.model_copy(update={"trials": 2}), *arrays, tmp_path / "two")
    study.tell(trial, 0.5)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "COMPLETE"]


def test_a_killed_search_takes_its_trial_up_again(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "ingest: {sources: {sample: {}}}\nvalidate: {}\npreprocess: {views: [16]}\nevaluate: {}\n"
        "train: {models: {tiny: {network: cnn, view: 16, options: {width: 4}, epochs: 400, patience: 400}}}\n"
        "tune: {trials: 1, space: {learning_rate: [0.001]}}\n"
    )
    places = ["--params", tmp_path / "params.yaml", "--index", arrays[0], "--arrays", arrays[1], "--out", tmp_path]
    command = [sys.executable, "-m", "components.train.tuning", "--model", "tiny", *map(str, places)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def until(word: str) -> str:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = ""
        deadline = time.monotonic() + 120
        for line in process.stdout:
            said += line
            if word in line or time.monotonic() > deadline:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return said

    assert "epoch 2/400" in until("epoch 2/400")
    said = until("epoch 4/400")
    assert "trial 0 was interrupted and is taken up again" in said
    assert "taken up again after epoch" in said
    assert "epoch 1/400" not in said
