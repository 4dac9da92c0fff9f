"""What Katib's controllers do to Experiments, Suggestions and Trials, without pods: a stand-in for tests.

Each trial's outcome is given in advance; everything else follows Katib's source (`pkg/controller.v1beta1`, v0.19): the
finalizers, names, labels and owners, the conditions in their order, how observations and the best trial come about, and
when an Experiment ends. So a trial that reported `nan` becomes the best here too.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes import client

GROUP, VERSION = "kubeflow.org", "v1beta1"
_EXPERIMENT_FINALIZER, _TRIAL_FINALIZER = "update-prometheus-metrics", "clean-metrics-in-db"
_LABEL = "katib.kubeflow.org/experiment"
_UNAVAILABLE = "unavailable"
_ENDED = ("Killed", "Failed", "Succeeded", "EarlyStopped", "MetricsUnavailable")


@dataclass(frozen=True)
class Outcome:
    """How a trial ends: the values that were collected for each metric, as text, in the order of reporting."""

    reports: Mapping[str, Sequence[str]] = field(default_factory=dict)
    condition: str = "Succeeded"
    message: str = ""


Run = Callable[[Mapping[str, Any]], Outcome]
"""Takes a trial as Katib stores it, and does what its pod would."""


class KatibStandIn:
    """Plays Katib in one namespace, until it is stopped; use with `with`.

    Args:
        api: A client with an administrator's rights, used by nobody else.
        namespace: Where.
        outcomes: One for each trial, in order, or what runs the trial and returns one; when there are no more, the
            suggestions have come to their end.
        holds_after: Trials that have ended, after which nothing happens until `go_on` is called.
        suggestion_failure: What the algorithm's service says against the Experiment.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        outcomes: Sequence[Outcome | Run],
        *,
        holds_after: int | None = None,
        suggestion_failure: str = "",
    ) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._resources = client.CustomObjectsApi(api)
        self._namespace = namespace
        self._outcomes = outcomes
        self._holds_after = holds_after
        self._suggestion_failure = suggestion_failure
        self._end_asked = threading.Event()
        #: Set when `holds_after` trials have ended.
        self.is_holding = threading.Event()
        self.failure: BaseException | None = None

    def __enter__(self) -> "KatibStandIn":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_asked.set()
        self._thread.join(timeout=30)
        if self.failure is not None:
            raise self.failure

    def go_on(self) -> None:
        """Go on after `holds_after`."""
        self._holds_after = None

    def _run(self) -> None:
        """Look at every Experiment, again and again."""
        while not self._end_asked.wait(0.02):
            try:
                for experiment in self._list("experiments"):
                    self._reconcile(experiment)
            except client.ApiException as error:
                # As a controller does: what changed in between, or a server that is away, is met in the next round.
                if error.status not in (404, 409, 429, 500, 503):
                    self.failure = error
                    return
            except urllib3.exceptions.HTTPError:
                self._end_asked.wait(0.1)
            except Exception as error:
                self.failure = error
                return

    def _reconcile(self, experiment: dict[str, Any]) -> None:
        metadata = experiment["metadata"]
        trials = self._list("trials", f"{_LABEL}={metadata['name']}")
        if metadata.get("deletionTimestamp"):
            self._finish_deletion(experiment, trials)
            return
        if _EXPERIMENT_FINALIZER not in metadata.get("finalizers", ()):
            metadata["finalizers"] = [*metadata.get("finalizers", ()), _EXPERIMENT_FINALIZER]
            self._replace("experiments", experiment)
            return
        status = experiment["status"]
        if not _is_true(status, "Created"):
            status |= {"startTime": _now(), "completionTime": None}
            _set_condition(status, "Created", "ExperimentCreated", "Experiment is created")
            self._write_status("experiments", experiment)
            return
        if _is_true(status, "Succeeded") or _is_true(status, "Failed"):
            return
        suggestion = self._suggestion(experiment)
        if self._suggestion_failure:
            _set_condition(suggestion["status"], "Failed", "SuggestionFailed", self._suggestion_failure)
            self._write_status("suggestions", suggestion)
            _mark(status, "Failed", "ExperimentFailed", "Suggestion has failed")
            self._write_status("experiments", experiment)
            return
        ended = sum(_ending(trial) is not None for trial in trials)
        if self._holds_after is not None and ended >= self._holds_after:
            self.is_holding.set()
            return
        self._work(experiment, trials)
        trials = self._list("trials", f"{_LABEL}={metadata['name']}")
        _summarize(experiment, trials, has_more=len(trials) < len(self._outcomes))
        self._write_status("experiments", experiment)

    def _work(self, experiment: dict[str, Any], trials: list[dict[str, Any]]) -> None:
        """Take the first trial that has not ended one step further, and begin others beside it."""
        spec = experiment["spec"]
        active = [trial for trial in trials if _ending(trial) is None]
        room = spec.get("parallelTrialCount", 3) - len(active)
        room = min(
            room, spec.get("maxTrialCount", len(self._outcomes)) - len(trials), len(self._outcomes) - len(trials)
        )
        for number in range(len(trials), len(trials) + room):
            self._create_trial(experiment, number)
        for trial in active:
            if not _is_true(trial["status"], "Running"):
                _set_condition(trial["status"], "Running", "TrialRunning", "Trial is running")
                self._write_status("trials", trial)
        for trial in active[:1]:
            outcome = self._outcomes[int(trial["metadata"]["annotations"]["number"])]
            self._end_trial(trial, outcome if isinstance(outcome, Outcome) else outcome(trial))

    def _create_trial(self, experiment: dict[str, Any], number: int) -> None:
        metadata, spec = experiment["metadata"], experiment["spec"]
        created = self._resources.create_namespaced_custom_object(
            GROUP,
            VERSION,
            self._namespace,
            "trials",
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "Trial",
                "metadata": {
                    "name": f"{metadata['name']}-{number:08d}",
                    "labels": {**metadata.get("labels", {}), _LABEL: metadata["name"]},
                    "annotations": {"number": str(number)},
                    "finalizers": [_TRIAL_FINALIZER],
                    "ownerReferences": [_owner(experiment)],
                },
                "spec": {
                    "objective": spec["objective"],
                    "parameterAssignments": [
                        {"name": parameter["name"], "value": _suggest(parameter, number)}
                        for parameter in spec["parameters"]
                    ],
                    "runSpec": spec["trialTemplate"]["trialSpec"],
                    "metricsCollector": {"collector": {"kind": "StdOut"}},
                    "primaryContainerName": spec["trialTemplate"]["primaryContainerName"],
                },
            },
        )
        created["status"] = {"startTime": _now(), "completionTime": None}
        _set_condition(created["status"], "Created", "TrialCreated", "Trial is created")
        self._write_status("trials", created)

    def _end_trial(self, trial: dict[str, Any], outcome: Outcome) -> None:
        if outcome.reports:
            trial["status"]["observation"] = {
                "metrics": [_observe(name, values) for name, values in outcome.reports.items()]
            }
        reason = {"Succeeded": "TrialSucceeded", "Failed": "TrialFailed"}.get(outcome.condition, outcome.condition)
        _mark(trial["status"], outcome.condition, reason, outcome.message or f"Trial has {outcome.condition}")
        trial["status"]["completionTime"] = _now()
        self._write_status("trials", trial)

    def _suggestion(self, experiment: dict[str, Any]) -> dict[str, Any]:
        name = experiment["metadata"]["name"]
        for found in self._list("suggestions"):
            if found["metadata"]["name"] == name:
                return found
        made: dict[str, Any] = self._resources.create_namespaced_custom_object(
            GROUP,
            VERSION,
            self._namespace,
            "suggestions",
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "Suggestion",
                "metadata": {"name": name, "ownerReferences": [_owner(experiment)]},
                "spec": {"algorithm": experiment["spec"]["algorithm"], "requests": 1},
            },
        )
        made["status"] = {"startTime": _now()}
        _set_condition(made["status"], "Created", "SuggestionCreated", "Suggestion is created")
        _set_condition(made["status"], "DeploymentReady", "DeploymentReady", "Deployment is ready")
        written = self._write_status("suggestions", made)
        return written

    def _finish_deletion(self, experiment: dict[str, Any], trials: list[dict[str, Any]]) -> None:
        """Do the parts of Katib and of Kubernetes' garbage collection: dependents first, then the Experiment."""
        name = experiment["metadata"]["name"]
        for trial in trials:
            if trial["metadata"].get("finalizers"):
                trial["metadata"]["finalizers"] = []
                self._replace("trials", trial)
            self._delete("trials", trial["metadata"]["name"])
        for found in self._list("suggestions"):
            if found["metadata"]["name"] == name:
                self._delete("suggestions", name)
        experiment["metadata"]["finalizers"] = []
        self._replace("experiments", experiment)

    def _list(self, plural: str, selector: str = "") -> list[dict[str, Any]]:
        answer = self._resources.list_namespaced_custom_object(
            GROUP, VERSION, self._namespace, plural, label_selector=selector, _request_timeout=5
        )
        for item in answer["items"]:
            item.setdefault("status", {})
        return sorted(answer["items"], key=lambda item: item["metadata"]["name"])

    def _write_status(self, plural: str, resource: dict[str, Any]) -> dict[str, Any]:
        written: dict[str, Any] = self._resources.replace_namespaced_custom_object_status(
            GROUP, VERSION, self._namespace, plural, resource["metadata"]["name"], resource, _request_timeout=5
        )
        resource["metadata"] = written["metadata"]
        return written

    def _replace(self, plural: str, resource: dict[str, Any]) -> None:
        self._resources.replace_namespaced_custom_object(
            GROUP, VERSION, self._namespace, plural, resource["metadata"]["name"], resource, _request_timeout=5
        )

    def _delete(self, plural: str, name: str) -> None:
        self._resources.delete_namespaced_custom_object(
            GROUP, VERSION, self._namespace, plural, name, _request_timeout=5
        )


def _summarize(experiment: dict[str, Any], trials: Sequence[Mapping[str, Any]], *, has_more: bool) -> None:
    """Write counters, the best trial and, when it is time, the end into an Experiment's status."""
    spec, status = experiment["spec"], experiment["status"]
    lists: dict[str, list[str]] = {kind: [] for kind in (*_ENDED, "Running", "Pending")}
    best: tuple[Mapping[str, Any], float] | None = None
    goal_reached = False
    sign = 1.0 if spec["objective"]["type"] == "minimize" else -1.0
    goal = spec["objective"].get("goal")
    for trial in trials:
        lists[_ending(trial) or ("Running" if _is_true(trial["status"], "Running") else "Pending")].append(
            trial["metadata"]["name"]
        )
        text = _objective_text(spec["objective"], trial)
        if text == _UNAVAILABLE:
            continue
        try:
            value = float(text)
        except ValueError:
            # Katib: what is no number is the best so far.
            best = (trial, best[1] if best else 0.0)
            continue
        if best is None or sign * value < sign * best[1]:
            best = (trial, value)
        goal_reached = goal_reached or (goal is not None and sign * best[1] <= sign * goal)
    names = {
        "Running": ("runningTrialList", "trialsRunning"),
        "Pending": ("pendingTrialList", "trialsPending"),
        "Killed": ("killedTrialList", "trialsKilled"),
        "Failed": ("failedTrialList", "trialsFailed"),
        "Succeeded": ("succeededTrialList", "trialsSucceeded"),
        "EarlyStopped": ("earlyStoppedTrialList", "trialsEarlyStopped"),
        "MetricsUnavailable": ("metricsUnavailableTrialList", "trialMetricsUnavailable"),
    }
    for kind, (list_name, count_name) in names.items():
        for name in (list_name, count_name):
            status.pop(name, None)
        if lists[kind]:
            status |= {list_name: lists[kind], count_name: len(lists[kind])}
    if trials:
        status["trials"] = len(trials)
    if best is not None:
        status["currentOptimalTrial"] = {
            "bestTrialName": best[0]["metadata"]["name"],
            "parameterAssignments": best[0]["spec"]["parameterAssignments"],
            "observation": best[0]["status"]["observation"],
        }
    else:
        status["currentOptimalTrial"] = {"observation": {}}
    ended = sum(len(lists[kind]) for kind in _ENDED)
    failed = len(lists["Failed"]) + len(lists["MetricsUnavailable"])
    if goal_reached:
        _mark(
            status, "Succeeded", "ExperimentGoalReached", "Experiment has succeeded because Objective goal has reached"
        )
    elif failed and failed >= spec.get("maxFailedTrialCount", failed + 1):
        _mark(status, "Failed", "ExperimentFailed", "Experiment has failed because max failed count has reached")
    elif ended >= spec.get("maxTrialCount", ended + 1):
        _mark(
            status,
            "Succeeded",
            "ExperimentMaxTrialsReached",
            "Experiment has succeeded because max trial count has reached",
        )
    elif not has_more and ended == len(trials):
        _mark(
            status,
            "Succeeded",
            "ExperimentSuggestionEndReached",
            "Experiment has succeeded because suggestion service has reached the end",
        )
    else:
        _set_condition(status, "Running", "ExperimentRunning", "Experiment is running")
        return
    status["completionTime"] = _now()


def _objective_text(objective: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    strategies = {one["name"]: one["value"] for one in objective.get("metricStrategies", ())}
    name = objective["objectiveMetricName"]
    strategy = strategies.get(name, "min" if objective["type"] == "minimize" else "max")
    for metric in (trial["status"].get("observation") or {}).get("metrics", ()):
        if metric["name"] == name:
            return str(metric["latest"] if metric[strategy] == _UNAVAILABLE else metric[strategy])
    return _UNAVAILABLE


def _observe(name: str, values: Sequence[str]) -> dict[str, str]:
    numbers = []
    for value in values:
        try:
            numbers.append((float(value), value))
        except ValueError:
            continue
    low = min(numbers)[1] if numbers else _UNAVAILABLE
    high = max(numbers)[1] if numbers else _UNAVAILABLE
    return {"name": name, "min": low, "max": high, "latest": values[-1] if values else _UNAVAILABLE}


def _suggest(parameter: Mapping[str, Any], number: int) -> str:
    space = parameter["feasibleSpace"]
    if "list" in space:
        return str(space["list"][number % len(space["list"])])
    low, high = float(space["min"]), float(space["max"])
    value = low + (high - low) * ((number * 0.37) % 1.0)
    return str(int(value)) if parameter["parameterType"] == "int" else repr(value)


def _mark(status: dict[str, Any], kind: str, reason: str, message: str) -> None:
    running = next((one for one in status.get("conditions", ()) if one["type"] == "Running"), None)
    if running is not None:
        _set_condition(status, "Running", running["reason"], running["message"], "False")
    _set_condition(status, kind, reason, message)


def _set_condition(status: dict[str, Any], kind: str, reason: str, message: str, value: str = "True") -> None:
    known = next((one for one in status.get("conditions", ()) if one["type"] == kind), None)
    if known is not None and (known["status"], known["reason"]) == (value, reason):
        return
    now = _now()
    status["conditions"] = [one for one in status.get("conditions", ()) if one["type"] != kind]
    status["conditions"].append(
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "lastUpdateTime": now,
            "lastTransitionTime": now if known is None or known["status"] != value else known["lastTransitionTime"],
        }
    )


def _is_true(status: Mapping[str, Any], kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in status.get("conditions", ()))


def _ending(trial: Mapping[str, Any]) -> str | None:
    return next((kind for kind in _ENDED if _is_true(trial.get("status", {}), kind)), None)


def _owner(experiment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Experiment",
        "name": experiment["metadata"]["name"],
        "uid": experiment["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
