"""Importance is judged on planted objectives, where it is known which parameter matters."""

import itertools
import math
import random
import sys
from collections.abc import Callable

import pytest

from mlflywheel.tuning.experiment import Objective, Parameter
from mlflywheel.tuning.importance import FEWEST_TRIALS, estimate_importance, select_trials
from mlflywheel.tuning.search import SearchResult, Trial, TrialStatus

SPACE = (
    Parameter("rate", "double", 1e-4, 1e-1, distribution="logUniform"),
    Parameter("depth", "int", 2, 12),
    Parameter("kind", "categorical", values=("a", "b", "c")),
    Parameter("width", "discrete", values=("16", "32", "64")),
)
Assignments = dict[str, str]


def plant(count: int, objective: Callable[[Assignments], float], seed: int = 0, noise: float = 0.05) -> SearchResult:
    rng = random.Random(seed)
    trials = []
    for number in range(count):
        values = {
            "rate": repr(10 ** rng.uniform(-4, -1)),
            "depth": str(rng.randint(2, 12)),
            "kind": rng.choice("abc"),
            "width": rng.choice(["16", "32", "64"]),
        }
        value = objective(values) + rng.gauss(0, noise)
        trials.append(Trial(f"t{number}", number, values, "succeeded", objective=value))
    return SearchResult("e", "local", Objective("minimize", "loss"), tuple(trials), "ExperimentMaxTrialsReached")


def by_rate(values: Assignments) -> float:
    return (math.log10(float(values["rate"])) + 2.5) ** 2


def by_kind(values: Assignments) -> float:
    return {"a": 1.0, "b": 0.0, "c": 2.0}[values["kind"]]


def by_width(values: Assignments) -> float:
    return math.log2(float(values["width"]))


@pytest.mark.parametrize(("name", "objective"), [("rate", by_rate), ("kind", by_kind), ("width", by_width)])
@pytest.mark.parametrize(("count", "least"), [(20, 0.5), (50, 0.8)])
def test_planted_parameter_takes_most_of_the_shares(
    name: str, objective: Callable[[Assignments], float], count: int, least: float
) -> None:
    for seed in (1, 2):
        shares = estimate_importance(plant(count, objective, seed), SPACE)
        assert shares is not None
        assert next(iter(shares)) == name
        assert shares[name] > least
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert set(shares) == {"rate", "depth", "kind", "width"}
        assert sum(shares.values()) == pytest.approx(1)


def test_same_trials_have_the_same_importance() -> None:
    result = plant(20, by_rate)
    assert estimate_importance(result, SPACE) == estimate_importance(result, SPACE)


def test_noise_has_no_importance() -> None:
    found = [estimate_importance(plant(20, lambda values: 0.0, seed, noise=1.0), SPACE) for seed in range(6)]
    assert found.count(None) >= 5


def test_too_few_trials_and_a_constant_objective_have_no_importance() -> None:
    assert estimate_importance(plant(FEWEST_TRIALS - 1, by_kind), SPACE) is None
    assert estimate_importance(plant(20, lambda values: 0.5, noise=0.0), SPACE) is None
    assert estimate_importance(plant(20, by_kind), SPACE[2:3]) is None
    assert estimate_importance(plant(0, by_kind), SPACE) is None


def test_one_exploded_trial_does_not_take_over() -> None:
    result = plant(30, by_kind, seed=3)
    first = result.trials[0]
    exploded = Trial(first.name, first.number, first.parameters, "succeeded", objective=1e9)
    result = SearchResult("e", "local", result.objective, (exploded, *result.trials[1:]), result.reason)
    shares = estimate_importance(result, SPACE)
    assert shares is not None
    assert next(iter(shares)) == "kind"


def test_parameter_that_never_varied_has_no_share() -> None:
    result = plant(20, by_kind)
    fixed = tuple(
        Trial(t.name, t.number, {**t.parameters, "depth": "3"}, "succeeded", objective=t.objective)
        for t in result.trials
    )
    shares = estimate_importance(SearchResult("e", "local", result.objective, fixed, result.reason), SPACE)
    assert shares is not None
    assert shares["depth"] == 0


@pytest.mark.parametrize("status", ["failed", "early_stopped", "running"])
def test_only_succeeded_trials_with_a_value_count(status: TrialStatus) -> None:
    values = {"rate": "0.01", "depth": "3", "kind": "a", "width": "16"}
    trials = (
        Trial("kept", 0, values, "succeeded", objective=1.0),
        Trial("ended otherwise", 1, values, status, objective=1.0),
        Trial("not finite", 2, values, "succeeded", objective=math.inf),
        Trial("no value", 3, values, "succeeded"),
        Trial("unreadable", 4, {**values, "depth": "many"}, "succeeded", objective=1.0),
        Trial("no logarithm", 5, {**values, "rate": "0"}, "succeeded", objective=1.0),
    )
    result = SearchResult("e", "local", Objective("minimize", "loss"), trials, "ExperimentMaxTrialsReached")
    assert [trial.name for trial in select_trials(result, SPACE)] == ["kept"]


def test_long_searches_are_thinned_evenly() -> None:
    numbers = [trial.number for trial in select_trials(plant(700, by_kind), SPACE)]
    assert len(numbers) == 300
    assert numbers[0] == 0
    assert numbers[-1] > 695
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 3


def test_without_optuna_there_is_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    result = plant(20, by_kind)
    assert estimate_importance(result, SPACE) is not None
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert estimate_importance(result, SPACE) is None


def test_nothing_is_written_while_estimating(capfd: pytest.CaptureFixture[str]) -> None:
    estimate_importance(plant(20, by_kind), SPACE)
    assert capfd.readouterr() == ("", "")
