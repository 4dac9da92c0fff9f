"""What counts as a piece of evidence, and how values that others wrote are read: nothing in them is relied on."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from mlflywheel.registry.records import ModelVersion, Transition

Kind = Literal["dossier", "registry", "junit", "rollout", "rehearsal", "rebuild", "validation", "check", "record"]
AUTOMATIC = ("ci", "scheduled")
"""What a run may have been started by, that starts it again."""

# Clocks of two machines differ; more than this is a wrong date.
CLOCK_SLACK = timedelta(hours=24)
_NAMED = 3
_RUN_ID = re.compile(r"(\d{8})-(\d{6})-[0-9a-f]+")


@dataclass(frozen=True)
class Evidence:
    """Something that shows that a test is done.

    Args:
        test: The rubric's id.
        kind: Where it comes from.
        where: The file or the version, and the place in it.
        what: What stands there, as a clause.
        at: When.
        occasion: Evidence of the same occasion shows nothing twice: a version, a rollout, a file's run.
        trigger: What started it: `manual`, `ci` or `scheduled`.
        is_own: Whether it is about the version itself; of another version it only shows that it is repeated.
        earns_one: False for what is worth half a point however often it is repeated.
        is_repeated: Whether this piece shows by itself that it is repeated.
    """

    test: str
    kind: Kind
    where: str
    what: str
    at: datetime | None
    occasion: str
    trigger: str = "manual"
    is_own: bool = True
    earns_one: bool = True
    is_repeated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "kind": self.kind,
            "where": self.where,
            "what": self.what,
            "at": None if self.at is None else self.at.isoformat(),
        }


@dataclass(frozen=True)
class Remark:
    """Why something that looks like evidence does not count.

    Args:
        test: The test that it would have been for; empty if for none or many.
        text: A sentence without a full stop.
    """

    test: str
    text: str


@dataclass(frozen=True)
class Registered:
    """A registered version, with what the registry has about it.

    Args:
        version: The version.
        dossier: What was written when it was registered (`mlflywheel.registry.dossier`); None if it has none.
        history: The states that it went through, its registration first.
    """

    version: ModelVersion
    dossier: Mapping[str, Any] | None = None
    history: Sequence[Transition] = ()


Found = Iterator[Evidence | Remark]


def part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object in an object; an empty one where there is none."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def rows(values: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list."""
    return [one for one in values if isinstance(one, Mapping)] if isinstance(values, list | tuple) else []


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def name_slice(one: Mapping[str, Any]) -> str:
    """Return a measurement's or gate's metric, with its slice where that is not `all`."""
    return str(one.get("metric")) if one.get("slice", "all") == "all" else f"{one.get('metric')} {one.get('slice')}"


def enumerate_names(names: Sequence[str]) -> str:
    """Name the first few."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def shorten(text: str, most: int = 200) -> str:
    """Return a text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def check_time(at: datetime | None, now: datetime, valid_days: int) -> str:
    """Return why evidence of that time does not count, or nothing."""
    if at is None:
        return "it does not say when"
    if at > now + CLOCK_SLACK:
        return f"{at:%Y-%m-%d} lies in the future"
    days = (now - at) / timedelta(days=1)
    return f"{days:.0f} days old, and valid for {valid_days}" if days > valid_days else ""


def read_seconds(value: Any) -> datetime | None:
    """Read seconds since 1970; None if they are no time."""
    try:
        return datetime.fromtimestamp(float(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def read_time(value: Any) -> datetime | None:
    """Read ISO text, in UTC unless it says otherwise; None if it is no time."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def read_run_id(text: str) -> datetime | None:
    """Read the time in a run's id, such as 20261121-093000-4f1a; None if there is none."""
    match = _RUN_ID.fullmatch(text)
    try:
        return datetime.strptime("".join(match.groups()), "%Y%m%d%H%M%S").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def read_any_time(values: Mapping[str, Any]) -> datetime | None:
    """Return when a report was made, by the first field that says so."""
    for name in ("at", "finished_at", "rebuilt_at", "created_at"):
        found = read_time(values.get(name))
        if found is not None:
            return found
    return read_run_id(str(values.get("run_id") or values.get("id") or ""))
