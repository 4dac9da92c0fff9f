"""Canaries: one field in Knative mode, another in Standard mode."""

from collections.abc import Iterator

from mlflywheel.lint.fields import show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Service, single_uri

_VALIDATION = "KServe inference_service_validation.go validateCanarySpecs"


@rule(
    "canary-field-for-mode",
    "error",
    "fails",
    "The canary field of the other mode: canaryTrafficPercent in Standard is ignored without a word, "
    "spec.canary in Knative is refused",
    f"KServe ksvc_reconciler.go; {_VALIDATION}",
    Service,
)
def check_canary_field(service: Service) -> Iterator[Fault]:
    """The worst case sends all traffic to what was meant for a part of it."""
    canaries = service.spec["canary"]
    for component in service.components:
        percent = component.field["canaryTrafficPercent"]
        if percent.exists and (service.mode == "Standard" or (service.mode is None and canaries.items())):
            yield Fault(
                percent,
                "only Knative mode reads canaryTrafficPercent; in Standard mode all traffic goes to the new version",
                "remove it, and describe the canary in spec.canary[] with trafficPercent",
            )
    if canaries.items() and service.mode not in (None, "Standard"):
        yield Fault(
            canaries,
            f"spec.canary is refused in {service.mode} mode",
            "use predictor.canaryTrafficPercent, or Standard mode",
        )


@rule(
    "canary-percent",
    "error",
    "fails",
    "A share of traffic is outside 0 to 100, or the shares are more than 100",
    f"{_VALIDATION}; Knative for canaryTrafficPercent, which KServe does not check",
    Service,
)
def check_canary_percent(service: Service) -> Iterator[Fault]:
    """The rest goes to the stable predictor."""
    total = 0
    fields = [component.field["canaryTrafficPercent"] for component in service.components]
    entries = service.spec["canary"].items()
    fields += [entry["trafficPercent"] for entry in entries]
    for field in fields:
        percent = field.whole(64 if "canaryTrafficPercent" in field.path else 32)
        if percent is not None and not 0 <= percent <= 100:
            yield Fault(field, f"the share is {percent} percent", "write 0 to 100")
    total = sum(entry["trafficPercent"].whole() or 0 for entry in entries)
    if len(entries) > 1 and total > 100:
        yield Fault(service.spec["canary"], f"the shares are {total} percent together", "let them be at most 100")


@rule("canary-spec", "error", "fails", "An entry of spec.canary breaks a rule of the webhook", _VALIDATION, Service)
def check_canary_spec(service: Service) -> Iterator[Fault]:
    """A canary has a name of its own and a fixed number of replicas."""
    if not service.canaries:
        return
    if service.predictor.model is None and single_uri(service.predictor) is None:
        yield Fault(
            service.predictor.field,
            "a canary needs a stable predictor with a model",
            "write model, or the variable STORAGE_URI in its container",
        )
    stable = service.predictor.field["name"].text()
    names: set[str] = set()
    for canary in service.canaries:
        name = canary.field["name"].text()
        if not name:
            yield Fault(canary.field["name"], "the canary's predictor has no name", "write predictor.name")
        elif name == stable:
            yield Fault(canary.field["name"], f"the stable predictor is called {show(name)} too", "rename the canary")
        elif name in names:
            yield Fault(canary.field["name"], f"two canaries are called {show(name)}", "rename one of them")
        names.add(name or "")
        for field in ("workerSpec", "scaleTarget", "scaleMetric", "autoScaling", "maxReplicas"):
            found = canary.field[field]
            # A maximum of 0 is none.
            if found.exists and (field != "maxReplicas" or found.value != 0):
                yield Fault(
                    found, f"KServe refuses {field} in a canary", "remove it; a canary has minReplicas replicas"
                )
        least = canary.field["minReplicas"].whole(32)
        if least is not None and least > service.predictor.least:
            yield Fault(
                canary.field["minReplicas"],
                f"the canary has {least} replicas, and the stable predictor {service.predictor.least}",
                f"write at most {service.predictor.least}, or raise the predictor's minReplicas",
            )


@rule(
    "canary-with-keda",
    "warning",
    "availability",
    "With KEDA a canary gets a ScaledObject without triggers",
    "KServe components/predictor.go, keda_reconciler.go",
    Service,
)
def check_canary_with_keda(service: Service) -> Iterator[Fault]:
    """KServe's own tests use none."""
    if service.mode == "Standard" and service.canaries and service.predictor.scaler == "keda":
        yield Fault(
            service.spec["canary"],
            "KEDA gets no trigger for the canary's pods and reports an error",
            "use autoscalerClass none while the canary is there",
        )


@rule(
    "canary-without-replicas",
    "warning",
    "availability",
    "A canary with no traffic and no minReplicas has no replica, and never gets ready",
    "KServe components/predictor.go",
    Service,
)
def check_canary_without_replicas(service: Service) -> Iterator[Fault]:
    """The number of replicas is the share of the stable predictor's."""
    for canary, entry in zip(service.canaries, service.spec["canary"].items(), strict=True):
        percent, least = entry["trafficPercent"].whole() or 0, canary.field["minReplicas"].whole()
        if service.mode == "Standard" and (least == 0 or (percent == 0 and least is None)):
            yield Fault(
                canary.field["minReplicas"],
                f"{percent} percent of {service.predictor.least} replicas is none",
                "write minReplicas: 1",
            )


@rule(
    "canary-storage-uris",
    "warning",
    "availability",
    "storageUris of a canary is not initialised",
    "KServe components/predictor.go",
    Service,
)
def check_canary_storage_uris(service: Service) -> Iterator[Fault]:
    """The canary's pods start without their model."""
    for canary in service.canaries:
        if canary.field["storageUris"].exists:
            yield Fault(canary.field["storageUris"], "KServe does not fetch these for a canary", "write storageUri")
