"""Rollouts in KServe's Standard mode: `spec.canary[]`, with the weights of Gateway API's HTTPRoutes.

What `move` does, one change at a time, each only when the one before shows in the cluster:

- **Up:** the candidate starts without traffic, gets as many replicas as its share needs, and then its share.
- **Promotion:** up to 100 %; then one patch makes it the predictor, under its own name so that its pods stay, and takes
  the canary away and puts the replicas' limits back. KServe then deletes the old Deployment and Service.
- **Rollback:** the share goes to 0, and when the routes say so the canary is taken away. If the promotion was written
  already, the old model comes back the same way that the candidate went: as a canary that is promoted.

**Autoscaling.** A canary has a fixed number of replicas, and KServe takes as many from the stable `minReplicas`. So
`minReplicas` is raised by that number: the stable Deployment keeps what it had at the start, its autoscaler goes on
above that, and a rollback finds it whole. KServe leaves the autoscalers of deleted Deployments behind; they are removed
here.

**Routes are the truth.** `status.canaryStatuses` repeats the spec. KServe writes routes only while the stable predictor
is ready, so a share is changed only then.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mlflywheel.cluster.inference_services import (
    AUTOSCALER_ANNOTATION,
    MISSING,
    Change,
    InferenceService,
    Service,
    check_candidate,
    clean_metadata,
    find_condition,
    is_owned_by,
    make_candidate_fields,
    make_manifest,
    name_predictor,
    overlay,
    read_model_failure,
    read_traffic_target,
    shorten,
    whole_percent,
)
from mlflywheel.cluster.kubernetes_client import Cluster
from mlflywheel.decisions.canary.evidence import ArmName
from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Target

_DEPLOYMENTS = "deployments.apps"
_ROUTES = "httproutes.gateway.networking.k8s.io"
_AUTOSCALERS = "horizontalpodautoscalers.autoscaling"
_SCALED_OBJECTS = "scaledobjects.keda.sh"
# A predictor without a name cannot come back as a canary without one.
_RESTORED = "restored"
_LIMITS = ("minReplicas", "maxReplicas")
_SCALING = (*_LIMITS, "scaleTarget", "scaleMetric", "autoScaling", "canaryTrafficPercent")
#: For how long routes may lack a canary that is ready, before its KServe counts as one that writes no weights.
NO_WEIGHTS_SECONDS = 120.0
#: For how long a canary's Deployment may be missing before the reason is taken as final.
NO_DEPLOYMENT_SECONDS = 120.0


@dataclass(frozen=True)
class Shares:
    """Who gets which part of the requests, by the routes.

    Args:
        percent: Of each Service, by its name: 0 to 100.
        problem: Why they cannot be relied on; empty if they can.
    """

    percent: Mapping[str, float]
    problem: str = ""


@dataclass(frozen=True)
class _Shift:
    """One version coming in as a canary beside another.

    Args:
        stable: Name of the predictor that is there; empty if it has none.
        name: Name of the one that comes.
        canary: The fields of the one that comes, as the canary has them.
        result: The whole predictor after its promotion.
    """

    stable: str
    name: str
    canary: Mapping[str, Any]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class _World:
    """What one call of `move` saw."""

    seen: InferenceService
    shares: Shares

    def share(self, predictor_name: str) -> float:
        return self.shares.percent.get(predictor_name, 0.0)

    def entry(self, name: str) -> Mapping[str, Any] | None:
        return next((one for one in self.seen.canaries if one["predictor"].get("name") == name), None)


class StandardActuator(Actuator):
    """Moves the traffic of an InferenceService in Standard mode.

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

        The server and KServe's webhooks are asked as well, by dry runs of the first step and of the promotion.
        """
        seen = self._service.read()
        back = _name_back(seen.predictor, candidate)
        check_candidate(seen, candidate, max(candidate.name, back, key=len))
        self._check_fields(seen, candidate)
        self._check_gateway(seen)
        stable = self._service.find_owned(_DEPLOYMENTS, seen.predictor_name, seen.uid)
        if stable is None:
            raise RolloutError(
                f"Deployment {seen.predictor_name}",
                "there is none that belongs to the service",
                "the version in use has one",
                "wait until KServe made it; its controller may be down",
            )
        taken = self._service.find(_DEPLOYMENTS, name_predictor(seen.name, candidate.name))
        if taken is not None:
            raise RolloutError(
                f"Deployment {taken['metadata']['name']}",
                "it is there already, " + ("left behind" if is_owned_by(taken, seen.uid) else "and belongs to another"),
                "KServe would give that name to the candidate's",
                "choose another name for the candidate",
            )
        asked = int(seen.predictor.get("minReplicas", 1))
        memo: Memo = {
            "mode": "Standard",
            "uid": seen.uid,
            "metadata": clean_metadata(seen),
            "original": deepcopy(dict(seen.spec)),
            "observed": max(1, asked, int(stable["spec"].get("replicas", 1))),
            "autoscaler": seen.autoscaler,
            "candidate": candidate.name,
        }
        self._service.remember(seen, memo)
        shift = self._forward(candidate, memo)
        for spec in (self._with_canary(seen.spec, shift, 0, 1, memo, True), _promote(seen.spec, shift)):
            self._service.patch(seen, spec, dry_run=True)
        return memo

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        """Do the next thing on the way to a target, if there is one, and say how far it is."""
        percent = read_traffic_target(target, self._service.where)

        def may_be_gone(service: InferenceService, change: Change) -> bool:
            return _may_be_gone(service, change, candidate, target, memo)

        seen = self._service.read()
        self._service.accept(seen, memo, may_be_gone)
        world = _World(seen, self._read_shares(seen))
        step = _Step(self._service, world, memo, may_be_gone, self._now)
        is_promoted = seen.predictor.get("name") == candidate.name
        forward, back = self._forward(candidate, memo), self._back(candidate, memo)
        if target.kind == "weight":
            if is_promoted:
                raise RolloutError(
                    seen.where,
                    f"{candidate.name} is promoted already",
                    "from there it can only be finished or rolled back",
                    "promote it, or roll it back",
                )
            return step.ramp(forward, self._with_canary, percent)
        if target.kind == "promoted":
            if not is_promoted:
                return step.ramp(forward, self._with_canary, 100, promotes=True)
            return step.withdraw(back, forward)
        if is_promoted:
            return step.ramp(back, self._with_canary, 100, promotes=True)
        return step.withdraw(forward, back)

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        """Return the InferenceService that stands for a target."""
        spec: Mapping[str, Any] = memo["original"]
        shift = self._forward(candidate, memo)
        if target.kind == "weight":
            percent = whole_percent(target.traffic_percent, self._service.where)
            replicas = count_replicas(memo["observed"], percent)
            spec = self._with_canary(spec, shift, percent, replicas, memo, True)
        elif target.kind == "promoted":
            spec = _promote(spec, shift)
        return (make_manifest(memo["metadata"], spec),)

    def _check_fields(self, seen: InferenceService, candidate: Candidate) -> None:
        where, predictor = seen.where, seen.predictor
        for field in ("transformer", "explainer"):
            if seen.spec.get(field) is not None:
                raise RolloutError(
                    f"{where}, spec.{field}",
                    f"it has a {field}",
                    f"a canary's share would go past the {field}, straight to its predictor",
                    f"serve the {field} as an InferenceService of its own",
                )
        if predictor.get("canaryTrafficPercent") is not None:
            raise RolloutError(
                f"{where}, spec.predictor.canaryTrafficPercent",
                f"{predictor['canaryTrafficPercent']}, in Standard mode",
                "KServe ignores it there without a word",
                "remove the field",
            )
        if seen.canaries:
            names = ", ".join(f"{one['predictor'].get('name')} at {one['trafficPercent']} %" for one in seen.canaries)
            raise RolloutError(
                f"{where}, spec.canary",
                f"canaries are there already: {names}",
                "a rollout begins without: with others the percents could come to more than 100",
                "promote or remove them first",
            )
        if candidate.name == (predictor.get("name") or ""):
            raise RolloutError(
                f"candidate {candidate.name}",
                "the version in use has that name",
                "KServe tells versions apart by their names",
                "choose another one",
            )
        if seen.autoscaler == "external":
            raise RolloutError(
                f"{where}, annotation {AUTOSCALER_ANNOTATION}",
                "external: KServe would neither give the candidate more than one replica, nor follow its new name",
                "hpa, keda or none is needed",
                "change the annotation, which restarts the pods",
            )

    def _check_gateway(self, seen: InferenceService) -> None:
        config = self._service.find_config()
        ingress = (config or {}).get("ingress") or ""
        # The value is JSON; only one word of it is asked for.
        is_off = "".join(ingress.split()).lower().find('"enablegatewayapi":false') >= 0
        route = self._service.find_owned(_ROUTES, seen.name, seen.uid)
        if route is not None and not is_off:
            missing = name_predictor(seen.name, "")
            if self._service.find_owned(_ROUTES, missing, seen.uid) is None:
                raise RolloutError(
                    f"HTTPRoute {missing}",
                    "KServe made none of that name for the service",
                    "releases from 0.21 on do, and only they split traffic in Standard mode",
                    "update KServe",
                )
            return
        raise RolloutError(
            f"HTTPRoute {seen.name}",
            "KServe's configuration has enableGatewayApi: false" if is_off else "KServe made none for the service",
            "in Standard mode traffic is split by Gateway API alone",
            "set enableGatewayApi in KServe's inferenceservice-config, and let the service be reached from outside"
            if is_off or config is None
            else "let the service be reached from outside: no cluster-local visibility or domain",
        )

    def _forward(self, candidate: Candidate, memo: Memo) -> _Shift:
        predictor = memo["original"]["predictor"]
        fields = make_candidate_fields(predictor, candidate)
        result = overlay(predictor, fields) | {"name": candidate.name}
        return _Shift(str(predictor.get("name") or ""), candidate.name, _fix_scaling(fields, memo), result)

    def _back(self, candidate: Candidate, memo: Memo) -> _Shift:
        predictor = memo["original"]["predictor"]
        name = _name_back(predictor, candidate)
        fields = {key: value for key, value in predictor.items() if key not in (*_SCALING, "name")}
        return _Shift(candidate.name, name, _fix_scaling(fields, memo), dict(predictor) | {"name": name})

    def _with_canary(
        self, spec: Mapping[str, Any], shift: _Shift, percent: int, replicas: int, memo: Memo, is_counted: bool
    ) -> dict[str, Any]:
        """Return a spec with a canary; `is_counted` says whether KServe takes its replicas from the stable ones."""
        changed = deepcopy(dict(spec))
        least = memo["observed"] + replicas if is_counted else max(memo["observed"], replicas)
        predictor = changed["predictor"]
        predictor["minReplicas"] = least
        if 0 < int(predictor.get("maxReplicas") or 0) < least:
            predictor["maxReplicas"] = least
        entry = dict(shift.canary) | {"name": shift.name, "minReplicas": replicas}
        changed["canary"] = [{"trafficPercent": percent, "predictor": entry}]
        return changed

    def _read_shares(self, seen: InferenceService) -> Shares:
        names = (seen.name, name_predictor(seen.name, ""))
        return read_shares([self._service.find_owned(_ROUTES, name, seen.uid) for name in names], names)


class _Step:
    """What `StandardActuator.move` can do next, with what it saw."""

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
        self.uses_scaled_objects = memo["autoscaler"] == "keda"

    def ramp(
        self,
        shift: _Shift,
        with_canary: Callable[[Mapping[str, Any], _Shift, int, int, Memo, bool], dict[str, Any]],
        percent: int,
        *,
        promotes: bool = False,
    ) -> Move:
        """Bring a canary to a share, and then promote it if asked for."""
        arm, spec = name_predictor(self.seen.name, shift.name), self.seen.spec
        stable = self.service.find(_DEPLOYMENTS, self.seen.predictor_name)
        entry, canary = self.world.entry(shift.name), self.service.find_owned(_DEPLOYMENTS, arm, self.seen.uid)
        available = _count_available(canary)
        # Without an autoscaler KServe takes them away in the moment in which the canary is ready.
        is_counted = available > 0 or self.memo["autoscaler"] == "none"
        asked = int(((stable or {}).get("spec") or {}).get("replicas", 1))
        # Under load an autoscaler has gone beyond what was there at the start.
        base = self.memo["observed"] if self.memo["autoscaler"] == "none" else max(self.memo["observed"], asked)
        replicas = count_replicas(base, percent)
        if entry is None:
            changed = with_canary(spec, shift, 0, replicas, self.memo, is_counted)
            return self._write(shift, changed, f"started {shift.name} with {_pods(replicas)} and no traffic")
        current, has = int(entry["trafficPercent"]), int(entry["predictor"]["minReplicas"])
        if current == percent:
            # The load may have changed since this share was reached.
            replicas = has
        elif has < replicas:
            changed = with_canary(spec, shift, current, replicas, self.memo, is_counted)
            return self._write(shift, changed, f"asked for {_pods(replicas)} of {shift.name} instead of {has}")
        if is_counted and int(self.seen.predictor.get("minReplicas", 1)) < self.memo["observed"] + has:
            changed = with_canary(spec, shift, current, has, self.memo, True)
            return self._write(shift, changed, f"kept the stable version at {_pods(self.memo['observed'])}")
        if available < has:
            return self._wait_for_pods(shift, arm, canary, available, has)
        self._forget("no_deployment")
        if current != percent:
            stuck = self._find_frozen()
            if stuck:
                return self._wait(shift, stuck)
            changed = with_canary(spec, shift, percent, has, self.memo, True)
            return self._write(shift, changed, f"moved the share of {shift.name} from {current} % to {percent} %")
        late = self._check_routes(shift, arm, percent)
        if late is not None:
            return late
        if promotes:
            stuck = self._find_frozen()
            if stuck:
                return self._wait(shift, stuck)
            return self._write(shift, _promote(spec, shift), f"made {shift.name} the version in use")
        return Move(True, traffic_percent=self._share(shift), arms=self._arms(shift))

    def withdraw(self, shift: _Shift, other: _Shift) -> Move:
        """Take a canary away if it is there, and then all that is left of the version that is not in use."""
        arm, entry = name_predictor(self.seen.name, shift.name), self.world.entry(shift.name)
        if entry is not None:
            if int(entry["trafficPercent"]) > 0:
                changed = deepcopy(dict(self.seen.spec))
                changed["canary"] = [deepcopy(dict(entry)) | {"trafficPercent": 0}]
                return self._write(shift, changed, f"took the traffic from {shift.name}")
            if self.world.share(arm) > 0 or self.world.shares.problem:
                stuck = self._find_frozen() or self.world.shares.problem
                return self._wait(shift, stuck or f"the routes to give {shift.name} nothing, it has {self._say(arm)}")
            changed = _restore(self.seen.spec, self.memo)
            return self._write(shift, changed, f"removed {shift.name}")
        changed = _restore(self.seen.spec, self.memo)
        if changed != self.seen.spec:
            return self._write(shift, changed, "put the limits of the replicas back")
        return self._finish(shift, other)

    def _finish(self, shift: _Shift, other: _Shift) -> Move:
        used = self.seen.predictor_name
        report = other if used == name_predictor(self.seen.name, other.name) else shift
        if self.world.shares.problem:
            return self._wait(report, self.world.shares.problem)
        if set(self.world.shares.percent) != {used}:
            stuck = self._find_frozen()
            return self._wait(report, stuck or f"the routes to name {used} alone, they have {self._say()}")
        arms = (shift.stable, shift.name, other.stable, other.name)
        names = {name_predictor(self.seen.name, one) for one in arms}
        for name in sorted(names - {used}):
            if self.service.find_owned(_DEPLOYMENTS, name, self.seen.uid) is not None:
                return self._wait(report, f"KServe to delete Deployment {name}")
        for name in sorted(names - {used}):
            kind = _SCALED_OBJECTS if self.uses_scaled_objects else _AUTOSCALERS
            left = self.service.find_left_behind(kind, name, self.seen.uid)
            if left is not None and not left["metadata"].get("deletionTimestamp"):
                self.service.delete(kind, left)
                return self._wait(report, "a last look", did=f"deleted what KServe left behind: {kind} {name}")
        ready = self.seen.condition("Ready")
        if not ready.is_true:
            return self._wait(report, f"the service to be ready ({ready})", failed=self._find_failure(used, None))
        return Move(True, traffic_percent=self._share(report), arms=self._arms(report))

    def _write(self, shift: _Shift, spec: Mapping[str, Any], did: str) -> Move:
        self.service.write(self.seen, spec, self.memo, self.may_be_gone)
        return self._wait(shift, "KServe to take that up", did=did)

    def _wait(self, shift: _Shift, waiting_for: str, *, did: str = "", failed: str = "") -> Move:
        return Move(False, did, waiting_for, self._share(shift), failed, self._arms(shift))

    def _wait_for_pods(
        self, shift: _Shift, arm: str, canary: Mapping[str, Any] | None, available: int, needed: int
    ) -> Move:
        if canary is None:
            warning = self.service.find_warning(self.seen)
            said = f"; KServe says: {warning}" if warning else ""
            late = self._has_lasted("no_deployment", NO_DEPLOYMENT_SECONDS) and bool(warning)
            failed = f"KServe makes no Deployment {arm}{said}" if late else ""
            return self._wait(shift, f"KServe to make Deployment {arm}{said}", failed=failed)
        failed = self._find_failure(arm, canary)
        return self._wait(shift, f"{available} of {_pods(needed)} of {arm} to be available", failed=failed)

    def _check_routes(self, shift: _Shift, arm: str, percent: int) -> Move | None:
        """Return what is missing until the routes give a canary that is ready its share; None if nothing is."""
        shares = self.world.shares
        if shares.problem:
            return self._wait(shift, shares.problem)
        if arm in shares.percent and math.isclose(shares.percent[arm], percent, abs_tol=0.01):
            self._forget("no_weights")
            return None
        waiting = self._find_frozen() or f"the routes to give {arm} {percent} %, they have {self._say()}"
        if arm in shares.percent or not self._has_lasted("no_weights", NO_WEIGHTS_SECONDS):
            return self._wait(shift, waiting)
        failed = (
            f"KServe does not write {arm} into the HTTPRoutes, though its pods are available: releases before 0.21 make"
            " canaries without a share of the traffic"
        )
        return self._wait(shift, waiting, failed=failed)

    def _find_frozen(self) -> str:
        ready = self.seen.condition("PredictorReady")
        if ready.is_true:
            return ""
        return f"the version in use to be ready ({ready}): KServe changes no route before"

    def _find_failure(self, arm: str, deployment: Mapping[str, Any] | None) -> str:
        if deployment is not None:
            progressing = find_condition(deployment, "Progressing")
            if progressing.status == "False" and progressing.reason == "ProgressDeadlineExceeded":
                return self.service.find_broken_pod(arm) or f"Deployment {arm}: {progressing}"
            refused = find_condition(deployment, "ReplicaFailure")
            if refused.is_true:
                return f"Deployment {arm}: {refused}"
        # What KServe says of the model is about the version in use.
        is_ready = self.seen.condition("PredictorReady").is_true
        return self.service.find_broken_pod(arm) or ("" if is_ready else read_model_failure(self.seen))

    def _has_lasted(self, what: str, seconds: float) -> bool:
        since = self.memo.setdefault("since", {}).setdefault(what, self.now())
        return bool(self.now() - since >= seconds)

    def _forget(self, what: str) -> None:
        self.memo.get("since", {}).pop(what, None)

    def _share(self, shift: _Shift) -> float | None:
        """The share of the rollout's candidate, whichever way it is going."""
        if self.world.shares.problem:
            return None
        back = shift.stable == self.memo_candidate
        return self.world.share(name_predictor(self.seen.name, shift.stable if back else shift.name))

    @property
    def memo_candidate(self) -> str:
        return str(self.memo.get("candidate", ""))

    def _arms(self, shift: _Shift) -> dict[ArmName, str]:
        here, there = name_predictor(self.seen.name, shift.stable), name_predictor(self.seen.name, shift.name)
        if shift.stable == self.memo_candidate:
            here, there = there, here
        return {"stable": here, "candidate": there}

    def _say(self, name: str = "") -> str:
        percent = self.world.shares.percent
        if name:
            return f"{percent.get(name, 0.0):g} %"
        return ", ".join(f"{one} {share:g} %" for one, share in sorted(percent.items())) or "nothing"


def count_replicas(replicas: int, traffic_percent: float) -> int:
    """Return how many replicas a share of the traffic needs: rounded up, at least one.

    >>> count_replicas(4, 0), count_replicas(4, 5), count_replicas(4, 26), count_replicas(4, 100)
    (1, 1, 2, 4)
    """
    return max(1, math.ceil(replicas * traffic_percent / 100))


def read_shares(routes: Iterable[Mapping[str, Any] | None], names: Sequence[str]) -> Shares:
    """Return the shares that HTTPRoutes give to Services, which all their rules have to agree on.

    A backend without a weight has 1, by the specification of Gateway API (`HTTPBackendRef.weight`).

    Args:
        routes: As read; None for one that is not there.
        names: What they are called.
    """
    found: Mapping[str, float] | None = None
    for route, name in zip(routes, names, strict=True):
        if route is None:
            return Shares({}, f"HTTPRoute {name}, which is not there")
        for rule in route["spec"].get("rules") or ():
            backends = rule.get("backendRefs") or ()
            total = sum(one.get("weight", 1) for one in backends)
            if not total:
                return Shares({}, f"HTTPRoute {name}: a rule of it leads nowhere")
            shares: dict[str, float] = {}
            for one in backends:
                shares[one["name"]] = shares.get(one["name"], 0.0) + 100 * one.get("weight", 1) / total
            if found is not None and shares != found:
                return Shares({}, f"the rules of HTTPRoutes {' and '.join(names)} to agree, they are being changed")
            found = shares
        problem = _find_route_problem(route, name)
        if problem:
            return Shares(found or {}, problem)
    return Shares(found, "") if found else Shares({}, f"HTTPRoute {names[0]} to get rules")


def _find_route_problem(route: Mapping[str, Any], name: str) -> str:
    """Return why the gateway does not route by what stands in a route's spec; empty if it does, as far as it says."""
    generation = route["metadata"].get("generation", 0)
    for parent in (route.get("status") or {}).get("parents") or ():
        for one in parent.get("conditions") or ():
            if one.get("type") != "Accepted":
                continue
            if one.get("status") == "False":
                return shorten(f"the gateway to accept HTTPRoute {name}: {one.get('reason')}: {one.get('message')}")
            # Optional; a gateway that fills it in says which version of the route it has taken up.
            if one.get("observedGeneration") is not None and one["observedGeneration"] < generation:
                return f"the gateway to take up HTTPRoute {name}"
    return ""


def _count_available(deployment: Mapping[str, Any] | None) -> int:
    status = (deployment or {}).get("status") or {}
    if deployment is None or status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return 0
    return int(status.get("availableReplicas") or 0)


def _name_back(predictor: Mapping[str, Any], candidate: Candidate) -> str:
    name = str(predictor.get("name") or _RESTORED)
    return name if name != candidate.name else f"{name}-2"


def _fix_scaling(fields: Mapping[str, Any], memo: Memo) -> dict[str, Any]:
    # KServe makes a ScaledObject for each canary, without the triggers that KEDA demands, and then does nothing at all.
    if memo["autoscaler"] != "keda":
        return deepcopy(dict(fields))
    return overlay(fields, {"annotations": {AUTOSCALER_ANNOTATION: "none"}})


def _promote(spec: Mapping[str, Any], shift: _Shift) -> dict[str, Any]:
    changed = deepcopy(dict(spec))
    changed.pop("canary", None)
    changed["predictor"] = deepcopy(dict(shift.result))
    return changed


def _restore(spec: Mapping[str, Any], memo: Memo) -> dict[str, Any]:
    changed = deepcopy(dict(spec))
    changed.pop("canary", None)
    for field in _LIMITS:
        changed["predictor"].pop(field, None)
        if field in memo["original"]["predictor"]:
            changed["predictor"][field] = memo["original"]["predictor"][field]
    return changed


def _may_be_gone(seen: InferenceService, change: Change, candidate: Candidate, target: Target, memo: Memo) -> bool:
    """Say whether a rollout may have removed a field without noting it."""
    if change.path[0] == "canary":
        return target.kind == "rolled_back" or seen.predictor.get("name") == candidate.name
    original: Any = memo["original"]
    for key in change.path:
        original = original.get(key, MISSING) if isinstance(original, Mapping) else MISSING
    return original is MISSING


def _pods(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"
