"""`testscore.yaml`: what people write down for the score, read strictly.

    schema: 1
    maximum_age_days: 45          # O4: how old a version may get
    cases:                        # which test cases of JUnit files stand for which test
      D7: ["tests.unit.test_preparation.*"]
      I2: ["tests.unit.test_model.*"]
    records:                      # done by hand, or by a job that leaves a file
      - {test: D6, by: Ana, at: 2026-11-01, what: "engine_size: idea on Monday, served on Thursday", link: notes/d6.md}
      - test: O1
        by: platform team
        at: 2026-06-01
        what: Every night a job mails the owner the packages that changed
        automatic: true
        link: dependency-job/last-run.log
        last_run: 2026-11-20

Everything but `schema` may be left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import yaml
from pydantic import Field, field_validator

from mlflywheel.decisions.documents import load_yaml
from mlflywheel.errors import UsageError
from mlflywheel.models.contract import Settings
from mlflywheel.testscore.rubric import TESTS, VALID_DAYS

SCHEMA = 1
FILE_NAME = "testscore.yaml"


class Record(Settings):
    """What somebody did for a test, or a job does.

    Attributes:
        test: The rubric's id.
        by: Who.
        at: When it was done, or since when the job runs.
        what: What was done and what came out.
        link: Where more stands: a path in the evidence folder, or an address.
        valid_days: How long it counts.
        automatic: Whether a job does it again and again; then `link` is a file that it leaves.
        last_run: When the job last did it.
    """

    test: str
    by: str = Field(min_length=1, max_length=200)
    at: date
    what: str = Field(min_length=1, max_length=2000)
    link: str = Field(default="", max_length=1000)
    valid_days: int = Field(default=VALID_DAYS, ge=1, le=3650)
    automatic: bool = False
    last_run: date | None = None

    @field_validator("at", "last_run", mode="before")
    @classmethod
    def _drop_time(cls, value: object) -> object:
        return value.date() if isinstance(value, datetime) else value


class _Document(Settings):
    # `schema` itself would hide a method of pydantic's.
    maximum_age_days: float | None = Field(default=None, gt=0, le=36500)
    cases: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Notebook:
    """What one `testscore.yaml` says.

    Args:
        where: The file.
        maximum_age_days: How old a version may get; None if nothing is declared.
        cases: Patterns of names of test cases, by the test that they stand for.
        records: What people wrote down.
    """

    where: str
    maximum_age_days: float | None = None
    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    records: tuple[Record, ...] = ()


def read_notebook(text_yaml: str, where: str, today: date) -> Notebook:
    """Read a `testscore.yaml`.

    Args:
        text_yaml: The document; empty text says nothing.
        where: What to call it in an error.
        today: A later day is refused: it would count for longer than anything can be valid.

    Raises:
        UsageError: Not YAML, an alias in it, another schema, a field that is unknown or out of range, a test that the
            rubric does not have or that test cases cannot prove, a day in the future, or a record that stands twice.
    """
    if _has_alias(text_yaml):
        needed = "every value is written out: aliases can make a small file huge"
        raise UsageError(where, "an alias (*name)", needed, "write the value again instead")
    document = load_yaml(text_yaml, where)
    if document is None:
        return Notebook(where)
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        seen = repr(document.get("schema")) if isinstance(document, Mapping) else f"a {type(document).__name__}"
        raise UsageError(f"{where}, schema", seen, f"{SCHEMA} is needed", f"start with `schema: {SCHEMA}`")
    read = _Document.parse({name: value for name, value in document.items() if name != "schema"}, where)
    for test in read.cases:
        _check_test(f"{where}, cases", test)
        if "junit" not in TESTS[test].accepts:
            able = ", ".join(one.id for one in TESTS.values() if "junit" in one.accepts)
            raise UsageError(
                f"{where}, cases", test, f"test cases can prove {able}", "write a record, or see docs/testscore.md"
            )
    seen_before: set[tuple[str, date]] = set()
    for number, record in enumerate(read.records, 1):
        _check_record(f"{where}, record {number}", record, today, seen_before)
    return Notebook(where, read.maximum_age_days, read.cases, read.records)


def find_test(name: str, notebooks: tuple[Notebook, ...]) -> str | None:
    """Return the test that a test case stands for, None if it stands for none.

    Raises:
        UsageError: It stands for two: one proof is for one test.
    """
    found = {
        test: notebook.where
        for notebook in notebooks
        for test, patterns in notebook.cases.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if len(found) > 1:
        raise UsageError(
            f"{next(iter(found.values()))}, cases",
            f"{name} stands for {' and '.join(sorted(found))}",
            "a test case stands for one test",
            "make the patterns narrower",
        )
    return next(iter(found), None)


def _has_alias(text_yaml: str) -> bool:
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text_yaml, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        # Whoever loads it says what is wrong.
        return False


def _check_test(where: str, test: str) -> None:
    if test not in TESTS:
        raise UsageError(
            where, f"test {test!r}", "D1 to D7, M1 to M7, I1 to I7 or O1 to O7 is needed", "correct the id"
        )


def _check_record(where: str, record: Record, today: date, seen_before: set[tuple[str, date]]) -> None:
    _check_test(where, record.test)
    for name, day in (("at", record.at), ("last_run", record.last_run)):
        if day is not None and day > today:
            raise UsageError(f"{where}, {name}", f"{day}", f"today is {today}", "write the day on which it was done")
    if (record.test, record.at) in seen_before:
        raise UsageError(
            where, f"a second record for {record.test} of {record.at}", "one is enough", "put both into one"
        )
    seen_before.add((record.test, record.at))
    if record.automatic and (record.last_run is None or not record.link):
        raise UsageError(
            where,
            "automatic without a link or last_run",
            "a file that the job leaves, and the day of its last run, are needed",
            "add both, or leave automatic out",
        )
    if record.automatic and not is_inside(record.link):
        raise UsageError(
            f"{where}, link",
            record.link,
            "a path in the evidence folder is needed, so that it can be seen to exist",
            "let the job leave its result there",
        )


def is_inside(link: str) -> bool:
    """Return whether a link is a relative path that does not leave the folder.

    >>> is_inside("jobs/last.log"), is_inside("../secret"), is_inside("https://ci.example/1")
    (True, False, False)
    """
    path = PurePosixPath(link)
    return "://" not in link and "\\" not in link and not path.is_absolute() and ".." not in path.parts
