"""What a model gives to different groups of rows, how far groups lie apart, and how far they did with the champion.

| measurement | slice | what it is |
|---|---|---|
| `selection_rate` | `column=group` | share of the rows that are answered with the positive class |
| `true_positive_rate` | `column=group` | the same share, of the rows whose truth is positive |
| `false_positive_rate` | `column=group` | the same share, of the rows whose truth is negative |
| `calibration_difference` | `column=group` | mean probability minus share of positives |
| `selection_rate_gap`, `calibration_gap` | `between=column`, `all` | largest value of a group minus the smallest |
| `selection_rate_ratio` | `between=column`, `all` | smallest selection rate ÷ largest; four fifths in 29 CFR 1607.4 D |
| `equal_opportunity_gap` | `between=column`, `all` | the gap of true positive rates |
| `equalized_odds_gap` | `between=column`, `all` | the larger gap of true and of false positive rates |
| `unscored_share` | `all`, and `column=group` where there are any | share of rows without a finite score or answer |
| any row metric `m` | `column=group` | its mean |
| `m_group_gap` | `between=column`, `all` | largest mean of a group minus the smallest |
| a gap with `_rise`, the ratio with `_fall` | `between=column`, `all` | by how much groups have moved apart |

A rise or fall compares with the champion on the same rows; it is below 0 where groups have come closer.

For recommendations `mlflywheel.evaluation.exposure` adds what groups of the catalogue are shown.

Slice `between=column` is about the groups of one column, `all` about the column whose groups lie furthest apart. An
interval holds for all pairs of groups together, that of `all` for all pairs of all columns together
(`mlflywheel.statistics.gaps`). Several criteria are several intervals: each one that gates may be wrong by itself.

Groups under `minimum_count` rows are measured and are in no gap. Scores that are not numbers make every gap that rests
on them undefined, with a note: a gate refuses that unless it says `when_missing: skip`. As gates against the champion
mostly do say so, gate `unscored_share` too, `at_most: 0`.

These are measurements. Which of them decides is for gates.yaml to say: where groups differ in their share of positives,
no model but a perfect one is calibrated in each and has equal error rates (J. Kleinberg, S. Mullainathan and
M. Raghavan, "Inherent trade-offs in the fair determination of risk scores", ITCS 2017, arXiv 1609.05807;
A. Chouldechova, "Fair prediction with disparate impact", Big Data 5 (2017), arXiv 1703.00056). Equal opportunity and
equalized odds: M. Hardt, E. Price and N. Srebro, NIPS 2016, arXiv 1610.02413.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.evaluation.exposure import (
    compare_empty_results,
    measure_empty_results,
    measure_exposure_by_group,
    sample_empty_results,
)
from mlflywheel.evaluation.group_gaps import (
    Criterion,
    GroupColumn,
    RowCriterion,
    RowSample,
    group_rows,
    measure_criterion,
)
from mlflywheel.evaluation.plan import FairnessPlan
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, Section
from mlflywheel.statistics.gaps import Numbers

_RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")
_SHOWN_GROUPS = 20

TRADE_OFF = (
    "These criteria conflict. Where groups differ in their share of positives, no model but a perfect one is "
    "calibrated in each group and has equal error rates in all (Kleinberg et al. 2017; Chouldechova 2017), and equal "
    "selection rates need unequal error rates. Which criterion decides is a choice that gates.yaml states; no "
    "measurement can make it."
)
READING = (
    "Intervals of gaps hold for all pairs of groups of a column together. A gap is a largest difference, so chance "
    "alone keeps it above 0: its low end says what is hardly chance. Small groups are shown, and are in no gap."
)


def measure_fairness(
    rows: RowScores,
    plan: FairnessPlan,
    champion: RowScores | None = None,
    reference: str = "",
    *,
    existing: Collection[tuple[str, str]] = (),
    seed: int = 0,
) -> Evaluation:
    """Measure answers by group of rows, gaps between groups, and their rise since the champion.

    Args:
        rows: What every held-out row got.
        plan: The groups. Without any nothing is measured.
        champion: What the same rows got from the champion. Without it a rise has no value, and a note says why. The
            champion need not know a group: it answered its rows.
        reference: What to call the champion, `prices@3`.
        existing: Metrics and slices that are measured elsewhere already, and are left out here.
        seed: Of the bootstrap of recommendations; everything else is closed form.

    Returns:
        Measurements, and three report sections a column: rates, other metrics, gaps.

    Raises:
        DataError: A column of the plan is neither among the rows' attributes nor in the catalogue, or a threshold's
            truth is neither 0 nor 1.
        UsageError: The champion has another task, or answered other rows.
        MissingExtraError: A classification is measured, and fairlearn is not installed.
    """
    if not plan.groups:
        return Evaluation(())
    if champion is not None:
        _check_champion(rows, champion, reference)
    by_rows = [
        grouping
        for grouping in plan.groups
        if grouping.name in rows.attributes.column_names
        or rows.catalogue is None
        or grouping.name not in rows.catalogue.column_names
    ]
    columns = [group_rows(grouping, rows.attributes, plan.minimum_count) for grouping in by_rows]
    broken, broken_old = _note_unscored(rows, "this model"), _note_unscored(champion, reference or "the champion")
    samples, criteria, measurements = _measure_scores(rows, plan, champion, columns, broken, broken_old)
    for metric in rows.metrics:
        sample = _sample_metric(metric, champion, broken, broken_old)
        samples.append(sample)
        criteria.append(RowCriterion(f"{metric.name}_group_gap", [sample], _spell(metric.name)))
    catalogue: list[GroupColumn] = []
    shown: list[Criterion] = []
    if rows.task == "recommendation":
        empty = sample_empty_results(rows, champion)
        measurements.append(measure_empty_results(empty, plan.confidence))
        samples.insert(0, empty)
        criteria.insert(0, compare_empty_results(empty))
        exposed, catalogue, shown = measure_exposure_by_group(
            rows, plan.groups, plan.minimum_count, plan.confidence, champion, seed
        )
        measurements += exposed
    for column in columns:
        rates = _measure_rates(rows, plan, column) if rows.task == "classification" else {}
        for sample in samples:
            by_group = sample.measure_groups(column, plan.confidence)
            measurements += [_prefer(rates, found, sample.broken) for found in by_group]
    for among, which in ((columns, criteria), (catalogue, shown)):
        if among:
            for criterion in which:
                measurements += measure_criterion(criterion, among, plan.confidence, reference)
    left_out = set(existing)
    kept = tuple(found for found in measurements if (found.metric, found.slice) not in left_out)
    names = [grouping.name for grouping in plan.groups]
    return Evaluation(kept, _build_sections(names, measurements, [*criteria, *shown], samples, rows, reference))


def measure_unscored(rows: RowScores) -> Measurement:
    """Return the share of all rows whose score is not a number: what gates ask of any model, with groups or without."""
    unscored = _find_unscored(rows)
    return _measure_unscored(unscored, np.ones(len(unscored), dtype=bool), "all")


def _check_champion(rows: RowScores, champion: RowScores, reference: str) -> None:
    name = reference or "the champion"
    if champion.task != rows.task:
        raise UsageError(
            f"champion {reference}".strip(),
            f"{name} answers a {champion.task}, and this model a {rows.task}",
            "gaps are compared between models of one task",
            "register this model under another name, or choose a champion of the same task",
        )
    if not _text(champion.ids).equals(_text(rows.ids)):
        raise UsageError(
            f"champion {reference}".strip(),
            f"{name} scored {len(champion.ids)} rows, and this model {len(rows.ids)}, other ones or in another order",
            "gaps are compared on the same rows",
            "let both models score one held-out table",
        )
    truths = rows.truth, champion.truth
    if truths[0] is not None and truths[1] is not None and not np.array_equal(truths[0], truths[1], equal_nan=True):
        raise UsageError(
            f"champion {reference}".strip(),
            f"{name} and this model were given different truths of the same rows",
            "gaps are compared on the same rows",
            "let both models read the label of one held-out table in the same way",
        )


def _text(ids: pa.Array) -> pa.Array:
    joined = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return joined.cast(pa.string())


def _measure_scores(
    rows: RowScores,
    plan: FairnessPlan,
    champion: RowScores | None,
    columns: Sequence[GroupColumn],
    broken: str,
    broken_old: str,
) -> tuple[list[RowSample], list[Criterion], list[Measurement]]:
    """Return what a classification's groups are compared by, and which rows have no score."""
    unscored = _find_unscored(rows)
    measurements = [measure_unscored(rows)]
    if unscored.any():
        for column in columns:
            for place, name in enumerate(column.names):
                measurements.append(_measure_unscored(unscored, column.codes == place, f"{column.name}={name}"))
    if rows.task != "classification":
        return [], [], measurements
    truth = _read_truth(rows)
    new, old = _decide(rows, plan), None if champion is None else _decide(champion, plan)
    difference = _score(rows) - truth
    old_difference = None if champion is None else _score(champion) - truth

    def sample(metric: str, label: str, kept: NDArray[np.bool_], undefined: str) -> RowSample:
        values, before = np.where(kept, new, np.nan), None if old is None else np.where(kept, old, np.nan)
        return RowSample(metric, values, before, label, True, None, undefined, broken, broken_old)

    every = np.ones(len(truth), dtype=bool)
    selection = sample(_RATES[0], "selection rate", every, "no scored rows")
    positive = sample(_RATES[1], "true positive rate", truth == 1, "no scored rows whose truth is positive")
    negative = sample(_RATES[2], "false positive rate", truth == 0, "no scored rows whose truth is negative")
    calibration = RowSample(
        "calibration_difference",
        difference,
        old_difference,
        "calibration difference",
        False,
        (-1.0, 1.0),
        "no scored rows with a known truth",
        broken,
        broken_old,
    )
    criteria: list[Criterion] = [
        RowCriterion("selection_rate_gap", [selection], "selection rate"),
        RowCriterion("selection_rate_ratio", [selection], "ratio of selection rates", ratio=True),
        RowCriterion("equal_opportunity_gap", [positive], "true positive rate"),
        RowCriterion("equalized_odds_gap", [positive, negative], "true or false positive rate"),
        RowCriterion("calibration_gap", [calibration], "calibration difference"),
    ]
    return [selection, positive, negative, calibration], criteria, measurements


def _measure_rates(rows: RowScores, plan: FairnessPlan, column: GroupColumn) -> Mapping[tuple[str, str], float]:
    """Return fairlearn's rates by metric and slice; those of groups that they are not defined for are not used."""
    try:
        from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    except ImportError:
        raise MissingExtraError.of("fairlearn", "fairness", "measuring groups of a classification") from None

    # Rows of one class do not say which class is the positive one, and MetricFrame needs functions with names.
    def true_rate(true: NDArray[np.int64], decided: NDArray[np.int64]) -> float:
        return float(true_positive_rate(true, decided, pos_label=1))

    def false_rate(true: NDArray[np.int64], decided: NDArray[np.int64]) -> float:
        return float(false_positive_rate(true, decided, pos_label=1))

    truth, decisions = _read_truth(rows), _decide(rows, plan)
    names = np.asarray(column.names, dtype=object)[column.codes]
    scored = ~np.isnan(decisions)
    known = scored & ~np.isnan(truth)
    functions = {_RATES[0]: selection_rate, _RATES[1]: true_rate, _RATES[2]: false_rate}
    # A selection rate does not depend on the truth; one frame is faster than two where all of it is known.
    parts = [(_RATES, scored)] if (scored == known).all() else [(_RATES[:1], scored), (_RATES[1:], known)]
    found: dict[tuple[str, str], float] = {}
    for metrics, kept in parts:
        if not kept.any():
            continue
        frame = MetricFrame(
            metrics={metric: functions[metric] for metric in metrics},
            y_true=np.nan_to_num(truth[kept]).astype(int),
            y_pred=decisions[kept].astype(int),
            # A mapping, since fairlearn makes no column of an array of one row.
            sensitive_features={column.name: names[kept]},
        )
        for metric in metrics:
            found |= {(metric, f"{column.name}={name}"): float(rate) for name, rate in frame.by_group[metric].items()}
    return found


def _prefer(rates: Mapping[tuple[str, str], float], found: Measurement, broken: str) -> Measurement:
    if found.value is None:
        return replace(found, note=broken) if broken and found.count == 0 else found
    return replace(found, value=rates.get((found.metric, found.slice), found.value))


def _read_truth(rows: RowScores) -> Numbers:
    truth = np.full(len(rows.ids), np.nan) if rows.truth is None else np.asarray(rows.truth, dtype=np.float64)
    if not np.isin(truth[~np.isnan(truth)], (0.0, 1.0)).all():
        raise DataError(
            "truth of the held-out rows",
            f"{truth[~np.isnan(truth) & ~np.isin(truth, (0.0, 1.0))][0]:g}",
            "0 or 1 is needed for a classification",
            "let score_rows() give 1 for the positive class and 0 for another",
        )
    return truth


def _score(rows: RowScores) -> Numbers:
    """Return each row's probability, NaN where it is none."""
    if rows.probability is None:
        return np.full(len(rows.ids), np.nan)
    probability = np.asarray(rows.probability, dtype=np.float64)
    return np.where((probability >= 0.0) & (probability <= 1.0), probability, np.nan)


def _decide(rows: RowScores, plan: FairnessPlan) -> Numbers:
    """Return 1 where the positive class is the answer, 0 where another is, NaN without a score."""
    score = _score(rows)
    return np.where(np.isnan(score), np.nan, (score >= plan.decision_threshold).astype(np.float64))


def _find_unscored(rows: RowScores) -> NDArray[np.bool_]:
    if rows.task == "classification":
        return np.asarray(np.isnan(_score(rows)))
    kind = rows.answers.type
    if rows.task == "regression" and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        answers = pc.fill_null(pc.cast(rows.answers, pa.float64()), np.nan)
        return np.asarray(~np.isfinite(answers.to_numpy(zero_copy_only=False)))
    # An empty list is an answer; none at all is not.
    return np.asarray(pc.is_null(rows.answers).to_numpy(zero_copy_only=False))


def _note_unscored(rows: RowScores | None, name: str) -> str:
    count = 0 if rows is None else int(_find_unscored(rows).sum())
    what = "probability from 0 to 1" if rows is not None and rows.task == "classification" else "finite answer"
    return f"{name} gave {count} of {len(rows.ids)} rows no {what}" if rows is not None and count else ""


def _measure_unscored(unscored: NDArray[np.bool_], kept: NDArray[np.bool_], name: str) -> Measurement:
    count, bad = int(kept.sum()), int((unscored & kept).sum())
    note = f"{bad} rows" if bad else ""
    return Measurement("unscored_share", bad / count if count else None, name, count, note=note or "")


def _sample_metric(metric: RowMetric, champion: RowScores | None, broken: str, broken_old: str) -> RowSample:
    before = {} if champion is None else {one.name: one for one in champion.metrics}
    new = np.asarray(metric.values, dtype=np.float64)
    old = None if metric.name not in before else np.asarray(before[metric.name].values, dtype=np.float64)
    if np.isinf(new).any():
        broken = broken or f"{metric.name} of {int(np.isinf(new).sum())} rows is not finite"
    if old is not None and np.isinf(old).any():
        broken_old = broken_old or f"the champion's {metric.name} of {int(np.isinf(old).sum())} rows is not finite"
    both = np.concatenate([new, *([] if old is None else [old])])
    shares = bool(np.isin(both[~np.isnan(both)], (0.0, 1.0)).all()) and metric.bounds == (0.0, 1.0)
    return RowSample(
        metric.name,
        new,
        old,
        _spell(metric.name),
        shares,
        metric.bounds,
        f"no rows with a value of {metric.name}",
        broken,
        broken_old,
    )


def _build_sections(
    names: Sequence[str],
    measurements: Sequence[Measurement],
    criteria: Sequence[Criterion],
    samples: Sequence[RowSample],
    rows: RowScores,
    reference: str,
) -> tuple[Section, ...]:
    sections = []
    found = {(m.metric, m.slice): m for m in measurements}
    for name in names:
        groups: dict[str, int] = {}
        for one in measurements:
            if one.slice.startswith(f"{name}="):
                groups[one.slice] = max(groups.get(one.slice, 0), one.count)
        shown = sorted(sorted(groups, key=lambda slice_name: -groups[slice_name])[:_SHOWN_GROUPS])
        more = len(groups) - len(shown)
        hidden = f" The {len(shown)} largest of {len(groups)} groups are shown." if more else ""
        shares = [sample.metric for sample in samples if sample.shares]
        shares += ["catalogue_coverage"] if rows.catalogue is not None else []
        bars = [
            {
                "name": _spell(metric),
                "bars": [_draw_bar(found[metric, one], name) for one in shown if (metric, one) in found],
            }
            for metric in shares
        ]
        bars = [group for group in bars if group["bars"]]
        if bars:
            text = f"Shares of the rows of each group, with their intervals.{hidden}"
            data = {"groups": bars, "unit": "share", "low": 0.0, "high": 1.0}
            sections.append(Section("bars", f"Rates by {name}", text, data))
        others = [sample.metric for sample in samples if not sample.shares]
        others += ["exposure_to_catalogue_ratio", "exposure_to_relevance_ratio"]
        others = [metric for metric in others if any((metric, one) in found for one in shown)]
        if others:
            sections.append(_tabulate_groups(name, shown, others, found, hidden))
        gaps = _tabulate_gaps(name, criteria, found, reference)
        if gaps is not None:
            sections.append(gaps)
    paragraphs = [READING, *([TRADE_OFF] if rows.task == "classification" else [])]
    sections.append(Section("text", "How to read gaps between groups", "", {"paragraphs": paragraphs}))
    return tuple(sections)


def _draw_bar(found: Measurement, column: str) -> dict[str, object]:
    bar: dict[str, object] = {"label": found.slice.removeprefix(f"{column}="), "value": found.value}
    bar["count"] = found.count
    if found.low is not None and found.high is not None:
        bar |= {"low": found.low, "high": found.high}
    if found.note:
        bar["note"] = found.note
    return bar


def _tabulate_groups(
    name: str, slices: Sequence[str], metrics: Sequence[str], found: Mapping[tuple[str, str], Measurement], hidden: str
) -> Section:
    columns = [{"name": name, "kind": "text"}, {"name": "rows", "kind": "number", "decimals": 0}]
    columns += [{"name": _spell(metric), "kind": "interval"} for metric in metrics]
    rows = []
    for one in slices:
        measured = [found.get((metric, one)) for metric in metrics]
        count = max(m.count for m in measured if m is not None)
        rows.append([one.removeprefix(f"{name}="), count, *(_cell(m) for m in measured)])
    text = f"Means over the rows of each group, with their intervals.{hidden}"
    return Section("table", f"Other measurements by {name}", text, {"columns": columns, "rows": rows})


def _tabulate_gaps(
    name: str, criteria: Sequence[Criterion], found: Mapping[tuple[str, str], Measurement], reference: str
) -> Section | None:
    compared = any(m.value is not None for (metric, _), m in found.items() if metric.endswith(("_rise", "_fall")))
    columns = [
        {"name": "between groups", "kind": "text"},
        {"name": "measured (interval)", "kind": "text"},
        {"name": "widest pair", "kind": "text"},
    ]
    if compared:
        columns.insert(2, {"name": f"against {reference or 'the champion'}", "kind": "text"})
    rows = []
    for criterion in criteria:
        gap = found.get((criterion.gap, f"between={name}"))
        if gap is None:
            continue
        cells: list[object] = [_spell(criterion.gap), _write_interval(gap), gap.note]
        if compared:
            cells.insert(2, _write_interval(found.get((criterion.rise, f"between={name}")), signed=True))
        rows.append(cells)
    if not rows:
        return None
    text = "How far the groups that are furthest apart lie apart."
    if compared:
        text += " Positive changes against the champion, on the same rows: groups have moved apart."
    return Section("table", f"Gaps by {name}", text, {"columns": columns, "rows": rows, "sortable": False})


def _cell(found: Measurement | None) -> dict[str, object] | None:
    if found is None:
        return None
    cell: dict[str, object] = {"value": found.value, "low": found.low, "high": found.high}
    return {**cell, "note": found.note} if found.note else cell


def _write_interval(found: Measurement | None, signed: bool = False) -> dict[str, object]:
    """Write a value as text: gaps of different units would share one axis otherwise."""
    if found is None or found.value is None:
        return {"value": None, "note": found.note if found is not None else ""}
    sign = "+" if signed else ""
    ends = "" if found.low is None or found.high is None else f" ({found.low:{sign}.3g} to {found.high:{sign}.3g})"
    # What the new model's pair is stands in the next column.
    note = found.note.partition("; ")[2] if signed else ""
    return {"value": f"{found.value:{sign}.3g}{ends}", "note": note}


def _spell(metric: str) -> str:
    return metric.replace("_", " ")
