"""What Katib writes into the status of Experiments and Trials, as this library's records.

Source: Katib `pkg/apis/controller/{experiments,trials}/v1beta1`; the order in which a Trial's conditions count, and
how its objective is read from minimum, maximum and latest, are those of
`pkg/controller.v1beta1/experiment/util/status_util.go`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflywheel.errors import MissingExtraError, TuningError
from mlflywheel.tuning.experiment import Objective
from mlflywheel.tuning.search import MetricSummary, Trial, TrialStatus

try:
    from kubeflow_katib_api.models.v1beta1_experiment_status import V1beta1ExperimentStatus
    from kubeflow_katib_api.models.v1beta1_metric import V1beta1Metric
    from kubeflow_katib_api.models.v1beta1_observation import V1beta1Observation
    from kubeflow_katib_api.models.v1beta1_optimal_trial import V1beta1OptimalTrial
    from kubeflow_katib_api.models.v1beta1_trial_status import V1beta1TrialStatus
except ImportError as error:
    raise MissingExtraError.of("kubeflow-katib-api", "cluster", "Katib") from error

_STATUSES: tuple[tuple[str, TrialStatus], ...] = (
    ("Killed", "killed"),
    ("Failed", "failed"),
    ("Succeeded", "succeeded"),
    ("EarlyStopped", "early_stopped"),
    ("Running", "running"),
    ("MetricsUnavailable", "metrics_unavailable"),
)


def read_status(experiment: Mapping[str, Any]) -> V1beta1ExperimentStatus:
    """Return an Experiment's status; an empty one if Katib has not seen it yet.

    Raises:
        TuningError: It is not what Katib's v1beta1 writes.
    """
    name = str((experiment.get("metadata") or {}).get("name"))
    return _read(V1beta1ExperimentStatus, experiment.get("status") or {}, f"Experiment {name}")


def find_condition(status: V1beta1ExperimentStatus | V1beta1TrialStatus, kind: str) -> Any | None:
    """Return the condition of a type if it is True."""
    for condition in status.conditions or ():
        if condition.type == kind and condition.status == "True":
            return condition
    return None


def count_finished(status: V1beta1ExperimentStatus) -> int:
    """Return how many trials have ended, in whatever way."""
    return sum(
        number or 0
        for number in (
            status.trials_succeeded,
            status.trials_failed,
            status.trials_killed,
            status.trials_early_stopped,
            status.trial_metrics_unavailable,
        )
    )


def read_trials(objective: Objective, items: Sequence[Mapping[str, Any]]) -> tuple[Trial, ...]:
    """Turn Trial resources into records, in the order of their creation.

    Args:
        objective: What is searched for.
        items: Trials as the API server returns them.

    Raises:
        TuningError: One has a status that is not what Katib's v1beta1 writes.
    """
    # Creation times have whole seconds, so the name breaks ties, and the order is the same each time.
    ordered = sorted(items, key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]))
    return tuple(_read_trial(objective, number, item) for number, item in enumerate(ordered))


def read_optimal(objective: Objective, optimal: V1beta1OptimalTrial | None) -> Trial | None:
    """Turn `status.currentOptimalTrial` into a record; None if there is none."""
    if optimal is None or not optimal.best_trial_name:
        return None
    metrics = _metrics(optimal.observation)
    return Trial(
        name=optimal.best_trial_name,
        number=0,
        parameters={str(given.name): str(given.value) for given in optimal.parameter_assignments or ()},
        status="succeeded",
        metrics=_summaries(metrics),
        objective=_objective(objective, metrics),
    )


def _read_trial(objective: Objective, number: int, item: Mapping[str, Any]) -> Trial:
    name = str(item["metadata"]["name"])
    status = _read(V1beta1TrialStatus, item.get("status") or {}, f"Trial {name}")
    metrics = _metrics(status.observation)
    standing, message = _standing(status)
    seconds = None
    if status.start_time is not None and status.completion_time is not None:
        seconds = max(0.0, (status.completion_time - status.start_time).total_seconds())
    value = _objective(objective, metrics)
    if standing == "succeeded" and value is None:
        message = f"{objective.metric} was reported as something that is not a finite number"
    assignments = (item.get("spec") or {}).get("parameterAssignments") or ()
    return Trial(
        name=name,
        number=number,
        parameters={str(given.get("name")): str(given.get("value")) for given in assignments},
        status=standing,
        metrics=_summaries(metrics),
        objective=value,
        seconds=seconds,
        message=message,
    )


def _standing(status: V1beta1TrialStatus) -> tuple[TrialStatus, str]:
    for kind, standing in _STATUSES:
        condition = find_condition(status, kind)
        if condition is not None:
            return standing, "" if standing in ("succeeded", "running") else str(condition.message or "")
    return "running", ""


def _objective(objective: Objective, metrics: Mapping[str, V1beta1Metric]) -> float | None:
    metric = metrics.get(objective.metric)
    if metric is None:
        return None
    strategy = objective.strategies.get(objective.metric, "max" if objective.direction == "maximize" else "min")
    value = {"min": metric.min, "max": metric.max, "latest": metric.latest}[strategy]
    number = read_number(value)
    return read_number(metric.latest) if number is None and value == "unavailable" else number


def _metrics(observation: V1beta1Observation | None) -> dict[str, V1beta1Metric]:
    return {str(metric.name): metric for metric in (observation.metrics if observation else None) or ()}


def _summaries(metrics: Mapping[str, V1beta1Metric]) -> tuple[MetricSummary, ...]:
    found = []
    for name, metric in sorted(metrics.items()):
        low, high, latest = (read_number(text) for text in (metric.min, metric.max, metric.latest))
        if low is not None and high is not None and latest is not None:
            found.append(MetricSummary(name, low, high, latest))
    return tuple(found)


def read_number(text: str | None) -> float | None:
    """Return a metric's text as a number; None unless it is a finite one.

    Katib's collectors store a reported `nan` or `inf` as empty text, and `unavailable` where nothing was reported.

    >>> [read_number(text) for text in ("0.25", "1e-3", "", "nan", "unavailable", None)]
    [0.25, 0.001, None, None, None, None]
    """
    if not text or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read(model: Any, values: Mapping[str, Any], where: str) -> Any:
    try:
        return model.from_dict(dict(values))
    # pydantic's errors are ValueErrors; the others come from the generated code itself.
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise TuningError(
            where,
            f"a status that cannot be read: {' '.join(str(error).split())[:200]}",
            "Katib's v1beta1 is needed",
            "see kubectl get experiments,trials -o yaml",
        ) from error
