"""Search for better parameters before the model is trained."""

from mlflywheel.components.tuning.component import tune_model

__all__ = ["tune_model"]
