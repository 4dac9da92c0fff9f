"""Reading a table from anywhere: CSV, TSV or Parquet, at any URI, with the names and types that a model declares.

The result does not depend on the file's format. One rule for each kind of column makes it so:

- Declared columns (`mlflywheel.models.contract.Column`) are cast: `id` and `text` to string, `number` to float64,
  `date` to date32. Values that cannot be cast are an error that names the row; nothing is dropped or guessed.
- Undeclared columns stay, as strings: results can be sliced by them, and the version covers them. From Parquet they
  get the text that pandas writes into a CSV file: `1.0`, `True`, `2024-01-31 12:30:00`. For a model that reads columns
  of any name (`Model.other_columns`), those whose every value is a number become numbers (`infer_column`).
- An empty cell is a missing value, in every column. So is an empty string in Parquet, and NaN. Texts such as `NA` or
  `null` are texts, except those that a declared column lists (`Column.missing`).
- A declared column is found by the mapping, or by its name, or by one of its aliases (`Column.aliases`).
- Spaces around names of columns, numbers and dates are dropped. Values of `id` and `text` are kept as they are.
- A column without a name is called `column_N`, counted from 1.

CSV files are UTF-8, with or without a byte order mark, compressed by gzip or not, separated by a comma, a semicolon, a
tab or a bar; values may be quoted by double quotes and then hold line breaks. The format is told by a file's first
bytes, not by its name.

Known limits: numbers have the precision of float64, so integers above 2**53 are rounded in `number` columns (not in
`id` columns). 32-bit floats are read as their shortest decimals, as pandas writes them unless it is told to quote all
values. Dates are taken as written, without the time of day and its zone. pyarrow writes `1`, `true` and
`12:30:00.000000` where pandas writes `1.0`, `True` and `12:30:00`; an undeclared column of such values has one version
from Parquet and from pandas' CSV, and another from pyarrow's CSV. Declared as a number or a date, it has one from all.
"""

import codecs
import contextlib
import csv
import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.data.versions import DataVersion, version_table
from mlflywheel.errors import DataError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column
from mlflywheel.models.parameters import describe_json_fault
from mlflywheel.storage import local_copy, without_credentials

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_BYTES = 100_000
_PIECE_BYTES = 8 * 2**20
_FIRST_BLOCK_BYTES = 16 * 2**20
_LAST_BLOCK_BYTES = 2**30
# Tables shrink to a tenth or a thirtieth. Gzip can shrink what repeats to a thousandth, as bombs do.
_LARGEST_RATIO = 200
_UNSUSPICIOUS_BYTES = 2**28
# Each column costs milliseconds whatever it holds, and a megabyte can name half a million.
_MOST_COLUMNS = 10_000

# First bytes of what people mistake for a table, with what it is and how to make a table of it.
_AS_CSV = "save it as CSV (UTF-8) or Parquet"
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV (UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it with unzstd"),
    (b"BZh", "compressed by bzip2", "decompress it with bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "decompress it with unxz"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF document", _AS_CSV),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Ingested:
    """A table that was read, and its version.

    Args:
        table: Declared columns that the file has, in the order of their declaration; then the others as in the file.
        version: Its content hash, size and source.
    """

    table: pa.Table
    version: DataVersion


def ingest(
    uri: str,
    columns: Sequence[Column],
    mapping: Mapping[str, str],
    progress: ProgressCallback = ignore_progress,
    *,
    other_columns: bool = False,
) -> Ingested:
    """Read a table, rename its columns, cast them and compute the version.

    Args:
        uri: CSV, TSV or Parquet, anywhere that `mlflywheel.storage` reads.
        columns: The columns that the model declares. Optional ones may be missing from the file, and are then missing
            from the result.
        mapping: Our name of a declared column to the file's name of it. Two of ours may come from one of theirs.
        progress: Called with phases `downloading`, `decompressing`, `checking` and `reading` in bytes, and `hashing` in
            columns.
        other_columns: Whether columns that are not declared get the type of their values, as `infer_column` does,
            and not string: `Model.other_columns`.

    Raises:
        UsageError: The mapping names a column that is not declared.
        DataError: The file cannot be read, has no rows, lacks a column, or holds a value that cannot be cast. Missing
            values are not an error here: validation counts them.
    """
    check_mapping(mapping, columns)
    declared = {column.name: column for column in columns}
    where = without_credentials(uri)
    wanted = {name for column in columns for name in (mapping.get(column.name, column.name), *column.aliases)}
    with local_copy(uri, progress) as path:
        raw = _read_file(_Source(where, path), wanted, progress)
    table = _cast_columns(where, _rename_columns(where, raw, declared, mapping), declared, other_columns)
    return Ingested(table, version_table(table, uri, progress))


def check_mapping(mapping: Mapping[str, str], columns: Sequence[Column]) -> None:
    """Check that a mapping names declared columns only.

    Raises:
        UsageError: It does not; the message lists what may be mapped.
    """
    declared = {column.name: column for column in columns}
    for ours in mapping:
        if ours not in declared:
            raise UsageError(
                f"--map {ours}={mapping[ours]}",
                f"{ours} is not a column that the model reads",
                f"it reads {', '.join(declared)}",
                _suggest(ours, declared, f"write --map {{}}={mapping[ours]}")
                or "write --map OURS=THEIRS with one of these",
            )


def write_ingested(ingested: Ingested, table_path: Path, version_path: Path | None = None) -> Path:
    """Write a table as Parquet, and its version as JSON beside it.

    Args:
        ingested: What `ingest` returned.
        table_path: Target; replaced only when the whole table is written.
        version_path: Where the version goes: the table's path with `.version.json` appended by default.

    Returns:
        The path of the version.
    """
    import pyarrow.parquet as pq

    table_path = Path(table_path)
    version_path = Path(version_path) if version_path else table_path.with_name(f"{table_path.name}.version.json")
    table_path.parent.mkdir(parents=True, exist_ok=True)
    version_path.parent.mkdir(parents=True, exist_ok=True)
    partial = table_path.with_name(f".{table_path.name}.partial-{os.getpid()}")
    try:
        pq.write_table(ingested.table, partial, compression="zstd")
        partial.replace(table_path)
    finally:
        partial.unlink(missing_ok=True)
    ingested.version.write(version_path)
    return version_path


def parse_mapping(items: Iterable[str]) -> dict[str, str]:
    """Parse `ours=theirs` pairs, as the command line takes them.

    Args:
        items: Texts with an equals sign; the first one separates, so their name may hold another.

    Returns:
        Our name to theirs.

    Raises:
        UsageError: No equals sign, an empty name, or one of ours twice.

    >>> parse_mapping(["vertical=industry", "term=search = term"])
    {'vertical': 'industry', 'term': 'search = term'}
    """
    mapping: dict[str, str] = {}
    for item in items:
        ours, equals, theirs = (part.strip() for part in item.partition("="))
        if not (ours and equals and theirs):
            raise UsageError("--map", repr(item), "OURS=THEIRS is needed", "write it like --map vertical=industry")
        if mapping.get(ours, theirs) != theirs:
            raise UsageError(
                "--map",
                f"{ours} is given {mapping[ours]} and {theirs}",
                "each of ours has one source",
                "drop one of them",
            )
        mapping[ours] = theirs
    return mapping


def read_mapping(text_json: str, where: str = "columns") -> dict[str, str]:
    """Read a JSON object of our names to theirs, as a pipeline's parameter holds it.

    Args:
        text_json: The object; empty text is an empty one.
        where: What to call it in an error.

    Raises:
        UsageError: Not JSON, or not an object of texts.

    >>> read_mapping('{"vertical": "industry"}')
    {'vertical': 'industry'}
    """
    fix = 'write it like {"vertical": "industry"}'
    try:
        mapping = json.loads(text_json) if text_json.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"not JSON ({describe_json_fault(error)})", "a JSON object is needed", fix) from None
    if not isinstance(mapping, dict) or not all(isinstance(name, str) and name for name in mapping.values()):
        raise UsageError(where, text_json[:60], "a JSON object of texts is needed", fix)
    return mapping


# ---------------------------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True)
class _Source:
    """A file under way: what to call it in an error, and where its bytes are."""

    where: str
    path: Path
    gzipped: bool = False

    def name_in_command(self) -> str:
        name = self.where.partition("?")[0].rpartition("/")[2] or "FILE"
        return f"'{name}'" if re.search(r"[^\w.,@%+=:-]", name) else name

    def recode(self, encoding: str) -> str:
        name = self.name_in_command()
        if self.gzipped:
            return f"gunzip -c {name} | iconv -f {encoding} -t utf-8 > utf8.csv"
        return f"iconv -f {encoding} -t utf-8 {name} > utf8.csv"


def _read_file(source: _Source, wanted: set[str], progress: ProgressCallback) -> pa.Table:
    """Read a file with the file's own names: strings from CSV, any types from Parquet."""
    with source.path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DataError(source.where, "an empty file (0 bytes)", "a table is needed", "export the table again")
    if head.startswith(b"PAR1"):
        table = _read_parquet(source, progress)
    elif head.startswith(b"\x1f\x8b"):
        source = _Source(source.where, source.path, gzipped=True)
        table = _read_csv(source, _decompress(source, progress), wanted, progress)
    else:
        table = _read_csv(source, pa.memory_map(str(source.path)).read_buffer(), wanted, progress)
    if table.num_rows == 0:
        raise _no_rows(source)
    return table


def _no_rows(source: _Source) -> DataError:
    return DataError(source.where, "a header and 0 rows", "at least 1 row is needed", "export the table again")


def _read_parquet(source: _Source, progress: ProgressCallback) -> pa.Table:
    import pyarrow.parquet as pq

    size = source.path.stat().st_size
    progress("reading", 0, size)
    try:
        # Not `read_table`, which takes `key=value` folders on the way for columns.
        with pq.ParquetFile(source.path) as file:
            table = file.read()
        # Parquet holds any bytes as a string; what is not UTF-8 would fail much later.
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            source.where, f"damaged Parquet: {_first_line(error)}", "a whole file is needed", "copy or export it again"
        ) from None
    progress("reading", size, size)
    names = _check_names(source, table.column_names)
    return table.rename_columns(names).replace_schema_metadata(None)


def _decompress(source: _Source, progress: ProgressCallback) -> pa.Buffer:
    size = source.path.stat().st_size
    sink = pa.BufferOutputStream()
    try:
        with source.path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
            while piece := file.read(_PIECE_BYTES):
                sink.write(piece)
                if sink.tell() > max(_UNSUSPICIOUS_BYTES, _LARGEST_RATIO * size):
                    raise DataError(
                        source.where,
                        f"{size:,} compressed bytes become more than {_LARGEST_RATIO} times as many",
                        "a table that was compressed is needed, which shrinks less",
                        "decompress it yourself with gunzip if you trust it",
                    )
                progress("decompressing", raw.tell(), size)
    except EOFError:
        raise DataError(
            source.where, "the compressed file ends in the middle", "a whole file is needed", "copy or export it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            source.where, f"damaged gzip: {_first_line(error)}", "a whole file is needed", "copy or export it again"
        ) from None
    return sink.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _check_names(source: _Source, names: Sequence[str]) -> list[str]:
    """Strip the names of columns, name the nameless, and refuse a name that stands twice."""
    named = [name.strip() or f"column_{position}" for position, name in enumerate(names, start=1)]
    if len(named) > _MOST_COLUMNS:
        raise DataError(
            source.where,
            f"{len(named):,} columns",
            f"at most {_MOST_COLUMNS:,} are read",
            "check the delimiter, or export the columns that are needed",
        )
    counted = Counter(named)
    for name in named:
        if counted[name] > 1:
            positions = [str(position) for position, other in enumerate(named, start=1) if other == name]
            raise DataError(
                source.where,
                f"columns {', '.join(positions)} are all named {name}",
                "names must differ",
                "rename the columns in the file",
            )
    return named


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def _read_csv(source: _Source, data: pa.Buffer, wanted: set[str], progress: ProgressCallback) -> pa.Table:
    """Read CSV as strings, with empty cells as missing values."""
    import pyarrow.csv as pacsv

    head = data[:512].to_pybytes()
    _refuse_other_formats(source, head)
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    _check_encoding(source, data, start, progress)
    delimiter = _sniff_delimiter(data[start : start + _SAMPLE_BYTES].to_pybytes().decode("utf-8", "ignore"), wanted)
    header, body = _read_header(source, data, start, delimiter)
    names = _check_names(source, header)
    rest = data[body:]
    if not len(rest):
        raise _no_rows(source)
    keys = [str(position) for position in range(len(names))]
    progress("reading", 0, len(data))
    # A block must hold a whole row, and a row may be as long as the file. Offsets of a block's strings are 32 bits.
    block_bytes = _FIRST_BLOCK_BYTES
    while True:
        try:
            table = pacsv.read_csv(
                pa.BufferReader(rest),
                read_options=pacsv.ReadOptions(column_names=keys, block_size=block_bytes),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(keys, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            break
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) and block_bytes < min(len(rest), _LAST_BLOCK_BYTES):
                block_bytes = min(block_bytes * 8, _LAST_BLOCK_BYTES)
                continue
            if "Empty CSV" in str(error):
                raise _no_rows(source) from None
            raise _explain_parse_error(source, data, start, delimiter, names, error) from None
    progress("reading", len(data), len(data))
    return table.rename_columns(names)


def _refuse_other_formats(source: _Source, head: bytes) -> None:
    needed = "CSV, TSV or Parquet is needed"
    if not head:
        raise DataError(source.where, "an empty file (0 bytes)", "a table is needed", "export the table again")
    for magic, seen, fix in _OTHER_FORMATS:
        if head.startswith(magic):
            raise DataError(source.where, seen, needed, fix)
    if head.startswith((b"PAR1", b"\x1f\x8b")):
        raise DataError(source.where, "compressed twice", needed, "decompress it with gunzip")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise DataError(source.where, f"text in {encoding.upper()}", "UTF-8 is needed", source.recode(encoding))
    text = head.lstrip().lower()
    name = source.where.partition("?")[0].lower().removesuffix(".gz")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        seen = "a web page or XML, not a table"
        raise DataError(source.where, seen, needed, "use the address that downloads the file itself, or " + _AS_CSV)
    if name.endswith((".json", ".jsonl", ".ndjson")) or re.match(rb'\{\s*"|\[\s*[\[{]', text):
        raise DataError(source.where, "JSON", needed, "write it as CSV or Parquet, one row an object")
    if name.endswith((".parquet", ".pq")):
        seen = "no Parquet file, though its name says so"
        raise DataError(source.where, seen, "Parquet begins with the bytes PAR1", "copy or export it again")
    if name.endswith((".xlsx", ".xls", ".ods", ".feather", ".orc", ".avro", ".pkl", ".pickle", ".npy", ".npz")):
        raise DataError(source.where, f"a file named *.{name.rpartition('.')[2]}", needed, _AS_CSV)


def _check_encoding(source: _Source, data: pa.Buffer, start: int, progress: ProgressCallback) -> None:
    """Refuse what is not UTF-8, and NUL characters, by byte offset and line."""
    view, total, position, line = memoryview(data), len(data), start, 1
    while position < total:
        progress("checking", position, total)
        piece = bytes(view[position : position + _PIECE_BYTES])
        final = position + len(piece) >= total
        try:
            _, consumed = codecs.utf_8_decode(piece, "strict", final)
        except UnicodeDecodeError as error:
            bad_line = line + piece.count(b"\n", 0, error.start)
            raise _wrong_encoding(source, data, position + error.start, bad_line) from None
        nul = piece.find(b"\0", 0, consumed)
        if nul >= 0:
            raise _nul_byte(source, data, position + nul, line + piece.count(b"\n", 0, nul))
        line += piece.count(b"\n", 0, consumed)
        position += consumed
    progress("checking", total, total)


def _wrong_encoding(source: _Source, data: pa.Buffer, offset: int, line: int) -> DataError:
    rest = data[offset : offset + _PIECE_BYTES].to_pybytes()
    head = data[: min(offset, 400)].to_pybytes()
    if head.count(b"\0") > len(head) // 4:
        return _nul_byte(source, data, head.find(b"\0"), 1)
    before = data[max(0, offset - _PIECE_BYTES) : offset].to_pybytes()
    cut_off = offset + 4 > len(data) and rest[0] >= 0xC2 and all(0x80 <= byte < 0xC0 for byte in rest[1:])
    # In a file that is not UTF-8 at all, this would be its first character outside ASCII.
    if cut_off and not before.isascii():
        return DataError(
            source.where,
            f"byte {offset} (line {line}): the file ends in the middle of a character",
            "a whole file is needed",
            "copy or export it again",
        )
    encoding = _guess_encoding(rest)
    seen = f"byte {offset} (line {line}) is 0x{rest[0]:02X}, which is not UTF-8"
    if encoding is None:
        fix = f"find its encoding (iconv -l lists them), then: {source.recode('ENCODING')}"
        return DataError(source.where, seen, "UTF-8 is needed", fix)
    return DataError(source.where, f"{seen}; it looks like {encoding}", "UTF-8 is needed", source.recode(encoding))


def _guess_encoding(text: bytes) -> str | None:
    """Tell the two western encodings apart, and from all others."""
    high = sum(map(len, re.findall(rb"[\x80-\xff]+", text)))
    in_runs = sum(map(len, re.findall(rb"[\x80-\xff]{3,}", text)))
    # Western words hold one or two such characters on end; Greek, Russian or Japanese ones many.
    if in_runs > high // 3 or re.search(rb"[\x81\x8d\x8f\x90\x9d]", text):
        return None
    # Windows puts quotes, dashes and the euro sign where Latin-1 has control characters that nobody writes.
    return "windows-1252" if re.search(rb"[\x80-\x9f]", text) else "latin1"


def _nul_byte(source: _Source, data: pa.Buffer, offset: int, line: int) -> DataError:
    head = data[:400].to_pybytes()
    for parity, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        if len(head) >= 4 and head[parity::2].count(0) > len(head) // 4 and not head[1 - parity :: 2].count(0):
            return DataError(source.where, f"text in {encoding.upper()}", "UTF-8 is needed", source.recode(encoding))
    name = source.name_in_command()
    strip = f"gunzip -c {name} | tr -d '\\000'" if source.gzipped else f"tr -d '\\000' < {name}"
    return DataError(
        source.where,
        f"byte {offset} (line {line}) is NUL",
        "text is needed",
        f"export the table again, or remove the bytes: {strip} > clean.csv",
    )


def _sniff_delimiter(sample: str, wanted: set[str]) -> str:
    r"""Choose the delimiter: the one whose header holds most wanted names, then whose rows are most alike.

    >>> _sniff_delimiter("id;price, in euro\n1;2,5\n", {"id"})
    ';'
    """

    def score(delimiter: str) -> tuple[int, bool, float, int]:
        rows: list[list[str]] = []
        with contextlib.suppress(csv.Error):
            rows.extend(row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if row)
        if not rows:
            return 0, False, 0.0, 0
        # The sample may end in the middle of its last row.
        rows = rows[:-1] if len(rows) > 2 else rows
        width = len(rows[0])
        alike = sum(len(row) == width for row in rows) / len(rows)
        return len(wanted & {name.strip() for name in rows[0]}), width > 1, alike, width

    return max(_DELIMITERS, key=score)


def _read_lines(data: pa.Buffer, start: int) -> Iterator[str]:
    """Yield lines with their ends as they are, so that offsets can be counted."""
    yield from io.TextIOWrapper(pa.BufferReader(data[start:]), encoding="utf-8", newline="")


def _read_header(source: _Source, data: pa.Buffer, start: int, delimiter: str) -> tuple[list[str], int]:
    """Return the header's names, and the offset of the first byte after it."""
    offset = start

    def counted() -> Iterator[str]:
        nonlocal offset
        for line in _read_lines(data, start):
            offset += len(line.encode())
            yield line

    try:
        for row in csv.reader(counted(), delimiter=delimiter):
            if row:
                return row, offset
    except csv.Error as error:
        raise DataError(
            source.where, f"a header that cannot be read ({error})", "a row of names is needed", "check the first line"
        ) from None
    raise DataError(source.where, "only empty lines", "a header and rows are needed", "export the table again")


def _explain_parse_error(
    source: _Source, data: pa.Buffer, start: int, delimiter: str, names: list[str], error: Exception
) -> DataError:
    """Find the line that pyarrow's parser stumbled over; slow, and only on the way out."""
    needed = f"{len(names)} values a row are needed, as in the header"
    limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(_read_lines(data, start), delimiter=delimiter)
        first_line = 1
        for row in reader:
            if row and len(row) != len(names):
                # A quote that never closes takes the rest of the file for one value.
                if reader.line_num - first_line > 100:
                    return DataError(
                        source.where,
                        f"line {first_line}: a quoted value that goes on for {reader.line_num - first_line} lines",
                        needed,
                        'close the quote, or write a quote inside a value as ""',
                    )
                return DataError(
                    source.where,
                    f"line {first_line}: {len(row)} values",
                    needed,
                    "quote values that hold the delimiter, or repair the line",
                )
            first_line = reader.line_num + 1
    except csv.Error as problem:
        return DataError(source.where, f"line {reader.line_num}: {problem}", needed, "repair the line")
    finally:
        csv.field_size_limit(limit)
    return DataError(source.where, _first_line(error), "CSV that can be parsed is needed", "export the table again")


# ---------------------------------------------------------------------------------------------------------------------
# Columns


def _suggest(name: str, candidates: Iterable[str], fix: str) -> str:
    """Fill the fix with the candidates that look like the name, or return nothing.

    >>> _suggest("term", ["Search Term", "campaign", "bid"], "--map term={}")
    "--map term='Search Term'"
    """

    def plain(text: str) -> str:
        return re.sub(r"[\W_]+", "", text).lower()

    def words(text: str) -> set[str]:
        return set(re.split(r"[\W_]+", text.lower())) - {""}

    candidates = list(candidates)
    wanted = plain(name)
    near = [
        text
        for text in candidates
        if plain(text)
        and (words(text) <= words(name) or words(name) <= words(text) or (len(wanted) > 3 and wanted in plain(text)))
    ]
    if not near:
        by_plain = {plain(text): text for text in reversed(candidates)}
        near = [by_plain[text] for text in difflib.get_close_matches(wanted, by_plain, n=1, cutoff=0.6)]
    if not near:
        return ""
    best = max(near, key=lambda text: difflib.SequenceMatcher(None, wanted, plain(text)).ratio())
    return fix.format(f"'{best}'" if re.search(r"\s", best) else best)


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def _rename_columns(
    where: str, raw: pa.Table, declared: Mapping[str, Column], mapping: Mapping[str, str]
) -> dict[str, pa.ChunkedArray]:
    """Give the declared columns our names, in the order of their declaration, and append the others.

    Raises:
        DataError: A column is missing, or two could be meant.
    """
    theirs = raw.column_names
    mapping = {**_find_aliases(where, theirs, declared, mapping), **mapping}
    for ours, name in mapping.items():
        if name not in theirs:
            raise DataError(
                f"{where}, --map {ours}={name}",
                f"no column {name}",
                f"the file has {_list_names(theirs)}",
                _suggest(name, theirs, f"write --map {ours}={{}}") or f"write --map {ours}= with one of these",
            )
    renamed: dict[str, pa.ChunkedArray] = {}
    for name, column in declared.items():
        source = mapping.get(name, name)
        if source in theirs:
            renamed[name] = raw.column(source)
        elif column.required:
            raise DataError(
                where,
                f"no column {name}" + (f" ({column.description})" if column.description else ""),
                f"the file has {_list_names(theirs)}",
                _suggest(name, [text for text in theirs if text not in declared], f"add --map {name}={{}}")
                or f"add --map {name}= with the column that holds it",
            )
    used = set(mapping.values())
    for name in theirs:
        if name in renamed and mapping.get(name, name) != name and name not in used:
            raise DataError(
                f"{where}, --map {name}={mapping[name]}",
                f"the file has a column {name} of its own",
                "each name stands for one column",
                f"rename or drop one of them in the file, or leave out --map {name}={mapping[name]}",
            )
        if name not in used and name not in renamed:
            renamed[name] = raw.column(name)
    return renamed


def _find_aliases(
    where: str, theirs: Sequence[str], declared: Mapping[str, Column], mapping: Mapping[str, str]
) -> dict[str, str]:
    """Return the declared columns that only an alias finds, with the file's name of each."""
    taken = {*declared, *mapping.values()}
    found: dict[str, str] = {}
    for name, column in declared.items():
        if name in theirs or name in mapping:
            continue
        names = [alias for alias in column.aliases if alias in theirs and alias not in taken]
        if len(names) > 1:
            raise DataError(
                where,
                f"columns {' and '.join(names)} could both be {name}",
                "one column is needed",
                f"choose one: --map {name}={names[0]}",
            )
        if names:
            found[name] = names[0]
    return found


def infer_column(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts as float64 if every value in it is a number, and as it is otherwise.

    A number is written in decimal digits, with a point and an exponent where needed. Texts such as `007` are codes, and
    so are whole numbers of 16 digits and more, of which a float64 would lose some. A column without values stays text.

    >>> infer_column(pa.chunked_array([["1", " 2.5", None]])).to_pylist()
    [1.0, 2.5, None]
    >>> infer_column(pa.chunked_array([["1", "007"]])).to_pylist()
    ['1', '007']
    """
    if not _is_text(values.type) or values.null_count == len(values):
        return values
    texts = _empty_to_null(pc.utf8_trim_whitespace(values.cast(pa.string())))
    distinct = pc.unique(texts).drop_null()
    if not len(distinct) or not pc.all(pc.match_substring_regex(distinct, _NUMBER)).as_py():
        return values
    if pc.any(pc.match_substring_regex(distinct, _LONG_CODE)).as_py():
        return values
    return _to_numbers("", texts)


_NUMBER = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,2})?$"
# A whole number of so many digits would lose some of them: it is rather an account's or a card's.
_LONG_CODE = r"^-?\d{16,}$"


def _cast_columns(
    where: str, columns: Mapping[str, pa.ChunkedArray], declared: Mapping[str, Column], other_columns: bool = False
) -> pa.Table:
    cast = {}
    for name, values in columns.items():
        kind = declared[name].kind if name in declared else "text"
        at = f"{where}, column {name}"
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if name in declared and declared[name].missing and _is_text(values.type):
            values = _marks_to_null(values.cast(pa.string()), declared[name].missing)
        if kind == "number":
            cast[name] = _to_numbers(at, values)
        elif kind == "date":
            cast[name] = _to_dates(at, values)
        else:
            cast[name] = _to_texts(at, values)
            if other_columns and name not in declared:
                cast[name] = infer_column(cast[name])
    return pa.table(cast)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _wrong_type(at: str, kind: pa.DataType, needed: str) -> DataError:
    return DataError(at, f"type {kind}", needed, "convert or drop the column in the file")


def _to_numbers(at: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast to float64; NaN becomes a missing value, and negative zero becomes zero."""
    kind = values.type
    if pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_float64(kind):
        numbers = values.cast(pa.float64(), safe=False)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        # Through text: 0.1 of 32 bits means 0.1, as it stands in a CSV file, and not 0.10000000149.
        widened = values.cast(pa.float32()) if pa.types.is_float16(kind) else values
        numbers = widened.cast(pa.string()).cast(pa.float64())
    elif _is_text(kind):
        trimmed = _empty_to_null(pc.utf8_trim_whitespace(values.cast(pa.string())))
        numbers = _parse(at, trimmed, lambda texts: texts.cast(pa.float64()), "a number", _number_fix)
    else:
        raise _wrong_type(at, kind, "numbers are needed")
    numbers = pc.if_else(pc.fill_null(pc.is_nan(numbers), False), pa.scalar(None, pa.float64()), numbers)
    return pc.add(numbers, 0.0)


def _number_fix(value: str) -> str:
    if re.fullmatch(r"[+-]?[\d.]*,\d+", value) or re.fullmatch(r"[+-]?\d{1,3}([,' ]\d{3})+(\.\d+)?", value):
        return "write a decimal point, and no separators of thousands"
    if value.lower() in ("na", "n/a", "null", "none", "-", "?"):
        return "leave the cell empty where a value is missing"
    return "correct the value, or leave the cell empty"


def _to_dates(at: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast to date32: the date as written, without the time of day."""
    kind = values.type
    if pa.types.is_null(kind) or pa.types.is_date(kind):
        return values.cast(pa.date32())
    if pa.types.is_timestamp(kind):
        local = pc.local_timestamp(values) if kind.tz else values
        return pc.floor_temporal(local, unit="day").cast(pa.date32())
    if _is_text(kind):
        trimmed = _empty_to_null(pc.utf8_trim_whitespace(values.cast(pa.string())))
        clock = r"^(\d{4}-\d{2}-\d{2})[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?\s?(Z|[+-]\d{2}:?\d{2})?$"
        days = pc.replace_substring_regex(trimmed, clock, r"\1")
        return _parse(at, days, lambda texts: texts.cast(pa.date32()), "an ISO date", _date_fix)
    raise _wrong_type(at, kind, "dates are needed")


def _date_fix(value: str) -> str:
    return "write it like 2024-01-31, or leave the cell empty"


def _parse(
    at: str,
    texts: pa.ChunkedArray,
    cast: Callable[[pa.ChunkedArray], pa.ChunkedArray],
    what: str,
    fix: Callable[[str], str],
) -> pa.ChunkedArray:
    """Cast texts, or name the first row that cannot be cast."""
    try:
        return cast(texts)
    except pa.ArrowInvalid:
        # The shortest prefix that fails ends with the first bad value.
        good, bad = 0, len(texts)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                cast(texts.slice(good, middle - good))
                good = middle
            except pa.ArrowInvalid:
                bad = middle
        value = str(texts[good].as_py())
        shown = repr(value if len(value) <= 60 else value[:60] + "...")
        raise DataError(
            at, f"row {good + 1} (the header is not counted) is {shown}", f"{what} is needed", fix(value)
        ) from None


def _empty_to_null(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.fill_null(pc.equal(pc.binary_length(texts), 0), False), pa.scalar(None, pa.string()), texts)


def _marks_to_null(texts: pa.ChunkedArray, marks: Sequence[str]) -> pa.ChunkedArray:
    """Turn texts that stand for a missing value into one, whatever spaces are around them."""
    marked = pc.is_in(pc.utf8_trim_whitespace(texts), value_set=pa.array(marks, pa.string()))
    return pc.if_else(marked, pa.scalar(None, pa.string()), texts)


def _to_texts(at: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast to strings, as pandas writes them into CSV; empty strings and NaN become missing values."""
    kind = values.type
    if pa.types.is_floating(kind):
        return _by_distinct_value(values, _write_float)
    if pa.types.is_boolean(kind):
        return _by_distinct_value(values, str)
    if pa.types.is_timestamp(kind):
        return _write_timestamps(values)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            values = values.cast(pa.string())
        except pa.ArrowInvalid:
            raise _wrong_type(at, kind, "texts are needed, and these bytes are not UTF-8") from None
    plain = pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_date(kind)
    if not (plain or pa.types.is_time(kind) or _is_text(values.type)):
        raise _wrong_type(at, kind, "one text, number or date a cell is needed")
    days = values.cast(pa.date32()) if pa.types.is_date64(kind) else values
    return _empty_to_null(days.cast(pa.string()))


def _write_float(value: float) -> str | None:
    return None if value != value else str(value)


def _by_distinct_value(values: pa.ChunkedArray, write: Callable[[Any], str | None]) -> pa.ChunkedArray:
    """Turn values into texts one by one, each distinct value once."""
    distinct = pc.unique(values)
    # NumPy's scalars keep the width of a float, and with it the number of digits that it is written with.
    floats = pa.types.is_floating(values.type)
    listed = list(distinct.to_numpy(zero_copy_only=False)) if floats else distinct.to_pylist()
    texts = [None if value is None else write(value) for value in listed]
    positions = pc.index_in(values, value_set=distinct)
    return pc.take(pa.chunked_array([pa.array(texts, pa.string())]), positions)


def _write_timestamps(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write times as pandas does: the date alone where every time is midnight, else with as few digits as all need."""
    if values.type.tz:
        return _by_distinct_value(values.cast(pa.timestamp("us", values.type.tz), safe=False), str)
    if pc.all(pc.equal(values, pc.floor_temporal(values, unit="day"))).as_py() is not False:
        return values.cast(pa.date32()).cast(pa.string())
    for unit in ("s", "ms", "us", "ns"):
        coarse = values.cast(pa.timestamp(unit), safe=False)
        if pc.all(pc.equal(coarse.cast(values.type), values)).as_py() is not False:
            return coarse.cast(pa.string())
    return values.cast(pa.string())
