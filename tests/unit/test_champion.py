"""A new model against the version in use: paired losses whose intervals cover, and gates that know good from bad."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.decisions.gates import judge, read_gates
from mlflywheel.errors import DataError, UsageError
from mlflywheel.evaluation.champion import (
    compare_with_champion,
    compare_with_references,
    describe_seen_rows,
    no_champion,
)
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.evaluation.paired import estimate_loss, required_rows
from mlflywheel.evaluation.plan import ChampionPlan
from mlflywheel.models.contract import Evaluation, RowMetric, RowScores
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.reports import Report, render_report
from mlflywheel.rollouts.answer_differences import compare
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

LISTINGS = Path(__file__).resolve().parents[3] / "shared/data/used_cars/autoscout24_germany.csv.gz"
REFERENCE = "prices@3"
PLAN = ChampionPlan(minimum_count=3)

AD_CAMPAIGNS = """
schema: 1
gates:
  - {metric: champion_loss_neighbour_purity_at_10, at_most: 0.04, judge: interval, min_count: 300, when_missing: skip}
  - {metric: champion_loss_neighbour_purity_at_10, at_most: 0.04, judge: whole_interval, when_missing: skip}
  - {metric: champion_loss_hidden_keyword_recall_at_10, at_most: 0.03, judge: interval, min_count: 300,
     when_missing: skip}
  - {metric: champion_loss_out_of_vocabulary_share, at_most: 0.03, judge: interval, min_count: 300, when_missing: skip}
"""
VEHICLE_PRICES = """
schema: 1
gates:
  - {metric: champion_loss_absolute_relative_error, at_most: 0.005, judge: interval, min_count: 2000,
     when_missing: skip}
  - {metric: champion_loss_absolute_relative_error, at_most: 0.005, judge: whole_interval, when_missing: skip}
  - {metric: champion_loss_within_10_percent, at_most: 0.03, judge: interval, min_count: 2000, when_missing: skip}
  - {metric: champion_loss_absolute_relative_error, at_most: 0.02, judge: whole_interval,
     slices: [fuel, offer_type, age_band], min_count: 100, when_missing: skip}
"""


def score(errors, answers, *, task="regression", name="error", better="lower", bounds=None, **parts) -> RowScores:
    """Build what a model's rows got."""
    values = np.asarray(errors, dtype=np.float64)
    ids = pa.array([f"r{row}" for row in range(len(values))])
    colours = pa.array(["red" if row % 2 else "blue" for row in range(len(values))])
    defaults = {"ids": ids, "attributes": pa.table({"colour": colours, "number": np.arange(len(values)) * 1.0})}
    metric = RowMetric(name, values, better, bounds)
    return RowScores(task=task, metrics=(metric,), answers=pa.array(answers), **{**defaults, **parts})


def find(evaluation: Evaluation, metric: str, slice_name: str = "all"):
    (found,) = (one for one in evaluation.measurements if (one.metric, one.slice) == (metric, slice_name))
    return found


def test_a_loss_is_positive_where_the_new_model_is_worse():
    answers = [1.0] * 4
    ours, theirs = score([0.3, 0.3, 0.1, 0.3], answers), score([0.1, 0.2, 0.1, 0.1], answers)
    lower = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_loss_error")
    assert lower.value == pytest.approx(0.125)
    assert lower.low < 0.125 < lower.high
    assert lower.count == 4
    ours, theirs = (
        score(rows.metrics[0].values, answers, better="higher", bounds=(0.0, 1.0)) for rows in (ours, theirs)
    )
    higher = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_loss_error")
    assert higher.value == pytest.approx(-0.125)


def test_pairing_sees_what_two_separate_means_hide():
    random = np.random.default_rng(0)
    hard = random.exponential(0.1, 400)
    worse = hard + 0.01 + random.normal(0, 0.01, 400)
    ours, theirs = score(worse, np.ones(400)), score(hard, np.ones(400))
    found = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_loss_error")
    assert found.low > 0.008
    # The two means are 0.01 apart, and each is known to no more than 0.01.
    assert worse.mean() - hard.mean() < 2 * 1.96 * hard.std() / np.sqrt(400)


def test_every_value_of_a_grouping_is_compared_and_small_ones_say_why_not():
    ours, theirs = score([0.5, 0.2] * 5 + [0.5], np.ones(11)), score([0.1, 0.2] * 5 + [0.1], np.ones(11))
    groupings = [Grouping(name="colour"), Grouping(name="number", bands=(1, 9))]
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, groupings)
    assert find(evaluation, "champion_loss_error", "colour=blue").value == pytest.approx(0.4)
    red = find(evaluation, "champion_loss_error", "colour=red")
    assert (red.value, red.low, red.high, red.count) == (0.0, 0.0, 0.0, 5)
    few = find(evaluation, "champion_loss_error", "number=1 or less")
    assert (few.value, few.low, few.count) == (None, None, 2)
    assert few.note == "2 rows, 3 are needed; it is 0.2 on these"
    gate = read_gates(
        "schema: 1\ngates:\n"
        "  - {metric: champion_loss_error, at_most: 1, judge: interval, slices: [number], min_count: 3}"
    )
    results = {one.slice: one.holds for one in judge(gate, evaluation.measurements).results}
    assert results == {"number=1 or less": None, "number=above 1 to 9": True, "number=above 9": None}


def test_a_group_of_two_groupings_is_measured_once():
    ours, theirs = score([0.1] * 6, np.ones(6)), score([0.1] * 6, np.ones(6))
    groupings = [Grouping(name="number", bands=(2,)), Grouping(name="number", bands=(2, 4))]
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, groupings)
    names = [one.slice for one in evaluation.measurements if one.metric == "champion_loss_error"]
    assert len(names) == len(set(names)) == 5


def test_rows_without_a_value_of_both_are_left_out_and_counted():
    nan = np.nan
    ours, theirs = score([0.2, nan, nan, 0.2, nan], np.ones(5)), score([0.1, 0.1, 0.1, nan, nan], np.ones(5))
    found = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_loss_error")
    assert (found.value, found.low, found.count) == (pytest.approx(0.1), None, 1)
    assert found.note == (
        "4 of 5 rows are left out: 2 without this model's value, 1 without the champion's value, 1 without either value"
    )


def test_a_metric_that_no_row_has_is_none_with_a_note():
    ours, theirs = score([np.nan] * 3, np.ones(3)), score([0.1] * 3, np.ones(3))
    found = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_loss_error")
    assert (found.value, found.low, found.count) == (None, None, 0)
    assert found.note.startswith("no rows; 3 of 3 rows are left out")


def test_no_rows_at_all_are_no_error():
    ours, theirs = score([], pa.array([], pa.float64())), score([], pa.array([], pa.float64()))
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, [Grouping(name="colour")])
    assert all(one.value is None for one in evaluation.measurements)
    render_report(Report("Evaluation", {}, evaluation))


def test_an_infinite_loss_never_passes_a_gate():
    ours, theirs = score([0.1, np.inf, 0.1, 0.1], np.ones(4)), score([0.1] * 4, np.ones(4))
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, [])
    for kind in ("value", "interval", "whole_interval"):
        text = f"schema: 1\ngates:\n  - {{metric: champion_loss_error, at_most: 9, judge: {kind}, when_missing: skip}}"
        assert not judge(read_gates(text), evaluation.measurements).holds
    render_report(Report("Evaluation", {}, evaluation))


def test_metrics_that_only_one_model_has_are_named():
    ours, theirs = score([0.1] * 3, np.ones(3), name="new_error"), score([0.1] * 3, np.ones(3), name="old_error")
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, [])
    found = find(evaluation, "champion_loss_new_error")
    assert (found.value, found.note) == (None, "prices@3 does not measure new_error")
    assert "Only prices@3 measures old error." in evaluation.sections[0].text


def test_what_cannot_be_compared_is_refused_by_name():
    ours = score([0.1] * 3, np.ones(3), truth=np.ones(3))
    refused = {
        "its task is classification, the new model's regression": score([0.1] * 3, ["a"] * 3, task="classification"),
        "it scored 2 rows, the new model 3": score([0.1] * 2, np.ones(2)),
        "its row 2 is x, the new model's r1": score([0.1] * 3, np.ones(3), ids=pa.array(["r0", "x", "r2"])),
        "the true values are others there": score([0.1] * 3, np.ones(3), truth=np.zeros(3)),
        "higher values are better there, and lower ones here": score([0.1] * 3, np.ones(3), better="higher"),
    }
    for seen, theirs in refused.items():
        with pytest.raises(UsageError) as raised:
            compare_with_champion(ours, theirs, REFERENCE, PLAN, [])
        assert raised.value.seen == seen
        assert raised.value.where.startswith("champion prices@3")
    with pytest.raises(DataError, match="size"):
        compare_with_champion(ours, ours, REFERENCE, PLAN, [Grouping(name="size")])


def test_churn_of_classes_is_the_share_of_other_answers():
    ours = score([0.0] * 4, ["a", "b", None, None], task="classification")
    theirs = score([0.0] * 4, ["a", "a", None, "a"], task="classification")
    found = find(compare_with_champion(ours, theirs, REFERENCE, PLAN, []), "champion_churn")
    assert (found.value, found.count) == (0.5, 4)
    assert found.low < 0.5 < found.high


def test_churn_of_numbers_is_beyond_ten_percent_by_the_distance_of_the_rollouts():
    ours, theirs = (
        [100.0, 111.0, 112.0, -1.0, 0.0, 1e308, None, 5.0],
        [100.0, 100.0, 100.0, 1.0, 0.0, -1e308, None, None],
    )
    evaluation = compare_with_champion(
        score([0.0] * 8, pa.array(ours)), score([0.0] * 8, pa.array(theirs)), REFERENCE, PLAN, []
    )
    distances = [compare(one, other).distance for one, other in zip(theirs, ours, strict=True)]
    assert distances[1] < 0.1 < distances[2]
    assert find(evaluation, "champion_answer_change").value == pytest.approx(np.mean(distances))
    assert find(evaluation, "champion_churn").value == 4 / 8


def test_churn_of_lists_is_the_share_of_other_ids_whatever_their_order():
    ours, theirs = [["a", "b"], ["a", "b"], ["a"], [], None], [["b", "a"], ["a", "c"], ["a", "b", "c", "d"], [], []]
    evaluation = compare_with_champion(
        score([0.0] * 5, ours, task="recommendation"),
        score([0.0] * 5, theirs, task="recommendation"),
        REFERENCE,
        PLAN,
        [],
    )
    found = find(evaluation, "champion_churn")
    assert found.value == pytest.approx((0 + 0.5 + 0.75 + 0 + 0) / 5)
    overlaps = [compare(one, other).overlap for one, other in zip(theirs[:3], ours[:3], strict=True)]
    assert overlaps == [1.0, 0.5, 0.25]


def test_the_report_shows_both_models_and_the_slices():
    ours, theirs = score([0.3, 0.1] * 20, np.ones(40)), score([0.1] * 40, np.ones(40))
    caution = "The version in use learned from some of these rows."
    evaluation = compare_with_champion(ours, theirs, REFERENCE, PLAN, [Grouping(name="colour")], caution=caution)
    table, bars = evaluation.sections
    assert table.data["rows"][0][:3] == ["error (lower is better)", pytest.approx(0.1), pytest.approx(0.2)]
    assert caution in table.text
    assert [bar["label"] for bar in bars.data["groups"][0]["bars"]] == ["blue", "red"]
    assert "In 1 of 2 slices" in bars.text
    page = render_report(Report("Evaluation", {}, evaluation))
    assert "prices@3" in page
    assert Evaluation.from_dict(evaluation.to_dict()).measurements == evaluation.measurements


def test_without_a_champion_skipping_gates_pass_and_refusing_ones_refuse():
    evaluation = no_champion(score([0.1] * 3, np.ones(3)))
    assert {(one.metric, one.value, one.note) for one in evaluation.measurements} == {
        ("champion_loss_error", None, "no champion"),
        ("champion_churn", None, "no champion"),
        ("champion_answer_change", None, "no champion"),
    }
    assert "no version in use" in evaluation.sections[0].text
    gate = "schema: 1\ngates:\n  - {{metric: champion_loss_error, at_most: 0, judge: interval, when_missing: {}}}"
    assert judge(read_gates(gate.format("skip")), evaluation.measurements).holds
    refused = judge(read_gates(gate.format("refuse")), evaluation.measurements).refused
    assert "no champion" in refused[0].reason


def test_a_gain_is_positive_where_the_model_is_better_than_a_simpler_method():
    simpler = {"ridge": np.full(50, 0.3), "mean": np.full(50, 0.1)}
    evaluation = compare_with_references(score([0.2, 0.1] * 25, np.ones(50), references=simpler))
    ridge, mean = find(evaluation, "gain_over_ridge"), find(evaluation, "gain_over_mean")
    assert ridge.value == pytest.approx(0.15)
    assert ridge.low > 0 > mean.high
    assert "1 of 2 simpler methods" in evaluation.sections[0].text
    better = score([0.2] * 50, np.ones(50), references=simpler, better="higher")
    assert find(compare_with_references(better), "gain_over_ridge").value == pytest.approx(-0.1)
    assert compare_with_references(score([0.2], [1.0])) == Evaluation(())


def test_an_interval_of_a_metric_without_bounds_covers_heavy_tails():
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        base = 0.1 * random.standard_t(4, 120)
        ours, theirs = (np.abs(np.expm1(base + random.normal(0, 0.04, 120))).clip(max=5) for _ in range(2))
        found = estimate_loss(ours - theirs)
        missed += not found.low <= 0 <= found.high
    assert missed / 400 < 0.075


def test_rare_large_losses_do_not_slip_past_the_upper_end():
    random = np.random.default_rng(0)
    student, ours = 0, 0
    for _ in range(500):
        losses = (random.random(150) < 0.02).astype(float)
        found = estimate_loss(losses, 1.0)
        ours += found.high < 0.02
        student += losses.mean() + 1.976 * losses.std(ddof=1) / np.sqrt(150) < 0.02
    assert ours / 500 < 0.04
    assert student / 500 > 0.08


def test_rows_that_do_not_differ_prove_little_where_they_are_few():
    few, many = estimate_loss(np.zeros(50), 1.0), estimate_loss(np.zeros(5000), 1.0)
    assert few.high == pytest.approx(0.071, abs=0.001)
    assert many.high < 0.001
    assert estimate_loss(np.zeros(50)).high == 0.0


def test_equal_rows_have_no_skewness_to_correct():
    found = estimate_loss(np.full(3000, 0.1) * 3)
    assert (found.low, found.high) == (pytest.approx(0.3, abs=1e-9), pytest.approx(0.3, abs=1e-9))


def test_a_loss_beyond_the_metrics_bounds_is_refused():
    with pytest.raises(UsageError, match="one of 2, span 1"):
        estimate_loss([0.0, 2.0], 1.0)


def test_required_rows_let_nine_of_ten_equal_models_pass():
    rows = required_rows(0.01, 0.1)
    random = np.random.default_rng(1)
    passed = [estimate_loss(random.normal(0, 0.1, rows)).high <= 0.01 for _ in range(600)]
    assert 0.87 < np.mean(passed) < 0.93
    with pytest.raises(UsageError):
        required_rows(0.0, 0.1)


THEN = {"method": "random", "column": None, "seed": 0, "holdout_fraction": 0.2}


@pytest.mark.parametrize(
    ("change", "learned"),
    [
        ({}, ""),
        ({"holdout_fraction": 0.1}, ""),
        ({"holdout_fraction": 0.4}, "learned from about 50 % of these rows"),
        ({"seed": 1}, "learned from about 80 % of these rows: the split was another (seed 0 then and 1 now)"),
        ({"method": "grouped", "column": "make"}, "learned from about 80 %"),
        ({"method": "temporal", "column": "day"}, "learned from about 80 %"),
    ],
)
def test_another_split_is_told(change, learned):
    said = describe_seen_rows(THEN, {**THEN, **change})
    assert learned in said
    assert bool(said) == bool(learned)


def test_what_is_said_of_the_splits_is_what_they_do():
    table = pa.table({"id": [f"r{row}" for row in range(4000)]})
    trained = set(split(table.slice(0, 3000), "random", 0.2, 0).train["id"].to_pylist())

    def seen(fraction: float, seed: int) -> float:
        held_out = split(table.slice(0, 3000), "random", fraction, seed).holdout["id"].to_pylist()
        return np.mean([row in trained for row in held_out])

    assert seen(0.2, 0) == seen(0.1, 0) == 0
    assert seen(0.4, 0) == pytest.approx(0.5, abs=0.04)
    assert seen(0.2, 1) == pytest.approx(0.8, abs=0.04)
    # Rows that came later fall on either side, and old ones stay on theirs.
    assert not trained & set(split(table, "random", 0.2, 0).holdout["id"].to_pylist())


def test_a_temporal_split_that_only_moves_on_is_fair():
    then = {"method": "temporal", "column": "day", "seed": 0, "holdout_fraction": 0.2}
    assert describe_seen_rows(then, then) == ""
    assert "older of these rows" in describe_seen_rows(then, {**then, "holdout_fraction": 0.3})
    assert "not recorded" in describe_seen_rows(None, then)


def drop_half_of_the_words(table: pa.Table) -> pa.Table:
    """Remove every second word of the vocabulary from all terms."""
    dropped: dict[str, bool] = {}

    def keep(word: str) -> bool:
        return not dropped.setdefault(word, hashlib.blake2b(word.lower().encode()).digest()[0] < 128)

    terms = [
        [kept for term in own if (kept := " ".join(word for word in term.split() if keep(word)))]
        for own in table["terms"].to_pylist()
    ]
    weights = pa.array([[1.0] * len(own) for own in terms], pa.list_(pa.float32()))
    columns = {"terms": pa.array(terms, pa.list_(pa.string())), "weights": weights}
    return pa.table({name: columns.get(name, table[name]) for name in table.column_names})


@pytest.fixture(scope="module")
def campaigns():
    raw = generate_ad_campaigns(campaigns=3000)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    table = TopicFingerprints.prepare(named, PrepareConfig())
    parts = split(table, "random", 0.2, seed=0)
    params = FitParams(num_topics=12)

    def fit(train: pa.Table) -> RowScores:
        # What goes into service looks all campaigns up, whatever its topics were learned from.
        return TopicFingerprints.fit(train, params).extend(table).score_rows(parts.holdout)

    return parts.train, fit, fit(parts.train)


@pytest.mark.long
def test_campaign_gates_pass_a_retrain_on_a_resample(campaigns):
    train, fit, champion = campaigns
    drawn = np.sort(np.random.default_rng(0).integers(0, train.num_rows, train.num_rows))
    evaluation = compare_with_champion(fit(train.take(pa.array(drawn))), champion, "ad-campaigns@1", ChampionPlan(), [])
    verdict = judge(read_gates(AD_CAMPAIGNS), evaluation.measurements)
    assert verdict.holds, verdict.refused
    # It is another model all the same, and the gates did look at it.
    assert find(evaluation, "champion_churn").value > 0.2
    assert all(result.holds for result in verdict.results)


@pytest.mark.long
def test_campaign_gates_block_a_model_that_lost_half_of_the_vocabulary(campaigns):
    train, fit, champion = campaigns
    poor = fit(drop_half_of_the_words(train))
    evaluation = compare_with_champion(poor, champion, "ad-campaigns@1", ChampionPlan(), [])
    refused = {result.metric for result in judge(read_gates(AD_CAMPAIGNS), evaluation.measurements).refused}
    assert refused == {"champion_loss_neighbour_purity_at_10", "champion_loss_out_of_vocabulary_share"}
    assert find(evaluation, "champion_loss_out_of_vocabulary_share").low > 0.3


@pytest.fixture(scope="module")
def listings():
    if not LISTINGS.is_file():
        pytest.skip("needs shared/data/used_cars beside the checkout")
    raw = ingest(str(LISTINGS), VehiclePrice.columns, {"power": "hp", "offer_type": "offerType"}).table
    table = VehiclePrice.prepare(raw.slice(0, 20_000), VehiclePrice.Config())
    parts = split(table, "random", 0.2, 0, id_column="listing_id")

    def compare_fit(train: pa.Table, seed: int = 0) -> Evaluation:
        return compare_with_champion(fit(train, seed), champion, "vehicle-prices@1", ChampionPlan(), groupings)

    def fit(train: pa.Table, seed: int) -> RowScores:
        params = {"max_iter": 60, "calibration_folds": 2, "scale_iter": 10, "max_leaf_nodes": 31, "seed": seed}
        return VehiclePrice.fit(train, VehiclePrice.Params.model_validate(params)).score_rows(parts.holdout)

    groupings = [Grouping(name="fuel"), Grouping(name="offer_type"), Grouping(name="age_band")]
    champion = fit(parts.train, 0)
    return parts.train, compare_fit


def test_price_gates_pass_a_refit_with_another_seed(listings):
    train, compare_fit = listings
    evaluation = compare_fit(train, seed=1)
    verdict = judge(read_gates(VEHICLE_PRICES), evaluation.measurements)
    assert verdict.holds, verdict.refused
    assert find(evaluation, "champion_answer_change").value > 0.01


def test_price_gates_block_a_fit_on_a_fifth_of_the_listings(listings):
    train, compare_fit = listings
    fifth = np.sort(np.random.default_rng(0).choice(train.num_rows, train.num_rows // 5, replace=False))
    verdict = judge(read_gates(VEHICLE_PRICES), compare_fit(train.take(pa.array(fifth))).measurements)
    refused = {(result.metric, result.slice) for result in verdict.refused}
    assert ("champion_loss_absolute_relative_error", "all") in refused


def test_price_gates_block_a_fit_without_mileage_also_by_slice(listings):
    train, compare_fit = listings
    verdict = judge(read_gates(VEHICLE_PRICES), compare_fit(train.drop_columns(["mileage_km"])).measurements)
    refused = {(result.metric, result.slice) for result in verdict.refused}
    assert {
        ("champion_loss_absolute_relative_error", "all"),
        ("champion_loss_within_10_percent", "all"),
        ("champion_loss_absolute_relative_error", "fuel=Diesel"),
    } <= refused
