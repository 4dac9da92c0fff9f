"""Compiled pipelines as Kubernetes objects, for GitOps: no upload, no client, no database behind the repository.

Kubeflow Pipelines keeps pipelines as objects of the group `pipelines.kubeflow.org` where its API server runs with
`--pipelinesStoreKubernetes=true`; elsewhere nothing reads them, and pipelines are uploaded (`mlflywheel submit`). It
takes a Pipeline, and for each compiled YAML a PipelineVersion of it. The specification of a PipelineVersion cannot be
changed, so its name holds the specification's own hash: other content is another version, and the same content is the
same object, whoever writes it and whenever.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from mlflywheel.errors import UsageError
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline
from mlflywheel.reproducibility.pinning import ImageReference, pin_images
from mlflywheel.reproducibility.specification import hash_specification, read_specification

API_VERSION = "pipelines.kubeflow.org/v2beta1"
#: The whole hash, of which the name has the beginning.
HASH_ANNOTATION = "mlflywheel.io/pipeline-spec"
_LABELS = {"app.kubernetes.io/part-of": "mlflywheel", "app.kubernetes.io/managed-by": "mlflywheel"}
_HASH_DIGITS = 12


def describe_objects(
    pipeline: Pipeline, namespace: str | None = None, image: ImageReference | None = None
) -> list[dict[str, Any]]:
    """Describe a compiled pipeline as a Pipeline and a PipelineVersion, in the order to apply them.

    Args:
        pipeline: Its committed YAML is read; nothing is compiled.
        namespace: Written into both; left to who applies them when absent.
        image: Takes the place of the components' image, as `mlflywheel submit --image` does it.

    Returns:
        Two documents. The version's name is the pipeline's with the first 12 digits of the hash.

    Raises:
        UsageError: There is no compiled YAML, it is no compiled pipeline, or the image cannot be put in.

    >>> from mlflywheel.pipelines.catalog import find_pipeline
    >>> [(one["kind"], one["metadata"]["name"][:13]) for one in describe_objects(find_pipeline("ad-campaigns"))]
    [('Pipeline', 'ad-campaigns'), ('PipelineVersion', 'ad-campaigns-')]
    """
    try:
        text = pipeline.compiled.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            str(pipeline.compiled), "no such file", "a compiled pipeline is needed", "mlflywheel compile"
        ) from None
    if image is not None:
        text = pin_images(text, image, str(pipeline.compiled))
    found = hash_specification(text, str(pipeline.compiled))
    # Read for the hash already; the documents are shared, and what is returned may be changed.
    specification, *platform = deepcopy(read_specification(text, str(pipeline.compiled)))
    information = specification["pipelineInfo"]
    place = {} if namespace is None else {"namespace": namespace}
    name = str(information["name"])
    about = {"displayName": name, "description": str(information.get("description") or "")}
    version: dict[str, Any] = {"pipelineName": name, "pipelineSpec": specification}
    if platform:
        version["platformSpec"] = platform[0]
    short = found.partition(":")[2][:_HASH_DIGITS]
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "Pipeline",
            "metadata": {"name": name, **place, "labels": dict(_LABELS)},
            "spec": about,
        },
        {
            "apiVersion": API_VERSION,
            "kind": "PipelineVersion",
            "metadata": {
                "name": f"{name}-{short}",
                **place,
                "labels": dict(_LABELS),
                "annotations": {HASH_ANNOTATION: found},
            },
            "spec": about | {"displayName": f"{name} {short}"} | version,
        },
    ]


def write_objects(
    folder: Path,
    pipelines: Sequence[Pipeline] = PIPELINES,
    namespace: str | None = None,
    image: ImageReference | None = None,
) -> list[Path]:
    """Write the objects of pipelines as YAML, one file for each pipeline, to be committed and applied.

    Earlier versions are not part of a file; in the cluster they stay until somebody deletes them, since runs refer to
    them. Apply with `--server-side`: the objects are too large for the annotation that kubectl writes otherwise.

    Args:
        folder: Made if it is missing. Files of these names are overwritten, others are left.
        pipelines: Which ones.
        namespace: As in `describe_objects`.
        image: As there.

    Returns:
        The files, in the order of the pipelines.

    Raises:
        UsageError: As there; then nothing is written.
    """
    described = [(pipeline, describe_objects(pipeline, namespace, image)) for pipeline in pipelines]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline, objects in described:
        file = folder / f"{pipeline.name}.yaml"
        file.write_text(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True), encoding="utf-8")
        files.append(file)
    return files
