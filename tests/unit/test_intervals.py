"""Intervals hold the true value as often as they say, and know when they cannot."""

import math

import numpy as np
import pytest
from scipy import stats

from mlflywheel.errors import UsageError
from mlflywheel.statistics.intervals import Interval, Method, estimate_difference, estimate_mean, estimate_share


@pytest.mark.parametrize("count", [20, 100, 500])
def test_wilson_interval_covers_about_95_percent_exactly_computed(count: int) -> None:
    successes = np.arange(count + 1)
    intervals = [estimate_share(int(s), count) for s in successes]
    low = np.array([i.low for i in intervals])
    high = np.array([i.high for i in intervals])
    shares = np.linspace(0.05, 0.95, 181)
    covered = (low[None, :] <= shares[:, None]) & (shares[:, None] <= high[None, :])
    coverage = (stats.binom.pmf(successes[None, :], count, shares[:, None]) * covered).sum(axis=1)
    assert abs(coverage.mean() - 0.95) < 0.01
    assert coverage.min() > 0.90


def test_wilson_interval_agrees_with_scipy() -> None:
    for successes, count in [(0, 7), (3, 7), (7, 7), (480, 500)]:
        expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
        found = estimate_share(successes, count)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_share_of_nothing_is_unknown() -> None:
    assert estimate_share(0, 0) == Interval(None, None, None, 0)


@pytest.mark.parametrize(("successes", "count"), [(3, 2), (-1, 2)])
def test_impossible_share_is_refused(successes: int, count: int) -> None:
    with pytest.raises(UsageError):
        estimate_share(successes, count)


def measure_coverage(method: Method, simulations: int, size: int, clusters: int | None, grouped: bool) -> float:
    """Return how often the interval of a mean holds the true mean 1 of exponential values."""
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(simulations):
        values, groups = random.exponential(1.0, size), None
        if clusters is not None:
            groups = random.integers(0, clusters, size)
            values = random.exponential(1.0, clusters)[groups] + 0.3 * random.standard_normal(size)
        found = estimate_mean(values, groups if grouped else None, method=method, resamples=400)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    return hits / simulations


# The tolerance is 4 binomial standard errors of the simulation, plus 0.02 below for what theory lets a mean of
# 80 skewed values fall short.
@pytest.mark.parametrize("method", ["student", "percentile", "bca"])
def test_mean_interval_covers_about_95_percent(method: Method) -> None:
    simulations = 400
    coverage = measure_coverage(method, simulations, 80, None, grouped=False)
    error = 4 * math.sqrt(0.95 * 0.05 / simulations)
    assert 0.95 - error - 0.02 < coverage < 0.95 + error


@pytest.mark.parametrize("method", ["student", "bca"])
def test_clustered_interval_covers_where_the_plain_one_does_not(method: Method) -> None:
    simulations = 300
    error = 4 * math.sqrt(0.95 * 0.05 / simulations)
    assert measure_coverage(method, simulations, 480, 60, grouped=True) > 0.95 - error - 0.02
    assert measure_coverage(method, simulations, 480, 60, grouped=False) < 0.70


def test_student_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 25)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = estimate_mean(values, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_agrees_with_scipy(method: str) -> None:
    values = np.random.default_rng(1).exponential(1.0, 60)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(2)
    ).confidence_interval
    ours: Method = "bca" if method == "BCa" else "percentile"
    found = estimate_mean(values, method=ours, resamples=20_000)
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03 * width)


def test_every_row_its_own_group_is_no_groups() -> None:
    values = np.random.default_rng(3).normal(size=30)
    assert estimate_mean(values, list(range(30))).low == pytest.approx(estimate_mean(values).low, rel=1e-12)


def test_doubled_rows_of_a_group_add_no_certainty() -> None:
    values = np.random.default_rng(4).normal(size=30)
    once = estimate_mean(values)
    twice = estimate_mean(np.repeat(values, 2), np.repeat(np.arange(30), 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-12)
    assert twice.count == 60


def test_groups_may_mix_text_and_none() -> None:
    assert estimate_mean([1.0, 2.0, 4.0], ["a", None, None]).value == pytest.approx(7 / 3)


def test_rows_without_a_value_are_left_out() -> None:
    with_gap = estimate_mean([0.1, np.nan, 0.4, 0.9], ["a", "b", "c", "d"])
    assert with_gap == estimate_mean([0.1, 0.4, 0.9], ["a", "c", "d"])


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_mean_of_nothing_is_unknown(values: list[float]) -> None:
    assert estimate_mean(values) == Interval(None, None, None, 0)


def test_one_row_and_one_group_have_a_value_and_no_interval() -> None:
    assert estimate_mean([0.5]) == Interval(0.5, None, None, 1)
    found = estimate_mean([0.4, 0.6], ["a", "a"])
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_rows_of_one_value_get_wilsons_interval_inside_bounds() -> None:
    found = estimate_mean(np.ones(10), bounds=(0.0, 1.0))
    expected = estimate_share(10, 10)
    assert (found.low, found.high) == (expected.low, 1.0)
    assert estimate_mean(np.ones(10)).low == 1.0


def test_bounds_keep_the_ends_inside() -> None:
    found = estimate_mean([1.0, 1.0, 0.0], bounds=(0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0)


def test_value_outside_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="every value must lie inside the bounds"):
        estimate_mean([0.5, 1.5], bounds=(0.0, 1.0))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_depends_on_the_seed_alone(method: Method) -> None:
    values = np.random.default_rng(5).exponential(size=50)
    assert estimate_mean(values, method=method, seed=3) == estimate_mean(values, method=method, seed=3)
    assert estimate_mean(values, method=method, seed=3) != estimate_mean(values, method=method, seed=4)


def test_bootstrap_in_parts_equals_bootstrap_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).exponential(size=50)
    at_once = estimate_mean(values, method="percentile")
    monkeypatch.setattr("mlflywheel.statistics.intervals._RESAMPLED_AT_ONCE", 50 * 7)
    assert estimate_mean(values, method="percentile") == at_once


def test_pairing_shortens_the_interval() -> None:
    random = np.random.default_rng(8)
    reference = random.normal(size=200)
    values = reference + 0.05 + 0.01 * random.normal(size=200)
    paired = estimate_difference(values, reference)
    alone = estimate_mean(values)
    assert paired.value == pytest.approx(0.05, abs=0.005)
    assert paired.low is not None
    assert paired.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert paired.low > 0.0
    assert paired.high - paired.low < 0.05 * (alone.high - alone.low)


def test_difference_leaves_out_rows_that_lack_either_value() -> None:
    assert estimate_difference([1.0, np.nan, 3.0, 4.0], [0.5, 1.0, np.nan, 3.0]).count == 2


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError):
        estimate_difference([1.0], [1.0, 2.0])
    with pytest.raises(UsageError):
        estimate_mean([1.0, 2.0], ["a"])
    with pytest.raises(UsageError):
        estimate_mean([[1.0]])
    with pytest.raises(UsageError):
        estimate_mean([1.0, 2.0], confidence=95)
    with pytest.raises(UsageError):
        estimate_mean([1.0, 2.0], method="bca", resamples=0)


@pytest.mark.parametrize("method", ["student", "percentile", "bca"])
def test_interval_of_unequal_groups_moves_with_the_values_and_keeps_its_width(method: Method) -> None:
    random = np.random.default_rng(9)
    groups = np.repeat(np.arange(20), random.integers(1, 30, 20))
    values = random.normal(size=len(groups))
    here, there = (estimate_mean(values + shift, groups, method=method, resamples=200) for shift in (0.0, 100.0))
    assert here.low is not None
    assert here.high is not None
    assert (there.low, there.high) == pytest.approx((here.low + 100.0, here.high + 100.0), abs=1e-9)
