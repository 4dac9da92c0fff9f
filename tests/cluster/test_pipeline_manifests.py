"""The manifests of the pipelines' side on a real API server: validation, RBAC, and `make up` and `make down`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import Cluster
from kubernetes import client
from rendered_manifests import MANIFESTS, Document, find_kubectl, of_kind, only

from mlflywheel.cluster.kubernetes_client import Connection
from mlflywheel.cluster.surroundings import describe_surroundings
from mlflywheel.pipelines.catalog import PIPELINES
from mlflywheel.pipelines.objects import write_objects
from mlflywheel.reproducibility.pinning import read_reference

ACCOUNT = "mlflywheel-pipelines"
DIGEST = "sha256:" + "4" * 64
Right = tuple[str, str, str, str]
Calls = Mapping[Right, Callable[[client.ApiClient, str], int]]


def render(folder: str, namespace: str, scratch: Path) -> list[Document]:
    """A folder of the manifests for a namespace, as somebody's overlay makes it."""
    resource = os.path.relpath(MANIFESTS / folder, scratch)
    (scratch / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": namespace, "resources": [resource]}))
    kubectl = find_kubectl()
    done = subprocess.run([str(kubectl), "kustomize", str(scratch)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def apply(cluster: Cluster, documents: list[Document]) -> list[str]:
    """Apply strictly; return the resource versions."""
    options = ("--server-side", "--validate=strict", "-o", "json", "-f", "-")
    done = cluster.kubectl("apply", *options, input=yaml.safe_dump_all(documents))
    assert "Warning" not in done.stderr
    answer = json.loads(done.stdout)
    return [one["metadata"]["resourceVersion"] for one in answer.get("items", [answer])]


def request(api: client.ApiClient, method: str, path: str, body: Any = None) -> int:
    """The HTTP status: 403 is RBAC's, which answers before anybody asks whether the thing exists."""
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    try:
        answer = api.call_api(
            path,
            method,
            header_params={"Content-Type": kind, "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=20,
        )
    except client.ApiException as error:
        return int(error.status)
    return int(answer[1])


def on(method: str, path: str, body: Any = None) -> Callable[[client.ApiClient, str], int]:
    """A request in a namespace."""

    def call(api: client.ApiClient, namespace: str) -> int:
        return request(api, method, path.format(namespace), body)

    return call


TASK_RESULTS = "/apis/argoproj.io/v1alpha1/namespaces/{}/workflowtaskresults"
#: What the pods of every run call, and where that can be read.
CALLS_OF_A_RUN: Calls = {
    # Argo's executor (workflow/executor/taskresult.go): in the pod of every step.
    ("argoproj.io", "workflowtaskresults", "create", ""): on("POST", TASK_RESULTS, {}),
    ("argoproj.io", "workflowtaskresults", "patch", ""): on("PATCH", f"{TASK_RESULTS}/node", {}),
    # KFP's driver and launcher (backend/src/v2/config/env.go, objectstore/object_store.go).
    ("", "configmaps", "get", "kfp-launcher"): on("GET", "/api/v1/namespaces/{}/configmaps/kfp-launcher"),
    ("", "secrets", "get", "mlpipeline-minio-artifact"): on(
        "GET", "/api/v1/namespaces/{}/secrets/mlpipeline-minio-artifact"
    ),
    ("", "secrets", "get", "model-store"): on("GET", "/api/v1/namespaces/{}/secrets/model-store"),
    # KFP's launcher (component/launcher_v2.go), and cluster/surroundings.py.
    ("", "pods", "get", ""): on("GET", "/api/v1/namespaces/{}/pods/step"),
}


def rights_of(rules: list[Mapping[str, Any]]) -> set[Right]:
    """Rules one by one: group, resource, verb, and name of the object (empty for all)."""
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def rules_of(rights: set[Right]) -> list[dict[str, Any]]:
    """The same as a Role has them."""
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]} | ({"resourceNames": [name]} if name else {})
        for group, resource, verb, name in sorted(rights)
    ]


def role(documents: list[Document], name: str) -> Document:
    return next(one for one in of_kind(documents, "Role") if one["metadata"]["name"] == name)


def bind(cluster: Cluster, namespace: str, account: str, rights: set[Right]) -> client.ApiClient:
    """A client that is an account with these rights."""
    rbac = client.RbacAuthorizationV1Api(cluster.api_client())
    rbac.create_namespaced_role(namespace, {"metadata": {"name": account}, "rules": rules_of(rights)})
    rbac.create_namespaced_role_binding(
        namespace,
        {
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    )
    return cluster.user_client(account, namespace)


@dataclass(frozen=True)
class World:
    """A namespace for development and one for production, with the manifests of each applied."""

    development: str
    production: str
    pipelines: list[Document]


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    scratch = tmp_path_factory.mktemp("overlays")
    development, production = cluster.create_namespace(), cluster.create_namespace()
    pipelines = render("pipelines", development, scratch)
    everything = [
        *render("namespaces/development", development, scratch),
        *render("namespaces/production", production, scratch),
        *pipelines,
        *render("schedules", development, scratch),
    ]
    versions = apply(cluster, everything)
    # And once more, as GitOps does: nothing changes.
    assert apply(cluster, everything) == versions
    yield World(development, production, pipelines)
    for name in (development, production):
        cluster.delete_namespace(name)


# What the account of the pipelines may do.


def test_account_has_the_rights_of_the_three_roles_and_no_other(cluster: Cluster, world: World) -> None:
    api = client.AuthorizationV1Api(cluster.user_client(ACCOUNT, world.development))
    review = api.create_self_subject_rules_review({"spec": {"namespace": world.development}})
    rules = [
        {
            "apiGroups": one.api_groups,
            "resources": one.resources,
            "verbs": one.verbs,
            "resourceNames": one.resource_names,
        }
        for one in review.status.resource_rules
    ]
    everybody = {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}
    found = {right for right in rights_of(rules) if right[1] not in everybody}
    expected = [role(world.pipelines, name)["rules"] for name in (ACCOUNT, "mlflywheel-katib", "mlflywheel-rollouts")]
    assert not review.status.incomplete
    assert found == set().union(*(rights_of(rules) for rules in expected))
    assert not any("*" in part for right in found for part in right)


def test_a_run_calls_what_its_role_grants_and_needs_each_right(cluster: Cluster, world: World, namespace: str) -> None:
    granted = rights_of(role(world.pipelines, ACCOUNT)["rules"])
    assert granted == CALLS_OF_A_RUN.keys()
    for number, left_out in enumerate([None, *sorted(granted)]):
        api = bind(cluster, namespace, f"run-{number}", {right for right in granted if right != left_out})
        refused = {right for right, call in CALLS_OF_A_RUN.items() if call(api, namespace) == 403}
        assert refused == ({left_out} if left_out else set())


def test_account_may_not_reach_beyond_its_runs(cluster: Cluster, world: World) -> None:
    api = cluster.user_client(ACCOUNT, world.development)
    refused = [
        ("GET", "/api/v1/namespaces/{}/secrets"),
        ("GET", "/api/v1/namespaces/{}/secrets/another"),
        ("POST", "/api/v1/namespaces/{}/pods"),
        ("POST", "/api/v1/namespaces/{}/pods/step/exec?command=sh"),
        ("POST", "/apis/apps/v1/namespaces/{}/deployments"),
        ("POST", "/apis/batch/v1/namespaces/{}/jobs"),
        ("POST", "/apis/argoproj.io/v1alpha1/namespaces/{}/workflows"),
        ("POST", "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"),
        ("DELETE", "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices/ads"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings"),
        ("PATCH", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{{}}/roles/{ACCOUNT}"),
        ("POST", "/api/v1/namespaces/{}/serviceaccounts/mlflywheel-schedules/token"),
        ("GET", "/api/v1/namespaces"),
        ("GET", "/api/v1/nodes"),
    ]
    answers = {(method, path): request(api, method, path.format(world.development), {}) for method, path in refused}
    assert answers == dict.fromkeys(refused, 403)


def test_a_step_learns_its_images_digest_with_the_role(
    cluster: Cluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = client.CoreV1Api(cluster.api_client())
    container = {"name": "main", "image": "repository/components:1"}
    core.create_namespaced_pod(world.development, {"metadata": {"name": "step"}, "spec": {"containers": [container]}})
    state = {"ready": True, "restartCount": 0, "imageID": f"repository/components@{DIGEST}"}
    status = {"status": {"containerStatuses": [container | state]}}
    core.patch_namespaced_pod_status("step", world.development, status)
    monkeypatch.setenv("KFP_POD_NAME", "step")
    api = cluster.user_client(ACCOUNT, world.development)
    found = describe_surroundings(Connection(api, world.development, "a test"))
    assert found["image"]["digest"] == DIGEST
    # Labels of nodes are of the cluster, and no Role of a namespace grants them.
    assert set(found["unknown"]) <= {"cluster.node"}


# Development and production.


def test_pipelines_of_development_reach_nothing_in_production(cluster: Cluster, world: World) -> None:
    api = cluster.user_client(ACCOUNT, world.development)
    service = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
    calls = [
        *((method, f"{service}/ads") for method in ("GET", "PUT", "PATCH", "DELETE")),
        ("GET", service),
        ("POST", service),
        # A rollout is begun and moved by its record and its lease.
        *((method, "/api/v1/namespaces/{}/configmaps/ads-rollout") for method in ("GET", "PUT", "PATCH", "DELETE")),
        ("POST", "/api/v1/namespaces/{}/configmaps"),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/{}/leases"),
        ("GET", "/api/v1/namespaces/{}/secrets/model-store"),
        ("GET", "/api/v1/namespaces/{}/pods"),
        ("POST", "/api/v1/namespaces/{}/pods"),
        ("POST", "/apis/kubeflow.org/v1beta1/namespaces/{}/experiments"),
        ("POST", "/apis/argoproj.io/v1alpha1/namespaces/{}/workflowtaskresults"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings"),
    ]
    answers = {(method, path): request(api, method, path.format(world.production), {}) for method, path in calls}
    assert answers == dict.fromkeys(calls, 403)
    # At home the same account may patch a service: what is refused is production, and not everything.
    assert request(api, "PATCH", f"{service}/ads".format(world.development), {}) != 403


@pytest.mark.parametrize(
    ("group", "verb", "resource", "place", "answer"),
    [
        ("mlflywheel-approvers", "patch", "inferenceservices.serving.kserve.io", "production", "yes"),
        ("mlflywheel-approvers", "create", "leases.coordination.k8s.io", "production", "yes"),
        ("mlflywheel-approvers", "delete", "inferenceservices.serving.kserve.io", "production", "no"),
        ("mlflywheel-approvers", "get", "secrets", "production", "no"),
        ("mlflywheel-approvers", "patch", "inferenceservices.serving.kserve.io", "development", "no"),
        ("mlflywheel-developers", "get", "inferenceservices.serving.kserve.io", "production", "yes"),
        ("mlflywheel-developers", "patch", "inferenceservices.serving.kserve.io", "production", "no"),
        ("mlflywheel-developers", "update", "configmaps", "production", "no"),
        ("mlflywheel-developers", "get", "secrets", "production", "no"),
    ],
)
def test_approvers_promote_in_production_and_developers_look_on(
    cluster: Cluster, world: World, group: str, verb: str, resource: str, place: str, answer: str
) -> None:
    name, _, api_group = resource.partition(".")
    attributes = {"namespace": getattr(world, place), "verb": verb, "resource": name, "group": api_group}
    review = client.AuthorizationV1Api(cluster.api_client()).create_subject_access_review(
        {"spec": {"user": "somebody", "groups": [group], "resourceAttributes": attributes}}
    )
    assert review.status.allowed is (answer == "yes")


def test_quota_of_development_refuses_what_asks_for_too_much(cluster: Cluster, world: World) -> None:
    core = client.CoreV1Api(cluster.api_client())

    def create(count: int = 1, **requests: str) -> client.V1Pod:
        containers = [{"name": f"c{i}", "image": "image", "resources": {"requests": requests}} for i in range(count)]
        return core.create_namespaced_pod(
            world.development, {"metadata": {"name": "pod"}, "spec": {"containers": containers}}, dry_run="All"
        )

    # Who says nothing gets the least that the quota wants to hear.
    assert create().spec.containers[0].resources.requests == {"cpu": "100m", "memory": "256Mi"}
    with pytest.raises(client.ApiException, match="must be less than or equal to memory limit of 16Gi"):
        create(memory="17Gi")
    # What the controller of quotas does.
    (quota,) = core.list_namespaced_resource_quota(world.development).items
    status = {"hard": quota.spec.hard, "used": dict.fromkeys(quota.spec.hard, "0")}
    core.patch_namespaced_resource_quota_status("mlflywheel", world.development, {"status": status})
    with pytest.raises(client.ApiException, match="exceeded quota: mlflywheel"):
        create(count=3, cpu="8")


def test_namespaces_refuse_privileged_pods(cluster: Cluster, world: World) -> None:
    core = client.CoreV1Api(cluster.api_client())
    container = {"name": "c", "image": "image", "securityContext": {"privileged": True}}
    for namespace in (world.development, world.production):
        with pytest.raises(client.ApiException, match='violates PodSecurity \\\\"baseline'):
            core.create_namespaced_pod(
                namespace, {"metadata": {"name": "root"}, "spec": {"containers": [container]}}, dry_run="All"
            )


# Schedules.


def test_schedules_token_is_for_kubeflow_pipelines_alone(cluster: Cluster, world: World, tmp_path: Path) -> None:
    job = only(render("schedules", world.development, tmp_path), "CronJob")["spec"]["jobTemplate"]["spec"]
    (projected,) = job["template"]["spec"]["volumes"][0]["projected"]["sources"]
    core = client.CoreV1Api(cluster.api_client())
    asked = projected["serviceAccountToken"]
    answer = core.create_namespaced_service_account_token(
        job["template"]["spec"]["serviceAccountName"],
        world.development,
        {"spec": {"audiences": [asked["audience"]], "expirationSeconds": asked["expirationSeconds"]}},
    )
    # What KFP does with it (backend/src/apiserver/auth/authenticator_token_review.go, and a SubjectAccessReview).
    review = client.AuthenticationV1Api(cluster.api_client()).create_token_review(
        {"spec": {"token": answer.status.token, "audiences": ["pipelines.kubeflow.org"]}}
    )
    assert review.status.authenticated
    assert review.status.user.username == f"system:serviceaccount:{world.development}:mlflywheel-schedules"
    # Kubernetes itself takes it for nobody's.
    api = cluster.user_client("mlflywheel-schedules", world.development)
    api.configuration.api_key = {"authorization": f"Bearer {answer.status.token}"}
    assert request(api, "GET", "/api/v1/namespaces") == 401


def test_schedules_account_may_submit_and_nothing_else(cluster: Cluster, world: World) -> None:
    reviews = client.AuthorizationV1Api(cluster.api_client())

    def may(verb: str, resource: str, group: str = "pipelines.kubeflow.org", place: str = world.development) -> bool:
        attributes = {"namespace": place, "verb": verb, "resource": resource, "group": group}
        user = f"system:serviceaccount:{world.development}:mlflywheel-schedules"
        review = reviews.create_subject_access_review({"spec": {"user": user, "resourceAttributes": attributes}})
        return bool(review.status.allowed)

    assert all(may(verb, one) for verb in ("create", "get", "list") for one in ("pipelines", "experiments", "runs"))
    assert not any(may(verb, "runs") for verb in ("delete", "terminate", "retry", "archive"))
    assert not may("create", "jobs")
    assert not may("get", "secrets", "")
    assert not may("create", "pods", "")
    assert not may("create", "runs", place=world.production)


def test_restricted_namespace_takes_the_schedules_pod(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    core = client.CoreV1Api(cluster.api_client())
    core.patch_namespace(namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    spec = only(render("schedules", namespace, tmp_path), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    core.create_namespaced_pod(namespace, {"metadata": {"name": "submit"}, "spec": spec}, dry_run="All")


# The Secret of the object store, and the Gateway.


def test_keys_of_kubeflows_store_become_the_secret_that_serving_reads(cluster: Cluster, namespace: str) -> None:
    core = client.CoreV1Api(cluster.api_client())
    given = {"metadata": {"name": "mlpipeline-minio-artifact"}, "stringData": {"accesskey": "who", "secretkey": "what"}}
    core.create_namespaced_secret(namespace, given)
    # As manifests/platform.sh and docs/installation.md do it.
    template = f"go-template-file={MANIFESTS / 'base' / 'model-store.gotemplate'}"
    filled = cluster.kubectl("get", "secret", "mlpipeline-minio-artifact", "-n", namespace, "-o", template).stdout
    cluster.kubectl("apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-", input=filled)
    made = core.read_namespaced_secret("model-store", namespace)
    assert made.data == {"AWS_ACCESS_KEY_ID": "d2hv", "AWS_SECRET_ACCESS_KEY": "d2hhdA=="}
    assert made.metadata.annotations["serving.kserve.io/s3-endpoint"] == "seaweedfs.kubeflow:9000"


def test_gateway_is_taken(
    cluster: Cluster, install_crds: Callable[[str], tuple[str, ...]], namespace: str, tmp_path: Path
) -> None:
    install_crds("gateway-api")
    documents = of_kind(render("gateway", namespace, tmp_path), "Gateway")
    assert len(apply(cluster, documents)) == 1


# Pipelines as objects.


def test_kubeflow_takes_pipelines_as_objects(
    cluster: Cluster, namespace: str, install_crds: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    install_crds("kfp")
    pinned = read_reference(f"registry.example/team/components@{DIGEST}")
    files = write_objects(tmp_path / "released")
    assert [file.stem for file in files] == [pipeline.name for pipeline in PIPELINES]
    (other,) = write_objects(tmp_path / "pinned", PIPELINES[:1], image=pinned)
    assert f"image: {pinned}" in other.read_text(encoding="utf-8")
    options = ("--server-side", "--validate=strict", "-n", namespace, "-f", str(files[0].parent), "-f", str(other))
    done = cluster.kubectl("apply", *options)
    assert "Warning" not in done.stderr
    found = client.CustomObjectsApi(cluster.api_client()).list_namespaced_custom_object(
        "pipelines.kubeflow.org", "v2beta1", namespace, "pipelineversions"
    )["items"]
    # Another image is another version; what the server keeps is what was compiled.
    assert len(found) == len(PIPELINES) + 1
    compiled = next(yaml.safe_load_all(PIPELINES[0].compiled.read_text(encoding="utf-8")))
    assert compiled in [one["spec"]["pipelineSpec"] for one in found]


# make up and make down.


def snapshot(cluster: Cluster) -> dict[str, str]:
    """Every object of the cluster with its resource version, but for what the API server itself keeps renewing."""
    api = cluster.api_client()

    def read(path: str) -> Any:
        return api.call_api(
            path, "GET", response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True
        )

    versions = [f"/apis/{one['preferredVersion']['groupVersion']}" for one in read("/apis")["groups"]]
    return {
        f"{kind['name']} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}": one["metadata"][
            "resourceVersion"
        ]
        for path in ["/api/v1", *versions]
        for kind in read(path)["resources"]
        if {"list", "delete"} <= set(kind["verbs"]) and kind["name"] not in ("apiservices", "events")
        for one in read(f"{path}/{kind['name']}")["items"]
        if one["metadata"].get("namespace") != "kube-system"
    }


class Installation:
    """Runs what `make up` and `make down` run."""

    def __init__(self, cluster: Cluster, namespace: str, home: Path) -> None:
        self._namespace = namespace
        self._environment = os.environ | {
            "KUBECONFIG": cluster.kubeconfig,
            "KUBECTL": str(find_kubectl()),
            # kubectl keeps what it knows of a cluster there.
            "HOME": str(home),
        }

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, str(MANIFESTS / "installation.py"), *arguments, "--namespace", self._namespace],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def install(cluster: Cluster, namespace: str, tmp_path: Path) -> Installation:
    return Installation(cluster, namespace, tmp_path)


def test_up_twice_changes_nothing_and_down_leaves_nothing(
    cluster: Cluster, namespace: str, install: Installation
) -> None:
    # Somebody's own, with a name that `up` has too: it stays.
    core = client.CoreV1Api(cluster.api_client())
    core.create_namespaced_service_account(namespace, {"metadata": {"name": ACCOUNT, "labels": {"owner": "somebody"}}})
    edited = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mlflywheel-store", "namespace": namespace}}
    cluster.kubectl(
        "apply", "--server-side", "-f", "-", input=json.dumps(edited | {"data": {"AWS_REGION": "eu-central-1"}})
    )
    before = snapshot(cluster)
    # Somebody's value is not overwritten, and nothing is half done.
    told = install("up", status=1)
    assert "conflict" in told
    assert "AWS_REGION" in told
    assert snapshot(cluster) == before
    core.delete_namespaced_config_map("mlflywheel-store", namespace)
    told = install("up")
    assert f"serviceaccount/{ACCOUNT}: was there before, so that `down` leaves it" in told
    assert "configmap/mlflywheel-store: made" in told
    once = snapshot(cluster)
    assert len(once) > len(before) + 15
    assert "made" not in install("up")
    assert snapshot(cluster) == once
    install("down")
    assert snapshot(cluster).keys() == {one for one in before if one != f"configmaps {namespace}/mlflywheel-store"}
    assert "nothing here is from `up`" in install("down")


@pytest.mark.long
def test_up_with_an_overlay_serves_too_and_keeps_it_when_the_overlay_is_left_out(
    cluster: Cluster, install: Installation, install_crds: Callable[[str], tuple[str, ...]]
) -> None:
    install_crds("kserve")
    before = snapshot(cluster)
    assert "inferenceservice.serving.kserve.io/ad-campaigns: made" in install("up", "--overlay", "cpu")
    once = snapshot(cluster)
    assert "still there from an earlier `up`" in install("up")
    assert snapshot(cluster) == once
    install("down")
    assert snapshot(cluster).keys() == before.keys()


def test_up_makes_the_namespace_and_down_deletes_it(cluster: Cluster, tmp_path: Path) -> None:
    namespace = f"{cluster.create_namespace()}-made"
    install = Installation(cluster, namespace, tmp_path)
    core = client.CoreV1Api(cluster.api_client())
    try:
        install("up")
        labels = core.read_namespace(namespace).metadata.labels
        assert labels["katib.kubeflow.org/metrics-collector-injection"] == "enabled"
        told = install("down")
        assert f"namespace/{namespace}: being deleted" in told
        with_time = core.read_namespace(namespace).metadata.deletion_timestamp if not cluster.has_controllers else True
        assert with_time
    finally:
        cluster.delete_namespace(namespace)
