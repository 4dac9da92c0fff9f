"""Conditions that slices are made of: values of text columns, and readable bands of number columns."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.evaluation.grouping import MISSING

#: Shares of the rows below the ends of number bands; closer at both ends, where models are weakest.
_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0)
#: A number column with at most this many values is divided into its values.
_FEW_VALUES = 10
#: Most frequent values of a text column that are conditions.
_MOST_VALUES = 30
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_dictionary)


@dataclass(frozen=True)
class Conditions:
    """The conditions on one column.

    Every row lies in one atom of the column; a condition holds in some of the atoms. So a count by atom is enough to
    know every condition's count, however many conditions there are.

    Args:
        column: Its name.
        atoms: int32 (rows,), the atom of each row.
        names: Each condition as text: `fuel=Electric`, `year 2015 or less`.
        holds: bool (conditions, atoms), in which atoms each condition holds.
    """

    column: str
    atoms: NDArray[np.int32]
    names: tuple[str, ...]
    holds: NDArray[np.bool_]

    def select(self, condition: int) -> NDArray[np.bool_]:
        """Return which rows a condition holds for, bool (rows,)."""
        return np.asarray(self.holds[condition][self.atoms])


def divide_columns(attributes: pa.Table, names: Iterable[str], minimum_count: int) -> list[Conditions]:
    """Find the conditions on columns.

    A text column (or one of truth values) has a condition for each value that is frequent enough, the 30 most frequent
    at most; a column of ids has none. A number column is cut at about its 5, 10, 20, 35, 50, 65, 80, 90 and 95 %
    quantiles, moved a little to round numbers: a condition for all up to each cut, all above it, and between two
    neighbours. A missing value is a value too; NaN and infinity are
    missing.

    Args:
        attributes: As in `RowScores`.
        names: The columns; those of another type, such as lists and times, are left out.
        minimum_count: Rows that a condition must hold for, and also must not hold for.

    Returns:
        The columns that have a condition, in the order of their names.

    >>> table = pa.table({"fuel": ["gas"] * 6 + ["electric"] * 4, "year": [2001, 2001, 2001] + [2010] * 7})
    >>> [found.names for found in divide_columns(table, ["fuel", "year"], 3)]
    [('fuel=gas', 'fuel=electric'), ('year=2001', 'year=2010')]
    """
    found = []
    for name in names:
        column = attributes[name].combine_chunks()
        is_number = any(is_kind(column.type) for is_kind in _NUMBERS)
        if not (is_number or any(is_kind(column.type) for is_kind in _TEXTS)):
            continue
        atoms, conditions = (_divide_numbers if is_number else _divide_texts)(name, column, minimum_count)
        kept = _keep(atoms, conditions, minimum_count)
        if kept:
            holds = np.array([inside for _, inside in kept])
            found.append(Conditions(name, atoms, tuple(text for text, _ in kept), holds))
    return found


_Named = tuple[str, NDArray[np.bool_]]


def _keep(atoms: NDArray[np.int32], conditions: Sequence[_Named], minimum_count: int) -> list[_Named]:
    """Leave out what holds for too few or nearly all rows, and what is another condition by another name."""
    if not len(atoms) or not conditions:
        return []
    counts = np.bincount(atoms, minlength=len(conditions[0][1]))
    kept: dict[bytes, _Named] = {}
    for name, inside in conditions:
        if minimum_count <= counts @ inside <= len(atoms) - minimum_count:
            kept.setdefault((inside & (counts > 0)).tobytes(), (name, inside))
    return list(kept.values())


def _divide_texts(name: str, column: pa.Array, minimum_count: int) -> tuple[NDArray[np.int32], list[_Named]]:
    encoded = column.cast(pa.string()).fill_null(MISSING).dictionary_encode()
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    frequent = [code for code in np.argsort(-counts, kind="stable")[:_MOST_VALUES] if counts[code] >= minimum_count]
    # The last atom pools all rare values: rows of any slice's rest, and never a slice.
    atom_of = np.full(len(counts), len(frequent), dtype=np.int32)
    atom_of[frequent] = np.arange(len(frequent))
    texts = [encoded.dictionary[int(code)].as_py() for code in frequent]
    width = len(frequent) + 1
    return atom_of[codes], [(f"{name}={text}", np.arange(width) == atom) for atom, text in enumerate(texts)]


def _divide_numbers(name: str, column: pa.Array, minimum_count: int) -> tuple[NDArray[np.int32], list[_Named]]:
    numbers = np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
    known = np.sort(numbers[np.isfinite(numbers)])
    ends = np.array(_find_ends(known, minimum_count))
    missing = len(ends) + 1
    atoms = np.where(np.isfinite(numbers), np.searchsorted(ends, numbers, side="left"), missing).astype(np.int32)
    return atoms, list(_name_bands(name, known, ends, missing + 1))


def _name_bands(
    name: str, known: NDArray[np.float64], ends: NDArray[np.float64], width: int
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield single values first, since the first name of equal conditions is kept."""
    at = np.arange(width)
    missing = width - 1
    starts = [0, *np.searchsorted(known, ends, side="right").tolist(), len(known)]
    for atom, (first, last) in enumerate(pairwise(starts)):
        if first < last and known[first] == known[last - 1]:
            yield f"{name}={_write(known[first])}", at == atom
    for atom, end in enumerate(ends):
        yield f"{name} {_write(end)} or less", at <= atom
        yield f"{name} above {_write(end)}", (at > atom) & (at < missing)
    for atom, (low, high) in enumerate(pairwise(ends), 1):
        yield f"{name} above {_write(low)} to {_write(high)}", at == atom
    yield f"{name}={MISSING}", at == missing


def _find_ends(known: NDArray[np.float64], minimum_count: int) -> list[float]:
    """Return where to cut, rising; every cut has values at or below it and above it."""
    values = np.unique(known)
    if len(values) <= _FEW_VALUES:
        return [float(value) for value in values[:-1]]
    ends = set()
    for before, level, after in zip(_LEVELS, _LEVELS[1:], _LEVELS[2:], strict=False):
        if min(level, 1 - level) * len(known) < minimum_count / 2:
            continue
        # A third of the way to the neighbouring level: bands keep most of their rows, and stay apart.
        window = (level - (level - before) / 3, level, level + (after - level) / 3)
        low, middle, high = (float(known[int(share * (len(known) - 1))]) for share in window)
        ends.add(_round_between(low, high, middle))
    return sorted(end for end in ends if known[0] <= end < known[-1])


def _round_between(low: float, high: float, near: float) -> float:
    """Return the roundest number from `low` to `high`, the one nearest to `near` of several.

    >>> _round_between(4713.0, 5204.0, 4980.0), _round_between(2014.0, 2016.0, 2014.0), _round_between(-0.31, 0.2, -0.1)
    (5000.0, 2015.0, 0.0)
    """
    if low >= high or not math.isfinite(high - low):
        return near
    if low <= 0.0 <= high:
        return 0.0
    largest = math.floor(math.log10(max(abs(low), abs(high))))
    for exponent in range(largest + 1, largest - 15, -1):
        for factor in (5, 2, 1):
            # By division where steps are below 1, so that 3 tenths are 0.3 and not 0.30000000000000004.
            step, parts = factor * 10 ** max(exponent, 0), 10 ** max(-exponent, 0)
            first, last = math.ceil(low * parts / step), math.floor(high * parts / step)
            if first <= last:
                nearest = min(max(round(near * parts / step), first), last)
                return float(nearest * step / parts)
    return near


def _write(number: float) -> str:
    """Write a number; thousands are set apart from 10,000 on, so that a year stays a year.

    >>> _write(2015.0), _write(25000.0), _write(0.25)
    ('2015', '25,000', '0.25')
    """
    return f"{number:,.12g}" if abs(number) >= 10_000 else f"{number:.12g}"
