"""What a rollout needs from the world: somebody who moves traffic, somebody who counts, and somebody who remembers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlflywheel.decisions.canary.evidence import Answer, ArmName, Label, Window

if TYPE_CHECKING:
    from mlflywheel.rollouts.record import Record

#: What an actuator keeps in the record between two ticks: JSON values only.
Memo = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What is to be rolled out.

    Args:
        storage_uri: Where the model lies, in a form that the service can read.
        name: A short name that no other version of the service has, such as `v2`; letters, digits and dashes.
        model: `NAME@VERSION` in the registry; empty where only the address is known.
        overrides: Further fields of the predictor to change with it, such as `{"model": {"runtimeVersion": "2"}}`.
    """

    storage_uri: str
    name: str
    model: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Where traffic is to go.

    Args:
        kind: `weight`: the candidate runs and gets `traffic_percent`. `promoted`: the candidate is the version in use,
            and nothing is left of the rollout. `rolled_back`: the version that was in use has all traffic, and nothing
            is left of the rollout.
        traffic_percent: 0 to 100; 0 is a dark launch.
    """

    kind: Literal["weight", "promoted", "rolled_back"]
    traffic_percent: float = 0.0

    def __str__(self) -> str:
        return f"{self.traffic_percent:g} % on the candidate" if self.kind == "weight" else self.kind.replace("_", " ")


@dataclass(frozen=True)
class Move:
    """What one call of `Actuator.move` did and saw.

    Args:
        reached: Whether the target is reached, as the router says, and every arm that gets traffic is ready.
        did: What was changed, empty if nothing.
        waiting_for: What is missing, with what was seen; empty if `reached`.
        traffic_percent: The candidate's share as the router has it; None while that is not known.
        failed: Why the target cannot be reached without somebody's help, such as a crashing container; empty if it can.
        arms: What each arm is called where evidence comes from: a Deployment's, Service's or revision's name.
    """

    reached: bool
    did: str = ""
    waiting_for: str = ""
    traffic_percent: float | None = None
    failed: str = ""
    arms: Mapping[ArmName, str] = field(default_factory=dict)


class Actuator(ABC):
    """Moves the traffic of one service. Everything is safe to repeat after any interruption."""

    @abstractmethod
    def begin(self, candidate: Candidate) -> Memo:
        """Check that the candidate can be rolled out here, and read what has to be put back afterwards. Writes nothing.

        Raises:
            RolloutError: It cannot; the message says what was seen and what would help.
        """

    @abstractmethod
    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        """Do the next thing on the way to a target, if there is one, and say how far it is. Never waits.

        Args:
            candidate: As given to `begin`.
            target: Where to go. It may change at any time, also back from `promoted` not yet reached.
            memo: From `begin`. Changed in place; the caller saves it after every call. A call must cope with a memo
                from before the last call, since a process can end between the two.

        Raises:
            ForeignEditError: Somebody else changed what the rollout works on.
            RolloutError: It is not permitted, or the service is gone.
        """

    @abstractmethod
    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        """Return the manifests that stand for a target, for a dry run and for GitOps. Writes nothing."""


class Source(ABC):
    """Brings evidence."""

    @abstractmethod
    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        """Return what both arms did between two times (seconds since 1970).

        Whatever is missing, stale or unanswered makes a window with a `gap`, never an error and never zeros.
        """

    def read_labels(self, since: float) -> tuple[Sequence[Answer], Sequence[Label]]:
        """Return the labels that arrived since a time, with the answers that they are about."""
        return (), ()


class Store(ABC):
    """Keeps the record of a service's rollout."""

    @abstractmethod
    def load(self) -> "Record | None":
        """Return the newest rollout's record; None if there was none."""

    @abstractmethod
    def save(self, record: "Record") -> "Record":
        """Write a record, and return it with its new `version`.

        Raises:
            ForeignEditError: Somebody else wrote it since `record` was loaded.
        """

    @abstractmethod
    def require_lock(self) -> None:
        """Return if the lock is still held.

        Raises:
            RolloutError: It is not, or no longer: somebody else may be at the rollout by now.
        """

    @abstractmethod
    def lock(self, holder: str) -> AbstractContextManager[None]:
        """Hold the service's rollout alone.

        Raises:
            RolloutError: Somebody else holds it; the message says who, and until when at the latest.
        """
