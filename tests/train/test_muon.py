"""Muon: orthogonal steps for kernels, AdamW's for the rest."""

import keras
import numpy as np
import pytest

from components.train.muon import Muon


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (3, 3, 2, 32), (24, 16)])
def test_the_step_of_a_kernel_is_orthogonal_and_of_known_size(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    kernel = keras.Variable(rng.normal(size=shape).astype(np.float32))
    before = kernel.numpy().copy()
    optimizer = Muon(0.1, weight_decay=0.0)
    optimizer.build([kernel])
    optimizer.apply([keras.ops.convert_to_tensor(rng.normal(size=shape).astype(np.float32))])
    step = (kernel.numpy() - before).reshape(-1, shape[-1])
    values = np.linalg.svd(step, compute_uv=False)
    # Newton and Schulz's five iterations bring all singular values near to one, not to it.
    assert values.max() / values.min() < 2
    assert np.sqrt(np.mean(step**2)) == pytest.approx(0.1 * 0.2, rel=0.2)


def test_gains_biases_and_the_last_unit_take_adamws_steps() -> None:
    parts = [keras.Variable(np.ones(shape, np.float32)) for shape in ((16,), (8, 1))]
    before = [part.numpy().copy() for part in parts]
    optimizer = Muon(0.1, weight_decay=0.0)
    optimizer.build(parts)
    gradients = [np.random.default_rng(1).normal(size=part.shape).astype(np.float32) for part in parts]
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients])
    for part, old, gradient in zip(parts, before, gradients, strict=True):
        # Adam's first step is the sign of the gradient times its rate.
        np.testing.assert_allclose(part.numpy() - old, -0.025 * np.sign(gradient), rtol=1e-3)
