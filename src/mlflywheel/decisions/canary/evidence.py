"""Evidence about a canary: what both arms did over the same windows of time, and what labels said later.

As JSON, from a file or standard input:

    {"schema": 1,
     "windows": [
       {"start": "2026-11-21T10:00:00Z", "end": "2026-11-21T10:00:30Z", "step": 1, "traffic_percent": 5,
        "stable":    {"requests": 950, "errors": 9, "latency": {"bounds_seconds": [0.1, 0.5], "counts": [900, 45, 5]},
                      "counters": {"conversions": {"events": 12, "total": 950}}},
        "candidate": {"requests": 50, "errors": 1, "latency": {"bounds_seconds": [0.1, 0.5], "counts": [47, 2, 1]}}}],
     "answers": [{"request_id": "a1", "arm": "candidate", "time": "2026-11-21T10:00:07Z", "groups": {"locale": "de"}}],
     "labels":  [{"request_id": "a1", "metric": "quality", "loss": 1, "time": "2026-11-21T11:30:00Z"}]}

Times are ISO 8601 with an offset, or seconds since 1970. A window with `gap`, a text that says what was missing, or
with an arm marked `"reset": true`, is shown and not judged.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal

from mlflywheel.errors import DataError

SCHEMA = 1

ArmName = Literal["stable", "candidate"]
ARMS: tuple[ArmName, ...] = ("stable", "candidate")


@dataclass(frozen=True)
class Histogram:
    """How long requests took.

    Args:
        bounds_seconds: Upper bounds of the buckets, ascending, without infinity.
        counts: Requests in each bucket, not cumulative; one more than bounds, the last for what took longer.
    """

    bounds_seconds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        """How many requests it holds."""
        return math.fsum(self.counts)

    def count_above(self, bound_seconds: float) -> float:
        """Return how many requests took longer than a bound of the histogram.

        >>> Histogram((0.1, 0.5), (90, 8, 2)).count_above(0.1)
        10.0
        """
        return math.fsum(self.counts[self.bounds_seconds.index(bound_seconds) + 1 :])


@dataclass(frozen=True)
class Counter:
    """Bad events among all events: refused offers among offers, fallbacks among answers."""

    events: float
    total: float


@dataclass(frozen=True)
class Arm:
    """What one arm did in one window.

    Args:
        requests: Requests that it answered.
        errors: Those that it answered with an error of its own: HTTP 5xx, or a gRPC status that is not the caller's.
        latency: How long they took; None if that is not known.
        counters: Further counts by the name of their metric.
        reset: Whether a counter was reset during the window, so that the counts are too small.
    """

    requests: float = 0.0
    errors: float = 0.0
    latency: Histogram | None = None
    counters: Mapping[str, Counter] = field(default_factory=dict)
    reset: bool = False


@dataclass(frozen=True)
class Window:
    """Both arms over the same time, at one weight.

    Args:
        start: Seconds since 1970.
        end: Seconds since 1970, after `start`.
        step: The rollout's step, from 0.
        traffic_percent: Share of the requests that went to the candidate, 0 to 100.
        stable: The arm in use.
        candidate: The arm to be judged.
        gap: Why the window does not count; empty if it does.
    """

    start: float
    end: float
    step: int
    traffic_percent: float
    stable: Arm
    candidate: Arm
    gap: str = ""

    @property
    def excluded_because(self) -> str:
        """Why the window is not judged; empty if it is."""
        if self.gap:
            return self.gap
        reset = [name for name in ARMS if getattr(self, name).reset]
        return f"counters of {' and '.join(reset)} were reset" if reset else ""


@dataclass(frozen=True)
class Answer:
    """Who answered a request, and when.

    Args:
        request_id: Unique among the answers.
        arm: Who.
        time: Seconds since 1970.
        groups: Group by attribute, such as `{"locale": "de"}`.
    """

    request_id: str
    arm: ArmName
    time: float
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """What turned out about an answer.

    Args:
        request_id: Of the answer.
        metric: Name of the policy's metric.
        loss: 0 if the answer was as good as it can be, to 1 if it was as bad: 0 or 1 for right or wrong.
        time: When the label arrived, seconds since 1970.
    """

    request_id: str
    metric: str
    loss: float
    time: float


@dataclass(frozen=True)
class JoinedLabel:
    """A label with the answer that it is about."""

    answer: Answer
    label: Label


@dataclass(frozen=True)
class Evidence:
    """All that is known about a canary.

    Args:
        windows: Without overlap, in the order of time.
        answers: For the labels to be joined with.
        labels: In the order of their arrival.
    """

    windows: tuple[Window, ...] = ()
    answers: tuple[Answer, ...] = ()
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Join:
    """Labels and answers, put together.

    Args:
        joined: In the order of the labels' arrival.
        unknown: Labels whose request nobody answered, as far as is known.
        repeated: Labels of an answer and metric that already had one; the first counts.
    """

    joined: tuple[JoinedLabel, ...]
    unknown: int
    repeated: int


def join_labels(answers: Iterable[Answer], labels: Iterable[Label]) -> Join:
    """Join labels with answers by request id.

    The first label of an answer and metric counts: to let a later one replace it would take back evidence that was
    already judged.

    >>> join = join_labels([Answer("a", "candidate", 5)], [Label("a", "quality", 1, 9), Label("b", "quality", 0, 9)])
    >>> len(join.joined), join.unknown
    (1, 1)
    """
    known = {answer.request_id: answer for answer in answers}
    seen: set[tuple[str, str]] = set()
    joined, unknown, repeated = [], 0, 0
    for label in sorted(labels, key=lambda label: label.time):
        answer = known.get(label.request_id)
        if answer is None:
            unknown += 1
        elif (label.request_id, label.metric) in seen:
            repeated += 1
        else:
            seen.add((label.request_id, label.metric))
            joined.append(JoinedLabel(answer, label))
    return Join(tuple(joined), unknown, repeated)


def find_window(windows: Sequence[Window], time: float) -> int | None:
    """Return the index of the window that holds a time; None if none does."""
    index = bisect_right([window.start for window in windows], time) - 1
    return index if index >= 0 and time < windows[index].end else None


def read_evidence(text: str, where: str = "evidence") -> Evidence:
    """Read evidence from JSON.

    Args:
        text: The document; see the module's documentation.
        where: What to call it in an error.

    Raises:
        DataError: Not JSON, a field is missing, unknown or impossible; the message names it. Among what is refused:
            windows that overlap or run backwards, more errors than requests, and labels older than their answers,
            which a skewed clock makes.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"not JSON ({error})", "a JSON object is needed", "export the evidence again") from None
    top = _Object(document, where)
    top.allow("schema", "windows", "answers", "labels")
    if top.number("schema") != SCHEMA:
        raise DataError(f"{where}, schema", f"{document['schema']!r}", f"{SCHEMA} is needed", f"write schema: {SCHEMA}")
    windows = tuple(_read_window(one) for one in top.objects("windows"))
    for number, (before, after) in enumerate(pairwise(windows), start=1):
        if after.start < before.end:
            raise DataError(
                f"{where}, windows[{number}]",
                f"it starts {before.end - after.start:g} s before the end of the window above",
                "windows must follow each other without overlap",
                "sort them by time, and see whether two clocks were used",
            )
    answers = tuple(_read_answer(one) for one in top.objects("answers"))
    labels = tuple(_read_label(one) for one in top.objects("labels"))
    ids = {answer.request_id: answer for answer in answers}
    if len(ids) < len(answers):
        raise DataError(
            f"{where}, answers", "a request id stands twice", "each answer needs its own id", "give every request an id"
        )
    for number, label in enumerate(labels):
        answer = ids.get(label.request_id)
        if answer is not None and label.time < answer.time:
            raise DataError(
                f"{where}, labels[{number}]",
                f"it is {answer.time - label.time:g} s older than its answer",
                "a label comes after its answer",
                "set the clocks of both sources, or write the time at which the label arrived",
            )
    return Evidence(windows, answers, labels)


def window_to_dict(window: Window) -> dict[str, Any]:
    """Return JSON values, as `read_evidence` reads them."""
    values: dict[str, Any] = {
        "start": window.start,
        "end": window.end,
        "step": window.step,
        "traffic_percent": window.traffic_percent,
        "stable": _arm_to_dict(window.stable),
        "candidate": _arm_to_dict(window.candidate),
    }
    return values | ({"gap": window.gap} if window.gap else {})


def window_from_dict(values: Mapping[str, Any], where: str = "window") -> Window:
    """Read what `window_to_dict` wrote.

    Raises:
        DataError: As `read_evidence`.
    """
    return _read_window(_Object(values, where))


def evidence_to_dict(evidence: Evidence) -> dict[str, Any]:
    """Return JSON values, as `read_evidence` reads them."""
    return {
        "schema": SCHEMA,
        "windows": [window_to_dict(window) for window in evidence.windows],
        "answers": [
            {"request_id": one.request_id, "arm": one.arm, "time": one.time, "groups": dict(one.groups)}
            for one in evidence.answers
        ],
        "labels": [
            {"request_id": one.request_id, "metric": one.metric, "loss": one.loss, "time": one.time}
            for one in evidence.labels
        ],
    }


def _arm_to_dict(arm: Arm) -> dict[str, Any]:
    values: dict[str, Any] = {"requests": arm.requests, "errors": arm.errors}
    if arm.latency is not None:
        values["latency"] = {"bounds_seconds": list(arm.latency.bounds_seconds), "counts": list(arm.latency.counts)}
    if arm.counters:
        values["counters"] = {
            name: {"events": counter.events, "total": counter.total} for name, counter in arm.counters.items()
        }
    return values | ({"reset": True} if arm.reset else {})


class _Object:
    """A JSON object with the place that errors name."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise DataError(where, _show(value), "a JSON object is needed", "see the form in the documentation")
        self.values: Mapping[str, Any] = value
        self.where = where

    def allow(self, *names: str) -> None:
        for name in self.values:
            if name not in names:
                raise self.error(name, "an unknown field", f"known fields are {', '.join(names)}", "remove it")

    def error(self, name: str, seen: str, needed: str, fix: str) -> DataError:
        return DataError(f"{self.where}, {name}", seen, needed, fix)

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def number(self, name: str, default: float | None = None, most: float = math.inf) -> float:
        value = self.values.get(name, default)
        # `1e999` is JSON, and infinity.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf:
            limit = f"a number from 0 to {most:g}" if most < math.inf else "a number of at least 0"
            raise self.error(name, _show(value), f"{limit} is needed", "correct it")
        return float(value)

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(name, _show(value), "a text is needed", "write it")
        return value

    def time(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, str):
            try:
                parsed = datetime.fromisoformat(value)
            except ValueError:
                parsed = None
            if parsed is not None and parsed.tzinfo is not None:
                return parsed.timestamp()
        elif not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise self.error(
            name,
            _show(value),
            "a time with its offset is needed, or seconds since 1970",
            f"write it as {datetime(2026, 11, 21, 10, 0, tzinfo=UTC).isoformat()}",
        )

    def object(self, name: str) -> "_Object":
        return _Object(self.values.get(name), f"{self.where}, {name}")

    def objects(self, name: str) -> "list[_Object]":
        value = self.values.get(name, [])
        if not isinstance(value, list):
            raise self.error(name, _show(value), "a list is needed", "write it in [ ]")
        return [_Object(one, f"{self.where}, {name}[{index}]") for index, one in enumerate(value)]


def _read_window(values: _Object) -> Window:
    values.allow("start", "end", "step", "traffic_percent", *ARMS, "gap")
    start, end = values.time("start"), values.time("end")
    if end <= start:
        raise values.error(
            "end", f"{end - start:g} s after the start", "it must lie after the start", "swap them, or set the clock"
        )
    step = values.number("step", 0)
    if step != int(step):
        raise values.error("step", f"{step:g}", "a whole number is needed", "write the number of the policy's step")
    gap = values.get("gap") or ""
    if not isinstance(gap, str):
        raise values.error("gap", _show(gap), "a text is needed", "say what was missing")
    return Window(
        start,
        end,
        int(step),
        values.number("traffic_percent", most=100),
        _read_arm(values.object("stable")),
        _read_arm(values.object("candidate")),
        gap,
    )


def _read_arm(values: _Object) -> Arm:
    values.allow("requests", "errors", "latency", "counters", "reset")
    requests = values.number("requests")
    errors = values.number("errors", 0)
    if errors > requests:
        raise values.error(
            "errors", f"{errors:g} of {requests:g} requests", "no more errors than requests", "count again"
        )
    latency = None if values.get("latency") is None else _read_histogram(values.object("latency"))
    counters = {}
    if values.get("counters") is not None:
        named = values.object("counters")
        for name in named.values:
            counter = named.object(name)
            counter.allow("events", "total")
            total = counter.number("total")
            counters[name] = Counter(counter.number("events", most=total), total)
    reset = values.get("reset") or False
    if not isinstance(reset, bool):
        raise values.error("reset", _show(reset), "true or false is needed", "correct it")
    return Arm(requests, errors, latency, counters, reset)


def _read_histogram(values: _Object) -> Histogram:
    values.allow("bounds_seconds", "counts")
    lists = {}
    for name in ("bounds_seconds", "counts"):
        value = values.get(name)
        if not isinstance(value, list) or not all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < math.inf for one in value
        ):
            raise values.error(name, _show(value), "a list of numbers of at least 0 is needed", "correct it")
        lists[name] = tuple(float(one) for one in value)
    bounds, counts = lists["bounds_seconds"], lists["counts"]
    if list(bounds) != sorted(set(bounds)):
        raise values.error("bounds_seconds", _show(list(bounds)), "ascending bounds are needed", "sort the buckets")
    if len(counts) != len(bounds) + 1:
        raise values.error(
            "counts",
            f"{len(counts)} counts for {len(bounds)} bounds",
            f"{len(bounds) + 1} are needed, the last for what took longer than the last bound",
            'add the bucket without a bound (le="+Inf")',
        )
    return Histogram(bounds, counts)


def _read_answer(values: _Object) -> Answer:
    values.allow("request_id", "arm", "time", "groups")
    arm = values.text("arm")
    if arm not in ARMS:
        raise values.error("arm", _show(arm), "stable or candidate is needed", "correct it")
    groups = values.object("groups").values if values.get("groups") is not None else {}
    for name, value in groups.items():
        if not isinstance(value, str):
            raise values.error(f"groups.{name}", _show(value), "a text is needed", "quote it")
    return Answer(values.text("request_id"), "stable" if arm == "stable" else "candidate", values.time("time"), groups)


def _read_label(values: _Object) -> Label:
    values.allow("request_id", "metric", "loss", "time")
    return Label(values.text("request_id"), values.text("metric"), values.number("loss", most=1), values.time("time"))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
