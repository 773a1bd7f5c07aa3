"""The page on the data that a person reads."""

from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from components import images, page, shards
from components.params import Validate

_TILE = 112  # px
_SHOWN = 24
_TITLES = {
    "label_conflict": "Equal pixels, both labels",
    "near_label_conflict": "Look alike, both labels",
    "exact_across_splits": "Copies of training images outside train",
    "near_across_splits": "Near copies of training images outside train",
    "exact_within_split": "Copies within a split",
    "label_noise": "Labels that look wrong",
}


def write(
    result: dict[str, Any],
    rows: pd.DataFrame,
    flagged: pd.DataFrame,
    files: dict[str, Path],
    settings: Validate,
    path: Path,
) -> None:
    """Write the page: the verdict, the problems, balance, what gives labels away, drift, and pictures of problems.

    Args:
        result: what `report.json` holds.
        rows: the manifest.
        flagged: as from `findings.flagged`.
        files: the shards.
        settings: the section `validate`.
        path: the file to write.
    """
    verdict = "fit for training" if result["passed"] else "not fit for training"
    parts = [
        "<h1>The data</h1>",
        f"<p><span class=big>{result['n_images']:,} images: {verdict}</span></p>",
        f"<p class=quiet>{result['n_rejected']:,} files could not be read. <a href='data_docs/index.html'>Data Docs</a>"
        " of Great Expectations hold every expectation; <a href='flagged.csv'>flagged.csv</a> every image with a "
        "problem.</p>",
        "<h2>Problems</h2>",
        page.table(
            ["severity", "check", "what", "images"],
            [
                [
                    page.Cell(f"<span class={problem['severity']}>{problem['severity']}</span>"),
                    page.Cell(escape(problem["check"])),
                    page.Cell(escape(problem["message"])),
                    f"{problem['count']:,}" if problem["count"] else "",
                ]
                for problem in result["problems"]
            ],
        )
        if result["problems"]
        else "<p>None.</p>",
    ]
    for title, key in (("source", "by_source"), ("split", "by_split"), ("generator", "by_generator")):
        if result[key]:
            parts += [f"<h2>By {title}</h2>", _balance(title, result[key])]
    parts += _leakage(result["leakage"], settings)
    parts += _noise(result["label_noise"])
    parts += _drift(result["drift"])
    for check, title in _TITLES.items():
        some = flagged[flagged["check"] == check]
        if len(some):
            shown = f"the first {_SHOWN} of {len(some):,}" if len(some) > _SHOWN else f"{len(some):,}"
            parts += [f"<h2>{title}</h2><p class=quiet>{shown}</p>", _sheet(some.head(_SHOWN), rows, files)]
    page.write(path, "Validation", parts)


def _balance(title: str, counts: dict[str, dict[str, int]]) -> str:
    totals = {name: sum(labels.values()) for name, labels in counts.items()}
    most = max(totals.values())
    shown = sorted(counts, key=lambda name: -totals[name])[:40]
    return page.table(
        [title, "ai", "real", ""],
        [
            [
                name,
                *(f"{counts[name].get(label, 0):,}" for label in ("ai", "real")),
                page.bars(*((label, counts[name].get(label, 0) / most) for label in ("ai", "real"))),
            ]
            for name in shown
        ],
    ) + (f"<p class=quiet>and {len(counts) - len(shown):,} more</p>" if len(counts) > len(shown) else "")


def _leakage(audit: dict[str, Any], settings: Validate) -> list[str]:
    title = "<h2>Can the label be told without the picture?</h2>"
    if audit["metadata_auc"] is None:
        return [title, "<p>There are too few images of a label to tell.</p>"]
    after = audit["equalised"]
    parts = [
        title,
        "<p class=quiet>Area under the ROC curve of a classifier that sees nothing but this, cross-validated on "
        f"{audit['n_images']:,} images: 0.5 tells nothing, 1 everything. The limit is {settings.max_metadata_auc:g}."
        + (
            " Grey: the files as they came; blue: after <code>preprocess.equalise</code>, as the network sees them."
            if after
            else ""
        )
        + "</p>",
    ]
    for heading, total, by in (
        ("Beside the picture", "metadata_auc", "by_column"),
        ("The plainest of the picture", "pixel_auc", "by_pixel_column"),
    ):
        names = list(dict.fromkeys([*audit[by], *(after[by] if after else [])]))
        lines = [("all together", audit[total], after and after[total], "")]
        for name in sorted(names, key=lambda n: -audit[by].get(n, 0)):
            says = audit["says"].get(name) or (after and after["says"].get(name)) or ""
            lines.append((name, audit[by].get(name), after and after[by].get(name), says.partition(": ")[2]))
        parts.append(
            page.table(
                [heading, "before", *(["after"] if after else []), "", ""],
                [
                    [
                        name,
                        "–" if old is None else f"{old:.2f}",
                        *(["–" if new is None else f"{new:.2f}"] if after else []),
                        page.Cell(
                            "".join(
                                f"<div>{page.bars((which, max(0.0, 2 * value - 1)))}</div>"
                                for which, value in (("before", old), ("after", new))
                                if value is not None
                            )
                        ),
                        page.Cell(escape(says)),
                    ]
                    for name, old, new, says in lines
                ],
            )
        )
    return parts


def _noise(noise: dict[str, Any]) -> list[str]:
    title = "<h2>Labels</h2>"
    if noise["auc"] is None:
        return [title, "<p>There are too few images of a label to look for wrong ones.</p>"]
    if noise["share"] is None:
        return [
            title,
            f"<p>A classifier of traces that didn't see the images reaches an AUC of {noise['auc']:.2f}, too little to "
            "doubt a label.</p>",
        ]
    return [
        title,
        f"<p>A classifier of traces reaches an AUC of {noise['auc']:.2f} on images that it didn't see. Where it is "
        f"surest, {noise['share']:.1%} of the labels say otherwise: an estimate of how many are wrong. "
        f"{noise['candidates']:,} images are worth a second look.</p>",
    ]


def _drift(moved: dict[str, Any] | None) -> list[str]:
    if not moved:
        return []
    came, went = (", ".join(f"{moved[key][label]:,} {label}" for label in ("ai", "real")) for key in ("came", "went"))
    parts = ["<h2>Since the version before</h2>", f"<p>Came: {came}. Went: {went}.</p>"]
    if moved["columns"]:
        parts.append(
            page.table(
                ["", "distance", "before", "new images", ""],
                [
                    [
                        name,
                        f"{c['distance']:.2f}",
                        page.Cell(escape(c["before"])),
                        page.Cell(escape(c["new"])),
                        page.bars(("after", c["distance"])),
                    ]
                    for name, c in sorted(moved["columns"].items(), key=lambda item: -item[1]["distance"])
                ],
            )
        )
    return parts


def _sheet(flagged: pd.DataFrame, rows: pd.DataFrame, files: dict[str, Path]) -> str:
    """The images, each beside its twin where it has one."""
    twins = rows.loc[rows["sha256"].isin(flagged["twin"].dropna()), ["sha256", "shard", "row"]]
    twins = twins.drop_duplicates("sha256").set_index("sha256")
    wanted = pd.concat([flagged[["shard", "row"]], twins]).drop_duplicates().reset_index(drop=True)
    keys = list(zip(wanted["shard"], wanted["row"], strict=True))
    loaded = {keys[number]: data for number, data in shards.load(files, wanted)}
    tiles = []
    for found in flagged.itertuples():
        pair = [(found.shard, found.row)]
        if isinstance(found.twin, str):
            pair.append(tuple(twins.loc[found.twin]))
        words = str(found.label)
        if found.check == "label_noise":
            words += f", looks {found.probability:.2f} ai"
        tiles.append((pair, words))
    width = max(len(pair) for pair, _ in tiles)
    across = 8 // width
    down = -(-len(tiles) // across)
    sheet = Image.new("RGB", (across * (width * _TILE + 8), down * (_TILE + 22)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pair, words) in enumerate(tiles):
        x, y = number % across * (width * _TILE + 8), number // across * (_TILE + 22)
        for i, key in enumerate(pair):
            try:
                tile = ImageOps.contain(images.decode(loaded[key]), (_TILE - 4, _TILE - 4), Image.Resampling.LANCZOS)
            except images.ImageError:
                continue
            sheet.paste(tile, (x + i * _TILE, y))
        draw.text((x, y + _TILE - 2), words, fill="black")
    return page.picture(sheet, "contact sheet")
