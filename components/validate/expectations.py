"""What the data must be like, as a Great Expectations suite, and the checkpoint that holds it to that."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.params import Validate
from components.shards import LABELS, SPLITS


@dataclass(frozen=True)
class Problem:
    """An expectation that the data doesn't meet."""

    check: str
    severity: str
    message: str
    count: int


def row_expectations(gxe: Any, settings: Validate) -> list[Any]:
    """Of every image. `message` is filled with the number of images and the values that were found."""

    def expect(kind: Any, severity: str, check: str, message: str, **of: Any) -> Any:
        return kind(severity=severity, meta={"check": check, "message": message}, **of)

    in_set, between, not_null = (
        gxe.ExpectColumnValuesToBeInSet,
        gxe.ExpectColumnValuesToBeBetween,
        gxe.ExpectColumnValuesToNotBeNull,
    )
    return [
        expect(not_null, "critical", "label", "{count} images have no label", column="label"),
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
            value_set=list(SPLITS),
        ),
        expect(
            in_set,
            "critical",
            "integrity",
            "{count} images are not the bytes that were ingested: restore their shards",
            column="intact",
            value_set=[True],
        ),
        expect(
            in_set,
            "critical",
            "label_conflict",
            "{count} images have equal pixels and both labels: remove the wrong ones",
            column="conflicting",
            value_set=[False],
        ),
        expect(
            between,
            "warning",
            "size",
            f"{{count}} images have a side below {settings.min_side} px",
            column="shorter_side",
            min_value=settings.min_side,
        ),
        expect(
            in_set,
            "warning",
            "exact_within_split",
            "{count} images repeat an earlier image of their own split",
            column="repeats_in_split",
            value_set=[False],
        ),
        expect(
            in_set,
            "warning",
            "exact_across_splits",
            "{count} images outside train have pixels that are in train too",
            column="repeats_train",
            value_set=[False],
        ),
        expect(
            in_set,
            "warning",
            "near_across_splits",
            "{count} images outside train look like one in train",
            column="resembles_train",
            value_set=[False],
        ),
    ]


def table_expectations(gxe: Any, settings: Validate) -> list[Any]:
    """Of the whole, a row of figures."""

    def between(column: str, severity: str, message: str, **limits: float) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, severity=severity, meta={"check": column, "message": message}, **limits
        )

    share = f"{settings.min_class_share:.0%} (validate.min_class_share)"
    return [
        between(
            "n_images",
            "critical",
            f"{{value:.0f}} images are fewer than {settings.min_images} (validate.min_images)",
            min_value=settings.min_images,
        ),
        between(
            "share_ai",
            "critical",
            f"only {{value:.1%}} of the images are labelled ai, less than {share}",
            min_value=settings.min_class_share,
        ),
        between(
            "share_real",
            "critical",
            f"only {{value:.1%}} of the images are labelled real, less than {share}",
            min_value=settings.min_class_share,
        ),
        between(
            "share_rejected",
            "critical",
            f"{{value:.1%}} of the files could not be read, more than {settings.max_rejected_share:.0%} "
            "(validate.max_rejected_share)",
            max_value=settings.max_rejected_share,
        ),
    ]


def check(rows: pd.DataFrame, table: pd.DataFrame, settings: Validate, docs: Path) -> list[Problem]:
    """Run the checkpoint over the images and over the figures of the whole, and build the Data Docs.

    Args:
        rows: a row an image, with the columns that `row_expectations` names.
        table: one row, with the columns that `table_expectations` names.
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
                "base_directory": str(docs.resolve()),
            },
        },
    )
    source = context.data_sources.add_pandas("shards")
    problems = []
    for name, frame, expectations in (
        ("images", rows, row_expectations(gxe, settings)),
        ("table", table, table_expectations(gxe, settings)),
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
    count = int(found.get("unexpected_count", 0))
    message = config.meta["message"].format(
        count=f"{count:,}", value=values[0], values=", ".join(sorted({str(v) for v in values[:5]}))
    )
    return Problem(config.meta["check"], str(getattr(config.severity, "value", config.severity)), message, count)
