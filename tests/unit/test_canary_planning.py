"""The calculator's numbers hold for rollouts that it has not seen."""

import json

import pytest
from scipy import stats

from mlflywheel.decisions.canary.planning import plan
from mlflywheel.decisions.canary.policy import (
    CounterMetric,
    Deadline,
    ErrorsMetric,
    LabelsMetric,
    LatencyMetric,
    LimitLine,
    Policy,
)
from mlflywheel.decisions.canary.simulation import Traffic, simulate
from mlflywheel.errors import UsageError

# An equal candidate gets there with `power`; the plan's own number comes from 400 rollouts, and the check from 400
# others, so that the difference of two shares of 0.9 has a standard error of 0.021. Four of them are allowed.
RUNS = 400
ALLOWANCE = 4 * (2 * 0.9 * 0.1 / RUNS) ** 0.5


@pytest.mark.parametrize("requests_per_second", [10.0, 2.0])
def test_equal_candidates_are_promoted_within_the_planned_requests_with_the_power(requests_per_second: float) -> None:
    policy = Policy()
    planned = plan(policy, requests_per_second)
    assert planned.to_promote.requests is not None
    [result] = simulate(policy, ["aa"], RUNS, seed=99, traffic=planned.traffic)
    assert result.share("promote", planned.to_promote.requests) >= policy.power - ALLOWANCE
    # And it is not much too high: half of it does not suffice.
    assert result.share("promote", planned.to_promote.requests / 2) < policy.power


def test_harm_is_found_within_the_planned_requests_with_the_power() -> None:
    policy = Policy()
    planned = plan(policy, 10.0)
    errors = planned.metrics[0]
    assert (errors.stable_rate, errors.harmed_rate) == (0.01, 0.02)
    assert errors.to_find.requests is not None
    [result] = simulate(policy, ["error-x2"], RUNS, seed=99)
    assert result.share("rollback", errors.to_find.requests) >= policy.power - ALLOWANCE
    assert result.share("rollback", errors.to_find.requests / 2) < policy.power


def test_a_wider_margin_and_a_lower_power_need_less() -> None:
    def needs(margin: float, power: float = 0.9) -> int:
        errors = ErrorsMetric(name="errors", margin=LimitLine(difference=margin))
        made = plan(Policy(metrics=(errors,), power=power), 10.0, runs=200)
        assert made.to_promote.requests is not None
        return made.to_promote.requests

    assert needs(0.02) < needs(0.01) < needs(0.005)
    assert needs(0.01, power=0.5) < needs(0.01)


def test_too_little_traffic_has_no_number_and_the_sentence_says_so() -> None:
    made = plan(Policy(), 10 / 3600, runs=100)
    assert made.to_promote.requests is None
    assert made.to_promote.probability == 0
    assert "promotes 0% of equal candidates within 24.0 hours; 90% are wanted" in made.describe()
    json.dumps(made.to_dict(), allow_nan=False)


def test_the_sentences_name_requests_minutes_and_rates() -> None:
    made = plan(Policy(), 10.0, runs=100)
    first, *rest = made.describe().split("\n")
    assert first == (
        f"With 10 requests a second this policy needs about {made.to_promote.requests:,} requests to the candidate "
        f"({made.to_promote.minutes:.0f} minutes) to promote an equal candidate with a probability of 90%."
    )
    assert any(line.startswith("errors: about") and "to show the margin where both have 1 %" in line for line in rest)
    assert any("to roll back a candidate with 2 % instead of 1 %" in line for line in rest)


def test_every_kind_of_metric_is_planned_and_a_guardrail_shows_nothing() -> None:
    metrics = (
        ErrorsMetric(name="errors", role="guardrail"),
        LatencyMetric(name="slow", kind="latency", seconds=0.2),
        CounterMetric(name="fallbacks", kind="counter", margin=LimitLine(difference=0.03)),
        LabelsMetric(name="quality", kind="labels", margin=LimitLine(difference=0.05)),
    )
    made = plan(Policy(metrics=metrics), 20.0, harmed_factor=3.0, runs=60)
    assert [one.metric for one in made.metrics] == ["errors", "slow", "fallbacks", "quality"]
    assert made.metrics[0].to_show is None
    assert "errors is a guardrail: nothing has to be shown for it." in made.describe()
    # Of the histogram's bounds 0.25 s is the next one.
    assert made.metrics[1].stable_rate == pytest.approx(stats.lognorm.sf(0.25, 0.6, scale=0.05))
    assert made.metrics[3].harmed_rate == pytest.approx(0.3)
    for one in made.metrics:
        assert one.to_find.requests is not None
        assert one.to_find.probability >= 0.9
    assert made.metrics[3].to_show is not None
    # Labels come ten minutes late.
    assert made.metrics[3].to_show.minutes is not None
    assert made.metrics[3].to_show.minutes >= 10


def test_a_near_deadline_gives_a_probability_in_place_of_a_number() -> None:
    made = plan(Policy(deadline=Deadline(after_minutes=17)), 10.0, runs=100)
    assert made.to_promote.requests is None
    assert 0 < made.to_promote.probability < 0.9


def test_the_service_s_own_latencies_are_used() -> None:
    slow = Traffic(latency_median_seconds=0.5, latency_sigma=1.0)
    made = plan(Policy(), 10.0, traffic=slow, stable_error_rate=0.02, runs=50)
    assert made.traffic.error_rate == 0.02
    assert made.metrics[1].stable_rate == pytest.approx(stats.lognorm.sf(10, 1.0, scale=0.5), rel=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_impossible_traffic_is_refused(rate: float) -> None:
    with pytest.raises(UsageError):
        plan(Policy(), rate)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="error_rate"):
        plan(Policy(), 10.0, stable_error_rate=1.0)
    with pytest.raises(UsageError, match="harmed_factor"):
        plan(Policy(), 10.0, harmed_factor=1.0)
    with pytest.raises(UsageError, match="runs"):
        plan(Policy(), 10.0, runs=10)
