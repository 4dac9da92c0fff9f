"""Searches by a cluster's Katib: hand an Experiment over, wait for it, and read what was found.

- **One search, one Experiment.** Its name ends in a piece of the spec's hash, and an annotation holds the whole. A
  second call with the same spec, such as a retried pipeline step, takes the Experiment up instead of starting another.
- **The best trial is chosen here,** from values that are finite numbers: Katib counts a trial whose metric was `nan`
  as the best, and calls an Experiment without a single good trial succeeded.
- **Waiting explains itself.** When nothing moves, pods, events and the namespace's label are looked at.

Kubeflow means to replace Katib; everything that knows it is in this file and its three neighbours `katib_*`.
"""

import random
import re
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, get_args

from mlflywheel.cluster.katib_findings import (
    EXPERIMENT_LABEL,
    GROUP,
    INJECTION_LABEL,
    VERSION,
    find_causes,
    read_suggestion_failure,
)
from mlflywheel.cluster.katib_limits import check_limits
from mlflywheel.cluster.katib_status import (
    count_finished,
    find_condition,
    read_optimal,
    read_status,
    read_trials,
)
from mlflywheel.cluster.kubernetes_client import (
    REQUEST_TIMEOUT_SECONDS,
    UNAVAILABLE_SECONDS,
    ApiClient,
    Cluster,
    Connection,
    CustomObjectsApi,
    DeadlinePassedError,
    RefusedError,
    V1DeleteOptions,
    V1Preconditions,
    connect,
)
from mlflywheel.errors import TuningError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.search import Reason, SearchResult, Trial, Tuner, conclude, find_best

Cleanup = Literal["never", "on_success", "always"]

HASH_ANNOTATION = "mlflywheel.io/spec-hash"
MANAGER_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "mlflywheel"
#: What grants the permissions that a search needs, in this project's repository.
MANIFEST = "manifests/katib"
_EXPERIMENTS, _TRIALS = f"experiments.{GROUP}", f"trials.{GROUP}"
# Katib's limit, since it makes longer names from it.
_NAME_CHARACTERS = 40
_HASH_CHARACTERS = 8
# In units of the poll interval: when a search that does not move is first explained, and how often at the least.
_QUIET_POLLS = 15
_LONGEST_PAUSE_SECONDS = 15.0
_LONGEST_QUIET_SECONDS = 600.0
_INTERRUPT_SECONDS = 15.0
_SHOWN_FAILURES = 3
_REASONS: Mapping[str, Reason] = {reason: reason for reason in get_args(Reason)}


class KatibTuner(Tuner):
    """Runs a search's trials as pods of a cluster, by its Katib.

    Args:
        namespace: Where the Experiment is created. Without one, the document's, else the pod's own, else that of the
            kubeconfig's context.
        context: Context of the kubeconfig; without one, the pod's service account, else the current context.
        timeout_seconds: Limit for the whole search; None for none. The Experiment goes on after it, unless `cleanup`
            is `always`.
        cleanup: Whether the Experiment is deleted afterwards, with its trials: `never`, `on_success` after its result
            was read, or `always`, also after an error, the timeout and Ctrl-C.
        service_account: Service account of the trials' pods; the template's own, or the namespace's default, if left
            out.
        poll_seconds: The first pause between two looks at the Experiment; it grows to eightfold, 15 seconds at most,
            while nothing changes.
        unavailable_seconds: How long the API server may be away in one stretch.
        client: An API client to use instead of loading one. It is neither closed nor loaded again.
    """

    name = "katib"

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        timeout_seconds: float | None = None,
        cleanup: Cleanup = "never",
        service_account: str | None = None,
        poll_seconds: float = 2.0,
        unavailable_seconds: float = UNAVAILABLE_SECONDS,
        client: ApiClient | None = None,
    ) -> None:
        if cleanup not in get_args(Cleanup):
            raise UsageError("cleanup", repr(cleanup), f"one of {', '.join(get_args(Cleanup))} is needed", "choose one")
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise UsageError(
                "timeout", f"{timeout_seconds} s", "more than 0 is needed", "give seconds, or leave it out"
            )
        self.namespace = namespace
        self.context = context
        self.timeout_seconds = timeout_seconds
        self.cleanup = cleanup
        self.service_account = service_account
        self.poll_seconds = poll_seconds
        self.unavailable_seconds = unavailable_seconds
        self.client = client

    @property
    def longest_pause_seconds(self) -> float:
        """The longest pause between two looks at the Experiment."""
        return max(self.poll_seconds, min(8 * self.poll_seconds, _LONGEST_PAUSE_SECONDS))

    def check(self, experiment: Experiment) -> None:
        """Refuse what Katib accepts and would then do otherwise, or never end.

        Raises:
            UsageError: With the field, the reason and what would do.
        """
        check_limits(experiment, self.service_account)

    def search(self, experiment: Experiment, progress: ProgressCallback = ignore_progress) -> SearchResult:
        """Create the Experiment, or take up the one of an earlier call, and wait for its end.

        Args:
            experiment: The search. Data and keys have to be in its environment already.
            progress: Called with the phase `trials`, finished ones and their number, 0 for no limit; and, when
                something keeps the search from getting on, with a sentence as the phase.

        Raises:
            UsageError: What `check` refuses, or Katib itself.
            TuningError: The search failed or was deleted, time is over, the cluster does not permit it, or no trial
                has an objective value.
            KeyboardInterrupt: Ctrl-C; its message says what became of the Experiment.
        """
        self.check(experiment)
        if self.client is not None:
            connection = Connection(self.client, None, "the given client")
        else:
            connection = connect(self.context)
        cluster = Cluster(
            connection,
            TuningError,
            MANIFEST,
            self.context,
            is_own=self.client is None,
            unavailable_seconds=self.unavailable_seconds,
            pause_seconds=min(self.poll_seconds, 0.5),
            longest_pause_seconds=self.longest_pause_seconds,
        )
        try:
            return _Search(self, cluster, experiment, progress).run()
        finally:
            cluster.close()


def name_experiment(experiment: Experiment) -> str:
    """Return the name on the cluster: the Experiment's own with a piece of the spec's hash, 40 characters at most.

    Args:
        experiment: The search as it is sent.
    """
    piece = experiment.spec_hash.rpartition(":")[2][:_HASH_CHARACTERS]
    base = re.sub(r"[^a-z0-9-]", "-", experiment.name.lower())[: _NAME_CHARACTERS - 1 - _HASH_CHARACTERS].strip("-")
    return f"{base}-{piece}"


def with_service_account(experiment: Experiment, name: str | None) -> Experiment:
    """Return the search with its trials' pods run as a service account; as it is if that is None."""
    if name is None:
        return experiment
    document = deepcopy(dict(experiment.document))
    spec = document["spec"]["trialTemplate"]["trialSpec"]
    spec["spec"]["template"]["spec"]["serviceAccountName"] = name
    return replace(experiment, template=replace(experiment.template, spec=spec), document=document)


@dataclass
class _Search:
    """One call of `KatibTuner.search`."""

    tuner: KatibTuner
    cluster: Cluster
    experiment: Experiment
    progress: ProgressCallback
    uid: str = ""
    is_adopted: bool = False
    resumed: int = 0
    finished: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment = with_service_account(self.experiment, self.tuner.service_account)
        self.namespace = self._choose_namespace()
        self.name = name_experiment(self.experiment)
        self.where = f"Experiment {self.namespace}/{self.name}"
        seconds = self.tuner.timeout_seconds
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.cluster.told = self._tell

    @property
    def delete_command(self) -> str:
        return f"kubectl delete {_EXPERIMENTS} {self.name} -n {self.namespace}"

    @property
    def total(self) -> int:
        return self.experiment.max_trials or 0

    def run(self) -> SearchResult:
        try:
            found = self._create_or_adopt()
            found = self._wait(found)
            result = self._read_result(found)
        except KeyboardInterrupt:
            self._end_interrupted()
        except DeadlinePassedError as error:
            timeout = self._timed_out(f"the API server is away: {error}")
            self._clean_up_after_error()
            raise timeout from error
        except (TuningError, UsageError):
            self._clean_up_after_error()
            raise
        if self.tuner.cleanup in ("on_success", "always"):
            self._clean_up()
        return replace(result, facts={**result.facts, "notes": list(self.notes)})

    def _choose_namespace(self) -> str:
        metadata = self.experiment.document.get("metadata") or {}
        namespace = self.tuner.namespace or metadata.get("namespace") or self.cluster.connection.namespace
        if not namespace:
            raise UsageError(
                f"Experiment {self.experiment.name}",
                "no namespace",
                f"neither metadata.namespace nor {self.cluster.connection.source} names one",
                "give one with --namespace",
            )
        return str(namespace)

    def _tell(self, line: str) -> None:
        self.progress(line, self.finished, self.total)

    # Creating it.

    def _body(self) -> dict[str, Any]:
        document = deepcopy(dict(self.experiment.document))
        metadata = document.get("metadata") or {}
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Experiment",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {**(metadata.get("labels") or {}), MANAGER_LABEL: MANAGER},
                # A label's value ends at 63 characters; the hash is longer.
                "annotations": {**(metadata.get("annotations") or {}), HASH_ANNOTATION: self.experiment.spec_hash},
            },
            "spec": document["spec"],
        }

    def _create_or_adopt(self) -> dict[str, Any]:
        told = False
        while True:
            try:
                found = self._create()
            except RefusedError as error:
                if error.status != 409:
                    raise self._explain_refusal(error) from error
                existing = self._get()
                if existing is None:
                    # Gone in between, or a conflict over a quota.
                    self._pause(self.tuner.poll_seconds, self._body())
                    continue
                if not existing["metadata"].get("deletionTimestamp"):
                    return self._adopt(existing)
                # An earlier call's, whose trials are being removed.
                if not told:
                    self._tell(f"waiting for {self.where} to be gone, which is being deleted")
                    told = True
                self._pause(self.tuner.poll_seconds, existing)
                continue
            self.uid = found["metadata"]["uid"]
            self._tell(f"{self.where} is created")
            return found

    def _create(self) -> dict[str, Any]:
        body = self._body()
        found: dict[str, Any] = self.cluster.call(
            "create",
            _EXPERIMENTS,
            self.namespace,
            lambda api: CustomObjectsApi(api).create_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                "experiments",
                body,
                field_manager=MANAGER,
                _request_timeout=REQUEST_TIMEOUT_SECONDS,
            ),
            self.deadline,
        )
        return found

    def _get(self) -> dict[str, Any] | None:
        """Return the Experiment; None if there is none of that name."""
        try:
            found: dict[str, Any] = self.cluster.call(
                "get",
                _EXPERIMENTS,
                self.namespace,
                lambda api: CustomObjectsApi(api).get_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    "experiments",
                    self.name,
                    _request_timeout=REQUEST_TIMEOUT_SECONDS,
                ),
                self.deadline,
            )
        except RefusedError as error:
            if error.status == 404 and not error.is_unknown_kind:
                return None
            raise self._explain_refusal(error) from error
        return found

    def _adopt(self, existing: dict[str, Any]) -> dict[str, Any]:
        metadata = existing["metadata"]
        stored = (metadata.get("annotations") or {}).get(HASH_ANNOTATION)
        if stored != self.experiment.spec_hash:
            raise TuningError(
                self.where,
                f"there already, created {metadata.get('creationTimestamp')} by {_describe_owner(metadata)}, "
                + (f"with the spec {stored}" if stored else "not by this library"),
                f"the name is needed for the spec {self.experiment.spec_hash}",
                f"give this search another metadata.name, or {self.delete_command}",
            )
        self.uid, self.is_adopted = metadata["uid"], True
        status = read_status(existing)
        self.resumed = self.finished = count_finished(status)
        failed = find_condition(status, "Failed")
        if failed is not None:
            raise TuningError(
                self.where,
                f"failed in an earlier call: {self._describe_failure(existing)}",
                "a failed Experiment does not run again",
                f"mend what failed and {self.delete_command}, or change the spec",
            )
        self._tell(f"{self.where} of an earlier call is taken up")
        return existing

    def _explain_refusal(self, error: RefusedError) -> TuningError | UsageError:
        if error.is_unknown_kind:
            return TuningError(
                f"namespace {self.namespace}",
                f"the cluster does not know {_EXPERIMENTS}",
                "Katib has to be installed",
                "install Katib, or run the search on this machine with --executor local",
            )
        if error.status == 404:
            return TuningError(
                f"namespace {self.namespace}",
                error.message,
                "the namespace has to exist",
                "create it, or give another one with --namespace",
            )
        if INJECTION_LABEL in error.message:
            return TuningError(
                f"namespace {self.namespace}",
                error.message,
                "Katib collects metrics in labelled namespaces only",
                f"kubectl label namespace {self.namespace} {INJECTION_LABEL}=enabled",
            )
        if error.status in (400, 413, 422):
            return UsageError(
                f"Experiment {self.experiment.name}",
                f"Katib refuses it: {error.message}",
                "its own checks have to pass",
                "correct the Experiment",
            )
        return TuningError(self.where, str(error), "the API server has to accept it", "see the message")

    # Waiting for it.

    def _wait(self, found: dict[str, Any]) -> dict[str, Any]:
        poll = self.tuner.poll_seconds
        pause, explain_after = poll, _QUIET_POLLS * poll
        seen: Any = None
        quiet_since = time.monotonic()
        while True:
            status = read_status(found)
            self.finished = count_finished(status)
            standing = (self.finished, status.trials, status.trials_running, len(status.conditions or ()))
            if standing != seen:
                self.progress("trials", self.finished, self.total)
                seen, quiet_since = standing, time.monotonic()
                pause, explain_after = poll, _QUIET_POLLS * poll
            if find_condition(status, "Succeeded") is not None:
                return found
            if find_condition(status, "Failed") is not None:
                self._raise_failed(found)
            if time.monotonic() - quiet_since >= explain_after:
                findings = find_causes(self.cluster, self.namespace, found)
                # Long trials are no fault: without a cause, only a search that never began is worth a line.
                if findings.found or not status.trials:
                    self._tell(f"waiting: {findings}")
                explain_after += min(explain_after, _LONGEST_QUIET_SECONDS)
            self._pause(pause, found)
            pause = min(pause * 1.5, self.tuner.longest_pause_seconds)
            latest = self._get()
            if latest is None or latest["metadata"].get("deletionTimestamp") or latest["metadata"]["uid"] != self.uid:
                self.uid = ""
                raise TuningError(
                    self.where,
                    f"deleted by somebody else, after {self.finished} finished trials",
                    "the search goes on in the cluster",
                    "run the same command again, which creates it anew",
                )
            found = latest

    def _pause(self, seconds: float, found: Mapping[str, Any]) -> None:
        """Sleep, with jitter; at the deadline say what was found."""
        seconds *= random.uniform(0.8, 1.2)
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise self._timed_out(str(find_causes(self.cluster, self.namespace, found)))
            seconds = min(seconds, left)
        time.sleep(seconds)

    def _timed_out(self, why: str) -> TuningError:
        trials = f"{self.finished} of {self.total}" if self.total else f"{self.finished}"
        again = (
            "it is deleted, as cleanup asks for"
            if self.tuner.cleanup == "always"
            else f"it goes on: the same command takes it up again, and {self.delete_command} ends it"
        )
        return TuningError(
            self.where,
            f"not finished after {self.tuner.timeout_seconds:g} s, with {trials} trials finished; {why}",
            again,
            "wait longer, or mend what was found",
        )

    def _describe_failure(self, found: Mapping[str, Any]) -> str:
        """Say why an Experiment failed, from its condition, its trials and the algorithm's service."""
        status = read_status(found)
        failed = find_condition(status, "Failed")
        text = str(failed.message or failed.reason).rstrip(".") if failed is not None else ""
        refused = read_suggestion_failure(self.cluster, self.namespace, self.name)
        if refused:
            text += f"; {refused}"
        trials = self._list_trials() or ()
        messages: dict[str, list[str]] = {}
        for trial in trials:
            if trial.status in ("failed", "metrics_unavailable"):
                messages.setdefault(trial.message.rstrip("."), []).append(trial.name)
        for message, names in list(messages.items())[:_SHOWN_FAILURES]:
            text += f"; {len(names)} trials, {names[0]} the first: {message}"
        return text

    def _raise_failed(self, found: Mapping[str, Any]) -> NoReturn:
        raise TuningError(
            self.where,
            f"failed: {self._describe_failure(found)}",
            "the search has to reach its end",
            f"read the trials' output with kubectl logs -n {self.namespace} -l {EXPERIMENT_LABEL}={self.name} --prefix "
            f"--all-containers, mend it, then {self.delete_command}",
        )

    # Reading what it found.

    def _list_trials(self) -> tuple[Trial, ...] | None:
        """Return the trials; None, with a note, if they may not be listed."""
        try:
            answer = self.cluster.call(
                "list",
                _TRIALS,
                self.namespace,
                lambda api: CustomObjectsApi(api).list_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    "trials",
                    label_selector=f"{EXPERIMENT_LABEL}={self.name}",
                    _request_timeout=REQUEST_TIMEOUT_SECONDS,
                ),
                self.deadline,
            )
        except (TuningError, RefusedError) as error:
            self.notes.append(f"trials could not be listed: {error}")
            return None
        return read_trials(self.experiment.objective, answer["items"])

    def _read_result(self, found: Mapping[str, Any]) -> SearchResult:
        status = read_status(found)
        objective = self.experiment.objective
        optimal = read_optimal(objective, status.current_optimal_trial)
        listed = self._list_trials()
        trials = listed if listed is not None else ((optimal,) if optimal is not None else ())
        best = find_best(objective, trials)
        if best is None:
            raise TuningError(
                self.where,
                f"ended with {len(trials) if listed is not None else self.finished} trials, none of which has a finite "
                f"{objective.metric}: {_describe_trials(trials)}",
                "a best trial is needed, although Katib calls the Experiment succeeded",
                f"read the trials' messages with kubectl get {_TRIALS} -n {self.namespace} -o yaml, then "
                f"{self.delete_command}",
            )
        if optimal is not None and optimal.objective != best.objective:
            self.notes.append(
                f"Katib names {optimal.name} the best, with {optimal.objective}; it is {best.name}, with "
                f"{best.objective}, by the values that are finite numbers"
            )
        return SearchResult(
            experiment=self.experiment.name,
            executor=self.tuner.name,
            objective=objective,
            trials=trials,
            reason=self._reason(status, trials),
            resumed=self.resumed,
            facts={
                "namespace": self.namespace,
                "name": self.name,
                "uid": self.uid,
                "spec_hash": self.experiment.spec_hash,
                "connection": self.cluster.connection.source,
                "adopted": self.is_adopted,
                "trials": "all" if listed is not None else "the best only",
            },
        )

    def _reason(self, status: Any, trials: tuple[Trial, ...]) -> Reason:
        condition = find_condition(status, "Succeeded")
        reason = "" if condition is None else str(condition.reason)
        if reason in _REASONS:
            return _REASONS[reason]
        self.notes.append(f"Katib gives the reason {reason!r}, which is not known")
        return conclude(self.experiment, trials, suggestions_ended=True) or "ExperimentMaxTrialsReached"

    # Leaving it.

    def _end_interrupted(self) -> NoReturn:
        if not self.uid:
            raise KeyboardInterrupt
        if self.tuner.cleanup == "always":
            self.deadline = time.monotonic() + _INTERRUPT_SECONDS
            self._clean_up()
            text = f"{self.where}: {self.notes[-1]}"
        else:
            text = f"{self.where} goes on: the same command takes it up again, and {self.delete_command} ends it"
        self._tell(f"interrupted; {text}")
        raise KeyboardInterrupt(text)

    def _clean_up_after_error(self) -> None:
        if self.tuner.cleanup == "always" and self.uid:
            self.deadline = time.monotonic() + _INTERRUPT_SECONDS
            self._clean_up()

    def _clean_up(self) -> None:
        """Delete the Experiment; what goes wrong is noted, since a result must not be lost by it."""
        # In the foreground: Katib finds trials by the Experiment's name, so one that is created anew must not meet the
        # old one's. The uid, because by now the name may be somebody else's.
        options = V1DeleteOptions(propagation_policy="Foreground", preconditions=V1Preconditions(uid=self.uid))
        try:
            self.cluster.call(
                "delete",
                _EXPERIMENTS,
                self.namespace,
                lambda api: CustomObjectsApi(api).delete_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    "experiments",
                    self.name,
                    body=options,
                    _request_timeout=REQUEST_TIMEOUT_SECONDS,
                ),
                self.deadline,
            )
        except RefusedError as error:
            if error.status != 404:
                self._note_left(str(error))
                return
        except (DeadlinePassedError, TuningError, UsageError) as error:
            self._note_left(str(error))
            return
        self.notes.append("deleted, with its trials")

    def _note_left(self, why: str) -> None:
        self.notes.append(f"not deleted ({why}); {self.delete_command} does it")
        self._tell(self.notes[-1])


def _describe_owner(metadata: Mapping[str, Any]) -> str:
    owners = [f"{owner.get('kind')} {owner.get('name')}" for owner in metadata.get("ownerReferences") or ()]
    managers = [str(entry.get("manager")) for entry in metadata.get("managedFields") or ()]
    manager = (metadata.get("labels") or {}).get(MANAGER_LABEL)
    return (owners or ([manager] if manager else []) or managers or ["somebody"])[0]


def _describe_trials(trials: tuple[Trial, ...]) -> str:
    messages: dict[str, int] = {}
    for trial in trials:
        text = f"{trial.status}{f' ({trial.message.rstrip(chr(46))})' if trial.message else ''}"
        messages[text] = messages.get(text, 0) + 1
    shown = [f"{count} {text}" for text, count in list(messages.items())[:_SHOWN_FAILURES]]
    return ", ".join(shown) or "there are none"
