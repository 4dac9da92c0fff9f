import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from planted_listings import plant_listings
from pydantic import ValidationError

from mlflywheel.errors import ModelError, ModelFilesError
from mlflywheel.models.contract import load_model, load_model_class
from mlflywheel.models.vehicle_price import VehiclePrice, ensemble, onnx_graph
from mlflywheel.models.vehicle_price.fitting import FitParams
from mlflywheel.models.vehicle_price.intervals import mask_fields
from mlflywheel.models.vehicle_price.onnx_graph import feed_table, run_graph

PARAMS = FitParams(max_iter=60, scale_iter=30, calibration_folds=3, max_leaf_nodes=15, masked_share=0.3)
CONFIG = VehiclePrice.Config(reference_year=2021)


def prepare(raw, **config):
    return VehiclePrice.prepare(raw, VehiclePrice.Config.model_validate({"reference_year": 2021, **config}))


@pytest.fixture(scope="module")
def table():
    return prepare(plant_listings(3000))


@pytest.fixture(scope="module")
def fresh():
    return prepare(plant_listings(1500, seed=1))


@pytest.fixture(scope="module")
def model(table):
    return VehiclePrice.fit(table, PARAMS)


def ask(model, /, **fields):
    request = VehiclePrice.Request.model_validate(fields)
    return model.predict(VehiclePrice.to_table([request])).to_pylist()[0]


KNOWN = {
    "make": "Ada",
    "model": "M",
    "year": 2016,
    "mileage_km": 60_000,
    "power_hp": 110,
    "fuel": "Petrol",
    "gear": "Manual",
}


def test_the_entry_point_finds_the_class():
    assert load_model_class("vehicle-price") is VehiclePrice


def test_prices_are_near_what_was_planted(model, fresh):
    true = fresh["price"].to_numpy()
    error = np.abs(model.predict(fresh)["price"].to_numpy() - true) / true
    # The noise alone has a median of 0.08 * 1.5 * 0.67.
    assert np.median(error) < 0.1


def test_ranges_hold_nine_of_ten_fresh_listings(model, fresh):
    answer = model.predict(fresh)
    true = fresh["price"].to_numpy()
    held = (true >= answer["low"].to_numpy()) & (true <= answer["high"].to_numpy())
    assert held.mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("field", ["make", "model", "year", "mileage_km", "power_hp", "fuel", "gear"])
def test_ranges_without_a_field_are_wider_and_hold_nine_of_ten_too(model, fresh, field):
    schema = model.schema
    listings = schema.read(fresh)
    chosen = np.zeros((fresh.num_rows, len(schema.features)), dtype=bool)
    chosen[:, schema.features.index(field)] = True
    masked = model.price_listings(mask_fields(listings, schema, chosen))
    true = np.log(fresh["price"].to_numpy())
    assert np.mean((true >= masked.log_low) & (true <= masked.log_high)) == pytest.approx(0.9, abs=0.06)
    complete = model.price_listings(listings)
    # Fuel and gear have no influence on a planted price.
    least = 0.95 if field in ("fuel", "gear") else 1.02
    width = np.median(masked.log_high - masked.log_low) / np.median(complete.log_high - complete.log_low)
    assert width > least


def test_a_listing_that_lacks_nothing_has_no_flag(model):
    answer = ask(model, listing_id="x", **KNOWN)
    assert (answer["listing_id"], answer["flags"], answer["needs_review"]) == ("x", [], False)
    assert answer["currency"] == "EUR"
    assert 0 <= answer["confidence"] <= 1


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({"make": "Unheard"}, ["unknown_make", "unknown_model"]),
        ({"model": "Unheard"}, ["unknown_model"]),
        ({"make": None}, ["missing_make", "unknown_model"]),
        ({"model": ""}, ["missing_model"]),
        ({"year": None}, ["missing_year"]),
        ({"year": float("nan")}, ["missing_year"]),
        ({"year": 2035}, ["year_out_of_range"]),
        ({"year": 1899}, ["year_out_of_range"]),
        ({"year": 2005}, ["year_beyond_training"]),
        ({"mileage_km": 1_111_111}, ["mileage_km_out_of_range"]),
        ({"mileage_km": 1e300}, ["mileage_km_out_of_range"]),
        ({"mileage_km": 700_000}, ["mileage_km_beyond_training"]),
        ({"power_hp": 1}, ["power_hp_out_of_range"]),
        ({"power_hp": 1200}, ["power_hp_beyond_training"]),
        ({"fuel": "Wood"}, ["unknown_fuel"]),
        ({"gear": "  "}, ["missing_gear"]),
    ],
)
def test_what_is_missing_unknown_or_out_of_range_is_flagged_reviewed_and_wide(model, change, flags):
    answer = ask(model, **{**KNOWN, **change})
    assert answer["flags"] == flags
    assert answer["needs_review"]
    assert 0 < answer["low"] < answer["price"] < answer["high"] < math.inf
    if not {"fuel", "gear"} & set(change):
        sure = ask(model, **KNOWN)
        assert answer["high"] / answer["low"] > sure["high"] / sure["low"]
        assert answer["confidence"] <= sure["confidence"]


def test_a_listing_of_which_nothing_is_known_has_an_answer(model):
    answer = ask(model)
    assert len(answer["flags"]) == 7
    assert answer["needs_review"]
    assert answer["low"] < answer["price"] < answer["high"]


def test_preparing_and_asking_flag_the_same(model):
    raw = {"make": ["Ada"], "model": ["M"], "year": [2016.0], "mileage": [1_111_111.0], "power": [1.0], "fuel": [None]}
    prepared = prepare(
        pa.table({**raw, "gear": pa.array(["Manual"])}).cast(
            pa.schema(
                [
                    ("make", "string"),
                    ("model", "string"),
                    ("year", "double"),
                    ("mileage", "double"),
                    ("power", "double"),
                    ("fuel", "string"),
                    ("gear", "string"),
                ]
            )
        )
    )
    batch = model.predict(prepared).to_pylist()[0]
    online = ask(model, **{**KNOWN, "mileage_km": 1_111_111, "power_hp": 1, "fuel": None})
    assert batch["flags"] == online["flags"] == ["mileage_km_out_of_range", "power_hp_out_of_range", "missing_fuel"]
    assert batch["price"] == online["price"]


def test_spelling_and_case_do_not_matter(model):
    assert ask(model, **{**KNOWN, "make": " aDA ", "fuel": "PETROL"})["price"] == ask(model, **KNOWN)["price"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"mileage_miles": 37_282.272}, {"mileage_km": 60_000}),
        ({"power_kw": 82.0269858}, {"power_hp": 110}),
        ({"power_ps": 111.5257}, {"power_hp": 110}),
    ],
)
def test_units_of_a_request_are_converted(first, second):
    rows = VehiclePrice.to_table([VehiclePrice.Request(**first), VehiclePrice.Request(**second)])
    name = next(iter(second))
    assert rows[name][0].as_py() == pytest.approx(rows[name][1].as_py(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"colour": "red"}, "Extra inputs"),
        ({"year": "2016"}, "valid number"),
        ({"year": True}, "valid number"),
        ({"year": float("inf")}, "finite"),
        ({"year": [2016]}, "valid number"),
        ({"year": 10**400}, "valid number"),
        ({"make": 316}, "valid string"),
        ({"make": "x" * 201}, "at most 200"),
        ({"make": "\ud800"}, "surrogate"),
        ({"mileage_km": 1, "mileage_miles": 1}, "send one of them"),
        ({"power_hp": 1, "power_ps": 1}, "send one of them"),
    ],
)
def test_malformed_requests_are_refused(fields, seen):
    with pytest.raises(ValidationError, match=seen):
        VehiclePrice.Request.model_validate(fields)


def test_an_answer_fits_the_response_and_the_example_the_request(model):
    answer = ask(model, **VehiclePrice.example_request())
    assert VehiclePrice.Response.model_validate(answer).model_dump() == answer


def test_a_batch_and_its_rows_alone_get_the_same_bits(model, fresh):
    some = fresh.slice(0, 200)
    batch = model.predict(some)
    alone = pa.concat_tables([model.predict(some.slice(row, 1)) for row in range(200)])
    assert batch.to_pylist() == alone.to_pylist()


def test_blocks_do_not_change_answers(model, fresh, monkeypatch):
    whole = model.predict(fresh)
    monkeypatch.setattr("mlflywheel.models.vehicle_price.model._PREDICT_BLOCK", 97)
    assert model.predict(fresh).to_pylist() == whole.to_pylist()


def test_threads_get_what_one_thread_gets(model, fresh):
    parts = [fresh.slice(start, 100) for start in range(0, 1000, 100)]
    expected = [model.predict(part).to_pylist() for part in parts]
    with ThreadPoolExecutor(8) as pool:
        assert [found.to_pylist() for found in pool.map(model.predict, parts)] == expected


def test_without_numba_the_answers_are_the_same_bits(model, fresh, monkeypatch):
    expected = model.predict(fresh).to_pylist()
    monkeypatch.setattr(ensemble, "_compile", lambda: None)
    assert model.predict(fresh).to_pylist() == expected


def test_no_rows_are_scored_to_no_rows(model, fresh):
    empty = model.predict(fresh.slice(0, 0))
    assert empty.num_rows == 0
    assert empty.schema == model.predict(fresh).schema


def test_contributions_add_up_to_the_price(model, fresh):
    explained = model.explain(fresh)
    parts = explained["drivers"].combine_chunks()
    names = {driver["feature"] for driver in explained["drivers"][0].as_py()}
    assert names == set(model.schema.features)
    sums = np.array([math.fsum(d["contribution"] for d in row) for row in parts.to_pylist()])
    assert np.abs(explained["base_log_price"].to_numpy() + sums - explained["log_price"].to_numpy()).max() < 1e-12
    products = np.array([math.prod(d["factor"] for d in row) for row in parts.to_pylist()])
    price = explained["price"].to_numpy()
    assert np.abs(explained["base_price"].to_numpy() * products / price - 1).max() < 1e-9
    assert (price == model.predict(fresh)["price"].to_numpy()).all()


def test_the_strongest_driver_of_an_old_car_is_its_age_and_lowers_the_price(model):
    drivers = ask(model, **{**KNOWN, "make": "Brun", "year": 2011, "mileage_km": 80_000})["drivers"]
    assert len(drivers) == 5
    assert drivers[0]["feature"] == "year"
    assert drivers[0]["value"] == "2011"
    assert drivers[0]["factor"] < 0.9
    sizes = [abs(math.log(driver["factor"])) for driver in drivers]
    assert sizes == sorted(sizes, reverse=True)


def test_a_saved_model_answers_alike_and_saves_to_the_same_hash(model, fresh, tmp_path):
    digest = model.save(tmp_path / "a")
    again = load_model(tmp_path / "a")
    assert isinstance(again, VehiclePrice)
    assert again.predict(fresh).to_pylist() == model.predict(fresh).to_pylist()
    assert again.save(tmp_path / "b") == digest
    suffixes = {path.suffix for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".npy", ".onnx"}


def test_a_model_whose_files_do_not_fit_is_refused(model, tmp_path):
    model.save(tmp_path / "m")
    digests = json.loads((tmp_path / "m" / "manifest.json").read_text())
    (tmp_path / "m" / "intervals.json").write_text("{}")
    with pytest.raises(ModelFilesError, match=r"intervals\.json"):
        VehiclePrice.load(tmp_path / "m")
    assert "model.onnx" in digests["files"]


def test_the_order_of_rows_and_the_number_of_threads_do_not_matter(table, model, tmp_path, monkeypatch):
    digest = model.save(tmp_path / "a")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert VehiclePrice.fit(shuffled, PARAMS).save(tmp_path / "b") == digest


def test_the_seed_matters(table, model):
    other = VehiclePrice.fit(table, PARAMS.model_copy(update={"seed": 1}))
    assert other.predict(table)["price"].to_pylist() != model.predict(table)["price"].to_pylist()


def test_onnx_runtime_gets_raw_listings_and_gives_the_same_prices(model, fresh):
    strange = fresh.slice(0, 300)
    for name in ("make", "model", "fuel"):
        values = [
            None if row % 7 == 0 else "Unheard" if row % 5 == 0 else text
            for row, text in enumerate(strange[name].to_pylist())
        ]
        strange = strange.set_column(strange.column_names.index(name), name, pa.array(values, pa.string()))
    wild = [None, 1e9, -3.0, 2035.0, 650_000.0, 1990.0]
    for name in ("year", "mileage_km", "power_hp"):
        values = [wild[row % 6] if row % 4 == 0 else value for row, value in enumerate(strange[name].to_pylist())]
        strange = strange.set_column(strange.column_names.index(name), name, pa.array(values, pa.float64()))
    strange = strange.drop_columns("flags").combine_chunks()
    found = run_graph(model.graph, feed_table(model.schema, strange))
    expected = model.predict(strange)
    for name in ("price", "low", "high"):
        values = expected[name].to_numpy()
        assert (np.abs(found[name] - values) / values).max() < 1e-4


def test_onnx_runtime_takes_lower_and_upper_case(model):
    feeds = []
    for case in (str, str.lower, str.upper):
        fields = {name: case(value) if isinstance(value, str) else value for name, value in KNOWN.items()}
        feeds.append(feed_table(model.schema, VehiclePrice.to_table([VehiclePrice.Request(**fields)])))
    prices = [float(run_graph(model.graph, feed)["price"][0]) for feed in feeds]
    assert prices[0] == prices[1] == prices[2] == pytest.approx(ask(model, **KNOWN)["price"], rel=1e-4)


def test_a_graph_that_differs_from_the_model_is_refused(table, monkeypatch):
    def shift(graph, feed):
        return {name: values * np.float32(1.001) for name, values in run_graph(graph, feed).items()}

    monkeypatch.setattr(onnx_graph, "run_graph", shift)
    with pytest.raises(ModelError, match=r"ONNX graph: it differs from the model by 0\.001"):
        VehiclePrice.fit(table.slice(0, 200), PARAMS)


def test_another_country_is_a_matter_of_settings(model):
    german = plant_listings(3000)
    columns = {name: german[name] for name in german.column_names}
    columns["mileage"] = pa.array(german["mileage"].to_numpy() / 1.609344)
    columns["power"] = pa.array(german["power"].to_numpy() * 0.745699872)
    columns["engine_size"] = pa.array(np.round(german["power"].to_numpy() / 60, 1))
    british = prepare(pa.table(columns), mileage_unit="miles", power_unit="kw", currency="GBP")
    fitted = VehiclePrice.fit(british, PARAMS)
    answer = ask(fitted, **KNOWN, engine_size=1.8)
    assert answer["currency"] == "GBP"
    assert answer["flags"] == []
    assert answer["price"] == pytest.approx(ask(model, **KNOWN)["price"], rel=0.1)
    assert "engine_size" in fitted.schema.numbers


def test_a_table_without_makes_is_fitted_too():
    raw = plant_listings(400).select(["price", "year", "mileage"])
    answer = ask(VehiclePrice.fit(prepare(raw), PARAMS), year=2018, mileage_km=30_000)
    assert answer["flags"] == []
    assert {driver["feature"] for driver in answer["drivers"]} == {"year", "mileage_km"}


def test_twenty_listings_are_enough_and_fewer_are_refused():
    raw = plant_listings(20)
    answer = ask(VehiclePrice.fit(prepare(raw), PARAMS), **KNOWN)
    assert answer["low"] < answer["price"] < answer["high"]
    with pytest.raises(ModelError, match="19 of 19 listings have a price"):
        VehiclePrice.fit(prepare(raw.slice(0, 19)), PARAMS)


def test_listings_without_a_price_are_left_out_of_the_fit(table, model, tmp_path):
    extra = table.slice(0, 500).set_column(table.column_names.index("price"), "price", pa.nulls(500, pa.float64()))
    both = pa.concat_tables([extra, table]).replace_schema_metadata(table.schema.metadata)
    assert VehiclePrice.fit(both, PARAMS).save(tmp_path / "a") == model.save(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "seen"),
    [({"price": 9999.0}, "all prices are 9999"), ({"year": None, "mileage_km": None}, "no value in columns")],
)
def test_rows_that_teach_nothing_are_refused(table, change, seen):
    poor = table.slice(0, 100)
    if "year" in change:
        poor = poor.select(["listing_id", "price", "flags"])
    else:
        poor = poor.set_column(poor.column_names.index("price"), "price", pa.array([9999.0] * 100))
    with pytest.raises(ModelError, match=seen):
        VehiclePrice.fit(poor, PARAMS)


def test_facts_name_the_sizes(model):
    facts = model.describe()
    assert (facts["makes"], facts["models"], facts["training_listings"], facts["trees"]) == (4, 12, 3000, 60)
    assert 0 < facts["onnx_difference"] < 1e-4


def test_a_model_copied_elsewhere_loads(model, fresh, tmp_path):
    model.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert VehiclePrice.load(tmp_path / "b").predict(fresh).num_rows == fresh.num_rows
