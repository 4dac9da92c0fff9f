"""Versions of tables: what the hash sees, and what it does not."""

import csv
import hashlib
import io
import math
import struct
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflywheel.data.ingestion import ingest
from mlflywheel.data.versions import DataVersion, version_table
from mlflywheel.errors import DataError, UsageError
from mlflywheel.models.contract import Column


def example() -> pa.Table:
    return pa.table(
        {
            "id": ["a", "b", None, "", "dé"],
            "bid": [0.5, None, 0.0, -1.5, 1e300],
            "day": pa.array(
                [date(2024, 1, 31), None, date(1969, 12, 31), date(2024, 1, 31), date(1, 1, 1)], pa.date32()
            ),
            "clicks": pa.array([1, None, -3, 2**62, 0]),
            "won": [True, None, False, True, True],
            "terms": [["x", "yz"], [], None, [None, ""], ["x"]],
            "weights": pa.array([[1.0], [], None, [0.5, math.nan], [-0.0]], pa.list_(pa.float64())),
        }
    )


def hash_of(table: pa.Table) -> str:
    return version_table(table).hash


def hash_by_specification(table: pa.Table) -> str:
    """Compute the hash from Python values, following the module's documentation and nothing else."""

    def column(kind: str, values: list[object]) -> bytes:
        values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
        streams = [b"".join(b"\0" if v is None else b"\1" for v in values)]
        codes = {"number": "<d", "integer": "<q", "date": "<i", "boolean": "<B"}
        if kind in codes:
            plain = [(v - date(1970, 1, 1)).days if isinstance(v, date) else v for v in values]
            streams.append(b"".join(struct.pack(codes[kind], 0 if v is None or v == 0 else v) for v in plain))
            digests = [hashlib.sha256(stream).digest() for stream in streams]
        elif kind == "string":
            texts = [b"" if v is None else str(v).encode() for v in values]
            streams += [b"".join(struct.pack("<q", len(t)) for t in texts), b"".join(t for t in texts if t)]
            digests = [hashlib.sha256(stream).digest() for stream in streams]
        else:
            lists = [v if isinstance(v, list) else [] for v in values]
            streams.append(b"".join(struct.pack("<q", len(items)) for items in lists))
            digests = [hashlib.sha256(stream).digest() for stream in streams]
            digests.append(column(kind[5:-1], [item for items in lists for item in items]))
        return hashlib.sha256(kind.encode() + b"\0" + b"".join(digests)).digest()

    whole = b"mlflywheel-table-1\0" + struct.pack("<qq", table.num_rows, table.num_columns)
    for name, kind in version_table(table).columns:
        whole += struct.pack("<q", len(name.encode())) + name.encode() + column(kind, table[name].to_pylist())
    return "sha256:" + hashlib.sha256(whole).hexdigest()


def test_the_hash_is_what_the_documentation_says() -> None:
    table = example()
    assert version_table(table).columns == (
        ("bid", "number"),
        ("clicks", "integer"),
        ("day", "date"),
        ("id", "string"),
        ("terms", "list<string>"),
        ("weights", "list<number>"),
        ("won", "boolean"),
    )
    assert hash_of(table) == hash_by_specification(table)
    assert hash_of(table.slice(0, 0)) == hash_by_specification(table.slice(0, 0))


def test_the_hash_of_a_known_table_does_not_change() -> None:
    table = pa.table({"campaign_id": ["1", "2"], "clicks": [1.5, None]})
    assert hash_of(table) == "sha256:eb0c7970c4abe5b0b2e33d146a3dbdf75ecfb7e4e105e32fa73883af429617c5"


def test_layout_leaves_no_trace() -> None:
    table = example()
    expected = hash_of(table)
    text = table["id"]
    others = {
        "columns in another order": table.select(table.column_names[::-1]),
        "two chunks": pa.concat_tables([table.slice(0, 2), table.slice(2)]),
        "one row a chunk": pa.concat_tables([table.slice(row, 1) for row in range(5)]),
        "an empty chunk": pa.concat_tables([table.slice(0, 0), table]),
        "a slice": pa.concat_tables([table, table]).combine_chunks().slice(5, 5),
        "large strings": table.set_column(0, "id", text.cast(pa.large_string())),
        "string views": table.set_column(0, "id", text.cast(pa.string_view())),
        "dictionary": table.set_column(0, "id", text.dictionary_encode()),
        "large lists": table.set_column(5, "terms", table["terms"].cast(pa.large_list(pa.large_string()))),
        "metadata": table.replace_schema_metadata({"written by": "someone"}),
    }
    for name, other in others.items():
        assert hash_of(other) == expected, name


def test_bytes_behind_missing_values_leave_no_trace() -> None:
    values = pa.array(["aa", "hidden", "cc"])
    masked = pc.if_else(pa.array([True, False, True]), values, pa.scalar(None, pa.string()))
    hiding = pa.Array.from_buffers(pa.string(), 3, [masked.buffers()[0], *values.buffers()[1:]])
    assert hiding.to_pylist() == ["aa", None, "cc"]
    assert hash_of(pa.table({"a": hiding})) == hash_of(pa.table({"a": ["aa", None, "cc"]}))
    numbers = np.ma.masked_array([1.0, 7.0], mask=[False, True])
    assert hash_of(pa.table({"a": pa.array(numbers)})) == hash_of(pa.table({"a": [1.0, None]}))


def test_equal_numbers_have_one_version() -> None:
    assert hash_of(pa.table({"a": [0.0, None]})) == hash_of(pa.table({"a": [-0.0, math.nan]}))
    assert hash_of(pa.table({"a": pa.array([0.5], pa.float32())})) == hash_of(pa.table({"a": [0.5]}))
    assert hash_of(pa.table({"a": pa.array([5], pa.int8())})) == hash_of(pa.table({"a": pa.array([5], pa.int64())}))


def test_every_change_of_content_changes_the_hash() -> None:
    base = pa.table({"a": ["x", "", None, "yz"], "b": [1.0, None, 2.0, 3.0]})
    others = {
        "one cell": pa.table({"a": ["x", "", None, "yy"], "b": [1.0, None, 2.0, 3.0]}),
        "missing and empty swapped": pa.table({"a": ["x", None, "", "yz"], "b": [1.0, None, 2.0, 3.0]}),
        "missing and zero": pa.table({"a": ["x", "", None, "yz"], "b": [1.0, 0.0, 2.0, 3.0]}),
        "the next number": pa.table({"a": ["x", "", None, "yz"], "b": [1.0, None, 2.0, math.nextafter(3.0, 4.0)]}),
        "letters moved over a border": pa.table({"a": ["xy", "", None, "z"], "b": [1.0, None, 2.0, 3.0]}),
        "rows in another order": base.take([1, 0, 2, 3]),
        "a row less": base.slice(0, 3),
        "a row twice": base.take([0, 1, 2, 3, 3]),
        "a column renamed": base.rename_columns(["a", "c"]),
        "columns exchanged": base.rename_columns(["b", "a"]),
        "a column less": base.select(["a"]),
        "numbers as texts": base.set_column(1, "b", base["b"].cast(pa.string())),
    }
    hashes = {name: hash_of(table) for name, table in others.items()}
    assert hash_of(base) not in hashes.values()
    assert len(set(hashes.values())) == len(hashes)


def test_lists_keep_their_borders() -> None:
    lists = [[["a", "b"], []], [["a"], ["b"]], [[], ["a", "b"]], [["a", "b"], None], [["ab"], []], [["a", None], []]]
    assert len({hash_of(pa.table({"a": pa.array(value, pa.list_(pa.string()))})) for value in lists}) == len(lists)


def test_tables_without_a_version_are_refused() -> None:
    with pytest.raises(UsageError, match="several columns named a"):
        version_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"]))
    with pytest.raises(UsageError, match="column a: type timestamp"):
        version_table(pa.table({"a": pa.array([0], pa.timestamp("s"))}))


def test_versions_are_written_and_read(tmp_path: Path) -> None:
    version = version_table(example(), "s3://key:secret@bucket/a.csv")
    assert version.source == "s3://bucket/a.csv"
    assert version.rows == 5
    version.write(tmp_path / "version.json")
    assert DataVersion.read(tmp_path / "version.json") == version
    (tmp_path / "broken.json").write_text("[1]")
    for name in ("broken.json", "none.json"):
        with pytest.raises(DataError, match="missing or unreadable"):
            DataVersion.read(tmp_path / name)


def test_progress_counts_columns() -> None:
    seen: list[tuple[str, int, int]] = []
    version_table(example(), progress=lambda *event: seen.append(event))
    assert seen == [("hashing", done, 7) for done in range(8)]


def test_150_000_rows_of_10_columns_take_less_than_half_a_second() -> None:
    texts = pa.array([f"some search term {row}" for row in range(150_000)])
    table = pa.table({f"column {i}": texts if i % 2 else np.arange(150_000) * 0.5 for i in range(10)})
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        version_table(table)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


# A text that a CSV file can hold: no NUL, no half of a surrogate pair, and no lone carriage return, which Python's
# reader and pyarrow's both keep only when quoted.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
ROWS = st.lists(
    st.tuples(
        TEXTS.filter(bool),
        st.none() | TEXTS,
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.dates(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    chunk=st.integers(1, 5),
    group=st.integers(1, 5),
    dictionary=st.booleans(),
    delimiter=st.sampled_from(",;\t|"),
)
def test_csv_and_parquet_of_the_same_rows_have_one_version(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str | None, float | None, date | None]],
    chunk: int,
    group: int,
    dictionary: bool,
    delimiter: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    names = ["campaign_id", "note", "clicks", "day"]
    kinds = [pa.string(), pa.string(), pa.float64(), pa.date32()]
    table = pa.table({name: pa.array(v, k) for name, v, k in zip(names, zip(*rows, strict=True), kinds, strict=True)})
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(names)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    (folder / "a.csv").write_bytes(text.getvalue().encode())
    if dictionary:
        table = table.set_column(1, "note", table["note"].dictionary_encode())
    parts = [table.slice(start, chunk) for start in range(0, len(rows), chunk)]
    pq.write_table(pa.concat_tables(parts, promote_options="default"), folder / "a.parquet", row_group_size=group)
    columns = (Column("campaign_id", "id", required=True), Column("clicks", "number"), Column("day", "date"))
    from_csv, from_parquet = (ingest(str(folder / name), columns, {}) for name in ("a.csv", "a.parquet"))
    assert from_csv.table.to_pylist() == from_parquet.table.to_pylist()
    assert from_csv.version.hash == from_parquet.version.hash
    assert from_csv.version.hash == hash_by_specification(from_csv.table)
