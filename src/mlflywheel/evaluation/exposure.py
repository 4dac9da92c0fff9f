"""What groups of a catalogue are shown in recommendations, and what groups of callers get.

| measurement | slice | what it is |
|---|---|---|
| `exposure_to_catalogue_ratio` | `column=group` | share of the exposure ÷ share of the catalogue |
| `exposure_to_relevance_ratio` | `column=group` | share of the exposure ÷ share of the relevance |
| `catalogue_coverage` | `all`, `column=group` | share of the catalogue that stands in at least one list |
| `empty_result_rate` | `all`, `column=group` | share of the rows that got an empty list |
| `exposure_gap` and the like | `between=column`, `all` | largest value of a group minus the smallest |
| the same with `_rise` | `between=column`, `all` | by how much that has grown since the champion, on the same rows |

Gaps are `exposure_gap` (of the ratio to the catalogue), `exposure_to_relevance_gap`, `catalogue_coverage_gap` and
`empty_result_rate_gap`.

A place in a list counts 1 / log2(1 + rank) (Singh and Joachims). Relevance is not in the rows, so the one truth that
is there stands for it: **an entry is relevant to a row of its own group**. The relevance share of a group is then the
share of the exposure in the lists of its own rows, and a ratio of 1 says that the group is shown as much as its own
rows ask for (Biega et al. compare attention with relevance summed over many rankings, as here). Where that is not what
relevance means, `exposure_to_catalogue_ratio` and the row metrics by group are the ones to go by.

Rows are what is sampled, and the catalogue is taken as given: intervals come from a bootstrap of whole lists, 1,000
resamples as one matrix product. Coverage has no interval: a resample repeats lists and so covers less than a sample.

Sources: A. Singh and T. Joachims, "Fairness of exposure in rankings", KDD 2018, arXiv 1802.07281; A. J. Biega, K. P.
Gummadi and G. Weikum, "Equity of attention: amortizing individual fairness in rankings", SIGIR 2018, arXiv 1805.01788.
A caution on comparing such measures: A. Raj and M. D. Ekstrand, "Measuring fairness in ranked results", SIGIR 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.evaluation.group_gaps import (
    NO_CHAMPION,
    Criterion,
    GroupColumn,
    RowCriterion,
    RowSample,
    describe_pair,
    group_rows,
    join_notes,
)
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.models.contract import Measurement, RowScores
from mlflywheel.statistics.gaps import Gap, Numbers, PairedResampled, Places, Resampled, measure_gap, measure_rise
from mlflywheel.statistics.intervals import estimate_share

RESAMPLES = 1000
TO_CATALOGUE, TO_RELEVANCE = "exposure_to_catalogue_ratio", "exposure_to_relevance_ratio"
# Resampled rows held in memory at once: 4 million of 8 bytes are 32 MiB.
_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class _Shown:
    """What one model shows of each group of one column.

    Args:
        shown: Shape (rows, groups): exposure of each group in each list.
        asked: Shape (rows, groups): exposure of the whole list, in the column of the row's own group; None where rows
            are not in these groups.
        total: Shape (rows,): exposure of the whole list.
        covered: Shape (groups,): entries of the catalogue that stand in a list.
        members: Shape (groups,): entries of the catalogue.
        size: Entries of the whole catalogue.
        own: Shape (groups,): rows of each group.
    """

    shown: Numbers
    asked: Numbers | None
    total: Numbers
    covered: Places
    members: Places
    size: int
    own: Places

    def sums(self) -> list[Numbers]:
        """Return what is summed over rows, each of shape (rows, any)."""
        parts = [self.shown, self.total[:, None]]
        return parts if self.asked is None else [*parts, self.asked]

    def value(self, sums: Numbers) -> tuple[Numbers, Numbers | None]:
        """Turn sums over rows, shape (..., columns of `sums`), into both ratios, shape (..., groups)."""
        groups = len(self.members)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = sums[..., :groups] / sums[..., groups : groups + 1]
            catalogue = share / (self.members / self.size)
            relevance = None if self.asked is None else sums[..., :groups] / sums[..., groups + 1 :]
        return catalogue, relevance


@dataclass(frozen=True, eq=False)
class _Exposures:
    """Both models' exposure by one column: values and resamples, shape (groups,) and (resamples, groups)."""

    column: GroupColumn
    new: _Shown
    old: _Shown | None
    values: dict[str, tuple[Numbers, Numbers]]
    old_values: dict[str, tuple[Numbers, Numbers]]

    def find_comparable(self, metric: str, paired: bool) -> list[int]:
        """Return the places of groups that are large enough, and whose ratio is defined."""
        minimum = self.column.minimum_count
        places = []
        for place in self.column.large:
            sides = [(self.new, self.values), *([(self.old, self.old_values)] if paired and self.old else [])]
            for shown, values in sides:
                if metric not in values or shown.members[place] < minimum:
                    break
                if metric == TO_RELEVANCE and shown.own[place] < minimum:
                    break
                if not np.isfinite(values[metric][0][place]) or not np.isfinite(values[metric][1][:, place]).all():
                    break
            else:
                places.append(place)
        return places


class ExposureCriterion(Criterion):
    """A gap between groups' ratios of exposure."""

    def __init__(self, gap: str, metric: str, exposures: Sequence[_Exposures], label: str) -> None:
        self.gap, self.label = gap, label
        self._metric = metric
        self._exposures = {one.column.name: one for one in exposures}

    def measure(self, column: GroupColumn, confidence: float) -> Measurement:
        """See `Criterion`."""
        found, where = self._exposures[column.name], f"between={column.name}"
        places = found.find_comparable(self._metric, paired=False)
        if len(places) < 2:
            return Measurement(self.gap, None, where, note=_explain_few(found, self._metric))
        value, replicates = found.values[self._metric]
        rows = len(found.new.total)
        gap = measure_gap(Resampled(value[places], replicates[:, places], rows), confidence)
        return self._write(self.gap, where, gap, found, places, [("", gap.pair, value[places], found.new)])

    def compare(self, column: GroupColumn, confidence: float, reference: str) -> Measurement:
        """See `Criterion`."""
        found, where = self._exposures[column.name], f"between={column.name}"
        if found.old is None:
            return Measurement(self.rise, None, where, note=NO_CHAMPION)
        places = found.find_comparable(self._metric, paired=True)
        if len(places) < 2:
            return Measurement(self.rise, None, where, note=_explain_few(found, self._metric))
        (new, new_replicates), (old, old_replicates) = found.values[self._metric], found.old_values[self._metric]
        replicates = np.hstack([new_replicates[:, places], old_replicates[:, places]])
        paired = PairedResampled(new[places], old[places], replicates, len(found.new.total))
        rise = measure_rise(paired, confidence)
        sides = [
            ("now ", rise.pair, new[places], found.new),
            (f"{reference or 'champion'} ", rise.old_pair, old[places], found.old),
        ]
        return self._write(self.rise, where, rise, found, places, sides)

    def _write(
        self,
        metric: str,
        where: str,
        gap: Gap,
        found: _Exposures,
        places: Sequence[int],
        sides: Sequence[tuple[str, tuple[int, int] | None, Numbers, _Shown]],
    ) -> Measurement:
        names = [found.column.names[place] for place in places]
        texts = []
        for prefix, pair, values, shown in sides:
            assert pair is not None  # for the type checker: two groups have a pair
            # Rows here are entries of the catalogue.
            texts.append(prefix + describe_pair(pair, values, names, shown.members[list(places)], "entries"))
        note = join_notes(*texts, found.column.list_small("entries"))
        return Measurement(metric, gap.value, where, len(found.new.total), gap.low, gap.high, note)


class CoverageCriterion(Criterion):
    """A gap between shares of the catalogue that stand in at least one list; it has no interval."""

    gap, label = "catalogue_coverage_gap", "catalogue coverage"

    def __init__(self, exposures: Sequence[_Exposures]) -> None:
        self._exposures = {one.column.name: one for one in exposures}

    def measure(self, column: GroupColumn, confidence: float) -> Measurement:
        """See `Criterion`; the confidence is not used."""
        found, where = self._exposures[column.name], f"between={column.name}"
        places = column.large
        if len(places) < 2:
            return Measurement(self.gap, None, where, note=_explain_few(found, "catalogue_coverage"))
        value, text = self._measure_model(found, found.new, places)
        return Measurement(self.gap, value, where, len(found.new.total), note=text)

    def compare(self, column: GroupColumn, confidence: float, reference: str) -> Measurement:
        """See `Criterion`; the confidence is not used."""
        found, where = self._exposures[column.name], f"between={column.name}"
        if found.old is None:
            return Measurement(self.rise, None, where, note=NO_CHAMPION)
        places = [place for place in column.large if found.old.members[place] >= column.minimum_count]
        if len(places) < 2:
            return Measurement(self.rise, None, where, note=_explain_few(found, "catalogue_coverage"))
        now, text = self._measure_model(found, found.new, places)
        before, old_text = self._measure_model(found, found.old, places)
        note = join_notes(f"now {text}", f"{reference or 'champion'} {old_text}")
        return Measurement(self.rise, now - before, where, len(found.new.total), note=note)

    def _measure_model(self, found: _Exposures, shown: _Shown, places: Sequence[int]) -> tuple[float, str]:
        members = shown.members[list(places)]
        values = shown.covered[list(places)] / members
        pair = (int(np.argmax(values)), int(np.argmin(values)))
        names = [found.column.names[place] for place in places]
        return float(values[pair[0]] - values[pair[1]]), describe_pair(pair, values, names, members, "entries")


def measure_exposure_by_group(
    rows: RowScores,
    groupings: Sequence[Grouping],
    minimum_count: int,
    confidence: float,
    champion: RowScores | None = None,
    seed: int = 0,
) -> tuple[list[Measurement], list[GroupColumn], list[Criterion]]:
    """Measure what each group of the catalogue is shown.

    Args:
        rows: Of a recommendation, with its catalogue.
        groupings: Columns; those that the catalogue does not have are left out.
        minimum_count: Entries of the catalogue that a group must have to be in a gap.
        confidence: Of the intervals.
        champion: The same rows answered by the champion, from its own catalogue.
        seed: Of the bootstrap.

    Returns:
        Measurements by group, the catalogue's columns, and the gaps that can be measured between their groups.
    """
    if rows.catalogue is None:
        return [], [], []
    catalogue = rows.catalogue
    kept = [grouping for grouping in groupings if grouping.name in catalogue.column_names]
    columns = [group_rows(grouping, catalogue, minimum_count) for grouping in kept]
    entries = _read_lists(rows)
    measurements = [_measure_coverage(entries, catalogue.num_rows)]
    if not kept:
        return measurements, [], []
    before = champion if champion is not None and champion.catalogue is not None else None
    old_entries = None if before is None else _read_lists(before)
    shown: list[tuple[_Shown, _Shown | None]] = []
    for grouping, column in zip(kept, columns, strict=True):
        new = _expose(rows, grouping, column, catalogue, entries)
        old = None
        if before is not None and before.catalogue is not None and old_entries is not None:
            has_column = grouping.name in before.catalogue.column_names
            old = _expose(rows, grouping, column, before.catalogue, old_entries) if has_column else None
        shown.append((new, old))
    exposures = _resample(columns, shown, seed)
    for found in exposures:
        measurements += _measure_groups(found, confidence)
    criteria: list[Criterion] = [
        ExposureCriterion("exposure_gap", TO_CATALOGUE, exposures, "exposure ÷ catalogue share"),
        ExposureCriterion("exposure_to_relevance_gap", TO_RELEVANCE, exposures, "exposure ÷ relevance share"),
        CoverageCriterion(exposures),
    ]
    return measurements, columns, criteria


def sample_empty_results(rows: RowScores, champion: RowScores | None) -> RowSample:
    """Return which rows got an empty list, as what is compared between groups of rows."""
    return RowSample(
        "empty_result_rate",
        _find_empty(rows),
        None if champion is None else _find_empty(champion),
        "empty result rate",
        shares=True,
    )


def measure_empty_results(sample: RowSample, confidence: float) -> Measurement:
    """Return the share of all rows that got an empty list."""
    share = estimate_share(int(sample.new.sum()), len(sample.new), confidence)
    note = "" if share.count else "no rows"
    return Measurement(sample.metric, share.value, "all", share.count, share.low, share.high, note)


def compare_empty_results(sample: RowSample) -> RowCriterion:
    """Return the gap of the rate of empty lists."""
    return RowCriterion("empty_result_rate_gap", [sample], "empty result rate")


@dataclass(frozen=True, eq=False)
class _Entries:
    """Every entry of every list: its row, its exposure, and its place in the catalogue (-1 if it is not there)."""

    row: Places
    weight: Numbers
    place: Places
    lists: int


def _read_lists(scores: RowScores) -> _Entries:
    lists = scores.answers.combine_chunks() if isinstance(scores.answers, pa.ChunkedArray) else scores.answers
    lengths = np.asarray(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    row = np.repeat(np.arange(len(lists)), lengths)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    assert scores.catalogue is not None  # for the type checker: checked by the caller
    ids = pc.index_in(lists.flatten().cast(pa.string()), scores.catalogue["id"].cast(pa.string()))
    place = np.asarray(ids.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    return _Entries(row, 1.0 / np.log2(2.0 + rank), place, len(lists))


def _find_empty(scores: RowScores) -> Numbers:
    lengths = pc.fill_null(pc.list_value_length(scores.answers), 0)
    return np.asarray(np.asarray(lengths.to_numpy(zero_copy_only=False)) == 0, dtype=np.float64)


def _expose(rows: RowScores, grouping: Grouping, column: GroupColumn, catalogue: pa.Table, entries: _Entries) -> _Shown:
    groups = len(column.names)
    places = {name: place for place, name in enumerate(column.names)}
    # Entries that are in none of these groups, as the champion's may be, count in the whole alone.
    codes = np.array([places.get(str(name), groups) for name in grouping.assign(catalogue)] + [groups], dtype=np.int64)
    group = codes[entries.place]
    place = entries.row * (groups + 1) + group
    flat = np.bincount(place, weights=entries.weight, minlength=entries.lists * (groups + 1))
    shown = flat.astype(np.float64).reshape(entries.lists, groups + 1)
    total = shown.sum(axis=1)
    asked, own = None, np.zeros(groups, dtype=np.int64)
    if grouping.name in rows.attributes.column_names:
        mine = np.array([places.get(str(name), groups) for name in grouping.assign(rows.attributes)], dtype=np.int64)
        asked = np.where(mine[:, None] == np.arange(groups)[None, :], total[:, None], 0.0)
        own = np.bincount(mine, minlength=groups + 1)[:groups].astype(np.int64)
    seen = np.unique(entries.place[entries.place >= 0])
    covered = np.bincount(codes[:-1][seen], minlength=groups + 1)[:groups]
    members = np.bincount(codes[:-1], minlength=groups + 1)[:groups]
    return _Shown(
        shown[:, :groups], asked, total, covered.astype(np.int64), members.astype(np.int64), catalogue.num_rows, own
    )


def _resample(
    columns: Sequence[GroupColumn], shown: Sequence[tuple[_Shown, _Shown | None]], seed: int
) -> list[_Exposures]:
    """Draw rows with their lists, of both models and by all columns at once."""
    parts = [part for new, old in shown for side in (new, old) if side is not None for part in side.sums()]
    values = np.hstack(parts)
    rows = len(values)
    drawn = np.empty((RESAMPLES, values.shape[1]))
    random = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(rows, 1))
    for start in range(0, RESAMPLES, at_once):
        number = min(at_once, RESAMPLES - start)
        picks = random.integers(0, max(rows, 1), size=(number, rows)) + np.arange(number)[:, None] * rows
        times = np.bincount(picks.ravel(), minlength=number * rows).reshape(number, rows)
        drawn[start : start + number] = times.astype(np.float64) @ values
    sums = values.sum(axis=0)
    exposures, at = [], 0
    for column, (new, old) in zip(columns, shown, strict=True):
        sides = []
        for side in (new, old):
            found: dict[str, tuple[Numbers, Numbers]] = {}
            if side is not None:
                width = sum(part.shape[1] for part in side.sums())
                whole, again = side.value(sums[at : at + width]), side.value(drawn[:, at : at + width])
                at += width
                for metric, value, replicates in zip((TO_CATALOGUE, TO_RELEVANCE), whole, again, strict=True):
                    if value is not None and replicates is not None:
                        found[metric] = (value, replicates)
            sides.append(found)
        exposures.append(_Exposures(column, new, old, sides[0], sides[1]))
    return exposures


def _measure_coverage(entries: _Entries, size: int) -> Measurement:
    seen = len(np.unique(entries.place[entries.place >= 0]))
    note = f"in the lists of {entries.lists} rows" if size else "the catalogue is empty"
    return Measurement("catalogue_coverage", seen / size if size else None, "all", entries.lists, note=note)


def _measure_groups(found: _Exposures, confidence: float) -> list[Measurement]:
    column, new = found.column, found.new
    whole = float(new.total.sum())
    measurements = []
    for place, name in enumerate(column.names):
        where, members, rows = f"{column.name}={name}", int(new.members[place]), len(new.total)
        covered = float(new.covered[place] / members)
        note = join_notes(f"of {members} entries", column.note_small(place, "entries"))
        measurements.append(Measurement("catalogue_coverage", covered, where, members, note=note))
        for metric, (value, replicates) in found.values.items():
            if whole == 0.0 or not np.isfinite(value[place]):
                why = "all lists are empty" if whole == 0.0 else "no list of a row of this group has an entry"
                measurements.append(Measurement(metric, None, where, rows, note=why))
                continue
            share = float(new.shown[:, place].sum() / whole)
            asked = 0.0 if new.asked is None else float(new.asked[:, place].sum() / whole)
            by = (
                f"{members / new.size:.1%} of the catalogue"
                if metric == TO_CATALOGUE
                else f"{asked:.1%} of the relevance (an entry is relevant to rows of its own group)"
            )
            defined = np.isfinite(replicates[:, place]).all()
            ends = np.quantile(replicates[:, place], [0.5 - confidence / 2, 0.5 + confidence / 2]) if defined else None
            measurements.append(
                Measurement(
                    metric,
                    float(value[place]),
                    where,
                    rows,
                    None if ends is None else float(ends[0]),
                    None if ends is None else float(ends[1]),
                    join_notes(f"{by}, {share:.1%} of the exposure", column.note_small(place, "entries")),
                )
            )
    return measurements


def _explain_few(found: _Exposures, metric: str) -> str:
    column = found.column
    if metric == TO_RELEVANCE and found.new.asked is None:
        return f"rows have no column {column.name}, so what is relevant to them is not known"
    if not found.new.total.any():
        return "all lists are empty"
    if len(column.names) < 2:
        return f"{column.name} has one group only" + (f", {column.names[0]}" if column.names else "")
    return join_notes(
        f"fewer than two groups of {column.name} have {column.minimum_count} entries"
        + (" and rows" if metric == TO_RELEVANCE else ""),
        column.list_small("entries"),
    )
