"""Features of a frozen encoder, computed once an image and kept as arrays like the pixels."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from components import images, networks, parallel, stage
from components.preprocess.arrays import MADE, made

_BLOCK = 64


def frozen(network: Any) -> bool:
    """Whether what a network has before its layer `features`, that layer included, doesn't learn."""
    backbone = _backbone(network)
    return bool(backbone) and not any(layer.trainable_variables for layer in backbone)


def split(network: Any) -> tuple[Any, Any]:
    """A network in two, which share its layers: what the head learns, the network has learned.

    Returns:
        The encoder, from pixels to the features of shape (n, d), and the head, from those to logits.
    """
    keras = networks.load_keras()
    features = network.get_layer("features")
    inputs = x = keras.Input(features.output.shape[1:])
    for layer in network.layers[len(_backbone(network)) :]:
        x = layer(x)
    return keras.Model(network.inputs, features.output), keras.Model(inputs, x)


def update(encoder: Any, shards: list[str], arrays: Path, view: str, precision: str, out: Path) -> str:
    """Compute the features of the shards that have none yet, and remove those whose pixels are gone.

    Args:
        encoder: from `split`.
        shards: names, as in the index.
        arrays: from preprocess.
        view: what the encoder sees.
        precision: what `use_precision` said: features in bfloat16 are others than those in float32.
        out: folder of all features: `<view>+<fingerprint>/<shard>.npy`, float32, shape (images, d), or
            (images, crops, d) for a view of several crops. The fingerprint is that of the encoder's layers and weights,
            of the precision and of the way from bytes to pixels.

    Returns:
        `<view>+<fingerprint>`.
    """
    sizes = _sizes(arrays, view)
    folder = out / f"{view}+{_fingerprint(encoder, made(arrays), precision)}"
    # Those of other shards stay as long as their pixels are here: another training may want them.
    here = {
        shard: size
        for shard, size in _read(folder / MADE).items()
        if sizes.get(shard) == size and (folder / f"{shard}.npy").exists()
    }
    for path in folder.rglob("*.npy"):
        if path.relative_to(folder).with_suffix("").as_posix() not in here:
            path.unlink()
    missing = {shard: np.load(arrays / view / f"{shard}.npy", mmap_mode="r") for shard in shards if shard not in here}
    progress = parallel.Progress("images encoded", sum(len(pixels) for pixels in missing.values()))
    for shard, pixels in missing.items():
        found = _encoded(encoder, pixels, len(images.view_shape(view)) == 4, progress)
        stage.replace(folder / f"{shard}.npy", lambda path, found=found: np.save(path, found))  # type: ignore[misc]
        here[shard] = sizes.get(shard)
        stage.replace(folder / MADE, lambda path: path.write_text(json.dumps(here, indent=1)))
    return folder.name


def _backbone(network: Any) -> list[Any]:
    names = [layer.name for layer in network.layers]
    return network.layers[: names.index("features") + 1] if "features" in names else []


def _encoded(encoder: Any, pixels: np.ndarray, crops: bool, progress: parallel.Progress) -> np.ndarray:
    features = np.empty((*pixels.shape[: 2 if crops else 1], encoder.output.shape[-1]), np.float32)
    for start in range(0, len(pixels), _BLOCK):
        block = np.asarray(pixels[start : start + _BLOCK])
        found = encoder.predict(block.reshape(-1, *block.shape[-3:]), batch_size=_BLOCK, verbose=0)
        features[start : start + _BLOCK] = found.reshape(*block.shape[: 2 if crops else 1], -1)
        progress.add(len(block))
    return features


def _fingerprint(encoder: Any, maker: Any, precision: str) -> str:
    """Equal for encoders that give the same features; the numbers in automatic names differ between processes."""
    keras = networks.load_keras()
    digest = hashlib.sha256(re.sub(r'_\d+"', '"', encoder.to_json()).encode())
    for variable in encoder.variables:
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    digest.update(json.dumps([maker, precision]).encode())
    return digest.hexdigest()[:16]


def _sizes(arrays: Path, view: str) -> dict[str, int]:
    """From shards of which size preprocess made the arrays of a view."""
    return {
        name.removeprefix(f"{view}/"): size
        for name, size in _read(arrays / MADE).get("shards", {}).items()
        if name.startswith(f"{view}/")
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
