"""What is paid for and not used, or not bounded."""

from collections.abc import Iterator
from decimal import Decimal

from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Component, Container, Runtime, first_of

_MOST_TIMES = {"cpu": Decimal(4), "memory": Decimal(2)}


@rule(
    "no-max-replicas",
    "warning",
    "cost",
    "No maxReplicas: without an end in Knative mode, and never more than minReplicas in Standard mode",
    "KServe hpa_reconciler.go createHPA, keda_reconciler.go; Knative max-scale",
    Component,
)
def check_no_max_replicas(component: Component) -> Iterator[Fault]:
    """A GPU is the next rule's."""
    if component.most or component.service.stopped:
        return
    field = component.field["maxReplicas"]
    if component.service.mode == "Knative" and component.uses_gpu is None:
        yield Fault(field, "Knative adds replicas without an end", "write maxReplicas")
    elif component.service.mode == "Standard" and component.scaler in ("hpa", "keda"):
        yield Fault(
            field,
            "without maxReplicas the autoscaler never adds a replica to minReplicas",
            "write maxReplicas, or the annotation serving.kserve.io/autoscalerClass: none",
        )


@rule(
    "gpu-without-bound",
    "warning",
    "cost",
    "Replicas with a GPU are added without an end",
    "KServe ksvc_reconciler.go; Knative max-scale",
    Component,
)
def check_gpu_without_bound(component: Component) -> Iterator[Fault]:
    """In Standard mode a missing maximum means minReplicas."""
    if component.service.mode == "Knative" and not component.most and component.uses_gpu is not None:
        field = component.field["maxReplicas"]
        yield Fault(field, "Knative adds replicas, each with a GPU, without an end", "write maxReplicas")


@rule(
    "idle-gpu",
    "warning",
    "cost",
    "Replicas with a GPU that nothing gives back when there is no work for the GPU",
    "KServe, autoscaling with GPU metrics",
    Component,
)
def check_idle_gpu(component: Component) -> Iterator[Fault]:
    """CPU and memory say little about a GPU."""
    if component.service.mode != "Standard" or component.least < 1 or component.uses_gpu is None:
        return
    if component.service.stopped or component.scaler == "external":
        return
    fix = "use autoscalerClass keda with a query on the GPU or the queue, or Knative mode with minReplicas: 0"
    kinds = {metric["type"].text() for metric in component.metrics}
    if component.scaler == "none":
        yield Fault(component.uses_gpu, f"{component.least} replicas hold a GPU day and night", fix)
    elif not kinds & {"External", "PodMetric"}:
        yield Fault(component.uses_gpu, "replicas with a GPU are scaled by CPU or memory, not by the GPU's work", fix)


@rule(
    "gpu-scheduling",
    "note",
    "cost",
    "A GPU is asked for, and neither node selector, affinity nor toleration says which node",
    "KServe, node scheduling",
    Component,
)
def check_gpu_scheduling(component: Component) -> Iterator[Fault]:
    """Clusters keep other pods off their GPU nodes with taints, and have GPUs of several kinds."""
    if component.uses_gpu is None or component.kind == "canary":
        return
    names = ("nodeSelector", "tolerations", "affinity", "runtimeClassName")
    chosen = any(first_of(component.pods, name).exists for name in names)
    if not chosen and not component.manifest.annotation("serving.kserve.io/gke-accelerator"):
        yield Fault(
            component.uses_gpu,
            "any node with a free GPU may take it, and a tainted GPU node may not",
            "add nodeSelector for the kind of GPU, and tolerations for its taint",
        )


@rule(
    "gpu-request-mismatch",
    "error",
    "fails",
    "Requests and limits of a GPU differ",
    "Kubernetes, extended resources are not overcommitted",
    Container,
)
def check_gpu_request_mismatch(container: Container) -> Iterator[Fault]:
    """A limit alone is enough: the request is then the same."""
    requests, limits = container.resources("requests"), container.resources("limits")
    names = {str(field.path[-1]) for field, _ in container.gpus()}
    for name in sorted(names & requests.keys()):
        limit = limits[name].quantity() if name in limits else None
        if requests[name].quantity() != limit:
            seen = "no limit" if name not in limits else f"the limit {limits[name].show()}"
            yield Fault(
                requests[name],
                f"{name[:63]} has the request {requests[name].show()} and {seen}; Kubernetes needs them equal",
                "write the limit only",
            )


@rule(
    "requests-over-limits",
    "error",
    "fails",
    "A container requests more than its limit",
    "Kubernetes, resource management",
    Container,
)
def check_requests_over_limits(container: Container) -> Iterator[Fault]:
    """Also where a service overrides one of them and its runtime has the other."""
    for name in _MOST_TIMES:
        request, limit = container.quantity("requests", name), container.quantity("limits", name)
        if request is not None and limit is not None and request[1] > limit[1]:
            yield Fault(
                request[0],
                f"{container.label} requests {request[0].show()} of {name}, and its limit is {limit[0].show()}",
                "lower the request or raise the limit",
            )


@rule(
    "no-resources",
    "warning",
    "cost",
    "A container that serves has no CPU request, memory request or memory limit",
    "Kubernetes, resource management; KServe fills in defaults for custom containers only",
    Component,
)
def check_no_resources(component: Component) -> Iterator[Fault]:
    """The scheduler packs by requests, and the HPA divides by them."""
    main = component.main
    if main is None or component.kind == "canary" or not main.resolved:
        return
    missing = []
    for which, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        found = which == "requests" and name in main.resources("limits")
        if not found and name not in main.resources("requests" if which == "requests" else "limits"):
            missing.append(f"{which}.{name}")
    if missing:
        yield Fault(
            main.own["resources"], f"{', '.join(missing)} is missing", "measure what a replica uses, and write it"
        )


@rule(
    "limits-far-from-requests",
    "warning",
    "cost",
    "A CPU limit above 4 times the request, or a memory limit above 2 times",
    "Kubernetes, resource management",
    Container,
)
def check_limits_far_from_requests(container: Container) -> Iterator[Fault]:
    """Nodes are then promised more than they have, and pods are killed."""
    if not isinstance(container.owner, Component | Runtime) or container.role == "init":
        return
    for name, most in _MOST_TIMES.items():
        request, limit = container.quantity("requests", name), container.quantity("limits", name)
        if request is not None and limit is not None and limit[1] > most * max(request[1], Decimal(0)):
            yield Fault(
                limit[0],
                f"the {name} limit {limit[0].show()} is more than {most} times the request {request[0].show()}",
                "bring them closer together; memory is best equal",
            )
