"""Small Experiments for the tests of the local executor."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflywheel.tuning.experiment import (
    Collector,
    EarlyStopping,
    Experiment,
    Objective,
    Parameter,
    TrialTemplate,
)

LETTERS = Parameter("letter", "categorical", values=("a", "b", "c", "d", "e", "f"))
NUMBER = Parameter("number", "double", 0.0, 1.0)


def make_job(command: Sequence[Any], **container: Any) -> dict[str, Any]:
    """Return a Job whose primary container, `main`, runs a command."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "any", "command": command, **container}]}
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}}


def make_experiment(
    command: Sequence[Any] = (),
    *,
    job: Mapping[str, Any] | None = None,
    job_spec: Mapping[str, Any] | None = None,
    container: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
    parameters: tuple[Parameter, ...] = (NUMBER,),
    algorithm: str = "random",
    parallel: int = 1,
    trials: int | None = 3,
    most_failed: int | None = None,
    goal: float | None = None,
    stopping: EarlyStopping | None = None,
    collector: Collector | None = None,
    additional: tuple[str, ...] = (),
) -> Experiment:
    """Return an Experiment named `search` that minimizes `loss`; `${trialParameters.NAME}` is any parameter."""
    resource = dict(job or make_job(list(command), **(container or {})))
    resource["spec"] = {**resource["spec"], **(job_spec or {})}
    document = {
        "spec": {
            "trialTemplate": {"trialSpec": resource, **(template or {})},
            "parameters": [parameter.name for parameter in parameters],
            "algorithm": algorithm,
            "counts": [parallel, trials, most_failed],
        }
    }
    return Experiment(
        name="search",
        objective=Objective("minimize", "loss", goal, additional),
        algorithm=algorithm,
        settings={},
        parameters=parameters,
        template=TrialTemplate("main", {parameter.name: parameter.name for parameter in parameters}, resource),
        parallel_trials=parallel,
        max_trials=trials,
        max_failed_trials=most_failed,
        early_stopping=stopping,
        collector=collector or Collector(),
        document=document,
    )


def shell(script: str) -> list[str]:
    """Return the command that runs a script; Katib collects the output of its last part, so it is put in braces."""
    return ["sh", "-c", "{ " + script + "; }"]
