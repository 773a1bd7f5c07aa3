"""What detectors share: the constants of an encoder that comes with the project, of 8 bits as they are there.

A graph that was compiled of a network on such an encoder has its weights widened to float32. They are put back, so that
the file is a quarter of the size; the runtime widens them when it loads. The file of a detector that comes with the
project leaves them out altogether, and `file.Network` adds them: an ONNX file is a protobuf message, and two of them,
end to end, are one that holds what both hold.
"""

import hashlib
import json
from typing import Any

import numpy as np

from components import weights
from components.detector.file import KEY
from components.networks import encoders

_LEAST = 2**16  # numbers in a constant that may be an encoder's


def narrowed(graph: bytes) -> bytes:
    """The same graph, with the weights of known encoders as their files have them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    large = [x for x in model.graph.initializer if x.data_type == TensorProto.FLOAT and np.prod(x.dims) >= _LEAST]
    known = _known() if large else {}
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    instead: dict[str, str] = {}
    for one in large:
        value = numpy_helper.to_array(one)
        straight, turned = known.get(_digest(value)), known.get(_digest(value.T))
        found = straight or turned
        if not found:
            continue
        name, narrow, scales = found
        shape = value.shape if straight else value.T.shape
        size = f"{one.name}/shape"
        constants |= {name: narrow, name + encoders.SCALE: scales, size: np.array(shape, np.int64)}
        # By the encoder's names, so that detectors of several members widen them once (see `build.joined`).
        wide, scaled, straightened = (f"{name}/{part}" for part in ("wide", "scaled", "straight"))
        nodes += [
            helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT),
            helper.make_node("Mul", [wide, name + encoders.SCALE], [scaled]),
            helper.make_node("Reshape", [scaled, size], [straightened]),
        ]
        if not straight:
            nodes.append(helper.make_node("Transpose", [straightened], [f"{name}/turned"]))
        instead[one.name] = nodes[-1].output[0]
        model.graph.initializer.remove(one)
    if not nodes:
        return graph
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return bytes(model.SerializeToString())


def parted(detector: bytes) -> bytes:
    """A detector's file without the constants of the encoder that it shares with others, which its metadata name."""
    import onnx
    from onnx import helper

    model = onnx.load_model_from_string(detector)
    found = {one.name.partition("/")[0] for one in model.graph.initializer} & set(weights.names())
    if not found:
        return detector
    [name] = found
    for one in [one for one in model.graph.initializer if one.name.startswith(f"{name}/")]:
        model.graph.initializer.remove(one)
    about = json.loads(next(prop.value for prop in model.metadata_props if prop.key == KEY))
    about["encoder"] = {"name": name, "sha256": weights.listed()[f"{name}.onnx"]}
    del model.metadata_props[:]
    helper.set_model_props(model, {KEY: json.dumps(about)})
    return bytes(model.SerializeToString())


def _known() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """By the digest of a weight in float32: its name, and what its encoder's file holds of it."""
    known = {}
    for encoder in weights.names():
        there = encoders.constants(encoder)
        for name, wide in encoders.widened(there).items():
            scales = there.get(name + encoders.SCALE)
            if scales is not None:
                known[_digest(wide)] = (f"{encoder}/{name}", there[name], scales)
    return known


def _digest(value: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
