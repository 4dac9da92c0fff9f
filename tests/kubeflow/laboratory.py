"""What the tests do with the backend: upload, run, wait, read what a run left, and run the same on this machine."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backend as backends
import registry_server
from backend import BUCKET, COMPONENT_ENVIRONMENT, NAMESPACE, Backend
from cluster_tools import find_tools
from control_plane import ControlPlane
from kubelet import Image
from registry_server import RegistryServer

from mlflywheel.pipelines.catalog import find_pipeline

#: What the ConfigMap and the Secret give to the steps that read the store by themselves, for a run on this machine.
STORE = {
    "AWS_ACCESS_KEY_ID": "minio",
    "AWS_SECRET_ACCESS_KEY": "minio123",
    "AWS_ENDPOINT_URL_S3": f"http://seaweedfs.{NAMESPACE}:9000",
    "MINIO_ENDPOINT": f"seaweedfs.{NAMESPACE}:9000",
    "AWS_REGION": "us-east-1",
}
_RUN_SECONDS = 900.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def what_is_missing() -> str:
    """Say what the tests lack here, or nothing."""
    tools = "" if find_tools() else "no API server. Fix: run `make cluster-tools` (needs Go, takes minutes, once)"
    return backends.what_is_missing() or tools or registry_server.what_is_missing()


class Laboratory:
    """The backend, a model registry, and the library of this checkout in place of the image of components."""

    def __init__(self, backend: Backend, registry: RegistryServer, folder: Path) -> None:
        import kfp

        self.backend = backend
        self.registry = registry
        self.folder = folder
        with warnings.catch_warnings():
            # It warns everybody that servers before 2.0 are not served.
            warnings.simplefilter("ignore", FutureWarning)
            self.client = kfp.Client(host=backend.url, namespace=NAMESPACE)
        self.experiment = self.client.create_experiment("tests").experiment_id

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path, tools: Path, package: Path) -> Iterator["Laboratory"]:
        """Start everything; all of it ends with the context.

        Args:
            folder: For what pods write.
            tools: With etcd and kube-apiserver.
            package: `mlflywheel/__init__.py`: what the image of components would hold.
        """
        source = package.resolve().parents[1]
        programs = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        environment = COMPONENT_ENVIRONMENT | {"PATH": programs, "PYTHONPATH": str(source)}
        components = Image(environment=environment, folders=(source.parent, Path(sys.prefix)))
        with (
            backends.own_network(folder),
            ControlPlane(tools) as plane,
            RegistryServer() as registry,
            Backend(plane, folder, components) as backend,
        ):
            backend.configure_steps(STORE)
            yield cls(backend, registry, folder)

    def sample(self, pipeline: str, size: int) -> str:
        """Write a sample of a pipeline's data into the object store, and return its address."""
        from mlflywheel.client import Client

        written = Client(self.folder / "runs").sample(pipeline, self.folder / f"{pipeline}.parquet", size)
        self.backend.store.upload_file(str(written), BUCKET, f"data/{written.name}")
        return f"s3://{BUCKET}/data/{written.name}"

    def upload(self, pipeline: str) -> tuple[str, str]:
        """Upload a committed `pipeline.yaml`; return the ids of pipeline and version."""
        with contextlib.redirect_stdout(io.StringIO()):
            uploaded = self.client.upload_pipeline(str(find_pipeline(pipeline).compiled), pipeline_name=pipeline)
        versions = self.client.list_pipeline_versions(uploaded.pipeline_id).pipeline_versions
        return uploaded.pipeline_id, versions[0].pipeline_version_id

    def start_run(self, ids: tuple[str, str], **parameters: Any) -> str:
        """Start a run with these parameters, and return its id."""
        started = self.client.run_pipeline(
            self.experiment, "run", pipeline_id=ids[0], version_id=ids[1], params=parameters
        )
        return str(started.run_id)

    def wait(self, run_id: str) -> str:
        """Wait for the end of a run, and return its state.

        The states of its steps are not asked for: the API server leaves them as they were once a workflow is so large
        that Argo compresses it.

        Raises:
            TimeoutError: It does not end.
        """
        deadline = time.monotonic() + _RUN_SECONDS
        while (state := self.client.get_run(run_id).state) not in _ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run_id}: {state} after {_RUN_SECONDS:g} s")
            time.sleep(1)
        return str(state)

    def artifacts(self, pipeline: str, run_id: str) -> dict[str, bytes]:
        """What a run left in the store, by `step/artifact`, or `step/artifact/file` of a folder."""
        found = {}
        prefix = f"v2/artifacts/{pipeline}/{run_id}/"
        for page in self.backend.store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for one in page.get("Contents", ()):
                # Between step and artifact stands a number of this execution of the step.
                step, _, name = one["Key"].removeprefix(prefix).split("/", 2)
                found[f"{step}/{name}"] = self.backend.store.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
        return found

    def run_here(self, pipeline: str, name: str, *options: str) -> tuple[int, dict[str, Any], dict[str, bytes]]:
        """Run the same pipeline with `mlflywheel run`.

        Returns:
            The exit status, the summary, and the artifacts as `artifacts` gives them.
        """
        runs = self.folder / "runs" / name
        command = [sys.executable, "-m", "mlflywheel", "run", pipeline, "--json", "--quiet", "--runs", str(runs)]
        done = subprocess.run(
            [*command, "--registry", str(runs / "registry.db"), *options],
            env=os.environ | COMPONENT_ENVIRONMENT | STORE | {"HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        (root,) = runs.glob(f"{pipeline}/*/artifacts/*")
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        return done.returncode, json.loads(done.stdout), files
