"""A search as parts of a report: how it ended, its best trial, all trials, and pictures of them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlflywheel.models.contract import Evaluation, Section
from mlflywheel.reports import Report, render_report
from mlflywheel.reports.formats import format_number, format_pair, format_share, is_number, plural
from mlflywheel.tuning.confirmation import Confirmation
from mlflywheel.tuning.experiment import Objective, Parameter
from mlflywheel.tuning.importance import FEWEST_TRIALS, estimate_importance, select_trials
from mlflywheel.tuning.search import SearchResult, Trial, TrialStatus, find_best

GIVEN = "the given parameters, measured on the same validation part"

_STATUS_WORDS: dict[TrialStatus, str] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "early_stopped": "stopped early",
    "metrics_unavailable": "without the metric",
    "killed": "killed",
    "running": "running",
}
# Any other status counts as failed, or is not over yet.
_MARKS: tuple[tuple[str, tuple[TrialStatus, ...], str, str], ...] = (
    ("Succeeded", ("succeeded",), "dot", "quiet"),
    ("Stopped early", ("early_stopped",), "triangle", "warn"),
    ("Running", ("running",), "square", "quiet"),
    ("Failed, killed or without the metric", ("failed", "metrics_unavailable", "killed"), "cross", "bad"),
)
_PARAMETERS_DRAWN = 11
_LINES_DRAWN = 400
_MESSAGE_LENGTH = 300


def build_search_sections(
    result: SearchResult,
    experiment_parameters: Sequence[Parameter],
    baseline: float | None = None,
    confirmation: Confirmation | None = None,
) -> tuple[Section, ...]:
    """Show a search.

    Args:
        result: What it found.
        experiment_parameters: Its search space; parameters that only trials have are shown after these.
        baseline: The objective of the given parameters on the rows that the trials were judged by, None if it was
            not measured.
        confirmation: What came of fitting both again, None if that was not asked.

    Returns:
        How it ended, the best trial's parameters, the history, parallel coordinates, importance, and the table of
        trials; a picture that would show fewer than two trials is left out.
    """
    baseline = baseline if is_number(baseline) else None
    parameters = _complete(result, experiment_parameters)
    best = _find_best(result)
    valued = [trial for trial in result.trials if is_number(trial.objective)]
    shares = estimate_importance(result, experiment_parameters)
    sections = [_tell(result, best, baseline, confirmation)]
    if best is not None and parameters:
        sections.append(_list_best(best, parameters))
    if len(result.trials) > 1:
        sections.append(_draw_history(result, best, baseline))
    if len(valued) > 1 and parameters:
        sections.append(_draw_parallel(result, best, parameters, shares))
        sections.append(_draw_importance(result, experiment_parameters, shares))
    if result.trials:
        sections.append(_list_trials(result, best, parameters))
    return tuple(sections)


def render_search(
    result: SearchResult,
    parameters: Sequence[Parameter],
    baseline: float | None = None,
    confirmation: Confirmation | None = None,
    title: str = "Search for parameters",
) -> str:
    """Render a search as a page of its own.

    Args:
        result: What it found.
        parameters: Its search space.
        baseline: As in `build_search_sections`.
        confirmation: As there.
        title: Heading of the page.

    Returns:
        The document, to be written as UTF-8.
    """
    failed = result.reason == "ExperimentFailed" or _find_best(result) is None
    summary: dict[str, Any] = {
        "status": "failed" if failed else "succeeded",
        "pipeline": result.experiment,
        "error": _describe_failure(result) if failed else None,
        "executor": result.executor,
        "objective": f"{result.objective.direction} {result.objective.metric}",
        "reason": result.reason,
        **({"facts": dict(result.facts)} if result.facts else {}),
    }
    sections = build_search_sections(result, parameters, baseline, confirmation)
    return render_report(Report(title, summary, Evaluation((), sections)))


def _complete(result: SearchResult, parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    known = {parameter.name for parameter in parameters}
    others = dict.fromkeys(name for trial in result.trials for name in trial.parameters if name not in known)
    return (*parameters, *(Parameter(name, "categorical") for name in others))


def _find_best(result: SearchResult) -> Trial | None:
    return find_best(result.objective, [trial for trial in result.trials if is_number(trial.objective)])


def _describe_failure(result: SearchResult) -> dict[str, str]:
    counts = _count(result)
    if result.reason == "ExperimentFailed":
        return {
            "where": result.experiment,
            "seen": f"too many trials failed ({counts})",
            "needed": "at most as many as maxFailedTrialCount allows",
            "fix": "read the messages of the failed trials below",
        }
    return {
        "where": result.experiment,
        "seen": f"no trial has a value of {result.objective.metric} ({counts})",
        "needed": "at least one value",
        "fix": "read the messages of the trials below",
    }


def _name(trial: Trial) -> str:
    return f"Trial {trial.number}"


def _count(result: SearchResult) -> str:
    parts = [f"{result.count(status):,} {words}" for status, words in _STATUS_WORDS.items() if result.count(status)]
    return f"{plural(len(result.trials), 'trial')}: {', '.join(parts)}" if parts else "no trials"


def _tell(
    result: SearchResult, best: Trial | None, baseline: float | None, confirmation: Confirmation | None
) -> Section:
    objective = result.objective
    counts = f"{_count(result)}."
    if result.resumed:
        counts += f" {result.resumed:,} of them had been finished by an earlier call and were taken over."
    paragraphs = [_tell_end(result, best), counts]
    failures = [trial for trial in result.trials if trial.status in ("failed", "metrics_unavailable") and trial.message]
    if failures:
        paragraphs.append(f"{_name(failures[0])} failed first: {_cut(failures[0].message)}")
    if best is not None and best.objective is not None:
        paragraphs.append(_tell_best(objective, best, baseline))
    valued = sum(is_number(trial.objective) for trial in result.trials)
    if valued > 1:
        paragraphs.append(
            f"The best value is the luckiest of {valued:,}: part of it is chance, so it is better than the same "
            "parameters will be on other rows. Judge them by values from rows that the search never saw, as the final "
            "numbers of a run's report are."
        )
    if confirmation is not None:
        paragraphs.append(_tell_confirmation(confirmation))
    direction = "largest" if objective.direction == "maximize" else "smallest"
    text = f"A search for the {direction} {objective.metric}, run by the executor {result.executor}."
    return Section("text", "The search", text, {"paragraphs": paragraphs})


def _tell_confirmation(confirmation: Confirmation) -> str:
    count = len(confirmation.differences)
    if confirmation.failure:
        return f"They are not used: they could not be fitted again on other rows ({confirmation.failure})."
    if confirmation.mean is None or confirmation.p_value is None:
        return "They are not used: nothing was measured on other rows."
    direction = "better" if confirmation.mean >= 0 else "worse"
    words = (
        f"Fitted again on {count} splits of rows that did not choose them, they are {direction} by "
        f"{format_number(abs(confirmation.mean))} on average (one-sided p = {confirmation.p_value:.2g}, by a t-test "
        "that is corrected for rows that repeat)"
    )
    if confirmation.confirmed:
        return f"{words}, so the model is trained with them."
    return f"{words}. That can be chance, so the given parameters are kept."


def _tell_end(result: SearchResult, best: Trial | None) -> str:
    objective = result.objective
    if result.reason == "ExperimentGoalReached":
        if best is None or best.objective is None or objective.goal is None:
            return "The search ended when the goal was reached."
        value, goal = format_pair(best.objective, objective.goal)
        relation = "at least" if objective.direction == "maximize" else "at most"
        return (
            f"The search ended when the goal was reached: {objective.metric} {value}, {relation} {goal} was asked for."
        )
    if result.reason == "ExperimentFailed":
        return "The search ended early: more trials failed than it allows."
    if result.reason == "ExperimentSuggestionEndReached":
        return "The search ended because its algorithm had no further parameters to try."
    missed = f" The goal of {format_number(objective.goal)} was not reached." if is_number(objective.goal) else ""
    return f"The search ended when all its trials were run.{missed}"


def _tell_best(objective: Objective, best: Trial, baseline: float | None) -> str:
    value = float(best.objective or 0.0)
    if baseline is None:
        return (
            f"{_name(best)} is the best with {objective.metric} {format_number(value)}. What the given parameters reach"
            " was not measured, so nothing here says whether the search was worth it."
        )
    shown, beside = format_pair(value, baseline)
    decimals = [_decimals(shown), _decimals(beside)]
    gap = format_number(abs(value - baseline), None if None in decimals else decimals[0])
    words = f"{_name(best)} is the best with {objective.metric} {shown}; {GIVEN}, reach {beside}."
    if objective.improves(value, baseline):
        return f"{words} The best trial is better by {gap}."
    if value == baseline:
        return f"{words} No trial is better than the given parameters. Nothing here speaks for leaving them."
    return f"{words} No trial is better than the given parameters; the best one is worse by {gap}."


def _decimals(shown: str) -> int | None:
    """Return the decimals of a formatted number, None for a power of ten.

    >>> _decimals("0.8123"), _decimals("1,234")
    (4, 0)
    """
    return None if "10" in shown and " " in shown else len(shown.partition(".")[2])


def _list_best(best: Trial, parameters: Sequence[Parameter]) -> Section:
    rows = [
        [parameter.name, best.parameters.get(parameter.name), _describe_range(parameter)] for parameter in parameters
    ]
    columns = [{"name": name, "kind": "text"} for name in ("Parameter", "Value", "Searched")]
    text = f"What {_name(best).lower()} ran with, beside the space that was searched."
    return Section("table", "Parameters of the best trial", text, {"columns": columns, "rows": rows})


def _describe_range(parameter: Parameter) -> str:
    if not parameter.is_numeric:
        shown = ", ".join(parameter.values[:8])
        return shown + (f" and {len(parameter.values) - 8} more" if len(parameter.values) > 8 else "")
    step = "" if parameter.step is None else f" in steps of {parameter.step:g}"
    how = {"uniform": "", "logUniform": ", on a log scale", "normal": ", normal", "logNormal": ", log-normal"}
    ends = f"{_bare(parameter.low)} to {_bare(parameter.high)}" if parameter.low is not None else ""
    return f"{ends}{step}{how[parameter.distribution]}"


def _bare(number: float | None) -> str:
    return "" if number is None else f"{number:.10g}"


def _cut(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


def _draw_history(result: SearchResult, best: Trial | None, baseline: float | None) -> Section:
    objective = result.objective
    series: list[dict[str, Any]] = []
    for name, statuses, mark, tone in _MARKS:
        trials = [trial for trial in result.trials if trial.status in statuses and trial is not best]
        if trials:
            series.append(_make_dots(name, trials, mark, tone))
    steps: list[list[float]] = []
    leading: Trial | None = None
    for trial in sorted(result.trials, key=lambda trial: trial.number):
        if trial.objective is not None and is_number(trial.objective):
            leading = find_best(objective, [leading, trial] if leading else [trial])
        if leading is not None and leading.objective is not None:
            steps.append([trial.number, leading.objective])
    if steps:
        series.append({"name": "Best so far", "style": "steps", "points": steps})
    if best is not None:
        series.append(_make_dots("Best trial", [best], "diamond", "best"))
    levels = [{"value": baseline, "label": "given parameters"}] if baseline is not None else []
    levels += [{"value": objective.goal, "label": "goal"}] if is_number(objective.goal) else []
    better = "Higher" if objective.direction == "maximize" else "Lower"
    text = f"Each trial's {objective.metric} in the order of the trials, and the best so far. {better} is better."
    if baseline is not None:
        text += f' The level "given parameters" is {GIVEN}.'
    data = {"series": series, "references": levels, "x_label": "trial", "y_label": objective.metric}
    return Section("lines", "History", text, data)


def _make_dots(name: str, trials: Sequence[Trial], mark: str, tone: str) -> dict[str, Any]:
    return {
        "name": name,
        "style": "dots",
        "mark": mark,
        "tone": tone,
        "points": [[trial.number, _round(trial.objective, 12)] for trial in trials],
    }


def _draw_parallel(
    result: SearchResult,
    best: Trial | None,
    parameters: Sequence[Parameter],
    shares: Mapping[str, float] | None,
) -> Section:
    objective = result.objective
    shown = list(parameters)
    notes = ["One line a trial, through its parameters to its value; the stronger its colour, the better its rank."]
    if len(shown) > _PARAMETERS_DRAWN:
        ranked = sorted(shown, key=lambda parameter: -(shares or {}).get(parameter.name, 0.0))[:_PARAMETERS_DRAWN]
        shown = [parameter for parameter in shown if parameter in ranked]
        notes.append(f"{len(shown)} of {len(parameters)} parameters are drawn; the table has them all.")
    trials = [trial for trial in result.trials if trial.status != "running"]
    if len(trials) > _LINES_DRAWN:
        trials = sorted(trials, key=lambda trial: _rank(objective, trial))[:_LINES_DRAWN]
        notes.append(f"The best {_LINES_DRAWN} of {len(result.trials):,} trials are drawn.")
    numeric = {parameter.name: _reads_as_numbers(parameter, trials) for parameter in shown}
    axes: list[dict[str, Any]] = []
    for parameter in shown:
        if numeric[parameter.name]:
            log = parameter.distribution in ("logUniform", "logNormal")
            axes.append(
                {
                    "name": parameter.name,
                    "kind": "number",
                    "log": log,
                    "low": parameter.low,
                    "high": parameter.high,
                }
            )
        else:
            axes.append({"name": parameter.name, "kind": "category", "values": _order(parameter.values)})
    lines = [
        {
            "label": _name(trial),
            "values": [_convert(trial.parameters.get(one.name), numeric[one.name]) for one in shown],
            "score": _round(trial.objective, 12),
            "best": trial is best,
        }
        for trial in trials
    ]
    data = {
        "axes": axes,
        "lines": lines,
        "score_label": objective.metric,
        "lower_is_better": objective.direction == "minimize",
    }
    return Section("parallel", "Parameters and values", " ".join(notes), data)


def _rank(objective: Objective, trial: Trial) -> float:
    if trial.objective is None or not is_number(trial.objective):
        return float("inf")
    return -trial.objective if objective.direction == "maximize" else trial.objective


def _reads_as_numbers(parameter: Parameter, trials: Sequence[Trial]) -> bool:
    """Say whether a parameter's values are drawn on an axis of numbers: never those of a list, which are few."""
    if not parameter.is_numeric:
        return False
    written = [trial.parameters[parameter.name] for trial in trials if parameter.name in trial.parameters]
    return all(isinstance(_convert(value, True), (int, float)) for value in written)


def _convert(written: str | None, numeric: bool) -> float | str | None:
    """Read a number as an int where it is one, so that it is shown as it was written."""
    if written is None or not numeric:
        return written
    try:
        number = float(written)
    except ValueError:
        return written
    if not is_number(number):
        return written
    return int(number) if number == int(number) and "." not in written and "e" not in written.lower() else number


def _order(values: Sequence[str]) -> list[str]:
    """Put the largest on top where all are numbers; else keep the order.

    >>> _order(["1", "10", "2"]), _order(["b", "a"])
    (['10', '2', '1'], ['b', 'a'])
    """
    if all(isinstance(_convert(value, True), (int, float)) for value in values):
        return sorted(values, key=float, reverse=True)
    return list(values)


def _draw_importance(
    result: SearchResult, parameters: Sequence[Parameter], shares: Mapping[str, float] | None
) -> Section:
    title = "Which parameters the value followed"
    if shares is None:
        words = (
            f"No estimate: it takes {FEWEST_TRIALS} succeeded trials or more, of which at least two parameters vary, "
            "values that these parameters predict better than their mean does, and the optuna package."
        )
        return Section("text", title, words)
    count = len(select_trials(result, parameters))
    text = (
        f"An estimate from {count:,} succeeded trials: the share of the differences between their values that goes "
        f"with each parameter alone (fANOVA). The shares always add up to {format_share(1.0)}; with few trials they "
        "move a lot from one search to the next, and they hold only for the ranges that were searched."
    )
    bars = [{"label": name, "value": share} for name, share in shares.items()]
    return Section("bars", title, text, {"bars": bars, "unit": "share", "low": 0.0, "high": 1.0})


def _list_trials(result: SearchResult, best: Trial | None, parameters: Sequence[Parameter]) -> Section:
    objective = result.objective
    trials = sorted(result.trials, key=lambda trial: (_rank(objective, trial), trial.number))
    prefix = f"{result.experiment}-"
    columns: list[dict[str, Any]] = [
        {"name": "Trial", "kind": "text"},
        {"name": "Status", "kind": "text"},
        {"name": objective.metric, "kind": "number", "decimals": _choose_decimals(trials)},
    ]
    numeric = {parameter.name: _reads_as_numbers(parameter, trials) for parameter in parameters}
    columns += [
        {"name": parameter.name, "kind": "number" if numeric[parameter.name] else "text"} for parameter in parameters
    ]
    columns += [{"name": "Seconds", "kind": "number"}]
    # A name that only counts says nothing beside the number.
    with_name = any(trial.name.removeprefix(prefix).lstrip("0") != f"{trial.number or ''}" for trial in trials)
    columns += [{"name": "Name", "kind": "text"}] if with_name else []
    rows = []
    for trial in trials:
        number, words = str(trial.number), _STATUS_WORDS[trial.status]
        row: list[Any] = [{"value": number, "note": "best"} if trial is best else number]
        row += [{"value": words, "note": _cut(trial.message)} if trial.message else words]
        row += [_round(trial.objective, 9)]
        row += [_round(_convert(trial.parameters.get(one.name), numeric[one.name]), 6) for one in parameters]
        row += [round(trial.seconds, 2) if is_number(trial.seconds) else None]
        row += [trial.name.removeprefix(prefix)] if with_name else []
        rows.append(row)
    text = "Every trial, the best first; a click on a heading sorts."
    if with_name and any(trial.name.startswith(prefix) for trial in trials):
        text += f" Names are without the search's own, {prefix}"
    return Section("table", "Trials", text, {"columns": columns, "rows": rows})


def _round(value: float | str | None, digits: int) -> float | str | None:
    """Keep the digits that a table can show and sort by; what is not finite is no value."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if is_number(value) else None
    return value


def _choose_decimals(trials: Sequence[Trial]) -> int | None:
    """Choose decimals that tell the ten best apart; None where three digits do."""
    values = [trial.objective for trial in trials if trial.objective is not None and is_number(trial.objective)][:10]
    gaps = [abs(b - a) for a, b in pairwise(values) if a != b]
    if not gaps or max(map(abs, values)) >= 1e4 or max(map(abs, values)) < 0.01:
        return None
    return next((decimals for decimals in range(3, 7) if min(gaps) >= 10.0**-decimals), 6)
