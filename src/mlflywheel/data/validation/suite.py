"""Reading a suite of rules.

    {"schema": 1, "id_column": "campaign_id",
     "rows": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "campaign_id"},
               "severity": "error", "description": "...", "meta": {"name": "campaign_id_present", "required": true}}],
     "prepared": [...]}

A rule is a Great Expectations expectation in its own JSON form (`type`, `kwargs`, `meta`, `severity`, `description`),
so rules can be copied from and to a Great Expectations suite; `id`, `notes` and `rendered_content` are accepted and
dropped. What we add stays inside that form:

- `severity` is `error` (stops the run) or `warn`. Great Expectations' own words are read too: `critical` is `error`,
  `warning` and `info` are `warn`. `Suite.to_gx` writes `critical` and `warning`.
- `meta.name`: what messages call the rule. Default: its columns and type.
- `meta.required`: true if an absent column fails the rule. Otherwise the rule is skipped, with the reason.
- `meta.optional`: columns of a `column_list` that are left out of it where the table does not have them.
- Dates relative to the day of validation, anywhere in `kwargs`: `{"$days_ago": 90}` is midnight 90 days ago, and
  `{"$today": 1}` is midnight one day ahead (`{"$today": 0}` is midnight at the start of today). `{"$year": 1}` is the
  next year, as a number, for columns that hold years.

Refused: `row_condition` and `condition_parser`, because pandas evaluates them as an expression and a suite is data, and
expectations that run SQL or need a second table.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mlflywheel.errors import UsageError

SUITE_SCHEMA = 1
TABLES: tuple["TableName", ...] = ("rows", "prepared")

TableName = Literal["rows", "prepared"]
Severity = Literal["error", "warn"]

_SEVERITIES: dict[str, Severity] = {
    "error": "error",
    "warn": "warn",
    "critical": "error",
    "warning": "warn",
    "info": "warn",
}
_TO_GX = {"error": "critical", "warn": "warning"}
_KEYS = {"type", "kwargs", "meta", "severity", "description", "id", "notes", "rendered_content"}
_EVALUATED = ("row_condition", "condition_parser")
# SQL, a second table, and a deprecated second name.
_NOT_ON_A_TABLE = {
    "expect_multicolumn_values_to_be_unique",
    "expect_query_results_to_match_comparison",
    "expect_table_row_count_to_equal_other_table",
    "unexpected_rows_expectation",
}
_PLACEHOLDERS = ("$days_ago", "$today", "$year")
_MOST_DAYS = 36_500
_MOST_YEARS = 100


@dataclass(frozen=True)
class Rule:
    """One expectation on one table.

    Args:
        name: What messages call it; unique in the suite.
        table: `rows` or `prepared`.
        severity: `error` stops the run, `warn` is reported.
        type: Great Expectations' name of the expectation.
        kwargs: Its arguments, with placeholders unresolved.
        description: One sentence for a reader of the report.
        meta: Free facts that travel with the rule, and our `name`, `required` and `optional`.
    """

    name: str
    table: TableName
    severity: Severity
    type: str
    kwargs: Mapping[str, Any]
    description: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values the rule reads; empty for a rule on the table's shape."""
        if self.reads_only_names:
            return ()
        return _named_columns(self.kwargs)

    @property
    def reads_only_names(self) -> bool:
        """Whether the rule is about the table's column names, not about values."""
        return self.type == "expect_column_to_exist" or self.type.startswith("expect_table_column")

    @property
    def required(self) -> bool:
        """Whether an absent column fails the rule even if the caller does not require that column."""
        return bool(self.meta.get("required", False))

    @property
    def optional(self) -> frozenset[str]:
        """Columns that are left out of `column_list` where the table does not have them."""
        return frozenset(self.meta.get("optional", ()))

    def to_gx(self, today: date | None = None) -> dict[str, Any]:
        """Return the rule as Great Expectations writes it in JSON.

        Args:
            today: Day that placeholders are resolved with, to ISO text; None leaves them as they are.
        """
        kwargs = dict(self.kwargs) if today is None else _to_text(resolve(self.kwargs, today))
        found: dict[str, Any] = {"type": self.type, "kwargs": kwargs, "severity": _TO_GX[self.severity]}
        found["meta"] = {**self.meta, "name": self.name}
        if self.description:
            found["description"] = self.description
        return found


@dataclass(frozen=True)
class Suite:
    """Rules on both tables.

    Args:
        rules: In the order of the file, `rows` first.
        id_column: The column whose value names a row in messages; rows of tables without it, and without a name here,
            are named by their number alone.
    """

    rules: tuple[Rule, ...]
    id_column: str = ""

    def of(self, table: TableName) -> tuple[Rule, ...]:
        """Return the rules on one table."""
        return tuple(rule for rule in self.rules if rule.table == table)

    def to_gx(self, table: TableName, today: date | None = None) -> list[dict[str, Any]]:
        """Return one table's rules as the `expectations` of a Great Expectations suite."""
        return [rule.to_gx(today) for rule in self.of(table)]

    def to_dict(self) -> dict[str, Any]:
        """Return the suite as its file holds it; `read_suite` reads it back."""
        found: dict[str, Any] = {"schema": SUITE_SCHEMA}
        if self.id_column:
            found["id_column"] = self.id_column
        for table in TABLES:
            found[table] = [{**rule.to_gx(), "severity": rule.severity} for rule in self.of(table)]
        return found


def read_suite(text_or_mapping: str | Mapping[str, Any], where: str) -> Suite:
    """Read a suite from the text of `expectations.json`, or from its parsed content.

    Args:
        text_or_mapping: JSON text, or the object that it holds.
        where: What to call the source in an error, such as the file's name.

    Raises:
        UsageError: Not JSON, or a rule that cannot be meant; the message names the table, the rule's place counted from
            1, and the field.

    >>> read_suite('{"schema": 1, "rows": [{"type": "expect_nothing", "kwargs": {}}]}', "expectations.json")
    Traceback (most recent call last):
    ...
    mlflywheel.errors.UsageError: expectations.json, rows rule 1, type: 'expect_nothing'; ...
    """
    content: Any = text_or_mapping
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{where}, line {error.lineno} column {error.colno}",
                f"not JSON ({error.msg})",
                "a suite is one JSON object",
                "correct the file at this place",
            ) from None
        except (ValueError, RecursionError) as error:
            # A number of thousands of digits, or lists inside each other without end.
            raise UsageError(
                where,
                f"not JSON ({error})".partition(";")[0].rstrip(")") + ")",
                "a suite is one JSON object",
                "shorten it",
            ) from None
    if not isinstance(content, Mapping):
        raise UsageError(
            where, f"a {type(content).__name__}", "a suite is one JSON object", 'write {"schema": 1, "rows": [...]}'
        )
    if content.get("schema") != SUITE_SCHEMA:
        raise UsageError(
            f"{where}, schema",
            repr(content.get("schema")),
            f"this version reads schema {SUITE_SCHEMA}",
            f'write "schema": {SUITE_SCHEMA}',
        )
    for key in content:
        if key not in {"schema", "id_column", *TABLES}:
            raise UsageError(
                where, f"unknown key {key!r}", "known keys are schema, id_column, rows, prepared", "remove or rename it"
            )
    id_column = content.get("id_column", "")
    if not isinstance(id_column, str) or (not id_column and "id_column" in content):
        raise UsageError(f"{where}, id_column", repr(id_column), "a column name is needed", "name the id column")
    rules: list[Rule] = []
    for table in TABLES:
        items = content.get(table, [])
        if not isinstance(items, list):
            raise UsageError(
                f"{where}, {table}", f"a {type(items).__name__}", "a list of rules is needed", "write [...]"
            )
        for number, item in enumerate(items, start=1):
            rules.append(_read_rule(item, table, f"{where}, {table} rule {number}"))
    return Suite(_named(rules, where), id_column)


def _read_rule(item: Any, table: TableName, where: str) -> Rule:
    if not isinstance(item, Mapping):
        raise UsageError(
            where, f"a {type(item).__name__}", "a rule is an object", 'write {"type": "expect_...", "kwargs": {...}}'
        )
    for key in item:
        if key not in _KEYS:
            raise UsageError(
                where,
                f"unknown key {key!r}",
                f"known keys are {', '.join(sorted(_KEYS))}",
                "put arguments of the expectation under kwargs, and own facts under meta",
            )
    kind = item.get("type")
    known = _known_types()
    if not isinstance(kind, str) or (known and kind not in known):
        raise UsageError(
            f"{where}, type",
            repr(kind),
            "an expectation of Great Expectations that works on one table is needed",
            _suggest(str(kind), known),
        )
    severity = item.get("severity", "error")
    if severity not in _SEVERITIES:
        raise UsageError(
            f"{where}, severity",
            repr(severity),
            f"known severities are {', '.join(_SEVERITIES)}",
            "write error to stop the run, or warn to report only",
        )
    kwargs = item.get("kwargs", {})
    meta = item.get("meta") or {}
    for key, value in (("kwargs", kwargs), ("meta", meta)):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}, {key}", f"a {type(value).__name__}", "an object is needed", "write {...}")
    for key in _EVALUATED:
        if kwargs.get(key) is not None:
            raise UsageError(
                f"{where}, {key}",
                repr(kwargs[key]),
                "a suite is data, and pandas would evaluate this as an expression",
                "check a column that ingestion filters, or use ignore_row_if",
            )
    _check_meta(meta, where)
    _check_kwargs(kwargs, where)
    description = item.get("description") or ""
    return Rule(
        name=str(meta.get("name") or ""),
        table=table,
        severity=_SEVERITIES[severity],
        type=kind,
        kwargs=dict(kwargs),
        description=str(description),
        meta={key: value for key, value in meta.items() if key != "name"},
    )


def _check_meta(meta: Mapping[str, Any], where: str) -> None:
    if not isinstance(meta.get("required", False), bool):
        raise UsageError(f"{where}, meta.required", repr(meta["required"]), "true or false is needed", "write true")
    optional = meta.get("optional", [])
    if not isinstance(optional, list) or not all(isinstance(name, str) for name in optional):
        raise UsageError(
            f"{where}, meta.optional", repr(optional), "a list of column names is needed", 'write ["kind"]'
        )


def _check_kwargs(kwargs: Mapping[str, Any], where: str) -> None:
    for path, value in _walk(kwargs, "kwargs"):
        if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
            _read_placeholder(value, f"{where}, {path}")
    patterns = [("regex", kwargs.get("regex"))]
    listed = kwargs.get("regex_list")
    if isinstance(listed, list):
        patterns += [(f"regex_list[{number}]", pattern) for number, pattern in enumerate(listed)]
    for key, pattern in patterns:
        if pattern is None:
            continue
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UsageError(
                f"{where}, kwargs.{key}",
                f"not a regular expression ({error})",
                "Python's syntax is needed",
                "correct the pattern",
            ) from None


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{path}[{number}]")


def _read_placeholder(value: Mapping[str, Any], where: str) -> tuple[str, int]:
    """Return the placeholder's name, and how many days after today, or years after this one, it stands for."""
    (name, number), *more = value.items()
    most = _MOST_YEARS if name == "$year" else _MOST_DAYS
    if more or name not in _PLACEHOLDERS or type(number) is not int or abs(number) > most:
        raise UsageError(
            where,
            json.dumps(dict(value), default=str),
            f"known placeholders are {' and '.join(_PLACEHOLDERS[:2])}, with a whole number of days up to "
            f"{_MOST_DAYS:,}, and $year, with one of years up to {_MOST_YEARS}",
            'write {"$days_ago": 90}, {"$today": 0} or {"$year": 1}',
        )
    return (name, -number) if name == "$days_ago" else (name, number)


def resolve(kwargs: Mapping[str, Any], today: date) -> dict[str, Any]:
    """Replace placeholders, and ISO dates in `min_value` and `max_value`, by datetimes without a time zone.

    >>> resolve({"column": "as_of", "min_value": {"$days_ago": 2}}, date(2026, 1, 31))
    {'column': 'as_of', 'min_value': datetime.datetime(2026, 1, 29, 0, 0)}
    >>> resolve({"column": "year", "max_value": {"$year": 1}}, date(2026, 1, 31))
    {'column': 'year', 'max_value': 2027}
    """
    found = {key: _resolve(value, today) for key, value in kwargs.items()}
    for key in ("min_value", "max_value"):
        if isinstance(found.get(key), str):
            try:
                found[key] = datetime.fromisoformat(found[key])
            except ValueError:
                continue
    return found


def _resolve(value: Any, today: date) -> Any:
    if isinstance(value, Mapping):
        if any(str(key).startswith("$") for key in value):
            name, number = _read_placeholder(value, "suite")
            if name == "$year":
                return today.year + number
            return datetime.combine(today, time()) + timedelta(days=number)
        return {key: _resolve(item, today) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, today) for item in value]
    return value


def _to_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def _named_columns(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    names = [kwargs[key] for key in ("column", "column_A", "column_B") if isinstance(kwargs.get(key), str)]
    listed = kwargs.get("column_list")
    if isinstance(listed, list):
        names += [name for name in listed if isinstance(name, str)]
    return tuple(dict.fromkeys(names))


def _named(rules: list[Rule], where: str) -> tuple[Rule, ...]:
    given = Counter(rule.name for rule in rules if rule.name)
    for name, count in given.items():
        if count > 1:
            raise UsageError(
                f"{where}, meta.name", f"{count} rules are called {name!r}", "names are unique", "rename all but one"
            )
    used = set(given)
    named = []
    for rule in rules:
        name = rule.name
        if not name:
            base = " ".join([", ".join(_named_columns(rule.kwargs)) or rule.table, rule.type.removeprefix("expect_")])
            name = base
            number = 2
            while name in used:
                name = f"{base} ({number})"
                number += 1
            used.add(name)
        named.append(Rule(name, rule.table, rule.severity, rule.type, rule.kwargs, rule.description, rule.meta))
    return tuple(named)


@cache
def _known_types() -> frozenset[str]:
    """Names of the installed core expectations; empty if Great Expectations is not installed.

    They are read from the text of its module instead of imported: reading a suite must not cost 7 s.
    """
    found = find_spec("great_expectations")
    folders = list(found.submodule_search_locations or ()) if found else []
    names: set[str] = set()
    for folder in folders:
        module = Path(folder) / "expectations" / "core" / "__init__.py"
        if module.is_file():
            names.update(re.findall(r"^from \.(expect_\w+) import", module.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(names - _NOT_ON_A_TABLE)


def _suggest(kind: str, known: frozenset[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(kind, sorted(known), n=3)
    return f"choose a name such as {', '.join(close)}" if close else "choose a name from the gallery of expectations"
