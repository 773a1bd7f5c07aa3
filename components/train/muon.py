"""Muon (Jordan et al. 2024) for convolutions; what is no kernel of two axes or more is left to AdamW."""

import math
from typing import Any

import keras
from keras import ops


class Muon(keras.optimizers.Muon):
    """Keras' Muon, which takes matrices alone, with convolution kernels as matrices of (height · width · in, out).

    The step of a matrix is orthogonal and of RMS 0.2 × the learning rate (Liu et al. 2025). The last dense unit, gains
    and biases take AdamW's steps at a quarter of the learning rate.
    """

    def __init__(self, learning_rate: Any, weight_decay: float, **kwargs: Any) -> None:
        super().__init__(
            learning_rate, weight_decay=weight_decay, adam_weight_decay=weight_decay, adam_lr_ratio=0.25, **kwargs
        )

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) < 2 or variable.shape[-1] == 1

    def lr_adjust(self, x: Any) -> Any:
        """The orthogonal step at its size: all axes but the last are one."""
        inputs, outputs = math.prod(x.shape[:-1]), x.shape[-1]
        return x * (max(inputs, outputs) ** 0.5 * self.rms_rate)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """The orthogonal matrix nearest to a gradient, about, in the gradient's own shape."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)
