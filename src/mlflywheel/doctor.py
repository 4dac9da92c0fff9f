"""Look at this installation or at a cluster, and say what would get in the way."""

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflywheel import __version__
from mlflywheel.cluster.findings import Finding, Status
from mlflywheel.errors import MlflywheelError

_NEEDED_FREE_BYTES = 500_000_000
_EXTRAS = {
    "pipelines": ("kfp", "great_expectations", "run and compile pipelines"),
    "tuning": ("optuna", "cmaes", "kubeflow_katib_api", "search for parameters"),
    "fast": ("numba", "the compiled LDA engine"),
    "faiss": ("faiss", "approximate neighbours above 50,000 campaigns"),
    "spacy": ("spacy", "the spaCy tokeniser"),
    "s3": ("s3fs", "s3:// and minio:// addresses"),
    "gcs": ("gcsfs", "gs:// addresses"),
    "cluster": ("kubernetes", "urllib3", "Katib and a Kubeflow Model Registry"),
}


def examine(runs: Path, registry: Any) -> Iterator[Finding]:
    """Examine the installation.

    Args:
        runs: The folder of runs.
        registry: A `ModelRegistry`.
    """
    yield _python()
    yield Finding("mlflywheel", "ok", __version__)
    yield from _extras()
    yield from _conflicts()
    yield _folder(runs)
    try:
        yield Finding("registry", "ok", registry.check())
    except MlflywheelError as error:
        yield Finding("registry", "problem", f"{error.where}: {error.seen}", error.fix)
    yield from _pipelines()


def examine_cluster(
    namespace: str | None = None,
    *,
    context: str | None = None,
    service_account: str | None = None,
    host: str | None = None,
    registry: str | None = None,
    storage: str | None = None,
) -> list[Finding]:
    """Examine a cluster, as `mlflywheel.cluster.examination` does, within half a minute.

    Args:
        namespace: The team's namespace; the one of the kubeconfig's context if left out.
        context: Context of the kubeconfig; its current one if left out.
        service_account: Account in the namespace whose rights are judged too.
        host: URL of Kubeflow Pipelines; its service in the cluster if left out.
        registry: URL of a Kubeflow Model Registry.
        storage: Folder in an object store; one small object is written there, read and deleted.

    Raises:
        MissingExtraError: The extra `cluster` is not installed.
    """
    from mlflywheel.cluster.examination import Subject
    from mlflywheel.cluster.examination import examine_cluster as look
    from mlflywheel.pipelines.catalog import PIPELINES

    pipelines = {pipeline.name: pipeline.compiled for pipeline in PIPELINES}
    return look(Subject(namespace, context, service_account, host, registry, storage, pipelines))


def _python() -> Finding:
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "ok", text)
    return Finding("python", "problem", text, "use Python 3.11, 3.12 or 3.13")


def _extras() -> Iterator[Finding]:
    for extra, (*modules, purpose) in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if not missing:
            yield Finding(f"extra {extra}", "ok", purpose)
        else:
            status: Status = "problem" if extra == "pipelines" else "note"
            text = f"{', '.join(missing)} not installed: {purpose}"
            yield Finding(f"extra {extra}", status, text, f"pip install 'mlflywheel[{extra}]'")


def _conflicts() -> Iterator[Finding]:
    """Compare installed versions with what this library requires."""
    from packaging.requirements import Requirement

    for text in requires("mlflywheel") or []:
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            continue
        if requirement.specifier and not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                requirement.name,
                "problem",
                f"version {found}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
    try:
        kubernetes = version("kubernetes")
    except PackageNotFoundError:
        return
    if int(kubernetes.split(".")[0]) >= 31:
        yield Finding("kubernetes", "problem", f"version {kubernetes}", "pip install 'kubernetes<31', as kfp needs it")


def _folder(runs: Path) -> Finding:
    existing = next((p for p in (runs.absolute(), *runs.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    text = f"{runs}: {free / 1e9:.1f} GB free"
    import os

    if not os.access(existing, os.W_OK):
        return Finding("runs", "problem", f"{existing} cannot be written to", "choose another folder with --runs")
    if free < _NEEDED_FREE_BYTES:
        return Finding("runs", "problem", text, "free space, or choose another folder with --runs")
    return Finding("runs", "ok", text)


def _pipelines() -> Iterator[Finding]:
    from mlflywheel.pipelines.catalog import PIPELINES
    from mlflywheel.runs.runner import read_parameters

    for pipeline in PIPELINES:
        try:
            count = len(read_parameters(pipeline.compiled))
            yield Finding(f"pipeline {pipeline.name}", "ok", f"compiled, {count} parameters")
        except MlflywheelError as error:
            yield Finding(f"pipeline {pipeline.name}", "problem", error.seen, error.fix)
