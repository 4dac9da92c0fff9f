"""Metrics in a trial's log, by the rules of Katib's metrics collector.

Source: `file-metricscollector.go`, `const.go` and `trial_controller_util.go` of Katib v0.19. Two things are stricter
here, because Katib lets a trial win that reported no number: `loss=nan` leaves an empty value in its log, and "the
best trial is the latest" where a value is no number. And patterns are Python's, so a filter that would mean something
else than in Go is refused.
"""

import difflib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflywheel.errors import TuningError, UsageError
from mlflywheel.tuning.experiment import Experiment, Objective
from mlflywheel.tuning.search import MetricSummary

TIMESTAMP_KEY = "timestamp"
_FIELD = "spec.metricsCollectorSpec.source.filter.metricsFormat"
_MOST_KEPT = 10
_MOST_NAMES = 50
_MOST_CHARACTERS = 200

_Finder = Callable[[str], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Report:
    """One value that a trial reported.

    Args:
        metric: The metric's name.
        value: The value as it was printed; always a finite decimal number.
        time: Seconds since 1970, from the line's timestamp; None where it has none.
    """

    metric: str
    value: str
    time: float | None = None


class MetricReader:
    """Reads a trial's log line by line, while it grows.

    Args:
        experiment: Says which metrics count, and in which form they are printed.

    Attributes:
        problems: Why the trial counts as `metrics_unavailable` although it may have reported values: a message for each
            of the first lines without a finite number for the objective, or that end Katib's collector.
        notes: What was left out without harm, as Katib leaves it out: values of additional metrics that are no number.

    Raises:
        UsageError: A filter cannot be read as Go reads it.

    >>> from mlflywheel.tuning.experiment import TrialTemplate
    >>> objective = Objective("minimize", "loss", additional=("auc",))
    >>> reader = MetricReader(Experiment("e", objective, "random", {}, (), TrialTemplate("c", {}, {})))
    >>> reader.feed("epoch=1 loss=0.5, auc = .75")
    [Report(metric='loss', value='0.5', time=None), Report(metric='auc', value='.75', time=None)]
    >>> reader.feed("2026-01-01T00:00:00Z loss=4e-1")
    [Report(metric='loss', value='4e-1', time=1767225600.0)]
    >>> reader.explain()
    ''
    """

    def __init__(self, experiment: Experiment) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._objective = experiment.objective.metric
        self._metrics = experiment.objective.metrics
        self._as_word = re.compile(rf"(?<![\w-]){re.escape(self._objective)}(?![\w-])")
        self._is_json = experiment.collector.format == "JSON"
        self._filters = experiment.collector.filters
        self._finders: list[_Finder] = [_find_with(compile_filter(text)) for text in self._filters] or [find_default]
        # The collector of a trial that may be stopped early ends on any match that is no number, whatever its name.
        self._stops_early = experiment.early_stopping is not None
        self._reported = False
        self._names: dict[str, None] = {}
        self._unread_line = ""

    def feed(self, line: str) -> list[Report]:
        r"""Read one line.

        Args:
            line: One line of the log, split at `\n` alone: a carriage return does not end a line for Katib.

        Returns:
            What it reports, in the order of Katib's log. Lines that report something unreadable add to `problems` or
            `notes` instead.
        """
        line = line.removesuffix("\n")
        return self._read_json(line) if self._is_json else self._read_text(line)

    def explain(self) -> str:
        """Return why the trial's metrics are unavailable, for a log that was read to its end; empty if they are not."""
        if self.problems:
            return self.problems[0]
        return "" if self._reported else self._explain_missing()

    def _read_text(self, line: str) -> list[Report]:
        is_named = any(name in line for name in self._metrics)
        # Other lines cannot report anything; they are read for their names until the objective has come.
        if not is_named and (self._reported or len(self._names) >= _MOST_NAMES):
            return []
        time = _read_first_word(line)
        is_strict = self._stops_early and self._objective in line
        found: list[Report] = []
        for finder in self._finders:
            for matched_name, matched_value in finder(line):
                name, value = matched_name.strip(), matched_value.strip()
                if name in self._metrics:
                    self._take(name, value, line, time, found, is_strict)
                else:
                    self._see(name)
                    if is_strict and not _is_finite(value):
                        self._add_problem(
                            f"{name}={value}",
                            f"the log line {_quote(line)} has no number there",
                            "with early stopping every value beside the objective is read",
                            f"print {name} on another line than {self._objective}",
                        )
        if is_named and not (self._reported or self._unread_line) and self._as_word.search(line):
            self._unread_line = line
        return found

    def _read_json(self, line: str) -> list[Report]:
        if not line:
            return []
        try:
            values = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            values = line
        # Go reads `null` as an object without fields.
        if values is None:
            return []
        if not isinstance(values, dict):
            self._add_problem(
                "the metrics file",
                f"the line {_quote(line)} is no JSON object",
                "format JSON needs an object on every line",
                "write other output elsewhere",
            )
            return []
        time = _read_json_time(values.get(TIMESTAMP_KEY))
        found: list[Report] = []
        for name in self._metrics:
            value = values.get(name)
            if isinstance(value, str):
                self._take(name, value, line, time, found, is_strict=False)
            elif name == self._objective and value is not None:
                self._unread_line = self._unread_line or line
        for name in values:
            if name != TIMESTAMP_KEY:
                self._see(name)
        return found

    def _take(self, name: str, value: str, line: str, time: float | None, found: list[Report], is_strict: bool) -> None:
        if _is_finite(value):
            found.append(Report(name, value, time))
            self._reported = self._reported or name == self._objective
        elif name == self._objective or is_strict:
            self._add_problem(
                f"metric {name}",
                f"the log line {_quote(line)} has no finite number for it",
                "a trial without one could win the search",
                f"print {self._show(name)} as a plain decimal number, and exit with 1 where there is none",
            )
        elif len(self.notes) < _MOST_KEPT:
            self.notes.append(f"metric {name}: the log line {_quote(line)} has no finite number for it and is left out")

    def _see(self, name: str) -> None:
        if len(self._names) < _MOST_NAMES and name not in self._metrics:
            self._names[name] = None

    def _add_problem(self, where: str, seen: str, needed: str, fix: str) -> None:
        if len(self.problems) < _MOST_KEPT:
            self.problems.append(str(TuningError(where, seen, needed, fix)))

    def _explain_missing(self) -> str:
        name = self._objective
        if self._unread_line:
            form = "as a JSON number or object" if self._is_json else "in another form"
            seen = f"the log line {_quote(self._unread_line)} has it {form}"
        else:
            nearest = difflib.get_close_matches(name, self._names, n=5, cutoff=0.4) or list(self._names)[:5]
            seen = f"never printed; the log names {', '.join(nearest) if nearest else 'no metric'}"
        needed = f"{self._show(name)} is needed"
        if self._filters and not self._is_json:
            needed = f"a line that matches {' or '.join(self._filters)} is needed"
        return str(
            TuningError(f"metric {name}", seen, needed, f"print {self._show(name)}, or correct the metric's name")
        )

    def _show(self, name: str) -> str:
        return f'{{"{name}": "0.123"}}' if self._is_json else f"{name}=0.123"


def summarize(reports: Iterable[Report], objective: Objective) -> tuple[MetricSummary, ...]:
    """Return smallest, largest and latest value of every metric that was reported, the objective first.

    The latest is the one with the latest time, and of equal times the last one printed. Reports without a time count
    as earlier than all that have one.

    >>> reports = [Report("loss", "0.5", 20.0), Report("loss", "0.9", 10.0), Report("loss", "0.7")]
    >>> summarize(reports, Objective("minimize", "loss"))
    (MetricSummary(name='loss', min=0.5, max=0.9, latest=0.5),)
    """
    kept = list(reports)
    summaries = []
    for name in objective.metrics:
        values = order_values(kept, name)
        if values:
            summaries.append(MetricSummary(name, min(values), max(values), values[-1]))
    return tuple(summaries)


def find_objective(summaries: Iterable[MetricSummary], objective: Objective) -> float | None:
    """Return the objective's value by its strategy; None if it was not reported.

    >>> find_objective([MetricSummary("loss", 0.1, 0.9, 0.4)], Objective("minimize", "loss"))
    0.1
    """
    strategy = objective.strategies.get(objective.metric, "max" if objective.direction == "maximize" else "min")
    for summary in summaries:
        if summary.name == objective.metric:
            return {"min": summary.min, "max": summary.max, "latest": summary.latest}[strategy]
    return None


def order_values(reports: Iterable[Report], metric: str) -> tuple[float, ...]:
    """Return a metric's values as Katib's database returns them: by time, and in the log's order where times are equal.

    Reports without a time come first: Katib dates them to the year 1.

    >>> order_values([Report("loss", "1", 5.0), Report("loss", "2", 4.0), Report("loss", "3")], "loss")
    (3.0, 2.0, 1.0)
    """
    chosen = [report for report in reports if report.metric == metric]
    chosen.sort(key=lambda report: -math.inf if report.time is None else report.time)
    return tuple(float(report.value) for report in chosen)


# --- Katib's own filter ---

_NAME_CHARACTERS = "".join(chr(code) for code in range(128) if chr(code).isalnum()) + "_|-"
_SPACE = " \t\n\r\f\v"
_VALUE = re.compile(r"\s*([+-]?\d*(?:\.\d+)?(?:[Ee][+-]?\d+)?)", re.ASCII)


def find_default(line: str) -> Iterator[tuple[str, str]]:
    r"""Find names and values as the filter does that Katib uses where none is given.

    That is `([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)`, which Go matches in linear time. Python's `re` would
    need quadratic time on a long line of word characters, such as an encoded image, so the line is read from `=` to
    `=` instead.

    >>> list(find_default("step 3: val/acc=0.9 loss = nan lr=1e-3s"))
    [('acc', '0.9'), ('loss', ''), ('lr', '1e-3')]
    """
    cursor = 0
    while (equals := line.find("=", cursor)) >= 0:
        before = line[cursor:equals].rstrip(_SPACE)
        name = before[len(before.rstrip(_NAME_CHARACTERS)) :]
        cursor = equals + 1
        value = _VALUE.match(line, cursor)
        if name and value is not None:
            cursor = value.end()
            yield name, value[1]


# --- filters of the Experiment ---

_FINITE = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_REPEAT = re.compile(r"\{(\d+)(,(\d*))?\}", re.ASCII)
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\t ",
    "digit": "0-9",
    "lower": "a-z",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_MOST_REPEATS = 1000


def compile_filter(text: str) -> re.Pattern[str]:
    r"""Compile a metrics filter so that it matches what Go's `regexp` matches.

    The common syntax is taken over; `\z`, `(?<name>...)`, `[[:digit:]]` and a literal `{` are written Python's way.
    Filters of the Experiment are matched by backtracking, so one like `(a+)+=(.*)` can take very long here.

    Args:
        text: A regular expression of two groups, the metric's name and its value.

    Raises:
        UsageError: Go or Python has no such syntax, or there are fewer than two groups.

    >>> compile_filter(r"(?<name>\w+): (\d+)\z").pattern
    '(?P<name>\\w+): (\\d+)\\Z'
    """
    try:
        translated = _translate(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled = re.compile(translated, re.ASCII)
    except (re.error, ValueError, OverflowError, RecursionError, Warning) as error:
        raise UsageError(
            _FIELD,
            f"{text!r}: {error}",
            "the syntax that Go's regexp and Python's re share is needed",
            "write the filter without it",
        ) from None
    if compiled.groups < 2:
        raise UsageError(
            _FIELD,
            f"{text!r} has {compiled.groups} groups",
            "the metric's name and its value are groups 1 and 2",
            r"write it as ([\w-]+): ([0-9.]+)",
        )
    return compiled


def _find_with(pattern: re.Pattern[str]) -> _Finder:
    def find(line: str) -> Iterator[tuple[str, str]]:
        for match in pattern.finditer(line):
            yield match[1] or "", match[2] or ""

    return find


def _translate(text: str) -> str:
    """Return a Go pattern in Python's syntax; what either lacks raises ValueError."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            part, at = _translate_escape(text, at)
        elif character == "[":
            part, at = _translate_set(text, at)
        elif text.startswith("(?", at):
            part, at = _translate_group(text, at)
        elif character == "{" and not _REPEAT.match(text, at):
            part, at = r"\{", at + 1
        elif character in "*+?{":
            part, at = _translate_repeat(text, at)
        else:
            part, at = character, at + 1
        parts.append(part)
    return "".join(parts)


def _translate_escape(text: str, at: int) -> tuple[str, int]:
    escape = text[at : at + 2]
    if len(escape) < 2:
        raise ValueError("it ends in a backslash")
    character = escape[1]
    if character == "z":
        return r"\Z", at + 2
    if character == "x" and re.fullmatch("[0-9A-Fa-f]{2}", text[at + 2 : at + 4]):
        return text[at : at + 4], at + 4
    if character in "dDsSwWbBAaftnrv" or (character.isascii() and not character.isalnum()):
        return escape, at + 2
    raise ValueError(f"{escape} is not known to both")


def _translate_set(text: str, at: int) -> tuple[str, int]:
    """Translate one set in brackets; a set's `[`, `&` and `~` are literal in Go, and warned of in Python."""
    end = at + 1
    parts = ["["]
    if text.startswith("^", end):
        parts.append("^")
        end += 1
    first = True
    while first or not text.startswith("]", end):
        if end >= len(text):
            raise ValueError("a set is not closed")
        named = re.compile(r"\[:(\w+):\]", re.ASCII).match(text, end)
        if named is not None:
            if named[1] not in _CLASSES:
                raise ValueError(f"{named[0]} is not known to both")
            part, end = _CLASSES[named[1]], named.end()
        elif text[end] == "\\":
            if text[end + 1 : end + 2] in tuple("bBAz"):
                raise ValueError(f"{text[end : end + 2]} is not known to both in a set")
            part, end = _translate_escape(text, end)
        else:
            part, end = (f"\\{text[end]}" if text[end] in "[]&~|" else text[end]), end + 1
        parts.append(part)
        first = False
    return "".join(parts) + "]", end + 1


def _translate_group(text: str, at: int) -> tuple[str, int]:
    group = re.compile(r"\(\?(?:P?<(\w+)>|(:)|([ims]*(?:-[ims]+)?):|([ims]+)\))", re.ASCII).match(text, at)
    if group is None:
        raise ValueError(f"{text[at : at + 4]} is not known to both")
    return f"(?P<{group[1]}>" if group[1] else group[0], group.end()


def _translate_repeat(text: str, at: int) -> tuple[str, int]:
    repeat = _REPEAT.match(text, at)
    end = at + 1 if repeat is None else repeat.end()
    if repeat is not None and max(int(repeat[1]), int(repeat[3] or 0)) > _MOST_REPEATS:
        raise ValueError(f"{repeat[0]} is over {_MOST_REPEATS} times")
    if text.startswith("?", end):
        end += 1
    if text[end : end + 1] in tuple("*+?") or _REPEAT.match(text, end):
        raise ValueError(f"{text[at : end + 1]} repeats twice")
    return text[at:end], end


# --- values and times ---

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)([.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _is_finite(value: str) -> bool:
    return _FINITE.fullmatch(value) is not None and math.isfinite(float(value))


def _read_first_word(line: str) -> float | None:
    word, space, _ = line.partition(" ")
    return _read_time(word) if space else None


def _read_time(text: str) -> float | None:
    """Return the seconds since 1970 of an RFC 3339 timestamp; None if it is none."""
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        return None
    try:
        whole = datetime.fromisoformat(parts[1] + parts[3])
    except ValueError:
        return None
    fraction = float(f"0.{parts[2][1:]}") if parts[2] else 0.0
    return (whole - _EPOCH).total_seconds() + fraction


def _read_json_time(value: Any) -> float | None:
    """Return the time under the key `timestamp`: RFC 3339, or seconds since 1970.

    Katib reads the digits after a number's point as a count of nanoseconds, so that 5.5 comes before 5.25. Here they
    are a fraction.
    """
    if isinstance(value, str):
        return _read_time(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            return None
        return seconds if math.isfinite(seconds) else None
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _quote(line: str) -> str:
    return repr(line if len(line) <= _MOST_CHARACTERS else line[:_MOST_CHARACTERS] + "...")
