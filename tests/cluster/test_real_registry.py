"""The registry on Kubeflow Model Registry's own server: what every registry promises, and what only it can show.

Which versions agree, as seen on PostgreSQL 16.4; both servers answer `/api/model_registry/v1` with 404:

| server | API | client 0.3.11, 0.3.14 | client 0.3.12, 0.3.18 |
| --- | --- | --- | --- |
| v0.3.8 | v1alpha3 | reads ours, and we read its | 404 |
| main of 2026-04-29 (bd07139a) | v1alpha3 | reads ours, and we read its | 404 |

The tests take any server: of the API's version and the installed client they ask only that they agree with it.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("urllib3")
# Last, so that it hides nothing: the contract is beside the tests of the other backends.
sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))

from registry_contract import RegistryContract, register
from registry_server import RegistryServer, what_is_missing

from mlflywheel.cluster.model_registry import API_VERSIONS, CA_VARIABLE, TOKEN_VARIABLE, KubeflowRegistry
from mlflywheel.errors import RegistryError
from mlflywheel.registry.records import State

_MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)


@pytest.fixture(scope="module")
def started() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def server(started: RegistryServer) -> RegistryServer:
    started.empty()
    return started


@pytest.fixture
def registry(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> KubeflowRegistry:
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", CA_VARIABLE, TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return KubeflowRegistry(server.url)


class TestRealRegistry(RegistryContract):
    """The contract, on the real server."""


def _counts(server: RegistryServer) -> list[int]:
    kinds = ("RegisteredModel", "ModelVersion")
    contexts = [
        server.sql(f'SELECT count(*) FROM "Context" c JOIN "Type" t ON t.id = c.type_id WHERE t.name = \'kf.{kind}\'')
        for kind in kinds
    ]
    return [int(count) for count in (*contexts, server.sql('SELECT count(*) FROM "Artifact"'))]


def _answered(server: RegistryServer) -> list[str]:
    """The versions of the API that the server answers, the newest first."""
    found = []
    for version in API_VERSIONS:
        try:
            with urllib.request.urlopen(f"{server.url}/api/model_registry/{version}/registered_models", timeout=10):
                found.append(version)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
    return found


def test_newest_api_that_the_server_answers_is_used(registry: KubeflowRegistry, server: RegistryServer) -> None:
    assert registry.check().endswith(f"API {_answered(server)[0]}")


# A process of its own, with nothing of the tests in it. It waits for a line, registers each key, and prints what it
# made; before the call of creation with the number STEP it ends without a word, as a killed pod does.
_WRITER = """
import json, os, sys
from mlflywheel.cluster.model_registry import KubeflowRegistry
url, step, *keys = sys.argv[1:]
registry = KubeflowRegistry(url)
create, calls = registry._api.create, []
def dying(path, body):
    if len(calls) == int(step):
        os._exit(9)
    calls.append(path)
    return create(path, body)
registry._api.create = dying
print("ready", flush=True)
sys.stdin.readline()
made = {}
for key in keys:
    version = registry.ensure_version(
        "ad-campaigns", f"s3://models/ad-campaigns/{key}", key=key, format_name="topic-fingerprints",
        format_version="1", hash=f"sha256:{key}", parameters={"topics": 30},
    )
    made[key] = version.version
if len(calls) == int(step):
    os._exit(9)
print(json.dumps(made))
"""
_NEVER = "1000000"


def _start_writer(server: RegistryServer, step: str, *keys: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _WRITER, server.url, step, *keys]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def _go(writer: "subprocess.Popen[str]") -> None:
    assert writer.stdin is not None
    writer.stdin.write("go\n")
    writer.stdin.flush()


@pytest.mark.parametrize(
    ("step", "left"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])], ids=["0", "1", "2", "3"]
)
def test_retry_completes_what_a_killed_writer_left(
    registry: KubeflowRegistry, server: RegistryServer, step: int, left: list[int]
) -> None:
    writer = _start_writer(server, str(step), "run-1")
    writer.communicate("go\n", timeout=60)
    assert writer.returncode == 9
    assert _counts(server) == left
    assert len(registry.list_versions("ad-campaigns") if left[0] else []) == left[2]
    made = register(registry, parameters={"topics": 30}, metrics={}, lineage={})
    assert (made.version, made.uri) == ("1", "s3://models/ad-campaigns/run-1")
    assert _counts(server) == [1, 1, 1]
    assert registry.list_versions("ad-campaigns") == [made]
    assert [row.to_state for row in registry.history("ad-campaigns", "1")] == [State.CANDIDATE]


def test_processes_that_write_at_once_share_keys_and_numbers(
    registry: KubeflowRegistry, server: RegistryServer
) -> None:
    shared = [f"run-{i}" for i in range(6)]
    orders = [[*shared, "only-a", "more-a"], [*shared, "only-b", "more-b"]]
    writers = [_start_writer(server, _NEVER, *keys) for keys in orders]
    for writer in writers:
        _go(writer)
    made = [json.loads(writer.communicate(timeout=60)[0]) for writer in writers]
    assert all(made[0][key] == made[1][key] for key in shared)
    versions = registry.list_versions("ad-campaigns")
    assert [v.version for v in versions] == [str(i + 1) for i in range(10)]
    assert {v.key: v.version for v in versions} == made[0] | made[1]
    assert _counts(server) == [1, 10, 10]


def test_long_and_odd_texts_come_back_as_they_were(registry: KubeflowRegistry) -> None:
    content = {
        "metrics": {"n" * 200: 1.0, "odd ü/?#%_\\'\" name": -0.5, "日本": 5e-324, "a.b": 1.7e308},
        "parameters": {"long": "ü" * 10_240, "empty": "", "no": False, "zero": 0, "emoji": "😀", "lines": "a\r\n\tb"},
        "lineage": {"long": json.dumps({"columns": ["x" * 100] * 100}), "quotes": '\\ \\\\ "\\" \\', "none": ""},
        "description": "d" * 20_000,
    }
    made = register(registry, "key/ü?%", uri="s3://models/ü/%41", **content)
    found = registry.get("ad-campaigns", "1")
    assert found == made
    assert {name: getattr(found, name) for name in content} == content
    for state in ("approved", "live", "archived"):
        registry.set_state("ad-campaigns", "1", state, by="Änne \\", reason='\'; DROP TABLE "Context"; --\\')
    assert {name: getattr(registry.get("ad-campaigns", "1"), name) for name in content} == content
    assert registry.history("ad-campaigns", "1")[-1].reason == '\'; DROP TABLE "Context"; --\\'


def test_text_that_spells_a_null_character_is_text(registry: KubeflowRegistry) -> None:
    # The server refuses the characters \u0000 anywhere in a request, whatever they mean in JSON.
    spelled = r'{"separator": "\u0000", "other": "\\u0000"}'
    register(registry, parameters={"settings": spelled})
    registry.set_state("ad-campaigns", "1", "approved", by="ann", reason=spelled)
    assert registry.get("ad-campaigns", "1").parameters == {"settings": spelled}
    assert registry.history("ad-campaigns", "1")[-1].reason == spelled


@pytest.mark.parametrize("name", ["ad\\", "\\", "ad_campaigns", "ad%", "%", "Ad-Campaigns", "ü/?#", " ", ""])
def test_name_with_signs_of_a_search_finds_no_other_model(registry: KubeflowRegistry, name: str) -> None:
    register(registry)
    with pytest.raises(RegistryError, match=r"no model .*registered models: ad-campaigns"):
        registry.list_versions(name)


def test_lists_go_on_after_the_first_page(registry: KubeflowRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflywheel.cluster.model_registry._PAGE_SIZE", 2)
    for i in range(5):
        register(registry, f"run-{i}")
    assert [v.key for v in registry.list_versions("ad-campaigns")] == [f"run-{i}" for i in range(5)]


def test_state_set_in_the_registrys_pages_is_seen(registry: KubeflowRegistry) -> None:
    register(registry)
    registry.set_state("ad-campaigns", "1", "approved", by="ann")
    raw = registry._raw_version("ad-campaigns", "1")
    registry._api.update(f"model_versions/{raw['id']}", {"state": "ARCHIVED"})
    assert registry.get("ad-campaigns", "1").state == State.ARCHIVED
    with pytest.raises(RegistryError, match="archived cannot become live"):
        registry.set_state("ad-campaigns", "1", "live", by="ann")
    assert registry.set_state("ad-campaigns", "1", "candidate", by="ann").state == State.CANDIDATE


_OFFICIAL_CLIENT = """
import sys, warnings
warnings.simplefilter("ignore")
from model_registry import ModelRegistry
client = ModelRegistry(sys.argv[1], author="test", user_token="a-token", is_secure=False)
print(client.get_model_version("ad-campaigns", "1").name)
"""


def test_official_client_agrees_only_with_a_server_that_answers_v1(
    registry: KubeflowRegistry, server: RegistryServer
) -> None:
    pytest.importorskip("mr_openapi")
    if tuple(int(part) for part in metadata.version("model-registry").split(".")) < (0, 3, 15):
        pytest.skip("a client of the API before v1")
    register(registry)
    run = [sys.executable, "-c", _OFFICIAL_CLIENT, server.url]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if "v1" in _answered(server):
        assert (done.returncode, done.stdout) == (0, "1\n")
    else:
        assert done.returncode != 0
        assert "404" in done.stderr
