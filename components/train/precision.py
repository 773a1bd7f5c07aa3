"""The number format in which the arithmetic is done: faster where the hardware has it."""

import platform
from pathlib import Path
from typing import Any, Literal


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

        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": lower})
    if backend == "jax":
        import jax

        # Else float32 would be multiplied in less, on GPUs and TPUs; that would be too coarse for pixels.
        jax.config.update("jax_default_matmul_precision", "float32")
    if not lower:
        return f"{where}, {backend}, float32"
    return f"{where}, {backend}, {'bfloat16 by oneDNN' if rewrite else 'mixed bfloat16'}"


def in_float32(network: Any) -> Any:
    """The network without mixed precision, so that it gives the same scores wherever it runs."""
    import keras

    if keras.config.dtype_policy().name == "float32":
        return network
    copy = keras.models.clone_model(
        network,
        clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "float32"}),
        recursive=True,
    )
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
