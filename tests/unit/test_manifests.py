"""The manifests as kubectl renders them, by what their objects say."""

import ipaddress
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_manifests import (
    CPU,
    CREDIT,
    FOLDERS,
    GPU,
    KNATIVE,
    MANIFESTS,
    PRODUCTION,
    RENDERINGS,
    ROOT,
    TRITON,
    VEHICLES,
    Document,
    Renderer,
    Rendering,
    kustomize,
    mode_of,
    of_kind,
    only,
    pod_labels,
    pod_spec,
    runtime_of,
    server_of,
    service_of,
    strings_in,
)
from typer.testing import CliRunner

from mlflywheel import lint
from mlflywheel.cli import app
from mlflywheel.cluster.rollout_store import name_objects
from mlflywheel.images import COMPONENTS, PREDICTOR, PREDICTOR_GPU
from mlflywheel.models.contract import load_model_class

SERVING = [rendering for rendering in RENDERINGS if not rendering.folder.endswith("runtime")]
UNRELATED = {"app": "notebook", "component": "predictor", "app.kubernetes.io/part-of": "mlflywheel"}

every = pytest.mark.parametrize("rendering", RENDERINGS, ids=str)
every_serving = pytest.mark.parametrize("rendering", SERVING, ids=str)


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(tmp_path_factory.mktemp("overlays"))


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A Kubernetes label selector, with the operator `In` alone."""
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


# All of them.


@every
def test_each_is_complete_and_names_each_object_once(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)
    if not rendering.folder.endswith("runtime"):
        assert {"ServiceAccount", "ServingRuntime", "InferenceService"} <= {kind for kind, _ in names}
    # What `replacements` copy from, and what they write over.
    assert not of_kind(documents, "ConfigMap")
    assert not [text for one in documents for text in strings_in(one) if "model.env" in text or "copied from" in text]


def test_every_component_and_folder_is_rendered() -> None:
    components = {path.name for path in (MANIFESTS / "components").iterdir()}
    used = {name for rendering in RENDERINGS for name in rendering.components}
    for rendering in [*FOLDERS, *VEHICLES, *CREDIT]:
        content = yaml.safe_load((ROOT / rendering.folder / "kustomization.yaml").read_text(encoding="utf-8"))
        used |= {Path(name).name for name in content.get("components", [])}
    assert used == components
    documented = set(
        re.findall(r"^\| `([\w-]+)` \|.*\| (?:Standard|both) \|", (MANIFESTS / "README.md").read_text(), re.MULTILINE)
    )
    assert documented == components
    assert len(RENDERINGS) > len(FOLDERS) >= 8


def test_the_root_is_the_overlay_for_cpu(render: Renderer) -> None:
    assert render(Rendering(".")) == render(CPU)


def test_the_cluster_runtime_differs_in_its_kind_alone(render: Renderer) -> None:
    (of_cluster,) = render(Rendering("manifests/cluster-runtime"))
    (of_namespace,) = render(Rendering("manifests/runtime"))
    assert of_cluster == of_namespace | {"kind": "ClusterServingRuntime"}


@every
def test_container_is_bounded_and_locked_down(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    server = server_of(documents)
    for resources in (server["resources"]["requests"], server["resources"]["limits"]):
        assert {"cpu", "memory"} <= resources.keys()
    assert server["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert server["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    (volume,) = runtime_of(documents)["spec"]["volumes"]
    assert volume["name"] == "tmp"
    assert volume["emptyDir"]["sizeLimit"]


@every
def test_container_names_the_image_of_this_version(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    on_gpu = rendering == GPU or rendering.folder == GPU.folder or "gpu" in rendering.components
    assert server_of(documents)["image"] == (PREDICTOR_GPU if on_gpu else PREDICTOR)
    # And no other image is anywhere.
    images = [one for document in documents for one in strings_in(document) if one.startswith("ghcr.io/")]
    assert images == [server_of(documents)["image"]]
    assert ":latest" not in images[0]


@every
def test_probes_ask_for_the_model(render: Renderer, rendering: Rendering) -> None:
    server = server_of(render(rendering))
    for probe in ("startupProbe", "readinessProbe"):
        assert server[probe]["httpGet"] == {"path": "/v2/models/{{.Name}}/ready", "port": 8080}
    assert server["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8080}
    # A pod that is slow is taken out of the traffic before it is restarted.
    patience = {
        name: server[name]["periodSeconds"] * server[name]["failureThreshold"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert patience["readinessProbe"] < patience["livenessProbe"] < patience["startupProbe"]


@every
def test_arguments_are_those_of_the_server(render: Renderer, rendering: Rendering) -> None:
    arguments = pytest.importorskip("mlflywheel.serving.arguments")
    documents = render(rendering)
    values = [one.replace("{{.Name}}", "ad-campaigns") for one in server_of(documents)["args"]]
    if of_kind(documents, "InferenceService"):
        values += service_of(documents)["spec"]["predictor"]["model"]["args"]
    parsed = arguments.parse_arguments(values)
    assert str(parsed.model_dir) == "/mnt/models"
    ports = {port["name"]: port["containerPort"] for port in server_of(documents)["ports"]}
    assert ports["http1"] == parsed.http_port
    assert ports.get("h2c", parsed.grpc_port) == parsed.grpc_port


@every_serving
def test_service_finds_the_runtime_by_its_format(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    model = service_of(documents)["spec"]["predictor"]["model"]
    runtime = runtime_of(documents)["spec"]
    kind = load_model_class("topic-fingerprints")
    assert model["modelFormat"] == {"name": kind.format_name, "version": kind.format_version}
    assert "runtime" not in model
    assert model["modelFormat"].items() <= runtime["supportedModelFormats"][0].items()
    assert runtime["supportedModelFormats"][0]["autoSelect"] is True
    assert model["protocolVersion"] in runtime["protocolVersions"] == ["v1", "v2", "grpc-v2"]


@every_serving
def test_mode_is_named_and_has_no_field_of_the_other(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    service = service_of(documents)
    annotations, predictor = service["metadata"]["annotations"], service["spec"]["predictor"]
    assert mode_of(documents) in ("Standard", "Knative")
    if mode_of(documents) == "Standard":
        assert annotations["serving.kserve.io/autoscalerClass"] in ("hpa", "keda")
        assert {"canaryTrafficPercent", "containerConcurrency"}.isdisjoint(predictor)
        assert "autoscaling.knative.dev/class" not in annotations
        assert predictor["minReplicas"] >= 1
    else:
        assert "serving.kserve.io/autoscalerClass" not in annotations
        assert {"deploymentStrategy", "autoScaling"}.isdisjoint(predictor)
        # Others are refused by Knative, or only with a flag of its administrator taken.
        taken = {"containers", "volumes", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"}
        flagged = {"nodeSelector", "tolerations"} if "gpu" in rendering.components else set()
        assert pod_spec(documents).keys() <= taken | flagged
    assert 0 <= predictor["minReplicas"] < predictor["maxReplicas"]


@every_serving
def test_scaling_is_by_one_means(render: Renderer, rendering: Rendering) -> None:
    service = service_of(render(rendering))
    predictor = service["spec"]["predictor"]
    autoscaler = service["metadata"]["annotations"].get("serving.kserve.io/autoscalerClass", "kpa")
    if autoscaler == "keda":
        assert {"scaleMetric", "scaleTarget"}.isdisjoint(predictor)
        addresses = set()
        for metric in predictor["autoScaling"]["metrics"]:
            assert metric["type"] == "External"
            assert metric["external"]["metric"]["backend"] == "prometheus"
            # KEDA divides by the replicas.
            assert metric["external"]["metric"]["query"].startswith("sum(")
            assert "ad-campaigns" in metric["external"]["metric"]["query"]
            assert float(metric["external"]["target"]["value"]) > 0
            addresses.add(metric["external"]["metric"]["serverAddress"])
        assert len(addresses) == 1
    else:
        assert "autoScaling" not in predictor
        assert predictor["scaleMetric"] == {"hpa": "cpu", "kpa": "concurrency"}[autoscaler]
        assert 0 < predictor["scaleTarget"] <= 100


@every_serving
def test_names_fit_into_the_labels_that_kserve_makes(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    for document in documents:
        # Nothing is named after a policy, and its name may have a dot.
        part = document["metadata"]["name"].partition(".")[0] if document["kind"] == "NetworkPolicy" else None
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", part or document["metadata"]["name"])
        for value in document["metadata"]["labels"].values():
            assert re.fullmatch(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", value)
    assert len(pod_labels(documents, canary="a-canary-with-name")["app"]) <= 63


@every_serving
def test_account_has_no_token_and_no_rights(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    account = only(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert service_of(documents)["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]
    assert not of_kind(documents, "ClusterRole", "ClusterRoleBinding")
    subjects = [subject for binding in of_kind(documents, "RoleBinding") for subject in binding["subjects"]]
    assert account["metadata"]["name"] not in {subject["name"] for subject in subjects}
    for rule in [rule for role in of_kind(documents, "Role") for rule in role["rules"]]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert {"secrets", "pods/exec"}.isdisjoint(rule["resources"])


@every_serving
def test_keys_of_the_store_are_referred_to_and_never_written(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    assert not of_kind(documents, "Secret")
    example = yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text(encoding="utf-8"))
    assert only(documents, "ServiceAccount")["secrets"] == [{"name": example["metadata"]["name"]}]
    # What KServe's ConfigMap, as shipped, looks for in a Secret.
    assert example["stringData"].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(example["stringData"].values()) == {"replace"}
    assert "://" not in example["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"]


@every_serving
def test_selectors_take_the_predictors_pods_and_no_others(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    selectors = [one["spec"]["selector"] for one in of_kind(documents, "PodDisruptionBudget", "PodMonitor")]
    selectors += [one["spec"]["podSelector"] for one in of_kind(documents, "NetworkPolicy")]
    spread = service_of(documents)["spec"]["predictor"].get("topologySpreadConstraints", [])
    selectors += [constraint["labelSelector"] for constraint in spread]
    for selector in selectors:
        # A canary and a promoted version too.
        assert matches(selector, pod_labels(documents))
        assert matches(selector, pod_labels(documents, canary="v2"))
        assert not matches(selector, UNRELATED)
        assert not matches(selector, pod_labels(documents) | {"component": "transformer"})
    if rendering.folder == PRODUCTION.folder:
        assert len(selectors) >= 8


# In a process of its own: the server's metrics belong to the process that imports them.
DESCRIBE_METRICS = """
import json
from prometheus_client.metrics import MetricWrapperBase
from mlflywheel.serving import metrics
endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
print(json.dumps({
    family.name + ending: [*metric._labelnames, "le"]
    for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)
    for family in metric.describe() for ending in endings[family.type]
}))
"""


@pytest.fixture(scope="session")
def served_metrics() -> dict[str, list[str]]:
    """Series of the predictor, with their labels."""
    pytest.importorskip("prometheus_client")
    done = subprocess.run([sys.executable, "-c", DESCRIBE_METRICS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    assert len(found) >= 10
    return found


@every
def test_queries_ask_for_metrics_that_there_are(
    render: Renderer, rendering: Rendering, served_metrics: dict[str, list[str]]
) -> None:
    documents = render(rendering)
    groups = [group for one in of_kind(documents, "PrometheusRule") for group in one["spec"]["groups"]]
    queries = [rule["expr"] for group in groups for rule in group["rules"]]
    for service in of_kind(documents, "InferenceService"):
        for metric in service["spec"]["predictor"].get("autoScaling", {}).get("metrics", []):
            queries.append(metric["external"]["metric"]["query"])
    for query in queries:
        asked = set(re.findall(r"\b(mlflywheel_\w+|DCGM_\w+)", query))
        assert asked
        assert asked <= served_metrics.keys() | {"DCGM_FI_DEV_GPU_UTIL"}
        for name, matchers in re.findall(r"\b(mlflywheel_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)=", matchers)) - {"serving_kserve_io_inferenceservice"}
            assert labels <= set(served_metrics[name])
        # The label that the PodMonitor gives; a query for one model never takes in another's pods.
        assert "serving_kserve_io_inferenceservice" in query or "exported_pod" in query
    if "prometheus" in rendering.components:
        assert len(queries) >= 5


@every
def test_linter_finds_nothing(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    found = lint.lint_documents([lint.Document(one) for one in documents])
    assert [str(finding) for finding in found] == []
    # What it was told to overlook, in one place and never in production.
    ignored = [one["metadata"].get("annotations", {}).get(lint.IGNORE_ANNOTATION) for one in documents]
    standard = rendering.folder not in (PRODUCTION.folder, KNATIVE.folder) and of_kind(documents, "InferenceService")
    assert [names for names in ignored if names] == (["single-replica"] if standard else [])


# Each overlay.


def test_cpu_needs_kserve_alone(render: Renderer) -> None:
    groups = {one["apiVersion"].rpartition("/")[0] for one in render(CPU)}
    assert groups == {"", "serving.kserve.io"}
    assert mode_of(render(CPU)) == "Standard"


@every_serving
def test_a_pod_ends_later_than_its_last_request(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    predictor = service_of(documents)["spec"]["predictor"]
    given = dict(one.removeprefix("--").split("=", 1) for one in server_of(documents)["args"])
    if mode_of(documents) == "Knative":
        # Knative gives a pod the time of a request.
        assert float(given["drain_deadline_seconds"]) < predictor["timeout"]
    elif "terminationGracePeriodSeconds" in predictor:
        deadline = float(given["drain_deadline_seconds"])
        assert float(given["drain_delay_seconds"]) + predictor["timeout"] <= deadline
        assert deadline < predictor["terminationGracePeriodSeconds"]
        assert predictor["deploymentStrategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    else:
        assert rendering.folder == "manifests/base"
        assert "timeout" not in predictor


def on_gpus() -> list[Rendering]:
    return [one for one in SERVING if one.folder == GPU.folder or "gpu" in one.components]


@every
def test_gpu_is_asked_for_as_a_whole_or_not_at_all(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    server, runtime = server_of(documents), runtime_of(documents)["spec"]
    if rendering in on_gpus():
        gpus = [server["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")]
        assert gpus == ["1", "1"]
        assert "--device=cuda" in server["args"]
        assert runtime["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in runtime["tolerations"]
    else:
        assert not [text for one in documents for text in strings_in(one) if "nvidia" in text or "cuda" in text]


def test_gpu_scales_on_its_use_and_on_requests(render: Renderer) -> None:
    documents = render(GPU)
    service = service_of(documents)
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    queries = [one["external"]["metric"]["query"] for one in service["spec"]["predictor"]["autoScaling"]["metrics"]]
    assert len(queries) == 2
    assert "mlflywheel_requests_in_flight" in queries[0]
    pods = re.search(r'DCGM_FI_DEV_GPU_UTIL\{exported_pod=~"([^"]+)"\}', queries[1])
    assert pods is not None
    assert re.fullmatch(pods[1], "ad-campaigns-predictor-7d9f8c6b5-x2x4z")
    assert re.fullmatch(pods[1], "ad-campaigns-v2-predictor-7d9f8c6b5-x2x4z")
    assert not re.fullmatch(pods[1], "vehicle-prices-predictor-7d9f8c6b5-x2x4z")


def test_knative_scales_to_zero_on_concurrency_with_one_port(render: Renderer) -> None:
    documents = render(KNATIVE)
    service = service_of(documents)
    annotations, predictor = service["metadata"]["annotations"], service["spec"]["predictor"]
    assert mode_of(documents) == "Knative"
    assert annotations["autoscaling.knative.dev/class"] == "kpa.autoscaling.knative.dev"
    assert predictor["minReplicas"] == 0
    assert predictor["scaleMetric"] == "concurrency"
    assert 0 < predictor["scaleTarget"] <= predictor["containerConcurrency"]
    assert server_of(documents)["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]


def test_production_survives_a_zone_and_a_drain(render: Renderer) -> None:
    documents = render(PRODUCTION)
    predictor = service_of(documents)["spec"]["predictor"]
    assert predictor["minReplicas"] == 3
    hard, soft = predictor["topologySpreadConstraints"]
    assert (hard["topologyKey"], hard["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
    assert (soft["topologyKey"], soft["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    budget = only(documents, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert predictor["priorityClassName"] == only(documents, "PriorityClass")["metadata"]["name"]
    resources = server_of(documents)["resources"]
    assert resources["requests"] == resources["limits"]


def test_hardened_pod_holds_nothing_of_the_cluster(render: Renderer) -> None:
    pod = pod_spec(render(PRODUCTION))
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


# Network policies, by what they let through.


class Peer:
    """The other end: a pod in a namespace, or an address outside."""

    def __init__(self, namespace: str = "", labels: Mapping[str, str] | None = None, address: str = "") -> None:
        self.namespace, self.labels, self.address = namespace, labels or {}, address

    def is_meant(self, peer: Mapping[str, Any], own_namespace: str) -> bool:
        if "ipBlock" in peer:
            if not self.address:
                return False
            address, block = ipaddress.ip_address(self.address), peer["ipBlock"]
            return address in ipaddress.ip_network(block["cidr"]) and not any(
                address in ipaddress.ip_network(one) for one in block.get("except", [])
            )
        if self.address:
            return False
        if "namespaceSelector" in peer:
            here = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": self.namespace})
        else:
            here = self.namespace == own_namespace
        return here and matches(peer.get("podSelector", {}), self.labels)


def lets_through(policies: Sequence[Document], direction: str, peer: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether policies that all select a pod in the namespace `team` allow a connection, as Kubernetes defines it."""
    side, rules = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    in_force = [one["spec"] for one in policies if direction in one["spec"]["policyTypes"]]
    assert in_force
    return any(
        any(peer.is_meant(one, "team") for one in rule[side])
        and any(one["port"] == port and one["protocol"] == protocol for one in rule["ports"])
        for spec in in_force
        for rule in spec.get(rules, [])
    )


@pytest.mark.parametrize(
    ("direction", "peer", "port", "allowed"),
    [
        ("Ingress", Peer("istio-system"), 8080, True),
        ("Ingress", Peer("istio-system"), 8081, True),
        ("Ingress", Peer("knative-serving"), 8080, True),
        ("Ingress", Peer("istio-system"), 22, False),
        ("Ingress", Peer("monitoring"), 8080, True),
        ("Ingress", Peer("monitoring"), 8081, False),
        ("Ingress", Peer("team", {"app": "notebook"}), 8080, False),
        ("Ingress", Peer("other"), 8080, False),
        ("Ingress", Peer(address="203.0.113.9"), 8080, False),
        ("Egress", Peer("kubeflow", {"app": "minio"}), 9000, True),
        ("Egress", Peer("kubeflow", {"app": "mysql"}), 3306, False),
        ("Egress", Peer(address="52.218.0.1"), 443, True),
        ("Egress", Peer(address="52.218.0.1"), 80, False),
        ("Egress", Peer(address="169.254.169.254"), 443, False),
        ("Egress", Peer(address="10.0.0.1"), 443, False),
        ("Egress", Peer(address="2600:1fa0::1"), 443, True),
        ("Egress", Peer(address="fd00::1"), 443, False),
        ("Egress", Peer("team", {"app.kubernetes.io/name": "payload-collector"}), 8080, True),
        ("Egress", Peer("other", {"app.kubernetes.io/name": "payload-collector"}), 8080, False),
        ("Egress", Peer("team", {"app": "notebook"}), 8080, False),
    ],
)
def test_production_lets_through_what_is_needed(
    render: Renderer, direction: str, peer: Peer, port: int, allowed: bool
) -> None:
    policies = of_kind(render(PRODUCTION), "NetworkPolicy")
    assert lets_through(policies, direction, peer, port) is allowed


def test_production_resolves_names(render: Renderer) -> None:
    policies = of_kind(render(PRODUCTION), "NetworkPolicy")
    for protocol in ("UDP", "TCP"):
        assert lets_through(policies, "Egress", Peer("kube-system"), 53, protocol)
        assert lets_through(policies, "Egress", Peer(address="169.254.20.10"), 53, protocol)
        assert not lets_through(policies, "Egress", Peer(address="8.8.8.8"), 53, protocol)


def test_a_policy_denies_what_no_other_allows(render: Renderer) -> None:
    policies = of_kind(render(PRODUCTION), "NetworkPolicy")
    (deny,) = [one for one in policies if not {"ingress", "egress"} & one["spec"].keys()]
    assert sorted(deny["spec"]["policyTypes"]) == ["Egress", "Ingress"]


# One edit each.


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("rendering", [CPU, GPU, KNATIVE, PRODUCTION], ids=str)
def test_address_and_version_of_the_model_have_one_place(copied: Path, rendering: Rendering) -> None:
    parameters = copied / "manifests" / "base" / "model.env"
    edit(parameters, "modelUri=s3://mlflywheel/models/ad-campaigns/1/", "modelUri=gs://other/run=7/model")
    edit(parameters, "modelVersion=1\n", "modelVersion=17\n")
    service = service_of(kustomize(copied / rendering.folder))
    assert service["spec"]["predictor"]["model"]["storageUri"] == "gs://other/run=7/model"
    assert service["spec"]["predictor"]["model"]["args"] == ["--model_version=17"]
    assert service["metadata"]["labels"]["app.kubernetes.io/version"] == "17"


@pytest.mark.parametrize("rendering", [CPU, GPU, KNATIVE, PRODUCTION], ids=str)
def test_image_and_its_version_have_one_place(copied: Path, rendering: Rendering) -> None:
    place = copied / "manifests" / "runtime" / "kustomization.yaml"
    edit(place, "ghcr.io/mlflywheel/predictor", "registry.example:5000/team-a/predictor")
    edit(place, "newTag: 0.1.0", "newTag: 9.9.9-rc1")
    suffix = "-gpu" if rendering == GPU else ""
    image = server_of(kustomize(copied / rendering.folder))["image"]
    assert image == f"registry.example:5000/team-a/predictor:9.9.9-rc1{suffix}"


def test_image_may_be_a_digest(copied: Path) -> None:
    edit(copied / "manifests" / "runtime" / "kustomization.yaml", "newTag: 0.1.0", f"digest: sha256:{'0' * 64}")
    image = server_of(kustomize(copied / CPU.folder))["image"]
    assert image == f"ghcr.io/mlflywheel/predictor@sha256:{'0' * 64}"


def test_address_of_prometheus_has_one_place(copied: Path) -> None:
    edit(
        copied / "manifests/components/keda/kustomization.yaml",
        "http://prometheus-operated.monitoring:9090",
        "http://p",
    )
    metrics = service_of(kustomize(copied / GPU.folder))["spec"]["predictor"]["autoScaling"]["metrics"]
    assert [one["external"]["metric"]["serverAddress"] for one in metrics] == ["http://p", "http://p"]


# Another model, and another runtime.


@pytest.fixture
def vehicles_beside_components(copied: Path) -> list[Document]:
    """An overlay of somebody who wants alerts and scaling for vehicle prices, as the page shows it."""
    page = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```\n(apiVersion[^`]*use-case\n)```", page)
    content = yaml.safe_load(text)
    assert content["components"][-1].endswith("/use-case")
    paths = [Path(str(path)) for path in [*content["resources"], *content["components"]]]
    assert all(path.parts[:3] == ("..", "mlflywheel", "manifests") for path in paths)
    (copied / "mlflywheel").mkdir()
    (copied / "manifests").rename(copied / "mlflywheel" / "manifests")
    (copied / "overlay").mkdir()
    (copied / "overlay" / "kustomization.yaml").write_text(text, encoding="utf-8")
    return kustomize(copied / "overlay")


def named_like_the_first(documents: Sequence[Document]) -> list[str]:
    return [
        text for one in documents for text in strings_in(one) if "ad-campaigns" in text or "topic-fingerprints" in text
    ]


#: The name of a service and the model's entry point.
OTHERS = {"vehicle-prices": "vehicle-price", "credit-decisions": "tabular-classifier"}


@pytest.mark.parametrize("rendering", [*VEHICLES, *CREDIT], ids=str)
def test_another_model_has_a_service_account_and_runtime_of_its_own(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    assert named_like_the_first(documents) == []
    name = rendering.folder.split("/")[1]
    kind = load_model_class(OTHERS[name])
    service, runtime = service_of(documents), runtime_of(documents)
    wanted = {"name": kind.format_name, "version": kind.format_version}
    assert service["spec"]["predictor"]["model"]["modelFormat"] == wanted
    assert wanted.items() <= runtime["spec"]["supportedModelFormats"][0].items()
    assert service["metadata"]["name"] == name
    assert service["spec"]["predictor"]["serviceAccountName"] == only(documents, "ServiceAccount")["metadata"]["name"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"s3://mlflywheel/models/{name}/1/"
    assert lint.lint_documents([lint.Document(one) for one in documents]) == []


@pytest.mark.parametrize("rendering", [*VEHICLES, *CREDIT], ids=str)
def test_another_model_differs_from_the_first_in_names_alone(render: Renderer, rendering: Rendering) -> None:
    name = rendering.folder.split("/")[1]
    text = yaml.safe_dump_all(render(Rendering(rendering.folder.replace(name, "overlays"))))
    for old, new in (
        ("mlflywheel-topic-fingerprints", load_model_class(OTHERS[name]).format_name),
        ("ad-campaigns", name),
    ):
        text = text.replace(old, new)
    assert render(rendering) == list(yaml.safe_load_all(text))


def test_both_models_fit_into_one_namespace(render: Renderer) -> None:
    def names(documents: Sequence[Document]) -> set[tuple[str, str]]:
        return {(one["kind"], one["metadata"]["name"]) for one in documents}

    shared = names(render(PRODUCTION)) & names(render(Rendering("manifests/vehicle-prices/production")))
    assert shared == {("PriorityClass", "mlflywheel-serving")}


def test_components_are_renamed_by_the_last_one(vehicles_beside_components: list[Document]) -> None:
    documents = vehicles_beside_components
    assert named_like_the_first(documents) == []
    assert {"PodMonitor", "PrometheusRule"} <= {one["kind"] for one in documents}
    assert lint.lint_documents([lint.Document(one) for one in documents]) == []
    groups = only(documents, "PrometheusRule")["spec"]["groups"]
    (absent,) = [rule["expr"] for rule in groups[0]["rules"] if rule["alert"] == "MlflywheelNoReplica"]
    assert absent == 'absent(mlflywheel_model_info{serving_kserve_io_inferenceservice="vehicle-prices"})'
    (metric,) = service_of(documents)["spec"]["predictor"]["autoScaling"]["metrics"]
    assert '{serving_kserve_io_inferenceservice="vehicle-prices"}' in metric["external"]["metric"]["query"]


def test_name_format_address_and_version_of_another_model_have_one_place(copied: Path) -> None:
    (copied / "manifests/vehicle-prices/model/model.env").write_text(
        "service=flat-rents\nmodelFormat=flat-rent\nmodelUri=gs://other/run=7/model\nmodelVersion=17\n"
    )
    documents = kustomize(copied / "manifests/vehicle-prices/production")
    assert [text for one in documents for text in strings_in(one) if "vehicle" in text] == []
    service = service_of(documents)
    assert service["metadata"]["name"] == "flat-rents"
    assert service["metadata"]["labels"]["app.kubernetes.io/version"] == "17"
    assert service["spec"]["predictor"]["model"]["args"] == ["--model_version=17"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == "gs://other/run=7/model"
    assert runtime_of(documents)["metadata"]["name"] == "flat-rent"


@pytest.mark.parametrize("rendering", TRITON, ids=str)
def test_triton_is_the_stock_runtime_bounded_and_probed(render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    assert sorted(one["kind"] for one in documents) == ["InferenceService", "ServiceAccount"]
    assert lint.lint_documents([lint.Document(one) for one in documents]) == []
    predictor = service_of(documents)["spec"]["predictor"]
    model = predictor["model"]
    assert model["runtime"] == "kserve-tritonserver"
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "triton", "version": "2"}, "v2")
    assert predictor["serviceAccountName"] == only(documents, "ServiceAccount")["metadata"]["name"]
    for probe in ("startupProbe", "readinessProbe"):
        assert model[probe]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert predictor["timeout"] < predictor["terminationGracePeriodSeconds"]
    gpus = {model["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
    assert gpus == ({"1"} if rendering.folder.endswith("gpu") else {None})


@pytest.mark.parametrize("rendering", TRITON, ids=str)
def test_tritons_repository_has_one_place(copied: Path, rendering: Rendering) -> None:
    edit(
        copied / "manifests/triton/base/model.env", "modelUri=s3://mlflywheel/triton/vehicle-prices/", "modelUri=gs://o"
    )
    service = service_of(kustomize(copied / rendering.folder))
    assert service["spec"]["predictor"]["model"]["storageUri"] == "gs://o"


# Rollouts, unattended.

ROLLOUTS = Rendering("manifests/rollouts")


def rollout_pod(documents: list[Document]) -> Document:
    """The pod of the CronJob."""
    return dict(only(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"])


def test_rollouts_name_each_object_once_and_nothing_of_the_cluster(render: Renderer) -> None:
    documents = render(ROLLOUTS)
    assert sorted(one["kind"] for one in documents) == ["CronJob", "Role", "RoleBinding", "ServiceAccount"]
    assert len({one["metadata"]["namespace"] for one in documents}) == 1
    assert [str(finding) for finding in lint.lint_documents([lint.Document(one) for one in documents])] == []


def test_rollouts_run_as_an_account_with_named_rights(render: Renderer) -> None:
    documents = render(ROLLOUTS)
    account, binding = only(documents, "ServiceAccount"), only(documents, "RoleBinding")
    name, namespace = account["metadata"]["name"], account["metadata"]["namespace"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
    assert binding["roleRef"]["name"] == only(documents, "Role")["metadata"]["name"]
    pod = rollout_pod(documents)
    assert pod["serviceAccountName"] == name
    # The pod alone gets a token.
    assert (account["automountServiceAccountToken"], pod["automountServiceAccountToken"]) == (False, True)
    granted = [
        (resource, verb)
        for rule in only(documents, "Role")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert len(set(granted)) == len(granted)
    assert not [one for one in granted if "*" in one or one[0] in ("secrets", "pods/exec", "roles", "rolebindings")]
    # Whatever serves is never deleted by this account.
    assert {resource for resource, verb in granted if verb == "delete"} == {"horizontalpodautoscalers", "scaledobjects"}


def test_rollouts_tick_each_minute_and_one_at_a_time(render: Renderer) -> None:
    spec = only(render(ROLLOUTS), "CronJob")["spec"]
    assert spec["schedule"] == "* * * * *"
    assert spec["concurrencyPolicy"] == "Forbid"
    # Under ten seconds Kubernetes may never start it, and without any it stops after a hundred missed starts.
    assert 10 <= spec["startingDeadlineSeconds"] < 60
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["activeDeadlineSeconds"] > 600
    assert rollout_pod(render(ROLLOUTS))["restartPolicy"] == "Never"


def test_rollouts_container_is_bounded_and_locked_down(render: Renderer) -> None:
    pod = rollout_pod(render(ROLLOUTS))
    (container,) = pod["containers"]
    assert container["image"] == COMPONENTS
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for resources in (container["resources"]["requests"], container["resources"]["limits"]):
        assert {"cpu", "memory"} <= resources.keys()
    # Where the image has its home, and Python its temporary files.
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert pod["volumes"][0]["emptyDir"]["sizeLimit"]


def test_rollouts_name_the_service_in_one_place(render: Renderer, copied: Path) -> None:
    others = [one for one in render(ROLLOUTS) if one["kind"] != "Role"]
    found = [text for one in others for text in strings_in(one) if "ad-campaigns" in text]
    assert found == ["ad-campaigns"]
    edit(copied / "manifests/rollouts/cron-job.yaml", "value: ad-campaigns", "value: other")
    (container,) = rollout_pod(kustomize(copied / ROLLOUTS.folder))["containers"]
    assert container["command"][:3] == ["mlflywheel", "rollout", "step"]
    assert container["command"][3] == "$(SERVICE)"
    assert container["env"][0] == {"name": "SERVICE", "value": "other"}


def test_records_of_rollouts_are_named_in_one_place(render: Renderer, copied: Path) -> None:
    def names(documents: list[Document]) -> dict[tuple[object, ...], list[str]]:
        rules = only(documents, "Role")["rules"]
        return {
            (place, *rule["resources"]): rule["resourceNames"]
            for place, rule in enumerate(rules)
            if "resourceNames" in rule
        }

    # The page of the rollouts patches them by these places.
    expected = [name_objects(service) for service in ("ad-campaigns", "credit-decisions", "vehicle-prices")]
    assert names(render(ROLLOUTS)) == {(1, "configmaps"): expected, (3, "leases"): expected}
    edit(copied / "manifests/rollouts/role.yaml", "- ad-campaigns-rollout", "- other-rollout")
    found = names(kustomize(copied / ROLLOUTS.folder))
    assert set(map(tuple, found.values())) == {("other-rollout", *expected[1:])}


def test_rollouts_call_a_command_that_exists(render: Renderer) -> None:
    command = rollout_pod(render(ROLLOUTS))["containers"][0]["command"]
    shown = CliRunner().invoke(app, [*command[1:3], "--help"])
    assert shown.exit_code == 0
    assert [one for one in command if one.startswith("--") and one not in shown.output] == []
