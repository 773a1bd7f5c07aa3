"""What the values of a table's label column mean: by the settings, the names of classes, or the usual words."""

import contextlib
import fnmatch
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from components.ingest.source import Place
from components.params import Columns, Label
from components.stage import StageError

Card = Callable[[], Path | None]
"""Fetches the card (README.md) of the data set that a table is of, if it has one."""
Names = dict[str, str]
"""The names of classes by their numbers."""

_MANY = 12  # values without a meaning that one error shows
_LONG = 80  # characters of a value that may be a label
_ROWS = 2**16  # read at once, of this one column
_SAME = {"true": "1", "yes": "1", "on": "1", "false": "0", "no": "0", "off": "0"}  # YAML reads `yes:` as a boolean


class Values:
    """The label by the value of the label column.

    Numbers and booleans alone mean nothing: as many publishers write 1 for real as write it for generated. They mean
    what `values` says, or what the names of their classes do, which stand in the file's own metadata or in the card.

    Args:
        file: the table.
        name: what to call it; where it lies in its repository or folder.
        columns: of it.
        place: the source.
        card: is asked only where something in it can matter.

    Raises:
        StageError: a value has no meaning, or two; the message has the lines to write.
    """

    def __init__(self, file: pq.ParquetFile, name: str, columns: Columns, place: Place, card: Card) -> None:
        self._name, self._columns, self._place = name, columns, place
        rules = place.entry.labels.items()
        self._words: dict[str, Label] = {
            _key(rule[-1]): label for label, its in rules for rule in its if len(rule) == 1
        }
        self._own = self._said()
        self._told = _of_schema(file.schema_arrow, columns.label)
        seen = _distinct(file, columns.label)
        if any(key.isdigit() and key not in self._own for key in seen):
            self._told += _of_card(card(), name, columns.label)
        unknown = {key: value for key, value in seen.items() if len(self._found(key)) != 1}
        if unknown:
            raise StageError(self._question(seen, unknown))
        self._meaning = {key: next(iter(self._found(key))) for key in seen}

    def of(self, value: Any) -> Label | None:
        """Null where the settings leave it out."""
        return self._meaning[_key(value)]

    def _said(self) -> dict[str, Label | None]:
        own: dict[str, Label | None] = {}
        for word, label in self._columns.values.items():
            if own.setdefault(_key(word), label) != label:
                raise StageError(
                    f"params.yaml: `columns: values:` of the source {self._place.name} says two things of {word}; "
                    "true, yes and 1 are the same value, and so are false, no and 0"
                )
        return own

    def _found(self, key: str) -> set[Label | None]:
        """What is said of a value: one label, none, or two that contradict each other."""
        if key in self._own:
            return {self._own[key]}
        called = {_key(names[key]) for names in self._told if key in names} or {key}
        own = {self._own[word] for word in called if word in self._own}
        return own or {self._words[word] for word in called if word in self._words}

    def _question(self, seen: dict[str, Any], unknown: dict[str, Any]) -> str:
        column, source = self._columns.label, self._place.name
        holds = ", ".join(self._shown(*one) for one in sorted(seen.items())[:_MANY]) + ", …" * (len(seen) > _MANY)
        if len(unknown) > _MANY or any(len(str(value)) > _LONG for value in unknown.values()):
            return (
                f"{self._name}: column {column} holds {holds}, which hardly say what is ai or real; name the right "
                f"column under `columns: {{label: …}}` of the source {source} in params.yaml, or say what each value "
                "means under `columns: {values: {…}}`"
            )
        answers = dict.fromkeys(self._line(unknown, *labels) for labels in (("real", "ai"), ("ai", "real")))
        home = self._place.entry.homepage
        return (
            f"{self._name}: column {column} holds {holds}, and nothing says for sure whether "
            f"{', '.join(repr(unknown[key]) for key in sorted(unknown))} is ai or real. Look it up"
            f"{f' at {home}' if home else ''}, then write what is true under `ingest: sources:` in params.yaml: "
            + " or ".join(f"`{answer}`" for answer in answers)
        )

    def _shown(self, key: str, value: Any) -> str:
        names = " or ".join(dict.fromkeys(repr(names[key]) for names in self._told if key in names))
        return f"{value!r:.40} ({names:.80})" if names else f"{value!r:.40}"

    def _line(self, unknown: dict[str, Any], first: Label, then: Label) -> str:
        """The source with an answer, as it may stand in params.yaml."""
        # Files of one label each are common: the next one may hold what this one lacks.
        lacking = {key: int(key) for names in self._told for key in names if key.isdigit()} or _others(unknown)
        keys = lacking | unknown if len(lacking) <= _MANY else unknown
        keys = {key: keys[key] for key in sorted(keys) if len(self._found(key)) != 1}
        labelled = [key for key in keys if key != "null" and not key.startswith("-")]
        answers: dict[Any, Label | None] = {}
        for key, value in keys.items():
            names = {_key(names[key]): names[key] for names in self._told if key in names}
            word = next((name for at, name in names.items() if len(names) == 1 and not at.isdigit()), value)
            answers[word] = None if key not in labelled else first if key == labelled[0] else then
        columns = self._columns.model_dump(exclude_defaults=True, exclude={"values"})
        source = self._place.source.model_dump(by_alias=True, exclude_defaults=True)
        source["columns"] = columns | {"values": self._columns.values | answers}
        text: str = yaml.safe_dump(
            {self._place.name: source}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**20
        )
        return text.strip()[1:-1]


def _distinct(file: pq.ParquetFile, column: str) -> dict[str, Any]:
    """The column's values by how they are looked up."""
    batches = file.iter_batches(_ROWS, columns=[column])
    return {_key(value): _plain(value) for batch in batches for value in batch.column(0).to_pylist()}


def _key(value: Any) -> str:
    """A value as it is looked up: 1, 1.0, "1" and true are the same, and so are "Fake" and "fake "."""
    value = _plain(value)
    text = "null" if value is None else " ".join(str(value).split()).lower()
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return _SAME.get(text, text)


def _plain(value: Any) -> Any:
    """A value as YAML has it: a number, a boolean, a text or null."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return " ".join(str(value).split())


def _others(values: dict[str, Any]) -> dict[str, Any]:
    """Where all are booleans, or 0 and 1, the one that isn't there."""
    if not values.keys() <= {"0", "1", "-1", "null"}:
        return {}
    found = (not value if isinstance(value, bool) else 1 - value for value in values.values() if value in (0, 1))
    return {_key(value): value for value in found}


def _of_schema(schema: pa.Schema, column: str) -> list[Names]:
    """The names of classes in the metadata that Hugging Face's `datasets` writes."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return _names(features[column]["names"])
    return []


def _of_card(card: Path | None, name: str, column: str) -> list[Names]:
    """The names of classes in the head of a card, as the configurations that the table may be of have them."""
    if card is None or not card.is_file():
        return []
    from huggingface_hub import metadata_load  # slow to import

    found: list[Names] = []
    with contextlib.suppress(ValueError, yaml.YAMLError):
        said = metadata_load(card) or {}
        known = _listed(said.get("dataset_info"))
        covering = {
            config.get("config_name")
            for config in _listed(said.get("configs"))
            if any(fnmatch.fnmatch(name, pattern) for pattern in _patterns(config.get("data_files")))
        }
        infos = [info for info in known if info.get("config_name", "default") in covering] or known
        for info in infos:
            for feature in _listed(info.get("features")):
                with contextlib.suppress(KeyError, TypeError):
                    if str(feature["name"]) == column:
                        found += _names(feature["dtype"]["class_label"]["names"])
    return found


def _listed(node: Any) -> list[dict[str, Any]]:
    return [one for one in (node if isinstance(node, list) else [node]) if isinstance(one, dict)]


def _patterns(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for part in node if isinstance(node, list) else [node.get("path")] if isinstance(node, dict) else ():
        yield from _patterns(part)


def _names(said: Any) -> list[Names]:
    pairs = said.items() if isinstance(said, dict) else enumerate(said)
    names = {_key(number): str(word) for number, word in pairs}
    return [names] if names else []
