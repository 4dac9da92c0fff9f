"""The plain methods that a price model is measured against: ridge on the log price, and medians by make and model.

They are fitted on the model's training rows and kept with it, because an evaluation sees held-out rows alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.errors import ModelError
from mlflywheel.models.arrays import read_array, read_json

#: Columns of the prepared table that the ridge reads, those of them that hold a value in a training row.
TEXTS = ("make", "model", "fuel", "gear", "offer_type", "region", "body")
NUMBERS = ("year", "mileage_km", "power_hp", "engine_size", "tax")
#: Their names, as they stand between `reference_` and a metric's name, and what people call them.
NAMES = {"ridge": "Ridge on the log price", "median": "Median of the make and model"}

_JSON = "references.json"
_ARRAY = "references.npy"
_PENALTY = 1.0
# A cell of two texts, such as make and model. No text of a prepared table holds it.
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class References:
    """The fitted reference methods.

    Args:
        texts: Column, or two columns joined by `_SEPARATOR`, to its known values; each value is one 0-1 column.
        numbers: Column to (median, lowest, highest) of the training rows.
        coefficients: float64 (1 + columns of `numbers` and `texts`,); the first is the constant.
        medians: Make and model, make alone, and an empty text for all rows, to the median price.
    """

    texts: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[float, float, float]]
    coefficients: np.ndarray
    medians: Mapping[str, float]

    def predict(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Estimate prices of prepared rows.

        Args:
            table: Prepared rows; values that the training rows did not have count as absent.

        Returns:
            `ridge` and `median`, each float64 (rows,), in the currency of the training prices.
        """
        design = _design(table, self.texts, self.numbers)
        logs = np.asarray(design @ self.coefficients, dtype=np.float64)
        return {"ridge": np.exp(np.clip(logs, -50.0, 50.0)), "median": self._look_up(table)}

    def _look_up(self, table: pa.Table) -> np.ndarray:
        overall = self.medians[""]
        makes, models = _texts(table, "make"), _texts(table, "model")
        found = [
            self.medians.get(make + _SEPARATOR + model, self.medians.get(make, overall)) if make else overall
            for make, model in zip(makes, models, strict=True)
        ]
        return np.asarray(found, dtype=np.float64)

    def write(self, folder: Path) -> None:
        """Write `references.json` and `references.npy` into a folder."""
        content = {
            "schema": 1,
            "texts": {name: list(values) for name, values in self.texts.items()},
            "numbers": {name: list(values) for name, values in self.numbers.items()},
            "medians": dict(self.medians),
        }
        (folder / _JSON).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        np.save(folder / _ARRAY, self.coefficients, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path) -> "References":
        """Read what `write` wrote.

        Raises:
            ValueError: The coefficients are not those of the columns.
        """
        content: dict[str, Any] = read_json(folder / _JSON)
        texts = {name: tuple(map(str, values)) for name, values in content["texts"].items()}
        numbers = {name: (float(a), float(b), float(c)) for name, (a, b, c) in content["numbers"].items()}
        coefficients = read_array(folder / _ARRAY, np.float64, (_count_columns(texts, numbers),))
        medians = {str(name): float(value) for name, value in content["medians"].items()}
        return cls(texts, numbers, coefficients, medians)


def fit_references(table: pa.Table) -> References:
    """Fit ridge regression on the log price, and medians by make and model.

    The ridge sees every text one-hot (make and model also together), and each number as it is and as a square and a
    logarithm, with a column that says where it is missing. It is solved exactly, so equal rows give equal bits.

    Args:
        table: Prepared training rows. Rows without a price above 0 are left out.

    Raises:
        ModelError: No row has a price.
    """
    prices = _numbers(table, "price") if "price" in table.column_names else np.full(table.num_rows, np.nan)
    priced = np.isfinite(prices) & (prices > 0)
    if not priced.any():
        raise ModelError(
            "price",
            f"{table.num_rows} training rows, none with a price",
            "rows with a price above 0 are needed",
            "map the price's column with --map price=THEIRS",
        )
    table, prices = table.filter(pa.array(priced)), prices[priced]
    texts: dict[str, tuple[str, ...]] = {}
    for name in (*TEXTS, "make" + _SEPARATOR + "model"):
        values = tuple(sorted(set(_cells(table, name)) - {""}))
        if values:
            texts[name] = values
    numbers = {}
    for name in NUMBERS:
        column = _numbers(table, name)
        known = column[np.isfinite(column)]
        if len(known):
            numbers[name] = (float(np.median(known)), float(known.min()), float(known.max()))
    return References(texts, numbers, _solve(_design(table, texts, numbers), np.log(prices)), _medians(table, prices))


def _solve(design: Any, logs: np.ndarray) -> np.ndarray:
    from scipy.linalg import solve

    gram = (design.T @ design).toarray()
    # The constant is not drawn to zero; a grain keeps a table of one row solvable.
    gram[np.diag_indices_from(gram)] += np.concatenate([[1e-9], np.full(len(gram) - 1, _PENALTY)])
    return np.asarray(solve(gram, design.T @ logs, assume_a="pos"), dtype=np.float64)


def _medians(table: pa.Table, prices: np.ndarray) -> dict[str, float]:
    makes, models = _texts(table, "make"), _texts(table, "model")
    rows: dict[str, list[int]] = {}
    for row, (make, model) in enumerate(zip(makes, models, strict=True)):
        if make:
            rows.setdefault(make, []).append(row)
            if model:
                rows.setdefault(make + _SEPARATOR + model, []).append(row)
    return {"": float(np.median(prices)), **{key: float(np.median(prices[found])) for key, found in rows.items()}}


def _design(
    table: pa.Table, texts: Mapping[str, tuple[str, ...]], numbers: Mapping[str, tuple[float, float, float]]
) -> Any:
    """Return the ridge's columns, CSR float64 (rows, columns): a constant, five for each number, one for each text."""
    import scipy.sparse as sp

    parts: list[Any] = [sp.csr_array(np.ones((table.num_rows, 1)))]
    for name, (median, low, high) in numbers.items():
        column = _numbers(table, name)
        missing = ~np.isfinite(column)
        # Outside the training rows a square runs away.
        column = np.clip(np.where(missing, median, column), low, high)
        span = high - low if high > low else 1.0
        scaled = (column - low) / span
        logs = np.log1p(scaled * 99.0) / np.log(100.0)
        parts.append(sp.csr_array(np.column_stack([scaled, scaled**2, logs, logs**2, missing])))
    for name, values in texts.items():
        number = {value: index for index, value in enumerate(values)}
        found = np.array([number.get(cell, -1) for cell in _cells(table, name)], dtype=np.int64)
        rows = np.flatnonzero(found >= 0)
        shape = (table.num_rows, len(values))
        parts.append(sp.csr_array((np.ones(len(rows)), (rows, found[rows])), shape=shape))
    return sp.csr_array(sp.hstack(parts, format="csr"))


def _count_columns(texts: Mapping[str, tuple[str, ...]], numbers: Mapping[str, tuple[float, float, float]]) -> int:
    return 1 + 5 * len(numbers) + sum(len(values) for values in texts.values())


def _cells(table: pa.Table, name: str) -> list[str]:
    """Return a column's texts, or those of two columns where both are present; an empty text where one is missing."""
    first, _, second = name.partition(_SEPARATOR)
    if not second:
        return _texts(table, first)
    pairs = zip(_texts(table, first), _texts(table, second), strict=True)
    return [one + _SEPARATOR + other if one and other else "" for one, other in pairs]


def _texts(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return [""] * table.num_rows
    return [value or "" for value in table[name].cast(pa.string()).to_pylist()]


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    filled = pc.fill_null(table[name].cast(pa.float64()), np.nan)
    return np.asarray(filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy())
