"""Registering a trained model: its files, its metrics, and everything that it was made from."""

import hashlib
import json
import os
import platform
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mlflywheel import __version__, images
from mlflywheel.cluster.connection import open_registry
from mlflywheel.models.contract import Evaluation, verify_model_folder
from mlflywheel.registry import ModelVersion

# Kubeflow Pipelines sets these in pods that reach its object store.
_ENDPOINT_VARIABLES = ("MLFLYWHEEL_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT")
_SECRET_VARIABLE = "MLFLYWHEEL_S3_SECRET"
_DEFAULT_ENDPOINT = "http://minio-service.kubeflow:9000"
_DEFAULT_SECRET = "mlpipeline-minio-artifact"
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
) -> ModelVersion:
    """Register a model folder as a version, once for each run.

    Args:
        folder: The model's files, checked against their manifest before anything is registered.
        uri: Where others read them; `minio://` becomes `s3://` with endpoint and secret reference.
        evaluation: `evaluation.json`.
        name: Registered name.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        run_id: The run; registering it again returns its version.
        data: Where the data came from.
        data_version: Hash of the data.
        params: Parameters of the fit, a JSON object.

    Raises:
        ModelFilesError: The folder does not hold what was saved.
        RegistryError: The registry refused.
    """
    run_id = os.environ.get(RUN_ID_VARIABLE) or run_id
    manifest = verify_model_folder(folder)
    measured = Evaluation.from_dict(json.loads(evaluation.read_text(encoding="utf-8")))
    remote = uri.startswith("minio://")
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
            "data_uri": data,
            "data_version": data_version,
            "params": json.dumps(json.loads(params or "{}"), sort_keys=True),
            "model_class": manifest["model"],
            "code_version": __version__,
            "image": images.COMPONENTS,
            **describe_environment(),
        },
        endpoint=_first_variable(_ENDPOINT_VARIABLES, _DEFAULT_ENDPOINT) if remote else "",
        secret=os.environ.get(_SECRET_VARIABLE, _DEFAULT_SECRET) if remote else "",
    )


def describe_environment() -> dict[str, str]:
    """Return what the code ran in: Python, platform, and a hash over the installed packages' names and versions."""
    packages = sorted({f"{d.metadata['Name']}=={d.version}".lower() for d in distributions() if d.metadata["Name"]})
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "environment": "sha256:" + hashlib.sha256("\n".join(packages).encode()).hexdigest(),
    }


def _first_variable(names: tuple[str, ...], default: str) -> str:
    found: list[Any] = [os.environ[name] for name in names if os.environ.get(name)]
    return str(found[0]) if found else default
