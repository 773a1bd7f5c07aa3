"""What a detector says of generators and sources that it was not trained on: folds, and the table of their scores."""

import hashlib
import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from components import page, shards, stage, tracking
from components.params import Params
from components.preprocess.arrays import identity
from components.stage import StageError, read_json

By = Literal["generator", "source"]
_SCORES = ("balanced_accuracy", "auroc", "recall", "uncertain_share", "certain_accuracy")
_HEAD = ("ai", "real", "balanced accuracy", "95 % interval", "", "AUROC", "ai found", "real called real")
_PARENT = "mlflow.parentRunId"  # what MLflow nests runs by


class TooFew(StageError):
    """A group can't be left out: what remains, or the group itself, lacks a class."""


def groups(index: pd.DataFrame, by: By) -> list[str]:
    """What is left out, one after the other.

    Raises:
        StageError: there is one group only, so nothing would remain.
    """
    found = sorted(index.loc[index["split"].isin(shards.SPLITS), by].dropna().unique())
    if len(found) < 2:
        raise StageError(
            f"the images come from {len(found)} {by}, and leaving it out would leave nothing to train on; ingest "
            f"another, or leave out by {'source' if by == 'generator' else 'generator'} (--by)"
        )
    return found


def fold(index: pd.DataFrame, by: By, group: str) -> pd.DataFrame:
    """The index of a training that never sees a group, and a test on nothing else.

    All of the group's images leave training and validation. Its test has those of them that are no near copy of an
    image that stays, whatever their split was. A generator's are judged beside the real images of the test split of
    its sources, a source's by themselves; a class that the test lacks comes from the rest of the test split.

    Args:
        index: written by preprocess.
        by: the column that tells the groups apart.
        group: that is left out.

    Returns:
        Rows of the index with their new splits.

    Raises:
        TooFew: a split lacks a class.
    """
    index = index[index["split"].isin(shards.SPLITS)]
    inside = index[by] == group
    rest = index[~inside]
    learning, held = rest[rest["split"] != "test"], rest[rest["split"] == "test"]
    test = index[inside & ~index["group"].isin(learning["group"])].assign(split="test")
    parts = [learning, test]
    for label in set(shards.LABELS) - set(test["label"]):
        others = held[held["label"] == label]
        near = others[others["source"].isin(test["source"])]
        parts.append(near if len(near) else others)
    result = pd.concat(parts, ignore_index=True)
    for split in shards.SPLITS:
        for label in shards.LABELS:
            if not ((result["split"] == split) & (result["label"] == label)).any():
                raise TooFew(
                    f"without {group}, no {label} image is left to {'test' if split == 'test' else 'train'} on"
                )
    return result


def prepare(index: pd.DataFrame, settings: Params, model: str, arrays: Path, folder: Path) -> None:
    """Write a fold's `index.parquet` and `params.yaml`, and remove what was made from other ones.

    Args:
        index: of the fold.
        settings: of the whole; the robustness grid is left out.
        model: a key of `train.models`.
        arrays: from preprocess.
        folder: of the fold.
    """
    digest = hashlib.sha256(identity(arrays, index))
    digest.update(settings.train.models[model].model_dump_json().encode())
    wanted = {"training": digest.hexdigest(), "evaluation": settings.evaluate.model_dump_json()}
    known = read_json(folder / "fold.json") if (folder / "fold.json").exists() else {}
    if known.get("training") != wanted["training"]:
        shutil.rmtree(folder, ignore_errors=True)
    elif known != wanted:
        shutil.rmtree(folder / "evaluation", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    index.to_parquet(folder / "index.parquet", index=False)
    plain = settings.model_dump(mode="json", by_alias=True)
    plain["evaluate"]["robustness_images"] = 0
    (folder / "params.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    stage.replace(folder / "fold.json", lambda path: path.write_text(json.dumps(wanted)))


def place(root: Path, by: By, group: str) -> Path:
    """The folder of a fold; a name that is no file name gets a digest beside what is left of it."""
    plain = re.sub(r"[^\w.-]+", "_", group).strip(".")
    if plain != group:
        plain += f"-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    return root / by / plain


def scores(folder: Path, by: By, group: str, usual: Path) -> dict[str, Any]:
    """A row of the table.

    Args:
        folder: of a fold that is finished.
        by: what the groups are.
        group: that was left out.
        usual: `metrics.json` of the same model trained on everything; it need not be there.

    Returns:
        `by`, `group`, `ai` and `real` (images), balanced accuracy with its `interval`, AUROC, `recall` (of the ai
        images), `real_accuracy`, shares of uncertain and of right certain answers, and `seen`: the balanced accuracy
        on the group's test images after training on its others, null where it isn't known.
    """
    metrics = read_json(folder / "evaluation" / "metrics.json")
    known = read_json(usual)[f"by_{by}"].get(group, {}) if usual.exists() else {}
    return {
        "by": by,
        "group": group,
        **{label: metrics["by_label"][label]["n"] for label in ("ai", "real")},
        **{key: metrics[key] for key in _SCORES},
        "interval": metrics["intervals"]["balanced_accuracy"],
        "real_accuracy": metrics["by_label"]["real"]["accuracy"],
        "seen": known.get("balanced_accuracy"),
    }


def write(root: Path, model: str, by: By, rows: list[dict[str, Any]], skipped: dict[str, str]) -> dict[str, Any]:
    """Write `table.json`, `table.csv` and `table.html`; what they hold by the other column stays.

    Args:
        root: folder of the model's generalisation.
        model: its name.
        by: what the groups are.
        rows: as from `scores`.
        skipped: groups that could not be left out, with the reason.

    Returns:
        What `table.json` holds: for each of `generator` and `source` that was measured, `mean` balanced accuracy over
        the groups, the `worst` group, `rows` and `skipped`.
    """
    file = root / "table.json"
    table = read_json(file) if file.exists() else {}
    values = {row["group"]: row["balanced_accuracy"] for row in rows}
    table[by] = {
        "mean": sum(values.values()) / len(values),
        "worst": min(values, key=lambda group: values[group]),
        "rows": rows,
        "skipped": skipped,
    }
    stage.replace(file, lambda path: path.write_text(json.dumps(table, indent=2) + "\n"))
    flat = [
        {**{k: v for k, v in row.items() if k != "interval"}, "low": row["interval"][0], "high": row["interval"][1]}
        for part in table.values()
        for row in part["rows"]
    ]
    stage.replace(root / "table.csv", lambda path: pd.DataFrame(flat).to_csv(path, index=False))
    stage.replace(root / "table.html", lambda path: page.write(path, f"{model}: generalisation", _page(model, table)))
    return table


def nest(root: Path, model: str, by: By) -> str:
    """The MLflow run above those of the folds: the one of an earlier try, or a new one."""
    mlflow = tracking.connect()
    file = root / by / "run.json"
    known = tracking.active(mlflow, read_json(file)["run_id"]) if file.exists() else None
    if known:
        return known
    with mlflow.start_run(run_name=f"{model} without each {by}") as run:
        mlflow.log_params({"model": model, "by": by})
        mlflow.set_tags({"stage": "generalise", **tracking.lineage()})
    stage.replace(file, lambda path: path.write_text(json.dumps({"run_id": run.info.run_id})))
    return str(run.info.run_id)


def adopt(parent: str, folder: Path, by: By, group: str) -> None:
    """Put a fold's run below the parent."""
    run_id = read_json(folder / "evaluation" / "run.json")["run_id"]
    client = tracking.connect().MlflowClient()
    client.set_tag(run_id, _PARENT, parent)
    client.set_tag(run_id, f"without_{by}", group)


def log(parent: str, root: Path, by: By, table: dict[str, Any]) -> None:
    """Log the table to the parent run."""
    mlflow = tracking.connect()
    with mlflow.start_run(run_id=parent):
        mlflow.log_metrics({"unseen_balanced_accuracy": table[by]["mean"]})
        for suffix in ("json", "csv", "html"):
            mlflow.log_artifact(str(root / f"table.{suffix}"))


def _page(model: str, table: dict[str, Any]) -> list[str]:
    parts = [
        f"<h1>{escape(model)} on what it has not seen</h1>",
        "<p class=quiet>Trained anew for each line, without any image of that generator or source, and tested on it, "
        "with a threshold that was fitted without it. Guessing gives a balanced accuracy of 50 %.</p>",
    ]
    for by, part in table.items():
        seen = [row["seen"] for row in part["rows"] if row["seen"] is not None]
        beside = (
            f", against {sum(seen) / len(seen):.1%} when it was trained on the others of their kind" if seen else ""
        )
        parts += [
            f"<h2>By {by}</h2>",
            f"<p><span class=big>{part['mean']:.1%}</span> mean balanced accuracy on a {by} that it has never seen"
            f"{beside}. The hardest is {escape(part['worst'])}.</p>",
            "<p class=quiet>Bars from guessing to perfect: blue without it"
            + (", grey with it in the training.</p>" if seen else ".</p>"),
            page.table(
                [by, *_HEAD[:4], *(["with it"] if seen else []), *_HEAD[4:]],
                [_line(row, bool(seen)) for row in sorted(part["rows"], key=lambda row: row["balanced_accuracy"])],
            ),
            *(f"<p class=quiet>{escape(name)}: {escape(reason)}</p>" for name, reason in part["skipped"].items()),
        ]
    return parts


def _line(row: dict[str, Any], beside: bool) -> list[str]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    bars = [("after", row["balanced_accuracy"]), ("before", row["seen"])]
    return [
        row["group"],
        f"{row['ai']:,}",
        f"{row['real']:,}",
        share(row["balanced_accuracy"]),
        f"{row['interval'][0]:.1%} to {row['interval'][1]:.1%}",
        *([share(row["seen"])] if beside else []),
        page.Cell("".join(f"<div>{page.bars((kind, max(0.0, 2 * v - 1)))}</div>" for kind, v in bars if v is not None)),
        f"{row['auroc']:.3f}",
        *(share(row[key]) for key in ("recall", "real_accuracy")),
    ]
