"""mlflywheel: components that take a table to a registered, served and monitored model.

`from mlflywheel import Client` is the way in from a notebook; the command line is `mlflywheel --help`.

Importing this package imports nothing else. Components import it at run time inside Kubeflow pods, where
kfp hides its decorators, so a module that defines components must never be reached from here.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]

if TYPE_CHECKING:
    from mlflywheel.client import Client


def __getattr__(name: str) -> Any:
    """Import `Client` on first use, so that a component never pays for, or trips over, the compiler."""
    if name == "Client":
        from mlflywheel.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
