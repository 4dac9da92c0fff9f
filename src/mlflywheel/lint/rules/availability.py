"""What stays up when a node, a zone or a pod goes."""

import re
from collections.abc import Iterator

from mlflywheel.lint.fields import Field, show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import (
    TRANSFORMER_CONTAINER,
    Budget,
    Component,
    Container,
    Selector,
    first_of,
)

_DEFAULT_GRACE_SECONDS = 30
_TAG = re.compile(r":([^/:@]+)$")


def _lasting(component: Component) -> bool:
    """Whether KServe keeps its replicas in Standard mode."""
    return component.service.mode == "Standard" and not component.service.stopped


@rule(
    "single-replica",
    "warning",
    "availability",
    "One replica in Standard mode: every node drain is an outage",
    "Kubernetes, disruptions",
    Component,
)
def check_single_replica(component: Component) -> Iterator[Fault]:
    """With autoscalerClass external something else keeps the number; 0 is another rule's."""
    if _lasting(component) and component.least == 1 and component.scaler != "external":
        field = component.field["minReplicas"]
        seen = "minReplicas is 1" if field.exists else "minReplicas is missing, which means 1"
        yield Fault(field, f"{seen}: draining its node is an outage", "write minReplicas: 2 or more")


@rule(
    "no-topology-spread",
    "warning",
    "availability",
    "Several replicas that nothing spreads over nodes or zones",
    "Kubernetes, topology spread constraints",
    Component,
)
def check_no_topology_spread(component: Component) -> Iterator[Fault]:
    """Pod anti-affinity spreads too."""
    if not _lasting(component) or component.least < 2:
        return
    field = first_of(component.pods, "topologySpreadConstraints")
    if not field.items() and not first_of(component.pods, "affinity", "podAntiAffinity").exists:
        yield Fault(
            field,
            f"all {component.least} replicas may run on one node",
            "add topologySpreadConstraints over topology.kubernetes.io/zone, with a labelSelector",
        )


@rule(
    "topology-spread-selector",
    "warning",
    "availability",
    "A topology spread constraint whose selector does not match the pods it stands in, so that it does nothing",
    "Kubernetes, topology spread constraints",
    Component,
)
def check_topology_spread_selector(component: Component) -> Iterator[Fault]:
    """A missing selector matches no pod."""
    if component.service.mode != "Standard":
        return
    labels = component.pod_labels
    for entry in first_of(component.pods, "topologySpreadConstraints").items():
        if not Selector(entry["labelSelector"]).matches(labels):
            yield Fault(
                entry["labelSelector"],
                "the selector matches none of the pods of this component, so nothing is spread",
                f"write matchLabels: {{app: {labels['app'][:80]}}}",
            )


@rule(
    "no-disruption-budget",
    "warning",
    "availability",
    "Several replicas without a PodDisruptionBudget in the set that selects them",
    "Kubernetes, disruptions",
    Component,
)
def check_no_disruption_budget(component: Component) -> Iterator[Fault]:
    """A drain may then take all of them at once."""
    if not _lasting(component) or component.least < 2:
        return
    if not any(component in budget.protected for budget in component.manifests.budgets):
        yield Fault(
            component.field,
            "no PodDisruptionBudget of these manifests selects its pods",
            f"add one with maxUnavailable: 1 and matchLabels: {{app: {component.pod_labels['app'][:80]}}}",
        )


@rule(
    "disruption-budget-blocks",
    "warning",
    "availability",
    "A PodDisruptionBudget that never allows an eviction, so that nodes cannot be drained",
    "Kubernetes, PodDisruptionBudget",
    Budget,
)
def check_disruption_budget_blocks(budget: Budget) -> Iterator[Fault]:
    """The percentage is rounded up."""
    unavailable, available = budget.spec["maxUnavailable"], budget.spec["minAvailable"]
    if unavailable.share(100) == 0:
        yield Fault(unavailable, "maxUnavailable is 0, so no pod may ever be evicted", "write maxUnavailable: 1")
        return
    for component in budget.protected:
        least = max(component.least, 1)
        needed = available.share(least)
        # With `external` the number of replicas is not the manifest's to know.
        if needed is not None and needed >= least and (component.scaler != "external" or available.value == "100%"):
            yield Fault(
                available,
                f"minAvailable is {available.show()}, and {component.manifest.title} runs as few as {least} pods, "
                "none of which may then be evicted",
                "write maxUnavailable: 1 instead, or more replicas",
            )


@rule(
    "no-readiness-probe",
    "warning",
    "availability",
    "A container that serves has no readiness probe of its own",
    "KServe deployment_reconciler.go setDefaultPodSpec",
    Container,
)
def check_no_readiness_probe(container: Container) -> Iterator[Fault]:
    """The default looks whether the port is open, not whether the model is loaded."""
    owner = container.owner
    serves = container.role == "main" or (
        container.role == "side" and container.own["name"].text() == TRANSFORMER_CONTAINER
    )
    written_here = container.origin == "template" or (container.origin == "alone" and isinstance(owner, Component))
    if serves and written_here and not container.first("readinessProbe").exists:
        yield Fault(
            container.own["readinessProbe"],
            f"{container.label} is ready as soon as its port is open, with or without a model",
            "add a readinessProbe with httpGet on the model's readiness, as /v2/models/NAME/ready",
        )


@rule(
    "moving-image-tag",
    "warning",
    "availability",
    "An image without a tag, or with the tag latest: replicas may run different code",
    "Kubernetes, images",
    Container,
)
def check_moving_image_tag(container: Container) -> Iterator[Fault]:
    """A digest does not move."""
    fields: list[Field] = [container.own["image"]]
    if isinstance(container.owner, Component) and container.owner.model is container.own:
        fields.append(container.own["runtimeVersion"])
    for field in fields:
        text = field.text()
        if not text or "@" in text:
            continue
        match = _TAG.search(text) if field.path[-1] == "image" else None
        tag = text if field.path[-1] == "runtimeVersion" else match.group(1) if match else "latest"
        if tag == "latest" or tag.startswith("latest-"):
            yield Fault(
                field,
                f"{show(text)} is another image tomorrow, and an old replica may run beside a new one",
                "write a version, or a digest",
            )


@rule(
    "grace-shorter-than-timeout",
    "warning",
    "availability",
    "Pods get less time to end than a request may take",
    "Kubernetes, termination of pods",
    Component,
)
def check_grace(component: Component) -> Iterator[Fault]:
    """Knative sets the grace period to the timeout itself."""
    timeout = component.field["timeout"].whole()
    if component.service.mode != "Standard" or timeout is None:
        return
    field = first_of(component.pods, "terminationGracePeriodSeconds")
    grace = field.whole()
    seconds = _DEFAULT_GRACE_SECONDS if grace is None else grace
    if seconds < timeout:
        seen = f"{seconds} s" if field.exists else f"{seconds} s, the default,"
        yield Fault(
            field,
            f"a request may take {timeout} s, and a pod that is replaced is killed after {seen}",
            f"write terminationGracePeriodSeconds: {min(timeout + 10, 2**31)}, or a shorter timeout",
        )
