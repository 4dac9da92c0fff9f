"""`mlflywheel run credit-decisions`: a whole run on a sample, another table by configuration, broken tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_line import NO_RULES, Finished, run

from mlflywheel import Client
from mlflywheel.data.ingestion import ingest
from mlflywheel.data.validation import read_suite, validate
from mlflywheel.decisions.gates import read_gates
from mlflywheel.errors import ExpectationError
from mlflywheel.evaluation import read_plan
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.samples.credit_decisions import generate_credit_decisions, write_sample

PIPELINE = find_pipeline("credit-decisions")
APPLICATIONS = 1200


@pytest.fixture(scope="module")
def succeeded(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    data = write_sample(folder / "applications.csv.gz", APPLICATIONS)
    return run(folder, "--data", str(data), "--json", pipeline=PIPELINE.name)


def test_run_registers_a_model_and_scores_every_application(succeeded: Finished) -> None:
    assert succeeded.code == 0, succeeded.errors
    summary = succeeded.summary
    assert summary["status"] == "succeeded"
    scores = pq.read_table(summary["artifacts"]["scores"])
    assert scores.num_rows == summary["data"]["entities"] == APPLICATIONS
    assert set(scores["model_version"].to_pylist()) == {"credit-decisions@1"}
    assert scores["row_id"][0].as_py() == "a-000000"
    assert set(scores["label"].to_pylist()) == {"good", "bad"}
    metrics = summary["metrics"]
    assert metrics["auc"] > 0.7
    assert metrics["log_loss"] < metrics["reference_base_rate_log_loss"]
    assert all(gate["holds"] is not False for gate in summary["gates"])


def test_groups_that_the_model_does_not_see_are_compared(succeeded: Finished) -> None:
    evaluation = json.loads(Path(succeeded.summary["artifacts"]["evaluation"]).read_text(encoding="utf-8"))
    found = {(one["metric"], one["slice"]): one["value"] for one in evaluation["measurements"]}
    assert found["selection_rate", "age=25 or less"] < found["selection_rate", "age=above 25"]
    assert found["selection_rate_gap", "between=sex"] is not None
    scores = pq.read_table(succeeded.summary["artifacts"]["scores"])
    driving = {driver["feature"] for drivers in scores["drivers"].to_pylist() for driver in drivers}
    assert "checking_account" in driving
    assert not driving & {"age", "sex"}


def test_report_draws_the_models_own_part(succeeded: Finished) -> None:
    for title in ("Against simpler methods", "Probabilities against what happened", "Answers and truth"):
        assert title in succeeded.report


def test_gates_ask_for_what_the_model_measures(succeeded: Finished) -> None:
    gates = read_gates((PIPELINE.folder / "gates.yaml").read_text(encoding="utf-8"))
    asked = {name for gate in gates if gate.when_missing != "skip" for name in (gate.metric, gate.limit_metric) if name}
    evaluation = json.loads(Path(succeeded.summary["artifacts"]["evaluation"]).read_text(encoding="utf-8"))
    assert asked <= {measurement["metric"] for measurement in evaluation["measurements"]}


@pytest.mark.long
def test_another_table_needs_configuration_alone(tmp_path: Path) -> None:
    """Churn of customers: other columns, other classes, other groups, and a Parquet file."""
    random = np.random.default_rng(0)
    months, plan = random.integers(1, 60, 700), random.choice(["basic", "plus"], 700)
    chance = 1 / (1 + np.exp(0.08 * (months - 20) + 1.2 * (plan == "plus")))
    left = random.random(700) < chance
    raw = pa.table(
        {
            "customer": np.arange(700),
            "months": months,
            "plan": plan,
            "region": random.choice(["n", "s"], 700),
            "left": left,
        }
    )
    pq.write_table(raw, tmp_path / "customers.parquet")
    prepare = {"target": "left", "id": "customer", "not_features": ["region"], "positive": True}
    client = Client(tmp_path / "runs")
    made = client.run(
        PIPELINE.name,
        tmp_path / "customers.parquet",
        prepare=prepare,
        params={"algorithm": "boosted_trees", "max_iter": 40},
        arguments={
            "plan": '{"schema": 1, "fairness": {"groups": ["region"]}, "explanations": {"rows": 0}}',
            "model_name": "churn",
            "expectations": NO_RULES,
        },
    ).raise_for_status()
    assert made.metrics["auc"] > 0.75
    scores = pq.read_table(made.summary["artifacts"]["scores"])
    assert scores["row_id"].to_pylist()[:2] == ["0", "1"]
    assert set(scores["label"].to_pylist()) == {"True", "False"}
    # A table without the class is scored with the settings of the version.
    pq.write_table(raw.drop_columns("left"), tmp_path / "new.parquet")
    again = client.score("churn", tmp_path / "new.parquet")
    assert again["probability"].equals(scores["probability"])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = write_sample(tmp_path_factory.mktemp("sample") / "applications.csv", 600)
    return ingest(str(path), TabularClassifier.columns, {}, other_columns=True).table


def validate_applications(raw: pa.Table, **settings: Any) -> Any:
    suite = read_suite((PIPELINE.folder / "expectations.json").read_text(encoding="utf-8"), "expectations.json")
    config = TabularClassifier.Config.parse(settings, "test")
    return validate(raw, TabularClassifier.prepare(raw, config), suite)


def spoil(raw: pa.Table, column: str, values: list[Any]) -> pa.Table:
    return raw.set_column(raw.schema.get_field_index(column), column, pa.array(values, raw.schema.field(column).type))


def test_empty_cells_of_the_sample_are_named_and_do_not_stop_a_run(raw: pa.Table) -> None:
    result = validate_applications(raw)
    failed = {rule.name: rule.unexpected_count for rule in result.rules if rule.status == "failed"}
    empty = {name: raw[name].null_count for name in ("savings", "employment_years", "housing")}
    assert failed == {f"{name}_present": count for name, count in empty.items() if count}
    result.raise_for_errors()


@pytest.mark.parametrize(
    ("column", "spoiled", "rule"),
    [
        ("age", lambda n: [2.0] * n, "age_mostly_plausible"),
        ("amount", lambda n: [-5.0] * n, "amount_mostly_plausible"),
        ("savings", lambda n: [None] * n, "savings_mostly_present"),
        ("decision", lambda n: [None if row % 5 else "good" for row in range(n)], "target_mostly_present"),
        ("decision", lambda n: ["good"] * n, "two_classes"),
    ],
)
def test_broken_export_stops_the_run(raw: pa.Table, column: str, spoiled: Any, rule: str) -> None:
    result = validate_applications(spoil(raw, column, spoiled(raw.num_rows)))
    assert rule in {found.name for found in result.rules if found.status == "failed" and found.severity == "error"}
    with pytest.raises(ExpectationError, match=rule):
        result.raise_for_errors()


def test_missing_or_mistaken_class_stops_the_run(raw: pa.Table) -> None:
    with pytest.raises(ExpectationError, match="target"):
        validate_applications(raw.drop_columns("decision")).raise_for_errors()
    with pytest.raises(ExpectationError, match="two_classes"):
        validate_applications(raw, positive="goood").raise_for_errors()


def test_plan_names_columns_of_the_sample() -> None:
    plan = read_plan((PIPELINE.folder / "evaluation.yaml").read_text(encoding="utf-8"))
    asked = {one.name for one in (*plan.slices.columns, *plan.fairness.groups, *plan.champion.slices)}
    assert asked | set(plan.slices.discover.columns) <= set(generate_credit_decisions(10).column_names)


def test_page_of_the_pipeline_names_parameters_settings_and_columns() -> None:
    page = (PIPELINE.folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in TabularClassifier.Params.model_fields if f"`{name}`" not in page] == []
    assert [name for name in TabularClassifier.Config.model_fields if f"`{name}`" not in page] == []
    assert [name for name in generate_credit_decisions(10).column_names if f"`{name}`" not in page] == []


@pytest.fixture(scope="module")
def real(shared_folder: Path) -> pa.Table:
    """The real applications, in the raw form that the pipeline gets."""
    path = shared_folder / "data" / "fairness" / "german_credit.csv"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent.name}")
    return ingest(str(path), TabularClassifier.columns, {}, other_columns=True).table


def test_real_applications_are_classified_as_well_as_in_the_benchmark(real: pa.Table) -> None:
    from mlflywheel.data.splitting import split
    from mlflywheel.models.tabular_classifier.preparation import Facts

    settings = {"target": "credit", "positive": "1", "not_features": ["personal_status", "age"]}
    table = TabularClassifier.prepare(real, TabularClassifier.Config.parse(settings, "test"))
    facts = Facts.read(table)
    assert facts is not None
    assert (facts.rows, facts.values, len(facts.kinds)) == (1000, {"1": 700, "2": 300}, 18)
    assert facts.attributes == ("personal_status", "age")
    old = pc.greater(table["age"], 25)
    # As in the file's sources: a share of good of 72.8 % above 25 and 57.9 % up to 25 years.
    shares = [pc.mean(table.filter(part)["target"]).as_py() for part in (old, pc.invert(old))]
    assert shares == pytest.approx([0.728, 0.579], abs=0.0005)
    parts = split(table, "random", 0.3, 0)
    metrics = TabularClassifier.fit(parts.train, TabularClassifier.Params()).evaluate(parts.holdout).metrics()
    assert metrics["auc"] > 0.73
    assert metrics["log_loss"] < metrics["reference_base_rate_log_loss"] - 0.05
