"""Files that are no detector, in the place of a reference detector or of the champion: one line, and nothing loaded."""

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import detectors
import onnx
import onnxruntime
import pytest
import served
from onnx import TensorProto, helper

from components import integrity
from components.serve import reference
from flows import cli


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def keras(file: Path) -> None:
    detectors.cnn().save(file.with_suffix(".keras"))
    file.with_suffix(".keras").rename(file)


def changed(change: Callable[[Any], None]) -> Callable[[Path], None]:
    @functools.wraps(change)
    def write(file: Path) -> None:
        model = onnx.load(file)
        change(model)
        file.write_bytes(model.SerializeToString())

    return write


@changed
def of_another_opset(model: Any) -> None:
    model.opset_import[0].version = 9


@changed
def foreign(model: Any) -> None:
    model.graph.node.append(helper.make_node("Shell", ["logit"], ["x"], domain="com.example"))


@changed
def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="model_card.md")


@changed
def bare(model: Any) -> None:
    del model.metadata_props[:]


@changed
def of_tomorrow(model: Any) -> None:
    helper.set_model_props(model, {"trueframe": '{"format": 2}'})


@changed
def incomplete(model: Any) -> None:
    helper.set_model_props(model, {"trueframe": '{"format": 1, "threshold": 0.5, "members": []}'})


CASES = [
    (cut, "not an ONNX file, or damaged"),
    (empty, "not an ONNX file, or damaged"),
    (keras, "not an ONNX file, or damaged"),
    (of_another_opset, "made for opset 9; 13 to 23 are read"),
    (foreign, "operators that aren't ONNX's own (com.example)"),
    (external, "keeps its weights in other files"),
    (bare, "an ONNX file, but no detector's"),
    (of_tomorrow, "a detector's file of format 2; this project reads 1"),
    (incomplete, "its metadata are damaged (equalise, high, low, scope, temperature missing)"),
]
each = pytest.mark.parametrize(("spoil", "reason"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the runtime."""
    found: list[Any] = []
    works = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, **said: (found.append(given), works(*given, **said))[1]
    )
    return found


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The error with which `trueframe check` of a picture in a project ends."""
    (folder / "a.jpg").write_bytes(served.picture(1))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "START", folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.app(["check", "a.jpg"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "", said
    [line] = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.err.endswith(f"{line}\n") and "Traceback" not in said.err
    return line


@each
def test_as_a_reference_detector(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loaded: list[Any],
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    """With a list of files that is its own: whoever changes both is refused too."""
    kept = tmp_path / "models"
    spoil(detectors.write(kept / "small").detector)
    integrity.write(kept / "small")
    loaded.clear()  # by the compiler
    monkeypatch.setattr(reference, "references", functools.partial(reference.references, kept))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    said = refused(tmp_path / "home", monkeypatch, capsys)
    assert f"error: {kept}/small/detector.onnx: " in said and reason in said and loaded == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Registered]:
    """A project whose champion is whole."""
    import mlflow

    before = mlflow.get_tracking_uri()
    found = served.project(tmp_path_factory.mktemp("home") / "project")
    mlflow.set_tracking_uri(found.uri)
    found.add(served.packed(served.detector(found.root / "whole")))
    yield found
    mlflow.set_tracking_uri(before)


@each
def test_as_the_champion(
    home: served.Registered,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loaded: list[Any],
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    """Registered so, with the sums of its files."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.uri)
    model = shutil.copytree(home.root / "whole/model", home.root / spoil.__name__)
    spoil(model / "artifacts/detector.onnx")
    version = home.add(model)
    sums = hashlib.sha256(integrity.listed(model).encode()).hexdigest()
    home.client().set_model_version_tag("trueframe", version, "files_sha256", sums)
    home.promote(version)
    said = refused(home.root, monkeypatch, capsys)
    assert "detector.onnx: " in said and reason in said and loaded == []
