import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_listings import plant_listings

from mlflywheel.data.splitting import split
from mlflywheel.errors import DataError, UsageError
from mlflywheel.models.vehicle_price.preparation import Facts, PrepareConfig, prepare_listings


def prepare(columns, **config):
    return prepare_listings(pa.table(columns), PrepareConfig.model_validate(config))


def test_equal_rows_are_one_and_the_count_is_kept():
    table = prepare({"make": ["a", "b", "a", "a"], "price": [1e3, 2e3, 1e3, 1.5e3]})
    assert table["make"].to_pylist() == ["a", "b", "a"]
    assert table["price"].to_pylist() == [1e3, 2e3, 1.5e3]
    assert (Facts.read(table).rows, Facts.read(table).duplicates_removed) == (4, 1)


def test_rows_that_differ_in_their_id_are_two_listings():
    assert prepare({"listing_id": ["x", "y"], "make": ["a", "a"]}).num_rows == 2


def test_duplicates_stay_when_asked_for_and_share_the_id_of_their_content():
    table = prepare({"make": ["a", "a", None, ""]}, deduplicate=False)
    ids = table["listing_id"].to_pylist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_ids_do_not_depend_on_the_other_rows():
    few = prepare({"make": ["a", "b"], "price": [1e3, 2e3]})["listing_id"].to_pylist()
    many = prepare({"make": ["c", "b", "a"], "price": [5e3, 2e3, 1e3]})["listing_id"].to_pylist()
    assert few == [many[2], many[1]]


@pytest.mark.parametrize(
    ("config", "column", "given", "prepared", "expected"),
    [
        ({"mileage_unit": "miles"}, "mileage", 1000.0, "mileage_km", 1609.344),
        ({"power_unit": "kw"}, "power", 85.0, "power_hp", 113.9869),
        ({"power_unit": "ps"}, "power", 116.0, "power_hp", 114.4131),
        ({}, "power", 116.0, "power_hp", 116.0),
    ],
)
def test_units_are_converted(config, column, given, prepared, expected):
    assert prepare({column: [given]}, **config)[prepared][0].as_py() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("column", "value", "prepared", "flag"),
    [
        ("mileage", 1_111_111.0, "mileage_km", "mileage_km_out_of_range"),
        ("mileage", -5.0, "mileage_km", "mileage_km_out_of_range"),
        ("power", 1.0, "power_hp", "power_hp_out_of_range"),
        ("year", 2035.0, "year", "year_out_of_range"),
        ("year", 19.0, "year", "year_out_of_range"),
        ("price", 0.0, "price", "price_out_of_range"),
        ("price", "N/A", "price", "unreadable_price"),
        ("year", "two thousand", "year", "unreadable_year"),
        ("mileage", float("inf"), "mileage_km", "unreadable_mileage_km"),
        ("mileage", float("nan"), "mileage_km", "missing_mileage_km"),
        ("mileage", None, "mileage_km", "missing_mileage_km"),
        ("gear", "  ", "gear", "missing_gear"),
        ("gear", "N/A", "gear", "missing_gear"),
    ],
)
def test_what_cannot_be_is_missing_and_flagged(column, value, prepared, flag):
    table = prepare(
        {"make": ["a", "b"], column: [value, value], "year" if column != "year" else "tax": [2019.0, 2019.0]},
        reference_year=2020,
    )
    assert table[prepared].null_count == 2
    assert table["flags"].to_pylist() == [[flag], [flag]]
    assert Facts.read(table).flagged == {flag: 2}


def test_a_missing_price_is_no_fault_of_a_listing():
    table = prepare({"make": ["a", "b"], "price": [None, 5e3]})
    assert table["flags"].to_pylist() == [[], []]
    assert Facts.read(table).without_price == 1


def test_one_car_from_the_future_does_not_move_the_reference_year():
    years = [2020.0] * 900 + [2021.0] * 99 + [2049.0]
    table = prepare({"year": years, "power": np.arange(1000.0) + 50})
    assert Facts.read(table).reference_year == 2021
    assert table["flags"].to_pylist()[-1] == ["year_out_of_range"]


def test_texts_are_trimmed_and_numbers_may_be_texts():
    table = prepare({"make": [" Alfa \t Romeo "], "year": [" 2019 "], "mileage": ["1e4"]})
    assert table.select(["make", "year", "mileage_km", "flags"]).to_pylist() == [
        {"make": "Alfa Romeo", "year": 2019.0, "mileage_km": 10_000.0, "flags": []}
    ]


def test_other_columns_stay_and_only_chosen_features_are_prepared():
    table = prepare({"make": ["a"], "tax": [5.0], "dealer": ["x"]}, features=["make"])
    assert table.column_names == ["listing_id", "price", "make", "dealer", "flags"]


def test_a_table_without_features_is_refused():
    with pytest.raises(DataError, match="at least one of year, mileage"):
        prepare({"colour": ["red"]})


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        ({"mileage_unit": "furlong"}, "furlong"),
        ({"features": ["colour"]}, "colour unknown"),
        ({"ranges": {"year": [2020, 1990]}}, "the smaller one first"),
        ({"ranges": {"wheels": [3, 4]}}, "wheels"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(config, seen):
    with pytest.raises(UsageError, match=seen):
        PrepareConfig.parse(json.dumps(config), "preparation settings")


def test_facts_survive_parquet_and_splitting(tmp_path):
    table = prepare_listings(plant_listings(200), PrepareConfig(currency="GBP"))
    pq.write_table(table, tmp_path / "t.parquet")
    train = split(pq.read_table(tmp_path / "t.parquet"), "random", 0.2, 0, id_column="listing_id").train
    assert Facts.read(train) == Facts.read(table)
    assert Facts.read(train).currency == "GBP"
    assert Facts.read(train.replace_schema_metadata(None)) == Facts()
