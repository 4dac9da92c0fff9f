"""Measure a model on held-out rows and hold the measurements against gates."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import pyarrow as pa

from mlflywheel.decisions.gates import Gate, Verdict, judge
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, Model
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

    Returns:
        The evaluation with null in place of NaN and infinity, which neither JSON nor a registry holds, and the verdict
        on the values as they were measured: a gate refuses NaN, where it might skip a missing value.
    """
    measured = model.evaluate(holdout, progress)
    kept = replace(measured, measurements=tuple(_keep_finite(found) for found in measured.measurements))
    return Judged(kept, judge(gates, measured.measurements))


def _keep_finite(measurement: Measurement) -> Measurement:
    value, low, high = (
        number if number is None or math.isfinite(number) else None
        for number in (measurement.value, measurement.low, measurement.high)
    )
    note = measurement.note
    if value is None and measurement.value is not None:
        note = f"measured as {measurement.value}" + (f"; {note}" if note else "")
    return replace(measurement, value=value, low=low, high=high, note=note)


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
    """Return the gates as a Markdown table, refused ones first; what does not hold says why."""
    lines = ["| gate | slice | value | limit | |", "|---|---|---:|---:|---|"]
    for result in sorted(verdict.results, key=lambda result: result.holds is not False):
        outcome = {True: "holds", False: "**refused**", None: "skipped"}[result.holds]
        if not result.holds:
            outcome += f": {_escape(result.reason)}"
        value = "–" if result.value is None else f"{result.value:.4g}"
        limit = "–" if result.limit is None else f"{result.relation} {result.limit:.4g}"
        lines.append(f"| {_escape(result.metric)} | {_escape(result.slice)} | {value} | {limit} | {outcome} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Keep text of the data, such as the name of a slice, from becoming markup or another cell."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))
