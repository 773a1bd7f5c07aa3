"""The detector's file: what is read of it, and what is refused before anything of it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import DECISION, decided
from onnx import TensorProto, helper, numpy_helper

from components.detector import build, file
from components.detector.build import Member
from components.detector.familiarity import Familiarity
from components.serve.detector import Detector
from components.stage import StageError

RNG = np.random.default_rng(0)


def model(change: Callable[[Any], object] = lambda _: None, opset: int = 17, **domains: int) -> bytes:
    """The mean of the pixels' channels, by a dense unit; and what a test does to it."""
    weights = numpy_helper.from_array(np.array([[1], [2], [-1]], np.float32), "weights")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=1),
        helper.make_node("ReduceMean", ["numbers"], ["features"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["features", "weights"], ["column"]),
        helper.make_node("Squeeze", ["column", "one"], ["logit"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 4, 4, 3])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3]),
        ],
        [weights, numpy_helper.from_array(np.array([1]), "one")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
    made = helper.make_model(graph, opset_imports=imports)
    made.ir_version = 8
    change(made)
    return bytes(made.SerializeToString())


def detector(members: int = 1, **about: Any) -> bytes:
    seen = [Member(f"m{number}", model(), "4", float(number + 1)) for number in range(members)]
    features = RNG.normal(100, 20, (200, 3 * members))
    familiar = Familiarity.fit(features, np.arange(200) % 2 == 0)
    return build.finished(build.joined(seen), seen, familiar, {**DECISION, **about})


def test_it_is_asked_in_blocks_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(detector(threshold=0.25, scope={"min_side": 3, "max_side": None}))
    network = file.Network(path)
    assert file.about(path) == network.about
    assert network.about["threshold"] == 0.25 and network.about["scope"] == {"min_side": 3, "max_side": None}
    assert network.views == ["4"] and network.inputs == ["pixels"]
    pixels = RNG.integers(0, 256, (700, 4, 4, 3)).astype(np.uint8)
    said = network.outputs({"pixels": pixels})
    means = pixels.reshape(700, 16, 3).mean(1)
    np.testing.assert_allclose(said["logit"], means @ [1, 2, -1], rtol=1e-5)
    np.testing.assert_allclose(said["features"], means, rtol=1e-5)
    assert network.outputs({"pixels": pixels[:0]}, ["logit"])["logit"].shape == (0,)


def test_members_weigh_in_by_their_temperature() -> None:
    network = file.Network(detector(3))
    pixels = {name: RNG.integers(0, 256, (5, 4, 4, 3)).astype(np.uint8) for name in network.inputs}
    assert list(pixels) == ["pixels", "pixels1", "pixels2"]
    alone = [file.Network(model()).outputs({"pixels": x})["logit"] for x in pixels.values()]
    said = network.outputs(pixels)
    np.testing.assert_allclose(said["logits"], np.stack(alone, 1), rtol=1e-5)
    np.testing.assert_allclose(said["logit"], np.mean([z / (i + 1) for i, z in enumerate(alone)], 0), rtol=1e-5)


@pytest.mark.parametrize("width", [6, 1500])  # of more than 1,024 features some directions are looked at
def test_the_distance_is_that_which_was_fitted(width: int) -> None:
    mix = RNG.normal(size=(3, width // 3))

    def spread(made: Any) -> None:
        for row, values in enumerate(mix):
            made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32)[None], f"mix{row}"))
        del made.graph.node[1:]
        made.graph.node.extend(
            [
                helper.make_node("ReduceMean", ["numbers"], ["means"], axes=[1, 2], keepdims=0),
                helper.make_node("MatMul", ["means", "weights"], ["column"]),
                helper.make_node("Squeeze", ["column", "one"], ["logit"]),
                helper.make_node("Split", ["means"], ["a", "b", "c"], axis=1),
                *(helper.make_node("MatMul", [x, f"mix{i}"], [f"{x}s"]) for i, x in enumerate("abc")),
                helper.make_node("Concat", ["as", "bs", "cs"], ["features"], axis=1),
            ]
        )
        made.graph.output[1].type.tensor_type.shape.dim[1].dim_value = width

    member = Member("m", model(spread), "4")
    pixels = RNG.integers(0, 256, (300, 4, 4, 3)).astype(np.uint8)
    features = file.Network(member.graph).outputs({"pixels": pixels})["features"]
    familiar = Familiarity.fit(features + RNG.normal(0, 9, features.shape), pixels[:, 0, 0, 0] > 127)
    made = file.Network(build.finished(build.joined([member]), [member], familiar, {}))
    np.testing.assert_allclose(
        made.outputs({"pixels": pixels})["distance"], familiar.distances(features), rtol=5e-3, atol=1e-3
    )


def outside(made: Any) -> None:
    """Weights that lie in another file."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def outside_of_an_attribute(made: Any) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "constant")
    node = helper.make_node("Constant", [], ["constant"], value=tensor)
    node.attribute[0].t.ClearField("raw_data")
    node.attribute[0].t.data_location = TensorProto.EXTERNAL
    node.attribute[0].t.external_data.add(key="location", value="/etc/hostname")
    made.graph.node.insert(0, node)


def outside_of_a_branch(made: Any) -> None:
    """In a graph within the graph, without the mark that it is elsewhere."""
    inner = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(np.zeros(3, np.float32), "inner")])
    inner.initializer[0].external_data.add(key="location", value="secret")
    made.graph.node.insert(0, helper.make_node("If", ["so"], ["chosen"], then_branch=inner, else_branch=inner))


def outside_of_sparse_values(made: Any) -> None:
    sparse = made.graph.sparse_initializer.add()
    sparse.values.name, sparse.values.data_type = "sparse", 1
    sparse.values.data_location = TensorProto.EXTERNAL


def foreign(made: Any) -> None:
    made.graph.node.insert(0, helper.make_node("Shell", ["numbers"], ["x"], domain="com.example"))


def functions(made: Any) -> None:
    made.functions.add(name="f", domain="local")


def unknown(made: Any) -> None:
    made.graph.node[1].op_type = "Teleport"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (outside, "weights in other files"),
        (outside_of_an_attribute, "weights in other files"),
        (outside_of_a_branch, "weights in other files"),
        (outside_of_sparse_values, "weights in other files"),
        (foreign, r"operators that aren't ONNX's own \(com.example\)"),
        (functions, "operators that aren't ONNX's own"),
        (unknown, "the runtime can't run it"),
    ],
)
def test_what_reaches_beyond_itself_is_refused(
    change: Callable[[Any], object], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(np.ones(3, np.float32).tobytes())
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "secret").write_bytes(np.ones(3, np.float32).tobytes())
    (folder / "detector.onnx").write_bytes(model(change))
    monkeypatch.chdir(folder)
    with pytest.raises(StageError, match=reason) as refused:
        file.Network(folder / "detector.onnx")
    assert "detector.onnx" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("opset", [9, 99])
def test_another_opset_is_named(opset: int) -> None:
    with pytest.raises(StageError, match=f"opset {opset}"):
        file.Network(model(opset=opset))


def test_any_bytes_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = detector()
    rest = [b"", b"\0", b"GIF89a", b"PK\3\4" * 99, b"\x3a\xff\xff\xff\xff\x0f", RNG.bytes(5000), b"\x08" * 9**5]
    cut = [whole[: len(whole) * part // 20] for part in range(20)]
    for data in [*rest, *cut]:
        (tmp_path / "detector.onnx").write_bytes(data)
        with pytest.raises(StageError, match=r"detector\.onnx") as refused:
            file.about(tmp_path / "detector.onnx")
            file.Network(tmp_path / "detector.onnx")
        assert "\n" not in str(refused.value)
    with pytest.raises(StageError, match=r"nowhere\.onnx: can't be read"):
        file.Network(tmp_path / "nowhere.onnx")


def test_any_byte_that_is_another_is_refused_in_one_line_or_does_no_harm(tmp_path: Path) -> None:
    """Lengths, kinds of fields, names, texts, numbers: wherever it lies."""
    whole, path = detector(2), tmp_path / "detector.onnx"
    path.write_bytes(whole)
    Detector(path, "1")
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= int(RNG.integers(1, 256))
        path.write_bytes(changed)
        try:
            file.about(path)
            Detector(path, "1")
        except StageError as refused:
            assert "detector.onnx" in str(refused) and "\n" not in str(refused)


def test_a_number_in_place_of_a_text_takes_no_memory(tmp_path: Path) -> None:
    """By which so many zeros would be made, of a node's domain, a key of the metadata, an opset's domain."""
    number = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
    domain, graph = b"\x0a\x0a\x38" + number, b"\x3a\x0c"
    for data in (graph + domain, b"\x72\x0a\x08" + number, b"\x42\x0a\x08" + number, b"\x38" + number):
        with pytest.raises(StageError, match="not an ONNX file, or damaged"):
            file.check(data, "x.onnx")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"temperature": 0}, "don't fit"),
        ({"threshold": "high"}, "don't fit"),
        ({"scope": {"from": 3}}, "don't fit"),
        ({"equalise": {"size": "huge"}}, "don't fit"),
        ({"members": [{"name": "m0", "view": "8", "temperature": 1}]}, "don't fit"),
        ({"members": [{"name": "m0", "view": "crop-4x9", "temperature": 1}]}, "don't fit"),
        ({"members": []}, "don't fit"),
        ({"members": 3}, "don't fit"),
        ({"members": None}, "don't fit"),
    ],
)
def test_metadata_that_are_another_detector_s_are_refused(tmp_path: Path, said: dict[str, Any], reason: str) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(detector())
    decided(path, **said)
    with pytest.raises(StageError, match=rf"detector\.onnx: .*{reason}") as refused:
        Detector(path, "1")
    assert "\n" not in str(refused.value)


def test_metadata_that_lack_something_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    seen = [Member("m", model(), "4")]
    none = Familiarity.fit(np.empty((2, 0)), np.array([True, False]))
    path.write_bytes(build.finished(build.joined(seen), seen, none, {"threshold": 0.5, "temperature": 1.0}))
    with pytest.raises(StageError, match=r"its metadata are damaged \(equalise, high, low, scope missing\)"):
        file.about(path)
    made = onnx.load(path)
    for text in ("[" * 10**5, "\xff", "3", "{}", '{"format": 1'):
        made.metadata_props[0].value = text
        path.write_bytes(made.SerializeToString())
        with pytest.raises(StageError, match=r"detector\.onnx: (its metadata are damaged|a detector's file of format)"):
            file.about(path)


def test_a_graph_that_is_no_detector_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    path.write_bytes(model())
    with pytest.raises(StageError, match="no detector's"):
        file.about(path)

    def of_tomorrow(made: Any) -> None:
        helper.set_model_props(made, {file.KEY: json.dumps({"format": 99})})

    path.write_bytes(model(of_tomorrow))
    with pytest.raises(StageError, match="format 99; this project reads 1"):
        file.about(path)
    onnx.checker.check_model(onnx.load_model_from_string(detector(2)))
