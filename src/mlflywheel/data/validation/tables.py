"""Turning arrow tables into the frames that Great Expectations checks.

Conventions, so that a rule means the same for every source:

- A blank cell of a text column counts as missing: CSV writers do not agree on how to write a missing text.
- Dates and timestamps become timestamps without a time zone, in UTC. Text is read as an ISO date where a rule compares
  the column with a date.
- Only columns that rules read are converted.

Great Expectations cannot look into a list, so a table with the column `terms` gets columns computed from it
(`DERIVED`):

- `terms_count`: int, terms of the campaign; 0 for a missing list.
- `unreadable_share`: float in 0 to 1, share of its terms without any letter, with the replacement character U+FFFD, or
  with the marks of UTF-8 read as Windows-1252 (`cafÃ©`); missing for a campaign without terms.
- `document_hash`: text, hash of the set of its terms, so that equal campaigns have equal hashes whatever the order and
  repetition; missing for a campaign without terms.
- `weights_fit_terms`: true if there are as many `weights` as terms, and all are finite and not negative.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.data.validation.masking import mask_value

if TYPE_CHECKING:
    import pandas as pd

#: Computed column: the columns that it is computed from.
DERIVED: Mapping[str, tuple[str, ...]] = {
    "terms_count": ("terms",),
    "longest_term_characters": ("terms",),
    "unreadable_share": ("terms",),
    "document_hash": ("terms",),
    "weights_fit_terms": ("terms", "weights"),
}

# UTF-8's second byte is 0x80 to 0xBF; read as Windows-1252 it becomes one of these, and as Latin-1 U+0080 to U+00BF.
# Lower case too, because preparing lower-cases: no language writes "ã©" or "â€".
_READ_AS_WINDOWS_1252 = re.compile(
    "[ÃÂãâ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]|â€"
)


@dataclass(frozen=True)
class Frame:
    """One table, ready to be checked.

    Args:
        table: The table with its computed columns.
        values: The columns that rules read, with a row index from 0.
        problems: Column to the reason why it cannot be checked.
    """

    table: pa.Table
    values: "pd.DataFrame"
    problems: Mapping[str, str]

    def cell(self, column: str, row: int) -> Any:
        """Return one cell as a Python value; `row` counts from 0."""
        return self.table[column][row].as_py()


def absent_columns(table: pa.Table, columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns that the table lacks, each with the source columns that it would need."""
    names = set(table.column_names)
    found: dict[str, tuple[str, ...]] = {}
    for column in columns:
        sources = tuple(source for source in _sources(table, column) if source not in names)
        if sources:
            found[column] = sources
    return found


def _sources(table: pa.Table, column: str) -> tuple[str, ...]:
    return (column,) if column in table.column_names else DERIVED.get(column, (column,))


def build_frame(table: pa.Table, columns: Iterable[str], dates: Iterable[str]) -> Frame:
    """Convert the columns that rules read.

    Args:
        table: Any table.
        columns: Columns that rules read; absent ones are ignored.
        dates: Those of them that are compared with a date.
    """
    import pandas as pd

    wanted = [column for column in dict.fromkeys(columns) if not absent_columns(table, [column])]
    table = _with_derived(table, wanted)
    problems: dict[str, str] = {}
    series: dict[str, Any] = {}
    for column in wanted:
        values = _decode(table[column])
        if pa.types.is_nested(values.type):
            computed = [name for name, sources in DERIVED.items() if column in sources]
            hint = f"; rules can read {', '.join(computed)}" if computed else ""
            problems[column] = f"column {column} holds {values.type}{hint}"
        elif column in set(dates) and _is_text(values.type):
            parsed, problem = _parse_dates(values, column)
            if problem:
                problems[column] = problem
            else:
                series[column] = parsed.to_pandas()
        else:
            series[column] = values.to_pandas()
    frame = pd.DataFrame(series, index=pd.RangeIndex(table.num_rows), copy=False)
    return Frame(table, frame, problems)


def is_text(table: pa.Table, column: str) -> bool:
    """Return whether a column of the table holds text."""
    return column in table.column_names and _is_text(_value_type(table.schema.field(column).type))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _decode(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bring a column to a type that pandas compares the way its values read."""
    kind = _value_type(values.type)
    if kind is not values.type:
        values = values.cast(kind)
    if _is_text(kind):
        values = values.cast(pa.large_string())
        blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(values)), 0)
        return pc.if_else(blank, pa.scalar(None, pa.large_string()), values)
    if pa.types.is_decimal(kind):
        return values.cast(pa.float64())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # Casting from a time zone to none keeps the instant, in UTC.
        return values.cast(pa.timestamp("us"), safe=False)
    return values


def _parse_dates(values: pa.ChunkedArray, column: str) -> tuple[pa.ChunkedArray, str]:
    encoded = values.combine_chunks().dictionary_encode()
    parsed: list[datetime | None] = []
    for text in encoded.dictionary.to_pylist():
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            row = pc.index(values, pa.scalar(text, values.type)).as_py() + 1
            return values, f"column {column} holds text that is not an ISO date: {mask_value(text)!r} in row {row}"
        parsed.append(moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment)
    lookup = pa.array(parsed, pa.timestamp("us"))
    return pa.chunked_array([lookup.take(encoded.indices)]), ""


def _with_derived(table: pa.Table, columns: Iterable[str]) -> pa.Table:
    wanted = [column for column in columns if column in DERIVED and column not in table.column_names]
    if not wanted:
        return table
    terms = table["terms"].combine_chunks()
    if not (pa.types.is_list(terms.type) or pa.types.is_large_list(terms.type)) or not _is_text(terms.type.value_type):
        # Nothing can be computed; the rules on computed columns then fail with the reason.
        return table
    encoded = terms.flatten().dictionary_encode()
    words: list[str | None] = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    counts = pc.fill_null(pc.list_value_length(terms), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    for column in wanted:
        if column == "terms_count":
            values: pa.Array = pa.array(counts)
        elif column == "longest_term_characters":
            values = _longest_term(words, codes, counts)
        elif column == "unreadable_share":
            values = _unreadable_share(words, codes, counts)
        elif column == "document_hash":
            values = _document_hash(words, codes, counts)
        else:
            values = _weights_fit(table["weights"].combine_chunks(), counts)
        table = table.append_column(column, values)
    return table


def is_unreadable(term: str | None) -> bool:
    """Return whether a term cannot be read as words.

    >>> [is_unreadable(term) for term in ("running shoe", "München", "跑鞋", "24/7", "caf\ufffd", "cafÃ©", "itâ€™s")]
    [False, False, False, True, True, True, True]
    """
    if term is None or "\ufffd" in term:
        return True
    return not any(character.isalpha() for character in term) or bool(_READ_AS_WINDOWS_1252.search(term))


def _longest_term(words: list[str | None], codes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> pa.Array:
    lengths = np.array([len(word or "") for word in [*words, None]], dtype=np.int64)[codes]
    longest = np.zeros(len(counts), dtype=np.int64)
    np.maximum.at(longest, np.repeat(np.arange(len(counts)), counts), lengths)
    return pa.array(longest, mask=counts == 0)


def _unreadable_share(words: list[str | None], codes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> pa.Array:
    unreadable = np.array([is_unreadable(word) for word in [*words, None]], dtype=np.float64)[codes]
    totals = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=unreadable, minlength=len(counts))
    with np.errstate(invalid="ignore"):
        shares = totals / counts
    return pa.array(shares, mask=counts == 0)


def _document_hash(words: list[str | None], codes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> pa.Array:
    # Ranks sort like the words and are cheaper to sort a hundred thousand times.
    texts = [word or "" for word in [*words, None]]
    order = sorted(set(texts))
    rank_of = {text: rank for rank, text in enumerate(order)}
    ranks = np.array([rank_of[text] for text in texts], dtype=np.int64)[codes]
    hashes: list[str | None] = []
    start = 0
    for count in counts.tolist():
        if count == 0:
            hashes.append(None)
            continue
        text = "\x00".join(order[rank] for rank in np.unique(ranks[start : start + count]).tolist())
        hashes.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest())
        start += count
    return pa.array(hashes, pa.string())


def _weights_fit(weights: pa.Array, counts: npt.NDArray[np.int64]) -> pa.Array:
    if not (pa.types.is_list(weights.type) or pa.types.is_large_list(weights.type)):
        return pa.array([False] * len(counts))
    lengths = pc.fill_null(pc.list_value_length(weights), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = weights.flatten().cast(pa.float64()).fill_null(math.nan).to_numpy(zero_copy_only=False)
    bad = ~(np.isfinite(flat) & (flat >= 0))
    bad_counts = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=bad, minlength=len(lengths))
    return pa.array((lengths == counts) & (bad_counts == 0))
