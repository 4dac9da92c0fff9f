"""One KServe InferenceService and what KServe makes of it: read, patched, and watched for edits by others.

- **Patches** are JSON merge patches with `metadata.resourceVersion`, under a field manager of their own. A list such as
  `spec.canary` is replaced whole.
- **Edits by others** show as a `metadata.generation` that nobody here made. What changed is then compared with the
  spec that was last seen, and `metadata.managedFields` says who wrote it. So a change of our own whose answer was lost,
  because the process ended, is not taken for an edit; nor is a default that the server filled in.
- **`status.observedGeneration` is not looked at:** KServe copies it from the Deployment or the Knative Service, whose
  generations are counted apart from the InferenceService's.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from mlflywheel.cluster.kubernetes_client import (
    REQUEST_TIMEOUT_SECONDS,
    ApiClient,
    Cluster,
    RefusedError,
)
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Candidate, Memo, Target

Mode = Literal["Standard", "Knative", "ModelMesh"]

GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
SERVICES = f"{PLURAL}.{GROUP}"
#: What grants the permissions that a rollout needs, in this project's repository.
MANIFEST = "manifests/rollouts"
#: Who the changes are by, in `metadata.managedFields`.
FIELD_MANAGER = "mlflywheel-rollout"
MODE_ANNOTATION = f"{GROUP}/deploymentMode"
AUTOSCALER_ANNOTATION = f"{GROUP}/autoscalerClass"
STOP_ANNOTATION = f"{GROUP}/stop"
#: What KServe puts on all that it makes for an InferenceService.
SERVICE_LABEL = f"{GROUP}/inferenceservice"
#: Where KServe keeps the address of the model in the pods' template.
SOURCE_ANNOTATION = f"internal.{GROUP}/storage-initializer-sourceuri"

_MODES: Mapping[str, Mode] = {
    "Standard": "Standard",
    "RawDeployment": "Standard",
    "Knative": "Knative",
    "Serverless": "Knative",
    "ModelMesh": "ModelMesh",
}
# Kinds, as paths of the API: group and version, and plural.
_KINDS: Mapping[str, tuple[str, str]] = {
    SERVICES: (f"/apis/{GROUP}/{VERSION}", PLURAL),
    "deployments.apps": ("/apis/apps/v1", "deployments"),
    "horizontalpodautoscalers.autoscaling": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "httproutes.gateway.networking.k8s.io": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "scaledobjects.keda.sh": ("/apis/keda.sh/v1alpha1", "scaledobjects"),
    "services.serving.knative.dev": ("/apis/serving.knative.dev/v1", "services"),
    "configmaps": ("/api/v1", "configmaps"),
    "events": ("/api/v1", "events"),
    "pods": ("/api/v1", "pods"),
}
_CONFIG_NAMESPACES = ("kserve", "kubeflow")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_CHARACTERS = 63
# What a rollout sets itself, or what a candidate may not carry, by the paths of the predictor.
_RESERVED = (
    ("name",),
    ("minReplicas",),
    ("maxReplicas",),
    ("scaleTarget",),
    ("scaleMetric",),
    ("autoScaling",),
    ("canaryTrafficPercent",),
    ("workerSpec",),
    ("storageUris",),
    ("model", "storageUri"),
    ("model", "storage"),
    ("annotations", AUTOSCALER_ANNOTATION),
)
_SERVER_FIELDS = (
    "creationTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
)
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Reasons for which a container waits that no waiting mends.
_BROKEN_WAITS = ("CrashLoopBackOff", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")
_SHOWN_CHARACTERS = 300


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()


@dataclass(frozen=True)
class Condition:
    """One of an object's conditions.

    Args:
        status: `True`, `False` or `Unknown`; empty if there is no such condition.
        reason: One word.
        message: In words.
    """

    status: str = ""
    reason: str = ""
    message: str = ""

    @property
    def is_true(self) -> bool:
        """Whether it holds."""
        return self.status == "True"

    def __str__(self) -> str:
        return shorten(": ".join(part for part in (self.reason, self.message) if part) or self.status or "not there")


@dataclass(frozen=True)
class InferenceService:
    """An InferenceService as it was read.

    Args:
        document: The whole object, as the API server returned it.
    """

    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.document["metadata"]["name"])

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"InferenceService {self.document['metadata']['namespace']}/{self.name}"

    @property
    def uid(self) -> str:
        """Its `metadata.uid`."""
        return str(self.document["metadata"]["uid"])

    @property
    def generation(self) -> int:
        """Counts the changes of its spec."""
        return int(self.document["metadata"].get("generation", 0))

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return self.document["metadata"].get("annotations") or {}

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its spec."""
        return self.document.get("spec") or {}

    @property
    def predictor(self) -> Mapping[str, Any]:
        """`spec.predictor`."""
        return self.spec.get("predictor") or {}

    @property
    def canaries(self) -> Sequence[Mapping[str, Any]]:
        """`spec.canary`."""
        return self.spec.get("canary") or ()

    @property
    def status(self) -> Mapping[str, Any]:
        """Its status."""
        return self.document.get("status") or {}

    @property
    def storage_uri(self) -> str:
        """Where its model lies; empty if it is not said in one address."""
        return str((self.predictor.get("model") or {}).get("storageUri") or "")

    @property
    def predictor_name(self) -> str:
        """What KServe calls the predictor's Deployment, Service or Knative Service."""
        return name_predictor(self.name, str(self.predictor.get("name") or ""))

    @property
    def mode(self) -> Mode | None:
        """How it is deployed, by its status or else its annotation; None if neither says so.

        KServe's legacy names `RawDeployment` and `Serverless` are known.
        """
        text = self.status.get("deploymentMode") or self.annotations.get(MODE_ANNOTATION) or ""
        return _MODES.get(str(text))

    @property
    def autoscaler(self) -> str:
        """`serving.kserve.io/autoscalerClass`, or KServe's default."""
        return self.annotations.get(AUTOSCALER_ANNOTATION) or "hpa"

    def condition(self, kind: str) -> Condition:
        """Return a condition of its status, such as `PredictorReady`."""
        return find_condition(self.document, kind)


@dataclass(frozen=True)
class Change:
    """One difference between two specs.

    Args:
        path: The keys that lead to it. A list is one value.
        before: The value before, or `MISSING`.
        after: The value after, or `MISSING`.
    """

    path: tuple[str, ...]
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """The path as a field of the object, such as `spec.predictor.minReplicas`."""
        return ".".join(("spec", *self.path))


def name_predictor(service: str, name: str) -> str:
    """Return what KServe calls the objects of a predictor.

    >>> name_predictor("ads", ""), name_predictor("ads", "v2")
    ('ads-predictor', 'ads-v2-predictor')
    """
    return f"{service}-{name}-predictor" if name else f"{service}-predictor"


def find_condition(document: Mapping[str, Any], kind: str) -> Condition:
    """Return a condition of an object's status; an empty one if it is not there."""
    for one in (document.get("status") or {}).get("conditions") or ():
        if one.get("type") == kind:
            return Condition(str(one.get("status", "")), str(one.get("reason", "")), str(one.get("message", "")))
    return Condition()


def shorten(text: Any) -> str:
    """Return a text as one line of bounded length without its last full stop."""
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "…"


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with another one laid over it; mappings in it are merged, all else is replaced.

    >>> overlay({"model": {"a": 1, "b": [1]}}, {"model": {"b": [2]}})
    {'model': {'a': 1, 'b': [2]}}
    """
    merged = deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else deepcopy(value)
    return merged


def make_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that turns one mapping into another; empty if they are equal.

    >>> make_patch({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3, "d": 2}})
    {'a': None, 'b': {'c': 3}}
    """
    patch: dict[str, Any] = {}
    for key in (*before, *(key for key in after if key not in before)):
        if key not in after:
            patch[key] = None
        elif key not in before:
            patch[key] = deepcopy(after[key])
        elif isinstance(before[key], dict) and isinstance(after[key], dict):
            inner = make_patch(before[key], after[key])
            if inner:
                patch[key] = inner
        elif before[key] != after[key]:
            patch[key] = deepcopy(after[key])
    return patch


def find_changes(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[Change]:
    """Yield where two specs differ.

    >>> [change.field for change in find_changes({"canary": [1], "a": 1}, {"canary": [2], "a": 1})]
    ['spec.canary']
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from find_changes(before.get(key, MISSING), after.get(key, MISSING), (*path, str(key)))
    elif isinstance(after, Mapping) and after and before is MISSING:
        for key in sorted(after):
            yield from find_changes(MISSING, after[key], (*path, str(key)))
    elif isinstance(before, Mapping) and before and after is MISSING:
        for key in sorted(before):
            yield from find_changes(before[key], MISSING, (*path, str(key)))
    elif before != after:
        yield Change(path, before, after)


def is_owned(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Say whether a set of `metadata.managedFields` holds a field of the spec.

    >>> is_owned({"f:spec": {"f:canary": {}}}, ["canary"])
    True
    """
    node: Any = fields
    for key in ("spec", *path):
        if not isinstance(node, Mapping) or f"f:{key}" not in node:
            return False
        node = node[f"f:{key}"]
    return True


def find_writer(service: InferenceService, path: Sequence[str]) -> str:
    """Return who wrote a field of the spec, and when; empty if the server does not say.

    Returns:
        Such as `kubectl-edit at 2026-11-21T10:00:00Z`.
    """
    for entry in service.document["metadata"].get("managedFields") or ():
        if not entry.get("subresource") and is_owned(entry.get("fieldsV1") or {}, path):
            return f"{entry.get('manager') or 'somebody'} at {entry.get('time', 'an unknown time')}"
    return ""


def is_ours(service: InferenceService, path: Sequence[str]) -> bool:
    """Say whether a field of the spec was last written by a rollout."""
    return any(
        entry.get("manager") == FIELD_MANAGER and is_owned(entry.get("fieldsV1") or {}, path)
        for entry in service.document["metadata"].get("managedFields") or ()
    )


def clean_metadata(service: InferenceService) -> dict[str, Any]:
    """Return the metadata that a manifest has, without what the server adds."""
    metadata = {key: value for key, value in service.document["metadata"].items() if key not in _SERVER_FIELDS}
    metadata.pop("uid", None)
    annotations = {key: value for key, value in service.annotations.items() if key != _APPLIED}
    metadata.pop("annotations", None)
    return metadata | ({"annotations": annotations} if annotations else {})


def make_manifest(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return an InferenceService's manifest."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": deepcopy(dict(metadata)),
        "spec": deepcopy(dict(spec)),
    }


def make_candidate_fields(predictor: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Return the predictor's fields that a candidate changes: the whole model with its address, and the overrides."""
    model = overlay(predictor.get("model") or {}, {"storageUri": candidate.storage_uri})
    return overlay({"model": model}, candidate.overrides)


def whole_percent(traffic_percent: float, where: str) -> int:
    """Return a share as KServe takes it.

    Raises:
        RolloutError: It is not a whole number from 0 to 100.
    """
    if traffic_percent != int(traffic_percent) or not 0 <= traffic_percent <= 100:
        raise RolloutError(
            where,
            f"{traffic_percent:g} % of the traffic",
            "KServe splits traffic in whole percents from 0 to 100",
            "change the policy's steps",
        )
    return int(traffic_percent)


def check_candidate(service: InferenceService, candidate: Candidate, longest_name: str) -> None:
    """Refuse what no mode can roll out.

    Args:
        service: What it is to replace.
        candidate: What is to be rolled out.
        longest_name: The longest name that the rollout gives to a predictor's objects.

    Raises:
        RolloutError: The candidate or the service cannot take part; the message says what would help.
    """
    where = service.where
    _check_names(service, candidate, longest_name)
    _check_model(service, candidate)
    for path in _RESERVED:
        if _find(candidate.overrides, path) is not MISSING:
            raise RolloutError(
                f"candidate {candidate.name}, overrides.{'.'.join(path)}",
                f"{_find(candidate.overrides, path)!r}",
                "the rollout sets that field itself, or KServe refuses it for a canary",
                "leave it out",
            )
    if str(service.annotations.get(STOP_ANNOTATION, "")).lower() == "true":
        raise RolloutError(
            where,
            f"it is stopped by its annotation {STOP_ANNOTATION}",
            "a service that runs is needed",
            f"kubectl annotate inferenceservice {service.name} {STOP_ANNOTATION}-",
        )
    ready = service.condition("Ready")
    if not ready.is_true:
        raise RolloutError(
            where,
            f"not ready ({ready})",
            "a rollout starts from a version that works",
            "get it ready first; `kubectl describe` says what it waits for",
        )


def _check_names(service: InferenceService, candidate: Candidate, longest_name: str) -> None:
    where = f"candidate {candidate.name!r}"
    if _NAME.fullmatch(candidate.name) is None:
        raise RolloutError(
            where,
            "not a name for KServe",
            "lower-case letters, digits and dashes are, with a letter at the start",
            "name it such as v2",
        )
    # A label of KServe's, in front of the Service's name.
    excess = len(f"isvc.{name_predictor(service.name, longest_name)}") - _LABEL_CHARACTERS
    if excess > 0:
        raise RolloutError(
            where,
            f"KServe's label isvc.{name_predictor(service.name, longest_name)} gets {excess} characters too long",
            f"a label's value has at most {_LABEL_CHARACTERS}",
            "choose a shorter name for the candidate, or for the service",
        )


def _check_model(service: InferenceService, candidate: Candidate) -> None:
    where, predictor, model = service.where, service.predictor, service.predictor.get("model") or {}
    if predictor.get("workerSpec") is not None:
        raise RolloutError(
            f"{where}, spec.predictor.workerSpec",
            "the model runs on several nodes",
            "KServe has no canaries for that",
            "roll it out by a second InferenceService and your gateway",
        )
    if not model:
        raise RolloutError(
            f"{where}, spec.predictor",
            "no model, but containers of its own",
            "a predictor with `model` is needed: its storageUri is what a rollout changes",
            "describe the server as a ServingRuntime, as manifests/runtime does",
        )
    for holder, key in ((predictor, "storageUris"), (model, "storage")):
        if holder.get(key):
            raise RolloutError(
                f"{where}, {key}",
                "the model's place is not given by storageUri",
                "KServe prepares and promotes canaries by storageUri alone",
                "give the model's one address as spec.predictor.model.storageUri",
            )
    if not service.storage_uri:
        raise RolloutError(
            f"{where}, spec.predictor.model.storageUri",
            "it is missing",
            "a rollout changes it",
            "give the address of the model in use",
        )
    if candidate.storage_uri == service.storage_uri:
        raise RolloutError(
            f"candidate {candidate.name}",
            f"its storageUri {candidate.storage_uri} is the one in use",
            "another address is needed: KServe would change nothing, and refuses to promote it",
            "put the new version under an address of its own",
        )


def _find(mapping: Mapping[str, Any], path: Sequence[str]) -> Any:
    node: Any = mapping
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return MISSING
        node = node[key]
    return node


class ConflictError(Exception):
    """The InferenceService was changed since it was read."""


class Service:
    """Reads and changes one InferenceService and the objects that KServe makes for it.

    Args:
        cluster: The API server.
        namespace: Of the InferenceService.
        name: Its name.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"InferenceService {self.namespace}/{self.name}"

    def read(self) -> InferenceService:
        """Return the InferenceService.

        Raises:
            RolloutError: There is none, KServe is not installed, or it may not be read.
        """
        try:
            return InferenceService(self._call("get", SERVICES, "GET", self.name))
        except RefusedError as error:
            if error.is_unknown_kind:
                raise RolloutError(
                    f"{SERVICES} in namespace {self.namespace}",
                    "the API server does not know them",
                    "KServe has to be installed",
                    "install it, or choose another context",
                ) from error
            if error.status != 404:
                raise RolloutError(self.where, str(error), "it has to be read", "see what the message names") from error
        names = self._list_names()
        near = difflib.get_close_matches(self.name, names, n=3)
        seen = "there is none of that name"
        if near:
            seen += f"; near it: {', '.join(near)}"
        elif names:
            seen += f"; the namespace has {', '.join(sorted(names)[:5])}"
        raise RolloutError(self.where, seen, "the service has to exist", "correct the name or the namespace")

    def patch(self, seen: InferenceService, spec: Mapping[str, Any], *, dry_run: bool = False) -> InferenceService:
        """Give the InferenceService another spec, if nobody changed it since it was read.

        Args:
            seen: As it was read.
            spec: What its spec has to be.
            dry_run: Let the server and its webhooks check it, and store nothing.

        Raises:
            ConflictError: It was changed since.
            RolloutError: It is gone, or a webhook or the server refused it.
        """
        body: dict[str, Any] = {"spec": make_patch(seen.spec, spec)}
        query = [("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")]
        if dry_run:
            query.append(("dryRun", "All"))
        else:
            body["metadata"] = {"resourceVersion": seen.document["metadata"]["resourceVersion"]}
        try:
            return InferenceService(self._call("patch", SERVICES, "PATCH", self.name, query, body))
        except RefusedError as error:
            if error.status == 409:
                raise ConflictError(str(error)) from error
            if error.status == 404:
                raise RolloutError(self.where, "it is gone", "a rollout needs it", "create it again") from error
            raise RolloutError(
                self.where,
                shorten(error.message),
                f"the API server has to accept {'this rollout' if dry_run else 'this step'}",
                "change the candidate or the service by what the message says",
            ) from error

    def find(self, resource: str, name: str) -> dict[str, Any] | None:
        """Return an object of the service's namespace; None if it, or its kind, is not there.

        Args:
            resource: Such as `deployments.apps`.
            name: Its name.
        """
        try:
            return self._call("get", resource, "GET", name)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise RolloutError(
                f"{resource} {self.namespace}/{name}", str(error), "it has to be read", "see what the message names"
            ) from error

    def find_owned(self, resource: str, name: str, uid: str) -> dict[str, Any] | None:
        """Return an object that belongs to the InferenceService with a uid; None if there is none."""
        found = self.find(resource, name)
        return found if found is not None and is_owned_by(found, uid) else None

    def find_left_behind(self, resource: str, name: str, uid: str) -> dict[str, Any] | None:
        """Return an autoscaler that KServe made for the InferenceService; None if there is none.

        That of a canary has KServe's label, but no owner at all: nothing else would ever delete it.
        """
        found = self.find(resource, name)
        if found is None:
            return None
        metadata = found["metadata"]
        is_orphan = (
            not metadata.get("ownerReferences") and (metadata.get("labels") or {}).get(SERVICE_LABEL) == self.name
        )
        return found if is_orphan or is_owned_by(found, uid) else None

    def delete(self, resource: str, found: Mapping[str, Any]) -> None:
        """Delete an object, unless another one has its name by now."""
        name, body = str(found["metadata"]["name"]), {"preconditions": {"uid": found["metadata"]["uid"]}}
        try:
            self._call("delete", resource, "DELETE", name, (), body)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise RolloutError(
                    f"{resource} {self.namespace}/{name}", str(error), "it has to be deleted", "delete it by hand"
                ) from error

    def find_config(self) -> Mapping[str, Any] | None:
        """Return KServe's configuration, the data of `inferenceservice-config`; None where it may not be read."""
        for namespace in _CONFIG_NAMESPACES:
            found = self._try("configmaps", "inferenceservice-config", namespace=namespace)
            if found is not None:
                return found.get("data") or {}
        return None

    def find_broken_pod(self, predictor_name: str) -> str:
        """Return why a pod of a predictor cannot start; empty if none says so, or pods may not be read."""
        listed = self._try("pods", "", [("labelSelector", f"app=isvc.{predictor_name}")])
        for pod in (listed or {}).get("items") or ():
            status = pod.get("status") or {}
            for one in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
                waiting = (one.get("state") or {}).get("waiting") or {}
                if waiting.get("reason") in _BROKEN_WAITS:
                    ended = (one.get("lastState") or {}).get("terminated") or {}
                    said = ended.get("message") or waiting.get("message") or ""
                    return shorten(
                        f"pod {pod['metadata']['name']}, container {one['name']}: {waiting['reason']}: {said}"
                    )
        return ""

    def find_warning(self, service: InferenceService) -> str:
        """Return the newest warning that KServe wrote about the InferenceService; empty if there is none to be read."""
        selector = f"involvedObject.uid={service.uid},type=Warning"
        items = (self._try("events", "", [("fieldSelector", selector)]) or {}).get("items") or ()
        newest = max(items, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""), default=None)
        return shorten(newest.get("message", "")) if newest else ""

    def accept(
        self,
        seen: InferenceService,
        memo: Memo,
        may_be_gone: Callable[[InferenceService, Change], bool],
    ) -> None:
        """Make sure that the spec is as a rollout left it, and remember it.

        Args:
            seen: As it was just read.
            memo: Of the rollout; changed in place.
            may_be_gone: Says of a field that is gone whether the rollout itself may have removed it. Who removed a
                field is not on record.

        Raises:
            ForeignEditError: Somebody else changed it.
        """
        if seen.uid != memo["uid"]:
            raise ForeignEditError(
                seen.where,
                "it was deleted and created again since the rollout began",
                "a rollout belongs to one InferenceService",
                "start a new rollout",
            )
        if seen.generation != memo["generation"]:
            for change in find_changes(memo["spec"], seen.spec):
                if change.after is MISSING:
                    is_known = may_be_gone(seen, change)
                else:
                    is_known = is_ours(seen, change.path) or self._is_default(seen, change)
                if not is_known:
                    raise _edited(seen, change)
        self.remember(seen, memo)

    def remember(self, seen: InferenceService, memo: Memo) -> None:
        """Note the spec as the one that a rollout knows."""
        memo["generation"], memo["spec"] = seen.generation, deepcopy(dict(seen.spec))

    def write(
        self,
        seen: InferenceService,
        spec: Mapping[str, Any],
        memo: Memo,
        may_be_gone: Callable[[InferenceService, Change], bool],
    ) -> InferenceService:
        """Give the InferenceService another spec, and remember it.

        A conflict with a change of its status or metadata is no edit: it is read again, and sent again.

        Raises:
            ForeignEditError: Somebody else changed its spec in between.
        """
        for _ in range(5):
            try:
                changed = self.patch(seen, spec)
            except ConflictError:
                seen = self.read()
                self.accept(seen, memo, may_be_gone)
            else:
                self.remember(changed, memo)
                return changed
        raise RolloutError(
            self.where,
            "it was changed by somebody each time that this step was sent",
            "its spec may be changed by the rollout alone, and its status not all the time",
            "see which controller fights with KServe's",
        )

    def _is_default(self, seen: InferenceService, change: Change) -> bool:
        """Say whether the server would fill in the same value by itself, such as after an update of KServe."""
        if change.before is not MISSING:
            return False
        spec = deepcopy(dict(seen.spec))
        node = spec
        for key in change.path[:-1]:
            node = node[key]
        del node[change.path[-1]]
        try:
            filled = self.patch(seen, spec, dry_run=True)
        except (ConflictError, RolloutError):
            return False
        return bool(_find(filled.spec, change.path) == change.after)

    def _list_names(self) -> list[str]:
        listed = self._try(SERVICES, "") or {}
        return [str(one["metadata"]["name"]) for one in listed.get("items") or ()]

    def _call(
        self,
        verb: str,
        resource: str,
        method: str,
        name: str,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        path = self._path(resource, name, self.namespace)

        def send(api: ApiClient) -> dict[str, Any]:
            return _request(api, method, path, query, body)

        if method == "PATCH":
            # A webhook's no looks like a missing permission, which `call` waits out.
            try:
                return self.cluster.try_once(send)
            except RefusedError as error:
                if error.status == 409 or "admission webhook" in error.message:
                    raise
            except ConnectionError:
                pass
        return self.cluster.call(verb, resource, self.namespace, send)

    def _try(
        self, resource: str, name: str, query: Sequence[tuple[str, str]] = (), namespace: str = ""
    ) -> dict[str, Any] | None:
        path = self._path(resource, name, namespace or self.namespace)
        try:
            return self.cluster.try_once(lambda api: _request(api, "GET", path, query, None))
        except (RefusedError, ConnectionError):
            return None

    def _path(self, resource: str, name: str, namespace: str) -> str:
        prefix, plural = _KINDS[resource]
        return f"{prefix}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def read_model_failure(seen: InferenceService) -> str:
    """Return why KServe could not load a model of the service; empty if it says nothing."""
    model = seen.status.get("modelStatus") or {}
    if model.get("transitionStatus") not in ("InvalidSpec", "BlockedByFailedLoad"):
        return ""
    info = model.get("lastFailureInfo") or {}
    return shorten(f"KServe: {info.get('reason') or model['transitionStatus']}: {info.get('message') or 'no message'}")


def is_owned_by(document: Mapping[str, Any], uid: str) -> bool:
    """Say whether an object names an owner with this uid."""
    return any(one.get("uid") == uid for one in document["metadata"].get("ownerReferences") or ())


def read_traffic_target(target: Target, where: str) -> int:
    """Return the percent that a target needs on the way: a promotion goes through 100."""
    return 100 if target.kind == "promoted" else whole_percent(target.traffic_percent, where)


def _request(
    api: ApiClient, method: str, path: str, query: Sequence[tuple[str, str]], body: Mapping[str, Any] | None
) -> dict[str, Any]:
    # Not by the typed API: its classes refuse values that are newer than they are, and releases of the client differ in
    # the content type that they choose for a patch.
    content = "application/merge-patch+json" if method == "PATCH" else "application/json"
    answer: dict[str, Any] = api.call_api(
        path,
        method,
        {},
        list(query),
        {"Accept": "application/json", "Content-Type": content},
        body=body,
        response_type="object",
        auth_settings=["BearerToken"],
        _return_http_data_only=True,
        _request_timeout=REQUEST_TIMEOUT_SECONDS,
    )
    return answer


def _edited(seen: InferenceService, change: Change) -> ForeignEditError:
    writer = find_writer(seen, change.path) if change.after is not MISSING else ""
    return ForeignEditError(
        f"{seen.where}, {change.field}",
        f"{_show(change.after)}" + (f", written by {writer}" if writer else ""),
        f"{_show(change.before)} was expected, as the rollout left it",
        "undo that edit, or finish the rollout by hand and start a new one",
    )


def _show(value: Any) -> str:
    return "nothing" if value is MISSING else shorten(repr(value))
