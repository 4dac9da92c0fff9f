"""Fit a model, and make the evaluated model ready for service."""

from mlflywheel.components.training.component import extend_model, train_model

__all__ = ["extend_model", "train_model"]
