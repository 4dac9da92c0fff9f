"""The vehicle price model on 46,405 real listings, where the file lies beside the checkout; it is never committed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.models.vehicle_price.preparation import Facts

LISTINGS = Path(__file__).resolve().parents[3] / "shared/data/used_cars/autoscout24_germany.csv.gz"

pytestmark = pytest.mark.skipif(not LISTINGS.is_file(), reason="needs shared/data/used_cars beside the checkout")


@pytest.fixture(scope="module")
def table():
    raw = ingest(str(LISTINGS), VehiclePrice.columns, {"power": "hp", "offer_type": "offerType"}).table
    return VehiclePrice.prepare(raw, VehiclePrice.Config())


def test_preparing_finds_the_faults_of_the_file(table):
    facts = Facts.read(table)
    assert (facts.rows, facts.duplicates_removed, facts.without_price, facts.reference_year) == (46_405, 2_140, 1, 2021)
    assert facts.flagged == {
        "mileage_km_out_of_range": 2,
        "missing_fuel": 23,
        "missing_gear": 175,
        "missing_model": 137,
        "missing_power_hp": 24,
        "power_hp_out_of_range": 9,
    }


@pytest.mark.long
def test_a_small_fit_prices_held_out_listings_and_equals_its_onnx_graph(table):
    parts = split(table, "random", 0.2, 0, id_column="listing_id")
    # `fit` compares the graph with the model on every training row, as it is and with fields hidden.
    model = VehiclePrice.fit(parts.train, VehiclePrice.Params(max_iter=150, calibration_folds=2, scale_iter=60))
    assert model.onnx_difference < 1e-4
    holdout = parts.holdout.filter(pa.array(~np.isnan(parts.holdout["price"].to_numpy())))
    answer = model.predict(holdout)
    true, price = holdout["price"].to_numpy(), answer["price"].to_numpy()
    assert np.median(np.abs(price - true) / true) < 0.085
    held = (true >= answer["low"].to_numpy()) & (true <= answer["high"].to_numpy())
    assert held.mean() == pytest.approx(0.9, abs=0.02)
    # What is flagged is rare in this file.
    assert 0 < np.mean(answer["needs_review"].to_pylist()) < 0.05
