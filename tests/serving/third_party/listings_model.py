"""A model that somebody else wrote: every kind of value, and requests that are slow or that fail on demand.

It is a package as pip would install it, with an entry point; tests put its folder on the path of a server.
"""

import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import BaseModel

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Evaluation, Model, Settings


class Listing(BaseModel):
    title: str
    price: float
    doors: int | None = 4
    sold: bool = False
    fuel: Literal["petrol", "diesel"] = "petrol"
    built: date = date(2020, 1, 2)
    tags: list[str] = []


class Estimate(BaseModel):
    title: str | None
    estimate: float
    doors: int | None
    sold: bool
    span: list[float]
    built: date
    tags: list[str]


class Listings(Model):
    format_name = "listings"
    columns: ClassVar[tuple[Column, ...]] = ()
    Params = Settings
    Config = Settings
    Request = Listing
    Response = Estimate

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        return raw

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        return cls()

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        titles, prices = table["title"].to_pylist(), table["price"].to_pylist()
        if "explode" in titles:
            raise ZeroDivisionError(f"secret {titles}")
        if "refuse" in titles:
            raise DataError("title", "refuse", "another title is needed", "choose one")
        time.sleep(sum(price for title, price in zip(titles, prices, strict=True) if title == "sleep"))
        return pa.table(
            {
                "title": pa.array([title or None for title in titles], pa.string()),
                "estimate": pa.array([None if price < 0 else price * 1.1 for price in prices], pa.float64()),
                "doors": table["doors"],
                "sold": table["sold"],
                "span": pa.array([[price, price / 3] for price in prices], pa.list_(pa.float32(), 2)),
                "built": table["built"],
                "tags": table["tags"],
            }
        )

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        return Evaluation(())

    def explain(self, table: pa.Table) -> pa.Table:
        return table

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        return {"title": "<b>blue & fast</b></script>", "price": 4.5, "tags": ["a"]}

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        schema = pa.schema(
            [
                ("title", pa.string()),
                ("price", pa.float64()),
                ("doors", pa.int64()),
                ("sold", pa.bool_()),
                ("built", pa.date32()),
                ("tags", pa.list_(pa.string())),
            ]
        )
        return pa.Table.from_pylist([instance.model_dump() for instance in instances], schema=schema)

    def write(self, folder: Path) -> None:
        (folder / "model.json").write_text("{}")

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls()
