"""What the data must be like, as a Great Expectations suite, and the checkpoint that holds it to that."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.params import Validate
from components.shards import LABELS, REGRESSION, REPORTED, SPLITS


@dataclass(frozen=True)
class Problem:
    """An expectation that the data doesn't meet."""

    check: str
    severity: str
    message: str
    count: int


@dataclass(frozen=True)
class Figure:
    """One number about the whole, the limits that it has to keep, and what to say where it doesn't.

    `message` may hold `{value}`; `count` is how many images it concerns. A null value keeps every limit.
    """

    check: str
    severity: str
    message: str
    value: float | None
    least: float | None = None
    most: float | None = None
    count: int = 0


def row_expectations(gxe: Any, settings: Validate, details: dict[str, str]) -> list[Any]:
    """Of every image. `message` is filled with the number of images and the values that were found.

    Args:
        gxe: `great_expectations.expectations`.
        settings: the section `validate`.
        details: what more there is to say of a check, by its name.
    """

    def expect(kind: Any, severity: str, check: str, message: str, **of: Any) -> Any:
        detail = details.get(check, "").replace("{", "{{").replace("}", "}}")
        return kind(severity=severity, meta={"check": check, "message": message + detail}, **of)

    def never(column: str, severity: str, check: str, message: str) -> Any:
        return expect(gxe.ExpectColumnValuesToBeInSet, severity, check, message, column=column, value_set=[False])

    in_set = gxe.ExpectColumnValuesToBeInSet
    return [
        expect(gxe.ExpectColumnValuesToNotBeNull, "critical", "label", "{count} images have no label", column="label"),
        expect(
            in_set,
            "critical",
            "label",
            "{count} images have another label than ai or real: {values}",
            column="label",
            value_set=list(LABELS),
        ),
        expect(
            in_set,
            "critical",
            "split",
            "{count} images have another split than train, validation or test: {values}",
            column="split",
            value_set=[*SPLITS, REPORTED, REGRESSION],
        ),
        expect(
            in_set,
            "warning",
            "format",
            "{count} images are of a format that a browser doesn't show: {values}",
            column="format",
            value_set=["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"],
        ),
        never(
            "damaged",
            "critical",
            "integrity",
            "{count} images are not the bytes that were ingested: restore their shards",
        ),
        never(
            "conflicting",
            "critical",
            "label_conflict",
            "{count} images have equal pixels and both labels: remove the wrong ones with `trueframe forget`",
        ),
        never(
            "nearly_conflicting", "warning", "near_label_conflict", "{count} images look like one of the other label"
        ),
        expect(
            gxe.ExpectColumnValuesToBeBetween,
            "warning",
            "size",
            f"{{count}} images have a side below {settings.min_side} px",
            column="shorter_side",
            min_value=settings.min_side,
        ),
        never(
            "repeats_in_split",
            "warning",
            "exact_within_split",
            "{count} images repeat an earlier image of their own split",
        ),
        never(
            "repeats_train",
            "warning",
            "exact_across_splits",
            "{count} images outside train have pixels that are in train too",
        ),
        never(
            "resembles_train", "warning", "near_across_splits", "{count} images outside train look like one in train"
        ),
    ]


def figure_expectations(gxe: Any, figures: list[Figure]) -> list[Any]:
    """Of the whole: each figure within its limits."""
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column=f"{figure.check}_{number}",
            severity=figure.severity,
            meta={"check": figure.check, "message": figure.message, "count": figure.count},
            min_value=figure.least,
            max_value=figure.most,
        )
        for number, figure in enumerate(figures)
    ]


def check(
    rows: pd.DataFrame, details: dict[str, str], figures: list[Figure], settings: Validate, docs: Path
) -> list[Problem]:
    """Run the checkpoint over the images and over the figures of the whole, and build the Data Docs.

    Args:
        rows: a row an image, with the columns that `row_expectations` names.
        details: what more there is to say of a check of the images.
        figures: about the whole.
        settings: the section `validate`.
        docs: folder of the Data Docs.

    Returns:
        What is wrong, critical things first.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx
    from great_expectations import expectations as gxe
    from great_expectations.checkpoint import UpdateDataDocsAction

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    context.add_data_docs_site(
        site_name="local",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.resolve()).replace("$", r"\$"),  # or it would name a variable
            },
        },
    )
    source = context.data_sources.add_pandas("shards")
    table = pd.DataFrame(
        {f"{f.check}_{number}": [float("nan") if f.value is None else f.value] for number, f in enumerate(figures)}
    )
    problems = []
    for name, frame, expectations in (
        ("images", rows, row_expectations(gxe, settings, details)),
        ("table", table, figure_expectations(gxe, figures)),
    ):
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="docs", site_names=["local"])],
                result_format="SUMMARY",
            )
        )
        for run in checkpoint.run(batch_parameters={"dataframe": frame}).run_results.values():
            problems += [_problem(result) for result in run.results if not result.success]
    return sorted(problems, key=lambda problem: problem.severity)


def _problem(result: Any) -> Problem:
    config, found = result.expectation_config, result.result
    values = found.get("partial_unexpected_list") or [float("nan")]
    count = config.meta.get("count", int(found.get("unexpected_count", 0)))
    message = config.meta["message"].format(
        count=f"{count:,}", value=values[0], values=", ".join(sorted({str(v) for v in values[:5]}))
    )
    return Problem(config.meta["check"], str(getattr(config.severity, "value", config.severity)), message, count)
