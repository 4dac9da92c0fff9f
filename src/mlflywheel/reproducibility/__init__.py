"""What a model was trained in, and what differs where it is trained again.

`environment` describes the machine, the packages and the code that this process runs with; `comparison` says what
differs between two of these descriptions, and what that means for a model that was trained again; `specification`
gives a compiled pipeline an identity that it carries itself.
"""

from mlflywheel.reproducibility.comparison import (
    Comparison,
    Difference,
    compare_environments,
    compare_models,
)
from mlflywheel.reproducibility.environment import (
    THREAD_VARIABLES,
    describe_environment,
    find_trigger,
)
from mlflywheel.reproducibility.specification import declare_hash, hash_specification, read_declared_hash

__all__ = [
    "THREAD_VARIABLES",
    "Comparison",
    "Difference",
    "compare_environments",
    "compare_models",
    "declare_hash",
    "describe_environment",
    "find_trigger",
    "hash_specification",
    "read_declared_hash",
]
