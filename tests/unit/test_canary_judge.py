"""The judge: what it decides, why, and how often it errs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mlflywheel.decisions.canary.evidence import (
    Answer,
    Arm,
    Counter,
    Evidence,
    Histogram,
    JoinedLabel,
    Label,
    Window,
)
from mlflywheel.decisions.canary.judge import Counts, Judge, LatencyBound, MetricTests, judge
from mlflywheel.decisions.canary.policy import LabelsMetric, LatencyMetric, Policy, read_policy

BOUNDS = (0.05, 0.1, 0.25, 0.5)


def window(
    number: int,
    candidate: tuple[int, int],
    stable: tuple[int, int],
    step: int = 3,
    slow: tuple[float, float] = (0.005, 0.005),
) -> Window:
    """A window of 30 s; arms as (requests, errors), and the share of each that takes longer than 0.25 s."""

    def arm(counts: tuple[int, int], share: float) -> Arm:
        requests, errors = counts
        beyond = round(requests * share)
        return Arm(requests, errors, Histogram(BOUNDS, (0, requests - beyond, 0, beyond, 0)))

    return Window(number * 30, number * 30 + 30, step, 50, arm(stable, slow[1]), arm(candidate, slow[0]))


def repeated(count: int, candidate: tuple[int, int], stable: tuple[int, int], **rest: object) -> Evidence:
    return Evidence(tuple(window(number, candidate, stable, **rest) for number in range(count)))  # type: ignore[arg-type]


def test_equal_arms_are_promoted_with_every_margin_shown() -> None:
    verdict = judge(repeated(60, (1000, 5), (1000, 5)), Policy())
    assert verdict.action == "promote"
    assert [one.metric for one in verdict.findings if one.test == "margin" and one.is_reached] == [
        "errors",
        "latency_p99",
    ]
    assert "0.500% of 60,000" in verdict.reason


def test_more_errors_are_rolled_back_and_the_reason_says_by_how_much() -> None:
    verdict = judge(repeated(10, (1000, 60), (1000, 10)), Policy())
    assert verdict.action == "rollback"
    assert "errors is shown to be more than the stable rate: candidate 6.00% of 10,000, stable 1.00%" in verdict.reason


def test_a_slower_tail_is_rolled_back_though_no_request_fails() -> None:
    verdict = judge(repeated(20, (1000, 0), (1000, 0), slow=(0.05, 0.005)), Policy())
    assert verdict.action == "rollback"
    assert "latency_p99" in verdict.reason


def test_no_single_window_decides() -> None:
    policy = Policy()
    quiet = repeated(5, (1000, 0), (1000, 0)).windows
    disaster = window(5, (1000, 1000), (1000, 0))
    assert judge(Evidence((*quiet, disaster)), policy).action != "rollback"
    again = replace(disaster, start=180, end=210)
    assert judge(Evidence((*quiet, disaster, again)), policy).action == "rollback"


def test_too_few_requests_hold_and_the_reason_counts_them() -> None:
    verdict = judge(repeated(8, (5, 0), (5, 0)), Policy())
    assert verdict.action == "hold"
    assert verdict.reason == "40 requests at 50 %, 50 are needed"


def test_an_early_step_advances_without_any_proof() -> None:
    assert judge(repeated(4, (20, 0), (1980, 2), step=0), Policy()).action == "advance"


def test_an_early_step_waits_for_its_time() -> None:
    verdict = judge(repeated(3, (20, 0), (1980, 2), step=0), Policy())
    assert verdict.action == "hold"
    assert verdict.reason == "90 s at 1 %, 120 s are needed"


def test_a_dark_step_needs_time_alone() -> None:
    policy = Policy(steps=(0, 50, 100))
    fold = Judge(policy)
    assert fold.decide(60, 60, step=0).action == "hold"
    assert fold.decide(121, 121, step=0).action == "advance"


@pytest.mark.parametrize(("action", "expected"), [("rollback", "rollback"), ("hold", "hold"), ("promote", "promote")])
def test_the_deadline_decides_what_evidence_does_not(action: str, expected: str) -> None:
    policy = read_policy(f"schema: 1\ndeadline: {{after_minutes: 10, action: {action}}}")
    verdict = judge(repeated(20, (5, 0), (5, 0)), policy)
    assert verdict.action == expected
    assert verdict.is_by_deadline
    assert "within 10 minutes" in verdict.reason


def test_harm_is_stronger_than_a_deadline_that_promotes() -> None:
    policy = read_policy("schema: 1\ndeadline: {after_minutes: 1, action: promote}")
    verdict = judge(repeated(10, (1000, 60), (1000, 10)), policy)
    assert verdict.action == "rollback"
    assert not verdict.is_by_deadline


def test_windows_with_a_gap_or_a_reset_are_told_and_not_judged() -> None:
    bad = repeated(10, (1000, 60), (1000, 10)).windows
    gaps = tuple(replace(one, gap="Prometheus did not answer") for one in bad)
    verdict = judge(Evidence(gaps), Policy())
    assert verdict.action == "hold"
    assert verdict.notes == ("10 x Prometheus did not answer",)
    resets = tuple(replace(one, candidate=replace(one.candidate, reset=True)) for one in bad)
    assert judge(Evidence(resets), Policy()).notes == ("10 x counters of candidate were reset",)


def test_the_same_evidence_in_two_parts_gives_the_same_verdict() -> None:
    policy = read_policy(
        "schema: 1\nmetrics:\n  - {name: errors, kind: errors}\n"
        "  - {name: latency, kind: latency, quantile: 0.95}\n"
        "  - {name: quality, kind: labels, by: locale, groups: [de], role: guardrail}"
    )
    rng = np.random.default_rng(5)
    windows = [
        window(number, (500, rng.binomial(500, 0.01)), (500, rng.binomial(500, 0.01)), step=number // 20)
        for number in range(40)
    ]
    labels = [
        JoinedLabel(
            Answer(str(number), "candidate" if number % 2 else "stable", number * 3.0, {"locale": "fr"}),
            Label(str(number), "quality", float(rng.uniform()), number * 3.0 + 5),
        )
        for number in range(300)
    ]
    whole, first = Judge(policy), Judge(policy)
    for number, one in enumerate(windows):
        if number == 23:
            second = Judge(policy, json.loads(json.dumps(first.to_dict())))
            first = second
        for fold in (whole, first):
            fold.observe(one)
            fold.observe_labels([label for label in labels if one.start < label.label.time <= one.end])
    assert whole.decide(300, 1200) == first.decide(300, 1200)
    assert whole.to_dict() == first.to_dict()
    assert whole.decide(300, 1200).findings[0].candidate_total == 20_000


def test_labels_that_arrive_late_roll_back_what_answered_fast_and_wrong() -> None:
    policy = read_policy(
        "schema: 1\nmetrics:\n  - {name: errors, kind: errors}\n  - {name: quality, kind: labels, role: guardrail}"
    )
    rng = np.random.default_rng(11)
    windows = repeated(30, (300, 1), (300, 1)).windows
    answers, labels = [], []
    for number in range(2000):
        arm = "candidate" if number % 2 else "stable"
        time = 900 * number / 2000
        answers.append(Answer(f"r{number}", arm, time))
        loss = float(rng.random() < (0.30 if arm == "candidate" else 0.15))
        labels.append(Label(f"r{number}", "quality", loss, time + 3600))
    assert judge(Evidence(windows, tuple(answers)), policy).action != "rollback"
    verdict = judge(Evidence(windows, tuple(answers), tuple(labels)), policy)
    # All labels come in one block, which teaches the baseline.
    assert verdict.action != "rollback"
    spread = tuple(replace(label, time=label.time - 3600 + 60) for label in labels)
    verdict = judge(Evidence(windows, tuple(answers), spread), policy)
    assert verdict.action == "rollback"
    assert "quality" in verdict.reason


def test_labels_of_unknown_requests_and_second_labels_are_told() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: quality, kind: labels}")
    labels = (Label("a", "quality", 0, 9), Label("a", "quality", 1, 10), Label("x", "quality", 1, 10))
    windows = repeated(2, (10, 0), (10, 0)).windows
    notes = judge(Evidence(windows, (Answer("a", "stable", 5),), labels), policy).notes
    assert any("nobody is known to have answered" in note for note in notes)
    assert any("already had one" in note for note in notes)


def test_alphas_of_groups_add_up_to_at_most_the_metrics() -> None:
    for groups in ((), ("de", "fr")):
        metric = LabelsMetric(name="quality", kind="labels", by="locale", groups=groups)
        tests = MetricTests(metric, Policy(metrics=(metric,)))
        names = [f"g{number}" for number in range(200)]
        for name in names:
            tests._open(name)
        total = sum(tests.alpha_of(name) for name in ("", *groups, *names))
        assert 0.9 * Policy().alpha < total <= Policy().alpha


def test_more_is_better_turns_a_counter_round() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: sales, kind: counter, better: more}")
    windows = tuple(
        replace(
            one,
            candidate=replace(one.candidate, counters={"sales": Counter(20, 1000)}),
            stable=replace(one.stable, counters={"sales": Counter(100, 1000)}),
        )
        for one in repeated(10, (1000, 0), (1000, 0)).windows
    )
    assert judge(Evidence(windows), policy).action == "rollback"


def test_a_metric_without_counts_holds_and_says_what_is_missing() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: sales, kind: counter}")
    verdict = judge(repeated(10, (1000, 0), (1000, 0)), policy)
    assert verdict.action == "hold"
    assert verdict.notes == ("10 x windows without the counter sales",)


def test_superiority_is_not_shown_by_equal_arms_and_is_by_better_ones() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: errors, kind: errors, role: superiority}")
    assert judge(repeated(40, (1000, 10), (1000, 10)), policy).action == "hold"
    assert judge(repeated(40, (1000, 4), (1000, 10)), policy).action == "promote"


def test_the_bound_of_a_quantile_comes_from_earlier_windows_of_the_stable_arm() -> None:
    bound = LatencyBound(LatencyMetric(name="p95", kind="latency", quantile=0.95), BOUNDS)
    counts, is_chosen = bound.count(0, (0, 0, 0, 0, 1000), (900, 60, 40, 0, 0))
    assert not is_chosen
    assert bound.seconds is None
    counts, is_chosen = bound.count(0, (0, 0, 0, 100, 0), (0, 0, 0, 0, 5000))
    assert is_chosen
    assert bound.seconds == 0.1
    assert (counts.candidate_events, counts.candidate_total) == (100, 100)
    # It stays through the step, and is chosen again at the next.
    bound.count(0, (0, 0, 0, 100, 0), (0, 0, 500_000, 0, 0))
    assert bound.seconds == 0.1
    bound.count(1, (0, 0, 0, 100, 0), (0, 0, 5000, 0, 0))
    assert bound.seconds == 0.25


def test_histograms_of_other_bounds_are_compared_on_the_common_ones() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: slow, kind: latency, seconds: 0.25}")
    windows = tuple(
        replace(one, candidate=replace(one.candidate, latency=Histogram((0.1, 0.25), (500, 0, 500))))
        for one in repeated(10, (1000, 0), (1000, 0)).windows
    )
    verdict = judge(Evidence(windows), policy)
    assert verdict.action == "rollback"
    assert "candidate 50.00%" in verdict.reason


def test_many_rollouts_in_lockstep_are_judged_as_each_alone() -> None:
    rng = np.random.default_rng(3)
    policy = Policy()
    metric = policy.metrics[0]
    together = MetricTests(metric, policy, (4,))
    alone = [MetricTests(metric, policy) for _ in range(4)]
    for _ in range(30):
        errors = rng.binomial(200, [[0.01], [0.05]], (2, 4))
        together.add("", Counts(errors[1], np.full(4, 200), errors[0], np.full(4, 200)), True)
        for number, one in enumerate(alone):
            one.add("", Counts(errors[1, number], 200, errors[0, number], 200), True)
    assert list(together.harmed) == [bool(one.harmed) for one in alone]
    assert together.margin is not None
    np.testing.assert_allclose(
        together.margin.log_e, [float(one.margin.log_e) for one in alone if one.margin], rtol=1e-10
    )


def test_good_early_steps_do_not_count_for_the_margin() -> None:
    early = repeated(60, (1000, 5), (1000, 5), step=2).windows
    late = tuple(window(number, (1000, 17), (1000, 7)) for number in range(60, 66))
    verdict = judge(Evidence((*early, *late)), Policy())
    margin = next(one for one in verdict.findings if (one.metric, one.test) == ("errors", "margin"))
    assert not margin.is_reached
    assert margin.evidence < 3
    assert verdict.action != "promote"


def test_labels_of_answers_given_while_weights_changed_are_left_out() -> None:
    policy = read_policy("schema: 1\nmetrics:\n  - {name: quality, kind: labels}")
    windows = (window(0, (10, 0), (10, 0), step=0), replace(window(1, (10, 0), (10, 0), step=1), start=45, end=75))
    answers = (Answer("settling", "stable", 40), Answer("first", "stable", 20), Answer("second", "stable", 50))
    labels = tuple(Label(answer.request_id, "quality", 1, 74) for answer in answers)
    verdict = judge(Evidence(windows, answers, labels), policy)
    assert verdict.notes == ("1 x labels of answers that were given while the weights changed",)
    assert verdict.findings[0].stable_total == 2
