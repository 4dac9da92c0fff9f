"""What is told and asked about pipelines on a cluster: versions, schedules, and how runs are started."""

import re
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from packaging.version import Version

from mlflywheel.errors import UsageError

#: Where a run goes that names no experiment of its own.
DEFAULT_EXPERIMENT = "Default"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Server:
    """What a Kubeflow Pipelines server says of itself.

    Args:
        address: Where it is.
        version: Its release; None if it does not say.
        is_multi_user: Whether it is installed for several users, so that everything has a namespace.
    """

    address: str
    version: Version | None
    is_multi_user: bool


@dataclass(frozen=True)
class Upload:
    """A version of a pipeline on a server.

    Args:
        pipeline: Its name.
        pipeline_id: Its number.
        version: Name of the version.
        version_id: Its number.
        hash: Hash of the compiled pipeline, as `mlflywheel.reproducibility.hash_specification` computes it.
        is_new: Whether this call made it; it was there already if not.
        link: Its page; None if the user interface's address is not known.
    """

    pipeline: str
    pipeline_id: str
    version: str
    version_id: str
    hash: str
    is_new: bool
    link: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the parts as JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        told = "uploaded" if self.is_new else "there already"
        return f"<b>{escape(self.pipeline)}</b> {escape(self.version)}, {told}{_anchor(self.link)}"


@dataclass(frozen=True)
class Schedule:
    """A recurring run on a server.

    Args:
        name: Its name.
        schedule_id: Its number.
        when: A cron expression with seconds, or `every N s`.
        pipeline_id: Whose runs it starts.
        version_id: The version of them.
        is_enabled: Whether it starts any.
        max_concurrency: How many runs of it go on at once.
        no_catchup: Whether times that were missed stay missed.
        outcome: What this call did: `created`, `kept`, `replaced`; empty for one that was listed.
        fingerprint: Of all its settings; empty for one that another program made.
        link: Its page; None if the user interface's address is not known.
    """

    name: str
    schedule_id: str
    when: str
    pipeline_id: str
    version_id: str
    is_enabled: bool
    max_concurrency: int
    no_catchup: bool
    outcome: str = ""
    fingerprint: str = ""
    link: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the parts as JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        state = "" if self.is_enabled else ", disabled"
        return f"<b>{escape(self.name)}</b> {escape(self.when)} {escape(self.outcome)}{state}{_anchor(self.link)}"


@dataclass(frozen=True)
class RunSettings:
    """How a run is started, beside its parameters.

    Args:
        experiment: Name of the experiment that it belongs to; made if there is none.
        service_account: Whose rights its pods have; the server's own choice if empty.
        pipeline_root: Where its artifacts go; the server's own choice if empty.
        name: Its name; the pipeline's and the time if empty.
    """

    experiment: str = DEFAULT_EXPERIMENT
    service_account: str = ""
    pipeline_root: str = ""
    name: str = ""


@dataclass(frozen=True)
class Timing:
    """When a schedule starts runs.

    Args:
        cron: Six fields, seconds first, in the server's time zone; None with `every_seconds`.
        every_seconds: Time between two starts; None with `cron`.
        name: The schedule's name; the pipeline's if empty. There is one of a name.
        max_concurrency: How many runs of it may go on at once, from 1 to 10.
        no_catchup: Whether starts that were missed, as while the schedule was disabled, stay missed.
    """

    cron: str | None = None
    every_seconds: int | None = None
    name: str = ""
    max_concurrency: int = 1
    no_catchup: bool = False

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every_seconds is None):
            raise UsageError("schedule", "not one of --cron and --every", "one of them is needed", "give one")
        if self.cron is not None and not self.cron.startswith("@") and len(self.cron.split()) != 6:
            # Of five, the server would read the first one as seconds: every hour in place of every day.
            raise UsageError(
                f"--cron {self.cron!r}",
                f"{len(self.cron.split())} fields",
                "Kubeflow Pipelines needs six, seconds first",
                f'write --cron "0 {self.cron}"' if len(self.cron.split()) == 5 else 'write it as "0 0 6 * * *"',
            )
        if self.every_seconds is not None and self.every_seconds < 1:
            raise UsageError("--every", f"{self.every_seconds} s", "more than nothing is needed", "write it as 24h")
        if not 1 <= self.max_concurrency <= 10:
            raise UsageError(
                "--max-concurrency", str(self.max_concurrency), "1 to 10 is what the server takes", "correct it"
            )

    def trigger(self) -> dict[str, Any]:
        """Return the timing as the API writes it."""
        if self.cron is not None:
            return {"cron_schedule": {"cron": self.cron}}
        return {"periodic_schedule": {"interval_second": str(self.every_seconds)}}


def read_interval(text: str) -> int:
    """Return the seconds that an interval means.

    Raises:
        UsageError: Not a number with a unit.

    >>> read_interval("24h"), read_interval("90m")
    (86400, 5400)
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if found is None:
        raise UsageError(f"--every {text!r}", "no interval", "a whole number with s, m, h or d", "write it as 24h")
    return int(found[1]) * _UNITS[found[2]]


def _anchor(link: str | None) -> str:
    return "" if link is None else f' <a href="{escape(link)}">{escape(link)}</a>'
