"""Numbers, times and names as a reader wants them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

NOTHING = "\N{EN DASH}"
"""Stands for a value that is not there."""

_MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_ACRONYMS = {
    "npmi",
    "svd",
    "lsa",
    "lda",
    "bm25",
    "idf",
    "auc",
    "rmse",
    "mae",
    "mape",
    "wape",
    "id",
    "uri",
    "cpu",
    "mrr",
}
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether a value is a finite number; truth values are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: Any, decimals: int | None = None) -> str:
    """Format a number with about three significant digits, or with the decimals asked for.

    Whole numbers from 10 on, and every `int`, are written in full: a count stays a count.

    >>> [format_number(v) for v in (0.91234, 1.0, 12.345, 812.0, 143120)]
    ['0.912', '1.00', '12.3', '812', '143,120']
    >>> format_number(None) == NOTHING
    True
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    size = abs(value)
    if decimals is not None:
        written = f"{value:,.{decimals}f}"
    elif isinstance(value, int) or value == 0 or (size >= 10 and value == int(value) and size < 1e15):
        written = f"{int(value):,}"
    elif size < 1e-3 or size >= 1e9:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        written = f"{mantissa} {_TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    elif size < 1:
        written = f"{value:.{3 if size >= 0.01 else 4}f}"
    else:
        written = f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return written.replace("-", _MINUS, 1) if written.startswith("-") else written


def format_pair(value: float, limit: float) -> tuple[str, str]:
    """Format a value and its limit with as many digits as it takes to tell them apart.

    >>> format_pair(0.84996, 0.85)
    ('0.84996', '0.85000')
    """
    short = format_number(value), format_number(limit)
    if short[0] != short[1] or value == limit:
        return short
    for decimals in range(1, 16):
        longer = format_number(value, decimals), format_number(limit, decimals)
        if longer[0] != longer[1]:
            return longer
    return repr(value), repr(limit)


def shared_decimals(values: Iterable[Any]) -> int | None:
    """Choose decimals for a column, so that its numbers line up; None where one of them would lose its digits.

    >>> [shared_decimals(values) for values in ([0.912, 0.8], [12.5, 3.25], [3, 4], [90.5, 0.0001])]
    [3, 1, 0, None]
    """
    sizes = [abs(value) for value in values if is_number(value)]
    if all(size == int(size) for size in sizes):
        return 0
    largest = max(sizes)
    decimals = 3 if largest <= 1 else max(0, 2 - math.floor(math.log10(largest)))
    if any(0 < size < 0.5 * 10**-decimals for size in sizes):
        return None
    return decimals


def format_share(value: Any) -> str:
    r"""Format a share between 0 and 1 as a percentage.

    >>> [format_share(v).replace("\N{NO-BREAK SPACE}", " ") for v in (0.1234, 0.00021, 1, 0)]
    ['12.3 %', '0.02 %', '100 %', '0 %']
    """
    if not is_number(value):
        return format_number(value)
    percent = 100 * float(value)
    if percent in (0, 100):
        return f"{percent:.0f}\N{NO-BREAK SPACE}%"
    decimals = 1 if abs(percent) >= 0.1 else 2
    return format_number(percent, decimals) + "\N{NO-BREAK SPACE}%"


def format_seconds(seconds: Any) -> str:
    r"""Format a duration.

    >>> [format_seconds(s).replace("\N{NO-BREAK SPACE}", " ") for s in (0.0042, 0.42, 12.34, 75, 3720)]
    ['4 ms', '0.42 s', '12.3 s', '1 min 15 s', '1 h 2 min']
    """
    if not is_number(seconds):
        return NOTHING
    gap = "\N{NO-BREAK SPACE}"
    if seconds < 0.1:
        return f"{1000 * seconds:.0f}{gap}ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f}{gap}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{gap}min {whole % 60}{gap}s"
    return f"{whole // 3600}{gap}h {whole % 3600 // 60}{gap}min"


def humanize(name: str) -> str:
    """Turn a metric's or a parameter's name into words.

    >>> humanize("neighbour_purity_at_10"), humanize("topic_npmi")
    ('Neighbour purity at 10', 'Topic NPMI')
    """
    words = [word.upper() if word.lower() in _ACRONYMS else word for word in name.replace("-", "_").split("_") if word]
    joined = " ".join(words) or name
    return joined[:1].upper() + joined[1:]


def plural(count: int, noun: str) -> str:
    """Count a noun.

    >>> plural(1, "rule"), plural(1200, "rule")
    ('1 rule', '1,200 rules')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shorten_hash(digest: str) -> str:
    """Show the first 12 hexadecimal digits of a hash.

    >>> shorten_hash("sha256:0123456789abcdef0123")
    'sha256:0123456789ab…'
    """
    kind, colon, hexadecimal = digest.partition(":")
    if not colon:
        kind, hexadecimal = "", digest
    return f"{kind}{colon}{hexadecimal[:12]}…" if len(hexadecimal) > 14 else digest


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested mappings as one, with dots between the names.

    >>> flatten({"params": {"topics": 50}, "seed": 7})
    {'params.topics': 50, 'seed': 7}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
