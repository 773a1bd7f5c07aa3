"""The detector's file: an ONNX graph from pixels to logit, features, distance and evidence maps, and how to read it.

An ONNX file is data. Before the runtime sees one, its structure is walked: what refers to other files, brings
functions or operators of its own, or is no such file, is refused.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components import images, weights
from components.stage import StageError

KEY = "trueframe"
"""Under which the file's metadata hold what a detector is, as JSON."""
FORMAT = 1
LARGE = 32 * 2**20
"""Bytes of a network above which it takes tenths of a second for a picture, and not hundredths."""
_SAID = {"temperature", "threshold", "low", "high", "equalise", "scope", "members"}
_OPSETS = range(13, 24)
_BLOCK = 256  # images in one call, at most
_BLOCK_PIXELS = 2**21  # and pixels, for what the layers of a large view hold of each
_DEEP = 8  # graphs within graphs
_METADATA = 14  # the field metadata_props


class Network:
    """A graph in the runtime.

    Args:
        file: path of the `.onnx` file, or its bytes.
        threads: that one call may use; by default all that this process may.

    Attributes:
        about: what the file says of itself: see `components.detector.build.finished`; empty of a bare network.
        is_large: whether it has more than `LARGE` bytes, its encoder included.

    Raises:
        StageError: it is no detector's file (see `check`), or the runtime can't run it.
    """

    def __init__(self, file: Path | bytes, threads: int | None = None) -> None:
        import onnxruntime

        data, name = (file, "the graph") if isinstance(file, bytes) else (_read(file), str(file))
        self.about = _about(check(data, name), name)
        data = _whole(data, self.about)
        self.is_large = len(data) > LARGE
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or _threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # Its fallback would print, and try the same again. An encoder's weights of 8 bits are widened anew for each
            # block of pictures: widened once, they would take a second to load and four times the memory.
            kept = {"disabled_optimizers": ["ConstantFolding"]} if self.is_large else {}
            providers = _providers(onnxruntime)
            self._session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0, **kept)
        except Exception as error:  # the runtime's exceptions have no common class
            raise StageError(f"{name}: the runtime can't run it ({_line(error)})") from None
        self.inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    @property
    def views(self) -> list[str]:
        """What each of its members sees (see `images.render`)."""
        return [member["view"] for member in self.about["members"]]

    def render(self, image: Image.Image) -> dict[str, np.ndarray]:
        """An RGB image as each input wants it."""
        settings = self.about.get("equalise")
        return {name: images.render(image, view, settings) for name, view in zip(self.inputs, self.views, strict=True)}

    def has(self, output: str) -> bool:
        """Whether the graph has an output of that name."""
        return output in self._outputs

    def outputs(self, pixels: Mapping[str, np.ndarray], names: list[str] | None = None) -> dict[str, np.ndarray]:
        """What the graph says of pictures, in blocks that bound the memory.

        Args:
            pixels: for each of `inputs` uint8, shape (n, side, side, 3) or (n, crops, side, side, 3).
            names: of the outputs; by default all.

        Returns:
            float32 of shape (n, …) by name.
        """
        names = [name for name in self._outputs if names is None or name in names]
        n = len(next(iter(pixels.values())))
        each = max(1, sum(int(np.prod(x.shape[1:-1])) for x in pixels.values()))
        block = max(1, min(_BLOCK, _BLOCK_PIXELS // each))
        parts = [
            self._session.run(names, {key: np.ascontiguousarray(x[at : at + block]) for key, x in pixels.items()})
            for at in range(0, max(n, 1), block)
        ]
        return {
            name: np.concatenate(of) if len(of) > 1 else of[0]
            for name, of in zip(names, zip(*parts, strict=True), strict=True)
        }


def about(file: Path) -> dict[str, Any]:
    """What a detector's file says of itself (see `components.detector.build.finished`). Nothing of it is loaded.

    Raises:
        StageError: it is no detector's file.
    """
    said = _about(check(_read(file), str(file)), str(file))
    if not said:
        raise StageError(f"{file}: an ONNX file, but no detector's; `trueframe run` makes one")
    if missing := _SAID - said.keys():
        raise StageError(f"{file}: its metadata are damaged ({', '.join(sorted(missing))} missing)")
    return said


def complete(file: Path) -> bytes:
    """A detector's file as it can go anywhere: with the constants of an encoder that it shares with others here.

    Raises:
        StageError: it is no detector's file, or that encoder isn't here.
    """
    said, data = about(file), _read(file)
    if "encoder" not in said:
        return data
    alone = json.dumps({key: value for key, value in said.items() if key != "encoder"})
    pair = b"".join(_field(number, text.encode()) for number, text in ((1, KEY), (2, alone)))
    kept = (_field(number, value) for number, value in _fields(memoryview(data)) if number != _METADATA)
    return _whole(b"".join([*kept, _field(_METADATA, pair)]), said)


def _field(number: int, value: Any) -> bytes:
    """A field of Protocol Buffers' wire format: a number, or what has a length."""
    if isinstance(value, int):
        return bytes([number << 3]) + _written(value)
    return bytes([number << 3 | 2]) + _written(len(value)) + bytes(value)


def _written(number: int) -> bytes:
    digits = b""
    while number > 127:
        digits, number = digits + bytes([number & 127 | 128]), number >> 7
    return digits + bytes([number])


def _whole(data: bytes, about: Mapping[str, Any]) -> bytes:
    """The detector with the constants of the encoder that its metadata name, if they name one.

    Raises:
        StageError: that encoder isn't here, or is another one.
    """
    named = about.get("encoder")
    if not named:
        return data
    encoder = weights.read(str(named["name"]))
    if hashlib.sha256(encoder).hexdigest() != named["sha256"]:
        raise StageError(f"the encoder {named['name']} is another one than this detector was made with")
    return data + encoder


def check(data: bytes, name: str) -> dict[bytes, bytes]:
    """See that a file is a self-contained graph of standard operators. Only its structure is read.

    Returns:
        Its metadata.

    Raises:
        StageError: it isn't.
    """
    try:
        seen = _seen(memoryview(data))
        if not seen["graphs"]:
            raise ValueError("nothing in it")
    except (ValueError, IndexError, TypeError):  # the last where a field is of another kind
        raise StageError(f"{name}: not an ONNX file, or damaged") from None
    if seen["external"]:
        raise StageError(f"{name}: keeps its weights in other files, which a detector may not; nothing was loaded")
    if seen["functions"] or seen["domains"] - {b"", b"ai.onnx"}:
        foreign = ", ".join(sorted(d.decode(errors="replace") for d in seen["domains"] - {b"", b"ai.onnx"}))
        raise StageError(f"{name}: has operators that aren't ONNX's own ({foreign or 'functions'}); nothing was loaded")
    if seen["opset"] not in _OPSETS:
        raise StageError(
            f"{name}: made for opset {seen['opset']}; {_OPSETS[0]} to {_OPSETS[-1]} are read; nothing was loaded"
        )
    return dict(seen["metadata"])


def _seen(data: memoryview) -> dict[str, Any]:
    """What of a model matters to whoever is asked to load it, by the numbers of onnx.proto."""
    seen: dict[str, Any] = {"external": False, "functions": False, "domains": set(), "opset": 0, "graphs": 0}
    seen["metadata"] = {}
    for field, value in _fields(data):
        if field == 7:
            seen["graphs"] += 1
            _graph(value, seen, 0)
        elif field == 8:  # opset_import
            parts = dict(_fields(value))
            if _text(parts.get(1, b"")) in (b"", b"ai.onnx"):
                seen["opset"] = int(parts.get(2, 0))
        elif field == _METADATA:
            parts = dict(_fields(value))
            seen["metadata"][_text(parts.get(1, b""))] = _text(parts.get(2, b""))
        elif field == 25:
            seen["functions"] = True
    return seen


def _graph(data: memoryview, seen: dict[str, Any], depth: int) -> None:
    if depth > _DEEP:
        raise ValueError("graphs within graphs")
    for field, value in _fields(data):
        if field == 1:  # node
            for part, content in _fields(value):
                if part == 7:
                    seen["domains"].add(_text(content))
                elif part == 5:
                    _attribute(content, seen, depth)
        elif field == 5:
            _tensor(value, seen)
        elif field == 15:  # sparse_initializer: values and indices are tensors
            _tensors(value, (1, 2), seen)


def _attribute(data: memoryview, seen: dict[str, Any], depth: int) -> None:
    for field, value in _fields(data):
        if field in (5, 10):
            _tensor(value, seen)
        elif field in (6, 11):
            _graph(value, seen, depth + 1)
        elif field in (22, 23):
            _tensors(value, (1, 2), seen)


def _tensors(data: memoryview, numbers: tuple[int, ...], seen: dict[str, Any]) -> None:
    for field, value in _fields(data):
        if field in numbers:
            _tensor(value, seen)


def _tensor(data: memoryview, seen: dict[str, Any]) -> None:
    seen["external"] |= any(field == 13 or (field == 14 and value == 1) for field, value in _fields(data))


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Protocol Buffers' wire format: numbers of fields, with a view of what has a length, or the number itself."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("no field")
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _text(value: Any) -> bytes:
    return bytes(memoryview(value))  # of a number, `bytes` would make as many zeros


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("no number")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(f"{path}: can't be read ({error.strerror})") from None


def _about(said: dict[bytes, bytes], name: str) -> dict[str, Any]:
    if KEY.encode() not in said:
        return {}
    try:
        about = dict(json.loads(said[KEY.encode()]))
    except (ValueError, TypeError, RecursionError):
        raise StageError(f"{name}: its metadata are damaged") from None
    if about.get("format") != FORMAT:
        raise StageError(f"{name}: a detector's file of format {about.get('format')}; this project reads {FORMAT}")
    return about


def _threads() -> int:
    """What the environment says, else what the system lets this process have."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(said) if said.isdigit() and int(said) else allowed or 1


def _providers(onnxruntime: Any) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
