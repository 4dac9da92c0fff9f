"""The evaluation of prices measures what was planted: the error, the bias, the coverage, and the worse group."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.errors import DataError, ModelError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.models.vehicle_price.evaluation import band_ages, evaluate_prices, measure_prices
from mlflywheel.models.vehicle_price.references import References, fit_references
from mlflywheel.reports import Report, render_report

MAKES = ("Alba", "Borea", "Corvo")
FUELS = ("petrol", "diesel", "electric")


def plant_listings(count: int, seed: int = 0, noise: float = 0.1) -> pa.Table:
    """Prepared listings whose log price is linear in make, model, year and the logarithm of power, with noise."""
    random = np.random.default_rng(seed)
    make, model = random.integers(0, 3, count), random.integers(0, 4, count)
    year, power = random.integers(2008, 2024, count), random.uniform(60, 300, count)
    fuel = random.choice(3, count, p=[0.6, 0.35, 0.05])
    logs = 9.0 + 0.3 * make + 0.1 * model + 0.08 * (year - 2008) + 0.4 * np.log(power / 100)
    price = np.exp(logs + noise * random.normal(size=count))
    mileage = random.uniform(0, 200_000, count)
    return pa.table(
        {
            "listing_id": [f"l-{number}" for number in range(count)],
            "price": price,
            "make": [MAKES[number] for number in make],
            "model": pa.array([None if row % 50 == 7 else f"M{number}" for row, number in enumerate(model)]),
            "fuel": [FUELS[number] for number in fuel],
            "gear": pa.nulls(count, pa.string()),
            "year": year.astype(float),
            "mileage_km": pa.array(mileage, mask=np.arange(count) % 40 == 3),
            "power_hp": power,
        }
    )


class PlantedModel:
    """Answers with the true price times a factor that the test chooses, and a range around it."""

    def __init__(self, references: References, factor: Any, low: float = 0.8, high: float = 1.25) -> None:
        self.references = references
        self._factor, self._ends = factor, (low, high)

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        factor = self._factor(table) if callable(self._factor) else np.full(table.num_rows, self._factor)
        price = table["price"].to_numpy() * factor
        driver = [{"feature": "year", "value": "2019", "factor": 1.2}, {"feature": "make", "value": "A", "factor": 0.9}]
        return pa.table(
            {
                "listing_id": table["listing_id"],
                "price": pa.array(price),
                "low": pa.array(price * self._ends[0]),
                "high": pa.array(price * self._ends[1]),
                "currency": pa.array(["EUR"] * table.num_rows, pa.string()),
                "needs_review": pa.array(price > 60_000.0),
                "drivers": [driver] * table.num_rows,
            }
        )


@pytest.fixture(scope="module")
def references() -> References:
    return fit_references(plant_listings(1500, seed=1))


@pytest.fixture(scope="module")
def holdout() -> pa.Table:
    return plant_listings(900, seed=2)


def noisy(table: pa.Table) -> np.ndarray:
    spread = np.where(np.array(table["fuel"].to_pylist()) == "diesel", 0.3, 0.1)
    return np.exp(spread * np.random.default_rng(5).normal(size=table.num_rows))


@pytest.fixture(scope="module")
def evaluation(references: References, holdout: pa.Table) -> Evaluation:
    return evaluate_prices(PlantedModel(references, noisy), holdout, resamples=40)


def look_up(evaluation: Evaluation, metric: str, name: str = "all") -> Measurement:
    (found,) = [m for m in evaluation.measurements if m.metric == metric and m.slice == name]
    return found


def assert_well_formed(evaluation: Evaluation) -> None:
    """JSON without NaN, one value for each metric and slice, and a report that can be drawn."""
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)).to_dict() == json.loads(text)
    keys = [(m.metric, m.slice) for m in evaluation.measurements]
    assert len(set(keys)) == len(keys)
    for m in evaluation.measurements:
        if m.low is not None:
            assert m.high is not None
            assert m.value is not None
            assert m.low <= m.value <= m.high
    page = render_report(Report(title="Test", summary={"status": "succeeded"}, evaluation=evaluation))
    for section in evaluation.sections:
        assert section.title in page


def test_evaluation_is_json_and_can_be_drawn(evaluation: Evaluation) -> None:
    assert_well_formed(evaluation)
    assert [section.kind for section in evaluation.sections] == ["table", "lines", "lines", "bars", "bars", "bars"]


def test_metrics_are_what_numpy_says(evaluation: Evaluation, holdout: pa.Table) -> None:
    true = holdout["price"].to_numpy()
    price = true * noisy(holdout)
    relative = (price - true) / true
    metrics = evaluation.metrics()
    assert metrics["mdape"] == pytest.approx(np.median(np.abs(relative)))
    assert metrics["within_10_percent"] == pytest.approx(np.mean(np.abs(relative) <= 0.1))
    assert metrics["mae"] == pytest.approx(np.mean(np.abs(price - true)))
    assert metrics["bias"] == pytest.approx(np.median(relative))
    assert metrics["interval_coverage"] == pytest.approx(np.mean((0.8 * price <= true) & (true <= 1.25 * price)))
    assert metrics["interval_width"] == pytest.approx(0.45)
    assert not [name for name in metrics if "r2" in name]


@pytest.mark.parametrize(("factor", "bias", "coverage"), [(1.2, 0.2, 1.0), (0.7, -0.3, 0.0), (1.0, 0.0, 1.0)])
def test_bias_and_coverage_of_a_model_that_is_always_wrong_alike(
    factor: float, bias: float, coverage: float, references: References, holdout: pa.Table
) -> None:
    found = measure_prices(PlantedModel(references, factor), holdout, ["bias", "mdape", "interval_coverage"])
    assert [m.value for m in found] == pytest.approx([bias, abs(bias), coverage], abs=1e-9)


def test_slices_are_measured_like_all_rows(evaluation: Evaluation, holdout: pa.Table) -> None:
    diesel = np.array(holdout["fuel"].to_pylist()) == "diesel"
    found = look_up(evaluation, "mdape", "fuel=diesel")
    assert found.value == pytest.approx(np.median(np.abs(noisy(holdout)[diesel] - 1.0)))
    assert found.count == diesel.sum()
    slices = {m.slice.partition("=")[0] for m in evaluation.measurements if m.metric == "interval_coverage"}
    # No column of regions, bodies or kinds of offer, and none of gears has a value.
    assert slices == {"all", "make", "fuel", "price_band", "age_band"}


def test_bands_hold_every_listing_once(evaluation: Evaluation, holdout: pa.Table) -> None:
    for column in ("price_band", "age_band"):
        counts = [m.count for m in evaluation.measurements if m.metric == "mae" and m.slice.startswith(f"{column}=")]
        assert sum(counts) == holdout.num_rows
        assert len(counts) >= 4


def test_price_band_is_that_of_the_models_price(references: References, holdout: pa.Table) -> None:
    evaluation = evaluate_prices(PlantedModel(references, 1e6), holdout, resamples=2)
    bands = {m.slice for m in evaluation.measurements if m.slice.startswith("price_band")}
    assert min(float(band.partition("=")[2].split(" ")[0].replace(",", "")) for band in bands) >= 1e9


def test_ages_count_from_the_newest_year() -> None:
    table = pa.table({"year": [2020.0, 2019.0, None, 2009.0, 2010.5]})
    assert band_ages(table).tolist() == ["0 to 1", "0 to 1", "missing", "10 and more", "7 to 9"]
    assert band_ages(pa.table({"x": [1]})).tolist() == ["missing"]


def test_rare_make_is_no_slice(references: References, holdout: pa.Table) -> None:
    makes = ["Rare" if row < 20 else make for row, make in enumerate(holdout["make"].to_pylist())]
    table = holdout.set_column(holdout.schema.get_field_index("make"), "make", pa.array(makes))
    evaluation = evaluate_prices(PlantedModel(references, 1.0), table, compared=(), resamples=2)
    assert {m.slice for m in evaluation.measurements if m.slice.startswith("make=")} == {f"make={m}" for m in MAKES}


def test_gap_names_the_worse_group_and_leaves_small_ones_out(evaluation: Evaluation) -> None:
    gap = look_up(evaluation, "mdape_gap")
    worse, better = (look_up(evaluation, "mdape", f"fuel={fuel}").value for fuel in ("diesel", "petrol"))
    assert gap.value == pytest.approx((worse or 0.0) - (better or 0.0))
    assert "diesel against petrol" in gap.note
    assert "electric (" in gap.note
    assert gap.low is not None
    assert gap.low > 0.05
    assert look_up(evaluation, "mdape_gap", "between=fuel").value == gap.value


def test_gap_of_groups_that_nobody_has_is_missing(references: References, holdout: pa.Table) -> None:
    evaluation = evaluate_prices(PlantedModel(references, 1.0), holdout, compared=("region",), resamples=2)
    gap = look_up(evaluation, "mdape_gap")
    assert gap.value is None
    assert "no column of region" in gap.note


def test_listings_without_a_price_do_not_count(references: References, holdout: pa.Table) -> None:
    prices = [
        None if row % 3 == 0 else (0.0 if row % 3 == 1 else p) for row, p in enumerate(holdout["price"].to_pylist())
    ]
    table = holdout.set_column(1, "price", pa.array(prices, pa.float64()))
    (found,) = measure_prices(PlantedModel(references, 1.1), table, ["mdape"])
    assert found.value == pytest.approx(0.1)
    assert found.count == 300


def test_no_listing_at_all_is_a_defined_case(references: References, holdout: pa.Table) -> None:
    evaluation = evaluate_prices(PlantedModel(references, 1.0), holdout.slice(0, 0))
    assert_well_formed(evaluation)
    assert evaluation.metrics() == {}
    assert look_up(evaluation, "mdape").count == 0
    one = evaluate_prices(PlantedModel(references, 1.0), holdout.slice(0, 1))
    assert_well_formed(one)
    assert look_up(one, "mdape").value == 0.0


def test_table_without_prices_is_refused_with_what_to_do(references: References, holdout: pa.Table) -> None:
    with pytest.raises(DataError, match="--map price="):
        evaluate_prices(PlantedModel(references, 1.0), holdout.drop_columns(["price"]))


def test_search_gets_the_values_of_the_evaluation(
    evaluation: Evaluation, references: References, holdout: pa.Table
) -> None:
    names = ["mdape", "interval_width", "reference_ridge_mdape"]
    found = measure_prices(PlantedModel(references, noisy), holdout, names)
    assert [m.metric for m in found] == names
    assert list(found) == [look_up(evaluation, name) for name in names]
    with pytest.raises(UsageError, match="not measured by this model"):
        measure_prices(PlantedModel(references, noisy), holdout.slice(0, 10), ["rmse"])


def test_ridge_recovers_prices_that_are_linear_in_their_logarithm(holdout: pa.Table) -> None:
    exact = plant_listings(1500, seed=1, noise=0.0)
    fitted = fit_references(exact)
    other = plant_listings(300, seed=8, noise=0.0)
    true = other["price"].to_numpy()
    wrong = np.abs(fitted.predict(other)["ridge"] - true) / true
    assert np.median(wrong) < 0.01
    median = np.abs(fitted.predict(other)["median"] - true) / true
    assert np.median(median) > 0.1


def test_median_falls_back_from_model_to_make_to_all_listings() -> None:
    table = pa.table(
        {"make": ["A", "A", "A", "B"], "model": ["x", "x", "y", None], "price": [100.0, 300.0, 1000.0, 50.0]}
    )
    asked = pa.table({"make": ["A", "A", "A", "B", "C", None], "model": ["x", "z", None, "x", "x", "x"]})
    found = fit_references(table).predict(asked)["median"]
    assert found.tolist() == [200.0, 300.0, 300.0, 50.0, 200.0, 200.0]


def test_references_are_read_back_bit_for_bit(references: References, holdout: pa.Table, tmp_path: Path) -> None:
    references.write(tmp_path)
    again = References.read(tmp_path).predict(holdout)
    for name, prices in references.predict(holdout).items():
        assert np.array_equal(prices, again[name])
    np.save(tmp_path / "references.npy", np.zeros(3), allow_pickle=False)
    with pytest.raises(ValueError, match=r"shape \(3,\), and \(\d+,\) is needed"):
        References.read(tmp_path)


def test_references_price_a_listing_that_says_nothing(references: References) -> None:
    found = references.predict(pa.table({"listing_id": ["x"]}))
    assert all(np.isfinite(prices).all() and (prices > 0).all() for prices in found.values())
    extreme = references.predict(pa.table({"year": [1e9], "power_hp": [1e9], "mileage_km": [-1e9]}))
    assert extreme["ridge"][0] < 1e7


def test_rows_without_prices_teach_nothing() -> None:
    with pytest.raises(ModelError, match="none with a price"):
        fit_references(pa.table({"make": ["A"], "price": pa.array([None], pa.float64())}))
    one = fit_references(pa.table({"make": ["A"], "price": [500.0], "year": [2020.0]}))
    assert one.predict(pa.table({"make": ["A"], "year": [2020.0]}))["median"].tolist() == [500.0]
