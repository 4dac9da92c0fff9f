"""Which actuator moves the traffic of an InferenceService."""

from collections.abc import Callable

from mlflywheel.cluster.inference_services import MODE_ANNOTATION, Service
from mlflywheel.cluster.knative_canary import KnativeActuator
from mlflywheel.cluster.kubernetes_client import Cluster
from mlflywheel.cluster.standard_canary import StandardActuator
from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.interfaces import Actuator


def open_actuator(
    cluster: Cluster, namespace: str, service: str, told: Callable[[str], None] | None = None
) -> Actuator:
    """Return what moves the traffic of a service, by the mode that KServe runs it in.

    Args:
        cluster: The API server; its `error` should be `RolloutError`, and its `manifest` that of `inference_services`.
        namespace: Of the InferenceService.
        service: Its name.
        told: Called with a line when a call has to wait for the API server.

    Raises:
        RolloutError: There is no such service, or its mode has no canaries, or is not known.
    """
    if told is not None:
        cluster.told = told
    seen = Service(cluster, namespace, service).read()
    if seen.mode == "Standard":
        return StandardActuator(cluster, namespace, service)
    if seen.mode == "Knative":
        return KnativeActuator(cluster, namespace, service)
    if seen.mode is None:
        raise RolloutError(
            seen.where,
            f"neither its status nor its annotation {MODE_ANNOTATION} says in which mode it runs",
            "Standard or Knative is needed",
            "wait until KServe has taken it up; its controller may be down",
        )
    raise RolloutError(
        seen.where,
        f"it runs in mode {seen.mode}",
        "only Standard and Knative mode have canaries",
        "make a new InferenceService in one of these; the mode of this one cannot be changed",
    )
