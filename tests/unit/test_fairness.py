"""Answers by group: values as fairlearn and the data's sources have them, gaps that gates can act on, bad input."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from mlflywheel.decisions.gates import Verdict, judge, read_gates
from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.evaluation.fairness import measure_fairness
from mlflywheel.evaluation.plan import FairnessPlan, read_plan
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores
from mlflywheel.reports import Report, render_report

GERMAN_CREDIT = Path(__file__).parents[3] / "shared" / "data" / "fairness" / "german_credit.csv"
GATES = """
schema: 1
gates:
  - {metric: unscored_share, at_most: 0}
  - {metric: selection_rate_gap_rise, at_most: 0.05, slices: [between], judge: whole_interval, when_missing: skip}
  - {metric: equal_opportunity_gap_rise, at_most: 0.05, judge: whole_interval, when_missing: skip}
"""


def classify(
    probability: np.ndarray, truth: np.ndarray | None, groups: dict[str, Any], ids: list[str] | None = None
) -> RowScores:
    names = ids or [f"row{n}" for n in range(len(probability))]
    error = np.abs(probability - (truth if truth is not None else 0.5))
    return RowScores(
        "classification",
        pa.array(names, pa.string()),
        pa.table(groups),
        (RowMetric("absolute_error", error, "lower", (0.0, 1.0)),),
        pa.array(["yes" if p >= 0.5 else "no" for p in probability], pa.string()),
        truth,
        probability,
    )


def plan_of(*groups: str, minimum_count: int = 50) -> FairnessPlan:
    return read_plan(f"schema: 1\nfairness: {{groups: [{', '.join(groups)}], minimum_count: {minimum_count}}}").fairness


def by_name(evaluation: Evaluation) -> dict[tuple[str, str], Measurement]:
    found = {(m.metric, m.slice): m for m in evaluation.measurements}
    assert len(found) == len(evaluation.measurements)
    return found


def judge_rise(new: RowScores, plan: FairnessPlan, champion: RowScores) -> Verdict:
    return judge(read_gates(GATES), measure_fairness(new, plan, champion, "credit@3").measurements)


def draw_champion(seed: int, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw true classes, and probabilities that know something of them and nothing of the group."""
    random = np.random.default_rng(seed)
    truth = (random.random(len(groups)) < 0.5).astype(float)
    return truth, np.clip(0.3 + 0.4 * truth + random.normal(0, 0.2, len(groups)), 0.0, 1.0)


def retrain(probability: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.05, len(probability))
    return np.clip(probability + noise, 0.0, 1.0)


@pytest.fixture(scope="module")
def credit() -> pa.Table:
    if not GERMAN_CREDIT.is_file():
        pytest.skip(f"{GERMAN_CREDIT.name} is not on this machine")
    return pa.csv.read_csv(GERMAN_CREDIT)


def test_gap_of_german_credits_own_labels_is_that_of_its_sources(credit: pa.Table) -> None:
    good = (np.asarray(credit["credit"]) == 1).astype(float)
    plan = plan_of("{age: [25]}")
    found = by_name(measure_fairness(classify(good, good, {"age": credit["age"]}), plan))
    young, old = found["selection_rate", "age=25 or less"], found["selection_rate", "age=above 25"]
    assert young.value is not None
    assert old.value is not None
    assert (round(young.value, 3), round(old.value, 3)) == (0.579, 0.728)
    assert (young.count, old.count) == (190, 810)
    gap, ratio = found["selection_rate_gap", "between=age"], found["selection_rate_ratio", "between=age"]
    assert gap.value is not None
    assert ratio.value is not None
    assert round(young.value - old.value, 3) == -0.149
    assert gap.value == pytest.approx(old.value - young.value, abs=1e-12)
    assert round(ratio.value, 3) == 0.795
    assert gap.low is not None
    assert gap.low > 0.05
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 0.8 < ratio.high
    assert gap.note == "highest 0.7284 for above 25 (810 rows), lowest 0.5789 for 25 or less (190 rows)"


def test_bias_planted_in_german_credit_is_refused_with_everything_that_is_behind_it(credit: pa.Table) -> None:
    good = (np.asarray(credit["credit"]) == 1).astype(float)
    champion = np.clip(0.3 + 0.4 * good + np.random.default_rng(0).normal(0, 0.15, len(good)), 0, 1)
    young = np.asarray(credit["age"]) <= 25
    planted = np.where(young, champion - 0.25, champion).clip(0, 1)
    attributes = {"age": credit["age"], "status": credit["personal_status"]}
    plan = plan_of("{age: [25]}", "status")
    rows, before = classify(planted, good, attributes), classify(champion, good, attributes)
    verdict = judge_rise(rows, plan, before)
    refused = {result.slice: result for result in verdict.refused if result.metric == "selection_rate_gap_rise"}
    # Only the column that the bias was planted in is refused.
    assert list(refused) == ["between=age"]
    rise = by_name(measure_fairness(rows, plan, before, "credit@3"))["selection_rate_gap_rise", "between=age"]
    assert rise.value is not None
    assert rise.low is not None
    assert rise.low > 0.05
    reason = refused["between=age"].reason
    assert reason.startswith(
        f"selection_rate_gap_rise {rise.value:.4g} ({rise.low:.4g} to {rise.high:.4g}) is above 0.05 with its whole "
        "interval on slice between=age: now highest "
    )
    rates = {name: (planted >= 0.5)[mask].mean() for name, mask in (("25 or less", young), ("above 25", ~young))}
    for name, rate in rates.items():
        assert f"{rate:.4g} for {name} (" in reason
    assert "; credit@3 highest " in reason
    assert f"{(champion >= 0.5)[~young].mean():.4g} for above 25 (810 rows)" in reason
    assert not any(measured.metric == "equal_opportunity_gap_rise" and measured.holds for measured in verdict.results)


def test_noise_in_a_group_of_40_rows_is_refused_by_its_value_and_not_by_its_interval() -> None:
    groups = np.array(["a"] * 960 + ["b"] * 40)
    plan = plan_of("column", minimum_count=30)
    by_value = GATES.replace(", judge: whole_interval", "")
    refused = {"interval": 0, "value": 0}
    for seed in range(15):
        truth, champion = draw_champion(seed, groups)
        random = np.random.default_rng(1000 + seed)
        # Another model whose answers differ in one row of five, in both groups alike.
        new = np.where(random.random(1000) < 0.2, 1 - champion, champion)
        scores = [classify(p, truth, {"column": groups.tolist()}) for p in (new, champion)]
        measured = measure_fairness(scores[0], plan, scores[1], "credit@3").measurements
        refused["interval"] += not judge(read_gates(GATES), measured).holds
        refused["value"] += not judge(read_gates(by_value), measured).holds
    assert refused["interval"] == 0
    assert refused["value"] >= 4


def test_unchanged_model_with_a_gap_holds_against_its_champion() -> None:
    groups = np.array(["a"] * 500 + ["b"] * 500)
    truth, champion = draw_champion(3, groups)
    champion = np.where(groups == "b", champion - 0.2, champion).clip(0, 1)
    scores = [classify(p, truth, {"column": groups.tolist()}) for p in (retrain(champion, 4), champion)]
    assert judge_rise(scores[0], plan_of("column"), scores[1]).holds
    found = by_name(measure_fairness(scores[0], plan_of("column")))
    assert (found["selection_rate_gap", "between=column"].low or 0) > 0.1


@pytest.mark.parametrize("groups", [2, 5])
def test_values_agree_with_fairlearn(groups: int) -> None:
    from fairlearn import metrics

    random = np.random.default_rng(groups)
    names = random.choice([f"g{n}" for n in range(groups)], 2000)
    truth = (random.random(2000) < 0.4).astype(float)
    probability = np.clip(0.4 + 0.2 * truth + random.normal(0, 0.3, 2000), 0, 1)
    found = by_name(measure_fairness(classify(probability, truth, {"c": names.tolist()}), plan_of("c")))
    given = {"y_true": truth, "y_pred": (probability >= 0.5).astype(float), "sensitive_features": names}
    expected = {
        "selection_rate_gap": metrics.demographic_parity_difference(**given),
        "selection_rate_ratio": metrics.demographic_parity_ratio(**given),
        "equal_opportunity_gap": metrics.equal_opportunity_difference(**given),
        "equalized_odds_gap": metrics.equalized_odds_difference(**given),
    }
    for metric, value in expected.items():
        for where in ("between=c", "all"):
            assert found[metric, where].value == pytest.approx(value, abs=1e-12)
    for metric, function in (
        ("selection_rate", metrics.selection_rate),
        ("true_positive_rate", metrics.true_positive_rate),
        ("false_positive_rate", metrics.false_positive_rate),
    ):
        frame = metrics.MetricFrame(metrics=function, **given)
        for name, value in frame.by_group.items():
            one = found[metric, f"c={name}"]
            assert one.value == pytest.approx(value, abs=1e-12)
            assert one.low is not None
            assert one.high is not None
            assert one.low < value < one.high
    for name in np.unique(names):
        kept = names == name
        difference = probability[kept].mean() - truth[kept].mean()
        assert found["calibration_difference", f"c={name}"].value == pytest.approx(difference, abs=1e-12)
        assert found["absolute_error", f"c={name}"].value == pytest.approx(
            np.abs(probability - truth)[kept].mean(), abs=1e-12
        )


def test_threshold_decides_who_is_selected() -> None:
    probability, truth = np.tile([0.2, 0.4, 0.6, 0.8], 50), np.tile([0.0, 1.0], 100)
    rows = classify(probability, truth, {"c": ["a", "b"] * 100})
    at = plan_of("c").model_copy(update={"decision_threshold": 0.6})
    assert by_name(measure_fairness(rows, at))["selection_rate", "c=a"].value == 0.5
    above = at.model_copy(update={"decision_threshold": 0.61})
    assert by_name(measure_fairness(rows, above))["selection_rate", "c=a"].value == 0.0


def test_worst_column_stands_for_all_with_an_interval_for_all_columns() -> None:
    random = np.random.default_rng(0)
    truth, probability = draw_champion(0, np.zeros(1200))
    columns = {"near": random.choice(["a", "b"], 1200).tolist(), "far": np.where(probability > 0.4, "c", "d").tolist()}
    found = by_name(measure_fairness(classify(probability, truth, columns), plan_of("near", "far")))
    far, both = found["selection_rate_gap", "between=far"], found["selection_rate_gap", "all"]
    assert far.value == both.value
    assert both.note == f"by far: {far.note}"
    assert both.low is not None
    assert far.low is not None
    assert both.low < far.low
    ratios, worst = (
        [found["selection_rate_ratio", f"between={name}"] for name in columns],
        found["selection_rate_ratio", "all"],
    )
    assert worst.value == min(ratio.value or 0 for ratio in ratios)
    assert [ratio.high or 0 for ratio in ratios] == [1.0, pytest.approx(worst.high, abs=0.05)]
    assert (worst.low or 0) <= min(ratio.low or 0 for ratio in ratios)


def test_small_and_missing_groups_are_measured_and_in_no_gap() -> None:
    truth, probability = draw_champion(1, np.zeros(430))
    probability[400:] = 0.0
    names = ["a"] * 200 + ["b"] * 200 + ["few"] * 15 + [None] * 15
    found = by_name(measure_fairness(classify(probability, truth, {"c": names}), plan_of("c")))
    for name in ("few", "missing"):
        assert found["selection_rate", f"c={name}"].value == 0.0
        assert found["selection_rate", f"c={name}"].note == "in no gap: 15 rows, 50 are needed"
    gap = found["selection_rate_gap", "between=c"]
    assert gap.count == 400
    assert gap.value is not None
    assert gap.value < 0.2
    assert gap.note.endswith("; in no gap: few (15 rows), missing (15 rows)")
    large = by_name(measure_fairness(classify(probability, truth, {"c": names}), plan_of("c", minimum_count=15)))
    assert "lowest 0 for few (15 rows)" in large["selection_rate_gap", "between=c"].note
    assert large["selection_rate_gap", "between=c"].count == 430


def test_groups_without_a_positive_are_left_out_of_equal_opportunity_alone() -> None:
    truth, probability = draw_champion(2, np.zeros(300))
    truth[200:] = 0.0
    rows = classify(probability, truth, {"c": ["a"] * 100 + ["b"] * 100 + ["none"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c")))
    assert found["true_positive_rate", "c=none"].value is None
    assert found["true_positive_rate", "c=none"].note == "no scored rows whose truth is positive"
    assert found["false_positive_rate", "c=none"].count == 100
    assert "none" not in found["equal_opportunity_gap", "between=c"].note
    assert found["selection_rate_gap", "between=c"].count == 300


def test_equal_labels_leave_what_rests_on_the_other_class_undefined() -> None:
    _, probability = draw_champion(2, np.zeros(200))
    rows = classify(probability, np.ones(200), {"c": ["a", "b"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c"), rows, "old@1"))
    for metric in ("equalized_odds_gap", "equalized_odds_gap_rise"):
        assert found[metric, "between=c"].value is None
        assert found[metric, "between=c"].note == (
            "fewer than two groups of c have a value: no scored rows whose truth is negative in the others"
        )
        assert found[metric, "all"].value is None
    assert found["equal_opportunity_gap", "between=c"].value is not None
    assert found["equal_opportunity_gap_rise", "between=c"].value == 0.0
    assert found["false_positive_rate", "c=a"].value is None


def test_nobody_selected_has_no_ratio() -> None:
    rows = classify(np.full(200, 0.1), np.tile([0.0, 1.0], 100), {"c": ["a"] * 100 + ["b"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c"), rows))
    assert found["selection_rate_ratio", "between=c"].value is None
    assert found["selection_rate_ratio", "between=c"].note == "no group has any, so their ratio is not defined"
    assert found["selection_rate_ratio_fall", "all"].value is None
    assert found["selection_rate_gap", "between=c"].value == 0.0


def test_one_group_has_measurements_and_no_gap() -> None:
    truth, probability = draw_champion(5, np.zeros(100))
    rows = classify(probability, truth, {"c": ["only"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c"), rows))
    assert found["selection_rate", "c=only"].value is not None
    gap = found["selection_rate_gap", "all"]
    assert (gap.value, gap.note) == (None, "c has one group only, only")
    assert not judge(read_gates("schema: 1\ngates: [{metric: selection_rate_gap, at_most: 1}]"), [gap]).holds


def test_scores_that_are_not_numbers_make_gaps_undefined_and_are_refused() -> None:
    truth, probability = draw_champion(6, np.zeros(200))
    champion = classify(probability, truth, {"c": ["a"] * 100 + ["b"] * 100})
    broken = probability.copy()
    broken[:3] = [math.nan, math.inf, 1.5]
    rows = classify(broken, truth, {"c": ["a"] * 100 + ["b"] * 100})
    evaluation = measure_fairness(rows, plan_of("c"), champion, "credit@3")
    found = by_name(evaluation)
    assert found["unscored_share", "all"].value == 3 / 200
    assert found["unscored_share", "c=a"].value == 3 / 100
    assert found["unscored_share", "c=b"].value == 0.0
    note = "this model gave 3 of 200 rows no probability from 0 to 1"
    gaps = [m for m in evaluation.measurements if m.slice in ("between=c", "all") and m.metric != "unscored_share"]
    assert {(m.value, m.note) for m in gaps} == {(None, note)}
    assert len(gaps) == 24
    assert found["selection_rate", "c=a"].count == 97
    # Gates against the champion are skipped where there is none; the share of rows without a score is always there.
    verdict = judge_rise(rows, plan_of("c"), champion)
    assert [result.metric for result in verdict.refused] == ["unscored_share"]
    json.dumps(evaluation.to_dict(), allow_nan=False)
    other = by_name(measure_fairness(champion, plan_of("c"), rows, "credit@3"))
    assert other["selection_rate_gap", "all"].value is not None
    assert other["selection_rate_gap_rise", "all"].value is None
    assert other["selection_rate_gap_rise", "all"].note == note.replace("this model", "credit@3")


def test_column_that_is_not_there_is_an_error_that_names_it() -> None:
    truth, probability = draw_champion(6, np.zeros(60))
    with pytest.raises(DataError, match="group column sex: not among the columns of the held-out rows; they have c"):
        measure_fairness(classify(probability, truth, {"c": ["a"] * 60}), plan_of("sex"))


def test_champion_of_another_task_or_of_other_rows_is_refused_by_name() -> None:
    truth, probability = draw_champion(6, np.zeros(60))
    rows = classify(probability, truth, {"c": ["a", "b"] * 30})
    prices = RowScores("regression", rows.ids, rows.attributes, rows.metrics, pa.array(probability), truth)
    with pytest.raises(UsageError, match="prices@3 answers a regression, and this model a classification"):
        measure_fairness(rows, plan_of("c"), prices, "prices@3")
    moved = classify(probability, truth, {"c": ["a", "b"] * 30}, [f"row{n}" for n in range(1, 61)])
    with pytest.raises(UsageError, match="credit@3 scored 60 rows, and this model 60, other ones or in another order"):
        measure_fairness(rows, plan_of("c"), moved, "credit@3")
    relabelled = classify(probability, 1 - truth, {"c": ["a", "b"] * 30})
    with pytest.raises(UsageError, match="different truths of the same rows"):
        measure_fairness(rows, plan_of("c"), relabelled, "credit@3")


def test_truth_that_is_no_class_is_refused() -> None:
    truth, probability = draw_champion(6, np.zeros(60))
    with pytest.raises(DataError, match="truth of the held-out rows: 2; 0 or 1 is needed"):
        measure_fairness(classify(probability, truth * 2, {"c": ["a", "b"] * 30}), plan_of("c"))


def test_rows_of_unknown_truth_are_selected_or_not_all_the_same() -> None:
    truth, probability = draw_champion(7, np.zeros(200))
    truth[:50] = math.nan
    rows = classify(probability, truth, {"c": ["a", "b"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c", minimum_count=20)))
    assert found["selection_rate", "c=a"].count == 100
    assert found["calibration_difference", "c=a"].count == 75
    kept = truth == 1
    at = found["true_positive_rate", "c=a"]
    assert at.value == pytest.approx((probability >= 0.5)[kept & (np.arange(200) % 2 == 0)].mean())


def test_no_champion_is_said_and_no_groups_measure_nothing() -> None:
    truth, probability = draw_champion(6, np.zeros(200))
    rows = classify(probability, truth, {"c": ["a", "b"] * 100})
    found = by_name(measure_fairness(rows, plan_of("c")))
    rise = found["selection_rate_gap_rise", "between=c"]
    assert (rise.value, rise.note) == (None, "no champion to compare with")
    assert measure_fairness(rows, FairnessPlan()) == Evaluation(())


def test_what_is_measured_already_is_left_out_and_still_in_the_report() -> None:
    truth, probability = draw_champion(6, np.zeros(200))
    rows = classify(probability, truth, {"c": ["a", "b"] * 100})
    whole = measure_fairness(rows, plan_of("c"))
    left = measure_fairness(rows, plan_of("c"), existing={("absolute_error", "c=a")})
    assert {(m.metric, m.slice) for m in whole.measurements} - {(m.metric, m.slice) for m in left.measurements} == {
        ("absolute_error", "c=a")
    }
    assert left.sections == whole.sections


def test_groups_of_another_task_are_compared_by_its_row_metrics() -> None:
    random = np.random.default_rng(0)
    names = ["a"] * 200 + ["b"] * 200 + ["c"] * 200
    truth = random.lognormal(8, 1, 600)

    def price(worse: float) -> RowScores:
        error = np.abs(random.normal(0, 0.1, 600)) + np.where(np.array(names) == "b", worse, 0.0)
        error[0] = math.nan
        return RowScores(
            "regression",
            pa.array([str(n) for n in range(600)]),
            pa.table({"fuel": names}),
            (RowMetric("absolute_relative_error", error),),
            pa.array(truth * (1 + np.nan_to_num(error))),
            truth,
        )

    found = by_name(measure_fairness(price(0.1), plan_of("fuel"), price(0.0), "prices@2"))
    assert found["absolute_relative_error", "fuel=a"].count == 199
    rise = found["absolute_relative_error_group_gap_rise", "between=fuel"]
    assert rise.value == pytest.approx(0.1, abs=0.03)
    assert rise.low is not None
    assert rise.low > 0.05
    assert re.search(r"now highest [\d.]+ for b \(", rise.note)
    assert "selection_rate_gap" not in {metric for metric, _ in found}


def test_answer_that_is_no_number_makes_gaps_of_a_regression_undefined() -> None:
    names = ["a", "b"] * 60
    metric = RowMetric("absolute_error", np.r_[math.nan, np.ones(119)])
    answers = pa.array([None, *[1.0] * 119])
    rows = RowScores("regression", pa.array([str(n) for n in range(120)]), pa.table({"c": names}), (metric,), answers)
    found = by_name(measure_fairness(rows, plan_of("c")))
    assert found["unscored_share", "all"].value == 1 / 120
    assert found["absolute_error_group_gap", "all"].note == "this model gave 1 of 120 rows no finite answer"
    infinite = RowMetric("absolute_error", np.r_[math.inf, np.ones(119)])
    rows = RowScores("regression", rows.ids, rows.attributes, (infinite,), pa.array([1.0] * 120), np.ones(120))
    found = by_name(measure_fairness(rows, plan_of("c")))
    assert found["absolute_error_group_gap", "all"].note == "absolute_error of 1 rows is not finite"
    assert found["absolute_error", "c=a"].note == "not all values are finite"


def test_report_shows_every_column_and_passes_no_verdict() -> None:
    truth, probability = draw_champion(6, np.zeros(400))
    columns = {"sex": ["<b>a", "b"] * 200, "many": [f"g{n % 30}" for n in range(400)]}
    rows = classify(probability, truth, columns)
    before = classify(retrain(probability, 1), truth, columns)
    evaluation = measure_fairness(rows, plan_of("sex", "many", minimum_count=10), before, "credit@3")
    titles = [section.title for section in evaluation.sections]
    assert titles == [
        *(f"{part} by {name}" for name in columns for part in ("Rates", "Other measurements", "Gaps")),
        "How to read gaps between groups",
    ]
    bars = evaluation.sections[3].data["groups"]
    assert [len(group["bars"]) for group in bars] == [20] * len(bars)
    assert "20 largest of 30 groups" in evaluation.sections[3].text
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert "Kleinberg" in text
    assert "against credit@3" in text
    assert "fair " not in text.lower()
    assert "unfair" not in text.lower()
    page = render_report(Report("Groups", {"status": "succeeded", "metrics": {}, "gates": []}, evaluation))
    assert "&lt;b&gt;a" in page
    assert "<b>a" not in page


def test_no_rows_are_a_defined_case() -> None:
    rows = classify(np.zeros(0), np.zeros(0), {"c": pa.array([], pa.string())})
    found = by_name(measure_fairness(rows, plan_of("c"), rows))
    assert found["selection_rate_gap", "all"].value is None
    assert found["unscored_share", "all"].value is None


def test_missing_fairlearn_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fairlearn.metrics", None)
    truth, probability = draw_champion(6, np.zeros(200))
    with pytest.raises(MissingExtraError, match=r"mlflywheel\[fairness\]"):
        measure_fairness(classify(probability, truth, {"c": ["a", "b"] * 100}), plan_of("c"))
