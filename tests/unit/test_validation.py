"""Data validation: the shipped suite on small tables, each rule firing and not firing."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mlflywheel.data.validation import (
    Rule,
    RuleResult,
    Suite,
    ValidationResult,
    mask_identifier,
    mask_value,
    read_suite,
    render_html,
    validate,
    write_report,
)
from mlflywheel.data.validation.html import LARGEST_BYTES
from mlflywheel.data.validation.suite import TABLES, _known_types
from mlflywheel.data.validation.tables import build_frame, is_unreadable
from mlflywheel.errors import ExpectationError, UsageError

SUITE_FILE = Path(__file__).parents[2] / "pipelines" / "ad_campaigns" / "expectations.json"
TODAY = date(2026, 3, 31)
REQUIRED = frozenset({"campaign_id", "term"})
Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_suite(SUITE_FILE.read_text(encoding="utf-8"), SUITE_FILE.name)


def good_rows() -> Columns:
    """Thirty campaigns with six terms each; every optional column is there."""
    count = 180
    return {
        "campaign_id": [f"c{number // 6:02}" for number in range(count)],
        "kind": ["keyword" if number % 2 else "headline" for number in range(count)],
        "term": [f"running shoe {number % 6}" for number in range(count)],
        "impressions": [100 + number for number in range(count)],
        "clicks": [number % 10 for number in range(count)],
        "cost": [0.25 * number for number in range(count)],
        "locale": ["en-US" if number % 2 else "es-US" for number in range(count)],
        "as_of": [TODAY - timedelta(days=number % 30) for number in range(count)],
    }


def good_prepared() -> Columns:
    count = 300
    return {
        "campaign_id": [f"c{number:03}" for number in range(count)],
        "terms": [["running", "shoe", "trail", "sale", f"word{number}"] for number in range(count)],
        "weights": [[1.0, 0.5, 2.0, 1.0, 1.0] for _ in range(count)],
    }


def put(column: str, row: int, *values: Any) -> Callable[[Columns], None]:
    """Return a change that replaces cells of a column, from a row (counted from 0) on."""

    def change(columns: Columns) -> None:
        columns[column][row : row + len(values)] = values

    return change


def repeat_row(columns: Columns) -> None:
    for values in columns.values():
        values.append(values[0])


def empty(columns: Columns) -> None:
    for name in columns:
        columns[name] = []


def run(suite: Suite, rows: Columns, prepared: Columns | None = None, **arguments: Any) -> ValidationResult:
    schema: dict[str, pa.DataType] = {
        name: pa.string() for name in ("campaign_id", "kind", "term", "locale") if name in rows
    }
    table = pa.table({name: pa.array(values, schema.get(name)) for name, values in rows.items()})
    arguments.setdefault("required", REQUIRED)
    other = None if prepared is None else pa.table(prepared)
    return validate(table, other, suite, today=TODAY, **arguments)


def failures(result: ValidationResult) -> set[str]:
    return {rule.name for rule in result.rules if rule.status == "failed"}


def named(result: ValidationResult, name: str) -> RuleResult:
    return next(rule for rule in result.rules if rule.name == name)


def test_good_tables_pass_every_rule_of_the_suite(
    suite: Suite, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    phases: list[tuple[str, int, int]] = []
    result = run(suite, good_rows(), good_prepared(), progress=lambda *seen: phases.append(seen))
    assert {rule.name: rule.status for rule in result.rules} == {rule.name: "passed" for rule in suite.rules}
    assert [rule.name for rule in result.rules] == [rule.name for rule in suite.rules]
    assert result.passed
    result.raise_for_errors()
    assert phases[-1] == ("checking prepared", len(suite.of("prepared")), len(suite.of("prepared")))
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.name.startswith("great_expectations")] == []


ROW_CASES: list[tuple[str, Callable[[Columns], None], set[str], int | None]] = [
    ("a missing id", put("campaign_id", 3, None), {"campaign_id_present"}, 4),
    ("a blank id", put("campaign_id", 3, " \t"), {"campaign_id_present"}, 4),
    ("one missing term", put("term", 8, None), {"term_present"}, 9),
    ("one blank term", put("term", 8, "  "), {"term_present"}, 9),
    ("5 % missing terms", put("term", 0, *[None] * 9), {"term_present", "rows_unique"}, 1),
    ("over 5 %", put("term", 0, *[None] * 10), {"term_present", "rows_unique", "term_mostly_present"}, 1),
    ("a text at the longest", put("term", 2, "a" * 1_000_000), set(), None),
    ("a huge term", put("term", 2, "a" * 10_000_000), {"term_length"}, 3),
    ("an e-mail address", put("term", 5, "write to jane.doe@example.com"), {"term_without_email"}, 6),
    ("a telephone number", put("term", 5, "+44 20 7946 0958"), {"term_without_telephone"}, 6),
    ("ten digits", put("term", 5, "4155550123"), {"term_without_ten_digits"}, 6),
    ("a repeated row", repeat_row, {"rows_unique"}, 1),
    ("the same term in two kinds", put("term", 1, "running shoe 0"), set(), None),
    ("an unknown kind", put("kind", 7, "jingle"), {"kind_known"}, 8),
    ("negative impressions", put("impressions", 0, -1), {"impressions_not_negative", "clicks_at_most_impressions"}, 1),
    ("negative clicks", put("clicks", 9, -1), {"clicks_not_negative"}, 10),
    ("negative cost", put("cost", 9, -0.01), {"cost_not_negative"}, 10),
    ("clicks above impressions", put("clicks", 4, 105), {"clicks_at_most_impressions"}, 5),
    ("clicks equal impressions", put("clicks", 4, 104), set(), None),
    ("clicks without impressions", put("impressions", 4, None), set(), None),
    ("an unlisted locale", put("locale", 11, "en_US"), {"locale_listed"}, 12),
    ("a missing locale", put("locale", 11, None), set(), None),
    ("a date tomorrow", put("as_of", 6, TODAY + timedelta(days=1)), set(), None),
    ("a date in the future", put("as_of", 6, TODAY + timedelta(days=2)), {"as_of_not_in_future"}, 7),
    ("no rows", empty, {"rows_present"}, None),
]


@pytest.mark.parametrize(("change", "expected", "row"), [case[1:] for case in ROW_CASES], ids=[c[0] for c in ROW_CASES])
def test_rule_on_rows_fires_alone_and_names_the_row(
    suite: Suite, change: Callable[[Columns], None], expected: set[str], row: int | None
) -> None:
    rows = good_rows()
    change(rows)
    result = run(suite, rows)
    assert failures(result) == expected
    if row is not None:
        broken = [rule for rule in result.rules if rule.status == "failed"]
        assert all(rule.examples[0]["row"] == row for rule in broken)
        assert all(rule.examples[0]["id"] == mask_identifier(rows["campaign_id"][row - 1]) for rule in broken)
        assert all(rule.unexpected_count for rule in broken)


def test_prepared_rules_are_skipped_without_a_prepared_table(suite: Suite) -> None:
    result = run(suite, good_rows())
    on_prepared = [rule for rule in result.rules if rule.table == "prepared"]
    assert {(rule.status, rule.reason) for rule in on_prepared} == {("skipped", "no prepared table was given")}


PREPARED_CASES: list[tuple[str, Callable[[Columns], None], set[str]]] = [
    ("a missing id", put("campaign_id", 3, None), {"prepared_id_present"}),
    ("a repeated id", put("campaign_id", 3, "c000"), {"prepared_id_unique"}),
    ("thin campaigns below the share", put("terms", 0, *[["a", f"b{n}", "c", "d"] for n in range(30)]), set()),
    ("thin campaigns", put("terms", 0, *[["a", f"b{n}", "c", "d"] for n in range(31)]), {"terms_enough"}),
    ("empty campaigns", put("terms", 0, *[[]] * 30, *[None] * 31), {"terms_enough", "terms_not_empty"}),
    ("broken terms in 5 %", put("terms", 0, *[["cafÃ©", "24/7", f"x{n}", "y", "z"] for n in range(15)]), set()),
    ("broken terms", put("terms", 0, *[["caf\ufffd", "7", f"x{n}", "y", "z"] for n in range(16)]), {"terms_readable"}),
    (
        "mostly broken terms",
        put("terms", 0, *[["1", "2", "3", "4", f"{n + 10}"] for n in range(100)]),
        {"terms_readable", "terms_mostly_readable"},
    ),
    ("a term at the longest", put("terms", 0, ["a" * 10_000, "b", "c", "d", "e"]), set()),
    ("a text that was not split", put("terms", 0, ["a" * 10_001, "b", "c", "d", "e"]), {"terms_short"}),
    ("three equal documents", put("terms", 0, *[["a", "b", "c", "d", "e"]] * 3), set()),
    (
        "four equal documents in another order",
        put("terms", 0, *[["a", "b", "c", "d", "e"]] * 3, ["e", "d", "c", "b", "a"]),
        {"documents_distinct"},
    ),
    ("a missing weight", put("weights", 1, [1.0, 1.0, 1.0, 1.0]), {"weights_fit_terms"}),
    ("a weight that is not finite", put("weights", 1, [1.0, 1.0, 1.0, 1.0, float("nan")]), {"weights_fit_terms"}),
    ("a negative weight", put("weights", 1, [1.0, 1.0, 1.0, 1.0, -0.5]), {"weights_fit_terms"}),
    ("no campaigns", lambda columns: empty(columns), {"campaigns_present"}),
]


@pytest.mark.parametrize(("change", "expected"), [c[1:] for c in PREPARED_CASES], ids=[c[0] for c in PREPARED_CASES])
def test_rule_on_prepared_table_fires_alone(
    suite: Suite, change: Callable[[Columns], None], expected: set[str]
) -> None:
    columns = good_prepared()
    change(columns)
    for terms, weights in zip(columns["terms"], columns["weights"], strict=True):
        if "weights" not in str(expected) and len(terms or []) != len(weights):
            weights[:] = [1.0] * len(terms or [])
    types = {"campaign_id": pa.string(), "terms": pa.list_(pa.string()), "weights": pa.list_(pa.float64())}
    table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    only = Suite(suite.of("prepared"), suite.id_column)
    result = validate(pa.table({"term": ["a"]}), table, only, today=TODAY)
    if expected == {"campaigns_present"}:
        # Nothing can be averaged over no campaigns, and that rule is required.
        expected = {"campaigns_present", "terms_mostly_readable"}
        assert named(result, "terms_mostly_readable").reason == "column unreadable_share has no values"
    assert failures(result) == expected


def test_every_rule_of_the_suite_is_seen_firing(suite: Suite) -> None:
    fired = {name for case in ROW_CASES for name in case[2]} | {name for case in PREPARED_CASES for name in case[2]}
    # The age of the newest row is tested on its own, at its limit.
    assert fired | {"as_of_recent"} == {rule.name for rule in suite.rules}


def test_absent_optional_columns_skip_their_rules_with_the_reason(suite: Suite) -> None:
    rows = {name: good_rows()[name] for name in ("campaign_id", "term")}
    repeat_row(rows)
    result = run(suite, rows)
    assert {rule.name for rule in result.rules if rule.table == "rows" and rule.status == "skipped"} == {
        "kind_known",
        "impressions_not_negative",
        "clicks_not_negative",
        "cost_not_negative",
        "clicks_at_most_impressions",
        "locale_listed",
        "as_of_recent",
        "as_of_not_in_future",
    }
    assert named(result, "clicks_at_most_impressions").reason == "the table has no columns impressions, clicks"
    assert named(result, "rows_unique").unexpected_count == 2
    assert named(result, "rows_unique").kwargs["column_list"] == ["campaign_id", "term"]
    assert result.passed


def test_absent_required_column_fails_its_rules(suite: Suite) -> None:
    rows = good_rows()
    del rows["cost"], rows["term"]
    result = run(suite, rows, required={"cost"})
    assert named(result, "cost_not_negative").status == "failed"
    assert named(result, "cost_not_negative").reason == "the table has no column cost, which is required"
    assert named(result, "term_length").status == "failed"
    with pytest.raises(ExpectationError, match="term_length: the table has no column term, which is required"):
        result.raise_for_errors()


@pytest.mark.parametrize(("days", "expected"), [(90, "passed"), (91, "failed")])
@pytest.mark.parametrize("kind", ["date", "text", "timestamp"])
def test_newest_row_is_at_most_90_days_old(suite: Suite, kind: str, days: int, expected: str) -> None:
    newest = datetime(TODAY.year, TODAY.month, TODAY.day, 0, 0, tzinfo=UTC) - timedelta(days=days)
    column = {
        "date": pa.array([newest.date(), None]),
        "text": pa.array([newest.isoformat(), ""]),
        "timestamp": pa.array([newest, None], pa.timestamp("us", "America/Los_Angeles")),
    }[kind]
    only = Suite(tuple(rule for rule in suite.rules if rule.name.startswith("as_of")))
    result = validate(pa.table({"as_of": column}), None, only, today=TODAY)
    assert named(result, "as_of_recent").status == expected
    assert named(result, "as_of_recent").observed == newest.replace(tzinfo=None).isoformat()
    assert named(result, "as_of_recent").kwargs["min_value"] == "2025-12-31T00:00:00"
    assert named(result, "as_of_not_in_future").status == "passed"


def test_values_that_cannot_be_compared_fail_with_the_reason(suite: Suite) -> None:
    rows = good_rows()
    rows["as_of"] = ["2026-03-01"] * 179 + ["yesterday"]
    rows["clicks"] = [str(value) for value in rows["clicks"]]
    rows["impressions"] = [str(value) for value in rows["impressions"]]
    rows["cost"] = [None] * 180
    result = run(suite, rows)
    assert named(result, "as_of_not_in_future").status == "failed"
    assert named(result, "as_of_not_in_future").reason == (
        "could not be checked: column as_of holds text that is not an ISO date: 'yesterday' in row 180"
    )
    assert "text sorts 10 before 9" in named(result, "clicks_at_most_impressions").reason
    assert named(result, "clicks_not_negative").status == "failed"
    assert named(result, "clicks_not_negative").reason.startswith("could not be checked: ")
    assert named(result, "cost_not_negative").status == "passed"


def test_aggregate_of_an_empty_optional_column_is_skipped(suite: Suite) -> None:
    rows = good_rows()
    rows["as_of"] = [None] * 180
    assert named(run(suite, rows), "as_of_recent").reason == "column as_of has no values"


def test_message_of_a_stopped_run_names_rule_count_and_masked_rows(suite: Suite) -> None:
    rows = good_rows()
    rows["term"][0] = None
    rows["term"][5] = "ask jane.doe@example.com"
    rows["term"][9] = "joe@example.org"
    rows["clicks"][4] = 105
    rows["campaign_id"][9] = "owner@example.org"
    with pytest.raises(ExpectationError) as caught:
        run(suite, rows).raise_for_errors()
    message = str(caught.value)
    assert message.startswith("data validation, rows table: 2 of ")
    assert "term_without_email: 2 of 179 rows (row 6, id c00: ask j***@***; row 10, id o***@***: j***@***)" in message
    assert "clicks_at_most_impressions: 1 of 180 rows (row 5, id c00: impressions 104, clicks 105)" in message
    assert "example." not in message
    assert caught.value.exit_code == 1


def test_counts_stay_exact_while_examples_are_capped(suite: Suite) -> None:
    rows = good_rows()
    rows["locale"] = ["xx"] * 180
    rule = named(run(suite, rows), "locale_listed")
    assert (rule.unexpected_count, rule.count, rule.observed, len(rule.examples)) == (180, 180, 1.0, 20)


def test_message_describes_at_most_five_rules() -> None:
    rules = tuple(RuleResult(f"rule{n}", "rows", "error", "failed", unexpected_count=1, count=2) for n in range(7))
    result = ValidationResult(rules, {"rows": 2}, "2026-03-31", "campaign_id", "test")
    with pytest.raises(ExpectationError, match=r"7 of 7 error rules failed: rule0: .*rule4: 1 of 2 rows; and 2 more;"):
        result.raise_for_errors()


# Plain data and the page


def broken(suite: Suite) -> ValidationResult:
    rows = good_rows()
    rows["term"][5] = "jane.doe@example.com <script>alert(1)</script>"
    rows["term"][7] = "+44 20 7946 0958"
    rows["clicks"][4] = 105
    rows["as_of"] = [TODAY - timedelta(days=200)] * 180
    del rows["cost"]
    prepared = good_prepared()
    prepared["terms"][:100] = [["1", "2", "3", "4", f"{number + 10}"] for number in range(100)]
    return run(suite, rows, prepared)


def walk(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(item for child in value.values() for item in walk(child))]
    if isinstance(value, list | tuple):
        return [value, *(item for child in value for item in walk(child))]
    return [value]


def test_result_is_plain_json_and_reads_back(suite: Suite, tmp_path: Path) -> None:
    result = broken(suite)
    plain = {dict, list, tuple, str, int, float, bool, type(None)}
    seen = {type(value) for value in walk(result.to_dict())}
    assert seen <= plain
    write_report(result, tmp_path / "validation.html", tmp_path / "validation.json")
    loaded = json.loads((tmp_path / "validation.json").read_text(encoding="utf-8"))
    assert loaded["status"] == "failed"
    assert loaded["counts"] == {"rows": 180, "prepared": 300}
    assert ValidationResult.from_dict(loaded).to_dict() == result.to_dict()
    assert (tmp_path / "validation.html").read_text(encoding="utf-8") == render_html(result)
    for text in (json.dumps(loaded), render_html(result)):
        assert "jane" not in text
        assert "7946" not in text


def test_page_is_offline_small_and_draws_aggregates(suite: Suite) -> None:
    page = render_html(broken(suite))
    assert len(page.encode()) < LARGEST_BYTES
    assert "http" not in page
    assert not re.search(r"""<script|<link|<img|@import|url\(|\bsrc=|\bhref=""", page)
    assert "&lt;script&gt;" in page
    assert "Traceback" not in page
    assert "np." not in page
    assert "Observed 2025-09-12T00:00:00 over 180 rows" in page
    assert "Observed 0.333333 over 300 rows" in page
    assert "impressions 104, clicks 105" in page
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


def test_page_of_a_large_suite_shows_fewer_examples() -> None:
    examples = tuple({"id": "i" * 60, "row": row, "value": "v" * 60} for row in range(20))
    rules = tuple(
        RuleResult(f"rule{n}", "rows", "error", status, "d" * 100, 0.5, 20, 40, examples, kwargs={"column": "c" * 40})
        for n in range(150)
        for status in ("failed", "passed")
    )
    page = render_html(ValidationResult(rules, {"rows": 40}, "2026-03-31", "campaign_id", "test"))
    assert len(page.encode()) < LARGEST_BYTES
    assert page.count("20 of 40 rows are unexpected") == 300


# The suite


def test_suite_goes_to_great_expectations_and_back(suite: Suite) -> None:
    run(suite, good_rows())  # imports Great Expectations quietly
    from great_expectations import ExpectationSuite

    found: dict[str, Any] = {"schema": 1}
    for table in TABLES:
        gx_suite = ExpectationSuite(name=table, expectations=[*suite.to_gx(table, TODAY)])
        found[table] = json.loads(json.dumps(gx_suite.to_json_dict()))["expectations"]
        assert {item["severity"] for item in found[table]} == {"critical", "warning"}
    back = read_suite(found, "round trip")
    assert [(r.name, r.table, r.severity, r.type, r.description, r.required) for r in back.rules] == [
        (r.name, r.table, r.severity, r.type, r.description, r.required) for r in suite.rules
    ]
    for table in TABLES:
        for ours, theirs in zip(suite.to_gx(table, TODAY), back.to_gx(table), strict=True):
            assert theirs["kwargs"] == ours["kwargs"]
            assert theirs["meta"] == ours["meta"]
    assert read_suite(suite.to_dict(), "itself") == suite


def test_known_types_are_the_expectations_that_great_expectations_has(suite: Suite) -> None:
    run(suite, good_rows())
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    theirs = {name for name in list_registered_expectation_implementations() if name.startswith("expect_")}
    assert theirs - _known_types() == {
        "expect_query_results_to_match_comparison",
        "expect_table_row_count_to_equal_other_table",
    }
    assert _known_types() <= theirs


def rule(**changes: Any) -> dict[str, Any]:
    return {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "term"}, "severity": "error", **changes}


@pytest.mark.parametrize(
    ("content", "where", "seen"),
    [
        ('{"schema": 1,', "e.json, line 1 column 14", "not JSON"),
        ("[]", "e.json", "a list"),
        ({"rows": []}, "e.json, schema", "None"),
        ({"schema": 1, "row": []}, "e.json", "unknown key 'row'"),
        ({"schema": 1, "rows": {}}, "e.json, rows", "a dict"),
        ({"schema": 1, "rows": [rule(), 7]}, "e.json, rows rule 2", "a int"),
        ({"schema": 1, "prepared": [rule(type="expect_nothing")]}, "e.json, prepared rule 1, type", "'expect_nothing'"),
        ({"schema": 1, "rows": [rule(type="unexpected_rows_expectation")]}, "e.json, rows rule 1, type", "unexpected_"),
        ({"schema": 1, "rows": [rule(severity="fatal")]}, "e.json, rows rule 1, severity", "'fatal'"),
        ({"schema": 1, "rows": [rule(column="term")]}, "e.json, rows rule 1", "unknown key 'column'"),
        ({"schema": 1, "rows": [rule(kwargs=["term"])]}, "e.json, rows rule 1, kwargs", "a list"),
        ({"schema": 1, "rows": [rule(meta={"required": "yes"})]}, "e.json, rows rule 1, meta.required", "'yes'"),
        ({"schema": 1, "rows": [rule(meta={"optional": "kind"})]}, "e.json, rows rule 1, meta.optional", "'kind'"),
        ({"schema": 1, "rows": [rule(kwargs={"regex": "("})]}, "e.json, rows rule 1, kwargs.regex", "not a regular"),
        (
            {"schema": 1, "rows": [rule(kwargs={"column": "a", "row_condition": "@x", "condition_parser": "pandas"})]},
            "e.json, rows rule 1, row_condition",
            "'@x'",
        ),
        (
            {"schema": 1, "rows": [rule(kwargs={"min_value": {"$weeks_ago": 1}})]},
            "e.json, rows rule 1, kwargs.min_value",
            "$weeks_ago",
        ),
        (
            {"schema": 1, "rows": [rule(kwargs={"min_value": {"$days_ago": 1.5}})]},
            "e.json, rows rule 1, kwargs.min_value",
            "1.5",
        ),
        (
            {"schema": 1, "rows": [rule(meta={"name": "a"}), rule(meta={"name": "a"})]},
            "e.json, meta.name",
            "2 rules are called 'a'",
        ),
    ],
)
def test_suite_that_cannot_be_meant_is_refused_with_the_place(content: Any, where: str, seen: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_suite(content, "e.json")
    assert caught.value.where == where
    assert seen in caught.value.seen


def test_refusal_suggests_the_nearest_expectation() -> None:
    content = {"schema": 1, "rows": [rule(type="expect_column_values_not_to_be_null")]}
    with pytest.raises(UsageError, match=r"choose a name such as .*expect_column_values_to_not_be_null"):
        read_suite(content, "e.json")


@pytest.mark.parametrize("kwargs", [{"column": "term", "mostly": 3}, {"colum": "term"}, {}])
def test_arguments_that_the_expectation_does_not_have_are_refused(kwargs: dict[str, Any]) -> None:
    suite = read_suite({"schema": 1, "rows": [rule(kwargs=kwargs, meta={"name": "mine"})]}, "e.json")
    with pytest.raises(UsageError, match="rows rule mine"):
        validate(pa.table({"term": ["a"]}), None, suite)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("critical", "error"), ("warning", "warn"), ("info", "warn"), ("error", "error"), ("warn", "warn")],
)
def test_both_vocabularies_of_severity_are_read(theirs: str, ours: str) -> None:
    assert read_suite({"schema": 1, "rows": [rule(severity=theirs)]}, "e.json").rules[0].severity == ours


def test_rules_without_a_name_are_named_by_columns_and_type() -> None:
    suite = read_suite({"schema": 1, "rows": [rule(), rule(severity="warn")]}, "e.json")
    assert [found.name for found in suite.rules] == [
        "term column_values_to_not_be_null",
        "term column_values_to_not_be_null (2)",
    ]


def test_rules_on_column_names_see_the_table_as_it_is() -> None:
    rules = [
        {"type": "expect_table_columns_to_match_set", "kwargs": {"column_set": ["a", "b"], "exact_match": True}},
        {"type": "expect_table_column_count_to_equal", "kwargs": {"value": 2}},
        {"type": "expect_column_to_exist", "kwargs": {"column": "b"}},
        {"type": "expect_column_to_exist", "kwargs": {"column": "c"}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}},
    ]
    result = validate(pa.table({"a": [1], "b": [["x"]]}), None, read_suite({"schema": 1, "rows": rules}, "e.json"))
    assert [found.status for found in result.rules] == ["passed", "passed", "passed", "failed", "passed"]
    assert result.rules[0].observed == ["a", "b"]
    assert result.rules[4].examples == ()


def test_a_list_column_names_the_columns_that_rules_can_read() -> None:
    suite = read_suite({"schema": 1, "prepared": [rule(kwargs={"column": "terms"})]}, "e.json")
    result = validate(pa.table({"a": [1]}), pa.table({"terms": [["x"]]}), suite)
    assert "rules can read terms_count, longest_term_characters, unreadable_share" in result.rules[0].reason


def test_reading_a_suite_does_not_import_great_expectations() -> None:
    code = (
        "import sys; from pathlib import Path; from mlflywheel.data.validation import read_suite\n"
        f"suite = read_suite(Path({str(SUITE_FILE)!r}).read_text(), 'e.json')\n"
        "assert len(suite.rules) > 20\n"
        "assert not {'great_expectations', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_suite_without_rules_is_checked_without_great_expectations() -> None:
    code = (
        "import sys; import pyarrow as pa; from mlflywheel.data.validation import read_suite, validate\n"
        "result = validate(pa.table({'a': [1, 2]}), pa.table({'a': [1]}), read_suite({'schema': 1}, 'e.json'))\n"
        "result.raise_for_errors()\n"
        "assert (result.rules, result.counts) == ((), {'rows': 2, 'prepared': 1})\n"
        "assert 'great_expectations' not in sys.modules\n"
        "import great_expectations; assert result.checker == f'great_expectations {great_expectations.__version__}'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Computed columns and masking


def test_computed_columns_describe_the_terms() -> None:
    table = pa.table(
        {
            "terms": pa.array([["b", "a", "a"], ["a", "b"], [], None, ["24/7", "ok", None]], pa.list_(pa.string())),
            "weights": pa.array([[1.0, 1.0, 1.0], [1.0], [], None, [0.0, 0.0, 0.0]], pa.list_(pa.float64())),
        }
    )
    columns = ["terms_count", "unreadable_share", "document_hash", "weights_fit_terms"]
    found = build_frame(table.slice(0), columns, ()).table
    assert found["terms_count"].to_pylist() == [3, 2, 0, 0, 3]
    assert found["unreadable_share"].to_pylist() == [0.0, 0.0, None, None, pytest.approx(2 / 3)]
    hashes = found["document_hash"].to_pylist()
    assert hashes[0] == hashes[1] != hashes[4]
    assert hashes[2] is hashes[3] is None
    assert found["weights_fit_terms"].to_pylist() == [True, False, True, True, True]
    sliced = build_frame(table.slice(1, 2), columns, ()).table
    assert sliced["document_hash"].to_pylist() == hashes[1:3]


@pytest.mark.parametrize(
    ("term", "unreadable"),
    [
        ("running shoe", False),
        ("iphone 15", False),
        ("são paulo", False),
        ("château", False),
        ("SÃO", False),
        ("東京", False),
        ("हिन्दी", False),
        ("café", False),
        ("24/7", True),
        ("", True),
        ("---", True),
        ("caf\ufffd", True),
        ("café".encode().decode("cp1252"), True),
        ("CAFÉ".encode().decode("cp1252"), True),
        ("it\u2019s".encode().decode("cp1252"), True),
        ("£5 off".encode().decode("latin-1"), True),
        ("café".encode().decode("cp1252").lower(), True),
    ],
)
def test_unreadable_terms_are_told_from_foreign_ones(term: str, unreadable: bool) -> None:
    assert is_unreadable(term) is unreadable


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("jane.doe@example.com", "j***@***"),
        ("a b@c.de d", "a b***@*** d"),
        ("+1 (415) 555-0123", "+# (###) ###-####"),
        ("iphone 15 256", "iphone 15 256"),
        ("a" * 100 + " jane@example.com", "a" * 60 + "… (117 characters)"),
        (None, None),
        (7, 7),
        (4155550123, 4155550123),
        (float("nan"), "nan"),
        (date(2026, 1, 31), "2026-01-31"),
        (["x@y.zz", 1], ["x***@***", 1]),
    ],
)
def test_values_are_masked_for_the_report(value: Any, masked: Any) -> None:
    assert mask_value(value) == masked


def contact_patterns(suite: Suite) -> dict[str, re.Pattern[str]]:
    found: dict[str, Rule] = {found.name: found for found in suite.rules}
    return {
        name: re.compile(kwargs.get("regex") or "|".join(kwargs["regex_list"]))
        for name, kwargs in ((name, found[name].kwargs) for name in found if name.startswith("term_without_"))
    }


TELEPHONE_NUMBERS = """
+1 415-555-0123 | +14155550123 | (415) 555-0123 | (415)555-0123 | 415-555-0123 | 415.555.0123 | 415 555 0123
415\u2013555\u20130123 | 1-800-555-0199 | 1 (800) 555-0199 | +1 415 555 0123 ext 5 | 415-555-0123. | (415) 555-0123, now
+44 20 7946 0958 | +44 (0)20 7946 0958 | 020 7946 0958 | 0161 496 0000 | 07700 900123 | (02) 9374 4000 | +61 2 9374 4000
+49 (0)30 901820 | 0049 30 901820 | 030/901820 | 0171 2345678 | +33 1 42 68 53 00 | 01 42 68 53 00 | 01.42.68.53.00
+34 912 345 678 | +91 98765 43210 | +52 1 55 1234 5678 | +86 138 0013 8000 | +55 (11) 91234-5678 | (11) 91234-5678
+81-3-1234-5678 | call 5550123 | Call: 555 0123 | tel. 5550123 | whatsapp 919876543210 | plumber 415-555-0123 near me
"""
NOT_TELEPHONE_NUMBERS = """
24/7 | 2026 | ac-1200 | 1800 sq ft | 90210 | 90210-1234 | 2026-11-21 | 21.11.2026 | 01 02 2026 | 01/02/2026 | 2025-2026
2024 2025 2026 models | 9-5 | iphone 15 pro | 50x60x70 | 192.168.100.200 | 203.200.255.255 | 978-3-16-148410-0
9783161484100 | 5012345678900 | 1,000,000 users | 401k 403b | 100-200-300 mm | 007 james bond | 0-60 mph | +1000 reviews
18+ only | c++ 2026 | phone 2024 2025 | 1-800-flowers | call of duty 2026 | call 911 | wd-40 5 gal | sku 123-456-789
0.5 x 1000 x 2000 mm | rtx 4090 24gb | 1080p 4k | $1,299.99 | 1 800 000 | 2.4ghz 5ghz 802.11 | iso 27001 2022 | 0800
12 000 000 eur | 3.14159265358979 | din en 10025-2 | 4x100 5x114.3 | 2026 01 15 10 30 00 | 11-1011.00
0 % apr 72 months | gtin 00012345678905 | boeing 737-800 757-200 | size 32 34 36 38 40
1 2 3 4 5 6 7 8 9 10 | part 415555012399
"""
ADDRESSES = """
jane.doe@example.com | mail JANE@EXAMPLE.CO.UK now | a@b.de | x+y@sub.example.org | jane@example.com,
<jane@example.com> | mailto:jane@example.com | jane@ex-ample.com. | müller@straße.de
"""
NOT_ADDRESSES = (
    "@nike | 50% off @ example.com | 3@4.5 | me@localhost | 5 @ 10 | a@b | @example.com | c# @ work | 100@2.00"
)


def split(table: str) -> list[str]:
    return [term.strip() for term in re.split(r"[|\n]", table) if term.strip()]


@pytest.mark.parametrize(
    ("name", "found", "not_found"),
    [
        ("term_without_telephone", TELEPHONE_NUMBERS, NOT_TELEPHONE_NUMBERS + NOT_ADDRESSES),
        ("term_without_email", ADDRESSES, TELEPHONE_NUMBERS + NOT_TELEPHONE_NUMBERS + NOT_ADDRESSES),
        ("term_without_ten_digits", "4155550123 | ask 4155550123 now", NOT_TELEPHONE_NUMBERS + NOT_ADDRESSES),
    ],
)
def test_contact_patterns_find_contacts_and_nothing_else(suite: Suite, name: str, found: str, not_found: str) -> None:
    pattern = contact_patterns(suite)[name]
    assert [term for term in split(found) if not pattern.search(term)] == []
    assert [term for term in split(not_found) if pattern.search(term)] == []


def test_each_telephone_pattern_finds_its_own_example(suite: Suite) -> None:
    found = next(found for found in suite.rules if found.name == "term_without_telephone")
    for pattern, example in zip(found.kwargs["regex_list"], found.meta["examples"], strict=True):
        assert re.search(pattern, example), example


@pytest.mark.parametrize("text", ["a", "@", "a@", "a@a.", "1 ", "+1 ", "(0", "212 "])
def test_contact_patterns_read_a_huge_term_in_linear_time(suite: Suite, text: str) -> None:
    import time

    for name, pattern in contact_patterns(suite).items():
        started = time.process_time()
        assert pattern.search(text * (200_000 // len(text))) is None, name
        # Under 0.1 s where it was measured; a quadratic pattern takes minutes.
        assert time.process_time() - started < 5


def test_suite_without_an_id_column_names_rows_by_number() -> None:
    rules = [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}, "severity": "warn"}]
    suite = read_suite({"schema": 1, "rows": rules}, "test")
    result = validate(pa.table({"campaign_id": ["x", "y"], "a": ["1", None]}), None, suite)
    assert result.rules[0].examples == ({"row": 2, "value": None},)
    assert read_suite(suite.to_dict(), "again") == suite
    with pytest.raises(UsageError, match="id_column"):
        read_suite({"schema": 1, "id_column": "", "rows": rules}, "test")


def test_year_counts_from_the_day_of_validation() -> None:
    rule = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "year", "max_value": {"$year": 1}}}
    suite = read_suite({"schema": 1, "rows": [rule]}, "test")
    table = pa.table({"year": [2026.0, 2027.0, 2028.0]})
    for day, unexpected in ((date(2026, 12, 31), 1), (date(2027, 1, 1), 0), (date(2025, 6, 1), 2)):
        assert validate(table, None, suite, today=day).rules[0].unexpected_count == unexpected
    with pytest.raises(UsageError, match=r"\$year"):
        read_suite({"schema": 1, "rows": [{**rule, "kwargs": {"column": "y", "max_value": {"$year": 1.5}}}]}, "test")
    with pytest.raises(UsageError, match="years up to 100"):
        read_suite({"schema": 1, "rows": [{**rule, "kwargs": {"column": "y", "max_value": {"$year": 101}}}]}, "test")
