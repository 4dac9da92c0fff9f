"""Metrics by group and the interval of a median: what they say where the truth is known."""

import numpy as np
import pytest

from mlflywheel.errors import UsageError
from mlflywheel.statistics.groups import compare_groups
from mlflywheel.statistics.intervals import estimate_median


def mean_error(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(np.abs(predicted - true)))


def draw(sizes: dict[str, int], scales: dict[str, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    groups = [name for name, size in sizes.items() for _ in range(size)]
    spread = np.array([scales[name] for name in groups])
    true = np.zeros(len(groups))
    return true, spread * np.random.default_rng(seed).normal(size=len(groups)), groups


def test_median_interval_holds_the_true_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    for count in (8, 30, 201):
        found = [estimate_median(random.lognormal(size=count)) for _ in range(1500)]
        covered = np.mean([one.low <= 1.0 <= one.high for one in found if one.low is not None and one.high is not None])
        # At least the nominal coverage; more for few rows, whose intervals have few possible ends.
        assert covered >= 0.938
        assert covered <= (0.985 if count > 20 else 0.9999)


def test_median_of_skewed_values_is_not_moved_by_one_of_them() -> None:
    values = np.arange(1.0, 102.0)
    first = estimate_median(values)
    values[-1] = 1e12
    assert estimate_median(values) == first
    assert first.value == 51.0


@pytest.mark.parametrize("count", [1, 5])
def test_few_rows_have_a_median_and_no_interval(count: int) -> None:
    found = estimate_median(np.arange(float(count)))
    assert found.value == (count - 1) / 2
    assert (found.low, found.high, found.count) == (None, None, count)


def test_rows_without_a_value_do_not_count_in_a_median() -> None:
    found = estimate_median([np.nan, 1.0, np.nan, 3.0])
    assert (found.value, found.count) == (2.0, 2)
    assert estimate_median([]).value is None


def test_group_that_is_worse_is_found_and_named() -> None:
    true, predicted, groups = draw({"a": 400, "b": 400, "c": 400}, {"a": 1.0, "b": 1.0, "c": 3.0})
    found = compare_groups(mean_error, true, predicted, groups, resamples=100)
    assert found.highest == "c"
    assert found.lowest in ("a", "b")
    values = {name: interval.value for name, interval in found.groups.items()}
    assert found.gap.value == pytest.approx(values["c"] - values[found.lowest])
    assert found.gap.low is not None
    # The mean of abs(normal) is 0.798: 3 * 0.798 - 0.798.
    assert found.gap.value == pytest.approx(1.596, abs=0.25)
    assert found.gap.low > 1.0
    for name, interval in found.groups.items():
        inside = np.array(groups) == name
        assert interval.value == pytest.approx(mean_error(true[inside], predicted[inside]))
        assert interval.low is not None
        assert interval.low < (interval.value or 0.0) < (interval.high or 0.0)


def test_small_group_is_reported_and_makes_no_gap() -> None:
    true, predicted, groups = draw({"a": 200, "b": 200, "tiny": 20}, {"a": 1.0, "b": 1.0, "tiny": 50.0})
    found = compare_groups(mean_error, true, predicted, groups, minimum_count=100, resamples=50)
    assert found.small == {"tiny": 20}
    assert set(found.groups) == {"a", "b"}
    assert found.gap.value is not None
    assert found.gap.value < 0.5
    assert found.gap.count == 400


def test_one_group_has_no_gap() -> None:
    true, predicted, groups = draw({"a": 200, "tiny": 5}, {"a": 1.0, "tiny": 1.0})
    found = compare_groups(mean_error, true, predicted, groups, resamples=20)
    assert list(found.groups) == ["a"]
    assert (found.gap.value, found.highest) == (None, "")
    none = compare_groups(mean_error, true[:5], predicted[:5], groups[:5], resamples=20)
    assert (none.groups, none.small) == ({}, {"a": 5})


def test_comparison_repeats_for_a_seed() -> None:
    drawn = draw({"a": 150, "b": 150}, {"a": 1.0, "b": 2.0})
    assert compare_groups(mean_error, *drawn, resamples=30) == compare_groups(mean_error, *drawn, resamples=30)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="one of each a row"):
        compare_groups(mean_error, [1.0, 2.0], [1.0], ["a", "a"])
    with pytest.raises(UsageError, match="minimum_count 1"):
        compare_groups(mean_error, [1.0], [1.0], ["a"], minimum_count=1)
    with pytest.raises(UsageError, match="one value a row"):
        estimate_median([[1.0, 2.0]])
