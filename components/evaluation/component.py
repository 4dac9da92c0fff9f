"""Measure a model on held-out rows, judge the gates, and stop a run whose gates said no."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def evaluate_model(
    fitted: dsl.Input[dsl.Model],
    holdout: dsl.Input[dsl.Dataset],
    gates: str,
    evaluation: dsl.Output[dsl.Artifact],
    verdict: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    gate_table: dsl.Output[dsl.Markdown],
) -> str:
    """Measure the model on rows that it was not fitted on, and hold the measurements against the gates.

    Args:
        fitted: The model.
        holdout: Prepared held-out rows, Parquet.
        gates: The thresholds, as YAML.
        evaluation: Every measurement, overall and by slice, and the data of the plots, as JSON.
        verdict: Each gate with value, limit and outcome, as JSON.
        metrics: The overall measurements.
        report: The evaluation as a page.
        gate_table: The gates as a table.

    Returns:
        "held", or "refused" if a gate said no.
    """
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.decisions.gates import read_gates
    from mlflywheel.evaluation import evaluate, write_evaluation
    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model

    with step("evaluation") as running:
        judged = evaluate(load_model(Path(fitted.path)), pq.read_table(holdout.path), read_gates(gates), running)
        write_evaluation(judged, Path(evaluation.path), Path(verdict.path), Path(report.path), Path(gate_table.path))
        for name, value in judged.evaluation.metrics().items():
            metrics.log_metric(name, value)
        running.record(
            metrics=judged.evaluation.metrics(),
            gates=judged.verdict.to_list(),
            artifacts={"evaluation": evaluation.path},
        )
    return "held" if judged.verdict.holds else "refused"


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def refuse_model(verdict: dsl.Input[dsl.Artifact]):
    """Fail the run, naming each gate that said no: nothing is registered.

    Args:
        verdict: What evaluate_model found.
    """
    import json
    from pathlib import Path

    from mlflywheel.decisions.gates import Verdict
    from mlflywheel.events import step

    with step("gates"):
        Verdict.from_list(json.loads(Path(verdict.path).read_text(encoding="utf-8"))).raise_if_refused()
