"""When a search ends, which trial is its best, and its record as JSON."""

import json

import pytest

from mlflywheel.tuning.experiment import Experiment, Objective, TrialTemplate
from mlflywheel.tuning.search import MetricSummary, Reason, SearchResult, Trial, TrialStatus, conclude, find_best

LOSS = Objective("minimize", "loss")
AUC = Objective("maximize", "auc")


def make_experiment(
    objective: Objective = LOSS, max_trials: int | None = None, max_failed_trials: int | None = None
) -> Experiment:
    return Experiment(
        "e",
        objective,
        "random",
        {},
        (),
        TrialTemplate("c", {}, {}),
        max_trials=max_trials,
        max_failed_trials=max_failed_trials,
    )


def make_trials(*outcomes: tuple[TrialStatus, float | None]) -> list[Trial]:
    return [Trial(f"t{number}", number, {}, status, objective=value) for number, (status, value) in enumerate(outcomes)]


def test_best_follows_the_direction() -> None:
    trials = make_trials(("succeeded", 0.3), ("succeeded", 0.1), ("succeeded", 0.2))
    low, high = find_best(LOSS, trials), find_best(AUC, trials)
    assert low is not None
    assert high is not None
    assert (low.name, high.name) == ("t1", "t0")


def test_best_of_equal_trials_is_the_first() -> None:
    best = find_best(LOSS, make_trials(("succeeded", 0.1), ("succeeded", 0.1)))
    assert best is not None
    assert best.name == "t0"


def test_best_may_be_an_early_stopped_or_running_trial() -> None:
    for status in ("early_stopped", "running"):
        best = find_best(LOSS, make_trials(("succeeded", 0.2), (status, 0.1)))
        assert best is not None
        assert best.name == "t1"


def test_search_without_values_has_no_best() -> None:
    assert find_best(LOSS, make_trials(("failed", None), ("metrics_unavailable", None))) is None
    assert find_best(LOSS, []) is None


@pytest.mark.parametrize(
    ("objective", "value", "reached"),
    [
        (Objective("minimize", "loss", goal=0.1), 0.1, True),
        (Objective("minimize", "loss", goal=0.1), 0.09, True),
        (Objective("minimize", "loss", goal=0.1), 0.11, False),
        (Objective("maximize", "auc", goal=0.9), 0.9, True),
        (Objective("maximize", "auc", goal=0.9), 0.91, True),
        (Objective("maximize", "auc", goal=0.9), 0.89, False),
        (Objective("minimize", "loss", goal=0.0), 0.0, True),
        (Objective("minimize", "loss"), -1e9, False),
    ],
)
def test_goal_is_reached_when_it_is_met(objective: Objective, value: float, reached: bool) -> None:
    for status in ("succeeded", "running", "early_stopped"):
        reason = conclude(make_experiment(objective), make_trials((status, value)))
        assert reason == ("ExperimentGoalReached" if reached else None)


@pytest.mark.parametrize(
    ("outcomes", "max_trials", "max_failed_trials", "ended", "reason"),
    [
        # The goal comes before failures, and failures before the number of trials.
        ([("succeeded", 0.0), ("failed", None)], 2, 1, True, "ExperimentGoalReached"),
        ([("succeeded", 0.5), ("failed", None)], 2, 1, True, "ExperimentFailed"),
        ([("succeeded", 0.5), ("metrics_unavailable", None)], 2, 1, True, "ExperimentFailed"),
        ([("succeeded", 0.5), ("failed", None)], 2, 2, True, "ExperimentMaxTrialsReached"),
        # Every kind of end counts as a trial, but not as a failure.
        ([("early_stopped", 0.5), ("killed", None)], 2, 1, False, "ExperimentMaxTrialsReached"),
        # No failure is not a failure, also where none is allowed.
        ([("succeeded", 0.5)], 2, 0, False, None),
        ([("failed", None)], 2, 0, False, "ExperimentFailed"),
        ([("failed", None), ("failed", None)], None, None, False, None),
        # Running trials are waited for.
        ([("succeeded", 0.5), ("running", None)], 2, None, True, None),
        ([("succeeded", 0.5), ("succeeded", 0.4)], None, None, True, "ExperimentSuggestionEndReached"),
        ([("succeeded", 0.5)], None, None, False, None),
        ([], None, None, True, "ExperimentSuggestionEndReached"),
        ([], 1, 1, False, None),
    ],
)
def test_search_ends_for_the_first_of_katibs_reasons(
    outcomes: list[tuple[TrialStatus, float | None]],
    max_trials: int | None,
    max_failed_trials: int | None,
    ended: bool,
    reason: Reason | None,
) -> None:
    experiment = make_experiment(Objective("minimize", "loss", goal=0.1), max_trials, max_failed_trials)
    assert conclude(experiment, make_trials(*outcomes), suggestions_ended=ended) == reason


def test_result_survives_json() -> None:
    trials = (
        Trial(
            "e-0",
            0,
            {"lr": "0.1", "kind": "a"},
            "succeeded",
            (MetricSummary("loss", 0.1, 0.9, 0.2), MetricSummary("auc", 0.5, 0.6, 0.6)),
            0.1,
            1.5,
            log="trials/0/log.txt",
        ),
        Trial("e-1", 1, {"lr": "0.2", "kind": "b"}, "failed", message="exit code 1"),
        Trial("e-2", 2, {"lr": "0.3", "kind": "b"}),
    )
    objective = Objective("minimize", "loss", 0.05, ("auc",), {"loss": "min", "auc": "latest"})
    result = SearchResult("e", "local", objective, trials, "ExperimentMaxTrialsReached", 1, {"optuna": "5.0.0"})
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert SearchResult.from_dict(values) == result
    assert values["best"] == "e-0"
    assert values["schema"] == 1
    assert [result.count(status) for status in ("succeeded", "failed", "running", "killed")] == [1, 1, 1, 0]


def test_result_without_a_best_trial_survives_json() -> None:
    result = SearchResult("e", "katib", AUC, (), "ExperimentFailed")
    values = json.loads(json.dumps(result.to_dict()))
    assert values["best"] is None
    assert SearchResult.from_dict(values) == result
