"""Registering a trained model: its files, its metrics, and everything that it was made from."""

import hashlib
import json
import os
import platform
from importlib.metadata import distributions
from pathlib import Path

from mlflywheel import __version__, images
from mlflywheel.cluster.connection import open_registry
from mlflywheel.models.contract import Evaluation, verify_model_folder
from mlflywheel.registry import ModelVersion
from mlflywheel.storage import s3_endpoint, without_credentials

# Where servers find the object store and its keys, if that is not where this pod finds them.
_ENDPOINT_VARIABLE = "MLFLYWHEEL_S3_ENDPOINT"
_SECRET_VARIABLE = "MLFLYWHEEL_S3_SECRET"
# What Kubeflow Pipelines installs.
_MINIO_ENDPOINT = "http://minio-service.kubeflow:9000"
KUBEFLOW_SECRET = "mlpipeline-minio-artifact"
# A local run has a folder named by its own id; kfp.local invents another one that stands nowhere.
RUN_ID_VARIABLE = "MLFLYWHEEL_RUN_ID"


def register(
    folder: Path,
    uri: str,
    evaluation: Path,
    *,
    name: str,
    registry: str,
    run_id: str,
    data: str,
    data_version: str,
    params: str,
    prepare: str = "{}",
) -> ModelVersion:
    """Register a model folder as a version, once for each run.

    Args:
        folder: The model's files, checked against their manifest before anything is registered.
        uri: Where others read them; `minio://` becomes `s3://` with endpoint and secret reference. The endpoint is
            `MLFLYWHEEL_S3_ENDPOINT`, else what `mlflywheel.storage` reads from, else Kubeflow's own MinIO; the secret's
            name is `MLFLYWHEEL_S3_SECRET`, else Kubeflow's.
        evaluation: `evaluation.json`.
        name: Registered name.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        run_id: The run; registering it again returns its version.
        data: Where the data came from; it is recorded without its credentials.
        data_version: Hash of the data.
        params: Parameters of the fit, a JSON object.
        prepare: Preparation settings, a JSON object; scoring other data with this version prepares it the same way.

    Raises:
        ModelFilesError: The folder does not hold what was saved.
        RegistryError: The registry refused.
    """
    run_id = os.environ.get(RUN_ID_VARIABLE) or run_id
    manifest = verify_model_folder(folder)
    measured = Evaluation.from_dict(json.loads(evaluation.read_text(encoding="utf-8")))
    endpoint, secret = describe_store(uri)
    return open_registry(registry).ensure_version(
        name,
        uri,
        key=run_id,
        format_name=manifest["format"]["name"],
        format_version=manifest["format"]["version"],
        hash=manifest["hash"],
        metrics=measured.metrics(),
        parameters=manifest["facts"],
        lineage={
            "run_id": run_id,
            "data_uri": without_credentials(data),
            "data_version": data_version,
            "params": _sort_keys(params),
            "prepare": _sort_keys(prepare),
            "model_class": manifest["model"],
            "code_version": __version__,
            "image": images.COMPONENTS,
            **describe_environment(),
        },
        endpoint=endpoint,
        secret=secret,
    )


def describe_environment() -> dict[str, str]:
    """Return what the code ran in: Python, platform, and a hash over the installed packages' names and versions."""
    packages = sorted({f"{d.metadata['Name']}=={d.version}".lower() for d in distributions() if d.metadata["Name"]})
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "environment": "sha256:" + hashlib.sha256("\n".join(packages).encode()).hexdigest(),
    }


def _sort_keys(text_json: str) -> str:
    return json.dumps(json.loads(text_json.strip() or "{}"), sort_keys=True)


def describe_store(uri: str) -> tuple[str, str]:
    """Return the endpoint and the secret's name that a server needs to read the address; empty where it needs none."""
    scheme = uri.partition("://")[0]
    if scheme not in ("minio", "s3"):
        return "", ""
    endpoint = os.environ.get(_ENDPOINT_VARIABLE) or s3_endpoint(scheme) or ""
    secret = os.environ.get(_SECRET_VARIABLE, "")
    if scheme == "minio":
        return endpoint or _MINIO_ENDPOINT, secret or KUBEFLOW_SECRET
    return endpoint, secret
