"""What the detector was trained on: statistics of training images, and the scores of its test images."""

from pathlib import Path
from typing import Any

import pandas as pd

from components import parallel, predictions, shards, stage, tracking
from components.stage import StageError

_ROUND = 64  # images in one piece of work


def images(data: Path, index: Path, n: int, kept: Path) -> pd.DataFrame:
    """Statistics of training images, by the same function as those of the log; computed once for each image.

    They are drawn by their hash, so that of a data set that grows most are known already.

    Args:
        data: folder of the shards.
        index: of all images.
        n: images, at most.
        kept: Parquet file that holds them from one time to the next.

    Returns:
        The columns of `predictions.STATISTICS`, and `sha256`.

    Raises:
        StageError: there is no training data here, and nothing kept of it.
    """
    known = pd.read_parquet(kept) if kept.exists() else None
    if not index.exists():  # a retraining is making it anew, or the data is elsewhere
        if known is None:
            raise StageError(
                f"{index}: not here, so there is nothing to compare with; `trueframe run` makes it, or `dvc pull` "
                "brings it with the data"
            )
        return known
    rows = pd.read_parquet(index).dropna(subset="split").drop_duplicates("sha256")
    wanted = rows.sort_values("sha256").head(n)
    have = known[known["sha256"].isin(wanted["sha256"])] if known is not None else None
    missing = wanted if have is None else wanted[~wanted["sha256"].isin(have["sha256"])]
    if missing.empty and have is not None:
        return have.reset_index(drop=True)
    files = shards.paths(data, missing["source"].unique())
    tasks = [
        (files[str(shard)], list(part))
        for shard, of in missing.groupby("shard")["row"]
        for part in parallel.batched(sorted(of), _ROUND)
    ]
    progress = parallel.Progress("training images looked at", len(missing))
    found: list[dict[str, Any]] = []
    for part in parallel.ordered_map(_looked_at, tasks):
        found += part
        progress.add(len(part))
    new = pd.DataFrame(found).assign(sha256=missing.sort_values(["shard", "row"])["sha256"].to_numpy())
    result = new if have is None else pd.concat([have, new], ignore_index=True)
    stage.replace(kept, lambda path: result.to_parquet(path, index=False))
    return result


def _looked_at(task: tuple[Path, list[int]]) -> list[dict[str, Any]]:
    path, rows = task
    return [predictions.statistics(data) for data in shards.files(path, rows)]


def scores(model: str, version: str, kept: Path) -> pd.Series | str:
    """P(ai) of the test images of a version, as its evaluation recorded them; or why there are none.

    Args:
        model: name of the registered model.
        version: that answered.
        kept: folder that holds them from one time to the next.
    """
    path = kept / f"scores-{version}.parquet"
    if not path.exists():
        try:
            mlflow = tracking.connect()
            run_id = mlflow.MlflowClient().get_model_version(model, version).run_id
            recorded = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path="evaluation/predictions.parquet"
            )
            table = pd.read_parquet(recorded).query("split == 'test'")[["probability"]]
        except Exception as error:  # MLflow's stores raise what they like
            return f"the scores of version {version}'s test images can't be read ({str(error).splitlines()[0][:200]})"
        stage.replace(path, lambda partial: table.to_parquet(partial, index=False))
    return pd.read_parquet(path)["probability"]
