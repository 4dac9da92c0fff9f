"""Check rows and prepared table with Great Expectations."""

from mlflywheel.components.validation.component import validate_data

__all__ = ["validate_data"]
