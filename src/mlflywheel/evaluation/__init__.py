"""Measuring a model on held-out rows, and holding the measurements against gates.

The model's own metrics are those of `Model.evaluate`. Beside them stands what can be measured of any model that scores
its rows one by one (`Model.score_rows`): slices, gaps between groups, the comparison with the version in use, and what
the model goes by. Each of these returns an `Evaluation`: measurements for the gates, and sections for the report.
"""

from mlflywheel.evaluation.judging import Judged, evaluate, render_gate_table, write_evaluation
from mlflywheel.evaluation.plan import EvaluationPlan, read_plan

__all__ = ["EvaluationPlan", "Judged", "evaluate", "read_plan", "render_gate_table", "write_evaluation"]
