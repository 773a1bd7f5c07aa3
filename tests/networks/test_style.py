"""Channel correlations, and the network on them."""

import numpy as np
import pytest

from components import networks
from components.networks.features import frozen, split
from components.stage import StageError


def test_correlations_are_those_of_numpy() -> None:
    keras = networks.load_keras()
    from components.networks.layers import Correlations

    maps = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 4)).astype(np.float32)
    maps[..., 1] += maps[..., 0]
    found = keras.ops.convert_to_numpy(Correlations()(maps))
    for one, expected in zip(found, maps, strict=True):
        np.testing.assert_allclose(one, np.corrcoef(expected.reshape(-1, 4).T)[np.triu_indices(4, 1)], atol=1e-4)
    assert Correlations().compute_output_shape(maps.shape) == found.shape


def test_a_strange_feature_is_clipped() -> None:
    from components.networks.layers import Clip

    assert np.asarray(Clip(4)(np.array([-9.0, 1.0, 9.0]))).tolist() == [-4, 1, 4]
    assert Clip.from_config(Clip(3.0).get_config()).limit == 3


@pytest.mark.parametrize("side", [32, 160])
def test_only_the_unit_on_top_learns(side: int) -> None:
    network = networks.build("style", side, {"weights": "none"})
    assert frozen(network)
    encoder, head = split(network)
    assert encoder.output.shape[1] == 276 + 496 + 2016 + 1280
    assert [tuple(v.shape) for v in head.trainable_variables] == [(4068, 1), (1,)]


def test_depths_are_chosen() -> None:
    network = networks.build("style", 32, {"weights": "none", "depths": [5, 12]})
    assert split(network)[0].output.shape[1] == 496 + 96 * 95 // 2 + 1280


@pytest.mark.parametrize("depths", [[], [3], [5, 5], ["5"]])
def test_depths_that_do_not_exist_are_refused(depths: list[object]) -> None:
    with pytest.raises(StageError, match=r"depths from 2, 4, 5, .* each once, not \["):
        networks.build("style", 32, {"weights": "none", "depths": depths})
