"""Whether a best trial is confirmed: by simulation, and on real fits."""

import numpy as np
import pyarrow as pa
import pytest
from planted_campaigns import plant_campaigns

from mlflywheel.tuning.confirmation import ALPHA, confirm, judge
from mlflywheel.tuning.experiment import Objective
from mlflywheel.tuning.trial import TrialInput, cut_validation

FRACTION = 0.25
SPLITS = 5
ROWS = 600
SEARCHES = 1000


def simulate(gain: float, candidates: int, seed: int) -> float:
    """Return how often a search's winner is confirmed.

    Each row of the data has, for each candidate, a difference to the given parameters of mean `gain` and deviation 1:
    what differs between two models on one campaign. The winner is the best on a quarter of the rows; it is confirmed on
    splits of the other three quarters, where a refit adds noise of its own.
    """
    random = np.random.default_rng(seed)
    confirmed = 0
    for _ in range(SEARCHES):
        rows = gain + random.standard_normal((candidates, ROWS))
        validation = int(FRACTION * ROWS)
        winner = rows[rows[:, :validation].mean(axis=1).argmax(), validation:]
        part = int(FRACTION * len(winner))
        differences = [random.permutation(winner)[:part].mean() + random.normal(0.0, 0.02) for _ in range(SPLITS)]
        confirmed += judge(differences, FRACTION).confirmed
    return confirmed / SEARCHES


def test_the_luckiest_of_equal_parameters_is_seldom_taken_for_better() -> None:
    """Nominal is one in ten; three standard errors of 1,000 simulations are allowed above it."""
    allowed = ALPHA + 3 * (ALPHA * (1 - ALPHA) / SEARCHES) ** 0.5
    assert simulate(0.0, 1, seed=1) <= allowed
    assert simulate(0.0, 24, seed=2) <= allowed


def test_the_luckiest_would_nearly_always_be_taken_on_the_rows_that_chose_it() -> None:
    """What the confirmation is for: on its own validation rows the winner of 24 equal candidates looks better."""
    random = np.random.default_rng(3)
    rows = random.standard_normal((SEARCHES, 24, int(FRACTION * ROWS)))
    assert (rows.mean(axis=2).max(axis=1) > 0).mean() > 0.99


@pytest.mark.parametrize(("gain", "at_least"), [(0.25, 0.85), (0.4, 0.99)])
def test_parameters_that_are_better_are_confirmed(gain: float, at_least: float) -> None:
    """The gain is in standard deviations of a row's difference; 0.082 is one standard error of 150 rows."""
    assert simulate(gain, 24, seed=4) >= at_least


@pytest.mark.parametrize(
    ("differences", "confirmed"),
    [
        ([0.1] * 5, True),
        ([0.0] * 5, False),
        ([-0.1] * 5, False),
        ([0.1], False),
        ([], False),
        ([0.01, 0.012, 0.009, 0.011, 0.01], True),
        ([0.05, -0.04, 0.03, -0.02, 0.01], False),
    ],
)
def test_edges(differences: list[float], confirmed: bool) -> None:
    assert judge(differences, FRACTION).confirmed is confirmed


def describe(**changes: object) -> TrialInput:
    values = {"data": "unused", "model": "topic-fingerprints", "metrics": ["neighbour_purity_at_10"], **changes}
    return TrialInput.parse(values, "test")


PURITY = Objective("maximize", "neighbour_purity_at_10")


def test_more_topics_are_confirmed_where_two_are_too_few() -> None:
    found = confirm(describe(params={"num_topics": 2}), {"num_topics": 8}, PURITY, plant_campaigns(150), 3)
    assert found.confirmed
    assert len(found.differences) == 3
    assert found.mean is not None
    assert found.mean > 0.1


def test_equal_parameters_are_not_confirmed() -> None:
    found = confirm(describe(params={"num_topics": 6}), {"num_topics": 6}, PURITY, plant_campaigns(120), 2)
    assert found.differences == (0.0, 0.0)
    assert not found.confirmed


def test_a_smaller_objective_is_better_where_it_is_minimized() -> None:
    objective = Objective("minimize", "neighbour_purity_at_10")
    found = confirm(describe(params={"num_topics": 2}), {"num_topics": 8}, objective, plant_campaigns(150), 2)
    assert found.mean is not None
    assert found.mean < 0
    assert not found.confirmed


def test_rows_that_chose_the_trial_have_no_part() -> None:
    """Whatever stands in the search's validation part, the differences are the same."""
    table = plant_campaigns(150)
    given = describe(params={"num_topics": 2})
    chosen = set(cut_validation(given, table).holdout["campaign_id"].to_pylist())
    verticals = [
        "nonsense" if row["campaign_id"] in chosen else row["vertical"]
        for row in table.select(["campaign_id", "vertical"]).to_pylist()
    ]
    other = table.set_column(table.column_names.index("vertical"), "vertical", pa.array(verticals))
    first, second = (confirm(given, {"num_topics": 8}, PURITY, rows, 2) for rows in (table, other))
    assert chosen
    assert first == second


def test_parameters_that_cannot_be_fitted_again_are_not_confirmed() -> None:
    found = confirm(
        describe(params={"num_topics": 4}),
        {"num_topics": 4, "text": {"minimum_campaigns": 100}},
        PURITY,
        plant_campaigns(130),
        2,
    )
    assert not found.confirmed
    assert "minimum_campaigns" in found.failure


def test_temporal_splits_move_their_border() -> None:
    table = plant_campaigns(150)
    days = pa.array([f"2026-01-{1 + number % 28:02d}" for number in range(table.num_rows)])
    given = describe(params={"num_topics": 2}, split_method="temporal", split_column="day")
    found = confirm(given, {"num_topics": 8}, PURITY, table.append_column("day", days), 3)
    assert len(set(found.differences)) == 3
