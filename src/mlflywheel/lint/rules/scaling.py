"""What the autoscalers of each mode refuse, or do not read."""

from collections.abc import Iterator
from decimal import Decimal

from mlflywheel.lint.fields import Field
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import AUTOSCALER_CLASS, Component, Service

_VALIDATION = "KServe inference_service_validation.go"
_LEAST_MEMORY = Decimal(2**20)
#: Modes that KServe's webhook checks by the rules of Knative's autoscaler.
_COUNTING = ("Knative", "ModelMesh")


@rule(
    "replica-bounds",
    "error",
    "fails",
    "minReplicas or maxReplicas is negative, or the least is above the most",
    "KServe component.go validateReplicas",
    Service,
)
def check_replica_bounds(service: Service) -> Iterator[Fault]:
    """A maximum of 0 is no bound."""
    for component in [*service.components, *service.canaries]:
        least, most = component.field["minReplicas"], component.field["maxReplicas"]
        if component.least < 0:
            yield Fault(least, f"minReplicas is {least.show()}", "write 0 or more")
        if component.most < 0:
            yield Fault(most, f"maxReplicas is {most.show()}", "write 1 or more")
        elif 0 != component.most < component.least:
            seen = least.show() if least.exists else "1, its default"
            yield Fault(
                most, f"minReplicas is {seen} and maxReplicas {most.show()}", "raise maxReplicas or lower minReplicas"
            )


@rule(
    "container-concurrency",
    "error",
    "fails",
    "containerConcurrency is negative",
    "KServe component.go validateContainerConcurrency",
    Service,
)
def check_container_concurrency(service: Service) -> Iterator[Fault]:
    """0 is no limit."""
    for component in [*service.components, *service.canaries]:
        limit = component.field["containerConcurrency"].whole()
        if limit is not None and limit < 0:
            yield Fault(component.field["containerConcurrency"], f"it is {limit}", "write 0, no limit, or more")


@rule(
    "scale-metric-for-mode",
    "error",
    "fails",
    "scaleMetric is one that the mode's autoscaler refuses or does not read",
    f"{_VALIDATION} validateAutoScalingCompExtension, hpa_reconciler.go getHPAMetrics",
    Component,
)
def check_scale_metric(component: Component) -> Iterator[Fault]:
    """Knative counts requests, the HPA looks at resources, and KEDA has metrics of its own."""
    field = component.field["scaleMetric"]
    metric = field.text()
    if not metric:
        return
    mode = component.service.mode
    if _uses_kpa(component) and metric not in ("concurrency", "rps"):
        yield Fault(
            field,
            f"Knative's autoscaler does not scale by {metric[:40]}",
            "write concurrency or rps, or set autoscaling.knative.dev/class: hpa.autoscaling.knative.dev",
        )
    elif _uses_hpa(component) and metric not in ("cpu", "memory"):
        yield Fault(
            field,
            f"the HPA does not scale by {metric[:40]}",
            "write cpu or memory, or use KEDA with a query that counts requests",
        )
    elif mode == "Standard" and "keda" in component.checked_scalers:
        yield Fault(field, "KServe refuses scaleMetric with KEDA", "write autoScaling.metrics")


@rule(
    "scale-target",
    "error",
    "fails",
    "scaleTarget is out of its metric's range",
    f"{_VALIDATION} validateScalingHPACompExtension, validateScalingKPACompExtension",
    Component,
)
def check_scale_target(component: Component) -> Iterator[Fault]:
    """A percentage for the HPA, requests a second for Knative."""
    field, metric = component.field["scaleTarget"], component.field["scaleMetric"].text()
    target = field.whole(32)
    if target is None:
        return
    if _uses_hpa(component):
        # Without the class the webhook does not look, and an HPA takes more than 100 percent of a request.
        is_checked = component.service.mode != "Standard" or component.manifest.annotation(AUTOSCALER_CLASS)
        most = 100 if is_checked else 2**31 - 1
        if not 1 <= target <= most:
            yield Fault(field, f"the HPA's target is a percentage, and this is {target}", "write 1 to 100")
    elif _uses_kpa(component) and metric == "rps" and target < 1:
        yield Fault(field, f"{target} requests a second is no target", "write 1 or more")


@rule(
    "hpa-metrics",
    "error",
    "fails",
    "autoScaling.metrics has what an HPA cannot scale by",
    f"{_VALIDATION} validateScalingHPACompExtension",
    Component,
)
def check_hpa_metrics(component: Component) -> Iterator[Fault]:
    """Without the class annotation the webhook does not look, and the metric is left out."""
    if not _uses_hpa(component):
        return
    for metric in component.metrics:
        kind = metric["type"].text()
        if kind != "Resource":
            yield Fault(
                metric["type"],
                f"KServe's HPA has metrics of type Resource, and this is {metric['type'].show()}",
                "use Resource, or set the annotation serving.kserve.io/autoscalerClass: keda",
            )
        elif not metric["resource"].exists:
            yield Fault(metric, "resource is missing", "write resource.name and resource.target")


@rule(
    "keda-metrics",
    "error",
    "fails",
    "KEDA has no metric, or one without query, target or the right type",
    f"{_VALIDATION} validateScalingKedaCompExtension; KEDA refuses a ScaledObject without triggers",
    Component,
)
def check_keda_metrics(component: Component) -> Iterator[Fault]:
    """Targets of queries are values, of CPU a utilization."""
    if component.service.mode != "Standard" or "keda" not in component.checked_scalers:
        return
    if not component.metrics and component.scaler == "keda":
        yield Fault(
            component.field.at("autoScaling", "metrics"),
            "KEDA has nothing to scale by",
            "write autoScaling.metrics, or use another autoscalerClass",
        )
    for metric in component.metrics:
        kind = metric["type"].text()
        if kind == "Resource":
            yield from _check_keda_resource(metric)
        elif kind in ("External", "PodMetric"):
            name = "external" if kind == "External" else "podmetric"
            if not metric[name].exists:
                yield Fault(metric, f"{name} is missing", f"write {name}.metric and {name}.target")
                continue
            if not metric[name].at("metric", "query").text():
                yield Fault(metric[name].at("metric", "query"), "the query is missing", "write it")
            if not metric[name].at("target", "value").exists:
                yield Fault(
                    metric[name].at("target", "value"), "the threshold is missing", "write target.type and target.value"
                )
            else:
                yield from _check_target(metric[name]["target"])
        else:
            seen = metric["type"].show()
            yield Fault(metric["type"], f"the type is {seen}", "write Resource, External or PodMetric")


def _check_keda_resource(metric: Field) -> Iterator[Fault]:
    resource = metric["resource"]
    if not resource.exists:
        yield Fault(metric, "resource is missing", "write resource.name and resource.target")
        return
    name, kind = resource["name"].text(), resource.at("target", "type")
    if name not in ("cpu", "memory"):
        yield Fault(resource["name"], f"the resource is {resource['name'].show()}", "write cpu or memory")
        return
    allowed = ("Utilization",) if name == "cpu" else ("Utilization", "AverageValue")
    if kind.text() not in allowed:
        yield Fault(kind, f"the target's type is {kind.show()}", f"write {' or '.join(allowed)}")
        return
    amount = resource.at("target", "averageValue").quantity()
    if kind.text() == "AverageValue" and amount is not None and amount < _LEAST_MEMORY:
        yield Fault(resource.at("target", "averageValue"), "the target is below 1Mi", "write 1Mi or more")
    yield from _check_target(resource["target"])


def _check_target(target: Field) -> Iterator[Fault]:
    needed = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}
    name = needed.get(target["type"].text() or "")
    if name is None:
        return
    if not target[name].exists:
        yield Fault(target, f"{name} is missing", f"write it, or another type than {target['type'].text()}")
    elif name == "averageUtilization" and not 1 <= (target[name].whole() or 0) <= 100:
        yield Fault(target[name], f"a utilization is a percentage, and this is {target[name].show()}", "write 1 to 100")


@rule(
    "deployment-strategy-for-mode",
    "error",
    "fails",
    "deploymentStrategy in another mode than Standard",
    f"{_VALIDATION} validateScalingKPACompExtension",
    Component,
)
def check_deployment_strategy(component: Component) -> Iterator[Fault]:
    """Knative rolls revisions out by traffic."""
    if _uses_kpa(component):
        field = component.field["deploymentStrategy"]
        if field.exists:
            yield Fault(field, f"KServe refuses it in {component.service.mode} mode", "remove it, or use Standard mode")


@rule(
    "scaling-ignored",
    "warning",
    "fails",
    "A scaling field that nothing reads in this mode",
    "KServe ksvc_reconciler.go, hpa_reconciler.go, autoscaler_reconciler.go",
    Component,
)
def check_scaling_ignored(component: Component) -> Iterator[Fault]:
    """KServe accepts it, and it does nothing."""
    field, mode = component.field, component.service.mode
    if mode == "Knative" and field["autoScaling"].exists:
        yield Fault(
            field["autoScaling"],
            "Knative mode does not read autoScaling",
            "write scaleMetric and scaleTarget, or use Standard mode",
        )
    if mode != "Standard":
        return
    if component.scaler in ("none", "external"):
        for name in ("scaleMetric", "scaleTarget", "autoScaling"):
            if field[name].exists:
                yield Fault(
                    field[name],
                    f"nothing reads {name} with autoscalerClass {component.scaler}",
                    "remove it, or use hpa or keda",
                )
    elif component.scaler == "hpa" and field["autoScaling"]["behavior"].exists:
        yield Fault(
            field["autoScaling"]["behavior"],
            "KServe's HPA does not get behavior",
            "remove it, or use autoscalerClass external with an HPA of your own",
        )
    elif component.scaler == "keda" and field["scaleTarget"].exists:
        yield Fault(field["scaleTarget"], "KEDA does not read scaleTarget", "write the target in autoScaling.metrics")


@rule(
    "scale-to-zero-ignored",
    "warning",
    "availability",
    "minReplicas of 0 means another thing in this mode: 1 with an HPA, and off for good without an autoscaler",
    "KServe hpa_reconciler.go createHPA, deployment_reconciler.go",
    Component,
)
def check_scale_to_zero(component: Component) -> Iterator[Fault]:
    """Only Knative wakes up on a request."""
    if component.service.mode != "Standard" or component.least != 0 or component.service.stopped:
        return
    field = component.field["minReplicas"]
    if component.scaler == "hpa":
        yield Fault(field, "KServe's HPA keeps at least 1 replica", "write minReplicas: 1 or more, or use Knative mode")
    elif component.scaler == "none":
        yield Fault(
            field,
            "nothing ever starts a replica, and the service does not get ready",
            'write minReplicas: 1 or more; to switch it off, set serving.kserve.io/stop: "true"',
        )


@rule(
    "keda-scale-to-zero",
    "warning",
    "availability",
    "KEDA scales a Standard service to zero, where requests are not held until a replica is there",
    "KServe documentation, KEDA autoscaling: scale from zero is unsupported for HTTP",
    Component,
)
def check_keda_scale_to_zero(component: Component) -> Iterator[Fault]:
    """The first requests after a pause fail."""
    if component.service.mode == "Standard" and component.scaler == "keda" and component.least == 0:
        yield Fault(
            component.field["minReplicas"],
            "no proxy holds requests while the first replica starts, so they fail",
            "write minReplicas: 1 or more, or use Knative mode",
        )


def _uses_hpa(component: Component) -> bool:
    mode = component.service.mode
    return (mode == "Standard" and "hpa" in component.checked_scalers) or (mode in _COUNTING and component.knative_hpa)


def _uses_kpa(component: Component) -> bool:
    return component.service.mode in _COUNTING and not component.knative_hpa
