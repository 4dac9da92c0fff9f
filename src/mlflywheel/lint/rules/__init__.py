"""The rules, one function each; importing this package registers them all."""

from mlflywheel.lint.findings import RULES
from mlflywheel.lint.rules import (
    availability,
    canaries,
    cost,
    graphs,
    network,
    objects,
    runtimes,
    scaling,
    security,
    services,
)

__all__ = [
    "RULES",
    "availability",
    "canaries",
    "cost",
    "graphs",
    "network",
    "objects",
    "runtimes",
    "scaling",
    "security",
    "services",
]
