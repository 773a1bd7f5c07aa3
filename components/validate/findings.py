"""From what was measured to what is said: marks on images, figures with limits, and their words."""

from typing import Any

import numpy as np
import pandas as pd

from components.params import Validate
from components.shards import LABELS, SPLITS
from components.validate import leakage
from components.validate.expectations import Figure
from components.validate.inspection import Inspection
from components.validate.noise import Noise

FLAGGED = [
    "check",
    "shard",
    "row",
    "sha256",
    "source",
    "split",
    "label",
    "origin",
    "twin",
    "twin_origin",
    "probability",
]
_MARKS = {
    "damaged": "integrity",
    "conflicting": "label_conflict",
    "nearly_conflicting": "near_label_conflict",
    "repeats_in_split": "exact_within_split",
    "repeats_train": "exact_across_splits",
    "resembles_train": "near_across_splits",
}


def mark(rows: pd.DataFrame, intact: np.ndarray) -> pd.DataFrame:
    """Add the columns that the expectations look at, and `twin`: the row of the image that a copy copies, or -1."""
    hashed = rows["pixels"].notna()
    split = _published(rows)
    outside = split.isin(["validation", "test"])
    looking_alike = rows[["group", "label", "pixels"]].assign(split=split)[rows["group"].duplicated(keep=False)]
    same = looking_alike[looking_alike["pixels"].notna()]

    none = pd.Series(-1, index=rows.index)
    equal = _first(same[same["split"] == "train"], "pixels", same).reindex(rows.index, fill_value=-1)
    alike = _first(looking_alike[looking_alike["split"] == "train"], "group", looking_alike).reindex(
        rows.index, fill_value=-1
    )
    earlier = none.copy()
    repeated = same[same.duplicated(["split", "pixels"])]
    firsts = same.drop_duplicates(["split", "pixels"]).reset_index(names="twin")[["split", "pixels", "twin"]]
    earlier[repeated.index] = repeated.merge(firsts, on=["split", "pixels"], how="left")["twin"].to_numpy()
    conflict = _other_label(same, "pixels").reindex(rows.index, fill_value=-1)
    near_conflict = _other_label(looking_alike, "group").reindex(rows.index, fill_value=-1)

    marks: dict[str, Any] = {
        "damaged": ~intact,
        "conflicting": conflict >= 0,
        "nearly_conflicting": (near_conflict >= 0) & (conflict < 0),
        "repeats_in_split": (earlier >= 0) & hashed,
        "repeats_train": outside & (equal >= 0),
        "resembles_train": outside & (alike >= 0) & (equal < 0),
    }
    twins: dict[str, Any] = {
        "conflicting": conflict,
        "nearly_conflicting": near_conflict,
        "repeats_in_split": earlier,
        "repeats_train": equal,
        "resembles_train": alike,
    }
    return rows.assign(
        shorter_side=rows[["width", "height"]].min(axis=1),
        **marks,
        **{f"twin_{name}": twin for name, twin in twins.items()},
    )


def _published(rows: pd.DataFrame) -> pd.Series:
    """The split that the publisher fixed; where there is none, preprocess decides and keeps copies on one side."""
    return rows["split"].where(rows["split"].isin(SPLITS), "undecided")


def _first(candidates: pd.DataFrame, key: str, rows: pd.DataFrame) -> pd.Series:
    """For each row the first candidate with the same key, or -1."""
    first = candidates.drop_duplicates(key).reset_index(names="twin").set_index(key)["twin"]
    return rows[key].map(first).fillna(-1).astype(int)


def _other_label(rows: pd.DataFrame, key: str) -> pd.Series:
    """For each row the first row with the same key and another label, or -1."""
    found = pd.Series(-1, index=rows.index)
    for label in LABELS:
        others = _first(rows[rows["label"] != label], key, rows)
        mine = rows["label"] == label
        found[mine] = others[mine]
    return found


def details(rows: pd.DataFrame) -> dict[str, str]:
    """What more there is to say of the marks: how many in which split, of which label, and the first by name."""
    said = {}
    for mark_, check in _MARKS.items():
        found = rows[rows[mark_]]
        if found.empty:
            continue
        parts = []
        for split in (*SPLITS, "undecided"):
            part = found[_published(found) == split]
            if part.empty:
                continue
            labels = part["label"].value_counts()
            which = f"all {labels.index[0]}" if len(labels) == 1 else ", ".join(f"{n:,} {k}" for k, n in labels.items())
            parts.append(f"{len(part):,} {'in ' + split if split != 'undecided' else 'without a split'} ({which})")
        first = found.iloc[0]
        text = f": {', '.join(parts)}"
        if mark_ in ("conflicting", "nearly_conflicting", "damaged"):
            text += f"; the first is {first['origin']} of {first['source']}"
        if mark_ in ("repeats_train", "resembles_train"):
            text += "; preprocess leaves them out (preprocess.keep_copies)"
        said[check] = text
    return said


def audit(rows: pd.DataFrame, seen: Inspection, settings: Validate) -> dict[str, Any]:
    """How well the label can be told from the files' headers, and from the plainest features of the pixels.

    Returns:
        `metadata_auc` and `by_column`, `pixel_auc` and `by_pixel_column`, the areas less two standard errors
        (`..._at_least`: that is held to the limits), `says` (in words, by column), how many images were looked at,
        and `equalised`: the same of what the network sees, where `preprocess.equalise` is on.
    """

    def of(features: pd.DataFrame, pixels: pd.DataFrame) -> dict[str, Any]:
        found: dict[str, Any] = {}
        says: dict[str, str] = {}
        for total, by, frame in (("metadata_auc", "by_column", features), ("pixel_auc", "by_pixel_column", pixels)):
            labels = (rows["label"].to_numpy()[frame.index] == "ai").astype(bool)
            groups = pd.factorize(rows["group"].to_numpy()[frame.index])[0]
            found[total], found[by] = leakage.auc(frame, labels, groups, settings.seed)
            if found[total] is not None:
                found[f"{total}_at_least"] = round(
                    leakage.at_least(found[total], int(labels.sum()), int((~labels).sum())), 4
                )
            says |= {
                name: leakage.tells(name, frame[name], labels) for name, value in found[by].items() if value >= 0.6
            }
        return {**found, "says": says}

    before = of(seen.headers, seen.pixels)
    after = of(*seen.equalised) if seen.equalised else None
    return {**before, "n_images": len(seen.headers), "limit": settings.max_metadata_auc, "equalised": after}


def figures(
    rows: pd.DataFrame,
    n_rejected: int,
    audit_: dict[str, Any],
    doubts: Noise,
    moved: dict[str, Any] | None,
    settings: Validate,
) -> list[Figure]:
    """The numbers about the whole, with their limits."""
    share = rows["label"].value_counts(normalize=True)
    least = settings.min_class_share
    rare = f"{least:.0%} (validate.min_class_share)"
    found = [
        Figure(
            "n_images",
            "critical",
            f"{{value:.0f}} images are fewer than {settings.min_images} (validate.min_images)",
            len(rows),
            least=settings.min_images,
        ),
        *(
            Figure(
                f"share_{label}",
                "critical",
                f"only {{value:.1%}} of the images are labelled {label}, less than {rare}",
                float(share.get(label, 0.0)),
                least=least,
            )
            for label in ("ai", "real")
        ),
        Figure(
            "share_rejected",
            "critical",
            f"{{value:.1%}} of the files could not be read, more than {settings.max_rejected_share:.0%} "
            "(validate.max_rejected_share)",
            n_rejected / (len(rows) + n_rejected),
            most=settings.max_rejected_share,
        ),
        *_balance(rows, least, rare),
        *_leaks(audit_, settings),
    ]
    if doubts.share is not None:
        found.append(
            Figure(
                "label_noise",
                "warning",
                f"about {doubts.share:.1%} of the labels look wrong (at least {{value:.1%}}): so many are contradicted "
                f"where a classifier with an AUC of {doubts.auc:.2f} that didn't see them is surest. "
                f"{len(doubts.candidates):,} candidates stand in flagged.csv, the worst in the report",
                doubts.at_least,
                most=settings.max_label_noise,
                count=len(doubts.candidates),
            )
        )
    found += _drift(moved, settings)
    return found


def _plain(text: str) -> str:
    """Text without places to fill."""
    return text.replace("{", "{{").replace("}", "}}")


def _balance(rows: pd.DataFrame, least: float, rare: str) -> list[Figure]:
    counts = rows.groupby(["source", "label"]).size().unstack(fill_value=0).reindex(columns=LABELS, fill_value=0)
    one_class = counts[(counts > 0).sum(axis=1) == 1]
    names = ", ".join(f"{source} ({n.sum():,} {n.idxmax()})" for source, n in one_class.iterrows())
    found = []
    if len(counts) > 1 or len(one_class):
        found.append(
            Figure(
                "one_class_source",
                "warning",
                f"{{value:.0f}} of {len(counts)} sources have images of one label only: {_plain(names)}. What tells "
                "the sources apart tells the label; add images of the other label from the same place",
                len(one_class),
                most=0,
                count=int(one_class.to_numpy().sum()),
            )
        )
    for split, part in rows["label"].groupby(rows["split"].where(rows["split"].isin(SPLITS))):
        share = part.value_counts(normalize=True).reindex(LABELS, fill_value=0.0)
        found.append(
            Figure(
                "balance",
                "warning",
                f"only {{value:.1%}} of the published {split} images are {share.idxmin()}, less than {rare}",
                float(share.min()),
                least=least,
            )
        )
    return found


def _leaks(audit_: dict[str, Any], settings: Validate) -> list[Figure]:
    def named(found: dict[str, Any], by: str, limit: float) -> str:
        telling = sorted((n for n in found[by] if n in found["says"]), key=lambda name: -found[by][name])
        shown = [n for n in telling if found[by][n] > limit] or telling
        words = "; ".join(f"{found['says'][n]} (AUC {found[by][n]:.2f})" for n in shown[:4])
        return _plain(words or "no column alone")

    limit, after = settings.max_metadata_auc, audit_["equalised"]
    if audit_["metadata_auc"] is None or (after and after["metadata_auc"] is None):
        return []
    words = named(audit_, "by_column", limit)

    def leak(check: str, severity: str, message: str, of: dict[str, Any]) -> Figure:
        return Figure(check, severity, message, of["metadata_auc_at_least"], most=limit)

    said = f"without the picture (AUC {audit_['metadata_auc']:.2f}, more than {limit:g}): {words}. "
    if after is None:
        advice = (
            "Set preprocess.equalise: true, so that every image goes through the same encoding before a network sees "
            "it; or collect both labels alike (validate.max_metadata_auc)"
        )
        found = [leak("leakage", "critical", f"the label can be told {said}{advice}", audit_)]
    else:
        cured = f"After preprocess.equalise it can't (AUC {after['metadata_auc']:.2f})"
        worse = (
            f"the label can be told without the picture even after preprocess.equalise (AUC "
            f"{after['metadata_auc']:.2f}): {named(after, 'by_column', limit)}"
        )
        found = [
            leak("leakage", "warning", f"the label could be told {said}{cured}", audit_),
            leak("leakage_equalised", "critical", worse, after),
        ]
    seen, most = after or audit_, settings.max_pixel_auc
    plain = (
        f"mean colour and sharpness alone tell the label (AUC {seen['pixel_auc']:.2f}, more than {most:g}): "
        f"{named(seen, 'by_pixel_column', most)}. The labels differ in what they show; scores on images like these say "
        "little about others"
    )
    return [*found, Figure("pixel_leakage", "warning", plain, seen["pixel_auc_at_least"], most=most)]


def _drift(moved: dict[str, Any] | None, settings: Validate) -> list[Figure]:
    if not moved or not moved["columns"]:
        return []
    columns = moved["columns"]
    most = max(columns, key=lambda name: columns[name]["distance"])
    far = [
        n for n in sorted(columns, key=lambda n: -columns[n]["distance"]) if columns[n]["distance"] > settings.max_drift
    ]
    words = "; ".join(f"{n}: {columns[n]['before']}, now {columns[n]['new']}" for n in far[:4])
    came = sum(moved["came"].values())
    return [
        Figure(
            "drift",
            "warning",
            f"the {came:,} new images differ from the earlier ones (distance {{value:.2f}}, more than "
            f"{settings.max_drift:g}): {_plain(words)}",
            columns[most]["distance"],
            most=settings.max_drift,
            count=came,
        )
    ]


def flagged(rows: pd.DataFrame, looked_at: np.ndarray, doubts: Noise) -> pd.DataFrame:
    """Every image with a problem: a row for each of its problems, with `FLAGGED`."""
    parts = []
    for mark_, check in _MARKS.items():
        found = rows[rows[mark_]]
        twins = rows.get(f"twin_{mark_}")
        twin = twins[found.index].to_numpy() if twins is not None else np.full(len(found), -1)
        other = rows.iloc[np.maximum(twin, 0)]
        parts.append(
            found.assign(
                check=check,
                twin=other["sha256"].where(twin >= 0).to_numpy(object),
                twin_origin=other["origin"].where(twin >= 0).to_numpy(object),
                probability=np.nan,
            )[FLAGGED]
        )
    doubted = rows.iloc[looked_at[doubts.candidates]]
    parts.append(
        doubted.assign(
            check="label_noise",
            twin=None,
            twin_origin=None,
            probability=doubts.probability[doubts.candidates].round(4),
        )[FLAGGED]
    )
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=FLAGGED)
