"""`mlflywheel run vehicle-prices`: a whole run on a sample, another country's file, and what real listings are like."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_line import Finished, run
from rich.console import Console

from mlflywheel import Client
from mlflywheel.console import print_run
from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.data.validation import ValidationResult, read_suite, validate
from mlflywheel.decisions.gates import read_gates
from mlflywheel.errors import ExpectationError
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.samples.vehicle_prices import generate_vehicle_prices, write_sample

PIPELINE = find_pipeline("vehicle-prices")
LISTINGS = 1200
#: Loose where a small sample and a small model cannot reach what the defaults can.
GATES = (
    '{"schema": 1, "gates": [{"metric": "mdape", "at_most": 0.2}, {"metric": "interval_coverage", "at_least": 0.8}]}'
)
SMALL = {"max_iter": 60, "scale_iter": 20, "calibration_folds": 3}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in ("--param", f"{name}={value}")]
BRITISH = {
    "listing_id": "ad_ref",
    "make": "brand",
    "model": "model_name",
    "year": "registered",
    "mileage": "odometer_miles",
    "power": "bhp",
    "fuel": "fuel_type",
    "gear": "transmission",
    "offer_type": "condition",
    "region": "area",
    "engine_size": "engine_litres",
    "tax": "road_tax",
    "price": "asking_price",
}


@pytest.fixture(scope="module")
def succeeded(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    (folder / "gates.yaml").write_text(GATES, encoding="utf-8")
    data = write_sample(folder / "listings.csv.gz", LISTINGS)
    return run(folder, "--data", str(data), "--gates", "gates.yaml", *SMALL_OPTIONS, "--json", pipeline=PIPELINE.name)


def test_run_registers_a_model_and_prices_every_listing(succeeded: Finished) -> None:
    assert succeeded.code == 0, succeeded.errors
    summary = json.loads(succeeded.output)
    assert summary == succeeded.summary
    assert summary["status"] == "succeeded"
    assert summary["model"]["name"] == "vehicle-prices"
    scores = pq.read_table(summary["artifacts"]["scores"])
    assert scores.num_rows == summary["data"]["entities"] == LISTINGS
    assert set(scores["model_version"].to_pylist()) == {"vehicle-prices@1"}
    assert set(scores["currency"].to_pylist()) == {"EUR"}
    price, low, high = (scores[name].to_numpy() for name in ("price", "low", "high"))
    assert (low > 0).all()
    assert (low < price).all()
    assert (price < high).all()


def test_summary_counts_what_cleaning_did(succeeded: Finished) -> None:
    data = succeeded.summary["data"]
    assert data["rows"] == LISTINGS + 55
    assert data["cleaning"]["duplicates_removed"] == 55
    assert data["cleaning"]["without_price"] == 2
    for flag in ("mileage_km_out_of_range", "power_hp_out_of_range", "year_out_of_range", "price_out_of_range"):
        assert data["cleaning"][flag] == 1
    assert data["train"] + data["holdout"] == LISTINGS


def test_summary_holds_prices_metrics_beside_simpler_models(succeeded: Finished) -> None:
    metrics = succeeded.summary["metrics"]
    for name in ("mdape", "within_10_percent", "mae", "bias"):
        assert {name, f"reference_ridge_{name}", f"reference_median_{name}"} <= set(metrics)
    assert {"interval_coverage", "interval_width"} <= set(metrics)
    assert metrics["mdape"] < metrics["reference_median_mdape"]
    assert not [name for name in metrics if "r2" in name]


def test_report_draws_the_models_own_part(succeeded: Finished) -> None:
    for title in ("Against simpler methods", "Price against true price", "Ranges by width", "Drivers of one price"):
        assert title in succeeded.report
    assert "vehicle-prices@1" in succeeded.report
    assert 'src="http' not in succeeded.report


def test_command_line_tells_the_faults_and_the_simpler_model(succeeded: Finished) -> None:
    told = io.StringIO()
    print_run(Console(file=told, width=200), succeeded.summary)
    lines = told.getvalue().splitlines()
    (mileage,) = [line for line in lines if line.startswith("warning: mileage_plausible: 1 of 1,255 rows")]
    assert "1111111.0" in mileage
    assert any(line.startswith("cleaned: duplicates_removed 55, without_price 2") for line in lines)
    metrics = succeeded.summary["metrics"]
    assert [
        "mdape",
        f"{metrics['mdape']:,.4g}",
        f"{metrics['reference_ridge_mdape']:,.4g}",
    ] in [line.split() for line in lines]


def test_page_of_the_pipeline_names_parameters_and_settings() -> None:
    page = (PIPELINE.folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in VehiclePrice.Params.model_fields if f"`{name}`" not in page] == []
    for name in ("deduplicate", "mileage_unit", "power_unit", "currency", "ranges"):
        assert name in VehiclePrice.Config.model_fields
        assert f"--prepare {name}" in page or f"--prepare '{name}" in page


def test_flagged_listings_say_what_is_wrong_and_are_marked(succeeded: Finished) -> None:
    scores = pq.read_table(succeeded.summary["artifacts"]["scores"]).to_pylist()
    flagged = [score for score in scores if score["flags"]]
    assert {flag for score in flagged for flag in score["flags"]} >= {"missing_model", "mileage_km_out_of_range"}
    assert all(score["needs_review"] for score in flagged)
    assert len(flagged) < 0.05 * len(scores)


def test_drivers_are_factors_of_known_facts(succeeded: Finished) -> None:
    for score in pq.read_table(succeeded.summary["artifacts"]["scores"]).slice(0, 50).to_pylist():
        assert score["drivers"]
        assert all(driver["factor"] > 0 for driver in score["drivers"])
        assert {driver["feature"] for driver in score["drivers"]} <= set(VehiclePrice.Config().ranges.model_dump()) | {
            "make",
            "model",
            "fuel",
            "gear",
            "offer_type",
            "region",
        }


# What configuration alone does to a table is tested in test_vehicle_preparation; this is a whole run more.
@pytest.mark.long
def test_another_countrys_file_needs_configuration_alone(succeeded: Finished, tmp_path: Path) -> None:
    """Other names, miles, pounds, and the columns of engine size and tax; the truth is that of the German sample."""
    data = write_sample(tmp_path / "listings.csv", LISTINGS, market="united-kingdom")
    client = Client(tmp_path / "runs")
    prepare = {"mileage_unit": "miles", "currency": "GBP"}
    made = client.run(
        PIPELINE.name, data, columns=BRITISH, prepare=prepare, params=SMALL, arguments={"gates": GATES}
    ).raise_for_status()
    ours = json.loads(succeeded.output)["metrics"]
    assert made.metrics["mdape"] == pytest.approx(ours["mdape"], abs=0.02)
    scores = pq.read_table(made.summary["artifacts"]["scores"])
    assert set(scores["currency"].to_pylist()) == {"GBP"}
    german = pq.read_table(succeeded.summary["artifacts"]["scores"])
    pounds = dict(zip(scores["listing_id"].to_pylist(), scores["price"].to_pylist(), strict=True))
    euros = dict(zip(german["listing_id"].to_pylist(), german["price"].to_pylist(), strict=True))
    assert np.median([pounds[name] / euros[name] for name in euros]) == pytest.approx(0.86, abs=0.02)
    # The registered version knows how its data was prepared, so that scoring needs the names alone.
    again = client.score("vehicle-prices", data, columns=BRITISH)
    assert again["price"].equals(scores["price"])


def test_names_that_sources_have_need_no_mapping(tmp_path: Path) -> None:
    table = generate_vehicle_prices(50).rename_columns(
        {"power": "hp", "offer_type": "offerType"}  # As the marketplace of the real file writes them.
    )
    pq.write_table(table, tmp_path / "listings.parquet")
    read = ingest(str(tmp_path / "listings.parquet"), VehiclePrice.columns, {}).table
    assert {"power", "offer_type"} <= set(read.column_names)
    assert not {"hp", "offerType"} & set(read.column_names)


def validate_listings(raw: pa.Table) -> ValidationResult:
    suite = read_suite((PIPELINE.folder / "expectations.json").read_text(encoding="utf-8"), "expectations.json")
    return validate(raw, VehiclePrice.prepare(raw, VehiclePrice.Config()), suite)


def spoil(raw: pa.Table, column: str, values: list[Any]) -> pa.Table:
    return raw.set_column(raw.schema.get_field_index(column), column, pa.array(values, raw.schema.field(column).type))


def counts_of_warnings(result: ValidationResult) -> Mapping[str, int]:
    failed = [rule for rule in result.rules if rule.status == "failed"]
    assert {rule.severity for rule in failed} <= {"warn"}
    return {rule.name: rule.unexpected_count or 0 for rule in failed}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = write_sample(tmp_path_factory.mktemp("sample") / "listings.csv", 600)
    return ingest(str(path), VehiclePrice.columns, {}).table


def test_faults_of_the_sample_are_named_and_do_not_stop_a_run(raw: pa.Table) -> None:
    assert counts_of_warnings(validate_listings(raw)) == {
        "rows_unique": 56,
        "price_present": 1,
        "price_positive": 1,
        "mileage_plausible": 1,
        "power_plausible": 1,
        "year_not_in_future": 1,
        "model_present": 2,
        "power_present": 1,
        "gear_present": 2,
    }


@pytest.mark.parametrize(
    ("column", "spoiled", "rule"),
    [
        ("price", lambda n: [None] * n, "price_mostly_present"),
        ("price", lambda n: [0.0] * n, "price_mostly_plausible"),
        ("mileage", lambda n: [-1.0] * n, "mileage_mostly_plausible"),
        ("mileage", lambda n: [None if row % 4 else 10.0 for row in range(n)], "mileage_mostly_present"),
        ("power", lambda n: [1.0] * n, "power_mostly_plausible"),
        ("year", lambda n: [19.0] * n, "year_mostly_plausible"),
        ("make", lambda n: [None if row % 10 == 0 else "Ford" for row in range(n)], "make_mostly_present"),
    ],
)
def test_broken_export_stops_the_run(raw: pa.Table, column: str, spoiled: Any, rule: str) -> None:
    result = validate_listings(spoil(raw, column, spoiled(raw.num_rows)))
    assert rule in {found.name for found in result.rules if found.status == "failed" and found.severity == "error"}
    with pytest.raises(ExpectationError, match=rule):
        result.raise_for_errors()


def test_export_that_repeats_itself_stops_the_run(raw: pa.Table) -> None:
    with pytest.raises(ExpectationError, match="rows_mostly_unique"):
        validate_listings(pa.concat_tables([raw, raw])).raise_for_errors()


def test_table_without_prices_stops_the_run(raw: pa.Table) -> None:
    with pytest.raises(ExpectationError, match="price"):
        validate_listings(raw.drop_columns(["price"])).raise_for_errors()


def test_gates_ask_for_what_the_model_measures(succeeded: Finished) -> None:
    gates = read_gates((PIPELINE.folder / "gates.yaml").read_text(encoding="utf-8"))
    asked = {name for gate in gates for name in (gate.metric, gate.limit_metric) if name}
    evaluation = json.loads(Path(succeeded.summary["artifacts"]["evaluation"]).read_text(encoding="utf-8"))
    assert asked <= {measurement["metric"] for measurement in evaluation["measurements"]}


@pytest.fixture(scope="module")
def real(shared_folder: Path) -> pa.Table:
    """The real listings, in the raw form that the pipeline gets."""
    path = shared_folder / "data" / "used_cars" / "autoscout24_germany.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent.name}")
    return ingest(str(path), VehiclePrice.columns, {}).table


def test_faults_of_the_real_listings_are_named(real: pa.Table) -> None:
    prepared = VehiclePrice.prepare(real, VehiclePrice.Config())
    assert VehiclePrice.describe_table(prepared)["duplicates_removed"] == 2140
    found = counts_of_warnings(validate_listings(real))
    # 3,818 rows stand twice or more often; keeping one of each removes 2,140.
    assert found == {
        "rows_unique": 3818,
        "price_present": 1,
        "mileage_plausible": 2,
        "power_plausible": 10,
        "model_present": 143,
        "power_present": 29,
        "gear_present": 182,
        "fuel_present": 26,
    }


@pytest.mark.long
def test_duplicates_on_both_sides_of_a_split_make_a_model_look_better(real: pa.Table) -> None:
    """The same listing in training and evaluation is looked up and not priced: that flatters a small model too."""
    numbered = real.add_column(0, "listing_id", pa.array([f"row-{row}" for row in range(real.num_rows)]))
    table = VehiclePrice.prepare(numbered, VehiclePrice.Config(deduplicate=False))
    parts = split(table, "random", 0.2, 0)
    keys = [name for name in table.column_names if name not in ("listing_id", "flags")]
    seen = {tuple(row.values()) for row in parts.train.select(keys).to_pylist()}
    twin = np.array([tuple(row.values()) in seen for row in parts.holdout.select(keys).to_pylist()])
    priced = parts.holdout.filter(pc.is_valid(parts.holdout["price"]))
    twin = twin[parts.holdout["price"].is_valid().to_numpy()]
    assert 500 < twin.sum() < 900
    model = VehiclePrice.fit(parts.train, VehiclePrice.Params.parse({**SMALL, "max_leaf_nodes": 127}, "test"))
    true = priced["price"].to_numpy()
    error = np.abs(model.predict(priced)["price"].to_numpy() - true) / true
    assert np.median(error[twin]) < 0.9 * np.median(error[~twin])
    assert np.median(error) < np.median(error[~twin])
