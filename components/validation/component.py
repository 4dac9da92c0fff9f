"""Check rows and prepared table with Great Expectations."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def validate_data(
    rows: dsl.Input[dsl.Dataset],
    table: dsl.Input[dsl.Dataset],
    expectations: str,
    report: dsl.Output[dsl.HTML],
    results: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    model: str,
):
    """Check the data, and fail the run before training if an error-severity expectation does not hold.

    Args:
        rows: Raw rows, Parquet.
        table: Prepared table, Parquet.
        expectations: The suite as JSON, in Great Expectations' form.
        report: The result as a page.
        results: The result as JSON.
        metrics: Numbers of passed, failed and skipped expectations.
        model: Model class, by entry point name or as module:Class; its required columns may not be absent.
    """
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.data.validation import read_suite, validate, write_report
    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model_class

    with step("validation") as running:
        required = [column.name for column in load_model_class(model).columns if column.required]
        suite = read_suite(expectations, "expectations")
        checked = validate(pq.read_table(rows.path), pq.read_table(table.path), suite, running, required=required)
        write_report(checked, Path(report.path), Path(results.path))
        running.record(
            data={"warnings": checked.describe_warnings()},
            artifacts={"validation": report.path, "validation_results": results.path},
        )
        for name, count in checked.count_by_status().items():
            metrics.log_metric(f"expectations_{name}", count)
        checked.raise_for_errors()
