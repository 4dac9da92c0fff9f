"""The made-up listings: the same for a seed everywhere, plausible numbers, and the faults of an export."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from mlflywheel.errors import UsageError
from mlflywheel.samples.vehicle_prices import (
    FAULTS_FROM,
    NEWEST_YEAR,
    generate_vehicle_prices,
    ground_truth,
    write_sample,
)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return generate_vehicle_prices(3000)


@pytest.fixture(scope="module")
def rows(table: pa.Table) -> dict[str, list[Any]]:
    return table.to_pydict()


def number(text: str) -> float:
    return np.nan if text == "N/A" else float(text)


def test_equal_seeds_give_equal_tables_and_others_do_not() -> None:
    assert generate_vehicle_prices(200, seed=3).equals(generate_vehicle_prices(200, seed=3))
    assert not generate_vehicle_prices(200, seed=3).equals(generate_vehicle_prices(200, seed=4))


def test_text_of_a_seed_is_the_same_on_every_machine(tmp_path: Path) -> None:
    content = write_sample(tmp_path / "sample.csv", listings=150, seed=7).read_bytes()
    assert hashlib.sha256(content).hexdigest() == "b92ea3882b4f269b47669a4bfcefb8baee0aae94dbe312545d764590ec01fdce"


def test_every_fault_of_a_real_export_is_there(rows: dict[str, list[Any]]) -> None:
    listings = list(zip(*rows.values(), strict=True))
    counts = Counter(listings)
    assert sum(count - 1 for count in counts.values()) == 138
    assert max(counts.values()) == 2
    assert 1_111_111 in rows["mileage"]
    assert 1 in rows["power"]
    assert {"N/A", "0"} <= set(rows["price"])
    assert max(rows["year"]) == NEWEST_YEAR + 6
    for name, share in (("model", 0.003), ("gear", 0.004), ("power", 0.0006)):
        missing = sum(value is None for value in rows[name])
        assert missing == pytest.approx(share * 3000, abs=2)
    assert not any(None in rows[name] for name in ("listing_id", "make", "fuel", "year", "mileage", "price"))


def test_small_tables_have_no_faults() -> None:
    clean = generate_vehicle_prices(FAULTS_FROM - 1).to_pydict()
    assert len(set(clean["listing_id"])) == FAULTS_FROM - 1
    assert max(clean["year"]) <= NEWEST_YEAR
    assert all(price.isdigit() and price != "0" for price in clean["price"])
    assert not any(value is None for values in clean.values() for value in values)
    assert generate_vehicle_prices(FAULTS_FROM).num_rows > FAULTS_FROM


def test_numbers_are_those_of_used_cars(rows: dict[str, list[Any]]) -> None:
    price = np.array([number(text) for text in rows["price"]])
    mileage, power = np.array(rows["mileage"], dtype=float), np.array([p or np.nan for p in rows["power"]])
    assert 8_000 < np.nanmedian(price) < 20_000
    assert 40_000 < np.median(mileage) < 90_000
    assert 90 < np.nanmedian(power) < 160
    used = np.array(rows["offer_type"]) == "Used"
    assert 0.85 < used.mean() < 0.97
    year = np.array(rows["year"])
    old = (year < NEWEST_YEAR - 8) & used
    young = (year >= NEWEST_YEAR - 2) & (year <= NEWEST_YEAR)
    assert np.nanmedian(price[old]) < 0.5 * np.nanmedian(price[young])
    assert set(np.array(rows["gear"])[np.array(rows["fuel"]) == "Electric"]) <= {"Automatic", None}


def test_what_no_column_explains_is_the_noise_alone(rows: dict[str, list[Any]]) -> None:
    truth = ground_truth(3000)
    fair = dict(zip(truth["listing_id"].to_pylist(), truth["fair_price"].to_pylist(), strict=True))
    price = np.array([number(text) for text in rows["price"]])
    asked = price > 0
    error = np.array([fair[listing] for listing in rows["listing_id"]])[asked] / price[asked] - 1.0
    assert 0.06 < np.median(np.abs(error)) < 0.085
    assert abs(np.median(error)) < 0.01


def test_other_country_has_its_own_columns_miles_and_pounds() -> None:
    ours, theirs = generate_vehicle_prices(400), generate_vehicle_prices(400, market="united-kingdom")
    assert not set(ours.column_names) & set(theirs.column_names)
    assert {"odometer_miles", "bhp", "asking_price", "engine_litres", "road_tax"} <= set(theirs.column_names)
    km, miles = np.array(ours["mileage"].to_pylist()), np.array(theirs["odometer_miles"].to_pylist())
    plausible = km < 1_000_000
    assert np.allclose(miles[plausible], km[plausible] / 1.609344, atol=0.51)
    assert set(miles[~plausible]) == {1_111_111}
    euros = np.array([number(text) for text in ours["price"].to_pylist()])
    pounds = np.array([number(text) for text in theirs["asking_price"].to_pylist()])
    assert np.allclose(pounds, 0.86 * euros, atol=2.51, equal_nan=True)
    assert "Petrol" in theirs["fuel_type"].to_pylist()
    assert "Gasoline" not in theirs["fuel_type"].to_pylist()


@pytest.mark.parametrize("name", ["sample.csv", "sample.csv.gz", "sample.parquet"])
def test_equal_seeds_give_equal_bytes(name: str, tmp_path: Path) -> None:
    first = write_sample(tmp_path / "a" / name, listings=120)
    assert first.read_bytes() == write_sample(tmp_path / "b" / f"other-{name}", listings=120).read_bytes()
    assert [path.name for path in first.parent.iterdir()] == [name]


def test_every_format_holds_the_same_listings(tmp_path: Path) -> None:
    parquet = pq.read_table(write_sample(tmp_path / "sample.parquet", listings=300))
    texts = dict.fromkeys(parquet.column_names, pa.string())
    options = pc.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
    text = pc.read_csv(write_sample(tmp_path / "sample.csv", listings=300), convert_options=options)
    assert text.to_pydict() == parquet.cast(pa.schema(list(texts.items()))).to_pydict()
    packed = write_sample(tmp_path / "sample.csv.gz", listings=300).read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "sample.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"listings": 0}, "listings: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"market": "mars"}, "germany, united-kingdom"),
        ({"path": "sample.xlsx"}, "parquet"),
    ],
)
def test_wrong_arguments_say_what_is_needed(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / str(options.get("path", "sample.csv"))
    arguments = {"listings": 10, **{name: value for name, value in options.items() if name != "path"}}
    with pytest.raises(UsageError, match=message):
        write_sample(path, **arguments)
    assert not path.exists()
