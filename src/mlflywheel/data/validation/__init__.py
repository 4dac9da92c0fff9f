"""Data validation: rules in Great Expectations' own JSON form, checked by Great Expectations.

A suite (`expectations.json`) holds rules on two tables: `rows`, as ingestion wrote them, and `prepared`, one row an
entity. `validate` hands both to Great Expectations and returns counts, shares and masked examples with row numbers;
`ValidationResult.raise_for_errors` stops a run, `render_html` and `write_report` show the result.

    suite = read_suite(text, "expectations.json")
    result = validate(rows, prepared, suite)
    write_report(result, Path("validation.html"), Path("validation.json"))
    result.raise_for_errors()

Importing this package is cheap: Great Expectations (about 7 s) is imported by `validate` alone, and only for a suite
with rules.
"""

from mlflywheel.data.validation.checks import validate
from mlflywheel.data.validation.html import render_html, write_report
from mlflywheel.data.validation.masking import mask_identifier, mask_value
from mlflywheel.data.validation.results import RuleResult, ValidationResult
from mlflywheel.data.validation.suite import Rule, Suite, read_suite

__all__ = [
    "Rule",
    "RuleResult",
    "Suite",
    "ValidationResult",
    "mask_identifier",
    "mask_value",
    "read_suite",
    "render_html",
    "validate",
    "write_report",
]
