"""Score a whole table with a model."""

from mlflywheel.components.scoring.component import score_table

__all__ = ["score_table"]
