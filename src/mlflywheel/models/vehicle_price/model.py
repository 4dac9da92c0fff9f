"""`VehiclePrice`: listings in, a price with its range, its confidence and its drivers out."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import read_json
from mlflywheel.models.contract import Column, Evaluation, Measurement, Model, RowScores, Settings
from mlflywheel.models.vehicle_price.encoding import Encoder, Listings, Schema
from mlflywheel.models.vehicle_price.ensemble import Trees
from mlflywheel.models.vehicle_price.fitting import FitParams, Fitted, fit_prices
from mlflywheel.models.vehicle_price.intervals import Intervals, group_rows
from mlflywheel.models.vehicle_price.onnx_graph import build_graph, check_graph
from mlflywheel.models.vehicle_price.preparation import (
    COLUMNS,
    Facts,
    PrepareConfig,
    Range,
    limit_year,
    list_flags,
    prepare_listings,
    read_column,
)
from mlflywheel.models.vehicle_price.references import References, fit_references
from mlflywheel.models.vehicle_price.requests import ListingRequest, ListingResponse, tabulate_requests

FEWEST_LISTINGS = 20
_DRIVERS_SHOWN = 5
_PREDICT_BLOCK = 16_384


@dataclass(frozen=True)
class Training:
    """What a model remembers of its training table.

    Args:
        listings: Number of rows.
        currency: What prices are in.
        reference_year: The year that ages are counted from.
        valid: Possible values of each number, both ends included.
        seen: Smallest and largest value of each number in the training rows.
    """

    listings: int
    currency: str
    reference_year: int | None
    valid: Mapping[str, Range]
    seen: Mapping[str, Range]


@dataclass(frozen=True)
class Priced:
    """Prices of listings as arrays, one entry a row.

    Args:
        listings: The listings, without impossible values.
        known: Whether each category is known, bool (rows, categories).
        outside: Whether each number is impossible, bool (rows, numbers).
        beyond: Whether each number is possible, and outside the training rows', bool (rows, numbers).
        contributions: What each feature adds to the log price, float64 (rows, features); exact sums (`ensemble`).
        raw_log_price: What the trees say, float64.
        log_price: The same inside the bounds of training prices.
        log_low: Logarithm of the range's lower end.
        log_high: Logarithm of its upper end.
    """

    listings: Listings
    known: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    beyond: NDArray[np.bool_]
    contributions: NDArray[np.float64]
    raw_log_price: NDArray[np.float64]
    log_price: NDArray[np.float64]
    log_low: NDArray[np.float64]
    log_high: NDArray[np.float64]


class VehiclePrice(Model):
    """Prices of vehicles by boosted trees, with calibrated ranges and exact drivers.

    Predictions are computed from the trees' arrays (`ensemble`), exactly the same for a batch and for one row.
    `model.onnx` holds the same model for other runtimes (`onnx_graph`); the two are compared on every training row
    before a model exists.

    Args:
        params: The parameters of the fit.
        fitted: Encoder, ensembles and ranges.
        training: What is remembered of the training table.
        references: Plain methods, fitted on the same rows, that an evaluation compares with.
        graph: The serialised ONNX graph.

    Attributes:
        onnx_difference: Largest relative difference between the graph and this model on the training rows, each as it
            is and with fields hidden; None for a model that was loaded. It is not saved, since it may differ between
            processors, and a model's hash must not.
    """

    format_name = "mlflywheel-vehicle-price"
    format_version = "1"
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    Params = FitParams
    Config = PrepareConfig
    Request = ListingRequest
    Response = ListingResponse

    def __init__(
        self, params: FitParams, fitted: Fitted, training: Training, references: References, graph: bytes
    ) -> None:
        self.params = params
        self.fitted = fitted
        self.training = training
        self.references = references
        self.graph = graph
        self.onnx_difference: float | None = None
        numbers = self.schema.numbers
        self._valid = np.array([training.valid[name] for name in numbers], dtype=np.float64).reshape(-1, 2).T
        self._seen = np.array([training.seen[name] for name in numbers], dtype=np.float64).reshape(-1, 2).T
        self._feature_names = pa.array(self.schema.features, pa.string())

    @property
    def schema(self) -> Schema:
        """The features that the model reads."""
        return self.fitted.encoder.schema

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Clean listings; see `preparation.prepare_listings`."""
        return prepare_listings(raw, PrepareConfig.model_validate(config.model_dump()), progress)

    @classmethod
    def describe_table(cls, table: pa.Table) -> dict[str, int]:
        """Count what preparing removed or took as missing."""
        facts = Facts.read(table)
        removed = {"duplicates_removed": facts.duplicates_removed, "without_price": facts.without_price}
        return {**removed, **facts.flagged}

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        """Learn from the listings that have a price.

        Args:
            table: Prepared listings; their order does not matter.
            params: `FitParams`.
            progress: Called with the phases `fitting` and `checking the ONNX graph`.

        Raises:
            ModelError: Fewer than 20 listings have a price, no feature has a value, all prices are equal, or the ONNX
                graph differs from the model by more than 1e-4.
            MissingExtraError: onnx or onnxruntime is not installed.
        """
        fit_params = FitParams.model_validate(params.model_dump())
        facts = Facts.read(table)
        table, prices = _select_priced(table)
        schema = Schema.learn(table)
        listings = schema.read(table)
        if not schema.features:
            raise ModelError(
                "training rows",
                f"no value in columns {', '.join(table.column_names)}",
                "a price is predicted from make, model, year, mileage and the like",
                "map the file's columns (--map make=brand)",
            )
        fitted = fit_prices(schema, listings, prices, fit_params, progress)
        valid = {name: facts.ranges[name] for name in schema.numbers}
        if "year" in valid:
            valid["year"] = limit_year(valid["year"], facts.reference_year)
        seen = {
            name: (float(np.nanmin(values)), float(np.nanmax(values)))
            for name, values in zip(schema.numbers, listings.numbers.T, strict=True)
        }
        training = Training(len(prices), facts.currency, facts.reference_year, valid, seen)
        progress("checking the ONNX graph", 0, 1)
        graph = build_graph(fitted.encoder, fitted.prices, fitted.scales, fitted.intervals, valid, seen)
        model = cls(fit_params, fitted, training, fit_references(table), graph)
        model.onnx_difference = model._check_graph(table)
        progress("checking the ONNX graph", 1, 1)
        return model

    def _check_graph(self, table: pa.Table) -> float:
        """Compare the ONNX graph on rows as they are, and on as many that lack fields."""
        worst = 0.0
        for rows in (table, _hide_fields(table, self.schema, self.params.seed)):
            priced = self.price(rows)
            expected = {"price": priced.log_price, "low": priced.log_low, "high": priced.log_high}
            logs = {name: np.exp(values) for name, values in expected.items()}
            worst = max(worst, check_graph(self.graph, self.schema, rows, logs))
        return worst

    def price(self, table: pa.Table) -> Priced:
        """Price prepared rows, as arrays; `predict` makes a table of it."""
        return self.price_listings(self.schema.read(table))

    def price_listings(self, listings: Listings) -> Priced:
        """Price listings that are arrays already."""
        encoder, intervals = self.fitted.encoder, self.fitted.intervals
        # Comparisons with NaN are false, as they should be.
        outside = (listings.numbers < self._valid[0]) | (listings.numbers > self._valid[1])
        if outside.any():
            listings = Listings(np.where(outside, np.nan, listings.numbers), listings.codes)
        beyond = (listings.numbers < self._seen[0]) | (listings.numbers > self._seen[1])
        encoded = encoder.encode(listings)
        prices = self.fitted.prices
        contributions = prices.contribute(encoded, encoder.owners, len(self.schema.features))
        # The sums are exact: this is what `predict` of the trees gives, to the last bit.
        raw_log_price = prices.base + contributions.sum(axis=1)
        log_price = intervals.clip(raw_log_price)
        known = encoder.is_known(listings)
        certain = encoded
        absent = np.isnan(listings.numbers).sum(axis=1) + (~known).sum(axis=1)
        if beyond.any():
            # Trees go on with the nearest value that they know; how wrong that is, nobody has measured.
            certain = encoded.copy()
            certain[:, : beyond.shape[1]][beyond] = np.nan
            absent = absent + beyond.sum(axis=1)
        log_low, log_high = intervals.spread(log_price, self.fitted.scales.predict(certain), group_rows(absent))
        return Priced(listings, known, outside, beyond, contributions, raw_log_price, log_price, log_low, log_high)

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Price listings.

        Args:
            table: Prepared listings; columns that are not there are missing in every row.
            progress: Called with the phase `scoring`.

        Returns:
            `listing_id` string; `price`, `low`, `high` float64, low < price < high; `currency` string; `confidence`
            float64, the expected share of listings with so wide a range whose price is within 10 %; `needs_review`
            bool: there is a flag, or the confidence is below `review_below_confidence`; `flags` list<string>;
            `drivers` list of (feature, value, factor), at most five, those that change the price most first.
        """
        blocks = []
        for start in range(0, max(1, table.num_rows), _PREDICT_BLOCK):
            progress("scoring", start, table.num_rows)
            blocks.append(self._predict_block(table.slice(start, _PREDICT_BLOCK)))
        progress("scoring", table.num_rows, table.num_rows)
        return blocks[0] if len(blocks) == 1 else pa.concat_tables(blocks).combine_chunks()

    def _predict_block(self, table: pa.Table) -> pa.Table:
        rows = table.num_rows
        priced = self.price(table)
        confidence = self.fitted.intervals.trust(priced.log_low, priced.log_high)
        masks = self._find_flags(table, priced)
        flagged = np.logical_or.reduce(list(masks.values()))
        order = _order_drivers(priced)[:, :_DRIVERS_SHOWN]
        ids = read_column(table, "listing_id")
        columns = {
            "listing_id": pa.nulls(rows, pa.string()).fill_null("") if ids is None else ids,
            "price": pa.array(np.exp(priced.log_price)),
            "low": pa.array(np.exp(priced.log_low)),
            "high": pa.array(np.exp(priced.log_high)),
            "currency": pa.repeat(pa.scalar(self.training.currency), rows),
            "confidence": pa.array(confidence),
            "needs_review": pa.array(flagged | (confidence < self.params.review_below_confidence)),
            "flags": list_flags(masks, rows),
            "drivers": self._list_drivers(table, priced, order),
        }
        return pa.table(columns)

    def _find_flags(self, table: pa.Table, priced: Priced) -> dict[str, NDArray[np.bool_]]:
        """Return one mask a flag."""
        schema = self.schema
        noted = _read_flags(table)
        nothing = np.zeros(table.num_rows, dtype=bool)
        missing = np.isnan(priced.listings.numbers)
        masks: dict[str, NDArray[np.bool_]] = {}
        for position, name in enumerate(schema.numbers):
            unreadable = noted.get(f"unreadable_{name}", nothing)
            outside = priced.outside[:, position] | noted.get(f"{name}_out_of_range", nothing)
            masks[f"missing_{name}"] = missing[:, position] & ~outside & ~unreadable
            masks[f"unreadable_{name}"] = unreadable
            masks[f"{name}_out_of_range"] = outside
            masks[f"{name}_beyond_training"] = priced.beyond[:, position]
        for position, name in enumerate(schema.categories):
            values = read_column(table, name)
            absent = ~nothing if values is None else values.is_null().to_numpy(zero_copy_only=False)
            masks[f"missing_{name}"] = absent
            masks[f"unknown_{name}"] = ~priced.known[:, position] & ~absent
        masks["price_clipped"] = priced.raw_log_price != priced.log_price
        return masks

    def _list_drivers(
        self,
        table: pa.Table,
        priced: Priced,
        order: NDArray[np.int64],
        with_contribution: bool = False,
    ) -> pa.ListArray:
        rows = table.num_rows
        chosen = order.ravel()
        place = chosen * rows + np.repeat(np.arange(rows), order.shape[1])
        parts = np.take_along_axis(priced.contributions, order, axis=1).ravel()
        texts = pc.take(pa.concat_arrays(self._write_values(table, priced)), pa.array(place))
        arrays = [pc.take(self._feature_names, pa.array(chosen)), texts, pa.array(np.exp(parts))]
        names = ["feature", "value", "factor"]
        if with_contribution:
            arrays.append(pa.array(parts))
            names.append("contribution")
        offsets = np.arange(rows + 1, dtype=np.int32) * order.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(arrays, names))

    def _write_values(self, table: pa.Table, priced: Priced) -> list[pa.Array]:
        """Return each feature's values as texts, null where missing."""
        written = []
        for position in range(len(self.schema.numbers)):
            values = priced.listings.numbers[:, position]
            written.append(pa.array(values, pa.float64(), mask=np.isnan(values)).cast(pa.string()))
        for name in self.schema.categories:
            values = read_column(table, name)
            written.append(pa.nulls(table.num_rows, pa.string()) if values is None else values.cast(pa.string()))
        return written

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        """Measure prices and ranges on held-out listings, beside the references; see `evaluation`."""
        from mlflywheel.models.vehicle_price.evaluation import evaluate_prices

        return evaluate_prices(self, table, progress)

    def measure(
        self, table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
    ) -> tuple[Measurement, ...]:
        """Measure some overall metrics; see `evaluation`."""
        from mlflywheel.models.vehicle_price.evaluation import measure_prices

        return measure_prices(self, table, metrics, progress)

    def score_rows(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> RowScores:
        """Measure every listing that has a price by itself; see `evaluation`."""
        from mlflywheel.models.vehicle_price.evaluation import score_rows

        return score_rows(self, table)

    def explain(self, table: pa.Table) -> pa.Table:
        """Attribute every price to all features.

        Returns:
            One row a listing: `listing_id`; `price`; `log_price`, its logarithm; `base_price`, what is expected before
            anything is known; `base_log_price`; `drivers`, all features as (feature, value, factor, contribution), the
            strongest first. The base plus the contributions is the log price, exactly, and the base price times the
            factors is the price, unless the flag `price_clipped` says that it was moved to the bounds.
        """
        rows = table.num_rows
        priced = self.price(table)
        order = _order_drivers(priced)
        base = self.fitted.prices.base
        ids = read_column(table, "listing_id")
        return pa.table(
            {
                "listing_id": pa.nulls(rows, pa.string()).fill_null("") if ids is None else ids,
                "price": pa.array(np.exp(priced.log_price)),
                "log_price": pa.array(priced.log_price),
                "base_price": pa.array(np.full(rows, np.exp(base))),
                "base_log_price": pa.array(np.full(rows, base)),
                "drivers": self._list_drivers(table, priced, order, with_contribution=True),
            }
        )

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return the algorithm, the sizes, and of a model that was just fitted how far the ONNX graph is from it."""
        facts: dict[str, str | int | float | bool] = {
            "algorithm": "histogram-gradient-boosting",
            "training_listings": self.training.listings,
            "features": ", ".join(self.schema.features),
            "trees": len(self.fitted.prices.roots),
            "makes": self._count_known("make"),
            "models": self._count_known("model"),
            "coverage": self.params.coverage,
            "currency": self.training.currency,
            "seed": self.params.seed,
        }
        if self.training.reference_year is not None:
            facts["reference_year"] = self.training.reference_year
        if self.onnx_difference is not None:
            facts["onnx_difference"] = self.onnx_difference
        return facts

    def _count_known(self, category: str) -> int:
        if category not in self.schema.categories:
            return 0
        table = self.fitted.encoder.values[self.schema.categories.index(category)]
        return int((~np.isnan(table[:, 0])).sum())

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        """Return a small car."""
        return {
            "listing_id": "example",
            "make": "Volkswagen",
            "model": "Golf",
            "year": 2017,
            "mileage_km": 64000,
            "power_hp": 116,
            "fuel": "Gasoline",
            "gear": "Manual",
            "offer_type": "Used",
        }

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        """Turn requests into prepared listings; `predict` finds what is missing or impossible in them."""
        return tabulate_requests(
            [
                instance
                if isinstance(instance, ListingRequest)
                else ListingRequest.model_validate(instance.model_dump())
                for instance in instances
            ]
        )

    def write(self, folder: Path) -> None:
        """Write settings and categories as JSON, arrays as npy, and the ONNX graph."""
        encoder = self.fitted.encoder
        _write_json(
            folder / "model.json",
            {
                "params": self.params.model_dump(mode="json"),
                "training": {
                    "listings": self.training.listings,
                    "currency": self.training.currency,
                    "reference_year": self.training.reference_year,
                    "valid": {name: list(ends) for name, ends in self.training.valid.items()},
                    "seen": {name: list(ends) for name, ends in self.training.seen.items()},
                },
            },
        )
        _write_json(
            folder / "encoding.json",
            {"schema": self.schema.to_dict(), "columns": list(encoder.names), "owners": encoder.owners.tolist()},
        )
        for name, values in zip(self.schema.categories, encoder.values, strict=True):
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        _write_json(folder / "intervals.json", self.fitted.intervals.to_dict())
        for name, trees in (("prices", self.fitted.prices), ("scales", self.fitted.scales)):
            (folder / name).mkdir()
            trees.write(folder / name)
        (folder / "references").mkdir()
        self.references.write(folder / "references")
        (folder / "model.onnx").write_bytes(self.graph)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote."""
        model = read_json(folder / "model.json")
        intervals = read_json(folder / "intervals.json")
        encoder = Encoder.read(folder, read_json(folder / "encoding.json"))
        columns = len(encoder.names)
        fitted = Fitted(
            encoder,
            Trees.read(folder / "prices", columns),
            Trees.read(folder / "scales", columns),
            Intervals.from_dict(intervals),
        )
        kept = model["training"]
        if not isinstance(kept["currency"], str):
            raise ValueError("the currency is no text")
        ranges = {
            name: {column: (float(low), float(high)) for column, (low, high) in kept[name].items()}
            for name in ("valid", "seen")
        }
        found = cls(
            FitParams.model_validate(model["params"]),
            fitted,
            Training(**{**kept, **ranges}),
            References.read(folder / "references"),
            (folder / "model.onnx").read_bytes(),
        )
        # The kernels are compiled now, not by the first request.
        found.price(cls.to_table([]))
        return found


def _order_drivers(priced: Priced) -> NDArray[np.int64]:
    """Return each row's features by the size of their contribution, equal ones in the order of the features."""
    return np.argsort(-np.abs(priced.contributions), axis=1, kind="stable")


def _select_priced(table: pa.Table) -> tuple[pa.Table, NDArray[np.float64]]:
    """Return the rows with a price above 0, sorted by id, and their prices."""
    values = read_column(table, "price")
    usable = 0 if values is None else pc.sum(pc.fill_null(pc.greater(values, 0.0), False)).as_py() or 0
    if usable < FEWEST_LISTINGS:
        raise ModelError(
            "training rows",
            f"{usable} of {table.num_rows} listings have a price",
            f"at least {FEWEST_LISTINGS} are needed",
            "map the price column (--map price=...), or get more listings",
        )
    table = table.filter(pc.fill_null(pc.greater(table["price"], 0.0), False)).replace_schema_metadata(None)
    if "listing_id" in table.column_names:
        table = table.sort_by("listing_id")
    table = table.combine_chunks()
    prices = table["price"].to_numpy().astype(np.float64)
    if prices.min() == prices.max():
        raise ModelError(
            "training rows", f"all prices are {prices[0]:g}", "prices that differ are needed", "check the price column"
        )
    return table, prices


def _hide_fields(table: pa.Table, schema: Schema, seed: int) -> pa.Table:
    """Return rows in which each field is missing, or a text nobody has seen, with a chance of one in four."""
    random = np.random.default_rng([seed, 3])
    for name in schema.features:
        hidden = pa.array(random.random(table.num_rows) < 0.25)
        filler = pa.scalar(None, pa.float64()) if name in schema.numbers else pa.scalar("\u00a7 unknown")
        table = table.set_column(table.column_names.index(name), name, pc.if_else(hidden, filler, table[name]))
    return table.combine_chunks()


def _read_flags(table: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Return the rows of each flag that preparing has set."""
    lists = read_column(table, "flags")
    if lists is None:
        return {}
    names = pc.list_flatten(lists)
    if not len(names):
        return {}
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    encoded = names.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    masks = {}
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        mask = np.zeros(table.num_rows, dtype=bool)
        mask[owners[codes == code]] = True
        masks[name] = mask
    return masks


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
