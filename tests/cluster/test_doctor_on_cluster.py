"""`mlflywheel doctor --cluster` on real API servers: real RBAC, and KServe's own kinds, webhooks and configuration."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import Cluster, wait_until
from kserve_controller import CONFIG_MAP, GATEWAY, NAMESPACE, KServe, mark_deployment
from kubernetes import client
from typer.testing import CliRunner

from mlflywheel import __version__
from mlflywheel.cli import app
from mlflywheel.cluster.api_reader import ApiReader
from mlflywheel.cluster.examination import Examined, Subject, examine_cluster, list_checks, run_check
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.katib_findings import INJECTION_LABEL
from mlflywheel.cluster.kubernetes_client import Connection
from mlflywheel.cluster.rights import PURPOSES

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
CHECKS = {check.name: check for check in list_checks()}
CONTROLLER = "kserve-controller-manager"
# Of a person: no account of a pod.
CALLER = "caller"


class Doctor:
    """Asks one check after another; nothing is remembered from one question to the next.

    Args:
        api: Who asks.
        namespace: About which namespace.
        subject: What else is known, as `Subject` takes it.
    """

    def __init__(self, api: client.ApiClient, namespace: str, **subject: Any) -> None:
        self.connection = Connection(api, namespace, "context test")
        self.subject = Subject(**subject)

    def ask(self, name: str) -> dict[str, Finding]:
        reader = ApiReader(self.connection, is_own=False)
        found = run_check(CHECKS[name], Examined(self.subject, str(self.connection.namespace), reader))
        assert all(one.fix for one in found if one.status != "ok")
        return {one.subject: one for one in found}

    def ask_one(self, name: str) -> Finding:
        (found,) = self.ask(name).values()
        return found


@pytest.fixture
def admin(cluster: Cluster, namespace: str) -> Doctor:
    return Doctor(cluster.api_client(), namespace)


def label(cluster: Cluster, namespace: str, labels: dict[str, str | None]) -> None:
    client.CoreV1Api(cluster.api_client()).patch_namespace(namespace, {"metadata": {"labels": labels}})


def grant(cluster: Cluster, namespace: str, account: str, rules: list[dict[str, Any]]) -> None:
    """Give an account a Role of its own, and wait until the API server knows."""
    rbac = client.RbacAuthorizationV1Api(cluster.api_client())
    rbac.create_namespaced_role(namespace, {"metadata": {"name": account}, "rules": rules})
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    rbac.create_namespaced_role_binding(
        namespace, {"metadata": {"name": account}, "roleRef": role, "subjects": subjects}
    )
    first = rules[0]
    asked = {
        "namespace": namespace,
        "group": first["apiGroups"][0],
        "resource": first["resources"][0],
        "verb": first["verbs"][0],
        "name": (first.get("resourceNames") or [""])[0],
    }
    spec = {"user": f"system:serviceaccount:{namespace}:{account}", "resourceAttributes": asked}
    reviews = client.AuthorizationV1Api(cluster.api_client())
    wait_until(lambda: reviews.create_subject_access_review({"spec": spec}).status.allowed, 10, "the role counts")


def read_rules(manifest: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = yaml.safe_load((MANIFESTS.parent / manifest / "role.yaml").read_text())["rules"]
    return rules


def test_everything_is_looked_at_within_seconds(cluster: Cluster, namespace: str) -> None:
    started = time.monotonic()
    found = examine_cluster(Subject(), Connection(cluster.api_client(), namespace, "context test"))
    assert time.monotonic() - started < 10
    assert [one for one in found if "itself failed" in one.text or "no answer" in one.text] == []
    subjects = {one.subject: one for one in found}
    assert subjects["API server"].status == "ok"
    assert subjects["namespace"].text == namespace
    assert subjects["clock"].status == "ok"
    for check in list_checks():
        # Nobody named an account, and KServe may not be installed.
        if check.name != "the account's rights" and check.group != "KServe":
            assert any(name.startswith(check.name) for name in subjects), check.name


def test_a_user_without_rights_is_told_which_are_missing(cluster: Cluster, namespace: str) -> None:
    api = cluster.user_client(CALLER, namespace)
    found = examine_cluster(Subject(service_account="default"), Connection(api, namespace, "context test"))
    assert [one for one in found if "itself failed" in one.text] == []
    subjects = {one.subject: one for one in found}
    assert subjects["user"].text == f"system:serviceaccount:{namespace}:{CALLER}"
    for name, right in (
        ("namespace", f"get namespaces in namespace {namespace}"),
        ("Secret model-store", f"get secrets in namespace {namespace}"),
        ("GPU nodes", "list nodes"),
        ("the account's rights", "create subjectaccessreviews.authorization.k8s.io"),
    ):
        assert subjects[name].status == "note"
        assert f"you may not {right}" in subjects[name].text
    assert (
        subjects["your rights for searches"].text == "none: you may not create, get and delete experiments.kubeflow.org"
    )
    assert "--as system:serviceaccount" in subjects["the account's rights"].fix
    # Kinds are seen by everybody.
    assert any(name.startswith("kind ") for name in subjects)


@pytest.mark.parametrize("purpose", PURPOSES, ids=lambda purpose: purpose.name)
def test_account_with_the_role_of_a_manifest_has_all_its_rights(cluster: Cluster, namespace: str, purpose: Any) -> None:
    client.CoreV1Api(cluster.api_client()).create_namespaced_service_account(namespace, {"metadata": {"name": "robot"}})
    grant(cluster, namespace, "robot", read_rules(purpose.manifest))
    found = Doctor(cluster.api_client(), namespace, service_account="robot").ask("the account's rights")
    assert found[f"the account's rights for {purpose.name}"].text == f"all {len(purpose.rights)} of {purpose.manifest}"
    assert "the account's rights" not in found
    others = [one for one in PURPOSES if one != purpose]
    assert all(found[f"the account's rights for {one.name}"].status != "ok" for one in others)


def test_account_with_half_a_role_is_a_problem_that_names_the_verb(cluster: Cluster, namespace: str) -> None:
    core = client.CoreV1Api(cluster.api_client())
    asker = Doctor(cluster.api_client(), namespace, service_account="robot")
    assert "there is no service account robot" in asker.ask_one("the account's rights").text
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "robot"}})
    nothing = asker.ask("the account's rights")
    assert nothing["the account's rights"].status == "problem"
    assert {one.status for name, one in nothing.items() if " for " in name} == {"note"}
    rules = read_rules("manifests/katib")
    rules[0]["verbs"].remove("delete")
    grant(cluster, namespace, "robot", rules)
    found = asker.ask("the account's rights")["the account's rights for searches"]
    assert (found.status, found.text) == ("problem", "robot may not delete experiments.kubeflow.org")
    assert "kubectl apply -k manifests/katib" in found.fix


def test_namespace_that_is_missing_is_said_once(admin: Doctor) -> None:
    admin.connection = Connection(admin.connection.api, "nobody-made-this", "context test")
    assert admin.ask_one("namespace").fix == "kubectl create namespace nobody-made-this"
    for name in ("label for Katib", "pod security", "Istio"):
        assert admin.ask(name) == {}


def test_labels_of_the_namespace_are_read(cluster: Cluster, namespace: str, admin: Doctor) -> None:
    missing = admin.ask_one("label for Katib")
    assert missing.status in ("note", "problem")
    assert missing.fix == f"kubectl label namespace {namespace} --overwrite {INJECTION_LABEL}=enabled"
    assert {admin.ask_one(name).status for name in ("pod security", "Istio")} == {"ok"}
    level = "pod-security.kubernetes.io/enforce"
    label(cluster, namespace, {INJECTION_LABEL: "enabled", level: "baseline", "istio-injection": "enabled"})
    assert admin.ask_one("label for Katib").status == "ok"
    assert admin.ask_one("pod security").text.startswith("baseline enforced")
    assert admin.ask_one("Istio").status == "note"


def test_keys_of_the_store_are_judged_and_never_shown(cluster: Cluster, namespace: str, admin: Doctor) -> None:
    core = client.CoreV1Api(cluster.api_client())
    absent = admin.ask_one("Secret model-store")
    assert (absent.status, "needs none" in absent.text) == ("note", True)
    references = [{"name": "model-store"}]
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "ads"}, "secrets": references})
    assert "ads refers to it: KServe starts no pod" in admin.ask_one("Secret model-store").text
    body: dict[str, Any] = {
        "metadata": {"name": "model-store", "annotations": {"serving.kserve.io/s3-endpoint": "http://store:9000/"}},
        "stringData": {"AWS_ACCESS_KEY_ID": "replace", "AWS_SECRET_ACCESS_KEY": "hunter2\n"},
    }
    core.create_namespaced_secret(namespace, body)
    found = admin.ask("Secret model-store")
    assert "AWS_ACCESS_KEY_ID is still the example's" in found["Secret model-store"].text
    assert "AWS_SECRET_ACCESS_KEY begins or ends with white space" in found["Secret model-store"].text
    assert found["Secret model-store, annotations"].fix.endswith("serving.kserve.io/s3-endpoint=store:9000")
    body["stringData"] = {"AWS_ACCESS_KEY_ID": "AKIAHUNTER2", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    body["metadata"]["annotations"] = {"serving.kserve.io/s3-endpoint": "store:9000\x1b[2J"}
    core.replace_namespaced_secret("model-store", namespace, body)
    mended = admin.ask("Secret model-store")
    assert {one.status for one in mended.values()} == {"ok"}
    assert "\x1b" not in str([one.text for one in mended.values()])
    del body["stringData"]["AWS_ACCESS_KEY_ID"]
    core.delete_namespaced_secret("model-store", namespace)
    core.create_namespaced_secret(namespace, body)
    lacking = admin.ask("Secret model-store")
    assert lacking["Secret model-store"].text == "AWS_ACCESS_KEY_ID is missing"
    whole = examine_cluster(Subject(), admin.connection)
    assert "hunter2" not in str([found, mended, lacking, whole]).lower()


def test_a_clock_that_is_wrong_is_a_problem(cluster: Cluster, namespace: str) -> None:
    late = Doctor(cluster.api_client(), namespace, now=lambda: time.time() - 3600).ask_one("clock")
    assert late.status == "problem"
    assert late.text.startswith(("3599 s behind", "3600 s behind", "3601 s behind"))
    assert Doctor(cluster.api_client(), namespace, now=lambda: time.time() + 30).ask_one("clock").status == "ok"


def test_kinds_are_seen_when_they_come_and_when_they_go(cluster: Cluster, admin: Doctor) -> None:
    name = "workflows.argoproj.io"
    if name in cluster.defined():
        pytest.skip("the cluster has Argo Workflows, which stay")
    before = admin.ask("kind")["kind Workflow"]
    assert (before.status, before.fix.split(":")[0]) == ("problem", "install Kubeflow Pipelines")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [{"name": "v1alpha1", "served": True, "storage": True, "schema": schema}]
    names = {"kind": "Workflow", "plural": "workflows", "singular": "workflow"}
    cluster.create_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {"group": "argoproj.io", "scope": "Namespaced", "names": names, "versions": versions},
        }
    )
    assert admin.ask("kind")["kind Workflow"].status == "ok"
    client.ApiextensionsV1Api(cluster.api_client()).delete_custom_resource_definition(name)
    wait_until(lambda: admin.ask("kind")["kind Workflow"].status == "problem", 20, "Workflow is no longer served")


def test_command_prints_findings_by_group_and_the_same_as_json(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    command = ["doctor", "--cluster", "-n", namespace, "--storage", "memory://bucket/team"]
    printed = CliRunner().invoke(app, command)
    read = CliRunner().invoke(app, [*command, "--json"])
    answer = json.loads(read.output)
    groups = list(dict.fromkeys(check.group for check in list_checks()))
    headings = [line for line in printed.output.splitlines() if line in groups]
    assert headings == [group for group in groups if any(one["group"] == group for one in answer["findings"])]
    assert printed.exit_code == read.exit_code == int(answer["problems"] > 0)
    assert printed.output.count("✗ ") == answer["problems"]
    assert "\n✓ namespace " in printed.output
    assert set(answer["findings"][0]) == {"subject", "status", "text", "fix", "group"}
    assert any(one["text"].endswith("written, read and deleted") for one in answer["findings"])


@pytest.fixture
def team(kserve: KServe) -> Iterator[Doctor]:
    name = kserve.plane.create_namespace()
    yield Doctor(kserve.plane.api_client(), name)
    kserve.plane.delete_namespace(name)


@contextmanager
def controller(kserve: KServe, image: str) -> Iterator[None]:
    """The Deployment that KServe's manager runs in on other clusters."""
    apps = client.AppsV1Api(kserve.plane.api_client())
    labels = {"app": CONTROLLER}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "manager", "image": image}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}
    made = apps.create_namespaced_deployment(NAMESPACE, {"metadata": {"name": CONTROLLER}, "spec": spec})
    mark_deployment(apps, made)
    try:
        yield
    finally:
        apps.delete_namespaced_deployment(CONTROLLER, NAMESPACE)


def test_kserve_as_it_was_installed_has_no_fault(kserve: KServe, team: Doctor) -> None:
    resources = client.CustomObjectsApi(kserve.plane.api_client())
    place = ("gateway.networking.k8s.io", "v1", GATEWAY.partition("/")[0], "gateways")
    found = team.ask("configuration")
    assert found["configuration mode"].text.startswith("Standard ")
    assert (found["configuration gateway"].status, GATEWAY in found["configuration gateway"].text) == ("problem", True)
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": GATEWAY.partition("/")[2]},
        "spec": {"gatewayClassName": "test", "listeners": listeners},
    }
    resources.create_namespaced_custom_object(*place, gateway)
    try:
        assert team.ask("configuration")["configuration gateway"].status == "ok"
    finally:
        resources.delete_namespaced_custom_object(*place, gateway["metadata"]["name"])
    assert [one.status for one in team.ask("webhook").values()] == ["ok", "ok"]
    kinds = team.ask("kind")
    for name in ("InferenceService", "ServingRuntime", "HTTPRoute", "ScaledObject", "Service of Knative"):
        assert kinds[f"kind {name}"].status == "ok"


def test_canaries_are_told_what_stands_in_their_way(kserve: KServe, team: Doctor) -> None:
    standard, knative = "canaries in Standard mode", "canaries in Knative mode"
    assert team.ask("controller")["controller"].status == "note"
    unknown = team.ask("canaries")
    assert unknown[knative].status == "ok"
    assert unknown[standard].text.endswith("not known: whether KServe is 0.21 or newer")
    with controller(kserve, "kserve/kserve-controller:v0.21.0"):
        assert team.ask("controller")["controller"].status == "ok"
        assert team.ask("canaries")[standard].status == "ok"
        kserve.configure(ingress={"enableGatewayApi": False}, deploy={"defaultDeploymentMode": "Serverless"})
        try:
            without = team.ask("canaries")[standard]
            configuration = team.ask("configuration")
        finally:
            kserve.configure()
    assert without.text == "get no share of the traffic: enableGatewayApi is false"
    assert f"kubectl edit configmap {CONFIG_MAP} -n {NAMESPACE}" in configuration["configuration gateway"].fix
    assert configuration["configuration mode"].text.startswith("Knative ")
    with controller(kserve, "kserve/kserve-controller:v0.20.0"):
        assert "KServe 0.20 writes no weights" in team.ask("canaries")[standard].text


def test_user_who_may_not_see_kserve_is_told_so(kserve: KServe, team: Doctor) -> None:
    namespace = str(team.connection.namespace)
    user = Doctor(kserve.plane.user_client(CALLER, namespace), namespace)
    assert "you may not get configmaps in namespace kserve" in user.ask_one("configuration").text
    assert "you may not get deployments.apps in namespace kserve" in user.ask_one("controller").text
    assert {one.status for one in user.ask("webhook").values()} == {"note"}
    # The schema is open to everybody, and so is what it says of canaries.
    assert "not known: whether enableGatewayApi is true" in user.ask("canaries")["canaries in Standard mode"].text


def test_runtime_of_the_manifests_is_found(kserve: KServe, team: Doctor) -> None:
    namespace = str(team.connection.namespace)
    assert (
        team.ask("runtime")["runtime topic-fingerprints"].fix
        == f"kubectl apply -k manifests/overlays/cpu -n {namespace}"
    )
    runtime = yaml.safe_load((MANIFESTS / "runtime" / "serving-runtime.yaml").read_text(encoding="utf-8"))
    runtime["spec"]["containers"][0]["image"] = f"ghcr.io/mlflywheel/predictor:{__version__}"
    place = ("serving.kserve.io", "v1alpha1", namespace, "servingruntimes")
    client.CustomObjectsApi(kserve.plane.api_client()).create_namespaced_custom_object(*place, runtime)
    found = team.ask("runtime")["runtime topic-fingerprints"]
    assert (found.status, runtime["metadata"]["name"] in found.text) == ("ok", True)


def test_restricted_pods_need_a_storage_initializer_that_is(kserve: KServe, team: Doctor) -> None:
    namespace = str(team.connection.namespace)
    label(kserve.plane, namespace, {"pod-security.kubernetes.io/enforce": "restricted"})
    resources = client.CustomObjectsApi(kserve.plane.api_client())
    place = ("serving.kserve.io", "v1alpha1", "clusterstoragecontainers")
    container: dict[str, Any] = {"name": "storage-initializer", "image": "kserve/storage-initializer:v0.20.0"}
    body = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": "default"},
        "spec": {"container": container, "supportedUriFormats": [{"prefix": "s3://"}]},
    }
    resources.create_cluster_custom_object(*place, body)
    try:
        refused = team.ask_one("pod security")
        assert refused.status == "problem"
        assert "storage initializer" in refused.text
        context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        patch = {"spec": {"container": container | {"securityContext": context}}}
        resources.patch_cluster_custom_object(*place, "default", patch)
        assert team.ask_one("pod security").status == "ok"
    finally:
        resources.delete_cluster_custom_object(*place, "default")
