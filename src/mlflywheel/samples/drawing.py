"""Seeded draws that give the same numbers with every version of NumPy, and writing what was drawn.

The draws use the raw output of PCG64, which NumPy promises never to change, and not the methods of a `Generator`, which
it may improve. Each draw has a name and a stream of its own, so that a new kind of noise moves no other.
"""

import csv
import gzip
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlflywheel.errors import UsageError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def draw_words(seed: int, name: str, count: int) -> npt.NDArray[np.uint64]:
    """Draw 64-bit words from the stream of a name."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, *name.encode()]))
    words: npt.NDArray[np.uint64] = stream.random_raw(count)
    return words


def draw_uniforms(seed: int, name: str, count: int) -> Floats:
    """Draw doubles in [0, 1) from the upper 53 bits.

    >>> draw_uniforms(7, "example", 2).round(6).tolist()
    [0.024293, 0.772947]
    """
    return (draw_words(seed, name, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_normals(seed: int, name: str, count: int) -> Floats:
    """Draw nearly normal doubles: sums of 12 uniforms, exact on every machine, and cut off at 6 deviations."""
    uniforms = draw_uniforms(seed, name, 12 * count).reshape(12, count)
    total = np.full(count, -6.0)
    for row in uniforms:
        total += row
    return total


def choose(shares: Floats, u: Floats) -> Ints:
    """Turn uniforms into numbers 0, 1, ... with the given shares (any positive scale).

    >>> choose(np.array([1.0, 3.0]), np.array([0.2, 0.3])).tolist()
    [0, 1]
    """
    ends = np.cumsum(shares)
    chosen: Ints = np.searchsorted(ends[:-1], u * ends[-1], side="right").astype(np.int64)
    return chosen


def write_table(path: str | Path, table: pa.Table, decimals: Mapping[str, int] | None = None) -> Path:
    """Write a sample as its suffix says, all or nothing.

    Args:
        path: Ends in `.csv`, `.csv.gz` or `.parquet`; missing folders are made, an existing file is replaced.
        table: What to write.
        decimals: Column of numbers to how many decimals a CSV file shows.

    Returns:
        The path written. Equal tables give equal bytes on one machine.

    Raises:
        UsageError: Another suffix.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(".csv"):
        content = _encode_csv(table, decimals or {})
    elif name.endswith(".csv.gz"):
        content = _compress(_encode_csv(table, decimals or {}))
    elif name.endswith(".parquet"):
        content = _encode_parquet(table)
    else:
        raise UsageError(
            str(path),
            f"suffix {path.suffix!r}",
            "a sample is written as .csv, .csv.gz or .parquet",
            "name the file sample.csv.gz, say",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode_csv(table: pa.Table, decimals: Mapping[str, int]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = table.to_pydict()
    for name, digits in decimals.items():
        columns[name] = [None if value is None else f"{value:.{digits}f}" for value in columns[name]]
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue().encode("utf-8")


def _compress(content: bytes) -> bytes:
    buffer = io.BytesIO()
    # No name and no time in the header: both would differ between two writes of the same rows.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def _encode_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
