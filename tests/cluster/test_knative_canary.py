"""Rollouts in Knative mode: KServe's real controller and webhooks, with a stand-in for Knative Serving below them."""

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
from control_plane import wait_until
from knative_stand_in import KnativeStandIn
from kserve_controller import ISVC, KServe
from kubernetes import client

from mlflywheel.cluster.canary import open_actuator
from mlflywheel.cluster.inference_services import MANIFEST
from mlflywheel.cluster.knative_canary import KnativeActuator
from mlflywheel.cluster.kubernetes_client import Cluster, Connection
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Candidate, Memo, Move, Target

V1, V2, V3 = (f"s3://models/ad-topics/v{number}" for number in (1, 2, 3))
CANDIDATE = Candidate(V2, "v2")
PROMOTED, ROLLED_BACK = Target("promoted"), Target("rolled_back")
_FIRST, _SECOND, _THIRD = (f"ad-predictor-0000{number}" for number in (1, 2, 3))


def weight(percent: float) -> Target:
    return Target("weight", percent)


class KilledError(Exception):
    """Stands for the end of the process."""


class Killer(client.ApiClient):
    """A client that ends the process before or after its n-th call from now."""

    left: int | None = None
    is_after = False

    def call_api(self, *arguments: Any, **options: Any) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0 and not self.is_after:
                raise KilledError
        answer = super().call_api(*arguments, **options)
        if self.left is not None and self.left < 0:
            raise KilledError
        return answer


class World:
    """A namespace with an InferenceService `ad` in Knative mode."""

    def __init__(self, kserve: KServe) -> None:
        self.api, self.namespace = kserve.plane.api_client(), kserve.plane.create_namespace()
        self.resources = client.CustomObjectsApi(self.api)
        self.place = (*ISVC, self.namespace, "inferenceservices")
        self.knative = KnativeStandIn(self.api, self.namespace)
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
        place = ("serving.kserve.io", "v1alpha1", self.namespace, "servingruntimes")
        self.resources.create_namespaced_custom_object(*place, runtime)
        model = {"modelFormat": {"name": "ad-topics"}, "protocolVersion": "v2", "storageUri": V1}
        body = {
            "apiVersion": "/".join(ISVC),
            "kind": "InferenceService",
            "metadata": {"name": "ad", "annotations": {"serving.kserve.io/deploymentMode": "Knative"}},
            "spec": {"predictor": {"minReplicas": 0, "scaleMetric": "concurrency", "scaleTarget": 8, "model": model}},
        }
        self.resources.create_namespaced_custom_object(*self.place, body)
        wait_until(self.is_rolled_out, 30, "the service is rolled out")

    def is_rolled_out(self) -> bool:
        self.settle()
        status = self.read().get("status") or {}
        ready = {one["type"]: one["status"] for one in status.get("conditions") or ()}.get("Ready")
        component = (status.get("components") or {}).get("predictor") or {}
        return ready == "True" and component.get("latestRolledoutRevision") == component.get("latestCreatedRevision")

    def settle(self) -> None:
        self.knative.step()
        time.sleep(0.02)

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get_namespaced_custom_object(*self.place, "ad")
        return found

    def patch(self, spec: dict[str, Any]) -> None:
        self.resources.patch_namespaced_custom_object(*self.place, "ad", {"spec": spec}, field_manager="kubectl-edit")

    def component(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read()["status"]["components"]["predictor"]
        return found

    def shares(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self.component()["traffic"]:
            found[one["revisionName"]] = found.get(one["revisionName"], 0) + one["percent"]
        return found

    def actuator(self, api: client.ApiClient | None = None, now: Callable[[], float] = time.time) -> KnativeActuator:
        return KnativeActuator(open_cluster(api or self.api), self.namespace, "ad", now)


def open_cluster(api: client.ApiClient) -> Cluster:
    return Cluster(Connection(api, None, "the test's client"), RolloutError, MANIFEST, is_own=False)


def drive(actuator: KnativeActuator, target: Target, memo: Memo, world: World) -> Move:
    """Move until the target is reached."""
    deadline = time.monotonic() + 30
    while True:
        move = actuator.move(CANDIDATE, target, memo)
        if move.reached:
            return move
        assert not move.failed, move.failed
        assert time.monotonic() < deadline, move
        world.settle()


@pytest.fixture
def world(kserve: KServe) -> World:
    return World(kserve)


def test_traffic_moves_step_by_step_and_promotion_leaves_only_the_new_model(world: World) -> None:
    before = world.read()["spec"]
    actuator = open_actuator(open_cluster(world.api), world.namespace, "ad")
    assert isinstance(actuator, KnativeActuator)
    memo = actuator.begin(CANDIDATE)
    for percent in (0, 5, 50):
        move = drive(actuator, weight(percent), memo, world)
        assert move.traffic_percent == percent
        assert move.arms == {"stable": _FIRST, "candidate": _SECOND}
        assert world.shares() == {_FIRST: 100 - percent, _SECOND: percent}
    move = drive(actuator, PROMOTED, memo, world)
    assert move.traffic_percent == 100
    expected = copy.deepcopy(before)
    expected["predictor"]["model"]["storageUri"] = V2
    assert world.read()["spec"] == expected
    assert [list(one.values()) for one in world.knative.history if V2 in one][-1] == [100]
    assert world.component()["previousRolledoutRevision"] == _FIRST


@pytest.mark.parametrize("first", [weight(25), PROMOTED])
def test_rollback_puts_the_old_predictor_back_and_the_bad_one_gets_nothing_again(world: World, first: Target) -> None:
    before = world.read()["spec"]
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, first, memo, world)
    move = drive(actuator, ROLLED_BACK, memo, world)
    assert move.traffic_percent == 0
    assert world.read()["spec"] == before
    assert world.shares() == {_THIRD: 100}
    assert world.knative.revisions("ad-predictor") == [V1, V2, V1]
    shares = [one.get(V2, 0) for one in world.knative.history]
    # Once it is down, the candidate never gets traffic again.
    assert shares[shares.index(max(shares)) :] == sorted(shares[shares.index(max(shares)) :], reverse=True)
    assert move.arms["stable"] == _THIRD


def test_revision_that_does_not_start_is_reported_and_taken_back(world: World) -> None:
    before = world.read()["spec"]
    world.knative.starts = lambda uri: uri != V2
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    deadline = time.monotonic() + 30
    move = actuator.move(CANDIDATE, weight(20), memo)
    while not move.failed:
        assert time.monotonic() < deadline, move
        world.settle()
        move = actuator.move(CANDIDATE, weight(20), memo)
    assert move.traffic_percent == 0
    assert move.failed.startswith(f'{_SECOND}: RevisionFailed: Revision "{_SECOND}" failed with message')
    drive(actuator, ROLLED_BACK, memo, world)
    assert world.read()["spec"] == before
    assert all(V2 not in shares for shares in world.knative.history)


@pytest.mark.parametrize("end", [PROMOTED, ROLLED_BACK], ids=["promoted", "rolled back"])
def test_process_killed_at_every_call_ends_in_the_same_objects(kserve: KServe, world: World, end: Target) -> None:
    """Each move is ended before and after each of its calls, with a memo from before it, until it gets through."""
    before = world.read()["spec"]
    killer = Killer(world.api.configuration)
    actuator = world.actuator(killer)
    memo = actuator.begin(CANDIDATE)
    kills = 0
    deadline = time.monotonic() + 60
    for target in (weight(30), end):
        while True:
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
            if move.reached:
                break
            assert time.monotonic() < deadline, move
            world.settle()
    assert kills > 15
    expected = copy.deepcopy(before)
    if end is PROMOTED:
        expected["predictor"]["model"]["storageUri"] = V2
    assert world.read()["spec"] == expected
    assert world.shares() == {_SECOND if end is PROMOTED else _THIRD: 100}
    killer.close()


def test_edit_by_somebody_else_stops_with_the_field_and_who_wrote_it(world: World) -> None:
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(10), memo, world)
    world.patch({"predictor": {"canaryTrafficPercent": 90}})
    with pytest.raises(
        ForeignEditError, match=r"canaryTrafficPercent: 90, written by kubectl-edit at .*; 10 was expected"
    ):
        actuator.move(CANDIDATE, weight(20), memo)
    world.patch({"predictor": {"canaryTrafficPercent": None}})
    with pytest.raises(ForeignEditError, match=r"canaryTrafficPercent: nothing; 10 was expected"):
        actuator.move(CANDIDATE, weight(20), memo)


def test_services_in_the_middle_of_a_change_are_refused(world: World) -> None:
    with pytest.raises(RolloutError, match="is the one in use"):
        world.actuator().begin(Candidate(V1, "v2"))
    world.patch({"predictor": {"canaryTrafficPercent": 10}})
    with pytest.raises(RolloutError, match="another version is being rolled out"):
        world.actuator().begin(CANDIDATE)
    world.knative.starts = lambda uri: uri != V3
    world.patch({"predictor": {"canaryTrafficPercent": None, "model": {"storageUri": V3}}})
    wait_until(lambda: not world.is_rolled_out(), 20, "the newest revision is not ready")
    with pytest.raises(RolloutError, match="not ready"):
        world.actuator().begin(CANDIDATE)


def test_manifests_of_targets_are_what_the_moves_write(world: World) -> None:
    actuator = world.actuator()
    memo = actuator.begin(CANDIDATE)
    drive(actuator, weight(40), memo, world)
    assert world.read()["spec"] == actuator.render(CANDIDATE, weight(40), memo)[0]["spec"]
    with pytest.raises(RolloutError, match="whole percents"):
        actuator.move(CANDIDATE, weight(0.5), memo)
    drive(actuator, PROMOTED, memo, world)
    assert world.read()["spec"] == actuator.render(CANDIDATE, PROMOTED, memo)[0]["spec"]
