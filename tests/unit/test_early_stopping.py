"""medianstop, against values that were traced by hand through Katib's service and its metrics collector."""

import pytest

from mlflywheel.errors import UsageError
from mlflywheel.tuning.early_stopping import MedianStop, StopRule
from mlflywheel.tuning.experiment import EarlyStopping, Experiment, Objective, TrialTemplate
from mlflywheel.tuning.metrics import Report, order_values
from mlflywheel.tuning.search import Trial, TrialStatus

Finished = list[tuple[Trial, list[float]]]


def make_experiment(
    settings: dict[str, str] | None = None, direction: str = "minimize", algorithm: str | None = "medianstop"
) -> Experiment:
    objective = Objective("maximize", "auc") if direction == "maximize" else Objective("minimize", "loss")
    stopping = None if algorithm is None else EarlyStopping(algorithm, settings or {})
    return Experiment("e", objective, "random", {}, (), TrialTemplate("c", {}, {}), early_stopping=stopping)


def finish(*reports: list[float], status: TrialStatus = "succeeded") -> Finished:
    return [(Trial(f"t{number}", number, {}, status), values) for number, values in enumerate(reports)]


@pytest.mark.parametrize(
    ("direction", "threshold", "start_step", "reports", "stopped_at"),
    [
        # minimize: the best of the first four is compared with the threshold, once, on the fourth report.
        ("minimize", 0.5, 4, [0.9, 0.8, 0.7, 0.6, 0.1], 4),
        ("minimize", 0.5, 4, [0.9, 0.4, 0.8, 0.9, 0.9], None),
        ("minimize", 0.5, 4, [0.9, 0.8, 0.7, 0.5], None),
        # The counter goes below zero after the test, so later reports are never tested.
        ("minimize", 0.5, 4, [0.5, 0.9, 0.9, 0.9, 9.0, 9.0, 9.0, 9.0, 9.0], None),
        # Fewer reports than start_step: never tested.
        ("minimize", 0.5, 4, [9.0, 9.0, 9.0], None),
        ("minimize", 0.5, 1, [0.6], 1),
        ("minimize", 0.5, 1, [0.5, 0.6], None),
        # maximize
        ("maximize", 0.5, 2, [0.1, 0.4], 2),
        ("maximize", 0.5, 2, [0.6, 0.1], None),
        ("maximize", 0.5, 2, [0.5, 0.1], None),
        ("maximize", -2.0, 3, [-5.0, -4.0, -3.0], 3),
    ],
)
def test_rule_is_tested_once_on_the_best_value_so_far(
    direction: str, threshold: float, start_step: int, reports: list[float], stopped_at: int | None
) -> None:
    rule = StopRule("m", threshold, "maximize" if direction == "maximize" else "minimize", start_step)
    stops = [number for number, value in enumerate(reports, start=1) if rule.observe(value)]
    assert stops == ([] if stopped_at is None else [stopped_at])


def test_threshold_is_the_mean_of_each_trials_mean_over_its_first_reports() -> None:
    stop = MedianStop(make_experiment({"start_step": "2"}))
    # Means of the first two: 3, 5 and 1 (its one report). Their mean is 3, their median would be 3 as well...
    rule = stop.rule(finish([2.0, 4.0, 100.0], [5.0, 5.0], [1.0]))
    assert rule == StopRule("loss", 3.0, "minimize", 2)
    # ... and here the median would be 2.
    rule = stop.rule(finish([1.0, 1.0], [2.0, 2.0], [9.0, 9.0]))
    assert rule == StopRule("loss", 4.0, "minimize", 2)


def test_defaults_are_three_trials_and_four_reports() -> None:
    stop = MedianStop(make_experiment())
    trials = finish([1.0, 2.0, 3.0, 4.0, 90.0], [2.5], [2.5, 2.5])
    assert stop.rule(trials[:2]) is None
    assert stop.rule(trials) == StopRule("loss", 2.5, "minimize", 4)


@pytest.mark.parametrize("status", ["failed", "early_stopped", "metrics_unavailable", "killed", "running"])
def test_only_succeeded_trials_count(status: TrialStatus) -> None:
    stop = MedianStop(make_experiment({"min_trials_required": "2"}))
    others = finish([100.0], [], status=status)
    assert stop.rule([*finish([1.0]), *others]) is None
    rule = stop.rule([*finish([1.0], [3.0]), *others])
    assert rule is not None
    assert rule.threshold == 2.0


def test_rule_of_a_running_trial_does_not_move() -> None:
    stop = MedianStop(make_experiment({"min_trials_required": "1", "start_step": "1"}))
    before = stop.rule(finish([1.0]))
    after = stop.rule(finish([1.0], [5.0]))
    assert before is not None
    assert after is not None
    assert (before.threshold, after.threshold) == (1.0, 3.0)
    assert before.observe(2.0)
    assert not after.observe(2.0)


def test_rules_of_two_trials_count_apart() -> None:
    stop = MedianStop(make_experiment({"min_trials_required": "1", "start_step": "2"}, "maximize"))
    first, second = stop.rule(finish([0.5, 0.5])), stop.rule(finish([0.5, 0.5]))
    assert first is not None
    assert second is not None
    assert not first.observe(0.1)
    assert not second.observe(0.9)
    assert first.observe(0.2)
    assert not second.observe(0.2)
    assert first.describe() == "after 2 reports the best auc is 0.2, below 0.5"


def test_first_reports_are_the_earliest_by_time() -> None:
    reports = [Report("loss", "9", 30.0), Report("auc", "0", 5.0), Report("loss", "1", 10.0), Report("loss", "3", 20.0)]
    stop = MedianStop(make_experiment({"min_trials_required": "1", "start_step": "2"}))
    rule = stop.rule([(Trial("t", 0, {}, "succeeded"), order_values(reports, "loss"))])
    assert rule is not None
    assert rule.threshold == 2.0


def test_search_without_early_stopping_has_no_rules() -> None:
    assert MedianStop(make_experiment(algorithm=None)).rule(finish([1.0], [1.0], [1.0])) is None


def test_succeeded_trial_without_reports_is_a_defect() -> None:
    with pytest.raises(ValueError, match="t0 succeeded and has no report of loss"):
        MedianStop(make_experiment()).rule(finish([]))


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"start_step": "0"}, "'0'"),
        ({"start_step": "four"}, "'four'"),
        ({"min_trials_required": "-1"}, "'-1'"),
        ({"min_trials_required": "1.5"}, "'1.5'"),
        ({"patience": "3"}, "patience is unknown"),
    ],
)
def test_settings_that_katib_refuses_are_refused(settings: dict[str, str], seen: str) -> None:
    with pytest.raises(UsageError, match=seen):
        MedianStop(make_experiment(settings))


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(UsageError, match="'hyperband'; Katib has medianstop alone"):
        MedianStop(make_experiment(algorithm="hyperband"))
