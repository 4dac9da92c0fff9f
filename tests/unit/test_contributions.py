"""Contributions add up to the answers, and what was planted stands first: for every model, by its own and by shap."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_campaigns import campaigns_of, plant_campaigns
from planted_drivers import PLANTED, QUICK, Linear, draw_line, plant_one_driver
from planted_listings import plant_listings

from mlflywheel.errors import DataError, MissingExtraError, ModelError, UsageError
from mlflywheel.evaluation.contributions import (
    check_additivity,
    compare_rankings,
    compare_with_predictions,
    describe,
    describe_factor,
    measure_contributions,
    pick_rows,
    read_contributions,
    summarize_contributions,
)
from mlflywheel.evaluation.plan import ExplanationPlan
from mlflywheel.evaluation.shapley import explain_function, explain_with_shap
from mlflywheel.models.contract import Evaluation, Model
from mlflywheel.models.topic_fingerprints.model import TopicFingerprints
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.models.vehicle_price.fitting import FitParams
from mlflywheel.reports import Report, render_report

PLAN = ExplanationPlan()


def prepare(raw: pa.Table) -> pa.Table:
    return VehiclePrice.prepare(raw, VehiclePrice.Config.model_validate({"reference_year": 2021}))


@pytest.fixture(scope="module")
def prices() -> tuple[Model, pa.Table]:
    model = VehiclePrice.fit(prepare(plant_listings(600)), FitParams.model_validate(QUICK))
    return model, prepare(plant_listings(200, seed=1))


@pytest.fixture(scope="module", params=["rotated-lsa", "lda"])
def topics(request: pytest.FixtureRequest) -> tuple[Model, pa.Table]:
    params = TopicFingerprints.Params.model_validate({"num_topics": 8, "algorithm": request.param})
    return TopicFingerprints.fit(plant_campaigns(), params), plant_campaigns(40, seed=5, prefix="h")


class Classifier(Linear):
    """Log odds of two features, in the shape of a classifier: `x` counts four times as much as `unread`."""

    def __init__(self, wrong_by: float = 0.0) -> None:
        super().__init__(task="classification")
        self.wrong_by = wrong_by

    def weigh(self, table: pa.Table) -> np.ndarray:
        return np.stack([2.0 * table["x"].to_numpy(), 0.5 * table["unread"].to_numpy()], axis=1)

    def predict(self, table: pa.Table, progress: Any = None) -> pa.Table:
        return pa.table({"probability": 1 / (1 + np.exp(-(0.3 + self.weigh(table).sum(axis=1))))})

    def explain(self, table: pa.Table) -> pa.Table:
        parts = self.weigh(table) + np.array([self.wrong_by, 0.0])
        values = np.stack([table["x"].to_numpy(), table["unread"].to_numpy()], axis=1)
        drivers = [
            [
                {"feature": name, "value": f"{value:.3g}", "contribution": part}
                for name, value, part in zip(("x", "unread"), row, own, strict=True)
            ]
            for row, own in zip(values, parts, strict=True)
        ]
        kind = pa.struct([("feature", pa.string()), ("value", pa.string()), ("contribution", pa.float64())])
        return pa.table(
            {
                "row_id": table["row_id"],
                "log_odds": 0.3 + self.weigh(table).sum(axis=1),
                "base_log_odds": np.full(table.num_rows, 0.3),
                "drivers": pa.array(drivers, pa.list_(kind)),
            }
        )


def assert_adds_up(model: Model, table: pa.Table, error: float) -> None:
    found = read_contributions(model, table)
    assert check_additivity(found) <= error
    beside_answers = compare_with_predictions(model, table, found)
    assert beside_answers is not None
    assert beside_answers <= error


def test_parts_of_a_price_add_up_to_it(prices: tuple[Model, pa.Table]) -> None:
    assert_adds_up(*prices, error=1e-12)


def test_parts_of_every_topic_add_up_to_its_share(topics: tuple[Model, pa.Table]) -> None:
    assert_adds_up(*topics, error=1e-6)


def test_parts_of_log_odds_add_up_to_the_probability() -> None:
    assert_adds_up(Classifier(), draw_line(50, 0), error=1e-12)


def test_parts_that_do_not_add_up_are_measured() -> None:
    table = draw_line(50, 0)
    model = Classifier(wrong_by=0.25)
    assert check_additivity(read_contributions(model, table)) == pytest.approx(0.25)
    (measured,) = measure_contributions(model, table, model.score_rows(table), PLAN).measurements
    assert measured.value == pytest.approx(0.25)
    assert "50 of 50 differ" in measured.note


def test_answers_that_are_moved_to_their_bounds_are_counted(prices: tuple[Any, pa.Table]) -> None:
    model, table = prices
    narrow = copy.copy(model)
    logs = np.sort(model.price(table).raw_log_price)
    fitted = copy.copy(model.fitted)
    bounded = copy.copy(fitted.intervals)
    object.__setattr__(bounded, "clip", lambda values: np.minimum(values, logs[-3]))
    object.__setattr__(fitted, "intervals", bounded)
    narrow.fitted = fitted
    (measured,) = measure_contributions(narrow, table, narrow.score_rows(table), PLAN).measurements
    assert measured.value == pytest.approx(logs[-1] - logs[-3])
    assert "2 of 200 differ" in measured.note


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("driver", PLANTED)
def test_the_only_driver_of_prices_contributes_most(driver: str, seed: int) -> None:
    model = VehiclePrice.fit(plant_one_driver(driver, 500, seed), FitParams.model_validate({**QUICK, "seed": seed}))
    summary = summarize_contributions(read_contributions(model, plant_one_driver(driver, 300, seed)))
    assert summary[0].feature == driver
    # A model is read together with its make, so part of what the make says comes by the model's name.
    assert summary[0].mean_absolute > (1.5 if driver == "make" else 5) * summary[1].mean_absolute
    assert summary[0].output == "log_price"


@pytest.mark.parametrize("vertical", ["plumbing", "shoes", "gardening"])
def test_a_planted_term_drives_the_topic_of_its_vertical(topics: tuple[Any, pa.Table], vertical: str) -> None:
    model, _ = topics
    planted = f"{vertical}1 {vertical}2"
    table = campaigns_of([planted, "common1 common2", "unheard of"], [planted, "common3", "never seen"])
    summary = summarize_contributions(read_contributions(model, table))
    assert summary[0].feature == planted
    assert summary[0].count == 2
    assert vertical in summary[0].output
    assert "unheard of" not in [one.feature for one in summary if one.mean_absolute]


def test_the_mean_is_over_all_rows_and_sums_the_outputs_of_a_row(topics: tuple[Any, pa.Table]) -> None:
    model, _ = topics
    alone = summarize_contributions(read_contributions(model, campaigns_of(["shoes1 shoes2"])))
    beside = summarize_contributions(read_contributions(model, campaigns_of(["shoes1 shoes2"], ["travel1"])))
    found = {one.feature: one for one in beside}["shoes1 shoes2"]
    assert found.mean_absolute == pytest.approx(alone[0].mean_absolute / 2)
    assert found.count == 1
    rows = model.explain(campaigns_of(["shoes1 shoes2"])).to_pylist()
    assert alone[0].mean_absolute == pytest.approx(sum(row["terms"][0]["contribution"] for row in rows if row["terms"]))


def test_rows_are_shown_from_the_best_to_the_worst(prices: tuple[Model, pa.Table]) -> None:
    model, table = prices
    rows = model.score_rows(table)
    assert rows is not None
    found = measure_contributions(model, table, rows, ExplanationPlan(shown=5))
    bars, cards = found.sections
    assert (bars.kind, cards.kind) == ("bars", "cards")
    shown = [card["title"] for card in cards.data["cards"]]
    error = dict(zip(rows.ids.to_pylist(), rows.metrics[0].values.tolist(), strict=True))
    ordered = sorted(error, key=lambda name: error[name])
    assert [shown[0], shown[-1]] == [ordered[0], ordered[-1]]
    assert [error[name] for name in shown] == sorted(error[name] for name in shown)
    assert [card["subtitle"].split(":")[0] for card in cards.data["cards"]] == [
        "Best", "Better than 75%", "Typical", "Better than 25%", "Worst",
    ]  # fmt: skip
    items = cards.data["cards"][0]["blocks"][0]["items"]
    assert items[0]["text"] == "base"
    assert sum(item["value"] for item in items[:-1]) == pytest.approx(items[-1]["value"], abs=0.005)
    assert items[-1]["note"].startswith("price ")


def test_the_sections_can_be_drawn(topics: tuple[Model, pa.Table]) -> None:
    model, table = topics
    rows = model.score_rows(table)
    assert rows is not None
    found = measure_contributions(model, table, rows, PLAN)
    page = render_report(Report("x", {"status": "succeeded", "metrics": {}, "gates": []}, found))
    assert "What the model goes by" in page
    assert found.sections[1].data["cards"][0]["title"] in page


def test_what_cannot_be_explained_is_none_with_a_reason() -> None:
    model = Linear()
    table = draw_line(20, 0)
    rows = model.score_rows(table)
    (unread,) = measure_contributions(model, table, rows, PLAN).measurements
    assert unread.value is None
    assert "Linear.explain: columns" in unread.note
    with pytest.raises(ModelError, match="return contributions in the shape"):
        read_contributions(model, table)
    (empty,) = measure_contributions(
        Classifier(), table.slice(0, 0), model.score_rows(table.slice(0, 0)), PLAN
    ).measurements
    assert (empty.value, empty.note) == (None, "no held-out row with a truth")
    assert measure_contributions(model, table, rows, ExplanationPlan(rows=0)) == Evaluation(())


def test_no_rows_have_no_contributions(prices: tuple[Model, pa.Table], topics: tuple[Model, pa.Table]) -> None:
    for model, table in (prices, topics):
        found = read_contributions(model, table.slice(0, 0))
        assert (len(found), found.rows, check_additivity(found)) == (0, 0, 0.0)
        assert summarize_contributions(found) == ()
        assert found.to_table().num_rows == 0


def test_the_table_holds_what_the_rows_hold(topics: tuple[Model, pa.Table]) -> None:
    model, table = topics
    found = read_contributions(model, table)
    rows = found.to_table().to_pylist()
    assert len(rows) == table.num_rows * 8
    second = {row["output"]: row for row in rows if row["id"] == table["campaign_id"][1].as_py()}
    for one in found.of_row(1):
        assert second[one["output"]]["share"] == one["share"]
        assert second[one["output"]]["contributions"] == one["contributions"]


def test_a_row_that_is_not_there_is_refused_with_ids_like_it(prices: tuple[Model, pa.Table]) -> None:
    model, table = prices
    assert pick_rows(model, table, ["l000003"])["listing_id"].to_pylist() == ["l000003"]
    assert pick_rows(model, table, []) is table
    with pytest.raises(DataError, match=r"row l0003: not among the 200 prepared rows.*Fix: write l0000?"):
        pick_rows(model, table, ["l000003", "l0003"])
    with pytest.raises(DataError, match="take one such as r0, r1, r2"):
        pick_rows(Classifier(), draw_line(5, 0), ["?"])


def test_rankings_are_compared_by_what_they_share() -> None:
    assert compare_rankings({"a": 3, "b": 2, "c": 1}, {"a": 1, "b": 2, "c": 3}) == -1.0
    assert compare_rankings({"a": 3, "b": 2}, {"a": 1, "b": 2}) is None
    assert compare_rankings({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}) is None


def test_quantities_are_said_in_plain_units() -> None:
    assert describe("log_odds", -800.0) == "probability 0"
    assert describe_factor("log_price", np.log(1.1)) == "times 1.1"
    assert describe_factor("share", 0.1) == ""


@pytest.mark.long
def test_shap_finds_what_the_models_own_contributions_find() -> None:
    pytest.importorskip("shap", reason="the extra explain is not installed")
    table = plant_one_driver("power_hp", 300, 0)
    model = VehiclePrice.fit(plant_one_driver("power_hp", 500, 0), FitParams.model_validate(QUICK))
    state = np.random.get_state()[1].tolist()
    found = explain_with_shap(model, table.slice(0, 2), table, permutations=1)
    assert np.random.get_state()[1].tolist() == state
    assert check_additivity(found) == pytest.approx(0.0, abs=1e-9)
    assert summarize_contributions(found)[0].feature == "power_hp"
    own = read_contributions(model, table.slice(0, 2))
    mine, theirs = ({p["feature"]: p for p in one.of_row(0)[0]["contributions"]} for one in (own, found))
    assert set(mine) == set(theirs)
    assert theirs["power_hp"]["value"] == mine["power_hp"]["value"]
    assert theirs["power_hp"]["contribution"] == pytest.approx(mine["power_hp"]["contribution"], abs=0.1)


def test_shap_of_a_linear_function_is_its_terms() -> None:
    pytest.importorskip("shap", reason="the extra explain is not installed")
    table = draw_line(40, 0)
    model = Classifier()
    found = explain_with_shap(model, table.slice(0, 4), table.slice(0, 40), permutations=1)
    own = read_contributions(model, table.slice(0, 4))
    centre = {"x": 2.0 * np.mean(table["x"].to_numpy()), "unread": 0.5 * np.mean(table["unread"].to_numpy())}
    for row in range(4):
        mine = {part["feature"]: part["contribution"] for part in own.of_row(row)[0]["contributions"]}
        theirs = {part["feature"]: part["contribution"] for part in found.of_row(row)[0]["contributions"]}
        for name, value in theirs.items():
            assert value == pytest.approx(mine[name] - centre[name], abs=1e-6)


def test_shap_is_refused_where_it_says_nothing(prices: tuple[Model, pa.Table], topics: tuple[Model, pa.Table]) -> None:
    model, table = topics
    with pytest.raises(UsageError, match="gives 8 numbers a row"):
        explain_with_shap(model, table, table)
    pytest.importorskip("shap", reason="the extra explain is not installed")
    model, table = prices
    with pytest.raises(DataError, match="9 background rows; at least 10"):
        explain_with_shap(model, table, table.slice(0, 9))


def test_a_missing_shap_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shap", None)
    table = draw_line(20, 0)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlflywheel\[explain\]'"):
        explain_function(lambda rows: rows["x"].to_numpy(), (), table, table, ids=table["row_id"], quantity="x")
