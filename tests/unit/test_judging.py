"""A whole evaluation of a real classifier: the model's own metrics, and all that is measured beside them."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from mlflywheel.data.splitting import split
from mlflywheel.decisions.gates import read_gates
from mlflywheel.evaluation import Judged, evaluate, read_plan
from mlflywheel.evaluation.judging import ABOUT, Champion, Predecessors
from mlflywheel.models.contract import RowScores
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.samples.credit_decisions import generate_credit_decisions

PLAN = """
schema: 1
slices: {columns: [housing], discover: {minimum_count: 40}}
fairness: {groups: [sex, {age: [25]}], minimum_count: 20}
champion: {minimum_count: 20}
explanations: {rows: 60, repeats: 1}
"""
GATES = read_gates(
    """
    schema: 1
    gates:
      - {metric: champion_loss_log_loss, at_most: 0.02, judge: interval, when_missing: skip}
      - {metric: unscored_share, at_most: 0}
    """
)
HISTORY = tuple({"log_loss": 0.50 + 0.01 * version} for version in range(5))


@dataclass(frozen=True)
class Credit:
    """Two classifiers of made-up applications, and rows that neither was fitted on."""

    model: TabularClassifier
    champion: TabularClassifier
    holdout: pa.Table

    def predecessors(self) -> Predecessors:
        return Predecessors(Champion("credit@3", self.champion), HISTORY)


class Unscored(TabularClassifier):
    """A classifier that does not score its rows one by one."""

    def score_rows(self, table: pa.Table, progress: Any = None) -> RowScores:
        return None  # type: ignore[return-value]  # what the contract allows, and this class's parent does not


@pytest.fixture(scope="module")
def credit() -> Credit:
    table = TabularClassifier.prepare(generate_credit_decisions(600), TabularClassifier.Config())
    parts = split(table, "random", 0.3, seed=0)
    model = TabularClassifier.fit(parts.train, TabularClassifier.Params())
    champion = TabularClassifier.fit(parts.train.slice(0, 250), TabularClassifier.Params())
    return Credit(model, champion, parts.holdout)


@pytest.fixture(scope="module")
def judged(credit: Credit) -> Judged:
    return evaluate(credit.model, credit.holdout, GATES, plan=read_plan(PLAN), predecessors=credit.predecessors())


def test_all_that_can_be_looked_at_is(judged: Judged) -> None:
    assert {found.about for found in judged.evaluation.measurements} == set(ABOUT)


def test_nothing_is_measured_twice(judged: Judged) -> None:
    names = [(found.metric, found.slice) for found in judged.evaluation.measurements]
    assert sorted(names) == sorted(set(names))


def test_every_measurement_is_json_with_its_interval_around_it(judged: Judged) -> None:
    document = json.loads(json.dumps(judged.evaluation.to_dict(), allow_nan=False))
    assert len(document["measurements"]) > 150
    for found in judged.evaluation.measurements:
        assert found.value is not None or found.note, found
        if found.value is not None and found.low is not None and found.high is not None:
            assert found.low <= found.value <= found.high, found


def test_a_second_evaluation_is_equal(credit: Credit, judged: Judged) -> None:
    again = evaluate(credit.model, credit.holdout, GATES, plan=read_plan(PLAN), predecessors=credit.predecessors())
    assert again.evaluation.to_dict() == judged.evaluation.to_dict()
    assert again.verdict == judged.verdict


def test_the_seed_of_the_plan_moves_only_what_is_random(credit: Credit, judged: Judged) -> None:
    plan = read_plan(PLAN + "seed: 1\n")
    other = evaluate(credit.model, credit.holdout, GATES, plan=plan, predecessors=credit.predecessors())
    before, after = judged.evaluation.measurements, other.evaluation.measurements
    changed = {found.about for found in set(before) ^ set(after)}
    assert "explanations" in changed
    assert changed <= {"explanations", "slices"}


def test_only_the_model_s_own_metrics_are_overall_metrics(credit: Credit, judged: Judged) -> None:
    alone = evaluate(credit.model, credit.holdout, GATES).evaluation.metrics()
    assert judged.evaluation.metrics() == alone
    assert not [name for name in alone if name.startswith(("champion_", "gain_", "trend_", "unscored_"))]


def test_a_model_without_scores_of_rows_has_its_own_metrics_and_its_contract(credit: Credit) -> None:
    whole = credit.model
    model = Unscored(whole.params, whole.fitted, whole.training, whole.graph)
    found = evaluate(model, credit.holdout, GATES, plan=read_plan(PLAN), predecessors=Predecessors())
    assert {one.about for one in found.evaluation.measurements} == {"model", "contract"}
    assert found.evaluation.metrics() == whole.evaluate(credit.holdout).metrics()
    own = evaluate(model, credit.holdout, GATES, plan=read_plan(PLAN))
    assert {one.about for one in own.evaluation.measurements} == {"model"}
    # What is not measured does not pass unseen.
    assert [one.metric for one in own.verdict.refused] == ["unscored_share"]


@pytest.mark.parametrize("rows", [0, 1])
def test_few_held_out_rows_are_a_defined_case(credit: Credit, rows: int) -> None:
    found = evaluate(
        credit.model, credit.holdout.slice(0, rows), GATES, plan=read_plan(PLAN), predecessors=credit.predecessors()
    )
    json.dumps(found.evaluation.to_dict(), allow_nan=False)
    values = {(one.metric, one.slice): one for one in found.evaluation.measurements}
    assert values["champion_loss_log_loss", "all"].count == rows
    assert values["selection_rate_gap", "all"].value is None
    assert values["selection_rate_gap", "all"].note
    # No row shows that the model is as good as the champion; without any, nothing shows that rows get a score.
    unscored = values["unscored_share", "all"]
    assert (unscored.value, unscored.count) == ((None, 0) if rows == 0 else (0.0, 1))
    assert not found.verdict.holds


def test_a_plan_without_groups_still_counts_rows_without_a_score(credit: Credit) -> None:
    found = evaluate(credit.model, credit.holdout, GATES, plan=read_plan("schema: 1"), predecessors=Predecessors())
    assert found.verdict.holds, found.verdict.refused
    groups = [one for one in found.evaluation.measurements if one.about == "groups"]
    assert [(one.metric, one.slice, one.value) for one in groups] == [("unscored_share", "all", 0.0)]


def test_the_model_is_not_changed_by_its_evaluation(credit: Credit) -> None:
    model = copy.copy(credit.model)
    before = model.predict(credit.holdout)
    evaluate(model, credit.holdout, GATES, plan=read_plan(PLAN), predecessors=credit.predecessors())
    assert model.predict(credit.holdout).equals(before)
