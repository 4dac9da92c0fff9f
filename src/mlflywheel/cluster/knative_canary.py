"""Rollouts in KServe's Knative mode: `canaryTrafficPercent`, with the traffic of the Knative Service.

What `move` does, one change at a time, each only when the one before shows in the cluster:

- **Up:** the predictor gets the candidate's model together with `canaryTrafficPercent`: KServe gives that share to the
  newest revision as soon as it is ready, and the rest to the revision that last had everything.
- **Promotion:** up to 100 %, then the field is put back to what it was, which changes nothing in the traffic.
- **Rollback:** the field goes to 0, and when the candidate has no traffic the old predictor is applied again, so that
  the bad one does not stay in the object. Knative makes a new revision of it: revisions are numbered by change, not by
  content. Only when that one is ready is the field put back: as long as the candidate's is the newest that is ready,
  traffic without the field would go there.

Autoscaling is Knative's, per revision, and stays as it is. A revision without traffic is scaled to zero.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mlflywheel.cluster.inference_services import (
    MISSING,
    SOURCE_ANNOTATION,
    Change,
    InferenceService,
    Service,
    check_candidate,
    clean_metadata,
    find_condition,
    make_candidate_fields,
    make_manifest,
    overlay,
    read_model_failure,
    read_traffic_target,
    whole_percent,
)
from mlflywheel.cluster.kubernetes_client import Cluster
from mlflywheel.decisions.canary.evidence import ArmName
from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Target

_KNATIVE_SERVICES = "services.serving.knative.dev"
_PERCENT = "canaryTrafficPercent"
#: For how long a rollback from 100 % waits for KServe to go back to the revision before, until it applies the old
#: predictor again without.
FLIP_SECONDS = 60.0


@dataclass(frozen=True)
class Traffic:
    """Who gets which part of the requests.

    Args:
        percent: Of each revision, by its name: 0 to 100, those with 0 included.
    """

    percent: Mapping[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{one} {share:g} %" for one, share in sorted(self.percent.items())) or "nothing"


@dataclass(frozen=True)
class _World:
    """What one call of `move` saw."""

    seen: InferenceService
    knative: Mapping[str, Any] | None
    traffic: Traffic
    stable: str

    @property
    def component(self) -> Mapping[str, Any]:
        return read_component(self.seen)

    @property
    def newest_ready(self) -> str:
        return str(self.component.get("latestReadyRevision") or "")

    def share(self, revision: str) -> float:
        return self.traffic.percent.get(revision, 0.0)


class KnativeActuator(Actuator):
    """Moves the traffic of an InferenceService in Knative mode.

    Args:
        cluster: The API server.
        namespace: Of the InferenceService.
        service: Its name.
        now: The time, in seconds; tests give another one.
    """

    def __init__(self, cluster: Cluster, namespace: str, service: str, now: Callable[[], float] = time.time) -> None:
        self._service = Service(cluster, namespace, service)
        self._now = now

    def begin(self, candidate: Candidate) -> Memo:
        """Check that the candidate can be rolled out here, and read what has to be put back afterwards.

        The server and KServe's webhooks are asked as well, by a dry run of the first step.
        """
        seen = self._service.read()
        check_candidate(seen, candidate, str(seen.predictor.get("name") or ""))
        stable = self._check_state(seen)
        memo: Memo = {
            "mode": "Knative",
            "uid": seen.uid,
            "metadata": clean_metadata(seen),
            "original": deepcopy(dict(seen.spec)),
            "stable_revision": stable,
        }
        self._service.remember(seen, memo)
        self._service.patch(seen, _change(seen.spec, candidate, memo, 0), dry_run=True)
        return memo

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        """Do the next thing on the way to a target, if there is one, and say how far it is."""
        percent = read_traffic_target(target, self._service.where)

        def may_be_gone(service: InferenceService, change: Change) -> bool:
            return _may_be_gone(change, target, memo)

        seen = self._service.read()
        self._service.accept(seen, memo, may_be_gone)
        knative = self._service.find_owned(_KNATIVE_SERVICES, seen.predictor_name, seen.uid)
        world = _World(seen, knative, read_traffic(seen), str(memo["stable_revision"]))
        step = _Step(self._service, world, memo, may_be_gone, self._now)
        is_candidate = seen.storage_uri == candidate.storage_uri
        if target.kind == "rolled_back":
            return step.roll_back(candidate) if is_candidate else step.finish_rollback()
        if not is_candidate:
            settled = find_settled_revision(seen)
            if settled:
                # Another one than at the start if somebody changed an annotation: KServe passes those on to revisions.
                memo["stable_revision"] = settled
            stuck = "" if settled else f"one revision to be the newest and have all traffic, it is {world.traffic}"
            return step.start(candidate, percent, stuck)
        if target.kind == "promoted":
            return step.promote()
        return step.ramp(percent)

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        """Return the InferenceService that stands for a target."""
        spec: Mapping[str, Any] = memo["original"]
        if target.kind == "weight":
            spec = _change(spec, candidate, memo, whole_percent(target.traffic_percent, self._service.where))
        elif target.kind == "promoted":
            spec = _change(spec, candidate, memo, None)
        return (make_manifest(memo["metadata"], spec),)

    def _check_state(self, seen: InferenceService) -> str:
        where, component = seen.where, read_component(seen)
        if seen.canaries:
            raise RolloutError(
                f"{where}, spec.canary",
                "it is set, in Knative mode",
                "KServe takes spec.canary in Standard mode only",
                "remove it; here the rollout sets canaryTrafficPercent",
            )
        percent = seen.predictor.get(_PERCENT)
        if percent not in (None, 100):
            raise RolloutError(
                f"{where}, spec.predictor.{_PERCENT}",
                f"{percent}: another version is being rolled out",
                "a rollout begins with one version that has all traffic",
                "promote that version (100) or apply the one before again",
            )
        settled = find_settled_revision(seen)
        if not settled:
            rolled_out, created = component.get("latestRolledoutRevision"), component.get("latestCreatedRevision")
            raise RolloutError(
                f"{where}, status.components.predictor",
                f"rolled out: {rolled_out or 'nothing'}, newest: {created or 'nothing'}, traffic: {read_traffic(seen)}",
                "one revision has to be the newest and to have all traffic: KServe splits between that and the next",
                "wait until the last change of the service is rolled out",
            )
        return settled


class _Step:
    """What `KnativeActuator.move` can do next, with what it saw."""

    def __init__(
        self,
        service: Service,
        world: _World,
        memo: Memo,
        may_be_gone: Callable[[InferenceService, Change], bool],
        now: Callable[[], float],
    ) -> None:
        self.service, self.world, self.memo, self.may_be_gone, self.now = service, world, memo, may_be_gone, now
        self.seen = world.seen

    def start(self, candidate: Candidate, percent: int, stuck: str) -> Move:
        """Give the predictor the candidate's model."""
        if stuck:
            return self._wait(stuck)
        changed = _change(self.seen.spec, candidate, self.memo, percent)
        return self._write(changed, f"applied {candidate.name} with {percent} % of the traffic once it is ready")

    def ramp(self, percent: int) -> Move:
        """Bring the candidate to a share."""
        current = self.seen.predictor.get(_PERCENT)
        if current != percent:
            return self._set_percent(percent, f"moved the candidate's share from {current} % to {percent} %")
        missing, failed = self._find_unsettled()
        if missing:
            return self._wait(missing, failed=failed)
        candidate = self._note_candidate()
        strange = self._find_strangers(candidate)
        if strange:
            return self._wait(strange, failed=f"{strange}: KServe took another revision for the one in use")
        if not self._has(candidate, percent):
            return self._wait(f"Knative to give {candidate} {percent} %: traffic is {self.world.traffic}")
        return self._conclude()

    def promote(self) -> Move:
        """Bring the candidate to everything, and put the field back."""
        current, original = self.seen.predictor.get(_PERCENT), self.memo["original"]["predictor"].get(_PERCENT)
        if current not in (100, original):
            return self.ramp(100)
        missing, failed = self._find_unsettled()
        if missing:
            return self._wait(missing, failed=failed)
        candidate = self._note_candidate()
        if not self._has(candidate, 100) or self.world.component.get("latestRolledoutRevision") != candidate:
            return self._wait(f"KServe to take {candidate} for rolled out: traffic is {self.world.traffic}")
        if current != original:
            return self._set_percent(original, f"made {candidate} the version in use: put {_PERCENT} back")
        return self._conclude()

    def roll_back(self, candidate: Candidate) -> Move:
        """Take the traffic from the candidate, then apply the old predictor again."""
        revision = self._find_candidate()
        if self.seen.predictor.get(_PERCENT) != 0:
            return self._set_percent(0, f"took the traffic from {candidate.name}")
        share = self.world.share(revision) if revision else 0.0
        if share > 0:
            # After a full promotion KServe first has to go back to the revision before.
            if not self._has_lasted("flip", FLIP_SECONDS):
                return self._wait(f"KServe to take the traffic from {revision}: it is {self.world.traffic}")
        else:
            self._forget("flip")
        changed = deepcopy(dict(self.seen.spec))
        changed["predictor"] = deepcopy(dict(self.memo["original"]["predictor"])) | {_PERCENT: 0}
        return self._write(changed, "applied the version before again")

    def finish_rollback(self) -> Move:
        """Put the field back when the old predictor's revision is the newest that is ready."""
        current, original = self.seen.predictor.get(_PERCENT), self.memo["original"]["predictor"].get(_PERCENT)
        missing, failed = self._find_unsettled()
        if missing:
            return self._wait(missing, failed=failed)
        if current != original:
            return self._set_percent(original, f"put {_PERCENT} back")
        if not self._has(self.world.newest_ready, 100):
            return self._wait(f"{self.world.newest_ready} to have all traffic: it is {self.world.traffic}")
        return self._conclude(self.world.newest_ready)

    def _set_percent(self, percent: int | None, did: str) -> Move:
        changed = deepcopy(dict(self.seen.spec))
        changed["predictor"].pop(_PERCENT, None)
        if percent is not None:
            changed["predictor"][_PERCENT] = percent
        return self._write(changed, did)

    def _conclude(self, stable: str = "") -> Move:
        ready = self.seen.condition("Ready")
        if not ready.is_true:
            return self._wait(f"the service to be ready ({ready})", failed=self._find_failure(), stable=stable)
        return Move(True, traffic_percent=self._share(), arms=self._arms(stable))

    def _write(self, spec: Mapping[str, Any], did: str) -> Move:
        self.service.write(self.seen, spec, self.memo, self.may_be_gone)
        return self._wait("KServe and Knative to take that up", did=did)

    def _wait(self, waiting_for: str, *, did: str = "", failed: str = "", stable: str = "") -> Move:
        return Move(False, did, waiting_for, self._share(), failed, self._arms(stable))

    def _find_unsettled(self) -> tuple[str, str]:
        """Return what is missing until the newest revision is of the present predictor and ready, and why for good."""
        name, wanted = self.seen.predictor_name, self.seen.storage_uri
        knative = self.world.knative
        if knative is None:
            return f"KServe to make the Knative Service {name}", ""
        template = knative["spec"]["template"]["metadata"].get("annotations") or {}
        if template.get(SOURCE_ANNOTATION) != wanted:
            warning = self.service.find_warning(self.seen)
            said = f"; KServe says: {warning}" if warning else ""
            return f"KServe to pass {wanted} on to Knative{said}", read_model_failure(self.seen)
        status = knative.get("status") or {}
        if status.get("observedGeneration", 0) < knative["metadata"].get("generation", 0):
            return f"Knative to take up the change of {name}", ""
        configured = find_condition(knative, "ConfigurationsReady")
        if not configured.is_true:
            newest = status.get("latestCreatedRevisionName") or "a revision"
            failed = ""
            if configured.status == "False":
                failed = self._find_broken_pod(newest) or f"{newest}: {configured}"
            return f"{newest} to be ready ({configured})", failed
        if self.world.newest_ready != status.get("latestReadyRevisionName"):
            return "KServe to read the state of the Knative Service", ""
        return "", ""

    def _find_candidate(self) -> str:
        """Return the candidate's revision; empty if there is none yet."""
        missing, _ = self._find_unsettled()
        if not missing:
            return self._note_candidate()
        created = str(self.world.component.get("latestCreatedRevision") or "")
        return created if created != self.world.stable else ""

    def _note_candidate(self) -> str:
        self.memo["candidate_revision"] = self.world.newest_ready
        return self.world.newest_ready

    def _find_strangers(self, candidate: str) -> str:
        others = [
            one
            for one, share in self.world.traffic.percent.items()
            if share and one not in (candidate, self.world.stable)
        ]
        return f"traffic goes to {', '.join(others)}, which is neither version" if others else ""

    def _has(self, revision: str, percent: int) -> bool:
        return math.isclose(self.world.share(revision), percent, abs_tol=0.01)

    def _find_failure(self) -> str:
        return self._find_broken_pod(self.world.newest_ready) or read_model_failure(self.seen)

    def _find_broken_pod(self, revision: str) -> str:
        return self.service.find_broken_pod(revision)

    def _has_lasted(self, what: str, seconds: float) -> bool:
        since = self.memo.setdefault("since", {}).setdefault(what, self.now())
        return bool(self.now() - since >= seconds)

    def _forget(self, what: str) -> None:
        self.memo.get("since", {}).pop(what, None)

    def _share(self) -> float | None:
        if not self.world.traffic.percent:
            return None
        candidate = self.memo.get("candidate_revision")
        return self.world.share(str(candidate)) if candidate else 0.0

    def _arms(self, stable: str) -> dict[ArmName, str]:
        arms: dict[ArmName, str] = {"stable": stable or self.world.stable}
        if self.memo.get("candidate_revision"):
            arms["candidate"] = str(self.memo["candidate_revision"])
        return arms


def read_component(seen: InferenceService) -> Mapping[str, Any]:
    """Return `status.components.predictor`; an empty mapping if it is not there yet."""
    found: Mapping[str, Any] = (seen.status.get("components") or {}).get("predictor") or {}
    return found


def read_traffic(seen: InferenceService) -> Traffic:
    """Return who gets which part of the requests, as Knative says and KServe repeats.

    A revision can have several entries, such as one by its name and one as the newest.
    """
    percent: dict[str, float] = {}
    for one in read_component(seen).get("traffic") or ():
        name = str(one.get("revisionName") or "")
        percent[name] = percent.get(name, 0.0) + float(one.get("percent") or 0)
    return Traffic(percent)


def find_settled_revision(seen: InferenceService) -> str:
    """Return the revision that is the newest, ready and has all traffic; empty if there is none."""
    component = read_component(seen)
    rolled_out = str(component.get("latestRolledoutRevision") or "")
    newest = {component.get("latestCreatedRevision"), component.get("latestReadyRevision")}
    has_all = math.isclose(read_traffic(seen).percent.get(rolled_out, 0.0), 100)
    return rolled_out if rolled_out and newest == {rolled_out} and has_all else ""


def _change(spec: Mapping[str, Any], candidate: Candidate, memo: Memo, percent: int | None) -> dict[str, Any]:
    """Return a spec with the candidate as its predictor; the field is put back if there is no percent."""
    changed = deepcopy(dict(spec))
    predictor = overlay(changed["predictor"], make_candidate_fields(changed["predictor"], candidate))
    predictor.pop(_PERCENT, None)
    original = memo["original"]["predictor"].get(_PERCENT)
    if percent is not None or original is not None:
        predictor[_PERCENT] = original if percent is None else percent
    changed["predictor"] = predictor
    return changed


def _may_be_gone(change: Change, target: Target, memo: Memo) -> bool:
    """Say whether a rollout may have removed a field without noting it."""
    if change.path == ("predictor", _PERCENT) and target.kind == "weight":
        return False
    original: Any = memo["original"]
    for key in change.path:
        original = original.get(key, MISSING) if isinstance(original, Mapping) else MISSING
    return original is MISSING
