"""What `mlflywheel doctor --cluster` says where no real API server is needed: servers that misbehave, and tables."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import urllib3
import yaml
from typer.testing import CliRunner

pytest.importorskip("kubernetes")

from kubernetes.client import ApiClient, Configuration

from mlflywheel import __version__
from mlflywheel.cli import app
from mlflywheel.cluster import api_reader, examination
from mlflywheel.cluster.api_reader import ApiReader
from mlflywheel.cluster.examination import Check, Examined, Subject, examine_cluster, list_checks, run_check
from mlflywheel.cluster.examined_kserve import FORMATS
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.kubernetes_client import Connection
from mlflywheel.cluster.rights import PURPOSES, Purpose
from mlflywheel.doctor import examine_cluster as look
from mlflywheel.errors import UsageError
from mlflywheel.models.contract import load_model_class
from mlflywheel.pipelines.catalog import PIPELINES

ROOT = Path(__file__).resolve().parents[2]
CHECKS = {check.name: check for check in list_checks()}
KSERVE = {"resources": [{"name": "inferenceservices"}]}


class PlayedServer:
    """An HTTP server on 127.0.0.1 with an answer for each path, with or without its query; 404 for any other."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.headers: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                played.headers.append(dict(self.headers.items()))
                path = self.path if self.path in played.answers else self.path.partition("?")[0]
                missing = (404, {"kind": "Status", "message": "not found", "details": {"name": path}})
                status, answer = played.answers.get(path, missing)
                body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[PlayedServer]:
    with PlayedServer() as started:
        yield started


@pytest.fixture
def connection(server: PlayedServer) -> Iterator[Connection]:
    configuration = Configuration(host=server.url)
    configuration.retries = False
    with ApiClient(configuration) as api:
        yield Connection(api, "team", "context test")
        api.rest_client.pool_manager.clear()


def ask(name: str, connection: Connection | None = None, **subject: Any) -> dict[str, Finding]:
    """Carry out one check, and return its findings by subject."""
    reader = None if connection is None else ApiReader(connection, is_own=False)
    found = run_check(CHECKS[name], Examined(Subject(**subject), "team", reader))
    assert all(one.subject.startswith(name) and one.group == CHECKS[name].group for one in found)
    assert all(one.fix for one in found if one.status != "ok")
    return {one.subject: one for one in found}


def read_role(purpose: Purpose) -> set[tuple[str, str, str, str]]:
    role = yaml.safe_load((ROOT / purpose.manifest / "role.yaml").read_text(encoding="utf-8"))
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


@pytest.mark.parametrize("purpose", PURPOSES, ids=lambda purpose: purpose.name)
def test_rights_that_are_asked_about_are_those_of_the_manifest(purpose: Purpose) -> None:
    ours = [(right.group, right.resource, right.verb, right.name) for right in purpose.rights]
    assert set(ours) == read_role(purpose)
    assert len(ours) == len(set(ours))
    assert any(right.is_needed for right in purpose.rights)


def test_page_lists_every_check() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").partition("## Rights")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE)
    assert rows[1:] == [(check.group, check.name, check.looks_at) for check in list_checks()]


def test_formats_are_those_of_the_models() -> None:
    assert set(FORMATS) == {load_model_class(pipeline.model).format_name for pipeline in PIPELINES}


def test_a_check_that_fails_hides_no_other_and_repeats_nothing_it_read() -> None:
    def fail(_: Examined) -> Iterator[Finding]:
        yield Finding("thing", "ok", "seen before")
        raise ValueError("hunter2")

    first, second = run_check(Check("group", "thing", "", fail), Examined(Subject(), "team"))
    assert (first.text, first.group) == ("seen before", "group")
    assert (second.status, second.text) == ("note", "the check itself failed with ValueError")


def test_a_check_that_hangs_is_left_behind(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def wait(_: Examined) -> list[Finding]:
        end.wait(30)
        return []

    checks = (
        Check("group", "slow", "", wait),
        Check("group", "quick", "", lambda _: [Finding("quick", "ok", "seen")]),
    )
    monkeypatch.setattr(examination, "list_checks", lambda: checks)
    found = examine_cluster(Subject(), connection, limit_seconds=0.5)
    end.set()
    assert [(one.subject, one.text) for one in found if one.group == "group"] == [
        ("slow", "no answer in time"),
        ("quick", "seen"),
    ]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def write_kubeconfig(path: Path, url: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "team"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "a-token"}}],
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def test_an_unreachable_server_is_one_problem_within_seconds(
    tmp_path: Path, server: PlayedServer, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kubeconfig(tmp_path / "config", f"https://127.0.0.1:{closed_port}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server.answers["/apis/v2beta1/healthz"] = (200, {"multi_user": False})
    started = time.monotonic()
    found = look(host=server.url)
    assert time.monotonic() - started < 10
    problems = [one for one in found if one.status == "problem"]
    assert [one.subject for one in problems] == ["API server"]
    assert "does not answer: " in problems[0].text
    assert "refused" in problems[0].text
    assert "kubectl get --raw /readyz" in problems[0].fix
    # What needs no API server is looked at all the same.
    assert "for one user" in next(one.text for one in found if one.subject == "Kubeflow Pipelines")


def test_a_missing_kubeconfig_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = CliRunner().invoke(app, ["doctor", "--cluster"])
    assert result.exit_code == 1
    assert "✗ kubeconfig" in result.output
    assert "Fix: set KUBECONFIG" in result.output
    assert "– object store" in result.output
    assert "kind InferenceService" not in result.output


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (401, {"message": "Unauthorized"}, "does not accept the credentials of context test"),
        (200, "<html>log in</html>", "does not answer: the answer is no JSON object"),
    ],
)
def test_a_server_that_lets_nobody_in_is_one_problem(
    connection: Connection, server: PlayedServer, status: int, answer: Any, expected: str
) -> None:
    server.answers["/version"] = (status, answer)
    found = [one for one in examine_cluster(Subject(), connection) if one.status == "problem"]
    assert [one.subject for one in found] == ["API server"]
    assert expected in found[0].text


def test_a_silent_server_is_given_up(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_reader, "CALL_TIMEOUT_SECONDS", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection.api.configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = examine_cluster(Subject(), connection)
    assert time.monotonic() - started < 5
    assert [one.subject for one in found if one.status == "problem"] == ["API server"]


def test_an_old_api_server_is_told_of(connection: Connection, server: PlayedServer) -> None:
    server.answers["/version"] = (200, {"gitVersion": "v1.27.4-eks-1"})
    assert ask("API server", connection)["API server"].status == "note"
    server.answers["/version"] = (200, {"gitVersion": "v1.32.0"})
    assert ask("API server", connection)["API server"].status == "ok"


def test_gpus_are_counted(connection: Connection, server: PlayedServer) -> None:
    gpus = {"status": {"allocatable": {"nvidia.com/gpu": "4"}}}
    server.answers["/api/v1/nodes"] = (
        200,
        {"items": [{"status": {"allocatable": {"cpu": "8"}}}, gpus], "metadata": {"continue": "more"}},
    )
    server.answers["/api/v1/nodes?limit=500&continue=more"] = (200, {"items": [gpus]})
    assert ask("GPU nodes", connection)["GPU nodes"].text == "2 of 3 nodes, 8 GPUs"


@pytest.mark.parametrize(("bundle", "status"), [("Cg==", "problem"), ("", "problem"), ("LS0tLQ==", "ok")])
def test_a_webhook_without_its_authority_is_a_problem(
    connection: Connection, server: PlayedServer, bundle: str, status: str
) -> None:
    server.answers["/apis/serving.kserve.io/v1beta1"] = (200, KSERVE)
    webhook = {"clientConfig": {"caBundle": bundle}}
    for kind in ("validating", "mutating"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/inferenceservice.serving.kserve.io"
        server.answers[path] = (200, {"webhooks": [webhook]})
    found = ask("webhook", connection)
    assert [one.status for one in found.values()] == [status] * 2


@pytest.mark.parametrize(
    ("image", "available", "status"),
    [
        ("kserve/kserve-controller:v0.21.0", 1, "ok"),
        ("registry:5000/kserve/kserve-controller:v0.15.2@sha256:12", 1, "note"),
        ("kserve/kserve-controller@sha256:12", 1, "ok"),
        ("kserve/kserve-controller:v0.21.0", 0, "problem"),
    ],
)
def test_controller_is_judged_by_its_image_and_its_pods(
    connection: Connection, server: PlayedServer, image: str, available: int, status: str
) -> None:
    server.answers["/apis/serving.kserve.io/v1beta1"] = (200, KSERVE)
    containers = [{"name": "kube-rbac-proxy", "image": "proxy:v0.13.1"}, {"name": "manager", "image": image}]
    server.answers["/apis/apps/v1/namespaces/kubeflow/deployments/kserve-controller-manager"] = (
        200,
        {"spec": {"template": {"spec": {"containers": containers}}}, "status": {"availableReplicas": available}},
    )
    found = ask("controller", connection)["controller"]
    assert found.status == status
    assert image in found.text


@pytest.mark.parametrize(
    ("release", "deadline", "status", "expected"),
    [
        ("2.17.0", True, "ok", "compiled by kfp-2.17.0, and nothing in it is newer"),
        ("2.16.0", False, "ok", "nothing in it is newer"),
        ("2.16.0", True, "problem", "secrets, volumes and tolerations"),
        ("unknown", True, "note", "does not say its release"),
    ],
)
def test_pipelines_are_compared_with_the_release_of_their_server(
    server: PlayedServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    release: str,
    deadline: bool,
    status: str,
    expected: str,
) -> None:
    (tmp_path / "token").write_text("hunter2\n", encoding="utf-8")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    documents: list[Any] = [{"sdkVersion": "kfp-2.17.0", "pipelineInfo": {"name": "ads"}}]
    if deadline:
        documents.append({"platforms": {"kubernetes": {"pipelineConfig": {"activeDeadlineSeconds": 60}}}})
    (tmp_path / "ads.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    server.answers["/pipeline/apis/v2beta1/healthz"] = (200, {"multi_user": True, "tag_name": release})
    first, second = ask(
        "Kubeflow Pipelines", host=f"{server.url}/pipeline/", pipelines={"ads": tmp_path / "ads.yaml"}
    ).values()
    assert "for several users, you in team" in first.text
    assert second.status == status
    assert expected in second.text
    assert server.headers[0]["Authorization"] == "Bearer hunter2"
    assert "hunter2" not in f"{first}{second}"


def test_pipelines_in_the_cluster_are_found_without_an_address(connection: Connection, server: PlayedServer) -> None:
    path = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/apis/v2beta1/healthz"
    server.answers[path] = (200, {"multi_user": False, "tag_name": "2.17.0"})
    found = ask("Kubeflow Pipelines", connection)["Kubeflow Pipelines"]
    assert found.text == "2.17.0 at service ml-pipeline in kubeflow, for one user"
    server.answers[path] = (503, {"message": 'no endpoints available for service "ml-pipeline:http"'})
    away = ask("Kubeflow Pipelines", connection)["Kubeflow Pipelines"]
    assert (away.status, "no endpoints available" in away.text) == ("note", True)
    assert "port-forward" in away.fix


@pytest.mark.parametrize(
    ("status", "answer"), [(302, "<html>"), (403, {"message": "RBAC"}), (200, "<html>log in</html>"), (404, {})]
)
def test_a_login_before_kubeflow_pipelines_is_a_problem(server: PlayedServer, status: int, answer: Any) -> None:
    server.answers["/apis/v2beta1/healthz"] = (status, answer)
    (found,) = ask("Kubeflow Pipelines", host=server.url).values()
    assert found.status == "problem"
    assert server.url in found.text


@pytest.mark.parametrize("version", ["v1", "v1alpha3"])
def test_registry_is_asked_what_a_registration_asks(server: PlayedServer, version: str) -> None:
    server.answers[f"/api/model_registry/{version}/registered_models"] = (200, {"items": []})
    found = ask("model registry", registry=server.url)
    assert [one.status for one in found.values()] == ["ok", "ok"]
    assert f"API {version}" in found["model registry"].text
    server.answers[f"/api/model_registry/{version}/registered_model"] = (500, {"message": "no table"})
    found = ask("model registry", registry=server.url)
    assert [one.status for one in found.values()] == ["ok", "problem"]


def test_object_store_is_written_read_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    found = ask("object store", storage="memory://bucket/team")
    assert found["object store"].text == "memory://bucket/team: 32 bytes written, read and deleted"
    assert [name for name in store.find("/") if "doctor" in name] == []
    # A store whose keys may write and read only.
    monkeypatch.setattr(type(store), "rm_file", lambda *_: (_ for _ in ()).throw(PermissionError("AKIA")))
    kept = ask("object store", storage="memory://bucket/team")["object store, deletion"]
    assert kept.status == "note"
    assert "nothing may be deleted (PermissionError)" in kept.text
    (left,) = store.find("/bucket/team")
    assert left.rpartition("/")[2] in kept.text
    store.store.clear()


def test_an_s3_store_is_left_as_it_was_and_a_missing_bucket_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        url = "http://{}:{}".format(*running.get_host_and_port())
        # A name of its own: all of moto's servers in a process share their buckets.
        urllib3.request("PUT", f"{url}/examined", retries=False)
        monkeypatch.setenv("MINIO_ENDPOINT", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        good = ask("object store", storage="minio://examined/team")
        listed = urllib3.request("GET", f"{url}/examined", retries=False).data.decode()
        missing = ask("object store", storage="minio://other/team")
    finally:
        running.stop()
    assert good["object store"].text == "minio://examined/team: 32 bytes written, read and deleted"
    assert "<Key>" not in listed
    assert "<Name>examined</Name>" in listed
    assert missing["object store"].status == "problem"
    assert "hunter2" not in str(missing)


def test_a_folder_of_this_machine_is_no_object_store(tmp_path: Path) -> None:
    found = ask("object store", storage=str(tmp_path))["object store"]
    assert found.status == "problem"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--namespace", "--context", "--host", "--service-account", "--storage"])
def test_options_of_the_cluster_are_refused_without_it(option: str) -> None:
    result = CliRunner().invoke(app, ["doctor", option, "x"])
    assert isinstance(result.exception, UsageError)
    assert option in str(result.exception)


def test_runtime_of_another_version_is_told_of(connection: Connection, server: PlayedServer) -> None:
    def runtime(name: str, image: str) -> dict[str, Any]:
        formats = [{"name": name, "version": "1", "autoSelect": True}]
        containers = [{"name": "kserve-container", "image": image}]
        return {"metadata": {"name": name}, "spec": {"supportedModelFormats": formats, "containers": containers}}

    server.answers["/apis/serving.kserve.io/v1beta1"] = (200, KSERVE)
    topics, prices, tabular = FORMATS
    server.answers["/apis/serving.kserve.io/v1alpha1/namespaces/team/servingruntimes"] = (
        200,
        {"items": [runtime(topics, f"registry:5000/predictor:{__version__}-gpu")]},
    )
    everywhere = [runtime(topics, "predictor:0.0.1"), runtime(prices, "registry:5000/predictor:0.0.1")]
    server.answers["/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"] = (200, {"items": everywhere})
    ours, older, none = ask("runtime", connection).values()
    assert (ours.status, older.status, none.status) == ("ok", "note", "note")
    assert ours.text.startswith("ServingRuntime ")
    assert "ClusterServingRuntime" in older.text
    assert f"newTag: {__version__}" in older.fix
    assert tabular in none.text
