"""How long a server may be silent, and how often it is asked again."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mlflywheel.errors import UsageError

CONNECT_VARIABLE = "MLFLYWHEEL_STORAGE_CONNECT_SECONDS"
READ_VARIABLE = "MLFLYWHEEL_STORAGE_READ_SECONDS"
ATTEMPTS_VARIABLE = "MLFLYWHEEL_STORAGE_ATTEMPTS"
_MOST_SECONDS = 3600.0
_MOST_ATTEMPTS = 20


@dataclass(frozen=True)
class Patience:
    """Limits of a request to a web server or an object store.

    Args:
        connect_seconds: Until a connection stands.
        read_seconds: Until the next bytes come. A transfer that goes on may take as long as it takes.
        attempts: Requests in all, the first one among them. Between two of them lies a random pause, which grows from
            one second at most to twenty. A web server (`http://`) is asked once.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    attempts: int = 4


def read_patience(environment: Mapping[str, str] | None = None) -> Patience:
    """Return the limits that the environment sets.

    Args:
        environment: Variables; the process's own by default. `MLFLYWHEEL_STORAGE_CONNECT_SECONDS` and
            `MLFLYWHEEL_STORAGE_READ_SECONDS` are above 0 and at most 3600, `MLFLYWHEEL_STORAGE_ATTEMPTS` is 1 to 20.

    Raises:
        UsageError: A variable holds something else.

    >>> read_patience({"MLFLYWHEEL_STORAGE_ATTEMPTS": "2"})
    Patience(connect_seconds=10.0, read_seconds=30.0, attempts=2)
    """
    environment = os.environ if environment is None else environment
    connect = _read_number(environment, CONNECT_VARIABLE, Patience.connect_seconds, _MOST_SECONDS)
    read = _read_number(environment, READ_VARIABLE, Patience.read_seconds, _MOST_SECONDS)
    attempts = _read_number(environment, ATTEMPTS_VARIABLE, Patience.attempts, _MOST_ATTEMPTS)
    if attempts != int(attempts) or attempts < 1:
        raise _refuse(ATTEMPTS_VARIABLE, environment[ATTEMPTS_VARIABLE], "a whole number from 1 to 20")
    return Patience(connect, read, int(attempts))


def _read_number(environment: Mapping[str, str], name: str, default: float, most: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # NaN is in no range either.
    if not 0 < value <= most:
        raise _refuse(name, text, f"a number above 0 and up to {most:g}")
    return value


def _refuse(name: str, text: str, needed: str) -> UsageError:
    return UsageError(name, repr(text), f"{needed} is needed", "correct the variable, or unset it")
