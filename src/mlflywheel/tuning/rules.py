"""Rules on the parts of an Experiment: Katib's webhook, its suggestion services, and what fails after both.

Names and types are checked already (`shapes`). Sources, at Katib 0.19.0, which has the same rules as the head of
June 2026: `pkg/webhook/v1beta1/experiment/validator`, `pkg/suggestion/v1beta1/*`, `pkg/earlystopping/v1beta1`,
`pkg/controller.v1beta1/experiment/manifest`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflywheel.tuning.experiment import (
    Collector,
    Distribution,
    EarlyStopping,
    Objective,
    Parameter,
    ParameterKind,
    Strategy,
)
from mlflywheel.tuning.fields import (
    Place,
    is_finite,
    needed_mapping,
    needed_text,
    read_choice,
    read_number,
    read_whole,
    shorten,
)

#: As Katib's default configuration names them.
ALGORITHMS = (
    "bayesianoptimization",
    "cmaes",
    "darts",
    "enas",
    "grid",
    "hyperband",
    "multivariate-tpe",
    "pbt",
    "random",
    "sobol",
    "tpe",
)
_ARCHITECTURE_ALGORITHMS = ("darts", "enas")
_KINDS: tuple[ParameterKind, ...] = ("int", "double", "discrete", "categorical")
_DISTRIBUTIONS: tuple[Distribution, ...] = ("uniform", "logUniform", "normal", "logNormal")
_DIRECTIONS: tuple[Literal["minimize", "maximize"], ...] = ("minimize", "maximize")
_STRATEGIES: tuple[Strategy, ...] = ("min", "max", "latest")
#: What a suggestion service draws from; Katib's others draw uniformly, whatever the spec asks for.
_DRAWN: Mapping[str, tuple[Distribution, ...]] = {
    "random": _DISTRIBUTIONS,
    "tpe": _DISTRIBUTIONS,
    "grid": ("uniform", "logUniform"),
    "multivariate-tpe": ("uniform", "logUniform"),
}
#: These services raise, or never move, where a range is a single point.
_NEEDS_A_RANGE = ("bayesianoptimization", "cmaes", "tpe")

_EXACT_WHOLE = 2**53
_LARGEST_SEED = 2**32 - 1
#: More than any grid has, and still a whole number where a quotient is infinite.
_MOST_POINTS = 1e18
_NAME = re.compile(r"[!-~]+")
_BREAKS_JSON = re.compile(r"[\"\\\x00-\x1f]")


def read_objective(spec: Mapping[str, Any], place: Place) -> Objective:
    """Read `spec.objective`, with the default strategies.

    Args:
        spec: The Experiment's spec.
        place: Where it stands.
    """
    place = place.of("objective")
    values = needed_mapping(spec, "objective", place, "objectiveMetricName and type")
    direction = read_choice(values.get("type"), _DIRECTIONS, place.of("type"))
    metric = needed_text(values, "objectiveMetricName", place)
    goal = values.get("goal")
    if goal is not None and not is_finite(goal):
        raise place.of("goal").error(shorten(goal), "a finite number is needed", "write a number, or remove goal")
    additional: list[str] = []
    for index, name in enumerate(values.get("additionalMetricNames") or ()):
        where = place.of("additionalMetricNames").at(index)
        if not name:
            raise where.error("''", "a metric's name is needed", "write it, or remove the entry")
        if name == metric or name in additional:
            raise where.error(f"{shorten(name)} a second time", "every metric is named once", "remove the entry")
        additional.append(name)
    strategies: dict[str, Strategy] = {}
    for index, entry in enumerate(values.get("metricStrategies") or ()):
        where = place.of("metricStrategies").at(index)
        name = entry.get("name") or ""
        if name not in (metric, *additional):
            raise where.of("name").unknown("metric", name, (metric, *additional))
        if name in strategies:
            raise where.of("name").error(f"{shorten(name)} a second time", "a metric has one strategy", "remove it")
        strategies[name] = read_choice(entry.get("value"), _STRATEGIES, where.of("value"))
    default: Strategy = "min" if direction == "minimize" else "max"
    return Objective(
        direction,
        metric,
        None if goal is None else float(goal),
        tuple(additional),
        {name: strategies.get(name, default) for name in (metric, *additional)},
    )


def read_counts(spec: Mapping[str, Any], place: Place) -> tuple[int, int | None, int | None]:
    """Read the counts of parallel, all and failed trials."""
    parallel, most, failed = (spec.get(name) for name in ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount"))
    counts = (("maxTrialCount", most, 1), ("maxFailedTrialCount", failed, 0), ("parallelTrialCount", parallel, 1))
    for name, count, least in counts:
        if count is not None and count < least:
            raise place.of(name).error(str(count), f"at least {least} is needed", f"write {least} or more")
        if count is not None and most is not None and count > most:
            fix = f"write {most} or less, or raise maxTrialCount"
            raise place.of(name).error(str(count), f"maxTrialCount is {most}, and no more than that will run", fix)
    parallel = 3 if parallel is None else parallel
    if most is not None and parallel > most:
        raise place.of("parallelTrialCount").error(
            "nothing, which means 3", f"maxTrialCount is {most}", f"write parallelTrialCount: {most}"
        )
    return parallel, most, failed


def read_parameters(spec: Mapping[str, Any], place: Place) -> tuple[Parameter, ...]:
    """Read `spec.parameters`."""
    place = place.of("parameters")
    entries = spec.get("parameters") or ()
    if not entries:
        raise place.error("nothing", "at least one parameter is needed", "write the parameters to search")
    parameters: dict[str, Parameter] = {}
    for index, entry in enumerate(entries):
        where = place.at(index)
        name = needed_text(entry, "name", where)
        if not _NAME.fullmatch(name):
            needed = "a name of ASCII characters without spaces is needed"
            raise where.of("name").error(shorten(name), needed, "rename the parameter")
        if name in parameters:
            raise where.of("name").error(f"{shorten(name)} a second time", "names are unique", "rename one of them")
        kind = read_choice(entry.get("parameterType"), _KINDS, where.of("parameterType"))
        space = entry.get("feasibleSpace") or {}
        parameters[name] = _read_space(name, kind, space, where.of("feasibleSpace"))
    return tuple(parameters.values())


def _read_space(name: str, kind: ParameterKind, space: Mapping[str, Any], place: Place) -> Parameter:
    distribution = read_choice(space.get("distribution") or "uniform", _DISTRIBUTIONS, place.of("distribution"))
    if kind in ("int", "double"):
        return _read_range(name, kind, space, distribution, place)
    for field in ("min", "max", "step"):
        if space.get(field):
            needed = f"a {kind} parameter has a list"
            raise place.of(field).error(shorten(space[field]), needed, f"remove {field}, or use int or double")
    if distribution != "uniform":
        needed = f"Katib draws a {kind} parameter uniformly, whatever the distribution"
        raise place.of("distribution").error(shorten(distribution), needed, "remove distribution")
    values = space.get("list") or []
    if not values:
        raise place.of("list").error("nothing", "at least one value is needed", "write the values as a list of text")
    seen: set[object] = set()
    for index, value in enumerate(values):
        where = place.of("list").at(index)
        if kind == "discrete" and read_number(value) is None:
            raise where.error(shorten(value), "a finite number is needed", "mend it, or use parameterType: categorical")
        if not value:
            raise where.error("''", "a value that is not empty is needed", "write a value, or remove the entry")
        if _BREAKS_JSON.search(value) or "${" in value:
            needed = "Katib pastes values into the template's JSON, which \", \\, ${ and control characters break"
            raise where.error(shorten(value), needed, "use another value, and translate it in the trial")
        key = read_number(value) if kind == "discrete" else value
        if key in seen:
            raise where.error(f"{shorten(value)} a second time", "every value stands once", "remove the entry")
        seen.add(key)
    return Parameter(name, kind, values=tuple(values))


def _read_range(
    name: str, kind: ParameterKind, space: Mapping[str, Any], distribution: Distribution, place: Place
) -> Parameter:
    if space.get("list"):
        raise place.of("list").error("a list", f"an {kind} parameter has min and max", "remove list")
    read, noun = (read_whole, "a whole number") if kind == "int" else (read_number, "a finite number")
    ends: list[float] = []
    for field in ("min", "max", *(["step"] if space.get("step") else [])):
        text = space.get(field)
        if not text:
            raise place.of(field).error("nothing", f"{noun} as text is needed", f"write {field}")
        value = read(text)
        if value is None:
            raise place.of(field).error(shorten(text), f"{noun} is needed", f'write it as text, such as {field}: "1"')
        if kind == "int" and abs(value) > _EXACT_WHOLE:
            raise place.of(field).error(shorten(text), "at most 2^53 is needed", "use a smaller number")
        ends.append(value)
    low, high = ends[:2]
    step = ends[2] if len(ends) == 3 else None
    if high < low:
        raise place.of("max").error(shorten(space["max"]), f"min is {low:g}, and max is the larger one", "swap the two")
    if not math.isfinite(high - low):
        raise place.of("max").error(shorten(space["max"]), "a range that a float can hold is needed", "make it smaller")
    if step is not None and step <= 0:
        raise place.of("step").error(shorten(space["step"]), "a step above 0 is needed", "write a positive step")
    if step is not None and high > low and step > high - low:
        needed = f"the range is {high - low:g} wide"
        raise place.of("step").error(shorten(space["step"]), needed, "write a smaller step, or remove it")
    if distribution in ("logUniform", "logNormal") and low <= 0:
        needed = f"{distribution} needs a min above 0, as it has a logarithm"
        raise place.of("min").error(shorten(space["min"]), needed, "raise min, or use distribution: uniform")
    if distribution in ("normal", "logNormal") and low == high:
        needed = f"{distribution} needs a max above min, as its width is its deviation"
        raise place.of("max").error(shorten(space["max"]), needed, "raise max, or use distribution: uniform")
    return Parameter(name, kind, low, high, step, (), distribution)


@dataclass(frozen=True)
class _Setting:
    """What an algorithm's setting may be."""

    needed: str
    holds: Callable[[str], bool]
    required: bool = False


def _whole_from(least: int, most: int = 2**31 - 1) -> _Setting:
    def holds(text: str) -> bool:
        value = read_whole(text)
        return value is not None and least <= value <= most

    return _Setting(f"a whole number from {least} to {most}", holds)


def _number_where(needed: str, holds: Callable[[float], bool], *, required: bool = False) -> _Setting:
    def check(text: str) -> bool:
        value = read_number(text)
        return value is not None and holds(value)

    return _Setting(needed, check, required)


def _choice(*choices: str) -> _Setting:
    return _Setting(f"one of {', '.join(choices)}", lambda text: text in choices)


_SEED = _whole_from(0, _LARGEST_SEED)
_SETTINGS: Mapping[str, Mapping[str, _Setting]] = {
    "random": {"random_state": _SEED},
    "grid": {"random_state": _SEED},
    "sobol": {},
    "tpe": {
        "gamma": _number_where("a number between 0 and 1", lambda value: 0 < value < 1),
        "prior_weight": _number_where("a number above 0", lambda value: value > 0),
        "n_EI_candidates": _whole_from(1),
        "random_state": _SEED,
    },
    "multivariate-tpe": {"n_startup_trials": _whole_from(0), "n_ei_candidates": _whole_from(1), "random_state": _SEED},
    "cmaes": {
        "random_state": _SEED,
        "sigma": _number_where("a number above 0", lambda value: value > 0),
        "restart_strategy": _choice("none", "ipop", "bipop"),
    },
    "hyperband": {
        "r_l": _number_where("a number of at least 1", lambda value: value >= 1, required=True),
        "resource_name": _Setting("a parameter's name", bool, required=True),
        "eta": _number_where("a number of at least 2", lambda value: value >= 2),
    },
    "bayesianoptimization": {
        "base_estimator": _choice("GP", "RF", "ET", "GBRT"),
        "n_initial_points": _whole_from(0),
        "acq_func": _choice("gp_hedge", "LCB", "EI", "PI"),
        "acq_optimizer": _choice("auto", "sampling", "lbfgs"),
        "random_state": _SEED,
    },
    "pbt": {
        "suggestion_trial_dir": _Setting("a folder", bool, required=True),
        "n_population": _Setting("a whole number of at least 5", _whole_from(5).holds, required=True),
        "truncation_threshold": _number_where("a number from 0 to 1", lambda value: 0 <= value <= 1, required=True),
    },
    "medianstop": {"min_trials_required": _whole_from(1), "start_step": _whole_from(1)},
}
#: Values that Katib's own check lets pass, or asks for, and that its service then fails on.
_BROKEN_SETTINGS: Mapping[tuple[str, str], str] = {
    ("bayesianoptimization", "acq_func=EIps"): "it needs the seconds of every trial, which Katib does not hand over",
    ("bayesianoptimization", "acq_func=PIps"): "it needs the seconds of every trial, which Katib does not hand over",
    ("pbt", "resample_probability"): "Katib compares it with numbers as text, which fails for every value",
}


def read_algorithm(
    spec: Mapping[str, Any],
    parameters: Sequence[Parameter],
    parallel_trials: int,
    max_trials: int | None,
    place: Place,
) -> tuple[str, dict[str, str]]:
    """Read `spec.algorithm`, and check that it can search these parameters.

    Args:
        spec: The Experiment's spec.
        parameters: What is searched.
        parallel_trials: How many trials run at once.
        max_trials: How many trials there are, None for no limit.
        place: Where the spec stands.

    Returns:
        The algorithm's name and its settings.
    """
    values = needed_mapping(spec, "algorithm", place.of("algorithm"), "algorithmName")
    where = place.of("algorithm")
    name = needed_text(values, "algorithmName", where)
    if name not in ALGORITHMS:
        raise where.of("algorithmName").unknown("algorithm", name, ALGORITHMS)
    if name in _ARCHITECTURE_ALGORITHMS:
        raise where.of("algorithmName").error(
            name, "neural architecture search is not read", "use another algorithm, or hand the file to Katib itself"
        )
    settings = _read_settings(name, values, where)
    for index, parameter in enumerate(parameters):
        _check_parameter(name, parameter, place.of("parameters").at(index).of("feasibleSpace"))
    if name == "grid":
        _check_grid(parameters, max_trials, place)
    elif name == "cmaes" and sum(parameter.is_numeric for parameter in parameters) < 2:
        raise place.of("parameters").error(
            "fewer than two int or double parameters", "cmaes needs two", "add one, or use another algorithm"
        )
    elif name == "hyperband":
        _check_hyperband(settings, parameters, parallel_trials, place)
    elif name == "bayesianoptimization":
        estimator = settings.get("base_estimator", "GP")
        if settings.get("acq_optimizer") == "lbfgs" and estimator != "GP":
            raise _setting_place(values, "acq_optimizer", where).error(
                "'lbfgs'", f"it needs gradients, which base_estimator {estimator} has not", "write sampling"
            )
    return name, settings


def read_early_stopping(spec: Mapping[str, Any], collector: Collector, place: Place) -> EarlyStopping | None:
    """Read `spec.earlyStopping`."""
    values = spec.get("earlyStopping")
    if values is None:
        return None
    place = place.of("earlyStopping")
    name = needed_text(values, "algorithmName", place)
    if name != "medianstop":
        raise place.of("algorithmName").unknown("algorithm", name, ("medianstop",))
    if collector.kind not in ("StdOut", "File"):
        needed = "Katib stops trials early where its collector reads lines, which is StdOut and File"
        raise place.error(f"metricsCollectorSpec of kind {collector.kind}", needed, "remove earlyStopping")
    return EarlyStopping(name, _read_settings(name, values, place))


def _read_settings(algorithm: str, values: Mapping[str, Any], place: Place) -> dict[str, str]:
    known = _SETTINGS[algorithm]
    settings: dict[str, str] = {}
    for index, entry in enumerate(values.get("algorithmSettings") or ()):
        where = place.of("algorithmSettings").at(index)
        name, value = needed_text(entry, "name", where), entry.get("value") or ""
        broken = _BROKEN_SETTINGS.get((algorithm, name)) or _BROKEN_SETTINGS.get((algorithm, f"{name}={value}"))
        if broken:
            raise where.error(f"{name}: {shorten(value)}", broken, f"remove {name}")
        if name not in known:
            raise where.of("name").unknown(f"setting of {algorithm}", name, known, fix=f"remove {shorten(name)}")
        if name in settings:
            raise where.of("name").error(f"{name} a second time", "every setting stands once", "remove the entry")
        if not known[name].holds(value):
            needed = f"{known[name].needed} is needed for {name}"
            raise where.of("value").error(shorten(value), needed, f"write such a value, or remove {name}")
        settings[name] = value
    for name, setting in known.items():
        if setting.required and name not in settings:
            raise place.of("algorithmSettings").error(
                f"no setting {name}", f"{algorithm} needs {setting.needed} for it", f"add {name}"
            )
    return settings


def _setting_place(values: Mapping[str, Any], name: str, place: Place) -> Place:
    names = [entry.get("name") for entry in values.get("algorithmSettings") or ()]
    return place.of("algorithmSettings").at(names.index(name)).of("value")


def _check_parameter(algorithm: str, parameter: Parameter, place: Place) -> None:
    drawn = _DRAWN.get(algorithm, ("uniform",))
    if parameter.distribution not in drawn:
        raise place.of("distribution").error(
            shorten(parameter.distribution),
            f"Katib's {algorithm} draws {' or '.join(drawn)}",
            "write one of these, or use algorithm random or tpe",
        )
    if parameter.low is not None and parameter.low == parameter.high and algorithm in _NEEDS_A_RANGE:
        raise place.of("max").error(
            f"{parameter.low:g}, which is min",
            f"{algorithm} needs a max above min",
            "raise max, or write the value into trialSpec and remove the parameter",
        )
    if algorithm == "bayesianoptimization" and parameter.kind == "double" and parameter.low is not None:
        if parameter.low <= 0:
            needed = f"Katib's {algorithm} draws every double by its logarithm"
            raise place.of("min").error(f"{parameter.low:g}", needed, "write a min above 0, or use another algorithm")
    elif algorithm in ("grid", "pbt") and parameter.kind == "double" and parameter.step is None:
        raise place.of("step").error("nothing", f"{algorithm} needs the step of a double", "write step")
    elif algorithm == "hyperband" and parameter.kind == "discrete":
        for index, value in enumerate(parameter.values):
            if read_whole(value) is None:
                needed = "Katib's hyperband reads discrete values as whole numbers"
                raise place.of("list").at(index).error(shorten(value), needed, "use parameterType: categorical")


def _check_grid(parameters: Sequence[Parameter], max_trials: int | None, place: Place) -> None:
    points = math.prod(count_grid_points(parameter) for parameter in parameters)
    if max_trials is not None and max_trials > points:
        raise place.of("maxTrialCount").error(
            str(max_trials), f"the grid has {points} points, and Katib asks for no more", f"write {points} or less"
        )


def count_grid_points(parameter: Parameter) -> int:
    """Return how many values Katib's grid search has for a parameter; a double has a step.

    >>> count_grid_points(Parameter("rate", "double", 0.01, 0.05, 0.01))
    5
    """
    if parameter.low is None or parameter.high is None:
        return len(parameter.values)
    if parameter.kind == "int":
        return int((parameter.high - parameter.low) // (parameter.step or 1)) + 1
    # numpy.arange(min, max + step, step) less a last point above max, which is what Katib does, with its rounding.
    step = parameter.step or 1.0
    count = max(1, math.ceil(min((parameter.high + step - parameter.low) / step, _MOST_POINTS)))
    spacing = (parameter.low + step) - parameter.low
    return count - (count > 1 and parameter.low + (count - 1) * spacing > parameter.high)


def _check_hyperband(
    settings: Mapping[str, str], parameters: Sequence[Parameter], parallel_trials: int, place: Place
) -> None:
    names = [parameter.name for parameter in parameters]
    if settings["resource_name"] not in names:
        where = place.of("algorithm").of("algorithmSettings")
        raise where.unknown("parameter in setting resource_name", settings["resource_name"], names)
    # As Katib computes it, with the rounding of its logarithms.
    eta = int(float(settings.get("eta", "3")))
    rungs = int(math.log(float(settings["r_l"])) / math.log(eta))
    needed = eta**rungs
    if parallel_trials < needed:
        raise place.of("parallelTrialCount").error(
            str(parallel_trials), f"hyperband with these settings starts {needed} trials at once", f"write {needed}"
        )
