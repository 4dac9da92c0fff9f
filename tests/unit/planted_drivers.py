"""Data in which one feature drives everything, and a model of one coefficient, for tests of explanations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from planted_listings import MAKES, MODELS
from pydantic import BaseModel

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Evaluation, Model, RowMetric, RowScores, Settings

#: Parameters of `VehiclePrice.fit` that take a fifth of a second for 500 listings.
QUICK = {"max_iter": 20, "scale_iter": 2, "calibration_folds": 2, "encoding_folds": 3, "max_leaf_nodes": 8}
PLANTED = ("year", "mileage_km", "power_hp", "make", "fuel")


def plant_one_driver(driver: str, rows: int, seed: int) -> pa.Table:
    """Prepared listings with independent features, of which one makes the price."""
    random = np.random.default_rng([seed, rows])
    fuels = ("Petrol", "Diesel", "Electric")
    columns: dict[str, Any] = {
        "year": random.integers(2005, 2022, rows).astype(float),
        "mileage_km": random.uniform(0, 200_000, rows).round(),
        "power_hp": random.uniform(50, 300, rows).round(),
        "make": random.choice(list(MAKES), rows),
        "model": random.choice(MODELS, rows),
        "fuel": random.choice(fuels, rows),
    }
    scores = {
        "year": (columns["year"] - 2005) / 16,
        "mileage_km": 1 - columns["mileage_km"] / 200_000,
        "power_hp": (columns["power_hp"] - 50) / 250,
        "make": np.array([MAKES[make] for make in columns["make"]]) * 2,
        "fuel": np.array([fuels.index(fuel) / 2 for fuel in columns["fuel"]]),
    }
    price = np.round(np.exp(9.5 + scores[driver] + 0.05 * random.normal(size=rows)))
    ids = [f"l{number:05}" for number in range(rows)]
    return pa.table(
        {"listing_id": ids, "price": price, **columns, "flags": pa.array([[]] * rows, pa.list_(pa.string()))}
    )


class _Asked(BaseModel):
    pass


class Linear(Model):
    """y = slope * x, for any table: `x`, `y`, `row_id` and whatever else is there."""

    format_name = "linear"
    columns = (Column("y", "number", required=True),)
    other_columns = True
    Params = Config = Settings
    Request = Response = _Asked

    def __init__(self, slope: float = 1.0, task: str = "regression") -> None:
        self.slope = slope
        self.task = task
        self.asked: list[pa.Table] = []

    def score_rows(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> RowScores:
        self.asked.append(table)
        y, x = (np.array(table[name].to_pylist(), dtype=np.float64) for name in ("y", "x"))
        kept = np.isfinite(y)
        answers, y = self.slope * x[kept], y[kept]
        ids = table["row_id"].filter(pa.array(kept)).combine_chunks()
        if self.task == "classification":
            probability = 1 / (1 + np.exp(-answers))
            right = (answers > 0) == (y > 0)
            texts = pa.array(np.where(answers > 0, "yes", "no").tolist())
            metric = RowMetric("accuracy", right.astype(np.float64), "higher", (0.0, 1.0))
            return RowScores("classification", ids, table, (metric,), texts, (y > 0).astype(np.float64), probability)
        return RowScores("regression", ids, table, (RowMetric("squared", (answers - y) ** 2),), pa.array(answers), y)

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        return raw

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        return cls()

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        return pa.table({"y": self.slope * table["x"].to_numpy()})

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        return Evaluation(())

    def explain(self, table: pa.Table) -> pa.Table:
        return table

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        return pa.table({})

    def write(self, folder: Path) -> None: ...

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls()


def draw_line(rows: int, seed: int, noise: float = 0.5) -> pa.Table:
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    return pa.table(
        {
            "row_id": [f"r{number}" for number in range(rows)],
            "x": x,
            "y": x + noise * random.normal(size=rows),
            "unread": random.normal(size=rows),
            "constant": [1.0] * rows,
        }
    )
