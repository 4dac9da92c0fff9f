"""Checks of what is reached beside the API server: Kubeflow Pipelines, the model registry and the object store."""

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from packaging.version import Version

from mlflywheel.cluster.api_reader import read_missing_right
from mlflywheel.cluster.examination import Check, Examined
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.kubeflow_pipelines import KubeflowPipelines
from mlflywheel.cluster.kubernetes_client import RefusedError
from mlflywheel.cluster.pipelines_access import Access, open_api
from mlflywheel.cluster.pipelines_compatibility import find_losses, read_version
from mlflywheel.cluster.pipelines_records import Server
from mlflywheel.errors import MlflywheelError, RegistryError, UsageError
from mlflywheel.storage import local_path, open_binary, upload_folder, without_credentials
from mlflywheel.storage.addresses import find_protocol
from mlflywheel.storage.patience import read_patience
from mlflywheel.storage.s3 import open_s3

# The registry's client tries four times.
_REGISTRY_TIMEOUT_SECONDS = 2.0
_PATIENCE_SECONDS = 1.0
_PORT_FORWARD = "kubectl port-forward -n kubeflow service/ml-pipeline 8888, then --host http://127.0.0.1:8888"
_THROUGH_KUBERNETES = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/apis/v2beta1/healthz"


def _check_pipelines(examined: Examined) -> Iterator[Finding]:
    host = examined.subject.host
    server = _ask_through_kubernetes(examined) if host is None else _ask_server(host, examined.namespace)
    if isinstance(server, Finding):
        yield server
        return
    users = f"for several users, you in {examined.namespace}" if server.is_multi_user else "for one user"
    yield Finding(
        "Kubeflow Pipelines", "ok", f"{server.version or 'of an unknown release'} at {server.address}, {users}"
    )
    yield from _compare_pipelines(server.version, examined.subject.pipelines)


def _ask_server(host: str, namespace: str) -> Server:
    api = open_api(Access(host=host, namespace=namespace))
    api.patience_seconds = _PATIENCE_SECONDS
    try:
        return KubeflowPipelines(api).server()
    finally:
        api.close()


def _ask_through_kubernetes(examined: Examined) -> Server | Finding:
    """Look for the service of an installation in this cluster, which the API server forwards to."""
    seen = "the API server does not answer"
    if examined.reader is not None:
        try:
            answer = examined.reader.get(_THROUGH_KUBERNETES)
            version = read_version(str(answer.get("tag_name") or ""))
            return Server("service ml-pipeline in kubeflow", version, bool(answer.get("multi_user")))
        except RefusedError as error:
            verb, resource, place = read_missing_right(error)
            seen = f"you may not {verb} {resource}{place}" if verb else f"the API server says: {error.message}"
        except ConnectionError as error:
            seen = f"through the API server: {error}"
    return Finding("Kubeflow Pipelines", "note", f"not looked at: no --host, and {seen}", _PORT_FORWARD)


def _compare_pipelines(version: Version | None, pipelines: Mapping[str, Path]) -> Iterator[Finding]:
    if version is None:
        fix = "kubectl get deployment ml-pipeline -n kubeflow -o wide shows its image"
        yield Finding("Kubeflow Pipelines, compiled pipelines", "note", "the server does not say its release", fix)
        return
    for name, path in pipelines.items():
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        losses = find_losses(documents, version)
        subject = f"Kubeflow Pipelines, {name}"
        if losses:
            fix = f"update Kubeflow Pipelines to {documents[0].get('sdkVersion', 'kfp').removeprefix('kfp-')} or newer"
            yield Finding(subject, "problem", "; ".join(map(str, losses)), fix)
        else:
            text = f"compiled by {documents[0].get('sdkVersion')}, and nothing in it is newer than the server"
            yield Finding(subject, "ok", text)


def _check_registry(examined: Examined) -> Iterator[Finding]:
    url = examined.subject.registry
    if url is None or urlsplit(url).scheme not in ("http", "https"):
        fix = "--registry http://HOST:8080; from outside the cluster: kubectl port-forward -n kubeflow "
        fix += "service/model-registry-service 8080, then --registry http://127.0.0.1:8080"
        yield Finding("model registry", "note", "not looked at: no --registry URL", fix)
        return
    from mlflywheel.cluster.model_registry import KubeflowRegistry

    registry = KubeflowRegistry(url, timeout_seconds=_REGISTRY_TIMEOUT_SECONDS)
    yield Finding("model registry", "ok", registry.check())
    try:
        # The three questions of every registration: a search for a name, a page of models, and who has a name.
        registry.get(f"mlflywheel-doctor-{secrets.token_hex(4)}", "1")
    except RegistryError as error:
        if not error.seen.startswith("no model "):
            yield Finding("model registry, answers", "problem", f"{error.where}: {error.seen}", error.fix)
            return
    yield Finding("model registry, answers", "ok", "searches and lists as a registration needs it")


def _check_storage(examined: Examined) -> Iterator[Finding]:
    uri = examined.subject.storage
    if uri is None:
        fix = "--storage s3://BUCKET/FOLDER, with the variables of the store set as for a run"
        yield Finding("object store", "note", "not looked at: no --storage", fix)
        return
    shown = without_credentials(uri)
    if local_path(uri) is not None:
        raise UsageError(f"--storage {shown}", "a folder of this machine", "an object store is needed", "s3://BUCKET")
    name = f"mlflywheel-doctor-{secrets.token_hex(8)}"
    content = secrets.token_bytes(32)
    target = f"{uri.rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory(prefix="mlflywheel-") as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            upload_folder(Path(folder), uri.rstrip("/"))
        except MlflywheelError as error:
            yield Finding("object store", "problem", f"{shown} cannot be written: {error.seen}", error.fix)
            return
    is_same = False
    try:
        with open_binary(target) as file:
            is_same = file.read() == content
    except MlflywheelError as error:
        text = f"{shown} can be written and not read: {error.seen}"
        yield Finding("object store", "problem", text, error.fix)
    else:
        if not is_same:
            text = f"{shown}: what was written reads otherwise"
            yield Finding("object store", "problem", text, "look for a cache, or for two stores behind the address")
    refusal = _remove(target)
    if refusal:
        text = f"{shown}: nothing may be deleted ({refusal}), and {name} stays there"
        fix = "a run deletes nothing; to tidy up, delete it with other keys"
        yield Finding("object store, deletion", "note", text, fix)
    elif is_same:
        yield Finding("object store", "ok", f"{shown}: 32 bytes written, read and deleted")


def _remove(uri: str) -> str:
    """Delete one object; return why that was refused, else nothing."""
    try:
        _open_store(uri).rm_file(uri.partition("://")[2])
    except Exception as error:
        # The text of a store's client may hold a signed address.
        return type(error).__name__
    return ""


def _open_store(uri: str) -> Any:
    """Return fsspec's file system for a store that was just written to."""
    import fsspec

    protocol = find_protocol(uri)
    if protocol in ("s3", "minio"):
        return open_s3(protocol, read_patience())
    return fsspec.filesystem(protocol, skip_instance_cache=True)


CHECKS = (
    Check(
        "Kubeflow Pipelines",
        "Kubeflow Pipelines",
        "with `--host`, else through the API server: whether it answers without a login page, its release, for one "
        "user or several; for each compiled pipeline, what such a release would refuse or silently drop",
        _check_pipelines,
        needs_api=False,
    ),
    Check(
        "model registry",
        "model registry",
        "with `--registry URL`: whether it answers, which version of its API, and what a registration asks",
        _check_registry,
        needs_api=False,
    ),
    Check(
        "storage",
        "object store",
        "with `--storage`: one object of 32 bytes is written, read and deleted with this machine's keys",
        _check_storage,
        needs_api=False,
    ),
)
