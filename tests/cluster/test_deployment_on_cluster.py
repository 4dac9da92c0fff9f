"""The deployment of a registered version on a real API server, with a pipeline's rights and a stand-in for KServe."""

import base64
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import Cluster, wait_until
from kfp import local
from kubernetes import client
from standard_stand_in import StandardStandIn

from mlflywheel.cluster.deployment import Deployed, deploy, describe_source
from mlflywheel.cluster.rollouts import open_rollout
from mlflywheel.components import deploy_model
from mlflywheel.errors import RolloutError, error_from_dict
from mlflywheel.events import EVENTS_VARIABLE
from mlflywheel.registry import EmbeddedRegistry, State

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests" / "rollouts"
ACCOUNT = "default-editor"
ISVC = ("serving.kserve.io", "v1beta1")
BUCKET = "s3://models/ads"
POLICY = """\
schema: 1
steps: [50, 100]
minimum: {requests: 50, seconds: 0.2}
window_seconds: 0.4
settle_seconds: 0
sustained_windows: 1
metrics:
  - {name: errors, kind: errors}
"""


# A file's windows count so many seconds after their end, and nobody wants to wait here.
LAG_SECONDS = 10.0


class KilledError(Exception):
    """The process ended here."""


class World:
    """A namespace with an InferenceService `ads`, three registered versions, and who plays KServe and counts requests.

    Args:
        cluster: The API server.
        namespace: Where.
        folder: For the registry and the evidence.
    """

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        self.candidate_errors = 0
        self.played = StandardStandIn(cluster.api_client(), namespace)
        self._resources = client.CustomObjectsApi(cluster.api_client())
        self._place = (*ISVC, namespace, "inferenceservices")
        self._windows: list[dict[str, Any]] = []
        self._counted_until = time.time()
        self.registry = folder / "registry.sqlite"
        self.evidence = folder / "evidence.json"
        registry = EmbeddedRegistry(self.registry)
        for number in (1, 2, 3):
            registry.ensure_version(
                "ads", f"{BUCKET}/{number}", key=f"run-{number}", format_name="ad-topics", format_version="1",
                hash=f"sha256:{'0' * 64}",
            )  # fmt: skip
            registry.set_state("ads", str(number), State.APPROVED, by="ann", reason="reviewed")
        registry.set_state("ads", "1", State.LIVE, by="ann", reason="the first one")

    def create(self) -> None:
        # KServe's webhook adds the empty name, and its definition wants that in a canary.
        model: dict[str, Any] = {"modelFormat": {"name": "ad-topics"}, "name": "", "storageUri": f"{BUCKET}/1"}
        model["args"] = ["--model_version=1"]
        annotations = {"serving.kserve.io/deploymentMode": "Standard", "serving.kserve.io/autoscalerClass": "none"}
        body = {
            "apiVersion": "/".join(ISVC),
            "kind": "InferenceService",
            "metadata": {"name": "ads", "annotations": annotations},
            "spec": {"predictor": {"minReplicas": 2, "model": model}},
        }
        self._resources.create_namespaced_custom_object(*self._place, body)
        wait_until(self._is_ready, 30, "the service is ready")

    def states(self) -> dict[str, str]:
        return {one.version: str(one.state) for one in EmbeddedRegistry(self.registry).list_versions("ads")}

    def model(self) -> dict[str, Any]:
        found = self._resources.get_namespaced_custom_object(*self._place, "ads")
        return dict(found["spec"]["predictor"]["model"])

    def is_as_before(self) -> bool:
        found = self._resources.get_namespaced_custom_object(*self._place, "ads")
        predictor = found["spec"]["predictor"]
        return "canary" not in found["spec"] and predictor["minReplicas"] == 2 and "name" not in predictor

    def settle(self) -> None:
        """Let KServe look once, and count what was requested since the last time."""
        self.played.step()
        now = time.time()
        weights = self.played.history[-1] if self.played.history else {}
        share = next((weight for name, weight in weights.items() if name != "ads-predictor"), 0) / 100
        stable, candidate = round(400 * (1 - share)), round(400 * share)
        window = {
            "start": self._counted_until - LAG_SECONDS,
            "end": now - LAG_SECONDS,
            "step": 0,
            "traffic_percent": 100 * share,
            "stable": {"requests": stable, "errors": 0},
            "candidate": {"requests": candidate, "errors": candidate * self.candidate_errors // 100},
        }
        self._windows.append(window)
        self._counted_until = now
        partial = self.folder / "partial.json"
        partial.write_text(json.dumps({"schema": 1, "windows": self._windows}))
        # A reader meets one whole file or the other.
        partial.replace(self.evidence)

    def wait(self, seconds: float) -> None:
        self.settle()
        time.sleep(0.05)

    @contextmanager
    def play(self) -> Iterator[None]:
        """Go on in the background."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(0.1):
                self.settle()

        player = threading.Thread(target=go_on)
        player.start()
        try:
            yield
        finally:
            ended.set()
            player.join()

    def deploy(self, reference: str = "ads@2", service: str = "ads", **options: Any) -> Deployed:
        return deploy(
            reference,
            str(self.registry),
            service,
            source=describe_source(evidence=str(self.evidence)),
            **{"policy": POLICY, "pause": self.wait, "timeout_seconds": 60, **options},
        )

    def _is_ready(self) -> bool:
        self.settle()
        found = self._resources.get_namespaced_custom_object(*self._place, "ads")
        conditions = (found.get("status") or {}).get("conditions") or ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def write_kubeconfig(api: client.ApiClient, namespace: str, path: Path) -> None:
    settings = api.configuration
    authority = base64.b64encode(Path(settings.ssl_ca_cert).read_bytes()).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "pipeline",
        "clusters": [
            {"name": "c", "cluster": {"server": settings.host, "certificate-authority-data": authority}},
        ],
        "users": [{"name": "u", "user": {"token": settings.api_key["authorization"].removeprefix("Bearer ")}}],
        "contexts": [{"name": "pipeline", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.fixture
def world(
    cluster: Cluster,
    namespace: str,
    install_crds: Callable[[str], tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """The namespace, and a kubeconfig of a pipeline's account that has what manifests/rollouts grants and no more."""
    for project in ("kserve", "gateway-api"):
        install_crds(project)
    rights = client.RbacAuthorizationV1Api(cluster.api_client())
    role, binding = (
        yaml.safe_load((MANIFESTS / name).read_text("utf-8").replace("ad-campaigns-rollout", "ads-rollout"))
        for name in ("role.yaml", "role-binding.yaml")
    )
    binding["subjects"].append({"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace})
    binding["subjects"] = [{**subject, "namespace": namespace} for subject in binding["subjects"]]
    rights.create_namespaced_role(namespace, role)
    rights.create_namespaced_role_binding(namespace, binding)
    write_kubeconfig(cluster.user_client(ACCOUNT, namespace), namespace, tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return World(cluster, namespace, tmp_path)


def run_component(world: World) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Run the component as kfp does; return its verdict, what it wrote, and its error."""
    given: dict[str, Any] = {"model_version": "ads@2", "registry": str(world.registry), "service": "ads"}
    given |= {"policy": POLICY, "evidence": str(world.evidence), "timeout_seconds": 60.0}
    events = world.folder / "events.jsonl"
    events.unlink(missing_ok=True)
    verdict = ""
    with pytest.MonkeyPatch.context() as environment, warnings.catch_warnings():
        environment.setenv(EVENTS_VARIABLE, str(events))
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(world.folder / "artifacts"))
        try:
            verdict = str(deploy_model(**given).outputs["Output"])
        except RuntimeError as failure:
            print(failure, file=sys.stderr)
    told = [json.loads(line) for line in events.read_text("utf-8").splitlines()]
    facts = {name: value for one in told if one["event"] == "recorded" for name, value in one["facts"].items()}
    errors = [one["error"] for one in told if one["event"] == "failed"]
    return verdict, facts, errors[0] if errors else {}


def test_a_good_version_is_promoted_with_a_pipelines_rights_and_told_again(world: World) -> None:
    world.create()
    deployed = world.deploy()
    assert deployed.verdict == "promoted"
    assert (world.model()["storageUri"], world.model()["args"]) == (f"{BUCKET}/2", ["--model_version=2"])
    assert deployed.metrics()["judged_requests"] >= 50
    assert deployed.facts()["registry"] == ["ads@2 is live", "ads@1 is approved"]
    assert world.states() == {"1": "approved", "2": "live", "3": "approved"}
    # A step that is repeated, in a process of its own.
    verdict, facts, error = run_component(world)
    assert (verdict, error) == ("promoted", {})
    assert deployed.record is not None
    assert facts["rollout"]["id"] == deployed.record.id
    written = json.loads(Path(facts["artifacts"]["rollout"]).read_text("utf-8"))
    assert (written["verdict"], written["record"]["phase"]) == ("promoted", "promoted")


def test_a_bad_version_is_rolled_back_and_its_step_fails_with_3(world: World) -> None:
    world.create()
    world.candidate_errors = 40
    deployed = world.deploy()
    assert deployed.verdict == "rolled back"
    assert world.model()["storageUri"] == f"{BUCKET}/1"
    assert world.is_as_before()
    assert world.states() == {"1": "live", "2": "candidate", "3": "approved"}
    # Its approval is gone, and a step that is repeated is told of its rollout all the same.
    verdict, facts, described = run_component(world)
    error = error_from_dict(described)
    assert (verdict, type(error).__name__, error.exit_code) == ("", "GateRefusedError", 3)
    assert "ads@2 was rolled back: errors is shown to be more than the stable rate" in error.seen
    # What it rests on is there although the step failed.
    written = json.loads(Path(facts["artifacts"]["rollout"]).read_text("utf-8"))
    assert written["record"]["verdict"]["action"] == "rollback"
    assert "What the judge found" in Path(facts["artifacts"]["rollout"]).with_name("report").read_text("utf-8")


def test_a_version_that_is_not_approved_gets_no_traffic_unless_the_policy_says_so(world: World) -> None:
    world.create()
    EmbeddedRegistry(world.registry).set_state("ads", "2", State.CANDIDATE, by="bob", reason="second thoughts")
    verdict, facts, described = run_component(world)
    error = error_from_dict(described)
    assert (verdict, facts, type(error).__name__, error.exit_code) == ("", {}, "GateRefusedError", 3)
    assert 'mlflywheel models approve ads@2 --reason "..."' in error.fix
    assert world.is_as_before()
    assert world.model()["storageUri"] == f"{BUCKET}/1"
    assert world.deploy(policy=f"{POLICY}approval: not_required\n").verdict == "promoted"
    assert world.states() == {"1": "approved", "2": "live", "3": "approved"}


def test_a_step_that_was_killed_is_gone_on_with_by_the_next(world: World) -> None:
    world.create()

    def end(seconds: float) -> None:
        world.wait(seconds)
        if world.played.history[-1].get("ads-v2-predictor") == 100:
            raise KilledError

    with pytest.raises(KilledError):
        world.deploy(pause=end)
    # Another version has to wait, this one is gone on with.
    with pytest.raises(RolloutError, match="of ads@2 is promoting; one rollout at a time"):
        world.deploy("ads@3")
    with world.play():
        verdict, facts, error = run_component(world)
    assert (verdict, error) == ("promoted", {})
    assert facts["rollout"]["metrics"]["errors_candidate"] == 0
    assert world.model()["storageUri"] == f"{BUCKET}/2"


def test_a_rollout_that_is_held_is_waited_for(world: World) -> None:
    world.create()
    held = open_rollout("ads", source={}).store.lock("a CronJob")
    with held, pytest.raises(RolloutError, match="not ended within 0 s: held by a CronJob"):
        world.deploy(timeout_seconds=0)


def test_the_version_in_use_is_left_alone(world: World) -> None:
    world.create()
    assert (world.deploy("ads@1").verdict, world.is_as_before()) == ("already in use", True)


def test_a_service_that_is_not_there_is_to_be_made_first(world: World) -> None:
    with pytest.raises(
        RolloutError, match=r"ads: there is none of that name; .*kubectl apply -k manifests/overlays/cpu"
    ):
        world.deploy()
    assert (Path(__file__).resolve().parents[2] / "manifests" / "overlays" / "cpu" / "kustomization.yaml").is_file()


def test_a_missing_right_is_named_with_what_grants_it(world: World, cluster: Cluster) -> None:
    world.create()
    rights = client.RbacAuthorizationV1Api(cluster.api_client())
    rights.delete_namespaced_role_binding("mlflywheel-rollouts", world.namespace)
    with pytest.raises(RolloutError, match=r"get.*inferenceservices.*manifests/rollouts"):
        world.deploy()
