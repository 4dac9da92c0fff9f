"""The simulation decides as the judge does, and the default policy keeps its error rates.

The tables in benchmarks/README.md come from thousands of rollouts a cell; here are few, with allowances for that.
"""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from mlflywheel.decisions.canary import simulation
from mlflywheel.decisions.canary.evidence import Arm, Histogram, Window
from mlflywheel.decisions.canary.judge import Judge
from mlflywheel.decisions.canary.policy import (
    CounterMetric,
    Deadline,
    DeadlineAction,
    ErrorsMetric,
    LabelsMetric,
    LimitLine,
    Minimum,
    Policy,
)
from mlflywheel.decisions.canary.simulation import (
    BOUNDS_SECONDS,
    SCENARIOS,
    DrawnWindow,
    Scenario,
    ScenarioResult,
    Traffic,
    TrafficSource,
    find_scenario,
    fit_policy,
    results_to_dict,
    share_beyond,
    simulate,
)
from mlflywheel.errors import UsageError
from mlflywheel.serving.metrics import SECONDS_BUCKETS


def run(scenario: str | Scenario, runs: int = 300, seed: int = 3, policy: Policy | None = None) -> ScenarioResult:
    [result] = simulate(policy or Policy(), [scenario], runs, seed)
    return result


def most_of(rate: float, runs: int) -> float:
    """The share that a true rate exceeds in one of a thousand tests."""
    return float(stats.binom.isf(0.001, runs, rate)) / runs


def least_of(rate: float, runs: int) -> float:
    return float(stats.binom.ppf(0.001, runs, rate)) / runs


def test_every_simulated_rollout_is_decided_as_the_judge_decides_the_same_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, drawn = 24, []
    draw = TrafficSource.draw

    def keep(
        self: TrafficSource, start: np.ndarray, length: float, percent: np.ndarray, active: np.ndarray
    ) -> DrawnWindow:
        window = draw(self, start, length, percent, active)
        drawn.append((start.copy(), percent.copy(), active.copy(), window))
        return window

    monkeypatch.setattr(TrafficSource, "draw", keep)
    policy = Policy(deadline=Deadline(after_minutes=20))
    result = run("error-x1.5", runs, seed=11, policy=policy)
    seen = set()
    for index in range(runs):
        judge, step, entered = Judge(policy), 0, 0.0
        for start, percent, active, window in drawn:
            assert active[index]
            assert percent[index] == policy.steps[step]
            arms = [
                Arm(
                    float(getattr(window, f"{arm}_requests")[index]),
                    float(getattr(window, f"{arm}_errors")[index]),
                    Histogram(BOUNDS_SECONDS, tuple(float(one) for one in getattr(window, f"{arm}_latency")[index])),
                )
                for arm in ("stable", "candidate")
            ]
            end = float(start[index]) + policy.window_seconds
            judge.observe(Window(float(start[index]), end, step, policy.steps[step], arms[0], arms[1]))
            verdict = judge.decide(end - entered, end)
            if verdict.action in ("promote", "rollback"):
                break
            if verdict.action == "advance":
                step, entered = step + 1, end
        seen.add((verdict.action, verdict.is_by_deadline))
        assert (verdict.action, verdict.is_by_deadline) == (result.actions[index], result.by_deadline[index])
        assert end / 60 == pytest.approx(result.minutes[index])
    assert len(seen) == 3  # promoted, rolled back, and stopped by the deadline


def test_equal_candidates_are_seldom_rolled_back_and_mostly_promoted() -> None:
    result = run("aa")
    assert result.share("rollback") <= most_of(0.05, 300)
    assert result.share("promote") >= least_of(0.9, 300)


@pytest.mark.parametrize("change", [{"window_seconds": 5.0}, {"sustained_windows": 1}])
def test_asking_more_often_raises_no_false_alarms(change: dict[str, float]) -> None:
    result = run("aa", 150, policy=Policy().model_copy(update=change))
    assert result.share("rollback") <= most_of(0.05, 150)


def test_equal_candidates_that_have_to_be_better_are_neither_promoted_nor_rolled_back_in_hundreds_of_looks() -> None:
    errors = ErrorsMetric(name="errors", role="superiority")
    policy = Policy(metrics=(errors,), deadline=Deadline(after_minutes=300))
    result = run("aa", 150, policy=policy)
    assert result.share("rollback") <= most_of(0.05, 150)
    assert result.share("promote") <= most_of(0.05, 150)
    assert result.by_deadline.mean() >= 0.8


def test_doubled_errors_are_rolled_back_within_ten_thousand_requests() -> None:
    result = run("error-x2")
    assert result.share("rollback", within_requests=10_000) >= least_of(0.95, 300)
    assert result.share("promote") <= most_of(0.05, 300)


@pytest.mark.parametrize("name", ["error-x5", "latency-shift", "wrong-answers"])
def test_plain_harm_is_found(name: str) -> None:
    assert run(name, 60).share("rollback") >= 0.95


def test_wrong_answers_are_found_by_labels_and_by_nothing_else() -> None:
    result = run("wrong-answers", 60)
    assert result.harmed_by["wrong_answers"].mean() >= 0.95
    assert result.harmed_by["errors"].mean() <= 0.1
    assert result.to_dict()["added_metric"] == "wrong_answers"


def test_the_tail_is_found_by_latency_alone() -> None:
    result = run("latency-tail", 150)
    assert result.harmed_by["latency_p99"].mean() >= 0.6
    assert result.harmed_by["errors"].mean() <= 0.1


def test_a_group_of_a_tenth_is_found_more_often_than_by_chance() -> None:
    assert run("group-harm", 60).share("rollback") >= 0.5


@pytest.mark.parametrize("name", ["error-burst", "bursts", "daily-cycle", "missing-evidence", "small-groups"])
def test_what_both_arms_share_is_no_harm(name: str) -> None:
    result = run(name, 80)
    assert result.share("rollback") <= most_of(0.05, 80)
    assert result.share("promote") >= 0.8


def test_too_little_traffic_ends_by_the_deadline_and_is_counted_apart() -> None:
    result = run("low-traffic", 30, policy=Policy(deadline=Deadline(after_minutes=240)))
    values = result.to_dict()
    assert values["deadline_rate"] == 1
    assert values["undecided_rate"] == 1
    assert values["rollback_rate"] == values["promote_rate"] == 0
    assert (result.actions == "rollback").all()
    assert np.allclose(result.minutes, 240, atol=0.5)


@pytest.mark.parametrize("action", ["hold", "promote"])
def test_other_actions_of_the_deadline_end_a_simulated_rollout_too(action: DeadlineAction) -> None:
    policy = Policy(deadline=Deadline(after_minutes=30, action=action))
    result = run("low-traffic", 20, policy=policy)
    assert (result.actions == action).all()
    assert result.to_dict()["undecided_rate"] == 1


def test_harm_that_starts_at_the_last_weight_exposes_more_requests() -> None:
    early, late = run("error-x3", 100), run("error-x3-from-50", 100)
    assert np.median(late.requests_exposed) > np.median(early.requests_exposed)


def test_asking_every_fifth_window_decides_at_fifth_windows_only() -> None:
    [result] = simulate(Policy(settle_seconds=0), ["error-x5"], 20, seed=1, ask_every_windows=5)
    assert (result.minutes * 60 % 150 == 0).all()


def test_a_dark_launch_exposes_nothing_in_its_first_step() -> None:
    policy = Policy(steps=(0, 50, 100), minimum=Minimum(requests=50, seconds=600))
    with_dark, without = run("error-x5", 30, policy=policy), run("error-x5", 30, policy=Policy(steps=(50, 100)))
    assert (with_dark.minutes >= 10).all()
    assert np.median(with_dark.requests_exposed) < 4 * np.median(without.requests_exposed)


def test_counters_are_simulated() -> None:
    metric = CounterMetric(name="fallbacks", kind="counter", margin=LimitLine(difference=0.05))
    policy = Policy(metrics=(metric,))
    assert run("aa", 40, policy=policy).share("promote") >= 0.8
    assert run(Scenario("worse", "", counter=3), 40, policy=policy).share("rollback") >= 0.9


def test_the_same_seed_gives_the_same_results_and_other_scenarios_change_nothing() -> None:
    [alone] = simulate(Policy(), ["error-x2"], 30, seed=2)
    _, among = simulate(Policy(), ["aa", "error-x2"], 30, seed=2)
    [other] = simulate(Policy(), ["error-x2"], 30, seed=3)
    assert (alone.requests_exposed == among.requests_exposed).all()
    assert not (alone.requests_exposed == other.requests_exposed).all()


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    simulate(Policy(), ["aa"], 30, progress=lambda *words: told.append(words))
    assert told[-1] == ("aa", 30, 30)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_results_are_json_with_the_documented_keys() -> None:
    traffic = Traffic(requests_per_second=50)
    results = simulate(Policy(), ["aa", "error-x2"], 20, 4, traffic)
    values = json.loads(json.dumps(results_to_dict(Policy(), results, 4, traffic), allow_nan=False))
    assert {"schema", "policy", "seed", "runs", "traffic", "scenarios"} == set(values)
    assert values["traffic"]["requests_per_second"] == 50
    for row in values["scenarios"]:
        assert {
            "scenario", "runs", "promote_rate", "rollback_rate", "undecided_rate", "median_requests_exposed",
            "p95_requests_exposed",
        } <= set(row)  # fmt: skip
        assert row["promote_rate"] + row["rollback_rate"] + row["undecided_rate"] == pytest.approx(1)


def test_an_unknown_scenario_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"error-x2.*low-traffic"):
        simulate(Policy(), ["eror-x2"], 10)


@pytest.mark.parametrize("name", ["error-x", "error-x2-from-", "error-x2-from-5-from-6", "aa-x2"])
def test_half_a_parameter_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        find_scenario(name)


def test_every_scenario_has_its_name_and_one_line() -> None:
    for name, scenario in SCENARIOS.items():
        assert find_scenario(name) is scenario
        assert "\n" not in scenario.description
        assert scenario.description


@pytest.mark.parametrize(
    ("field", "value"),
    [("error_rate", 0.0), ("error_rate", 1.0), ("requests_per_second", 0.0), ("requests_per_second", float("nan")),
     ("labelled_share", 1.1), ("label_delay_seconds", -1.0), ("latency_sigma", -0.5)],
)  # fmt: skip
def test_impossible_traffic_is_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        dataclasses.replace(Traffic(), **{field: value})


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="runs"):
        simulate(Policy(), ["aa"], runs=0)
    with pytest.raises(UsageError, match="seed"):
        simulate(Policy(), ["aa"], seed=-1)
    with pytest.raises(UsageError, match="ask_every_windows"):
        simulate(Policy(), ["aa"], ask_every_windows=0)


def test_a_policy_with_labels_of_its_own_gets_no_other() -> None:
    own = LabelsMetric(name="quality", kind="labels")
    policy = Policy(metrics=(own,))
    assert fit_policy(policy, SCENARIOS["wrong-answers"]) is policy
    assert [metric.name for metric in fit_policy(policy, SCENARIOS["group-harm"]).metrics] == [
        "quality",
        "wrong_answers",
    ]
    taken = Policy(metrics=(ErrorsMetric(name="wrong_answers"),))
    assert fit_policy(taken, SCENARIOS["wrong-answers"]).metrics[1].name == "wrong_answers_2"


def test_bounds_are_the_predictors() -> None:
    assert BOUNDS_SECONDS == SECONDS_BUCKETS


def test_drawn_latencies_follow_the_scenario() -> None:
    traffic = Traffic(latency_median_seconds=0.05, latency_sigma=0.6)
    for scenario, expected in (
        (SCENARIOS["aa"], stats.lognorm.sf(0.25, 0.6, scale=0.05)),
        (SCENARIOS["latency-shift"], stats.lognorm.sf(0.25, 0.6, scale=0.075)),
        # Of the slowest 1 % all take longer than 0.25 s, and no other.
        (SCENARIOS["latency-tail"], 0.01),
        (Scenario("slow", "", slow_share=4.0, slow_beyond_seconds=0.25), 4 * share_beyond(traffic, 0.25)),
    ):
        source = TrafficSource(traffic, scenario, 50, 1, np.random.default_rng(1))
        window = source.draw(np.zeros(1), 40_000, np.array([50.0]), np.ones(1, bool))
        beyond = window.candidate_latency[0, BOUNDS_SECONDS.index(0.25) + 1 :].sum()
        n = window.candidate_requests[0]
        assert abs(beyond / n - expected) < 5 * np.sqrt(expected / n)
        assert window.candidate_latency.sum() == n
        stable = window.stable_latency[0, BOUNDS_SECONDS.index(0.25) + 1 :].sum() / window.stable_requests[0]
        assert stable == pytest.approx(share_beyond(traffic, 0.25), abs=0.0006)


def test_drawn_requests_follow_the_weight_and_stop_where_a_rollout_is_decided() -> None:
    source = TrafficSource(Traffic(), SCENARIOS["aa"], 50, 2, np.random.default_rng(1))
    window = source.draw(np.zeros(2), 10_000, np.array([5.0, 5.0]), np.array([True, False]))
    assert window.candidate_requests[0] == pytest.approx(5000, rel=0.06)
    assert window.stable_requests[0] == pytest.approx(95_000, rel=0.02)
    assert window.candidate_errors[0] == pytest.approx(50, abs=35)
    assert window.candidate_requests[1] == window.stable_requests[1] == window.stable_errors[1] == 0


def test_labels_come_after_their_delay_and_are_of_one_step_each() -> None:
    metric = LabelsMetric(name="quality", kind="labels", by="group", groups=("a", "b"))
    policy = Policy(metrics=(metric,))
    traffic = Traffic(labelled_share=1.0, label_delay_seconds=120, label_batch_seconds=60, loss_rate=0.5)
    labels = simulation._Labels(metric, policy, SCENARIOS["aa"], traffic, 1, np.random.default_rng(1))
    got = []
    for window in range(10):
        step = np.array([0 if window < 3 else 1])
        labels.answer(window, step, np.array([window + 1]), np.array([0]))
        for group, at, counts in labels.deliver(window, np.ones(1, bool)):
            if not group:
                got.append((window, at, int(np.sum(counts.candidate_total))))
    # Two windows a batch and four of delay: the batch of windows 2 and 3 is of two steps.
    assert got == [(5, 0, 1 + 2), (7, 0, 3), (7, 1, 4), (9, 1, 5 + 6)]
