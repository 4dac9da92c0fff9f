"""Splitting a table into a part to learn from and a part to measure on.

Random and grouped splits hash each row's key (its id, or its group) together with the seed, and hold out the keys whose
hash falls below the fraction. A key therefore stays on its side when other rows are added, removed or reordered, and on
every platform: no measurement mixes rows that an earlier model was fitted on. The price is that the share of held-out
keys is only near the fraction: with n keys its standard deviation is sqrt(fraction * (1 - fraction) / n), which is
0.7 points for 3,185 campaigns and a fraction of 0.2. Taking the exact number of keys with the smallest hashes would
move keys across the border whenever others come or go.

A temporal split holds out the newest rows. Its border moves with the data, as it must.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.errors import DataError, UsageError

Method = Literal["random", "grouped", "temporal"]


@dataclass(frozen=True)
class Split:
    """A table in two parts; every row is in exactly one.

    Args:
        train: Rows to learn from.
        holdout: Rows to measure on; empty only if the table has fewer than two rows.
    """

    train: pa.Table
    holdout: pa.Table


def split(
    table: pa.Table,
    method: Method | str,
    holdout_fraction: float,
    seed: int,
    column: str | None = None,
    id_column: str | None = None,
) -> Split:
    """Split a table.

    - `random`: by hash of the id; rows of one id stay together.
    - `grouped`: by hash of the group; rows of one group stay together. The fraction is one of groups, not of rows. A
      row without a group is a group of its own, by its id.
    - `temporal`: the newest rows are held out; rows of one time stay together, so the border is the one whose part
      comes nearest to the fraction. The seed has no influence.

    Random and grouped parts keep the table's order; temporal parts come oldest first. If every key falls on one side,
    the key that came nearest to the border changes sides: both parts have rows as soon as there are two keys. One row
    in all goes to `train`.

    Args:
        table: Rows with an id column.
        method: One of the three.
        holdout_fraction: Above 0 and below 1.
        seed: Any integer.
        column: The group, or the time: dates, times, numbers or ISO dates as text. Not for `random`.
        id_column: The id, the first column if None; for `temporal`, and for `grouped` where every row has a group, it
            need not be there.

    Raises:
        UsageError: An unknown method, a fraction out of range, or a column that is missing or not asked for.
        DataError: All rows share one id, group or time, or a time is missing or unreadable.

    >>> table = pa.table({"campaign_id": ["a", "b", "c", "d"], "day": [3, 1, 2, 3]})
    >>> split(table, "temporal", 0.5, seed=0, column="day").holdout["campaign_id"].to_pylist()
    ['a', 'd']
    """
    if method not in get_args(Method):
        raise UsageError(
            "split method", repr(method), f"one of {', '.join(get_args(Method))} is needed", "choose one of them"
        )
    # Written so that NaN is refused as well.
    if not 0.0 < holdout_fraction < 1.0:
        raise UsageError(
            "holdout fraction", f"{holdout_fraction}", "above 0 and below 1 is needed", "hold out 0.2, for example"
        )
    if method == "random" and column:
        raise UsageError(
            f"split column {column}",
            "method random",
            "it uses no column",
            "leave it out, or choose grouped or temporal",
        )
    if method != "random" and not column:
        needed = "the column of the groups" if method == "grouped" else "the column of the times"
        raise UsageError(
            f"split method {method}", "no column", f"{needed} is needed", "name one of the table's columns"
        )
    id_column = id_column or table.column_names[0]
    # A row without a group is told by its id.
    by_id = method == "random" or (method == "grouped" and column in table.column_names and table[column].null_count)
    for name in (column, id_column if by_id else None):
        if name and name not in table.column_names:
            raise UsageError(
                f"split column {name}",
                "not in the table",
                f"the table has {', '.join(table.column_names)}",
                "name one of these",
            )
    if table.num_rows < 2:
        return Split(table, table.slice(0, 0))
    if method == "temporal":
        assert column
        return _split_by_time(table, holdout_fraction, column)
    return _split_by_hash(table, holdout_fraction, seed, id_column, column)


def _split_by_hash(table: pa.Table, fraction: float, seed: int, id_column: str, group_column: str | None) -> Split:
    hashes = np.full(table.num_rows, np.nan)
    for name, kind in ((group_column, b"group"), (id_column, b"id")):
        missing = np.isnan(hashes)
        if name and missing.any():
            hashes = np.where(missing, _hash_values(name, table.column(name), seed, kind), hashes)
    missing = np.isnan(hashes)
    # Without an id, the position is all that tells rows apart.
    hashes[missing] = [_hash_text(str(row), seed, b"row") for row in np.flatnonzero(missing)]
    if hashes.min() == hashes.max():
        raise DataError(
            f"column {group_column or id_column}",
            f"{table.num_rows} rows with one value",
            "two values are needed, one for each side",
            "split by another column, or get more rows",
        )
    held_out = hashes < fraction
    if not held_out.any():
        held_out = hashes == hashes.min()
    elif held_out.all():
        held_out = hashes != hashes.max()
    return _part(table, held_out)


def _hash_values(name: str, values: pa.ChunkedArray, seed: int, kind: bytes) -> Any:
    """Hash each value to a number from 0 to below 1; NaN where it is missing."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        texts = values.cast(pa.string())
    except pa.ArrowException:
        needed = "texts or numbers are needed"
        raise UsageError(f"split column {name}", f"type {values.type}", needed, "choose another column") from None
    distinct = pc.unique(texts)
    hashes = [math.nan if text is None else _hash_text(text, seed, kind) for text in distinct.to_pylist()]
    return np.array(hashes)[pc.index_in(texts, value_set=distinct).to_numpy()]


def _hash_text(text: str, seed: int, kind: bytes) -> float:
    """Hash a text; the kind keeps a group from falling with an id of the same text."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8, person=kind).digest()
    # 53 bits are what a float holds exactly, so that the largest stays below 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _split_by_time(table: pa.Table, fraction: float, column: str) -> Split:
    times = table.column(column)
    where = f"column {column}"
    missing = pc.sum(times.is_null(nan_is_null=True)).as_py()
    if missing:
        raise DataError(
            where,
            f"{missing} of {table.num_rows} rows have no time",
            "a temporal split needs one in every row",
            "drop these rows, or choose the method random",
        )
    if pa.types.is_dictionary(times.type):
        times = times.cast(times.type.value_type)
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        try:
            times = times.cast(pa.date32())
        except pa.ArrowInvalid as error:
            raise DataError(
                where, str(error).splitlines()[0].rstrip("."), "ISO dates are needed", "write dates like 2024-01-31"
            ) from None
    ordered = pa.types.is_temporal(times.type) or pa.types.is_integer(times.type) or pa.types.is_floating(times.type)
    if not ordered or pa.types.is_duration(times.type):
        raise UsageError(where, f"type {times.type}", "dates, times or numbers are needed", "choose another column")
    values = times.combine_chunks().to_numpy(zero_copy_only=False)
    distinct, ranks, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            where,
            f"{table.num_rows} rows of one time",
            "two times are needed, one for each side",
            "choose another column or method",
        )
    # Rows that are at least as new as each time; the oldest time is never held out.
    newest = np.cumsum(counts[::-1])[::-1][1:]
    # Of two borders that are equally near, the later one: `argmin` takes the first of the reversed order.
    distance = np.abs(newest - fraction * len(values))[::-1]
    first_held_out = len(distinct) - 1 - int(np.argmin(distance))
    order = np.argsort(ranks, kind="stable")
    return _part(table.take(pa.array(order)), ranks[order] >= first_held_out)


def _part(table: pa.Table, held_out: Any) -> Split:
    return Split(table.filter(pa.array(~held_out)), table.filter(pa.array(held_out)))
