"""YAML documents that people write: read safely, and refused where a field stands twice."""

from collections import Counter
from typing import Any

import yaml

from mlflywheel.errors import UsageError

_MOST_VALUES = 100_000


def load_yaml(text: str, where: str) -> Any:
    r"""Read a YAML document.

    Args:
        text: The document.
        where: What to call it in an error.

    Raises:
        UsageError: Not YAML, or a field is written twice: YAML would silently take the last one.

    >>> load_yaml("schema: 1\nsteps: [5, 100]", "policy.yaml")
    {'schema': 1, 'steps': [5, 100]}
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated(document, where)
        _count_values(document, {})
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            where, f"not YAML ({problem}{place})", "a YAML document is needed", "correct the syntax"
        ) from None


def _count_values(node: yaml.Node | None, counted: dict[int, int | None]) -> int:
    """Count a document's values with aliases written out, which nine lines can make billions.

    Raises:
        ValueError: There are too many, or an alias stands inside what it names.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise ValueError("an alias stands inside what it names")
        return known
    counted[id(node)] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(_count_values(part, counted) for part in parts)
    if total > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values with aliases written out")
    counted[id(node)] = total
    return total


def _refuse_repeated(document: yaml.Node | None, where: str) -> None:
    pending, seen = [document], set[int]()
    while pending:
        node = pending.pop()
        # An alias is the node that it names.
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending.extend(reversed(node.value))
        elif isinstance(node, yaml.MappingNode):
            pending.extend(value for _, value in reversed(node.value))
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, times in Counter(keys).items():
                if times > 1:
                    raise UsageError(
                        f"{where}, {key}, in the fields that start at line {node.start_mark.line + 1}",
                        "written twice",
                        "a field stands once",
                        "remove one of the two",
                    )
