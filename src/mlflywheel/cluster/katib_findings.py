"""Why a search on a cluster stands still: what pods, events and the Suggestion say, in sentences.

Every read here is optional. What may not be read is said, and nothing waits for it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflywheel.cluster.katib_status import count_finished, find_condition, read_number, read_status
from mlflywheel.cluster.kubernetes_client import (
    REQUEST_TIMEOUT_SECONDS,
    ApiClient,
    Cluster,
    CoreV1Api,
    CustomObjectsApi,
    RefusedError,
)

GROUP, VERSION = "kubeflow.org", "v1beta1"
EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
TRIAL_LABEL = "katib.kubeflow.org/trial"
INJECTION_LABEL = "katib.kubeflow.org/metrics-collector-injection"
_COLLECTOR_CONTAINERS = ("metrics-logger-and-collector", "metrics-collector")
# The controllers' ordinary retries after somebody else changed an object.
_NOISE = "the object has been modified"
_STARTING = ("ContainerCreating", "PodInitializing")
_SHOWN_FINDINGS = 6
_SHOWN_CHARACTERS = 240


@dataclass
class Findings:
    """What was found, and what could not be looked at.

    Args:
        found: Sentences without a full stop, the most telling first.
        unread: What the API server would not show.
    """

    found: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = self.found[:_SHOWN_FINDINGS] or ["nothing that can be read says why"]
        if self.unread:
            shown.append(f"could not be checked: {', '.join(self.unread)}")
        return "; ".join(shown)


def find_causes(cluster: Cluster, namespace: str, experiment: Mapping[str, Any]) -> Findings:
    """Look at everything around an Experiment that does not get on.

    Args:
        cluster: Where it is.
        namespace: Its namespace.
        experiment: The resource as last read.
    """
    findings = Findings()
    name = str(experiment["metadata"]["name"])
    status = read_status(experiment)
    if not status.conditions:
        findings.found.append(
            "Katib has not taken notice of it: is its controller running (kubectl get deployments -A | grep katib)?"
        )
    _look_at_namespace(cluster, namespace, findings)
    _look_at_suggestion(cluster, namespace, name, findings)
    running = [*(status.running_trial_list or ()), *(status.pending_trial_list or ())]
    saw_pods = _look_at_pods(cluster, namespace, name, running, findings)
    _look_at_events(cluster, namespace, name, saw_pods, findings)
    optimal = status.current_optimal_trial
    metric = ((experiment.get("spec") or {}).get("objective") or {}).get("objectiveMetricName")
    for observed in (optimal.observation.metrics if optimal and optimal.observation else ()) or ():
        if observed.name == metric and read_number(observed.latest) is None:
            findings.found.append(
                f"trial {optimal.best_trial_name} reported {metric} as something that is not a finite number, at which "
                "the services of some algorithms fail"
            )
    if not findings.found and find_condition(status, "Created") and not count_finished(status) and not running:
        findings.found.append("it is created, and no trial has begun")
    return findings


def read_suggestion_failure(cluster: Cluster, namespace: str, name: str) -> str:
    """Return why the algorithm's service refused the search; empty if it did not, or if that cannot be read."""
    findings = Findings()
    _look_at_suggestion(cluster, namespace, name, findings)
    return "; ".join(findings.found)


def _look_at_namespace(cluster: Cluster, namespace: str, findings: Findings) -> None:
    answer = _read(
        cluster,
        f"the label {INJECTION_LABEL} of the namespace",
        findings,
        lambda api: _plain(CoreV1Api(api).read_namespace, namespace),
    )
    if answer is not None and (answer["metadata"].get("labels") or {}).get(INJECTION_LABEL) != "enabled":
        findings.found.append(
            f"namespace {namespace} lacks the label {INJECTION_LABEL}=enabled, without which no metrics are collected"
        )


def _look_at_suggestion(cluster: Cluster, namespace: str, name: str, findings: Findings) -> None:
    answer = _read(
        cluster,
        "the Suggestion",
        findings,
        lambda api: CustomObjectsApi(api).get_namespaced_custom_object(
            GROUP, VERSION, namespace, "suggestions", name, _request_timeout=REQUEST_TIMEOUT_SECONDS
        ),
    )
    for condition in ((answer or {}).get("status") or {}).get("conditions") or ():
        kind, stands = condition.get("type"), condition.get("status")
        if (kind, stands) == ("Failed", "True"):
            findings.found.append(f"the algorithm's service refused it: {_line(condition.get('message'))}")
        elif (kind, stands) == ("DeploymentReady", "False"):
            findings.found.append("the algorithm's service is not ready")


def _look_at_pods(cluster: Cluster, namespace: str, name: str, running: Iterable[str], findings: Findings) -> bool:
    """Look at the pods of the algorithm's service and of trials; return whether they could be listed."""
    answer = _read(cluster, "pods", findings, lambda api: _list_pods(api, namespace, f"{EXPERIMENT_LABEL}={name}"))
    if answer is None:
        return False
    pods = list(answer["items"])
    labelled = {_labels(pod).get(TRIAL_LABEL) for pod in pods}
    # Pods get Katib's labels from its webhook, which sees them only in a labelled namespace. A Job's are always there.
    unlabelled = [trial for trial in running if trial not in labelled]
    if unlabelled:
        answer = _read(
            cluster,
            "pods",
            findings,
            lambda api: _list_pods(api, namespace, f"job-name in ({','.join(sorted(unlabelled))})"),
        )
        for pod in (answer or {}).get("items", ()):
            pods.append(pod)
            if (pod.get("status") or {}).get("phase") == "Succeeded":
                findings.found.append(
                    f"trial {_labels(pod).get('job-name')} has run, and no metrics collector was put beside it"
                )
    counts: Counter[str] = Counter()
    named: dict[str, str] = {}
    for pod in pods:
        role = "a trial's pod" if _is_trial(pod) else "the algorithm's pod"
        for state in _pod_states(pod):
            text = f"{role} {state}"
            counts[text] += 1
            named.setdefault(text, pod["metadata"]["name"])
    for text, count in counts.most_common():
        findings.found.append(f"{text} ({named[text]}{f' and {count - 1} more' if count > 1 else ''})")
    return True


def _pod_states(pod: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps a pod from its work."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"has no node: {_line(condition.get('message') or condition.get('reason'))}"
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"failed: {_line(status['reason'])} {_line(status.get('message'))}".rstrip()
    states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in states:
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            text = f"waits: container {container.get('name')}: {waiting['reason']}"
            yield f"{text}: {_line(waiting['message'])}" if waiting.get("message") else text
        if (ended or {}).get("reason") == "OOMKilled":
            yield f"needs more memory: container {container.get('name')}: OOMKilled"
    yield from _lingering(pod, states)


def _lingering(pod: Mapping[str, Any], states: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the sidecars that keep a trial's pod running after its work is done."""
    ended = [state for state in states if (state.get("state") or {}).get("terminated")]
    if not _is_trial(pod) or not ended:
        return
    for state in states:
        name = str(state.get("name"))
        if (state.get("state") or {}).get("running") and name not in _COLLECTOR_CONTAINERS:
            yield (
                f"does not end, because container {name} still runs (Istio's sidecar is left out with the pod label "
                'sidecar.istio.io/inject: "false")'
            )


def _look_at_events(cluster: Cluster, namespace: str, name: str, saw_pods: bool, findings: Findings) -> None:
    answer = _read(
        cluster,
        "events",
        findings,
        lambda api: _plain(CoreV1Api(api).list_namespaced_event, namespace, field_selector="type=Warning", limit=500),
    )
    last: dict[tuple[str, str], tuple[str, str]] = {}
    for event in (answer or {}).get("items", ()):
        about = event.get("involvedObject") or {}
        subject, kind = str(about.get("name", "")), str(about.get("kind", ""))
        if subject != name and not subject.startswith(f"{name}-"):
            continue
        message = _line(event.get("message"))
        # Pods were looked at themselves, and say it better.
        if _NOISE in message or (kind == "Pod" and saw_pods):
            continue
        when = str(event.get("lastTimestamp") or event.get("eventTime") or "")
        key = (kind, str(event.get("reason")))
        last[key] = max(last.get(key, ("", "")), (when, f"{kind} {subject}: {event.get('reason')}: {message}"))
    findings.found.extend(text for _, text in sorted(last.values(), reverse=True)[:3])


def _read(
    cluster: Cluster, what: str, findings: Findings, send: Callable[[ApiClient], dict[str, Any]]
) -> dict[str, Any] | None:
    """Read what may not be there or not be permitted."""
    try:
        return cluster.try_once(send)
    except RefusedError as error:
        if error.status != 404:
            _note(findings, f"{what} (not permitted)" if error.status in (401, 403) else f"{what} ({error.status})")
    except ConnectionError:
        _note(findings, f"{what} (no answer)")
    return None


def _note(findings: Findings, text: str) -> None:
    if text not in findings.unread:
        findings.unread.append(text)


def _list_pods(api: ApiClient, namespace: str, selector: str) -> dict[str, Any]:
    return _plain(CoreV1Api(api).list_namespaced_pod, namespace, label_selector=selector)


def _plain(method: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Call a typed API for its JSON: the client's own classes refuse values that are newer than they are."""
    response = method(*args, **options, _preload_content=False, _request_timeout=REQUEST_TIMEOUT_SECONDS)
    try:
        answer = json.loads(response.data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ConnectionError("the answer is no JSON object")
    return answer


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _is_trial(pod: Mapping[str, Any]) -> bool:
    return TRIAL_LABEL in _labels(pod) or "job-name" in _labels(pod)


def _line(value: Any) -> str:
    text = " ".join(str(value or "").split()).rstrip(".")
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
