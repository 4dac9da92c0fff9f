"""The registry on a Kubeflow Model Registry server, over its REST API.

The server has versions and artifacts, no transactions and no states but LIVE and ARCHIVED. What we add:

- **Ensure.** A version carries a hash of the model's name and the registration's key as `externalId`, which the server
  keeps unique. Two writers with one key therefore cannot make two versions, and a retry finds what the first attempt
  left: a version without its artifact is completed. Until then it does not show up in any list.
- **Numbers.** The next number is tried, and the one after it if the server says that it is taken.
- **States.** Custom properties: `mlflywheel.state`, and one `mlflywheel.transition.NNN` a step. The server's own state
  follows (ARCHIVED for archived, else LIVE). A version that is archived in the registry's own pages counts as archived,
  and one that is restored there as a candidate. The server cannot compare and set: of two people who change the state
  of one version in the same fraction of a second the later one wins, and the other's row is lost.
- **Records.** `metric.NAME`, `parameter.NAME` and `lineage.NAME` are custom properties of the version, so the
  registry's pages show them. Its integers end at nine digits; longer ones are text under `parameter-integer.NAME`.

The server's own Python client is not used (docs/adr): releases 0.3.15 to 0.3.18 ask for `/api/model_registry/v1`, which
servers up to 0.3.8 answer with 404, since they speak `v1alpha3`; it registers in three calls and cannot continue after
the first; it patches the running event loop and sets up the process's logging. The REST API is the documented
interface, and both versions of it have the nine calls that are needed here. The client reads what is written here.

Source: Model Registry REST API, `api/openapi/model-registry.yaml` of kubeflow/hub.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from mlflywheel.errors import MissingExtraError, RegistryError, UsageError
from mlflywheel.registry.locations import ServingLocation
from mlflywheel.registry.records import (
    ModelRegistry,
    ModelVersion,
    RegisteredModel,
    Scalar,
    State,
    Transition,
    VersionDraft,
    check_same_content,
    check_transition,
)

try:
    import urllib3
except ImportError as error:
    raise MissingExtraError.of("urllib3", "cluster", "Kubeflow Model Registry") from error

TOKEN_VARIABLE = "MLFLYWHEEL_REGISTRY_TOKEN"
CA_VARIABLE = "MLFLYWHEEL_REGISTRY_CA"
_TOKEN_PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
_POD_TOKEN_PATH = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

# The newer first: servers are expected to speak both for a while, and to drop v1alpha3.
API_VERSIONS = ("v1", "v1alpha3")
_PAGE_SIZE = 100
_ATTEMPTS = 50
_PREFIX = "mlflywheel."
_LARGEST_INTEGER = 999_999_999


class KubeflowRegistry(ModelRegistry):
    """A registry on a Kubeflow Model Registry server. The first call finds out which version of the API it speaks.

    Args:
        url: The server, such as `http://model-registry-service.kubeflow:8080`; a path in front of
            `/api/model_registry` is kept.
        token: Bearer token. Without one, the variable `MLFLYWHEEL_REGISTRY_TOKEN`, else the file that
            `KF_PIPELINES_SA_TOKEN_PATH` names, else the pod's service account token; files are read again for every
            call, since tokens rotate.
        ca_file: Certificates to trust, PEM. Without one, the variable `MLFLYWHEEL_REGISTRY_CA`, else the system's.
        timeout_seconds: Limit for one call to connect, and again for it to answer.

    Raises:
        UsageError: Not a URL.
    """

    def __init__(
        self, url: str, *, token: str | None = None, ca_file: Path | str | None = None, timeout_seconds: float = 20.0
    ) -> None:
        self.address = url
        self._api = _Api(url, token, ca_file, timeout_seconds)

    def check(self) -> str:
        """See `ModelRegistry.check`."""
        return f"Kubeflow Model Registry {self.address}, API {self._api.version()}"

    def list_models(self) -> list[RegisteredModel]:
        """See `ModelRegistry.list_models`."""
        models = [
            RegisteredModel(name=raw["name"], created_at=_time_of(raw), description=raw.get("description", ""))
            for raw in self._api.pages("registered_models")
        ]
        return sorted(models, key=lambda model: model.name)

    def get(self, name: str, version: str | None = None) -> ModelVersion:
        """See `ModelRegistry.get`."""
        if version is None:
            return super().get(name)
        return self._with_artifact(name, self._raw_version(name, version))

    def history(self, name: str, version: str) -> list[Transition]:
        """See `ModelRegistry.history`."""
        raw = self._raw_version(name, version)
        self._with_artifact(name, raw)
        return [step for _, step in _transitions(raw)]

    def _versions(self, name: str) -> list[ModelVersion] | None:
        model = self._find_model(name)
        if model is None:
            return None
        found = []
        for raw in self._raw_versions(model):
            artifact = self._artifact(name, raw)
            if artifact is not None:
                found.append(_to_version(name, raw, artifact))
        return found

    def _ensure(self, draft: VersionDraft, by: str) -> ModelVersion:
        model = self._ensure_model(draft.name)
        external_id = _external_id(draft.name, draft.key)
        for attempt in range(_ATTEMPTS):
            raw = self._api.find("model_version", externalId=external_id)
            if raw is None:
                taken = [int(v["name"]) for v in self._raw_versions(model) if v["name"].isdecimal()]
                body = _version_body(draft, by, str(max(taken, default=0) + 1), model["id"], external_id)
                raw = self._api.create("model_versions", body)
            if raw is not None:
                return self._complete(draft, raw)
            # Someone else took the number, or registered this key: look again, not all at the same moment.
            time.sleep(random.uniform(0, 0.02 * min(attempt + 1, 10)))
        raise RegistryError(
            self.address,
            f"no free version number for {draft.name} after {_ATTEMPTS} attempts",
            "the server said each time that it was taken",
            "repeat the step, and look for another program that registers versions of this model",
        )

    def _complete(self, draft: VersionDraft, raw: dict[str, Any]) -> ModelVersion:
        body = _artifact_body(draft)
        artifact = self._artifact(draft.name, raw)
        if artifact is None:
            # The version's own half is checked before the missing half is added to it.
            check_same_content(self.address, draft, _to_version(draft.name, raw, body))
            path = f"model_versions/{raw['id']}/artifacts"
            # None means that another retry was faster; the version then has its artifact.
            artifact = self._api.create(path, body) or self._artifact(draft.name, raw)
        version = self._with_artifact(draft.name, raw, artifact)
        check_same_content(self.address, draft, version)
        return version

    def _set_state(self, name: str, version: str, state: State, by: str, reason: str) -> ModelVersion:
        raw = self._raw_version(name, version)
        current = self._with_artifact(name, raw)
        if current.state == state:
            return current
        check_transition(self.address, current.reference, current.state, state)
        number = max((number for number, _ in _transitions(raw)), default=0) + 1
        now = datetime.now(UTC)
        step = Transition(from_state=current.state, to_state=state, at=now, by=by, reason=reason)
        # The server replaces all custom properties by those that are sent, so the others are sent back as they are.
        properties = {**raw.get("customProperties", {}), **_state_properties(state, number, step)}
        body = {"customProperties": properties, "state": "ARCHIVED" if state == State.ARCHIVED else "LIVE"}
        changed = self._api.update(f"model_versions/{raw['id']}", body)
        return self._with_artifact(name, changed)

    def _find_model(self, name: str) -> dict[str, Any] | None:
        # A backslash escapes what follows in SQL's LIKE; at the end of a name the server answers 400.
        searchable = name != "" and name.isascii() and name.isprintable() and "\\" not in name
        found = self._api.find("registered_model", name=name) if searchable else None
        if found is not None and found["name"] == name:
            return found
        # The search takes `_` and `%` for wildcards and answers 404 to several matches; only a list is exact.
        return next((raw for raw in self._api.pages("registered_models") if raw["name"] == name), None)

    def _ensure_model(self, name: str) -> dict[str, Any]:
        model = self._find_model(name) or self._api.create("registered_models", {"name": name})
        # The server has it by now: another writer was faster.
        model = model or self._find_model(name)
        if model is None:
            raise RegistryError(
                self.address,
                f"a model whose name differs from {name} only in capitals",
                "the server's database does not tell them apart",
                "register under another name",
            )
        return model

    def _raw_versions(self, model: Mapping[str, Any]) -> list[dict[str, Any]]:
        return sorted(self._api.pages(f"registered_models/{model['id']}/versions"), key=lambda raw: int(raw["id"]))

    def _raw_version(self, name: str, version: str) -> dict[str, Any]:
        model = self._find_model(name)
        if model is None:
            raise self._missing_model(name)
        versions = self._raw_versions(model)
        for raw in versions:
            if raw["name"] == version:
                return raw
        raise self._missing(name, version, [raw["name"] for raw in versions])

    def _artifact(self, name: str, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return our artifact of a version, or the newest model artifact that another tool gave it."""
        artifacts = [
            artifact
            for artifact in self._api.pages(f"model_versions/{raw['id']}/artifacts")
            if artifact.get("artifactType") == "model-artifact"
        ]
        ours = [artifact for artifact in artifacts if artifact.get("name") == name]
        return max(ours or artifacts, key=lambda artifact: int(artifact["id"]), default=None)

    def _with_artifact(
        self, name: str, raw: Mapping[str, Any], artifact: Mapping[str, Any] | None = None
    ) -> ModelVersion:
        found = artifact or self._artifact(name, raw)
        if found is None:
            key = _text(raw.get("customProperties", {}), f"{_PREFIX}key")
            raise RegistryError(
                f"{self.address}, {name}@{raw['name']}",
                "it was only registered in half: the address of the model's files is missing",
                "a version needs a model artifact",
                f"run the registration of {key} again" if key else "add the artifact with the tool that registered it",
            )
        return _to_version(name, raw, found)


class _Api:
    """The server's REST API: one JSON object in, one out, every failure an error that a user can act on."""

    def __init__(self, url: str, token: str | None, ca_file: Path | str | None, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise UsageError(
                f"registry {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()!r}",
                "not the URL of a server" if parts.username is None else "it carries credentials",
                "http://HOST:PORT or https://HOST is needed",
                f"write it so, and put a token into {TOKEN_VARIABLE}",
            )
        self._url = url
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.partition('/api/model_registry')[0].rstrip('/')}"
        self._token = token
        ca = ca_file or os.environ.get(CA_VARIABLE)
        if ca and not Path(ca).is_file():
            raise UsageError(
                f"certificates {ca}",
                "no such file",
                "a PEM file is needed",
                f"correct the path, or unset {CA_VARIABLE}",
            )
        # Every call may be repeated: creating twice is told apart by name and external id, and an update sets values.
        retries = urllib3.Retry(
            total=3,
            redirect=False,
            allowed_methods=None,
            status_forcelist=(429, 502, 503, 504),
            backoff_factor=0.2,
            raise_on_status=False,
        )
        self._pool = urllib3.PoolManager(
            retries=retries,
            timeout=urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds),
            ca_certs=str(ca) if ca else None,
        )
        self._version: str | None = None

    def version(self) -> str:
        """Return the version of the API that the server speaks, asking once."""
        if self._version is None:
            for version in API_VERSIONS:
                status, answer = self._send("GET", version, "registered_models", {"pageSize": "1"})
                if status != 404:
                    self._expect(status, answer, (200,), "registered_models")
                    self._version = version
                    break
            else:
                raise RegistryError(
                    self._url,
                    f"it knows none of {', '.join(f'/api/model_registry/{version}' for version in API_VERSIONS)} (404)",
                    "a Kubeflow Model Registry answers one of them",
                    "check host, port and path; the service is model-registry-service, its REST port 8080",
                )
        return self._version

    def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """Get one object, None for 404."""
        return self._call("GET", path, query, None, (200,), 404)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Post one object, None if the server already has it."""
        return self._call("POST", path, {}, body, (200, 201), 409)

    def update(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Patch one object."""
        changed = self._call("PATCH", path, {}, body, (200,), None)
        assert changed is not None
        return changed

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Get every item of a list."""
        query = {"pageSize": str(_PAGE_SIZE)}
        while True:
            page = self._call("GET", path, query, None, (200,), None)
            assert page is not None
            yield from page.get("items") or []
            following = page.get("nextPageToken")
            if not following or following == query.get("nextPageToken"):
                return
            query["nextPageToken"] = following

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        accepted: tuple[int, ...],
        absent: int | None,
    ) -> dict[str, Any] | None:
        status, answer = self._send(method, self.version(), path, query, body)
        if status == absent:
            return None
        return self._expect(status, answer, accepted, path)

    def _send(
        self,
        method: str,
        version: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
    ) -> tuple[int, bytes]:
        url = f"{self._base}/api/model_registry/{version}/{path}"
        if query:
            url += f"?{urlencode(query)}"
        headers = {"Accept": "application/json"}
        token = self._read_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            # The server refuses a body with the characters \u0000 in it, also where the backslash is text and stands in
            # JSON as two. Written as \u005c it means the same and passes.
            data = json.dumps(body, allow_nan=False).replace("\\\\", "\\u005c").encode()
        try:
            answer = self._pool.request(method, url, headers=headers, body=data, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            tls = isinstance(reason, urllib3.exceptions.SSLError)
            raise RegistryError(
                self._url,
                f"no answer ({type(reason).__name__}: {str(reason).rpartition(': ')[2][:200]})",
                "the server's certificate must be signed by a known authority" if tls else "a running server is needed",
                f"point {CA_VARIABLE} at the authority's certificate"
                if tls
                else "check host and port; from outside the cluster: "
                "kubectl port-forward --namespace kubeflow service/model-registry-service 8080",
            ) from error
        return answer.status, answer.data

    def _expect(self, status: int, answer: bytes, accepted: tuple[int, ...], path: str) -> dict[str, Any]:
        try:
            values = json.loads(answer)
        except ValueError:
            values = None
        if status in accepted and isinstance(values, dict):
            return values
        where = f"{self._url}, {path}"
        if 300 <= status < 400 or status in (401, 403):
            raise RegistryError(
                where,
                f"HTTP {status}",
                "a bearer token that may use the registry is needed",
                f"set {TOKEN_VARIABLE} or {_TOKEN_PATH_VARIABLE}, and let the service account through the server's "
                "authorization policy",
            )
        if status in accepted:
            raise RegistryError(
                where, "an answer that is not a JSON object", "the REST API is needed", "check host, port and path"
            )
        message = values.get("message") if isinstance(values, dict) else None
        raise RegistryError(
            where,
            f"HTTP {status}: {str(message or answer[:200].decode(errors='replace') or 'no message').strip()}",
            "the server was expected to accept the request",
            "repeat the step: it continues where it stopped; if it fails again, read the server's log",
        )

    def _read_token(self) -> str:
        given = self._token or os.environ.get(TOKEN_VARIABLE)
        if given:
            return given.strip()
        named = os.environ.get(_TOKEN_PATH_VARIABLE)
        path = Path(named) if named else _POD_TOKEN_PATH
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            if not named:
                return ""
            raise RegistryError(
                f"{_TOKEN_PATH_VARIABLE}={named}",
                f"it cannot be read ({error.strerror})",
                "the file holds the token for the registry",
                "mount the token there, or unset the variable",
            ) from error


def _external_id(name: str, key: str) -> str:
    # Hashed, since the server's field ends at 255 characters and MySQL compares it without regard to case.
    return "mlflywheel-" + hashlib.sha256(f"{name}\x00{key}".encode()).hexdigest()


def _version_body(draft: VersionDraft, by: str, number: str, model_id: str, external_id: str) -> dict[str, Any]:
    step = Transition(from_state=None, to_state=State.CANDIDATE, at=datetime.now(UTC), by=by)
    properties: dict[str, Any] = {
        f"{_PREFIX}key": _to_property(draft.key),
        f"{_PREFIX}hash": _to_property(draft.hash),
        **_state_properties(State.CANDIDATE, 1, step),
        **{f"metric.{name}": _to_property(value) for name, value in draft.metrics.items()},
        **{f"lineage.{name}": _to_property(value) for name, value in draft.lineage.items()},
    }
    for name, value in draft.parameters.items():
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            properties[f"parameter-integer.{name}"] = _to_property(str(value))
        else:
            properties[f"parameter.{name}"] = _to_property(value)
    return {
        "name": number,
        "registeredModelId": model_id,
        "externalId": external_id,
        "description": draft.description,
        "author": by,
        "state": "LIVE",
        "customProperties": properties,
    }


def _artifact_body(draft: VersionDraft) -> dict[str, Any]:
    body: dict[str, Any] = {
        "artifactType": "model-artifact",
        # The server's own client looks the artifact up by the model's name.
        "name": draft.name,
        "uri": draft.uri,
        "state": "LIVE",
        "modelFormatName": draft.format_name,
        "modelFormatVersion": draft.format_version,
        "customProperties": {f"{_PREFIX}endpoint": _to_property(draft.endpoint)} if draft.endpoint else {},
    }
    if draft.secret:
        body["storageKey"] = draft.secret
        body["storagePath"] = ServingLocation(draft.uri).path
    if draft.service_account:
        body["serviceAccountName"] = draft.service_account
    if "run_id" in draft.lineage:
        body["modelSourceKind"] = "kfp"
        body["modelSourceClass"] = "pipelinerun"
        body["modelSourceId"] = draft.lineage["run_id"]
        for field_name, name in (("modelSourceGroup", "namespace"), ("modelSourceName", "pipeline")):
            if name in draft.lineage:
                body[field_name] = draft.lineage[name]
    return body


def _state_properties(state: State, number: int, step: Transition) -> dict[str, Any]:
    return {
        f"{_PREFIX}state": _to_property(str(state)),
        f"{_PREFIX}transition.{number:03d}": _to_property(json.dumps(step.to_dict(), sort_keys=True)),
    }


def _to_version(name: str, raw: Mapping[str, Any], artifact: Mapping[str, Any]) -> ModelVersion:
    properties = raw.get("customProperties", {})
    parameters = _by_prefix(properties, "parameter.")
    for k, v in _by_prefix(properties, "parameter-integer.").items():
        parameters[k] = int(v) if isinstance(v, str) and v.removeprefix("-").isdecimal() else v
    return ModelVersion(
        name=name,
        version=raw["name"],
        key=_text(properties, f"{_PREFIX}key"),
        uri=artifact.get("uri", ""),
        endpoint=_text(artifact.get("customProperties", {}), f"{_PREFIX}endpoint"),
        secret=artifact.get("storageKey", ""),
        service_account=artifact.get("serviceAccountName", ""),
        format_name=artifact.get("modelFormatName", ""),
        format_version=artifact.get("modelFormatVersion", ""),
        hash=_text(properties, f"{_PREFIX}hash"),
        metrics={k: v for k, v in _by_prefix(properties, "metric.").items() if isinstance(v, float)},
        parameters=parameters,
        lineage={k: str(v) for k, v in _by_prefix(properties, "lineage.").items()},
        description=raw.get("description", ""),
        state=_state_of(raw),
        created_at=_time_of(raw),
    )


def _state_of(raw: Mapping[str, Any]) -> State:
    if raw.get("state") == "ARCHIVED":
        return State.ARCHIVED
    ours = _text(raw.get("customProperties", {}), f"{_PREFIX}state")
    # Restored in the registry's own pages, registered by another tool, or edited there to a word that is no state.
    return State(ours) if ours in {*State} - {State.ARCHIVED} else State.CANDIDATE


def _transitions(raw: Mapping[str, Any]) -> list[tuple[int, Transition]]:
    prefix = f"{_PREFIX}transition."
    found = []
    for name, value in raw.get("customProperties", {}).items():
        number = name.removeprefix(prefix)
        if not name.startswith(prefix) or not number.isdecimal():
            continue
        try:
            row = json.loads(_text({name: value}, name))
            step = Transition(
                from_state=State(row["from_state"]) if row["from_state"] is not None else None,
                to_state=State(row["to_state"]),
                at=datetime.fromisoformat(row["at"]),
                by=str(row["by"]),
                reason=str(row["reason"]),
            )
        except (ValueError, KeyError, TypeError):
            # Edited by hand in the registry's pages: the rest of the history is still worth showing.
            continue
        found.append((int(number), step))
    return sorted(found, key=lambda pair: pair[0])


def _time_of(raw: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(int(raw.get("createTimeSinceEpoch", "0")) / 1000, UTC)


def _to_property(value: Scalar) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"metadataType": "MetadataBoolValue", "bool_value": value}
    if isinstance(value, int):
        return {"metadataType": "MetadataIntValue", "int_value": str(value)}
    if isinstance(value, float):
        return {"metadataType": "MetadataDoubleValue", "double_value": value}
    return {"metadataType": "MetadataStringValue", "string_value": value}


def _from_property(value: Mapping[str, Any]) -> Scalar | None:
    kind = value.get("metadataType")
    if kind == "MetadataBoolValue":
        return bool(value["bool_value"])
    if kind == "MetadataIntValue":
        return int(value["int_value"])
    if kind == "MetadataDoubleValue":
        # A whole number comes back from JSON as an integer.
        return float(value["double_value"])
    return str(value["string_value"]) if kind == "MetadataStringValue" else None


def _by_prefix(properties: Mapping[str, Any], prefix: str) -> dict[str, Scalar]:
    values = {name: _from_property(value) for name, value in properties.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in values.items() if value is not None}


def _text(properties: Mapping[str, Any], name: str) -> str:
    value = _from_property(properties[name]) if name in properties else None
    return value if isinstance(value, str) else ""
