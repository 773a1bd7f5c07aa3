"""Judge one candidate on images that it has never seen."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from components import images, parallel, robustness, shards, stage, tracking
from components import metrics as figures
from components.detector import build
from components.detector.build import Member
from components.detector.familiarity import Familiarity
from components.detector.file import Network
from components.evaluate import decision as decisions
from components.evaluate import left_out, scope
from components.evaluate.decision import Scored
from components.params import Equalise, Evaluate
from components.stage import StageError, read_json, read_table

PREDICTIONS = ["sha256", "label", "probability", "split"]
_EXPLAINED = 8  # images on the sheet of explanations
_BATCH = 256  # arrays that a worker makes at once
_WORST, _OF_EACH = 6, 4  # collections that are shown, and images of each
_FEWEST = 5  # images of a collection that is shown
_FAMILIAR = 2000  # images that tell what is familiar, where none are degraded


def evaluate(
    name: str,
    views: Mapping[str, str],
    settings: Evaluate,
    trained: Path,
    index_path: Path,
    arrays: Path,
    data: Path,
    out: Path,
) -> dict[str, Any]:
    """Score the validation and test images, fit the decision on the former, and judge on the latter.

    Args:
        name: of the candidate.
        views: what its members see, by the name of their model: one of a model, several of an ensemble. Several are
            each calibrated on the validation images, and the mean of their logits is the candidate's logit.
        settings: the section `evaluate`.
        trained: folder with a folder that train wrote for each member.
        index_path: from preprocess.
        arrays: from preprocess.
        data: folder of the shards.
        out: folder to write: `detector.onnx` (see `detector.build.finished`), `metrics.json`, `predictions.parquet`,
            `degraded.parquet`, `run.json`, pictures, `report.html` and `model_card.md`.

    Returns:
        What `metrics.json` holds.

    Raises:
        StageError: a member was not trained yet.
    """
    from components.evaluate import card, plots, report

    graphs = {member: trained / member / "network.onnx" for member in views}
    for member, graph in graphs.items():
        if not graph.exists():
            raise StageError(f"{graph} is missing: {member} was not trained; `dvc repro train@{member}` does that")
    everything = read_table(index_path)
    index = everything[everything["split"].isin(["validation", "test", shards.REGRESSION])].reset_index(drop=True)
    equalise = read_json(arrays / "made.json")["equalise"]
    labels = (index["label"] == "ai").to_numpy()
    held, test = (index["split"] == "validation").to_numpy(), (index["split"] == "test").to_numpy()
    files = shards.paths(data, {*everything["source"], *shards.crops(everything)})

    each = [_logits(Network(graphs[name]), shards.placed(index, view), arrays, view) for name, view in views.items()]
    unseen = left_out.read([trained / member for member in views])
    known = unseen.members if unseen else [Scored(z[held], labels[held]) for z in each]
    temperatures = [decisions.calibrate(scored) for scored in known] if len(each) > 1 else [1.0]
    members = [Member(n, graphs[n].read_bytes(), v, t) for (n, v), t in zip(views.items(), temperatures, strict=True)]
    joined = build.joined(members)
    network = Network(joined)
    logits = np.stack([z / np.float32(t) for z, t in zip(each, temperatures, strict=True)]).mean(axis=0)

    def degraded(rows: pd.DataFrame, which: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
        return _degraded(network, list(views.values()), equalise, rows, files, which, what)

    decision, familiar = _decide(index, logits, labels, held, settings, degraded)
    if unseen:
        decision = unseen.fitted(temperatures, settings)
    p = decision.probabilities(logits)
    result = _judge(index[test], labels[test], p[test], decision, settings)
    result["n_validation"], result["n_left_out"] = int(held.sum()), int(everything["split"].isna().sum())
    result["left_out"] = unseen.scores(decision, temperatures, settings) if unseen else None
    result["regression"] = _regression(index, labels, p, decision)
    after = _after_degradation(index[test], decision, settings, degraded)
    result["robustness"] = _robustness(after, decision, settings)

    limits = scope.sides(index[held], files, views.values(), Equalise(**equalise) if equalise else None)
    about = {**asdict(decision), "equalise": equalise, "scope": limits}
    if unseen:
        about["left_out"] = {key: result["left_out"][key] for key in ("n", "balanced_accuracy", "auroc", "verdicts")}
    detector = build.finished(joined, members, familiar, about)
    out.mkdir(parents=True, exist_ok=True)
    stage.apart(out)
    (out / "detector.onnx").write_bytes(detector)
    pictures = {
        stem: out / f"{stem}.png" for stem in ("curves", "risk", "scores", "robustness", "mistakes", "examples")
    }
    plots.curves(labels[test], p[test], decision.threshold, result, pictures["curves"])
    plots.risk_coverage(result, pictures["risk"])
    plots.scores_by_label(labels[test], p[test], decision, pictures["scores"])
    plots.robustness(result, pictures["robustness"])
    _contact_sheets(index[test], labels[test], p[test], decision, files, pictures)
    pictures["explanations"] = out / "explanations.png"
    result["explanation"] = _explain(Network(detector), equalise, index[test], p[test], files, pictures["explanations"])
    with tempfile.TemporaryDirectory() as scratch:
        if unseen:
            pictures["collections"] = Path(scratch, "collections.png")
            scored = unseen.images.assign(p=decision.probabilities(unseen.joined(temperatures)))
            _worst_collections(result["left_out"]["by_collection"], scored, everything, files, pictures["collections"])
        report.write(name, list(views), result, decision, settings, pictures, out / "report.html")
    card.write(name, views, result, decision, settings, _training_data(everything, data), out / "model_card.md")
    index.assign(probability=p)[PREDICTIONS].to_parquet(out / "predictions.parquet", index=False)
    after.to_parquet(out / "degraded.parquet", index=False)
    _log(name, trained, list(views), result, out)
    return result


def _logits(network: Network, index: pd.DataFrame, arrays: Path, view: str) -> np.ndarray:
    logits = np.empty(len(index), np.float32)
    progress = parallel.Progress("images scored", len(index))
    for shard, part in index.groupby("shard"):
        pixels = np.load(arrays / view / f"{shard}.npy", mmap_mode="r")
        for block in parallel.batched(part.index, 1024):
            seen = {"pixels": pixels[index.loc[block, "row"].to_numpy()]}
            logits[block] = network.outputs(seen, ["logit"])["logit"]
            progress.add(len(block))
    return logits


def _decide(
    index: pd.DataFrame, logits: np.ndarray, labels: np.ndarray, held: np.ndarray, settings: Evaluate, degraded: Any
) -> tuple[decisions.Decision, Familiarity]:
    """The decision from the validation images, some of which are degraded, each in a way of its own.

    The same images, as they are and degraded, are what the detector is familiar with.

    Raises:
        StageError: too few images are degraded, so that they are all of one class.
    """
    clean = Scored(logits[held], labels[held])
    rows = index[held]
    rows = rows.sample(min(settings.degraded_images or _FAMILIAR, len(rows)), random_state=settings.seed).sort_index()
    of_rows = labels[rows.index]
    if of_rows.all() or not of_rows.any():
        raise StageError(
            f"evaluate.degraded_images: {len(rows)} of the validation images, and none of them is "
            f"{'real' if of_rows.all() else 'ai'}; raise it"
        )
    as_it_is = np.full((len(rows), 1), robustness.NONE)
    _, features = degraded(rows, as_it_is, "validation images looked at")
    if not settings.degraded_images:
        nothing = Scored(np.empty(0), np.empty(0, bool))
        return decisions.fit(clean, clean, nothing, settings), Familiarity.fit(features, of_rows)
    which = robustness.draw(rows["sha256"], settings.seed)[:, None]
    after, more = degraded(rows, which, "validation images degraded")
    decision = decisions.fit(clean, Scored(logits[rows.index], of_rows), Scored(after[:, 0], of_rows), settings)
    return decision, Familiarity.fit(np.concatenate([features, more]), np.concatenate([of_rows, of_rows]))


def _judge(
    rows: pd.DataFrame, labels: np.ndarray, p: np.ndarray, decision: decisions.Decision, settings: Evaluate
) -> dict[str, Any]:
    def summary(which: np.ndarray) -> dict[str, Any]:
        return figures.summarise(labels[which], p[which], decision.threshold, settings.bootstrap, settings.seed)

    certain = (p < decision.low) | (p >= decision.high)
    right = (p >= decision.threshold) == labels
    of_label = {"ai": labels, "real": ~labels}
    generator = rows["generator"]
    # A generator is judged against the real images of the sources that it occurs in.
    against = {
        str(g): (
            (generator == g) | ((rows["label"] == "real") & rows["source"].isin(rows.loc[generator == g, "source"]))
        )
        for g in sorted(generator.dropna().unique())
    }

    def share(which: np.ndarray) -> float | None:
        return float(right[which].mean()) if which.any() else None

    return {
        **summary(np.ones(len(p), bool)),
        "uncertain_share": float(1 - certain.mean()),
        "certain_accuracy": share(certain),
        "certain_by_label": {label: share(certain & which) for label, which in of_label.items()},
        "threshold": decision.threshold,
        "risk_coverage": decisions.risk_coverage(p, labels, decision.threshold),
        "by_label": {label: summary(which) for label, which in of_label.items() if which.any()},
        "by_source": {str(s): summary((rows["source"] == s).to_numpy()) for s in sorted(rows["source"].unique())},
        "by_generator": {g: summary(which.to_numpy()) for g, which in against.items()},
    }


def _regression(rows: pd.DataFrame, labels: np.ndarray, p: np.ndarray, decision: decisions.Decision) -> dict[str, Any]:
    """How many reported mistakes that were never trained on come out right, and the sha256 of those that don't."""
    proof = (rows["split"] == shards.REGRESSION).to_numpy()
    wrong = proof & ((p >= decision.threshold) != labels)
    return {"n": int(proof.sum()), "right": int((proof & ~wrong).sum()), "wrong": rows.loc[wrong, "sha256"].tolist()}


def _after_degradation(
    rows: pd.DataFrame, decision: decisions.Decision, settings: Evaluate, degraded: Any
) -> pd.DataFrame:
    """Some images' `sha256`, `label`, and for each entry of the grid their P(ai) after it."""
    rows = rows.sample(min(settings.robustness_images, len(rows)), random_state=settings.seed).sort_index()
    p = np.empty((0, len(robustness.GRID)))
    if len(rows):
        which = np.tile(np.arange(len(robustness.GRID)), (len(rows), 1))
        p = decision.probabilities(degraded(rows, which, "test images degraded")[0])
    columns = {str(entry): p[:, number] for number, entry in enumerate(robustness.GRID)}
    return rows[["sha256", "label"]].reset_index(drop=True).assign(**columns)


def _robustness(after: pd.DataFrame, decision: decisions.Decision, settings: Evaluate) -> list[dict[str, Any]]:
    """Scores under each entry of the grid."""
    if after.empty:
        return []
    labels = (after["label"] == "ai").to_numpy()
    entries = []
    for degradation in robustness.GRID:
        p = after[str(degradation)].to_numpy()
        scores = figures.summarise(labels, p, decision.threshold, settings.bootstrap, settings.seed)
        real = float((p[~labels] < decision.threshold).mean()) if (~labels).any() else None
        entries.append(
            {
                "degradation": degradation.name,
                "strength": degradation.strength,
                "n": len(after),
                "intervals": {k: scores["intervals"][k] for k in ("accuracy", "balanced_accuracy", "auroc")},
                **{k: scores[k] for k in ("accuracy", "balanced_accuracy", "auroc", "recall")},
                "real_accuracy": real,
            }
        )
    return entries


def _degraded(
    network: Network,
    views: list[str],
    equalise: Any,
    rows: pd.DataFrame,
    files: dict[str, Path],
    which: np.ndarray,
    what: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Images after entries of the grid: logits of shape (n, k), for places in it of the same shape.

    And the features after the first of these, of shape (n, d).
    """
    place = {label: number for number, label in enumerate(rows.index)}
    n, k = which.shape
    cut = rows[rows["crop_shard"].notna()] if any(map(shards.is_crop, views)) and shards.crops(rows) else rows[:0]
    crops = dict(shards.load(files, shards.placed(cut, "crop-")))
    logits, features = np.empty((n, k), np.float32), [np.empty(0)] * n

    def tasks() -> Iterator[_Task]:
        for batch in parallel.batched(shards.load(files, rows), max(1, _BATCH // k)):
            places = [place[label] for label, _ in batch]
            yield places, [(data, crops.get(label)) for label, data in batch], which[places], views, equalise

    progress = parallel.Progress(what, n)
    for places, pixels in parallel.ordered_map(_degrade, tasks()):
        found = network.outputs(dict(zip(network.inputs, pixels, strict=True)), ["logit", "features"])
        logits[places] = found["logit"].reshape(-1, k)
        for number, row in zip(places, found.get("features", np.empty((len(places) * k, 0)))[::k], strict=True):
            features[number] = row
        progress.add(len(places))
    return logits, np.stack(features)


# Places, files with their crops, entries of the grid, views, equalise.
_Task = tuple[list[int], list[tuple[bytes, bytes | None]], np.ndarray, list[str], Any]


def _degrade(task: _Task) -> tuple[list[int], list[np.ndarray]]:
    places, batch, which, views, equalise = task
    seen: list[list[np.ndarray]] = [[] for _ in views]
    for (data, crop), numbers in zip(batch, which, strict=True):
        whole = images.decode(data)
        native = images.decode(crop) if crop else whole
        for number in numbers:
            equal = {
                id(image): images.equalise(
                    image if number == robustness.NONE else robustness.GRID[number](image), equalise
                )
                for image in (whole, native)
            }
            for view, of_view in zip(views, seen, strict=True):
                of_view.append(images.render(equal[id(native if shards.is_crop(view) else whole)], view, equalise))
    return places, [np.stack(of_view) for of_view in seen]


def _contact_sheets(
    rows: pd.DataFrame,
    labels: np.ndarray,
    p: np.ndarray,
    decision: decisions.Decision,
    files: dict[str, Path],
    pictures: dict[str, Path],
) -> None:
    from components.evaluate import plots

    wrongness = _wrongness(labels, p, decision.threshold)
    worst = rows.index[np.argsort(-wrongness)[: min(24, int((wrongness > 0).sum()))]]
    some = rows.groupby("label").sample(12, random_state=0, replace=True).index.unique()
    score = pd.Series(p, rows.index)
    for chosen, path in ((worst, pictures["mistakes"]), (some, pictures["examples"])):
        loaded = _images(rows.loc[chosen], files)
        plots.examples([(loaded[r], str(rows.loc[r, "label"]), float(score[r])) for r in chosen], path)


def _worst_collections(
    by_collection: list[dict[str, Any]],
    scored: pd.DataFrame,
    index: pd.DataFrame,
    files: dict[str, Path],
    path: Path,
) -> None:
    """Of the collections that it is worst at when it never saw them, the surest wrong answers."""
    from components.evaluate import plots

    worst = sorted((row for row in by_collection if row["n"] >= _FEWEST), key=lambda row: row["right"])[:_WORST]
    chosen = []
    for row in worst:
        of_row = scored[(scored["collection"] == row["collection"]) & (scored["label"] == row["label"])]
        wrongness = _wrongness((of_row["label"] == "ai").to_numpy(), of_row["p"].to_numpy(), 0.5)
        chosen.append(of_row.iloc[np.argsort(-wrongness)[:_OF_EACH]])
    shown = pd.concat(chosen).merge(index.drop_duplicates("sha256")[["sha256", "shard", "row"]], on="sha256")
    loaded = _images(shown, files)
    rows = [(loaded[row], str(shown.loc[row, "label"]), float(shown.loc[row, "p"])) for row in shown.index]
    plots.examples(rows, path, list(shown["collection"]))


def _wrongness(labels: np.ndarray, p: np.ndarray, threshold: float) -> np.ndarray:
    """How far on the wrong side of the threshold, as a share of what is possible there."""
    return np.where(labels, (threshold - p) / max(threshold, 1e-9), (p - threshold) / max(1 - threshold, 1e-9))


def _explain(
    network: Network, equalise: Any, rows: pd.DataFrame, p: np.ndarray, files: dict[str, Path], path: Path
) -> dict[str, Any]:
    """Draw where the evidence lies in some images, and compare exact maps with occlusion."""
    from components.detector import evidence
    from components.evaluate import plots

    chosen = rows.groupby("label").sample(_EXPLAINED // 2, random_state=1, replace=True).index.unique()
    score = pd.Series(p, rows.index)
    shown, agreements, exact = [], [], False
    for row, stored in _images(rows.loc[chosen], files).items():
        image = images.equalise(stored, equalise)
        found, exact = evidence.evidence(network, image)
        shown.append((image, evidence.overlay(image, found), str(rows.loc[row, "label"]), float(score[row])))
        first = {name: x if x.ndim == 3 else x[:1] for name, x in network.render(image).items()}
        maps = evidence.activation_maps(network, first)
        occluded = evidence.occlusion_maps(network, first) if maps else {}
        agreements += [evidence.agreement(of[0], occluded[name][0]) for name, of in maps.items()]
    plots.explanations(shown, path)
    known = [value for value in agreements if np.isfinite(value)]
    return {
        "method": "class activation" if exact else "occlusion",
        "occlusion_correlation": float(np.mean(known)) if known else None,
        "n": len(shown),
    }


def _images(rows: pd.DataFrame, files: dict[str, Path]) -> dict[Any, Image.Image]:
    return {row: images.decode(data) for row, data in shards.load(files, rows)}


def _training_data(index: pd.DataFrame, data: Path) -> list[dict[str, Any]]:
    """For each source: how many images trained, of which generators, and what licences their publisher named."""
    known = []
    for source, rows in index[index["split"] == "train"].groupby("source"):
        about = shards.about(data, str(source))
        known.append(
            {
                "source": str(source),
                **{label: int((rows["label"] == label).sum()) for label in shards.LABELS},
                "generators": sorted(rows["generator"].dropna().unique()),
                "licences": sorted(about.loc[about["sha256"].isin(rows["sha256"]), "licence"].dropna().unique()),
            }
        )
    return known


def _log(name: str, trained: Path, members: list[str], result: dict[str, Any], out: Path) -> None:
    """Log to the run that trained the network; an ensemble has a run of its own. `run.json` says which.

    `metrics.json` comes last: where it is, the evaluation is whole.
    """
    mlflow = tracking.connect()
    run_id = None
    if len(members) == 1:
        run_id = tracking.active(mlflow, read_json(trained / members[0] / "training.json")["run_id"])
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else name) as run:
        if len(members) > 1:
            mlflow.log_params({"model": name, "members": ", ".join(members)})
            mlflow.set_tags({"stage": "evaluate", **tracking.lineage()})
        mlflow.log_metrics({f"test_{k}": result[k] for k in figures.NAMES if result[k] is not None})
        stage.replace(out / "run.json", lambda path: path.write_text(json.dumps({"run_id": run.info.run_id}) + "\n"))
        stage.replace(out / "metrics.json", lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))
        mlflow.log_artifacts(str(out), "evaluation")
