"""The rights that parts of this library need in a namespace, as manifests/ grant them.

One table: what `mlflywheel doctor` asks the API server about, and what a test compares with each `role.yaml`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Right:
    """One verb on one resource.

    Args:
        group: API group; empty for Kubernetes' own.
        resource: Plural name.
        verb: RBAC verb.
        is_needed: False for what only helps, or is of one deployment mode.
        name: The one object that it is for; empty for all of them.
    """

    group: str
    resource: str
    verb: str
    is_needed: bool = True
    name: str = ""


def describe_rights(rights: Iterable[Right]) -> str:
    """Return rights as words, those on one resource together.

    >>> describe_rights([Right("", "pods", "get"), Right("", "pods", "list"), Right("apps", "deployments", "get")])
    'get and list pods; get deployments.apps'
    """
    verbs: dict[str, list[str]] = {}
    for right in rights:
        kind = f"{right.resource}{'.' if right.group else ''}{right.group}"
        verbs.setdefault(f"{kind}{'/' if right.name else ''}{right.name}", []).append(right.verb)
    return "; ".join(f"{' and '.join(filter(None, (', '.join(v[:-1]), v[-1])))} {kind}" for kind, v in verbs.items())


@dataclass(frozen=True)
class Purpose:
    """What an account may be there for.

    Args:
        name: In a message, after "the rights for".
        manifest: The folder whose Role grants them.
        rights: All of that Role.
    """

    name: str
    manifest: str
    rights: tuple[Right, ...]


def _expand(group: str, resource: str, needed: str = "", helpful: str = "", name: str = "") -> Iterator[Right]:
    for verb in needed.split():
        yield Right(group, resource, verb, name=name)
    for verb in helpful.split():
        yield Right(group, resource, verb, is_needed=False, name=name)


PURPOSES = (
    Purpose(
        "pipelines",
        "manifests/pipelines",
        (
            *_expand("argoproj.io", "workflowtaskresults", "create patch"),
            # Without either the installation's own settings count.
            *_expand("", "configmaps", helpful="get", name="kfp-launcher"),
            # One of them, by where the artifacts lie.
            *_expand("", "secrets", helpful="get", name="mlpipeline-minio-artifact"),
            *_expand("", "secrets", helpful="get", name="model-store"),
            *_expand("", "pods", "get"),
        ),
    ),
    Purpose(
        "searches",
        "manifests/katib",
        (
            *_expand("kubeflow.org", "experiments", "create get delete"),
            *_expand("kubeflow.org", "trials", helpful="list"),
            *_expand("kubeflow.org", "suggestions", helpful="get"),
            *_expand("", "pods", helpful="list"),
            *_expand("", "events", helpful="list"),
            *_expand("", "namespaces", helpful="get"),
        ),
    ),
    Purpose(
        "rollouts",
        "manifests/rollouts",
        (
            *_expand("", "configmaps", "create"),
            *_expand("coordination.k8s.io", "leases", "create"),
            # Of our services. Which of them, and which others, are rolled out in a namespace is up to its Role.
            *(
                right
                for name in ("ad-campaigns-rollout", "credit-decisions-rollout", "vehicle-prices-rollout")
                for group, resource in (("", "configmaps"), ("coordination.k8s.io", "leases"))
                for right in _expand(group, resource, helpful="get update", name=name)
            ),
            *_expand("serving.kserve.io", "inferenceservices", "get patch", "list"),
            # Each mode of KServe has its own.
            *_expand("apps", "deployments", "get"),
            *_expand("gateway.networking.k8s.io", "httproutes", "get"),
            *_expand("serving.knative.dev", "services", helpful="get"),
            *_expand("autoscaling", "horizontalpodautoscalers", "get delete"),
            *_expand("keda.sh", "scaledobjects", helpful="get delete"),
            *_expand("", "pods", helpful="list"),
            *_expand("", "events", helpful="list"),
        ),
    ),
)
