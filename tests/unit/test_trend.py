"""A slow decline over versions is found, chance is not taken for one, and too few versions say nothing."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kendalltau, theilslopes

from mlflywheel.decisions.gates import judge, read_gates
from mlflywheel.errors import UsageError
from mlflywheel.evaluation.trend import estimate_decline, measure_trend
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.reports import Report, render_report

GATE = read_gates(
    "schema: 1\ngates:\n  - {metric: trend_decline_recall, at_most: 0, judge: whole_interval, when_missing: skip}"
)


def measure(values, better="higher", window=10) -> Evaluation:
    """Measure the trend of one metric; the last value is the new model's."""
    *history, current = [{} if value is None else {"recall": value} for value in values]
    return measure_trend(history, current, {"recall": better}, window)


def trend_of(values, better="higher", window=10) -> Measurement:
    (found,) = measure(values, better, window).measurements
    return found


def test_a_planted_slow_decline_is_found_with_its_size():
    random = np.random.default_rng(0)
    values = 0.8 - 0.004 * np.arange(11) + random.normal(0, 0.003, 11)
    # No step gate that tolerates 0.015 sees it.
    assert (-np.diff(values)).max() < 0.015
    found = trend_of(values)
    assert found.value == pytest.approx(0.04, abs=0.01)
    assert 0 < found.low < 0.04 < found.high
    assert found.count == 11
    assert not judge(GATE, [found]).holds


def test_a_rise_is_a_decline_where_lower_is_better():
    values = [0.10, 0.11, 0.12, 0.13, 0.14]
    assert trend_of(values, "lower").low > 0
    better = trend_of(values, "higher")
    assert better.value == pytest.approx(-0.04)
    assert better.high < 0
    assert judge(GATE, [better]).holds


def test_the_exact_distribution_is_that_of_all_orders():
    for count in (4, 5, 6, 7):
        for values in ([*range(count)], [*range(1, count), 0], [1, 0, *range(2, count)]):
            falling = sum(late < early for number, early in enumerate(values) for late in values[number + 1 :])
            at_most = [
                sum(late < early for number, early in enumerate(order) for late in order[number + 1 :]) <= falling
                for order in permutations(range(count))
            ]
            assert estimate_decline(values).p_value == pytest.approx(np.mean(at_most), rel=1e-9)


def test_the_p_value_and_the_slope_are_those_of_scipy():
    random = np.random.default_rng(3)
    for count in (5, 9, 20, 80):
        values = random.normal(size=count) + 0.05 * np.arange(count)
        found = estimate_decline(values)
        method = "exact" if count <= 60 else "asymptotic"
        expected = kendalltau(np.arange(count), values, alternative="greater", method=method).pvalue
        assert found.p_value == pytest.approx(expected, rel=1e-9 if count <= 60 else 0.05)
        assert found.total == pytest.approx(theilslopes(values).slope * (count - 1))


def test_the_interval_lies_above_zero_exactly_where_the_test_refuses_chance():
    random = np.random.default_rng(4)
    refused = 0
    for count in (4, 5, 8, 11, 70):
        for _ in range(200):
            found = estimate_decline(random.normal(size=count) + 0.3 * np.arange(count) * (random.random() < 0.5))
            assert (found.low > 0) == (found.p_value <= (0.05 if count == 4 else 0.025))
            refused += found.low > 0
    assert 100 < refused < 900


@pytest.mark.parametrize("count", [4, 5, 6, 11, 70])
def test_chance_is_taken_for_a_decline_in_at_most_one_of_twenty_rows(count):
    random = np.random.default_rng(5)
    alarms = [estimate_decline(random.standard_t(2, count)).low > 0 for _ in range(1500)]
    # Four values have nothing below 1 / 24; three standard errors are 0.017.
    assert np.mean(alarms) < (0.059 if count == 4 else 0.037)


def test_the_interval_holds_a_slope_that_was_planted():
    random = np.random.default_rng(6)
    held = []
    for _ in range(800):
        found = estimate_decline(0.5 * np.arange(9) + random.normal(size=9))
        held.append(found.low <= 4.0 <= found.high)
    assert np.mean(held) > 0.93


def test_equal_values_are_no_decline_and_no_error():
    found = trend_of([0.8] * 8)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert "p 0.548" in found.note
    assert judge(GATE, [found]).holds


def test_rounded_values_raise_no_more_alarms_than_others():
    random = np.random.default_rng(7)
    alarms = [estimate_decline(np.round(random.normal(size=8))).low > 0 for _ in range(1500)]
    assert np.mean(alarms) < 0.037


def test_one_odd_version_decides_nothing():
    assert trend_of([0.8, 0.8, 0.81, 0.1, 0.8, 0.79, 0.8]).low <= 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_four_versions_say_nothing(count):
    found = trend_of([0.8, 0.7, 0.6][:count])
    assert (found.value, found.low, found.count) == (None, None, count)
    plural = "" if count == 1 else "s"
    assert found.note == f"{count} version{plural} with recall, 4 are needed to tell a decline from chance"
    assert judge(GATE, [found]).results[0].holds is None
    assert measure([0.8, 0.7, 0.6][:count]).sections == ()


def test_only_the_last_versions_are_looked_at():
    values = [0.9, 0.88, 0.86, 0.84, 0.82, 0.80, 0.80, 0.81, 0.80, 0.81]
    assert trend_of(values, window=9).low > 0
    assert trend_of(values, window=4).low <= 0
    assert trend_of(values, window=4).count == 5
    assert trend_of(values, window=0).value is None
    with pytest.raises(UsageError):
        trend_of(values, window=-1)


def test_a_version_without_the_metric_keeps_its_place():
    found = trend_of([0.80, None, 0.78, None, 0.76, 0.75])
    assert found.count == 4
    assert found.value == pytest.approx(0.05)
    (section,) = measure([0.80, None, 0.78, None, 0.76, float("nan"), 0.75]).sections
    assert [point[0] for point in section.data["series"][0]["points"]] == [1, 3, 5, 7]


def test_a_new_model_without_the_metric_says_so():
    found = trend_of([0.80, 0.79, 0.78, 0.77, None])
    assert (found.value, found.note) == (None, "the new model has no recall")


def test_the_note_gives_the_figures_and_says_that_versions_are_not_paired():
    found = trend_of([0.80, 0.79, 0.78, 0.77, 0.76])
    assert found.note.startswith(
        "5 versions, from 0.8 to 0.76; one-sided p 0.00833; each version was measured on the data"
    )


def test_the_report_draws_the_versions_and_this_model():
    values = [0.9, 0.80, 0.79, 0.78, 0.77, 0.76]
    evaluation = measure(values, window=4)
    (section,) = evaluation.sections
    line, last = section.data["series"]
    assert line["points"] == [[2 + number, value] for number, value in enumerate(values[1:])]
    assert last["points"] == [[6, 0.76]]
    assert "more than chance explains" in section.text
    assert "Recall over versions" in render_report(Report("Evaluation", {}, evaluation))


def test_values_that_cannot_be_a_trend_are_refused():
    for values, places in (([1, 2, 3], None), ([1, 2, np.nan, 4], None), ([1, 2, 3, 4], [0, 1, 1, 2])):
        with pytest.raises(UsageError):
            estimate_decline(values, places)
