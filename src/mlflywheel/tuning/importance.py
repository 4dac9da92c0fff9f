"""Which parameters a search's objective followed, as an estimate from its own trials.

fANOVA (Hutter, Hoos, Leyton-Brown: An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014) as Optuna
implements it, with three changes around it:

- Optuna's fANOVA averages over the parameters' own scale, so most of a log parameter's range is its top decade. Such a
  parameter is handed over as its logarithm.
- One value far from all others would be all the variance there is. Values are pulled in to a fence around the middle.
- The shares add up to 1 even where nothing matters. So there are none unless a forest predicts trials that it has not
  seen better than their mean does.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

from mlflywheel.tuning.experiment import Parameter
from mlflywheel.tuning.search import SearchResult, Trial

FEWEST_TRIALS = 12
"""With fewer, one planted parameter among four did not reliably come first."""

_MOST_TRIALS = 300
_SEED = 0
_TREES = 64
_CHECK_TREES = 100


def select_trials(result: SearchResult, parameters: Sequence[Parameter]) -> tuple[Trial, ...]:
    """Return the trials that importance rests on.

    These are succeeded trials with a finite objective and a readable value of every parameter. A trial that was
    stopped early is left out: its value is one of less work. Of more than 300 trials, 300 at even distances are taken,
    as the time grows with their square.
    """
    kept = [
        trial
        for trial in result.trials
        if trial.status == "succeeded"
        and trial.objective is not None
        and math.isfinite(trial.objective)
        and all(_read(parameter, trial.parameters) is not None for parameter in parameters)
    ]
    if len(kept) > _MOST_TRIALS:
        kept = [kept[index * len(kept) // _MOST_TRIALS] for index in range(_MOST_TRIALS)]
    return tuple(kept)


def estimate_importance(result: SearchResult, parameters: Sequence[Parameter]) -> dict[str, float] | None:
    """Estimate how much of the objective's variation each parameter accounts for.

    Only effects of single parameters are counted. The estimate is for the region that the search looked at, and it is
    the same for the same trials.

    Args:
        result: The search.
        parameters: Its search space.

    Returns:
        Share of each parameter, adding up to 1, the largest first; a parameter that never varied has 0. None where
        no estimate can be given: optuna is not installed, there are fewer than `FEWEST_TRIALS` trials, the objective or
        all but one of the parameters never varied, or the parameters do not predict the objective.
    """
    trials = select_trials(result, parameters)
    values = _fence([trial.objective for trial in trials if trial.objective is not None])
    columns = {
        parameter.name: [_read(parameter, trial.parameters) for trial in trials]
        for parameter in parameters
        if len({_read(parameter, trial.parameters) for trial in trials}) > 1
    }
    if len(trials) < FEWEST_TRIALS or len(columns) < 2 or max(values) == min(values):
        return None
    try:
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    except ImportError:
        return None
    if not _predicts(columns, values):
        return None
    study = _make_study(columns, values)
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED))
    total = sum(found.values())
    if not (math.isfinite(total) and total > 0):
        return None
    shares = {name: float(share / total) for name, share in found.items()}
    return {**shares, **{parameter.name: 0.0 for parameter in parameters if parameter.name not in shares}}


def _read(parameter: Parameter, assignments: Mapping[str, str]) -> float | str | None:
    """Return a trial's value on the scale that its differences are judged on; None if it has no readable one."""
    written = assignments.get(parameter.name)
    if written is None or parameter.kind == "categorical":
        return written
    if parameter.kind == "discrete" and not all(_is_finite(value) for value in parameter.values):
        return written
    if not _is_finite(written):
        return None
    value = float(written)
    if parameter.distribution in ("logUniform", "logNormal"):
        return math.log(value) if value > 0 else None
    return value


def _is_finite(written: str) -> bool:
    try:
        return math.isfinite(float(written))
    except ValueError:
        return False


def _fence(values: Sequence[float]) -> list[float]:
    """Pull values that lie further from the middle 80 % than that is wide to that distance.

    Of normally distributed values that is one in 8,000.
    """
    if len(values) < FEWEST_TRIALS:
        return list(values)
    deciles = quantiles(values, n=10, method="inclusive")
    reach = deciles[-1] - deciles[0]
    if reach == 0:
        return list(values)
    return [min(max(value, deciles[0] - reach), deciles[-1] + reach) for value in values]


def _predicts(columns: Mapping[str, Sequence[Any]], values: Sequence[float]) -> bool:
    """Say whether a forest predicts the trials that each of its trees has not seen better than their mean does."""
    from sklearn.ensemble import RandomForestRegressor

    encoded: list[list[float]] = []
    for column in columns.values():
        if isinstance(column[0], str):
            encoded += [[float(value == category) for value in column] for category in sorted(set(column))]
        else:
            encoded.append([float(value) for value in column])
    forest = RandomForestRegressor(_CHECK_TREES, oob_score=True, random_state=_SEED)
    forest.fit([list(row) for row in zip(*encoded, strict=True)], list(values))
    return bool(forest.oob_score_ > 0)


def _make_study(columns: Mapping[str, Sequence[Any]], values: Sequence[float]) -> Any:
    """Write trials into a study in memory, as Optuna's evaluators need one."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    # The ends are those of the trials, not of the search space: a forest knows nothing of values beyond them.
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted(set(column)))
        if isinstance(column[0], str)
        else FloatDistribution(min(column), max(column))
        for name, column in columns.items()
    }
    # Optuna reports every new study on standard error.
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    for index, value in enumerate(values):
        params = {name: column[index] for name, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return study
