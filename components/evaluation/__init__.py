"""Measure a model on held-out rows, judge the gates, and stop a run whose gates said no."""

from mlflywheel.components.evaluation.component import evaluate_model, refuse_model

__all__ = ["evaluate_model", "refuse_model"]
