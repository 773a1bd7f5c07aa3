"""What answers needs nothing of what trains: neither TensorFlow nor Keras, nor what makes ONNX files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import served

from components.serve.reference import references

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tensorflow", "keras", "keras_hub", "onnx", "tf2onnx"}:
            raise ModuleNotFoundError(f"No module named {name!r}: it is for training", name=name)

sys.meta_path.insert(0, Blocked())
"""
ANSWERS = """
from pathlib import Path
from components.serve.cascade import Cascade
from components.serve.reference import references

folder = Path(sys.argv[1])
files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
known = references()
for row in Cascade(known).score(files):
    assert row["error"] is None and row["model_version"] in [one.version for one in known], row
for one in known:
    for row in one.score(files, explain=True):
        assert row["error"] is None and row["heatmap"] and row["model_version"] == one.version, row["error"]
"""
EXPORTS = """
from pathlib import Path
from components.serve.export import export
from components.serve.reference import references
from components.stage import StageError

folder, files = Path(sys.argv[1]), [one.files for one in references()]
for form in ("onnx", "browser", "space"):
    try:
        export(files, "reference", form, folder / form)
    except StageError as error:
        assert form == "browser" and "it holds the runtime for the browser" in str(error), error
    assert list((folder / form).rglob("*.onnx")), form
try:
    export(files, "reference", "litert", folder / "litert")
except StageError as error:
    assert "`--format onnx` needs none" in str(error)
"""
PYFUNC = """
from pathlib import Path
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
files = [Path(name).read_bytes() for name in sys.argv[2:]]
for row in model.predict(pd.DataFrame({"image": files}), params={"explain": True}):
    assert row["error"] is None and row["heatmap"], row
"""
PAGE = """
from pathlib import Path
from components.serve.page import judged, report
from components.serve.page.about import About
from components.serve.reference import references
from flows import ui

path = next(Path(sys.argv[1]).glob("*.jpg"))
one = judged.judge(About.of("the reference detector", None, references()), path.name, path)
judged.resave(one)
judged.explain(one)
assert one.heatmap and report.draw(one, "pdf").startswith(b"%PDF")
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """One for each reference detector, by their sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, one in enumerate(references()):
        side = one.scope.min_side + 20
        (folder / f"{number}.jpg").write_bytes(served.picture(number, size=(side + 9, side)))
    return folder


def run(code: str, *arguments: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_reference_detectors_answer_and_show_their_evidence(pictures: Path) -> None:
    run(ANSWERS, pictures)


def test_they_are_exported(tmp_path: Path) -> None:
    run(EXPORTS, tmp_path)


def test_a_registered_model_answers(tmp_path: Path, pictures: Path) -> None:
    run(PYFUNC, served.packed(served.detector(tmp_path)), *sorted(pictures.glob("*.jpg")))


def test_the_page_judges_and_explains(pictures: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    run(PAGE, pictures)


def test_the_gateway_and_the_servers_behind_it_answer(tmp_path: Path) -> None:
    import mlflow

    home = served.project(tmp_path / "home")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(home.uri)
    try:
        home.promote(home.add(served.packed(served.detector(tmp_path / "detector"))))
    finally:
        mlflow.set_tracking_uri(before)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCK)
    with served.serve(home, PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{ROOT}") as serving:
        (row,) = serving.ask(served.picture(1), explain=True)
    assert row["error"] is None and row["heatmap"] and row["model_version"] == "1"
