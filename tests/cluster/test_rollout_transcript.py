"""Whole rollouts on KServe's real controller, tick by tick, as docs/rollout-transcript.md shows them.

A tick a minute by a clock of the test; between two ticks pods become available, the gateway accepts routes, and the
controller comes to rest. Requests are counted by the weights that the HTTPRoutes or the Knative Service really have.

    MLFLYWHEEL_WRITE_TRANSCRIPTS=1 pytest tests/cluster/test_rollout_transcript.py

writes what it saw into the page. Of Standard mode it has two transcripts, of a KServe that writes weights and of one
that does not; a run compares the one that its KServe is.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane import wait_until
from knative_stand_in import KnativeStandIn
from kserve_controller import ISVC, ROUTE, KServe, accept_routes, mark_deployment
from kubernetes import client

from mlflywheel.cluster.knative_canary import KnativeActuator
from mlflywheel.cluster.kubernetes_client import Cluster, connect
from mlflywheel.cluster.rollouts import MANIFEST, ServiceRollout, open_rollout
from mlflywheel.cluster.standard_canary import StandardActuator
from mlflywheel.decisions.canary.evidence import Arm, ArmName, Window
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.interfaces import Candidate, Source
from mlflywheel.rollouts.record import Record

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rollout-transcript.md"
_WRITE = "MLFLYWHEEL_WRITE_TRANSCRIPTS"
_NOON = 1_795_262_400.0
_TICK_SECONDS = 60.0
_MOST_TICKS = 30
_QUIET_SECONDS = 0.4
_SECONDS = 30
_REQUESTS_A_WINDOW = 2000
_BUCKET = "s3://models/ads"
POLICY = """\
schema: 1
steps: [10, 50, 100]
settle_seconds: 0
deadline: {after_minutes: 60, action: rollback, shift_minutes: 10}
metrics:
  - {name: errors, kind: errors}
"""


class Stage(Source):
    """An InferenceService `ads` that KServe's controller sees to; who plays its pods and counts its requests."""

    def __init__(self, kserve: KServe, mode: str) -> None:
        self.mode, self.now = mode, _NOON
        self.namespace = kserve.plane.create_namespace()
        self.api = kserve.plane.api_client()
        self.resources, self.apps = client.CustomObjectsApi(self.api), client.AppsV1Api(self.api)
        self.knative = KnativeStandIn(self.api, self.namespace) if mode == "Knative" else None
        self.is_failing = False
        self.lines: list[str] = []
        self._told: list[str] = []
        self._create(
            "ServingRuntime",
            "ad-topics",
            {
                "supportedModelFormats": [{"name": "ad-topics", "version": "1", "autoSelect": True}],
                "protocolVersions": ["v2"],
                "containers": [{"name": "kserve-container", "image": "registry.example/predictor:1"}],
            },
        )
        model = {"modelFormat": {"name": "ad-topics"}, "protocolVersion": "v2", "storageUri": f"{_BUCKET}/1"}
        self._create("InferenceService", "ads", {"predictor": {"minReplicas": 2, "model": model}})
        wait_until(self._is_ready, _SECONDS, "the service is ready")

    def _create(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        version = ISVC[1] if kind == "InferenceService" else "v1alpha1"
        annotations = {"serving.kserve.io/deploymentMode": self.mode}
        if self.mode == "Standard":
            annotations["serving.kserve.io/autoscalerClass"] = "none"
        body = {"apiVersion": f"{ISVC[0]}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}
        if kind == "InferenceService":
            body["metadata"] = {"name": name, "annotations": annotations}
        self.resources.create_namespaced_custom_object(ISVC[0], version, self.namespace, f"{kind.lower()}s", body)

    def clock(self) -> float:
        return self.now

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get_namespaced_custom_object(
            *ISVC, self.namespace, "inferenceservices", "ads"
        )
        return found

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        share = self.share()
        asked = round(_REQUESTS_A_WINDOW * share)
        bad = asked * 4 // 10 if self.is_failing else 0
        candidate = Arm(requests=float(asked), errors=float(bad))
        return Window(start, end, step, traffic_percent, Arm(requests=float(_REQUESTS_A_WINDOW - asked)), candidate)

    def share(self) -> float:
        """The candidate's part of the requests, by what the controller wrote."""
        if self.knative is not None:
            weights = self.knative.history[-1] if self.knative.history else {}
            newest = self.read()["spec"]["predictor"]["model"]["storageUri"]
            return weights.get(newest, 0) / 100
        (weights,) = self.routes().values() or ({},)
        canaries = self.read()["spec"].get("canary") or ()
        names = [f"ads-{one['predictor']['name']}-predictor" for one in canaries]
        return sum(weights.get(name, 0) for name in names) / max(sum(weights.values()), 1)

    def routes(self) -> dict[str, dict[str, int]]:
        """Weights by Service of the route that clients use."""
        listed = self.resources.list_namespaced_custom_object(*ROUTE, self.namespace, "httproutes")["items"]
        return {
            one["metadata"]["name"]: {ref["name"]: ref["weight"] for ref in one["spec"]["rules"][0]["backendRefs"]}
            for one in listed
            if one["metadata"]["name"] == "ads"
        }

    def play(self) -> None:
        """Let pods become available and the gateway accept routes, or Knative look once."""
        if self.knative is not None:
            self.knative.step()
            return
        for found in self.apps.list_namespaced_deployment(self.namespace).items:
            # It may be gone by now.
            with contextlib.suppress(client.ApiException):
                mark_deployment(self.apps, found)
        accept_routes(self.api, self.namespace)

    def settle(self) -> None:
        """Go on until the controller has come to rest."""
        seen, since = None, time.monotonic()

        def rests() -> bool:
            nonlocal seen, since
            self.play()
            state = self.state()
            if state != seen or not self._follows():
                seen, since = state, time.monotonic()
            return time.monotonic() - since > _QUIET_SECONDS

        wait_until(rests, _SECONDS, f"the controller rests: {self.state()}")

    def _is_ready(self) -> bool:
        self.play()
        conditions = self.read().get("status", {}).get("conditions", ())
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def _follows(self) -> bool:
        """Whether the status is one of what was asked for last."""
        found = self.read()
        spec, status = found["spec"], found.get("status", {})
        if self.mode == "Standard":
            asked = [(one["predictor"]["name"], one["trafficPercent"], True) for one in spec.get("canary") or ()]
            told = [(one["name"], one["trafficPercent"], one["ready"]) for one in status.get("canaryStatuses") or ()]
            stable = "-".join(filter(None, ("ads", spec["predictor"].get("name"), "predictor")))
            wanted = {stable, *(f"ads-{name}-predictor" for name, *_ in asked)}
            return asked == told and wanted == set(self.deployments()) and self._is_ready()
        predictor = status.get("components", {}).get("predictor", {})
        assert self.knative is not None
        newest = len(self.knative.revisions("ads-predictor"))
        percents = sorted(one.get("percent", 0) for one in predictor.get("traffic", ()))
        asked = spec["predictor"].get("canaryTrafficPercent")
        return (
            predictor.get("latestReadyRevision", "").endswith(f"-{newest:05d}")
            and percents == ([100] if asked in (None, 100) else sorted((asked, 100 - asked)))
            and self._is_ready()
        )

    def deployments(self) -> dict[str, str]:
        listed = self.apps.list_namespaced_deployment(self.namespace).items
        return {one.metadata.name: f"{one.status.available_replicas or 0}/{one.spec.replicas}" for one in listed}

    def state(self) -> list[str]:
        """What the objects of a rollout say, a line each."""
        found = self.read()
        spec, status = found["spec"], found.get("status", {})
        predictor = spec["predictor"]
        name = predictor.get("name")
        lines = [f"predictor    {f'{name}: ' if name else ''}{predictor['model']['storageUri']}"]
        if self.mode == "Standard":
            asked = [f"{one['predictor']['name']} {one['trafficPercent']} %" for one in spec.get("canary") or ()]
            told = [
                f"{one['name']} {one['trafficPercent']} % {'ready' if one['ready'] else 'not ready'}"
                for one in status.get("canaryStatuses") or ()
            ]
            routes = [
                f"{service} {weight}" for weights in self.routes().values() for service, weight in weights.items()
            ]
            pods = [f"{one} {count}" for one, count in sorted(self.deployments().items())]
            lines += [f"spec.canary  {', '.join(asked) or '-'}", f"status       {', '.join(told) or '-'}"]
            return [*lines, f"HTTPRoute    {', '.join(routes)}", f"available    {', '.join(pods)}"]
        percent = predictor.get("canaryTrafficPercent")
        told = status.get("components", {}).get("predictor", {})
        traffic = [f"{one['revisionName']} {one.get('percent', 0)}" for one in told.get("traffic", ())]
        lines += [f"canaryTrafficPercent  {'-' if percent is None else percent}"]
        return [
            *lines,
            f"traffic      {', '.join(traffic)}",
            f"rolled out   {told.get('latestRolledoutRevision', '-')}",
        ]

    def open(self) -> ServiceRollout:
        cluster = Cluster(connect(None), RolloutError, MANIFEST)
        actuator = StandardActuator if self.mode == "Standard" else KnativeActuator
        found = open_rollout("ads", namespace=self.namespace, source={}, who="ann")
        return replace(
            found, actuator=actuator(cluster, self.namespace, "ads", now=self.clock), source=self, clock=self.clock
        )

    def tell(self, head: str) -> None:
        """Add to the transcript what was done, and of the objects what is another than before."""
        state = self.state()
        self.lines += ["", f"{time.strftime('%H:%M', time.gmtime(self.now))}  {head}"]
        self.lines += [f"         {line}" for line in state if line not in self._told]
        self._told = state

    def roll_out(self, candidate: Candidate) -> Record:
        """Start a rollout and do ticks until it has ended."""
        rollout = self.open()
        self.tell("before")
        rollout.start(candidate, read_policy(POLICY, "the policy of the transcript"))
        words = f"--uri {candidate.storage_uri} --name {candidate.name} --policy rollout.yaml"
        self.tell(f"$ mlflywheel rollout start ads {words}")
        for _ in range(_MOST_TICKS):
            self.now += _TICK_SECONDS
            record = rollout.step()
            self.settle()
            # As `mlflywheel rollout watch` prints it.
            line = f"{record.phase.replace('_', ' ')} at {record.traffic_percent:g} %: {record.message}"
            self.tell(line)
            if record.has_ended:
                return record
        raise AssertionError("\n".join(self.lines))

    def transcript(self) -> str:
        return "\n".join(self.lines[1:]).replace(self.namespace, "team") + "\n"


@pytest.fixture
def make_stage(kserve: KServe, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Stage]:
    monkeypatch.setenv("KUBECONFIG", kserve.plane.kubeconfig)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return lambda mode: Stage(kserve, mode)


def compare(section: str, transcript: str) -> None:
    """Compare with a section of the page, or write it there."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(^## {re.escape(section)}\n.*?^```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
    found = pattern.search(page)
    assert found is not None, f"{PAGE.name} has no section {section}"
    if os.environ.get(_WRITE):
        PAGE.write_text(page[: found.start(2)] + transcript + page[found.end(2) :], encoding="utf-8")
    else:
        assert transcript == found[2]


def test_standard_mode_promotes_one_version_and_rolls_back_the_next_or_says_that_kserve_has_no_weights(
    make_stage: Callable[[str], Stage],
) -> None:
    stage = make_stage("Standard")
    first = stage.roll_out(Candidate(f"{_BUCKET}/2", "v2"))
    if first.phase == "rolled_back":
        assert "KServe does not write ads-v2-predictor into the HTTPRoutes" in first.message
        assert stage.state()[-2:] == ["HTTPRoute    ads-predictor 1", "available    ads-predictor 2/2"]
        compare("Standard mode, KServe 0.20", stage.transcript())
        return
    assert first.phase == "promoted"
    assert stage.state()[0] == f"predictor    v2: {_BUCKET}/2"
    stage.is_failing = True
    stage.now += _TICK_SECONDS
    assert stage.roll_out(Candidate(f"{_BUCKET}/3", "v3")).phase == "rolled_back"
    assert stage.state()[0] == f"predictor    v2: {_BUCKET}/2"
    assert stage.deployments() == {"ads-v2-predictor": "2/2"}
    compare("Standard mode, KServe with weights", stage.transcript())


def test_knative_mode_promotes_one_version_and_rolls_back_the_next(make_stage: Callable[[str], Stage]) -> None:
    stage = make_stage("Knative")
    assert stage.roll_out(Candidate(f"{_BUCKET}/2", "v2")).phase == "promoted"
    assert stage.knative is not None
    assert stage.knative.history[-1] == {f"{_BUCKET}/2": 100}
    stage.is_failing = True
    stage.now += _TICK_SECONDS
    assert stage.roll_out(Candidate(f"{_BUCKET}/3", "v3")).phase == "rolled_back"
    assert stage.knative.history[-1] == {f"{_BUCKET}/2": 100}
    compare("Knative mode", stage.transcript())
