"""Permutation importance finds what a model needs, and leaves alone what it must not touch."""

import pyarrow as pa
import pytest
from planted_campaigns import plant_campaigns
from planted_drivers import PLANTED, QUICK, Linear, draw_line, plant_one_driver

from mlflywheel.evaluation.importance import find_features, measure_importance
from mlflywheel.evaluation.plan import ExplanationPlan
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.models.topic_fingerprints.model import TopicFingerprints
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.models.vehicle_price.fitting import FitParams

PLAN = ExplanationPlan()


def importance_of(found: Evaluation) -> dict[str, Measurement]:
    assert {one.metric for one in found.measurements} <= {"feature_importance"}
    return {one.slice.removeprefix("feature="): one for one in found.measurements}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("driver", PLANTED)
def test_the_only_driver_of_prices_ranks_first(driver: str, seed: int) -> None:
    model = VehiclePrice.fit(plant_one_driver(driver, 500, seed), FitParams.model_validate({**QUICK, "seed": seed}))
    holdout = plant_one_driver(driver, 300, seed)
    rows = model.score_rows(holdout)
    found = measure_importance(model, holdout, rows, PLAN, seed)
    assert found.measurements[0].slice == f"feature={driver}"
    values = importance_of(found)
    top = values.pop(driver)
    assert top.value is not None
    assert top.low is not None
    assert 0 < top.low < top.value
    assert all(one.value is not None and abs(one.value) < 0.1 * top.value for one in values.values())
    assert not {"price", "listing_id", "flags"} & set(values)
    (section,) = found.sections
    assert section.kind == "bars"
    assert [bar["label"] for bar in section.data["bars"]] == [driver, *values]
    assert "share their importance" in section.text


@pytest.fixture(scope="module")
def topics() -> TopicFingerprints:
    return TopicFingerprints.fit(plant_campaigns(), TopicFingerprints.Params.model_validate({"num_topics": 8}))


def test_terms_move_with_their_weights_and_what_they_are_judged_by_stays(topics: TopicFingerprints) -> None:
    holdout = plant_campaigns(60, seed=5, prefix="h")
    found = measure_importance(topics, holdout, topics.score_rows(holdout), PLAN)
    (terms,) = found.measurements
    assert terms.slice == "feature=terms"
    assert "together with weights" in terms.note
    # Six verticals: with other campaigns' terms a neighbour is right by chance.
    assert terms.value == pytest.approx(1 - 1 / 6, abs=0.1)
    assert "vertical" not in found.sections[0].text


def test_importance_is_not_told_where_the_columns_are_the_truth_themselves(topics: TopicFingerprints) -> None:
    holdout = plant_campaigns(60, seed=5, prefix="h").drop_columns(["vertical"])
    rows = topics.score_rows(holdout)
    assert rows.metrics[0].name == "hidden_keyword_recall_at_10"
    (terms,) = measure_importance(topics, holdout, rows, PLAN).measurements
    assert terms.value is None
    assert "measured from the same columns" in terms.note


def measure(model: Linear, table: pa.Table, plan: ExplanationPlan = PLAN, seed: int = 0) -> Evaluation:
    return measure_importance(model, table, model.score_rows(table), plan, seed)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_columns_of_an_open_model_count_by_the_answers_that_they_change(task: str) -> None:
    found = measure(Linear(task=task), draw_line(200, 0))
    assert list(importance_of(found)) == ["x"]
    text = found.sections[0].text
    assert "Permuting unread, constant changed no answer." in text
    assert "Permuting y changed the truth and was left out." in text


def test_the_interval_holds_the_true_importance() -> None:
    # E (x' - y)^2 - E (x - y)^2 = 2 for independent x, x' of variance 1.
    held = 0
    for seed in range(300):
        (one,) = measure(Linear(), draw_line(150, seed), ExplanationPlan(repeats=2), seed).measurements
        assert one.low is not None
        assert one.high is not None
        held += one.low <= 2.0 <= one.high
    # Three standard errors below the nominal 95 %; the rows' own rises alone give 81 %.
    assert held / 300 > 0.91


def test_a_model_that_does_better_without_a_column_gets_less_than_nothing_or_no_value() -> None:
    (one,) = measure(Linear(slope=-1.0), draw_line(300, 0)).measurements
    assert one.value is None
    assert "no better than chance" in one.note


def test_only_rows_with_a_truth_are_drawn_and_the_seed_decides_which() -> None:
    table = draw_line(100, 0)
    y = [None if number % 2 else value for number, value in enumerate(table["y"].to_pylist())]
    table = table.set_column(table.column_names.index("y"), "y", pa.array(y))
    plan = ExplanationPlan(rows=20, repeats=1)
    model = Linear()
    rows = model.score_rows(table)
    drawn = []
    for seed in (0, 0, 1):
        model.asked.clear()
        (one,) = measure_importance(model, table, rows, plan, seed).measurements
        assert one.count == 20
        drawn.append(model.asked[0]["row_id"].to_pylist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= set(rows.ids.to_pylist())


def test_a_columns_value_does_not_depend_on_which_others_there_are() -> None:
    table = draw_line(200, 0)
    (one,) = measure(Linear(), table).measurements
    (other,) = measure(Linear(), table.drop_columns(["unread"])).measurements
    assert one == other


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (draw_line(1, 0), "2 held-out rows with a truth are needed"),
        (draw_line(0, 0), "2 held-out rows with a truth are needed"),
        (draw_line(50, 0).set_column(1, "x", pa.array([1.0] * 50)), "changed no answer"),
        (draw_line(50, 0).set_column(1, "x", pa.array([float("nan")] * 50)), "not defined for any of the rows"),
    ],
    ids=["one row", "no rows", "one value", "undefined metric"],
)
def test_what_cannot_be_measured_is_none_with_a_reason(table: pa.Table, note: str) -> None:
    (one,) = measure(Linear(), table).measurements
    assert (one.slice, one.value, one.about) == ("all", None, "explanations")
    assert note in one.note


def test_no_rows_in_the_plan_measure_nothing() -> None:
    assert measure(Linear(), draw_line(50, 0), ExplanationPlan(rows=0)) == Evaluation(())


def test_lists_are_one_feature_where_they_run_in_parallel() -> None:
    table = pa.table(
        {
            "row_id": ["a", "b"],
            "terms": [["x"], ["y", "z"]],
            "weights": [[1.0], [2.0, 3.0]],
            "others": [["x", "y"], ["z"]],
            "number": [1, 2],
        }
    )
    assert [feature.columns for feature in find_features(Linear(), table, "row_id")] == [
        ("terms", "weights"),
        ("others",),
        ("number",),
    ]
