"""What the benchmark of canary decisions rebuilds of others' rules, and that the page shows the committed results."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.rollouts import peers
from benchmarks.rollouts.run import FOLDER, RESULTS, draw, format_tables
from mlflywheel.decisions.canary.simulation import BOUNDS_SECONDS

Checks = list[list[float]]


def follow(rule: peers.Rule, errors: Checks, requests: int = 100) -> peers.Outcome:
    """Roll out once; `errors` are the candidate's error rates by weight and check, of which the last one stays."""

    def measure(
        weight: NDArray[np.int64], visits: NDArray[np.int64], now: NDArray[np.float64], active: NDArray[np.bool_]
    ) -> peers.Checks:
        row = errors[min(int(weight[0]), len(errors) - 1)]
        rate = row[min(int(visits[0]), len(row) - 1)]
        return peers.Checks(np.array([rate]), np.array([0.1]), np.array([float(requests)]))

    return peers.walk(rule, 1, measure)


def test_flagger_promotes_after_one_good_check_a_weight() -> None:
    outcome = follow(peers.FLAGGER, [[0.0]])
    assert not outcome.rolled_back[0]
    # The interval times the greatest weight over the step, as its documentation has it.
    assert outcome.minutes[0] == 10


def test_flagger_rolls_back_an_interval_after_the_tenth_failed_check_and_stays_at_its_weight() -> None:
    outcome = follow(peers.FLAGGER, [[0.02]])
    assert outcome.rolled_back[0]
    assert outcome.minutes[0] == 11
    assert outcome.requests_exposed[0] == 1100


def test_flagger_never_takes_failed_checks_back() -> None:
    # Two of them at each of ten weights: after the fifth there are ten.
    outcome = follow(peers.FLAGGER, [[0.02, 0.02, 0.0]])
    assert outcome.rolled_back[0]
    assert outcome.minutes[0] == 4 * 3 + 2 + 1


def test_nine_failed_checks_only_delay_flagger() -> None:
    outcome = follow(peers.FLAGGER, [[0.02] * 9 + [0.0], [0.0]])
    assert not outcome.rolled_back[0]
    assert outcome.minutes[0] == 19


def test_argo_rollouts_tolerates_three_failures_and_aborts_at_the_fourth() -> None:
    three, four = [[0.0], [0.1], [0.1, 0.0], [0.0]], [[0.0], [0.1], [0.1], [0.0]]
    assert not follow(peers.ARGO, three).rolled_back[0]
    assert follow(peers.ARGO, three).minutes[0] == 40
    assert follow(peers.ARGO, four).rolled_back[0]
    assert follow(peers.ARGO, four).minutes[0] == 30


def test_argo_rollouts_checks_nothing_at_the_first_weight_of_its_example() -> None:
    assert not follow(replace(peers.ARGO, tolerated=0), [[0.5], [0.0]]).rolled_back[0]


def test_a_check_without_traffic_fails() -> None:
    assert follow(peers.FLAGGER, [[float("nan")]]).rolled_back[0]


def test_p99_is_linear_inside_its_bucket() -> None:
    counts = np.zeros((3, len(BOUNDS_SECONDS) + 1), np.int64)
    counts[0, 6] = 100  # 50 to 100 ms
    counts[1, 0], counts[1, -1] = 1, 99  # beyond the last bound
    assert peers.estimate_p99(counts)[:2] == pytest.approx([0.05 + 0.05 * 0.99, BOUNDS_SECONDS[-1]])
    assert np.isnan(peers.estimate_p99(counts)[2])


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize("rule", [peers.FLAGGER, peers.ARGO_OUR_STEPS])
def test_calibrated_rules_roll_back_as_many_equal_candidates_as_asked(rule: peers.Rule, is_relative: bool) -> None:
    calibrated = peers.calibrate(replace(rule, is_relative=is_relative, tolerated=2), 0.1, 2000, 1)
    rate = peers.simulate_rule(calibrated, "aa", 2000, 2).rolled_back.mean()
    assert rate == pytest.approx(0.1, abs=4 * (2 * 0.1 * 0.9 / 2000) ** 0.5)


def test_the_planned_test_keeps_its_error_rates_and_repeating_it_does_not() -> None:
    critical = 1.645
    assert peers.decide_once("aa", 3193, critical, 2000, 1).rolled_back.mean() == pytest.approx(0.05, abs=0.02)
    assert peers.decide_once("error-x2", 3193, critical, 2000, 1).rolled_back.mean() == pytest.approx(0.95, abs=0.02)
    assert peers.decide_every_window("aa", 22, 30, critical, 2000, 1).rolled_back.mean() > 0.15


def test_the_page_shows_the_committed_results() -> None:
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert "\n".join(format_tables(json.loads(RESULTS.read_text(encoding="utf-8")))) in page


def test_committed_results_meet_what_was_asked_for() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    targets = result["targets"]
    assert targets["aa"]["rollback_rate"] <= 0.05
    assert targets["promoted_within_plan"] >= 0.9
    assert targets["error-x2"]["rollback_rate_within_10000"] >= 0.95
    assert targets["error-x2"]["promote_rate"] <= 0.05
    assert all(row["rollback_rate"] <= 0.05 for row in result["asking"])


def test_results_can_be_drawn(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("chart") / "chart.svg"
    draw(json.loads(RESULTS.read_text(encoding="utf-8")), path)
    assert path.read_text(encoding="utf-8").startswith("<?xml")
