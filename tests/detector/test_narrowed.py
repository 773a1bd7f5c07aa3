"""A network on the project's encoder becomes a file with that one's numbers, or one that finds them beside it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from components import networks, weights
from components.detector import build, compile, file, shared
from components.detector.build import Member
from components.detector.familiarity import Familiarity
from components.detector.file import Network
from components.networks import encoders
from components.stage import StageError

pytestmark = pytest.mark.slow  # compiling a transformer of 86 million parameters takes a minute or two
NAME = "clip-vit-base-patch16"
ABOUT = {"temperature": 1.0, "threshold": 0.5, "low": 0.4, "high": 0.6, "equalise": None, "scope": {}}
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("clip")
    options = {"encoder": NAME, "pooling": "first", "tokens": [2, "last"]}
    networks.build("foundation", 224, options).save(folder / "network.keras")
    compile.write(folder / "network.keras", "224", PIXELS, folder / "network.onnx")
    return (folder / "network.onnx").read_bytes()


@pytest.fixture(scope="module")
def detector(graph: bytes) -> bytes:
    """Of two members, which have the encoder once."""
    members = [Member(name, graph, "224") for name in ("one", "other")]
    nothing = Familiarity.fit(np.empty((2, 0)), np.array([True, False]))
    return build.finished(build.joined(members), members, nothing, ABOUT)


def answers(network: Network) -> np.ndarray:
    return network.outputs(dict.fromkeys(network.inputs, PIXELS), ["logit"])["logit"]


def test_a_file_has_the_encoders_numbers_once(graph: bytes, detector: bytes) -> None:
    there = encoders.constants(NAME)
    for data in (graph, detector):
        assert len(data) < 100e6
        held = {one.name: one for one in onnx.load_model_from_string(data).graph.initializer}
        kept = [name for name, value in there.items() if value.dtype == np.int8]
        # The blocks after the last token are those that nothing needs; here the end is one.
        assert {name for name in held if name.startswith(f"{NAME}/")} == {
            f"{NAME}/{name}{suffix}" for name in kept for suffix in ("", encoders.SCALE)
        }
    np.testing.assert_allclose(answers(Network(detector)), answers(Network(graph)), atol=1e-5)


def test_without_them_it_finds_them_beside_it(detector: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shared.parted(detector)
    assert len(small) < len(detector) / 10
    np.testing.assert_array_equal(answers(Network(small)), answers(Network(detector)))
    monkeypatch.setattr(weights, "PLACE", tmp_path)
    with pytest.raises(StageError, match=r"clip-vit-base-patch16\.onnx: the encoder can't be read"):
        Network(small)


def test_made_complete_it_goes_anywhere(detector: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "detector.onnx").write_bytes(shared.parted(detector))
    whole = file.complete(tmp_path / "detector.onnx")
    onnx.checker.check_model(onnx.load_model_from_string(whole))
    monkeypatch.setattr(weights, "PLACE", tmp_path)
    network = Network(whole)
    assert "encoder" not in network.about and network.about["members"]
    np.testing.assert_array_equal(answers(network), answers(Network(detector)))


def test_members_widen_the_encoders_numbers_once(graph: bytes, detector: bytes) -> None:
    def casts(model: bytes) -> int:
        nodes = onnx.load_model_from_string(model).graph.node
        return sum(n.op_type == "Cast" and n.input[0].startswith(f"{NAME}/") for n in nodes)

    assert casts(detector) == casts(graph) > 0


def test_another_encoder_is_refused(detector: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shared.parted(detector)
    monkeypatch.setattr(weights, "read", lambda name: b"another")
    with pytest.raises(StageError, match="another one than this detector was made with"):
        Network(small)
