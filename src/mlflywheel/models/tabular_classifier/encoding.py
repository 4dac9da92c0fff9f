"""From prepared rows to the float32 columns that both algorithms read, and back to the feature of each column.

A number is one column, NaN where it is missing. A category is one column of zeros and ones for each value that at least
`min_category_rows` training rows have, the most frequent `max_categories` of them, and one for all others if there are
any, and one for missing if there is any. Nothing of the target is in them, so training rows need no folds, and trees
need no native categories, which converters to ONNX get wrong without an error.

A value that no training row had is counted with the rare ones, where there were any; else all columns of the category
are zero, and its contribution is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.models.arrays import check_texts
from mlflywheel.models.tabular_classifier.preparation import Kind, is_text, read_column, read_numbers, read_texts


@dataclass(frozen=True)
class Category:
    """A categorical feature.

    Args:
        name: The column.
        levels: Values with a column of their own, sorted.
        has_rare: Whether training rows had other values.
        has_missing: Whether training rows had none.
    """

    name: str
    levels: tuple[str, ...]
    has_rare: bool
    has_missing: bool

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.levels) + self.has_rare + self.has_missing

    @cached_property
    def columns(self) -> NDArray[np.float32]:
        """What each code becomes, float32 (levels + 2, width); behind the levels stand unknown, then missing."""
        count = len(self.levels)
        table = np.zeros((count + 2, self.width), dtype=np.float32)
        table[np.arange(count), np.arange(count)] = 1.0
        if self.has_rare:
            table[count, count] = 1.0
        if self.has_missing:
            table[count + 1, count + self.has_rare] = 1.0
        return table

    @cached_property
    def lookup(self) -> dict[str, int]:
        """Code of each level."""
        return {text: code for code, text in enumerate(self.levels)}


@dataclass(frozen=True)
class Rows:
    """Rows as arrays.

    Args:
        numbers: float64 (rows, numbers), each a float32, NaN where missing.
        unreadable: bool (rows, numbers): a text that is no number.
        codes: int64 (rows, categories): place in the levels; their count for unknown, and one more for missing.
        encoded: float32 (rows, columns), C-ordered.
    """

    numbers: NDArray[np.float64]
    unreadable: NDArray[np.bool_]
    codes: NDArray[np.int64]
    encoded: NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """The features that a model reads.

    Args:
        numbers: Numeric features, in order.
        ranges: Smallest and largest training value of each, float32.
        number_missing: Whether training rows lacked each.
        categories: Categorical features, in order.
    """

    numbers: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    number_missing: tuple[bool, ...]
    categories: tuple[Category, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features: numbers, then categories."""
        return self.numbers + tuple(category.name for category in self.categories)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The feature of each encoded column, int64 (columns,)."""
        widths = [1] * len(self.numbers) + [category.width for category in self.categories]
        return np.repeat(np.arange(len(widths), dtype=np.int64), widths)

    @cached_property
    def limits(self) -> NDArray[np.float64]:
        """Smallest and largest training value of each number, float64 (2, numbers)."""
        return np.array(self.ranges, dtype=np.float64).reshape(-1, 2).T

    @classmethod
    def learn(cls, table: pa.Table, kinds: Mapping[str, Kind], min_rows: int, most: int) -> "Encoder":
        """Take every feature of training rows that tells rows apart.

        Args:
            table: Prepared training rows.
            kinds: Features, in order, with the kind of each.
            min_rows: Rows that a category's value needs for a column of its own.
            most: Values of a category that get one, the most frequent ones.
        """
        numbers, ranges, missing, categories = [], [], [], []
        for name, kind in kinds.items():
            values = read_column(table, name)
            if values is None:
                continue
            if kind == "number":
                found = _to_float32(read_numbers(values))
                known = found[~np.isnan(found)]
                if len(known) and (known.min() < known.max() or len(known) < len(found)):
                    numbers.append(name)
                    ranges.append((float(known.min()), float(known.max())))
                    missing.append(len(known) < len(found))
                continue
            counted = {item["values"]: item["counts"] for item in pc.value_counts(read_texts(values)).to_pylist()}
            absent = counted.pop(None, 0)
            frequent = sorted(counted, key=lambda text: (-counted[text], text))
            levels = tuple(sorted(text for text in frequent[:most] if counted[text] >= min_rows))
            category = Category(name, levels, len(levels) < len(counted), absent > 0)
            if category.width > 1:
                categories.append(category)
        return cls(tuple(numbers), tuple(ranges), tuple(missing), tuple(categories))

    def read(self, table: pa.Table) -> Rows:
        """Turn prepared rows into arrays; a column that is not there is missing in every row.

        Columns may be numbers or texts whatever the feature is: a request and a file do not always agree.
        """
        rows = table.num_rows
        numbers = np.full((rows, len(self.numbers)), np.nan)
        unreadable = np.zeros((rows, len(self.numbers)), dtype=bool)
        for position, name in enumerate(self.numbers):
            values = read_column(table, name)
            if values is not None:
                found = read_numbers(values)
                numbers[:, position] = found
                if is_text(values.type):
                    given = ~read_texts(values).is_null().to_numpy(zero_copy_only=False)
                    unreadable[:, position] = given & np.isnan(found)
        numbers = _to_float32(numbers)
        codes = np.empty((rows, len(self.categories)), dtype=np.int64)
        for position, category in enumerate(self.categories):
            codes[:, position] = _read_codes(read_column(table, category.name), category, rows)
        encoded = np.empty((rows, len(self.owners)), dtype=np.float32)
        width = len(self.numbers)
        encoded[:, :width] = numbers
        for position, category in enumerate(self.categories):
            encoded[:, width : width + category.width] = category.columns[codes[:, position]]
            width += category.width
        return Rows(numbers, unreadable, codes, encoded)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "numbers": list(self.numbers),
            "ranges": [list(ends) for ends in self.ranges],
            "number_missing": list(self.number_missing),
            "categories": [
                {
                    "name": category.name,
                    "levels": list(category.levels),
                    "has_rare": category.has_rare,
                    "has_missing": category.has_missing,
                }
                for category in self.categories
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Encoder":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: A name that is no text or stands twice, or not one range a number.
        """
        numbers = check_texts(values["numbers"], "numbers")
        ranges = tuple((float(low), float(high)) for low, high in values["ranges"])
        number_missing = tuple(bool(flag) for flag in values["number_missing"])
        # Widths are counted with these flags: a large number in their place would ask for as many columns.
        categories = tuple(
            Category(
                str(entry["name"]),
                check_texts(entry["levels"], "levels"),
                entry["has_rare"] is True,
                entry["has_missing"] is True,
            )
            for entry in values["categories"]
        )
        found = cls(numbers, ranges, number_missing, categories)
        if not len(numbers) == len(ranges) == len(number_missing):
            raise ValueError("there is not one range a number")
        if len(set(found.features)) < len(found.features) or not all(category.width for category in categories):
            raise ValueError("a feature stands twice, or has no column")
        return found


def _to_float32(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to float32, which the graph and the trees read; what is beyond it becomes its largest value."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(numbers, -largest, largest).astype(np.float32).astype(np.float64)


def _read_codes(values: pa.Array | None, category: Category, rows: int) -> NDArray[np.int64]:
    count = len(category.levels)
    if values is None:
        return np.full(rows, count + 1, dtype=np.int64)
    encoded = read_texts(values).dictionary_encode()
    codes = np.array(
        [category.lookup.get(text, count) for text in encoded.dictionary.to_pylist()] + [count + 1], dtype=np.int64
    )
    places = pc.fill_null(encoded.indices, len(codes) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(codes[places], dtype=np.int64)
