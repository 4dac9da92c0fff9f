import numpy as np
import pyarrow as pa
import pytest
from planted_listings import plant_listings

from mlflywheel.models.vehicle_price.encoding import Schema, encode_out_of_fold, fit_encoder
from mlflywheel.models.vehicle_price.preparation import PrepareConfig, prepare_listings


def learn(columns):
    table = prepare_listings(pa.table(columns), PrepareConfig(deduplicate=False))
    schema = Schema.learn(table)
    return schema, schema.read(table)


@pytest.fixture(scope="module")
def planted():
    table = prepare_listings(plant_listings(600), PrepareConfig())
    schema = Schema.learn(table)
    return schema, schema.read(table), np.log(table["price"].to_numpy())


def test_a_level_is_the_mean_shrunk_to_what_stands_above():
    schema, listings = learn({"make": ["a", "a", "a", "b"], "model": ["x", "x", "y", "x"]})
    log_price = np.array([10.0, 12.0, 8.0, 6.0])
    encoder = fit_encoder(schema, listings, log_price, smoothing=2.0, min_rows=1)
    levels = encoder.encode(listings)[:, encoder.names.index("make.level")]
    # The mean is 9; three listings of a make with a sum of 3 above it, one with 3 below.
    assert levels.tolist() == pytest.approx([3 / 5, 3 / 5, 3 / 5, -1.0])
    models = encoder.encode(listings)[:, encoder.names.index("model.level")]
    assert models.tolist() == pytest.approx([(4 + 1.2) / 4, (4 + 1.2) / 4, (-1 + 1.2) / 3, (-3 - 2) / 3])


def test_a_category_with_too_few_rows_is_unknown():
    schema, listings = learn({"fuel": ["gas", "gas", "wood"]})
    encoder = fit_encoder(schema, listings, np.array([9.0, 10.0, 11.0]), smoothing=1.0, min_rows=2)
    assert encoder.is_known(listings)[:, 0].tolist() == [True, True, False]
    assert np.isnan(encoder.encode(listings)[2]).all()


def test_a_row_is_encoded_without_its_own_price(planted):
    schema, listings, log_price = planted
    folds = np.arange(len(log_price)) % 5
    before = encode_out_of_fold(schema, listings, log_price, folds, 2.0, 2)
    changed = log_price.copy()
    changed[17] += 5.0
    after = encode_out_of_fold(schema, listings, changed, folds, 2.0, 2)
    own_fold = folds == folds[17]
    assert np.array_equal(before[own_fold], after[own_fold], equal_nan=True)
    assert not np.array_equal(before[~own_fold], after[~own_fold], equal_nan=True)


def test_the_premium_finds_dear_makes_whatever_the_age_of_their_listings(planted):
    schema, listings, log_price = planted
    encoder = fit_encoder(schema, listings, log_price, 2.0, 2)
    make = schema.categories.index("make")
    premium = encoder.values[make][:, encoder.names[len(schema.numbers) :].index("make.premium")]
    assert [schema.levels[make][code] for code in np.argsort(-premium)] == ["ada", "dorn", "brun", "cel"]


def test_every_column_belongs_to_the_feature_that_its_name_begins_with(planted):
    schema, listings, log_price = planted
    encoder = fit_encoder(schema, listings, log_price, 2.0, 2)
    assert [name.split(".")[0] for name in encoder.names] == [schema.features[owner] for owner in encoder.owners]
    assert encoder.encode(listings).shape == (600, len(encoder.names))
    assert encoder.encode(listings).dtype == np.float32


def test_a_schema_comes_back_from_json(planted):
    schema, _, _ = planted
    assert Schema.from_dict(schema.to_dict()) == schema
