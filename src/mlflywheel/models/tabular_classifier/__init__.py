"""Two classes of the rows of any table: how likely a row belongs to the positive one, and why."""

from mlflywheel.models.tabular_classifier.model import TabularClassifier

__all__ = ["TabularClassifier"]
