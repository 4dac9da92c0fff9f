"""The kinds that other projects add to a cluster: which belong together, and where their definitions lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from control_plane import Cluster

#: What a cluster with that project installed has, as far as tests need it.
DEFINITIONS = {
    "gateway-api": (
        "gatewayclasses.gateway.networking.k8s.io",
        "gateways.gateway.networking.k8s.io",
        "httproutes.gateway.networking.k8s.io",
    ),
    "katib": ("experiments.kubeflow.org", "suggestions.kubeflow.org", "trials.kubeflow.org"),
    "keda": ("scaledobjects.keda.sh",),
    "kfp": (
        "pipelines.pipelines.kubeflow.org",
        "pipelineversions.pipelines.kubeflow.org",
        "scheduledworkflows.kubeflow.org",
    ),
    "knative": ("services.serving.knative.dev",),
    "kserve": (
        "clusterservingruntimes.serving.kserve.io",
        "clusterstoragecontainers.serving.kserve.io",
        "inferencegraphs.serving.kserve.io",
        "inferenceservices.serving.kserve.io",
        "servingruntimes.serving.kserve.io",
    ),
    "prometheus-operator": (
        "podmonitors.monitoring.coreos.com",
        "prometheusrules.monitoring.coreos.com",
        "servicemonitors.monitoring.coreos.com",
    ),
}


class NoDefinitionError(LookupError):
    """Neither the cluster nor any folder has a definition that a test needs."""


def install_definitions(cluster: Cluster, project: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """See to it that the cluster serves the kinds of a project; what it has already stays as it is.

    Args:
        cluster: Where.
        project: A key of `DEFINITIONS`.
        folders: Each may hold a folder of the project's name with YAML files; earlier ones win.

    Returns:
        The names of the definitions, installed now or before.

    Raises:
        NoDefinitionError: A definition is missing in all of them; then nothing was installed.
    """
    names = DEFINITIONS[project]
    there = cluster.defined()
    missing = [name for name in names if name not in there]
    found: dict[str, dict[str, Any]] = {}
    if missing:
        for folder in reversed(folders):
            found |= read_definitions(folder / project)
    unknown = [name for name in missing if name not in found]
    if unknown:
        raise NoDefinitionError(f"{project}: the cluster has no {', '.join(unknown)}, nor is a definition at hand")
    cluster.create_definitions(*(found[name] for name in missing))
    return names


def read_definitions(folder: Path) -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinitions in a folder's YAML files, by name; none if there is no such folder."""
    definitions = {}
    for file in sorted(folder.glob("*.yaml")):
        # What safe_load does, by the C library: InferenceService alone is 39,000 lines.
        for document in yaml.load_all(file.read_bytes(), Loader=yaml.CSafeLoader):
            if document and document["kind"] == "CustomResourceDefinition":
                definitions[document["metadata"]["name"]] = document
    return definitions
