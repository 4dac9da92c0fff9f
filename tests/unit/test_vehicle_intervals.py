import numpy as np
import pyarrow as pa
import pytest
from planted_listings import plant_listings

from mlflywheel.models.vehicle_price.encoding import Schema
from mlflywheel.models.vehicle_price.intervals import GROUPS, Intervals, calibrate, mask_fields, mask_listings
from mlflywheel.models.vehicle_price.preparation import PrepareConfig, prepare_listings

PRICES = np.array([1000.0, 50_000.0])


@pytest.fixture(scope="module")
def scored():
    random = np.random.default_rng(0)
    log_scale = random.uniform(-3, -1, 4000)
    # Too dear and too cheap are not equally far.
    skewed = np.where(random.random(4000) < 0.5, 1.0, -2.0) * np.abs(random.normal(size=4000))
    return skewed * np.exp(log_scale), log_scale, np.zeros(4000, dtype=np.int64)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.99])
def test_ranges_hold_the_share_that_is_asked_for_with_equal_tails(scored, coverage):
    residuals, log_scale, groups = scored
    calibration, fresh = slice(0, 2000), slice(2000, None)
    found = calibrate(residuals[calibration], log_scale[calibration], groups[calibration], coverage, PRICES)
    low, high = found.spread(np.full(2000, 9.0), log_scale[fresh], groups[fresh])
    true = 9.0 + residuals[fresh]
    assert np.mean((true >= low) & (true <= high)) == pytest.approx(coverage, abs=0.045)
    assert np.mean(true < low) == pytest.approx((1 - coverage) / 2, abs=0.045)
    assert found.below[0] > 1.5 * found.above[0]


def test_each_group_has_its_own_quantiles(scored):
    residuals, log_scale, _ = scored
    groups = np.arange(4000) % GROUPS
    wider = residuals * np.array([1.0, 2.0, 4.0])[groups]
    found = calibrate(wider, log_scale, groups, 0.9, PRICES)
    assert found.below[1] / found.below[0] == pytest.approx(2, rel=0.15)
    assert found.above[2] / found.above[0] == pytest.approx(4, rel=0.15)


def test_a_group_without_enough_rows_is_no_narrower_than_the_others(scored):
    residuals, log_scale, groups = scored
    some = groups.copy()
    some[:3] = 1
    found = calibrate(residuals, log_scale, some, 0.9, PRICES)
    assert (found.below[1:] >= found.below[0]).all()
    assert (found.above[1:] >= found.above[0]).all()


@pytest.mark.parametrize("log_price", [-50.0, 0.0, 9.0, 50.0])
@pytest.mark.parametrize("log_scale", [-1e9, -2.0, 1e9])
def test_low_price_and_high_are_finite_and_in_order_whatever_the_trees_say(scored, log_price, log_scale):
    found = calibrate(*scored, 0.9, PRICES)
    price = found.clip(np.array([log_price]))
    low, high = found.spread(price, np.array([log_scale]), np.array([0]))
    assert 0 < np.exp(low[0]) < np.exp(price[0]) < np.exp(high[0]) < np.inf
    assert np.exp(low[0]) >= 1000 / 4.001
    assert np.exp(high[0]) <= 50_000 * 4.001


def test_confidence_falls_with_the_width_and_is_the_share_within_ten_percent(scored):
    residuals, log_scale, groups = scored
    found = calibrate(residuals, log_scale, groups, 0.9, PRICES)
    assert (np.diff(found.close_shares) <= 0).all()
    close = np.abs(np.expm1(-residuals)) <= 0.1
    narrow = log_scale < -2.5
    low, high = found.spread(np.full(4000, 9.0), log_scale, groups)
    assert found.trust(low, high)[narrow].mean() == pytest.approx(close[narrow].mean(), abs=0.03)


def test_intervals_come_back_from_json(scored):
    found = calibrate(*scored, 0.9, PRICES)
    again = Intervals.from_dict(found.to_dict())
    assert again.to_dict() == found.to_dict()
    assert again.log_bounds == found.log_bounds


def test_masking_takes_one_field_from_half_of_the_rows_and_more_from_others():
    table = prepare_listings(plant_listings(4000), PrepareConfig())
    schema = Schema.learn(table)
    listings = schema.read(table)
    masked = mask_listings(listings, schema, np.random.default_rng(0))
    lost = np.column_stack([np.isnan(masked.numbers), masked.codes < 0])
    make, model = schema.features.index("make"), schema.features.index("model")
    assert lost.any(axis=1).all()
    assert lost[lost[:, make], model].all()
    assert 0.3 < np.mean(lost.sum(axis=1) == 1) < 0.6
    kept = ~np.isnan(masked.numbers)
    assert (masked.numbers[kept] == listings.numbers[kept]).all()
    assert not np.isnan(listings.numbers).any()


def test_only_chosen_fields_are_masked():
    table = prepare_listings(plant_listings(10), PrepareConfig())
    schema = Schema.learn(table)
    chosen = np.zeros((10, len(schema.features)), dtype=bool)
    chosen[:, schema.features.index("year")] = True
    masked = mask_fields(schema.read(table), schema, chosen)
    assert np.isnan(masked.numbers).sum() == 10
    assert (masked.codes == schema.read(table).codes).all()


def test_reading_a_few_rows_and_many_gives_the_same_codes():
    table = prepare_listings(plant_listings(300), PrepareConfig())
    strange = table.set_column(
        table.column_names.index("make"), "make", pa.array(["ADA", " brun", "Unheard", None] * 75)
    ).combine_chunks()
    schema = Schema.learn(table)
    many = schema.read(strange).codes
    few = np.concatenate([schema.read(strange.slice(row, 1)).codes for row in range(300)])
    assert (many == few).all()
    make = schema.categories.index("make")
    assert (many[:4, make] == [0, 1, -1, -1]).all()
    assert (many[2:4, schema.categories.index("model")] == -1).all()
