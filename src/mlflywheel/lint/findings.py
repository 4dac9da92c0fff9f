"""What the linter says: findings, and the registry of the rules that they come from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from mlflywheel.lint.fields import Field

Severity = Literal["error", "warning", "note"]
#: `fails` is what the API server, KServe's webhook or its controller refuses or ignores.
Group = Literal["reading", "fails", "availability", "cost", "security"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
GROUPS: tuple[Group, ...] = ("reading", "fails", "availability", "cost", "security")


@dataclass(frozen=True)
class Finding:
    """One place that a rule objects to.

    Attributes:
        rule: Id of the rule, as in `RULES`; ids stay the same over versions.
        severity: `error` does not work or is lost without a word, `warning` costs availability, money or safety,
            `note` is worth knowing.
        place: File, line if it is known, object and field.
        reason: What is wrong there, without a full stop.
        fix: What to do, as an imperative without a full stop.
        file: The file as it was named; `-` is standard input.
        line: Line of the field, from 1; of the nearest field above if it is missing.

    >>> str(Finding("replica-bounds", "error", "a.yaml:7: Job x", "1 > 0", "lower it", "a.yaml", 7))
    'a.yaml:7: Job x: error: 1 > 0. Fix: lower it. [replica-bounds]'
    """

    rule: str
    severity: Severity
    place: str
    reason: str
    fix: str
    file: str = ""
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the parts, as they stand in JSON output."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "place": self.place,
            "reason": self.reason,
            "fix": self.fix,
            "file": self.file,
            "line": self.line,
        }

    def __str__(self) -> str:
        return f"{self.place}: {self.severity}: {self.reason}. Fix: {self.fix}. [{self.rule}]"


class Fault(NamedTuple):
    """What a check yields: the field at fault, the reason and the fix, both without a full stop."""

    field: Field
    reason: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: Its stable name.
        severity: Of all its findings.
        group: What it is about.
        description: What it finds, as one line without a full stop.
        source: Where KServe, Kubernetes or another project checks or describes it.
        subject: The class of view that the check is called with; None where the reader or the linter itself finds it.
        check: Yields the faults of one subject.
    """

    id: str
    severity: Severity
    group: Group
    description: str
    source: str
    subject: type | None = None
    check: Callable[[Any], Iterator[Fault]] | None = None


#: Every rule by its id, in the order of documentation.
RULES: dict[str, Rule] = {}

_Subject = TypeVar("_Subject")
_Check = Callable[[_Subject], Iterator[Fault]]


def rule(
    name: str, severity: Severity, group: Group, description: str, source: str, subject: type[_Subject]
) -> Callable[[_Check[_Subject]], _Check[_Subject]]:
    """Register a check as a rule.

    Args:
        name: The rule's id.
        severity: Of its findings.
        group: What it is about.
        description: One line without a full stop.
        source: Where the rule is written down.
        subject: Class of the views that the check takes.
    """

    def register(check: _Check[_Subject]) -> _Check[_Subject]:
        _add(Rule(name, severity, group, description, source, subject, check))
        return check

    return register


def _add(new: Rule) -> None:
    if new.id in RULES:
        raise ValueError(f"two rules are called {new.id}")
    RULES[new.id] = new


_READING: tuple[tuple[str, Severity, str, str], ...] = (
    ("unreadable", "error", "A file is not UTF-8, YAML or JSON, or expands into too much", "YAML 1.1"),
    (
        "duplicate-key",
        "error",
        "A mapping has a key twice; which value wins depends on the reader",
        "kubectl --validate",
    ),
    ("not-a-manifest", "note", "A document without apiVersion and kind is skipped", "Kubernetes API conventions"),
    ("kustomization-skipped", "note", "A kustomization is skipped: it is rendered first", "kubectl kustomize"),
    ("no-manifests", "error", "Nothing was there to lint", "this linter"),
    ("wrong-type", "error", "A field that a rule reads has another type than its schema", "the CRDs of KServe"),
    (
        "lint-ignore",
        "warning",
        "The annotation mlflywheel.io/lint-ignore names an unknown rule, or one whose findings are errors",
        "this linter",
    ),
)
for _id, _severity, _description, _source in _READING:
    _add(Rule(_id, _severity, "reading", _description, _source))
