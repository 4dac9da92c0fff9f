"""What a look at something found: the one form of it that `mlflywheel doctor` prints."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: What.
        status: `ok`; `note`, something optional is missing or could not be seen; `problem`, something needed is.
        text: What was seen.
        fix: What to do, empty if nothing.
        group: What it belongs to, such as `KServe`.

    >>> Finding("metrics API", "ok", "served").to_dict()["status"]
    'ok'
    """

    subject: str
    status: Status
    text: str
    fix: str = ""
    group: str = "installation"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
