"""Gates: thresholds on measurements that decide whether a model may be registered.

A gate compares one measured value with a fixed number or with another measured value, overall or slice by slice. Its
answer names the metric, the value, the threshold and the slice, so that a refusal can be acted on.

    schema: 1
    gates:
      - metric: neighbour_purity_at_10
        at_least_metric: reference_neighbour_purity_at_10
        margin: 0.02
        when_missing: skip
      - metric: out_of_vocabulary_share
        at_most: 0.4
        slices: [all, locale]
        min_count: 30

| field | meaning |
|---|---|
| `metric` | the measurement to judge |
| `at_least`, `at_most` | the limit, a number |
| `at_least_metric`, `at_most_metric` | the limit is another metric's value on the same slice |
| `margin` | how far the value may stay behind that other metric, 0 by default |
| `slices` | `all` (default), a column (every slice of it), or one slice, `column=value` |
| `min_count` | rows that a slice must have to be judged; 30 by default for the slices of a column, else 0 |
| `when_missing` | `refuse` (default) or `skip`, where there is nothing to judge |
| `judge` | what is held against the limit: `value` (default), `interval` or `whole_interval` |

`judge` says who carries the burden of proof:

| `judge` | refuses if | what for |
|---|---|---|
| `value` | the value is beyond the limit | large samples, counts, properties of the model itself |
| `interval` | the worse end of the 95 % interval is: the model has to show that it holds | not worse than another |
| `whole_interval` | the better end is: harm has to be shown, so chance alone rarely refuses | small slices, gaps |

Both need an interval, and refuse a value without one: neither proof can be given. NaN never holds.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlflywheel.decisions.documents import load_yaml
from mlflywheel.errors import GateRefusedError, UsageError
from mlflywheel.models.contract import Measurement

SCHEMA = 1
ALL = "all"
DEFAULT_MIN_COUNT_OF_A_COLUMN = 30

Relation = Literal[">=", "<="]
Judge = Literal["value", "interval", "whole_interval"]

_BOUNDS: Mapping[str, Relation] = {
    "at_least": ">=",
    "at_most": "<=",
    "at_least_metric": ">=",
    "at_most_metric": "<=",
}
_FIELDS = ("metric", *_BOUNDS, "margin", "slices", "min_count", "when_missing", "judge")


@dataclass(frozen=True)
class Gate:
    """One threshold. Exactly one of `limit` and `limit_metric` is set.

    Args:
        metric: The measurement to judge.
        relation: `>=` if the value must reach the limit, `<=` if it must not pass it. Equality holds in both.
        limit: A fixed limit, finite.
        limit_metric: The metric whose value on the same slice is the limit.
        margin: How far the value may stay behind `limit_metric`, at least 0.
        slices: `all`, column names, or `column=value`.
        min_count: Rows that a slice must have; None is 30 for the slices of a column and 0 otherwise.
        when_missing: What to answer where nothing can be judged.
        judge: `interval` asks that the worse end of the value's interval holds, so a value that rests on too few rows
            does not pass by luck. `whole_interval` asks that the better end does: it refuses only what lies beyond the
            limit with its whole interval. The other metric of `limit_metric` is taken by its value; where both are
            measured on the same rows, a measured difference with an interval of its own is the sharper gate.
    """

    metric: str
    relation: Relation
    limit: float | None = None
    limit_metric: str | None = None
    margin: float = 0.0
    slices: tuple[str, ...] = (ALL,)
    min_count: int | None = None
    when_missing: Literal["skip", "refuse"] = "refuse"
    judge: Judge = "value"


@dataclass(frozen=True)
class GateResult:
    """What one gate says about one slice.

    Args:
        metric: The gate's metric.
        slice: The slice: `all`, `column=value`, or a bare column where it has no slice that can be judged.
        value: The measured value, None where it is missing.
        limit: The limit after the margin, None where the metric that sets it is missing.
        relation: `>=` or `<=`.
        holds: Whether `judged relation limit`; None if the gate was skipped here.
        reason: One sentence with metric, value, interval, threshold and slice; a refusal ends with the measurement's
            note, which names what is behind the value.
        judged: The number that was compared: the value, or an end of its interval.
        count: Rows behind the value.
    """

    metric: str
    slice: str
    value: float | None
    limit: float | None
    relation: Relation
    holds: bool | None
    reason: str
    judged: float | None = None
    count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as they stand in `summary.json`; a value that is not finite becomes null."""
        return {
            "metric": self.metric,
            "slice": self.slice,
            "value": _finite(self.value),
            "relation": self.relation,
            "limit": _finite(self.limit),
            "holds": self.holds,
            "judged": _finite(self.judged),
            "count": self.count,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Verdict:
    """What all gates say together."""

    results: tuple[GateResult, ...]

    @property
    def holds(self) -> bool:
        """Whether no gate refused; a skipped gate does not refuse."""
        return not self.refused

    @property
    def refused(self) -> tuple[GateResult, ...]:
        """The results that do not hold."""
        return tuple(result for result in self.results if result.holds is False)

    def to_list(self) -> list[dict[str, Any]]:
        """Return JSON values, as `gates` in `summary.json`."""
        return [result.to_dict() for result in self.results]

    @classmethod
    def from_list(cls, values: Sequence[Mapping[str, Any]]) -> "Verdict":
        """Rebuild from `to_list`."""
        return cls(tuple(GateResult(**value) for value in values))

    def raise_if_refused(self, where: str = "gates") -> None:
        """Stop a run whose gates do not all hold.

        Args:
            where: What to call the gates in the message.

        Raises:
            GateRefusedError: At least one gate does not hold; the message names each one's metric, value, threshold
                and slice.
        """
        refused = self.refused
        if not refused:
            return
        judged = sum(result.holds is not None for result in self.results)
        raise GateRefusedError(
            where,
            f"{len(refused)} of {judged} do not hold: " + "; ".join(result.reason for result in refused),
            "every gate must hold",
            "look these metrics up in the report, and change the data or the parameters, or the limit in gates.yaml",
        )


def read_gates(text_yaml: str, where: str = "gates.yaml") -> tuple[Gate, ...]:
    r"""Read gates from YAML.

    Args:
        text_yaml: The document; see the module's documentation for its fields.
        where: What to call it in an error.

    Returns:
        The gates, in the document's order; none if the list is empty.

    Raises:
        UsageError: Not YAML, another schema, a field that is unknown, written twice or of another type; the message
            names the entry and the field.

    >>> gate, = read_gates("schema: 1\ngates:\n  - {metric: topic_diversity, at_least: 0.6}")
    >>> gate.metric, gate.relation, gate.limit
    ('topic_diversity', '>=', 0.6)
    """
    document = load_yaml(text_yaml, where)
    if not isinstance(document, dict):
        raise UsageError(
            where, f"{_name_type(document)}", "schema and gates are needed", "start with `schema: 1` and a list `gates`"
        )
    _refuse_unknown(document, ("schema", "gates"), where)
    schema = document.get("schema")
    if isinstance(schema, bool) or schema != SCHEMA:
        raise UsageError(
            f"{where}, schema", _show(document, "schema"), f"{SCHEMA} is needed", f"write `schema: {SCHEMA}`"
        )
    entries = document.get("gates")
    if not isinstance(entries, list):
        raise UsageError(
            f"{where}, gates", _show(document, "gates"), "a list is needed", "write one `- metric: ...` for each gate"
        )
    return tuple(_read_gate(entry, f"{where}, gate {number}") for number, entry in enumerate(entries, start=1))


def judge(gates: Sequence[Gate], measurements: Sequence[Measurement]) -> Verdict:
    r"""Compare measurements with gates. Pure: the same input gives the same verdict.

    Limits are compared exactly, without a tolerance: a value equal to its limit holds. NaN never holds, neither as a
    value nor as a limit, whatever `when_missing` says: it was measured, and it went wrong.

    A metric is missing on a slice if it was not measured there or its value is None, if the metric that sets the limit
    is, or if a slice that the gate names has fewer than `min_count` rows. Slices of a column with too few rows are
    skipped; a column without any slice that could be judged is missing as a whole.

    Args:
        gates: From `read_gates`.
        measurements: From `Evaluation.measurements`; at most one of a metric and slice.

    Raises:
        UsageError: A metric was measured twice on one slice.

    >>> gates = read_gates("schema: 1\ngates:\n  - {metric: topic_diversity, at_least: 0.6}")
    >>> verdict = judge(gates, [Measurement("topic_diversity", 0.55, count=50)])
    >>> verdict.holds, verdict.results[0].reason
    (False, 'topic_diversity 0.55 is below 0.6 on slice all')
    """
    measured: dict[tuple[str, str], Measurement] = {}
    for measurement in measurements:
        key = (measurement.metric, measurement.slice)
        if key in measured:
            raise UsageError(
                f"metric {measurement.metric}",
                f"measured twice on slice {measurement.slice}",
                "one value a metric and slice is needed",
                "let evaluate() return it once",
            )
        measured[key] = measurement
    return Verdict(tuple(result for gate in gates for result in _judge_gate(gate, measured)))


def _judge_gate(gate: Gate, measured: Mapping[tuple[str, str], Measurement]) -> Iterator[GateResult]:
    seen: set[str] = set()
    for name in gate.slices:
        if name == ALL or "=" in name:
            if name not in seen:
                seen.add(name)
                yield _judge_slice(gate, name, measured, gate.min_count or 0)
            continue
        min_count = DEFAULT_MIN_COUNT_OF_A_COLUMN if gate.min_count is None else gate.min_count
        found = [s for metric, s in measured if metric == gate.metric and s.startswith(f"{name}=")]
        large = [s for s in found if measured[gate.metric, s].count >= min_count]
        for slice_name in found:
            if slice_name in seen:
                continue
            seen.add(slice_name)
            if slice_name in large:
                yield _judge_slice(gate, slice_name, measured, 0)
            else:
                few = measured[gate.metric, slice_name]
                yield GateResult(
                    gate.metric,
                    slice_name,
                    few.value,
                    gate.limit,
                    gate.relation,
                    None,
                    f"{gate.metric} skipped on slice {slice_name}: {few.count} rows, {min_count} are needed",
                    count=few.count,
                )
        if not found:
            yield _miss(gate, name, None, f"is not measured on any slice of {name}")
        elif not large:
            yield _miss(gate, name, None, f"has no slice of {name} with at least {min_count} rows")


def _judge_slice(gate: Gate, name: str, measured: Mapping[tuple[str, str], Measurement], min_count: int) -> GateResult:
    found = measured.get((gate.metric, name))
    if found is None:
        return _miss(gate, name, None, f"is not measured on slice {name}")
    if found.value is None:
        note = f" ({found.note})" if found.note else ""
        return _miss(gate, name, found, f"has no value on slice {name}{note}")
    if found.count < min_count:
        return _miss(gate, name, found, f"rests on {found.count} rows on slice {name}, {min_count} are needed")
    limit, origin = gate.limit, ""
    if gate.limit_metric is not None:
        other = measured.get((gate.limit_metric, name))
        if other is None or other.value is None:
            return _miss(gate, name, found, f"has no {gate.limit_metric} to be compared with on slice {name}")
        limit = other.value - gate.margin if gate.relation == ">=" else other.value + gate.margin
        sign = "-" if gate.relation == ">=" else "+"
        origin = f" ({gate.limit_metric}" + (f" {sign} {gate.margin:g})" if gate.margin else ")")
    assert limit is not None  # for the type checker: a gate has a limit or a limit_metric
    judged = found.value
    if gate.judge != "value":
        # The end that is judged is the worse one, or the better one if the whole interval has to lie beyond the limit.
        lower = (gate.relation == ">=") == (gate.judge == "interval")
        end = found.low if lower else found.high
        if end is None:
            # Not "missing": a value without evidence is what these gates were written against.
            reason = f"{gate.metric} {_number(found.value)} has no interval on slice {name}, and the gate asks for one"
            reason += f": {found.note}" if found.note else ""
            return GateResult(gate.metric, name, found.value, limit, gate.relation, False, reason, None, found.count)
        judged = found.value if math.isnan(found.value) else end
    holds = bool(judged >= limit if gate.relation == ">=" else judged <= limit)
    reason = f"{_compare(gate, found, judged, limit, holds)}{origin} on slice {name}"
    if not holds and found.note:
        reason += f": {found.note}"
    return GateResult(gate.metric, name, found.value, limit, gate.relation, holds, reason, judged, found.count)


def _compare(gate: Gate, found: Measurement, judged: float, limit: float, holds: bool) -> str:
    """Say how a value lies to its limit, with all digits where fewer would make them look equal."""
    assert found.value is not None  # for the type checker: a missing value is answered before
    write = repr if _number(judged) == _number(limit) and judged != limit else _number
    value = write(float(found.value)) if gate.judge == "value" else _number(found.value)
    text = f"{gate.metric} {value}"
    if found.low is not None and found.high is not None:
        text += f" ({write(float(found.low))} to {write(float(found.high))})"
    threshold = write(float(limit))
    if math.isnan(judged) or math.isnan(limit):
        return f"{text} cannot be compared with {threshold}"
    beyond = "below" if gate.relation == ">=" else "above"
    if gate.judge == "whole_interval":
        return f"{text} is {'not ' if holds else ''}{beyond} {threshold} with its whole interval"
    if gate.judge == "interval":
        text += f" with an interval's {'low' if gate.relation == '>=' else 'high'} end {write(float(judged))}"
    kept = "reaches" if gate.relation == ">=" else "is within"
    return f"{text} {kept if holds else f'is {beyond}'} {threshold}"


def _miss(gate: Gate, name: str, found: Measurement | None, seen: str) -> GateResult:
    skipped = gate.when_missing == "skip"
    threshold = _number(gate.limit) if gate.limit is not None else str(gate.limit_metric)
    return GateResult(
        gate.metric,
        name,
        found.value if found else None,
        gate.limit,
        gate.relation,
        None if skipped else False,
        f"{gate.metric} {seen}, {gate.relation} {threshold} " + ("was skipped" if skipped else "is needed"),
        count=found.count if found else 0,
    )


def _read_gate(entry: Any, where: str) -> Gate:
    if not isinstance(entry, dict):
        raise UsageError(where, _name_type(entry), "fields are needed", "write `- metric: ...` and a limit")
    _refuse_unknown(entry, _FIELDS, where)
    metric = _read_text(entry, "metric", where)
    where = f"{where} ({metric})"
    given = [name for name in _BOUNDS if name in entry]
    if len(given) != 1:
        raise UsageError(
            where,
            " and ".join(given) if given else "no limit",
            f"exactly one of {', '.join(_BOUNDS)} is needed",
            "write two gates to bound a metric on both sides" if given else "add the limit",
        )
    bound = given[0]
    by_metric = bound.endswith("_metric")
    if "margin" in entry and not by_metric:
        raise UsageError(
            f"{where}, margin",
            f"beside {bound}",
            "a margin widens only a limit that is another metric",
            "put it into the limit",
        )
    limit_metric = _read_text(entry, bound, where) if by_metric else None
    if limit_metric == metric:
        raise UsageError(
            f"{where}, {bound}", f"{metric} itself", "another metric is needed", "name the metric to compare with"
        )
    margin = _read_number(entry, "margin", where) if "margin" in entry else 0.0
    if margin < 0:
        raise UsageError(
            f"{where}, margin",
            f"{margin:g}",
            "at least 0 is needed: it says how far the value may stay behind",
            "write it without the sign",
        )
    return Gate(
        metric,
        _BOUNDS[bound],
        limit=None if by_metric else _read_number(entry, bound, where),
        limit_metric=limit_metric,
        margin=margin,
        slices=_read_slices(entry, where),
        min_count=_read_count(entry, where),
        when_missing="skip" if _read_choice(entry, "when_missing", ("refuse", "skip"), where) == "skip" else "refuse",
        judge=_read_judge(entry, where),
    )


def _read_text(entry: Mapping[str, Any], field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(
            f"{where}, {field}", _show(entry, field), "a metric's name is needed", "write its name as text"
        )
    return value


def _read_number(entry: Mapping[str, Any], field: str, where: str) -> float:
    value = entry[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        looks = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
        fix = "YAML 1.1 reads this as text: write it as a decimal, as in 0.001" if looks else "write it as in 0.5"
        raise UsageError(f"{where}, {field}", _show(entry, field), "a finite number is needed", fix)
    return float(value)


def _read_count(entry: Mapping[str, Any], where: str) -> int | None:
    if "min_count" not in entry:
        return None
    value = entry["min_count"]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(
            f"{where}, min_count", _show(entry, "min_count"), "a whole number of rows is needed", "write it as in 30"
        )
    return value


def _read_slices(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if "slices" not in entry:
        return (ALL,)
    value = entry["slices"]
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}, slices", _show(entry, "slices"), "a list is needed", "write it as in [all, locale]")
    for part in value:
        if not isinstance(part, str) or not part.partition("=")[0].strip():
            raise UsageError(
                f"{where}, slices", repr(part), "all, a column or column=value is needed", "quote it if it is text"
            )
    return tuple(value)


def _read_choice(entry: Mapping[str, Any], field: str, choices: tuple[str, ...], where: str) -> str:
    value = entry.get(field, choices[0])
    if value not in choices:
        raise UsageError(f"{where}, {field}", _show(entry, field), f"{' or '.join(choices)} is needed", "choose one")
    return str(value)


def _read_judge(entry: Mapping[str, Any], where: str) -> Judge:
    choice = _read_choice(entry, "judge", get_args(Judge), where)
    return next(known for known in get_args(Judge) if known == choice)


def _refuse_unknown(mapping: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            raise UsageError(
                f"{where}, {key}", "an unknown field", f"known fields are {', '.join(known)}", "correct or remove it"
            )


def _show(mapping: Mapping[Any, Any], field: str) -> str:
    return repr(mapping[field]) if field in mapping else "missing"


def _name_type(value: Any) -> str:
    return "an empty document" if value is None else f"a {type(value).__name__}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
