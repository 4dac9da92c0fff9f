"""The manifests as kubectl renders them: where they are, what they contain, and the pods that KServe makes of them."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = ROOT / "manifests"
_RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")

Document = dict[str, Any]


@dataclass(frozen=True)
class Rendering:
    """A folder, or an overlay with components, that the documentation tells people to apply."""

    folder: str
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As the name of a test."""
        return "+".join([self.folder.removeprefix("manifests/"), *self.components])


def documented_combinations() -> list[Rendering]:
    """Overlays with components, as the page of the manifests lists them."""
    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    table = text.partition("These combinations are tested:")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.MULTILINE)
    return [
        Rendering(f"manifests/overlays/{overlay}", tuple(re.findall(r"`([\w-]+)`", names))) for overlay, names in rows
    ]


FOLDERS = [
    Rendering("."),
    Rendering("manifests/runtime"),
    Rendering("manifests/cluster-runtime"),
    Rendering("manifests/base"),
    *(Rendering(f"manifests/overlays/{path.name}") for path in sorted((MANIFESTS / "overlays").iterdir())),
]
RENDERINGS = [*FOLDERS, *documented_combinations()]
#: Other models in the overlays of the first, by components/use-case.
VEHICLES, CREDIT = (
    [
        Rendering(f"manifests/{name}/{path.name}")
        for path in sorted((MANIFESTS / name).iterdir())
        if path.name != "model"
    ]
    for name in ("vehicle-prices", "credit-decisions")
)
#: A stock runtime of KServe, so that there is none of ours in it.
TRITON = [Rendering("manifests/triton/cpu"), Rendering("manifests/triton/gpu")]
CPU, GPU, KNATIVE, PRODUCTION = (
    Rendering(f"manifests/overlays/{name}") for name in ("cpu", "gpu", "knative", "production")
)


@cache
def find_kubectl() -> Path | None:
    """The pinned one of the cluster tests, else the one on the PATH."""
    path = ROOT / "tests" / "cluster" / "cluster_tools.py"
    spec = importlib.util.spec_from_file_location("_cluster_tools", path)
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for folder in (Path(assets) if assets else None, tools.find_tools()):
        if folder and os.access(folder / "kubectl", os.X_OK):
            return folder / "kubectl"
    on_path = shutil.which("kubectl")
    return Path(on_path) if on_path else None


def kustomize(folder: Path) -> list[Document]:
    """Render a folder; the test is skipped without kubectl."""
    kubectl = find_kubectl()
    if kubectl is None:
        pytest.skip("no kubectl to render the manifests. Fix: run `make cluster-tools`, or install kubectl")
    done = subprocess.run(
        [str(kubectl), "kustomize", str(folder)],
        env=os.environ | {"KUBECTL_KUBERC": "false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A warning, such as for a field that kustomize will drop.
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def write_overlay(folder: Path, rendering: Rendering, root: Path = ROOT) -> Path:
    """The overlay of somebody who puts components on one of ours; returns its folder."""
    manifests = os.path.relpath(root / "manifests", folder)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{os.path.relpath(root, folder)}/{rendering.folder}"],
        "components": [f"{manifests}/components/{name}" for name in rendering.components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


class Renderer:
    """Renders each once; what it returns may be changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rendered: dict[Rendering, list[Document]] = {}

    def __call__(self, rendering: Rendering) -> list[Document]:
        if rendering not in self._rendered:
            target = ROOT / rendering.folder
            if rendering.components:
                target = self._folder / str(rendering).replace("/", "-")
                target.mkdir(exist_ok=True)
                write_overlay(target, rendering)
            self._rendered[rendering] = kustomize(target)
        return deepcopy(self._rendered[rendering])


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [one for one in documents if one["kind"] in kinds]


def only(documents: Sequence[Document], *kinds: str) -> Document:
    """The one document of these kinds."""
    found = of_kind(documents, *kinds)
    assert len(found) == 1, [one["kind"] for one in documents]
    return found[0]


def runtime_of(documents: Sequence[Document]) -> Document:
    """The serving runtime."""
    return only(documents, *_RUNTIMES)


def service_of(documents: Sequence[Document]) -> Document:
    """The InferenceService."""
    return only(documents, "InferenceService")


def server_of(documents: Sequence[Document]) -> Document:
    """The container of the runtime that serves."""
    (container,) = runtime_of(documents)["spec"]["containers"]
    assert container["name"] == "kserve-container"
    return dict(container)


def mode_of(documents: Sequence[Document]) -> str:
    """The deployment mode of the InferenceService."""
    return str(service_of(documents)["metadata"]["annotations"]["serving.kserve.io/deploymentMode"])


def pod_labels(documents: Sequence[Document], canary: str = "") -> dict[str, str]:
    """Labels that KServe puts on the predictor's pods in Standard mode (its buildObjectMeta and createRawDeployment).

    Args:
        documents: A rendering.
        canary: The name of a canary, or of a promoted version: part of the name of its Deployment.
    """
    service = service_of(documents)
    name = "-".join(filter(None, [service["metadata"]["name"], canary, "predictor"]))
    return {
        **runtime_of(documents)["spec"].get("labels", {}),
        **service["metadata"].get("labels", {}),
        **service["spec"]["predictor"].get("labels", {}),
        "serving.kserve.io/inferenceservice": service["metadata"]["name"],
        "component": "predictor",
        "app": f"isvc.{name}",
    }


#: Fields of a predictor that are KServe's own; the others are those of a pod.
_OF_KSERVE = {
    "autoScaling",
    "batcher",
    "canaryTrafficPercent",
    "containerConcurrency",
    "deploymentStrategy",
    "logger",
    "maxReplicas",
    "minReplicas",
    "model",
    "name",
    "scaleMetric",
    "scaleMetricType",
    "scaleTarget",
    "storageContainerName",
    "storageUris",
    "timeout",
}


def pod_spec(documents: Sequence[Document]) -> Document:
    """The pod that KServe makes of runtime and service, without the containers that it adds."""
    runtime, predictor = runtime_of(documents)["spec"], service_of(documents)["spec"]["predictor"]
    own = {name: value for name, value in predictor.items() if name not in _OF_KSERVE}
    of_runtime = {
        name: deepcopy(runtime[name])
        for name in ("affinity", "containers", "imagePullSecrets", "nodeSelector", "tolerations", "volumes")
        if name in runtime
    }
    name = service_of(documents)["metadata"]["name"]
    return dict(_fill_in({**of_runtime, **own}, name))


def _fill_in(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{{.Name}}", name)
    if isinstance(value, Mapping):
        return {key: _fill_in(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill_in(inner, name) for inner in value]
    return value


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a document, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)
