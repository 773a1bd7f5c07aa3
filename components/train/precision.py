"""The number format in which the arithmetic is done: faster where the hardware has it."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

# Batch normalisation in bfloat16 takes TensorFlow on a CPU two to six times as long as in float32: more than the
# convolutions gain.
_KEPT = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_INFERLIST_REMOVE"
_NORMALISATIONS = [f"FusedBatchNorm{part}{version}" for part in ("", "Grad") for version in ("", "V2", "V3")]


def use_precision(choice: Literal["auto", "float32", "bfloat16"]) -> str:
    """Set Keras and its backend up for a precision, and say what was chosen.

    On a GPU, bfloat16 is Keras' mixed precision. On a CPU with bfloat16 instructions, `auto` takes it with TensorFlow,
    where it is a rewrite of the graph by oneDNN which leaves the model in float32: measured 1.4 times as fast, where
    Keras' policy gained nothing.
    """
    import keras

    backend = keras.backend.backend()
    gpus = _count_gpus(backend)
    where = f"{gpus} GPU" if gpus else f"CPU ({platform.machine()})"
    rewrite = backend == "tensorflow" and not gpus
    lower = choice == "bfloat16" or (choice == "auto" and (gpus > 0 or (rewrite and _cpu_has_bfloat16())))
    keras.config.set_dtype_policy("mixed_bfloat16" if lower and not rewrite else "float32")
    if rewrite:
        import tensorflow as tf

        os.environ.setdefault(_KEPT, ",".join(_NORMALISATIONS))
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": lower})
    if backend == "jax":
        import jax

        # Else float32 would be multiplied in less, on GPUs and TPUs; that would be too coarse for pixels.
        jax.config.update("jax_default_matmul_precision", "float32")
    if not lower:
        return f"{where}, {backend}, float32"
    return f"{where}, {backend}, {'bfloat16 by oneDNN' if rewrite else 'mixed bfloat16'}"


def fuse_normalisation(network: Any) -> None:
    """Let TensorFlow on a CPU do batch normalisation in training as one operation each way; Keras 3 takes a dozen.

    They were two fifths of a training step here. The layers stay what they are: only their `call` in training differs,
    and the running variance is still that of the batch, without TensorFlow's correction for its size.
    """
    import keras

    if keras.backend.backend() != "tensorflow" or _count_gpus("tensorflow"):
        return
    for layer in network._flatten_layers():
        if (
            isinstance(layer, keras.layers.BatchNormalization)
            and layer.axis in (-1, 3)
            and layer.scale
            and layer.center
        ):
            layer.call = _fused(layer, layer.call)


def _fused(layer: Any, usual: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training or not layer.trainable or mask is not None or len(inputs.shape) != 4:
            return usual(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, layer.gamma, layer.beta, epsilon=layer.epsilon, is_training=True
        )
        n = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance * (n - 1) / n)):
            moving.assign(moving * layer.momentum + new * (1 - layer.momentum))
        return outputs

    return call


def in_float32(network: Any) -> Any:
    """The network without mixed precision, so that it gives the same scores wherever it runs."""
    import keras

    if keras.config.dtype_policy().name == "float32":
        return network

    def widened(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # and no bare operation, which takes what it gets
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=widened, recursive=True)
    copy.set_weights(network.get_weights())
    return copy


def _count_gpus(backend: str) -> int:
    if backend == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return sum(device.platform != "cpu" for device in jax.devices())
    import torch

    return torch.cuda.device_count()


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
