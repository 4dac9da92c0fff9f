"""Weak slices that nobody declared: which rows get clearly worse answers, in words, and as measurements for gates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.errors import DataError
from mlflywheel.evaluation.conditions import Conditions, divide_columns
from mlflywheel.evaluation.plan import DiscoveryPlan
from mlflywheel.evaluation.slice_search import Floats, Search, name_slice, search_slices, select_rows
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, Section

#: How many slices are significant, a measurement over all rows.
COUNT = "significant_weak_slices"
#: The effect of one slice is measured as this and the name of the row metric.
EFFECT = "slice_effect_"

#: A random sample of so many rows is searched, and not all of them: 15 columns take half a minute then.
_MOST_ROWS = 50_000
#: Columns whose conditions are combined in pairs, from the first.
_MOST_COMBINED = 30
_PERMUTATIONS = 999
#: Values beyond this share at either end count as the value there.
_CLIPPED = 0.01
#: Two slices that share more of their rows than this share of both together are one finding.
_SAME = 0.5
#: How many standard errors a slice that is not significant must add to those above it to be listed.
_LISTED = 1.0
#: Slices that are not significant and are considered for the list.
_CONSIDERED = 500
#: Significant slices that are told apart, at most.
_MOST_DISTINCT = 50


@dataclass(frozen=True)
class _Found:
    """One slice of the list; numbers in the metric's units.

    Args:
        name: Its conditions.
        count: Its rows.
        mean: The metric's mean on them, of values that are bounded as they were searched.
        elsewhere: The same mean on all other rows.
        plain_mean: The mean on them of the values as they are.
        effect: How much worse `mean` is than `elsewhere`, with simultaneous ends.
        low: Lower end, None without one.
        high: Upper end.
        p_value: Corrected for all slices.
        significant: Whether that is at most alpha.
    """

    name: str
    count: int
    mean: float
    elsewhere: float
    plain_mean: float
    effect: float
    low: float | None
    high: float | None
    p_value: float
    significant: bool


def discover_slices(rows: RowScores, plan: DiscoveryPlan, seed: int) -> Evaluation:
    """Find the slices on which the first row metric is clearly worse than on all other rows.

    Looked at are conditions on single columns (`conditions.divide_columns`) and, unless the plan says otherwise,
    conjunctions of two on different columns. All of them are tested at once (`slice_search`): where no slice is weak,
    anything is called significant in a share `alpha` of evaluations. That is exact where losses do not depend on the
    columns at all, and was measured as 5 % for uneven spread; it was 9 % where a tenth of the rows had the same mean
    and four times the variance by a far longer tail, since its clipped mean differs. Found slices are listed once:

    - a conjunction only if it is clearly worse than what is left of each of its conditions, or if it is significant and
      neither of them is,
    - of slices that share more than half of their rows only the one with the strongest evidence,
    - a slice only if it is still worse after the slices with stronger evidence are accounted for.

    Args:
        rows: What every held-out row got. Rows whose metric is not finite are left out. Rows are taken to be
            independent of each other: many rows of one customer look like more evidence than they are.
        plan: Where to search, and how much to list.
        seed: Of the permutations, and of the sample that is searched of more than 50,000 rows.

    Returns:
        A measurement `slice_effect_<metric>` for each listed slice: the significant ones, the largest effect first,
        then the next ones, whose note starts with `not significant`. The value is the mean in the slice minus the mean
        of all other rows, with the sign turned where higher is better: above 0 is worse. Values of a metric without
        bounds are clipped at their 1 and 99 % quantiles first: in heavy tails a few rows decide a mean, and weak slices
        drown in their noise. Each end of the interval is a bound that holds for all slices that were looked at together
        with probability 1 - alpha, so that having been picked does not make it too narrow; the lower one is above 0
        exactly where the slice is significant. `significant_weak_slices` is how many slices are significant and differ,
        also if fewer are listed, 50 at most; None, with a note, where there was nothing to look at. A disabled plan
        measures nothing.

    Raises:
        DataError: A column of the plan is not among the attributes.
    """
    if not plan.enabled:
        return Evaluation(())
    metric = rows.metrics[0]
    names = _choose_columns(rows.attributes, plan)
    used = np.flatnonzero(np.isfinite(metric.values))
    left_out = len(metric.values) - len(used)
    if len(used) > _MOST_ROWS:
        used = np.sort(np.random.default_rng(seed).choice(used, _MOST_ROWS, replace=False))
    values = metric.values[used]
    columns = divide_columns(rows.attributes.select(names).take(pa.array(used)), names, plan.minimum_count)
    if not columns:
        return _report_nothing(len(used), _explain_nothing(len(used), plan))
    if values.min() == values.max():
        measurement = Measurement(COUNT, 0.0, count=len(used), note="all rows have one value", about="slices")
        return Evaluation((measurement,), (_explain(measurement.note),))
    bounded = _clip(values, metric)
    is_clipped = bool((bounded != values).any())
    losses = bounded if metric.better == "lower" else -bounded
    search = search_slices(
        columns,
        losses,
        plan.minimum_count,
        combined=_MOST_COMBINED if plan.conditions == 2 else 0,
        permutations=min(9_999, max(_PERMUTATIONS, int(np.ceil(20 / plan.alpha)))),
        seed=seed,
    )
    chosen = choose_slices(search, columns, losses, plan)
    found = [_describe(search, columns, place, plan.alpha, bounded, values) for place in chosen]
    significant = sum(one.significant for one in found)
    found = sorted(found, key=lambda one: (not one.significant, -one.effect))[: plan.most]
    return Evaluation(
        tuple(_measure(found, significant, metric, search, len(used), is_clipped)),
        (_draw(found, significant, metric, search, plan, len(used), left_out, is_clipped),),
    )


def choose_slices(search: Search, columns: Sequence[Conditions], losses: Floats, plan: DiscoveryPlan) -> list[int]:
    """Choose which slices are listed, by falling evidence, without those that say nothing new.

    Args:
        search: All slices.
        columns: Their conditions.
        losses: (rows,), as they were searched.
        plan: How many are listed, and alpha.

    Returns:
        Places in the search's arrays: the significant ones, 50 at most, and others up to `most` of the plan.
    """
    from scipy.special import ndtri

    statistic, is_weak = search.statistic, search.p_value <= plan.alpha
    # A weak conjunction of conditions that are not known to be weak is all there is to say of it.
    clear = search.find_clear(plan.alpha) | (is_weak & ~is_weak[search.parts].any(axis=1))
    # Equal evidence goes to the slice of fewer conditions and the column named first: these come first.
    order = np.argsort(-statistic, kind="stable")
    order = order[clear[order] & (statistic[order] > 0)]
    significant = is_weak[order]
    conditions = sum(len(column.names) for column in columns)
    limits = np.where(significant, float(-ndtri(plan.alpha / conditions)), _LISTED)
    chosen: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    basis = np.full((len(losses), 1), 1 / np.sqrt(len(losses)))
    unexplained = losses - losses.mean()
    listed = 0
    for place, limit, is_significant in zip(order, limits, significant, strict=True):
        # What is not significant fills the list up; of the significant ones all that differ are wanted.
        if len(chosen) >= (_MOST_DISTINCT if is_significant else plan.most) or listed == _CONSIDERED:
            break
        listed += not is_significant
        mask = select_rows(columns, search.parts[place])
        count = int(search.count[place])
        shared = [int(np.count_nonzero(mask & other)) for other in masks]
        if any(both > _SAME * (count + search.count[other] - both) for both, other in zip(shared, chosen, strict=True)):
            continue
        # The part of the slice's indicator that those above do not tell, and what it tells of the losses: one
        # coefficient of a regression, with a robust standard error.
        own = mask - basis @ basis[mask].sum(axis=0)
        size = float(own @ own)
        slope = float(own @ unexplained) / max(size, 1.0)
        residual = unexplained - slope * own
        if chosen and (size < 1.0 or slope * size <= limit * np.linalg.norm(own * residual)):
            continue
        chosen.append(int(place))
        masks.append(mask)
        basis = np.column_stack([basis, own / np.sqrt(size)])
        unexplained = residual
    return chosen


def _clip(values: Floats, metric: RowMetric) -> Floats:
    """Bound values that have no bounds, so that a few absurd rows neither make a slice nor hide one."""
    if metric.bounds is not None:
        return values
    clipped = np.clip(values, *np.quantile(values, [_CLIPPED, 1 - _CLIPPED]))
    # Where nearly all rows have one value the others are what is looked for.
    return values if clipped.min() == clipped.max() else np.asarray(clipped)


def _describe(
    search: Search, columns: Sequence[Conditions], place: int, alpha: float, bounded: Floats, values: Floats
) -> _Found:
    below, above = search.find_limits(alpha)
    inside = select_rows(columns, search.parts[place])
    difference, error = (float(found[place]) * float(bounded.std()) for found in (search.difference, search.error))
    p_value = float(search.p_value[place])
    return _Found(
        name_slice(columns, search.parts[place]),
        int(inside.sum()),
        float(bounded[inside].mean()),
        float(bounded[~inside].mean()),
        float(values[inside].mean()),
        difference,
        difference - below * error if np.isfinite(below) else None,
        difference + above * error if np.isfinite(above) else None,
        p_value,
        p_value <= alpha,
    )


def _measure(
    found: Sequence[_Found], significant: int, metric: RowMetric, search: Search, count: int, is_clipped: bool
) -> Iterator[Measurement]:
    tested = f"{len(search.count):,} slices looked at"
    yield Measurement(COUNT, float(significant), count=count, note=tested, about="slices")
    for one in found:
        note = f"corrected p {one.p_value:.3g}, mean {one.mean:.4g}, elsewhere {one.elsewhere:.4g}"
        if is_clipped:
            note += f", extremes clipped; mean of all its values {one.plain_mean:.4g}"
        yield Measurement(
            EFFECT + metric.name,
            one.effect,
            one.name,
            one.count,
            one.low,
            one.high,
            note if one.significant else f"not significant; {note}",
            about="slices",
        )


def _draw(
    found: Sequence[_Found],
    significant: int,
    metric: RowMetric,
    search: Search,
    plan: DiscoveryPlan,
    count: int,
    left_out: int,
    is_clipped: bool,
) -> Section:
    named = metric.name.replace("_", " ")
    if significant:
        kinds = "One kind of rows gets" if significant == 1 else f"{significant} kinds of rows get"
        worst = found[0]
        result = (
            f"{kinds} clearly worse answers than all other rows; the worst is {worst.name}: {named} {worst.mean:.3g} "
            f"against {worst.elsewhere:.3g} elsewhere."
        )
    else:
        result = f"No kind of rows with {plan.minimum_count} rows or more was found to get clearly worse answers."
    searched = (
        f"Looked at: {len(search.count):,} slices of {count:,} rows by {named}, {metric.better} is better. The search "
        f"is corrected for that number: where nothing is weak, it finds something in at most {plan.alpha:.1%} of "
        "evaluations."
    )
    if is_clipped:
        searched += " Values beyond the 1 and 99 % quantiles count as these, so that single rows decide nothing."
    if significant > len(found):
        searched += f" Listed are the {len(found)} with the largest effect."
    gaps = f" {left_out:,} rows without a value are left out." if left_out else ""
    columns = [
        {"name": "Slice", "kind": "text"},
        {"name": "Rows", "kind": "number", "decimals": 0},
        {"name": "Mean here", "kind": "number"},
        {"name": "Mean elsewhere", "kind": "number"},
        {"name": "Worse by", "kind": "interval"},
        {"name": "Corrected p", "kind": "number", "decimals": 3},
        {"name": "Finding", "kind": "text"},
    ]
    table = [
        [
            one.name,
            one.count,
            one.mean,
            one.elsewhere,
            [one.effect, one.low, one.high],
            one.p_value,
            "weak" if one.significant else "not significant",
        ]
        for one in found
    ]
    return Section("table", "Weak slices", f"{result} {searched}{gaps}", {"columns": columns, "rows": table})


def _choose_columns(attributes: pa.Table, plan: DiscoveryPlan) -> list[str]:
    for name in plan.columns:
        if name not in attributes.column_names:
            raise DataError(
                f"slices, discover, column {name}",
                "not among the columns of the held-out rows",
                f"they have {', '.join(sorted(attributes.column_names)) or 'none'}",
                "correct the name in evaluation.yaml, or keep the column when the table is prepared",
            )
    return list(dict.fromkeys(plan.columns or attributes.column_names))


def _explain_nothing(count: int, plan: DiscoveryPlan) -> str:
    if not count:
        return "no row has a value of the metric"
    return f"no condition on a column holds for {plan.minimum_count} of {count} rows and leaves as many"


def _report_nothing(count: int, why: str) -> Evaluation:
    return Evaluation((Measurement(COUNT, None, count=count, note=why, about="slices"),), (_explain(why),))


def _explain(why: str) -> Section:
    return Section("text", "Weak slices", f"No slice could be looked at: {why}.")
