"""Katib's early stopping, rule for rule.

Source: `medianstop/service.py` and `updateStopRules` in `file-metricscollector/main.go` of Katib v0.19. This is not the
median rule of the literature, nor Optuna's MedianPruner:

- The threshold is a mean: of the means over each succeeded trial's first `start_step` reports.
- It is fixed when a trial is created. Trials that succeed later do not move it.
- It is tested once, on the trial's `start_step`-th report, against the trial's best value so far.
- A trial that ends sooner is never tested; one with fewer reports counts with the mean of those it has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.search import Trial

ALGORITHM = "medianstop"
_FIELD = "spec.earlyStopping"
_DEFAULTS = {"min_trials_required": 3, "start_step": 4}


@dataclass
class StopRule:
    """When one trial is stopped. It counts the trial's reports, so every trial needs its own.

    Args:
        metric: The objective metric, whose reports are to be observed.
        threshold: What the trial's best value is compared with.
        direction: `minimize` stops a trial above the threshold, `maximize` one below it.
        start_step: The report on which the comparison is made, from 1.

    >>> rule = StopRule("loss", 0.5, "minimize", start_step=2)
    >>> rule.observe(0.8), rule.observe(0.6), rule.observe(0.9)
    (False, True, False)
    """

    metric: str
    threshold: float
    direction: Literal["minimize", "maximize"]
    start_step: int
    _seen: int = field(default=0, init=False)
    _best: float | None = field(default=None, init=False)

    def observe(self, value: float) -> bool:
        """Take note of one report of the objective metric.

        Args:
            value: The reported value.

        Returns:
            Whether the trial is to be stopped now: once at most, on its `start_step`-th report. A value that equals the
            threshold does not stop it.
        """
        better = max if self.direction == "maximize" else min
        self._best = value if self._best is None else better(self._best, value)
        self._seen += 1
        if self._seen != self.start_step:
            return False
        return self._best < self.threshold if self.direction == "maximize" else self._best > self.threshold

    def describe(self) -> str:
        """Return why a trial was stopped, for its message."""
        side = "below" if self.direction == "maximize" else "above"
        return f"after {self.start_step} reports the best {self.metric} is {self._best}, {side} {self.threshold}"


class MedianStop:
    """Makes stop rules out of the trials that have succeeded.

    Args:
        experiment: An Experiment, with early stopping or without it.

    Raises:
        UsageError: The algorithm is not `medianstop`, or a setting is unknown or out of range.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._objective = experiment.objective
        stopping = experiment.early_stopping
        self._settings: Mapping[str, int] | None = None
        if stopping is not None:
            if stopping.algorithm != ALGORITHM:
                raise UsageError(
                    f"{_FIELD}.algorithmName",
                    repr(stopping.algorithm),
                    f"Katib has {ALGORITHM} alone",
                    f"write {ALGORITHM}, or remove earlyStopping",
                )
            self._settings = {**_DEFAULTS, **{name: _read(name, text) for name, text in stopping.settings.items()}}

    def rule(self, finished: Sequence[tuple[Trial, Sequence[float]]]) -> StopRule | None:
        """Return the rule for a trial that is created now.

        Args:
            finished: The trials that ended, each with all its reports of the objective metric in the order of their
                times (`metrics.order_values`). Only those that succeeded count.

        Returns:
            A fresh rule; None without early stopping, and while fewer than `min_trials_required` trials have succeeded.

        Raises:
            ValueError: A succeeded trial without a report, which is a defect of the caller.
        """
        if self._settings is None:
            return None
        start_step = self._settings["start_step"]
        means = []
        for trial, values in finished:
            if trial.status != "succeeded":
                continue
            first = [float(value) for value in values[:start_step]]
            if not first:
                raise ValueError(f"trial {trial.name} succeeded and has no report of {self._objective.metric}")
            means.append(sum(first) / len(first))
        if len(means) < self._settings["min_trials_required"]:
            return None
        return StopRule(self._objective.metric, sum(means) / len(means), self._objective.direction, start_step)


def _read(name: str, text: str) -> int:
    """Return a setting's value."""
    if name not in _DEFAULTS:
        raise UsageError(
            f"{_FIELD}.algorithmSettings",
            f"{name} is unknown",
            f"{ALGORITHM} has {' and '.join(sorted(_DEFAULTS))}",
            "remove the setting, or correct its name",
        )
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise UsageError(
            f"{_FIELD}.algorithmSettings.{name}",
            repr(text),
            "a whole number from 1 is needed",
            f'write it as "{_DEFAULTS[name]}"',
        )
    return value
