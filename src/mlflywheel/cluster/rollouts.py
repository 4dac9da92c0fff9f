"""A rollout of an InferenceService: its actuator, its store and its source of evidence, put together."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from mlflywheel.cluster.canary import open_actuator
from mlflywheel.cluster.inference_services import InferenceService, Service
from mlflywheel.cluster.kubernetes_client import Cluster, connect
from mlflywheel.cluster.rollout_store import KubernetesStore
from mlflywheel.decisions.canary.evidence import Arm, ArmName, Window
from mlflywheel.errors import RolloutError, UsageError
from mlflywheel.registry.identity import name_this_user
from mlflywheel.rollouts.interfaces import Candidate, Source
from mlflywheel.rollouts.rollout import Rollout

#: What grants the permissions that a rollout needs.
MANIFEST = "manifests/rollouts"
_VERSION_ARGUMENT = "--model_version="


class NoSource(Source):
    """Stands where no source of evidence was named: every window is a gap, so that nothing is ever promoted."""

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        """Return a window that does not count."""
        return Window(start, end, step, traffic_percent, Arm(), Arm(), "no source of evidence was named")


@dataclass
class ServiceRollout(Rollout):
    """The rollout of an InferenceService.

    Args:
        arguments: Of the version in use.
    """

    arguments: Sequence[str] = ()

    def adapt(self, candidate: Candidate) -> Candidate:
        """Return the candidate with the arguments of the version in use, where those name that version."""
        return adapt_arguments(candidate, self.arguments)


def open_rollout(
    service: str,
    *,
    namespace: str | None = None,
    context: str | None = None,
    source: Mapping[str, Any] | None = None,
    who: str | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> ServiceRollout:
    """Open the rollout of an InferenceService.

    Nothing is written, and its source of evidence is not asked yet.

    Args:
        service: The InferenceService's name.
        namespace: Its namespace; the pod's or the kubeconfig's own if left out.
        context: Context of the kubeconfig.
        source: Where evidence comes from, as `make_source` takes it; what the rollout was started with if left out.
        who: For the history; this user and host if left out.
        told: Called with a line when the API server keeps a call waiting.

    Raises:
        UsageError: No namespace, or a source that is not known.
        RolloutError: There is no such service, or a permission is missing.
    """
    connection = connect(context)
    cluster = Cluster(connection, RolloutError, MANIFEST, context, told=told)
    chosen = namespace or connection.namespace
    if chosen is None:
        raise UsageError("--namespace", "nothing", "the service's namespace is needed", "add --namespace NAME")
    found = Service(cluster, chosen, service).read()
    store = KubernetesStore(cluster, chosen, service, found.uid)
    described = source
    if described is None:
        record = store.load()
        described = record.source if record is not None and not record.has_ended else {}
    return ServiceRollout(
        f"{chosen}/{service}",
        open_actuator(cluster, chosen, service),
        make_source(described, chosen, service, found.mode or ""),
        store,
        who or name_this_user(),
        arguments=_read_arguments(found),
    )


def make_source(described: Mapping[str, Any], namespace: str, service: str, mode: str) -> Source:
    """Return the source that JSON values describe.

    Args:
        described: `{"kind": "prometheus", "address": URL, ...}` with further arguments of `PrometheusSource`, or
            `{"kind": "file", "path": PATH}` with `-` for standard input, or empty for none. Labels may come with each:
            `{"answers": URI, "labels": URI}`.
        namespace: Of the service.
        service: Its name.
        mode: The service's deployment mode, which chooses the preset if none is named.

    Raises:
        UsageError: The kind is not known, or a field is missing.
    """
    options = {name: value for name, value in described.items() if name not in ("kind", "answers", "labels")}
    source = _make_windows(described.get("kind"), options, namespace, service, mode)
    answers, labels = described.get("answers"), described.get("labels")
    if (answers is None) != (labels is None):
        raise UsageError(
            "source",
            "labels without answers" if answers is None else "answers without labels",
            "labels are joined with answers by request id",
            "name both tables",
        )
    if answers is None:
        return source
    from mlflywheel.rollouts.label_log import LabelledSource

    return LabelledSource(source, str(answers), str(labels))


def _make_windows(kind: Any, options: dict[str, Any], namespace: str, service: str, mode: str) -> Source:
    if kind is None:
        return NoSource()
    if kind == "prometheus":
        from mlflywheel.cluster.prometheus import PrometheusSource

        preset = options.pop("preset", None) or ("knative" if mode == "Knative" else "mlflywheel")
        known = [name for name in signature(PrometheusSource).parameters if name not in ("namespace", "service")]
        for name in options:
            if name not in known:
                raise UsageError(f"source, {name}", "not known", f"there is {', '.join(known)}", "correct or remove it")
        return PrometheusSource(preset=preset, namespace=namespace, service=service, **options)
    if kind == "file":
        from mlflywheel.rollouts.evidence_file import EvidenceFileSource

        path = str(options["path"])
        return EvidenceFileSource(sys.stdin if path == "-" else path)
    raise UsageError(f"source {kind}", "not known", "there is prometheus and file", "choose one of these")


def _read_arguments(service: InferenceService) -> Sequence[str]:
    arguments = (service.predictor.get("model") or {}).get("args") or ()
    return tuple(str(argument) for argument in arguments)


def adapt_arguments(candidate: Candidate, arguments: Sequence[str]) -> Candidate:
    """Return the candidate with the arguments of the version in use, where those name that version.

    Our predictor is told its version by `--model_version`, and would otherwise answer with the old one's.

    Args:
        candidate: With `model` as `NAME@VERSION`.
        arguments: Of the version in use.

    >>> adapt_arguments(Candidate("s3://m/2", "v2", "ads@2"), ["--model_version=1"]).overrides
    {'model': {'args': ['--model_version=2']}}
    """
    version = candidate.model.rpartition("@")[2] or candidate.name
    changed = [
        f"{_VERSION_ARGUMENT}{version}" if argument.startswith(_VERSION_ARGUMENT) else argument
        for argument in arguments
    ]
    given = dict(candidate.overrides.get("model") or {})
    if changed == list(arguments) or "args" in given:
        return candidate
    overrides = {**candidate.overrides, "model": {**given, "args": changed}}
    return Candidate(candidate.storage_uri, candidate.name, candidate.model, overrides)
