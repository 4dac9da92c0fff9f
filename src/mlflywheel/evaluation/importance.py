"""Which columns a model needs: how much worse it gets when a column's values are permuted among held-out rows.

The importance of a column is the mean rise of the first row metric's loss, in that metric's units: positive where the
model needs the column, about 0 where it hardly reads it, below 0 where it would do better without (L. Breiman, "Random
forests", Machine Learning 45, 2001; the model is not fitted again). The interval is made of the rows' own differences
(`estimate_rise`).

**What is permuted.** Only what a caller sends: the columns of the table that `Model.to_table` makes from requests, so
no true value and no attribute that preparing kept for slices. A model whose columns are the user's
(`Model.other_columns`) cannot say so before it is asked, and all its columns are tried. In both cases a column counts
only if permuting it changes an answer and leaves the truth as it was. Ids are left alone. Lists that run in parallel,
such as terms and their weights, are permuted together, whole cells at a time.

**Whether it can be told.** Where even permuting all columns together makes nothing worse, the truth is made of the same
columns (hidden keywords of a campaign), or the model is no better than chance. Importance is not defined then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.evaluation.plan import ExplanationPlan
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, Model, RowMetric, RowScores, Section
from mlflywheel.statistics.intervals import Interval, estimate_mean

METRIC = "feature_importance"
_PHASE = "permuting columns"
_BARS = 25
_FEWEST_ROWS = 2


@dataclass(frozen=True)
class Feature:
    """Columns that are one input of a model.

    Args:
        name: The first of them, as it stands in measurements.
        columns: All of them: one column, or lists that run in parallel.
    """

    name: str
    columns: tuple[str, ...]


@dataclass
class _Found:
    """What permuting has shown so far; values are rises of the loss, float64 (permutations, rows)."""

    rises: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    truth: list[str] = field(default_factory=list)


def measure_importance(
    model: Model,
    table: pa.Table,
    rows: RowScores,
    plan: ExplanationPlan,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Evaluation:
    """Measure how much worse a model gets when each of its columns is permuted.

    Args:
        model: A fitted model that scores its rows one by one.
        table: Prepared held-out rows.
        rows: What `model.score_rows(table)` gave; the first metric is the one that is measured.
        plan: How many rows, drawn at random, and how many permutations of each column; 0 rows measure nothing.
        seed: Of the drawn rows and the permutations. All columns get the same permutations, so a column's value does
            not depend on which others there are.
        progress: Called with the phase `permuting columns`.

    Returns:
        `feature_importance` with the slice `feature=<name>`, the largest first, and a section of bars. Where nothing
        can be told, values are None with a note; columns that change no answer have no measurement.
    """
    if not plan.rows:
        return Evaluation(())
    name = rows.metrics[0].name
    id_column = find_id_column(model, table, rows.ids)
    sample = draw_rows(table, id_column, rows.ids, plan.rows, seed)
    features = find_features(model, sample, id_column)
    if sample.num_rows < _FEWEST_ROWS or not features:
        note = (
            "no column that can be sent in a request"
            if sample.num_rows >= _FEWEST_ROWS
            else (f"{_FEWEST_ROWS} held-out rows with a truth are needed to permute anything")
        )
        return Evaluation((_undefined(note, sample.num_rows),))
    # Scoring may cost more than predicting, so scores of the same rows are not asked for again.
    drawn_all = id_column is not None and sample[id_column].combine_chunks().cast(pa.string()).equals(rows.ids)
    base = rows if drawn_all else model.score_rows(sample)
    metric = _find_metric(base, name)
    if base is None or metric is None or not np.isfinite(metric.values).any():
        note = f"{name} is not defined for any of the rows"
        return Evaluation((_undefined(note, sample.num_rows),))
    orders = [np.random.default_rng([seed, 1, number]).permutation(sample.num_rows) for number in range(plan.repeats)]
    steps = len(features) * len(orders) + 1
    found = _Found()
    for number, feature in enumerate(features):
        progress(_PHASE, number * len(orders), steps)
        _permute_feature(model, sample, base, metric, feature, orders, found)
    progress(_PHASE, steps - 1, steps)
    read = [feature for feature in features if feature.name in found.rises]
    everything = _permute_everything(model, sample, base, metric, read, orders, found)
    progress(_PHASE, steps, steps)
    measurements = _measure(metric, read, orders, found, everything)
    return Evaluation(tuple(measurements), (_draw(metric, measurements, found, everything, plan),))


def draw_rows(table: pa.Table, id_column: str | None, ids: pa.Array, most: int, seed: int) -> pa.Table:
    """Return at most so many of the scored rows, drawn at random, in the table's order.

    Args:
        table: Prepared rows, those without a truth among them.
        id_column: The column that holds the ids; without one rows are drawn from all.
        ids: Of the rows that were scored, string.
        most: Number of rows.
        seed: Seed.
    """
    if id_column is not None:
        table = table.filter(pc.is_in(table[id_column].cast(pa.string()), value_set=ids.cast(pa.string())))
    if table.num_rows > most:
        chosen = np.sort(np.random.default_rng([seed, 0]).permutation(table.num_rows)[:most])
        table = table.take(pa.array(chosen))
    return table.combine_chunks()


def find_id_column(model: Model, table: pa.Table, ids: pa.Array) -> str | None:
    """Return the column that holds these ids, those that are declared as ids first; None if none does."""
    declared = [column.name for column in type(model).columns if column.kind == "id"]
    plain = [
        name
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ]
    for name in (*(name for name in declared if name in plain), *(name for name in plain if name not in declared)):
        values = table[name].combine_chunks().cast(pa.string())
        if pc.all(pc.is_in(ids.cast(pa.string()), value_set=values), min_count=0).as_py():
            return str(name)
    return None


def find_features(model: Model, table: pa.Table, id_column: str | None = None) -> tuple[Feature, ...]:
    """Return what may be permuted, in the table's order; see the top of this module.

    Args:
        model: The model.
        table: Prepared rows.
        id_column: The column that holds the ids, beside those that are declared as ids.
    """
    own = {column.name for column in type(model).columns if column.kind == "id"} | {id_column}
    sent = None if type(model).other_columns else set(type(model).to_table([]).column_names)
    names = [name for name in table.column_names if name not in own and (sent is None or name in sent)]
    # Lists are parallel where every row has as many entries in one as in the other.
    parallel: dict[bytes, list[str]] = {}
    features: list[list[str]] = []
    for name in names:
        kind = table.schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.fill_null(pc.list_value_length(table[name]), -1).combine_chunks().to_numpy()
            beside = parallel.setdefault(lengths.astype(np.int64).tobytes(), [])
            beside.append(name)
            if len(beside) == 1:
                features.append(beside)
        else:
            features.append([name])
    return tuple(Feature(columns[0], tuple(columns)) for columns in features)


def permute_columns(table: pa.Table, columns: Sequence[str], order: NDArray[np.int64]) -> pa.Table:
    """Return the table with row i's values of these columns taken from row `order[i]`.

    >>> permute_columns(pa.table({"a": [1, 2, 3], "b": [4, 5, 6]}), ["a"], np.array([2, 0, 1])).to_pydict()
    {'a': [3, 1, 2], 'b': [4, 5, 6]}
    """
    taken = pa.array(order)
    for name in columns:
        position = table.column_names.index(name)
        table = table.set_column(position, table.schema.field(position), table[name].take(taken))
    return table.combine_chunks()


def _permute_feature(
    model: Model,
    sample: pa.Table,
    base: RowScores,
    metric: RowMetric,
    feature: Feature,
    orders: Sequence[NDArray[np.int64]],
    found: _Found,
) -> None:
    """Permute one feature as often as there are orders, or once where that changes no answer."""
    rises: list[NDArray[np.float64]] = []
    for order in orders:
        permuted = permute_columns(sample, feature.columns, order)
        scored = None if permuted.equals(sample) else model.score_rows(permuted)
        if scored is not None and not _has_same_truth(base, scored):
            found.truth.append(feature.name)
            return
        if scored is None or _has_same_answers(base, scored):
            if not rises:
                found.unread.append(feature.name)
                return
            rises.append(np.zeros(len(metric.values)))
            continue
        rises.append(_rise(metric, scored))
    found.rises[feature.name] = np.stack(rises)


def _permute_everything(
    model: Model,
    sample: pa.Table,
    base: RowScores,
    metric: RowMetric,
    read: Sequence[Feature],
    orders: Sequence[NDArray[np.int64]],
    found: _Found,
) -> Interval | None:
    """Return the rise with all columns permuted together: each row gets the whole input of another."""
    if not read:
        return None
    if len(read) == 1:
        return estimate_rise(found.rises[read[0].name], orders)
    permuted = permute_columns(sample, [name for feature in read for name in feature.columns], orders[0])
    scored = model.score_rows(permuted)
    # Single columns have left the truth alone, so together they do too.
    if scored is None or not _has_same_truth(base, scored):
        return None
    return estimate_rise(_rise(metric, scored)[None], orders[:1])


def estimate_rise(rises: NDArray[np.float64], orders: Sequence[NDArray[np.int64]]) -> Interval:
    """Estimate the mean rise with a 95 % interval that knows that a row counts twice.

    In each permutation a row's own loss rises, and its value makes another row's loss rise. Both depend on the row, so
    the rows' own rises alone vary too little: with 3 permutations their interval held the true value of a linear model
    in 80 to 83 % of simulations. Here a row has the deviations of both, as the linear part of a U-statistic does (W.
    Hoeffding, "A class of statistics with asymptotically normal distribution", 1948): 93 % with 50 rows, 95 to 97 %
    with 150 and more (`benchmarks/evaluation/explanations.py`).

    Args:
        rises: float64 (permutations, rows), NaN where the metric is not defined.
        orders: As many permutations: row i got its value from row `order[i]`.
    """
    defined = np.isfinite(rises)
    if not defined.any():
        return Interval(None, None, None, 0)
    mean = float(rises[defined].mean())
    deviations = np.where(defined, rises - mean, 0.0)
    both = deviations.sum(axis=0)
    for order, given in zip(orders, deviations, strict=True):
        both[order] += given
    found = estimate_mean(mean + both * rises.shape[1] / np.count_nonzero(defined))
    return Interval(mean, found.low, found.high, int(np.count_nonzero(defined.any(axis=0))))


def _rise(metric: RowMetric, scored: RowScores) -> NDArray[np.float64]:
    found = _find_metric(scored, metric.name)
    if found is None:
        return np.full(len(metric.values), np.nan)
    rise = found.values - metric.values
    return rise if metric.better == "lower" else -rise


def _find_metric(scores: RowScores | None, name: str) -> RowMetric | None:
    return next((metric for metric in scores.metrics if metric.name == name), None) if scores is not None else None


def _has_same_truth(base: RowScores, scored: RowScores) -> bool:
    if not base.ids.equals(scored.ids):
        return False
    if base.truth is None or scored.truth is None:
        return base.truth is scored.truth
    return bool(np.array_equal(base.truth, scored.truth, equal_nan=True))


def _has_same_answers(base: RowScores, scored: RowScores) -> bool:
    if base.probability is not None and scored.probability is not None:
        return bool(np.array_equal(base.probability, scored.probability, equal_nan=True))
    if pa.types.is_floating(base.answers.type):
        before, after = (scores.answers.to_numpy(zero_copy_only=False) for scores in (base, scored))
        return bool(np.array_equal(before, after, equal_nan=True))
    return bool(base.answers.equals(scored.answers))


def _undefined(note: str, rows: int) -> Measurement:
    return Measurement(METRIC, None, count=rows, note=note, about="explanations")


def _measure(
    metric: RowMetric,
    read: Sequence[Feature],
    orders: Sequence[NDArray[np.int64]],
    found: _Found,
    everything: Interval | None,
) -> list[Measurement]:
    rows = len(metric.values)
    if not read:
        return [_undefined("permuting the columns one by one changed no answer", rows)]
    told = everything is not None and everything.low is not None and everything.low > 0.0
    worse = "higher" if metric.better == "lower" else "lower"
    measurements = []
    for feature in read:
        interval = estimate_rise(found.rises[feature.name], orders)
        note = f"{metric.name} is {worse} by this when the column is permuted"
        if feature.columns[1:]:
            note += f" together with {', '.join(feature.columns[1:])}"
        if not told:
            note = (
                f"{metric.name} is not certainly worse with all columns permuted together: it is measured from the "
                "same columns, or the model is no better than chance on these rows"
            )
            interval = Interval(None, None, None, interval.count)
        slice_name = f"feature={feature.name}"
        low, high = interval.low, interval.high
        measurements.append(
            Measurement(METRIC, interval.value, slice_name, interval.count, low, high, note, "explanations")
        )
    return sorted(measurements, key=lambda one: -(one.value or 0.0))


def _draw(
    metric: RowMetric,
    measurements: Sequence[Measurement],
    found: _Found,
    everything: Interval | None,
    plan: ExplanationPlan,
) -> Section:
    """Draw the measurements as bars, and say how to read them."""
    named = [one for one in measurements if one.slice != "all"]
    defined = [one for one in named if one.value is not None]
    worse = "rises" if metric.better == "lower" else "falls"
    sentences = [
        f"How much {metric.name} {worse} on average when a column's values are permuted among {len(metric.values):,} "
        f"held-out rows, {plan.repeats} {'time' if plan.repeats == 1 else 'times'} each, with 95 % intervals over "
        "the rows. Columns that say nearly the same share their importance: permuting one leaves the model the other, "
        "so both may look small. A permuted row may be one that does not occur."
    ]
    if defined and everything is not None and everything.value is not None:
        sentences.append(f"With all columns permuted together it {worse} by {everything.value:.3g}.")
    elif measurements:
        sentences.append(f"Not defined here: {measurements[0].note}.")
    for names, text in ((found.unread, "changed no answer"), (found.truth, "changed the truth and was left out")):
        if names:
            sentences.append(f"Permuting {', '.join(names)} {text}.")
    if len(defined) > _BARS:
        sentences.append(f"The {_BARS} largest of {len(defined)} are drawn.")
    # Three digits of the largest: what is nothing beside it is drawn as 0 and not as a power of ten.
    largest = max((abs(one.value or 0.0) for one in defined), default=0.0)
    decimals = 2 - math.floor(math.log10(largest)) if largest else 0
    bars = [
        {
            "label": one.slice.removeprefix("feature="),
            "value": _round(one.value, decimals),
            "low": _round(one.low, decimals),
            "high": _round(one.high, decimals),
        }
        for one in defined[:_BARS]
    ]
    data: dict[str, object] = {"bars": bars}
    if metric.bounds == (0.0, 1.0):
        data["unit"] = "share"
    return Section("bars" if bars else "text", "What the model needs", " ".join(sentences), data if bars else {})


def _round(value: float | None, decimals: int) -> float | None:
    return None if value is None else round(value, decimals) + 0.0
