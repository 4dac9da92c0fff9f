"""A rollout's record: all that the next tick needs, and who did what when and why."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mlflywheel.decisions.canary.evidence import ArmName, Window, window_from_dict, window_to_dict
from mlflywheel.decisions.canary.policy import Policy, policy_from_dict
from mlflywheel.errors import DataError
from mlflywheel.rollouts.interfaces import Candidate, Memo

SCHEMA = 1

Phase = Literal["shifting", "watching", "promoting", "rolling_back", "promoted", "rolled_back", "stopped"]
#: Nothing happens any more in these. `stopped`: somebody else changed the service, or it cannot go on.
ENDED: tuple[Phase, ...] = ("promoted", "rolled_back", "stopped")

# A ConfigMap holds 1 MiB. The judge's state stands for all windows, so that old ones may go.
RECENT_WINDOWS = 120
_HISTORY_ENTRIES = 400
#: Fields that are JSON values as they are.
_PLAIN = (
    "id",
    "service",
    "source",
    "started",
    "phase",
    "phase_started",
    "step",
    "step_started",
    "evidence_until",
    "labels_until",
    "paused",
    "judge",
    "memo",
    "arms",
    "message",
    "verdict",
)


@dataclass(frozen=True)
class Entry:
    """One line of the history.

    Args:
        time: Seconds since 1970.
        who: User, account or job.
        what: What was done: `start`, `advance`, `promote`, `roll back`, `pause`, ...
        why: The reason in words and numbers.
        evidence: The judge's numbers at that time, as JSON values.
    """

    time: float
    who: str
    what: str
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One rollout.

    Args:
        id: Unique among the service's rollouts.
        service: `NAMESPACE/NAME` of what is rolled out.
        candidate: What.
        policy: How.
        source: Where evidence comes from, as JSON values that the command line understands.
        started: Seconds since 1970, as all times here.
        phase: What the next tick goes on with.
        step: Index into the policy's steps.
        phase_started: When the phase began.
        step_started: When the step's weight was reached; None while it is not.
        evidence_until: Where the next window starts; None while the weight is not reached.
        labels_until: Labels that arrived until then were judged.
        paused: Whether ticks only look.
        judge: The judge's state, as JSON values.
        memo: The actuator's.
        windows: The latest ones.
        arms: What each arm is called where evidence comes from.
        message: What the last tick saw, in words.
        verdict: The judge's last verdict, as JSON values.
        history: From the oldest entry to the newest.
        previous: The rollouts before, shortest form, from the oldest to the newest.
        version: The store's own mark; empty for a record that was never saved.
    """

    id: str
    service: str
    candidate: Candidate
    policy: Policy
    source: Mapping[str, Any]
    started: float
    phase: Phase = "shifting"
    phase_started: float = 0.0
    step: int = 0
    step_started: float | None = None
    evidence_until: float | None = None
    labels_until: float = 0.0
    paused: bool = False
    judge: Mapping[str, Any] = field(default_factory=dict)
    memo: Memo = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    arms: Mapping[ArmName, str] = field(default_factory=dict)
    message: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Entry, ...] = ()
    previous: tuple[Mapping[str, Any], ...] = ()
    version: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing happens any more."""
        return self.phase in ENDED

    @property
    def traffic_percent(self) -> float:
        """The share that the candidate is meant to have in this phase."""
        if self.phase in ("shifting", "watching"):
            return float(self.policy.steps[self.step])
        return 100.0 if self.phase in ("promoting", "promoted") else 0.0

    def tell(self, entry: Entry) -> "Record":
        """Return the record with another line of history."""
        return replace(self, history=(*self.history, entry)[-_HISTORY_ENTRIES:])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without `version`."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "service": self.service,
            "candidate": asdict(self.candidate),
            "policy": self.policy.to_dict(),
            "source": dict(self.source),
            "started": self.started,
            "phase": self.phase,
            "phase_started": self.phase_started,
            "step": self.step,
            "step_started": self.step_started,
            "evidence_until": self.evidence_until,
            "labels_until": self.labels_until,
            "paused": self.paused,
            "judge": dict(self.judge),
            "memo": self.memo,
            "windows": [window_to_dict(window) for window in self.windows[-RECENT_WINDOWS:]],
            "arms": dict(self.arms),
            "message": self.message,
            "verdict": dict(self.verdict),
            "history": [asdict(entry) for entry in self.history],
            "previous": [dict(one) for one in self.previous],
        }

    def to_json(self) -> str:
        """Return the record as a JSON document."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def read_record(text: str, where: str, version: str = "") -> Record:
    """Read what `Record.to_json` wrote.

    Raises:
        DataError: It is not a record, or one of another schema.
    """
    try:
        values = json.loads(text)
        if values["schema"] != SCHEMA:
            raise DataError(
                where,
                f"schema {values['schema']!r}",
                f"schema {SCHEMA} is needed",
                "use the version of mlflywheel that started the rollout",
            )
        return Record(
            **{name: values[name] for name in _PLAIN},
            candidate=Candidate(**values["candidate"]),
            policy=policy_from_dict(values["policy"]),
            windows=tuple(window_from_dict(one) for one in values["windows"]),
            history=tuple(Entry(**one) for one in values["history"]),
            previous=tuple(values["previous"]),
            version=version,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            where,
            f"no record of a rollout ({type(error).__name__}: {error})",
            "the JSON document that mlflywheel wrote is needed",
            "put it back from a backup, or delete it and start the rollout again",
        ) from None
