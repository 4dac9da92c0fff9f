"""Checks of a team's namespace: its labels, who may do what in it, and the keys of the object store."""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlflywheel.cluster.examination import Check, Examined
from mlflywheel.cluster.findings import Finding, Status
from mlflywheel.cluster.katib_findings import INJECTION_LABEL
from mlflywheel.cluster.kubernetes_client import RefusedError
from mlflywheel.cluster.rights import PURPOSES, Purpose, Right, describe_rights
from mlflywheel.storage import without_credentials

_AUTHORIZATION = "/apis/authorization.k8s.io/v1"
_PREFIX = "serving.kserve.io/s3-"
_SECRET = "model-store"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# What manifests/base/secret.example.yaml holds.
_PLACEHOLDER = b"replace"


def _read_labels(examined: Examined) -> Mapping[str, str] | None:
    """Return the namespace's labels; None if there is no such namespace, which one check says for all."""
    found = examined.api.find(f"/api/v1/namespaces/{examined.namespace}")
    return None if found is None else (found["metadata"].get("labels") or {})


def _check_namespace(examined: Examined) -> Iterator[Finding]:
    name = examined.namespace
    found = examined.api.find(f"/api/v1/namespaces/{name}")
    if found is None:
        yield Finding("namespace", "problem", f"there is no {name}", f"kubectl create namespace {name}")
    elif (found.get("status") or {}).get("phase") == "Terminating":
        fix = f"kubectl get namespace {name} -o yaml says what it waits for"
        yield Finding("namespace", "problem", f"{name} is being deleted", fix)
    else:
        yield Finding("namespace", "ok", name)


def _check_katib_label(examined: Examined) -> Iterator[Finding]:
    labels = _read_labels(examined)
    if labels is None:
        return
    if labels.get(INJECTION_LABEL) == "enabled":
        yield Finding("label for Katib", "ok", "Katib collects the metrics of trials")
        return
    value = labels.get(INJECTION_LABEL) or "missing"
    yield Finding(
        "label for Katib",
        "problem" if _may_search(examined) else "note",
        f"{INJECTION_LABEL} is {value}: Katib collects no metrics here, so that no search of its ends",
        f"kubectl label namespace {examined.namespace} --overwrite {INJECTION_LABEL}=enabled",
    )


def _may_search(examined: Examined) -> bool:
    """Tell whether searches of Katib are meant to run here, as far as rights tell."""
    if not examined.api.serves("kubeflow.org", "v1beta1", "experiments"):
        return False
    account = examined.subject.service_account
    if account is None:
        return True
    kind, who = "SubjectAccessReview", _name_account(examined.namespace, account)
    try:
        return _review(examined, Right("kubeflow.org", "experiments", "create"), kind, who)
    except RefusedError:
        return True


def _check_pod_security(examined: Examined) -> Iterator[Finding]:
    labels = _read_labels(examined)
    if labels is None:
        return
    level = labels.get("pod-security.kubernetes.io/enforce")
    if level != "restricted":
        yield Finding("pod security", "ok", f"{level or 'no level'} enforced: KServe's pods and the steps' are let in")
        return
    subject = "pod security"
    seen = "restricted enforced, which refuses pods with a container that asks for less"
    path = "/apis/serving.kserve.io/v1alpha1/clusterstoragecontainers/default"
    fix = (
        "kubectl edit clusterstoragecontainer default: in spec.container.securityContext, allowPrivilegeEscalation: "
        "false, capabilities: {drop: [ALL]}, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}; or "
        f"kubectl label namespace {examined.namespace} --overwrite pod-security.kubernetes.io/enforce=baseline"
    )
    try:
        found = examined.api.find(path)
    except RefusedError:
        text = f"{seen}; whether KServe's storage initializer is one of them cannot be seen"
        yield Finding(subject, "note", text, fix)
        return
    context = ((found or {}).get("spec") or {}).get("container", {}).get("securityContext") or {}
    dropped = (context.get("capabilities") or {}).get("drop") or ()
    if context.get("allowPrivilegeEscalation") is False and "ALL" in dropped:
        yield Finding(subject, "ok", "restricted enforced, and KServe's storage initializer keeps to it")
    else:
        yield Finding(subject, "problem", f"{seen}: KServe's storage initializer, so that no predictor starts", fix)


def _check_istio(examined: Examined) -> Iterator[Finding]:
    labels = _read_labels(examined)
    if labels is None:
        return
    if labels.get("istio-injection") == "enabled" or labels.get("istio.io/rev"):
        yield Finding(
            "Istio",
            "note",
            "every pod gets a sidecar: pods that should end, such as Katib's trials, go on until it does",
            'in the template of such pods: the label sidecar.istio.io/inject: "false"',
        )
    else:
        yield Finding("Istio", "ok", "no sidecar is put into pods")


def _check_own_rights(examined: Examined) -> Iterator[Finding]:
    def ask(right: Right) -> bool:
        return _review(examined, right, "SelfSubjectAccessReview", {})

    # A pipeline or a rollout usually runs as an account, so that nothing has to be wrong here.
    yield from _judge_rights(examined, "your rights", ask, "you", "note")


def _check_account_rights(examined: Examined) -> Iterator[Finding]:
    name, namespace = examined.subject.service_account, examined.namespace
    if name is None:
        return
    subject = "the account's rights"
    try:
        if examined.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}") is None:
            fix = f"kubectl create serviceaccount {name} -n {namespace}, or name another one"
            yield Finding(subject, "problem", f"there is no service account {name} in {namespace}", fix)
            return
    except RefusedError as error:
        if error.status != 403:
            raise
    who = _name_account(namespace, name)

    def ask(right: Right) -> bool:
        return _review(examined, right, "SubjectAccessReview", who)

    try:
        found = list(_judge_rights(examined, subject, ask, name, "problem"))
        yield from found
        if all(_says_none(one) for one in found):
            fix = f"kubectl get rolebindings -n {namespace} -o wide shows who has which; then as for each above"
            yield Finding(subject, "problem", f"{name} has those of no Role in manifests/", fix)
    except RefusedError as error:
        if error.status != 403:
            raise
        text = f"cannot be seen: you may not create subjectaccessreviews.authorization.k8s.io to ask about {name}"
        fix = f"have an administrator run it, or kubectl auth can-i --list -n {namespace} --as {who['user']}"
        yield Finding(subject, "note", text, fix)


def _name_account(namespace: str, name: str) -> dict[str, Any]:
    return {
        "user": f"system:serviceaccount:{namespace}:{name}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
    }


def _says_none(finding: Finding) -> bool:
    return finding.text.startswith("none: ")


def _review(examined: Examined, right: Right, kind: str, who: Mapping[str, Any]) -> bool:
    attributes = {
        "namespace": examined.namespace,
        "group": right.group,
        "resource": right.resource,
        "verb": right.verb,
        # A namespace is an object in itself, and guarded as one.
        "name": examined.namespace if right.resource == "namespaces" else right.name,
    }
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": {**who, "resourceAttributes": attributes}}
    answer = examined.api.post(f"{_AUTHORIZATION}/{kind.lower()}s", body)
    return bool(answer.get("status", {}).get("allowed"))


def _judge_rights(
    examined: Examined, subject: str, ask: Callable[[Right], bool], who: str, severity: Status
) -> Iterator[Finding]:
    known: dict[Right, bool] = {}
    for purpose in PURPOSES:
        for right in purpose.rights:
            if right not in known:
                known[right] = ask(right)
        yield _judge_purpose(examined, purpose, known, f"{subject} for {purpose.name}", who, severity)


def _judge_purpose(
    examined: Examined, purpose: Purpose, known: Mapping[Right, bool], subject: str, who: str, severity: Status
) -> Finding:
    needed = [right for right in purpose.rights if right.is_needed]
    missing = [right for right in needed if not known[right]]
    helpful = [right for right in purpose.rights if not right.is_needed and not known[right]]
    listed = describe_rights(missing)
    named = "your user" if who == "you" else who
    fix = (
        f"make up NAMESPACE={examined.namespace} makes the account mlflywheel-pipelines, which may; or write {named} "
        f"into {purpose.manifest}/role-binding.yaml and the namespace into its kustomization.yaml, and "
        f"kubectl apply -k {purpose.manifest}"
    )
    if missing and len(missing) == len(needed):
        return Finding(subject, "note", f"none: {who} may not {listed}", f"if {who} should, {fix}")
    if missing:
        return Finding(subject, severity, f"{who} may not {listed}", fix)
    if helpful:
        text = f"enough; {who} may not {describe_rights(helpful)}, which some messages, modes or services need"
        return Finding(subject, "note", text, fix)
    return Finding(subject, "ok", f"all {len(purpose.rights)} of {purpose.manifest}")


def _check_secret(examined: Examined) -> Iterator[Finding]:
    namespace = examined.namespace
    found = examined.api.find(f"/api/v1/namespaces/{namespace}/secrets/{_SECRET}")
    create = (
        f"kubectl create secret generic {_SECRET} -n {namespace} --from-literal=AWS_ACCESS_KEY_ID=... "
        "--from-literal=AWS_SECRET_ACCESS_KEY=..."
    )
    if found is None:
        yield _judge_absence(examined, create)
        return
    faults = _find_faults(found.get("data") or {})
    if faults:
        fix = f"{create} --dry-run=client -o yaml | kubectl apply -f -"
        yield Finding(f"Secret {_SECRET}", "problem", "; ".join(faults), fix)
    else:
        yield Finding(f"Secret {_SECRET}", "ok", f"has {' and '.join(_KEYS)}")
    yield _judge_annotations(found["metadata"].get("annotations") or {}, namespace)


def _judge_absence(examined: Examined, create: str) -> Finding:
    namespace = examined.namespace
    text = f"there is none in {namespace}"
    try:
        accounts = examined.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts", limit="500").get("items") or ()
    except RefusedError:
        accounts = ()
    users = [
        one["metadata"]["name"]
        for one in accounts
        if any(reference.get("name") == _SECRET for reference in one.get("secrets") or ())
    ]
    if users:
        text += f", and {', '.join(users)} refer{'s' if len(users) == 1 else ''} to it: KServe starts no pod of theirs"
        return Finding(f"Secret {_SECRET}", "problem", text, create)
    return Finding(f"Secret {_SECRET}", "note", f"{text}; a store without keys needs none", create)


def _find_faults(data: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the keys, without a character of them."""
    faults = []
    for key in _KEYS:
        try:
            value = base64.b64decode(data.get(key) or "", validate=True)
        except binascii.Error:
            value = b""
        if not value:
            faults.append(f"{key} is {'empty' if key in data else 'missing'}")
        elif value == _PLACEHOLDER:
            faults.append(f"{key} is still the example's")
        elif value != value.strip():
            faults.append(f"{key} begins or ends with white space, such as a line break")
    return faults


def _judge_annotations(annotations: Mapping[str, str], namespace: str) -> Finding:
    subject = f"Secret {_SECRET}, annotations"
    change = f"kubectl annotate secret {_SECRET} -n {namespace} --overwrite {_PREFIX}"
    own = {key.removeprefix(_PREFIX): value for key, value in annotations.items() if key.startswith(_PREFIX)}
    endpoint = own.get("endpoint", "")
    if "://" in endpoint:
        shown = without_credentials(endpoint)
        bare = shown.partition("://")[2].strip("/")
        text = f"{_PREFIX}endpoint is {shown}, and KServe puts a scheme before it"
        return Finding(subject, "problem", text, f"{change}endpoint={bare}")
    if not endpoint and not own.get("region"):
        text = "neither an endpoint nor a region: KServe asks Amazon's S3, unless its configuration says otherwise"
        return Finding(subject, "note", text, f"{change}region=..., or {change}endpoint=HOST:PORT")
    shown = ", ".join(f"{key} {without_credentials(value)}" for key, value in sorted(own.items()))
    return Finding(subject, "ok", shown)


CHECKS = (
    Check("namespace", "namespace", "whether it is there", _check_namespace),
    Check("namespace", "label for Katib", f"`{INJECTION_LABEL}: enabled`", _check_katib_label),
    Check(
        "namespace",
        "pod security",
        "the level that is enforced; with `restricted`, whether KServe's storage initializer keeps to it",
        _check_pod_security,
    ),
    Check("namespace", "Istio", "whether pods get a sidecar", _check_istio),
    Check(
        "permissions",
        "your rights",
        f"yours for {', '.join(purpose.name for purpose in PURPOSES)}: each verb of the Roles in manifests/",
        _check_own_rights,
    ),
    Check(
        "permissions",
        "the account's rights",
        "the same for the account of `--service-account`, and whether it is there",
        _check_account_rights,
    ),
    Check(
        "storage",
        f"Secret {_SECRET}",
        f"`{'` and `'.join(_KEYS)}`, filled in and without line breaks; the annotations for endpoint and region",
        _check_secret,
    ),
)
