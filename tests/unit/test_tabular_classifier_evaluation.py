"""What is measured of a classifier: metrics against their definitions, intervals, references, undefined cases."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.data.splitting import split
from mlflywheel.errors import DataError, UsageError
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.models.tabular_classifier.ranking import estimate_auc
from mlflywheel.reports.sections import draw_section
from mlflywheel.samples.credit_decisions import generate_credit_decisions


@pytest.fixture(scope="module")
def parts() -> Any:
    table = TabularClassifier.prepare(generate_credit_decisions(1500), TabularClassifier.Config())
    return split(table, "random", 0.4, 0)


@pytest.fixture(scope="module")
def model(parts: Any) -> TabularClassifier:
    params = TabularClassifier.Params(algorithm="boosted_trees", max_iter=60, decision_threshold=0.6)
    return TabularClassifier.fit(parts.train, params)


@pytest.fixture(scope="module")
def evaluation(model: TabularClassifier, parts: Any) -> Evaluation:
    return model.evaluate(parts.holdout)


def find(evaluation: Evaluation, metric: str, name: str = "all") -> Measurement:
    (found,) = [m for m in evaluation.measurements if m.metric == metric and m.slice == name]
    return found


def test_metrics_are_those_of_scikit_learn(model: TabularClassifier, parts: Any, evaluation: Evaluation) -> None:
    from sklearn import metrics

    truth = parts.holdout["target"].to_numpy()
    probability = model.predict(parts.holdout)["probability"].to_numpy()
    called = probability >= 0.6
    expected = {
        "auc": metrics.roc_auc_score(truth, probability),
        "log_loss": metrics.log_loss(truth, probability),
        "brier": metrics.brier_score_loss(truth, probability),
        "accuracy": metrics.accuracy_score(truth, called),
        "error": 1 - metrics.accuracy_score(truth, called),
        "recall": metrics.recall_score(truth, called),
        "precision": metrics.precision_score(truth, called),
        "positive_share": called.mean(),
        "calibration_difference": probability.mean() - truth.mean(),
    }
    for name, value in expected.items():
        found = find(evaluation, name)
        assert found.value == pytest.approx(value)
        assert found.low is not None
        assert found.high is not None
        assert found.low < value < found.high
    female = np.array(parts.holdout["sex"].to_pylist()) == "female"
    found = find(evaluation, "auc", "sex=female")
    assert found.value == pytest.approx(metrics.roc_auc_score(truth[female], probability[female]))
    assert find(evaluation, "recall", "sex=female").count == int(truth[female].sum())


def test_calibration_error_is_that_of_tenths(model: TabularClassifier, parts: Any, evaluation: Evaluation) -> None:
    truth = parts.holdout["target"].to_numpy()
    probability = model.predict(parts.holdout)["probability"].to_numpy()
    order = np.argsort(probability, kind="stable")
    gaps = [len(p) * abs(probability[p].mean() - truth[p].mean()) for p in np.array_split(order, 10)]
    found = find(evaluation, "expected_calibration_error")
    assert found.value == pytest.approx(sum(gaps) / len(truth))
    assert found.low is None


def test_references_stand_beside_the_model(model: TabularClassifier, parts: Any, evaluation: Evaluation) -> None:
    metrics = evaluation.metrics()
    share = model.references.base_rate
    assert metrics["reference_base_rate_auc"] == 0.5
    assert metrics["reference_base_rate_log_loss"] == pytest.approx(
        -np.mean(np.where(parts.holdout["target"].to_numpy() > 0, np.log(share), np.log(1 - share)))
    )
    assert metrics["log_loss"] < metrics["reference_base_rate_log_loss"]
    assert metrics["auc"] > metrics["reference_strongest_columns_auc"] > 0.6
    logistic = TabularClassifier.fit(parts.train, TabularClassifier.Params())
    assert metrics["reference_logistic_auc"] == logistic.evaluate(parts.holdout).metrics()["auc"]
    assert not [name for name in logistic.evaluate(parts.holdout).metrics() if name.startswith("reference_logistic")]
    assert len(model.references.strongest) == 3
    assert "checking_account" in [model.encoder.features[one] for one in model.references.strongest]


def test_search_gets_the_values_of_the_evaluation(model: TabularClassifier, parts: Any, evaluation: Evaluation) -> None:
    asked = ["log_loss", "auc", "reference_base_rate_log_loss"]
    assert list(model.measure(parts.holdout, asked)) == [find(evaluation, name) for name in asked]
    with pytest.raises(UsageError, match="write log_loss"):
        model.measure(parts.holdout, ["logloss"])


def test_rows_are_scored_one_by_one(model: TabularClassifier, parts: Any, evaluation: Evaluation) -> None:
    unknown = parts.holdout.slice(0, 3).set_column(1, "target", pa.nulls(3, pa.float64()))
    rows = model.score_rows(pa.concat_tables([parts.holdout, unknown]))
    assert rows is not None
    assert rows.task == "classification"
    assert rows.ids.to_pylist() == parts.holdout["row_id"].to_pylist()
    loss, error = rows.metrics
    assert (loss.name, error.name) == ("log_loss", "error")
    assert loss.values.mean() == pytest.approx(find(evaluation, "log_loss").value)
    assert error.values.mean() == pytest.approx(find(evaluation, "error").value)
    assert set(rows.attributes.column_names) == set(parts.holdout.column_names) - {"row_id", "target"}
    assert set(rows.answers.to_pylist()) == {"good", "bad"}
    assert list(rows.references) == ["logistic", "strongest_columns", "base_rate"]
    for name, values in rows.references.items():
        assert values.mean() == pytest.approx(evaluation.metrics()[f"reference_{name}_log_loss"])
    assert rows.probability is not None
    assert rows.truth is not None
    assert estimate_auc(rows.truth, rows.probability).value == find(evaluation, "auc").value


@pytest.mark.parametrize("kept", ["none", "one class"])
def test_cases_without_a_value_are_defined(model: TabularClassifier, parts: Any, kept: str) -> None:
    target = parts.holdout["target"].to_numpy()
    table = parts.holdout.slice(0, 0) if kept == "none" else parts.holdout.filter(pa.array(target == 0))
    found = model.evaluate(table)
    auc = find(found, "auc")
    assert auc.value is None
    assert auc.note == ("no rows" if kept == "none" else "rows of one class")
    assert find(found, "recall").value is None
    assert (find(found, "log_loss").value is None) == (kept == "none")
    for section in found.sections:
        assert "is not drawn" not in str(draw_section(section))


def test_table_without_classes_is_refused(model: TabularClassifier, parts: Any) -> None:
    with pytest.raises(DataError, match="no column target"):
        model.evaluate(parts.holdout.drop_columns("target"))


def test_report_draws_every_section(evaluation: Evaluation) -> None:
    titles = [section.title for section in evaluation.sections]
    assert titles == [
        "Against simpler methods",
        "Probabilities against what happened",
        "Answers and truth",
        "Wrong answers by slice",
    ]
    for section in evaluation.sections:
        assert "is not drawn" not in str(draw_section(section))
    assert Evaluation.from_dict(evaluation.to_dict()).measurements == evaluation.measurements


# The area under the curve.


def test_area_is_that_of_pairs_with_ties_counted_half() -> None:
    random = np.random.default_rng(2)
    truth, score = random.random(80) < 0.4, random.integers(0, 6, 80) / 5
    pairs = [(a > b) + 0.5 * (a == b) for a in score[truth] for b in score[~truth]]
    assert estimate_auc(truth, score).value == pytest.approx(np.mean(pairs))
    assert estimate_auc(truth, -score).value == pytest.approx(1 - np.mean(pairs))


def test_interval_of_the_area_holds_the_truth_as_often_as_it_says() -> None:
    """Normal scores a distance d apart have the area Phi(d / sqrt 2)."""
    from scipy.special import ndtr

    random = np.random.default_rng(3)
    held = []
    for distance, rows, share in ((0.8, 60, 0.3), (0.8, 300, 0.1), (2.0, 120, 0.5)):
        for _ in range(250):
            truth = np.arange(rows) < share * rows
            found = estimate_auc(truth, random.normal(size=rows) + distance * truth)
            assert found.low is not None
            assert found.high is not None
            held.append(found.low < ndtr(distance / np.sqrt(2)) < found.high)
    assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize(
    ("truth", "score", "value"),
    [([1, 1], [0.2, 0.3], None), ([0, 1, 1, 0], [0.1, 0.8, 0.9, 0.2], 1.0), ([1, 0], [1, 1], 0.5)],
)
def test_area_without_an_interval_is_defined(truth: list[int], score: list[float], value: float | None) -> None:
    found = estimate_auc(truth, score)
    assert (found.value, found.low, found.high) == (value, None, None)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="finite"):
        estimate_auc([0, 1], [0.1, np.nan])
