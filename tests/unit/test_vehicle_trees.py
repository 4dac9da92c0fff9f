from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from mlflywheel.models.vehicle_price import ensemble
from mlflywheel.models.vehicle_price.ensemble import GRID, Trees, cast_down

OWNERS = np.array([0, 1, 1, 2])


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    found = random.normal(size=(3000, 4)).astype(np.float32)
    # Ties and missing values are where branches go wrong.
    found[:, 2] = np.round(found[:, 2], 1)
    found[random.random(found.shape) < 0.1] = np.nan
    return found


@pytest.fixture(scope="module")
def model(rows):
    filled = np.nan_to_num(rows)
    target = 9.0 + filled[:, 0] + np.sin(3 * filled[:, 1]) * filled[:, 2]
    return HistGradientBoostingRegressor(max_iter=60, early_stopping=False, random_state=0).fit(rows, target)


@pytest.fixture(scope="module")
def trees(model):
    return Trees.from_model(model)


@pytest.fixture(params=["numba", "numpy"])
def kernel(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(ensemble, "_compile", lambda: None)
    else:
        pytest.importorskip("numba")
    return request.param


def test_a_threshold_cast_down_parts_all_float32_as_before():
    random = np.random.default_rng(1)
    thresholds = np.concatenate([random.normal(size=500), [0.1, -0.1, 0.0, 1e300, -1e300, 2.0**-149, np.inf]])
    down = cast_down(thresholds)
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    for x in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        assert ((x.astype(np.float64) <= thresholds) == (x <= down)).all()


def test_predictions_are_those_of_scikit_learn(model, trees, rows, kernel):
    assert np.abs(trees.predict(rows) - model.predict(rows)).max() < 60 * GRID


def test_contributions_add_up_exactly(trees, rows, kernel):
    contributions = trees.contribute(rows, OWNERS, 3)
    assert (trees.base + contributions.sum(axis=1) == trees.predict(rows)).all()


def test_compiled_and_plain_kernels_agree_to_the_last_bit(trees, rows, monkeypatch):
    pytest.importorskip("numba")
    compiled = trees.predict(rows), trees.contribute(rows, OWNERS, 3)
    monkeypatch.setattr(ensemble, "_compile", lambda: None)
    assert (trees.predict(rows) == compiled[0]).all()
    assert (trees.contribute(rows, OWNERS, 3) == compiled[1]).all()


def test_a_row_alone_gets_what_it_gets_in_a_batch(trees, rows, kernel):
    batch = trees.contribute(rows[:50], OWNERS, 3)
    alone = np.concatenate([trees.contribute(rows[row : row + 1], OWNERS, 3) for row in range(50)])
    assert (batch == alone).all()


def test_the_base_is_the_mean_prediction_of_the_training_rows(model, trees, rows):
    assert trees.base == pytest.approx(model.predict(rows).mean(), abs=1e-9)


def test_a_contribution_is_what_the_path_changes_for_one_split_by_hand():
    # One tree: x0 <= 0.5 (30 rows, value 1), else x1 <= 2 (10 rows, 3) or not (20 rows, 6).
    nodes = Trees(
        feature=np.array([0, 0, 1, 0, 0], np.int32),
        threshold=np.array([0.5, 0, 2, 0, 0], np.float32),
        left=np.array([1, 1, 3, 3, 4], np.int32),
        right=np.array([2, 1, 4, 3, 4], np.int32),
        missing_left=np.array([True, False, False, False, False]),
        value=np.array([3.0, 1.0, 5.0, 3.0, 6.0]),
        roots=np.array([0], np.int32),
        depth=2,
        baseline=10.0,
    )
    rows = np.array([[0, 9], [1, 2], [1, 3], [np.nan, 0], [1, np.nan]], np.float32)
    assert nodes.predict(rows).tolist() == [11.0, 13.0, 16.0, 11.0, 16.0]
    assert nodes.contribute(rows, np.array([0, 1]), 2).tolist() == [[-2, 0], [2, -2], [2, 1], [-2, 0], [2, 1]]


def test_trees_come_back_from_files(trees, rows, tmp_path):
    trees.write(tmp_path)
    again = Trees.read(tmp_path, columns=4)
    assert (again.predict(rows) == trees.predict(rows)).all()
    assert again.depth == trees.depth


@pytest.mark.parametrize(
    ("name", "place", "value"), [("left", 0, 10**6), ("right", 0, 0), ("feature", 0, 4), ("roots", 0, -1)]
)
def test_arrays_that_are_no_trees_are_refused(trees, tmp_path, name, place, value):
    trees.write(tmp_path)
    path = Path(tmp_path) / f"{name}.npy"
    broken = np.load(path)
    broken[place] = value
    np.save(path, broken)
    with pytest.raises(ValueError, match=r"leads|itself"):
        Trees.read(tmp_path, columns=4)


def test_native_categories_are_refused(rows):
    codes = np.abs(np.nan_to_num(rows[:, :1]).round())
    model = HistGradientBoostingRegressor(max_iter=2, categorical_features=[0]).fit(codes, codes[:, 0] % 2)
    with pytest.raises(ValueError, match="category"):
        Trees.from_model(model)
