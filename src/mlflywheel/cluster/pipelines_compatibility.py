"""What a Kubeflow Pipelines server would lose of a compiled pipeline, told before it is uploaded.

A server parses what it is sent strictly, by the format of its own release, and treats the parts differently:

- a field of the pipeline that it does not know: the upload is refused;
- a field of the platform document that it does not know: the document is dropped without a word, and with it every
  secret, volume and toleration of every step (`IsPlatformSpecWithKubernetesConfig` in the server's `v2_template.go`);
- a field of a step's Kubernetes settings that it does not know: the upload works, and the step fails when it starts.

The table below holds the fields that came and went between releases, read from the published packages
`kfp-pipeline-spec` and `kfp-kubernetes` of each one from 2.14.0 to 2.17.0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from mlflywheel.errors import UsageError

#: The server refuses a larger file (`MaxFileLength`).
LARGEST_UPLOAD_BYTES = 32 * 1024 * 1024
#: The newest release that the table was read from.
NEWEST_KNOWN = Version("2.17")

_REFUSED = "the server refuses the pipeline"
_DROPPED = "the server drops the whole platform document: secrets, volumes and tolerations of every step"
_FAILS = "the step fails when it starts"


@dataclass(frozen=True)
class _Field:
    name: str
    since: str = ""
    until: str = ""


_PIPELINE_FIELDS = (
    _Field("taskConfigPassthroughs", since="2.15.0"),
    _Field("literals", since="2.16.0"),
)
_PLATFORM_FIELDS = (
    _Field("activeDeadlineSeconds", since="2.17.0"),
    _Field("resourceTtlOnCompletion", since="2.17.0"),
    _Field("resourceTtlOnFailure", since="2.17.0"),
    _Field("resourceTtlOnSuccess", since="2.17.0"),
    _Field("workspace", since="2.14.0"),
    _Field("resourceTtl", since="2.14.0", until="2.17.0"),
    _Field("mutexName", since="2.14.0", until="2.15.0"),
    _Field("semaphoreKey", since="2.14.0", until="2.15.0"),
)
_EXECUTOR_FIELDS = (
    _Field("configMapAsEnv.optional", since="2.15.0"),
    _Field("secretAsEnv.optional", since="2.15.0"),
    _Field("pvcMount.subPath", since="2.16.0"),
    _Field("securityContext", since="2.16.0"),
)


@dataclass(frozen=True)
class Loss:
    """Something in a compiled pipeline that a server does not understand.

    Args:
        field: Where it stands.
        consequence: What the server makes of it.
        needed: Which releases know it.
    """

    field: str
    consequence: str
    needed: str

    def __str__(self) -> str:
        return f"{self.field} ({self.needed}): {self.consequence}"


def read_version(text: str) -> Version | None:
    """Return the release that a server or a compiled pipeline names; None if it names none.

    >>> read_version("kfp-2.17.0"), read_version("unknown")
    (<Version('2.17.0')>, None)
    """
    try:
        return Version(text.removeprefix("kfp-"))
    except InvalidVersion:
        return None


def find_losses(documents: Sequence[Mapping[str, Any]], server: Version | None) -> list[Loss]:
    """Return what a server of a release does not understand.

    Args:
        documents: The documents of the compiled YAML, the pipeline first.
        server: Its release; None finds nothing, since nothing is known.

    >>> deadline = {"platforms": {"kubernetes": {"pipelineConfig": {"activeDeadlineSeconds": 60}}}}
    >>> [loss.needed for loss in find_losses([{}, deadline], Version("2.16.0"))]
    ['known since 2.17.0']
    """
    if server is None:
        return []
    return [
        Loss(where, consequence, _describe(field))
        for where, consequence, field in _find_fields(documents)
        if (field.since and server < Version(field.since)) or (field.until and server >= Version(field.until))
    ]


def check_size(text_yaml: str, where: str) -> None:
    """Refuse what the server would not take for its size.

    Raises:
        UsageError: It has more than 32 MiB.
    """
    size = len(text_yaml.encode())
    if size > LARGEST_UPLOAD_BYTES:
        raise UsageError(
            where,
            f"{size / 2**20:.1f} MiB",
            f"Kubeflow Pipelines takes {LARGEST_UPLOAD_BYTES // 2**20} MiB at the most",
            "pass large values as data in an object store, not as defaults or embedded files",
        )


def _describe(field: _Field) -> str:
    until = f", gone since {field.until}" if field.until else ""
    return f"known since {field.since}{until}"


def _find_fields(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, _Field]]:
    pipeline, *platforms = [document for document in documents if document is not None]
    components = {"root": pipeline.get("root") or {}, **(pipeline.get("components") or {})}
    for name, component in components.items():
        if "taskConfigPassthroughs" in component:
            yield f"{name}.taskConfigPassthroughs", _REFUSED, _PIPELINE_FIELDS[0]
        for parameter, definition in ((component.get("inputDefinitions") or {}).get("parameters") or {}).items():
            if "literals" in definition:
                yield f"{name}.{parameter}.literals", _REFUSED, _PIPELINE_FIELDS[1]
    for document in platforms:
        for platform in (document.get("platforms") or {}).values():
            yield from _find_platform_fields(platform)


def _find_platform_fields(platform: Mapping[str, Any]) -> Iterator[tuple[str, str, _Field]]:
    settings = platform.get("pipelineConfig") or {}
    for field in _PLATFORM_FIELDS:
        if field.name in settings:
            yield f"pipelineConfig.{field.name}", _DROPPED, field
    executors = (platform.get("deploymentSpec") or {}).get("executors") or {}
    for name, executor in executors.items():
        for field in _EXECUTOR_FIELDS:
            outer, _, inner = field.name.partition(".")
            if outer in executor and (not inner or any(inner in item for item in _as_list(executor[outer]))):
                yield f"{name}.{field.name}", _FAILS, field


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
