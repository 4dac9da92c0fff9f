"""Arrow columns as Python values that JSON writes exactly.

A float32 becomes the shortest decimal that reads back as the same float32: 0.1, not 0.10000000149011612. So an answer
over JSON is equal to the batch's after casting to the column's type, and half as long.
"""

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return one dictionary a row, with nulls as None. NaN and infinity stay; a JSON writer makes them null.

    >>> to_rows(pa.table({"a": pa.array([0.1], pa.float32()), "b": [["x"]]}))
    [{'a': 0.1, 'b': ['x']}]
    """
    names = table.column_names
    columns = [to_python(join_chunks(column)) for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def to_python(array: pa.Array) -> list[Any]:
    """Return one Python value an element."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return to_python(array.dictionary_decode())
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        # Arrow writes the shortest decimal that identifies a float32.
        array = pc.cast(pc.cast(pc.cast(array, pa.float32()), pa.string()), pa.float64())
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        first = int(offsets[0])
        values = to_python(array.values.slice(first, int(offsets[-1]) - first))
        bounds = (offsets - first).tolist()
        return _without_nulls(array, [values[start:end] for start, end in pairwise(bounds)])
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = to_python(array.values.slice(array.offset * size, len(array) * size))
        return _without_nulls(array, [values[row * size : (row + 1) * size] for row in range(len(array))])
    if array.null_count == 0 and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        listed: list[Any] = array.to_numpy().tolist()
        return listed
    other: list[Any] = array.to_pylist()
    return other


def _structs(array: pa.Array) -> list[Any]:
    names = [array.type.field(position).name for position in range(array.type.num_fields)]
    if not names:
        return _without_nulls(array, [{} for _ in range(len(array))])
    fields = [to_python(field) for field in array.flatten()]
    return _without_nulls(array, [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)])


def _without_nulls(array: pa.Array, values: list[Any]) -> list[Any]:
    if array.null_count == 0:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def join_chunks(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, of length 0 if it has no chunks."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
