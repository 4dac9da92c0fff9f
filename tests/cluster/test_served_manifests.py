"""A real API server with the official CRDs takes every manifest, and the pods that KServe makes of them."""

import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from control_plane import Cluster
from kubernetes import client
from rendered_manifests import (
    CPU,
    GPU,
    KNATIVE,
    MANIFESTS,
    PRODUCTION,
    RENDERINGS,
    TRITON,
    VEHICLES,
    Document,
    Renderer,
    Rendering,
    mode_of,
    of_kind,
    only,
    pod_labels,
    pod_spec,
    service_of,
)

SERVING = [rendering for rendering in RENDERINGS if not rendering.folder.endswith("runtime")]
#: Kinds that are not in a namespace, by the names that kubectl knows.
OF_CLUSTER = {"ClusterServingRuntime": "clusterservingruntimes.serving.kserve.io", "PriorityClass": "priorityclasses"}

every = pytest.mark.parametrize("rendering", [*RENDERINGS, *VEHICLES, *TRITON], ids=str)
every_standard = pytest.mark.parametrize("rendering", [one for one in SERVING if one.folder != KNATIVE.folder], ids=str)


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(tmp_path_factory.mktemp("overlays"))


@pytest.fixture(scope="session", autouse=True)
def _crds(install_crds: Callable[[str], tuple[str, ...]]) -> None:
    for project in ("kserve", "keda", "knative", "prometheus-operator"):
        install_crds(project)


class Applier:
    """Applies documents in a namespace with strict validation."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self.of_cluster: list[tuple[str, str]] = []

    def __call__(self, documents: list[Document], *, check: bool = True) -> str:
        documents = deepcopy(documents)
        for document in documents:
            if document["kind"] in OF_CLUSTER:
                # The cluster may be somebody's, with objects of these names.
                document["metadata"]["name"] += f"-{uuid.uuid4().hex[:8]}"
                self.of_cluster.append((OF_CLUSTER[document["kind"]], document["metadata"]["name"]))
        arguments = ("apply", "--validate=strict", "--server-side", "--namespace", self._namespace, "--filename", "-")
        done = self._cluster.kubectl(*arguments, input=yaml.safe_dump_all(documents), check=check)
        # Deprecated fields and versions are warned of.
        assert "Warning" not in done.stderr
        return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def apply(cluster: Cluster, namespace: str) -> Iterator[Applier]:
    applier = Applier(cluster, namespace)
    yield applier
    for resource, name in applier.of_cluster:
        cluster.kubectl("delete", resource, name, "--ignore-not-found", "--wait=false")


def deployment(documents: list[Document]) -> Document:
    """As KServe makes it in Standard mode."""
    name = f"{service_of(documents)['metadata']['name']}-predictor"
    labels = pod_labels(documents)
    pod = pod_spec(documents)
    # Of a class that is renamed when it is applied.
    pod.pop("priorityClassName", None)
    spec = {
        "selector": {"matchLabels": {"app": labels["app"]}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    strategy = service_of(documents)["spec"]["predictor"].get("deploymentStrategy")
    if strategy:
        spec["strategy"] = strategy
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels}, "spec": spec}


def knative_service(documents: list[Document], pod: Document) -> Document:
    """As KServe makes it in Knative mode."""
    predictor = service_of(documents)["spec"]["predictor"]
    annotations = {
        name: value
        for name, value in service_of(documents)["metadata"]["annotations"].items()
        if name.startswith("autoscaling.knative.dev/")
    }
    template = {
        "metadata": {"annotations": annotations},
        "spec": {
            **pod,
            "timeoutSeconds": predictor["timeout"],
            "containerConcurrency": predictor["containerConcurrency"],
        },
    }
    name = f"{service_of(documents)['metadata']['name']}-predictor"
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": template},
    }


@every
def test_api_server_takes_every_object(apply: Applier, render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    applied = apply(documents)
    assert applied.count("serverside-applied") == len(documents)
    # And once more, as GitOps does.
    again = [one for one in documents if one["kind"] not in OF_CLUSTER]
    assert not again or apply(again).count("serverside-applied") == len(again)


def test_example_of_the_secret_is_taken(apply: Applier) -> None:
    apply([yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text(encoding="utf-8"))])


@pytest.mark.parametrize("kind", ["InferenceService", "ServingRuntime", "PodMonitor", "PrometheusRule"])
def test_misspelt_field_would_be_found(apply: Applier, render: Renderer, kind: str) -> None:
    rendering = next(one for one in RENDERINGS if {"monitoring", "prometheus"} <= set(one.components))
    document = only(render(rendering), kind)
    document["spec"]["misspelt"] = 1
    assert ".spec.misspelt: field not declared in schema" in apply([document], check=False)


@every_standard
def test_kubernetes_takes_the_deployment_that_kserve_makes(
    apply: Applier, render: Renderer, rendering: Rendering
) -> None:
    assert mode_of(render(rendering)) == "Standard"
    apply([deployment(render(rendering))])


def test_deployment_of_a_faulty_pod_would_be_refused(apply: Applier, render: Renderer) -> None:
    faulty = service_of(documents := render(PRODUCTION))["spec"]["predictor"]["topologySpreadConstraints"][0]
    faulty["matchLabelKeys"] = ["not a label"]
    assert "Invalid value" in apply([deployment(documents)], check=False)


@pytest.mark.parametrize(
    "rendering", [one for one in SERVING if one.folder == KNATIVE.folder and "gpu" not in one.components], ids=str
)
def test_knative_takes_the_service_that_kserve_makes(apply: Applier, render: Renderer, rendering: Rendering) -> None:
    documents = render(rendering)
    apply([knative_service(documents, pod_spec(documents))])


@pytest.mark.parametrize(
    "rendering", [one for one in SERVING if one.folder == GPU.folder or "keda" in one.components], ids=str
)
def test_keda_takes_the_scaled_object_that_kserve_makes(apply: Applier, render: Renderer, rendering: Rendering) -> None:
    predictor = service_of(render(rendering))["spec"]["predictor"]
    triggers = [
        {
            "type": metric["external"]["metric"]["backend"],
            "metadata": {
                "serverAddress": metric["external"]["metric"]["serverAddress"],
                "query": metric["external"]["metric"]["query"],
                "threshold": metric["external"]["target"]["value"],
            },
        }
        for metric in predictor["autoScaling"]["metrics"]
    ]
    apply(
        [
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": {"name": "ad-campaigns-predictor"},
                "spec": {
                    "scaleTargetRef": {"name": "ad-campaigns-predictor"},
                    "triggers": triggers,
                    "minReplicaCount": predictor["minReplicas"],
                    "maxReplicaCount": predictor["maxReplicas"],
                    "advanced": {"horizontalPodAutoscalerConfig": {"behavior": predictor["autoScaling"]["behavior"]}},
                },
            }
        ]
    )


@pytest.mark.parametrize("rendering", [CPU, GPU, PRODUCTION], ids=str)
def test_restricted_namespace_takes_the_pod(
    cluster: Cluster, namespace: str, apply: Applier, render: Renderer, rendering: Rendering
) -> None:
    core = client.CoreV1Api(cluster.api_client())
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    core.patch_namespace(namespace, enforce)
    documents = render(rendering)
    apply(of_kind(documents, "ServiceAccount"))

    def pod(name: str, spec: dict[str, Any]) -> Document:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    spec = pod_spec(documents)
    spec.pop("priorityClassName", None)
    # Of a Deployment's pods.
    for constraint in spec.get("topologySpreadConstraints", []):
        del constraint["matchLabelKeys"]
    assert apply([pod("whole", spec)])
    del spec["containers"][0]["securityContext"]["capabilities"]
    assert 'violates PodSecurity "restricted:latest"' in apply([pod("faulty", spec)], check=False)
