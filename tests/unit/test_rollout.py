"""A rollout from its start to its end: decided, paused, ordered, and killed at any moment."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflywheel.decisions.canary.evidence import Answer, Arm, ArmName, Label, Window
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Source, Store, Target
from mlflywheel.rollouts.record import Record, read_record
from mlflywheel.rollouts.rollout import Rollout, seconds_to_next_tick

CANDIDATE = Candidate("s3://models/ad-campaigns/2", "v2", "ad-campaigns@2")
POLICY = read_policy(
    "schema: 1\nsteps: [10, 50, 100]\nminimum: {requests: 50, seconds: 60}\nsettle_seconds: 10\n"
    "metrics:\n  - {name: errors, kind: errors}"
)


class Killed(BaseException):
    """The process was killed here."""


class Service(Actuator, Source):
    """A service in memory: what a router, two versions and a Prometheus are to a rollout.

    Args:
        candidate_errors: Of 1,000 requests of the candidate; the stable version has 5.
    """

    def __init__(self, candidate_errors: int = 5) -> None:
        self.now = 1_800_000_000.0
        self.candidate_errors = candidate_errors
        self.stable = "s3://models/ad-campaigns/1"
        self.canary: str | None = None
        self.percent = 0.0
        self.replicas = 3
        self.starts_in_seconds = 5.0
        self.ready_at = float("inf")
        self.failed = ""
        self.foreign = ""
        self.has_gap = False
        self.read: list[tuple[float, float]] = []
        self.labels: list[Label] = []
        self.answers: list[Answer] = []

    def begin(self, candidate: Candidate) -> Memo:
        if candidate.storage_uri == self.stable:
            raise RolloutError("candidate", "what is in use", "another model is needed", "name another version")
        return {"replicas": self.replicas}

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        if self.foreign:
            raise ForeignEditError("service", self.foreign, "nobody else may change it meanwhile", "undo it")
        if target.kind == "weight":
            return self._shift(candidate, target)
        if target.kind == "promoted":
            return self._promote(candidate)
        if self.canary is not None:
            self.canary, self.percent, self.replicas = None, 0.0, memo["replicas"]
            return Move(False, did="took the candidate away", waiting_for="the router")
        return Move(True, traffic_percent=0.0)

    def _shift(self, candidate: Candidate, target: Target) -> Move:
        arms: dict[ArmName, str] = {"stable": "v1", "candidate": candidate.name}
        if self.canary is None:
            self.canary, self.ready_at = candidate.storage_uri, self.now + self.starts_in_seconds
            self.replicas = 4
            return Move(False, did="created the candidate", waiting_for="its pod", arms=arms)
        if self.failed:
            return Move(False, failed=self.failed, arms=arms)
        if self.now < self.ready_at:
            return Move(False, waiting_for="the candidate's pod is not ready", arms=arms)
        if self.percent != target.traffic_percent:
            self.percent = target.traffic_percent
            return Move(False, did=f"set {self.percent:g} %", waiting_for="the router", arms=arms)
        return Move(True, traffic_percent=self.percent, arms=arms)

    def _promote(self, candidate: Candidate) -> Move:
        if self.stable != candidate.storage_uri:
            self.stable, self.canary, self.percent, self.replicas = candidate.storage_uri, None, 0.0, 3
            return Move(False, did="made the candidate the version in use", waiting_for="its pods")
        return Move(True, traffic_percent=100.0)

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        return ()

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        self.read.append((start, end))
        requests = 1000 * (end - start) / 30
        share = traffic_percent / 100
        stable = Arm(round(requests * (1 - share)), round(requests * (1 - share) * 0.005))
        candidate = Arm(round(requests * share), round(requests * share * self.candidate_errors / 1000))
        gap = "Prometheus does not answer" if self.has_gap else ""
        return Window(start, end, step, traffic_percent, stable, candidate, gap)

    def read_labels(self, since: float) -> tuple[Sequence[Answer], Sequence[Label]]:
        return self.answers, [label for label in self.labels if label.time > since]

    @property
    def state(self) -> tuple[object, ...]:
        return self.stable, self.canary, self.percent, self.replicas


def begin(tmp_path: Path, service: Service, policy: Policy = POLICY) -> Rollout:
    rollout = Rollout("team/ads", service, service, FileStore(tmp_path / "rollout.json"), "ana", lambda: service.now)
    rollout.start(CANDIDATE, policy)
    return rollout


def follow(rollout: Rollout, service: Service, ticks: int = 600) -> Record:
    """Tick until the end, with the pauses that `watch` makes."""

    def wait(seconds: float) -> None:
        service.now += seconds

    for number, record in enumerate(rollout.watch(wait)):
        if record.has_ended:
            return record
        assert number < ticks, record.message
    raise AssertionError


def told(record: Record) -> list[str]:
    return [entry.what for entry in record.history if entry.what != "change"]


def test_an_equal_candidate_goes_through_every_step_and_is_promoted(tmp_path: Path) -> None:
    service = Service()
    record = follow(begin(tmp_path, service), service)
    assert record.phase == "promoted"
    assert service.state == (CANDIDATE.storage_uri, None, 0.0, 3)
    assert told(record) == ["start", "10 %", "advance to 50 %", "50 %", "promote", "promoted"]
    promoted = record.history[-3]
    assert promoted.what == "promote"
    assert "errors is shown to be less than the stable rate + 1.00%" in promoted.why
    assert promoted.evidence["action"] == "promote"
    assert {entry.who for entry in record.history} == {"ana"}


def test_a_worse_candidate_is_rolled_back_and_everything_is_put_back(tmp_path: Path) -> None:
    service = Service(candidate_errors=60)
    record = follow(begin(tmp_path, service), service)
    assert record.phase == "rolled_back"
    assert service.state == ("s3://models/ad-campaigns/1", None, 0.0, 3)
    assert "errors is shown to be more than the stable rate" in record.message


def test_windows_follow_each_other_and_start_after_the_settling_time(tmp_path: Path) -> None:
    service = Service()
    record = follow(begin(tmp_path, service), service)
    for (_, end), (start, _) in zip(service.read, service.read[1:], strict=False):
        assert start >= end
    reached = next(entry.time for entry in record.history if entry.what == "10 %")
    assert service.read[0] == (reached + 10, reached + 40)


def test_missing_evidence_holds_until_the_deadline_and_then_rolls_back(tmp_path: Path) -> None:
    service = Service()
    service.has_gap = True
    policy = POLICY.model_copy(update={"deadline": POLICY.deadline.model_copy(update={"after_minutes": 20.0})})
    rollout = begin(tmp_path, service, policy)
    record = follow(rollout, service)
    assert record.phase == "rolled_back"
    assert service.now - record.started == pytest.approx(1200, abs=40)
    assert "no decision within 20 minutes" in record.message
    assert "Prometheus does not answer" in record.verdict["notes"][0]


def test_a_candidate_that_never_starts_is_rolled_back_in_its_time(tmp_path: Path) -> None:
    service = Service()
    service.starts_in_seconds = 1e9
    record = follow(begin(tmp_path, service), service, ticks=2000)
    assert record.phase == "rolled_back"
    assert "10 % not reached within 30 minutes: the candidate's pod is not ready" in record.message
    assert service.state == ("s3://models/ad-campaigns/1", None, 0.0, 3)


def test_a_candidate_that_crashes_is_rolled_back_at_once(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    rollout.step()
    service.failed = "kserve-container: CrashLoopBackOff"
    record = follow(rollout, service)
    assert record.phase == "rolled_back"
    assert record.message == "kserve-container: CrashLoopBackOff"


def test_a_weight_that_is_lost_stops_the_reading_until_it_is_back(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    while rollout.step().phase != "watching":
        service.now += 2
    service.now += 100
    service.ready_at = service.now + 300
    record = rollout.step()
    assert record.phase == "shifting"
    assert record.evidence_until is None
    assert service.read == []
    service.now += 301
    assert rollout.step().phase == "watching"


def test_somebody_elses_change_stops_it_and_is_told(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    rollout.step()
    service.foreign = "spec.predictor.minReplicas is 9 where 4 was written"
    with pytest.raises(ForeignEditError, match="minReplicas is 9"):
        rollout.step()
    record = rollout.status()
    assert record.phase == "stopped"
    assert "minReplicas is 9" in record.message
    before = service.state
    assert rollout.step().phase == "stopped"
    assert service.state == before


def test_two_rollouts_at_once_are_refused_and_the_next_one_remembers(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    with pytest.raises(RolloutError, match="one rollout at a time"):
        rollout.start(replace(CANDIDATE, name="v3", storage_uri="s3://models/3"), POLICY)
    follow(rollout, service)
    record = rollout.start(replace(CANDIDATE, name="v3", storage_uri="s3://models/3"), POLICY)
    assert [one["phase"] for one in record.previous] == ["promoted"]
    assert record.previous[0]["candidate"] == "ad-campaigns@2"


def test_a_pause_holds_the_weight_and_still_rolls_back_harm(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    while rollout.step().phase != "watching":
        service.now += 2
    rollout.pause("lunch")
    for _ in range(40):
        service.now += 30
        record = rollout.step()
    assert (record.phase, record.step) == ("watching", 0)
    assert record.message.startswith("paused; without it: advance")
    service.candidate_errors = 300
    for _ in range(20):
        service.now += 30
        record = rollout.step()
    assert record.phase == "rolled_back"


def test_a_resumed_rollout_goes_on(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    rollout.pause()
    rollout.resume("back")
    assert follow(rollout, service).phase == "promoted"


@pytest.mark.parametrize(("order", "phase"), [("promote", "promoted"), ("roll_back", "rolled_back")])
def test_a_person_may_decide(tmp_path: Path, order: str, phase: str) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    rollout.step()
    getattr(rollout, order)("because I say so")
    record = follow(rollout, service)
    assert record.phase == phase
    assert "because I say so" in [entry.why for entry in record.history]
    with pytest.raises(RolloutError, match="has ended"):
        getattr(rollout, order)()


def test_a_clock_that_runs_behind_moves_nothing(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    service.now -= 120
    before = service.state
    with pytest.raises(RolloutError, match="120 s behind"):
        rollout.step()
    assert service.state == before


def test_after_a_long_absence_evidence_comes_in_few_long_windows(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    while rollout.step().phase != "watching":
        service.now += 2
    service.now += 7200
    rollout.step()
    assert len(service.read) == 20
    assert service.read[-1][1] == pytest.approx(service.now)


def test_labels_are_read_once_and_roll_back(tmp_path: Path) -> None:
    policy = read_policy(
        "schema: 1\nsteps: [50, 100]\nsettle_seconds: 0\n"
        "metrics:\n  - {name: errors, kind: errors}\n  - {name: quality, kind: labels}"
    )
    service = Service()
    rollout = begin(tmp_path, service, policy)
    while rollout.step().phase != "watching":
        service.now += 2
    for tick in range(30):
        service.now += 30
        for number in range(100):
            name, arm = f"{tick}-{number}", "candidate" if number % 2 else "stable"
            service.answers.append(Answer(name, arm, service.now - 20))  # type: ignore[arg-type]
            wrong = number % 10 in ((1, 3, 5) if arm == "candidate" else (0,))
            service.labels.append(Label(name, "quality", float(wrong), service.now - 1))
        record = rollout.step()
        if record.phase != "watching":
            break
    assert record.phase in ("rolling_back", "rolled_back")
    assert "quality is shown to be more" in next(e.why for e in record.history if e.what == "roll back")
    judged = next(one for one in record.verdict["findings"] if one["metric"] == "quality")
    assert judged["candidate_total"] + judged["stable_total"] == 100 * (tick + 1)


def test_a_record_survives_its_json(tmp_path: Path) -> None:
    service = Service()
    record = follow(begin(tmp_path, service), service)
    again = read_record(record.to_json(), "record", record.version)
    assert again == read_record(again.to_json(), "record", record.version)
    assert again.to_dict() == json.loads(record.to_json())


def test_the_next_tick_comes_when_there_can_be_something_new(tmp_path: Path) -> None:
    service = Service()
    rollout = begin(tmp_path, service)
    assert seconds_to_next_tick(rollout.status(), service.now) == 1
    while (record := rollout.step()).phase != "watching":
        service.now += 2
    assert seconds_to_next_tick(record, service.now) == 30


class Mortal:
    """Kills the process at the n-th call, before or after the call was done."""

    def __init__(self, at: int, before: bool) -> None:
        self.left, self.before = at, before

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self.before:
                raise Killed
            result = call(*args, **kwargs)
            if self.left == 0:
                raise Killed
            return result

        return wrapped


class MortalStore(Store):
    def __init__(self, store: Store, mortal: Mortal) -> None:
        self.load = mortal.wrap(store.load)  # type: ignore[method-assign]
        self.save = mortal.wrap(store.save)  # type: ignore[method-assign]
        self._store = store

    def load(self) -> Record | None:
        raise NotImplementedError

    def save(self, record: Record) -> Record:
        raise NotImplementedError

    def require_lock(self) -> None:
        self._store.require_lock()

    @contextmanager
    def lock(self, holder: str) -> Iterator[None]:
        with self._store.lock(holder):
            yield


@pytest.mark.parametrize("errors", [5, 60])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_moment_and_called_again_it_ends_the_same(tmp_path: Path, errors: int, before: bool) -> None:
    expected_service = Service(errors)
    expected = follow(begin(tmp_path / "whole", expected_service), expected_service)
    kills = 0
    for at in range(1, 400):
        service = Service(errors)
        path = tmp_path / f"{at}"
        begin(path, service)
        mortal = Mortal(at, before)
        store = MortalStore(FileStore(path / "rollout.json"), mortal)
        weak = Service.__new__(Service)
        weak.__dict__ = service.__dict__
        weak.move = mortal.wrap(service.move)  # type: ignore[method-assign]
        weak.read_window = mortal.wrap(service.read_window)  # type: ignore[method-assign]
        weak.read_labels = mortal.wrap(service.read_labels)  # type: ignore[method-assign]
        doomed = Rollout("team/ads", weak, weak, store, "ana", lambda service=service: service.now)  # type: ignore[misc]
        try:
            follow(doomed, service)
        except Killed:
            kills += 1
        else:
            # It was not called that often: every moment has been tried.
            break
        rollout = Rollout(
            "team/ads", service, service, FileStore(path / "rollout.json"), "bob", lambda service=service: service.now
        )  # type: ignore[misc]
        record = follow(rollout, service)
        assert record.phase == expected.phase
        assert service.state == expected_service.state
        assert [one for one in told(record) if one != "wait"] == told(expected)
    assert kills > 30
