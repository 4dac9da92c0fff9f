"""From listings to the numbers that the trees read, and back to the feature that each number came from.

Native categories would be simplest, but skl2onnx converts them wrongly and without an error, and HistGradientBoosting
takes at most 255 of them where marketplaces have a thousand models. So each category becomes a few numbers:

- its level: the mean log price of its listings, shrunk towards the mean of what stands above it (a model's make, or
  everything) by the count of its listings: `(sum + smoothing * prior) / (count + smoothing)` (Micci-Barreca, "A
  preprocessing scheme for high-cardinality categorical attributes", SIGKDD Explorations 2001);
- for makes and models, its premium: the same mean of what a ridge regression on the numbers alone leaves over, which
  tells a dear make from one whose listings happen to be new;
- for models, the mean of each number that belongs to the build (power, engine size), and the logarithm of their count.
  These hold no price.

A training row's own price must not be in its encoding, so training rows get numbers from the other folds.

A category that is missing, unknown, or has fewer listings than `min_category_rows` is NaN in all its numbers; the trees
have learned from masked copies of training rows what to do then.

Every number is a float32. Thresholds are too (`ensemble`), so Python and ONNX Runtime take the same branch everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.models.arrays import check_texts, read_array
from mlflywheel.models.vehicle_price.preparation import CATEGORIES, NUMBERS, clean_text, read_column

#: Joins a make and a model into one key; no text of a listing holds it after `clean_text`.
SEPARATOR = "\x1f"
_PARENT = {"model": "make"}
_WITH_PREMIUM = ("make", "model")
# What a build is, as against what happened to one vehicle.
_BUILD = ("power_hp", "engine_size")
_SMALL_TABLE_ROWS = 64


@dataclass(frozen=True)
class Listings:
    """Listings as arrays: what `encode` takes, and what masking edits.

    Args:
        numbers: float64 (rows, numbers), NaN where missing.
        codes: int64 (rows, categories): index into the levels of each category, -1 where missing or unknown.
    """

    numbers: NDArray[np.float64]
    codes: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> "Listings":
        """Return some rows, by position or mask."""
        return Listings(self.numbers[rows], self.codes[rows])


@dataclass(frozen=True)
class Schema:
    """What a model reads: its features and, for each category, the texts that it has seen.

    Args:
        numbers: Names of numeric features, in order.
        categories: Names of categorical features, in order; a make stands before the model.
        levels: Sorted keys of each category, as `make_key` writes them; a model's key begins with its make's.
        spellings: The most frequent spelling of each key.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    spellings: tuple[tuple[str, ...], ...]

    @cached_property
    def _lookups(self) -> tuple[dict[str, int], ...]:
        return tuple({key: code for code, key in enumerate(keys)} for keys in self.levels)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features: numbers, then categories."""
        return self.numbers + self.categories

    @classmethod
    def learn(cls, table: pa.Table) -> "Schema":
        """Take every feature of a prepared table that has a value in at least one row."""
        filled = [name for name in table.column_names if table[name].null_count < table.num_rows]
        numbers = tuple(name for name in NUMBERS if name in filled)
        categories = tuple(name for name in CATEGORIES if name in filled)
        levels, spellings = [], []
        for name in categories:
            counted = pc.value_counts(_spell(table, name, categories)).to_pylist()
            best: dict[str, tuple[int, str]] = {}
            for item in counted:
                if item["values"] is not None:
                    key = make_key(item["values"])
                    best[key] = max(best.get(key, (0, "")), (item["counts"], item["values"]))
            keys = tuple(sorted(best))
            levels.append(keys)
            spellings.append(tuple(best[key][1] for key in keys))
        return cls(numbers, categories, tuple(levels), tuple(spellings))

    def read(self, table: pa.Table) -> Listings:
        """Turn prepared rows into arrays; a column that is not there is missing in every row."""
        rows = table.num_rows
        numbers = np.full((rows, len(self.numbers)), np.nan)
        for position, name in enumerate(self.numbers):
            values = read_column(table, name)
            if values is not None:
                numbers[:, position] = values.to_numpy(zero_copy_only=False)
        # What the trees read is a float32, so ranges are checked on one too.
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32).astype(np.float64)
        codes = np.full((rows, len(self.categories)), -1, dtype=np.int64)
        for position, name in enumerate(self.categories):
            values = read_column(table, name)
            if values is None or values.null_count == rows:
                continue
            if rows <= _SMALL_TABLE_ROWS:
                texts = values.to_pylist()
                if name in _PARENT and _PARENT[name] in self.categories:
                    parents = read_column(table, _PARENT[name])
                    above = [None] * rows if parents is None else parents.to_pylist()
                    texts = [join_texts(parent, text) for parent, text in zip(above, texts, strict=True)]
                lookup = self._lookups[position]
                codes[:, position] = [-1 if text is None else lookup.get(make_key(text), -1) for text in texts]
            else:
                encoded = _spell(table, name, self.categories).dictionary_encode()
                lookup = self._lookups[position]
                found = np.array([lookup.get(make_key(text), -1) for text in encoded.dictionary.to_pylist()] + [-1])
                codes[:, position] = found[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
        return Listings(numbers, codes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "numbers": list(self.numbers),
            "categories": list(self.categories),
            "levels": [list(keys) for keys in self.levels],
            "spellings": [list(texts) for texts in self.spellings],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: A feature that there is not, or twice, or not one list of texts a category.
        """
        numbers = check_texts(values["numbers"], "numbers")
        categories = check_texts(values["categories"], "categories")
        # A category's name becomes a file's name.
        for names, known in ((numbers, NUMBERS), (categories, CATEGORIES)):
            if not set(names) <= set(known) or len(set(names)) < len(names):
                raise ValueError(f"{', '.join(names)} are not among the features")
        levels = tuple(check_texts(keys, "levels") for keys in values["levels"])
        spellings = tuple(check_texts(texts, "spellings") for texts in values["spellings"])
        sizes = [len(keys) for keys in levels]
        if len(sizes) != len(categories) or sizes != [len(texts) for texts in spellings]:
            raise ValueError("levels and spellings are not those of the categories")
        return cls(numbers, categories, levels, spellings)


def make_key(text: str) -> str:
    """Return what spellings of one category have in common: words in lower case, single spaces.

    >>> make_key(" Alfa  ROMEO")
    'alfa romeo'
    """
    return SEPARATOR.join(clean_text(part).casefold() for part in text.split(SEPARATOR))


def join_texts(make: str | None, model: str | None) -> str | None:
    """Return a make and its model as one text, None if one is missing: a model's name means little without its make."""
    return None if make is None or model is None else f"{make}{SEPARATOR}{model}"


def _spell(table: pa.Table, name: str, categories: Sequence[str]) -> pa.Array:
    """Return a category's texts, a model's behind its make's."""
    values = read_column(table, name)
    if name in _PARENT and _PARENT[name] in categories:
        parents = read_column(table, _PARENT[name])
        if parents is None:
            return pa.nulls(table.num_rows, pa.string())
        return pc.binary_join_element_wise(parents, values, SEPARATOR)
    return values


@dataclass(frozen=True)
class Encoder:
    """Numbers for every level of every category.

    Args:
        schema: The features.
        names: Name of each encoded column: a number's own, or category and statistic, such as `model.premium`.
        owners: Index into `schema.features` of each encoded column.
        values: For each category, float32 (levels, statistics); NaN for a level with too few rows.
    """

    schema: Schema
    names: tuple[str, ...]
    owners: NDArray[np.int64]
    values: tuple[NDArray[np.float32], ...]

    @classmethod
    def read(cls, folder: Path, values: Mapping[str, Any]) -> "Encoder":
        """Read the numbers of every category from a folder.

        Args:
            folder: It holds an npy file for each category.
            values: `schema`, `columns` and `owners`, JSON values.

        Raises:
            ValueError: They do not fit each other: compiled code writes where `owners` says.
        """
        schema = Schema.from_dict(values["schema"])
        names = check_texts(values["columns"], "columns")
        tables = tuple(
            read_array(folder / f"{name}.npy", np.float32, (len(keys), None))
            for name, keys in zip(schema.categories, schema.levels, strict=True)
        )
        widths = [1] * len(schema.numbers) + [table.shape[1] for table in tables]
        owners = np.repeat(np.arange(len(widths), dtype=np.int64), widths)
        if values["owners"] != owners.tolist() or len(names) != len(owners) or 0 in widths:
            raise ValueError("the encoded columns are not those of the features")
        return cls(schema, names, owners, tables)

    @cached_property
    def _padded(self) -> tuple[NDArray[np.float32], ...]:
        # Code -1, missing or unknown, finds the last row.
        return tuple(np.vstack([table, np.full((1, table.shape[1]), np.nan, np.float32)]) for table in self.values)

    def encode(self, listings: Listings) -> NDArray[np.float32]:
        """Return float32 (rows, encoded columns), C-ordered."""
        encoded = np.empty((len(listings.numbers), len(self.names)), dtype=np.float32)
        width = listings.numbers.shape[1]
        encoded[:, :width] = listings.numbers
        for position, table in enumerate(self._padded):
            encoded[:, width : width + table.shape[1]] = table[listings.codes[:, position]]
            width += table.shape[1]
        return encoded

    def is_known(self, listings: Listings) -> NDArray[np.bool_]:
        """Return whether each category has numbers, bool (rows, categories)."""
        known = [~np.isnan(table[listings.codes[:, position], 0]) for position, table in enumerate(self._padded)]
        return np.column_stack(known) if known else np.zeros((len(listings.codes), 0), dtype=bool)


def fit_encoder(
    schema: Schema, listings: Listings, log_price: NDArray[np.float64], smoothing: float, min_rows: int
) -> Encoder:
    """Learn the numbers of every category from all rows.

    Args:
        schema: The features.
        listings: Rows.
        log_price: Their log prices.
        smoothing: Number of listings that the prior counts as.
        min_rows: Levels with fewer rows are unknown.
    """
    mean = float(log_price.mean())
    rest = log_price - _predict_by_ridge(listings.numbers, log_price)
    names = list(schema.numbers)
    owners = list(range(len(schema.numbers)))
    values: list[NDArray[np.float32]] = []
    upper: dict[str, dict[str, NDArray[np.float64]]] = {}
    for position, name in enumerate(schema.categories):
        codes = listings.codes[:, position]
        seen = codes >= 0
        levels = len(schema.levels[position])
        counts = np.bincount(codes[seen], minlength=levels).astype(np.float64)
        above = _find_parents(schema, position)
        targets = {"level": log_price - mean}
        if name in _WITH_PREMIUM:
            targets["premium"] = rest
        found: dict[str, NDArray[np.float64]] = {}
        for statistic, target in targets.items():
            prior = np.zeros(levels) if above is None else upper[_PARENT[name]][statistic][above]
            sums = np.bincount(codes[seen], weights=target[seen], minlength=levels)
            found[statistic] = (sums + smoothing * prior) / (counts + smoothing)
        upper[name] = dict(found)
        if name == "model":
            for column in _BUILD:
                if column in schema.numbers:
                    number = listings.numbers[:, schema.numbers.index(column)]
                    usable = seen & ~np.isnan(number)
                    weight = np.bincount(codes[usable], minlength=levels)
                    total = np.bincount(codes[usable], weights=number[usable], minlength=levels)
                    with np.errstate(invalid="ignore"):
                        found[f"mean_{column}"] = total / weight
            found["log_count"] = np.log(np.maximum(counts, 1.0))
        table = np.column_stack(list(found.values()))
        table[counts < min_rows] = np.nan
        values.append(table.astype(np.float32))
        names += [f"{name}.{statistic}" for statistic in found]
        owners += [len(schema.numbers) + position] * len(found)
    return Encoder(schema, tuple(names), np.array(owners, dtype=np.int64), tuple(values))


def encode_out_of_fold(
    schema: Schema,
    listings: Listings,
    log_price: NDArray[np.float64],
    folds: NDArray[np.int64],
    smoothing: float,
    min_rows: int,
) -> NDArray[np.float32]:
    """Encode training rows, each by the rows of the other folds.

    Args:
        schema: The features.
        listings: Rows.
        log_price: Their log prices.
        folds: Fold of each row, any integers; at least two.
        smoothing: As for `fit_encoder`.
        min_rows: As for `fit_encoder`.
    """
    encoded: NDArray[np.float32] | None = None
    for fold in np.unique(folds):
        own = folds == fold
        encoder = fit_encoder(schema, listings.take(~own), log_price[~own], smoothing, min_rows)
        part = encoder.encode(listings.take(own))
        if encoded is None:
            encoded = np.empty((len(folds), part.shape[1]), dtype=np.float32)
        encoded[own] = part
    assert encoded is not None
    return encoded


def _find_parents(schema: Schema, position: int) -> NDArray[np.int64] | None:
    """Return the code of the make of each model, None for a category with nothing above it."""
    parent = _PARENT.get(schema.categories[position])
    if parent is None or parent not in schema.categories:
        return None
    codes = {key: code for code, key in enumerate(schema.levels[schema.categories.index(parent)])}
    return np.array([codes[key.split(SEPARATOR)[0]] for key in schema.levels[position]], dtype=np.int64)


def _predict_by_ridge(numbers: NDArray[np.float64], log_price: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a ridge regression on the numbers, their squares and logarithms says for the rows it is fitted on."""
    columns = [np.ones(len(log_price))]
    for values in numbers.T:
        filled = np.where(np.isnan(values), np.nanmean(values) if not np.isnan(values).all() else 0.0, values)
        for shape in (filled, filled**2, np.log1p(np.abs(filled))):
            spread = shape.std()
            if spread > 0:
                columns.append((shape - shape.mean()) / spread)
    design = np.column_stack(columns)
    penalty = np.eye(design.shape[1])
    penalty[0, 0] = 0.0
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ log_price)
    predicted: NDArray[np.float64] = design @ solution
    return predicted
