"""What holds for every object."""

import re
from collections.abc import Iterator

from mlflywheel.lint.fields import show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import KSERVE_GROUP, KSERVE_VERSIONS, Manifest, Manifests, Service

_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_NAMES = {"InferenceService": _NAME, "InferenceGraph": _NAME, "TrainedModel": "[a-zA-Z0-9_-]+"}
_LONGEST_LABEL = 63


@rule(
    "api-version",
    "error",
    "fails",
    "A KServe object has an apiVersion in which its kind does not exist",
    "KServe config/crd",
    Manifest,
)
def check_api_version(manifest: Manifest) -> Iterator[Fault]:
    """A kind in another group is none of KServe's."""
    needed = KSERVE_VERSIONS.get(manifest.kind)
    if needed and manifest.group == KSERVE_GROUP and manifest.api_version.partition("/")[2] not in needed:
        seen = show(manifest.api_version)
        yield Fault(
            manifest.root["apiVersion"],
            f"apiVersion is {seen}, and {manifest.kind} is served in {KSERVE_GROUP}/{needed[0]}",
            f"write apiVersion: {KSERVE_GROUP}/{needed[0]}",
        )


@rule("object-name", "error", "fails", "An object has neither name nor generateName", "Kubernetes API", Manifest)
def check_object_name(manifest: Manifest) -> Iterator[Fault]:
    """The API server refuses it."""
    if not manifest.name and not manifest.metadata["generateName"].text():
        yield Fault(manifest.metadata["name"], "the object has no name", "write metadata.name")


@rule(
    "duplicate-object",
    "warning",
    "fails",
    "Two objects of one kind, namespace and name; the last one applied wins",
    "kubectl apply",
    Manifests,
)
def check_duplicate_objects(manifests: Manifests) -> Iterator[Fault]:
    """Also a hint that several renderings are linted as one."""
    first: dict[tuple[str, str, str, str], Manifest] = {}
    for manifest in manifests.objects:
        known = first.setdefault((manifest.group, manifest.kind, manifest.namespace, manifest.name), manifest)
        if known is not manifest and manifest.name:
            yield Fault(
                manifest.metadata["name"],
                f"the same object stands in {known.document.file}, line {known.line or 1}",
                "remove one, or lint one rendering at a time",
            )


@rule(
    "service-name",
    "error",
    "fails",
    "The name of an InferenceService or InferenceGraph is not lower-case letters, digits and '-', from a letter on, or "
    "that of a TrainedModel has a dot",
    "KServe inference_service_validation.go, inference_graph_validation.go, trainedmodel_webhook.go",
    Manifest,
)
def check_service_name(manifest: Manifest) -> Iterator[Fault]:
    """KServe's webhook refuses it; Kubernetes itself would allow digits and dots."""
    pattern = _NAMES.get(manifest.kind) if manifest.group == KSERVE_GROUP else None
    field = manifest.metadata["name" if manifest.name else "generateName"]
    prefix = field.text()
    # The API server puts letters and digits behind generateName.
    name = manifest.name or (prefix and f"{prefix}x")
    if pattern and name and not re.fullmatch(pattern, name, re.ASCII):
        yield Fault(
            field,
            f"the name is {field.show()}, and KServe takes {pattern}",
            "use lower-case letters, digits and '-', from a letter on",
        )


@rule(
    "service-name-length",
    "error",
    "fails",
    "A name is too long for the label or Service that KServe makes of it",
    "KServe constants.go GetRawServiceLabel; labels have at most 63 characters",
    Service,
)
def check_service_name_length(service: Service) -> Iterator[Fault]:
    """KServe's webhook lets it pass; the Deployment or Knative Service is then refused."""
    prefix = "isvc." if service.mode == "Standard" else ""
    for component in [*service.components, *service.canaries]:
        label = f"{prefix}{component.workload_name}"
        if service.mode in ("Standard", "Knative") and len(label) > _LONGEST_LABEL and service.manifest.name:
            yield Fault(
                service.manifest.metadata["name"],
                f"KServe makes a name of {len(label)} characters of it, {label[:80]}, and {_LONGEST_LABEL} are allowed",
                f"shorten it by {len(label) - _LONGEST_LABEL}",
            )
