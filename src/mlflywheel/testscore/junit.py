"""Test cases from JUnit XML, as pytest, Maven, Go and most others write it. The file is data and not trusted."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from xml.etree import ElementTree

from mlflywheel.errors import DataError

Outcome = Literal["passed", "failed", "skipped"]

# More than any suite has; beyond it a file is no report of tests.
_MOST_CASES = 200_000


@dataclass(frozen=True)
class Case:
    """One test case.

    Args:
        name: `classname.name`, such as `tests.unit.test_encoding.test_years_become_ages`.
        outcome: An error counts as failed.
        suite: Name of its suite; `ci` and `scheduled` say what started the run.
        at: When the suite started; None if the file does not say.
    """

    name: str
    outcome: Outcome
    suite: str
    at: datetime | None


def read_junit(text: str, where: str) -> tuple[Case, ...] | None:
    """Read the cases of a JUnit file.

    Args:
        text: The document.
        where: What to call it in an error.

    Returns:
        The cases in the order of the file; None for XML of another kind.

    Raises:
        DataError: Not XML, or it has a document type, which JUnit has no use for and which can make a small file huge.

    >>> text = '<testsuite name="ci" timestamp="2026-11-01T10:00:00"><testcase classname="t" name="a"/></testsuite>'
    >>> [(case.name, case.outcome, case.suite) for case in read_junit(text, "junit.xml")]
    [('t.a', 'passed', 'ci')]
    """
    reader = _Reader(where)
    parser = ElementTree.XMLParser(target=reader)
    try:
        parser.feed(text)
        parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(where, f"not XML ({error})", "JUnit XML is needed", "write it again, or remove it") from None
    return tuple(reader.cases) if reader.is_junit else None


@dataclass
class _Reader:
    """Keeps cases alone while the file streams by: no tree is built, so that nesting costs nothing."""

    where: str
    is_junit: bool = False
    cases: list[Case] = field(default_factory=list)
    _depth: int = 0
    _suites: list[tuple[str, datetime | None]] = field(default_factory=list)
    _case: str | None = None
    _outcome: Outcome = "passed"

    def doctype(self, name: str, *_: object) -> None:
        raise DataError(
            self.where,
            f"a document type ({name[:40]})",
            "JUnit XML has none, and its entities are not expanded",
            "write the report without it, or remove the file",
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if self._depth == 0:
            self.is_junit = name in ("testsuites", "testsuite")
        self._depth += 1
        if name == "testsuite":
            self._suites.append((attributes.get("name", ""), _read_time(attributes.get("timestamp", ""))))
        elif name == "testcase":
            named = (attributes.get("classname", ""), attributes.get("name", ""))
            self._case, self._outcome = ".".join(part for part in named if part), "passed"
        elif self._case is not None and name in ("failure", "error"):
            self._outcome = "failed"
        elif self._case is not None and name == "skipped" and self._outcome == "passed":
            self._outcome = "skipped"

    def end(self, tag: str) -> None:
        name = tag.rpartition("}")[2]
        self._depth -= 1
        if name == "testsuite" and self._suites:
            self._suites.pop()
        elif name == "testcase" and self._case is not None:
            suite, at = self._suites[-1] if self._suites else ("", None)
            if len(self.cases) >= _MOST_CASES:
                raise DataError(
                    self.where, f"more than {_MOST_CASES:,} cases", "a report of tests has fewer", "split the report"
                )
            self.cases.append(Case(self._case, self._outcome, suite, at))
            self._case = None

    def close(self) -> None:
        pass


def _read_time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
