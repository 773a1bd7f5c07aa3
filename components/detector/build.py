"""Compiled networks become one detector: calibrated together, with familiarity and decision in the same file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components import weights
from components.detector.familiarity import Familiarity
from components.detector.file import FORMAT, KEY


@dataclass(frozen=True)
class Member:
    """One of the networks that answer together.

    Attributes:
        name: of its model.
        graph: what `compile.write` wrote.
        view: what it sees (see `images.render`).
        temperature: that calibrates it, so that members weigh in with what they know and not with how loud they are.
    """

    name: str
    graph: bytes
    view: str
    temperature: float = 1.0


def joined(members: Sequence[Member]) -> bytes:
    """Several networks as one graph.

    Its inputs are `pixels`, `pixels1`, … of each member. Its outputs are float32: `logit`, (n,), the mean of their
    logits, each by its temperature: the geometric mean of the odds; `logits`, (n, members), each as it is;
    `features`, (n, d), those of all side by side; and `map`, `map1`, … of the members that have one.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    inputs: list[Any] = []
    outputs: list[Any] = []
    logits, features = [], []
    opset, encoders = None, set(weights.names())
    for number, member in enumerate(members):
        model = onnx.compose.add_prefix(onnx.load_model_from_string(member.graph), f"{member.name}/")
        opset = next(o for o in model.opset_import if o.domain == "")
        found = {one.name.removeprefix(f"{member.name}/"): one for one in model.graph.output}
        names = {f"{member.name}/pixels": _numbered("pixels", number), f"{member.name}/map": _numbered("map", number)}
        # Members on one encoder have its constants, and what is made of them alone, once.
        made = [*(one.name for one in model.graph.initializer), *(name for n in model.graph.node for name in n.output)]
        shared = {name: name.removeprefix(f"{member.name}/") for name in made}
        names |= {name: plain for name, plain in shared.items() if plain.partition("/")[0] in encoders}
        for node in model.graph.node:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]
        there = {name for node in nodes for name in node.output}
        nodes += [node for node in model.graph.node if not there.issuperset(node.output)]
        for one in model.graph.initializer:
            one.name = names.get(one.name, one.name)
        known = {one.name for one in constants}
        constants += [one for one in model.graph.initializer if one.name not in known]
        for one in (*model.graph.input, *([found["map"]] if "map" in found else [])):
            one.name = names[one.name]
            (inputs if one.name.startswith("pixels") else outputs).append(one)
        logits.append(f"{member.name}/logit")
        if "features" in found:
            features.append(f"{member.name}/features")
    temperatures = np.array([[m.temperature for m in members]], np.float32)
    constants += [
        numpy_helper.from_array(value, name)
        for name, value in (("temperatures", temperatures), ("last", np.array([1], np.int64)))
    ]
    for name in logits:
        nodes.append(helper.make_node("Unsqueeze", [name, "last"], [f"{name}/column"]))
    nodes += [
        helper.make_node("Concat", [f"{name}/column" for name in logits], ["logits"], axis=1),
        helper.make_node("Div", ["logits", "temperatures"], ["calibrated"]),
        helper.make_node("ReduceMean", ["calibrated"], ["logit"], axes=[1], keepdims=0),
    ]
    outputs += [
        helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(members)]),
    ]
    if features:
        nodes.append(helper.make_node("Concat", features, ["features"], axis=1))
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", None]))
    return _model(nodes, inputs, outputs, constants, opset)


def finished(graph: bytes, members: Sequence[Member], familiar: Familiarity, about: Mapping[str, Any]) -> bytes:
    """The detector's file.

    Args:
        graph: what `joined` made of the members.
        members: of it.
        familiar: becomes the output `distance`, (n,), in multiples of what is familiar; above 1 is not. One that was
            fitted on no features adds none.
        about: `temperature`, by which logits are divided to be probabilities; `threshold`, `low` and `high`;
            `equalise`; `scope`.

    Returns:
        An ONNX file, with `about`, the members and the format's number as JSON in its metadata.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(graph)
    if len(familiar.scale):
        nodes, constants = _distance(familiar)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)
        model.graph.output.append(helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["n"]))
    seen = [{"name": m.name, "view": m.view, "temperature": m.temperature} for m in members]
    helper.set_model_props(model, {KEY: json.dumps({"format": FORMAT, **about, "members": seen})})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def familiar(file: Path) -> Familiarity | None:
    """What `finished` made the distance of; null where a detector has none."""
    import onnx
    from onnx import numpy_helper

    constants = {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}
    found = {name.removeprefix("familiar/"): x for name, x in constants.items() if name.startswith("familiar/")}
    if not found:
        return None
    limits = [found.get(f"{part}/limit", np.float32(np.inf)) for part in ("inside", "outside")]
    means = np.stack([found["mean0"], found["mean1"]])
    directions = found["directions"].astype(np.float32)
    return Familiarity(found["scale"], means, directions, found["spread"], np.array(limits, np.float32))


def _distance(f: Familiarity) -> tuple[list[Any], list[Any]]:
    """`Familiarity.distances` as nodes."""
    from onnx import helper, numpy_helper

    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, f"familiar/{name}"))
        return f"familiar/{name}"

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        output = output if output == "distance" else f"familiar/{output}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def sum_of_squares(x: str, name: str) -> str:
        return node("ReduceSumSquare", [x], name, axes=[1], keepdims=0)

    scaled = node("Div", ["features", constant("scale", f.scale)], "scaled")
    # In half precision they take half the room; the runtime widens them once, when it loads.
    halves = constant("directions", f.directions.astype(np.float16))
    directions = node("Cast", [halves], "wide", to=1)
    spread, has_outside = constant("spread", f.spread), f.directions.shape[1] < f.directions.shape[0]
    nearest: dict[str, list[str]] = {"inside": [], "outside": []}
    for number, mean in enumerate(f.means):
        apart = node("Sub", [scaled, constant(f"mean{number}", mean)], f"apart{number}")
        along = node("MatMul", [apart, directions], f"along{number}")
        by_spread = node("Div", [along, spread], f"by_spread{number}")
        nearest["inside"].append(sum_of_squares(by_spread, f"inside{number}"))
        if has_outside:
            parts = [sum_of_squares(apart, f"all{number}"), sum_of_squares(along, f"part{number}")]
            nearest["outside"].append(node("Relu", [node("Sub", parts, f"rest{number}")], f"outside{number}"))
    ratios = []
    for (name, both), limit in zip(nearest.items(), f.limits, strict=True):
        if both:
            root = node("Sqrt", [node("Min", both, f"{name}/nearer")], f"{name}/root")
            ratios.append(node("Div", [root, constant(f"{name}/limit", np.array(limit))], f"{name}/ratio"))
    node("Max", ratios, "distance")
    return nodes, constants


def _numbered(name: str, number: int) -> str:
    return f"{name}{number or ''}"


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any], opset: Any) -> bytes:
    from onnx import helper

    graph = helper.make_graph(nodes, "detector", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[opset], producer_name="trueframe")
    model.ir_version = 8  # that of the opset, so that older runtimes read it too
    return bytes(model.SerializeToString())
