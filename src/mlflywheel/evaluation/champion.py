"""A new model against the version in use and against simpler methods, row by row on the same held-out rows.

    champion_loss_<row metric>   how much worse than the version in use, positive = worse, in the metric's own units
    champion_churn               how many answers changed
    gain_over_<reference>        how much better than a simpler method, positive = better

Every value has a 95 % interval of paired differences (`mlflywheel.evaluation.paired`). Gates make of it what they want:

    - {metric: champion_loss_absolute_relative_error, at_most: 0.005, judge: interval, when_missing: skip}

is non-inferiority: the evidence must rule out a loss of more than 0.005. It refuses an equally good model too where the
rows are too few for that (`required_rows`). `judge: whole_interval` refuses only what is shown to be worse.

The comparison is fair where the champion has not learned from the rows either. A split by hash keeps a row on its side
whatever rows come and go, so with one method, seed and fraction what is held out now was held out then. Where that
breaks, the champion looks better than it is, and a good model may be refused; a bad one is not let pass by it
(`describe_seen_rows`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.errors import UsageError
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.evaluation.paired import estimate_loss, required_rows
from mlflywheel.evaluation.plan import ChampionPlan
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, Section
from mlflywheel.statistics.intervals import Interval, estimate_mean, estimate_share

__all__ = [
    "CHANGED",
    "compare_with_champion",
    "compare_with_references",
    "describe_seen_rows",
    "no_champion",
    "required_rows",
]

CHURN = "champion_churn"
ANSWER_CHANGE = "champion_answer_change"
NO_CHAMPION = "no champion"
#: A number has changed if it is further from the champion's than this share of the larger of the two.
CHANGED = 0.1
_ALL = "all"
_MOST_BARS = 15
_HASHED = ("random", "grouped")


@dataclass(frozen=True)
class _Pair:
    """One row metric of both models.

    Args:
        ours: The new model's.
        theirs: The champion's values of the same rows.
        losses: (rows,): positive where the new model is worse, NaN where one of them has no value.
    """

    ours: RowMetric
    theirs: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def name(self) -> str:
        return f"champion_loss_{self.ours.name}"

    @property
    def span(self) -> float | None:
        bounds = self.ours.bounds
        return None if bounds is None else bounds[1] - bounds[0]


def compare_with_champion(
    rows: RowScores,
    champion: RowScores,
    reference: str,
    plan: ChampionPlan,
    groupings: Sequence[Grouping],
    *,
    caution: str = "",
) -> Evaluation:
    """Measure how much worse a model is than the version in use, and how many of its answers changed.

    A row where one of the two has no value is left out of that metric, and counted in the note. Groups are those of the
    new model's attributes; one with fewer than `plan.minimum_count` rows has no value, but a note with its mean.

    Args:
        rows: The new model on the held-out rows.
        champion: The version in use on the same rows.
        reference: Its name, `NAME@VERSION`.
        plan: Confidence of the intervals, and rows that a slice needs.
        groupings: The slices on which both are compared beside all rows.
        caution: What is known to be unfair about the comparison, such as of `describe_seen_rows`; shown in the report.

    Returns:
        `champion_loss_<metric>` overall and by slice; `champion_churn`, the share of rows whose answer changed (another
        class; a number beyond `CHANGED`; of lists the mean share of the ids that are not shared, order ignored); for
        numbers also `champion_answer_change`, the mean of abs(a - b) / max(abs(a), abs(b)).

    Raises:
        UsageError: The champion is of another task, was measured on other rows or in another way.
        DataError: A grouping's column is not among the attributes.
    """
    _check_comparable(rows, champion, reference)
    theirs = {metric.name: metric for metric in champion.metrics}
    groups = [(grouping.name, grouping.assign(rows.attributes)) for grouping in groupings]
    measured: dict[tuple[str, str], Measurement] = {}
    pairs: list[_Pair] = []
    for metric in rows.metrics:
        other = theirs.pop(metric.name, None)
        if other is None:
            name = f"champion_loss_{metric.name}"
            measured[name, _ALL] = Measurement(name, None, note=f"{reference} does not measure {metric.name}")
            continue
        if other.better != metric.better:
            raise UsageError(
                f"champion {reference}, metric {metric.name}",
                f"{other.better} values are better there, and {metric.better} ones here",
                "one meaning is needed to compare them",
                "give the new metric another name",
            )
        pair = _pair(metric, other)
        pairs.append(pair)
        for found in _measure_losses(pair, groups, plan):
            # Two groupings of one column may make the same group, of the same rows.
            measured.setdefault((found.metric, found.slice), found)
    for found in _measure_answers(rows, champion, plan.confidence):
        measured[found.metric, found.slice] = found
    sections = _show_comparison(rows, pairs, measured, reference, sorted(theirs), caution)
    return Evaluation(tuple(measured.values()), sections)


def no_champion(rows: RowScores | None = None) -> Evaluation:
    """Return what there is to say where no version is in use: every comparison is missing, which is no error.

    A gate with `when_missing: skip` lets the first version pass; with `refuse`, the default, nothing passes until a
    version was approved by hand.

    Args:
        rows: The new model on the held-out rows, to name its metrics; without them only the churn is named.

    >>> no_champion().measurements[0].note
    'no champion'
    """
    names = [f"champion_loss_{metric.name}" for metric in rows.metrics] if rows else []
    names.append(CHURN)
    if rows is not None and rows.task == "regression":
        names.append(ANSWER_CHANGE)
    text = "There is no version in use to compare with: this is the first one, or none was approved so far."
    return Evaluation(
        tuple(Measurement(name, None, note=NO_CHAMPION) for name in names),
        (Section("text", "Against the version in use", text),),
    )


def compare_with_references(rows: RowScores, *, confidence: float = 0.95) -> Evaluation:
    """Measure how much better a model is than each simpler method, by its first metric, on the same rows.

    A model that is hardly better than what anybody can write down costs more than it brings.

    Args:
        rows: The model on the held-out rows, with the values of the references.
        confidence: Of the intervals.

    Returns:
        `gain_over_<reference>` for each, in the metric's units, positive where the model is better; nothing for a model
        without references.

    Raises:
        UsageError: A reference was measured on other rows.

    Source: E. Breck et al., "The ML Test Score", IEEE Big Data (2017), test Model 5: a simpler model is not better.
    """
    if not rows.references:
        return Evaluation(())
    metric = rows.metrics[0]
    span = None if metric.bounds is None else metric.bounds[1] - metric.bounds[0]
    measurements, table = [], []
    for name, values in rows.references.items():
        if values.shape != metric.values.shape:
            raise UsageError(
                f"reference {name}",
                f"{len(values)} values for {len(metric.values)} rows",
                "one value a row is needed",
                "measure it on the rows that the model is measured on",
            )
        difference = metric.values - values if metric.better == "higher" else values - metric.values
        interval = estimate_loss(difference, span, confidence=confidence)
        note = _describe_left_out(metric.values, values, f"{name}'s", "the model's")
        measurements.append(_to_measurement(f"gain_over_{name}", interval, _ALL, note))
        both = ~np.isnan(difference)
        cells: list[Any] = [name, _mean(values[both]), _mean(metric.values[both]), _interval_cell(interval)]
        table.append([*cells, interval.count])
    ahead = sum(found.low is not None and found.low > 0 for found in measurements)
    text = (
        f"Mean {_spell(metric.name)} on the same held-out rows. The gain is positive where this model is better; it is "
        f"shown to be better than {ahead} of {len(measurements)} simpler methods."
    )
    columns = [
        {"name": "simpler method", "kind": "text"},
        {"name": "its mean", "kind": "number"},
        {"name": "this model's mean", "kind": "number"},
        {"name": "gain", "kind": "interval"},
        {"name": "rows", "kind": "number", "decimals": 0},
    ]
    data = {"columns": columns, "rows": table, "sortable": False}
    section = Section("table", "Gain over simpler methods", text, data)
    return Evaluation(tuple(measurements), (section,))


def describe_seen_rows(champion: Mapping[str, Any] | None, current: Mapping[str, Any] | None) -> str:
    """Say whether the champion may have learned from rows that are held out now, by how both tables were split.

    Only the splits are compared, not the rows. A row that got another id, or stands in the table under two ids, may
    have changed sides unseen; so may one without an id, for which its place in the table stands.

    Args:
        champion: `method`, `column`, `seed` and `holdout_fraction` of the champion's split; None if it is not recorded.
        current: The same of the table that both are measured on.

    Returns:
        One sentence, or nothing where the split keeps them apart.

    >>> then = {"method": "random", "column": None, "seed": 0, "holdout_fraction": 0.2}
    >>> describe_seen_rows(then, then)
    ''
    >>> describe_seen_rows(then, {**then, "holdout_fraction": 0.25})
    'The version in use learned from about 20 % of these rows: 0.2 of the rows were held out then, and 0.25 are now.'
    """
    if champion is None or current is None:
        return "How the version in use was trained is not recorded: it may have learned from some of these rows."
    then, now = float(champion["holdout_fraction"]), float(current["holdout_fraction"])
    method = current["method"]
    if champion["method"] == method == "temporal" and (champion.get("column") or "") == (current.get("column") or ""):
        if now <= then:
            return ""
        return (
            f"The version in use may have learned from the older of these rows: the newest {then:g} of the rows were "
            f"held out then, and the newest {now:g} are now."
        )
    keys = ("method", "column", "seed")
    changed = [key for key in keys if (champion.get(key) or 0) != (current.get(key) or 0)]
    if changed or method not in _HASHED:
        what = ", ".join(f"{key} {champion.get(key)} then and {current.get(key)} now" for key in changed)
        learned = f"The version in use learned from about {100 * (1 - then):.0f} % of these rows"
        return f"{learned}: the split was another ({what})."
    if now <= then:
        return ""
    return (
        f"The version in use learned from about {100 * (now - then) / now:.0f} % of these rows: {then:g} of the rows "
        f"were held out then, and {now:g} are now."
    )


def _check_comparable(rows: RowScores, champion: RowScores, reference: str) -> None:
    where = f"champion {reference}"
    if rows.task != champion.task:
        raise UsageError(
            where,
            f"its task is {champion.task}, the new model's {rows.task}",
            "versions of one task are compared",
            f"register the new model under another name, or archive {reference}",
        )
    ours, theirs = rows.ids.to_pylist(), champion.ids.to_pylist()
    same_truth = (
        rows.truth is None or champion.truth is None or np.array_equal(rows.truth, champion.truth, equal_nan=True)
    )
    if ours == theirs and same_truth:
        return
    if len(ours) != len(theirs):
        seen = f"it scored {len(theirs)} rows, the new model {len(ours)}"
    elif ours != theirs:
        row = next(number for number, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        seen = f"its row {row + 1} is {theirs[row]}, the new model's {ours[row]}"
    else:
        seen = "the true values are others there"
    raise UsageError(
        where, seen, "both are compared on the same rows", "score one held-out table with both, in its order"
    )


def _pair(ours: RowMetric, theirs: RowMetric) -> _Pair:
    with np.errstate(invalid="ignore"):
        difference = ours.values - theirs.values
    return _Pair(ours, theirs.values, difference if ours.better == "lower" else -difference)


def _measure_losses(
    pair: _Pair, groups: Sequence[tuple[str, NDArray[np.object_]]], plan: ChampionPlan
) -> Iterator[Measurement]:
    note = _describe_left_out(pair.ours.values, pair.theirs, "the champion's", "this model's")
    yield _to_measurement(pair.name, estimate_loss(pair.losses, pair.span, confidence=plan.confidence), _ALL, note)
    for name, assigned in groups:
        for group in sorted(set(assigned)):
            losses = pair.losses[assigned == group]
            found = estimate_loss(losses, pair.span, confidence=plan.confidence)
            if found.count >= plan.minimum_count:
                left_out = (
                    f"{len(losses) - found.count} rows without a value of both" if len(losses) > found.count else ""
                )
                yield _to_measurement(pair.name, found, f"{name}={group}", left_out)
            else:
                seen = "" if found.value is None else f"; it is {found.value:.4g} on these"
                few = f"{found.count} rows, {plan.minimum_count} are needed{seen}"
                yield Measurement(pair.name, None, f"{name}={group}", found.count, note=few)


def _measure_answers(rows: RowScores, champion: RowScores, confidence: float) -> Iterator[Measurement]:
    if rows.task == "regression":
        change = _measure_number_change(rows.answers, champion.answers)
        found = estimate_share(int((change > CHANGED).sum()), len(change), confidence)
        yield _to_measurement(CHURN, found, _ALL, f"answers that changed by more than {CHANGED:.0%}")
        mean = estimate_mean(change, confidence=confidence, bounds=(0.0, 1.0))
        yield _to_measurement(ANSWER_CHANGE, mean, _ALL, "abs(a - b) / max(abs(a), abs(b))")
    elif rows.task == "recommendation":
        change = _measure_list_change(rows.answers.to_pylist(), champion.answers.to_pylist())
        mean = estimate_mean(change, confidence=confidence, bounds=(0.0, 1.0))
        yield _to_measurement(CHURN, mean, _ALL, "mean share of the listed ids that the other list lacks")
    else:
        pairs = zip(rows.answers.to_pylist(), champion.answers.to_pylist(), strict=True)
        changed = [one != other for one, other in pairs]
        yield _to_measurement(CHURN, estimate_share(sum(changed), len(changed), confidence), _ALL, "")


def _measure_number_change(ours: pa.Array, theirs: pa.Array) -> NDArray[np.float64]:
    """Return the distance of two numbers of each row, from 0 to 1, as `rollouts.answer_differences` defines it."""
    one, other = (
        np.asarray(values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
        for values in (ours, theirs)
    )
    both = np.isfinite(one) & np.isfinite(other)
    change = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, 1.0)
    larger = np.maximum(np.abs(one[both]), np.abs(other[both]))
    # Halves, since the difference of two huge numbers may be beyond what a float holds.
    gap = 2.0 * np.minimum(1.0, np.abs(one[both] / 2 - other[both] / 2) / np.where(larger > 0, larger, 1.0))
    change[both] = np.minimum(1.0, gap)
    return change


def _measure_list_change(ours: Sequence[Any], theirs: Sequence[Any]) -> NDArray[np.float64]:
    changes = []
    for one, other in zip(ours, theirs, strict=True):
        longer = max(len(one or ()), len(other or ()))
        shared = sum((Counter(one or ()) & Counter(other or ())).values())
        changes.append(1.0 - shared / longer if longer else 0.0)
    return np.array(changes, dtype=np.float64)


def _show_comparison(
    rows: RowScores,
    pairs: Sequence[_Pair],
    measured: Mapping[tuple[str, str], Measurement],
    reference: str,
    only_theirs: Sequence[str],
    caution: str,
) -> tuple[Section, ...]:
    churn = measured[CHURN, _ALL]
    changed = "" if churn.value is None else f" {100 * churn.value:.1f} % of the answers changed."
    if rows.task == "recommendation" and churn.value is not None:
        changed = f" {100 * churn.value:.1f} % of the listed ids are others."
    text = (
        f"Both models on the same {len(rows.ids)} held-out rows. A loss is positive where this model is worse than "
        f"{reference}.{changed}"
    )
    if only_theirs:
        text += f" Only {reference} measures {', '.join(map(_spell, only_theirs))}."
    if caution:
        text += f" {caution}"
    columns = [
        {"name": "metric", "kind": "text"},
        {"name": reference, "kind": "number"},
        {"name": "this model", "kind": "number"},
        {"name": "loss", "kind": "interval"},
        {"name": "rows", "kind": "number", "decimals": 0},
    ]
    table = []
    for pair in pairs:
        found = measured[pair.name, _ALL]
        both = ~np.isnan(pair.losses)
        better = f"{_spell(pair.ours.name)} ({pair.ours.better} is better)"
        cells = [better, _mean(pair.theirs[both]), _mean(pair.ours.values[both])]
        table.append([*cells, _interval_cell(Interval(found.value, found.low, found.high, found.count)), found.count])
    data = {"columns": columns, "rows": table, "sortable": False}
    sections = [Section("table", f"Against the version in use, {reference}", text, data)]
    # The first metric is what models are compared by; the others stand among the measurements.
    if pairs and pairs[0].ours.name == rows.metrics[0].name:
        sections.extend(_show_slices(pairs[0], measured, reference))
    return tuple(sections)


def _show_slices(pair: _Pair, measured: Mapping[tuple[str, str], Measurement], reference: str) -> Iterator[Section]:
    by_column: dict[str, list[Measurement]] = {}
    for (metric, name), one in measured.items():
        if metric == pair.name and name != _ALL:
            by_column.setdefault(name.partition("=")[0], []).append(one)
    if not by_column:
        return
    groups, left_out = [], 0
    for column, found in by_column.items():
        # What cannot be compared comes last, and is the first to be left out.
        ordered = sorted(found, key=lambda one: (one.value is None, -(one.value or 0.0)))
        left_out += len(ordered[_MOST_BARS:])
        bars = [
            {
                "label": one.slice.partition("=")[2],
                "value": _finite(one.value),
                "low": _finite(one.low),
                "high": _finite(one.high),
                "count": one.count,
                "note": one.note,
                "accent": one.low is not None and one.low > 0,
            }
            for one in ordered[:_MOST_BARS]
        ]
        groups.append({"name": column, "bars": bars})
    slices = [one for found in by_column.values() for one in found]
    worse = sum(one.low is not None and one.low > 0 for one in slices)
    compared = sum(one.value is not None for one in slices)
    text = (
        f"Loss of {_spell(pair.ours.name)} against {reference}, largest first. In {worse} of {compared} slices the "
        f"whole interval lies above 0; by chance alone {0.025 * compared:.1f} would."
    )
    if left_out:
        text += f" {left_out} slices with smaller losses or too few rows are left out."
    yield Section("bars", "Against the version in use, by slice", text, {"groups": groups})


def _describe_left_out(ours: NDArray[np.float64], theirs: NDArray[np.float64], whose: str, own: str) -> str:
    """Say which rows are not compared: a model that gives up on the hard rows must not look better unseen."""
    no_ours, no_theirs = np.isnan(ours), np.isnan(theirs)
    parts = [
        f"{int(rows.sum())} without {what} value"
        for rows, what in (
            (no_ours & ~no_theirs, own),
            (no_theirs & ~no_ours, whose),
            (no_ours & no_theirs, "either"),
        )
        if rows.any()
    ]
    return f"{int((no_ours | no_theirs).sum())} of {len(ours)} rows are left out: {', '.join(parts)}" if parts else ""


def _to_measurement(name: str, found: Interval, slice_name: str, note: str) -> Measurement:
    if found.value is None:
        note = f"no rows; {note}" if note else "no rows"
    return Measurement(name, found.value, slice_name, found.count, found.low, found.high, note)


def _interval_cell(found: Interval) -> list[float | None]:
    return [_finite(found.value), _finite(found.low), _finite(found.high)]


def _mean(values: NDArray[np.float64]) -> float | None:
    return _finite(float(values.mean())) if len(values) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _spell(name: str) -> str:
    return name.replace("_", " ")
