"""Every row metric on every declared slice; slices that nobody declared are found by `discovery`."""

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from mlflywheel.evaluation.plan import SlicePlan
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores
from mlflywheel.statistics.intervals import Interval, estimate_mean, estimate_share


def measure_slices(rows: RowScores, plan: SlicePlan, existing: Collection[tuple[str, str]] = ()) -> Evaluation:
    """Measure every row metric on every declared slice.

    Args:
        rows: What every held-out row got.
        plan: Its `columns` are the declared slices.
        existing: Metric and slice of what the model's own evaluation measured already; these are left out, so that no
            metric is measured twice on one slice.

    Returns:
        One measurement a metric and slice, in the order of the plan's columns and then of the values: the mean over the
        slice's rows, with the number of rows that have a value and a 95 % interval: Wilson's for metrics that are 0 or
        1, Student's t for others. A slice none of whose rows has a value gets None and says so.

    Raises:
        DataError: A declared column is not among the attributes, or bands are asked of text.

    >>> import pyarrow as pa
    >>> rows = RowScores("regression", pa.array(["a", "b", "c"]), pa.table({"fuel": ["gas", "gas", "electric"]}),
    ...                  (RowMetric("absolute_error", np.array([1.0, 3.0, 8.0])),), pa.array([0.0, 0.0, 0.0]))
    >>> [(m.slice, m.value, m.count) for m in measure_slices(rows, SlicePlan(columns=["fuel"])).measurements]
    [('fuel=electric', 8.0, 1), ('fuel=gas', 2.0, 2)]
    """
    taken = set(existing)
    found: list[Measurement] = []
    for grouping in plan.columns:
        for measurement in _measure_groups(rows, grouping.name, grouping.assign(rows.attributes)):
            key = (measurement.metric, measurement.slice)
            if key not in taken:
                taken.add(key)
                found.append(measurement)
    return Evaluation(tuple(found))


def _measure_groups(rows: RowScores, column: str, groups: NDArray[np.object_]) -> Iterator[Measurement]:
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    # One sort instead of one comparison of all rows a group: a declared column may have many values.
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    members = [order[end - count : end] for end, count in zip(ends, np.diff(ends, prepend=0), strict=True)]
    for metric in rows.metrics:
        is_share = _is_share(metric)
        for name, inside in zip(names, members, strict=True):
            interval = _estimate(metric, metric.values[inside], is_share)
            yield Measurement(
                metric.name,
                interval.value,
                f"{column}={name}",
                interval.count,
                interval.low,
                interval.high,
                "" if interval.count else f"no row of {len(inside)} has a value",
                about="slices",
            )


def _is_share(metric: RowMetric) -> bool:
    """Return whether every row is 0 or 1: asked of all rows, so that one metric has one kind of interval."""
    values = metric.values[~np.isnan(metric.values)]
    return metric.bounds == (0.0, 1.0) and bool(np.isin(values, (0.0, 1.0)).all())


def _estimate(metric: RowMetric, values: NDArray[np.float64], is_share: bool) -> Interval:
    if is_share:
        defined = values[~np.isnan(values)]
        return estimate_share(int(defined.sum()), len(defined))
    return estimate_mean(values, bounds=metric.bounds)
