"""Measuring prices on held-out listings, beside the plain references that the model must be worth more than.

| metric | what it is | interval |
|---|---|---|
| `mdape` | median of abs(price - true) / true | exact, between two of the errors |
| `within_10_percent` | share of listings whose price is at most 10 % off | Wilson |
| `mae` | mean of abs(price - true), in the currency | Student's t |
| `bias` | median of (price - true) / true; above 0 is too dear | exact |
| `interval_coverage` | share of listings whose true price lies in the range | Wilson |
| `interval_width` | median of (high - low) / price | exact |
| `needs_review_share` | share of listings that are marked for a person | Wilson |
| `mdape_gap` | largest `mdape` of a declared group minus the smallest | bootstrap |

R2 is not among them: a few luxury cars decide it, and it can rank a model first that is worse on almost every listing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, choose_measurements
from mlflywheel.models.vehicle_price.references import NAMES, References
from mlflywheel.statistics.groups import compare_groups
from mlflywheel.statistics.intervals import Interval, estimate_mean, estimate_median, estimate_share

#: Columns whose values are slices. A make needs `MAKE_MINIMUM` held-out rows to be one.
SLICED_BY = ("fuel", "offer_type", "gear", "region", "body")
#: Columns whose values are groups that should get equally good prices.
COMPARED = ("fuel", "region")
MAKE_MINIMUM = 100
_NO_ATTRIBUTES = ("listing_id", "price", "flags")
#: Held-out rows that a group must have to count in the gap.
GROUP_MINIMUM = 100
_AGES = ((0, 1), (2, 3), (4, 6), (7, 9))
_PHASE = "measuring"


class PriceModel(Protocol):
    """What the evaluation needs of a model."""

    @property
    def references(self) -> References:
        """The plain methods, fitted on the model's training rows."""

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Return `price`, `low`, `high`, `needs_review` and `drivers` of prepared rows."""


@dataclass(frozen=True)
class Scored:
    """What held-out listings got; every array has one entry a listing, float64.

    Args:
        table: Prepared rows with a true price.
        answers: What the model predicted for them.
        true: The true price.
        price: The model's price.
        low: Lower end of its range.
        high: Upper end of it.
        references: What each reference method says.
    """

    table: pa.Table
    answers: pa.Table
    true: np.ndarray
    price: np.ndarray
    low: np.ndarray
    high: np.ndarray
    references: Mapping[str, np.ndarray]

    @property
    def relative_error(self) -> np.ndarray:
        """(price - true) / true."""
        return np.asarray((self.price - self.true) / self.true)


def evaluate_prices(
    model: PriceModel,
    table: pa.Table,
    progress: ProgressCallback = ignore_progress,
    *,
    compared: Sequence[str] = COMPARED,
    resamples: int = 200,
) -> Evaluation:
    """Measure a model on listings that it was not fitted on.

    Args:
        model: The fitted model.
        table: Prepared held-out listings. Those without a price above 0 are left out; none at all is a defined case,
            whose measurements are None.
        progress: Called with the phase `measuring`.
        compared: Columns whose values are groups that should get equally good prices.
        resamples: Bootstrap samples of the intervals of groups.

    Raises:
        DataError: The table has no column of prices.
        MissingExtraError: fairlearn is not installed.
    """
    from mlflywheel.models.vehicle_price.sections import build_sections

    steps = 4
    progress(_PHASE, 0, steps)
    scored = score(model, table)
    progress(_PHASE, 1, steps)
    measurements = [found for rows, name in _slices(scored) for found in _measure(scored, rows, name)]
    progress(_PHASE, 2, steps)
    measurements += _measure_gaps(scored, compared, resamples)
    progress(_PHASE, 3, steps)
    sections = build_sections(scored, measurements)
    progress(_PHASE, steps, steps)
    return Evaluation(tuple(measurements), sections)


def measure_prices(
    model: PriceModel, table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
) -> tuple[Measurement, ...]:
    """Measure some overall metrics, as a search for parameters asks for them: without slices, groups and the report."""
    scored = score(model, table)
    found = list(_measure(scored, np.ones(len(scored.true), dtype=bool), "all"))
    if not set(metrics) <= {measurement.metric for measurement in found}:
        return choose_measurements(evaluate_prices(model, table, progress).measurements, metrics)
    return choose_measurements(found, metrics)


def score_rows(model: PriceModel, table: pa.Table) -> RowScores:
    """Measure every listing that has a price by itself; see `Model.score_rows`."""
    scored = score(model, table)
    true = scored.true
    error = np.abs(scored.relative_error)
    attributes = {name: scored.table[name] for name in scored.table.column_names if name not in _NO_ATTRIBUTES}
    for name in ("price_band", "age_band"):
        bands = band_prices(scored.price) if name == "price_band" else band_ages(scored.table)
        attributes[name] = pa.array(bands, pa.string())
    attributes["predicted_price"] = pa.array(scored.price)
    return RowScores(
        task="regression",
        ids=scored.table["listing_id"].cast(pa.string()).combine_chunks(),
        attributes=pa.table(attributes),
        metrics=(
            RowMetric("absolute_relative_error", error),
            RowMetric("within_10_percent", (error <= 0.1).astype(np.float64), "higher", (0.0, 1.0)),
            RowMetric(
                "interval_coverage",
                ((scored.low <= true) & (true <= scored.high)).astype(np.float64),
                "higher",
                (0.0, 1.0),
            ),
        ),
        answers=pa.array(scored.price),
        truth=true,
        references={name: np.abs(values - true) / true for name, values in _named(scored)},
    )


def score(model: PriceModel, table: pa.Table) -> Scored:
    """Predict the listings that have a price, by the model and by the references.

    Raises:
        DataError: The table has no column of prices.
    """
    if "price" not in table.column_names:
        raise DataError(
            "held-out rows",
            "no column price",
            "a model is measured on listings with a price",
            "map the price's column with --map price=THEIRS",
        )
    priced = table.filter(pc.fill_null(pc.greater(table["price"], 0.0), False))
    answers = model.predict(priced)
    true, price, low, high = (
        np.asarray(source[name].to_numpy(), dtype=np.float64)
        for source, name in ((priced, "price"), (answers, "price"), (answers, "low"), (answers, "high"))
    )
    return Scored(priced, answers, true, price, low, high, model.references.predict(priced))


def _measure(scored: Scored, rows: np.ndarray, name: str) -> Iterator[Measurement]:
    """Measure some rows: the model, and every reference by the same metrics."""
    true = scored.true[rows]
    for prefix, prices in (("", scored.price), *((f"reference_{key}_", value) for key, value in _named(scored))):
        error = prices[rows] - true
        relative = error / true
        yield _measurement(f"{prefix}mdape", estimate_median(np.abs(relative)), name)
        yield _measurement(f"{prefix}within_10_percent", _share(np.abs(relative) <= 0.1), name)
        yield _measurement(f"{prefix}mae", estimate_mean(np.abs(error)), name)
        yield _measurement(f"{prefix}bias", estimate_median(relative), name)
    low, high = scored.low[rows], scored.high[rows]
    yield _measurement("interval_coverage", _share((low <= true) & (true <= high)), name)
    yield _measurement("interval_width", estimate_median((high - low) / scored.price[rows]), name)
    review = np.asarray(scored.answers["needs_review"].to_numpy(zero_copy_only=False), dtype=bool)[rows]
    yield _measurement("needs_review_share", _share(review), name)


def _named(scored: Scored) -> Iterator[tuple[str, np.ndarray]]:
    for name in NAMES:
        yield name, scored.references[name]


def _slices(scored: Scored) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the rows of every slice: all, values of columns, bands of price and age.

    A band of price is that of the model's price. It is what a user knows; and among the listings of the highest true
    prices are those that happened to be dear, which any model must miss on one side.
    """
    yield np.ones(len(scored.true), dtype=bool), "all"
    makes = read_texts(scored.table, "make")
    for value in sorted(set(makes)):
        rows = makes == value
        if np.count_nonzero(rows) >= MAKE_MINIMUM:
            yield rows, f"make={value}"
    for column in SLICED_BY:
        values = read_texts(scored.table, column)
        present = sorted(set(values))
        if present != ["missing"]:
            for value in present:
                yield values == value, f"{column}={value}"
    for column, bands in (("price_band", band_prices(scored.price)), ("age_band", band_ages(scored.table))):
        # In the order of the bands, not of their names.
        for band in dict.fromkeys(bands[np.argsort([_start(band) for band in bands], kind="stable")]):
            yield bands == band, f"{column}={band}"


def read_texts(table: pa.Table, column: str) -> np.ndarray:
    """Return a column's texts with `missing` where there is none, object (rows,)."""
    if column not in table.column_names:
        return np.full(table.num_rows, "missing", dtype=object)
    return np.array([value or "missing" for value in table[column].cast(pa.string()).to_pylist()], dtype=object)


def band_prices(prices: np.ndarray) -> np.ndarray:
    """Name the band of each price between two of ..., 1,000, 2,000, 5,000, 10,000, ...: the same in every currency.

    >>> band_prices(np.array([1.5, 4_999.0, 5_000.0, 120_000.0])).tolist()
    ['1 to 2', '2,000 to 5,000', '5,000 to 10,000', '100,000 to 200,000']
    """
    edges = np.array([factor * 10.0**power for power in range(-2, 16) for factor in (1, 2, 5)])
    at = np.clip(np.searchsorted(edges, prices, side="right"), 1, len(edges) - 1)
    return np.array([f"{edges[index - 1]:,.15g} to {edges[index]:,.15g}" for index in at], dtype=object)


def band_ages(table: pa.Table) -> np.ndarray:
    """Name the band of each listing's age, in years before the table's newest year; `missing` without a year."""
    column = table["year"] if "year" in table.column_names else pa.nulls(table.num_rows, pa.float64())
    years = np.array([np.nan if year is None else year for year in column.to_pylist()], dtype=np.float64)
    bands = np.full(len(years), "missing", dtype=object)
    known = np.isfinite(years)
    if known.any():
        ages = years[known].max() - years[known]
        named = np.full(len(ages), f"{_AGES[-1][1] + 1} and more", dtype=object)
        for low, high in _AGES:
            named[(ages >= low) & (ages < high + 1)] = f"{low} to {high}"
        bands[known] = named
    return bands


def _start(band: str) -> float:
    return np.inf if band == "missing" else float(band.split(" ")[0].replace(",", ""))


def _measure_gaps(scored: Scored, compared: Sequence[str], resamples: int) -> list[Measurement]:
    """Compare `mdape` between the groups of each declared column, and keep the largest gap as the overall one."""
    measurements: list[Measurement] = []
    gaps: list[tuple[Interval, str]] = []
    for column in compared:
        groups = read_texts(scored.table, column)
        if not len(groups) or set(groups) == {"missing"}:
            continue
        found = compare_groups(
            _mdape, scored.true, scored.price, groups.tolist(), minimum_count=GROUP_MINIMUM, resamples=resamples
        )
        small = f"left out, under {GROUP_MINIMUM} rows: " + ", ".join(f"{k} ({n})" for k, n in found.small.items())
        note = f"{found.highest} against {found.lowest}" if found.highest else "fewer than two groups to compare"
        note += f"; {small}" if found.small else ""
        measurements.append(_measurement("mdape_gap", found.gap, f"between={column}", note))
        if found.gap.value is not None:
            gaps.append((found.gap, f"{column}: {note}"))
    if gaps:
        gap, note = max(gaps, key=lambda entry: entry[0].value or 0.0)
        return [_measurement("mdape_gap", gap, note=note), *measurements]
    note = f"no column of {', '.join(compared) or 'groups'} has two groups of {GROUP_MINIMUM} rows"
    return [Measurement("mdape_gap", None, count=len(scored.true), note=note), *measurements]


def _mdape(true: np.ndarray, price: np.ndarray) -> float:
    return float(np.median(np.abs(price - true) / true))


def _share(rows: np.ndarray) -> Interval:
    return estimate_share(int(np.count_nonzero(rows)), len(rows))


def _measurement(metric: str, interval: Interval, name: str = "all", note: str = "") -> Measurement:
    return Measurement(metric, interval.value, name, interval.count, interval.low, interval.high, note)
