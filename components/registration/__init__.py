"""Register a model version."""

from mlflywheel.components.registration.component import register_model

__all__ = ["register_model"]
