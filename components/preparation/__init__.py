"""Turn raw rows into one row an entity."""

from mlflywheel.components.preparation.component import prepare_table

__all__ = ["prepare_table"]
