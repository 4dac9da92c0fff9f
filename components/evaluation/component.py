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
    plan: str = "",
    registry: str = "",
    model_name: str = "",
    prepare: str = "{}",
    split_method: str = "random",
    split_column: str = "",
    split_seed: int = 0,
    holdout_fraction: float = 0.2,
) -> str:
    """Measure the model on rows that it was not fitted on, and hold the measurements against the gates.

    With a registry it is compared with the version in use, on the same rows. Do not cache this step then: another
    version may have gone into use since.

    Args:
        fitted: The model.
        holdout: Prepared held-out rows, Parquet.
        gates: The thresholds, as YAML.
        plan: What to measure beside the model's own metrics, as YAML: slices, groups, champion, explanations.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry; empty compares with nothing.
        model_name: Name that the model is registered under.
        prepare: JSON object of the settings that the rows were prepared with; compared with those of that version.
        split_method: How the rows were split; compared alike.
        split_column: The split's column.
        split_seed: Its seed.
        holdout_fraction: Its share of held-out rows.
        evaluation: Every measurement, overall and by slice, and the data of the plots, as JSON.
        verdict: Each gate with value, limit and outcome, as JSON.
        metrics: The overall measurements.
        report: The evaluation as a page.
        gate_table: The gates as a table.

    Returns:
        "held", or "refused" if a gate said no.
    """
    import json
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.cluster.champion import find_predecessors
    from mlflywheel.decisions.gates import read_gates
    from mlflywheel.evaluation import evaluate, read_plan, write_evaluation
    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model

    with step("evaluation") as running:
        wanted = read_plan(plan)
        # kfp.local hands whole numbers on as floats.
        split = {
            "method": split_method,
            "column": split_column,
            "seed": int(split_seed),
            "holdout_fraction": holdout_fraction,
        }
        with find_predecessors(registry, model_name, wanted.champion.states, running) as predecessors:
            judged = evaluate(
                load_model(Path(fitted.path)),
                pq.read_table(holdout.path),
                read_gates(gates),
                running,
                plan=wanted,
                predecessors=predecessors,
                data={"prepare": json.loads(prepare.strip() or "{}"), "split": split},
            )
        write_evaluation(judged, Path(evaluation.path), Path(verdict.path), Path(report.path), Path(gate_table.path))
        for name, value in judged.evaluation.metrics().items():
            metrics.log_metric(name, value)
        running.record(
            metrics=judged.evaluation.metrics(),
            gates=judged.verdict.to_list(),
            champion=judged.champion,
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
