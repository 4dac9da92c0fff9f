"""What KServe's real controller and webhooks do with canaries: the behaviour that rollouts rest on.

The Deployments never run: a test says how many of their pods are available. Versions differ in one respect, which is
looked at and not assumed: 0.20 sizes a canary but leaves the HTTPRoutes alone, later ones write the split as weights.
"""

import json
import re
import threading
from typing import Any

import pytest
from control_plane import wait_until
from kserve_controller import ISVC, ROUTE, KServe, accept_routes, mark_deployment
from kubernetes import client, watch

_MODE = "serving.kserve.io/deploymentMode"
_AUTOSCALER = "serving.kserve.io/autoscalerClass"
_KNATIVE = ("serving.knative.dev", "v1")
_SECONDS = 20


def model(version: str) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "ad-topics"},
        "protocolVersion": "v2",
        "storageUri": f"s3://models/ad-topics/{version}",
    }


def canary(name: str, traffic_percent: int, **predictor: Any) -> dict[str, Any]:
    return {"trafficPercent": traffic_percent, "predictor": {"name": name, "model": model(name)} | predictor}


class Service:
    """An InferenceService `ad` in a namespace of its own, and what belongs to it."""

    def __init__(self, kserve: KServe, namespace: str) -> None:
        self.kserve = kserve
        self.namespace = namespace
        self.api = kserve.plane.api_client()
        self.apps = client.AppsV1Api(self.api)
        self.core = client.CoreV1Api(self.api)
        self.resources = client.CustomObjectsApi(self.api)
        self.place = (*ISVC, namespace, "inferenceservices")

    def create(
        self, replicas: int = 4, *, autoscaler: str = "none", mode: str = "Standard", **spec: Any
    ) -> dict[str, Any]:
        predictor = {"minReplicas": replicas, "model": model("v1")} | spec.pop("predictor", {})
        metadata = {"name": "ad", "annotations": {_MODE: mode, _AUTOSCALER: autoscaler}}
        body = {
            "apiVersion": "/".join(ISVC),
            "kind": "InferenceService",
            "metadata": metadata,
            "spec": {"predictor": predictor} | spec,
        }
        return self.resources.create_namespaced_custom_object(*self.place, body)

    def create_ready(self, replicas: int = 4, *, autoscaler: str = "none") -> None:
        """Create it alone, with all its pods available and its routes accepted."""
        self.create(replicas, autoscaler=autoscaler)
        self.make_available("ad-predictor")
        wait_until(lambda: set(self.routes()) == {"ad", "ad-predictor"}, _SECONDS, "the routes are written")
        self.accept()

    def accept(self) -> None:
        accept_routes(self.api, self.namespace)
        wait_until(lambda: self.conditions().get("Ready") == "True", _SECONDS, "the service is ready")

    def patch(self, **spec: Any) -> None:
        self.resources.patch_namespaced_custom_object(*self.place, "ad", {"spec": spec})

    def annotate(self, **annotations: str) -> None:
        body = {"metadata": {"annotations": annotations}}
        self.resources.patch_namespaced_custom_object(*self.place, "ad", body)

    def read(self) -> dict[str, Any]:
        return self.resources.get_namespaced_custom_object(*self.place, "ad")

    def status(self) -> dict[str, Any]:
        return self.read().get("status", {})

    def conditions(self) -> dict[str, str]:
        return {one["type"]: one["status"] for one in self.status().get("conditions", ())}

    def canaries(self) -> list[tuple[str, int, bool]]:
        """Name, traffic in percent, and whether ready: as the status has it."""
        found = self.status().get("canaryStatuses") or ()
        return [(one["name"], one["trafficPercent"], one["ready"]) for one in found]

    def deployments(self) -> dict[str, client.V1Deployment]:
        return {one.metadata.name: one for one in self.apps.list_namespaced_deployment(self.namespace).items}

    def replicas(self) -> dict[str, int]:
        return {name: one.spec.replicas for name, one in self.deployments().items()}

    def services(self) -> set[str]:
        return {one.metadata.name for one in self.core.list_namespaced_service(self.namespace).items}

    def autoscalers(self) -> dict[str, tuple[int, int]]:
        found = client.AutoscalingV2Api(self.api).list_namespaced_horizontal_pod_autoscaler(self.namespace)
        return {one.metadata.name: (one.spec.min_replicas, one.spec.max_replicas) for one in found.items}

    def routes(self) -> dict[str, list[list[tuple[str, int]]]]:
        """Of each HTTPRoute, the Services and weights of each rule."""
        found = self.resources.list_namespaced_custom_object(*ROUTE, self.namespace, "httproutes")["items"]
        return {
            one["metadata"]["name"]: [
                [(backend["name"], backend["weight"]) for backend in rule["backendRefs"]]
                for rule in one["spec"]["rules"]
            ]
            for one in found
        }

    def make_available(self, name: str, available: int | None = None) -> None:
        """Say that pods of a Deployment are available, all that it asks for if no number is given."""
        wait_until(lambda: name in self.deployments(), _SECONDS, f"{name} is made")
        mark_deployment(self.apps, self.deployments()[name], available)

    def start_canary(self, *canaries: dict[str, Any]) -> None:
        """Write the list of canaries and make all of them available."""
        self.patch(canary=list(canaries))
        wanted = [(one["predictor"]["name"], one["trafficPercent"], True) for one in canaries]

        def are_ready() -> bool:
            # Again and again, for what a Deployment asks for may still change.
            for name, *_ in wanted:
                self.make_available(f"ad-{name}-predictor")
            return self.canaries() == wanted

        wait_until(are_ready, _SECONDS, f"the status shows {wanted}")

    def wait_for_routes(self, expected: list[tuple[str, int]], *names: str) -> None:
        def are_written() -> bool:
            routes = self.routes()
            return all(routes.get(name) == [expected] for name in names)

        try:
            wait_until(are_written, _SECONDS, f"routes to {expected}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.routes()}") from None


def make_service(kserve: KServe) -> Service:
    made = Service(kserve, kserve.plane.create_namespace())
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "ad-topics"},
        "spec": {
            "supportedModelFormats": [{"name": "ad-topics", "version": "1", "autoSelect": True}],
            "protocolVersions": ["v2"],
            "containers": [{"name": "kserve-container", "image": "registry.example/predictor:1"}],
        },
    }
    place = ("serving.kserve.io", "v1alpha1", made.namespace, "servingruntimes")
    made.resources.create_namespaced_custom_object(*place, runtime)
    return made


@pytest.fixture
def service(kserve: KServe) -> Service:
    return make_service(kserve)


@pytest.fixture(scope="module")
def writes_weights(kserve: KServe) -> bool:
    """Whether this KServe writes the split into the HTTPRoutes, as seen on a canary that is ready."""
    probe = make_service(kserve)
    probe.create_ready(1)
    probe.start_canary(canary("v2", 10))
    # The status is written after the routes, in one pass.
    return probe.routes()["ad"] != [[("ad-predictor", 1)]]


# What a canary is made of


def test_canary_gets_a_deployment_and_a_service_named_after_it(service: Service) -> None:
    service.create_ready()
    service.patch(canary=[canary("v2", 10)])
    wait_until(lambda: service.canaries() == [("v2", 10, False)], _SECONDS, "the canary is in the status")
    assert service.services() == {"ad-predictor", "ad-v2-predictor"}
    stable, made = service.deployments()["ad-predictor"], service.deployments()["ad-v2-predictor"]
    assert made.spec.selector.match_labels == {"app": "isvc.ad-v2-predictor"}
    labels = made.spec.template.metadata.labels
    # Only `app` tells the canary's pods from the others.
    assert labels | {"app": "isvc.ad-predictor"} == stable.spec.template.metadata.labels
    assert labels["serving.kserve.io/inferenceservice"] == "ad"
    sources = [
        one.spec.template.metadata.annotations["internal.serving.kserve.io/storage-initializer-sourceuri"]
        for one in (stable, made)
    ]
    assert sources == ["s3://models/ad-topics/v1", "s3://models/ad-topics/v2"]


def test_canary_that_is_not_ready_takes_nothing_from_ready(service: Service) -> None:
    service.create_ready()
    service.patch(canary=[canary("v2", 10)])
    wait_until(lambda: service.canaries() == [("v2", 10, False)], _SECONDS, "the canary is in the status")
    conditions = service.conditions()
    assert (conditions["CanaryPredictorReady"], conditions["Ready"]) == ("False", "True")
    assert [[backend for backend, _ in rule] for rule in service.routes()["ad"]] == [["ad-predictor"]]


def test_one_available_pod_makes_a_canary_ready(service: Service) -> None:
    service.create_ready()
    service.patch(canary=[canary("v2", 50)])
    service.make_available("ad-v2-predictor", 1)
    wait_until(lambda: service.canaries() == [("v2", 50, True)], _SECONDS, "the canary is ready")
    assert service.replicas()["ad-v2-predictor"] == 2
    assert service.conditions()["CanaryPredictorReady"] == "True"


def test_replicas_follow_the_traffic(service: Service) -> None:
    service.create_ready(4)
    for percent, expected in ((10, (3, 1)), (50, (2, 2)), (100, (1, 4))):
        service.start_canary(canary("v2", percent))
        stable, made = expected
        replicas = {"ad-predictor": stable, "ad-v2-predictor": made}
        wait_until(lambda wanted=replicas: service.replicas() == wanted, _SECONDS, f"{percent} %: {replicas}")


def test_dark_launch_needs_replicas_of_its_own(service: Service) -> None:
    service.create_ready(2)
    service.patch(canary=[canary("v2", 0)])
    wait_until(lambda: service.canaries() == [("v2", 0, False)], _SECONDS, "the canary is in the status")
    assert service.replicas()["ad-v2-predictor"] == 0
    service.start_canary(canary("v2", 0, minReplicas=1))
    assert service.replicas()["ad-v2-predictor"] == 1


def test_played_cluster_brings_a_canary_up_but_not_a_broken_one(service: Service) -> None:
    broken = {"ad-v3-predictor"}
    with service.kserve.play_cluster(service.namespace, broken):
        service.create(2, canary=[canary("v2", 10), canary("v3", 10)])
        wait_until(lambda: service.conditions().get("Ready") == "True", _SECONDS, "the service is ready")
        wait_until(lambda: service.canaries() == [("v2", 10, True), ("v3", 10, False)], _SECONDS, "one canary is ready")
        broken.clear()
        wait_until(lambda: service.canaries()[1] == ("v3", 10, True), _SECONDS, "the other is ready too")


# Where the traffic goes


def test_split_is_in_the_routes_or_nowhere(service: Service, writes_weights: bool) -> None:
    service.create_ready()
    for first, second in ((90, 10), (50, 50), (0, 100)):
        service.start_canary(canary("v2", second))
        split = [("ad-predictor", first), ("ad-v2-predictor", second)]
        # Before weights were written, the status told the percentage all the same.
        service.wait_for_routes(split if writes_weights else [("ad-predictor", 1)], "ad", "ad-predictor")
        assert service.canaries() == [("v2", second, True)]
    service.patch(canary=None)
    service.wait_for_routes([("ad-predictor", 1)], "ad", "ad-predictor")


def test_canary_that_becomes_unready_loses_its_traffic(service: Service, writes_weights: bool) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 50))
    service.make_available("ad-v2-predictor", 0)
    wait_until(lambda: service.canaries() == [("v2", 50, False)], _SECONDS, "the canary is not ready")
    service.wait_for_routes([("ad-predictor", 100 if writes_weights else 1)], "ad", "ad-predictor")


def test_routes_stay_as_they_were_while_the_stable_model_is_unready(service: Service, writes_weights: bool) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 50))
    split = [("ad-predictor", 50), ("ad-v2-predictor", 50)] if writes_weights else [("ad-predictor", 1)]
    service.wait_for_routes(split, "ad")
    service.make_available("ad-predictor", 0)
    wait_until(lambda: service.conditions()["PredictorReady"] == "False", _SECONDS, "the stable model is unready")
    service.patch(canary=None)
    wait_until(lambda: service.services() == {"ad-predictor"}, _SECONDS, "the canary's Service is gone")
    wait_until(lambda: not service.canaries(), _SECONDS, "the status shows no canary")
    # With weights, half of the traffic now goes to a Service that is gone.
    assert service.routes()["ad"] == [split]
    service.make_available("ad-predictor")
    service.wait_for_routes([("ad-predictor", 1)], "ad", "ad-predictor")


def test_canary_traffic_percent_of_the_predictor_means_nothing_here(service: Service) -> None:
    service.create_ready()
    service.patch(predictor={"canaryTrafficPercent": 10, "model": {"storageUri": "s3://models/ad-topics/v2"}})
    wait_until(
        lambda: service.deployments()["ad-predictor"].metadata.generation == 2, _SECONDS, "the model is replaced"
    )
    assert set(service.deployments()) == {"ad-predictor"}
    assert service.routes()["ad"] == [[("ad-predictor", 1)]]
    assert service.canaries() == []


# How a rollout sees that its patch arrived


def test_observed_generation_is_that_of_the_stable_deployment(service: Service) -> None:
    service.create_ready(1)
    service.start_canary(canary("v2", 100))
    found = service.read()
    # With one pod the stable Deployment stays as it is, and so does the number, whatever is patched.
    assert (found["metadata"]["generation"], found["status"]["observedGeneration"]) == (2, 1)
    service.patch(canary=[canary("v2", 50)])
    wait_until(lambda: service.canaries() == [("v2", 50, True)], _SECONDS, "the new percentage is in the status")
    found = service.read()
    assert (found["metadata"]["generation"], found["status"]["observedGeneration"]) == (3, 1)


# Promotion and rollback


def test_dropping_the_canary_removes_it_and_its_traffic(service: Service) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 50))
    service.patch(canary=None)
    wait_until(lambda: service.replicas() == {"ad-predictor": 4}, _SECONDS, "the canary's Deployment is gone")
    service.wait_for_routes([("ad-predictor", 1)], "ad", "ad-predictor")
    wait_until(lambda: not service.canaries(), _SECONDS, "the status shows no canary")
    assert service.services() == {"ad-predictor"}
    assert "CanaryPredictorReady" not in service.conditions()


def test_promotion_keeps_the_pods_of_the_canary(service: Service, writes_weights: bool) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 100))
    before = service.deployments()["ad-v2-predictor"].metadata
    service.patch(predictor={"name": "v2", "model": model("v2")}, canary=None)
    service.wait_for_routes([("ad-v2-predictor", 1)], "ad", "ad-predictor" if writes_weights else "ad-v2-predictor")
    wait_until(lambda: not service.canaries(), _SECONDS, "the status shows no canary")
    after = service.deployments()["ad-v2-predictor"].metadata
    assert (after.uid, after.generation) == (before.uid, before.generation)
    assert service.replicas() == {"ad-v2-predictor": 4}
    assert service.services() == {"ad-v2-predictor"}
    # A version that names a route after the model needs the gateway to accept the new one, and leaves the old one.
    assert ("ad-v2-predictor" in service.routes()) is not writes_weights
    service.accept()
    assert service.status()["address"]["url"] == f"http://ad-v2-predictor.{service.namespace}.svc.cluster.local"


def test_promotion_deletes_the_old_service_before_the_route_leaves_it(service: Service) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 100))
    # All events of the cluster's store have one order, whatever kind they are of.
    events: dict[int, tuple[str, str, str]] = {}

    def follow(kind: str, first: dict[str, Any], listing: Any, *place: str) -> None:
        for event in watch.Watch().stream(
            listing, *place, resource_version=first["metadata"]["resourceVersion"], timeout_seconds=3
        ):
            metadata = service.api.sanitize_for_serialization(event["object"])["metadata"]
            events[int(metadata["resourceVersion"])] = (event["type"], kind, metadata["name"])

    routes = (service.resources.list_namespaced_custom_object, *ROUTE, service.namespace, "httproutes")
    services = (service.core.list_namespaced_service, service.namespace)
    deployments = (service.apps.list_namespaced_deployment, service.namespace)
    followers = []
    for kind, (listing, *place) in (("route", routes), ("service", services), ("deployment", deployments)):
        first = service.api.sanitize_for_serialization(listing(*place))
        followers.append(threading.Thread(target=follow, args=(kind, first, listing, *place)))
    for follower in followers:
        follower.start()
    service.patch(predictor={"name": "v2", "model": model("v2")}, canary=None)
    for follower in followers:
        follower.join()
    order = [events[version] for version in sorted(events)]
    gone = order.index(("DELETED", "service", "ad-predictor"))
    assert order.index(("DELETED", "deployment", "ad-predictor")) < gone
    assert gone < order.index(("MODIFIED", "route", "ad"))


def test_next_canary_runs_beside_a_promoted_one(service: Service, writes_weights: bool) -> None:
    service.create_ready()
    service.start_canary(canary("v2", 100))
    service.patch(predictor={"name": "v2", "model": model("v2")}, canary=None)
    service.wait_for_routes([("ad-v2-predictor", 1)], "ad")
    service.start_canary(canary("v3", 30))
    split = [("ad-v2-predictor", 70), ("ad-v3-predictor", 30)] if writes_weights else [("ad-v2-predictor", 1)]
    service.wait_for_routes(split, "ad")


# Autoscalers


def test_autoscalers_of_dropped_and_promoted_models_stay(service: Service) -> None:
    service.create_ready(2, autoscaler="hpa")
    service.start_canary(canary("v2", 50))
    assert service.autoscalers()["ad-v2-predictor"] == (1, 1)
    service.patch(canary=None)
    wait_until(lambda: set(service.deployments()) == {"ad-predictor"}, _SECONDS, "the canary is gone")
    service.wait_for_routes([("ad-predictor", 1)], "ad")
    assert set(service.autoscalers()) == {"ad-predictor", "ad-v2-predictor"}
    service.start_canary(canary("v2", 100))
    service.patch(predictor={"name": "v2", "model": model("v2")}, canary=None)
    service.wait_for_routes([("ad-v2-predictor", 1)], "ad")
    assert set(service.deployments()) == {"ad-v2-predictor"}
    assert set(service.autoscalers()) == {"ad-predictor", "ad-v2-predictor"}


def test_canary_under_keda_is_never_taken_up(service: Service) -> None:
    metric = {"backend": "prometheus", "serverAddress": "http://prometheus.example", "query": "up"}
    external = {"type": "External", "external": {"metric": metric, "target": {"type": "Value", "value": "5"}}}
    service.create(2, autoscaler="keda", predictor={"autoScaling": {"metrics": [external]}})
    service.make_available("ad-predictor")
    wait_until(lambda: set(service.routes()) == {"ad", "ad-predictor"}, _SECONDS, "the routes are written")
    service.accept()
    service.patch(canary=[canary("v2", 50)])
    service.make_available("ad-v2-predictor")

    def refused() -> bool:
        events = service.core.list_namespaced_event(service.namespace).items
        return any("spec.triggers: Required value" in one.message for one in events)

    wait_until(refused, _SECONDS, "KServe's own ScaledObject is refused")
    assert service.canaries() == []
    assert service.conditions()["Ready"] == "True"


# What may be written


_NO_AUTOSCALING = "(canary uses fixed replicas)"
_METRIC = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}


@pytest.mark.parametrize(
    ("canaries", "message"),
    [
        ([canary("v2", 60), canary("v3", 50)], "sum of canary trafficPercent values (110) must be <= 100"),
        ([canary("v2", 10), canary("v2", 10)], 'canary predictor.name "v2" is duplicated'),
        ([canary("v2", 101)], "should be less than or equal to 100"),
        ([{"trafficPercent": 10, "predictor": {"model": model("v2")}}], "canary[0] predictor.name is required"),
        ([canary("v2", 10, maxReplicas=3)], f"must not set maxReplicas {_NO_AUTOSCALING}"),
        ([canary("v2", 10, scaleTarget=3)], f"must not set scaleTarget {_NO_AUTOSCALING}"),
        ([canary("v2", 10, scaleMetric="cpu")], f"must not set scaleMetric {_NO_AUTOSCALING}"),
        ([canary("v2", 10, autoScaling={"metrics": [_METRIC]})], f"must not set autoScaling {_NO_AUTOSCALING}"),
        ([canary("v2", 10, minReplicas=5)], "minReplicas (5) must not exceed stable predictor minReplicas (4)"),
        ([canary("v2", 10, model=None)], "exactly one of"),
        ([canary("V2_x", 10)], "should match"),
        ([canary("v2", 10.5)], "cannot unmarshal number 10.5"),
    ],
    ids=lambda value: None if isinstance(value, list) else re.sub(r"\W+", "-", value)[:40],
)
def test_canary_is_refused(deployed: Service, canaries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        deployed.patch(canary=canaries)
    assert message in json.loads(refused.value.body)["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"spec": {"predictor": {"name": "v2"}}}, "predictor.name change requires a model change (e.g. storageUri)"),
        ({"metadata": {"annotations": {_MODE: "Knative"}}}, "deploymentMode cannot be changed"),
    ],
    ids=["name-without-storage-uri", "mode"],
)
def test_change_is_refused(deployed: Service, body: dict[str, Any], message: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        deployed.resources.patch_namespaced_custom_object(*deployed.place, "ad", body)
    assert message in json.loads(refused.value.body)["message"]


def test_canary_list_is_refused_in_knative_mode(service: Service) -> None:
    with pytest.raises(client.ApiException, match="canary is only supported in Standard deployment mode"):
        service.create(2, mode="Knative", canary=[canary("v2", 10)])


@pytest.fixture(scope="module")
def deployed(kserve: KServe) -> Service:
    """One for tests whose changes are all refused."""
    made = make_service(kserve)
    made.create(4)
    wait_until(lambda: made.status().get("deploymentMode") == "Standard", _SECONDS, "the mode is in the status")
    return made


# Where a rollout may keep its state


def test_annotation_of_the_service_restarts_its_pods(service: Service) -> None:
    service.create_ready()
    service.annotate(**{"mlflywheel.example/rollout": "state"})
    wait_until(lambda: service.deployments()["ad-predictor"].metadata.generation == 2, _SECONDS, "pods are replaced")
    template = service.deployments()["ad-predictor"].spec.template
    assert template.metadata.annotations["mlflywheel.example/rollout"] == "state"


def test_config_map_of_the_service_restarts_nothing(service: Service) -> None:
    service.create_ready()
    found = service.read()
    owner = {"apiVersion": "/".join(ISVC), "kind": "InferenceService", "name": "ad", "uid": found["metadata"]["uid"]}
    body = {"metadata": {"name": "ad-rollout", "ownerReferences": [owner]}, "data": {"state": "1"}}
    service.core.create_namespaced_config_map(service.namespace, body)
    service.core.patch_namespaced_config_map("ad-rollout", service.namespace, {"data": {"state": "2"}})
    # A change that the controller does act on comes after it.
    service.patch(predictor={"minReplicas": 3})
    wait_until(lambda: service.replicas() == {"ad-predictor": 3}, _SECONDS, "the controller has acted")
    before, after = found["spec"], service.read()["spec"]
    assert after["predictor"]["model"] == before["predictor"]["model"]
    deployment = service.deployments()["ad-predictor"]
    assert deployment.metadata.generation == 2
    assert "ad-rollout" not in str(deployment.spec.template)


# Knative


def play_knative(service: Service, revisions: list[str]) -> None:
    """Write the status that Knative would: each template is a revision, and the newest is ready."""
    place = (*_KNATIVE, service.namespace, "services")
    found = service.resources.get_namespaced_custom_object(*place, "ad-predictor")
    template = str(found["spec"]["template"])
    if revisions[-1:] != [template]:
        revisions.append(template)
    latest = f"ad-predictor-{len(revisions):05d}"
    traffic = [one | ({"revisionName": latest} if one["latestRevision"] else {}) for one in found["spec"]["traffic"]]
    conditions = [{"type": kind, "status": "True"} for kind in ("ConfigurationsReady", "Ready", "RoutesReady")]
    status = {
        "observedGeneration": found["metadata"]["generation"],
        "latestCreatedRevisionName": latest,
        "latestReadyRevisionName": latest,
        "traffic": traffic,
        "conditions": conditions,
        "url": "http://ad-predictor.example.com",
    }
    service.resources.patch_namespaced_custom_object_status(*place, "ad-predictor", {"status": status})


def test_knative_splits_between_the_latest_and_the_last_revision_rolled_out(service: Service) -> None:
    service.create(1, mode="Knative", autoscaler="external")
    revisions: list[str] = []

    def reaches(*expected: tuple[str, int], rolled_out: str) -> None:
        def is_reached() -> bool:
            try:
                play_knative(service, revisions)
            except client.ApiException as error:
                # Not made yet, or written by the controller in between.
                if error.status not in (404, 409):
                    raise
            found = service.status().get("components", {}).get("predictor", {})
            traffic = [(one["revisionName"][-1:], one["percent"]) for one in found.get("traffic", ())]
            return traffic == list(expected) and found.get("latestRolledoutRevision", "").endswith(rolled_out)

        try:
            wait_until(is_reached, _SECONDS, f"{expected} and {rolled_out} rolled out")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {service.status()}") from None

    reaches(("1", 100), rolled_out="00001")
    service.patch(predictor={"canaryTrafficPercent": 10, "model": {"storageUri": "s3://models/ad-topics/v2"}})
    reaches(("2", 10), ("1", 90), rolled_out="00001")
    service.patch(predictor={"canaryTrafficPercent": 0})
    reaches(("2", 0), ("1", 100), rolled_out="00001")
    service.patch(predictor={"canaryTrafficPercent": None})
    reaches(("2", 100), rolled_out="00002")
    assert service.status()["components"]["predictor"]["previousRolledoutRevision"].endswith("00001")
    # Nothing new to try out: this goes back to the revision before.
    service.patch(predictor={"canaryTrafficPercent": 0})
    reaches(("2", 0), ("1", 100), rolled_out="00001")
    assert len(revisions) == 2
