"""Search for a model's parameters: what the `tuning` component and `mlflywheel tune PIPELINE` do."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflywheel import __version__
from mlflywheel.errors import UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import load_model_class
from mlflywheel.models.parameters import merge
from mlflywheel.tuning.confirmation import Confirmation, confirm
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.search import SearchResult, Tuner
from mlflywheel.tuning.trial import INPUT_VARIABLE, MODULE, TrialInput, read_overrides, run_trial

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Tuned:
    """What a search for a model's parameters came to.

    Args:
        result: Every trial.
        baseline: The objective's value with the parameters that the search began from, on the same rows.
        params: What to train with: the best trial's parameters if they are confirmed, else those that it began from.
        improved: Whether they are confirmed.
        confirmation: What came of fitting both again; None where the best trial was no better than the given
            parameters, or was to be taken unconfirmed.
    """

    result: SearchResult
    baseline: float
    params: Mapping[str, Any]
    improved: bool
    confirmation: Confirmation | None = None

    @property
    def best(self) -> float:
        """The objective's best value."""
        best = self.result.best
        return self.baseline if best is None or best.objective is None else best.objective

    def facts(self) -> dict[str, Any]:
        """Return JSON values for `summary.json`."""
        best = self.result.best
        return {
            "experiment": self.result.experiment,
            "executor": self.result.executor,
            "objective": self.result.objective.metric,
            "direction": self.result.objective.direction,
            "reason": self.result.reason,
            "trials": len(self.result.trials),
            "succeeded_trials": self.result.count("succeeded"),
            "resumed_trials": self.result.resumed,
            "baseline": self.baseline,
            "best": self.best,
            "best_trial": None if best is None else best.name,
            "best_parameters": {} if best is None else dict(best.parameters),
            "improved": self.improved,
            "confirmation": None if self.confirmation is None else self.confirmation.to_dict(),
            "params": dict(self.params),
        }


def read_trial_words(experiment: Experiment, assignments: Mapping[str, str]) -> list[str] | None:
    """Return the words that a trial's command gives to `mlflywheel.tuning.trial`; None if it runs something else."""
    rendered = experiment.template.render(assignments, experiment.name)
    container = experiment.template.container(rendered) or {}
    words = [str(word) for word in [*(container.get("command") or ()), *(container.get("args") or ())]]
    return words[words.index(MODULE) + 1 :] if MODULE in words else None


def check_model_parameters(experiment: Experiment, given: TrialInput) -> None:
    """Read the parameters at both ends of the search space as a trial will, so that a slip does not fail every trial.

    Raises:
        UsageError: The trials run something else, or the model refuses a parameter; the message names it.
    """
    model = load_model_class(given.model)
    for end in (0, -1):
        assignments = {
            parameter.name: parameter.values[end]
            if parameter.values
            else _format_bound(parameter.kind, (parameter.low, parameter.high)[end])
            for parameter in experiment.parameters
        }
        words = read_trial_words(experiment, assignments)
        if words is None:
            raise UsageError(
                f"experiment {experiment.name}, trialTemplate",
                "the primary container does not run a trial of a model",
                f"its command must be python -m {MODULE} NAME=VALUE ...",
                "write the command so, or run the experiment alone with mlflywheel tune FILE",
            )
        model.Params.parse(
            merge(given.params, read_overrides(words)), f"experiment {experiment.name}, trial parameters"
        )


def _format_bound(kind: str, bound: float | None) -> str:
    return str(int(bound or 0)) if kind == "int" else repr(bound)


def bind(experiment: Experiment, given: TrialInput, secrets: Mapping[str, Any] | None = None) -> Experiment:
    """Put what the trials have in common into the trial template.

    Args:
        experiment: The search.
        given: What the trials have in common.
        secrets: Further environment variables, as `Experiment.with_environment` takes them.
    """
    text = json.dumps(given.model_dump(mode="json"), sort_keys=True)
    return experiment.with_environment({INPUT_VARIABLE: text, **(secrets or {})})


def identify_search(experiment: Experiment, given: TrialInput, data_version: str) -> str:
    """Return a hash that is equal where a search can be taken up again: same spec, rows, model and version of ours.

    The place of the rows does not count: a run that starts anew writes them elsewhere.
    """
    identity = {
        "spec": experiment.spec_hash,
        "input": given.model_dump(mode="json", exclude={"data"}),
        "data": data_version,
        "version": __version__,
    }
    return "sha256:" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def name_search_folder(experiment: Experiment, key: str) -> str:
    """Return the name of a search's folder.

    Args:
        experiment: The search.
        key: `sha256:` and hexadecimal digits.
    """
    return f"{experiment.name}-{key.removeprefix('sha256:')[:12]}"


def tune_model(
    experiment: Experiment,
    tuner: Tuner,
    given: TrialInput,
    table: "pa.Table",
    secrets: Mapping[str, Any] | None = None,
    progress: ProgressCallback = ignore_progress,
    *,
    confirmations: int = 5,
) -> Tuned:
    """Search for better parameters than the given ones.

    Args:
        experiment: The search; its trials run `mlflywheel.tuning.trial`.
        tuner: Who runs the trials.
        given: What the trials have in common; `params` is where the search begins.
        table: The rows behind `given.data`.
        secrets: Environment variables that the trials need to read the rows.
        progress: Called with the phases `baseline`, `trials` and `confirmation`.
        confirmations: Splits on which the best trial's parameters are compared once more with the given ones; 0 takes
            them as soon as the best trial is better.

    Raises:
        UsageError: The tuner cannot run it, or the model refuses a parameter.
        ModelError: The objective has no value on these rows.
        TuningError: No trial succeeded.
    """
    bound = bind(experiment, given, secrets)
    tuner.check(bound)
    check_model_parameters(bound, given)
    progress("baseline", 0, 1)
    baseline = run_trial(given, {}, table)[experiment.objective.metric]
    progress("baseline", 1, 1)
    result = tuner.search(bound, progress)
    best = result.best
    if best is None or best.objective is None or not bound.objective.improves(best.objective, baseline):
        return Tuned(result, baseline, dict(given.params), False)
    params = merge(given.params, read_overrides(read_trial_words(bound, best.parameters) or []))
    if not confirmations:
        return Tuned(result, baseline, params, True)
    found = confirm(given, params, bound.objective, table, confirmations, progress)
    return Tuned(result, baseline, params if found.confirmed else dict(given.params), found.confirmed, found)


def write_search(tuned: Tuned, experiment: Experiment, search: Path, report: Path | None = None) -> None:
    """Write the search as JSON with the sections of the run's report, and as a page of its own."""
    from dataclasses import asdict

    from mlflywheel.tuning.sections import build_search_sections, render_search

    sections = build_search_sections(tuned.result, experiment.parameters, tuned.baseline, tuned.confirmation)
    values = {
        "schema": 1,
        "facts": tuned.facts(),
        "result": tuned.result.to_dict(),
        "sections": [asdict(section) for section in sections],
    }
    search.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
    if report is not None:
        report.write_text(
            render_search(tuned.result, experiment.parameters, tuned.baseline, tuned.confirmation), encoding="utf-8"
        )


def write_skipped_search(search: Path, report: Path) -> None:
    """Write what stands in place of a search that was not asked for."""
    search.write_text('{"schema": 1, "facts": null, "result": null, "sections": []}', encoding="utf-8")
    report.write_text("<p>No search: the pipeline's parameter <code>tune</code> is false.</p>", encoding="utf-8")
