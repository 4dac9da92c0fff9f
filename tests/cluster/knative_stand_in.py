"""What Knative Serving does to Knative Services, without pods: a stand-in for tests.

KServe's own controller reads the status that it writes. By Knative's source (`pkg/reconciler/{service,configuration,
route}`): a change of the template makes a revision, whose name ends in its number; traffic for the newest goes to the
newest that is ready; and a Service is not ready while its newest revision is not.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client

_PLACE = ("serving.knative.dev", "v1")
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"


@dataclass
class _Known:
    templates: list[Any] = field(default_factory=list)
    ready: int = 0


class KnativeStandIn:
    """Plays Knative in one namespace, one `step` at a time.

    Args:
        api: A client with an administrator's rights.
        namespace: Where.
        starts: Says of the address of a model whether its revision gets ready.
    """

    def __init__(self, api: client.ApiClient, namespace: str, starts: Callable[[str], bool] = lambda uri: True) -> None:
        self._resources = client.CustomObjectsApi(api)
        self._namespace = namespace
        self._known: dict[str, _Known] = {}
        self.starts = starts
        #: Shares of each model that was ever routed to, by its address, in the order of the changes.
        self.history: list[dict[str, int]] = []

    def revisions(self, name: str) -> list[str]:
        """The addresses of the models of a Service's revisions, from the first."""
        return [_model(template) for template in self._known[name].templates]

    def step(self) -> None:
        """Look at all Services once."""
        listed = self._resources.list_namespaced_custom_object(*_PLACE, self._namespace, "services")
        for service in listed["items"]:
            status = self._reconcile(service)
            if status != service.get("status"):
                with contextlib.suppress(client.ApiException):
                    self._resources.patch_namespaced_custom_object_status(
                        *_PLACE, self._namespace, "services", service["metadata"]["name"], {"status": status}
                    )

    def _reconcile(self, service: Mapping[str, Any]) -> dict[str, Any]:
        name, template = service["metadata"]["name"], service["spec"]["template"]
        known = self._known.setdefault(name, _Known())
        if not known.templates or known.templates[-1] != template:
            known.templates.append(template)
        newest = len(known.templates)
        if self.starts(_model(template)):
            known.ready = newest
        traffic = []
        for one in service["spec"]["traffic"]:
            if one.get("latestRevision") and not known.ready:
                continue
            revision = _revision(name, known.ready) if one.get("latestRevision") else one["revisionName"]
            traffic.append({**one, "revisionName": revision})
        shares: dict[str, int] = {}
        for one in traffic:
            model = _model(known.templates[int(one["revisionName"].rpartition("-")[2]) - 1])
            shares[model] = shares.get(model, 0) + one["percent"]
        if shares and (not self.history or self.history[-1] != shares):
            self.history.append(shares)
        is_ready = known.ready == newest
        failed = f'Revision "{_revision(name, newest)}" failed with message: Container failed with: no such model.'
        conditions = [_condition("RoutesReady", True)]
        for kind in ("ConfigurationsReady", "Ready"):
            conditions.append(
                _condition(kind, is_ready, "" if is_ready else "RevisionFailed", "" if is_ready else failed)
            )
        host = f"{name}.{self._namespace}"
        return {
            "observedGeneration": service["metadata"]["generation"],
            "latestCreatedRevisionName": _revision(name, newest),
            **({"latestReadyRevisionName": _revision(name, known.ready)} if known.ready else {}),
            "traffic": traffic,
            "url": f"http://{host}.example.com",
            "address": {"url": f"http://{host}.svc.cluster.local"},
            "conditions": conditions,
        }


def _revision(name: str, number: int) -> str:
    return f"{name}-{number:05d}"


def _model(template: Mapping[str, Any]) -> str:
    return str(template["metadata"]["annotations"][_SOURCE])


def _condition(kind: str, is_true: bool, reason: str = "", message: str = "") -> dict[str, str]:
    found = {"type": kind, "status": "True" if is_true else "False"}
    return found | {key: value for key, value in (("reason", reason), ("message", message)) if value}
