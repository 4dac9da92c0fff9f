"""`mlflywheel rollout ...` from end to end: the command line, with the rights that the manifests grant and no others.

Standard mode runs on a stand-in for KServe that writes weights, and on KServe's real controller as far as that goes;
Knative mode on KServe's real controller with a stand-in for Knative. Evidence comes from a file that grows meanwhile.
Where a process of its own adds nothing, `main` is called here: a process takes a second to start.
"""

import base64
import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from control_plane import Cluster, ControlPlane, wait_until
from knative_stand_in import KnativeStandIn
from kserve_controller import ISVC, ROUTE, KServe, accept_routes, mark_deployment
from kubernetes import client
from standard_stand_in import StandardStandIn

from mlflywheel import Client
from mlflywheel.cli import EXIT_INTERRUPTED, main
from mlflywheel.cluster import rollouts, standard_canary
from mlflywheel.cluster.rollout_store import KubernetesStore
from mlflywheel.cluster.rollouts import ServiceRollout
from mlflywheel.errors import RolloutError
from mlflywheel.registry import EmbeddedRegistry, State

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests" / "rollouts"
BUCKET = "s3://models/ads"
# A file's windows count so many seconds after their end, and nobody wants to wait here.
LAG_SECONDS = 10.0
KEPT_WINDOWS = 300
POLICY = """\
schema: 1
steps: [10, 50, 100]
minimum: {requests: 50, seconds: 0.2}
window_seconds: 0.3
settle_seconds: 0
sustained_windows: 1
deadline: {after_minutes: 60, action: rollback, shift_minutes: 10}
metrics:
  - {name: errors, kind: errors}
"""


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code in (0, 3), self.err
        return json.loads(self.out)


class World:
    """A namespace with an InferenceService `ads`, its registered versions, and who counts its requests.

    Args:
        cluster: The API server.
        namespace: Where.
        folder: For the registry, the policy, the evidence and the kubeconfig.

    Attributes:
        look: Lets whoever plays KServe look once, and returns the percent of the requests that each version gets.
    """

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        api = cluster.api_client()
        self.played = StandardStandIn(api, namespace)
        self.knative: KnativeStandIn | None = None
        self.look: Callable[[], Mapping[str, float]] = self._look_at_stand_in
        self.resources = client.CustomObjectsApi(api)
        self.apps, self.core = client.AppsV1Api(api), client.CoreV1Api(api)
        self.leases, self.scaling = client.CoordinationV1Api(api), client.AutoscalingV2Api(api)
        self.place = (*ISVC, namespace, "inferenceservices")
        self.kubeconfig = folder / "kubeconfig"
        self.policy, self.evidence = folder / "rollout.yaml", folder / "evidence.json"
        self.policy.write_text(POLICY)
        self.registry = folder / "registry.sqlite"
        registry = EmbeddedRegistry(self.registry)
        for number in (1, 2, 3, 4):
            uri = f"{BUCKET}/{number}" if number < 4 else (folder / "model").as_uri()
            registry.ensure_version(
                "ads", uri, key=f"run-{number}", format_name="ad-topics", format_version="1",
                hash=f"sha256:{'0' * 64}",
            )  # fmt: skip
            registry.set_state("ads", str(number), State.APPROVED, by="ann", reason="reviewed")
        self.candidate, self.candidate_errors, self.is_counting = "v2", 0, True
        self._windows: list[dict[str, Any]] = []
        self._counted_until = time.time()
        self._one_at_a_time = threading.Lock()

    def create(self, mode: str = "Standard", *, autoscaler: str = "none", **predictor: Any) -> None:
        # KServe's webhook adds the empty name, and its definition wants that in a canary.
        model: dict[str, Any] = {"modelFormat": {"name": "ad-topics"}, "name": "", "storageUri": f"{BUCKET}/1"}
        model |= {"args": ["--model_version=1"], "protocolVersion": "v2"}
        annotations = {"serving.kserve.io/deploymentMode": mode, "serving.kserve.io/autoscalerClass": autoscaler}
        body = {
            "apiVersion": "/".join(ISVC),
            "kind": "InferenceService",
            "metadata": {"name": "ads", "annotations": annotations},
            "spec": {"predictor": {"minReplicas": 2, "model": model} | predictor},
        }
        self.resources.create_namespaced_custom_object(*self.place, body)
        wait_until(self._is_ready, 30, "the service is ready")

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get_namespaced_custom_object(*self.place, "ads")
        return found

    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read()["spec"]
        return found

    def deployments(self) -> dict[str, int]:
        listed = self.apps.list_namespaced_deployment(self.namespace).items
        return {one.metadata.name: one.spec.replicas for one in listed}

    def autoscalers(self) -> set[str]:
        listed = self.scaling.list_namespaced_horizontal_pod_autoscaler(self.namespace).items
        return {one.metadata.name for one in listed}

    def objects(self) -> tuple[set[str], set[str]]:
        """Names of the ConfigMaps and Leases."""
        leases = self.leases.list_namespaced_lease(self.namespace).items
        maps = self.core.list_namespaced_config_map(self.namespace).items
        return {one.metadata.name for one in maps}, {one.metadata.name for one in leases}

    def lease_holder(self) -> str:
        return str(self.leases.read_namespaced_lease("ads-rollout", self.namespace).spec.holder_identity or "")

    def settle(self) -> None:
        """Let KServe look once, and count what was requested since the last time."""
        with self._one_at_a_time:
            self._settle()

    def _settle(self) -> None:
        shares = self.look()
        if not self.is_counting:
            return
        now, share = time.time(), shares.get(self.candidate, 0) / 100
        stable, candidate = round(400 * (1 - share)), round(400 * share)
        self._windows.append(
            {
                "start": self._counted_until - LAG_SECONDS,
                "end": now - LAG_SECONDS,
                "step": 0,
                "traffic_percent": 100 * share,
                "stable": {"requests": stable, "errors": 0},
                "candidate": {"requests": candidate, "errors": candidate * self.candidate_errors // 100},
            }
        )
        self._counted_until = now
        partial_file = self.folder / "partial.json"
        partial_file.write_text(json.dumps({"schema": 1, "windows": self._windows[-KEPT_WINDOWS:]}))
        # A reader meets one whole file or the other.
        partial_file.replace(self.evidence)

    @contextlib.contextmanager
    def play(self) -> Iterator[None]:
        """Go on in the background."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(0.1):
                # The API server may be away.
                with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
                    self.settle()

        player = threading.Thread(target=go_on)
        player.start()
        try:
            yield
        finally:
            ended.set()
            player.join()

    def call(self, command: str, *words: object, service: str = "ads") -> Done:
        """Call a command as the console script does, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["mlflywheel", "rollout", command, service, *map(str, words)])
            self._set_environment(patch)
            with pytest.raises(SystemExit) as end:
                main()
        return Done(int(end.value.code or 0), out.getvalue(), err.getvalue())

    def start(self, *words: object, reference: str = "ads@2", source: tuple[object, ...] = ()) -> Done:
        given = ("--candidate", reference, "--registry", self.registry, "--policy", self.policy)
        return self.call("start", *given, *(source or ("--evidence", self.evidence)), *words)

    def step_until(self, *phases: str, seconds: float = 30) -> Done:
        """Call `step` until the rollout is in one of the phases."""
        deadline = time.monotonic() + seconds
        while True:
            self.settle()
            done = self.call("step", "--json")
            phase = done.json()["phase"]
            if phase in phases:
                return done
            assert time.monotonic() < deadline, done
            # A window has to end.
            time.sleep(0.1 if phase == "watching" else 0.01)

    def spawn(self, command: str, *words: str) -> "subprocess.Popen[str]":
        """Start a command in a process of its own."""
        with pytest.MonkeyPatch.context() as patch:
            self._set_environment(patch)
            return subprocess.Popen(
                [sys.executable, "-m", "mlflywheel", "rollout", command, "ads", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def open(self, who: str) -> ServiceRollout:
        with pytest.MonkeyPatch.context() as patch:
            self._set_environment(patch)
            return Client().rollout("ads", who=who)

    def become(self, account: str) -> None:
        """Let commands run as a service account."""
        write_kubeconfig(self.cluster.user_client(account, self.namespace), self.namespace, self.kubeconfig)

    def _set_environment(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("KUBECONFIG", str(self.kubeconfig))
        for name in ("COLUMNS", "FORCE_COLOR", "KUBERNETES_SERVICE_HOST"):
            patch.delenv(name, raising=False)

    def _look_at_stand_in(self) -> Mapping[str, float]:
        self.played.step()
        weights = self.played.history[-1] if self.played.history else {}
        return {name_arm(name): share for name, share in weights.items()}

    def _is_ready(self) -> bool:
        self.settle()
        conditions = (self.read().get("status") or {}).get("conditions") or ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def name_arm(predictor: str) -> str:
    """Return the short name of a version by its Deployment."""
    return predictor.removeprefix("ads-").removesuffix("-predictor")


def finish(process: "subprocess.Popen[str]", seconds: float = 60) -> Done:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"it did not end:\n{out}\n{err}")
    return Done(process.returncode, out, err)


def stop_in_a_tick(world: World, process: "subprocess.Popen[str]", seconds: float = 0.0) -> str:
    """Stop a process, so many seconds after it took the lock, and return as whom it holds it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if world.lease_holder():
            time.sleep(seconds)
            process.send_signal(signal.SIGSTOP)
            holder = world.lease_holder()
            if holder:
                return holder
            # It was quicker.
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    process.kill()
    pytest.fail(f"it never held the lock: {finish(process)}")


def write_kubeconfig(api: client.ApiClient, namespace: str, path: Path) -> None:
    settings = api.configuration
    authority = base64.b64encode(Path(settings.ssl_ca_cert).read_bytes()).decode()
    place = {"server": settings.host, "certificate-authority-data": authority}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "release",
        "clusters": [{"name": "c", "cluster": place}],
        "users": [{"name": "u", "user": {"token": settings.api_key["authorization"].removeprefix("Bearer ")}}],
        "contexts": [{"name": "release", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def grant(cluster: Cluster, namespace: str, account: str, name: str = "mlflywheel-rollouts") -> None:
    """Give an account what the manifests grant."""
    role, binding = (
        yaml.safe_load((MANIFESTS / name).read_text("utf-8").replace("ad-campaigns-rollout", "ads-rollout"))
        for name in ("role.yaml", "role-binding.yaml")
    )
    role["metadata"]["name"] = binding["metadata"]["name"] = binding["roleRef"]["name"] = name
    binding["subjects"] = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    rights = client.RbacAuthorizationV1Api(cluster.api_client())
    rights.create_namespaced_role(namespace, role)
    rights.create_namespaced_role_binding(namespace, binding)


def make_world(cluster: Cluster, namespace: str, folder: Path) -> World:
    """Return a world in which commands have the manifests' rights."""
    grant(cluster, namespace, "release")
    made = World(cluster, namespace, folder)
    made.become("release")
    return made


@pytest.fixture(scope="module")
def definitions(install_crds: Callable[[str], tuple[str, ...]]) -> None:
    for project in ("kserve", "gateway-api"):
        install_crds(project)


@pytest.fixture
def world(cluster: Cluster, namespace: str, definitions: None, tmp_path: Path) -> World:
    """The namespace with a stand-in for KServe."""
    return make_world(cluster, namespace, tmp_path)


@pytest.fixture(scope="module")
def refusing(cluster: Cluster, definitions: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same, for tests that write nothing."""
    made = make_world(cluster, cluster.create_namespace(), tmp_path_factory.mktemp("refusing"))
    made.create()
    return made


class Prometheus:
    """A Prometheus that is down, or that keeps whoever asks waiting, amid a tick.

    Attributes:
        keeps: Set it to keep whoever asks waiting until it is cleared.
        was_asked: Set when somebody waits.
    """

    def __init__(self) -> None:
        self.keeps, self.was_asked, self._goes_on = threading.Event(), threading.Event(), threading.Event()
        prometheus = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if prometheus.keeps.is_set():
                    prometheus.was_asked.set()
                    prometheus._goes_on.wait(30)
                with contextlib.suppress(OSError):
                    self.send_error(500)

            def log_message(self, *arguments: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()

    def go_on(self) -> None:
        self.keeps.clear()
        self._goes_on.set()

    def close(self) -> None:
        self.go_on()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    """One that is down."""
    started = Prometheus()
    yield started
    started.close()


@pytest.fixture
def make_real(
    kserve: KServe, tmp_path: Path
) -> Callable[[Callable[[World], Callable[[], Mapping[str, float]]]], World]:
    """`make_real(play)` makes a namespace that KServe's real controller sees to, with somebody who plays its pods."""

    def make(play: Callable[[World], Callable[[], Mapping[str, float]]]) -> World:
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
        made = make_world(kserve.plane, kserve.plane.create_namespace(), tmp_path)
        place = ("serving.kserve.io", "v1alpha1", made.namespace, "servingruntimes")
        made.resources.create_namespaced_custom_object(*place, runtime)
        made.look = play(made)
        return made

    return make


def play_knative(world: World) -> Callable[[], Mapping[str, float]]:
    """Play Knative below KServe."""
    played = world.knative = KnativeStandIn(world.cluster.api_client(), world.namespace)

    def look() -> Mapping[str, float]:
        played.step()
        shares = played.history[-1] if played.history else {}
        return {f"v{uri.rpartition('/')[2]}": share for uri, share in shares.items()}

    return look


def play_pods(world: World) -> Callable[[], Mapping[str, float]]:
    """Play the pods and the gateway below KServe in Standard mode."""

    def look() -> Mapping[str, float]:
        for found in world.apps.list_namespaced_deployment(world.namespace).items:
            # It may be gone by now.
            with contextlib.suppress(client.ApiException):
                mark_deployment(world.apps, found)
        accept_routes(world.apps.api_client, world.namespace)
        routes = world.resources.list_namespaced_custom_object(*ROUTE, world.namespace, "httproutes")["items"]
        backends = [one for route in routes[:1] for one in route["spec"]["rules"][0]["backendRefs"]]
        total = sum(one["weight"] for one in backends)
        return {name_arm(one["name"]): 100 * one["weight"] / total for one in backends}

    return look


# Standard mode, with weights


def test_good_version_goes_from_the_registry_to_promotion_and_the_next_one_back(world: World) -> None:
    world.create(autoscaler="hpa", maxReplicas=4)
    before, version = world.spec(), world.read()["metadata"]["resourceVersion"]

    dry = world.start("--dry-run")
    assert (dry.code, dry.out.splitlines()[:2]) == (0, ["--- now", "+++ 10 % on the candidate"])
    lines = [line.strip("+ -") for line in dry.out.splitlines() if line.startswith("+ ")]
    assert {"canary:", f"storageUri: {BUCKET}/2", "trafficPercent: 10", "name: v2"} <= set(lines)
    assert "--model_version=2" in dry.out
    assert (world.read()["metadata"]["resourceVersion"], world.objects()) == (version, (set(), set()))

    assert world.call("step", "--json").json() == {"service": f"{world.namespace}/ads", "phase": None}
    started = world.start("--json")
    assert started.json()["phase"] == "shifting"
    assert "evidence: " in started.err
    assert (world.spec(), world.objects()) == (before, ({"ads-rollout"}, {"ads-rollout"}))
    again = world.start(reference="ads@3")
    assert again.code == 1
    assert f"{started.json()['id']} of ads@2 is shifting; one rollout at a time" in again.err

    world.step_until("watching")
    assert world.call("pause", "--why", "holidays", "--json").json()["paused"]
    weights = world.played.history[-1]
    for _ in range(6):
        world.settle()
        world.call("step")
        time.sleep(0.1)
    held = world.call("status", "--json").json()
    assert (held["paused"], world.played.history[-1]) == (True, weights)
    assert held["message"].startswith("paused; without it: advance")
    assert not world.call("pause", "--resume", "--json").json()["paused"]

    done = world.step_until("promoted")
    assert done.code == 0
    expected = before["predictor"] | {"name": "v2", "minReplicas": 2, "maxReplicas": 4}
    expected["model"] = before["predictor"]["model"] | {"storageUri": f"{BUCKET}/2", "args": ["--model_version=2"]}
    assert world.spec() == before | {"predictor": expected}
    assert (world.deployments(), world.autoscalers()) == ({"ads-v2-predictor": 2}, {"ads-v2-predictor"})
    shares = [weights.get("ads-v2-predictor", 0) for weights in world.played.history]
    assert [share for at, share in enumerate(shares) if not at or share != shares[at - 1]] == [0, 10, 50, 100, 1]
    told = world.call("history", "--json").json()
    assert {one["who"] for one in told["history"]} == {rollouts.name_this_user()}
    whats = [one["what"] for one in told["history"] if one["what"] != "change"]
    assert whats == ["start", "10 %", "pause", "resume", "advance to 50 %", "50 %", "promote", "promoted"]
    (promoted,) = (one for one in told["history"] if one["what"] == "promote")
    assert promoted["evidence"]["action"] == "promote"
    assert "errors is shown to be less than the stable rate + 1.00%" in promoted["why"]
    assert world.call("step").code == 0

    # The next one is bad.
    before, world.candidate, world.candidate_errors = world.spec(), "v3", 40
    assert world.start(reference="ads").code == 2
    assert world.start(reference="ads@3").code == 0
    ended = world.step_until("rolled_back")
    assert ended.code == 3
    assert "ads@3 was rolled back: errors is shown to be more than the stable rate: candidate 40.00% of" in ended.err
    assert (world.spec(), world.deployments()) == (before, {"ads-v2-predictor": 2})
    assert (world.autoscalers(), world.objects()) == ({"ads-v2-predictor"}, ({"ads-rollout"}, {"ads-rollout"}))
    assert world.lease_holder() == ""
    assert world.call("step").code == 0
    told = world.call("history", "--json").json()
    assert [(one["id"], one["candidate"], one["phase"]) for one in told["previous"]] == [
        (started.json()["id"], "ads@2", "promoted")
    ]
    table = world.call("history").out
    assert started.json()["id"] in table
    assert "roll back" in table
    refused = world.call("rollback", "--why", "too late")
    assert (refused.code, "has ended: rolled back" in refused.err) == (1, True)


def test_orders_are_carried_out_whatever_the_evidence_says(world: World) -> None:
    world.create()
    before = world.spec()
    world.candidate_errors = 40
    world.start()
    assert world.call("promote", "--why", "fixes an incident", "--json").json()["phase"] == "promoting"
    assert world.step_until("promoted").code == 0
    assert world.spec()["predictor"]["model"]["storageUri"] == f"{BUCKET}/2"
    history = world.call("history", "--json").json()["history"]
    assert [one["why"] for one in history if one["what"] == "promote"] == ["fixes an incident"]
    world.candidate, world.candidate_errors = "v1", 0
    world.start(reference="ads@1")
    world.step_until("watching")
    world.call("rollback", "--why", "customers complain")
    ended = world.step_until("rolled_back")
    assert (ended.code, "ads@1 was rolled back: customers complain" in ended.err) == (3, True)
    assert world.spec()["predictor"] == before["predictor"] | {
        "name": "v2",
        "model": before["predictor"]["model"] | {"storageUri": f"{BUCKET}/2", "args": ["--model_version=2"]},
    }


def test_rendered_manifests_are_applied_as_they_are(world: World) -> None:
    world.create()
    version, steps = world.read()["metadata"]["resourceVersion"], world.folder / "steps"
    given = ("--candidate", "ads@2", "--registry", world.registry, "--policy", world.policy)
    printed = world.call("render", *given, "--output", steps)
    names = ["01-10-percent.yaml", "02-50-percent.yaml", "03-100-percent.yaml", "04-promoted.yaml"]
    assert printed.out.split() == [str(steps / name) for name in names]
    assert sorted(path.name for path in steps.iterdir()) == names
    assert (world.read()["metadata"]["resourceVersion"], world.objects()) == (version, (set(), set()))
    documents = [document for document in yaml.safe_load_all(world.call("render", *given).out) if document]
    assert documents == [yaml.safe_load((steps / name).read_text()) for name in names]
    for name, document in zip(names, documents, strict=True):
        world.cluster.kubectl("apply", "--validate=strict", "-f", str(steps / name))
        assert world.spec() == document["spec"]


def test_canary_that_never_gets_ready_is_rolled_back_in_time(world: World) -> None:
    world.create()
    before = world.spec()
    world.played.broken = {"ads-v2-predictor"}
    world.policy.write_text(POLICY.replace("shift_minutes: 10", "shift_minutes: 0.02"))
    world.start()
    ended = world.step_until("rolled_back")
    assert ended.code == 3
    assert (
        "10 % not reached within 0.02 minutes: 0 of 1 replica of ads-v2-predictor to be available; the candidate has"
        in ended.err
    )
    assert (world.spec(), world.deployments()) == (before, {"ads-predictor": 2})


@pytest.mark.parametrize("evidence", ["missing", "broken", "old"])
def test_missing_evidence_never_promotes_and_the_deadline_ends_it(world: World, evidence: str) -> None:
    world.create()
    before = world.spec()
    world.is_counting = False
    seen = {"missing": "no such file", "broken": "not JSON", "old": "the last window ended"}[evidence]
    if evidence == "missing":
        world.evidence.unlink()
    elif evidence == "broken":
        world.evidence.write_text('{"schema": 1, "windows": [')
    world.policy.write_text(POLICY.replace("after_minutes: 60", "after_minutes: 0.06"))
    started = world.start()
    assert started.code == 0
    assert evidence == "old" or (started.err.startswith("warning: ") and seen in started.err)
    ended = world.step_until("rolled_back")
    assert (ended.code, world.spec()) == (3, before)
    assert "no decision within" in ended.err
    assert seen in json.dumps(ended.json()["verdict"]["notes"])
    assert max(weights.get("ads-v2-predictor", 0) for weights in world.played.history) == 10


# KServe's real controller


def test_real_kserve_restarts_no_pod_for_the_record_and_a_release_without_weights_is_told(
    make_real: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_canary, "NO_WEIGHTS_SECONDS", 1.0)
    world = make_real(play_pods)
    world.create()
    before, annotations = world.spec(), world.read()["metadata"]["annotations"]

    def read_stable() -> tuple[int, dict[str, Any]]:
        found = world.apps.read_namespaced_deployment("ads-predictor", world.namespace)
        return found.metadata.generation, found.spec.template.to_dict()

    stable = read_stable()
    assert world.start("--dry-run").code == 0
    assert world.start().code == 0
    for words in (["--why", "x"], ["--resume"], ["--why", "y"]):
        assert world.call("pause", *words).code == 0
        world.settle()
    assert read_stable() == stable
    assert world.read()["metadata"]["annotations"] == annotations
    assert world.read()["metadata"]["generation"] == 1
    world.call("step")
    wait_until(lambda: world.settle() or set(world.deployments()) > {"ads-predictor"}, 10, "the canary is there")
    assert read_stable()[1] == stable[1]
    world.call("pause", "--resume")
    ended = world.step_until("rolled_back", "promoted")
    if ended.code == 0:
        # A newer KServe, named in MLFLYWHEEL_TEST_KSERVE_MANAGER.
        assert world.spec()["predictor"]["model"]["storageUri"] == f"{BUCKET}/2"
        return
    assert ended.code == 3
    assert (
        "ads@2 was rolled back: KServe does not write ads-v2-predictor into the HTTPRoutes, though its pods are "
        "available: releases before 0.21 make canaries without a share of the traffic; the candidate has" in ended.err
    )
    assert (world.spec(), set(world.deployments())) == (before, {"ads-predictor"})
    assert read_stable()[1] == stable[1]


def test_knative_mode_promotes_a_good_version_and_rolls_a_bad_one_back(make_real: Callable[..., World]) -> None:
    world = make_real(play_knative)
    world.create("Knative", minReplicas=0)
    assert world.knative is not None
    before = world.spec()
    dry = world.start("--dry-run")
    assert "+    canaryTrafficPercent: 10" in dry.out.splitlines()
    assert world.spec() == before
    world.start()
    assert world.step_until("promoted").code == 0
    expected = before["predictor"]["model"] | {"storageUri": f"{BUCKET}/2", "args": ["--model_version=2"]}
    assert world.spec() == before | {"predictor": before["predictor"] | {"model": expected}}
    shares = [one.get(f"{BUCKET}/2", 0) for one in world.knative.history]
    assert [share for at, share in enumerate(shares) if not at or share != shares[at - 1]] == [0, 10, 50, 100]

    before, world.candidate, world.candidate_errors = world.spec(), "v3", 40
    world.start(reference="ads@3")
    ended = world.step_until("rolled_back")
    assert (ended.code, world.spec()) == (3, before)
    assert "ads@3 was rolled back: errors is shown to be more than the stable rate: " in ended.err
    assert world.knative.history[-1] == {f"{BUCKET}/2": 100}
    told = world.call("history", "--json").json()
    assert [one["candidate"] for one in told["previous"]] == ["ads@2"]

    # The next one does not even start.
    world.knative.starts = lambda uri: not uri.endswith("/1")
    world.candidate, world.candidate_errors = "v1", 0
    world.start(reference="ads@1")
    ended = world.step_until("rolled_back")
    assert (ended.code, world.spec()) == (3, before)
    assert "Container failed with: no such model" in ended.err


# Disturbed


@pytest.mark.parametrize(
    ("patch", "field", "seen"),
    [
        ({"predictor": {"minReplicas": 7}}, "spec.predictor.minReplicas", "7"),
        ({"predictor": {"model": {"storageUri": "s3://other"}}}, "spec.predictor.model.storageUri", "'s3://other'"),
    ],
)
def test_somebody_elses_edit_stops_the_rollout_and_stays(
    world: World, patch: Mapping[str, Any], field: str, seen: str
) -> None:
    world.create()
    world.start()
    world.step_until("watching")
    world.cluster.kubectl(
        "patch", "inferenceservice", "ads", "-n", world.namespace, "--type=merge", "-p", json.dumps({"spec": patch})
    )
    edited = world.spec()
    stopped = world.call("step", "--json")
    assert (stopped.code, stopped.out) == (1, "")
    assert stopped.err.startswith(
        f"error: InferenceService {world.namespace}/ads, {field}: {seen}, written by kubectl-"
    )
    assert " was expected, as the rollout left it. Fix: undo that edit, or " in stopped.err
    for _ in range(3):
        world.settle()
        assert world.call("step", "--json").json()["phase"] == "stopped"
    watched = world.call("watch")
    assert watched.code == 1
    assert field in watched.err
    assert field in world.call("status").out.replace("\n", "")
    assert world.spec() == edited
    # It is put in order by hand, and rolled out anew.
    assert "canaries are there already: v2 at 10 %" in world.start(reference="ads@3").err
    original = {"canary": None, "predictor": {"minReplicas": 2, "model": {"storageUri": f"{BUCKET}/1"}}}
    world.cluster.kubectl(
        "patch", "inferenceservice", "ads", "-n", world.namespace, "--type=merge", "-p", json.dumps({"spec": original})
    )
    wait_until(lambda: world.settle() or set(world.deployments()) == {"ads-predictor"}, 10, "the canary is gone")
    assert world.start(reference="ads@3").code == 0


def test_watch_goes_on_after_the_api_server_was_away(world: World, control_plane: ControlPlane) -> None:
    world.create()
    world.policy.write_text(POLICY.replace("[10, 50, 100]", "[50, 100]"))
    world.start()
    world.is_counting = False
    world.step_until("watching")
    with world.play():
        watching = world.spawn("watch")
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("watching at 50 %: ")
        control_plane.stop_api_server(graceful=False)
        time.sleep(1)
        control_plane.start_api_server()
        world.is_counting = True
        done = finish(watching)
    assert done.code == 0, done
    assert "waiting for the API server, " in done.err
    assert "the API server answers again" in done.err
    assert done.out.splitlines()[-1].startswith("promoted at 100 %: ")
    assert world.spec()["predictor"]["model"]["storageUri"] == f"{BUCKET}/2"
    assert world.deployments() == {"ads-v2-predictor": 2}


@pytest.mark.long
def test_watch_that_is_killed_again_and_again_is_taken_up_by_steps(world: World) -> None:
    world.create(autoscaler="hpa", maxReplicas=4)
    before = world.spec()
    world.start()
    moments = random.Random(5)
    with world.play():
        for phase in ("shifting", "promoting"):
            world.step_until(phase)
            watching = world.spawn("watch", "--json")
            stop_in_a_tick(world, watching, moments.uniform(0, 0.02))
            watching.kill()
            finish(watching)
            with pytest.MonkeyPatch.context() as patch:
                # Who takes over waits for two thirds of that, and not of a minute.
                patch.setattr(rollouts, "KubernetesStore", partial(KubernetesStore, lease_seconds=1.0))
                taken = world.call("step")
                # Renewed a moment ago: its holder might live.
                assert taken.code == 0 or "held by" in taken.err
                wait_until(lambda: world.call("step").code == 0, 10, "the lock is taken over")
        done = world.step_until("promoted")
    assert done.code == 0
    expected = before["predictor"] | {"name": "v2"}
    expected["model"] = before["predictor"]["model"] | {"storageUri": f"{BUCKET}/2", "args": ["--model_version=2"]}
    assert world.spec() == before | {"predictor": expected}
    assert (world.deployments(), world.autoscalers()) == ({"ads-v2-predictor": 2}, {"ads-v2-predictor"})
    history = world.call("history", "--json").json()["history"]
    assert [one["what"] for one in history].count("promoted") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_that_is_interrupted_amid_a_tick_gives_the_lock_back_and_leaves_the_rollout(
    world: World, prometheus: Prometheus, number: signal.Signals
) -> None:
    world.create()
    started = world.start(source=("--prometheus", prometheus.address))
    assert (started.code, started.err.startswith("warning: ")) == (0, True)
    world.step_until("watching")
    prometheus.keeps.set()
    watching = world.spawn("watch")
    assert prometheus.was_asked.wait(20)
    assert world.lease_holder()
    watching.send_signal(number)
    done = finish(watching, 5)
    told = f"`mlflywheel rollout watch ads -n {world.namespace}` goes on with it"
    assert (done.code, done.err) == (EXIT_INTERRUPTED, f"error: interrupted; the rollout stays as it stands: {told}\n")
    assert world.lease_holder() == ""
    prometheus.go_on()
    began = time.monotonic()
    stepped = world.call("step", "--json").json()
    assert time.monotonic() - began < 5
    assert stepped["phase"] == "watching"
    assert "HTTP 500" in stepped["verdict"]["notes"][0]


def test_second_process_is_told_who_is_at_it_and_nothing_is_done_twice(world: World, prometheus: Prometheus) -> None:
    world.create()
    world.start(source=("--prometheus", prometheus.address))
    both = [world.spawn("step", "--json") for _ in range(2)]
    answers = [finish(process) for process in both]
    assert sorted(done.code for done in answers) in ([0, 0], [0, 1])
    assert all("held by" in done.err for done in answers if done.code)

    world.step_until("watching")
    time.sleep(0.3)
    prometheus.keeps.set()
    first = world.spawn("step", "--json")
    assert prometheus.was_asked.wait(20)
    holder, refused = world.lease_holder(), world.call("step")
    assert (refused.code, refused.out) == (1, "")
    assert holder.startswith(f"{rollouts.name_this_user()}_")
    assert f"Lease {world.namespace}/ads-rollout: held by {holder} since 20" in refused.err
    assert "one process moves a rollout at a time; unless it is renewed, it ends at 20" in refused.err
    for command in ("pause", "promote", "rollback"):
        assert "held by" in world.call(command).err
    assert world.call("status", "--json").json()["phase"] == "watching"
    prometheus.go_on()
    assert finish(first).json()["phase"] == "watching"
    world.call("promote")
    world.step_until("promoted")
    changes = [one["why"] for one in world.call("history", "--json").json()["history"] if one["what"] == "change"]
    assert len(changes) == len(set(changes))
    assert {"started v2 with 1 replica and no traffic", "made v2 the version in use"} <= set(changes)


def test_clock_that_is_behind_is_refused(world: World) -> None:
    world.create()
    world.start()
    rollout = world.open("slow-clock")
    rollout.clock = lambda: time.time() - 100
    with pytest.raises(RolloutError, match=r"clock of slow-clock: it is (99|100) s behind the last tick of .*/ads;"):
        rollout.step()
    assert world.call("step").code == 0


# Refused


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--candidate", "ads@9"), 1, "ads@9"),
        (("--candidate", "adz@1"), 1, "adz"),
        (("--candidate", "ads@4"), 2, "an address that the cluster can read is needed, such as s3:// or pvc://"),
        (("--candidate", "ads@1"), 1, f"candidate v1: its storageUri {BUCKET}/1 is the one in use; another address"),
        (("--candidate", "ads@2", "--uri", "s3://x"), 2, "--candidate and --uri; one of them says what to roll out"),
        ((), 2, "neither --candidate nor --uri; one of them says what to roll out"),
        (("--uri", "s3://x"), 2, "--name: nothing; a short name is needed with --uri"),
        (("--candidate", "ads@2", "--name", "V_2"), 1, "lower-case letters, digits and dashes are"),
        (("--candidate", "ads@2", "--set", "minReplicas=3"), 1, "overrides.minReplicas: 3; the rollout sets that"),
        (("--candidate", "ads@2", "-n", "nowhere"), 1, "may not get them"),
        (("--candidate", "ads@2", "--context", "other"), 2, "context other is needed"),
        (("--candidate", "ads@2", "--evidence", "-"), 2, "--evidence -: without --watch; standard input ends with"),
        (("--candidate", "ads@2", "--policy", "nowhere.yaml"), 2, "--policy nowhere.yaml: No such file"),
    ],
)
def test_wrong_start_is_refused_in_one_line_and_nothing_is_written(
    refusing: World, words: tuple[str, ...], code: int, message: str
) -> None:
    version = refusing.read()["metadata"]["resourceVersion"]
    done = refusing.call("start", *words, "--registry", refusing.registry)
    assert (done.code, done.out) == (code, ""), done
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert ". Fix: " in done.err
    # The lock is an object of its own, which nobody holds.
    assert (refusing.read()["metadata"]["resourceVersion"], refusing.objects()[0]) == (version, set())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "steps: [60, 110]",
            "rollout.yaml, steps: [60, 110]; at least one step below 100 is needed, and 100 at the end",
        ),
        ("steps: [10.5, 100]", "rollout.yaml, steps.0: 10.5; input should be a valid integer"),
        ("deadline: {action: panic}", "rollout.yaml, deadline.action: 'panic'; input should be 'rollback', 'hold' or"),
        ("metrics:\n  - {name: a, kind: latency}", "rollout.yaml, metrics.0"),
        ("alhpa: 0.1", "rollout.yaml, alhpa: 0.1; extra inputs are not permitted. Fix: remove it"),
    ],
)
def test_wrong_policy_is_refused_with_its_field(refusing: World, text: str, message: str) -> None:
    refusing.policy.write_text(f"schema: 1\n{text}\n")
    done = refusing.start()
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert refusing.objects()[0] == set()


@pytest.mark.parametrize("command", ["start", "step", "watch", "status", "promote", "rollback", "pause", "history"])
def test_unknown_service_is_told_with_the_names_near_it(refusing: World, command: str) -> None:
    words = ("--candidate", "ads@2", "--registry", refusing.registry) if command == "start" else ()
    done = refusing.call(command, *words, service="adds")
    assert (done.code, done.out) == (1, "")
    assert f"InferenceService {refusing.namespace}/adds: there is none of that name; near it: ads; the" in done.err


@pytest.mark.parametrize("command", ["watch", "status", "promote", "rollback", "pause", "history"])
def test_service_without_a_rollout_says_how_to_start_one(refusing: World, command: str) -> None:
    done = refusing.call(command)
    assert (done.code, done.out) == (1, "")
    assert (
        "there is none; one has to be started. Fix: mlflywheel rollout start ads --candidate NAME@VERSION." in done.err
    )


def test_account_without_a_role_is_told_every_right_that_it_lacks_until_it_has_the_manifests(world: World) -> None:
    world.create()
    world.become("newcomer")
    bare = world.start()
    assert bare.code == 1
    assert bare.err.startswith(f"error: inferenceservices.serving.kserve.io in namespace {world.namespace}: context ")
    assert "a Role with the verb get on inferenceservices.serving.kserve.io is needed" in bare.err
    assert "Fix: kubectl apply -k manifests/rollouts." in bare.err
    grant(world.cluster, world.namespace, "newcomer", name="second")
    wait_until(lambda: world.start().code == 0, 5, "the role counts")
    world.step_until("watching")
