"""Encoders that come with the project: weights of 8 bits with a scale for each output channel, arithmetic in float32.

A file of them is an ONNX model with nothing but constants, `ENCODER/…`. A detector that was made with it holds the same
constants, and one that comes with the project takes them from there (see `components.detector.shared`).
"""

from typing import Any

import numpy as np

from components import weights
from components.stage import StageError

SCALE = "/scale"
_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's means and deviations


def constants(name: str) -> dict[str, np.ndarray]:
    """The constants of an encoder as its file has them: int8 with a float32 `NAME/scale`, or float32 alone.

    Raises:
        StageError: see `weights.read`.
    """
    import onnx
    from onnx import numpy_helper

    found = {
        one.name: numpy_helper.to_array(one)
        for one in onnx.load_model_from_string(weights.read(name)).graph.initializer
    }
    return {key.removeprefix(f"{name}/"): value for key, value in found.items()}


def widened(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All constants in float32, without their scales."""
    scales = {key for key in found if key.endswith(SCALE)}
    return {
        key: value.astype(np.float32) * found.get(key + SCALE, np.float32(1))
        for key, value in found.items()
        if key not in scales
    }


def build(name: str) -> tuple[Any, list[float], list[float]]:
    """An encoder with its weights.

    Returns:
        keras-hub's network, and by what scale and offset pixels (0 to 255) become what it sees.

    Raises:
        StageError: keras-hub isn't installed, or the file isn't this encoder's.
    """
    try:
        import keras_hub
    except ImportError:
        raise StageError(
            f"the encoder {name} is keras-hub's, which isn't installed; `pip install -e '.[foundation]'` in the "
            "project's folder does that"
        ) from None
    encoder = keras_hub.models.CLIPVisionEncoder(
        patch_size=16, hidden_dim=768, num_layers=12, num_heads=12, intermediate_dim=3072, image_shape=(224, 224, 3)
    )
    there = widened(constants(name))
    there["embedding/position_ids"] = np.arange(encoder.get_layer("embedding").num_positions)[None]
    wanted = {variable.path: variable for variable in encoder.variables}
    if _shapes(wanted) != _shapes(there):
        raise StageError(
            f"{weights.PLACE / name}.onnx: not the weights of {name}, as the keras-hub that is installed builds it"
        )
    for path, variable in wanted.items():
        variable.assign(there[path])
    means, deviations = _PIXELS
    return encoder, [1 / 255 / s for s in deviations], [-m / s for m, s in zip(means, deviations, strict=True)]


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}
