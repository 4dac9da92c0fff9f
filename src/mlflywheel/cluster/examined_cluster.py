"""Checks of the cluster itself: its API server, the kinds that other projects add, its nodes."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from mlflywheel.cluster.examination import Check, Examined
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.kubernetes_client import RefusedError

#: The oldest that KServe's installation guide names for the releases that manifests/ are made for.
OLDEST_KUBERNETES = (1, 32)
#: Leases of rollouts, windows of evidence and signatures of object stores go by clocks.
CLOCK_SECONDS = 60.0
_GPU = "nvidia.com/gpu"
_KSERVE_FIX = "install KServe 0.20 or newer: https://kserve.github.io/website/docs/admin-guide/kubernetes-deployment"
_KFP_FIX = "install Kubeflow Pipelines: https://www.kubeflow.org/docs/components/pipelines/operator-guides/installation"

#: Name, group, version, resource, whether we cannot do without it, what it is for, how it gets there.
_KINDS = (
    ("InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices", True, "serving", _KSERVE_FIX),
    ("ServingRuntime", "serving.kserve.io", "v1alpha1", "servingruntimes", True, "serving", _KSERVE_FIX),
    ("Workflow", "argoproj.io", "v1alpha1", "workflows", True, "runs of pipelines", _KFP_FIX),
    (
        "ScheduledWorkflow",
        "kubeflow.org",
        "v1beta1",
        "scheduledworkflows",
        False,
        "recurring runs of pipelines",
        _KFP_FIX,
    ),
    (
        "Pipeline",
        "pipelines.kubeflow.org",
        "v2beta1",
        "pipelines",
        False,
        "pipelines as objects of the cluster (GitOps)",
        "install Kubeflow Pipelines with its Kubernetes-native store, or use mlflywheel submit",
    ),
    (
        "PipelineVersion",
        "pipelines.kubeflow.org",
        "v2beta1",
        "pipelineversions",
        False,
        "pipelines as objects of the cluster (GitOps)",
        "install Kubeflow Pipelines with its Kubernetes-native store, or use mlflywheel submit",
    ),
    (
        "Experiment",
        "kubeflow.org",
        "v1beta1",
        "experiments",
        False,
        "searches with --executor katib",
        "install Katib (https://www.kubeflow.org/docs/components/katib/installation), or search with --executor local",
    ),
    (
        "HTTPRoute",
        "gateway.networking.k8s.io",
        "v1",
        "httproutes",
        False,
        "canaries in Standard mode",
        "install the Gateway API and a gateway: https://gateway-api.sigs.k8s.io/guides",
    ),
    (
        "Service of Knative",
        "serving.knative.dev",
        "v1",
        "services",
        False,
        "overlays/knative and canaries in Knative mode",
        "install Knative Serving (https://knative.dev/docs/install), or stay in Standard mode",
    ),
    (
        "ScaledObject",
        "keda.sh",
        "v1alpha1",
        "scaledobjects",
        False,
        "overlays/gpu and the component keda",
        "install KEDA (https://keda.sh/docs/latest/deploy), or take overlays/cpu",
    ),
    (
        "PodMonitor",
        "monitoring.coreos.com",
        "v1",
        "podmonitors",
        False,
        "the component monitoring",
        "install the Prometheus operator, or leave the component monitoring out",
    ),
    (
        "PrometheusRule",
        "monitoring.coreos.com",
        "v1",
        "prometheusrules",
        False,
        "the component prometheus",
        "install the Prometheus operator, or leave the component prometheus out",
    ),
)


def _check_version(examined: Examined) -> Iterator[Finding]:
    version = str(examined.api.get("/version").get("gitVersion"))
    match = re.match(r"v?(\d+)\.(\d+)", version)
    host = examined.api.connection.api.configuration.host
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    if match and (int(match[1]), int(match[2])) < OLDEST_KUBERNETES:
        text = f"Kubernetes {version} at {host}; {oldest} is the oldest that KServe 0.20 is documented for"
        yield Finding("API server", "note", text, f"upgrade the cluster to Kubernetes {oldest} or newer")
    else:
        yield Finding("API server", "ok", f"Kubernetes {version} at {host}")


def _check_identity(examined: Examined) -> Iterator[Finding]:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = examined.api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    except RefusedError as error:
        if error.status != 404:
            raise
        yield Finding("user", "note", "the API server does not say who you are", "kubectl config view --minify")
        return
    yield Finding("user", "ok", str(answer["status"]["userInfo"].get("username")))


def _check_clock(examined: Examined) -> Iterator[Finding]:
    before = examined.subject.now()
    theirs = examined.api.measure_clock()
    ours = (before + examined.subject.now()) / 2
    if theirs is None:
        yield Finding("clock", "note", "the API server sends no time", "compare date -u here and on a node")
        return
    difference = abs(ours - theirs)
    if difference > CLOCK_SECONDS:
        text = (
            f"{difference:.0f} s {'ahead of' if ours > theirs else 'behind'} the API server's; up to "
            f"{CLOCK_SECONDS:.0f} s do no harm to leases, evidence and signatures"
        )
        yield Finding("clock", "problem", text, "timedatectl set-ntp true, on the machine whose clock is wrong")
    else:
        yield Finding("clock", "ok", f"agrees with the API server's to {max(difference, 1):.0f} s")


def _check_kinds(examined: Examined) -> Iterator[Finding]:
    for name, group, version, resource, is_needed, purpose, fix in _KINDS:
        subject = f"kind {name}"
        if examined.api.serves(group, version, resource):
            yield Finding(subject, "ok", f"{resource}.{group}/{version}: {purpose}")
        else:
            others = _list_versions(examined, group)
            seen = f"{resource}.{group}/{version} is not served, which is for {purpose}"
            if others:
                seen += f"; the group has {', '.join(others)}"
            yield Finding(subject, "problem" if is_needed else "note", seen, fix)


def _list_versions(examined: Examined, group: str) -> list[str]:
    found = examined.api.find(f"/apis/{group}") or {}
    return [str(one.get("version")) for one in found.get("versions") or ()]


def _check_gpus(examined: Examined) -> Iterator[Finding]:
    nodes = list(_list_nodes(examined))
    with_gpu = [one for one in nodes if _count_gpus(one)]
    if with_gpu:
        total = sum(map(_count_gpus, with_gpu))
        yield Finding("GPU nodes", "ok", f"{len(with_gpu)} of {len(nodes)} nodes, {total} GPUs")
    else:
        text = f"none of {len(nodes)} nodes offers {_GPU}: overlays/gpu and the component gpu would wait for one"
        yield Finding(
            "GPU nodes", "note", text, "install NVIDIA's GPU operator on nodes with GPUs, or use overlays/cpu"
        )


def _list_nodes(examined: Examined) -> Iterator[dict[str, Any]]:
    query = {"limit": "500"}
    while True:
        page = examined.api.get("/api/v1/nodes", **query)
        yield from page.get("items") or ()
        following = (page.get("metadata") or {}).get("continue")
        if not following:
            return
        query["continue"] = following


def _count_gpus(node: dict[str, Any]) -> int:
    text = str(((node.get("status") or {}).get("allocatable") or {}).get(_GPU, "0"))
    return int(text) if text.isdecimal() else 0


def _check_metrics(examined: Examined) -> Iterable[Finding]:
    if examined.api.find("/apis/metrics.k8s.io") is not None:
        return [Finding("metrics API", "ok", "served: HorizontalPodAutoscalers on CPU use can scale")]
    text = "not served: overlays/cpu scales on CPU use, and stays at its least number of replicas without it"
    return [Finding("metrics API", "note", text, "install metrics-server: kubectl apply -f https://github.com/"
                    "kubernetes-sigs/metrics-server/releases/latest/download/components.yaml")]  # fmt: skip


def _list_kinds(is_needed: bool) -> str:
    return ", ".join(name for name, *_, needed, _, _ in _KINDS if needed is is_needed)


CHECKS = (
    Check(
        "API server",
        "API server",
        f"whether it answers, and its version: Kubernetes {'.'.join(map(str, OLDEST_KUBERNETES))} or newer",
        _check_version,
    ),
    Check("API server", "user", "who the API server takes you for", _check_identity),
    Check("API server", "clock", f"at most {CLOCK_SECONDS:.0f} s between its clock and this machine's", _check_clock),
    Check("kinds", "kind", f"needed: {_list_kinds(True)}; optional: {_list_kinds(False)}", _check_kinds),
    Check("nodes", "GPU nodes", f"nodes that offer `{_GPU}`", _check_gpus),
    Check("nodes", "metrics API", "what autoscaling on CPU use is measured by", _check_metrics),
)
