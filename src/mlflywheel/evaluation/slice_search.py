"""The search for weak slices: every conjunction of at most two conditions against all other rows, honestly corrected.

The statistic of a slice is Welch's t of its mean against the mean of all other rows. It is studentised with each part's
own variance, because slices whose losses merely vary more, and have the same mean, must not be taken for weak. A
variance below that of all rows counts partly as theirs, so that a small slice which happens to have no outlier, or only
zeros and ones of one kind, is not infinitely sure.

The correction is Westfall and Young's: losses are given to other rows at random, every slice is looked at again, and
the largest statistic of all is kept. How often that reaches a slice's own statistic is its corrected p value. Slices
overlap, and this takes it into account; Bonferroni does not, and t tables are wrong for skewed losses in small slices.
How often this is wrong, and how often it finds what is weak: benchmarks/evaluation/slices.py.

Sources: P. H. Westfall and S. S. Young, Resampling-Based Multiple Testing (1993), the single-step maxT; E. Chung and
J. P. Romano, "Exact and asymptotically robust permutation tests", Annals of Statistics 41 (2013), why studentised.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.evaluation.conditions import Conditions

Floats = NDArray[np.float64]

#: Rows of the prior in a slice's variance where that is below the variance of all rows.
_PRIOR_ROWS = 30
#: Permuted losses, and their squares, held at once: so few that a processor's cache holds them.
_PERMUTED_AT_ONCE = 640_000
#: Relative error of a statistic from single-precision sums; they take half the time.
_PRECISION = 1e-5


@dataclass(frozen=True)
class Search:
    """Every slice that was looked at, and what the largest of their statistics is by chance.

    Arrays have one entry a slice. Losses are the values so signed that more is worse, less their mean, in units of
    their standard deviation: they sum to 0, and their squares to the number of rows.

    Args:
        parts: int64 (slices, 2), each slice's conditions, numbered over all columns; a slice of one has it twice.
        count: Rows of the slice.
        total: Sum of their losses.
        squares: Sum of their squared losses.
        difference: Mean loss of the slice minus the mean of all other rows.
        error: Its standard error.
        highest: Sorted (permutations,), the largest statistic of a random assignment of losses.
        lowest: Sorted (permutations,), the smallest one with its sign turned.
    """

    parts: NDArray[np.int64]
    count: Floats
    total: Floats
    squares: Floats
    difference: Floats
    error: Floats
    highest: Floats
    lowest: Floats

    @property
    def statistic(self) -> Floats:
        """The difference in units of its standard error."""
        return self.difference / self.error

    @property
    def p_value(self) -> Floats:
        """How likely any slice would look as weak as this one if none was weak."""
        reached = len(self.highest) - np.searchsorted(self.highest, self.statistic, side="left")
        return np.asarray((1 + reached) / (1 + len(self.highest)))

    def find_clear(self, alpha: float) -> NDArray[np.bool_]:
        """Return which slices are clearly worse than what is left of each of their conditions, bool (slices,).

        A slice of one condition always is. Of a pair, both rests must be better, each tested one-sided at `alpha`
        divided by the number of conditions, which is how many ways there are to narrow a slice by chance.
        """
        from scipy.special import ndtri

        is_pair = self.parts[:, 0] != self.parts[:, 1]
        limit = float(-ndtri(alpha / max(1, int((~is_pair).sum()))))
        clear = np.ones(len(self.parts), dtype=bool)
        pairs = np.flatnonzero(is_pair)
        inside = self.total[pairs] / self.count[pairs]
        spread = _variance(self.count[pairs], self.squares[pairs] - self.total[pairs] * inside) / self.count[pairs]
        for side in (0, 1):
            whole = self.parts[pairs, side]
            rest = self.count[whole] - self.count[pairs]
            # A rest of one row has no variance, and says nothing.
            size = np.maximum(rest, 2)
            outside = (self.total[whole] - self.total[pairs]) / size
            deviations = self.squares[whole] - self.squares[pairs] - size * outside**2
            error = np.sqrt(spread + _variance(size, deviations) / size)
            clear[pairs] &= (rest >= 2) & (inside - outside > limit * error)
        return clear

    def find_limits(self, alpha: float) -> tuple[float, float]:
        """Return how many standard errors the ends of simultaneous intervals lie below and above the differences.

        A difference is significant (`p_value <= alpha`) exactly where its lower end is above 0. Infinite where there
        are too few permutations for that alpha.
        """
        allowed = math.floor(alpha * (1 + len(self.highest)) + 1e-9) - 1
        if allowed < 0 or not len(self.highest):
            return math.inf, math.inf
        return float(self.highest[-1 - allowed]), float(self.lowest[-1 - allowed])


def search_slices(
    columns: Sequence[Conditions],
    losses: Floats,
    minimum_count: int,
    *,
    combined: int | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Search:
    """Look at all slices.

    Args:
        columns: Their conditions.
        losses: (rows,), finite, not all equal, more is worse.
        minimum_count: Rows that a slice must have, and also all other rows together.
        combined: How many of the columns, from the first, have their conditions combined with those of another; all if
            None, and 0 for slices of one condition only.
        permutations: Random assignments of losses to rows.
        seed: Of the permutations.

    Returns:
        All slices, those of one condition first and in the order of the conditions. A pair that holds for the same rows
        as one of its conditions is none.
    """
    blocks = list(_divide_blocks(columns, minimum_count, len(columns) if combined is None else combined))
    rows = len(losses)
    centred = losses - losses.mean()
    scaled = centred / np.sqrt(np.mean(centred**2))
    if not blocks:
        none = np.empty(0)
        return Search(np.empty((0, 2), dtype=np.int64), none, none, none, none, none, none, none)
    parts = np.concatenate([block.parts for block in blocks])
    count = np.concatenate([block.count for block in blocks])
    total, squares = np.concatenate([block.sum_rows(_square(scaled[:, None])) for block in blocks]).T
    difference, error = _compare(count[:, None], total[:, None], squares[:, None], rows)
    random = np.random.default_rng(seed)
    at_once = min(128, max(8, _PERMUTED_AT_ONCE // (2 * rows)))
    highest, lowest = np.full(permutations, -np.inf), np.full(permutations, -np.inf)
    for start in range(0, permutations, at_once):
        chunk = slice(start, min(start + at_once, permutations))
        permuted = np.stack([random.permutation(scaled) for _ in range(chunk.start, chunk.stop)], axis=1)
        both = _square(permuted.astype(np.float32))
        for block in blocks:
            # Block by block, so that memory does not grow with the number of slices.
            totals, sums = np.split(block.sum_rows(both), 2, axis=1)
            found, errors = _compare(block.count[:, None], totals, sums, rows)
            found /= errors
            np.maximum(highest[chunk], found.max(axis=0), out=highest[chunk])
            np.maximum(lowest[chunk], -found.min(axis=0), out=lowest[chunk])
    # What single precision may have taken away must not make a tie with a slice's own statistic look smaller than it.
    highest += _PRECISION * np.abs(highest)
    lowest += _PRECISION * np.abs(lowest)
    return Search(
        parts, count, total, squares, difference[:, 0], error[:, 0], np.sort(highest), np.sort(lowest)
    )  # fmt: skip


def select_rows(columns: Sequence[Conditions], parts: Iterable[int]) -> NDArray[np.bool_]:
    """Return the rows of a slice, bool (rows,), by the numbers of its conditions as in `Search.parts`."""
    masks = [column.select(condition) for column, condition in (_find(columns, part) for part in parts)]
    return np.asarray(np.logical_and.reduce(masks))


def name_slice(columns: Sequence[Conditions], parts: Iterable[int]) -> str:
    """Return the conditions of a slice as text: `fuel=Electric & year 2015 or less`."""
    found = [_find(columns, part) for part in parts]
    return " & ".join(dict.fromkeys(column.names[condition] for column, condition in found))


def _find(columns: Sequence[Conditions], number: int) -> tuple[Conditions, int]:
    for column in columns:
        if number < len(column.names):
            return column, int(number)
        number -= len(column.names)
    raise IndexError(number)


@dataclass(frozen=True)
class _Block:
    """The slices of two columns, or of one column and a second one that holds for every row.

    Args:
        cells: Sparse (cells, rows), which rows lie in each pair of atoms.
        first: float64 (conditions, atoms) of the first column.
        second: The same of the second column.
        kept: Which of the (first, second) conditions are slices, flat.
        parts: Their conditions.
        count: Their rows.
    """

    cells: Any
    first: Floats
    second: Floats
    kept: NDArray[np.int64]
    parts: NDArray[np.int64]
    count: Floats

    def sum_rows(self, values: NDArray[Any]) -> Floats:
        """Sum values (rows, variants) over the rows of every slice: (slices, variants)."""
        variants = values.shape[1]
        (conditions, atoms), (others, parts) = self.first.shape, self.second.shape
        by_cell = (self.cells @ values).astype(np.float64)
        by_first = (self.first @ by_cell.reshape(atoms, parts * variants)).reshape(conditions, parts, variants)
        by_slice = np.matmul(self.second, by_first).reshape(conditions * others, variants)
        return np.asarray(by_slice[self.kept])


def _divide_blocks(columns: Sequence[Conditions], minimum_count: int, combined: int) -> Iterator[_Block]:
    from scipy.sparse import csr_array

    if not columns:
        return
    rows = len(columns[0].atoms)
    offsets = np.cumsum([0, *(len(column.names) for column in columns)])
    counts = [column.holds @ np.bincount(column.atoms, minlength=column.holds.shape[1]) for column in columns]
    ones = np.ones(rows, dtype=np.float32)
    always = np.zeros(rows, dtype=np.int32)
    chosen: list[tuple[int, int | None]] = [(at, None) for at in range(len(columns))]
    chosen += [(left, right) for right in range(min(combined, len(columns))) for left in range(right)]
    for left, right in chosen:
        first = columns[left].holds.astype(np.float64)
        second = np.ones((1, 1)) if right is None else columns[right].holds.astype(np.float64)
        atoms = columns[left].atoms * second.shape[1] + (always if right is None else columns[right].atoms)
        size = first.shape[1] * second.shape[1]
        # Numbers of 16 bits, which the atoms of two columns fit in, are sorted ten times as fast.
        order = np.argsort(atoms.astype(np.uint16), kind="stable").astype(np.int32)
        ends = np.concatenate([[0], np.cumsum(np.bincount(atoms, minlength=size))]).astype(np.int32)
        # The ones are shared by all blocks: a block costs 4 bytes a row.
        cells = csr_array((ones, order, ends), shape=(size, rows), copy=False)
        count = first @ np.diff(ends).reshape(first.shape[1], second.shape[1]) @ second.T
        is_slice = (count >= minimum_count) & (count <= rows - minimum_count)
        if right is not None:
            is_slice &= (count < counts[left][:, None]) & (count < counts[right][None, :])
        at = np.argwhere(is_slice)
        if not len(at):
            continue
        others = at[:, 0] + offsets[left] if right is None else at[:, 1] + offsets[right]
        kept = at[:, 0] * second.shape[0] + at[:, 1]
        yield _Block(cells, first, second, kept, np.stack([at[:, 0] + offsets[left], others], axis=1), count[is_slice])


def _square(losses: NDArray[Any]) -> NDArray[Any]:
    """Return losses and their squares side by side, (rows, 2 variants)."""
    return np.concatenate([losses, losses * losses], axis=1)


def _compare(count: Floats, total: Floats, squares: Floats, rows: int) -> tuple[Floats, Floats]:
    """Return differences of means, slices against all other rows, and their standard errors."""
    rest = rows - count
    inside, outside = total / count, total / -rest
    error = _variance(count, squares - total * inside) / count
    error += _variance(rest, (rows - squares) + total * outside) / rest
    inside -= outside
    return inside, np.sqrt(error, out=error)


def _variance(count: Floats, deviations: Floats) -> Floats:
    """Return variances from sums of squares, moved towards that of all rows, which is 1, where they are below it."""
    variance = deviations / (count - 1)
    moved = variance * (count / (count + _PRIOR_ROWS))
    moved += _PRIOR_ROWS / (count + _PRIOR_ROWS)
    return np.maximum(variance, moved, out=moved)
