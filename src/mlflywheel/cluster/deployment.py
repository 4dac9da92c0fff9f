"""Deploying a registered version: its rollout is started, or taken up where it stands, and followed to its end.

A version is rolled out once. Whoever asks again, such as a step that was killed or retried, gets the same rollout: they
go on with one that has not ended, and are told the result of one that has. So a candidate that was rolled back does not
get traffic again because a pipeline repeats its last step.

Before a rollout is started, the registry has to say that the version is approved, unless the policy asks for no
approval. When it has ended, the registry is told: a promoted version becomes live and the one that it replaced goes
back to approved; a version that was rolled back loses its approval, so that nobody deploys it again by accident.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import sleep
from typing import Any, Literal

from mlflywheel.cluster.connection import open_registry
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import ForeignEditError, GateRefusedError, MlflywheelError, RolloutError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.registry import ModelRegistry, ModelVersion, State, parse_reference
from mlflywheel.rollouts.interfaces import Candidate
from mlflywheel.rollouts.record import Phase, Record
from mlflywheel.rollouts.rollout import Rollout, seconds_to_next_tick

Verdict = Literal["promoted", "rolled back", "stopped", "already in use"]
ON_ROLLBACK = ("fail", "report")
#: What makes the first version of a service.
FIRST_DEPLOYMENT = "manifests/overlays/cpu"

_VERDICTS: Mapping[Phase, Verdict] = {"promoted": "promoted", "rolled_back": "rolled back", "stopped": "stopped"}
# Ticks of a CronJob, or of a pod that was killed, hold the rollout for a while.
_HELD_PAUSE_SECONDS = 5.0
# An entry of the history that says which weight was reached.
_WEIGHT = re.compile(r"([0-9.]+) %")
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Deployed:
    """What became of a version.

    Args:
        verdict: How it ended.
        candidate: What was deployed.
        record: Its rollout; None if there was none.
        registry_changes: What was written into the registry, a sentence each.
        warning: What could not be written there, with the command to repeat it; the verdict stands.
    """

    verdict: Verdict
    candidate: Candidate
    record: Record | None = None
    registry_changes: tuple[str, ...] = ()
    warning: str = ""

    def metrics(self) -> dict[str, float]:
        """Return what was measured.

        Returns:
            `rollout_seconds` from the start to the end; `exposed_seconds` from the first weight above 0 % until the
            candidate was promoted or had no traffic any more; `judged_requests`, those of the candidate that count as
            evidence; and for each metric of the policy the share of bad events of both versions, as
            `METRIC_candidate` and `METRIC_stable`.
        """
        if self.record is None:
            return {}
        record = self.record
        ended = record.history[-1].time if record.history else record.started
        findings = [one for one in record.verdict.get("findings", ()) if one["test"] == "harm" and not one["group"]]
        kinds = {metric.name: metric.kind for metric in record.policy.metrics}
        judged = [one["candidate_total"] for one in findings if kinds.get(one["metric"]) in ("errors", "latency")]
        found = {
            "rollout_seconds": ended - record.started,
            "exposed_seconds": _measure_exposure(record),
            "judged_requests": float(max(judged, default=0.0)),
        }
        for one in findings:
            for arm in ("candidate", "stable"):
                if one[f"{arm}_rate"] is not None:
                    found[f"{one['metric']}_{arm}"] = float(one[f"{arm}_rate"])
        return found

    def facts(self) -> dict[str, Any]:
        """Return what a run's summary says."""
        facts = _tell(self.verdict, self.candidate, self.record) | {"metrics": self.metrics()}
        if self.registry_changes:
            facts["registry"] = list(self.registry_changes)
        if self.warning:
            facts["warning"] = self.warning
        return facts

    def raise_if_refused(self, on_rollback: str = "fail") -> None:
        """Raise what a run has to end with.

        Args:
            on_rollback: `report` lets a rollback pass.

        Raises:
            GateRefusedError: The version was rolled back.
            RolloutError: Somebody else changed the service, and the rollout was stopped.
        """
        if self.record is None:
            return
        what = self.candidate.model or self.candidate.storage_uri
        service = self.record.service.rpartition("/")[2]
        if self.verdict == "rolled back" and on_rollback != "report":
            raise GateRefusedError(
                f"rollout of {self.record.service}",
                f"{what} was rolled back: {self.record.message}",
                "the candidate has to be as good as its policy says",
                f"see `mlflywheel rollout history {service}` for the evidence, and train another version",
            )
        if self.verdict == "stopped":
            raise RolloutError(
                f"rollout of {self.record.service}",
                f"that of {what} was stopped: {self.record.message}",
                "nobody else may change the service meanwhile",
                f"put the service in order, then `mlflywheel rollout start {service}` with this version",
            )


def deploy(
    reference: str,
    registry: str,
    service: str,
    *,
    namespace: str | None = None,
    context: str | None = None,
    policy: str = "",
    source: Mapping[str, Any] | None = None,
    timeout_seconds: float | None = None,
    on_rollback: str = "fail",
    progress: ProgressCallback = ignore_progress,
    pause: Callable[[float], object] = sleep,
) -> Deployed:
    """Roll a registered version out, as the `deployment` component does, and wait for the end.

    Args:
        reference: `NAME@VERSION`, or `NAME` for the newest.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        service: Name of the InferenceService.
        namespace: Its namespace; the pod's or the kubeconfig's own if left out.
        context: Context of the kubeconfig.
        policy: The policy as YAML; the default one if empty.
        source: Where evidence comes from, as `describe_source` returns it.
        timeout_seconds: How long to wait; None for ever. The rollout is left as it stands.
        on_rollback: `fail` or `report`: checked here, before anything is changed.
        progress: Called as a step of the policy is reached.
        pause: Waits so many seconds.

    Returns:
        How it ended; `raise_if_refused` raises what a run has to end with.

    Raises:
        UsageError: The policy, a parameter or the version's address cannot be meant.
        RegistryError: There is no such version.
        GateRefusedError: The version would be rolled out, and is not approved.
        RolloutError: There is no such service, another version is rolled out there, or the time was not enough.
    """
    if on_rollback not in ON_ROLLBACK:
        raise UsageError(
            "on_rollback", repr(on_rollback), f"there is {' and '.join(ON_ROLLBACK)}", "choose one of these"
        )
    read = read_policy(policy, "the rollout's policy") if policy.strip() else Policy()
    versions = open_registry(registry)
    version = versions.get(*parse_reference(reference))
    candidate = make_candidate(version)

    from mlflywheel.cluster.inference_services import Service
    from mlflywheel.cluster.kubernetes_client import Cluster, connect
    from mlflywheel.cluster.rollouts import MANIFEST, open_rollout

    try:
        rollout = open_rollout(service, namespace=namespace, context=context, source=source)
    except RolloutError as error:
        if error.needed != "the service has to exist":
            raise
        raise RolloutError(
            error.where,
            error.seen,
            "a rollout takes traffic from a version in use",
            f"deploy the first one with `kubectl apply -k {FIRST_DEPLOYMENT}`, or correct the service or its namespace",
        ) from error
    cluster = Cluster(connect(context), RolloutError, MANIFEST, context)
    try:
        in_use = Service(cluster, rollout.service.partition("/")[0], service).read().storage_uri
    finally:
        cluster.close()
    deployed = carry_out(
        rollout,
        rollout.adapt(candidate),
        read,
        source or {},
        in_use=in_use,
        check=lambda: check_approval(versions.get(version.name, version.version), read),
        timeout_seconds=timeout_seconds,
        progress=progress,
        pause=pause,
    )
    if deployed.record is None:
        return deployed
    changes, warning = tell_registry(versions, deployed.record)
    return replace(deployed, registry_changes=changes, warning=warning)


def carry_out(
    rollout: Rollout,
    candidate: Candidate,
    policy: Policy,
    source: Mapping[str, Any],
    *,
    in_use: str,
    check: Callable[[], object] = lambda: None,
    timeout_seconds: float | None = None,
    progress: ProgressCallback = ignore_progress,
    pause: Callable[[float], object] = sleep,
) -> Deployed:
    """Start or take up a candidate's rollout, and follow it to its end.

    Args:
        rollout: The service's.
        candidate: What to deploy.
        policy: How, if it is started here.
        source: Where evidence comes from, as JSON values for later ticks.
        in_use: Address of the version in use.
        check: Raises what speaks against a start; not asked for a rollout that was started before.
        timeout_seconds: How long to wait, by the rollout's clock; None for ever.
        progress: Progress callback.
        pause: Waits so many seconds.

    Raises:
        RolloutError: Another candidate's rollout has not ended, the candidate cannot be rolled out, or the time was not
            enough.
    """
    deadline = None if timeout_seconds is None else rollout.clock() + timeout_seconds

    def wait(seconds: float, seen: str) -> None:
        left = seconds if deadline is None else deadline - rollout.clock()
        if left <= 0:
            raise RolloutError(
                f"rollout of {rollout.service}",
                f"not ended within {timeout_seconds:g} s: {seen}",
                "it stays as it stands until somebody moves it on",
                f"run the step again, or `mlflywheel rollout watch {rollout.service.rpartition('/')[2]}`",
            )
        pause(min(seconds, left))

    while True:
        known = rollout.store.load()
        if known is not None and _is_same(known.candidate, candidate):
            if known.phase != "promoted" and known.has_ended:
                return Deployed(_VERDICTS[known.phase], candidate, known)
            if known.phase == "promoted" and _lies_at(in_use, candidate):
                return Deployed("promoted", candidate, known)
            if not known.has_ended:
                record = known
                break
        elif (known is None or known.has_ended) and _lies_at(in_use, candidate):
            return Deployed("already in use", candidate)
        check()
        try:
            record = rollout.start(candidate, policy, source)
        except RolloutError as error:
            if not _is_held(error):
                raise
            # Whoever holds it may be starting the same rollout.
            wait(_HELD_PAUSE_SECONDS, error.seen)
        else:
            break

    while True:
        _report(record, progress)
        if record.has_ended:
            return Deployed(_VERDICTS[record.phase], candidate, record)
        latest, held = _step(rollout)
        record = latest if latest.id == record.id else _find_end(latest, record)
        if not record.has_ended:
            seconds = _HELD_PAUSE_SECONDS if held else seconds_to_next_tick(record, rollout.clock())
            wait(seconds, f"{_name_phase(record)}, {held or record.message}")


def make_candidate(
    version: ModelVersion, name: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Candidate:
    """Return a registered version as what a rollout takes.

    Args:
        version: From a registry.
        name: Short name in the service; `v` and the version's number if left out.
        overrides: Fields of the predictor to change with it.

    Raises:
        UsageError: It lies where a cluster cannot read it.
    """
    if version.uri.startswith("file:") or "://" not in version.uri:
        raise UsageError(
            version.reference,
            f"it lies at {version.uri}",
            "an address that the cluster can read is needed, such as s3:// or pvc://",
            "run the pipeline on the cluster, or copy the model there and roll it out with "
            "`mlflywheel rollout start --uri`",
        )
    return Candidate(version.uri, name or f"v{version.version}", version.reference, dict(overrides or {}))


def check_approval(version: ModelVersion, policy: Policy) -> None:
    """Refuse a version that may not be rolled out as it stands in the registry.

    Args:
        version: As the registry has it now.
        policy: Says whether an approval is needed.

    Raises:
        GateRefusedError: It is archived, or it is a candidate and the policy asks for an approval.
    """
    if version.state is State.ARCHIVED:
        raise GateRefusedError(
            version.reference,
            "it is archived",
            "a version that is put away gets no traffic",
            f"if it is wanted again, `mlflywheel models restore {version.reference}`, and let it be approved",
        )
    if version.state is State.CANDIDATE and policy.approval == "required":
        raise GateRefusedError(
            version.reference,
            "it is a candidate, and nobody has approved it",
            "the rollout's policy asks for an approval",
            f"read `mlflywheel models card {version.reference}`, then `mlflywheel models approve {version.reference} "
            '--reason "..."`, or write `approval: not_required` into the policy',
        )


def tell_registry(registry: ModelRegistry, record: Record) -> tuple[tuple[str, ...], str]:
    """Write how a rollout ended into the registry, if that can be done.

    A promotion is never undone because the registry could not be written.

    Args:
        registry: Where the candidate is registered.
        record: The rollout; one that goes on, or whose candidate is in no registry, changes nothing.

    Returns:
        What was written, a sentence each, and a warning with the command to repeat it; empty if all went well.
    """
    try:
        return _write_end(registry, record), ""
    except (MlflywheelError, OSError) as error:
        namespace, _, name = record.service.rpartition("/")
        again = f"mlflywheel rollout watch {name} -n {namespace} --registry {registry.address}"
        ended = record.phase.replace("_", " ")
        return (), (
            f"{record.candidate.model} is {ended}, and the registry does not say so: {error} To repeat it: `{again}`"
        )


def _write_end(registry: ModelRegistry, record: Record) -> tuple[str, ...]:
    if record.phase not in ("promoted", "rolled_back") or "@" not in record.candidate.model:
        return ()
    version = registry.get(*parse_reference(record.candidate.model))
    who = record.history[-1].who if record.history else "rollout"
    why = f"rollout {record.id} of {record.service}: {record.phase.replace('_', ' ')}"
    if record.message:
        why = f"{why}, {record.message}"[:_REASON_CHARACTERS]
    if record.phase == "rolled_back":
        # A version that is live serves somewhere else too.
        back = (State.CANDIDATE,) if version.state is State.APPROVED else ()
        return _take(registry, version, back, who, why, record)
    steps: tuple[State, ...] = (State.LIVE,)
    if version.state is State.CANDIDATE and record.policy.approval == "not_required":
        steps = (State.APPROVED, State.LIVE)
    changes = _take(registry, version, steps, who, why, record)
    before = _find_replaced(registry, record, version)
    if before is not None:
        why = f"rollout {record.id} of {record.service}: replaced by {version.reference}"
        changes += _take(registry, before, (State.APPROVED,), who, why, record)
    return changes


def _take(
    registry: ModelRegistry, version: ModelVersion, steps: tuple[State, ...], who: str, why: str, record: Record
) -> tuple[str, ...]:
    """Take a version to states, unless this rollout did that before: a person may have decided otherwise since."""
    if not steps or version.state is steps[-1]:
        return ()
    told = registry.history(version.name, version.version)
    if any(one.to_state is steps[-1] and record.id in one.reason for one in told):
        return ()
    for state in steps:
        reason = why
        if state is not steps[-1]:
            reason = f"rollout {record.id} of {record.service}: its policy asks for no approval"
        registry.set_state(version.name, version.version, state, by=who, reason=reason)
    return (f"{version.reference} is {steps[-1]}",)


def _find_replaced(registry: ModelRegistry, record: Record, version: ModelVersion) -> ModelVersion | None:
    """Return the live version of the model whose address the service had when the rollout was started."""
    original = record.memo.get("original")
    predictor = original.get("predictor") if isinstance(original, Mapping) else None
    model = predictor.get("model") if isinstance(predictor, Mapping) else None
    address = str(model.get("storageUri") or "") if isinstance(model, Mapping) else ""
    if not address:
        return None
    for found in registry.list_versions(version.name):
        is_there = found.uri.rstrip("/") == address.rstrip("/")
        if is_there and found.state is State.LIVE and found.version != version.version:
            return found
    return None


def describe_source(prometheus: str = "", preset: str = "", evidence: str = "") -> dict[str, Any]:
    """Return where evidence comes from, as a rollout keeps it.

    Args:
        prometheus: Address of a Prometheus.
        preset: Whose metrics it has; by the service's mode if empty.
        evidence: URI of windows as JSON, in place of it.

    Raises:
        UsageError: None of them, or both, are given.

    >>> describe_source("http://prometheus.monitoring:9090", "kserve")
    {'kind': 'prometheus', 'address': 'http://prometheus.monitoring:9090', 'preset': 'kserve'}
    """
    if bool(prometheus) == bool(evidence):
        raise UsageError(
            "evidence of the rollout",
            "both prometheus and evidence" if prometheus else "nothing",
            "one source is needed: without evidence nothing is promoted",
            "leave one out" if prometheus else "give the address of your Prometheus with --set prometheus=URL",
        )
    if evidence:
        if preset:
            raise UsageError("preset", preset, "it belongs to prometheus", "leave it out")
        return {"kind": "file", "path": evidence}
    return {"kind": "prometheus", "address": prometheus} | ({"preset": preset} if preset else {})


def _step(rollout: Rollout) -> tuple[Record, str]:
    """Do a tick; return the record, and who holds it if somebody else is at it."""
    try:
        return rollout.step(), ""
    except ForeignEditError:
        latest = rollout.status()
        if latest.phase == "stopped":
            return latest, ""
        raise
    except RolloutError as error:
        if not _is_held(error):
            raise
        return rollout.status(), error.seen


def _find_end(latest: Record, own: Record) -> Record:
    """Return how a rollout ended after which another one was started already."""
    for before in latest.previous:
        if before["id"] == own.id:
            return replace(own, phase=before["phase"], message=str(before["why"]))
    raise RolloutError(
        f"rollout of {own.service}",
        f"the record of {own.id} is gone, and {latest.id} of {latest.candidate.model or latest.candidate.storage_uri} "
        "has its place",
        "a rollout's record stays until the next one",
        "see `mlflywheel rollout history`",
    )


def _report(record: Record, progress: ProgressCallback) -> None:
    done = len(record.policy.steps) if record.has_ended else record.step
    progress(_name_phase(record), done, len(record.policy.steps))


def _name_phase(record: Record) -> str:
    phase = record.phase.replace("_", " ")
    return f"{phase} at {record.traffic_percent:g} %" if record.phase in ("shifting", "watching") else phase


def _tell(verdict: str, candidate: Candidate, record: Record | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"verdict": verdict, "candidate": candidate.model, "uri": candidate.storage_uri}
    if record is not None:
        facts |= {"id": record.id, "service": record.service, "reason": record.message}
    return facts


def _is_same(known: Candidate, candidate: Candidate) -> bool:
    return known.storage_uri.rstrip("/") == candidate.storage_uri.rstrip("/")


def _lies_at(uri: str, candidate: Candidate) -> bool:
    return uri.rstrip("/") == candidate.storage_uri.rstrip("/")


def _is_held(error: RolloutError) -> bool:
    """Say whether somebody else holds the lock: every store begins like this."""
    return error.seen.startswith("held by ")


def _measure_exposure(record: Record) -> float:
    """Return for how many seconds the candidate had traffic before it was promoted, or lost it again."""
    started: float | None = None
    for entry in record.history:
        weight = _WEIGHT.fullmatch(entry.what)
        if weight is not None and float(weight[1]) > 0 and started is None:
            started = entry.time
        if started is not None and entry.what in ("promote", "rolled back", "stop"):
            return entry.time - started
    if started is None:
        return 0.0
    return record.history[-1].time - started
