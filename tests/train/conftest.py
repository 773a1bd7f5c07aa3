"""Tiny arrays, and a store of their own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, Path]:
    """Index and arrays of 96 images in two shards: ai is noisy, real is flat."""
    rng = np.random.default_rng(0)
    rows = []
    for shard in ("one/a-00000", "two/b-00000"):
        pixels = (
            rng.integers(90, 160, (48, 1, 1, 3))
            + rng.integers(-40, 40, (48, 16, 16, 3)) * (np.arange(48) % 2 == 0)[:, None, None, None]
        )
        file = tmp_path / f"arrays/16/{shard}.npy"
        file.parent.mkdir(parents=True)
        np.save(file, pixels.astype(np.uint8))
        for row in range(48):
            split = "validation" if row >= 36 else "test" if row >= 30 else "train"
            rows.append((f"{shard}{row}", shard, row, "ai" if row % 2 == 0 else "real", shard[:3], split))
    index = pd.DataFrame(rows, columns=["sha256", "shard", "row", "label", "source", "split"])
    index.to_parquet(tmp_path / "index.parquet")
    return tmp_path / "index.parquet", tmp_path / "arrays"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
