"""Measure a model on held-out rows and hold the measurements against gates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mlflywheel.decisions.gates import Gate, Verdict, judge
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Model
from mlflywheel.reports import Report, render_report


@dataclass(frozen=True)
class Judged:
    """An evaluation and what the gates say about it."""

    evaluation: Evaluation
    verdict: Verdict


def evaluate(
    model: Model, holdout: pa.Table, gates: Sequence[Gate], progress: ProgressCallback = ignore_progress
) -> Judged:
    """Measure a model and judge it.

    Args:
        model: A fitted model.
        holdout: Prepared rows that it was not fitted on.
        gates: The thresholds.
        progress: Called with the phases of `Model.evaluate`.
    """
    evaluation = model.evaluate(holdout, progress)
    return Judged(evaluation, judge(gates, evaluation.measurements))


def write_evaluation(judged: Judged, evaluation: Path, verdict: Path, report: Path, gate_table: Path) -> None:
    """Write the evaluation and the verdict as JSON, a page with both, and the gates as a Markdown table."""
    evaluation.write_text(json.dumps(judged.evaluation.to_dict(), allow_nan=False), encoding="utf-8")
    verdict.write_text(json.dumps(judged.verdict.to_list(), allow_nan=False), encoding="utf-8")
    summary = {
        "status": "succeeded" if judged.verdict.holds else "gate_refused",
        "metrics": judged.evaluation.metrics(),
        "gates": judged.verdict.to_list(),
    }
    report.write_text(render_report(Report("Evaluation", summary, judged.evaluation)), encoding="utf-8")
    gate_table.write_text(render_gate_table(judged.verdict), encoding="utf-8")


def render_gate_table(verdict: Verdict) -> str:
    """Return the gates as a Markdown table, refused ones first."""
    lines = ["| gate | slice | value | limit | |", "|---|---|---:|---:|---|"]
    for result in sorted(verdict.results, key=lambda result: result.holds is not False):
        outcome = {True: "holds", False: "**refused**", None: "skipped"}[result.holds]
        value = "–" if result.value is None else f"{result.value:.4g}"
        limit = "–" if result.limit is None else f"{result.relation} {result.limit:.4g}"
        name = result.metric.replace("|", "\\|")
        where = result.slice.replace("|", "\\|")
        lines.append(f"| {name} | {where} | {value} | {limit} | {outcome} |")
    return "\n".join(lines) + "\n"
