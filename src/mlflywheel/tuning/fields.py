"""Fields of a document: where they stand, how an error names them, and the plain values they hold."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflywheel.errors import UsageError

_LONGEST_QUOTE = 80
_WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,5})?", re.ASCII)

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Place:
    """A field of a document: the file's name and the path inside it."""

    file: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.path}" if self.path else self.file

    def of(self, name: str) -> "Place":
        """Return the place of a mapping's field."""
        plain = name.isidentifier()
        if not self.path:
            return Place(self.file, name if plain else shorten(name))
        return Place(self.file, f"{self.path}.{name}" if plain else f"{self.path}[{shorten(name)}]")

    def at(self, index: int) -> "Place":
        """Return the place of a list's element."""
        return Place(self.file, f"{self.path}[{index}]")

    def error(self, seen: str, needed: str, fix: str) -> UsageError:
        """Build the error for this field."""
        return UsageError(str(self), seen, needed, fix)

    def unknown(self, what: str, name: str, known: Iterable[str], *, fix: str | None = None) -> UsageError:
        """Build the error for a name that is none of the known ones, with the nearest of them.

        Args:
            what: What was named, as `field` or `algorithm`.
            name: The name.
            known: The names there are.
            fix: What to do where no name is near.
        """
        names = sorted(known)
        near = nearest(name, names)
        listed = ", ".join(names) or "none"
        return self.error(
            f"unknown {what} {shorten(name)}",
            f"the known ones are {listed}",
            f"write {near}" if near else fix or f"write one of them, or remove {shorten(name)}",
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest to a name, None if none is near.

    >>> nearest("paralelTrialCount", ["maxTrialCount", "parallelTrialCount"])
    'parallelTrialCount'
    """
    folded = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[found[0]] if found else None


def shorten(value: object) -> str:
    """Return a value as it stands in an error message, on one line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def needed_mapping(spec: Mapping[str, Any], name: str, place: Place, content: str) -> Mapping[str, Any]:
    """Return a mapping that must be there.

    Args:
        spec: What holds it.
        name: The field's name.
        place: The field's place.
        content: What to write into it.
    """
    values: Mapping[str, Any] | None = spec.get(name)
    if values is None:
        raise place.error("nothing", f"{name} is needed", f"write {name} with {content}")
    return values


def needed_text(values: Mapping[str, Any], name: str, place: Place) -> str:
    """Return a field's text, which must be there and not be empty; the place is that of the mapping."""
    text = values.get(name)
    if not isinstance(text, str) or not text:
        raise place.of(name).error("nothing", f"{name} is needed", f"write {name}")
    return text


def read_choice(value: str | None, choices: Sequence[Choice], place: Place) -> Choice:
    """Return which of the choices a value is; the place is that of the value."""
    for choice in choices:
        if value == choice:
            return choice
    if not value:
        raise place.error("nothing", f"one of {', '.join(choices)} is needed", "write one of them")
    raise place.unknown("value", value, choices)


def read_whole(text: str) -> int | None:
    """Return a whole number, None for anything else.

    >>> read_whole("12"), read_whole("1.5"), read_whole(" 1"), read_whole("1_000")
    (12, None, None, None)
    """
    return int(text) if _WHOLE.fullmatch(text) else None


def read_number(text: str) -> float | None:
    """Return a finite number, None for anything else.

    >>> read_number("1e-3"), read_number("nan"), read_number("1e999"), read_number("0x1")
    (0.001, None, None, None)
    """
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def is_finite(value: float) -> bool:
    """Return whether a number is one that a float holds."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
