"""What KServe's real controller and its pod webhook make of our overlays.

Expected is what somebody who reads an overlay expects of it, written down here by hand; nothing was recorded.
"""

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from control_plane import wait_until
from kserve_controller import ROUTE, KServe, mark_deployment
from kubernetes import client
from rendered_manifests import (
    CPU,
    GPU,
    KNATIVE,
    MANIFESTS,
    PRODUCTION,
    TRITON,
    Document,
    Renderer,
    Rendering,
    of_kind,
    only,
    service_of,
)

from mlflywheel import images

OBSERVED = Rendering(PRODUCTION.folder, ("monitoring", "prometheus", "logger", "keda"))
KNATIVE_OBSERVED = Rendering(KNATIVE.folder, ("monitoring", "logger"))
KNATIVE_GPU = Rendering(KNATIVE.folder, ("gpu",))
VEHICLES = Rendering("manifests/vehicle-prices/production")
TRITON_CPU, TRITON_GPU = TRITON
_SECONDS = 30
#: Of definitions that only the plane of the other tests has.
_NOT_SERVED = ("PodMonitor", "PrometheusRule")
_OWN = "serving.kserve.io/inferenceservice"
_URI = "s3://mlflywheel/models/{}/1/"
_SERVER_ARGS = ("--model_dir=/mnt/models", "--http_port=8080", "--grpc_port=8081")
_DRAIN = ("--drain_delay_seconds=10", "--drain_deadline_seconds=70")
_SMALL = {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
_WHOLE = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
_WITH_GPU = {
    kind: {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}
    for kind in ("requests", "limits")
}  # fmt: skip
_LOCKED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_HARDENED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# KServe's own, as its installation brings it, without what does not matter here.
_TRITON_RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: kserve-tritonserver}
spec:
  supportedModelFormats: [{name: triton, version: "2", autoSelect: true, priority: 1}]
  protocolVersions: [v2, grpc-v2]
  containers:
    - name: kserve-container
      image: nvcr.io/nvidia/tritonserver:23.05-py3
      args: [tritonserver, --model-store=/mnt/models, --grpc-port=9000, --http-port=8080]
      resources: {requests: {cpu: "1", memory: 2Gi}, limits: {cpu: "1", memory: 2Gi}}
"""


@dataclass(frozen=True)
class Expected:
    """What an overlay promises."""

    args: tuple[str, ...] = ()
    service: str = "ad-campaigns"
    image: str = images.PREDICTOR
    resources: Mapping[str, Any] = field(default_factory=lambda: _SMALL)
    #: Least, most, and percent of CPU; or None.
    hpa: tuple[int, int, int] | None = (1, 4, 70)
    #: Least, most, and by query a part of it and its threshold.
    keda: tuple[int, int, dict[str, str]] | None = None
    on_gpu: bool = False
    startup_failures: int = 90

    @property
    def predictor(self) -> str:
        return f"{self.service}-predictor"


_IN_FLIGHT = 'mlflywheel_requests_in_flight{serving_kserve_io_inferenceservice="ad-campaigns"}'
_UTILISATION = 'DCGM_FI_DEV_GPU_UTIL{exported_pod=~"%s(-.+)?-predictor-.+"}'
STANDARD = {
    CPU: Expected((*_SERVER_ARGS, *_DRAIN)),
    PRODUCTION: Expected((*_SERVER_ARGS, *_DRAIN), resources=_WHOLE, hpa=(3, 12, 70)),
    OBSERVED: Expected(
        (*_SERVER_ARGS, *_DRAIN), resources=_WHOLE, hpa=None, keda=(3, 12, {_IN_FLIGHT: "4"})
    ),
    GPU: Expected(
        (*_SERVER_ARGS, *_DRAIN, "--device=cuda"),
        image=images.PREDICTOR_GPU,
        resources=_WITH_GPU,
        hpa=None,
        keda=(1, 3, {_IN_FLIGHT: "4", _UTILISATION % "ad-campaigns": "70"}),
        on_gpu=True,
        startup_failures=150,
    ),
    VEHICLES: Expected(
        (*_SERVER_ARGS, *_DRAIN), service="vehicle-prices", resources=_WHOLE, hpa=(3, 12, 70)
    ),
    TRITON_CPU: Expected(
        service="vehicle-prices-triton",
        image="nvcr.io/nvidia/tritonserver:24.12-py3",
        resources={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
    ),
    TRITON_GPU: Expected(
        service="vehicle-prices-triton",
        image="nvcr.io/nvidia/tritonserver:24.12-py3",
        resources=_WITH_GPU,
        hpa=None,
        keda=(1, 2, {_UTILISATION % "vehicle-prices-triton": "70"}),
        on_gpu=True,
    ),
}  # fmt: skip
KNATIVE_MODE = {
    KNATIVE: Expected((*_SERVER_ARGS, "--drain_deadline_seconds=55")),
    KNATIVE_OBSERVED: Expected((*_SERVER_ARGS, "--drain_deadline_seconds=55")),
    KNATIVE_GPU: Expected(
        (*_SERVER_ARGS, "--drain_deadline_seconds=55", "--device=cuda"),
        image=images.PREDICTOR_GPU,
        resources=_WITH_GPU,
        on_gpu=True,
        startup_failures=150,
    ),
}
OURS = [one for one in STANDARD if one not in TRITON]
every_standard = pytest.mark.parametrize("rendering", STANDARD, ids=str)
every_one_of_ours = pytest.mark.parametrize("rendering", OURS, ids=str)
every_knative = pytest.mark.parametrize("rendering", KNATIVE_MODE, ids=str)


@dataclass
class Applied:
    """A rendering in a namespace, and what KServe made of it."""

    namespace: str
    documents: list[Document]
    deployment: Document = field(default_factory=dict)
    knative: Document = field(default_factory=dict)

    @property
    def template(self) -> Document:
        made: Document = (self.deployment or self.knative)["spec"]["template"]
        return made

    @property
    def container(self) -> Document:
        (one,) = self.template["spec"]["containers"]
        return dict(one)


class Reconciled:
    """Every overlay, applied on a cluster with KServe."""

    def __init__(self, kserve: KServe, render: Renderer) -> None:
        self.api = kserve.plane.api_client()
        self.core, self.apps = client.CoreV1Api(self.api), client.AppsV1Api(self.api)
        self.resources = client.CustomObjectsApi(self.api)
        self.of: dict[Rendering, Applied] = {}
        kserve.plane.kubectl("apply", "--filename", "-", input=_TRITON_RUNTIME)
        secret = yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text(encoding="utf-8"))
        self.store = secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"]
        served = []
        for rendering in (*STANDARD, *KNATIVE_MODE):
            applied = self.of[rendering] = Applied(kserve.plane.create_namespace(), render(rendering))
            for document in (secret, *(one for one in applied.documents if one["kind"] not in _NOT_SERVED)):
                place = {} if document["kind"] == "PriorityClass" else {"namespace": applied.namespace}
                served.append({**document, "metadata": document["metadata"] | place})
        arguments = ("apply", "--validate=strict", "--server-side", "--filename", "-")
        done = kserve.plane.kubectl(*arguments, input=yaml.safe_dump_all(served))
        assert done.stdout.count("serverside-applied") == len(served)
        assert "Warning" not in done.stderr
        for rendering, applied in self.of.items():
            name = f"{service_of(applied.documents)['metadata']['name']}-predictor"
            if rendering in STANDARD:
                self._take_deployment(applied, name)
            else:
                applied.knative = self.wait_for("serving.knative.dev", "v1", applied.namespace, "services", name)

    def _take_deployment(self, applied: Applied, name: str) -> None:
        def is_there() -> bool:
            with contextlib.suppress(client.ApiException):
                found = self.apps.read_namespaced_deployment(name, applied.namespace)
                # The routes follow.
                mark_deployment(self.apps, found)
                applied.deployment = self.api.sanitize_for_serialization(found)
            return bool(applied.deployment)

        wait_until(is_there, _SECONDS, f"{name} is made")

    def wait_for(self, group: str, version: str, namespace: str, plural: str, name: str) -> Document:
        found: Document = {}

        def is_there() -> bool:
            with contextlib.suppress(client.ApiException):
                found.update(self.resources.get_namespaced_custom_object(group, version, namespace, plural, name))
            return bool(found)

        wait_until(is_there, _SECONDS, f"{name} is made")
        return found

    def start_pod(self, applied: Applied, **options: Any) -> Document:
        """Ask for a pod of the Deployment, by a dry run, as its ReplicaSet does."""
        template = deepcopy(applied.template)
        template["metadata"]["labels"]["pod-template-hash"] = "7c9d"
        template["metadata"] = {"generateName": "pod-"} | {
            name: template["metadata"][name] for name in ("labels", "annotations")
        }
        made = self.core.create_namespaced_pod(applied.namespace, template, dry_run="All", **options)
        return dict(self.api.sanitize_for_serialization(made))

    @contextlib.contextmanager
    def enforcing(self, namespace: str, level: str) -> Iterator[None]:
        """Let a namespace enforce a Pod Security Standard."""
        label = "pod-security.kubernetes.io/enforce"
        self.core.patch_namespace(namespace, {"metadata": {"labels": {label: level}}})
        yield
        self.core.patch_namespace(namespace, {"metadata": {"labels": {label: None}}})


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(tmp_path_factory.mktemp("overlays"))


@pytest.fixture(scope="module")
def reconciled(kserve: KServe, render: Renderer) -> Reconciled:
    return Reconciled(kserve, render)


def selected(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether labels match; no selector of ours has expressions."""
    assert set(selector) == {"matchLabels"}
    return all(labels.get(name) == value for name, value in selector["matchLabels"].items())


# The container


@pytest.mark.parametrize("rendering", [*STANDARD, *KNATIVE_MODE], ids=str)
def test_container_is_of_our_image_with_the_resources_of_the_overlay(
    reconciled: Reconciled, rendering: Rendering
) -> None:
    expected, container = {**STANDARD, **KNATIVE_MODE}[rendering], reconciled.of[rendering].container
    assert (container["name"], container["image"]) == ("kserve-container", expected.image)
    assert container["resources"] == expected.resources
    spec = reconciled.of[rendering].template["spec"]
    assert spec["serviceAccountName"] == expected.service
    if expected.on_gpu:
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    else:
        assert not spec.get("nodeSelector")


@pytest.mark.parametrize("rendering", [*OURS, *KNATIVE_MODE], ids=str)
def test_server_is_started_with_arguments_of_runtime_overlay_and_service_in_this_order(
    reconciled: Reconciled, rendering: Rendering
) -> None:
    expected, container = {**STANDARD, **KNATIVE_MODE}[rendering], reconciled.of[rendering].container
    args = [f"--model_name={expected.service}", *expected.args, "--model_version=1"]
    assert container["args"] == args
    assert container.get("command") is None
    ready, live = f"/v2/models/{expected.service}/ready", "/v2/health/live"
    probes = {
        name: (container[name]["httpGet"]["path"], container[name]["httpGet"]["port"])
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert probes == {"startupProbe": (ready, 8080), "readinessProbe": (ready, 8080), "livenessProbe": (live, 8080)}
    assert container["startupProbe"]["failureThreshold"] == expected.startup_failures
    assert container["securityContext"] == _LOCKED
    # Everything else of the file system is read-only; the model is mounted by the webhook.
    assert [(one["name"], one["mountPath"]) for one in container["volumeMounts"]] == [("tmp", "/tmp")]
    assert reconciled.of[rendering].template["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}]


@pytest.mark.parametrize("rendering", TRITON, ids=str)
def test_triton_is_started_by_kserve_s_runtime_with_probes_of_ours(
    reconciled: Reconciled, rendering: Rendering
) -> None:
    container = reconciled.of[rendering].container
    assert container["args"][:2] == ["tritonserver", "--model-store=/mnt/models"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@every_standard
def test_pod_is_hardened_and_ends_after_its_requests(reconciled: Reconciled, rendering: Rendering) -> None:
    spec, service = reconciled.of[rendering].template["spec"], service_of(reconciled.of[rendering].documents)
    assert spec["securityContext"] == _HARDENED
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["terminationGracePeriodSeconds"] > service["spec"]["predictor"]["timeout"]
    strategy = reconciled.of[rendering].deployment["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


@pytest.mark.parametrize("rendering", [PRODUCTION, OBSERVED, VEHICLES], ids=str)
def test_replicas_in_production_are_spread_and_go_first(reconciled: Reconciled, rendering: Rendering) -> None:
    template = reconciled.of[rendering].template
    assert template["spec"]["priorityClassName"] == "mlflywheel-serving"
    zones, hosts = template["spec"]["topologySpreadConstraints"]
    assert (zones["topologyKey"], zones["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
    assert (hosts["topologyKey"], hosts["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    for constraint in (zones, hosts):
        assert constraint["matchLabelKeys"] == ["pod-template-hash"]
        assert selected(constraint["labelSelector"], template["metadata"]["labels"])


@every_knative
def test_revision_is_scaled_as_the_overlay_says(reconciled: Reconciled, rendering: Rendering) -> None:
    spec = reconciled.of[rendering].knative["spec"]
    annotations, pod = spec["template"]["metadata"]["annotations"], spec["template"]["spec"]
    prefix = "autoscaling.knative.dev/"
    assert {name.removeprefix(prefix): text for name, text in annotations.items() if name.startswith(prefix)} == {
        "class": "kpa.autoscaling.knative.dev",
        "metric": "concurrency",
        "target": "8",
        "min-scale": "0",
        "max-scale": "4",
        "scale-to-zero-pod-retention-period": "5m",
    }
    assert (pod["containerConcurrency"], pod["timeoutSeconds"]) == (16, 60)
    # Knative allows one port, and refuses what only its administrator may allow.
    assert pod["containers"][0]["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]
    assert "securityContext" not in pod
    assert spec["traffic"] == [{"latestRevision": True, "percent": 100}]


# Scaling


@every_standard
def test_replicas_are_scaled_between_the_bounds_of_the_overlay(reconciled: Reconciled, rendering: Rendering) -> None:
    expected, namespace = STANDARD[rendering], reconciled.of[rendering].namespace
    autoscalers = client.AutoscalingV2Api(reconciled.api)
    if expected.hpa is not None:
        made = autoscalers.read_namespaced_horizontal_pod_autoscaler(expected.predictor, namespace).spec
        (metric,) = made.metrics
        assert (made.min_replicas, made.max_replicas, metric.resource.target.average_utilization) == expected.hpa
        assert (metric.resource.name, made.scale_target_ref.name) == ("cpu", expected.predictor)
        return
    assert expected.keda is not None
    assert autoscalers.list_namespaced_horizontal_pod_autoscaler(namespace).items == []
    least, most, queries = expected.keda
    scaled = reconciled.wait_for("keda.sh", "v1alpha1", namespace, "scaledobjects", expected.predictor)["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (least, most)
    assert scaled["scaleTargetRef"] == {"name": expected.predictor}
    triggers = scaled["triggers"]
    assert {one["type"] for one in triggers} == {"prometheus"}
    # Without a type of its own a threshold is a mean over the replicas.
    assert all("metricType" not in one for one in triggers)
    found = {one["metadata"]["query"]: one["metadata"]["threshold"] for one in triggers}
    assert len(found) == len(queries)
    for part, threshold in queries.items():
        assert [value for query, value in found.items() if part in query] == [threshold]


# Traffic


@every_standard
def test_requests_reach_the_pods(reconciled: Reconciled, rendering: Rendering) -> None:
    expected, applied = STANDARD[rendering], reconciled.of[rendering]
    made = reconciled.core.read_namespaced_service(expected.predictor, applied.namespace).spec
    labels = applied.template["metadata"]["labels"]
    assert made.selector == {"app": f"isvc.{expected.predictor}"} == {"app": labels["app"]}
    # KServe's agent takes the requests where there is a logger.
    port = 9081 if "logger" in rendering.components else 8080
    assert (made.ports[0].port, made.ports[0].target_port) == (80, port)
    if rendering in OURS:
        assert (made.ports[1].port, made.ports[1].target_port) == (8081, 8081)
        assert made.ports[1].app_protocol == "kubernetes.io/h2c"


@every_standard
def test_gateway_sends_rest_and_grpc_to_the_predictor(reconciled: Reconciled, rendering: Rendering) -> None:
    expected, namespace = STANDARD[rendering], reconciled.of[rendering].namespace
    timeout = service_of(reconciled.of[rendering].documents)["spec"]["predictor"]["timeout"]
    for name in (expected.service, expected.predictor):
        route = reconciled.wait_for(*ROUTE, namespace, "httproutes", name)["spec"]
        backends = [
            [(one["name"], one["port"], one["weight"]) for one in rule["backendRefs"]] for rule in route["rules"]
        ]
        rest = [(expected.predictor, 80, 1)]
        # Triton's gRPC port has no name in KServe's runtime, so that there is no route to it.
        assert backends == ([[(expected.predictor, 8081, 1)], rest] if rendering in OURS else [rest])
        assert {rule["timeouts"]["request"] for rule in route["rules"]} == {f"{timeout}s"}
        assert route["hostnames"] == [f"{name}-{namespace}.example.com"]


# Selectors


@pytest.mark.parametrize("rendering", [*STANDARD, *KNATIVE_MODE], ids=str)
def test_selectors_of_the_overlay_match_the_pods_and_no_others(reconciled: Reconciled, rendering: Rendering) -> None:
    applied = reconciled.of[rendering]
    labels = applied.template["metadata"]["labels"]
    selectors = [one["spec"]["selector"] for one in of_kind(applied.documents, "PodDisruptionBudget", "PodMonitor")]
    selectors += [one["spec"]["podSelector"] for one in of_kind(applied.documents, "NetworkPolicy")]
    if rendering in (PRODUCTION, OBSERVED, VEHICLES):
        assert len(of_kind(applied.documents, "PodDisruptionBudget")) == 1
        assert len(of_kind(applied.documents, "NetworkPolicy")) > 1
    others = [one.template["metadata"]["labels"] for one in reconciled.of.values()]
    others = [one for one in others if one[_OWN] != labels[_OWN]]
    assert len({one[_OWN] for one in others}) == 2
    # A canary, or a version that was promoted, has another name of its Deployment and the same of its service.
    next_version = labels | {"app": "isvc.next"}
    for selector in selectors:
        assert selected(selector, labels)
        assert selected(selector, next_version)
        assert not any(selected(selector, one) for one in others)
        assert not selected(selector, labels | {"component": "transformer"})


@pytest.mark.parametrize("rendering", [OBSERVED, KNATIVE_OBSERVED], ids=str)
def test_metrics_are_read_from_a_port_of_the_pod(reconciled: Reconciled, rendering: Rendering) -> None:
    applied = reconciled.of[rendering]
    endpoints = only(applied.documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    ports = {one["name"]: one["containerPort"] for one in applied.container["ports"]}
    assert ports["http1"] == 8080
    assert [one["port"] for one in endpoints if one["port"] in ports] == ["http1"]
    assert {one["path"] for one in endpoints} == {"/metrics"}
    # By annotation it would be read a second time.
    assert applied.template["metadata"]["annotations"]["prometheus.io/scrape"] == "false"
    assert _OWN in only(applied.documents, "PodMonitor")["spec"]["podTargetLabels"]


# Pods


@pytest.mark.parametrize("rendering", [CPU, VEHICLES, GPU, TRITON_CPU], ids=str)
def test_model_is_fetched_with_the_keys_of_the_store_and_mounted_read_only(
    reconciled: Reconciled, rendering: Rendering
) -> None:
    expected = STANDARD[rendering]
    pod = reconciled.start_pod(reconciled.of[rendering])["spec"]
    (initializer,) = pod["initContainers"]
    uri = "s3://mlflywheel/triton/vehicle-prices/" if rendering in TRITON else _URI.format(expected.service)
    assert (initializer["name"], initializer["args"]) == ("storage-initializer", [uri, "/mnt/models"])
    environment = {one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"] for one in initializer["env"]}
    assert environment["AWS_SECRET_ACCESS_KEY"] == {"name": "model-store", "key": "AWS_SECRET_ACCESS_KEY"}
    assert environment["S3_ENDPOINT"] == reconciled.store
    (server,) = pod["containers"]
    mounts = {one["mountPath"]: one for one in server["volumeMounts"]}
    assert mounts["/mnt/models"]["readOnly"] is True
    assert mounts["/mnt/models"]["name"] == initializer["volumeMounts"][0]["name"]
    # The keys are for the initializer alone.
    assert not any(one["name"].startswith(("AWS", "S3")) for one in server.get("env", ()))


def test_logger_is_a_container_that_stands_before_the_server(reconciled: Reconciled) -> None:
    applied = reconciled.of[OBSERVED]
    pod = reconciled.start_pod(applied)["spec"]
    server, agent = pod["containers"]
    assert (server["name"], agent["name"]) == ("kserve-container", "agent")
    assert [one["containerPort"] for one in agent["ports"]] == [9081]
    words = agent["args"]
    assert words[words.index("--log-url") + 1] == "http://payload-collector/"
    assert words[words.index("--component-port") + 1] == "8080"
    # As locked as the server, which KServe takes it from.
    assert agent["securityContext"] == _LOCKED
    allowed = {
        port["port"]
        for policy in of_kind(applied.documents, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    assert {8080, 8081, 9081} <= allowed


def test_no_pod_starts_without_the_secret_of_the_store(reconciled: Reconciled) -> None:
    applied = reconciled.of[PRODUCTION]
    secret = reconciled.core.read_namespaced_secret("model-store", applied.namespace)
    reconciled.core.delete_namespaced_secret("model-store", applied.namespace)
    with pytest.raises(client.ApiException, match=r"secrets \\\\*\"model-store\\\\*\" not found"):
        reconciled.start_pod(applied)
    secret.metadata = client.V1ObjectMeta(name="model-store", annotations=secret.metadata.annotations)
    reconciled.core.create_namespaced_secret(applied.namespace, secret)
    assert reconciled.start_pod(applied)


@every_standard
def test_baseline_takes_the_pod_and_restricted_refuses_kserve_s_initializer_alone(
    reconciled: Reconciled, rendering: Rendering
) -> None:
    applied = reconciled.of[rendering]
    with reconciled.enforcing(applied.namespace, "baseline"):
        assert reconciled.start_pod(applied)
    with reconciled.enforcing(applied.namespace, "restricted"):
        with pytest.raises(client.ApiException, match="violates PodSecurity") as refused:
            reconciled.start_pod(applied)
        message = str(refused.value.body)
        assert "storage-initializer" in message
        assert not any(f'\\"{name}\\"' in message for name in ("kserve-container", "agent"))
        assert "pod must" not in message


def test_restricted_takes_the_pod_when_the_administrator_hardens_the_initializer(reconciled: Reconciled) -> None:
    place = ("serving.kserve.io", "v1alpha1", "clusterstoragecontainers")
    hardened = {name: _LOCKED[name] for name in ("allowPrivilegeEscalation", "capabilities")}
    body = {
        "apiVersion": "/".join(place[:2]),
        "kind": "ClusterStorageContainer",
        "metadata": {"name": "default"},
        "spec": {
            "container": {
                "name": "storage-initializer",
                "image": "kserve/storage-initializer:v0.20.0",
                "securityContext": hardened,
            },
            "supportedUriFormats": [{"prefix": "s3://"}],
        },
    }
    applied = reconciled.of[OBSERVED]
    reconciled.resources.create_cluster_custom_object(*place, body)
    try:
        with reconciled.enforcing(applied.namespace, "restricted"):

            def is_taken() -> bool:
                with contextlib.suppress(client.ApiException):
                    pod = reconciled.start_pod(applied)
                    return bool(pod["spec"]["initContainers"][0]["securityContext"] == hardened)
                return False

            # The webhook's own list of what is there follows a moment later.
            wait_until(is_taken, _SECONDS, "the pod is taken")
    finally:
        reconciled.resources.delete_cluster_custom_object(*place, "default")
