"""What Katib's suggestion services do: choose each trial's parameters.

Optuna samples for `random`, `tpe`, `multivariate-tpe` and `cmaes`; `grid` and `sobol` need no library but NumPy and
SciPy. An Experiment means the same here as on a cluster, as far as both can say it: what Katib's default services
(hyperopt, Optuna, goptuna) refuse, ignore, or draw in another way is refused with the reason. The values themselves
differ: no two of these libraries draw the same numbers from the same seed. `grid` keeps the order of Katib's service.

Nothing is stored. The same Experiment and the same calls of `ask` and `tell` give the same suggestions, so a search is
taken up again by repeating its recorded calls.

Sources: Katib v0.19 `pkg/suggestion/v1beta1`, goptuna `cmaes/sampler.go` and `sobol/sampler.go`.
"""

import hashlib
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlflywheel.errors import MissingExtraError, UsageError
from mlflywheel.tuning.experiment import Experiment, Parameter

if TYPE_CHECKING:
    import optuna

#: Algorithm to the settings it takes, as Katib's default service for it takes them.
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "cmaes": ("random_state", "restart_strategy", "sigma"),
    "grid": ("random_state",),
    "multivariate-tpe": ("n_ei_candidates", "n_startup_trials", "random_state"),
    "random": ("random_state",),
    "sobol": (),
    "tpe": ("gamma", "n_EI_candidates", "prior_weight", "random_state"),
}
_REFUSED = {
    "bayesianoptimization": ("Katib runs scikit-optimize for it, which has no equal here", "choose multivariate-tpe"),
    "darts": ("it searches network layers, not parameters", "run it with --executor katib"),
    "enas": ("it searches network layers, not parameters", "run it with --executor katib"),
    "hyperband": (
        "it restarts trials with more resources, and its brackets live in Katib's service",
        "choose random with earlyStopping medianstop",
    ),
    "pbt": ("its trials hand checkpoints on over a volume of the cluster", "run it with --executor katib"),
}
_MOST_CELLS = 1_000_000
_MOST_STATE = 2**32 - 1


class Suggestions:
    """Suggests parameters, and learns from what became of them.

    Args:
        experiment: The search.

    Raises:
        UsageError: What `check_algorithm` refuses.
        MissingExtraError: The algorithm needs Optuna, which is not installed.

    >>> from mlflywheel.tuning.experiment import Objective, TrialTemplate
    >>> parameters = (Parameter("k", "int", 1, 2), Parameter("kind", "categorical", values=("a", "b")))
    >>> template = TrialTemplate("c", {}, {})
    >>> experiment = Experiment("e", Objective("minimize", "loss"), "grid", {}, parameters, template)
    >>> suggestions = Suggestions(experiment)
    >>> asked = [suggestions.ask() for _ in range(5)]
    >>> sorted(tuple(values.values()) for values in asked if values)
    [('1', 'a'), ('1', 'b'), ('2', 'a'), ('2', 'b')]
    >>> asked[4] is None
    True
    >>> suggestions.tell(0, 0.25)
    """

    def __init__(self, experiment: Experiment) -> None:
        check_algorithm(experiment)
        self._source = _SOURCES[experiment.algorithm](experiment)
        self._asked = 0
        self._told: set[int] = set()

    def ask(self) -> dict[str, str] | None:
        """Return the next trial's parameters: name to value, as text, in the spec's order.

        Integers are written as integers, doubles with the fewest digits that give the same number, discrete and
        categorical values as the spec has them. None when the algorithm has no more: the grid is exhausted.
        """
        values = self._source.draw(self._asked)
        self._asked += values is not None
        return values

    def tell(self, number: int, objective: float | None, *, early_stopped: bool = False) -> None:
        """Take note of a finished trial.

        A trial that was stopped early counts with its value, as Katib's Optuna and hyperopt services count it; `cmaes`
        leaves it out, as goptuna does. A failed one is left out by all. Neither is suggested again.

        Args:
            number: The trial's number: 0 is the first that was asked for.
            objective: The objective's value; None if it has none, because it failed.
            early_stopped: Whether it was stopped early.

        Raises:
            ValueError: The number was not asked for or is told already, or the value is not finite.
        """
        if not 0 <= number < self._asked or number in self._told:
            raise ValueError(f"trial {number} is not open: {self._asked} were asked for, {len(self._told)} are told")
        if objective is not None and not math.isfinite(objective):
            raise ValueError(f"trial {number}: {objective} is not a finite number")
        self._told.add(number)
        self._source.learn(number, objective, early_stopped)


def check_algorithm(experiment: Experiment) -> None:
    """Refuse an algorithm, a setting or a search space that cannot be sampled here as on a cluster.

    Raises:
        UsageError: With the field, the reason, and what would do.
    """
    name = experiment.algorithm
    if name not in ALGORITHMS:
        reason, fix = _REFUSED.get(name, ("Katib has no such algorithm", "choose one of those"))
        raise UsageError(
            "spec.algorithm.algorithmName", f"{name}: {reason}", f"{', '.join(ALGORITHMS)} are supported here", fix
        )
    _check_settings(experiment)
    for parameter in experiment.parameters:
        _check_parameter(parameter, name)
    if name == "grid":
        _check_grid(experiment)
    if name == "cmaes":
        searched = [p for p in experiment.parameters if p.is_numeric and not _is_single(p)]
        if len(searched) < 2:
            raise UsageError(
                "spec.parameters",
                f"{len(searched)} int or double parameters with more than one value",
                "cmaes needs 2 or more",
                "choose tpe",
            )


def count_cells(experiment: Experiment) -> int:
    """Return how many trials a grid has.

    Raises:
        UsageError: A double has no step, or a distribution is given.
    """
    cells = 1
    for parameter in experiment.parameters:
        _check_parameter(parameter, "grid")
        cells *= _count_values(parameter)
    return cells


# --- what is refused ---


def _check_settings(experiment: Experiment) -> None:
    known = ALGORITHMS[experiment.algorithm]
    for name, text in experiment.settings.items():
        where = f"spec.algorithm.algorithmSettings.{name}"
        if name not in known:
            needed = f"{experiment.algorithm} has {', '.join(known)}" if known else "sobol has no settings"
            raise UsageError(where, "unknown", needed, "remove it, or correct its name")
        if name == "restart_strategy":
            if text != "none":
                raise UsageError(where, text, "Optuna's CMA-ES does not restart", 'write "none", or remove it')
        elif name == "sigma":
            raise UsageError(
                where,
                text,
                "Katib's is a distance in the parameters' own units, Optuna's a share of each range",
                "remove it: unset, both begin with a sixth of the range",
            )
        elif name in ("gamma", "prior_weight"):
            most = 1.0 if name == "gamma" else math.inf
            if not 0 < _read_number(text) < most:
                raise UsageError(
                    where, text, f"a number above 0{' and below 1' if most == 1 else ''} is needed", "correct it"
                )
        else:
            least = 0 if name == "random_state" else 1
            if not text.isdecimal() or not least <= int(text) <= _MOST_STATE:
                raise UsageError(where, text, f"a whole number from {least} to {_MOST_STATE} is needed", "correct it")


def _check_parameter(parameter: Parameter, algorithm: str) -> None:
    where = f"spec.parameters.{parameter.name}.feasibleSpace"
    if not parameter.is_numeric:
        return
    if algorithm == "grid" and parameter.kind == "double" and parameter.step is None:
        raise UsageError(
            f"{where}.step",
            "missing",
            "grid needs a step for every double",
            "add a step, or make it a discrete parameter",
        )
    if parameter.distribution in ("normal", "logNormal"):
        raise UsageError(
            f"{where}.distribution",
            parameter.distribution,
            "Katib draws it past min and max, and Optuna has none like it",
            "write uniform or logUniform",
        )
    if parameter.distribution == "logUniform":
        if algorithm in ("cmaes", "grid", "sobol"):
            raise UsageError(
                f"{where}.distribution",
                parameter.distribution,
                f"Katib's {algorithm} ignores it",
                "write uniform, or choose multivariate-tpe",
            )
        least = 1.0 if parameter.kind == "int" else 0.0
        if _low(parameter) <= 0 or _low(parameter) < least:
            raise UsageError(
                f"{where}.min",
                f"{_low(parameter):g} under logUniform",
                "a number above 0 is needed",
                "raise min, or write uniform",
            )
        if _has_step(parameter):
            raise UsageError(
                f"{where}.step", f"{parameter.step} under logUniform", "Optuna has no steps there", "remove the step"
            )
    elif algorithm in ("random", "tpe") and _has_step(parameter):
        step = Fraction(str(parameter.step))
        ends = Fraction(str(_low(parameter))), Fraction(str(_high(parameter)))
        if any(end % step for end in ends):
            raise UsageError(
                f"{where}.step",
                f"{parameter.step} with min {_low(parameter):g} and max {_high(parameter):g}",
                f"Katib's {algorithm} draws multiples of the step, so both ends must be multiples too",
                "move min and max, or choose multivariate-tpe",
            )


def _check_grid(experiment: Experiment) -> None:
    cells = count_cells(experiment)
    if experiment.max_trials is not None and experiment.max_trials > cells:
        raise UsageError(
            "spec.maxTrialCount",
            str(experiment.max_trials),
            f"Katib refuses more than the grid's {cells} combinations",
            f"write {cells}, or remove it",
        )
    if cells > _MOST_CELLS:
        raise UsageError(
            "spec.parameters", f"a grid of {cells} combinations", f"at most {_MOST_CELLS} are held", "choose random"
        )


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _low(parameter: Parameter) -> float:
    return 0.0 if parameter.low is None else parameter.low


def _high(parameter: Parameter) -> float:
    return 0.0 if parameter.high is None else parameter.high


def _has_step(parameter: Parameter) -> bool:
    """Return whether a step is set that is not the one an int has anyway."""
    return parameter.step is not None and not (parameter.kind == "int" and parameter.step == 1)


def _is_single(parameter: Parameter) -> bool:
    return parameter.low == parameter.high or (parameter.step is not None and _count_steps(parameter) == 0)


def _count_steps(parameter: Parameter) -> int:
    """Return how many whole steps fit between a parameter's ends; in decimals, as the spec writes them."""
    step = Fraction(str(parameter.step or 1))
    return int((Fraction(str(_high(parameter))) - Fraction(str(_low(parameter)))) // step)


# --- sources of suggestions ---


class _Source(ABC):
    """Where suggestions come from; numbers count up from 0, and `draw` is called with each once."""

    @abstractmethod
    def draw(self, number: int) -> dict[str, str] | None: ...

    def learn(self, number: int, objective: float | None, early_stopped: bool) -> None:
        """Take note of a finished trial: nothing, for those that choose without looking."""
        return


class _Grid(_Source):
    """Every combination once, in the order of Katib's service: shuffled by the same generator with the same seed."""

    def __init__(self, experiment: Experiment) -> None:
        from numpy.random import RandomState

        self._names = [parameter.name for parameter in experiment.parameters]
        # Optuna's GridSampler, which Katib's service uses, enumerates by name before it shuffles.
        self._columns = {p.name: _list_values(p) for p in sorted(experiment.parameters, key=lambda p: p.name)}
        self._order = list(range(math.prod(len(values) for values in self._columns.values())))
        RandomState(int(experiment.settings.get("random_state", "0"))).shuffle(self._order)

    def draw(self, number: int) -> dict[str, str] | None:
        if number >= len(self._order):
            return None
        cell = self._order[number]
        chosen = {}
        for name, values in reversed(self._columns.items()):
            cell, index = divmod(cell, len(values))
            chosen[name] = values[index]
        return {name: chosen[name] for name in self._names}


def _list_values(parameter: Parameter) -> list[str]:
    """Return a parameter's values on a grid, as Katib lists them."""
    if not parameter.is_numeric:
        return list(parameter.values)
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return [str(value) for value in range(int(_low(parameter)), int(_high(parameter)) + 1, step)]
    import numpy as np

    low, high, double_step = _low(parameter), _high(parameter), float(parameter.step or 1)
    # Katib's own expression: where rounding carries the last value past max, that value is not in the grid.
    values = np.arange(low, high + double_step, double_step).tolist()
    return [repr(value) for value in (values[:-1] if values[-1] > high else values)]


def _count_values(parameter: Parameter) -> int:
    """Return how many values a parameter has on a grid, without listing what is too long to list."""
    if not parameter.is_numeric:
        return len(parameter.values)
    steps = _count_steps(parameter)
    return steps + 1 if steps > _MOST_CELLS else len(_list_values(parameter))


class _Sobol(_Source):
    """Points of the Sobol sequence, without scrambling and from its second point on, as goptuna begins it."""

    def __init__(self, experiment: Experiment) -> None:
        from scipy.stats.qmc import Sobol

        self._parameters = experiment.parameters
        # goptuna deals the dimensions out by name.
        self._names = sorted(parameter.name for parameter in experiment.parameters)
        self._engine = Sobol(len(self._names), scramble=False)
        self._engine.fast_forward(1)

    def draw(self, number: int) -> dict[str, str] | None:
        point = dict(zip(self._names, self._engine.random(1)[0].tolist(), strict=True))
        return {parameter.name: _place(parameter, point[parameter.name]) for parameter in self._parameters}


def _place(parameter: Parameter, share: float) -> str:
    """Return the value that lies at a share, from 0 to below 1, of a parameter's range; equal parts for equal steps."""
    if not parameter.is_numeric:
        return parameter.values[int(share * len(parameter.values))]
    low, high = _low(parameter), _high(parameter)
    if parameter.step is None and parameter.kind == "double":
        return repr(low + share * (high - low))
    steps = int(share * (_count_steps(parameter) + 1))
    if parameter.kind == "int":
        return str(int(low) + steps * int(parameter.step or 1))
    return repr(min(low + steps * float(parameter.step or 1), high))


class _Study(_Source):
    """An Optuna study in memory."""

    def __init__(self, experiment: Experiment) -> None:
        try:
            import optuna
        except ImportError:
            raise MissingExtraError.of("optuna", "tuning", f"searching with {experiment.algorithm}") from None
        self._optuna = optuna
        self._prunes = experiment.algorithm == "cmaes"
        self._space = {parameter.name: _distribute(parameter) for parameter in experiment.parameters}
        with _quiet():
            sampler = _SAMPLERS[experiment.algorithm](experiment, self._space)
            self._study = optuna.create_study(sampler=sampler, direction=experiment.objective.direction)

    def draw(self, number: int) -> dict[str, str] | None:
        drawn = self._study.ask(fixed_distributions=self._space).params
        return {name: _write(drawn[name]) for name in self._space}

    def learn(self, number: int, objective: float | None, early_stopped: bool) -> None:
        states = self._optuna.trial.TrialState
        if objective is None:
            self._study.tell(number, state=states.FAIL)
        elif early_stopped and self._prunes:
            self._study.tell(number, state=states.PRUNED)
        else:
            self._study.tell(number, objective)


def _write(value: str | int | float) -> str:
    """Return a value as text; a double as Python writes it, and never as a NumPy scalar."""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _distribute(parameter: Parameter) -> "optuna.distributions.BaseDistribution":
    """Return Optuna's distribution for a parameter, as Katib's Optuna service chooses it."""
    from optuna import distributions

    if not parameter.is_numeric:
        return distributions.CategoricalDistribution(parameter.values)
    low, high, is_log = _low(parameter), _high(parameter), parameter.distribution == "logUniform"
    if parameter.kind == "int":
        step = 1 if is_log else int(parameter.step or 1)
        # Optuna warns where the step does not divide the range; what it would do then is done here.
        last = int(low) + (int(high) - int(low)) // step * step
        return distributions.IntDistribution(int(low), last, log=is_log, step=step)
    if is_log or parameter.step is None:
        return distributions.FloatDistribution(low, high, log=is_log)
    last_double = float(Fraction(str(low)) + _count_steps(parameter) * Fraction(str(parameter.step)))
    return distributions.FloatDistribution(low, last_double, step=parameter.step)


def _make_seed(experiment: Experiment) -> int:
    """Return the seed: the setting `random_state`, else a number derived from what is searched, and by what.

    How many trials there are, and where they find their data, has no part in it.
    """
    text = experiment.settings.get("random_state")
    if text is not None:
        return int(text)
    searched = [experiment.name, experiment.algorithm, dict(experiment.settings), *map(asdict, experiment.parameters)]
    return int.from_bytes(hashlib.sha256(json.dumps(searched, sort_keys=True).encode()).digest()[:4], "big")


def _make_random(experiment: Experiment, _: Mapping[str, Any]) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=_make_seed(experiment))


def _make_tpe(experiment: Experiment, _: Mapping[str, Any]) -> "optuna.samplers.BaseSampler":
    """Return the independent TPE, which learns from the first batch of trials on, as Katib's `tpe` does.

    A setting means what it means to hyperopt, which Katib runs. Unset, Optuna's own split of good from bad trials
    stays: with its estimator it found better values than hyperopt's on every objective that was simulated.
    """
    from optuna.samplers import TPESampler

    settings = experiment.settings
    options: dict[str, Any] = {}
    if "gamma" in settings:
        gamma = float(settings["gamma"])
        options["gamma"] = lambda finished: min(math.ceil(gamma * math.sqrt(finished)), 25)
    if "prior_weight" in settings:
        options["prior_weight"] = float(settings["prior_weight"])
    with warnings.catch_warnings():
        # Optuna means to drop these two arguments in its version 6; until then they do what hyperopt's do.
        warnings.filterwarnings("ignore", message="`(gamma|prior_weight)` has been deprecated", category=FutureWarning)
        return TPESampler(
            multivariate=False,
            constant_liar=True,
            n_startup_trials=experiment.parallel_trials,
            n_ei_candidates=int(settings.get("n_EI_candidates", "24")),
            seed=_make_seed(experiment),
            **options,
        )


def _make_multivariate_tpe(experiment: Experiment, _: Mapping[str, Any]) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import TPESampler

    settings = experiment.settings
    return TPESampler(
        multivariate=True,
        constant_liar=True,
        n_startup_trials=int(settings.get("n_startup_trials", "10")),
        n_ei_candidates=int(settings.get("n_ei_candidates", "24")),
        seed=_make_seed(experiment),
    )


def _make_cmaes(experiment: Experiment, space: Mapping[str, Any]) -> "optuna.samplers.BaseSampler":
    """Return CMA-ES over the numbers; categorical and discrete values are drawn at random, as goptuna draws them."""
    # Optuna imports it on first use, where a missing package would fail the first trial.
    if find_spec("cmaes") is None:
        raise MissingExtraError.of("cmaes", "tuning", "searching with cmaes")
    from optuna.samplers import CmaEsSampler

    searched = {p.name: space[p.name] for p in experiment.parameters if p.is_numeric and not space[p.name].single()}

    class FixedSpaceSampler(CmaEsSampler):
        """CMA-ES from the first trial on: the space is known, and need not be read off finished trials."""

        def infer_relative_search_space(
            self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial"
        ) -> "dict[str, optuna.distributions.BaseDistribution]":
            return dict(searched)

    return FixedSpaceSampler(n_startup_trials=0, warn_independent_sampling=False, seed=_make_seed(experiment))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's news of a new study off the terminal."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(level)


_SAMPLERS: Mapping[str, Callable[[Experiment, Mapping[str, Any]], "optuna.samplers.BaseSampler"]] = {
    "cmaes": _make_cmaes,
    "multivariate-tpe": _make_multivariate_tpe,
    "random": _make_random,
    "tpe": _make_tpe,
}
_SOURCES: Mapping[str, Callable[[Experiment], _Source]] = {
    "cmaes": _Study,
    "grid": _Grid,
    "multivariate-tpe": _Study,
    "random": _Study,
    "sobol": _Sobol,
    "tpe": _Study,
}
