"""Gaps between groups: values by hand, and intervals that hold the truth as often as they say."""

import numpy as np
import pytest
from scipy import stats

from mlflywheel.errors import UsageError
from mlflywheel.statistics.gaps import (
    Means,
    PairedMeans,
    PairedResampled,
    PairedShares,
    Resampled,
    Shares,
    adjust_confidence,
    measure_gap,
    measure_ratio,
    measure_ratio_fall,
    measure_rise,
)
from mlflywheel.statistics.intervals import estimate_mean, estimate_share


def draw_pairs(random: np.random.Generator, sizes: list[int], new: list[float], old: list[float]) -> PairedShares:
    """Draw both models' answers, four in five of which are as alike as the rates allow."""
    p, q = np.array(new), np.array(old)
    both = 0.8 * np.minimum(p, q) + 0.2 * p * q
    cells = np.stack([both, p - both, q - both, 1 - p - q + both], axis=1)
    return PairedShares(*np.array([random.multinomial(n, row) for n, row in zip(sizes, cells, strict=True)]).T)


def test_gap_of_shares_is_newcombes_interval_for_two_groups() -> None:
    # Newcombe 1998, table II (a), method 10: 56 of 70 and 48 of 80 give 0.0524 to 0.3339.
    gap = measure_gap(Shares([56, 48], [70, 80]))
    assert gap.value == pytest.approx(0.2)
    assert (gap.low, gap.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert gap.pair == (0, 1)


def test_group_intervals_are_those_of_one_share_and_of_one_mean() -> None:
    low, high = Shares([0, 3, 40, 7], [5, 9, 40, 100]).interval(0.9)
    for at, (successes, count) in enumerate(((0, 5), (3, 9), (40, 40), (7, 100))):
        one = estimate_share(successes, count, 0.9)
        assert (low[at], high[at]) == (pytest.approx(one.low, abs=1e-12), pytest.approx(one.high, abs=1e-12))
    values = np.random.default_rng(0).exponential(size=50)
    codes = np.repeat([0, 1], [20, 30])
    low, high = Means(values, codes, 2).interval(0.95)
    one = estimate_mean(values[20:])
    assert (low[1], high[1]) == (pytest.approx(one.low), pytest.approx(one.high))


def test_more_pairs_widen_the_interval_of_a_gap() -> None:
    two, eight = Shares([30, 60], [100, 100]), Shares([30, 60] + [45] * 6, [100] * 8)
    assert measure_gap(two).value == measure_gap(eight).value
    assert (measure_gap(eight).low or 0) < (measure_gap(two).low or 0)
    assert adjust_confidence(0.95, 1) == 0.95
    assert adjust_confidence(0.95, 28) ** 28 == pytest.approx(0.95)


def test_one_group_has_no_gap() -> None:
    one = PairedShares([3], [1], [1], [5])
    for gap in (measure_gap(one.new), measure_rise(one), measure_ratio(one.new), measure_ratio_fall(one)):
        assert (gap.value, gap.low, gap.high, gap.pair) == (None, None, None, None)


def test_families_are_compared_inside_themselves_only() -> None:
    # 0.1 in the first family, 0.3 in the second; 0.8 across.
    shares = Shares([10, 20, 60, 90], [100] * 4)
    gap = measure_gap(shares, families=[[0, 1], [2, 3]])
    assert (gap.value, gap.pair) == (pytest.approx(0.3), (3, 2))


def test_ratio_without_successes_is_not_defined_and_with_some_is_zero() -> None:
    assert measure_ratio(Shares([0, 0], [50, 50])).value is None
    ratio = measure_ratio(Shares([0, 25], [50, 50]))
    assert (ratio.value, ratio.low, ratio.pair) == (0.0, 0.0, (1, 0))
    assert ratio.high is not None
    assert 0.0 < ratio.high < 0.3


def test_fall_of_a_ratio_stays_finite_where_a_model_selects_nobody_of_a_group() -> None:
    fall = measure_ratio_fall(PairedShares([0, 25], [0, 0], [25, 0], [25, 25]))
    assert fall.value == 1.0
    assert fall.low is not None
    assert 0.3 < fall.low < 1.0
    assert fall.high == 1.0
    assert measure_ratio_fall(PairedShares([0, 0], [0, 0], [25, 5], [25, 5])).value is None


def test_rise_has_the_sign_of_growing_gaps() -> None:
    grown = PairedShares([300, 300], [0, 200], [0, 0], [700, 500])
    rise = measure_rise(grown)
    assert rise.value == pytest.approx(0.2)
    assert rise.low is not None
    assert rise.low > 0.1
    back = measure_rise(PairedShares([300, 300], [0, 0], [0, 200], [700, 500]))
    assert (back.value, back.low, back.high) == (
        pytest.approx(-0.2),
        pytest.approx(-(rise.high or 0)),
        pytest.approx(-rise.low),
    )


def test_a_gap_that_changes_its_side_has_not_risen() -> None:
    # 0.4 and 0.2 became 0.2 and 0.4.
    rise = measure_rise(PairedShares([200, 200], [0, 200], [200, 0], [600, 600]))
    assert rise.value == pytest.approx(0.0)
    assert rise.pair == (1, 0)
    assert rise.old_pair == (0, 1)
    assert rise.low is not None
    assert rise.high is not None
    assert rise.low < 0 < rise.high


def test_pairing_shortens_the_interval_of_a_rise() -> None:
    alike = measure_rise(PairedShares([400, 200], [5, 5], [5, 5], [590, 790]))
    apart = measure_rise(PairedShares([160, 40], [245, 165], [245, 165], [350, 630]))
    assert alike.value == pytest.approx(apart.value or 0)
    assert (alike.high or 0) - (alike.low or 0) < 0.5 * ((apart.high or 0) - (apart.low or 0))


@pytest.mark.parametrize(
    ("sizes", "new", "old"),
    [
        ([500, 500], [0.3, 0.3], [0.3, 0.3]),
        ([60, 60], [0.04, 0.04], [0.04, 0.04]),
        ([300, 300, 300, 300], [0.3] * 4, [0.3] * 4),
        ([3000, 300, 60], [0.2, 0.4, 0.4], [0.2, 0.4, 0.4]),
        ([500, 500], [0.4, 0.2], [0.4, 0.35]),
        ([200] * 8, [0.2] * 4 + [0.4] * 4, [0.2, *[0.3] * 6, 0.4]),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(sizes: list[int], new: list[float], old: list[float]) -> None:
    random = np.random.default_rng(7)
    gap, ratio = max(new) - min(new), min(new) / max(new)
    rise, fall = gap - (max(old) - min(old)), min(old) / max(old) - ratio
    missed, measured, runs = np.zeros(4), np.zeros(4), 150
    for _ in range(runs):
        paired = draw_pairs(random, sizes, new, old)
        found = (measure_gap(paired.new), measure_ratio(paired.new), measure_rise(paired), measure_ratio_fall(paired))
        for at, (one, truth) in enumerate(zip(found, (gap, ratio, rise, fall), strict=True)):
            if one.low is not None and one.high is not None:
                measured[at] += 1
                missed[at] += not one.low - 1e-9 <= truth <= one.high + 1e-9
    # 5 % of 150 is 7.5; 16 or more have a probability of 0.4 %, and that of two gaps of the 24 here.
    assert (missed <= 17).all()
    assert (measured > 0.9 * runs).all()


def test_false_alarms_of_a_point_value_are_what_the_interval_takes_away() -> None:
    random = np.random.default_rng(1)
    found = [measure_gap(draw_pairs(random, [40, 60], [0.3, 0.3], [0.3, 0.3]).new) for _ in range(200)]
    assert np.mean([(one.value or 0) > 0.05 for one in found]) > 0.4
    assert np.mean([(one.low or 0) > 0.05 for one in found]) < 0.05


def test_means_of_two_groups_agree_with_welch_where_sizes_are_equal() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(1.0, 1.0, 200), random.normal(0.0, 2.0, 200)
    gap = measure_gap(Means(np.concatenate([first, second]), np.repeat([0, 1], 200), 2))
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert gap.value == pytest.approx(first.mean() - second.mean())
    assert (gap.low, gap.high) == (pytest.approx(welch.low, abs=0.01), pytest.approx(welch.high, abs=0.01))
    assert gap.low is not None
    assert gap.low <= welch.low


def test_equal_values_of_a_bounded_metric_have_an_interval_and_of_another_none() -> None:
    values, codes = np.array([0.0] * 10 + [1.0] * 40), np.repeat([0, 1], [10, 40])
    bounded, free = Means(values, codes, 2, (0.0, 1.0)), Means(values, codes, 2)
    low, high = bounded.interval(0.95)
    shares = Shares([0, 40], [10, 40]).interval(0.95)
    np.testing.assert_allclose(low, shares[0], atol=1e-12)
    np.testing.assert_allclose(high, shares[1], atol=1e-12)
    assert np.array_equal(*free.interval(0.95))


def test_models_that_give_the_same_values_have_a_rise_of_zero() -> None:
    random = np.random.default_rng(3)
    values, codes = random.lognormal(size=300), np.repeat([0, 1, 2], 100)
    rise = measure_rise(PairedMeans(values, values, codes, 3))
    assert rise.value == 0.0
    assert rise.low is not None
    assert rise.high is not None
    assert rise.low <= 0.0 <= rise.high


def test_paired_means_follow_the_rows_of_both_models() -> None:
    random = np.random.default_rng(4)
    codes = np.repeat([0, 1], 400)
    hard = random.lognormal(size=800)
    new, old = hard + np.where(codes == 0, 0.5, 0.0) + random.normal(0, 0.05, 800), hard + random.normal(0, 0.05, 800)
    rise = measure_rise(PairedMeans(new, old, codes, 2))
    # The champion's own gap is chance here, and part of the rise or not by its sign: the low end allows for both.
    assert rise.value == pytest.approx(0.5, abs=0.2)
    assert rise.low is not None
    assert 0.0 < rise.low < 0.5


def test_resampled_estimates_use_their_covariance() -> None:
    random = np.random.default_rng(5)
    shared = random.normal(size=(4000, 1))
    values = np.array([1.0, 0.5])
    together = Resampled(values, values + 0.1 * shared + 0.01 * random.normal(size=(4000, 2)), 500)
    apart = Resampled(values, values + 0.1 * random.normal(size=(4000, 2)), 500)
    near, far = measure_gap(together), measure_gap(apart)
    assert near.value == far.value == 0.5
    assert (near.low, near.high) == (pytest.approx(0.5 - 1.965 * 0.0141, abs=2e-3), pytest.approx(0.5278, abs=2e-3))
    assert (far.low, far.high) == (pytest.approx(0.5 - 1.965 * 0.1414, abs=0.01), pytest.approx(0.778, abs=0.01))


def test_resampled_models_are_compared_by_what_they_share() -> None:
    random = np.random.default_rng(6)
    noise = 0.2 * random.normal(size=(4000, 2))
    new, old = np.array([1.5, 0.5]), np.array([1.3, 0.5])
    rise = measure_rise(PairedResampled(new, old, np.hstack([new + noise, old + noise]), 500))
    assert (rise.value, rise.low, rise.high) == (pytest.approx(0.2),) * 3


def test_a_hundred_groups_are_measured_in_a_moment() -> None:
    random = np.random.default_rng(8)
    new, old = [0.3] * 99 + [0.8], [0.3] * 100
    rise = measure_rise(draw_pairs(random, [200] * 100, new, old))
    assert rise.pair is not None
    assert rise.pair[0] == 99
    assert rise.low is not None
    assert rise.low > 0.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="0 to all of at least 1 row"):
        Shares([3], [2])
    with pytest.raises(UsageError, match="0 to all of at least 1 row"):
        Shares([0], [0])
    with pytest.raises(UsageError, match="group without rows"):
        Means(np.ones(2), np.array([0, 0]), 2)
    with pytest.raises(UsageError, match="group of one row"):
        PairedMeans(np.ones(3), np.ones(3), np.array([0, 0, 1]), 2)
    with pytest.raises(UsageError, match="confidence"):
        measure_gap(Shares([1, 2], [5, 5]), confidence=1.0)
