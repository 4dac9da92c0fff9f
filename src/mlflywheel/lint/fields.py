"""Reading one field of a manifest without trusting what is there.

A `Field` can always be asked for its children, whatever it holds. A value of another type than was asked for reads as
missing, and is remembered in the manifest, for the rule `wrong-type`.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

Path = tuple[str | int, ...]

_SUFFIXES: Mapping[str, Decimal] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))(?:([A-Za-z]{0,2})|[eE]([+-]?[0-9]{1,2}))"
)
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


class Holder(Protocol):
    """What a field belongs to."""

    #: Paths of values of another type, and what is needed there.
    wrong: dict[Path, str]


class Field:
    """A value in a manifest, and where it stands.

    Attributes:
        manifest: The object that it belongs to.
        path: Keys and indexes from the object's root.
        value: Scalar, mapping or list as it was read; None if it is missing or null.
    """

    __slots__ = ("manifest", "path", "value")

    def __init__(self, manifest: Holder, path: Path, value: Any) -> None:
        self.manifest = manifest
        self.path = path
        self.value = value

    @property
    def exists(self) -> bool:
        """Whether there is a value; null is none, as for the API server."""
        return self.value is not None

    def __getitem__(self, key: str) -> "Field":
        value = self.value
        child = None
        if isinstance(value, Mapping):
            child = value.get(key)
        elif value is not None:
            self._refuse("a mapping")
        return Field(self.manifest, (*self.path, key), child)

    def at(self, *keys: str) -> "Field":
        """Return the field under several keys, one below the other."""
        field = self
        for key in keys:
            field = field[key]
        return field

    def items(self) -> list["Field"]:
        """Return the entries of a list; none if it is no list."""
        if isinstance(self.value, list | tuple):
            return [Field(self.manifest, (*self.path, index), value) for index, value in enumerate(self.value)]
        if self.value is not None:
            self._refuse("a list")
        return []

    def entries(self) -> list[tuple[str, "Field"]]:
        """Return keys and values of a mapping; none if it is no mapping."""
        if isinstance(self.value, Mapping):
            return [
                (key, Field(self.manifest, (*self.path, key), value))
                for key, value in self.value.items()
                if isinstance(key, str)
            ]
        if self.value is not None:
            self._refuse("a mapping")
        return []

    def text(self) -> str | None:
        """Return a string."""
        if self.value is None or isinstance(self.value, str):
            return self.value
        self._refuse("a string")
        return None

    def whole(self, bits: int = 64) -> int | None:
        """Return a whole number with a sign.

        Args:
            bits: As many as KServe's own type has: it cannot read an object with a number beyond them.
        """
        value = self.value
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() < bits:
                return value
            self._refuse(f"a whole number of {bits} bits")
        else:
            self._refuse("a whole number")
        return None

    def flag(self) -> bool | None:
        """Return a truth value."""
        if self.value is None or isinstance(self.value, bool):
            return self.value
        self._refuse("true or false")
        return None

    def quantity(self) -> Decimal | None:
        """Return a Kubernetes quantity such as `500m` or `2Gi`, in its base unit: cores, bytes, pieces."""
        if self.value is None:
            return None
        quantity = parse_quantity(self.value)
        if quantity is None:
            self._refuse("a quantity such as 500m or 2Gi")
        return quantity

    def share(self, whole: int) -> int | None:
        """Return a number of pods, given as a number or as a percentage that is rounded up."""
        value = self.value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}%", value):
            return -(-whole * int(value[:-1]) // 100)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        self._refuse("a whole number, or a percentage such as 50%")
        return None

    def show(self) -> str:
        """Return a short form of the value for a message."""
        return show(self.value)

    def _refuse(self, needed: str) -> None:
        self.manifest.wrong.setdefault(self.path, f"{self.show()} stands here, and {needed} is needed")


def show(value: object) -> str:
    """Return a short form of a value that does not grow with it.

    >>> show("x" * 100), show({"a": 1}), show(None)
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'", 'a mapping', 'nothing')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if isinstance(value, int | float):
        return repr(value)
    return "a mapping" if isinstance(value, Mapping) else "a list"


def parse_quantity(value: object) -> Decimal | None:
    """Return a Kubernetes quantity in its base unit, or None if it is not one.

    >>> parse_quantity("1500m"), parse_quantity("1Ki"), parse_quantity(2), parse_quantity("2 GB")
    (Decimal('1.500'), Decimal('1024'), Decimal('2'), None)
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and value.bit_length() > 96:
        return None
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    if exponent is not None:
        return Decimal(f"{number}e{exponent}")
    unit = _SUFFIXES.get(suffix)
    return None if unit is None else Decimal(number) * unit


def format_path(path: Path) -> str:
    """Return a path as it is written in messages.

    >>> format_path(("spec", "containers", 0, "env")), format_path(("metadata", "annotations", "a.io/b"))
    ('spec.containers[0].env', 'metadata.annotations["a.io/b"]')
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{part[:80]}"]'
    return text
