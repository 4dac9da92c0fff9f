"""Objects of a set of manifests, and the views of them that rules look at.

Every view reads through `Field`, so that none of them fails on a document of the wrong shape.
"""

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

from mlflywheel.lint.documents import Document, find_line
from mlflywheel.lint.fields import Field, Path, format_path

KSERVE_GROUP = "serving.kserve.io"
KSERVE_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "InferenceService": ("v1beta1",),
    "ServingRuntime": ("v1alpha1",),
    "ClusterServingRuntime": ("v1alpha1",),
    "InferenceGraph": ("v1alpha1",),
    "TrainedModel": ("v1alpha1",),
    "ClusterStorageContainer": ("v1alpha1",),
}
DEPLOYMENT_MODE = f"{KSERVE_GROUP}/deploymentMode"
AUTOSCALER_CLASS = f"{KSERVE_GROUP}/autoscalerClass"
KNATIVE_CLASS = "autoscaling.knative.dev/class"
GPU_TYPES = f"{KSERVE_GROUP}/gpu-resource-types"
LEGACY_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
MODES = ("Standard", "Knative", "ModelMesh")
MAIN_CONTAINER = "kserve-container"
TRANSFORMER_CONTAINER = "transformer-container"
#: Predictor fields of the frameworks that KServe turns into `model`, each also the name of its model format.
FRAMEWORKS = (
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi")
_MIG_PREFIX = "nvidia.com/mig"
#: Where the pod spec of other workloads stands.
_POD_SPECS: Mapping[str, tuple[str, ...]] = {
    "Pod": ("spec",),
    "Deployment": ("spec", "template", "spec"),
    "StatefulSet": ("spec", "template", "spec"),
    "DaemonSet": ("spec", "template", "spec"),
    "ReplicaSet": ("spec", "template", "spec"),
    "Job": ("spec", "template", "spec"),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
}

ComponentKind = Literal["predictor", "transformer", "explainer", "canary"]


class Manifest:
    """One Kubernetes object.

    Attributes:
        document: Where it stands.
        value: The object itself.
        root: The object as a field.
        wrong: Fields of another type than a view needed, and what was needed.
    """

    def __init__(self, document: Document, value: Any, line: int | None) -> None:
        self.document = document
        self.value = value
        self.line = line
        self.wrong: dict[Path, str] = {}
        self.root = Field(self, (), value)
        self.api_version = self.root["apiVersion"].text() or ""
        self.kind = self.root["kind"].text() or ""
        self.metadata = self.root["metadata"]
        self.name = self.metadata["name"].text() or ""
        self.namespace = self.metadata["namespace"].text() or ""
        self.annotations = self.metadata["annotations"]

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def title(self) -> str:
        """Kind, namespace and name, as in `InferenceService team/ad-campaigns`."""
        # A name is a name only if it is short; anything else would flood the message.
        name = (self.name or self.metadata["generateName"].text() or "without a name")[:253]
        return f"{self.kind[:63]} {self.namespace[:63] + '/' if self.namespace else ''}{name}"

    def annotation(self, name: str) -> str | None:
        """Return an annotation's value; null is an empty one, as for Go."""
        field, written = self.annotations[name], self.annotations.value
        is_null = isinstance(written, Mapping) and name in written and not field.exists
        return "" if is_null else field.text()

    def find_line(self, path: Path) -> int | None:
        """Return the line of a field, or of the nearest one above it."""
        return find_line(self.value, path, self.line)

    def format_place(self, path: Path) -> str:
        """Return file, line, object and field as one text."""
        line = self.find_line(path)
        file = self.document.file if line is None else f"{self.document.file}:{line}"
        field = format_path(path)
        return f"{file}: {self.title}{', ' + field if field else ''}"

    def sees(self, other: "Manifest") -> bool:
        """Whether both are in one namespace; a missing one is whichever they are applied to."""
        return self.namespace == other.namespace or not self.namespace or not other.namespace


class Container:
    """A container as it will run: what it says itself, over what it inherits.

    Attributes:
        owner: The view that it belongs to.
        layers: What it is made of; the first layer wins.
        pods: Pod specs around it; the first wins.
        role: Place in its pod.
        origin: `template` is a runtime's, `model` is laid over a runtime's, `canary` over the stable predictor's,
            `alone` has nothing below it.
        resolved: Whether all layers are known.
    """

    def __init__(
        self,
        owner: "Component | Runtime | Workload",
        layers: Sequence[Field],
        pods: Sequence[Field],
        role: Literal["main", "side", "init"],
        origin: Literal["template", "model", "canary", "alone"],
        resolved: bool,
    ) -> None:
        self.owner = owner
        self.layers = layers
        self.pods = pods
        self.role = role
        self.origin = origin
        self.resolved = resolved

    @property
    def own(self) -> Field:
        """The container's own layer."""
        return self.layers[0]

    @property
    def label(self) -> str:
        """How messages call it."""
        name = self.own["name"].text()
        return f"the container {name[:63]}" if name else "the model's container"

    def first(self, *keys: str) -> Field:
        """Return a field of the first layer that has it, or the missing field of the own layer."""
        return first_of(self.layers, *keys)

    def resources(self, which: Literal["requests", "limits"]) -> dict[str, Field]:
        """Return quantities by resource; a lower layer's stay unless they are overridden."""
        found: dict[str, Field] = {}
        for layer in reversed(self.layers):
            found.update(layer["resources"][which].entries())
        return {name: field for name, field in found.items() if field.exists}

    def quantity(self, which: Literal["requests", "limits"], name: str) -> tuple[Field, Decimal] | None:
        """Return one quantity and where it stands."""
        field = self.resources(which).get(name)
        quantity = None if field is None else field.quantity()
        return None if field is None or quantity is None else (field, quantity)

    def ports(self) -> list[Field]:
        """Return the ports; layers are merged by number, as strategic merge does."""
        ports: dict[object, Field] = {}
        for layer in reversed(self.layers):
            for port in layer["ports"].items():
                ports[port["containerPort"].whole()] = port
        return list(ports.values())

    def security(self, name: str) -> Field:
        """Return a field of securityContext, the container's or else the pod's."""
        field = self.first("securityContext", name)
        return field if field.exists else first_of(self.pods, "securityContext", name)

    def gpus(self) -> list[tuple[Field, Decimal]]:
        """Return the GPU limits and requests above 0, limits first."""
        known = self.owner.gpu_names
        found = []
        for which in ("limits", "requests"):
            for name, field in self.resources(which).items():
                quantity = field.quantity() if name in known or name.startswith(_MIG_PREFIX) else None
                if quantity is not None and quantity > 0:
                    found.append((field, quantity))
        return found


def first_of(layers: Sequence[Field], *keys: str) -> Field:
    """Return a field of the first layer that has it, or the missing field of the first layer."""
    fields = [layer.at(*keys) for layer in layers]
    return next((field for field in fields if field.exists), fields[0])


class _Owner:
    """What has containers."""

    def __init__(self, manifest: Manifest, field: Field, manifests: "Manifests") -> None:
        self.manifest = manifest
        self.field = field
        self.manifests = manifests

    @cached_property
    def gpu_names(self) -> tuple[str, ...]:
        """Resource names that stand for GPUs, with those that an annotation adds."""
        return (*_GPUS, *(self.custom_gpu_names or ()))

    @property
    def gpu_list(self) -> Field:
        """The annotation that names further GPUs."""
        return self.manifest.annotations[GPU_TYPES]

    @cached_property
    def custom_gpu_names(self) -> tuple[str, ...] | None:
        """What that annotation adds; None if it is malformed."""
        text = self.gpu_list.text()
        if not text:
            return ()
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            return None
        valid = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
        return tuple(names) if valid else None


class Workload(_Owner):
    """A workload that is no KServe object: its pod spec."""

    @cached_property
    def containers(self) -> list[Container]:
        """The containers of its pod spec."""
        found = []
        for name, role in (("containers", "main"), ("initContainers", "init")):
            for field in self.field[name].items():
                found.append(
                    Container(self, [field], [self.field], "init" if role == "init" else "main", "alone", True)
                )
        return found


class Runtime(_Owner):
    """A ServingRuntime or ClusterServingRuntime."""

    @property
    def cluster_wide(self) -> bool:
        """Whether it serves every namespace."""
        return self.manifest.kind == "ClusterServingRuntime"

    @property
    def gpu_list(self) -> Field:
        """The annotation that names further GPUs, of its pods and not its own."""
        return self.field["annotations"][GPU_TYPES]

    @cached_property
    def disabled(self) -> bool:
        """Whether KServe passes it over."""
        return self.field["disabled"].flag() is True

    @cached_property
    def formats(self) -> list["Format"]:
        """The model formats that it supports."""
        return [
            Format(
                entry,
                entry["name"].text() or "",
                entry["version"].text(),
                entry["autoSelect"].flag() is True,
                entry["priority"].whole(32),
            )
            for entry in self.field["supportedModelFormats"].items()
        ]

    @cached_property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that it speaks; none means all."""
        return tuple(text for entry in self.field["protocolVersions"].items() if (text := entry.text()))

    @cached_property
    def multi_node(self) -> bool:
        """Whether it has workers."""
        return self.field["workerSpec"].exists

    @cached_property
    def main(self) -> Field | None:
        """The container that serves."""
        entries = self.field["containers"].items()
        return next((entry for entry in entries if entry["name"].text() == MAIN_CONTAINER), None)

    @cached_property
    def containers(self) -> list[Container]:
        """Its containers, as templates."""
        found = []
        for spec in (self.field, self.field["workerSpec"]):
            for field in spec["containers"].items():
                main = spec is self.field and field["name"].text() == MAIN_CONTAINER
                found.append(Container(self, [field], [spec], "main" if main else "side", "template", False))
            for field in spec["initContainers"].items():
                found.append(Container(self, [field], [spec], "init", "template", False))
        return found

    def speaks(self, protocol: str) -> bool:
        """Whether it supports a protocol."""
        return not self.protocols or protocol in self.protocols

    def supports(self, name: str, version: str | None, selected: bool) -> bool:
        """Whether it supports a model format, as KServe compares them.

        Args:
            name: Of the format; case matters.
            version: Of the format; None matches all.
            selected: Whether the model names the runtime. Otherwise only formats with autoSelect count.
        """
        return any(
            entry.name == name and (selected or entry.auto_select) and (version is None or entry.version == version)
            for entry in self.formats
        )


@dataclass(frozen=True)
class Format:
    """An entry of `supportedModelFormats`."""

    field: Field
    name: str
    version: str | None
    auto_select: bool
    priority: int | None


class Component(_Owner):
    """A predictor, transformer, explainer or canary of an InferenceService."""

    def __init__(self, service: "Service", kind: ComponentKind, field: Field) -> None:
        super().__init__(service.manifest, field, service.manifests)
        self.service = service
        self.kind = kind

    @cached_property
    def implementations(self) -> list[Field]:
        """What implements it, counted as KServe's webhook counts."""
        containers = self.field["containers"].items()
        if self.kind == "transformer":
            return containers[:1]
        if self.kind == "explainer":
            return [field for field in (self.field["art"],) if field.exists] + containers[:1]
        found = [self.field[name] for name in (*FRAMEWORKS, "model") if self.field[name].exists]
        found += [entry for entry in containers if entry["name"].text() == MAIN_CONTAINER]
        return found if found else containers[:1]

    @cached_property
    def model(self) -> Field | None:
        """`model`, or the framework's field."""
        if self.kind == "explainer":
            return self.field["art"] if self.field["art"].exists else None
        if self.kind == "transformer":
            return None
        fields = [self.field[name] for name in ("model", *FRAMEWORKS)]
        return next((field for field in fields if field.exists), None)

    @property
    def custom(self) -> bool:
        """Whether its containers are all there is, without a runtime below them."""
        return self.model is None and self.kind != "canary"

    @cached_property
    def format(self) -> tuple[str, str | None]:
        """Name and version of the model format; empty without a model."""
        if self.model is None:
            return "", None
        if self.model.path[-1] != "model":
            return str(self.model.path[-1]), None
        entry = self.model["modelFormat"]
        return entry["name"].text() or "", entry["version"].text()

    @cached_property
    def protocol(self) -> str:
        """The protocol that a runtime has to speak: v1 if none is set, but for Triton and vLLM."""
        written = None if self.model is None else self.model["protocolVersion"].text()
        return written or ("v2" if self.format[0] in ("triton", "vLLM") else "v1")

    @cached_property
    def runtime(self) -> Runtime | None:
        """The runtime that KServe would take, if it is in the set."""
        if self.model is None or self.kind in ("transformer", "explainer"):
            return None
        named = self.model["runtime"].text()
        if named:
            known = [runtime for runtime in self.visible_runtimes if runtime.manifest.name == named]
            return min(known, key=lambda runtime: runtime.cluster_wide, default=None)
        name, version = self.format
        fitting = [
            runtime
            for runtime in self.manifests.runtimes_by_format.get(name, ())
            if self.sees(runtime) and self.fits(runtime) and runtime.supports(name, version, False)
        ]

        def order(runtime: Runtime) -> tuple[bool, int]:
            priority = next((entry.priority for entry in runtime.formats if entry.name == name), None)
            return runtime.cluster_wide, -(priority or 0)

        return min(fitting, key=order, default=None)

    @property
    def visible_runtimes(self) -> list[Runtime]:
        """Runtimes of its namespace and of the cluster."""
        return [runtime for runtime in self.manifests.runtimes if self.sees(runtime)]

    def sees(self, runtime: Runtime) -> bool:
        """Whether a runtime is in reach."""
        return runtime.cluster_wide or self.manifest.sees(runtime.manifest)

    def fits(self, runtime: Runtime) -> bool:
        """Whether a runtime is enabled, speaks the protocol and has workers if it needs to."""
        several = runtime.field["multiModel"].flag() is True
        workers = self.field["workerSpec"].exists
        return not runtime.disabled and not several and runtime.speaks(self.protocol) and runtime.multi_node == workers

    @cached_property
    def stable(self) -> "Component | None":
        """What a canary is laid over."""
        return self.service.predictor if self.kind == "canary" else None

    @cached_property
    def pods(self) -> list[Field]:
        """Layers of the pod spec: its own, the stable predictor's, the runtime's."""
        layers = [self.field]
        if self.stable is not None:
            layers += self.stable.pods
        elif self.runtime is not None:
            layers.append(self.runtime.field)
        return layers

    @property
    def resolved(self) -> bool:
        """Whether everything that makes its pods is in the set."""
        return self.stable.resolved if self.stable is not None else self.custom or self.runtime is not None

    @cached_property
    def main(self) -> Container | None:
        """The container that answers requests."""
        return next((container for container in self.containers if container.role == "main"), None)

    @cached_property
    def containers(self) -> list[Container]:
        """Its containers, with what they inherit."""
        found: list[Container] = []
        below = self.runtime.field["containers"].items() if self.runtime is not None else []
        origin: Literal["canary", "alone", "model"] = (
            "canary" if self.kind == "canary" else "alone" if self.custom else "model"
        )
        entries = self.field["containers"].items()
        if self.model is not None:
            layers = [self.model]
            if self.stable is not None and self.stable.model is not None:
                layers.append(self.stable.model)
            runtime = self.stable.runtime if self.stable is not None else self.runtime
            if runtime is not None and runtime.main is not None:
                layers.append(runtime.main)
            found.append(Container(self, layers, self.pods, "main", origin, self.resolved))
        else:
            named = [entry for entry in entries if entry["name"].text() == MAIN_CONTAINER]
            for entry in (named or entries)[:1]:
                found.append(Container(self, [entry], self.pods, "main", origin, self.resolved))
                entries = [other for other in entries if other.path != entry.path]
        for entry in entries:
            name = entry["name"].text()
            layers = [entry, *(other for other in below if other["name"].text() == name)]
            # A side container that no runtime has is complete as it stands.
            side: Literal["canary", "alone", "model"] = "alone" if origin == "model" and len(layers) == 1 else origin
            found.append(Container(self, layers, self.pods, "side", side, True))
        for entry in self.field["initContainers"].items():
            found.append(Container(self, [entry], self.pods, "init", origin, True))
        worker = self.field["workerSpec"]
        for entry in worker["containers"].items():
            found.append(Container(self, [entry], [worker], "side", "model", False))
        for entry in worker["initContainers"].items():
            found.append(Container(self, [entry], [worker], "init", "model", False))
        return found

    @cached_property
    def scaler(self) -> str:
        """The autoscaler's class in Standard mode."""
        name = AUTOSCALER_CLASS
        return self.field["annotations"][name].text() or self.manifest.annotation(name) or "hpa"

    @cached_property
    def checked_scalers(self) -> frozenset[str]:
        """The classes by whose rules its scaling has to go: the webhook reads the service's annotation alone."""
        return frozenset({self.scaler, self.manifest.annotation(AUTOSCALER_CLASS) or self.scaler})

    @cached_property
    def knative_hpa(self) -> bool:
        """Whether Knative scales it with an HPA."""
        return self.manifest.annotation(KNATIVE_CLASS) == "hpa.autoscaling.knative.dev"

    @cached_property
    def least(self) -> int:
        """The least number of replicas that was asked for."""
        replicas = self.field["minReplicas"].whole(32)
        return 1 if replicas is None else replicas

    @cached_property
    def most(self) -> int:
        """The most replicas; 0 if there is no bound."""
        return self.field["maxReplicas"].whole(32) or 0

    @cached_property
    def metrics(self) -> list[Field]:
        """`autoScaling.metrics`."""
        return self.field.at("autoScaling", "metrics").items()

    @cached_property
    def uses_gpu(self) -> Field | None:
        """Where a GPU is asked for."""
        return next((gpus[0][0] for container in self.containers if (gpus := container.gpus())), None)

    @property
    def workload_name(self) -> str:
        """Name of its Deployment in Standard mode."""
        kind = "predictor" if self.kind == "canary" else self.kind
        name = self.field["name"].text() if kind == "predictor" else None
        return "-".join(part for part in (self.manifest.name, name, kind) if part)

    @cached_property
    def pod_labels(self) -> dict[str, str]:
        """Labels of its pods in Standard mode, with those that KServe sets."""
        labels: dict[str, str] = {}
        sources = [self.manifest.metadata["labels"], self.field["labels"]]
        if self.runtime is not None:
            sources.insert(0, self.runtime.field["labels"])
        for source in sources:
            labels.update({key: text for key, field in source.entries() if (text := field.text()) is not None})
        kind = "predictor" if self.kind == "canary" else self.kind
        labels[f"{KSERVE_GROUP}/inferenceservice"] = self.manifest.name
        labels["component"] = kind
        labels["app"] = f"isvc.{self.workload_name}"
        return labels


def single_uri(component: Component) -> Field | None:
    """Return where the one storage URI of a component stands: in its model, or as STORAGE_URI in its container."""
    if component.model is not None:
        field = component.model["storageUri"]
        # The explainer's is no pointer, so that KServe takes an empty one for none.
        return field if field.exists and (component.kind != "explainer" or field.text()) else None
    entries = component.field["containers"].items()
    # KServe names a predictor's only container itself.
    if component.kind == "canary" or (component.kind == "predictor" and len(entries) > 1):
        entries = [entry for entry in entries if entry["name"].text() == MAIN_CONTAINER]
    for container in entries[:1]:
        for variable in container["env"].items():
            if variable["name"].text() == "STORAGE_URI":
                return variable["value"]
    return None


class Service:
    """An InferenceService."""

    def __init__(self, manifest: Manifest, manifests: "Manifests") -> None:
        self.manifest = manifest
        self.manifests = manifests
        self.spec = manifest.root["spec"]
        self.predictor = Component(self, "predictor", self.spec["predictor"])
        others: tuple[ComponentKind, ...] = ("transformer", "explainer")
        self.components = [
            self.predictor,
            *(Component(self, kind, self.spec[kind]) for kind in others if self.spec[kind].exists),
        ]
        self.canaries = [Component(self, "canary", entry["predictor"]) for entry in self.spec["canary"].items()]

    @cached_property
    def mode(self) -> str | None:
        """The deployment mode under its present name; None if the cluster's default decides."""
        written = self.manifest.annotation(DEPLOYMENT_MODE) or ""
        mode = LEGACY_MODES.get(written, written)
        return mode if mode in MODES else None

    @cached_property
    def stopped(self) -> bool:
        """Whether it is switched off."""
        return (self.manifest.annotation(f"{KSERVE_GROUP}/stop") or "").lower() == "true"


class Graph:
    """An InferenceGraph."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.nodes = manifest.root.at("spec", "nodes")


class Selector:
    """A label selector.

    Args:
        field: The selector.
    """

    def __init__(self, field: Field) -> None:
        self.missing = not field.exists
        self._equal = {key: value.text() for key, value in field["matchLabels"].entries()}
        self._expressions = [
            (
                entry["key"].text() or "",
                entry["operator"].text() or "",
                {value.text() for value in entry["values"].items()},
            )
            for entry in field["matchExpressions"].items()
        ]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects a pod with these labels; a missing selector selects none, an empty one all."""
        if self.missing or any(labels.get(key) != value for key, value in self._equal.items()):
            return False
        for key, operator, values in self._expressions:
            value = labels.get(key)
            if (
                (operator == "In" and value not in values)
                or (operator == "NotIn" and value is not None and value in values)
                or (operator == "Exists" and value is None)
                or (operator == "DoesNotExist" and value is not None)
            ):
                return False
        return True


class Budget:
    """A PodDisruptionBudget."""

    def __init__(self, manifest: Manifest, manifests: "Manifests") -> None:
        self.manifest = manifest
        self.spec = manifest.root["spec"]
        self.selector = Selector(self.spec["selector"])
        self._manifests = manifests

    @cached_property
    def protected(self) -> list[Component]:
        """The components in Standard mode whose pods it selects."""
        return [
            component
            for service in self._manifests.services
            if service.mode == "Standard" and self.manifest.sees(service.manifest)
            for component in service.components
            if self.selector.matches(component.pod_labels)
        ]


class Manifests:
    """A set of manifests that are applied together.

    Args:
        documents: What was read.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = list(documents)
        self.objects: list[Manifest] = []
        #: Documents that are no objects.
        self.skipped: list[Document] = []
        for document in self.documents:
            found = list(_unfold(document))
            self.objects += found
            if not found and document.value is not None and not _is_list(document.value):
                self.skipped.append(document)
        kserve = [manifest for manifest in self.objects if manifest.group == KSERVE_GROUP]
        runtimes = [manifest for manifest in kserve if manifest.kind in ("ServingRuntime", "ClusterServingRuntime")]
        self.runtimes = [Runtime(manifest, manifest.root["spec"], self) for manifest in runtimes]
        self.services = [Service(manifest, self) for manifest in kserve if manifest.kind == "InferenceService"]
        self.graphs = [Graph(manifest) for manifest in kserve if manifest.kind == "InferenceGraph"]
        self.storage_containers = [manifest for manifest in kserve if manifest.kind == "ClusterStorageContainer"]
        budgets = [manifest for manifest in self.objects if manifest.kind == "PodDisruptionBudget"]
        self.budgets = [Budget(manifest, self) for manifest in budgets]
        self.workloads = [
            Workload(manifest, manifest.root.at(*_POD_SPECS[manifest.kind]), self)
            for manifest in self.objects
            if manifest.kind in _POD_SPECS and manifest.group in ("", "apps", "batch")
        ]

    @cached_property
    def runtimes_by_format(self) -> dict[str, list[Runtime]]:
        """Runtimes by the names of the formats that they support."""
        found: dict[str, list[Runtime]] = defaultdict(list)
        for runtime in self.runtimes:
            for name in dict.fromkeys(entry.name for entry in runtime.formats):
                found[name].append(runtime)
        return found

    @cached_property
    def components(self) -> list[Component]:
        """Components of all services, without canaries."""
        return [component for service in self.services for component in service.components]

    @cached_property
    def containers(self) -> list[Container]:
        """Containers of everything that has some."""
        owners: list[Component | Runtime | Workload] = [*self.runtimes, *self.workloads]
        for service in self.services:
            owners += [*service.components, *service.canaries]
        return [container for owner in owners for container in owner.containers]


def _unfold(document: Document) -> Iterator[Manifest]:
    """Yield the objects of a document: itself, or the items of a List."""
    waiting = deque([(document.value, document.line)])
    seen: set[int] = set()
    while waiting:
        value, line = waiting.popleft()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        kind, items = value.get("kind"), value.get("items")
        if not isinstance(kind, str) or not kind or not isinstance(value.get("apiVersion"), str):
            continue
        if kind.endswith("List") and isinstance(items, list):
            waiting += [(item, find_line(value, ("items", index), line)) for index, item in enumerate(items)]
        else:
            yield Manifest(document, value, line)


def _is_list(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("items"), list) and "apiVersion" in value


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_scheme(uri: str) -> str | None:
    """Return the scheme of a URI, or None for a path.

    >>> read_scheme("oci+native://host/model"), read_scheme("models/a")
    ('oci+native', None)
    """
    match = _SCHEME.match(uri)
    return match.group(1) if match else None
