"""What whoever takes over one of our pods may ask the API server for, by the real RBAC of a real API server.

Every account that a folder of the manifests makes, or gives rights to, is put into one namespace with all roles and
bindings at once: no combination of folders gives more. Then the API server is asked what each of them may do.
"""

import ipaddress
import uuid
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import yaml
from control_plane import Cluster
from kubernetes import client
from rendered_manifests import MANIFESTS, ROOT, Document, kustomize, of_kind

_RBAC = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
#: What everybody who has logged in may do: ask what they may do, and read what the server can.
_OF_EVERYBODY = {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}
_WRITES = {"create", "update", "patch", "delete", "deletecollection", "*"}

#: Rights that nobody has: verbs (None: any) on resources (None: any). Rights to named objects are asked for apart.
FORBIDDEN: list[tuple[str, set[str] | None, set[str] | None]] = [
    ("wildcards", {"*"}, None),
    ("all resources", None, {"*"}),
    ("more rights", {"escalate", "bind", "impersonate"}, None),
    ("roles", None, {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}),
    ("tokens", None, {"serviceaccounts/token", "tokenreviews", "certificatesigningrequests"}),
    ("accounts", _WRITES, {"serviceaccounts"}),
    ("secrets", {"list", "watch", *_WRITES}, {"secrets"}),
    (
        "a shell in a pod",
        None,
        {"pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/proxy"},
    ),
    (
        "pods",
        {"create", "update", "patch"},
        {
            *("pods", "deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs"),
            *("workflows", "cronworkflows", "workflowtemplates", "services.serving.knative.dev", "trials"),
            *("servingruntimes", "clusterservingruntimes", "clusterstoragecontainers"),
        },
    ),
    ("nodes and volumes", None, {"nodes", "nodes/proxy", "persistentvolumes"}),
    (
        "admission",
        None,
        {"mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies"},
    ),
    ("definitions", _WRITES, {"customresourcedefinitions", "apiservices"}),
    ("namespaces", _WRITES, {"namespaces"}),
    ("traffic around policies", _WRITES, {"networkpolicies", "services", "ingresses", "httproutes", "endpoints"}),
]

#: Rights that let an account run an image of its choice, as any account of the namespace, where manifests/admission is
#: not applied: docs/security.md says so, and tests/cluster/test_admission.py tries the policies.
RUNS_PODS = {
    ("serving.kserve.io", "inferenceservices", "patch"),
    ("kubeflow.org", "experiments", "create"),
    ("pipelines.kubeflow.org", "runs", "create"),
}


@cache
def rendered() -> tuple[tuple[str, tuple[Document, ...]], ...]:
    """Every folder of the manifests that can be applied, by its path."""
    found = []
    for file in sorted([ROOT / "kustomization.yaml", *MANIFESTS.rglob("kustomization.yaml")]):
        if yaml.safe_load(file.read_text(encoding="utf-8")).get("kind") != "Component":
            found.append((str(file.parent.relative_to(ROOT)), tuple(kustomize(file.parent))))
    return tuple(found)


def all_documents() -> list[Document]:
    return [deepcopy(document) for _, documents in rendered() for document in documents]


def accounts() -> set[str]:
    """Accounts that are made, and those that a binding names."""
    documents = all_documents()
    made = {one["metadata"]["name"] for one in of_kind(documents, "ServiceAccount")}
    bound = {
        subject["name"]
        for binding in of_kind(documents, "RoleBinding", "ClusterRoleBinding")
        for subject in binding.get("subjects", ())
        if subject["kind"] == "ServiceAccount"
    }
    return made | bound


@pytest.fixture(scope="module")
def granted(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """A namespace with every role and binding, and another one without."""
    documents = all_documents()
    assert not of_kind(documents, "ClusterRole", "ClusterRoleBinding"), "rights in every namespace"
    namespace, other = cluster.create_namespace(), cluster.create_namespace()
    # Roles of one name that differ are put there side by side, each with its bindings.
    rbac = client.RbacAuthorizationV1Api(cluster.api_client())
    for folder, part in rendered():
        suffix = uuid.uuid5(uuid.NAMESPACE_URL, folder).hex[:8]
        for document in deepcopy(of_kind(part, *_RBAC)):
            document["metadata"] = {"name": f"{document['metadata']['name']}-{suffix}"}
            if document["kind"] == "Role":
                rbac.create_namespaced_role(namespace, document)
                continue
            if document["roleRef"]["kind"] == "Role":
                own = {one["metadata"]["name"] for one in of_kind(part, "Role")}
                if document["roleRef"]["name"] not in own:
                    # Of a folder that is applied beside this one.
                    continue
                document["roleRef"]["name"] += f"-{suffix}"
            for subject in document["subjects"]:
                if subject["kind"] == "ServiceAccount":
                    subject["namespace"] = namespace
            rbac.create_namespaced_role_binding(namespace, document)
    yield namespace, other
    cluster.delete_namespace(namespace)
    cluster.delete_namespace(other)


def rules_of(cluster: Cluster, account: str, home: str, namespace: str) -> list[Any]:
    """What the API server says that an account of the one namespace may do in another."""
    user = client.AuthorizationV1Api(cluster.user_client(account, home))
    review = user.create_self_subject_rules_review({"spec": {"namespace": namespace}})
    assert not review.status.incomplete
    return [rule for rule in review.status.resource_rules if not set(rule.resources) <= _OF_EVERYBODY]


def is_allowed(rule: Any, verbs: set[str] | None, resources: set[str] | None) -> bool:
    return (verbs is None or bool(verbs & set(rule.verbs))) and (
        resources is None
        or bool(resources & {*rule.resources, *(f"{r}.{g}" for r in rule.resources for g in rule.api_groups)})
    )


def test_every_account_of_the_manifests_is_looked_at() -> None:
    assert {"ad-campaigns", "mlflywheel-rollouts"} <= accounts()


def test_no_account_has_a_right_that_takes_over_a_namespace(cluster: Cluster, granted: tuple[str, str]) -> None:
    home, other = granted
    for account in sorted(accounts()):
        rules = rules_of(cluster, account, home, home)
        seen = [
            (what, rule.verbs, rule.resources)
            for rule in rules
            for what, verbs, resources in FORBIDDEN
            if is_allowed(rule, verbs, resources)
        ]
        assert seen == [], account
        secrets = [rule for rule in rules if "secrets" in rule.resources]
        assert all(rule.resource_names for rule in secrets), f"{account}: every secret of the namespace"
        assert rules_of(cluster, account, home, other) == [], f"{account}: rights in another namespace"


def test_config_maps_are_read_and_changed_by_name_alone(cluster: Cluster, granted: tuple[str, str]) -> None:
    """And so are leases. `kfp-launcher` says where artifacts go; `mlflywheel-store` where the store is."""
    home, _ = granted
    changed: set[str] = set()
    for account in sorted(accounts()):
        for rule in rules_of(cluster, account, home, home):
            if not {"configmaps", "leases"} & set(rule.resources) or set(rule.verbs) == {"create"}:
                continue
            assert rule.resource_names, (account, rule.resources, rule.verbs)
            if _WRITES & set(rule.verbs):
                changed |= set(rule.resource_names)
    assert changed
    assert all(name.endswith("-rollout") for name in changed)


def test_what_starts_pods_is_what_the_documentation_says(cluster: Cluster, granted: tuple[str, str]) -> None:
    home, _ = granted
    makers = {
        "serving.kserve.io": {"inferenceservices", "inferencegraphs", "trainedmodels", "llminferenceservices"},
        "kubeflow.org": {"experiments", "trials"},
        "pipelines.kubeflow.org": {"runs", "recurringruns", "jobs"},
    }
    found: dict[str, set[tuple[str, str, str]]] = {}
    for account in sorted(accounts()):
        for rule in rules_of(cluster, account, home, home):
            for group in makers.keys() & set(rule.api_groups):
                for resource in makers[group] & set(rule.resources):
                    for verb in {"create", "update", "patch"} & set(rule.verbs):
                        found.setdefault(account, set()).add((group, resource, verb))
    seen = set().union(*found.values())
    assert seen <= RUNS_PODS
    assert seen >= {one for one in RUNS_PODS if one[0] != "pipelines.kubeflow.org"}
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for account in found:
        assert f"`{account}`" in page, account


def test_the_review_finds_a_right_that_should_not_be_there(cluster: Cluster, granted: tuple[str, str]) -> None:
    """That the tests above can fail: an account with three of these rights, one of them by name."""
    home, _ = granted
    rbac = client.RbacAuthorizationV1Api(cluster.api_client())
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get"]},
    ]
    rbac.create_namespaced_role(home, {"metadata": {"name": "too-much"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "intruder", "namespace": home}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "too-much"}
    rbac.create_namespaced_role_binding(
        home, {"metadata": {"name": "too-much"}, "roleRef": reference, "subjects": [subject]}
    )
    seen = {
        what
        for rule in rules_of(cluster, "intruder", home, home)
        for what, verbs, resources in FORBIDDEN
        if is_allowed(rule, verbs, resources)
    }
    assert {"secrets", "a shell in a pod", "all resources"} <= seen


def test_a_predictor_has_no_token() -> None:
    for folder, documents in rendered():
        made = {one["metadata"]["name"]: one for one in of_kind(documents, "ServiceAccount")}
        for service in of_kind(documents, "InferenceService"):
            account = service["spec"]["predictor"]["serviceAccountName"]
            assert made[account]["automountServiceAccountToken"] is False, (folder, account)


def test_a_token_is_mounted_only_where_something_talks_to_the_api_server() -> None:
    mounted = {
        one["metadata"]["name"]
        for one in of_kind(all_documents(), "ServiceAccount")
        if one.get("automountServiceAccountToken", True)
    }
    assert mounted <= {"mlflywheel-rollouts", "mlflywheel-pipelines"}


def test_no_rendered_object_holds_a_secret() -> None:
    assert not of_kind(all_documents(), "Secret")


def test_no_policy_lets_pods_ask_the_cloud_for_credentials() -> None:
    """The address that clouds answer with credentials of the node, 169.254.169.254, is in no block that is let out."""
    metadata = ipaddress.ip_address("169.254.169.254")
    policies = [(folder, policy) for folder, documents in rendered() for policy in of_kind(documents, "NetworkPolicy")]
    assert policies
    for folder, policy in policies:
        for rule in policy["spec"].get("egress", ()):
            peers = rule.get("to", ())
            assert peers, f"{folder}: everything is let out"
            for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
                inside = metadata in ipaddress.ip_network(block["cidr"])
                spared = any(metadata in ipaddress.ip_network(inner) for inner in block.get("except", ()))
                assert not inside or spared, (folder, block)
