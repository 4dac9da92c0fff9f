"""A slow decline over registered versions, which no single step shows.

Each version may be a little worse than the one before, within the margin of every gate, and the tenth is far worse than
the first. What is asked here is whether a metric falls over a window of versions: by how much (the slope of Theil and
Sen, times the steps), and whether chance makes such a row of values (the test of Mann and Kendall, exact). Neither asks
how the values are distributed, and one odd version decides nothing.

The versions were measured on the data of their time. So a trend is not a paired comparison: rows that became harder
look like a model that became worse, and rows that are measured again and again make neighbouring values alike, which
raises false alarms (`benchmarks/evaluation/champion.py` has the figures). It is a reason to look, and the comparison of
this model with an old version on the same rows tells which it is.

Sources: H. B. Mann, "Nonparametric tests against trend", Econometrica 13 (1945); M. G. Kendall, Rank Correlation
Methods (4th ed. 1975); P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968), for
the interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflywheel.errors import UsageError
from mlflywheel.models.contract import Evaluation, Measurement, Section

#: With fewer points, even a row that only falls is made by chance more often than once in 20.
LEAST_POINTS = 4
# Beyond it the normal approximation is off by less than 0.001, and the exact counts take long.
_MOST_EXACT = 60
_TAIL = 0.025
# Four points in falling order have a probability of 1 / 24, and nothing less is to be had of four.
_TAIL_OF_FOUR = 0.05


@dataclass(frozen=True)
class Decline:
    """How much a row of values rises, taken as a decline.

    Args:
        total: The slope times the steps from the first to the last value.
        low: Lower end of its interval: 95 %, and 92 % of four values, of which there is no other.
        high: Upper end.
        p_value: Probability that chance alone orders values without a trend at least as much; one-sided.
        count: Number of values.
    """

    total: float
    low: float
    high: float
    p_value: float
    count: int


def measure_trend(
    history: Sequence[Mapping[str, float]],
    current: Mapping[str, float],
    metrics: Mapping[str, Literal["lower", "higher"]],
    window: int,
) -> Evaluation:
    """Measure how much each metric has declined over the last versions and the new model.

    A gate `{metric: trend_decline_<metric>, at_most: 0, judge: whole_interval, when_missing: skip}` refuses what is
    shown to decline: at most 1 of 24 rows of four values without a trend, and 1 of 40 longer ones, where the values are
    independent. With a limit above 0 it tolerates a decline of that size over the window.

    Args:
        history: Metrics of the registered versions, oldest first; one that lacks a metric is left out of its trend, and
            keeps its place.
        current: Metrics of the new model.
        metrics: The metrics to look at, and which of their values are the better ones.
        window: How many of the last versions are looked at beside the new model. With fewer than four points there is
            no value, but a note.

    Returns:
        `trend_decline_<metric>`, positive = worse, in the metric's units, with an interval and the one-sided p-value in
        the note; and the metrics over the versions, as lines.

    Raises:
        UsageError: The window is negative.

    >>> history = [{"recall": value} for value in (0.80, 0.79, 0.79, 0.77, 0.76)]
    >>> found, = measure_trend(history, {"recall": 0.75}, {"recall": "higher"}, 10).measurements
    >>> round(found.value, 3), found.low > 0
    (0.05, True)
    """
    if window < 0:
        raise UsageError("trend_versions", str(window), "at least 0 is needed", "write 0 to look at no trend")
    versions = [*(history[-window:] if window else []), current]
    first = len(history) - len(versions) + 2
    measurements, shown = [], []
    for metric, better in metrics.items():
        places = [place for place, of in enumerate(versions) if _is_known(of.get(metric))]
        values = [float(versions[place][metric]) for place in places]
        name = f"trend_decline_{metric}"
        if len(values) < LEAST_POINTS or not _is_known(current.get(metric)):
            measurements.append(
                Measurement(name, None, count=len(values), note=_explain_missing(metric, len(values), current))
            )
            continue
        found = estimate_decline(values if better == "lower" else [-value for value in values], places)
        note = (
            f"{len(values)} versions, from {values[0]:.4g} to {values[-1]:.4g}; one-sided p {found.p_value:.3g}; each "
            "version was measured on the data of its time, so not on the same rows"
        )
        measurements.append(Measurement(name, found.total, "all", found.count, found.low, found.high, note))
        shown.append(
            (metric, better, [[first + place, value] for place, value in zip(places, values, strict=True)], found)
        )
    return Evaluation(tuple(measurements), tuple(_show(*one) for one in shown))


def estimate_decline(values: ArrayLike, places: ArrayLike | None = None) -> Decline:
    """Estimate by how much values rise from the first to the last, and how surely.

    Args:
        values: Shape (n,), n at least 4, finite; larger is worse.
        places: Shape (n,), rising: where the values stand; 0, 1, 2, ... if None.

    Returns:
        The rise with Sen's interval, which lies above 0 exactly where the test refuses chance. Equal values make both
        cautious: a pair of them counts as no rise for the interval, and as half a one for the p-value.

    Raises:
        UsageError: Fewer than four values, one that is not finite, or places that do not rise.

    >>> found = estimate_decline([1.0, 2.0, 3.0, 4.0])
    >>> found.total, round(found.p_value, 4)
    (3.0, 0.0417)
    """
    rows = np.asarray(values, dtype=np.float64)
    at = np.arange(len(rows), dtype=np.float64) if places is None else np.asarray(places, dtype=np.float64)
    if rows.ndim != 1 or at.shape != rows.shape or len(rows) < LEAST_POINTS or not np.isfinite(rows).all():
        raise UsageError(
            "trend",
            f"values of shape {rows.shape}, places of shape {at.shape}",
            f"at least {LEAST_POINTS} finite values are needed, each with its place",
            "wait for more versions",
        )
    if not (np.diff(at) > 0).all():
        raise UsageError("trend", "places that do not rise", "one value a place is needed", "sort the versions by age")
    early, late = np.triu_indices(len(rows), 1)
    slopes = np.sort((rows[late] - rows[early]) / (at[late] - at[early]))
    steps = float(at[-1] - at[0])
    falling = float((slopes < 0).sum() + (slopes == 0).sum() / 2)
    cut = _find_cut(len(rows), _TAIL_OF_FOUR if len(rows) == LEAST_POINTS else _TAIL)
    low, high = slopes[cut], slopes[len(slopes) - 1 - cut]
    total = float(np.median(slopes)) * steps
    return Decline(total, float(low) * steps, float(high) * steps, _find_p_value(len(rows), falling), len(rows))


@cache
def _count_inversions(count: int) -> NDArray[np.float64]:
    """Return the probability of at most k pairs in falling order, of values in random order, for every k."""
    shares = np.ones(1)
    for size in range(2, count + 1):
        shares = np.convolve(shares, np.full(size, 1.0 / size))
    return np.minimum(np.cumsum(shares), 1.0)


def _find_cut(count: int, tail: float) -> int:
    """Return the largest number of pairs in falling order that random order falls to in at most `tail` of all cases."""
    if count <= _MOST_EXACT:
        return int(np.searchsorted(_count_inversions(count), tail * (1 + 1e-9), side="right")) - 1
    from scipy.special import ndtri

    mean, deviation = _describe_inversions(count)
    return math.floor(mean + float(ndtri(tail)) * deviation - 0.5)


def _find_p_value(count: int, falling: float) -> float:
    """Return the probability of at most so many falling pairs; half a pair is rounded up, to the cautious side."""
    pairs = math.ceil(falling)
    if count <= _MOST_EXACT:
        return float(_count_inversions(count)[pairs])
    from scipy.special import ndtr

    mean, deviation = _describe_inversions(count)
    return float(ndtr((pairs + 0.5 - mean) / deviation))


def _describe_inversions(count: int) -> tuple[float, float]:
    """Return mean and standard deviation of the number of falling pairs in random order."""
    return count * (count - 1) / 4, math.sqrt(count * (count - 1) * (2 * count + 5) / 72)


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _explain_missing(metric: str, count: int, current: Mapping[str, float]) -> str:
    if not _is_known(current.get(metric)):
        return f"the new model has no {metric}"
    known = f"{count} version{'' if count == 1 else 's'} with {metric}"
    return f"{known}, {LEAST_POINTS} are needed to tell a decline from chance"


def _show(metric: str, better: str, points: list[list[float]], found: Decline) -> Section:
    spelled = metric.replace("_", " ")
    if found.low > 0:
        said = "It has become worse over these versions, more than chance explains"
    elif found.high < 0:
        said = "It has become better over these versions, more than chance explains"
    else:
        said = "What it does over these versions can be chance"
    text = (
        f"{spelled[:1].upper()}{spelled[1:]} of each version, {better} is better; the last point is this model. {said} "
        f"(p {found.p_value:.2g}). Each version was measured on the data of its time, so rows that became harder look "
        "the same as a model that became worse."
    )
    series = [
        {"name": spelled, "points": points, "style": "line", "tone": "quiet"},
        {"name": "this model", "points": points[-1:], "style": "dots", "tone": "accent"},
    ]
    data = {"series": series, "x_label": "registered versions, and this model", "y_label": spelled}
    return Section("lines", f"{spelled[:1].upper()}{spelled[1:]} over versions", text, data)
