"""One rollout: started, moved on tick by tick, and decided by the judge or by a person.

A tick may be killed at any moment and called again. It saves what it means to do before it does it, the actuator is
told where to go rather than what to change, and evidence counts only once it is saved together with the time up to
which it was read.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mlflywheel.decisions.canary.evidence import Window, join_labels
from mlflywheel.decisions.canary.judge import Judge, Verdict
from mlflywheel.decisions.canary.policy import Policy
from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Move, Source, Store, Target
from mlflywheel.rollouts.record import RECENT_WINDOWS, Entry, Phase, Record

# After a long absence, evidence is read in so many windows: longer ones rather than more.
_WINDOWS_A_TICK = 20
# Clocks of the machines that run ticks may differ by that much.
_CLOCK_TOLERANCE_SECONDS = 30.0
# A tick that changes the phase goes on with the next one, but not for ever.
_PHASES_A_TICK = 3


@dataclass
class Rollout:
    """A service's rollout.

    Args:
        service: `NAMESPACE/NAME`.
        actuator: Moves its traffic.
        source: Brings evidence.
        store: Keeps the record.
        who: User, account or job, for the history.
        clock: Returns the time in seconds since 1970.
    """

    service: str
    actuator: Actuator
    source: Source
    store: Store
    who: str
    clock: Callable[[], float] = time.time

    def start(self, candidate: Candidate, policy: Policy, source: Mapping[str, Any] | None = None) -> Record:
        """Start a rollout; the first tick moves traffic.

        Args:
            candidate: What.
            policy: How.
            source: Where evidence comes from, as JSON values; kept in the record for later ticks.

        Raises:
            RolloutError: Another rollout of the service has not ended, or the candidate cannot be rolled out.
        """
        with self.store.lock(self.who):
            before = self.store.load()
            if before is not None and not before.has_ended:
                raise RolloutError(
                    f"rollout of {self.service}",
                    f"{before.id} of {before.candidate.model or before.candidate.storage_uri} is {before.phase}",
                    "one rollout at a time",
                    "wait for it, or end it with `mlflywheel rollout rollback` or `promote`",
                )
            memo = self.actuator.begin(candidate)
            now = self.clock()
            record = Record(
                id=f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}",
                service=self.service,
                candidate=candidate,
                policy=policy,
                source=dict(source or {}),
                started=now,
                phase_started=now,
                labels_until=now,
                memo=memo,
                message="started",
                previous=() if before is None else (*before.previous, _shorten(before))[-50:],
                version="" if before is None else before.version,
            )
            what = candidate.model or candidate.storage_uri
            return self.store.save(record.tell(Entry(now, self.who, "start", f"{what} as {candidate.name}")))

    def step(self) -> Record:
        """Do one tick: at most a few changes, and no waiting. Safe to repeat after any interruption.

        Raises:
            RolloutError: There is no rollout, somebody else is at it, or a server refuses.
            ForeignEditError: Somebody else changed the service; the rollout is stopped and says what was seen.
        """
        with self.store.lock(self.who):
            record = self._load()
            for _ in range(_PHASES_A_TICK):
                if record.has_ended:
                    break
                phase, step = record.phase, record.step
                record = self._tick(record)
                if (record.phase, record.step) == (phase, step):
                    break
            return record

    def watch(self, pause: Callable[[float], object] = time.sleep) -> Iterator[Record]:
        """Tick until the rollout has ended, and yield the record after every tick."""
        while True:
            record = self.step()
            yield record
            if record.has_ended:
                return
            pause(seconds_to_next_tick(record, self.clock()))

    def promote(self, why: str = "") -> Record:
        """Make the candidate the version in use, whatever the evidence says; the next ticks do it."""
        return self._order("promoting", "promote", why)

    def roll_back(self, why: str = "") -> Record:
        """Give all traffic back to the version in use; the next ticks do it."""
        return self._order("rolling_back", "roll back", why)

    def pause(self, why: str = "") -> Record:
        """Stay at the present weight. Evidence is still read, and harm still rolls back."""
        return self._mark(True, "pause", why)

    def resume(self, why: str = "") -> Record:
        """End a pause."""
        return self._mark(False, "resume", why)

    def status(self) -> Record:
        """Return the record as it is saved.

        Raises:
            RolloutError: There was no rollout.
        """
        return self._load()

    def _load(self) -> Record:
        record = self.store.load()
        if record is None:
            raise RolloutError(
                f"rollout of {self.service}",
                "there is none",
                "one has to be started",
                f"mlflywheel rollout start {self.service.rpartition('/')[2]} --candidate NAME@VERSION",
            )
        # The first window of a step starts in the future, when the new weight has settled.
        read_until = (record.evidence_until or 0.0) - record.policy.settle_seconds
        ahead = max(record.phase_started, read_until) - self.clock()
        if ahead > _CLOCK_TOLERANCE_SECONDS:
            raise RolloutError(
                f"clock of {self.who}",
                f"it is {ahead:.0f} s behind the last tick of {record.service}",
                f"clocks may differ by {_CLOCK_TOLERANCE_SECONDS:.0f} s",
                "synchronise the clocks of the machines that run ticks",
            )
        return record

    def _tick(self, record: Record) -> Record:
        try:
            if record.phase == "shifting":
                return self._shift(record)
            if record.phase == "watching":
                return self._watch(record)
            return self._finish(record)
        except ForeignEditError as error:
            # What the store refuses was written by somebody else, who is at the rollout now: it is theirs to go on.
            latest = self.store.load()
            if latest is not None and latest.version == record.version:
                self._enter(record, "stopped", "stop", str(error))
            raise

    def _shift(self, record: Record) -> Record:
        now = self.clock()
        move, record = self._move(record, Target("weight", float(record.policy.steps[record.step])))
        if move.failed:
            return self._enter(record, "rolling_back", "roll back", move.failed)
        if move.reached:
            until = now + record.policy.settle_seconds
            record = replace(record, step_started=now, evidence_until=until, message="")
            return self._enter(record, "watching", f"{record.traffic_percent:g} %", move.did)
        minutes = record.policy.deadline.shift_minutes
        if now - record.phase_started >= minutes * 60:
            why = f"{record.traffic_percent:g} % not reached within {minutes:g} minutes: {move.waiting_for}"
            return self._enter(record, "rolling_back", "roll back", why)
        return self.store.save(replace(record, message=move.waiting_for))

    def _watch(self, record: Record) -> Record:
        now = self.clock()
        move, record = self._move(record, Target("weight", record.traffic_percent))
        if move.failed:
            return self._enter(record, "rolling_back", "roll back", move.failed)
        if not move.reached:
            # Evidence from here on would be of another weight.
            record = replace(record, step_started=None, evidence_until=None)
            return self._enter(record, "shifting", "wait", move.waiting_for)
        record, verdict = self._judge(record, now)
        action = verdict.action
        if record.paused and (action in ("advance", "promote") or verdict.is_by_deadline):
            return self.store.save(replace(record, message=f"paused; without it: {action}, {verdict.reason}"))
        if action == "advance":
            record = replace(record, step=record.step + 1, step_started=None, evidence_until=None)
            what = f"advance to {record.policy.steps[record.step]:g} %"
            return self._enter(record, "shifting", what, verdict.reason, verdict)
        if action == "promote":
            return self._enter(record, "promoting", "promote", verdict.reason, verdict)
        if action == "rollback":
            return self._enter(record, "rolling_back", "roll back", verdict.reason, verdict)
        return self.store.save(replace(record, message=verdict.reason))

    def _judge(self, record: Record, now: float) -> tuple[Record, Verdict]:
        """Read the evidence since the last tick and judge; the caller saves both at once."""
        judge = Judge(record.policy, record.judge)
        windows = self._read_windows(record, now)
        for window in windows:
            judge.observe(window)
        answers, labels = self.source.read_labels(record.labels_until)
        fresh = [label for label in labels if record.labels_until < label.time <= now]
        judge.observe_labels(join_labels(answers, fresh).joined)
        started = now if record.step_started is None else record.step_started
        verdict = judge.decide(now - started, now - record.started, record.step)
        record = replace(
            record,
            judge=judge.to_dict(),
            windows=(*record.windows, *windows)[-RECENT_WINDOWS:],
            evidence_until=windows[-1].end if windows else record.evidence_until,
            labels_until=max([record.labels_until, *(label.time for label in fresh)]),
            verdict=verdict.to_dict(),
        )
        return record, verdict

    def _read_windows(self, record: Record, now: float) -> list[Window]:
        start = now if record.evidence_until is None else record.evidence_until
        length = record.policy.window_seconds
        count = int((now - start) / length)
        if count > _WINDOWS_A_TICK:
            count, length = _WINDOWS_A_TICK, (now - start) / _WINDOWS_A_TICK
        return [
            self.source.read_window(
                record.arms,
                start + number * length,
                start + (number + 1) * length,
                record.step,
                record.traffic_percent,
            )
            for number in range(count)
        ]

    def _finish(self, record: Record) -> Record:
        promoting = record.phase == "promoting"
        move, record = self._move(record, Target("promoted" if promoting else "rolled_back"))
        if move.reached:
            end: Phase = "promoted" if promoting else "rolled_back"
            # What it was decided for is of interest, not the last thing that was waited for.
            decided = (entry.why for entry in reversed(record.history) if entry.what in ("promote", "roll back"))
            return self._enter(record, end, end.replace("_", " "), next(decided, ""))
        if move.failed and promoting:
            return self._enter(record, "rolling_back", "roll back", move.failed)
        return self.store.save(replace(record, message=move.failed or move.waiting_for))

    def _move(self, record: Record, target: Target) -> tuple[Move, Record]:
        """Let the actuator do the next thing; what it notes is saved, also when it fails."""
        memo = dict(record.memo)
        self.store.require_lock()
        try:
            move = self.actuator.move(record.candidate, target, memo)
        except Exception:
            if memo != record.memo:
                self.store.save(replace(record, memo=memo))
            raise
        record = replace(record, memo=memo, arms=dict(move.arms) or record.arms)
        if move.did:
            record = record.tell(Entry(self.clock(), self.who, "change", move.did))
        return move, record

    def _enter(self, record: Record, phase: Phase, what: str, why: str, verdict: Verdict | None = None) -> Record:
        now = self.clock()
        evidence = verdict.to_dict() if verdict else {}
        message = why or record.message
        # To wait again at a step goes on with the time that the step has for it.
        started = record.phase_started if phase == "shifting" and what == "wait" else now
        entry = Entry(now, self.who, what, why, evidence)
        return self.store.save(replace(record, phase=phase, phase_started=started, message=message).tell(entry))

    def _order(self, phase: Phase, what: str, why: str) -> Record:
        with self.store.lock(self.who):
            record = self._load()
            if record.has_ended:
                raise RolloutError(
                    f"rollout of {self.service}",
                    f"{record.id} has ended: {record.phase.replace('_', ' ')}",
                    "one that goes on is needed",
                    "start another with `mlflywheel rollout start`",
                )
            if record.phase == phase:
                return record
            return self._enter(replace(record, paused=False), phase, what, why or f"ordered by {self.who}")

    def _mark(self, paused: bool, what: str, why: str) -> Record:
        with self.store.lock(self.who):
            record = self._load()
            if record.has_ended or record.phase in ("promoting", "rolling_back"):
                raise RolloutError(
                    f"rollout of {self.service}",
                    f"{record.id} is {record.phase.replace('_', ' ')}",
                    "only one that gathers evidence can be paused and resumed",
                    "see `mlflywheel rollout status`",
                )
            if record.paused == paused:
                return record
            entry = Entry(self.clock(), self.who, what, why)
            return self.store.save(replace(record, paused=paused).tell(entry))


def seconds_to_next_tick(record: Record, now: float) -> float:
    """Return how long to wait before a tick can find something new, between 1 and 30 s."""
    if record.phase != "watching" or record.evidence_until is None:
        return 1.0
    return min(30.0, max(1.0, record.evidence_until + record.policy.window_seconds - now))


def _shorten(record: Record) -> dict[str, Any]:
    """Return what a later rollout's record keeps of this one."""
    last = record.history[-1] if record.history else None
    return {
        "id": record.id,
        "candidate": record.candidate.model or record.candidate.storage_uri,
        "phase": record.phase,
        "started": record.started,
        "ended": last.time if last else record.started,
        "who": last.who if last else "",
        "why": record.message,
    }
