"""What KServe's webhook and controllers refuse in an InferenceService."""

import re
from collections.abc import Iterator

from mlflywheel.lint.fields import Field, show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import (
    AUTOSCALER_CLASS,
    DEPLOYMENT_MODE,
    FRAMEWORKS,
    GPU_TYPES,
    KSERVE_GROUP,
    LEGACY_MODES,
    MAIN_CONTAINER,
    MODES,
    TRANSFORMER_CONTAINER,
    Component,
    Container,
    Manifest,
    Manifests,
    Runtime,
    Service,
    read_scheme,
    single_uri,
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
#: What the CRD fills in.
_MODEL_FOLDER = "/mnt/models"
_BASIC_RESOURCES = ("cpu", "memory", "storage", "ephemeral-storage")
_WORKER_CONTAINER = "worker-container"
_AGENT_PREFIXES = ("s3://", "gs://", "https://", "http://")
_GPU = "nvidia.com/gpu"
_MIG_PREFIX = "nvidia.com/mig"
#: Frameworks whose storage KServe checks.
_CHECKED_STORAGE = ("art", "huggingface", "onnx", "pmml", "pytorch", "tensorflow")
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
    if service.manifest.annotation(DEPLOYMENT_MODE) is None:
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
    if written is not None and written not in (*MODES, *LEGACY_MODES):
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
    fields = [service.manifest.annotations[AUTOSCALER_CLASS]] if _is_named(service) else []
    fields += [found for one in service.components if (found := one.field["annotations"][AUTOSCALER_CLASS]).exists]
    for field in fields:
        if field.value is None or field.text() not in (None, *_SCALERS):
            yield Fault(
                field, f"the class {field.show()} is refused", f"write one of {', '.join(_SCALERS)}, or remove it"
            )


def _is_named(service: Service) -> bool:
    return service.manifest.annotation(AUTOSCALER_CLASS) is not None


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
    single = single_uri(component)
    if single is not None:
        yield Fault(entries, "storageUri and storageUris are both set", "keep one of them")
    paths: dict[bool, list[str]] = {False: [], True: []}
    for entry in entries.items():
        uri, mount = entry["uri"].text(), entry["mountPath"]
        if not uri:
            yield Fault(entry["uri"], "the URI is missing", "write uri")
        path = _MODEL_FOLDER if mount.value is None else mount.text()
        if path is None:
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
    containers = service.predictor.field["containers"].items()
    if len(containers) == 1 and service.predictor.model is None:
        # Whatever it is called, KServe makes it the predictor's.
        return
    for container in containers:
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
        single = single_uri(component)
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
    "framework-field",
    "error",
    "fails",
    "A field such as onnx or tensorflow in a canary or in ModelMesh mode, or art, which KServe checks as such",
    "KServe predictor_onnxruntime.go, predictor_tfserving.go, predictor_torchserve.go Validate; component.go "
    "validateStorageSpec",
    Service,
)
def check_framework_field(service: Service) -> Iterator[Fault]:
    """Elsewhere KServe makes `model` of it first, which it does not check so."""
    checked = [service.predictor] if service.mode == "ModelMesh" else []
    checked += service.canaries
    checked += [component for component in service.components if component.kind == "explainer"]
    for component in checked:
        field = component.model
        if field is None or field.path[-1] == "model":
            continue
        name, uri = field.path[-1], field["storageUri"].text()
        extension = re.search(r"\.[^./]*$", uri or "")
        if name == "onnx" and extension is not None and extension[0] != ".onnx":
            yield Fault(field["storageUri"], f"the file ends in {extension[0][:20]}", "name a file that ends in .onnx")
        version = field["runtimeVersion"].text()
        if name in ("tensorflow", "pytorch") and version is not None:
            # KServe looks at limits only.
            limits = [resource for resource, _ in field.at("resources", "limits").entries()]
            has_gpu = any(resource == _GPU or resource.startswith(_MIG_PREFIX) for resource in limits)
            if has_gpu is not ("-gpu" in version):
                seen = "a GPU and a runtimeVersion without" if has_gpu else "no GPU and a runtimeVersion with"
                yield Fault(field["runtimeVersion"], f"{seen} -gpu", "let both be for a GPU, or neither")
        if name in _CHECKED_STORAGE and field["storage"].exists:
            kind = field.at("storage", "parameters", "type").text()
            written = uri if uri is not None else None if kind is None else f"{kind}://"
            if written is not None and not written.startswith(("s3://", "hdfs://", "webhdfs://")):
                yield Fault(field["storage"], f"storage has the address {show(written)}", "use s3, hdfs or webhdfs")


@rule(
    "trained-model-uri",
    "error",
    "fails",
    "The address of a TrainedModel is none that KServe's agent reads",
    "KServe trainedmodel_webhook.go validateStorageURI",
    Manifest,
)
def check_trained_model_uri(manifest: Manifest) -> Iterator[Fault]:
    """The agent reads fewer schemes than the storage initializer."""
    if manifest.group == KSERVE_GROUP and manifest.kind == "TrainedModel":
        field = manifest.root.at("spec", "model", "storageUri")
        if not (field.text() or "").startswith(_AGENT_PREFIXES):
            yield Fault(field, f"the URI is {field.show()}", f"write one with {', '.join(_AGENT_PREFIXES)}")


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
        # In ModelMesh mode KServe does not make a model of a framework's field.
        model = predictor.field["model"] if predictor.service.mode == "ModelMesh" else predictor.model
        if model is None or not model.exists:
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
            if not runtime.field["workerSpec"]["containers"].items():
                yield Fault(runtime.field["workerSpec"], "the worker has no container", "write one")
            if runtime.main is not None:
                yield from _check_parallel_env(runtime.main)
                yield from _check_accelerators(runtime, runtime.main)


def _check_workers(owner: Component | Runtime) -> Iterator[Fault]:
    workers = owner.field["workerSpec"]
    # The webhook reads the list only where it compares resources with it.
    compares = isinstance(owner, Runtime) or owner.model is not None or workers["containers"].items()
    if owner.custom_gpu_names is None and compares:
        yield Fault(
            owner.gpu_list,
            f"the list of GPUs is {owner.gpu_list.show()}",
            "write a JSON list of at least one name, such as '[\"example.com/gpu\"]'",
        )
    if len(workers["containers"].items()) > 1:
        yield Fault(workers["containers"], "a worker has several containers", "keep one")
    for name in ("pipelineParallelSize", "tensorParallelSize"):
        size = workers[name].whole()
        if size is not None and size < 1:
            yield Fault(workers[name], f"{name} is {size}", "write 1 or more")
    for container in workers["containers"].items():
        # Of a runtime the webhook looks at that container alone.
        if isinstance(owner, Component) or container["name"].text() == _WORKER_CONTAINER:
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
                    f"list it in the annotation {GPU_TYPES}, as a JSON list",
                )
