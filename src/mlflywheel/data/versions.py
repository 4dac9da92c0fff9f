"""Versions of tables: one hash of what a table says, whatever file or memory layout it came in.

The hash covers column names, column types, values, missing values and the order of the rows. It does not cover the
order of the columns, the file format, row groups, chunks, slices, dictionary encoding, 32- or 64-bit string offsets,
or bytes that hide behind a missing value. Negative zero counts as zero, and NaN as a missing value.

Rows are a sequence: the same rows in another order are another version, since a model fitted in row order may differ.

How it is computed, so that another language can do the same: every stream is hashed by SHA-256, integers are
little-endian, and texts are UTF-8.

    column(values) = sha256 of:  the type's name, a NUL byte, and then the digests of these streams:
        valid     one byte a row: 1 where there is a value, else 0
        number    float64 a row, 0 where missing
        integer   int64 a row, 0 where missing
        date      int32 a row: days since 1970-01-01, 0 where missing
        boolean   one byte a row, 0 where missing
        string    int64 a row: length in bytes, 0 where missing; then the bytes of all values in a second stream
        list      int64 a row: length in items, 0 where missing; then column(all items)
    table = sha256 of:  "mlflywheel-table-1", a NUL byte, rows as int64, columns as int64, and for each column in the
        order of the names' UTF-8 bytes: the name's length in bytes as int64, the name, column(values)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.errors import DataError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.storage import without_credentials

VERSION_SCHEMA = 1


@dataclass(frozen=True)
class DataVersion:
    """What identifies a table.

    Args:
        hash: `sha256:` and 64 hexadecimal digits; equal exactly when the tables say the same.
        rows: Number of rows.
        columns: Name and type of every column, sorted by name; types as in the module's documentation.
        source: Where the table was read, without credentials. Not part of the hash.
    """

    hash: str
    rows: int
    columns: tuple[tuple[str, str], ...]
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as a version file holds them."""
        return {
            "schema": VERSION_SCHEMA,
            "hash": self.hash,
            "rows": self.rows,
            "columns": [list(column) for column in self.columns],
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataVersion":
        """Rebuild from `to_dict`."""
        columns = tuple((str(name), str(kind)) for name, kind in values["columns"])
        return cls(str(values["hash"]), int(values["rows"]), columns, str(values["source"]))

    def write(self, path: Path) -> None:
        """Write the version as a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "DataVersion":
        """Read what `write` wrote.

        Raises:
            DataError: Missing, or not a version file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                str(path), "missing or unreadable", "the version file of a table is needed", "ingest the table again"
            ) from None


def version_table(table: pa.Table, source: str = "", progress: ProgressCallback = ignore_progress) -> DataVersion:
    """Compute the version of a table.

    Args:
        table: Columns of strings, numbers, integers, booleans, dates, and lists of these.
        source: URI that the table came from; credentials are removed.
        progress: Called with the phase `hashing` and numbers of columns.

    Raises:
        UsageError: Two columns of one name, or a column of another type.

    >>> one = pa.table({"id": ["a", None], "bid": [0.5, float("nan")]})
    >>> other = pa.table({"bid": pa.array([0.5, None]), "id": pa.array(["a", None]).dictionary_encode()})
    >>> version_table(one).hash == version_table(other).hash
    True
    >>> version_table(one).columns
    (('bid', 'number'), ('id', 'string'))
    """
    names = table.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError("table", f"several columns named {repeated[0]}", "names must differ", "rename one of them")
    ordered = sorted(names, key=lambda name: name.encode())
    whole = hashlib.sha256(b"mlflywheel-table-1\0" + _int64(table.num_rows) + _int64(len(names)))
    columns = []
    for done, name in enumerate(ordered):
        progress("hashing", done, len(ordered))
        column = table.column(name)
        kind = _name_type(column.type, name)
        columns.append((name, kind))
        whole.update(_int64(len(name.encode())) + name.encode() + _hash_column(column.chunks, column.type, kind))
    progress("hashing", len(ordered), len(ordered))
    return DataVersion(f"sha256:{whole.hexdigest()}", table.num_rows, tuple(columns), without_credentials(source))


def _int64(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def _name_type(kind: pa.DataType, name: str) -> str:
    """Name a type as the hash sees it: physical variants of one type share a name."""
    if pa.types.is_dictionary(kind):
        return _name_type(kind.value_type, name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_floating(kind):
        return "number"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "integer"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_date32(kind):
        return "date"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_name_type(kind.value_type, name)}>"
    raise UsageError(
        f"column {name}",
        f"type {kind}",
        "strings, numbers, integers, booleans, dates and lists of them have a version",
        "cast or drop the column",
    )


def _hash_column(chunks: list[pa.Array], type_: pa.DataType, kind: str) -> bytes:
    """Hash the values of one column, chunk by chunk, so that the layout leaves no trace and nothing is copied whole."""
    valid, fixed, data = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    items: list[pa.Array] = []
    for chunk in chunks:
        values = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
        if kind == "number":
            values = values.cast(pa.float64())
            values = pc.if_else(pc.fill_null(pc.is_nan(values), False), pa.scalar(None, pa.float64()), values)
        present = values.is_valid()
        valid.update(_buffer(present.cast(pa.uint8()), "u1"))
        if kind == "number":
            # Adding zero turns negative zero into zero.
            fixed.update(np.ascontiguousarray(_to_numpy(values.fill_null(0.0), "<f8") + 0.0).data)
        elif kind == "integer":
            fixed.update(_buffer(values.cast(pa.int64()).fill_null(0), "<i8"))
        elif kind == "date":
            fixed.update(_buffer(values.cast(pa.int32()).fill_null(0), "<i4"))
        elif kind == "boolean":
            fixed.update(_buffer(values.fill_null(False).cast(pa.uint8()), "u1"))
        elif kind == "string":
            texts = values.cast(pa.string()) if pa.types.is_string_view(values.type) else values
            fixed.update(_buffer(pc.binary_length(texts).fill_null(0).cast(pa.int64()), "<i8"))
            data.update(_text_bytes(texts.drop_null()))
        else:
            fixed.update(_buffer(pc.list_value_length(values).fill_null(0).cast(pa.int64()), "<i8"))
            # Flattening leaves out what hides behind missing lists.
            items.append(values.flatten())
    streams = [valid.digest(), fixed.digest()]
    if kind == "string":
        streams.append(data.digest())
    elif kind.startswith("list<"):
        value_type = (type_.value_type if pa.types.is_dictionary(type_) else type_).value_type
        streams.append(_hash_column(items, value_type, kind.removeprefix("list<").removesuffix(">")))
    return hashlib.sha256(kind.encode() + b"\0" + b"".join(streams)).digest()


def _to_numpy(values: pa.Array, dtype: str) -> np.ndarray[Any, Any]:
    return np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


def _buffer(values: pa.Array, dtype: str) -> memoryview:
    return np.ascontiguousarray(_to_numpy(values, dtype)).data


def _text_bytes(texts: pa.Array) -> memoryview:
    """Return the bytes of strings without missing values, one after the other."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return memoryview(b"")
    width = 8 if pa.types.is_large_string(texts.type) else 4
    positions = np.frombuffer(offsets, dtype=f"=i{width}", count=len(texts) + 1, offset=texts.offset * width)
    return memoryview(data)[int(positions[0]) : int(positions[-1])]
