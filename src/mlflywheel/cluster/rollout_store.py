"""The record of a rollout in the cluster: a ConfigMap that a Lease guards.

Both are named `{service}-rollout` and owned by the InferenceService, so that they are deleted with it. Not in the
service's annotations: KServe copies those into the pod template, and every write would restart pods.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from mlflywheel.cluster.kubernetes_client import REQUEST_TIMEOUT_SECONDS, ApiClient, Cluster, CoreV1Api, RefusedError
from mlflywheel.cluster.rollout_lease import LEASE_SECONDS, Lease
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Store
from mlflywheel.rollouts.record import RECENT_WINDOWS, Record, read_record

MANAGER_LABEL, MANAGER = "app.kubernetes.io/managed-by", "mlflywheel"
SERVICE_ANNOTATION = "mlflywheel.io/inference-service"
KEY = "record.json"
#: What a ConfigMap may hold, by Kubernetes' validation.
LARGEST_BYTES = 1024 * 1024
_CONFIG_MAPS = "configmaps"
_LONGEST_NAME = 253
_HASH_CHARACTERS = 8
#: What stands in place of evidence that was left out.
_LEFT_OUT = {"left_out": "the record grew too large"}


class KubernetesStore(Store):
    """Keeps the record of an InferenceService's rollout in a ConfigMap of its namespace.

    One store serves one call of the command line: it takes one lock at a time, and is not for several threads.

    Args:
        cluster: The API server.
        namespace: Of the InferenceService.
        service: Its name.
        uid_of_service: Its `metadata.uid`. The record of a service that was deleted and created again counts as none.
        lease_seconds: How long the lock of a process that was killed stays; at least 1.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        service: str,
        uid_of_service: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.cluster, self.namespace, self.service, self.uid = cluster, namespace, service, uid_of_service
        self.name = name_objects(service)
        self._lease = Lease(cluster, namespace, self.name, self._metadata(), lease_seconds)

    @property
    def where(self) -> str:
        """What messages call the record."""
        return f"ConfigMap {self.namespace}/{self.name}"

    @property
    def still_held(self) -> bool:
        """Whether the lock is held; False also from the moment at which somebody else might have taken it over."""
        return not self._lease.lost_because

    def require_lock(self) -> None:
        """Refuse to go on without the lock: to be called before anything is changed.

        Raises:
            RolloutError: It is not held, or not any more; the message says why.
        """
        reason = self._lease.lost_because
        if reason:
            raise RolloutError(
                self._lease.where,
                reason,
                "nothing is written without the lock",
                "run the same command again: it goes on where this one stopped",
            )

    def load(self) -> Record | None:
        """Return the newest rollout's record; None if this service had none.

        Raises:
            DataError: The ConfigMap holds no record.
            RolloutError: It is not ours, or may not be read.
        """
        found = self._get()
        if found is None or not self._is_of_this_service(found):
            return None
        return read_record(found["data"][KEY], self.where, str(found["metadata"]["resourceVersion"]))

    def save(self, record: Record) -> Record:
        """Write a record, and return it as it was written, with its new `version`.

        A record over 1 MiB loses its oldest windows, then the evidence of the oldest lines of its history. The judge's
        state stands for the windows, and is never cut.

        Raises:
            ForeignEditError: Somebody else wrote or deleted it; the message says who and when.
            RolloutError: The lock is not held any more, it is too large, not ours, or may not be written.
        """
        self.require_lock()
        record, text = self._fit(record)
        try:
            answer = self._send("update" if record.version else "create", text, record.version)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise self._refused(error) from error
            answer = self._settle(error, record, text)
        return replace(record, version=str(answer["metadata"]["resourceVersion"]))

    @contextmanager
    def lock(self, holder: str) -> Iterator[None]:
        """Hold the service's rollout alone: see `mlflywheel.cluster.rollout_lease` for what that means.

        Losing it is no error of the block's end: `save` and `require_lock` refuse from then on.

        Args:
            holder: Who, as others are told.

        Raises:
            RolloutError: Somebody else holds it; the message says who, since when, and until when at the latest.
        """
        with self._lease.hold(holder):
            yield

    def _metadata(self) -> dict[str, Any]:
        owner = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "name": self.service,
            "uid": self.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }
        return {
            "labels": {MANAGER_LABEL: MANAGER},
            # Not a label: those end at 63 characters.
            "annotations": {SERVICE_ANNOTATION: self.service},
            "ownerReferences": [owner],
        }

    def _is_of_this_service(self, found: Mapping[str, Any]) -> bool:
        return any(owner.get("uid") == self.uid for owner in found["metadata"].get("ownerReferences") or ())

    def _get(self) -> dict[str, Any] | None:
        """Return the ConfigMap; None if there is none."""
        try:
            found: dict[str, Any] = self.cluster.call(
                "get",
                f"{_CONFIG_MAPS}/{self.name}",
                self.namespace,
                lambda api: _plain(
                    api,
                    CoreV1Api(api).read_namespaced_config_map(
                        self.name, self.namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS
                    ),
                ),
            )
        except RefusedError as error:
            if error.status == 404:
                return None
            raise self._refused(error) from error
        labels = found["metadata"].get("labels") or {}
        if labels.get(MANAGER_LABEL) != MANAGER or KEY not in (found.get("data") or {}):
            raise RolloutError(
                self.where,
                f"it is no record of a rollout, and {_describe_last_edit(found) or 'somebody else wrote it'}",
                f"the record of the rollouts of {self.service} has this name",
                f"rename it, or delete it with kubectl delete configmap {self.name} -n {self.namespace}",
            )
        return found

    def _send(self, verb: Literal["create", "update"], text: str, version: str = "") -> dict[str, Any]:
        metadata = {"name": self.name, "namespace": self.namespace, **self._metadata()}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
        options = {"field_manager": MANAGER, "_request_timeout": REQUEST_TIMEOUT_SECONDS}
        if verb == "update":
            metadata["resourceVersion"] = version

        def send(api: ApiClient) -> dict[str, Any]:
            core = CoreV1Api(api)
            if verb == "create":
                return _plain(api, core.create_namespaced_config_map(self.namespace, body, **options))
            return _plain(api, core.replace_namespaced_config_map(self.name, self.namespace, body, **options))

        # Roles grant creation to all names or none, and the rest by name.
        resource = _CONFIG_MAPS if verb == "create" else f"{_CONFIG_MAPS}/{self.name}"
        return self.cluster.call(verb, resource, self.namespace, send)

    def _settle(self, error: RefusedError, record: Record, text: str) -> dict[str, Any]:
        """Find out what a conflict means: our own write, a service that was created anew, or somebody else."""
        found = self._get()
        if found is None:
            if error.status == 404 and not record.version:
                raise self._refused(error) from error
            raise self._foreign("somebody deleted it after it was read")
        if self._is_of_this_service(found):
            # The first attempt of a call may have been done without an answer.
            if found["data"][KEY] == text:
                return found
            seen = "it is there already" if not record.version else "it was changed after it was read"
            edit = _describe_last_edit(found)
            raise self._foreign(f"{seen}, and {edit}" if edit else seen)
        if record.version:
            raise self._foreign("the InferenceService was deleted and created again after it was read")
        try:
            return self._send("update", text, str(found["metadata"]["resourceVersion"]))
        except RefusedError as again:
            if again.status in (404, 409):
                raise self._foreign("it was changed while it was written") from again
            raise self._refused(again) from again

    def _foreign(self, seen: str) -> ForeignEditError:
        return ForeignEditError(
            self.where,
            seen,
            "a rollout's record is written by mlflywheel alone, one process at a time",
            f"look at it with kubectl get configmap {self.name} -n {self.namespace} --show-managed-fields -o yaml, "
            "then run the same command again",
        )

    def _refused(self, error: RefusedError) -> RolloutError:
        return RolloutError(
            self.where,
            f"the API server refused it: {error.message}",
            "a rollout's record is a ConfigMap in the service's namespace",
            "see whether the namespace exists and its quota allows one more",
        )

    def _fit(self, record: Record) -> tuple[Record, str]:
        """Return a record that a ConfigMap can hold, with its JSON."""
        record = replace(record, windows=record.windows[-RECENT_WINDOWS:])
        text = record.to_json()
        if len(text) <= LARGEST_BYTES:
            return record, text
        values = record.to_dict()
        windows = [_size(one) + 1 for one in values["windows"]]
        record = replace(record, windows=record.windows[_count_first(windows, len(text) - LARGEST_BYTES) :])
        text = record.to_json()
        if len(text) > LARGEST_BYTES:
            evidence = [_size(one["evidence"]) - _size(_LEFT_OUT) for one in values["history"]]
            cut = _count_first(evidence, len(text) - LARGEST_BYTES)
            history = tuple(
                replace(entry, evidence=_LEFT_OUT) if index < cut and evidence[index] > 0 else entry
                for index, entry in enumerate(record.history)
            )
            record = replace(record, history=history)
            text = record.to_json()
        if len(text) > LARGEST_BYTES:
            sizes = {name: _size(value) for name, value in record.to_dict().items()}
            largest = max(sizes, key=lambda name: sizes[name])
            raise RolloutError(
                self.where,
                f"the record has {len(text):,} bytes without windows and evidence, {sizes[largest]:,} of them in "
                f"`{largest}`",
                f"a ConfigMap holds {LARGEST_BYTES:,}",
                "give the policy fewer metrics and groups, or roll back and start again with a new record",
            )
        return record, text


def name_objects(service: str) -> str:
    """Return the name of the ConfigMap and the Lease of a service: at most 253 characters, as Kubernetes has it.

    >>> name_objects("ad-campaigns")
    'ad-campaigns-rollout'
    >>> len(name_objects("a" * 253))
    253
    """
    name = f"{service}-rollout"
    if len(name) <= _LONGEST_NAME:
        return name
    piece = hashlib.sha256(service.encode()).hexdigest()[:_HASH_CHARACTERS]
    ending = f"-{piece}-rollout"
    return service[: _LONGEST_NAME - len(ending)].rstrip("-.") + ending


def _plain(api: ApiClient, answer: Any) -> dict[str, Any]:
    """Return the client's object as the API has it."""
    plain: dict[str, Any] = api.sanitize_for_serialization(answer)
    return plain


def _size(value: Any) -> int:
    # As `Record.to_json` writes it, in ASCII: characters are bytes.
    return len(json.dumps(value, sort_keys=True, separators=(",", ":")))


def _count_first(sizes: list[int], excess: int) -> int:
    """Return how many from the front have to go so that at least `excess` goes; all of them if that is too little.

    >>> _count_first([5, 5, 5], 6)
    2
    """
    for index, size in enumerate(sizes):
        if excess <= 0:
            return index
        excess -= max(0, size)
    return len(sizes)


def _describe_last_edit(found: Mapping[str, Any]) -> str:
    """Say who wrote an object last, as the API server noted it; empty if it did not."""
    entries = [one for one in found["metadata"].get("managedFields") or () if one.get("time")]
    if not entries:
        return ""
    last = max(entries, key=lambda one: str(one["time"]))
    return f"{last.get('manager') or 'somebody'} wrote it at {last['time']}"
