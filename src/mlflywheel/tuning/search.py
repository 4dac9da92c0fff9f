"""What a search finds, and when it ends: the same records whoever runs the trials."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.tuning.experiment import Experiment, Objective

TrialStatus = Literal["running", "succeeded", "failed", "early_stopped", "metrics_unavailable", "killed"]
#: As Katib's condition `reason`s.
Reason = Literal[
    "ExperimentGoalReached", "ExperimentFailed", "ExperimentMaxTrialsReached", "ExperimentSuggestionEndReached"
]
FINISHED: tuple[TrialStatus, ...] = ("succeeded", "failed", "early_stopped", "metrics_unavailable", "killed")
_FAILED: tuple[TrialStatus, ...] = ("failed", "metrics_unavailable")


@dataclass(frozen=True)
class MetricSummary:
    """A metric's reported values in short, as numbers that are finite."""

    name: str
    min: float
    max: float
    latest: float


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        name: Unique in the search.
        number: In the order of creation, from 0.
        parameters: Search parameter name to value, as text.
        status: How it stands.
        metrics: What it reported.
        objective: The objective's value by its strategy; None if there is none.
        seconds: How long it ran; None while it runs, and where that is not known.
        message: Why it failed, or was stopped.
        log: Path of its output, empty where it is not on this machine.
    """

    name: str
    number: int
    parameters: Mapping[str, str]
    status: TrialStatus = "running"
    metrics: tuple[MetricSummary, ...] = ()
    objective: float | None = None
    seconds: float | None = None
    message: str = ""
    log: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        experiment: The Experiment's name.
        executor: `local` or `katib`.
        objective: What was searched for.
        trials: Every trial, by number.
        reason: Why it ended.
        resumed: How many of the trials an earlier call had finished.
        facts: Anything else worth telling: versions, namespace, folder.
    """

    experiment: str
    executor: str
    objective: Objective
    trials: tuple[Trial, ...]
    reason: Reason
    resumed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Trial | None:
        """The trial with the best objective, the first of equal ones; None if no trial has one."""
        return find_best(self.objective, self.trials)

    def count(self, status: TrialStatus) -> int:
        """Return how many trials stand so."""
        return sum(trial.status == status for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `search.json` holds them."""
        best = self.best
        return {
            "schema": 1,
            "experiment": self.experiment,
            "executor": self.executor,
            "objective": asdict(self.objective),
            "reason": self.reason,
            "resumed": self.resumed,
            "best": None if best is None else best.name,
            "trials": [asdict(trial) for trial in self.trials],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchResult":
        """Rebuild from `to_dict`."""
        objective = values["objective"]
        return cls(
            values["experiment"],
            values["executor"],
            Objective(**{**objective, "additional": tuple(objective["additional"])}),
            tuple(
                Trial(**{**trial, "metrics": tuple(MetricSummary(**metric) for metric in trial["metrics"])})
                for trial in values["trials"]
            ),
            values["reason"],
            values["resumed"],
            values["facts"],
        )


class Tuner(ABC):
    """Whoever runs an Experiment's trials."""

    #: As `--executor` names it.
    name: str

    @abstractmethod
    def check(self, experiment: Experiment) -> None:
        """Refuse what this executor cannot do.

        Raises:
            UsageError: With the field, the reason and what would do; nothing is ever ignored.
        """

    @abstractmethod
    def search(self, experiment: Experiment, progress: ProgressCallback = ignore_progress) -> SearchResult:
        """Run the trials to the end of the search, or take up an earlier call's search where it stopped.

        Args:
            experiment: Checked Experiment.
            progress: Called with the phase `trials`, finished ones and their number.

        Raises:
            UsageError: What `check` refuses.
            TuningError: The search failed, or no trial has an objective value.
        """


def find_best(objective: Objective, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the best objective value, the first of equal ones.

    >>> objective = Objective("minimize", "loss")
    >>> trials = [Trial("a", 0, {}, objective=0.2), Trial("b", 1, {}, objective=0.1), Trial("c", 2, {}, "failed")]
    >>> find_best(objective, trials).name
    'b'
    """
    best: Trial | None = None
    for trial in trials:
        if trial.objective is not None and (
            best is None or best.objective is None or objective.improves(trial.objective, best.objective)
        ):
            best = trial
    return best


def conclude(experiment: Experiment, trials: Sequence[Trial], *, suggestions_ended: bool = False) -> Reason | None:
    """Return why a search ends now, None if it goes on.

    The order is Katib's (`UpdateExperimentStatusCondition`, v0.19): goal, failures, trials, suggestions. The goal is
    compared with running trials' values too.

    Args:
        experiment: The search.
        trials: Every trial so far.
        suggestions_ended: Whether the algorithm has no further suggestion.

    >>> from mlflywheel.tuning.experiment import TrialTemplate
    >>> experiment = Experiment(
    ...     "e", Objective("maximize", "auc", goal=0.9), "random", {}, (), TrialTemplate("c", {}, {}), max_trials=2
    ... )
    >>> conclude(experiment, [Trial("a", 0, {}, "succeeded", objective=0.8)])
    >>> conclude(experiment, [Trial("a", 0, {}, "succeeded", objective=0.8), Trial("b", 1, {}, "failed")])
    'ExperimentMaxTrialsReached'
    """
    goal, best = experiment.objective.goal, find_best(experiment.objective, trials)
    reached = None if best is None else best.objective
    # Met is reached: the value need not be better than the goal.
    if goal is not None and reached is not None and not experiment.objective.improves(goal, reached):
        return "ExperimentGoalReached"
    failed = sum(trial.status in _FAILED for trial in trials)
    if experiment.max_failed_trials is not None and failed and failed >= experiment.max_failed_trials:
        return "ExperimentFailed"
    finished = sum(trial.status in FINISHED for trial in trials)
    if experiment.max_trials is not None and finished >= experiment.max_trials:
        return "ExperimentMaxTrialsReached"
    if suggestions_ended and finished == len(trials):
        return "ExperimentSuggestionEndReached"
    return None
