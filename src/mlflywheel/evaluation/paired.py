"""How much worse one model is than another on the same rows, with an interval that rare large losses do not slip past.

A new version is mostly as good as the one before on almost every row, and much worse on a few. That is what an ordinary
interval of a mean handles worst: where one row in a hundred loses a lot and the rest nothing, Student's misses the true
loss in one of eight samples of 50 rows, and in one of eleven of 200, always on the harmless side. So the ends here are

- of metrics with bounds: the normal interval after z * z rows (four, at 95 %) have been added, half at the largest
  possible gain and half at the largest possible loss. This is what Agresti and Coull do to a share, on the scale of a
  difference; it says something even where no row differs, and its cost fades with 4 / rows.
- of metrics without: Student's, or where it is wider, the interval that Hall corrects for skewness.

How often each misses was simulated (`benchmarks/evaluation/champion.py`). Where the metric has no bounds, nothing can
be known about losses so rare that no row shows one.

Sources: A. Agresti and B. A. Coull, "Approximate is better than exact for interval estimation of binomial proportions",
American Statistician 52 (1998); A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched
proportions", Statistics in Medicine 24 (2005); P. Hall, "On the removal of skewness by transformation", Journal of the
Royal Statistical Society B 54 (1992).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mlflywheel.errors import UsageError
from mlflywheel.statistics.intervals import Interval

# A third moment below this share of the cubed deviation is rounding, and Hall's formula divides by it.
_LEAST_SKEWNESS = 1e-6


def estimate_loss(losses: ArrayLike, span: float | None = None, *, confidence: float = 0.95) -> Interval:
    """Estimate the mean of paired losses of independent rows.

    Args:
        losses: Shape (rows,): the new model's error minus the other's, positive where it is worse. NaN marks a row that
            cannot be compared; it is left out.
        span: The largest loss that one row can have, which is also the largest gain; None if there is none.
        confidence: Nominal coverage, between 0 and 1.

    Returns:
        The mean loss with its interval; ends are None with fewer than two rows, and where a loss is infinite.

    Raises:
        UsageError: Not one loss a row, a loss beyond the span, or the confidence is out of range.

    >>> found = estimate_loss([0.0] * 98 + [1.0, 1.0], span=1.0)
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.02, -0.026, 0.065)
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError("confidence", str(confidence), "a number between 0 and 1 is needed", "use 0.95")
    rows = np.asarray(losses, dtype=np.float64)
    if rows.ndim != 1:
        raise UsageError("losses", f"shape {rows.shape}", "one loss a row is needed", "pass one column")
    rows = rows[~np.isnan(rows)]
    count = len(rows)
    if not count:
        return Interval(None, None, None, 0)
    if not np.isfinite(rows).all():
        with np.errstate(invalid="ignore"):
            return Interval(float(rows.mean()), None, None, count)
    largest = float(np.abs(rows).max())
    if span is not None and (not span > 0 or largest > span * (1 + 1e-9)):
        raise UsageError(
            "losses",
            f"one of {largest:g}, span {span:g}",
            "no row can lose more than the span of the metric's bounds",
            "correct the metric's bounds",
        )
    mean = float(rows.mean())
    if count < 2:
        return Interval(mean, None, None, count)
    if span is not None:
        low, high = _add_extremes(rows, mean, span, confidence)
        return Interval(mean, max(min(low, mean), -span), min(max(high, mean), span), count)
    low, high = _student(rows, mean, confidence)
    skewed_low, skewed_high = _correct_skewness(rows, mean, confidence)
    return Interval(mean, min(low, skewed_low), max(high, skewed_high), count)


def required_rows(
    margin: float, deviation: float, span: float | None = None, *, power: float = 0.9, confidence: float = 0.95
) -> int:
    """Return how many rows a non-inferiority gate needs, to let a model pass that is exactly as good.

    The gate is `judge: interval` with `at_most` the margin. With fewer rows it refuses equal models more often than one
    in ten, for want of evidence and not for a loss.

    Args:
        margin: The loss that is tolerated, above 0, in the metric's units.
        deviation: Standard deviation of the rows' paired losses, in the same units: of an interval that was measured
            before on `n` rows, at most `(high - low) / 3.92 * sqrt(n)`.
        span: As for `estimate_loss`: a metric with bounds needs some rows even where the models hardly differ.
        power: Share of equal models that shall pass, from 0.5 to below 1.
        confidence: Of the gate's interval.

    Raises:
        UsageError: An argument is out of range.

    Source: S.-C. Chow, J. Shao and H. Wang, Sample Size Calculations in Clinical Research (2nd ed. 2008), section 3.1.

    >>> required_rows(margin=0.005, deviation=0.05)
    1051
    >>> required_rows(margin=0.03, deviation=0.0, span=1.0)
    125
    """
    if not (margin > 0 and deviation >= 0 and 0.5 <= power < 1 and 0 < confidence < 1 and math.isfinite(margin)):
        raise UsageError(
            "required_rows",
            f"margin {margin}, deviation {deviation}, power {power}, confidence {confidence}",
            "a margin above 0, a deviation of at least 0 and shares below 1 are needed",
            "take the deviation of the losses that were measured, and the gate's margin",
        )
    z, above = float(special.ndtri(0.5 + confidence / 2)), float(special.ndtri(power))
    extremes = 0.0 if span is None else (z * span) ** 2
    # The smallest n at which half an interval, plus the chance that the mean lies high, is no more than the margin.
    low, high = 1.0, 4.0
    while _half(high, z, extremes, deviation) + above * deviation / math.sqrt(high) > margin:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        beyond = _half(middle, z, extremes, deviation) + above * deviation / math.sqrt(middle) > margin
        low, high = (middle, high) if beyond else (low, middle)
    return max(2, math.ceil(low))


def _half(rows: float, z: float, extremes: float, deviation: float) -> float:
    total = rows + (z * z if extremes else 0.0)
    return z * math.sqrt(rows * deviation * deviation + extremes) / total


def _student(rows: NDArray[np.float64], mean: float, confidence: float) -> tuple[float, float]:
    count = len(rows)
    half = float(special.stdtrit(count - 1, 0.5 + confidence / 2) * rows.std(ddof=1) / math.sqrt(count))
    return mean - half, mean + half


def _add_extremes(rows: NDArray[np.float64], mean: float, span: float, confidence: float) -> tuple[float, float]:
    z = float(special.ndtri(0.5 + confidence / 2))
    total = len(rows) + z * z
    centre = mean * len(rows) / total
    variance = (float(rows @ rows) + z * z * span * span) / total - centre * centre
    half = z * math.sqrt(max(variance, 0.0) / total)
    return centre - half, centre + half


def _correct_skewness(rows: NDArray[np.float64], mean: float, confidence: float) -> tuple[float, float]:
    """Invert Hall's monotone transformation of the studentised mean at the ends of Student's distribution."""
    count = len(rows)
    deviations = rows - mean
    deviation = math.sqrt(float(deviations @ deviations) / (count - 1))
    # Rows that are equal but for rounding have no skewness.
    if deviation <= 1e-12 * max(abs(mean), float(np.abs(rows).max())):
        return mean, mean
    skewness = float(np.mean((deviations / deviation) ** 3))
    if abs(skewness) < _LEAST_SKEWNESS:
        return _student(rows, mean, confidence)
    root = math.sqrt(count)
    t = float(special.stdtrit(count - 1, 0.5 + confidence / 2))
    ends = []
    for end in (t, -t):
        inside = 1.0 + skewness * (end / root - skewness / (6 * count))
        moved = 3.0 * root / skewness * (math.cbrt(inside) - 1.0)
        ends.append(mean - deviation / root * moved)
    return ends[0], ends[1]
