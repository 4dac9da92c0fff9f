"""Model parameters as people write them: `NAME=VALUE`, nested with dots, and laid over each other."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mlflywheel.errors import UsageError


def read_assignment(where: str, item: str) -> tuple[str, str]:
    """Split `NAME=VALUE`.

    Args:
        where: What to call the source in an error: `--set`.
        item: The text.

    Raises:
        UsageError: There is no name, or no equals sign.

    >>> read_assignment("--set", "a=b=c")
    ('a', 'b=c')
    """
    name, separator, value = item.partition("=")
    if not separator or not name.strip():
        raise UsageError(f"{where} {item}", "no name and value", "NAME=VALUE is needed", f"write {where} NAME=VALUE")
    return name.strip(), value


def read_assignments(where: str, items: Iterable[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` items, values as JSON where they are, as text otherwise.

    Raises:
        UsageError: An item is not `NAME=VALUE`, or a name is given twice.

    >>> read_assignments("--param", ["num_topics=40", "algorithm=lda", "text.bigrams=false"])
    {'num_topics': 40, 'algorithm': 'lda', 'text.bigrams': False}
    """
    values: dict[str, Any] = {}
    for item in items:
        name, text = read_assignment(where, item)
        if name in values:
            raise UsageError(f"{where} {item}", f"{name} is given twice", "one value is needed", "leave one out")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def describe_json_fault(error: ValueError | RecursionError) -> str:
    """Say in a few words why `json.loads` refused a text.

    Args:
        error: What it raised.

    >>> describe_json_fault(RecursionError())
    'nested too deeply'
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    # Python reads no numbers of thousands of digits, which is no mistake at one place.
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)


def nest(values: Mapping[str, Any], where: str = "--param") -> dict[str, Any]:
    """Turn dotted names into nested objects.

    Raises:
        UsageError: A name has a value of its own and is the beginning of another.

    >>> nest({"num_topics": 40, "text.bigrams": False})
    {'num_topics': 40, 'text': {'bigrams': False}}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        place = result
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(
                    f"{where} {name}", f"{part} has a value of its own", "one of the two is needed", "leave one out"
                )
            place = inner
        if isinstance(place.get(last), dict) and not isinstance(value, Mapping):
            raise UsageError(
                f"{where} {name}", f"{last} has settings inside", "one of the two is needed", "leave one out"
            )
        place[last] = merge(place.get(last, {}), value) if isinstance(value, Mapping) else value
    return result


def merge(params: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with others laid over them, object by object.

    >>> merge({"num_topics": 50, "text": {"bigrams": True}}, {"text": {"minimum_campaigns": 3}})
    {'num_topics': 50, 'text': {'bigrams': True, 'minimum_campaigns': 3}}
    """
    result = dict(params)
    for name, value in overrides.items():
        inner = result.get(name)
        result[name] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters by their dotted names.

    >>> flatten({"num_topics": 40, "text": {"bigrams": False}})
    {'num_topics': 40, 'text.bigrams': False}
    """
    values: dict[str, Any] = {}
    for name, value in params.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return values
