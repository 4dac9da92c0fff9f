"""Configuration files as defaults of pipeline parameters."""

import json
from pathlib import Path

import yaml


def read_configuration(path: Path) -> str:
    """Return a JSON or YAML file as one line of JSON, which is YAML as well.

    kfp 2.17 repeats a parameter's default in a comment at the top of the compiled YAML, line breaks included; a default
    of several lines makes the file unreadable.
    """
    text = path.read_text(encoding="utf-8")
    value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
