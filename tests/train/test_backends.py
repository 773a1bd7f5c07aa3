"""One model, whatever trains it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components import networks
from components.detector.file import Network

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from components import networks
from components.params import Augment, Model
from components.train import train

index, arrays, out, precision = sys.argv[1:]
model = Model(
    network="cnn", view="16", options={"width": 4, "blocks": 2}, epochs=2, batch_size=20, learning_rate=0.01,
    augment=Augment(jpeg=0.2), precision=precision, mirror=True,
)
train("tiny", model, Path(index), Path(arrays), Path(out, "checkpoints"), Path(out))
pixels = np.load(Path(arrays, "16/one/a-00000.npy"))
network = networks.load(Path(out, "network.keras"))
np.save(Path(out, "scores.npy"), networks.load_keras().ops.convert_to_numpy(network.predict(pixels, verbose=0))[:, 0])
"""


@pytest.mark.parametrize(("backend", "precision"), [("jax", "bfloat16"), ("torch", "bfloat16")])
def test_a_network_gives_the_same_scores_here(
    arrays: tuple[Path, Path], tmp_path: Path, backend: str, precision: str
) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} isn't installed")
    index, folder = arrays
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    call = [sys.executable, "-c", SCRIPT, str(index), str(folder), str(tmp_path / "out"), precision]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert networks.load_keras().backend.backend() == "tensorflow"
    theirs = np.load(tmp_path / "out/scores.npy")
    pixels = np.load(folder / "16/one/a-00000.npy")
    ours = networks.load(tmp_path / "out/network.keras").predict(pixels, verbose=0)[:, 0]
    compiled = Network(tmp_path / "out/network.onnx").outputs({"pixels": pixels})["logit"]
    np.testing.assert_allclose(compiled, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.ptp(ours) > 0.01
