"""The registry on Kubeflow Model Registry, against a server that validates every request and answer."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("urllib3")
pytest.importorskip("openapi_core")

from model_registry_server import ModelRegistryServer
from registry_contract import RegistryContract, register

from mlflywheel.cluster.connection import open_registry
from mlflywheel.cluster.model_registry import CA_VARIABLE, TOKEN_VARIABLE, KubeflowRegistry
from mlflywheel.errors import RegistryError, UsageError
from mlflywheel.registry.records import State

TOKEN = "a-token"


@pytest.fixture(scope="session")
def specification(shared_folder: Path) -> dict[str, Any]:
    path = shared_folder / "specs" / "model-registry-openapi.yaml"
    if not path.is_file():
        pytest.skip("the Model Registry's OpenAPI description is not there")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return loaded


@pytest.fixture
def speaks(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return getattr(request, "param", ("v1alpha3",))


@pytest.fixture
def server(specification: dict[str, Any], speaks: tuple[str, ...]) -> Iterator[ModelRegistryServer]:
    with ModelRegistryServer(specification, speaks) as running:
        yield running
    assert running.violations == []


@pytest.fixture
def registry(server: ModelRegistryServer, monkeypatch: pytest.MonkeyPatch) -> KubeflowRegistry:
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    monkeypatch.delenv(CA_VARIABLE, raising=False)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    return KubeflowRegistry(server.url)


class TestKubeflowRegistry(RegistryContract):
    """The contract, on a server."""


@pytest.mark.parametrize(
    ("speaks", "used"),
    [(("v1alpha3",), "v1alpha3"), (("v1",), "v1"), (("v1", "v1alpha3"), "v1")],
    indirect=["speaks"],
)
def test_the_version_that_the_server_speaks_is_used(registry: KubeflowRegistry, used: str) -> None:
    assert register(registry).version == "1"
    assert registry.check().endswith(f"API {used}")
    assert registry.get("ad-campaigns").key == "run-1"


@pytest.mark.parametrize("speaks", [("v2",)], indirect=True)
def test_server_that_speaks_neither_is_named_with_both_paths(registry: KubeflowRegistry) -> None:
    with pytest.raises(RegistryError, match=r"/api/model_registry/v1, /api/model_registry/v1alpha3 \(404\)"):
        registry.list_models()


def test_version_without_its_artifact_is_hidden_and_completed_by_a_retry(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    server.failures.append(("POST", "model_versions/[0-9]+/artifacts", 500))
    with pytest.raises(RegistryError, match="HTTP 500: the database went away") as caught:
        register(registry)
    assert "continues where it stopped" in caught.value.fix
    assert (len(server.versions), len(server.artifacts)) == (1, 0)
    assert registry.list_versions("ad-campaigns") == []
    assert registry.find("ad-campaigns", State.CANDIDATE) is None
    with pytest.raises(RegistryError, match="registered in half") as caught:
        registry.get("ad-campaigns", "1")
    assert caught.value.fix == "run the registration of run-1 again"
    with pytest.raises(RegistryError, match="registered in half"):
        registry.set_state("ad-campaigns", "1", "approved", by="ann")

    made = register(registry)
    assert (made.version, made.uri) == ("1", "s3://models/ad-campaigns/run-1")
    assert registry.list_versions("ad-campaigns") == [made]
    assert (len(server.versions), len(server.artifacts)) == (1, 1)


def test_half_version_is_not_completed_with_other_content(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    server.failures.append(("POST", "model_versions/[0-9]+/artifacts", 500))
    with pytest.raises(RegistryError, match="HTTP 500"):
        register(registry)
    with pytest.raises(RegistryError, match="hash 'sha256:run-1', now 'sha256:other'"):
        register(registry, hash="sha256:other")
    assert server.artifacts == {}


def test_another_key_does_not_take_a_half_versions_number(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    server.failures.append(("POST", "model_versions/[0-9]+/artifacts", 500))
    with pytest.raises(RegistryError, match="HTTP 500"):
        register(registry, "run-1")
    assert register(registry, "run-2").version == "2"
    assert register(registry, "run-1").version == "1"
    assert [v.key for v in registry.list_versions("ad-campaigns")] == ["run-1", "run-2"]


@pytest.mark.parametrize("path", ["registered_models", "model_versions", "model_versions/[0-9]+/artifacts"])
def test_lost_answer_leads_to_no_duplicate(registry: KubeflowRegistry, server: ModelRegistryServer, path: str) -> None:
    # 503 is repeated at once by the connection, which then meets what its first attempt made.
    server.lost_answers.append(("POST", path, 503))
    made = register(registry)
    assert made.version == "1"
    assert server.lost_answers == []
    assert [len(x) for x in (server.models, server.versions, server.artifacts)] == [1, 1, 1]
    assert register(registry) == made


def test_writers_that_see_the_same_last_number_get_different_ones(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    register(registry, "run-0")
    both_have_read = threading.Barrier(2, timeout=10)

    def before(method: str, path: str) -> None:
        if (method, path) == ("POST", "model_versions") and len(server.versions) == 1:
            both_have_read.wait()

    server.before = before
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda key: register(KubeflowRegistry(server.url), key), ["run-1", "run-2"]))
    assert sorted(v.version for v in made) == ["2", "3"]
    assert {v.key for v in registry.list_versions("ad-campaigns")} == {"run-0", "run-1", "run-2"}
    # One for run-0, one for each of the two, and the loser's second try.
    assert server.requests.count(("POST", "model_versions")) == 4


def test_writers_with_one_key_at_once_make_one_version(registry: KubeflowRegistry, server: ModelRegistryServer) -> None:
    register(registry, "run-0")
    both_have_read = threading.Barrier(2, timeout=10)

    def before(method: str, path: str) -> None:
        if (method, path) == ("POST", "model_versions") and len(server.versions) == 1:
            both_have_read.wait()

    server.before = before
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda key: register(KubeflowRegistry(server.url), key), ["run-1", "run-1"]))
    assert made[0] == made[1]
    assert made[0].version == "2"
    assert (len(server.versions), len(server.artifacts)) == (2, 2)


def test_entry_is_what_kserve_and_the_registrys_pages_read(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    register(
        registry,
        uri="minio://mlpipeline/v2/model",
        endpoint="http://minio-service.kubeflow:9000",
        secret="mlpipeline-minio-artifact",
        service_account="reader",
    )
    (artifact,) = server.artifacts.values()
    wanted = {
        "artifactType": "model-artifact",
        "uri": "s3://mlpipeline/v2/model",
        "storageKey": "mlpipeline-minio-artifact",
        "storagePath": "v2/model",
        "serviceAccountName": "reader",
        "modelFormatName": "topic-fingerprints",
        "modelFormatVersion": "1",
        "modelSourceKind": "kfp",
        "modelSourceGroup": "team-a",
        "modelSourceId": "run-1",
    }
    assert {name: artifact[name] for name in wanted} == wanted
    (version,) = server.versions.values()
    properties = version["customProperties"]
    assert properties["metric.rows"] == {"metadataType": "MetadataDoubleValue", "double_value": 812.0}
    assert properties["parameter.topics"] == {"metadataType": "MetadataIntValue", "int_value": "30"}
    assert properties["parameter-integer.seed"]["string_value"] == str(2**62 + 1)


def test_archiving_and_restoring_follow_the_servers_own_state(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    register(registry)
    (version,) = server.versions.values()
    registry.set_state("ad-campaigns", "1", "approved", by="ann")
    assert version["state"] == "LIVE"
    version["state"] = "ARCHIVED"
    assert registry.get("ad-campaigns", "1").state == State.ARCHIVED
    version["state"] = "LIVE"
    registry.set_state("ad-campaigns", "1", "archived", by="ann")
    assert version["state"] == "ARCHIVED"
    version["state"] = "LIVE"
    assert registry.get("ad-campaigns", "1").state == State.CANDIDATE


def test_what_other_tools_wrote_on_a_version_stays(registry: KubeflowRegistry, server: ModelRegistryServer) -> None:
    register(registry)
    (version,) = server.versions.values()
    theirs = {"metadataType": "MetadataStringValue", "string_value": ""}
    version["customProperties"]["label"] = theirs
    version["customProperties"]["mlflywheel.transition.002"] = {**theirs, "string_value": "edited by hand"}
    registry.set_state("ad-campaigns", "1", "approved", by="ann")
    assert version["customProperties"]["label"] == theirs
    assert [row.by for row in registry.history("ad-campaigns", "1")] == ["pipeline", "ann"]


def test_versions_of_other_tools_are_listed_and_can_be_decided_on(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    api = registry._api
    for name in ("a_model", "axmodel", "A_MODEL2"):
        model = api.create("registered_models", {"name": name})
        assert model is not None
    model_id = next(m["id"] for m in server.models.values() if m["name"] == "a_model")
    version = api.create("model_versions", {"name": "v1.0", "registeredModelId": model_id})
    assert version is not None
    text = {"metadataType": "MetadataStringValue", "string_value": "high"}
    version = api.update(f"model_versions/{version['id']}", {"customProperties": {"metric.accuracy": text}})
    for body in ({"artifactType": "doc-artifact", "uri": "s3://b/doc"}, {"uri": "s3://b/1"}, {"uri": "s3://b/2"}):
        api.create(f"model_versions/{version['id']}/artifacts", {"artifactType": "model-artifact", **body})
    (found,) = registry.list_versions("a_model")
    assert (found.version, found.uri, found.key, found.state) == ("v1.0", "s3://b/2", "", State.CANDIDATE)
    assert found.metrics == {}
    assert registry.set_state("a_model", "v1.0", "approved", by="ann").state == State.APPROVED
    assert registry.list_versions("axmodel") == []


def test_model_that_differs_in_capitals_is_reported(registry: KubeflowRegistry) -> None:
    assert registry._api.create("registered_models", {"name": "Ad-Campaigns"}) is not None
    with pytest.raises(RegistryError, match="differs from ad-campaigns only in capitals"):
        register(registry)


def test_number_that_is_always_taken_ends_with_an_error(
    registry: KubeflowRegistry, server: ModelRegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflywheel.cluster.model_registry._ATTEMPTS", 3)
    register(registry, "run-0")

    def before(method: str, path: str) -> None:
        # Another program takes each number between our look and our try.
        if (method, path) == ("POST", "model_versions"):
            number = str(max(int(v["name"]) for v in server.versions.values()) + 1)
            template = next(iter(server.versions.values()))
            server.versions[1000 + int(number)] = {**template, "name": number, "id": number, "externalId": number}

    server.before = before
    with pytest.raises(RegistryError, match="no free version number for ad-campaigns after 3 attempts"):
        register(registry, "run-1")


def test_token_comes_from_argument_variable_or_file(
    server: ModelRegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    handle = server.handle

    def watch(method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        seen.append(headers.get("Authorization", "none"))
        return handle(method, target, headers, body)

    monkeypatch.setattr(server, "handle", watch)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    registry = KubeflowRegistry(server.url)
    registry.list_models()
    file.write_text("rotated")
    registry.list_models()
    monkeypatch.setenv(TOKEN_VARIABLE, "from-variable")
    registry.list_models()
    KubeflowRegistry(server.url, token="given").check()
    assert list(dict.fromkeys(seen)) == ["Bearer from-file", "Bearer rotated", "Bearer from-variable", "Bearer given"]

    monkeypatch.delenv(TOKEN_VARIABLE)
    file.unlink()
    with pytest.raises(RegistryError, match=r"KF_PIPELINES_SA_TOKEN_PATH=.*cannot be read"):
        registry.list_models()


@pytest.mark.parametrize(
    ("status", "answer", "named"),
    [
        (200, b"<html>sign in</html>", "an answer that is not a JSON object"),
        (302, b"", "HTTP 302; a bearer token"),
        (403, b"RBAC: access denied", "HTTP 403; a bearer token"),
        (500, b'{"code": "", "message": "no database"}', "HTTP 500: no database"),
        (418, b"", "HTTP 418: no message"),
    ],
)
def test_answers_of_something_else_are_explained(
    registry: KubeflowRegistry,
    server: ModelRegistryServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    answer: bytes,
    named: str,
) -> None:
    monkeypatch.setattr(server, "handle", lambda *_: (status, answer))
    with pytest.raises(RegistryError) as caught:
        registry.list_models()
    assert named in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_server_that_is_not_there_is_named_with_the_way_in(registry: KubeflowRegistry) -> None:
    # Port 9 is "discard", which nothing listens on here.
    with pytest.raises(RegistryError, match="no answer") as caught:
        KubeflowRegistry("http://127.0.0.1:9", timeout_seconds=1).list_models()
    assert "kubectl port-forward" in caught.value.fix


@pytest.mark.parametrize("url", ["http://", "ftp://host", "https://ann:pw@host"])
def test_address_that_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        KubeflowRegistry(url)
    assert "pw" not in str(caught.value)


def test_missing_certificates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CA_VARIABLE, "missing.pem")
    with pytest.raises(UsageError, match=r"missing\.pem"):
        KubeflowRegistry("https://registry.example.com")


def test_open_registry_takes_urls_with_and_without_the_api_path(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    register(registry)
    for url in (server.url, f"{server.url}/", f"{server.url}/api/model_registry/v1alpha3"):
        assert [model.name for model in open_registry(url).list_models()] == ["ad-campaigns"]


OFFICIAL_CLIENT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from model_registry import ModelRegistry
client = ModelRegistry(sys.argv[1], author="test", user_token="a-token", is_secure=False)
version = client.get_model_version("ad-campaigns", "1")
artifact = client.get_model_artifact("ad-campaigns", "1")
print(json.dumps([version.name, version.custom_properties["parameter.topics"], artifact.uri, artifact.storage_key]))
client.register_model("theirs", "s3://b/theirs", version="v1", model_format_name="onnx", model_format_version="1")
"""


@pytest.mark.parametrize("speaks", [("v1",)], indirect=True)
def test_the_servers_own_client_reads_ours_and_we_read_its(
    registry: KubeflowRegistry, server: ModelRegistryServer
) -> None:
    pytest.importorskip("mr_openapi")
    register(registry, secret="keys")
    run = [sys.executable, "-c", OFFICIAL_CLIENT, server.url]
    output = subprocess.run(run, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout) == ["1", 30, "s3://models/ad-campaigns/run-1", "keys"]
    (found,) = registry.list_versions("theirs")
    assert (found.version, found.uri, found.format_name) == ("v1", "s3://b/theirs", "onnx")
