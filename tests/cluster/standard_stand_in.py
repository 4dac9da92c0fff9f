"""What KServe's controller makes of InferenceServices in Standard mode: a stand-in, with the pods it asks for.

Not KServe: it follows the source of the controller as of August 2026, after 0.20 (`components/predictor.go`,
`reconcilers/ingress/httproute_reconciler.go`), the first that writes weights into HTTPRoutes. Webhooks are left out.
"""

import datetime
import math
from collections.abc import Mapping
from typing import Any

from kubernetes import client

_ISVC = ("serving.kserve.io", "v1beta1")
_ROUTE = ("gateway.networking.k8s.io", "v1")
_CLASS = "serving.kserve.io/autoscalerClass"
_OURS = "serving.kserve.io/inferenceservice"


class StandardStandIn:
    """Plays KServe, an HPA controller, the Deployments' pods and a gateway in one namespace, one `step` at a time.

    Args:
        api: A client with an administrator's rights.
        namespace: Where.
        writes_weights: Whether routes are split, as KServe 0.20 does not.

    Attributes:
        broken: Names of Deployments of which no pod gets available.
    """

    def __init__(self, api: client.ApiClient, namespace: str, *, writes_weights: bool = True) -> None:
        self.broken: set[str] = set()
        self.deleted: list[str] = []
        self.history: list[dict[str, int]] = []
        self._writes_weights = writes_weights
        self._namespace = namespace
        self._resources = client.CustomObjectsApi(api)
        self._apps, self._scaling = client.AppsV1Api(api), client.AutoscalingV2Api(api)

    def step(self) -> None:
        """Reconcile every InferenceService once, after its pods did what they were last asked for."""
        place = (*_ISVC, self._namespace, "inferenceservices")
        for service in self._resources.list_namespaced_custom_object(*place)["items"]:
            self._reconcile(service)

    def _reconcile(self, service: Mapping[str, Any]) -> None:
        name, spec = service["metadata"]["name"], service["spec"]
        canaries = spec.get("canary") or ()
        stable = _name(name, spec["predictor"].get("name", ""))
        least = spec["predictor"].get("minReplicas")
        available = self._play_pods()
        statuses, taken = [], 0
        for one in canaries:
            arm = _name(name, one["predictor"]["name"])
            replicas = one["predictor"].get("minReplicas", math.ceil((least or 1) * one["trafficPercent"] / 100))
            self._make(service, arm, {**spec["predictor"], **one["predictor"]}, replicas, replicas)
            is_ready = available.get(arm, 0) > 0
            taken += replicas if is_ready else 0
            statuses.append(
                {"name": one["predictor"]["name"], "ready": is_ready, "trafficPercent": one["trafficPercent"]}
            )
        wanted = {stable, *(_name(name, one["predictor"]["name"]) for one in canaries)}
        for found in self._list_deployments():
            if found["metadata"]["name"] not in wanted:
                self._apps.delete_namespaced_deployment(found["metadata"]["name"], self._namespace)
                self.deleted.append(found["metadata"]["name"])
        least = max(least - taken, 1) if taken and least is not None else least
        self._make(service, stable, spec["predictor"], least, int(spec["predictor"].get("maxReplicas") or 0))
        is_ready = available.get(stable, 0) > 0
        if is_ready:
            self._route(service, stable, statuses)
        self._report(service, statuses, is_ready)

    def _make(
        self, service: Mapping[str, Any], name: str, predictor: Mapping[str, Any], least: int | None, most: int
    ) -> None:
        annotations = {**(service["metadata"].get("annotations") or {}), **(predictor.get("annotations") or {})}
        kind = annotations.get(_CLASS, "hpa")
        owner = {"apiVersion": "/".join(_ISVC), "kind": "InferenceService", "controller": True}
        owner |= {key: service["metadata"][key] for key in ("name", "uid")}
        metadata = {"name": name, "ownerReferences": [owner], "annotations": {_CLASS: kind}}
        label = {"app": f"isvc.{name}"}
        container = {"name": "kserve-container", "image": "registry.example/predictor:1"}
        container["args"] = [predictor["model"]["storageUri"]]
        body = {
            "metadata": {**metadata, "labels": {**label, _OURS: service["metadata"]["name"]}},
            "spec": {
                "selector": {"matchLabels": label},
                "template": {"metadata": {"labels": label}, "spec": {"containers": [container]}},
                **({"replicas": least if least is not None else 1} if kind == "none" else {}),
            },
        }
        names = {one["metadata"]["name"] for one in self._list_deployments()}
        if name not in names:
            self._apps.create_namespaced_deployment(self._namespace, body)
        else:
            self._apps.patch_namespaced_deployment(name, self._namespace, {"spec": body["spec"]})
        if kind == "hpa":
            floor = max(least or 1, 1)
            target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
            # KServe gives that of a canary no owner.
            labels = {_OURS: service["metadata"]["name"]}
            owned = {"name": name, "labels": labels, "annotations": metadata["annotations"]}
            if predictor.get("name", "") == service["spec"]["predictor"].get("name", ""):
                owned["ownerReferences"] = [owner]
            scaler = {"minReplicas": floor, "maxReplicas": max(most, floor), "scaleTargetRef": target}
            try:
                self._scaling.create_namespaced_horizontal_pod_autoscaler(
                    self._namespace, {"metadata": owned, "spec": scaler}
                )
            except client.ApiException as error:
                if error.status != 409:
                    raise
                self._scaling.patch_namespaced_horizontal_pod_autoscaler(name, self._namespace, {"spec": scaler})
            # What its controller does first: no fewer than the least, no more than the most.
            found = self._apps.read_namespaced_deployment(name, self._namespace)
            wanted = min(max(found.spec.replicas, floor), max(most, floor))
            if wanted != found.spec.replicas:
                self._apps.patch_namespaced_deployment(name, self._namespace, {"spec": {"replicas": wanted}})

    def _play_pods(self) -> dict[str, int]:
        available = {}
        for found in self._list_deployments():
            metadata, replicas = found["metadata"], found["spec"]["replicas"]
            number = 0 if metadata["name"] in self.broken else replicas
            status = {
                "observedGeneration": metadata["generation"],
                "replicas": replicas,
                "readyReplicas": number,
                "availableReplicas": number,
            }
            old = found.get("status") or {}
            if any(old.get(key, 0) != value for key, value in status.items()):
                self._apps.patch_namespaced_deployment_status(metadata["name"], self._namespace, {"status": status})
            available[metadata["name"]] = number
        return available

    def _route(self, service: Mapping[str, Any], stable: str, statuses: list[dict[str, Any]]) -> None:
        name = service["metadata"]["name"]
        ready = [one for one in statuses if one["ready"]] if self._writes_weights else []
        weights = {stable: 100 - sum(one["trafficPercent"] for one in ready)} if statuses else {stable: 1}
        weights |= {_name(name, one["name"]): one["trafficPercent"] for one in ready}
        if not self._writes_weights:
            weights = {stable: 1}
        backends = [{"kind": "Service", "name": one, "port": 80, "weight": share} for one, share in weights.items()]
        owner = {"apiVersion": "/".join(_ISVC), "kind": "InferenceService", "controller": True}
        owner |= {key: service["metadata"][key] for key in ("name", "uid")}
        place = (*_ROUTE, self._namespace, "httproutes")
        for route in (_name(name, ""), name):
            spec = {"rules": [{"backendRefs": backends}], "hostnames": [f"{route}.example.com"]}
            body = {"metadata": {"name": route, "ownerReferences": [owner]}, "spec": spec}
            body |= {"apiVersion": "/".join(_ROUTE), "kind": "HTTPRoute"}
            try:
                self._resources.create_namespaced_custom_object(*place, body)
            except client.ApiException as error:
                if error.status != 409:
                    raise
                self._resources.patch_namespaced_custom_object(*place, route, {"spec": spec})
        if not self.history or self.history[-1] != weights:
            self.history.append(weights)

    def _report(self, service: Mapping[str, Any], statuses: list[dict[str, Any]], is_ready: bool) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": kind, "status": "True" if is_ready else "False", "lastTransitionTime": now}
            for kind in ("IngressReady", "PredictorReady", "Ready")
        ]
        old = service.get("status") or {}
        known = {one["type"]: one["status"] for one in old.get("conditions") or ()}
        if {one["type"]: one["status"] for one in conditions} == known and (
            old.get("canaryStatuses") or []
        ) == statuses:
            return
        status = {"deploymentMode": "Standard", "conditions": conditions, "canaryStatuses": statuses or None}
        place = (*_ISVC, self._namespace, "inferenceservices")
        self._resources.patch_namespaced_custom_object_status(*place, service["metadata"]["name"], {"status": status})

    def _list_deployments(self) -> list[dict[str, Any]]:
        listed = self._apps.list_namespaced_deployment(self._namespace, label_selector=_OURS)
        return [client.ApiClient().sanitize_for_serialization(one) for one in listed.items]


def _name(service: str, predictor: str) -> str:
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"
