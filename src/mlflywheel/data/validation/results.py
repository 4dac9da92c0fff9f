"""What a validation found: plain data, ready for JSON, with personal data masked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlflywheel.data.validation.suite import Severity, TableName
from mlflywheel.errors import ExpectationError

RESULT_SCHEMA = 1

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class RuleResult:
    """How one rule came out.

    Args:
        name: The rule's name.
        table: The table it was checked on.
        severity: `error` or `warn`.
        status: `passed`, `failed`, or `skipped` with a reason. A rule that could not be evaluated has failed.
        description: The rule's sentence.
        observed: The aggregate's value, or the share of unexpected rows among the rows the rule looked at (0 to 1);
            None where nothing was looked at.
        unexpected_count: Rows that break the rule, exact; None for a rule on an aggregate.
        count: Rows the rule looked at: those with a value, for most rules.
        examples: Up to 20 of the unexpected rows: `{"id": ..., "row": ..., "value": ...}`. `row` counts the table's
            rows from 1, and the value is masked.
        reason: Why the rule was skipped, or could not be evaluated.
        type: Great Expectations' name of the expectation.
        kwargs: Its arguments, with dates resolved to ISO text.
    """

    name: str
    table: TableName
    severity: Severity
    status: Status
    description: str = ""
    observed: Any = None
    unexpected_count: int | None = None
    count: int = 0
    examples: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""
    type: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, examples: int = 3) -> str:
        """Say in one line what broke the rule: counts, and the first rows with masked values.

        >>> rule = RuleResult("clicks", "rows", "error", "failed", unexpected_count=1, count=9,
        ...     examples=({"id": "c1", "row": 4, "value": 7},))
        >>> rule.describe()
        'clicks: 1 of 9 rows (row 4, id c1: 7)'
        """
        if self.reason:
            return f"{self.name}: {self.reason}"
        if self.unexpected_count is None:
            return f"{self.name}: observed {self.observed}"
        seen = f"{self.name}: {self.unexpected_count:,} of {self.count:,} rows"
        shown = [describe_example(example) for example in self.examples[:examples]]
        if not shown:
            return seen
        more = "; ..." if self.unexpected_count > len(shown) else ""
        return f"{seen} ({'; '.join(shown)}{more})"


def describe_example(example: Mapping[str, Any]) -> str:
    """Write one example as `row 4, id c1: value`."""
    value = example["value"]
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_or_missing(item)}" for name, item in value.items())
    named = f", id {_or_missing(example['id'])}" if "id" in example else ""
    return f"row {example['row']}{named}: {_or_missing(value)}"


def _or_missing(value: Any) -> str:
    return "missing" if value is None else str(value)


@dataclass(frozen=True)
class ValidationResult:
    """All rules' results.

    Args:
        rules: In the order of the suite.
        counts: Rows of each table that was checked.
        today: The day that relative dates were resolved with, ISO.
        id_column: The column that examples take their `id` from.
        checker: Name and version of the library that checked.
    """

    rules: tuple[RuleResult, ...]
    counts: Mapping[str, int]
    today: str
    id_column: str
    checker: str

    @property
    def passed(self) -> bool:
        """Whether no rule of severity `error` failed."""
        return not self.errors()

    def errors(self) -> tuple[RuleResult, ...]:
        """Return the failed rules that stop a run."""
        return tuple(rule for rule in self.rules if rule.status == "failed" and rule.severity == "error")

    def warnings(self) -> tuple[RuleResult, ...]:
        """Return the failed rules that are only reported."""
        return tuple(rule for rule in self.rules if rule.status == "failed" and rule.severity == "warn")

    def skipped(self) -> tuple[RuleResult, ...]:
        """Return the rules that were not checked."""
        return tuple(rule for rule in self.rules if rule.status == "skipped")

    def describe_warnings(self) -> list[str]:
        """Return one line for each rule that does not hold and stops nothing; examples only where they are short."""
        return [rule.describe(2 if "column" in rule.kwargs else 0) for rule in self.warnings()]

    def count_by_status(self) -> dict[str, int]:
        """Return the number of rules that passed, of warnings and errors that did not hold, and of skipped rules."""
        return {
            "passed": sum(rule.status == "passed" for rule in self.rules),
            "warned": len(self.warnings()),
            "failed": len(self.errors()),
            "skipped": len(self.skipped()),
        }

    def raise_for_errors(self, limit: int = 5) -> None:
        """Stop the run if a rule of severity `error` failed.

        Args:
            limit: How many failed rules the message describes.

        Raises:
            ExpectationError: Names the rules, their counts, and the first rows with ids and masked values.
        """
        failed = self.errors()
        if not failed:
            return
        total = sum(rule.severity == "error" for rule in self.rules)
        shown = "; ".join(rule.describe() for rule in failed[:limit])
        more = f"; and {len(failed) - limit} more" if len(failed) > limit else ""
        tables = " and ".join(dict.fromkeys(f"{rule.table} table" for rule in failed))
        raise ExpectationError(
            f"data validation, {tables}",
            f"{len(failed)} of {total} error rules failed: {shown}{more}",
            "every rule of severity error has to hold",
            "correct these rows at the source, or change the rule in expectations.json",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `validation.json` holds them."""
        return {
            "schema": RESULT_SCHEMA,
            "status": "passed" if self.passed else "failed",
            "today": self.today,
            "checker": self.checker,
            "id_column": self.id_column,
            "counts": dict(self.counts),
            "errors": len(self.errors()),
            "warnings": len(self.warnings()),
            "skipped": len(self.skipped()),
            "rules": [{**asdict(rule), "examples": [dict(item) for item in rule.examples]} for rule in self.rules],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ValidationResult":
        """Rebuild from `to_dict`."""
        rules = tuple(RuleResult(**{**rule, "examples": tuple(rule["examples"])}) for rule in values["rules"])
        return cls(rules, values["counts"], values["today"], values["id_column"], values["checker"])
