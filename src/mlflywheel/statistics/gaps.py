"""How far groups lie apart, and whether they have moved apart between two models, with intervals that hold.

A gap is the largest of several differences, so chance alone makes it larger than 0 and a plain bootstrap of it covers
badly. Here every pair of groups gets an interval, all pairs together hold with the confidence that is asked for, and
the gap's interval follows from theirs:

    gap  = max over pairs of |difference|
    low  = max over pairs of the lower bound of |difference|, at least 0
    high = max over pairs of the upper bound of |difference|

The rise of a gap between two models on the same rows is `max over pairs k min over pairs l` of the contrast "k of the
new model minus l of the old one", and its bounds are the same expression of the contrasts' bounds. A lower bound can
only be wrong where that of one contrast of each k is, so it is the pairs that have to hold together, not the pairs of
pairs.

Everything is closed form, so the same rows give the same interval. How often the intervals hold the truth is simulated
by `benchmarks/evaluation/fairness.py`.

Sources: intervals of differences from those of each group (MOVER): R. G. Newcombe, "Interval estimation for the
difference between independent proportions", Statistics in Medicine 17 (1998), 873; G. Y. Zou and A. Donner,
"Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008). Paired shares: D. G. Bonett
and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", JEBS
37 (2012). Ratios: A. Donner and G. Y. Zou, "Closed-form confidence intervals for functions of the normal mean and
standard deviation", Statistical Methods in Medical Research 21 (2012). Pairs together: Z. Šidák, "Rectangular
confidence regions for the means of multivariate normal distributions", JASA 62 (1967).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mlflywheel.errors import UsageError

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]

# Bounds stay valid, only a little wider, if they look at the widest pairs alone on the side where any pair is enough;
# with 100 groups there are 98 million pairs of pairs.
_WIDEST = 64
# How two models' values of a row are combined in a contrast: new, old, new - old, new + old.
_COMBINED = ((1, 0), (0, 1), (1, -1), (1, 1))


class GroupEstimates(Protocol):
    """One estimate a group, and intervals of differences between groups."""

    @property
    def values(self) -> Numbers:
        """Shape (groups,)."""

    def bound(self, left: Places, right: Places, confidence: float) -> tuple[Numbers, Numbers]:
        """Return both ends of the interval of each `values[left] - values[right]`, each of its own."""


class PairedEstimates(Protocol):
    """Two models' estimates of each group on the same rows."""

    @property
    def new_values(self) -> Numbers:
        """Shape (groups,)."""

    @property
    def old_values(self) -> Numbers:
        """Shape (groups,)."""

    def bound(
        self, new: tuple[int, int], old_left: Places, old_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """Return both ends for the new model's difference of one pair minus the old one's of each of some pairs."""

    def bound_reversed(
        self, old: tuple[int, int], new_left: Places, new_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """Return both ends for the new model's difference of each of some pairs minus the old one's of one pair."""


@dataclass(frozen=True)
class Gap:
    """How far groups lie apart, or by how much that has risen.

    Args:
        value: The largest difference (for a rise: the new model's minus the old one's); None with fewer than two
            groups.
        low: Lower end of its interval, None with `value`.
        high: Upper end.
        pair: Places of the highest and the lowest group; of the new model, for a rise.
        old_pair: The same of the old model, None but for a rise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    pair: tuple[int, int] | None = None
    old_pair: tuple[int, int] | None = None


class Shares:
    """Shares of independent rows in groups, with Wilson's intervals.

    Args:
        successes: Shape (groups,): rows that have the property.
        counts: Shape (groups,): all rows, at least 1 each.

    >>> low, high = Shares([8], [10]).interval(0.95)
    >>> round(float(low[0]), 3), round(float(high[0]), 3)
    (0.49, 0.943)
    """

    def __init__(self, successes: ArrayLike, counts: ArrayLike) -> None:
        self.successes = np.asarray(successes, dtype=np.float64)
        self.counts = np.asarray(counts, dtype=np.float64)
        if (self.counts < 1).any() or (self.successes < 0).any() or (self.successes > self.counts).any():
            raise UsageError(
                "Shares",
                f"{self.successes.tolist()} successes in {self.counts.tolist()} rows",
                "0 to all of at least 1 row can be successes",
                "leave groups without rows out",
            )

    @property
    def values(self) -> Numbers:
        """Shape (groups,), from 0 to 1."""
        return self.successes / self.counts

    def interval(self, confidence: float) -> tuple[Numbers, Numbers]:
        """Return the ends of each group's own interval."""
        z = _critical(confidence)
        scale = 1 + z * z / self.counts
        centre = self.values + z * z / (2 * self.counts)
        spread = z * np.sqrt(self.values * (1 - self.values) / self.counts + (z / (2 * self.counts)) ** 2)
        # At 0 and 1 the end is exactly the share; rounding must not put it beside it.
        low = np.where(self.successes == 0, 0.0, np.maximum(0.0, (centre - spread) / scale))
        high = np.where(self.successes == self.counts, 1.0, np.minimum(1.0, (centre + spread) / scale))
        return np.asarray(low), np.asarray(high)

    def bound(self, left: Places, right: Places, confidence: float) -> tuple[Numbers, Numbers]:
        """See `GroupEstimates`."""
        return _combine(self.values, self.interval(confidence), left, right)


class Means:
    """Means of independent rows' values in groups, with Student's intervals.

    Args:
        values: Shape (rows,), finite.
        codes: Shape (rows,): the place of each row's group, from 0.
        groups: Number of groups; each has at least 1 row.
        bounds: Smallest and largest possible value of a row. With them a group whose rows all have one value gets an
            interval too: that of values at most z^2 / (n + z^2) of which differ, as Wilson's is at 0 and 1.
    """

    def __init__(self, values: Numbers, codes: Places, groups: int, bounds: tuple[float, float] | None = None) -> None:
        self.counts = np.bincount(codes, minlength=groups).astype(np.float64)
        if (self.counts < 1).any():
            raise UsageError("Means", "a group without rows", "at least 1 row is needed", "leave such groups out")
        lowest, highest = np.full(groups, np.inf), np.full(groups, -np.inf)
        np.minimum.at(lowest, codes, values)
        np.maximum.at(highest, codes, values)
        self._constant = lowest == highest
        means = np.bincount(codes, weights=values, minlength=groups) / self.counts
        self._means = np.where(self._constant, lowest, means)
        squares = np.bincount(codes, weights=(values - self._means[codes]) ** 2, minlength=groups)
        self._errors = np.sqrt(squares / np.maximum(self.counts - 1, 1) / self.counts)
        self._bounds = bounds

    @property
    def values(self) -> Numbers:
        """Shape (groups,)."""
        return self._means

    def interval(self, confidence: float) -> tuple[Numbers, Numbers]:
        """Return the ends of each group's own interval; infinite for one row without bounds."""
        freedom = self.counts - 1
        reach = special.stdtrit(np.maximum(freedom, 1), 0.5 + confidence / 2) * self._errors
        down = up = np.where(freedom < 1, np.inf, reach)
        if self._bounds is None:
            return self._means - down, self._means + up
        z = _critical(confidence)
        elsewhere = z * z / (self.counts + z * z)
        low, high = self._bounds
        down = np.where(self._constant, elsewhere * (self._means - low), down)
        up = np.where(self._constant, elsewhere * (high - self._means), up)
        return np.maximum(self._means - down, low), np.minimum(self._means + up, high)

    def bound(self, left: Places, right: Places, confidence: float) -> tuple[Numbers, Numbers]:
        """See `GroupEstimates`."""
        return _combine(self._means, self.interval(confidence), left, right)


class _Paired(ABC):
    """Contrasts of two models over independent groups, from each group's interval of every combination of the two."""

    new_values: Numbers
    old_values: Numbers

    @abstractmethod
    def _intervals(self, confidence: float) -> list[tuple[Numbers, Numbers, Numbers]]:
        """Return value, low and high by group of each entry of `_COMBINED`."""

    def bound(
        self, new: tuple[int, int], old_left: Places, old_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """See `PairedEstimates`."""
        down, up = self._tabulate(confidence)
        values = _subtract(self.new_values, new) - (self.old_values[old_left] - self.old_values[old_right])
        signs = _sign_one(len(self.new_values), new)
        below, above = (_sum_squares(table, signs, old_right, old_left) for table in (down, up))
        return values - np.sqrt(below), values + np.sqrt(above)

    def bound_reversed(
        self, old: tuple[int, int], new_left: Places, new_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """See `PairedEstimates`."""
        down, up = self._tabulate(confidence)
        values = self.new_values[new_left] - self.new_values[new_right] - _subtract(self.old_values, old)
        signs = -_sign_one(len(self.new_values), old)
        below, above = (_sum_squares(table.swapaxes(0, 1), signs, new_left, new_right) for table in (down, up))
        return values - np.sqrt(below), values + np.sqrt(above)

    def _tabulate(self, confidence: float) -> tuple[Numbers, Numbers]:
        """Return squared distances to both ends by sign of the new model, sign of the old one and group."""
        cached: tuple[float, Numbers, Numbers] | None = self.__dict__.get("_table")
        if cached is not None and cached[0] == confidence:
            return cached[1], cached[2]
        down, up = (np.zeros((3, 3, len(self.new_values))) for _ in range(2))
        for (new, old), (value, low, high) in zip(_COMBINED, self._intervals(confidence), strict=True):
            below, above = np.maximum(value - low, 0.0) ** 2, np.maximum(high - value, 0.0) ** 2
            down[new + 1, old + 1], up[new + 1, old + 1] = below, above
            down[1 - new, 1 - old], up[1 - new, 1 - old] = above, below
        self.__dict__["_table"] = (confidence, down, up)
        return down, up


class PairedShares(_Paired):
    """Two models' shares on the same rows.

    Args:
        both: Shape (groups,): rows that have the property with both models.
        new_only: Rows that have it with the new model only.
        old_only: Rows that have it with the old model only.
        neither: Rows that have it with neither; each group has at least 1 row.
    """

    def __init__(self, both: ArrayLike, new_only: ArrayLike, old_only: ArrayLike, neither: ArrayLike) -> None:
        self._both, self._new_only, self._old_only, self._neither = (
            np.asarray(cell, dtype=np.float64) for cell in (both, new_only, old_only, neither)
        )
        self.counts = self._both + self._new_only + self._old_only + self._neither
        self.new = Shares(self._both + self._new_only, self.counts)
        self.old = Shares(self._both + self._old_only, self.counts)
        self.new_values, self.old_values = self.new.values, self.old.values

    def covariance(self) -> Numbers:
        """Return the covariance of the two models' shares in each group."""
        return (self._both / self.counts - self.new_values * self.old_values) / self.counts

    def _intervals(self, confidence: float) -> list[tuple[Numbers, Numbers, Numbers]]:
        difference = self._bound_difference(self._new_only, self._old_only, confidence)
        # A sum is one plus the difference from the opposite of the old answer.
        total = self._bound_difference(self._both, self._neither, confidence)
        return [
            (self.new_values, *self.new.interval(confidence)),
            (self.old_values, *self.old.interval(confidence)),
            difference,
            (1 + total[0], 1 + total[1], 1 + total[2]),
        ]

    def _bound_difference(self, gained: Numbers, lost: Numbers, confidence: float) -> tuple[Numbers, Numbers, Numbers]:
        """Bonett and Price, with z^2 / 4 rows added to each side: their 1, for 95 %."""
        z = _critical(confidence)
        added = z * z / 4
        rows = self.counts + 2 * added
        first, second = (gained + added) / rows, (lost + added) / rows
        half = z * np.sqrt((first + second - (first - second) ** 2) / rows)
        centre = first - second
        return (gained - lost) / self.counts, np.maximum(centre - half, -1.0), np.minimum(centre + half, 1.0)


class PairedMeans(_Paired):
    """Two models' means on the same rows; arguments as for `Means`, with at least 2 rows a group."""

    def __init__(
        self,
        new: Numbers,
        old: Numbers,
        codes: Places,
        groups: int,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        low, high = bounds if bounds is not None else (-np.inf, np.inf)
        ends = [(low, high), (low, high), (low - high, high - low), (2 * low, 2 * high)]
        self._parts = [
            Means(first * new + second * old, codes, groups, None if bounds is None else end)
            for (first, second), end in zip(_COMBINED, ends, strict=True)
        ]
        self.new, self.old = self._parts[0], self._parts[1]
        self.counts = self.new.counts
        if (self.counts < 2).any():
            raise UsageError("PairedMeans", "a group of one row", "at least 2 rows are needed", "leave such groups out")
        self.new_values, self.old_values = self.new.values, self.old.values

    def _intervals(self, confidence: float) -> list[tuple[Numbers, Numbers, Numbers]]:
        return [(part.values, *part.interval(confidence)) for part in self._parts]


class Resampled:
    """Estimates of groups that are not independent of each other, with the covariance of bootstrap resamples.

    Args:
        values: Shape (groups,).
        replicates: Shape (resamples, groups).
        units: Number of units that were resampled.
    """

    def __init__(self, values: Numbers, replicates: Numbers, units: int) -> None:
        self._values, self._replicates, self._units = values, replicates, units
        self._covariance = np.atleast_2d(np.cov(replicates, rowvar=False))

    @property
    def values(self) -> Numbers:
        """Shape (groups,)."""
        return self._values

    def interval(self, confidence: float) -> tuple[Numbers, Numbers]:
        """Return percentiles of the resamples."""
        low, high = np.quantile(self._replicates, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
        return np.asarray(low), np.asarray(high)

    def bound(self, left: Places, right: Places, confidence: float) -> tuple[Numbers, Numbers]:
        """See `GroupEstimates`."""
        error = np.sqrt(np.maximum(_vary(self._covariance, left, right), 0.0))
        half = special.stdtrit(max(self._units - 1, 1), 0.5 + confidence / 2) * error
        value = self._values[left] - self._values[right]
        return value - half, value + half


class PairedResampled:
    """Two models' estimates, resampled together.

    Args:
        new: Shape (groups,).
        old: Shape (groups,).
        replicates: Shape (resamples, 2 x groups): those of the new model, then those of the old one.
        units: Number of units that were resampled.
    """

    def __init__(self, new: Numbers, old: Numbers, replicates: Numbers, units: int) -> None:
        self.new_values, self.old_values, self._units = new, old, units
        self._covariance = np.atleast_2d(np.cov(replicates, rowvar=False))

    def bound(
        self, new: tuple[int, int], old_left: Places, old_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """See `PairedEstimates`."""
        groups = len(self.new_values)
        values = _subtract(self.new_values, new) - (self.old_values[old_left] - self.old_values[old_right])
        return self._bound(values, new, groups + old_left, groups + old_right, confidence)

    def bound_reversed(
        self, old: tuple[int, int], new_left: Places, new_right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """See `PairedEstimates`."""
        groups = len(self.new_values)
        values = self.new_values[new_left] - self.new_values[new_right] - _subtract(self.old_values, old)
        return self._bound(values, (groups + old[0], groups + old[1]), new_left, new_right, confidence)

    def _bound(
        self, values: Numbers, fixed: tuple[int, int], left: Places, right: Places, confidence: float
    ) -> tuple[Numbers, Numbers]:
        """Bound the difference of a fixed pair and each of some others, in either order: both vary alike."""
        with_fixed = self._covariance[fixed[0]] - self._covariance[fixed[1]]
        one = _vary(self._covariance, np.array(fixed[:1]), np.array(fixed[1:]))[0]
        variance = one + _vary(self._covariance, left, right) - 2 * (with_fixed[left] - with_fixed[right])
        error = np.sqrt(np.maximum(variance, 0.0))
        half = special.stdtrit(max(self._units - 1, 1), 0.5 + confidence / 2) * error
        return values - half, values + half


def adjust_confidence(confidence: float, comparisons: int) -> float:
    """Return the confidence that each of some intervals needs, for all to hold together with the one that is given.

    >>> round(adjust_confidence(0.95, 6), 4)
    0.9915
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError("confidence", str(confidence), "a number between 0 and 1 is needed", "use 0.95")
    return float(confidence ** (1.0 / max(1, comparisons)))


def measure_gap(
    groups: GroupEstimates, confidence: float = 0.95, families: Sequence[Sequence[int]] | None = None
) -> Gap:
    """Measure the largest difference between two groups.

    Args:
        groups: The estimates.
        confidence: With which the interval holds the true gap; all pairs are taken into account.
        families: Places of the groups that are compared with each other; all of them by default. With two families,
            such as true and false positive rates, the gap is the larger one of theirs.

    >>> gap = measure_gap(Shares([30, 60], [100, 100]))
    >>> gap.pair, round(gap.value, 2), round(gap.low, 2), round(gap.high, 2)
    ((1, 0), 0.3, 0.16, 0.42)
    """
    left, right = _list_pairs(families or [range(len(groups.values))])
    if not len(left):
        return Gap(None)
    differences = groups.values[left] - groups.values[right]
    low, high = groups.bound(left, right, adjust_confidence(confidence, len(left) // 2))
    widest = int(np.argmax(differences))
    value = float(differences[widest])
    pair = (int(left[widest]), int(right[widest]))
    return Gap(value, min(max(0.0, float(low.max())), value), max(float(high.max()), value), pair)


def measure_rise(
    groups: PairedEstimates, confidence: float = 0.95, families: Sequence[Sequence[int]] | None = None
) -> Gap:
    """Measure by how much the gap of a new model is larger than that of an old one, on the same rows.

    Args:
        groups: Both models' estimates.
        confidence: Of the interval. Each end alone is wrong with at most the rest of it.
        families: As for `measure_gap`.

    >>> rise = measure_rise(PairedShares([30, 30], [0, 30], [0, 0], [70, 40]))
    >>> round(rise.value, 2), rise.pair, rise.low > 0.05
    (0.3, (1, 0), True)
    """
    left, right = _list_pairs(families or [range(len(groups.new_values))])
    if not len(left):
        return Gap(None)
    new = groups.new_values[left] - groups.new_values[right]
    old = groups.old_values[left] - groups.old_values[right]
    each = adjust_confidence(confidence, len(left) // 2)
    low = -np.inf
    for k in _find_widest(new):
        low = max(low, float(groups.bound((int(left[k]), int(right[k])), left, right, each)[0].min()))
    upper = np.full(len(left), np.inf)
    for k in _find_widest(old):
        upper = np.minimum(upper, groups.bound_reversed((int(left[k]), int(right[k])), left, right, each)[1])
    widest, before = int(np.argmax(new)), int(np.argmax(old))
    value = float(new[widest] - old[before])
    return Gap(
        value,
        min(low, value),
        max(float(upper.max()), value),
        (int(left[widest]), int(right[widest])),
        (int(left[before]), int(right[before])),
    )


def measure_ratio(groups: Shares, confidence: float = 0.95) -> Gap:
    """Measure the smallest ratio of two groups' shares: the lowest share divided by the highest.

    Args:
        groups: The shares.
        confidence: With which the interval holds the true ratio; all pairs are taken into account.

    Returns:
        The value is None with fewer than two groups, or where every share is 0. `pair` is the highest and the lowest.

    >>> ratio = measure_ratio(Shares([30, 60], [100, 100]))
    >>> ratio.value, round(ratio.low, 2), round(ratio.high, 2)
    (0.5, 0.35, 0.7)
    """
    left, right = _list_pairs([range(len(groups.values))])
    if not len(left) or not groups.successes.any():
        return Gap(None)
    value, low, high = _bound_ratios(groups, left, right, adjust_confidence(confidence, len(left) // 2))
    smallest = int(np.argmin(value))
    pair = (int(right[smallest]), int(left[smallest]))
    return Gap(float(value[smallest]), float(low.min()), min(float(high.min()), 1.0), pair)


def measure_ratio_fall(groups: PairedShares, confidence: float = 0.95) -> Gap:
    """Measure by how much the ratio of a new model is smaller than that of an old one, on the same rows.

    Args:
        groups: Both models' shares.
        confidence: As for `measure_rise`.

    Returns:
        Positive where the ratio has fallen. The value is None with fewer than two groups, or where all shares of a
        model are 0.

    >>> fall = measure_ratio_fall(PairedShares([150, 150], [0, 150], [0, 0], [350, 200]))
    >>> fall.value, fall.low > 0.1
    (0.5, True)
    """
    left, right = _list_pairs([range(len(groups.new_values))])
    if not len(left) or not groups.new.successes.any() or not groups.old.successes.any():
        return Gap(None)
    each = adjust_confidence(confidence, len(left) // 2)
    new, new_low, new_high = _bound_ratios(groups.new, left, right, each)
    old, old_low, old_high = _bound_ratios(groups.old, left, right, each)
    rows, columns = np.array(_find_widest(-new)), np.array(_find_widest(-old))
    every = np.arange(len(left))
    # A group without successes makes a ratio infinite; its lower end says all that is known of it.
    new, old = np.where(np.isinf(new), new_low, new), np.where(np.isinf(old), old_low, old)
    # Contrasts are old minus new; a lower end takes the lower one of the old ratio and the upper one of the new.
    one = _correlate_ratios(groups, left, right, rows, every)
    below = _join((old - old_low)[None, :], (new_high - new)[rows][:, None], one)
    low = float((old[None, :] - new[rows][:, None] - below).min(axis=1).max())
    two = _correlate_ratios(groups, left, right, every, columns)
    above = _join((old_high - old)[columns][None, :], (new - new_low)[:, None], two)
    high = float((old[columns][None, :] - new[:, None] + above).min(axis=1).max())
    smallest, before = int(np.argmin(new)), int(np.argmin(old))
    value = float(old[before] - new[smallest])
    return Gap(
        value,
        min(max(low, -1.0), value),
        max(min(high, 1.0), value),
        (int(right[smallest]), int(left[smallest])),
        (int(right[before]), int(left[before])),
    )


def _bound_ratios(groups: Shares, left: Places, right: Places, confidence: float) -> tuple[Numbers, Numbers, Numbers]:
    """Return each ratio of left to right and its ends, infinite where the right share, or its lower end, is 0."""
    share = groups.values
    low, high = groups.interval(confidence)
    p, q, product = share[left], share[right], share[left] * share[right]
    # The form without a difference in the numerator, which would lose all digits near 0.
    under = low[left] * (2 * p - low[left])
    over = high[left] * (2 * p - high[left])
    floor = low[right] * (2 * q - low[right])
    ceiling = high[right] * (2 * q - high[right])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(q > 0, p / q, np.where(p > 0, np.inf, 1.0))
        smallest = np.where(under > 0, under / (product + np.sqrt(np.maximum(product**2 - under * ceiling, 0.0))), 0.0)
        largest = np.where(floor > 0, (product + np.sqrt(np.maximum(product**2 - over * floor, 0.0))) / floor, np.inf)
    return np.asarray(value), np.asarray(smallest), np.asarray(largest)


def _correlate_ratios(groups: PairedShares, left: Places, right: Places, new: Places, old: Places) -> Numbers:
    """Return the correlation of some of the new model's ratios with some of the old one's, by the delta method."""
    half = 0.5 / groups.counts
    first, second = groups.new_values + half, groups.old_values + half
    signs = _sign(len(first), left, right)
    variance_new = np.sqrt(signs[new] ** 2 @ ((1 - groups.new_values + half) / first / groups.counts))
    variance_old = np.sqrt(signs[old] ** 2 @ ((1 - groups.old_values + half) / second / groups.counts))
    covariance = (signs[new] * (groups.covariance() / first / second)) @ signs[old].T
    return np.asarray(np.clip(covariance / variance_new[:, None] / variance_old[None, :], -1.0, 1.0))


def _join(first: Numbers, second: Numbers, correlation: Numbers) -> Numbers:
    """Distance to the end of a difference of two correlated parts."""
    infinite = np.isinf(first) | np.isinf(second)
    a, b = np.where(np.isinf(first), 0.0, first), np.where(np.isinf(second), 0.0, second)
    squares = np.maximum(a**2 + b**2 - 2 * correlation * a * b, 0.0)
    return np.asarray(np.where(infinite, np.inf, np.sqrt(squares)))


def _combine(values: Numbers, ends: tuple[Numbers, Numbers], left: Places, right: Places) -> tuple[Numbers, Numbers]:
    """Intervals of differences from those of each part: Newcombe's square and add."""
    down, up = values - ends[0], ends[1] - values
    difference = values[left] - values[right]
    return difference - np.hypot(down[left], up[right]), difference + np.hypot(up[left], down[right])


def _subtract(values: Numbers, pair: tuple[int, int]) -> float:
    return float(values[pair[0]] - values[pair[1]])


def _sum_squares(table: Numbers, signs: Places, plus: Places, minus: Places) -> Numbers:
    """Sum a table of squares over groups, by the fixed model's signs and those of the other model's pairs.

    Args:
        table: Shape (3, 3, groups), by the fixed model's sign and the other one's, each plus 1.
        signs: Shape (groups,), of the fixed model.
        plus: Shape (pairs,): the group that the other model's estimate is added of.
        minus: Shape (pairs,): the group that it is subtracted of.
    """
    chosen = table[signs + 1, :, np.arange(len(signs))]
    alone = chosen[:, 1]
    # Rounding must not make a sum of squares negative.
    squares = alone.sum() + (chosen[:, 2] - alone)[plus] + (chosen[:, 0] - alone)[minus]
    return np.asarray(np.maximum(squares, 0.0))


def _vary(covariance: Numbers, left: Places, right: Places) -> Numbers:
    """Return the variance of each left estimate minus its right one."""
    own = np.diag(covariance)
    return np.asarray(own[left] + own[right] - 2 * covariance[left, right])


def _find_widest(differences: Numbers) -> list[int]:
    return [int(place) for place in np.argsort(-differences, kind="stable")[:_WIDEST]]


def _list_pairs(families: Sequence[Sequence[int]]) -> tuple[Places, Places]:
    """Return all ordered pairs of places inside each family."""
    left, right = [], []
    for family in families:
        places = np.asarray(list(family), dtype=np.int64)
        first, second = np.nonzero(~np.eye(len(places), dtype=bool))
        left.append(places[first])
        right.append(places[second])
    return np.concatenate([*left, np.zeros(0, np.int64)]), np.concatenate([*right, np.zeros(0, np.int64)])


def _sign(groups: int, left: Places, right: Places) -> Places:
    """Return 1 for the left, -1 for the right and 0 for every other group, shape (pairs, groups)."""
    signs = np.zeros((len(left), groups), dtype=np.int64)
    signs[np.arange(len(left)), left] = 1
    signs[np.arange(len(left)), right] = -1
    return signs


def _sign_one(groups: int, pair: tuple[int, int]) -> Places:
    signs = np.zeros(groups, dtype=np.int64)
    signs[pair[0]], signs[pair[1]] = 1, -1
    return signs


def _critical(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))
