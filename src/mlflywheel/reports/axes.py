"""Axes with ticks at round numbers, for the charts that have any."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.reports.formats import is_number

_MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_FEWEST_FOR_OUTLIERS = 8


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers.

    Args:
        low: Its lower end; above 0 if it is logarithmic.
        high: Its upper end, above the lower one.
        log: Whether equal ratios are at equal distances.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[Any], *, log: bool = False, margin: float = 0.0) -> "Axis":
        """Span the finite ones among the values; a logarithmic axis needs them all above 0, and is linear otherwise.

        Args:
            values: Values; what is no finite number is ignored.
            log: Whether the axis is to be logarithmic.
            margin: Room at both ends, as a share of the length.
        """
        finite = [float(value) for value in values if is_number(value)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        log = log and low > 0
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            reach = 0.5 if log else 0.5 * abs(low) or 0.5
            low, high = low - reach, high + reach
        low, high = low - margin * (high - low), high + margin * (high - low)
        return cls(10**low, 10**high, True) if log else cls(low, high)

    def at(self, value: float) -> float:
        """Return where a value lies, from 0 at the lower end to 1 at the upper one; what lies outside is at the end."""
        if self.log:
            value = max(value, self.low)
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)

    def ticks(self, most: int, *, whole: bool = False) -> list[tuple[float, str]]:
        """Return round values on the axis with their labels, in rising order.

        Args:
            most: About how many there may be, two or more.
            whole: Whether only whole numbers make sense.

        >>> Axis(0.0, 1.0).ticks(5)
        [(0.0, '0.0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1.0')]
        >>> [label for _, label in Axis(1e-5, 1e-1, True).ticks(5)]
        ['10⁻⁵', '10⁻⁴', '0.001', '0.01', '0.1']
        """
        if self.log:
            found = self._log_ticks(most)
            if len(found) > 1:
                return found
        step = _round_step((self.high - self.low) / most)
        if whole:
            step = max(1.0, math.ceil(step))
        slack = 1e-9 * (self.high - self.low)
        first, last = math.ceil((self.low - slack) / step), math.floor((self.high + slack) / step)
        values = [index * step for index in range(first, last + 1)]
        return list(zip(_clean(values), _labels(values, step), strict=True))

    def _log_ticks(self, most: int) -> list[tuple[float, str]]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        decades = last - first + 1
        if decades < 3:
            factors: Sequence[int] = (1, 2, 5) if math.log10(self.high / self.low) < 2 else (1, 3)
            values = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in factors]
            values = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        else:
            values = [10.0**power for power in range(first, last + 1, math.ceil(decades / most))]
        return [(value, write_tick(value)) for value in values]


def write_tick(value: float) -> str:
    """Write a number as short as it can be read: up to four digits, and far ones as a power of ten.

    >>> [write_tick(v) for v in (0.00003, 1e-4, 0.25, 12345.6, 2e7)]
    ['3·10⁻⁵', '10⁻⁴', '0.25', '12,346', '2·10⁷']
    """
    size = abs(value)
    sign = _MINUS if value < 0 else ""
    if size == 0 or 1e-3 <= size < 1e5:
        rounded = float(f"{size:.4g}") if size < 1e4 else float(round(size))
        return sign + f"{rounded:,.10f}".rstrip("0").rstrip(".")
    mantissa, _, exponent = f"{size:.2e}".partition("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".")
    return sign + (power if mantissa == "1" else f"{mantissa}·{power}")


def choose_range(values: Iterable[Any], keep: Iterable[Any] = ()) -> tuple[float, float]:
    """Return the ends of an axis on which a few values far from all others do not press those into a line.

    With eight values or more, one that is further from the middle 80 % than five times what that is wide is left out.

    Args:
        values: Values to be drawn.
        keep: Values that must be inside whatever they are.

    >>> choose_range([0.1, 0.2, 0.15, 0.12, 0.17, 0.14, 0.13, 0.16, 0.11, 5e6])
    (0.1, 0.2)
    """
    finite = sorted(float(value) for value in values if is_number(value))
    kept = [float(value) for value in keep if is_number(value)]
    if len(finite) >= _FEWEST_FOR_OUTLIERS:
        cut = math.ceil(len(finite) / 10)
        low, high = finite[cut], finite[-1 - cut]
        if high > low:
            reach = 5 * (high - low)
            finite = [value for value in finite if low - reach <= value <= high + reach]
    found = finite + kept
    return min(found, default=0.0), max(found, default=1.0)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below a length."""
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if factor * power >= least * (1 - 1e-9):
            return factor * power
    return 10 * power


def _clean(values: Sequence[float]) -> list[float]:
    """Take off what adding up steps left behind the fourteenth digit."""
    return [float(f"{value:.14g}") + 0.0 for value in values]


def _labels(values: Sequence[float], step: float) -> list[str]:
    """Write ticks with the same decimals, as many as their distance needs."""
    largest = max((abs(value) for value in values), default=0.0)
    short = [write_tick(value) for value in _clean(values)]
    if (largest >= 1e5 or step < 1e-4) and len(set(short)) == len(short):
        return short
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return [f"{value:,.{decimals}f}".replace("-", _MINUS) for value in _clean(values)]
