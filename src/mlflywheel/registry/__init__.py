"""The model registry: one interface, `ModelRegistry`, and the store that needs no server.

`mlflywheel.registry.records` holds the records and the interface, `mlflywheel.registry.embedded` the SQLite store, and
`mlflywheel.registry.locations` what turns a storage address into one that a server can read. The second backend,
Kubeflow Model Registry, lives in `mlflywheel.cluster.model_registry`; `mlflywheel.cluster.connection.open_registry`
picks one of them by address.
"""

from mlflywheel.registry.embedded import EmbeddedRegistry
from mlflywheel.registry.locations import ServingLocation, to_readable_uri, to_serving_uri
from mlflywheel.registry.records import (
    ModelRegistry,
    ModelVersion,
    RegisteredModel,
    Scalar,
    State,
    Transition,
    VersionDraft,
    parse_reference,
)

__all__ = [
    "EmbeddedRegistry",
    "ModelRegistry",
    "ModelVersion",
    "RegisteredModel",
    "Scalar",
    "ServingLocation",
    "State",
    "Transition",
    "VersionDraft",
    "parse_reference",
    "to_readable_uri",
    "to_serving_uri",
]
