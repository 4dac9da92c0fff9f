"""The identity of a compiled pipeline, which it carries as the default of its own parameter `pipeline_spec`.

A run on a cluster knows its parameters and not the file that it was uploaded from. So the file holds its own hash: the
hash is computed with that one default left empty, and then written there. Whoever has the file can compute it again.

The hash is one of the documents' content, written as JSON with sorted keys. Comments and layout have no part in it, so
a user interface that prints the YAML in another way does not change it; every image, parameter and step does.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from mlflywheel.errors import UsageError

PARAMETER = "pipeline_spec"
# As kfp writes it: the default below the root's parameter, and the line of the comment on top that repeats it.
_ROOT = "\nroot:\n"
_DEFAULT = re.compile(rf"^( +{PARAMETER}:\n +defaultValue: )\S+$", re.MULTILINE)
_COMMENT = re.compile(rf"^(# +{PARAMETER}: str \[Default: )'[^']*'\]$", re.MULTILINE)


def hash_specification(text_yaml: str, where: str = "pipeline.yaml") -> str:
    """Return the hash of compiled YAML, `sha256:` and 64 hexadecimal digits.

    Args:
        text_yaml: What the kfp compiler wrote, with or without a hash in it.
        where: What to call it in an error.

    Raises:
        UsageError: Not a compiled pipeline.
    """
    return _hash(read_specification(text_yaml, where))


def read_declared_hash(text_yaml: str, where: str = "pipeline.yaml") -> str:
    """Return the hash that compiled YAML says it has; empty if it says none.

    Raises:
        UsageError: Not a compiled pipeline.
    """
    parameter = _find_parameter(read_specification(text_yaml, where)[0])
    return "" if parameter is None else str(parameter.get("defaultValue") or "")


def declare_hash(text_yaml: str, where: str = "pipeline.yaml") -> str:
    """Write the hash of compiled YAML into it; a pipeline without the parameter is returned as it is.

    Raises:
        UsageError: Not a compiled pipeline, or not laid out as kfp does.
    """
    documents = read_specification(text_yaml, where)
    if _find_parameter(documents[0]) is None:
        return text_yaml
    found = _hash(documents)
    # A step may have a parameter of the same name.
    steps, root, pipeline = text_yaml.partition(_ROOT)
    written = _COMMENT.sub(rf"\g<1>'{found}']", steps) + root + _DEFAULT.sub(rf"\g<1>{found}", pipeline)
    again = read_specification(written, where)
    if (_find_parameter(again[0]) or {}).get("defaultValue") != found or _hash(again) != found:
        raise UsageError(
            where,
            f"the default of {PARAMETER} could not be set",
            "the layout of kfp's compiler is needed",
            "compile it with the kfp of requirements/",
        )
    return written


def _hash(documents: Sequence[dict[str, Any]]) -> str:
    empty = deepcopy(documents)
    parameter = _find_parameter(empty[0])
    if parameter is not None:
        parameter["defaultValue"] = ""
    text = json.dumps(empty, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# Hash and declaration are asked for one after the other, and reading takes a third of a second.
@lru_cache(maxsize=2)
def read_specification(text_yaml: str, where: str) -> Sequence[dict[str, Any]]:
    """Return the documents of compiled YAML: the pipeline's, and the platform's if there is one.

    They are shared between callers: copy them before a change.

    Raises:
        UsageError: Not a compiled pipeline.
    """
    import yaml

    try:
        documents = list(yaml.safe_load_all(text_yaml))
        documents[0]["pipelineInfo"]["name"]
        documents[0]["root"]["dag"]
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        raise UsageError(
            where, "not a compiled pipeline", "YAML as the kfp compiler writes it is needed", "compile the pipeline"
        ) from None
    return documents


def _find_parameter(document: dict[str, Any]) -> dict[str, Any] | None:
    parameters = document["root"].get("inputDefinitions", {}).get("parameters", {})
    found = parameters.get(PARAMETER)
    return found if isinstance(found, dict) else None
