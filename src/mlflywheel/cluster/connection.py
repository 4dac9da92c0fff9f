"""Which registry to use: an address, or a variable, or the file beside the runs."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mlflywheel.registry.embedded import DEFAULT_PATH, EmbeddedRegistry, registry_path
from mlflywheel.registry.records import ModelRegistry

REGISTRY_VARIABLE = "MLFLYWHEEL_REGISTRY"


def open_registry(address: str | Path | None = None) -> ModelRegistry:
    """Open a registry by its address; nothing is created and nobody is asked until it is used.

    Args:
        address: A path, `sqlite:///ABSOLUTE/PATH`, or the `http://` or `https://` URL of a Kubeflow Model Registry.
            Without one, the variable `MLFLYWHEEL_REGISTRY`, and without that `runs/registry.sqlite`.

    Raises:
        UsageError: Not an address.
        MissingExtraError: A URL, and the `cluster` extra is not installed.

    >>> open_registry("runs/registry.sqlite").address
    'runs/registry.sqlite'
    """
    text = str(address or os.environ.get(REGISTRY_VARIABLE) or DEFAULT_PATH)
    if urlsplit(text).scheme in ("http", "https"):
        from mlflywheel.cluster.model_registry import KubeflowRegistry

        return KubeflowRegistry(text)
    return EmbeddedRegistry(registry_path(text))
