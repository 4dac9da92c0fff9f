"""Rows in groups, what is measured in each group, and how far groups lie apart: what every kind of answer shares.

`mlflywheel.evaluation.fairness` says what is measured, `mlflywheel.statistics.gaps` how sure it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.models.contract import Measurement
from mlflywheel.statistics.gaps import (
    Gap,
    Means,
    Numbers,
    PairedMeans,
    PairedShares,
    Places,
    Shares,
    adjust_confidence,
    measure_gap,
    measure_ratio,
    measure_ratio_fall,
    measure_rise,
)

NO_CHAMPION = "no champion to compare with"


@dataclass(frozen=True, eq=False)
class GroupColumn:
    """Rows in the groups of one column.

    Args:
        name: The column.
        names: Its groups, in alphabetical order.
        codes: Shape (rows,): the place of each row's group.
        minimum_count: Rows that a group must have to be in a gap.
    """

    name: str
    names: tuple[str, ...]
    codes: Places
    minimum_count: int

    @property
    def counts(self) -> Places:
        """Rows of each group."""
        return np.asarray(np.bincount(self.codes, minlength=len(self.names)), dtype=np.int64)

    @property
    def large(self) -> list[int]:
        """Places of the groups that have enough rows to be in a gap."""
        return [int(place) for place in np.flatnonzero(self.counts >= self.minimum_count)]

    def note_small(self, place: int, noun: str = "rows") -> str:
        """Return a note for a group that is in no gap, else nothing."""
        count = int(self.counts[place])
        return "" if count >= self.minimum_count else f"in no gap: {count} {noun}, {self.minimum_count} are needed"

    def list_small(self, noun: str = "rows") -> str:
        """Return the groups that are in no gap as a part of a note, or nothing."""
        small = [place for place in range(len(self.names)) if place not in set(self.large)]
        shown = ", ".join(f"{self.names[place]} ({self.counts[place]} {noun})" for place in small[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        return f"in no gap: {shown}{more}" if small else ""


def group_rows(grouping: Grouping, attributes: pa.Table, minimum_count: int) -> GroupColumn:
    """Put rows into the groups of a column.

    Raises:
        DataError: As for `Grouping.assign`.
    """
    names, codes = np.unique(grouping.assign(attributes).astype(str), return_inverse=True)
    return GroupColumn(grouping.name, tuple(names.tolist()), codes.astype(np.int64).ravel(), minimum_count)


@dataclass(frozen=True, eq=False)
class RowSample:
    """One value of each row, whose mean in each group is measured.

    Args:
        metric: Name of the measurement.
        new: Shape (rows,), NaN for rows that it is not defined for.
        old: The same of the champion, or None without one.
        label: In plain words.
        shares: Whether every value is 0 or 1.
        bounds: Smallest and largest possible value, or None.
        undefined: Why a group may have no value.
        broken: Why no value of the new model can be trusted, or nothing.
        broken_old: The same of the champion.
    """

    metric: str
    new: Numbers
    old: Numbers | None = None
    label: str = ""
    shares: bool = False
    bounds: tuple[float, float] | None = None
    undefined: str = "no rows with a value"
    broken: str = ""
    broken_old: str = ""

    def measure_groups(self, column: GroupColumn, confidence: float) -> list[Measurement]:
        """Return the mean of every group with its interval."""
        counts = np.bincount(column.codes[~np.isnan(self.new)], minlength=len(column.names))
        broken = np.bincount(column.codes[np.isinf(self.new)], minlength=len(column.names)) > 0
        kept = [place for place in range(len(column.names)) if counts[place] and not broken[place]]
        found: dict[int, tuple[float, float, float]] = {}
        if kept:
            estimates = self._estimate(column, kept)
            low, high = estimates.interval(confidence)
            found = {
                place: (float(estimates.values[at]), float(low[at]), float(high[at])) for at, place in enumerate(kept)
            }
        measurements = []
        for place, name in enumerate(column.names):
            slice_name, count = f"{column.name}={name}", int(counts[place])
            if place not in found:
                why = "not all values are finite" if broken[place] else self.undefined
                measurements.append(Measurement(self.metric, None, slice_name, count, note=why))
                continue
            value, lower, upper = found[place]
            known = bool(np.isfinite(lower) and np.isfinite(upper))
            measurements.append(
                Measurement(
                    self.metric,
                    value,
                    slice_name,
                    count,
                    lower if known else None,
                    upper if known else None,
                    column.note_small(place),
                )
            )
        return measurements

    def find_comparable(self, column: GroupColumn, paired: bool) -> list[int]:
        """Return the places of large groups that have enough rows with a value."""
        counts = np.bincount(column.codes[self.defined(paired)], minlength=len(column.names))
        return [place for place in column.large if counts[place] >= (1 if self.shares else 2)]

    def defined(self, paired: bool) -> NDArray[np.bool_]:
        """Return which rows have a value, or a value of both models."""
        defined = ~np.isnan(self.new)
        return defined & ~np.isnan(self.old) if paired and self.old is not None else defined

    def _select(self, column: GroupColumn, places: Sequence[int], paired: bool) -> tuple[Places, Places]:
        """Return the rows of some groups, and the place of each one's group among these."""
        at = np.full(len(column.names), -1, dtype=np.int64)
        at[list(places)] = np.arange(len(places))
        rows = np.flatnonzero(self.defined(paired) & (at[column.codes] >= 0))
        return rows, at[column.codes[rows]]

    def count_cells(self, column: GroupColumn, places: Sequence[int], paired: bool) -> Numbers:
        """Return rows by their two answers, shape (4, groups): both, new only, old only, neither."""
        rows, codes = self._select(column, places, paired)
        new = self.new[rows]
        # Without a champion both models are this one, so that rows are in the first cell or the last.
        old = self.old[rows] if paired and self.old is not None else new
        cell = ((1 - new) * 2 + (1 - old)).astype(np.int64)
        counts = np.bincount(cell * len(places) + codes, minlength=4 * len(places))
        return counts.reshape(4, len(places)).astype(np.float64)

    def _estimate(self, column: GroupColumn, places: Sequence[int]) -> Shares | Means:
        if self.shares:
            both, _, _, neither = self.count_cells(column, places, paired=False)
            return Shares(both, both + neither)
        rows, codes = self._select(column, places, paired=False)
        return Means(self.new[rows], codes, len(places), self.bounds)

    def estimate(self, column: GroupColumn, places: Sequence[int]) -> Means:
        """Return the means of some groups."""
        rows, codes = self._select(column, places, paired=False)
        return Means(self.new[rows], codes, len(places), self.bounds)

    def estimate_paired(self, column: GroupColumn, places: Sequence[int]) -> PairedMeans:
        """Return both models' means of some groups, over the rows that both have a value of."""
        assert self.old is not None  # for the type checker: a rise is asked for only with a champion
        rows, codes = self._select(column, places, paired=True)
        return PairedMeans(self.new[rows], self.old[rows], codes, len(places), self.bounds)


class Criterion(ABC):
    """One way in which groups of a column may lie apart."""

    #: Name of the gap's measurement.
    gap: str
    #: In plain words.
    label: str
    #: Whether a smaller value lies further apart, as that of a ratio does.
    falls: bool = False

    @property
    def rise(self) -> str:
        """Name of the measurement against the champion."""
        return f"{self.gap}_fall" if self.falls else f"{self.gap}_rise"

    @abstractmethod
    def measure(self, column: GroupColumn, confidence: float) -> Measurement:
        """Measure the gap between the groups of a column."""

    @abstractmethod
    def compare(self, column: GroupColumn, confidence: float, reference: str) -> Measurement:
        """Measure by how much the gap has grown since the champion."""


class RowCriterion(Criterion):
    """A gap between means of rows' values.

    Args:
        gap: Name of the gap's measurement.
        samples: What is compared; with two of shares the larger one of their gaps is measured.
        label: In plain words.
        ratio: Whether the lowest share is divided by the highest, instead of subtracted from it.
    """

    def __init__(self, gap: str, samples: Sequence[RowSample], label: str = "", *, ratio: bool = False) -> None:
        self.gap, self.label, self.falls = gap, label, ratio
        self._samples = tuple(samples)

    def measure(self, column: GroupColumn, confidence: float) -> Measurement:
        """See `Criterion`."""
        where = f"between={column.name}"
        places, why = self._find_places(column, paired=False)
        if why:
            return Measurement(self.gap, None, where, note=why)
        sizes, spots = self._list_spots(column, places, paired=False)
        if self._samples[0].shares:
            cells = np.hstack([s.count_cells(column, p, False) for s, p in zip(self._samples, places, strict=True)])
            shares = Shares(cells[0], cells[0] + cells[3])
            values = shares.values
            gap = (
                measure_ratio(shares, confidence) if self.falls else measure_gap(shares, confidence, _families(places))
            )
        else:
            means = self._samples[0].estimate(column, places[0])
            values = means.values
            gap = measure_gap(means, confidence)
        count = int(sizes.sum())
        if gap.value is None or gap.pair is None:
            return Measurement(self.gap, None, where, count, note="no group has any, so their ratio is not defined")
        note = join_notes(describe_pair(gap.pair, values, spots, sizes), column.list_small())
        return Measurement(self.gap, gap.value, where, count, *_finite_ends(gap), note)

    def compare(self, column: GroupColumn, confidence: float, reference: str) -> Measurement:
        """See `Criterion`."""
        where = f"between={column.name}"
        if any(sample.old is None for sample in self._samples):
            return Measurement(self.rise, None, where, note=NO_CHAMPION)
        places, why = self._find_places(column, paired=True)
        if why:
            return Measurement(self.rise, None, where, note=why)
        sizes, spots = self._list_spots(column, places, paired=True)
        paired: PairedShares | PairedMeans
        if self._samples[0].shares:
            cells = [s.count_cells(column, p, True) for s, p in zip(self._samples, places, strict=True)]
            paired = PairedShares(*np.hstack(cells))
            rise = (
                measure_ratio_fall(paired, confidence)
                if self.falls
                else measure_rise(paired, confidence, _families(places))
            )
        else:
            paired = self._samples[0].estimate_paired(column, places[0])
            rise = measure_rise(paired, confidence)
        count = int(sizes.sum())
        if rise.value is None or rise.pair is None or rise.old_pair is None:
            why = "no group of one of the models has any, so the ratio is not defined"
            return Measurement(self.rise, None, where, count, note=why)
        note = join_notes(
            f"now {describe_pair(rise.pair, paired.new_values, spots, sizes)}",
            f"{reference or 'champion'} {describe_pair(rise.old_pair, paired.old_values, spots, sizes)}",
            column.list_small(),
        )
        return Measurement(self.rise, rise.value, where, count, *_finite_ends(rise), note)

    def _find_places(self, column: GroupColumn, paired: bool) -> tuple[list[list[int]], str]:
        """Return the comparable groups of each sample, and why there is nothing to compare."""
        for sample in self._samples:
            if sample.broken or (paired and sample.broken_old):
                return [], sample.broken or sample.broken_old
        places = [sample.find_comparable(column, paired) for sample in self._samples]
        if len(column.names) < 2:
            return places, f"{column.name} has one group only, {column.names[0]}" if column.names else "no rows"
        if len(column.large) < 2:
            return places, join_notes(
                f"fewer than two groups of {column.name} have {column.minimum_count} rows", column.list_small()
            )
        for sample, found in zip(self._samples, places, strict=True):
            if len(found) < 2:
                return places, f"fewer than two groups of {column.name} have a value: {sample.undefined} in the others"
        return places, ""

    def _list_spots(
        self, column: GroupColumn, places: Sequence[Sequence[int]], paired: bool
    ) -> tuple[Places, list[str]]:
        """Return rows and names of everything that is compared, sample after sample."""
        sizes: list[int] = []
        spots: list[str] = []
        for sample, found in zip(self._samples, places, strict=True):
            counts = np.bincount(column.codes[sample.defined(paired)], minlength=len(column.names))
            prefix = f"{sample.label} of " if len(self._samples) > 1 else ""
            sizes.extend(int(counts[place]) for place in found)
            spots.extend(f"{prefix}{column.names[place]}" for place in found)
        return np.asarray(sizes, dtype=np.int64), spots


def find_worst(found: Sequence[Measurement], falls: bool = False) -> Measurement:
    """Return the measurement of slice `all`: that of the column whose groups lie furthest apart.

    Args:
        found: One a column, of slice `between=column`, at a confidence that holds for all columns together.
        falls: Whether smaller values are further apart.
    """
    defined = [m for m in found if m.value is not None]
    if not defined:
        notes = dict.fromkeys(m.note for m in found)
        return Measurement(found[0].metric, None, count=0, note=join_notes(*notes))
    sign = -1.0 if falls else 1.0
    worst = max(defined, key=lambda m: sign * (m.value or 0.0))
    choose = min if falls else max
    ends = [(m.low, m.high) for m in defined if m.low is not None and m.high is not None]
    # One column without an interval leaves the largest of them without one.
    complete = len(ends) == len(defined)
    return replace(
        worst,
        slice="all",
        low=choose(low for low, _ in ends) if complete else None,
        high=choose(high for _, high in ends) if complete else None,
        note=f"by {worst.slice.partition('=')[2]}: {worst.note}",
    )


def measure_criterion(
    criterion: Criterion, columns: Sequence[GroupColumn], confidence: float, reference: str
) -> list[Measurement]:
    """Measure a gap and its rise for each column, and for the worst one of them."""
    each = adjust_confidence(confidence, len(columns))
    measurements: list[Measurement] = []
    alone = [criterion.measure(column, confidence) for column in columns]
    together = alone if len(columns) == 1 else [criterion.measure(column, each) for column in columns]
    measurements += [*alone, find_worst(together, criterion.falls)]
    alone = [criterion.compare(column, confidence, reference) for column in columns]
    together = alone if len(columns) == 1 else [criterion.compare(column, each, reference) for column in columns]
    return [*measurements, *alone, find_worst(together)]


def describe_pair(
    pair: tuple[int, int], values: Numbers, names: Sequence[str], sizes: Places, noun: str = "rows"
) -> str:
    """Return both groups of a gap with their values and sizes."""
    # Names such as `above 25` and figures would run into one another.
    texts = [f"{values[at]:.4g} for {names[at]} ({sizes[at]} {noun})" for at in pair]
    return f"highest {texts[0]}, lowest {texts[1]}"


def join_notes(*notes: str) -> str:
    """Join what notes there are."""
    return "; ".join(note for note in notes if note)


def _families(places: Sequence[Sequence[int]]) -> list[range]:
    ends = [0, *(int(end) for end in np.cumsum([len(found) for found in places]))]
    return [range(start, end) for start, end in pairwise(ends)]


def _finite_ends(gap: Gap) -> tuple[float | None, float | None]:
    known = gap.low is not None and gap.high is not None and np.isfinite(gap.low) and np.isfinite(gap.high)
    return (gap.low, gap.high) if known else (None, None)
