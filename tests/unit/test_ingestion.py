"""Reading tables: formats, names, types, and what is said about every kind of broken file."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from mlflywheel.data.ingestion import Ingested, ingest, parse_mapping, write_ingested
from mlflywheel.data.versions import DataVersion, version_table
from mlflywheel.errors import DataError, UsageError
from mlflywheel.models.contract import Column

COLUMNS = (
    Column("campaign_id", "id", required=True, description="the campaign"),
    Column("term", "text", required=True, description="one search term"),
    Column("vertical", "text"),
    Column("clicks", "number"),
    Column("day", "date"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(content: bytes | str, name: str = "terms.csv", **mapping: str) -> pa.Table:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return ingest(name, COLUMNS, mapping).table


def fail(content: bytes | str, name: str = "terms.csv", **mapping: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read(content, name, **mapping)
    return caught.value


# What is read


def test_declared_columns_have_their_types_and_others_are_texts(folder: Path) -> None:
    table = read("other,day,clicks,term,campaign_id\n1.50,2024-02-29, +3.5 ,red shoes ,007\n,,,,\n")
    assert table.schema == pa.schema(
        [
            ("campaign_id", pa.string()),
            ("term", pa.string()),
            ("clicks", pa.float64()),
            ("day", pa.date32()),
            ("other", pa.string()),
        ]
    )
    first, second = table.to_pylist()
    assert first == {
        "campaign_id": "007",
        "term": "red shoes ",
        "clicks": 3.5,
        "day": pd.Timestamp("2024-02-29").date(),
        "other": "1.50",
    }
    assert set(second.values()) == {None}


def test_words_that_look_like_missing_values_stay_texts(folder: Path) -> None:
    assert read("campaign_id,term\nNA,null\nnan,None\n").to_pylist() == [
        {"campaign_id": "NA", "term": "null"},
        {"campaign_id": "nan", "term": "None"},
    ]


def test_nan_and_empty_cells_are_missing_numbers(folder: Path) -> None:
    table = read('campaign_id,term,clicks\n1,a,NaN\n2,b,\n3,c,""\n4,d,-0.0\n')
    assert table["clicks"].to_pylist() == [None, None, None, 0.0]
    assert str(table["clicks"][3]) == "0.0"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_are_found(folder: Path, delimiter: str, line_end: str) -> None:
    rows = [["campaign_id", "term", "clicks"], ["1", '"a, b; c"', "1.5"], ["2", "d", ""]]
    table = read(line_end.join(delimiter.join(row) for row in rows))
    assert table.column_names == ["campaign_id", "term", "clicks"]
    assert table["term"].to_pylist() == ["a, b; c", "d"]


def test_delimiters_inside_values_do_not_mislead(folder: Path) -> None:
    assert read("campaign_id;term\n1;a,b,c\n2;d,e,f\n")["term"].to_pylist() == ["a,b,c", "d,e,f"]
    with_comma_in_header = ingest_with("price, net;name\n1;a\n2;b\n", Column("name", "text", required=True))
    assert with_comma_in_header.column_names == ["name", "price, net"]
    one_column = ingest_with("term\nshoes, red\nshoes; blue\nboots, boots\n", Column("term", "text", required=True))
    assert one_column["term"].to_pylist() == ["shoes, red", "shoes; blue", "boots, boots"]


def ingest_with(content: str, *columns: Column) -> pa.Table:
    Path("other.csv").write_text(content)
    return ingest("other.csv", columns, {}).table


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "noname"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_compression_and_byte_order_marks_are_told_by_content(
    folder: Path, name: str, pack: Callable[[bytes], bytes], mark: bytes
) -> None:
    table = read(pack(mark + "campaign_id,term\n1,größe\n".encode()), name)
    assert table.to_pylist() == [{"campaign_id": "1", "term": "größe"}]


def test_quoted_line_breaks_and_empty_lines_are_read(folder: Path) -> None:
    table = read('\ncampaign_id,"te\nrm"\n\n1,"two\nlines, ""quoted"""\n\n2,b\n', term="te\nrm")
    assert table["term"].to_pylist() == ['two\nlines, "quoted"', "b"]


def test_names_are_stripped_and_the_nameless_get_one(folder: Path) -> None:
    table = read(",campaign_id , term\n0,1,a\n")
    assert table.column_names == ["campaign_id", "term", "column_1"]


def test_one_term_of_20_megabytes_is_read(folder: Path) -> None:
    long = "x" * 20_000_000
    table = read(f'campaign_id,term\n1,a\n2,{long}\n3,"{long}\n"\n4,b\n')
    assert [len(term) for term in table["term"].to_pylist()] == [1, 20_000_000, 20_000_001, 1]


def test_parquet_is_read_whatever_its_name(folder: Path) -> None:
    pq.write_table(pa.table({"campaign_id": [7, None], "term": ["a", ""]}), "table.csv")
    table = ingest("table.csv", COLUMNS, {}).table
    assert table.to_pylist() == [{"campaign_id": "7", "term": "a"}, {"campaign_id": None, "term": None}]


def test_remote_tables_are_read_and_progress_is_told(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/terms.csv.gz", gzip.compress(b"campaign_id,term\n1,a\n"))
    seen: list[tuple[str, int, int]] = []
    ingested = ingest("memory://bucket/terms.csv.gz", COLUMNS, {}, lambda *event: seen.append(event))
    assert ingested.version.rows == 1
    assert ingested.version.source == "memory://bucket/terms.csv.gz"
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["downloading", "decompressing", "checking", "reading", "hashing"]
    for phase in phases:
        steps = [(done, total) for name, done, total in seen if name == phase]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0
    memory.store.clear()


def test_150_000_rows_take_less_than_a_second(folder: Path) -> None:
    rows = "".join(f"{i // 45},some search term {i},Shoes,{i % 97}.5,2024-01-{i % 28 + 1:02}\n" for i in range(150_000))
    Path("big.csv").write_text("campaign_id,term,vertical,clicks,day\n" + rows)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert ingest("big.csv", COLUMNS, {}).table.num_rows == 150_000
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


# One table, several formats


def typed_frame() -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "campaign_id": [1, 2, 3, 4],
            "term": ["a", "", None, "käse"],
            "vertical": pd.Categorical(["x", "y", None, "x"]),
            "clicks": [1, 2**40, 3, 4],
            "day": pd.to_datetime(["2024-01-31", "1969-12-31", "NaT", "2024-02-29"]),
            "double": [1.0, 1e-5, None, 123456789012.5],
            "huge": [1e16, 1e22, -0.1, 5e-324],
            "single": pd.array([0.1, 3.0, 1e-7, 16777216.0], dtype="float32"),
            "flag": [True, False, True, False],
            "midnights": pd.to_datetime(["2024-01-31", "NaT", "2024-02-01", "2024-02-02"]),
            "seconds": pd.to_datetime(["2024-01-31 01:02:03", "NaT", "2024-02-01", "2024-02-02"], format="ISO8601"),
            "milliseconds": pd.to_datetime(
                ["2024-01-31 01:02:03.5", "NaT", "2024-02-01", "1960-02-02"], format="ISO8601"
            ),
            "zoned": pd.to_datetime(
                ["2024-01-31 23:30:00", "NaT", "2024-07-01 00:00:00", "2024-02-02 01:00:00"]
            ).tz_localize("Europe/Berlin"),
        }
    )
    frame["date"] = frame["midnights"].dt.date
    return frame


@pytest.mark.parametrize(
    "columns",
    [
        (),
        (Column("campaign_id", "id"), Column("term", "text"), Column("day", "date"), Column("clicks", "number")),
        (
            Column("campaign_id", "number"),
            Column("double", "number"),
            Column("huge", "number"),
            Column("single", "number"),
            Column("zoned", "date"),
            Column("seconds", "date"),
            Column("date", "date"),
        ),
    ],
)
def test_parquet_and_pandas_csv_have_one_version(folder: Path, columns: tuple[Column, ...]) -> None:
    frame = typed_frame()
    frame.to_csv("a.csv", index=False)
    frame.to_csv("a.csv.gz", index=False, sep=";")
    frame.to_parquet("a.parquet", index=False)
    tables = [ingest(name, columns, {}) for name in ("a.csv", "a.csv.gz", "a.parquet")]
    for name in tables[0].table.column_names:
        texts = [ingested.table[name].to_pylist() for ingested in tables]
        assert texts[0] == texts[1] == texts[2], name
    assert len({ingested.version.hash for ingested in tables}) == 1
    assert len({ingested.version.columns for ingested in tables}) == 1


def test_parquet_and_pyarrow_csv_have_one_version_where_columns_are_declared(folder: Path) -> None:
    table = pa.table(
        {
            "campaign_id": pa.array([1, 2, None], pa.int16()),
            "term": pa.array(["a", None, 'say "b"'], pa.large_string()),
            "clicks": [1.0, 0.25, None],
            "day": pa.array([0, 19000, None], pa.date32()),
            "other": pa.array(["x", "x", "y"]).dictionary_encode(),
        }
    )
    pacsv.write_csv(table, "a.csv")
    pq.write_table(table, "a.parquet", row_group_size=1)
    assert ingest("a.csv", COLUMNS, {}).version.hash == ingest("a.parquet", COLUMNS, {}).version.hash


def test_a_written_table_keeps_its_version(folder: Path) -> None:
    Path("a.csv").write_text("campaign_id,term,clicks,day,x\n1,a,1.5,2024-01-01,\n2,,,,z\n")
    ingested = ingest("a.csv", COLUMNS, {})
    beside = write_ingested(ingested, folder / "out" / "table.parquet")
    assert beside == folder / "out" / "table.parquet.version.json"
    assert DataVersion.read(beside) == ingested.version
    again = pq.read_table(folder / "out" / "table.parquet")
    assert again.equals(ingested.table)
    assert version_table(again).hash == ingested.version.hash
    assert sorted(os.listdir(folder / "out")) == ["table.parquet", "table.parquet.version.json"]
    named = write_ingested(ingested, folder / "out" / "table.parquet", folder / "v" / "version.json")
    assert json.loads(named.read_text())["rows"] == 2
    # Ingesting what was written changes nothing.
    assert ingest("out/table.parquet", COLUMNS, {}).version.hash == ingested.version.hash


# Names


def test_mapping_is_parsed() -> None:
    assert parse_mapping([]) == {}
    assert parse_mapping(["vertical=industry", "term = a=b ", "vertical=industry"]) == {
        "vertical": "industry",
        "term": "a=b",
    }


@pytest.mark.parametrize("items", [["vertical"], ["=x"], ["x="], [""], ["a=b", "a=c"]])
def test_a_mapping_that_cannot_be_meant_is_refused(items: list[str]) -> None:
    with pytest.raises(UsageError, match="--map"):
        parse_mapping(items)


def test_mapping_renames_and_may_use_a_source_twice(folder: Path) -> None:
    table = read("key,words\n7,shoes\n", campaign_id="key", term="words", vertical="key")
    assert table.to_pylist() == [{"campaign_id": "7", "term": "shoes", "vertical": "7"}]


def test_mapping_can_swap_names(folder: Path) -> None:
    table = read("campaign_id,term,vertical\n1,shoes,red\n", term="vertical", vertical="term")
    assert table.to_pylist() == [{"campaign_id": "1", "term": "red", "vertical": "shoes"}]


def test_a_mapping_to_an_undeclared_name_lists_the_declared(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read("campaign_id,term\n1,a\n", verticle="term")
    assert caught.value.needed == "it reads campaign_id, term, vertical, clicks, day"
    assert caught.value.fix == "write --map vertical=term"


def test_a_mapping_from_a_missing_column_suggests_one(folder: Path) -> None:
    error = fail("campaign_id,Search Term\n1,a\n", term="search_term")
    assert error.where == "terms.csv, --map term=search_term"
    assert error.needed == "the file has campaign_id, Search Term"
    assert error.fix == "write --map term='Search Term'"


@pytest.mark.parametrize(
    ("header", "fix"),
    [
        ("campaign_id,Keyword Term", "add --map term='Keyword Term'"),
        ("campaign_id,terms", "add --map term=terms"),
        ("Campaign ID,term", "add --map campaign_id='Campaign ID'"),
        ("campaign,term", "add --map campaign_id=campaign"),
        ("campaign_id,width", "add --map term= with the column that holds it"),
    ],
)
def test_a_missing_required_column_suggests_the_mapping(folder: Path, header: str, fix: str) -> None:
    error = fail(f"{header}\n1,a\n")
    assert error.seen.startswith("no column ")
    assert error.needed == f"the file has {header.replace(',', ', ')}"
    assert error.fix == fix


def test_a_mapped_name_that_the_file_has_too_is_an_error(folder: Path) -> None:
    error = fail("campaign_id,term,vertical,industry\n1,a,b,c\n", vertical="industry")
    assert error.seen == "the file has a column vertical of its own"


def test_repeated_names_are_an_error_with_positions(folder: Path) -> None:
    assert fail("campaign_id,term, term\n1,a,b\n").seen == "columns 2, 3 are all named term"
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["term", "term "]), "a.parquet")
    with pytest.raises(DataError, match="columns 1, 2 are all named term"):
        ingest("a.parquet", COLUMNS, {})


# Broken files


def test_a_missing_file_and_a_folder_are_errors(folder: Path) -> None:
    for uri, seen in (("none.csv", "no such file"), (str(folder), "a folder")):
        with pytest.raises(DataError) as caught:
            ingest(uri, COLUMNS, {})
        assert caught.value.seen == seen


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "an empty file (0 bytes)"),
        (gzip.compress(b""), "an empty file (0 bytes)"),
        (b"campaign_id,term", "a header and 0 rows"),
        (b"campaign_id,term\r\n\r\n\n", "a header and 0 rows"),
        (b"\n\n\n", "only empty lines"),
        (gzip.compress(b"campaign_id,term\n1,a\n" * 1000)[:-20], "the compressed file ends in the middle"),
        (gzip.compress(b"campaign_id,term\n1,a\n" * 1000)[:-8] + b"12345678", None),
        (gzip.compress(gzip.compress(b"campaign_id,term\n")), "compressed twice"),
        (b"PAR1 and then nothing of the kind PAR1", None),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"  <!DOCTYPE html><html>", "a web page or XML, not a table"),
        (b'[{"campaign_id": 1}]', "JSON"),
        (b'{"campaign_id": 1}\n{"campaign_id": 2}\n', "JSON"),
    ],
)
def test_what_is_not_a_table_is_named(folder: Path, content: bytes, seen: str | None) -> None:
    error = fail(content)
    assert error.where == "terms.csv"
    if seen is None:
        assert error.seen.startswith("damaged ")
    else:
        assert error.seen == seen


@pytest.mark.parametrize("name", ["a.xlsx", "a.json", "a.parquet", "a.pickle", "a.json.gz"])
def test_names_of_other_formats_are_refused(folder: Path, name: str) -> None:
    content = b"campaign_id,term\n1,a\n"
    assert fail(gzip.compress(content) if name.endswith(".gz") else content, name).exit_code == 1


def test_a_header_only_parquet_file_has_no_rows(folder: Path) -> None:
    pq.write_table(pa.table({"campaign_id": pa.array([], pa.string()), "term": pa.array([], pa.string())}), "a.parquet")
    with pytest.raises(DataError, match="0 rows"):
        ingest("a.parquet", COLUMNS, {})


def test_a_damaged_parquet_page_is_an_error(folder: Path) -> None:
    pq.write_table(pa.table({"campaign_id": [str(i) for i in range(5000)], "term": ["a"] * 5000}), "a.parquet")
    content = bytearray(Path("a.parquet").read_bytes())
    content[40:3000] = b"\xff" * 2960
    error = fail(bytes(content), "a.parquet")
    assert error.seen.startswith("damaged Parquet")
    assert fail(bytes(content[:-10]), "b.parquet").seen.startswith("damaged Parquet")


def test_parquet_texts_that_are_not_utf8_are_an_error(folder: Path) -> None:
    latin = pa.array([b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"campaign_id": ["1"], "term": latin.view(pa.string())}), "a.parquet")
    with pytest.raises(DataError, match="UTF8"):
        ingest("a.parquet", COLUMNS, {})
    pq.write_table(pa.table({"campaign_id": ["1"], "term": latin}), "b.parquet")
    with pytest.raises(DataError, match="not UTF-8"):
        ingest("b.parquet", COLUMNS, {})


def test_nested_parquet_columns_are_an_error(folder: Path) -> None:
    pq.write_table(pa.table({"campaign_id": ["1"], "term": [["a", "b"]]}), "a.parquet")
    with pytest.raises(DataError, match=r"column term: type list<.*one text, number or date a cell"):
        ingest("a.parquet", COLUMNS, {})


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("1,caf\u00e9 noir", "latin-1", "latin1"),
        ("1,caf\u00e9", "latin-1", "latin1"),
        ("1,5 \u20ac \u2013 caf\u00e9", "cp1252", "windows-1252"),
        ("1,\u043e\u0431\u0443\u0432\u044c \u0438 \u0441\u0443\u043c\u043a\u0438", "cp1251", "ENCODING"),
    ],
)
def test_a_wrong_encoding_is_located_and_guessed(folder: Path, text: str, encoding: str, guess: str) -> None:
    start = b"campaign_id,term\n0,plain\n"
    error = fail(start + text.encode(encoding), "my terms.csv")
    offset = len(start) + next(i for i, character in enumerate(text) if ord(character) > 127)
    assert error.seen.startswith(f"byte {offset} (line 3) is 0x")
    assert error.fix.endswith(f"iconv -f {guess} -t utf-8 'my terms.csv' > utf8.csv")


def test_a_wrong_encoding_far_into_a_compressed_file_is_located(folder: Path) -> None:
    start = b"campaign_id,term\n" + "1,größer\n".encode() * 1_500_000
    error = fail(gzip.compress(start + b"2,gr\xf6\xdfe\n", 1), "terms.csv.gz")
    assert error.seen.startswith(f"byte {len(start) + 4} (line 1500002) is 0xF6")
    assert error.fix == "gunzip -c terms.csv.gz | iconv -f latin1 -t utf-8 > utf8.csv"


def test_a_file_that_ends_within_a_character_is_truncated(folder: Path) -> None:
    error = fail("campaign_id,term\n1,größe\n2,größe".encode()[:-2])
    assert "ends in the middle of a character" in error.seen


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_and_utf32_are_recognised(folder: Path, encoding: str) -> None:
    error = fail("campaign_id,term\n1,größe\n2,b\n".encode(encoding))
    assert error.seen == f"text in {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')}"
    assert error.fix.startswith("iconv -f utf-")


def test_a_nul_byte_is_located(folder: Path) -> None:
    assert fail(b"campaign_id,term\n1,a\n2,b\0c\n").seen == "byte 24 (line 3) is NUL"


@pytest.mark.parametrize(
    ("rows", "line", "values"),
    [
        ("1,a\n2,b,c\n", 3, 3),
        ("1,a\n\n2\n", 4, 1),
        ('1,"a\nb"\n2,"c\nd"\n3,e,f\n', 6, 3),
        ("1,a\n" * 3000 + "2,b,\n", 3002, 3),
    ],
)
def test_ragged_rows_are_named_by_line(folder: Path, rows: str, line: int, values: int) -> None:
    error = fail("campaign_id,term\n" + rows)
    assert error.seen == f"line {line}: {values} values"
    assert error.needed == "2 values a row are needed, as in the header"


def test_a_ragged_row_after_a_long_term_is_named(folder: Path) -> None:
    assert fail(f"campaign_id,term\n1,{'x' * 200_000}\n2\n").seen == "line 3: 1 values"


def test_a_quote_that_never_closes_is_named(folder: Path) -> None:
    error = fail('campaign_id,term,vertical\n1,a,b\n2,"open,c\n' + "3,d,e\n" * 5000)
    assert error.seen.startswith("line 3: a quoted value that goes on for ")


# Broken values


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("12x", "correct the value"),
        ('"1,5"', "write a decimal point"),
        ('"1,234,567.8"', "write a decimal point"),
        ("N/A", "leave the cell empty"),
        ("0x10", "correct the value"),
        ("true", "correct the value"),
    ],
)
def test_a_bad_number_is_named_by_row_and_value(folder: Path, value: str, fix: str) -> None:
    good = "1,a,1.5\n,,\n" * 1000
    error = fail(f"campaign_id,term,clicks\n{good}2,b,{value}\n{good}")
    plain = value.strip('"')
    assert error.where == "terms.csv, column clicks"
    assert error.seen == f"row 2001 (the header is not counted) is {plain!r}"
    assert error.fix.startswith(fix)


@pytest.mark.parametrize("value", ["2024-02-30", "31.01.2024", "01/31/2024", "2024-1-31", "20240131", "yesterday", "0"])
def test_a_bad_date_is_named_by_row_and_value(folder: Path, value: str) -> None:
    error = fail(f"campaign_id,term,day\n1,a,2024-01-31\n2,b,{value}\n3,c,{value}\n")
    assert error.seen == f"row 2 (the header is not counted) is {value!r}"
    assert error.fix == "write it like 2024-01-31, or leave the cell empty"


def test_dates_are_taken_as_written(folder: Path) -> None:
    written = ["2024-01-31", " 2024-01-31 ", "2024-01-31T23:59", "2024-01-31 23:59:59.25+01:00", "2024-01-31 00:00:00Z"]
    table = read("campaign_id,term,day\n" + "".join(f"1,a,{value}\n" for value in written))
    assert {str(day) for day in table["day"].to_pylist()} == {"2024-01-31"}


def test_parquet_types_that_cannot_be_meant_are_errors(folder: Path) -> None:
    for column, values in (("clicks", [True]), ("day", [20240131]), ("clicks", pa.array([0], pa.date32()))):
        pq.write_table(pa.table({"campaign_id": ["1"], "term": ["a"], column: values}), "a.parquet")
        with pytest.raises(DataError, match=f"column {column}: type .* are needed"):
            ingest("a.parquet", COLUMNS, {})


def test_credentials_do_not_enter_the_version(folder: Path) -> None:
    ingested = Ingested(pa.table({"a": ["x"]}), version_table(pa.table({"a": ["x"]}), "https://u:pw@h/a.csv?sig=s"))
    write_ingested(ingested, Path("a.parquet"))
    assert DataVersion.read(Path("a.parquet.version.json")).source == "https://h/a.csv?sig=***"


def test_alias_finds_a_column_that_has_another_name(folder: Path) -> None:
    power = Column("power", "number", aliases=("hp", "ps"))
    assert ingest_with("make,hp\nFord,90\n", Column("make", "text"), power)["power"].to_pylist() == [90.0]
    # Our own name and a mapping come first; the other column stays what it is.
    own = ingest_with("power,hp\n90,1\n", power)
    assert own.to_pylist() == [{"power": 90.0, "hp": "1"}]
    Path("mapped.csv").write_text("kw,hp\n66,90\n")
    assert ingest("mapped.csv", [power], {"power": "kw"}).table.to_pylist() == [{"power": 66.0, "hp": "90"}]


def test_alias_that_is_another_declared_column_is_not_taken(folder: Path) -> None:
    columns = (Column("price", "number", aliases=("cost",)), Column("cost", "number"))
    assert ingest_with("cost\n5\n", *columns).to_pylist() == [{"cost": 5.0}]


def test_two_aliases_in_one_file_are_refused_with_what_to_write(folder: Path) -> None:
    with pytest.raises(DataError, match="--map power=hp"):
        ingest_with("hp,ps\n90,91\n", Column("power", "number", aliases=("hp", "ps")))


@pytest.mark.parametrize(
    ("kind", "value", "expected"), [("number", "7", 7.0), ("text", "x", "x"), ("id", "007", "007")]
)
def test_marks_of_a_missing_value_are_those_that_the_column_lists(
    kind: Any, value: str, expected: Any, folder: Path
) -> None:
    column = Column("a", kind, missing=("N/A", "-"))
    table = ingest_with(f"a,b\n{value},N/A\n N/A ,-\n-,x\n", column)
    assert table["a"].to_pylist() == [expected, None, None]
    assert table["b"].to_pylist() == ["N/A", "-", "x"]


def test_mark_that_nobody_listed_is_still_refused_in_numbers(folder: Path) -> None:
    with pytest.raises(DataError, match="'null'"):
        ingest_with("a\n1\nnull\n", Column("a", "number", missing=("N/A",)))
