"""Settings: the presets load, and a mistake is named where it stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import params
from components.stage import StageError

PRESETS = Path(__file__).parents[1] / "presets"
MINIMAL: dict[str, Any] = {
    "ingest": {"sources": {"mine": {"from": "here"}}},
    "preprocess": {"views": [32, "crop-16"]},
    "train": {"models": {"small": {"network": "cnn", "view": 32}}},
    "validate": {},
    "evaluate": {},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """`MINIMAL` with one more setting, `a.b.c`."""
    settings = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, last = path.split(".")
    node = settings
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return settings


def refusal(folder: Path, text: str) -> str:
    """The message with which a file of this text is refused."""
    path = folder / "params.yaml"
    path.write_text(text)
    with pytest.raises(StageError) as caught:
        params.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("path", sorted(PRESETS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_preset_loads(path: Path) -> None:
    settings = params.load(path)
    assert settings.ingest.sources.keys() == yaml.safe_load(path.read_text())["ingest"]["sources"].keys()
    for model in settings.train.models.values():
        assert model.view in settings.preprocess.views


def test_the_presets_of_the_catalogue_are_here() -> None:
    assert {"sample", "cifake", "art", "photos"} <= {path.stem for path in PRESETS.glob("*.yaml")}


def test_a_network_that_does_not_exist_is_named_before_anything_runs(tmp_path: Path) -> None:
    said = refusal(tmp_path, yaml.safe_dump(changed("train.models.small.network", "cnnn")))
    assert said.startswith("train.models.small: no network is called 'cnnn'; there are cnn, ")
    said = refusal(tmp_path, yaml.safe_dump(changed("train.models.small.options", {"wdth": 8})))
    assert said == "train.models.small: network cnn has no option 'wdth'; it has width, blocks, dropout"


def test_settings_that_are_left_out_get_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    settings = params.load(path)
    assert settings.preprocess.views == ["32", "crop-16"]  # a bare number is a view too
    assert settings.ingest.sources["mine"].from_ == "here"
    assert (settings.validate_.min_images, settings.register_.model) == (100, "trueframe")


@pytest.mark.parametrize(
    ("key", "guess", "section"),
    [
        ("validate.min_image", "min_images", params.Validate),
        ("train.models.small.learning_rte", "learning_rate", params.Model),
        ("ingest.sources.mine.form", "from", params.Source),
        ("evalute", "evaluate", params.Params),
    ],
)
def test_an_unknown_key_is_named_with_what_is_allowed(
    tmp_path: Path, key: str, guess: str, section: type[params.Section]
) -> None:
    message = refusal(tmp_path, yaml.safe_dump(changed(key, 1)))
    assert message.startswith(f"unknown key {key} (did you mean {guess}? allowed: {keys(section)})")


def keys(section: type[params.Section]) -> str:
    return ", ".join(sorted(field.alias or name for name, field in section.model_fields.items()))


def test_an_unknown_key_like_no_other_gets_no_guess(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(changed("preprocess.zzz", 1)))
    assert message == f"unknown key preprocess.zzz (allowed: {keys(params.Preprocess)})"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("validate.min_images", "many", "integer"),
        ("validate.min_images", 0, "greater than or equal to 1"),
        ("validate.near_distance", 8, "less than or equal to 7"),
        ("preprocess.test", 1.5, "less than or equal to 1"),
        ("preprocess.views", [], "at least 1 item"),
        ("ingest.shard_images", 2.5, "integer"),
        ("ingest.sources.mine.labels.cats", "cat", "'ai' or 'real'"),
        ("train.models.small.augment.flip", "perhaps", "boolean"),
        ("train.models.small.precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("register.metric", "speed", "'balanced_accuracy'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: object, reason: str) -> None:
    message = refusal(tmp_path, yaml.safe_dump(changed(key, value)))
    assert message.startswith(f"{key} is {value!r}: ")
    assert reason in message


def test_a_view_that_is_none_is_named(tmp_path: Path) -> None:
    assert "preprocess.views.0 is 'crop32'" in refusal(
        tmp_path, yaml.safe_dump(changed("preprocess.views", ["crop32"]))
    )


def test_a_model_s_name_that_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    model = {"network": "cnn", "view": 32}
    message = refusal(tmp_path, yaml.safe_dump(changed("train.models.My Model", model)))
    assert message.startswith("train.models.My Model is 'My Model': string should match pattern")


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    settings = changed("validate.min_images", 0)
    settings["train"]["models"]["small"]["epoch"] = 3
    message = refusal(tmp_path, yaml.safe_dump(settings))
    assert "validate.min_images is 0" in message
    assert "unknown key train.models.small.epoch (did you mean epochs?" in message


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    settings = {name: section for name, section in MINIMAL.items() if name != "train"}
    assert refusal(tmp_path, yaml.safe_dump(settings)) == "train is missing"


def test_a_view_that_preprocess_does_not_make_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(changed("train.models.small.view", "crop-32")))
    assert message == "train.models.small.view is crop-32, which preprocess.views (32, crop-16) doesn't make"


def test_splits_that_leave_nothing_for_training_are_refused(tmp_path: Path) -> None:
    settings = changed("preprocess.test", 0.5) | {"preprocess": {"views": [32], "test": 0.5, "validation": 0.5}}
    assert "leave less than a tenth for training" in refusal(tmp_path, yaml.safe_dump(settings))


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none\.yaml: not here; `trueframe use sample` writes one"):
        params.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["ingest: [", "a: b: c", "\tingest: {}"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text).startswith("not YAML: ")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list"])
def test_yaml_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(
        f"the file is {yaml.safe_load(text)!r}, not a section; it has the keys engine, evaluate, ingest, "
    )


def test_a_value_in_place_of_a_section_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(changed("preprocess", 64)))
    assert message == f"preprocess is 64, not a section; it has the keys {keys(params.Preprocess)}"


@pytest.mark.parametrize("data", [b"ingest: \xff\xfe", b"\x00\x01"], ids=["no UTF-8", "binary"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(StageError, match="not YAML"):
        params.load(path)


def test_a_typo_stops_a_command_with_one_line(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("validate", params=changed("validate.min_imges", 5))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: params.yaml: unknown key validate.min_imges (did you mean min_images?")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("ensembles", "reason"),
    [
        ({"both": ["small"]}, "train.ensembles.both"),
        (
            {"both": ["small", "large"]},
            "train.ensembles.both names 'large', which train.models (small, wide) doesn't have",
        ),
        ({"both": ["small", "small"]}, "train.ensembles.both names a model twice"),
        ({"small": ["small", "wide"]}, "train.ensembles.small has the name of a model"),
    ],
)
def test_an_ensemble_has_two_models_or_more_that_exist(tmp_path: Path, ensembles: dict, reason: str) -> None:
    settings = changed("train.models.wide", {"network": "cnn", "view": 32})
    settings["train"]["ensembles"] = ensembles
    assert reason in refusal(tmp_path, yaml.safe_dump(settings))


def test_candidates_are_the_models_and_after_them_the_ensembles(tmp_path: Path) -> None:
    settings = changed("train.models.wide", {"network": "cnn", "view": 32})
    settings["train"]["ensembles"] = {"both": ["wide", "small"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    found = params.load(tmp_path / "params.yaml").train.candidates
    assert list(found.items()) == [("small", ["small"]), ("wide", ["wide"]), ("both", ["wide", "small"])]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tune.storage", "postgresql://me:hunter22@db/optuna"),
        ("ingest.sources", {"web": {"from": "https://me:hunter22@example.org/list"}}),
    ],
)
def test_a_password_does_not_belong_here(tmp_path: Path, path: str, value: object) -> None:
    said = refusal(tmp_path, yaml.safe_dump(changed(path, value)))
    assert path in said and "holds a password" in said and "hunter22" not in said


def test_an_address_without_a_password_does(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed("tune.storage", "postgresql://db/optuna")))
    assert params.load(tmp_path / "params.yaml").tune.storage == "postgresql://db/optuna"
