"""Rollouts in Standard mode: what becomes of the objects in a real API server, with a stand-in for KServe's controller.

The tests with the fixture `kserve` run against KServe's real controller and webhooks. The pinned one writes no weights
into routes, so that a whole rollout needs a newer one, named in MLFLYWHEEL_TEST_KSERVE_MANAGER.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
from control_plane import Cluster as ServedCluster
from control_plane import wait_until
from kserve_controller import ISVC, KServe, accept_routes, mark_deployment
from kubernetes import client
from standard_stand_in import StandardStandIn

from mlflywheel.cluster.canary import open_actuator
from mlflywheel.cluster.inference_services import MANIFEST
from mlflywheel.cluster.kubernetes_client import Cluster, Connection
from mlflywheel.cluster.standard_canary import NO_WEIGHTS_SECONDS, StandardActuator
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Candidate, Memo, Move, Target

V1, V2 = "s3://models/ad-topics/v1", "s3://models/ad-topics/v2"
CANDIDATE = Candidate(V2, "v2")
PROMOTED, ROLLED_BACK = Target("promoted"), Target("rolled_back")
_MODE = "serving.kserve.io/deploymentMode"
_AUTOSCALER = "serving.kserve.io/autoscalerClass"


def weight(percent: float) -> Target:
    return Target("weight", percent)


class KilledError(Exception):
    """Stands for the end of the process."""


class Killer(client.ApiClient):
    """A client that ends the process before or after the n-th call from now; None never."""

    def __init__(self, configuration: client.Configuration) -> None:
        super().__init__(configuration)
        self.left: int | None = None
        self.is_after = False
        self.calls = 0

    def call_api(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0 and not self.is_after:
                raise KilledError
        answer = super().call_api(*arguments, **options)
        if self.left is not None and self.left < 0:
            raise KilledError
        return answer


class World:
    """A namespace with an InferenceService `ad`, and who plays KServe there."""

    def __init__(self, api: client.ApiClient, namespace: str, settle: Callable[[], None]) -> None:
        self.api, self.namespace, self.settle = api, namespace, settle
        self.resources = client.CustomObjectsApi(api)
        self.place = (*ISVC, namespace, "inferenceservices")

    def create(self, *, autoscaler: str = "none", replicas: int = 3, **spec: Any) -> None:
        # KServe's webhook adds the empty name, and its definition wants that in a canary.
        model = {"modelFormat": {"name": "ad-topics"}, "name": "", "protocolVersion": "v2", "storageUri": V1}
        model["args"] = ["--a=1"]
        predictor = {"minReplicas": replicas, "model": model} | spec.pop("predictor", {})
        body = {
            "apiVersion": "/".join(ISVC),
            "kind": "InferenceService",
            "metadata": {"name": "ad", "annotations": {_MODE: "Standard", _AUTOSCALER: autoscaler}},
            "spec": {"predictor": predictor, **spec},
        }
        self.resources.create_namespaced_custom_object(*self.place, body)
        wait_until(self.is_ready, 30, "the service is ready")

    def is_ready(self) -> bool:
        self.settle()
        conditions = (self.read().get("status") or {}).get("conditions") or ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get_namespaced_custom_object(*self.place, "ad")
        return found

    def patch(self, spec: dict[str, Any], manager: str = "kubectl-edit") -> None:
        self.resources.patch_namespaced_custom_object(*self.place, "ad", {"spec": spec}, field_manager=manager)

    def deployments(self) -> dict[str, int]:
        listed = client.AppsV1Api(self.api).list_namespaced_deployment(self.namespace)
        return {one.metadata.name: one.spec.replicas for one in listed.items}

    def autoscalers(self) -> dict[str, tuple[int, int]]:
        listed = client.AutoscalingV2Api(self.api).list_namespaced_horizontal_pod_autoscaler(self.namespace)
        return {one.metadata.name: (one.spec.min_replicas, one.spec.max_replicas) for one in listed.items}

    def scaled_objects(self) -> list[str]:
        place = ("keda.sh", "v1alpha1", self.namespace, "scaledobjects")
        return [one["metadata"]["name"] for one in self.resources.list_namespaced_custom_object(*place)["items"]]

    def shares(self) -> dict[str, int]:
        place = ("gateway.networking.k8s.io", "v1", self.namespace, "httproutes")
        route = self.resources.get_namespaced_custom_object(*place, "ad")
        return {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}

    def actuator(self, api: client.ApiClient | None = None, now: Callable[[], float] = time.time) -> StandardActuator:
        return StandardActuator(open_cluster(api or self.api), self.namespace, "ad", now)


class PlayedWorld(World):
    """The same with a stand-in for KServe."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.played = StandardStandIn(api, namespace)
        super().__init__(api, namespace, self.played.step)


def open_cluster(api: client.ApiClient) -> Cluster:
    return Cluster(Connection(api, None, "the test's client"), RolloutError, MANIFEST, is_own=False)


def drive(
    actuator: Any, target: Target, memo: Memo, world: World, candidate: Candidate = CANDIDATE, seconds: float = 40
) -> Move:
    """Move until the target is reached."""
    deadline = time.monotonic() + seconds
    while True:
        move: Move = actuator.move(candidate, target, memo)
        if move.reached:
            return move
        assert not move.failed, move.failed
        assert time.monotonic() < deadline, move
        world.settle()


@pytest.fixture(scope="module")
def definitions(install_crds: Callable[[str], tuple[str, ...]]) -> None:
    for project in ("kserve", "gateway-api"):
        install_crds(project)


@pytest.fixture
def world(cluster: ServedCluster, namespace: str, definitions: None) -> PlayedWorld:
    api = cluster.api_client()
    return PlayedWorld(api, namespace)


@pytest.fixture
def real_world(kserve: KServe) -> World:
    """The same with KServe's real controller, Deployments whose pods start at once and a gateway that takes all."""
    namespace, api = kserve.plane.create_namespace(), kserve.plane.api_client()
    apps = client.AppsV1Api(api)
    scaling = client.AutoscalingV2Api(api)

    def settle() -> None:
        for one in scaling.list_namespaced_horizontal_pod_autoscaler(namespace).items:
            try:
                found = apps.read_namespaced_deployment(one.spec.scale_target_ref.name, namespace)
            except client.ApiException:
                continue
            wanted = min(max(found.spec.replicas, one.spec.min_replicas), one.spec.max_replicas)
            if found.spec.replicas != wanted:
                apps.patch_namespaced_deployment(found.metadata.name, namespace, {"spec": {"replicas": wanted}})
        for found in apps.list_namespaced_deployment(namespace).items:
            try:
                mark_deployment(apps, found)
            except client.ApiException as error:
                if error.status not in (404, 409):
                    raise
        accept_routes(api, namespace)
        time.sleep(0.1)

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
    place = ("serving.kserve.io", "v1alpha1", namespace, "servingruntimes")
    client.CustomObjectsApi(api).create_namespaced_custom_object(*place, runtime)
    return World(api, namespace, settle)


# Up and down


@pytest.mark.parametrize("autoscaler", ["none", "hpa"])
def test_promotion_leaves_the_new_model_the_old_limits_and_no_orphans(world: PlayedWorld, autoscaler: str) -> None:
    world.create(autoscaler=autoscaler, predictor={"maxReplicas": 4})
    before = world.read()["spec"]
    actuator = open_actuator(open_cluster(world.api), world.namespace, "ad")
    assert isinstance(actuator, StandardActuator)
    memo = actuator.begin(CANDIDATE)
    assert world.read()["spec"] == before
    for percent, replicas in ((0, 1), (10, 1), (50, 2), (100, 3)):
        move = drive(actuator, weight(percent), memo, world)
        assert move.traffic_percent == percent
        assert world.shares() == {"ad-predictor": 100 - percent, "ad-v2-predictor": percent}
        assert world.deployments() == {"ad-predictor": 3, "ad-v2-predictor": replicas}
    move = drive(actuator, PROMOTED, memo, world)
    assert move.traffic_percent == 100
    assert move.arms == {"stable": "ad-predictor", "candidate": "ad-v2-predictor"}
    expected = copy.deepcopy(before)
    expected["predictor"] |= {"name": "v2", "model": before["predictor"]["model"] | {"storageUri": V2}}
    assert world.read()["spec"] == expected
    assert world.deployments() == {"ad-v2-predictor": 3}
    assert world.autoscalers() == ({"ad-v2-predictor": (3, 4)} if autoscaler == "hpa" else {})


def test_share_rises_only_when_the_replicas_for_it_are_available(world: PlayedWorld) -> None:
    world.create(replicas=4)
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(5), memo, world)
    move = actuator.move(CANDIDATE, weight(50), memo)
    assert (move.did, move.traffic_percent) == ("asked for 2 replicas of v2 instead of 1", 5)
    world.played.broken = {"ad-v2-predictor"}
    for _ in range(3):
        world.settle()
        move = actuator.move(CANDIDATE, weight(50), memo)
        assert move.waiting_for == "0 of 2 replicas of ad-v2-predictor to be available"
    # A canary without pods is in no route at all.
    assert world.shares() == {"ad-predictor": 100}
    assert max(shares.get("ad-v2-predictor", 0) for shares in world.played.history) == 5


@pytest.mark.parametrize("autoscaler", ["none", "hpa"])
def test_rollback_takes_the_traffic_first_and_puts_everything_back(world: PlayedWorld, autoscaler: str) -> None:
    world.create(autoscaler=autoscaler, predictor={"maxReplicas": 4})
    before, scalers = world.read()["spec"], world.autoscalers()
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(50), memo, world)
    assert actuator.move(CANDIDATE, ROLLED_BACK, memo).did == "took the traffic from v2"
    move = actuator.move(CANDIDATE, ROLLED_BACK, memo)
    assert move.waiting_for == "the routes to give v2 nothing, it has 50 %"
    move = drive(actuator, ROLLED_BACK, memo, world)
    assert (move.traffic_percent, world.shares()) == (0, {"ad-predictor": 1})
    assert world.read()["spec"] == before
    assert (world.deployments(), world.autoscalers()) == ({"ad-predictor": 3}, scalers)
    # The stable version was never less than whole.
    assert world.played.deleted == ["ad-v2-predictor"]


def test_rollback_after_the_promotion_was_written_brings_the_old_model_back_as_a_canary(world: PlayedWorld) -> None:
    world.create(autoscaler="hpa", predictor={"maxReplicas": 4})
    before = world.read()["spec"]
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(100), memo, world)
    while actuator.move(CANDIDATE, PROMOTED, memo).did != "made v2 the version in use":
        world.settle()
    with pytest.raises(RolloutError, match="v2 is promoted already"):
        actuator.move(CANDIDATE, weight(50), memo)
    move = drive(actuator, ROLLED_BACK, memo, world)
    assert move.traffic_percent == 0
    assert move.arms == {"stable": "ad-restored-predictor", "candidate": "ad-v2-predictor"}
    assert world.read()["spec"] == before | {"predictor": before["predictor"] | {"name": "restored"}}
    assert world.deployments() == {"ad-restored-predictor": 3}
    assert world.autoscalers() == {"ad-restored-predictor": (3, 4)}


def test_canary_of_an_old_kserve_gets_no_weight_and_is_given_up(world: PlayedWorld) -> None:
    world.played = StandardStandIn(world.api, world.namespace, writes_weights=False)
    world.settle = world.played.step
    world.create()
    before, now = world.read()["spec"], [0.0]
    actuator = world.actuator(now=lambda: now[0])
    memo = actuator.begin(CANDIDATE)
    move = actuator.move(CANDIDATE, weight(0), memo)
    for _ in range(6):
        world.settle()
        move = actuator.move(CANDIDATE, weight(0), memo)
    assert not move.failed
    now[0] += NO_WEIGHTS_SECONDS
    assert "releases before 0.21" in actuator.move(CANDIDATE, weight(0), memo).failed
    drive(actuator, ROLLED_BACK, memo, world)
    assert world.read()["spec"] == before


def test_failing_deployment_is_reported_with_its_reason(world: PlayedWorld) -> None:
    world.create()
    world.played.broken = {"ad-v2-predictor"}
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    for _ in range(3):
        move = actuator.move(CANDIDATE, weight(10), memo)
        assert not move.failed
        world.settle()
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    client.AppsV1Api(world.api).patch_namespaced_deployment_status(
        "ad-v2-predictor", world.namespace, {"status": {"conditions": [condition]}}
    )
    move = actuator.move(CANDIDATE, weight(10), memo)
    assert move.failed == "Deployment ad-v2-predictor: ProgressDeadlineExceeded: too late"
    pod = {"metadata": {"name": "p", "labels": {"app": "isvc.ad-v2-predictor"}}}
    pod["spec"] = {"containers": [{"name": "kserve-container", "image": "x"}]}
    core = client.CoreV1Api(world.api)
    core.create_namespaced_service_account(world.namespace, {"metadata": {"name": "default"}})
    core.create_namespaced_pod(world.namespace, pod)
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    state = {"name": "kserve-container", "state": {"waiting": waiting}, "ready": False, "restartCount": 3}
    state |= {"image": "x", "imageID": "x"}
    core.patch_namespaced_pod_status("p", world.namespace, {"status": {"containerStatuses": [state]}})
    move = actuator.move(CANDIDATE, weight(10), memo)
    assert move.failed == "pod p, container kserve-container: CrashLoopBackOff: back-off"


# Killed, disturbed


@pytest.mark.parametrize(
    "end", [PROMOTED, ROLLED_BACK, Target("promoted", 1.0)], ids=["promoted", "rolled back", "late"]
)
def test_process_killed_at_every_call_ends_in_the_same_objects(
    cluster: ServedCluster, world: PlayedWorld, end: Target
) -> None:
    """Each move is ended before and after each of its calls, with a memo from before it, until it gets through."""
    world.create(autoscaler="hpa", predictor={"maxReplicas": 4})
    before = world.read()["spec"]
    killer = Killer(cluster.api_client().configuration)
    actuator = world.actuator(killer)
    memo = actuator.begin(CANDIDATE)
    targets = [weight(34), PROMOTED, ROLLED_BACK] if end.traffic_percent else [weight(34), end]
    kills = 0
    for target in targets:
        for _ in range(40):
            for at in range(40):
                saved = copy.deepcopy(memo)
                killer.left, killer.is_after = at // 2, at % 2 == 1
                try:
                    move = actuator.move(CANDIDATE, target, saved)
                except KilledError:
                    kills += 1
                    world.settle()
                else:
                    memo = saved
                    break
            killer.left = None
            world.settle()
            is_written = end.traffic_percent and world.read()["spec"]["predictor"].get("name") == "v2"
            if move.reached or (target is PROMOTED and is_written):
                break
        else:
            pytest.fail(f"{target} was never reached: {move}")
    assert kills > 40
    name = {"promoted": "v2", "rolled_back": ""}[end.kind] if not end.traffic_percent else "restored"
    expected = copy.deepcopy(before)
    if name:
        expected["predictor"]["name"] = name
    if name == "v2":
        expected["predictor"]["model"]["storageUri"] = V2
    assert world.read()["spec"] == expected
    arm = f"ad-{name}-predictor" if name else "ad-predictor"
    assert (world.deployments(), world.autoscalers()) == ({arm: 3}, {arm: (3, 4)})
    killer.close()


@pytest.mark.parametrize(
    ("spec", "field", "seen"),
    [
        ({"predictor": {"model": {"storageUri": "s3://other"}}}, "spec.predictor.model.storageUri", "'s3://other'"),
        ({"predictor": {"minReplicas": 9}}, "spec.predictor.minReplicas", "9"),
        ({"predictor": {"timeout": 5}}, "spec.predictor.timeout", "5"),
        ({"canary": None}, "spec.canary", "nothing"),
        ({"predictor": {"model": {"args": None}}}, "spec.predictor.model.args", "nothing"),
    ],
)
def test_edit_by_somebody_else_stops_with_the_field_and_who_wrote_it(
    world: PlayedWorld, spec: dict[str, Any], field: str, seen: str
) -> None:
    world.create()
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(10), memo, world)
    world.patch(spec)
    kept = copy.deepcopy(memo)
    for _ in range(2):
        with pytest.raises(ForeignEditError) as caught:
            actuator.move(CANDIDATE, weight(20), memo)
    assert caught.value.where == f"InferenceService {world.namespace}/ad, {field}"
    assert caught.value.seen.startswith(seen)
    assert seen == "nothing" or "written by kubectl-edit at 20" in caught.value.seen
    assert memo == kept


def test_edit_between_reading_and_writing_is_noticed_and_a_change_of_the_status_is_not_one(world: PlayedWorld) -> None:
    world.create()
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(10), memo, world)
    place = (*world.place, "ad")

    class Meddler(client.ApiClient):
        """Changes the service just before each patch of it arrives."""

        change: Callable[[], Any] = staticmethod(lambda: None)

        def call_api(self, path: str, method: str, *arguments: Any, **options: Any) -> Any:
            if method == "PATCH":
                change, self.change = self.change, lambda: None
                change()
            return super().call_api(path, method, *arguments, **options)

    api = Meddler(world.api.configuration)
    api.default_headers.update(world.api.default_headers)
    api.change = lambda: world.resources.patch_namespaced_custom_object(*place, {"metadata": {"labels": {"a": "b"}}})
    assert world.actuator(api).move(CANDIDATE, weight(20), memo).did == "moved the share of v2 from 10 % to 20 %"
    world.settle()
    drive(actuator, weight(20), memo, world)
    api.change = lambda: world.patch({"predictor": {"timeout": 7}})
    with pytest.raises(ForeignEditError, match=r"spec\.predictor\.timeout: 7, written by kubectl-edit"):
        world.actuator(api).move(CANDIDATE, weight(30), memo)
    assert world.read()["spec"]["canary"][0]["trafficPercent"] == 20
    api.close()


def test_routes_frozen_by_an_unready_stable_version_are_waited_for(world: PlayedWorld) -> None:
    world.create()
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(50), memo, world)
    world.played.broken = {"ad-predictor"}
    world.settle()
    assert actuator.move(CANDIDATE, ROLLED_BACK, memo).did
    world.settle()
    move = actuator.move(CANDIDATE, ROLLED_BACK, memo)
    assert (move.traffic_percent, "KServe changes no route before" in move.waiting_for) == (50, True)
    assert "ad-v2-predictor" in world.deployments()
    world.played.broken = set()
    drive(actuator, ROLLED_BACK, memo, world)


# Refused


@pytest.mark.parametrize(
    ("service", "candidate", "message"),
    [
        ({}, Candidate(V1, "v2"), "is the one in use; another address is needed"),
        ({}, Candidate(V2, "V2"), "lower-case letters"),
        ({}, Candidate(V2, "v" * 50), "characters too long"),
        ({}, Candidate(V2, "v2", overrides={"maxReplicas": 2}), "the rollout sets that field itself"),
        ({"predictor": {"name": "v2"}}, CANDIDATE, "the version in use has that name"),
        ({"predictor": {"canaryTrafficPercent": 10}}, CANDIDATE, "KServe ignores it there without a word"),
        ({"transformer": {"containers": [{"name": "t", "image": "x"}]}}, CANDIDATE, "go past the transformer"),
        ({"autoscaler": "external"}, CANDIDATE, "hpa, keda or none is needed"),
        ({"predictor": {"storageUris": [{"uri": V1}]}}, CANDIDATE, "promotes canaries by storageUri alone"),
        ({"predictor": {"workerSpec": {"pipelineParallelSize": 2}}}, CANDIDATE, "several nodes"),
    ],
)
def test_service_or_candidate_that_kserve_would_not_roll_out_is_refused(
    world: PlayedWorld, service: dict[str, Any], candidate: Candidate, message: str
) -> None:
    world.create(**service)
    before = world.read()["metadata"]["resourceVersion"]
    with pytest.raises(RolloutError, match=message):
        world.actuator().begin(candidate)
    assert world.read()["metadata"]["resourceVersion"] == before


def test_canary_of_somebody_else_and_names_that_are_taken_are_refused(world: PlayedWorld) -> None:
    world.create()
    entry = {"trafficPercent": 60, "predictor": {"name": "v9", "model": {"name": "", "modelFormat": {"name": "x"}}}}
    world.patch({"canary": [entry]})
    with pytest.raises(RolloutError, match="canaries are there already: v9 at 60 %"):
        world.actuator().begin(CANDIDATE)
    world.patch({"canary": None})
    label = {"app": "x"}
    template = {"metadata": {"labels": label}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    body = {"metadata": {"name": "ad-v2-predictor"}, "spec": {"selector": {"matchLabels": label}, "template": template}}
    client.AppsV1Api(world.api).create_namespaced_deployment(world.namespace, body)
    with pytest.raises(RolloutError, match="it is there already, and belongs to another"):
        world.actuator().begin(CANDIDATE)


def test_unknown_service_is_refused_with_the_names_near_it(world: PlayedWorld) -> None:
    world.create()
    with pytest.raises(RolloutError, match="there is none of that name; the namespace has ad;"):
        open_actuator(open_cluster(world.api), world.namespace, "campaigns")
    with pytest.raises(RolloutError, match="near it: ad;"):
        open_actuator(open_cluster(world.api), world.namespace, "ads")


def test_service_without_a_route_is_refused(world: PlayedWorld) -> None:
    world.create()
    place = ("gateway.networking.k8s.io", "v1", world.namespace, "httproutes")
    world.resources.delete_namespaced_custom_object(*place, "ad")
    with pytest.raises(RolloutError, match="traffic is split by Gateway API alone"):
        world.actuator().begin(CANDIDATE)


def test_missing_permission_is_named_with_verb_and_resource(cluster: ServedCluster, world: PlayedWorld) -> None:
    world.create()
    rules = [{"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get"]}]
    access = client.RbacAuthorizationV1Api(world.api)
    access.create_namespaced_role(world.namespace, {"metadata": {"name": "r"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "poor", "namespace": world.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    binding = {"metadata": {"name": "r"}, "roleRef": role, "subjects": [subject]}
    access.create_namespaced_role_binding(world.namespace, binding)
    poor = open_cluster(cluster.user_client("poor", world.namespace))

    def begin() -> str:
        with pytest.raises(RolloutError) as caught:
            StandardActuator(poor, world.namespace, "ad").begin(CANDIDATE)
        return caught.value.needed

    wait_until(lambda: "httproutes" in begin(), 10, "the Role is read")
    assert begin() == "a Role with the verb get on httproutes.gateway.networking.k8s.io is needed"


def test_manifests_of_targets_are_clean_and_what_the_moves_write(world: PlayedWorld) -> None:
    world.create(predictor={"maxReplicas": 3})
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    (manifest,) = actuator.render(CANDIDATE, weight(50), memo)
    assert set(manifest["metadata"]) == {"name", "namespace", "annotations"}
    assert "status" not in manifest
    drive(actuator, weight(50), memo, world)
    assert world.read()["spec"] == manifest["spec"]
    drive(actuator, PROMOTED, memo, world)
    assert world.read()["spec"] == actuator.render(CANDIDATE, PROMOTED, memo)[0]["spec"]


# KServe itself


def test_real_kserve_checks_both_ends_before_anything_is_written(real_world: World) -> None:
    real_world.create()
    before = real_world.read()["metadata"]["generation"]
    actuator = real_world.actuator()
    assert actuator.begin(CANDIDATE)["observed"] == 3
    bad = Candidate(V2, "v2", overrides={"model": {"env": [{"name": "PYTHONPATH", "value": "/x"}]}})
    with pytest.raises(RolloutError, match=r"admission webhook.*PYTHONPATH"):
        actuator.begin(bad)
    assert real_world.read()["metadata"]["generation"] == before


@pytest.mark.parametrize("autoscaler", ["none", "hpa", "keda"])
def test_real_kserve_promotes_or_shows_that_it_cannot(real_world: World, autoscaler: str) -> None:
    scaling: dict[str, Any] = {"maxReplicas": 4}
    if autoscaler == "keda":
        metric: dict[str, Any] = {"backend": "prometheus", "serverAddress": "http://p:9090", "query": "sum(x)"}
        external = {"metric": metric, "target": {"type": "Value", "value": "4"}}
        scaling["autoScaling"] = {"metrics": [{"type": "External", "external": external}]}
    real_world.create(autoscaler=autoscaler, predictor=scaling)
    before, now = real_world.read()["spec"], [0.0]
    actuator = real_world.actuator(now=lambda: now[0])
    memo = actuator.begin(CANDIDATE)
    if not writes_weights(real_world, actuator, memo, now):
        drive(actuator, ROLLED_BACK, memo, real_world)
        assert real_world.read()["spec"] == before
        assert set(real_world.deployments()) == {"ad-predictor"}
        assert set(real_world.autoscalers()) == ({"ad-predictor"} if autoscaler == "hpa" else set())
        return
    for percent in (10, 50):
        move = drive(actuator, weight(percent), memo, real_world)
        assert move.traffic_percent == percent
        assert real_world.shares() == {"ad-predictor": 100 - percent, "ad-v2-predictor": percent}
    drive(actuator, PROMOTED, memo, real_world)
    expected = copy.deepcopy(before)
    expected["predictor"]["name"] = "v2"
    expected["predictor"]["model"]["storageUri"] = V2
    assert real_world.read()["spec"] == expected
    assert set(real_world.deployments()) == {"ad-v2-predictor"}
    assert real_world.autoscalers() == ({"ad-v2-predictor": (3, 4)} if autoscaler == "hpa" else {})
    assert real_world.scaled_objects() == (["ad-v2-predictor"] if autoscaler == "keda" else [])


def writes_weights(world: World, actuator: StandardActuator, memo: Memo, now: list[float]) -> bool:
    """Bring the candidate up without traffic, and say whether KServe puts it into the routes."""
    for _ in range(100):
        move = actuator.move(CANDIDATE, weight(0), memo)
        if move.reached:
            return True
        if move.failed:
            assert "releases before 0.21" in move.failed
            return False
        if "the routes to give" in move.waiting_for:
            now[0] += NO_WEIGHTS_SECONDS / 10
        world.settle()
    pytest.fail(str(move))
