"""Preprocessing on a Ray cluster of several nodes."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import shards
from components.params import Preprocess
from components.preprocess import preprocess
from components.stage import StageError

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="ray isn't installed")
SETTINGS = Preprocess(views=["16", "crop-24x2"], validation=0.2, test=0.2)
EACH, SHARDS = 300, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[..., bytes]) -> Path:
    """Three shards of images that take a few milliseconds each; and the groups that validation would find."""
    root = tmp_path_factory.mktemp("data")
    files = [jpeg(n, (500, 500)) for n in range(8)]
    for shard in range(SHARDS):
        rows: list[dict[str, Any]] = [
            {
                "image": {"bytes": files[n % 8], "path": f"{n}.jpg"},
                "label": "ai" if n % 2 else "real",
                "source": "mine",
                "sha256": f"{shard}-{n}",
            }
            for n in range(EACH)
        ]
        path = root / f"data/mine/a-{shard:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        shards.write(path, rows)
    manifest = shards.manifest(shards.paths(root / "data", ["mine"]))
    manifest[["shard", "row"]].assign(group=manifest["sha256"]).to_parquet(root / "groups.parquet")
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that decodes nothing, and two nodes that do."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    memory = 100 * 2**20
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "_system_config": quick},
    )
    for _ in range(2):
        started.add_node(num_cpus=1, object_store_memory=memory)
    yield started
    started.shutdown()


def run(data: Path, out: Path, engine: str, sources: Path | None = None) -> pd.DataFrame:
    groups, index = data / "groups.parquet", out / "index.parquet"
    return preprocess(sources or data / "data", ["mine"], groups, SETTINGS, out / "arrays", index, engine)  # type: ignore[arg-type]


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local")
    run(data, out, "local")
    return written(out)


def test_the_output_is_the_same_to_the_byte_though_a_node_is_killed(
    data: Path, local: dict[str, bytes], cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    victim = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0]
    filled: list[float] = []

    def kill() -> None:
        """When the first rows are there: both nodes are at work then, and most of it is still to be done."""
        while not filled:
            time.sleep(0.02)
            here = [np.fromfile(path, np.uint8)[128:] for path in tmp_path.rglob("16/**/*.partial")]
            if any(part.any() for part in here):
                filled.append(float(np.mean([np.mean(part > 0) for part in here])))
        cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run(data, tmp_path, "ray")
    killer.join(timeout=60)
    assert filled and filled[0] < 0.8, "the node was killed in the middle"
    assert written(tmp_path) == local


def test_only_new_shards_go_to_the_cluster(
    data: Path,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    run(data, tmp_path, "local")
    before = written(tmp_path)
    lost = tmp_path / "arrays/16/mine/a-00001.npy"
    lost.unlink()
    run(data, tmp_path, "ray")
    assert capsys.readouterr().out.splitlines()[-1] == f"{EACH} images decoded, {EACH * (SHARDS - 1)} from before"
    assert written(tmp_path) == before


def test_a_damaged_shard_is_said_in_one_line(
    data: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    path = tmp_path / "data/mine/a-00000.parquet"
    path.parent.mkdir(parents=True)
    for shard in (data / "data/mine").iterdir():
        (path.parent / shard.name).write_bytes(shard.read_bytes())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError, match=rf"^{path}: damaged .*restore it with `dvc checkout"):
        run(data, tmp_path, "ray", tmp_path / "data")
    assert not list(tmp_path.rglob("*.npy")) or not (tmp_path / "index.parquet").exists()


def test_a_cluster_that_is_not_there_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageError, match=r"the Ray cluster 127\.0\.0\.1:1 can't be used .*correct RAY_ADDRESS"):
        run(data, tmp_path, "ray")
