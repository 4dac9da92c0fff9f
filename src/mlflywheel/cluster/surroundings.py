"""What a pod can learn of the cluster that it runs in, for the record of how a model was trained.

Nothing is needed of what is asked here: a permission that is missing, or a server that does not answer, leaves a gap
with its reason. Reading its own pod takes `get` on pods, which Kubeflow's service account for pipelines has; the
labels of a node take `get` on nodes, which it has not by default.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlflywheel.errors import MlflywheelError, RunError

if TYPE_CHECKING:
    from mlflywheel.cluster.kubernetes_client import Connection

#: Set by Kubernetes in every pod.
_HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
# Set by Kubeflow Pipelines in the pod of every step.
_POD_VARIABLE = "KFP_POD_NAME"
_CONTAINER = "main"
_SECONDS = (3.0, 5.0)
_NODE_LABELS = (
    "kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "feature.node.kubernetes.io/cpu-model.family",
    "feature.node.kubernetes.io/cpu-model.id",
    "feature.node.kubernetes.io/cpu-model.vendor_id",
)


def describe_surroundings(connection: "Connection | None" = None) -> dict[str, Any]:
    """Describe cluster and image of the pod that this process runs in.

    Args:
        connection: Where the API server is; the pod's own when left out, and outside a pod nobody is asked.

    Returns:
        `cluster` (`version` of the server, `namespace`, and those of the `node`'s labels that say what kind of machine
        it is), `image` (`reference`, `digest`), and in `unknown` why something is null. No name of a pod or a node is
        in it.
    """
    if connection is None and not os.environ.get(_HOST_VARIABLE):
        return {"cluster": None, "image": None, "unknown": {"cluster": "not in a cluster"}}
    # Not before it is sure that there is a cluster: the import takes a second.
    try:
        from mlflywheel.cluster.kubernetes_client import Cluster, connect

        found = connection or connect()
    except MlflywheelError as error:
        return {"cluster": None, "image": None, "unknown": {"cluster": error.seen}}
    cluster = Cluster(found, RunError, "", is_own=connection is None)
    try:
        return _ask(lambda path: cluster.try_once(lambda api: _get(api, path)), found.namespace)
    finally:
        cluster.close()


def _ask(get: Callable[[str], dict[str, Any]], namespace: str | None) -> dict[str, Any]:
    from mlflywheel.cluster.kubernetes_client import RefusedError

    unknown: dict[str, str] = {}

    def ask(what: str, path: str) -> dict[str, Any]:
        try:
            return get(path)
        except (RefusedError, ConnectionError) as error:
            unknown[what] = str(error)
            return {}

    pod_name = os.environ.get(_POD_VARIABLE)
    pod: dict[str, Any] = {}
    if pod_name and namespace:
        pod = ask("image", f"/api/v1/namespaces/{namespace}/pods/{pod_name}")
    else:
        unknown["image"] = f"{_POD_VARIABLE} is not set"
    node_name = pod.get("spec", {}).get("nodeName")
    if node_name:
        node = ask("cluster.node", f"/api/v1/nodes/{node_name}")
    else:
        node, unknown["cluster.node"] = {}, "the pod names none" if pod else "the pod could not be read"
    labels = node.get("metadata", {}).get("labels", {})
    cluster = {
        "version": ask("cluster.version", "/version").get("gitVersion"),
        "namespace": namespace,
        "node": {label: labels[label] for label in _NODE_LABELS if label in labels} if node else None,
    }
    return {"cluster": cluster, "image": read_image(pod), "unknown": unknown}


def read_image(pod: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return reference and digest of a pod's main container, from what the kubelet reports; None if it does not.

    >>> status = {"name": "main", "image": "repo/a:1", "imageID": "docker.io/repo/a@sha256:12"}
    >>> read_image({"status": {"containerStatuses": [status]}})
    {'reference': 'repo/a:1', 'digest': 'sha256:12'}
    """
    for status in pod.get("status", {}).get("containerStatuses") or ():
        if status.get("name") == _CONTAINER:
            digest = str(status.get("imageID") or "").rpartition("@")[2]
            return {
                "reference": status.get("image") or None,
                "digest": digest if digest.startswith("sha256:") else None,
            }
    return None


def _get(api: Any, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = api.call_api(
        path,
        "GET",
        response_type="object",
        auth_settings=["BearerToken"],
        _return_http_data_only=True,
        _request_timeout=_SECONDS,
    )
    return answer
