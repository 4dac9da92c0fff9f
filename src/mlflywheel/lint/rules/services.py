"""What KServe's webhook and controllers refuse in an InferenceService."""

import re
from collections.abc import Iterator

from mlflywheel.lint.fields import Field, show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import (
    AUTOSCALER_CLASS,
    DEPLOYMENT_MODE,
    FRAMEWORKS,
    LEGACY_MODES,
    MAIN_CONTAINER,
    MODES,
    TRANSFORMER_CONTAINER,
    Component,
    Container,
    Manifests,
    Runtime,
    Service,
    read_scheme,
)

_VALIDATION = "KServe inference_service_validation.go"
_SCALERS = ("hpa", "keda", "external", "none")
_KBS = re.compile(r"kbs:///[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+", re.ASCII)
#: Of the controller, and of the ClusterStorageContainer that KServe installs.
_SCHEMES = (
    "file",
    "gs",
    "hdfs",
    "hf",
    "http",
    "https",
    "modelscope",
    "oci",
    "oci+fetch",
    "oci+native",
    "pvc",
    "s3",
    "webhdfs",
)
_BASIC_RESOURCES = ("cpu", "memory", "storage", "ephemeral-storage")
_AZURE = re.compile(r"https://.+\.blob\.core\.windows\.net/.+")


@rule(
    "deployment-mode-missing",
    "warning",
    "fails",
    "No annotation says the deployment mode, and installations of KServe have different defaults",
    "KServe config/configmap/inferenceservice.yaml, utils.go GetDeploymentMode",
    Service,
)
def check_deployment_mode_missing(service: Service) -> Iterator[Fault]:
    """Rules that depend on the mode are not applied then."""
    if not service.manifest.annotation(DEPLOYMENT_MODE):
        yield Fault(
            service.manifest.annotations[DEPLOYMENT_MODE],
            "the mode is the cluster's default, Standard in some installations and Knative in others, and it cannot be "
            "changed later; rules that depend on it were not applied",
            f"write the annotation {DEPLOYMENT_MODE}: Standard, or Knative",
        )


@rule(
    "deployment-mode-legacy",
    "note",
    "fails",
    "The deployment mode has its old name",
    "KServe constants.go ParseDeploymentMode",
    Service,
)
def check_deployment_mode_legacy(service: Service) -> Iterator[Fault]:
    """The webhook rewrites it, so that the cluster's object differs from the file."""
    written = service.manifest.annotation(DEPLOYMENT_MODE) or ""
    if written in LEGACY_MODES:
        yield Fault(
            service.manifest.annotations[DEPLOYMENT_MODE],
            f"{written} is the old name of {LEGACY_MODES[written]}, and KServe rewrites it",
            f"write {LEGACY_MODES[written]}",
        )


@rule(
    "deployment-mode-unknown",
    "error",
    "fails",
    "The deployment mode is none that KServe knows",
    "KServe utils.go GetDeploymentMode",
    Service,
)
def check_deployment_mode_unknown(service: Service) -> Iterator[Fault]:
    """The controller takes the default without a word, and later updates are refused."""
    written = service.manifest.annotation(DEPLOYMENT_MODE)
    if written and written not in (*MODES, *LEGACY_MODES):
        yield Fault(
            service.manifest.annotations[DEPLOYMENT_MODE],
            f"KServe does not know the mode {show(written)}; it takes the cluster's default and then refuses updates",
            f"write one of {', '.join(MODES)}; case matters",
        )


@rule(
    "autoscaler-class",
    "error",
    "fails",
    "The autoscaler's class is none that KServe knows",
    f"{_VALIDATION} validateInferenceServiceAutoscaler",
    Service,
)
def check_autoscaler_class(service: Service) -> Iterator[Fault]:
    """The class kpa is a constant of KServe that its webhook refuses."""
    places = [service.manifest.annotations, *(component.field["annotations"] for component in service.components)]
    for place in places:
        field = place[AUTOSCALER_CLASS]
        if field.exists and field.text() not in (None, *_SCALERS):
            yield Fault(
                field, f"the class {field.show()} is refused", f"write one of {', '.join(_SCALERS)}, or remove it"
            )


@rule(
    "blocked-env",
    "error",
    "fails",
    "A container sets PYTHONPATH",
    "KServe pkg/validation/env_policy.go",
    Container,
)
def check_blocked_env(container: Container) -> Iterator[Fault]:
    """KServe's webhooks refuse it in services and runtimes, since it could load other code."""
    if isinstance(container.owner, Component | Runtime):
        for entry in container.own["env"].items():
            if entry["name"].text() == "PYTHONPATH":
                yield Fault(
                    entry, f"{container.label} sets PYTHONPATH, which KServe refuses", "set it in the image instead"
                )


@rule(
    "one-implementation",
    "error",
    "fails",
    "A component has no implementation, or more than one",
    f"{_VALIDATION} validateExactlyOneImplementation",
    Service,
)
def check_one_implementation(service: Service) -> Iterator[Fault]:
    """Of model, the frameworks, and a container named kserve-container."""
    for component in [*service.components, *service.canaries]:
        found = component.implementations
        if len(found) == 1:
            continue
        if component.kind == "transformer":
            needed = "containers with one container"
        elif component.kind == "explainer":
            needed = "one of art and containers"
        else:
            needed = f"one of model, {', '.join(FRAMEWORKS)}, or a container named {MAIN_CONTAINER}"
        seen = "nothing implements it" if not found else f"{len(found)} things implement it"
        yield Fault(component.field, seen, f"write {needed}")


@rule(
    "model-name-set",
    "error",
    "fails",
    "A predictor's model has a container name",
    f"{_VALIDATION} validatePredictor",
    Component,
)
def check_model_name_set(component: Component) -> Iterator[Fault]:
    """The container of a runtime has its name already."""
    if component.kind == "predictor" and component.model is not None and component.model["name"].text():
        yield Fault(
            component.model["name"],
            "name would rename the runtime's container, which KServe refuses",
            "remove it; the model is called after the InferenceService, or by --model_name among args",
        )


@rule(
    "logger", "error", "fails", "A logger lacks what the webhook needs", "KServe component.go validateLogger", Service
)
def check_logger(service: Service) -> Iterator[Fault]:
    """The mode is optional in the CRD and needed by the webhook."""
    for component in [*service.components, *service.canaries]:
        logger = component.field["logger"]
        if not logger.exists:
            continue
        if logger["mode"].text() not in ("all", "request", "response"):
            seen = logger["mode"].show()
            yield Fault(logger["mode"], f"the mode is {seen}", "write mode: all, request or response")
        storage = logger["storage"]
        missing = [name for name in ("path", "parameters", "key") if storage.exists and not storage[name].exists]
        if missing:
            yield Fault(storage, f"{', '.join(missing)} is missing", "write path, parameters and key")


@rule(
    "protocol-env",
    "error",
    "fails",
    "A custom predictor sets PROTOCOL to something else than v1 or v2",
    "KServe predictor_custom.go validateCustomProtocol",
    Service,
)
def check_protocol_env(service: Service) -> Iterator[Fault]:
    """Only the first container is looked at, and only its first PROTOCOL."""
    for component in [service.predictor, *service.canaries]:
        if component.model is not None:
            continue
        for container in component.field["containers"].items()[:1]:
            entries = [entry for entry in container["env"].items() if entry["name"].text() == "PROTOCOL"]
            for entry in entries[:1]:
                if entry["value"].text() not in ("v1", "v2"):
                    yield Fault(
                        entry,
                        f"PROTOCOL is {entry['value'].show()}, and KServe takes v1 or v2",
                        "write v1 or v2; gRPC is told by the port's name, h2c",
                    )


@rule(
    "storage-uris",
    "error",
    "fails",
    "storageUris contradicts storageUri, or its mount paths cannot be mounted",
    f"{_VALIDATION} validateMultipleStorageURIs",
    Component,
)
def check_storage_uris(component: Component) -> Iterator[Fault]:
    """Paths are absolute, without '..', and share a folder below the root."""
    entries = component.field["storageUris"]
    if not entries.exists:
        return
    single = _single_uri(component)
    if single is not None:
        yield Fault(entries, "storageUri and storageUris are both set", "keep one of them")
    paths: dict[bool, list[str]] = {False: [], True: []}
    for entry in entries.items():
        uri, mount = entry["uri"].text(), entry["mountPath"]
        if not uri:
            yield Fault(entry["uri"], "the URI is missing", "write uri")
        path = mount.text()
        if path is None:
            # The CRD fills in KServe's own folder.
            continue
        if path == "/" or not path.startswith("/") or ".." in path:
            yield Fault(
                mount, f"the mount path is {show(path)}", "write an absolute path below the root, with no part '..'"
            )
        else:
            paths[(uri or "").startswith("pvc://")].append(path)
    if len(set(paths[True])) < len(paths[True]):
        yield Fault(entries, "two claims are mounted at one path", "give each claim a path of its own")
    if len(paths[False]) > 1 and len({path.strip("/").split("/")[0] for path in paths[False]}) > 1:
        yield Fault(
            entries,
            f"{', '.join(path[:60] for path in paths[False][:4])} share no folder, and they are one volume",
            "mount them below one folder",
        )


def _single_uri(component: Component) -> Field | None:
    if component.model is not None:
        field = component.model["storageUri"]
        return field if field.exists else None
    entries = component.field["containers"].items()
    if component.kind in ("predictor", "canary"):
        entries = [entry for entry in entries if entry["name"].text() == MAIN_CONTAINER]
    for container in entries[:1]:
        for variable in container["env"].items():
            if variable["name"].text() == "STORAGE_URI" and variable["value"].exists:
                return variable["value"]
    return None


@rule(
    "transformer-storage-uri",
    "error",
    "fails",
    "A transformer beside the predictor sets STORAGE_URI",
    f"{_VALIDATION} validateCollocationStorageURI",
    Service,
)
def check_transformer_storage_uri(service: Service) -> Iterator[Fault]:
    """The model is mounted for the predictor only."""
    for container in service.predictor.field["containers"].items():
        if container["name"].text() == TRANSFORMER_CONTAINER:
            for entry in container["env"].items():
                if entry["name"].text() == "STORAGE_URI":
                    yield Fault(entry, "KServe refuses STORAGE_URI in transformer-container", "remove it")


@rule(
    "storage-scheme",
    "error",
    "fails",
    "A storage URI has a scheme that no storage initializer reads",
    "KServe controller utils.go ValidateStorageURI",
    Service,
)
def check_storage_scheme(service: Service) -> Iterator[Fault]:
    """The webhook lets it pass, and the service never gets ready."""
    for field, scheme in _list_uris(service):
        if scheme not in _SCHEMES and scheme != "model-registry":
            yield Fault(
                field,
                f"KServe reads no {scheme[:40]}://, unless a ClusterStorageContainer does",
                f"use one of {', '.join(_SCHEMES)}, or lint with the ClusterStorageContainer that reads it",
            )
        elif ".blob.core.windows.net" in (field.text() or "") and not _AZURE.fullmatch(field.text() or ""):
            yield Fault(field, "an Azure blob is https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH", "write it so")


@rule(
    "model-registry-uri",
    "note",
    "fails",
    "model-registry:// works only where a ClusterStorageContainer reads it",
    "Kubeflow Model Registry, custom storage initializer",
    Service,
)
def check_model_registry_uri(service: Service) -> Iterator[Fault]:
    """KServe itself does not know the registry."""
    for field, scheme in _list_uris(service):
        if scheme == "model-registry":
            yield Fault(
                field,
                "KServe itself does not read model-registry://",
                "make sure that the cluster has the registry's ClusterStorageContainer, or write the model's own URI",
            )


def _list_uris(service: Service) -> Iterator[tuple[Field, str]]:
    for component in [*service.components, *service.canaries]:
        if component.field["storageContainerName"].exists:
            continue
        single = _single_uri(component)
        fields = [single] if single is not None else []
        fields += [entry["uri"] for entry in component.field["storageUris"].items()]
        for field in fields:
            scheme = read_scheme(field.text() or "")
            if scheme is not None and not _is_read(scheme, field.text() or "", service.manifests):
                yield field, scheme


def _is_read(scheme: str, uri: str, manifests: Manifests) -> bool:
    """Whether a ClusterStorageContainer of the set reads a URI; patterns are compared by their scheme."""
    for container in manifests.storage_containers:
        for entry in container.root.at("spec", "supportedUriFormats").items():
            prefix, pattern = entry["prefix"].text(), entry["regex"].text()
            if (prefix and uri.startswith(prefix)) or (pattern and ("://" not in pattern or f"{scheme}://" in pattern)):
                return True
    return False


@rule(
    "confidential",
    "error",
    "fails",
    "Confidential serving lacks its storageUri, or has a malformed resourceId",
    "KServe pkg/validation/confidential.go",
    Component,
)
def check_confidential(component: Component) -> Iterator[Fault]:
    """The key's address has three parts."""
    if component.kind != "predictor" or component.model is None:
        return
    confidential = component.model["confidential"]
    if confidential["enabled"].flag() is not True:
        return
    if not component.model["storageUri"].text():
        yield Fault(confidential, "storageUri is missing", "write storageUri beside it")
    resource = confidential["resourceId"].text()
    if resource and not _KBS.fullmatch(resource):
        yield Fault(
            confidential["resourceId"],
            f"resourceId is {show(resource)}",
            "write kbs:///REPOSITORY/TYPE/TAG, without a query",
        )


@rule(
    "multi-node",
    "error",
    "fails",
    "A predictor or runtime with workers breaks a rule of multi-node serving",
    f"{_VALIDATION} validateMultiNodeVariables, servingruntime_webhook.go validateMultiNodeSpec",
    Manifests,
)
def check_multi_node(manifests: Manifests) -> Iterator[Fault]:
    """Storage is a claim or an OCI image, and nothing scales it."""
    predictors = [service.predictor for service in manifests.services if service.predictor.field["workerSpec"].exists]
    for predictor in predictors:
        yield from _check_workers(predictor)
        model = predictor.field["model"]
        if not model.exists:
            continue
        yield from _check_parallel_env(model)
        yield from _check_accelerators(predictor, model)
        uri = model["storageUri"].text()
        if uri is None or uri.split("://")[0] not in ("pvc", "oci"):
            yield Fault(
                model["storageUri"],
                f"the URI is {show(uri)}, and several nodes need pvc:// or oci://",
                "use a claim that many nodes can mount, or an OCI image",
            )
        if predictor.manifest.annotation(AUTOSCALER_CLASS) != "none":
            yield Fault(
                predictor.manifest.annotations[AUTOSCALER_CLASS],
                "several nodes are served without an autoscaler",
                f"write the annotation {AUTOSCALER_CLASS}: none",
            )
    for runtime in manifests.runtimes:
        if runtime.multi_node and not runtime.disabled:
            yield from _check_workers(runtime)
            if runtime.main is not None:
                yield from _check_parallel_env(runtime.main)
                yield from _check_accelerators(runtime, runtime.main)


def _check_workers(owner: Component | Runtime) -> Iterator[Fault]:
    workers = owner.field["workerSpec"]
    if len(workers["containers"].items()) > 1:
        yield Fault(workers["containers"], "a worker has several containers", "keep one")
    for name in ("pipelineParallelSize", "tensorParallelSize"):
        size = workers[name].whole()
        if size is not None and size < 1:
            yield Fault(workers[name], f"{name} is {size}", "write 1 or more")
    for container in workers["containers"].items():
        yield from _check_accelerators(owner, container)


def _check_parallel_env(container: Field) -> Iterator[Fault]:
    for entry in container["env"].items():
        if entry["name"].text() in ("PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE"):
            yield Fault(entry, "KServe sets this variable itself", "write it in workerSpec instead")


def _check_accelerators(owner: Component | Runtime, container: Field) -> Iterator[Fault]:
    for which in ("limits", "requests"):
        for name, field in container["resources"][which].entries():
            if name not in (*_BASIC_RESOURCES, *owner.gpu_names):
                yield Fault(
                    field,
                    f"KServe takes {name[:63]} for a GPU that it does not know",
                    "list it in the annotation serving.kserve.io/gpu-resource-types, as a JSON list",
                )
