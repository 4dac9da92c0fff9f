"""Evaluation: measurements become a verdict, files, and a table that a person reads."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from small_model import FittedCampaigns

from mlflywheel.decisions.gates import GateResult, Verdict, read_gates
from mlflywheel.evaluation import Judged, evaluate, render_gate_table, write_evaluation
from mlflywheel.models.contract import Evaluation, Measurement, Section

GATES = read_gates(
    """
    schema: 1
    gates:
      - {metric: out_of_vocabulary_share, at_most: 1.0}
      - {metric: topic_diversity, at_least: 0.0}
      - {metric: no_such_metric, at_least: 1.0, when_missing: skip}
    """
)


@pytest.fixture(scope="module")
def judged(fitted_campaigns: FittedCampaigns) -> Judged:
    return evaluate(fitted_campaigns.model, fitted_campaigns.holdout, GATES)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {name: tmp_path / name for name in ("evaluation", "verdict", "report", "gate_table")}


def measuring(*measurements: Measurement) -> Any:
    """Return a model that measures just this."""
    return SimpleNamespace(evaluate=lambda table, progress: Evaluation(measurements))


def judge_value(value: float, gate: str) -> Judged:
    gates = read_gates(f"schema: 1\ngates:\n  - {{metric: purity, {gate}}}")
    return evaluate(measuring(Measurement("purity", value, count=9, note="by hand")), pa.table({}), gates)


def test_fitted_model_is_measured_and_judged(judged: Judged) -> None:
    metrics = judged.evaluation.metrics()
    assert 0.0 < metrics["out_of_vocabulary_share"] < 1.0
    assert judged.verdict.holds
    assert [result.holds for result in judged.verdict.results] == [True, True, None]
    assert judged.verdict.results[0].value == metrics["out_of_vocabulary_share"]


def test_progress_of_the_model_is_passed_on(fitted_campaigns: FittedCampaigns) -> None:
    seen: set[str] = set()
    evaluate(fitted_campaigns.model, fitted_campaigns.holdout, (), lambda phase, done, total: seen.add(phase))
    assert seen


def test_files_read_back_as_what_was_judged(judged: Judged, files: dict[str, Path]) -> None:
    write_evaluation(judged, **files)
    assert Evaluation.from_dict(json.loads(files["evaluation"].read_text("utf-8"))).metrics() == (
        judged.evaluation.metrics()
    )
    read = Verdict.from_list(json.loads(files["verdict"].read_text("utf-8")))
    assert [(r.metric, r.holds, r.reason) for r in read.results] == [
        (r.metric, r.holds, r.reason) for r in judged.verdict.results
    ]
    assert files["report"].read_text("utf-8").lstrip().lower().startswith("<!doctype html>")
    assert files["gate_table"].read_text("utf-8") == render_gate_table(judged.verdict)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_went_wrong_is_written_as_missing(value: float, files: dict[str, Path]) -> None:
    judged = judge_value(value, "at_least: 0.5")
    write_evaluation(judged, **files)
    (measurement,) = Evaluation.from_dict(json.loads(files["evaluation"].read_text("utf-8"))).measurements
    assert measurement.value is None
    assert measurement.note == f"measured as {value}; by hand"
    assert measurement.count == 9
    assert judged.evaluation.metrics() == {}


def test_value_that_went_wrong_is_refused_where_a_missing_one_is_skipped() -> None:
    assert not judge_value(math.nan, "at_least: 0.5, when_missing: skip").verdict.holds


def test_interval_without_an_end_is_written_without_it() -> None:
    model = measuring(Measurement("purity", 0.5, low=-math.inf, high=0.7))
    (measurement,) = evaluate(model, pa.table({}), ()).evaluation.measurements
    assert (measurement.value, measurement.low, measurement.high, measurement.note) == (0.5, None, 0.7, "")


def test_sections_of_the_model_stay(files: dict[str, Path]) -> None:
    section = Section("text", "A title", "A sentence.")
    write_evaluation(Judged(Evaluation((), (section,)), Verdict(())), **files)
    assert Evaluation.from_dict(json.loads(files["evaluation"].read_text("utf-8"))).sections == (section,)


def test_gate_table_lists_refused_gates_first_with_their_reason() -> None:
    verdict = Verdict(
        (
            GateResult("purity", "all", 0.912345, 0.9, ">=", True, "purity 0.9123 reaches 0.9 on slice all"),
            GateResult("share", "all", 0.5, 0.4, "<=", False, "share 0.5 is above 0.4 on slice all"),
            GateResult("gap", "locale", None, None, "<=", None, "gap is not measured, <= other was skipped"),
        )
    )
    assert render_gate_table(verdict) == (
        "| gate | slice | value | limit | |\n"
        "|---|---|---:|---:|---|\n"
        "| share | all | 0.5 | <= 0.4 | **refused**: share 0.5 is above 0.4 on slice all |\n"
        "| purity | all | 0.9123 | >= 0.9 | holds |\n"
        "| gap | locale | – | – | skipped: gap is not measured, &lt;= other was skipped |\n"
    )


def test_gate_table_shows_a_slice_s_name_as_text() -> None:
    name = "vertical=a|b\n<img src=x> [x](y) \\"
    verdict = Verdict((GateResult("purity", name, 0.5, 0.4, ">=", True, "holds"),))
    assert render_gate_table(verdict).splitlines()[2:] == [
        r"| purity | vertical=a\|b &lt;img src=x&gt; \[x\](y) \\ | 0.5 | >= 0.4 | holds |"
    ]


def test_gate_table_of_no_gates_is_a_header() -> None:
    assert render_gate_table(Verdict(())).count("\n") == 2
