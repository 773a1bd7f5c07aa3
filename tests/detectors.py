"""Detector files of networks that a test builds: each network is compiled once in a process."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components import images, networks
from components.detector import build, compile
from components.detector.build import Member
from components.detector.familiarity import Familiarity
from components.detector.file import KEY
from components.serve.files import Files

DECISION: dict[str, Any] = {
    "temperature": 1.0,
    "threshold": 0.5,
    "low": 0.4,
    "high": 0.6,
    "equalise": None,
    "scope": {"min_side": 16, "max_side": None},
}
_COMPILED: dict[str, bytes] = {}


def cnn(side: int = 16, seed: int = 7, **options: Any) -> Any:
    """An untrained network, always the same one."""
    networks.load_keras().utils.set_random_seed(seed)
    return networks.build("cnn", side, options or {"width": 4})


def known(features: int, limit: float = np.inf) -> Familiarity:
    """To which all images are familiar, or of a low limit none."""
    one = np.ones(features, np.float32)
    limits = np.full(2, limit, np.float32)
    return Familiarity(one, np.zeros((2, features), np.float32), np.eye(features, dtype=np.float32), one, limits)


def compiled(network: Any, view: str) -> bytes:
    """The graph of a Keras network."""
    plain = re.sub(r"_\d+\b", "", network.to_json())  # Keras numbers its layers through the process
    digest = hashlib.sha256(f"{plain} {view}".encode())
    for value in network.get_weights():
        digest.update(np.ascontiguousarray(value))
    key = digest.hexdigest()
    if key not in _COMPILED:
        noise = np.random.default_rng(0).integers(0, 256, (8, *images.view_shape(view)), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            saved, graph = Path(folder, "network.keras"), Path(folder, "network.onnx")
            network.save(saved)
            compile.write(saved, view, noise, graph)
            _COMPILED[key] = graph.read_bytes()
    return _COMPILED[key]


def member(network: Any, view: str = "16", name: str = "network", temperature: float = 1.0) -> Member:
    """One of the networks of a detector."""
    return Member(name, compiled(network, view), view, temperature)


def file(members: Sequence[Member], familiar: Familiarity | None = None, **fitted: Any) -> bytes:
    """A detector's file.

    Args:
        members: networks that answer together.
        familiar: by default all is.
        fitted: of its decision, what differs from `DECISION`.
    """
    familiar = familiar or known(sum(map(width, members)))
    return build.finished(build.joined(members), members, familiar, {**DECISION, **fitted})


def write(
    folder: Path, *members: Member, familiar: Familiarity | None = None, card: str = "# Card\n", **fitted: Any
) -> Files:
    """A detector's files as a folder keeps them (see `file`); of no member a tiny one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files.kept(folder)
    files.detector.write_bytes(file(members or [member(cnn())], familiar, **fitted))
    files.card.write_text(card)
    return files


def decided(file: Path, **fitted: Any) -> None:
    """Give a detector's file another decision."""
    import onnx

    model = onnx.load(file)
    about = json.loads(model.metadata_props[0].value) | fitted
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    file.write_bytes(model.SerializeToString())


def width(member: Member) -> int:
    """How many features a member has."""
    import onnx

    outputs = onnx.load_model_from_string(member.graph).graph.output
    return sum(one.type.tensor_type.shape.dim[1].dim_value for one in outputs if one.name == "features")
