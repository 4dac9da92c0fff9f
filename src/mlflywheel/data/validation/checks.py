"""Running a suite with Great Expectations.

Great Expectations checks; this module only decides what it gets: it leaves out rules whose columns the table does not
have, resolves relative dates, asks for the `SUMMARY` result (exact counts and a capped list of row positions;
`COMPLETE` would hold every unexpected value of a broken table), and turns the answer into plain, masked data.
"""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflywheel.data.validation.masking import mask_identifier, mask_value
from mlflywheel.data.validation.results import RuleResult, Status, ValidationResult
from mlflywheel.data.validation.suite import TABLES, Rule, Suite, TableName, resolve
from mlflywheel.data.validation.tables import DERIVED, Frame, absent_columns, build_frame, is_text
from mlflywheel.errors import MissingExtraError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    import pandas as pd

MOST_EXAMPLES = 20
_A_GREATER_THAN_B = "expect_column_pair_values_a_to_be_greater_than_b"


def validate(
    rows: pa.Table,
    prepared: pa.Table | None,
    suite: Suite,
    progress: ProgressCallback = ignore_progress,
    *,
    required: Collection[str] = (),
    today: date | None = None,
) -> ValidationResult:
    """Check both tables against a suite.

    A rule on an absent column is skipped, and fails if the column is required. A rule that cannot be evaluated, such as
    a number rule on text, fails with the reason.

    Args:
        rows: The table as ingestion wrote it.
        prepared: The prepared table; None skips the rules on it.
        suite: The rules.
        progress: Called with the phases `checking rows` and `checking prepared`, in rules.
        required: Columns whose absence fails every rule on them (`Column.required` of the model).
        today: The day that relative dates count from; default today in UTC.

    Raises:
        UsageError: An expectation's arguments cannot be meant; the message names the rule.
        MissingExtraError: Great Expectations is not installed.
    """
    today = today or datetime.now(UTC).date()
    tables: dict[TableName, pa.Table | None] = {"rows": rows, "prepared": prepared}
    results: list[RuleResult] = []
    version = _find_version()
    with _quiet():
        checker = _Checker(suite.id_column, frozenset(required), today)
        for name in TABLES:
            rules = suite.of(name)
            progress(f"checking {name}", 0, len(rules))
            table = tables[name]
            if table is None:
                results += [_result(rule, "skipped", reason=f"no {name} table was given") for rule in rules]
            else:
                results += checker.check(rules, table)
            progress(f"checking {name}", len(rules), len(rules))
    counts: dict[str, int] = {name: table.num_rows for name, table in tables.items() if table is not None}
    return ValidationResult(tuple(results), counts, today.isoformat(), suite.id_column, f"great_expectations {version}")


def _find_version() -> str:
    """Return Great Expectations' version without importing it."""
    try:
        return metadata.version("great_expectations")
    except metadata.PackageNotFoundError:
        raise MissingExtraError.of("great_expectations", "pipelines", "data validation") from None


class _Checker:
    def __init__(self, id_column: str, required: frozenset[str], today: date) -> None:
        self._id_column, self._required, self._today = id_column, required, today

    @cached_property
    def _batches(self) -> Any:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
        return asset.add_batch_definition_whole_dataframe("whole")

    def check(self, rules: tuple[Rule, ...], table: pa.Table) -> list[RuleResult]:
        """Check one table; the results are in the order of the rules."""
        if not rules:
            return []
        import pandas as pd

        arguments = [_present_arguments(rule, table, self._today) for rule in rules]
        frame = build_frame(
            table,
            [column for rule in rules for column in rule.columns],
            [
                column
                for rule, kwargs in zip(rules, arguments, strict=True)
                if _has_date(kwargs)
                for column in rule.columns
            ],
        )
        results: dict[int, RuleResult] = {}
        on_values: dict[int, Any] = {}
        on_names: dict[int, Any] = {}
        for number, (rule, kwargs) in enumerate(zip(rules, arguments, strict=True)):
            expectation = _build(rule, kwargs, number)
            decided = self._decide(rule, kwargs, frame, expectation)
            if decided is not None:
                results[number] = decided
            else:
                (on_names if rule.reads_only_names else on_values)[number] = expectation
        names = pd.DataFrame(columns=table.column_names)
        for expectations, values in ((on_values, frame.values), (on_names, names)):
            for number, outcome in self._run(expectations, values).items():
                results[number] = self._read(rules[number], arguments[number], outcome, frame)
        return [results[number] for number in range(len(rules))]

    def _decide(self, rule: Rule, kwargs: Mapping[str, Any], frame: Frame, expectation: Any) -> RuleResult | None:
        """Return the result of a rule that Great Expectations need not see."""
        from great_expectations.expectations.expectation import ColumnAggregateExpectation

        columns = _columns_in_use(rule, kwargs)
        absent = absent_columns(frame.table, columns)
        needed = rule.required or any(
            name in self._required for column in columns for name in (column, *absent.get(column, ()))
        )
        if absent:
            lacking = ", ".join(dict.fromkeys(name for sources in absent.values() for name in sources))
            plural = "columns" if "," in lacking else "column"
            if needed:
                return _result(rule, "failed", kwargs, f"the table has no {plural} {lacking}, which is required")
            return _result(rule, "skipped", kwargs, f"the table has no {plural} {lacking}")
        if rule.optional and len(columns) < 2 <= len(rule.columns):
            return _result(rule, "skipped", kwargs, "fewer than two of its columns are in the table")
        for column in columns:
            if column in frame.problems:
                return _result(rule, "failed", kwargs, f"could not be checked: {frame.problems[column]}")
            if column not in frame.values:
                return _result(rule, "failed", kwargs, f"could not be checked: {column} needs lists of text in terms")
            if rule.type == _A_GREATER_THAN_B and is_text(frame.table, column) and not _has_date(kwargs):
                reason = f"could not be checked: column {column} holds text, and text sorts 10 before 9"
                return _result(rule, "failed", kwargs, reason)
        if isinstance(expectation, ColumnAggregateExpectation) and bool(frame.values[columns[0]].isna().all()):
            reason = f"column {columns[0]} has no values"
            return _result(rule, "failed" if needed else "skipped", kwargs, reason)
        return None

    def _run(self, expectations: Mapping[int, Any], values: "pd.DataFrame") -> dict[int, Any]:
        if not expectations:
            return {}
        from great_expectations import ExpectationSuite

        batch = self._batches.get_batch(batch_parameters={"dataframe": values})
        found = batch.validate(
            ExpectationSuite(name="suite", expectations=list(expectations.values())),
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": MOST_EXAMPLES},
        )
        # Results come in another order than rules: those that raised are first.
        outcomes: list[Any] = list(found.results)
        return {outcome.expectation_config.meta["number"]: outcome for outcome in outcomes}

    def _read(self, rule: Rule, kwargs: Mapping[str, Any], outcome: Any, frame: Frame) -> RuleResult:
        exception = _exception(outcome.exception_info)
        if exception:
            return _result(rule, "failed", kwargs, f"could not be checked: {mask_value(exception)}")
        found = outcome.result
        status: Status = "passed" if outcome.success else "failed"
        if "unexpected_count" not in found:
            observed = found.get("observed_value")
            if rule.reads_only_names:
                observed = list(frame.table.column_names)
            return _result(rule, status, kwargs, observed=mask_value(observed), count=frame.table.num_rows)
        unexpected = int(found["unexpected_count"])
        count = int(found["element_count"]) - int(found.get("missing_count") or 0)
        columns = _columns_in_use(rule, kwargs)
        rows = [int(row) for row in (found.get("partial_unexpected_index_list") or [])[:MOST_EXAMPLES]]
        return _result(
            rule,
            status,
            kwargs,
            observed=unexpected / count if count else None,
            unexpected_count=unexpected,
            count=count,
            examples=tuple(self._example(row, columns, frame) for row in rows),
        )

    def _example(self, row: int, columns: tuple[str, ...], frame: Frame) -> dict[str, Any]:
        example: dict[str, Any] = {}
        if self._id_column in frame.table.column_names:
            example["id"] = mask_identifier(frame.cell(self._id_column, row))
        example["row"] = row + 1
        shown = {name: self._shown(name, frame.cell(name, row)) for name in columns}
        example["value"] = shown if len(shown) > 1 else next(iter(shown.values()))
        return example

    def _shown(self, column: str, value: Any) -> Any:
        if column in DERIVED:
            return value
        if isinstance(value, str) and not value.strip():
            return None
        return mask_identifier(value) if column == self._id_column else mask_value(value)


def _present_arguments(rule: Rule, table: pa.Table, today: date) -> dict[str, Any]:
    kwargs = resolve(rule.kwargs, today)
    if rule.optional and isinstance(kwargs.get("column_list"), list):
        absent = absent_columns(table, kwargs["column_list"])
        dropped = rule.optional.intersection(absent)
        kwargs["column_list"] = [name for name in kwargs["column_list"] if name not in dropped]
    return kwargs


def _columns_in_use(rule: Rule, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    dropped = set(rule.kwargs.get("column_list") or ()) - set(kwargs.get("column_list") or ())
    return tuple(column for column in rule.columns if column not in dropped)


def _has_date(kwargs: Mapping[str, Any]) -> bool:
    return any(isinstance(kwargs.get(key), datetime) for key in ("min_value", "max_value"))


def _build(rule: Rule, kwargs: Mapping[str, Any], number: int) -> Any:
    from great_expectations.exceptions.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    gx = rule.to_gx()
    try:
        # Pydantic 1's ValidationError, which Great Expectations raises for its arguments, is a ValueError.
        return ExpectationConfiguration(
            type=rule.type, kwargs=dict(kwargs), meta={"number": number}, severity=gx["severity"]
        ).to_domain_obj()
    except (ValueError, TypeError, GreatExpectationsError) as error:
        seen = "; ".join(line.strip() for line in str(error).splitlines()[1:5]) or str(error)
        raise UsageError(
            f"suite, {rule.table} rule {rule.name}",
            seen,
            f"the arguments of {rule.type} are needed",
            "correct the rule's kwargs",
        ) from None


def _exception(info: Any) -> str:
    """Return the message of an exception inside Great Expectations: one mapping, or one for each metric."""
    if not isinstance(info, Mapping):
        return ""
    entries = [info] if "raised_exception" in info else [entry for entry in info.values() if isinstance(entry, Mapping)]
    for entry in entries:
        if entry.get("raised_exception"):
            return str(entry.get("exception_message") or "Great Expectations raised an exception").strip()
    return ""


def _result(
    rule: Rule, status: Status, kwargs: Mapping[str, Any] | None = None, reason: str = "", **found: Any
) -> RuleResult:
    shown = rule.kwargs if kwargs is None else kwargs
    return RuleResult(
        name=rule.name,
        table=rule.table,
        severity=rule.severity,
        status=status,
        description=rule.description,
        reason=reason,
        type=rule.type,
        kwargs={key: _plain(value) for key, value in shown.items()},
        **found,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Great Expectations' warnings and log lines out of a run's output: its findings are the result."""
    logger = logging.getLogger("great_expectations")
    # Some of its loggers set a level of their own, so a level here would not reach them; stopping the way up does.
    propagate, handler = logger.propagate, logging.NullHandler()
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
