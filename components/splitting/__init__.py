"""Hold out entities for the evaluation."""

from mlflywheel.components.splitting.component import split_table

__all__ = ["split_table"]
