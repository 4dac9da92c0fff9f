"""A Katib Experiment (`kubeflow.org/v1beta1`) as it was read: typed, with Katib's defaults filled in."""

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlflywheel.errors import UsageError

API_VERSION = "kubeflow.org/v1beta1"
KIND = "Experiment"

ParameterKind = Literal["int", "double", "discrete", "categorical"]
Distribution = Literal["uniform", "logUniform", "normal", "logNormal"]
Strategy = Literal["min", "max", "latest"]
ResumePolicy = Literal["Never", "LongRunning", "FromVolume"]

_METADATA_REFERENCE = re.compile(r"\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|(Labels|Annotations)\[(.+)\])\}")


@dataclass(frozen=True)
class Parameter:
    """One parameter of the search space.

    Args:
        name: Its name in `spec.parameters`.
        kind: Katib's `parameterType`.
        low: Lower end of an int or double, included; None for the others.
        high: Upper end of an int or double, included; None for the others.
        step: Distance between an int's or double's values; None where the space is continuous, or an int's step is 1.
        values: The values of a discrete or categorical parameter, as text; empty for the others.
        distribution: How an int or double is drawn.
    """

    name: str
    kind: ParameterKind
    low: float | None = None
    high: float | None = None
    step: float | None = None
    values: tuple[str, ...] = ()
    distribution: Distribution = "uniform"

    @property
    def is_numeric(self) -> bool:
        """Whether the parameter is a range of numbers."""
        return self.kind in ("int", "double")


@dataclass(frozen=True)
class Objective:
    """What the search is for.

    Args:
        direction: `minimize` or `maximize`.
        metric: The objective metric's name.
        goal: The value at which the search ends early, None for none.
        additional: Metrics that are collected beside it.
        strategies: Which of a metric's reported values counts, for the objective and every additional metric.
    """

    direction: Literal["minimize", "maximize"]
    metric: str
    goal: float | None = None
    additional: tuple[str, ...] = ()
    strategies: Mapping[str, Strategy] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The objective metric and the additional ones."""
        return (self.metric, *self.additional)

    def improves(self, value: float, than: float) -> bool:
        """Return whether a value is better than another; equal is not."""
        return value > than if self.direction == "maximize" else value < than


@dataclass(frozen=True)
class EarlyStopping:
    """An early stopping algorithm with its settings, as text."""

    algorithm: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Collector:
    """How metrics leave a trial.

    Args:
        kind: Katib's `collector.kind`: `StdOut`, `File`, `TensorFlowEvent`, `PrometheusMetric`, `Custom` or `Push`.
        path: The metrics file or folder of File, TensorFlowEvent and some Custom ones.
        format: `TEXT` or `JSON`, one object a line.
        filters: Regular expressions of two groups, name and value, in Go's syntax; empty for Katib's own.
    """

    kind: str = "StdOut"
    path: str | None = None
    format: Literal["TEXT", "JSON"] = "TEXT"
    filters: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialTemplate:
    """What a trial runs.

    Args:
        primary_container: Name of the container whose metrics count.
        parameters: Trial parameter name to its reference: a parameter of the search space, or `${trialSpec.…}`.
        spec: The resource that a trial creates, with `${trialParameters.…}` in it; None where a ConfigMap holds it.
        retain: Whether a finished trial's resource is kept.
        success_condition: GJSON path that finds something in a trial's resource once it has succeeded.
        failure_condition: The same for one that has failed.
    """

    primary_container: str
    parameters: Mapping[str, str]
    spec: Mapping[str, Any] | None
    retain: bool = False
    success_condition: str = 'status.conditions.#(type=="Complete")#|#(status=="True")#'
    failure_condition: str = 'status.conditions.#(type=="Failed")#|#(status=="True")#'

    def render(self, assignments: Mapping[str, str], trial: str, namespace: str = "default") -> dict[str, Any]:
        """Return a trial's resource: placeholders replaced, name and namespace set, as Katib's controller does it.

        Args:
            assignments: Search parameter name to value, as text.
            trial: The trial's name.
            namespace: The trial's namespace.
        """
        spec = dict(self.spec or {})
        metadata = spec.get("metadata") or {}
        text = json.dumps(spec)
        for name, reference in self.parameters.items():
            found = _METADATA_REFERENCE.fullmatch(reference)
            if found is None:
                value = assignments[reference]
            elif found[2]:
                value = str(metadata[found[2].lower()][found[3]])
            else:
                value = {
                    "Name": trial,
                    "Namespace": namespace,
                    "Kind": str(spec.get("kind", "")),
                    "APIVersion": str(spec.get("apiVersion", "")),
                }[found[1]]
            text = text.replace(f"${{trialParameters.{name}}}", json.dumps(value)[1:-1])
        rendered: dict[str, Any] = json.loads(text)
        rendered["metadata"] = {**(rendered.get("metadata") or {}), "name": trial, "namespace": namespace}
        return rendered

    def container(self, rendered: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the primary container of a trial's rendered (or raw) Job; None if there is none of that name."""
        for container in _pod_spec(rendered).get("containers") or ():
            if container.get("name") == self.primary_container:
                return dict(container)
        return None


@dataclass(frozen=True)
class Experiment:
    """A Katib Experiment that keeps Katib's rules.

    Args:
        name: `metadata.name`.
        objective: What the search is for.
        algorithm: `algorithmName`.
        settings: The algorithm's settings, as text.
        parameters: The search space, in the spec's order.
        template: What a trial runs.
        parallel_trials: How many trials run at once.
        max_trials: How many trials there are; None for as many as the algorithm has.
        max_failed_trials: How many may fail; None for all.
        early_stopping: How trials are stopped early, None for not at all.
        collector: How metrics leave a trial.
        document: The whole resource as it was written; this is what a cluster gets.
        resume_policy: Whether Katib can take the search up again once it has ended.
    """

    name: str
    objective: Objective
    algorithm: str
    settings: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    template: TrialTemplate
    parallel_trials: int = 3
    max_trials: int | None = None
    max_failed_trials: int | None = None
    early_stopping: EarlyStopping | None = None
    collector: Collector = field(default_factory=Collector)
    document: Mapping[str, Any] = field(default_factory=dict)
    resume_policy: ResumePolicy = "Never"

    @property
    def spec_hash(self) -> str:
        """`sha256:` over name and spec as canonical JSON: an equal search has an equal hash."""
        identity = {"name": self.name, "spec": self.document.get("spec")}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def with_environment(self, variables: Mapping[str, str | Mapping[str, Any]]) -> "Experiment":
        """Return the same search with environment variables of the primary container set.

        Trial pods get no artifacts of a pipeline, and Katib rewrites commands without quoting: a variable is how data
        reaches a trial unharmed. A variable that the template sets already is replaced.

        Args:
            variables: Name to value, or to a `valueFrom` mapping such as `{"secretKeyRef": {...}}`.

        Raises:
            UsageError: The template has no such container: it is no Job, or stands in a ConfigMap.
        """
        document = deepcopy(dict(self.document))
        spec = document["spec"]["trialTemplate"].get("trialSpec") or {}
        found = [
            container
            for container in _pod_spec(spec).get("containers") or ()
            if container.get("name") == self.template.primary_container
        ]
        if not found:
            raise UsageError(
                f"{self.name}, spec.trialTemplate",
                f"no Job with a container {self.template.primary_container}",
                "trials get their data by environment variables of that container",
                "write a batch/v1 Job into trialSpec",
            )
        for container in found:
            kept = [entry for entry in container.get("env") or () if entry.get("name") not in variables]
            added = [
                {"name": name, "value": value} if isinstance(value, str) else {"name": name, "valueFrom": value}
                for name, value in variables.items()
            ]
            container["env"] = [*kept, *added]
        return replace(self, template=replace(self.template, spec=spec), document=document)


def _pod_spec(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pod spec inside a Job; empty if it has none."""
    found: Any = resource
    for name in ("spec", "template", "spec"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
