"""The registry's records, its states, and the interface that both backends implement.

A model version is written `NAME@VERSION`. Versions of a model are numbered `1`, `2`, ... in the order of registration.
A version is created once, by `ModelRegistry.ensure_version`, and its content never changes afterwards; only its state
does, by these steps:

    candidate -> approved, archived       measured; waiting for a decision
    approved  -> live, candidate, archived   may be served; back to candidate withdraws the approval
    live      -> approved, archived       is served; back to approved takes it out of service, as after a rollback
    archived  -> candidate                put away; can only come back to be approved again

Several versions of a model may be live at once: a canary and the version that it is compared with both are. A step to
the state that the version already has does nothing and leaves no row, so a repeated command is harmless.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from mlflywheel.errors import RegistryError, UsageError
from mlflywheel.registry.locations import to_serving_uri

Scalar = str | int | float | bool
"""A parameter's value: Kubeflow Model Registry stores nothing else."""

# Labels of Kubernetes objects derive from it, and Kubeflow Model Registry looks names up with SQL's LIKE and without
# regard to case on MySQL, so underscores and capitals would find other models.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST_CHARACTERS = 200


class State(StrEnum):
    """Where a version stands between training and the archive."""

    CANDIDATE = "candidate"
    APPROVED = "approved"
    LIVE = "live"
    ARCHIVED = "archived"

    @classmethod
    def parse(cls, text: str) -> "State":
        """Read a state's name.

        Raises:
            UsageError: No such state.
        """
        try:
            return cls(text)
        except ValueError:
            raise UsageError(
                f"state {text!r}", "not a state", f"one of {', '.join(cls)} is needed", "correct the name"
            ) from None


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.CANDIDATE: frozenset({State.APPROVED, State.ARCHIVED}),
    State.APPROVED: frozenset({State.LIVE, State.CANDIDATE, State.ARCHIVED}),
    State.LIVE: frozenset({State.APPROVED, State.ARCHIVED}),
    State.ARCHIVED: frozenset({State.CANDIDATE}),
}
"""The states that a version may go to, by the state that it is in."""


@dataclass(frozen=True, kw_only=True)
class VersionDraft:
    """A version's content, checked and in plain Python types, before it has a number.

    Args:
        name: The model's name: lower-case letters, digits and hyphens, at most 63.
        key: What makes a registration the same one again, such as the run's id; unique within the model.
        uri: Address of the model's files, in the form that KServe reads.
        endpoint: URL of the S3 service, or empty.
        secret: Name of the Kubernetes secret with the storage keys, or empty.
        service_account: Name of the Kubernetes service account that may read them, or empty.
        format_name: Format in a ServingRuntime's `supportedModelFormats`.
        format_version: Its version.
        hash: Hash over the model's files, `sha256:...`.
        metrics: Finite measured values by name.
        parameters: Values by name.
        lineage: What the version was made from: hashes and names of data, code, environment, image, run.
        description: Free text; the only field that may differ when the same key comes again.
    """

    name: str
    key: str
    uri: str
    format_name: str
    format_version: str
    hash: str
    endpoint: str = ""
    secret: str = ""
    service_account: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelVersion(VersionDraft):
    """A registered version: the draft's content with what the registry added.

    A version that another tool registered on the Kubeflow server has an empty `key`, and empty what it did not set.

    Args:
        version: Its number as text; a version that another tool registered may have any name.
        state: Where it stands.
        created_at: When it was registered, in UTC.
    """

    version: str
    state: State
    created_at: datetime

    @property
    def reference(self) -> str:
        """`NAME@VERSION`, as the command line takes it."""
        return f"{self.name}@{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **asdict(self),
            "state": str(self.state),
            "created_at": self.created_at.isoformat(),
            "reference": self.reference,
        }


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model that has versions.

    Args:
        name: Its name.
        created_at: When its first version was registered, in UTC.
        description: Free text; only the Kubeflow server has it, where another tool wrote it.
    """

    name: str
    created_at: datetime
    description: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "created_at": self.created_at.isoformat()}


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One row of a version's history.

    Args:
        from_state: State before, None for the registration itself.
        to_state: State after.
        at: When, in UTC.
        by: Who: a person, or the name of the step or service that did it.
        reason: Why, in their words.
    """

    from_state: State | None
    to_state: State
    at: datetime
    by: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "at": self.at.isoformat()}


class ModelRegistry(ABC):
    """A registry of model versions. Every method may be called from several threads and processes at once."""

    #: The address that it was opened with, as error messages name it.
    address: str

    def ensure_version(
        self,
        name: str,
        uri: str,
        *,
        key: str,
        format_name: str,
        format_version: str,
        hash: str,
        metrics: Mapping[str, float] | None = None,
        parameters: Mapping[str, Scalar] | None = None,
        lineage: Mapping[str, str] | None = None,
        description: str = "",
        endpoint: str = "",
        secret: str = "",
        service_account: str = "",
        by: str = "pipeline",
    ) -> ModelVersion:
        """Register a version, or return the one that this key registered before.

        A retry never makes a second version: the same key with the same content returns the version as it is now,
        whatever its state, and completes it if an earlier attempt stopped half way.

        Args:
            name: The model's name; the model is created with its first version.
            uri: Address of the model's files; `minio://` is converted by `to_serving_uri`.
            key: What makes it the same registration: the run's id, at most 200 characters.
            format_name: See `VersionDraft`, as for the other fields.
            format_version: Version of the format.
            hash: Hash over the model's files.
            metrics: Finite numbers by name.
            parameters: Text, numbers and truth values by name.
            lineage: Text by name.
            description: Free text.
            endpoint: URL of the S3 service.
            secret: Name of the secret with the storage keys.
            service_account: Name of the service account that may read them.
            by: Who registers, for the history.

        Raises:
            UsageError: A value that cannot be registered; the message names it.
            RegistryError: The key stands for other content, or the registry cannot be written.
        """
        location = to_serving_uri(uri, endpoint, secret)
        draft = VersionDraft(
            name=_checked_name(name),
            key=_checked_text("key", key, required=True, most=_MOST_CHARACTERS),
            uri=_checked_text("model address", location.uri),
            endpoint=location.endpoint,
            secret=_checked_text("secret", location.secret),
            service_account=_checked_text("service account", service_account),
            format_name=_checked_text("format name", format_name, required=True),
            format_version=_checked_text("format version", format_version, required=True),
            hash=_checked_text("hash", hash, required=True),
            metrics={_checked_key("metric", k): _checked_metric(k, v) for k, v in (metrics or {}).items()},
            parameters={_checked_key("parameter", k): _checked_scalar(k, v) for k, v in (parameters or {}).items()},
            lineage={_checked_key("lineage", k): _checked_text(f"lineage {k}", v) for k, v in (lineage or {}).items()},
            description=_checked_text("description", description),
        )
        return self._ensure(draft, _checked_text("by", by, required=True))

    def get(self, name: str, version: str | None = None) -> ModelVersion:
        """Return a version, or the newest one, whatever its state.

        Raises:
            RegistryError: No such model or version; the message lists what there is.
        """
        versions = self.list_versions(name)
        if version is None and versions:
            return versions[-1]
        for found in versions:
            if found.version == version:
                return found
        raise self._missing(name, version, [found.version for found in versions])

    def find(self, name: str, state: State) -> ModelVersion | None:
        """Return the newest version of a model in a state, None if there is none or no such model."""
        return next((found for found in reversed(self._versions(name) or []) if found.state == state), None)

    @abstractmethod
    def list_models(self) -> list[RegisteredModel]:
        """Return every model, by name."""

    def list_versions(self, name: str) -> list[ModelVersion]:
        """Return a model's versions, oldest first; one that was only registered in half is left out.

        Raises:
            RegistryError: No such model; the message lists the models there are.
        """
        versions = self._versions(name)
        if versions is None:
            raise self._missing_model(name)
        return versions

    def set_state(self, name: str, version: str, state: State | str, *, by: str, reason: str = "") -> ModelVersion:
        """Take a version to another state, and write a row into its history.

        Args:
            name: The model's name.
            version: The version's number.
            state: Where to; the state that it has does nothing.
            by: Who decides.
            reason: Why.

        Returns:
            The version in its new state.

        Raises:
            UsageError: No such state, or nobody named.
            RegistryError: No such version, or no legal step from its state.
        """
        return self._set_state(
            name,
            version,
            State.parse(str(state)),
            _checked_text("by", by, required=True),
            _checked_text("reason", reason),
        )

    @abstractmethod
    def history(self, name: str, version: str) -> list[Transition]:
        """Return the states that a version went through, its registration first.

        Raises:
            RegistryError: No such model or version.
        """

    @abstractmethod
    def check(self) -> str:
        """Try the connection without changing anything, and return one line that says what answered.

        Raises:
            RegistryError: It cannot be reached or read.
        """

    @abstractmethod
    def _versions(self, name: str) -> list[ModelVersion] | None:
        """Return what `list_versions` does, None for an unknown model."""

    @abstractmethod
    def _ensure(self, draft: VersionDraft, by: str) -> ModelVersion: ...

    @abstractmethod
    def _set_state(self, name: str, version: str, state: State, by: str, reason: str) -> ModelVersion: ...

    def _missing(self, name: str, version: str | None, known: list[str]) -> RegistryError:
        wanted = f"{name}@{version}" if version is not None else name
        shown = ", ".join(known[-10:]) or "none"
        return RegistryError(
            self.address,
            f"no version {wanted}" if version is not None else f"no versions of {name}",
            f"versions of {name}: {'..., ' if len(known) > 10 else ''}{shown}",
            "name a version that is listed, or run the pipeline to register one",
        )

    def _missing_model(self, name: str) -> RegistryError:
        known = [model.name for model in self.list_models()]
        return RegistryError(
            self.address,
            f"no model {name}",
            f"registered models: {', '.join(known[:10]) or 'none'}{', ...' if len(known) > 10 else ''}",
            "correct the name, or run the pipeline to register a version",
        )


def parse_reference(text: str) -> tuple[str, str | None]:
    """Read `NAME@VERSION`, or `NAME` for the newest version.

    Returns:
        The name, and the version or None.

    Raises:
        UsageError: The name or the version is empty.

    >>> parse_reference("ad-campaigns@3")
    ('ad-campaigns', '3')
    >>> parse_reference("ad-campaigns")
    ('ad-campaigns', None)
    """
    name, separator, version = text.strip().partition("@")
    if not name or (separator and not version) or "@" in version:
        raise UsageError(
            f"model version {text!r}",
            "not NAME@VERSION",
            "a model's name, @ and a version's number are needed",
            "write it as in ad-campaigns@3",
        )
    return name, version or None


def check_same_content(address: str, draft: VersionDraft, existing: ModelVersion) -> None:
    """Refuse a key that already stands for other content.

    Raises:
        RegistryError: A field differs; the message names the first one with both values.
    """
    differences = []
    for name in ("uri", "endpoint", "secret", "service_account", "format_name", "format_version", "hash"):
        differences.append((name.replace("_", " "), getattr(existing, name), getattr(draft, name)))
    for kind, name in (("metric", "metrics"), ("parameter", "parameters"), ("lineage", "lineage")):
        before, now = getattr(existing, name), getattr(draft, name)
        differences.extend((f"{kind} {k}", before.get(k), now.get(k)) for k in sorted({*before, *now}))
    # `True == 1` in Python, and not in a registry.
    changed = [d for d in differences if d[1] != d[2] or isinstance(d[1], bool) != isinstance(d[2], bool)]
    if changed:
        field_name, before, now = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RegistryError(
            f"{address}, {existing.reference}",
            f"key {draft.key!r} is registered with {field_name} {before!r}, now {now!r}{more}",
            "a key stands for one registration",
            "use a new key, such as a new run's id, for other content",
        )


def check_transition(address: str, reference: str, current: State, wanted: State) -> None:
    """Refuse a step that `TRANSITIONS` does not list.

    Raises:
        RegistryError: The step is not legal; the message lists the legal ones.
    """
    if wanted not in TRANSITIONS[current]:
        legal = sorted(TRANSITIONS[current])
        raise RegistryError(
            f"{address}, {reference}",
            f"{current} cannot become {wanted}",
            f"{current} becomes {' or '.join(legal)}",
            f"set it to {legal[0]} first",
        )


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r}",
            "not a name that every backend can hold",
            "lower-case letters, digits and hyphens are needed, at most 63, a letter or digit at both ends",
            "rename the pipeline, as in ad-campaigns",
        )
    return name


def _checked_text(what: str, text: str, *, required: bool = False, most: int | None = None) -> str:
    if not isinstance(text, str):
        raise UsageError(what, f"{text!r} ({type(text).__name__})", "text is needed", "convert it to text")
    if required and not text.strip():
        raise UsageError(what, "empty", "it is needed to trace the version", "give a value")
    if "\x00" in text:
        raise UsageError(what, "it has a null character", "databases refuse it", "remove the character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            what, "it has half a character (a lone surrogate)", "registries keep UTF-8", "remove the character"
        ) from None
    if most is not None and len(text) > most:
        raise UsageError(what, f"{len(text)} characters", f"at most {most} are allowed", "shorten it")
    return text


def _checked_key(kind: str, name: str) -> str:
    return _checked_text(f"{kind} name {name!r}", name, required=True, most=_MOST_CHARACTERS)


def _plain(value: Any) -> Any:
    # NumPy's scalars are what metrics usually are.
    return value.item() if hasattr(value, "item") and not isinstance(value, str | int | float | bool) else value


def _checked_metric(name: str, value: Any) -> float:
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise UsageError(
            f"metric {name}", f"{value!r}", "a finite number is needed", "leave out what could not be measured"
        )
    return float(plain)


def _checked_scalar(name: str, value: Any) -> Scalar:
    plain = _plain(value)
    if isinstance(plain, float) and not math.isfinite(plain):
        raise UsageError(f"parameter {name}", f"{value!r}", "a finite number is needed", "write it as text")
    if isinstance(plain, str):
        return _checked_text(f"parameter {name}", str(plain))
    # float() and int() take a NumPy subclass to the plain type; a bool is an int.
    if isinstance(plain, bool):
        return plain
    if isinstance(plain, float):
        return float(plain)
    if isinstance(plain, int):
        return int(plain)
    raise UsageError(
        f"parameter {name}",
        f"a {type(value).__name__}",
        "text, a number or true/false is needed",
        "write it as JSON text, or as several parameters",
    )
