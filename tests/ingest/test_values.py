"""What the values of a table's label column mean, and what is asked where nothing says it."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components import ingest, params
from components.folders import LeftOut
from components.ingest import catalogue, rows
from components.ingest.source import Place
from components.params import Ingest, Source
from components.stage import StageError

Read = Callable[..., list[str]]
NAME = "data/train-0.parquet"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a label column to a file, and read back what each row is."""

    def run(
        values: Any,
        source: dict[str, Any] | None = None,
        names: Any = None,
        card: Any = None,
        name: str = NAME,
        source_name: str = "mine",
    ) -> list[str]:
        said = Source.model_validate(source or {})
        labels = values if isinstance(values, pa.Array) else pa.array(values)
        column = said.columns.label if said.columns else "label"
        table = pa.table({"image": [b"x"] * len(labels), column: labels})
        if names:
            features = {column: {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / "rows.parquet")
        (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# About\n" if card else "# About\n")
        settings = Ingest.model_validate({"sources": {source_name: said}})
        entry = ingest._entry(source_name, said)
        place = Place(source_name, "folder", entry, said, settings, tmp_path / "downloads")
        found = rows.items(tmp_path / "rows.parquet", name, place, lambda: tmp_path / "README.md")
        return [item.reason if isinstance(item, LeftOut) else item.label for item in found]

    return run


def asked(read: Read, *arguments: Any, **keywords: Any) -> tuple[str, list[Source]]:
    """The one line that a column without a meaning gives, and the settings that its answers are when pasted."""
    with pytest.raises(StageError) as caught:
        read(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message, [pasted(answer) for answer in message.split("`")[3::2]]


def pasted(answer: str) -> Source:
    text = f"""
ingest:
  sources:
    {answer}
validate: {{}}
preprocess: {{views: [32]}}
train: {{models: {{small: {{network: cnn, view: 32}}}}}}
evaluate: {{}}
"""
    path = Path("params.yaml")
    path.write_text(text)
    [source] = params.load(path).ingest.sources.values()
    return source


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def card_of(names: Any, column: str = "label") -> dict[str, Any]:
    feature = {"name": column, "dtype": {"class_label": {"names": names}}}
    return {"dataset_info": {"features": [{"name": "image", "dtype": "image"}, feature]}}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["FAKE", "Real"], ["ai", "real"]),
        (["synthetic", "human"], ["ai", "real"]),
        ([" fake ", "non_ai"], ["ai", "real"]),
        ([b"fake", b"real"], ["ai", "real"]),
        (pa.array(["fake", "real"]).dictionary_encode(), ["ai", "real"]),
    ],
)
def test_the_usual_words_are_understood(read: Read, values: Any, labels: list[str]) -> None:
    assert read(values) == labels


@pytest.mark.parametrize("column", ["label", "is_real", "real", "is_ai", "fake"])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 0]),
        pa.array([1, 0], pa.int8()),
        pa.array([1, 0], pa.uint8()),
        pa.array([1.0, 0.0]),
        pa.array([Decimal("1.00"), Decimal("0.00")]),
        pa.array([True, False]),
        pa.array(["1", "0"]),
        pa.array(["1", "0"]).dictionary_encode(),
        pa.array(["true", "false"]),
        pa.array(["True", "False"]),
        pa.array(["yes", "no"]),
        pa.array([b"1", b"0"]),
    ],
    ids=str,
)
def test_numbers_and_booleans_are_asked_for_and_never_guessed(read: Read, values: pa.Array, column: str) -> None:
    """Either answer, put into params.yaml as it stands, works."""
    source = {"from": "hf://me/pets", "max_images": 9, "columns": {"label": column}}
    message, answers = asked(read, values, source)
    assert message.startswith(f"{NAME}: column {column} holds ")
    assert [read(values, answer.model_dump(by_alias=True)) for answer in answers] == [["ai", "real"], ["real", "ai"]]
    for answer in answers:
        assert (answer.from_, answer.max_images) == ("hf://me/pets", 9)


def test_the_question_in_full(read: Read) -> None:
    message, _ = asked(read, [True, False], {"from": "hf://me/pets", "columns": {"label": "is_real"}})
    assert message == (
        "data/train-0.parquet: column is_real holds False, True, and nothing says for sure whether False, True is ai "
        "or real. Look it up, then write what is true under `ingest: sources:` in params.yaml: "
        "`mine: {from: 'hf://me/pets', columns: {label: is_real, values: {false: real, true: ai}}}` or "
        "`mine: {from: 'hf://me/pets', columns: {label: is_real, values: {false: ai, true: real}}}`"
    )


def test_a_file_that_holds_one_value_is_asked_for_both(read: Read) -> None:
    for values, labels in (([1, 1], ["ai", "real"]), ([False], ["real", "ai"])):
        _, answers = asked(read, values)
        assert [read(values, answer.model_dump())[0] for answer in answers] == labels
        for answer in answers:
            assert set(answer.columns.values.values()) == {"ai", "real"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "values",
    [
        "{0: real, 1: ai}",
        "{'0': real, '1': ai}",
        "{0.0: real, 1.0: ai}",
        "{false: real, true: ai}",
        "{no: real, yes: ai}",
    ],
)
@pytest.mark.parametrize("column", [[0, 1], [0.0, 1.0], [False, True], ["0", "1"], ["No", "YES"], ["false", "true"]])
def test_what_yaml_makes_of_a_key_is_the_value(read: Read, values: str, column: list[Any]) -> None:
    assert read(column, {"columns": {"values": yaml.safe_load(values)}}) == ["real", "ai"]
    assert read(column[:1], {"columns": {"values": yaml.safe_load(values)}}) == ["real"]


def test_more_values_than_two(read: Read) -> None:
    said = {"columns": {"values": {0: "ai", 1: "real", 2: "real", 7: "ai"}}}
    assert read([0, 1, 2], said) == ["ai", "real", "real"]
    _, answers = asked(read, [3, 1, 2])
    assert [read([3, 1, 2], answer.model_dump()) for answer in answers] == [
        ["ai", "real", "ai"],
        ["real", "ai", "real"],
    ]
    message, [first, second] = asked(read, [0, 1], {"columns": {"values": {1: "ai"}}})
    assert "whether 0 is ai or real" in message
    assert (read([0, 1], first.model_dump()), read([0, 1], second.model_dump())) == (["real", "ai"], ["ai", "ai"])


def test_what_has_no_label_is_left_out_where_the_settings_say_so(read: Read) -> None:
    for values in ([0, 1, None], [0, 1, -1], ["0", "1", None], [0.0, 1.0, float("nan")]):
        _, answers = asked(read, values)
        said = [read(values, answer.model_dump()) for answer in answers]
        assert said == [["real", "ai", "no label"], ["ai", "real", "no label"]]
    message, [answer] = asked(read, ["fake", None, "real"])
    assert "whether None is ai or real" in message
    assert read(["fake", None, "real"], answer.model_dump()) == ["ai", "no label", "real"]
    assert read([None, "fake"], {"columns": {"values": {None: "real"}}}) == ["real", "ai"]


@pytest.mark.parametrize("where", ["file", "card"])
@pytest.mark.parametrize("as_map", [False, True])
def test_the_names_of_classes_count_and_not_their_numbers(read: Read, where: str, as_map: bool) -> None:
    def told(*words: Any) -> dict[str, Any]:
        if where == "file":
            return {"names": words}
        return {"card": card_of({str(n): word for n, word in enumerate(words)} if as_map else list(words))}

    assert read([0, 1], **told("AiArtData", "RealArt")) == ["ai", "real"]
    assert read([0, 1], **told("real", "fake")) == ["real", "ai"]
    assert read(["1", "0"], **told("real", "fake")) == ["ai", "real"]
    assert read([False, True], **told("fake", "real")) == ["ai", "real"]
    assert read([0, 1], {"columns": {"values": {"cat": "ai", "dog": "real"}}}, **told("cat", "dog")) == ["ai", "real"]
    assert read([0, 1], {"columns": {"values": {"drawn": "real"}}}, **told("synthetic", "drawn")) == ["ai", "real"]
    assert read([0, 1], {"columns": {"values": {0: "real", 1: "ai"}}}, **told("fake", "real")) == ["real", "ai"]

    message, answers = asked(read, [0], **told("training_fake", "training_real"))
    assert "column label holds 0 ('training_fake'), and nothing says for sure whether 0 is" in message
    assert [read([0, 1], answer.model_dump(), **told("training_fake", "training_real")) for answer in answers] == [
        ["real", "ai"],
        ["ai", "real"],
    ]
    for number in (["0", "1"], ["no", "yes"], ["False", "True"], ["class_0", "class_1"]):
        _, answers = asked(read, [0, 1], **told(*number))
        assert [read([0, 1], answer.model_dump(), **told(*number)) for answer in answers] == [
            ["real", "ai"],
            ["ai", "real"],
        ]
    # Where numbers name each other, the settings mean those in the column.
    assert read([0, 1], {"columns": {"values": {1: "ai", 0: "real"}}}, **told("1", "0")) == ["real", "ai"]


def test_a_file_and_a_card_that_contradict_each_other_are_asked_about(read: Read) -> None:
    said: dict[str, Any] = {"names": ["fake", "real"], "card": card_of(["real", "fake"])}
    message, answers = asked(read, [0, 1], **said)
    assert "holds 0 ('fake' or 'real'), 1 ('real' or 'fake')" in message
    assert [read([0, 1], answer.model_dump(), **said) for answer in answers] == [["real", "ai"], ["ai", "real"]]
    # Other words for the same, or words for nothing, are no contradiction.
    assert read([0, 1], names=["fake", "real"], card=card_of(["ai", "human"])) == ["ai", "real"]
    assert read([0, 1], names=["0", "1"], card=card_of(["ai", "human"])) == ["ai", "real"]


def test_of_a_card_with_several_configurations_the_file_s_own_counts(read: Read) -> None:
    infos = [
        card_of(names)["dataset_info"] | {"config_name": name}
        for name, names in {"small": ["fake", "real"], "large": ["real", "fake"]}.items()
    ]
    configs = [
        {"config_name": "small", "data_files": "small/*.parquet"},
        {"config_name": "large", "data_files": [{"split": "train", "path": ["large/train-*"]}]},
    ]
    card = {"dataset_info": infos, "configs": configs}
    assert read([0, 1], card=card, name="small/0.parquet") == ["ai", "real"]
    assert read([0, 1], card=card, name="large/train-0.parquet") == ["real", "ai"]
    message, _ = asked(read, [0, 1], card=card, name="other/0.parquet")
    assert "0 ('fake' or 'real')" in message
    same = {"dataset_info": [infos[0], infos[0] | {"config_name": "more"}]}
    assert read([0, 1], card=same) == ["ai", "real"]


@pytest.mark.parametrize(
    "head",
    [
        "no head",
        "---\n: [\n---\n",
        "---\n- a list\n---\n",
        "---\ndataset_info: words\nconfigs: 7\n---\n",
        "---\ndataset_info: {features: [7, {name: label}, {name: label, dtype: int64}]}\n---\n",
        "---\ndataset_info: {features: [{name: label, dtype: {class_label: {names: 7}}}]}\n---\n",
        "---\ndataset_info: {features: [{name: label, dtype: {class_label: {names: }}}]}\n---\n",
        "---\ndataset_info: {features: [{name: other, dtype: {class_label: {names: [fake, real]}}}]}\n---\n",
    ],
)
def test_a_card_that_does_not_say_it_is_as_none(read: Read, tmp_path: Path, head: str) -> None:
    with pytest.raises(StageError):
        read([0, 1])
    (tmp_path / "README.md").write_text(head)
    source = Source()
    place = Place("mine", "folder", catalogue.Entry(), source, Ingest(sources={"mine": source}), tmp_path)
    with pytest.raises(StageError, match="column label holds 0, 1, and nothing says"):
        list(rows.items(tmp_path / "rows.parquet", NAME, place, lambda: tmp_path / "README.md"))


def test_a_column_that_is_hardly_the_label(read: Read) -> None:
    for values in ([f"a picture\nof {n} foxes" for n in range(50)], list(range(50)), [[0, 1], [1, 0]] * 30):
        with pytest.raises(StageError) as caught:
            read(values)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 1500
        if len(set(map(str, values))) > 2:
            assert "name the right column under `columns: {label: …}` of the source mine" in message


def test_one_hot_labels_and_texts_with_lines_can_be_answered(read: Read) -> None:
    for values in ([[0, 1], [1, 0]], ["a\nb", "c: {d}"], [0.25, 0.75], ["#", "`x`"]):
        with pytest.raises(StageError) as caught:
            read(values)
        answer = str(caught.value).split("in params.yaml: `")[1].split("` or `mine:")[0]
        assert sorted(read(values, pasted(answer).model_dump())) == ["ai", "real"]


def test_a_value_that_is_said_twice_is_refused(read: Read) -> None:
    with pytest.raises(StageError, match="of the source mine says two things of yes; true, yes and 1 are the same"):
        read([1, 0], {"columns": {"values": {"1": "ai", "yes": "real"}}})
    assert read([1, 0], {"columns": {"values": {"1": "ai", "yes": "ai", 0: "real"}}}) == ["ai", "real"]


def test_an_answer_keeps_what_the_catalogue_says_of_the_other_columns(read: Read) -> None:
    entry = catalogue.load()["community-forensics-small"]
    assert entry.columns
    for name, known in catalogue.load().items():
        if known.columns and not known.label:
            said = set(known.columns.values)
            assert said >= {"0", "1"} or said >= {"real", "fake"}, f"{name} has to say what its values mean"
    table = pa.table({"image_data": [b"x"], "label": [2], "image_name": ["a"], "model_name": ["m"], "split": ["train"]})
    pq.write_table(table, "rows.parquet")
    source = Source()
    place = Place("community-forensics-small", "", entry, source, Ingest(sources={"x": source}), Path("downloads"))
    with pytest.raises(StageError) as caught:
        list(rows.items(Path("rows.parquet"), NAME, place))
    message = str(caught.value)
    assert "Look it up at https://huggingface.co/datasets/OwensLab/CommunityForensics-Small, then" in message
    answer = pasted(message.split("`")[3])
    assert answer.columns == entry.columns.model_copy(update={"values": {"1": "ai", "0": "real", "2": "real"}})
