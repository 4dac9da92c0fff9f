"""Committed gates on real models: a planted bias is refused, noise is not, and broken input has one clear answer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mlflywheel.cluster.champion import find_predecessors
from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.decisions.gates import Gate, GateResult, read_gates
from mlflywheel.errors import DataError, GateRefusedError, ModelFilesError, RegistryError, UsageError
from mlflywheel.evaluation import Judged, evaluate, read_plan, write_evaluation
from mlflywheel.evaluation.judging import Champion, Predecessors
from mlflywheel.evaluation.plan import EvaluationPlan
from mlflywheel.models.contract import Model
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.preparation import PrepareConfig
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns
from mlflywheel.samples.credit_decisions import generate_credit_decisions
from mlflywheel.samples.vehicle_prices import generate_vehicle_prices

GROUPS = "schema: 1\nfairness: {groups: [personal_status, branch, {age: [25]}], minimum_count: 30}"
FEWEST = 40


def read_committed(pipeline: str) -> tuple[EvaluationPlan, tuple[Gate, ...]]:
    folder = find_pipeline(pipeline).folder
    plan = read_plan((folder / "evaluation.yaml").read_text(encoding="utf-8"))
    return plan, read_gates((folder / "gates.yaml").read_text(encoding="utf-8"))


PLAN, GATES = read_committed("credit-decisions")


def refused(judged: Judged) -> dict[str, GateResult]:
    return {result.metric: result for result in judged.verdict.refused}


def values(judged: Judged) -> dict[tuple[str, str], Any]:
    json.dumps(judged.evaluation.to_dict(), allow_nan=False)
    return {(one.metric, one.slice): one for one in judged.evaluation.measurements}


@dataclass(frozen=True)
class Applications:
    """Real applications with a number each, so that a change of their content leaves the split alone."""

    columns: Mapping[str, list[Any]]

    def change(self, **columns: list[Any]) -> "Applications":
        return Applications({**self.columns, **columns})

    def fit(self) -> tuple[TabularClassifier, pa.Table]:
        """Fit the model as the pipeline does, on all columns but the groups; return it with the held-out rows."""
        groups = [name for name in ("personal_status", "age", "branch") if name in self.columns]
        settings = {"target": "credit", "positive": "1", "id": "application", "not_features": groups}
        config = TabularClassifier.Config.parse(settings, "test")
        parts = split(TabularClassifier.prepare(pa.table(dict(self.columns)), config), "random", 0.4, seed=0)
        return TabularClassifier.fit(parts.train, TabularClassifier.Params()), parts.holdout


@pytest.fixture(scope="module")
def real(shared_folder: Path) -> Applications:
    path = shared_folder / "data" / "fairness" / "german_credit.csv"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent.name}")
    table = ingest(str(path), TabularClassifier.columns, {}, other_columns=True).table
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["credit"] = [f"{label:g}" for label in columns["credit"]]
    drawn = np.random.default_rng(0).random(table.num_rows)
    branch = ["north" if one < 0.12 else "east" if one < 0.6 else "west" for one in drawn]
    return Applications({**columns, "application": [f"g{row:04d}" for row in range(table.num_rows)], "branch": branch})


@pytest.fixture(scope="module")
def in_use(real: Applications) -> Predecessors:
    model, _ = real.fit()
    return Predecessors(Champion("german@3", model))


def flip(labels: list[Any], rows: np.ndarray) -> list[Any]:
    return [("2" if label == "1" else "1") if row else label for label, row in zip(labels, rows, strict=True)]


def test_a_bias_planted_in_real_applications_is_refused_with_all_that_is_behind_it(
    real: Applications, in_use: Predecessors
) -> None:
    """Most young applicants that were good are called bad in the data, and a column stands for their age."""
    young = np.array([age <= 25 for age in real.columns["age"]])
    good = np.array([label == "1" for label in real.columns["credit"]])
    chosen = young & good & (np.random.default_rng(1).random(len(young)) < 0.7)
    segment = ["S1" if one else "S2" for one in young]
    model, holdout = real.change(credit=flip(real.columns["credit"], chosen), segment=segment).fit()
    judged = evaluate(model, holdout, GATES, plan=read_plan(GROUPS), predecessors=in_use)
    for metric in ("equal_opportunity_gap", "equal_opportunity_gap_rise", "selection_rate_ratio"):
        assert metric in refused(judged), metric
    with pytest.raises(GateRefusedError) as raised:
        judged.verdict.raise_if_refused()
    assert raised.value.exit_code == 3
    rise = refused(judged)["equal_opportunity_gap_rise"]
    measured = values(judged)["equal_opportunity_gap_rise", "all"]
    # Metric, value, interval and limit; then the column, and both groups' values of both versions.
    assert rise.reason.startswith(
        f"equal_opportunity_gap_rise {measured.value:.4g} ({measured.low:.4g} to {measured.high:.4g}) is above 0.05"
    )
    now, _, then = rise.reason.partition("; german@3 ")
    assert ": by age: now highest " in now
    for part in (now, then):
        assert " for above 25 (" in part
        assert " for 25 or less (" in part
    assert rise.reason in str(raised.value)


def test_noise_in_a_group_of_forty_rows_refuses_nothing(real: Applications, in_use: Predecessors) -> None:
    north = np.array([branch == "north" for branch in real.columns["branch"]])
    chosen = north & (np.random.default_rng(2).random(len(north)) < 0.3)
    model, holdout = real.change(credit=flip(real.columns["credit"], chosen)).fit()
    judged = evaluate(model, holdout, GATES, plan=read_plan(GROUPS), predecessors=in_use)
    found = values(judged)
    assert FEWEST <= found["selection_rate", "branch=north"].count <= FEWEST + 15
    # The group is in the gaps, and the figures alone would be refused.
    gap = found["equal_opportunity_gap", "between=branch"]
    assert "north" in gap.note or gap.value < 0.1
    assert found["equal_opportunity_gap", "all"].value > 0.1
    assert not [name for name in refused(judged) if "gap" in name or "ratio" in name]


@dataclass(frozen=True)
class Sample:
    """A classifier of made-up applications, another one, and rows that neither saw."""

    model: TabularClassifier
    older: TabularClassifier
    holdout: pa.Table

    def predecessors(self) -> Predecessors:
        return Predecessors(Champion("credit@1", self.older), ({"log_loss": 0.5},))


@pytest.fixture(scope="module")
def sample() -> Sample:
    table = TabularClassifier.prepare(generate_credit_decisions(700), TabularClassifier.Config())
    parts = split(table, "random", 0.3, seed=0)
    # The one in use has never seen an applicant of 25 years or less.
    seen = parts.train.filter(pc.greater(parts.train["age"], 25))
    fitted = [TabularClassifier.fit(rows, TabularClassifier.Params()) for rows in (parts.train, seen)]
    return Sample(fitted[0], fitted[1], parts.holdout)


def replace_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def test_a_group_column_that_is_not_there_is_named_with_those_that_are(sample: Sample) -> None:
    plan = read_plan("schema: 1\nfairness: {groups: [region]}")
    with pytest.raises(DataError, match=r"group column region: .* they have .*age.*sex.* in evaluation\.yaml"):
        evaluate(sample.model, sample.holdout, GATES, plan=plan, predecessors=sample.predecessors())


def test_one_group_alone_has_no_gap_and_refuses_nothing(sample: Sample) -> None:
    men = replace_column(sample.holdout, "sex", pa.array(["male"] * sample.holdout.num_rows))
    plan = read_plan("schema: 1\nfairness: {groups: [sex]}")
    judged = evaluate(sample.model, men, GATES, plan=plan, predecessors=Predecessors())
    gap = values(judged)["equal_opportunity_gap", "all"]
    assert (gap.value, gap.note) == (None, "sex has one group only, male")
    assert judged.verdict.holds


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_equal_labels_are_refused_for_what_they_cannot_show(sample: Sample, label: float) -> None:
    rows = sample.holdout.filter(pc.equal(sample.holdout["target"], label))
    judged = evaluate(sample.model, rows, GATES, plan=PLAN, predecessors=sample.predecessors())
    assert values(judged)["auc", "all"].value is None
    assert "auc has no value on slice all (rows of one class)" in refused(judged)["auc"].reason


def test_groups_that_the_version_in_use_never_saw_are_compared(sample: Sample) -> None:
    branch = pa.array(["new" if row % 3 else "newer" for row in range(sample.holdout.num_rows)])
    plan = read_plan("schema: 1\nfairness: {groups: [branch, {age: [25]}], minimum_count: 20}")
    rows = sample.holdout.append_column("branch", branch)
    found = values(evaluate(sample.model, rows, GATES, plan=plan, predecessors=sample.predecessors()))
    for column in ("branch", "age"):
        rise = found["selection_rate_gap_rise", f"between={column}"]
        assert rise.value is not None
        assert rise.low is not None
        assert "; credit@1 highest " in rise.note


def spoil(column: str, values: Any) -> Any:
    spoiled = np.array(values[column].to_numpy(), dtype=np.float64)
    spoiled[: max(1, len(spoiled) // 50)] = np.nan
    return replace_column(values, column, pa.array(spoiled, from_pandas=False))


class SpoiledClassifier(TabularClassifier):
    def predict(self, table: pa.Table, progress: Any = None) -> pa.Table:
        return spoil("probability", super().predict(table))


class SpoiledPrices(VehiclePrice):
    def predict(self, table: pa.Table, progress: Any = None) -> pa.Table:
        return spoil("price", super().predict(table))


@pytest.fixture(scope="module")
def prices() -> tuple[VehiclePrice, pa.Table]:
    raw = generate_vehicle_prices(listings=500)
    parts = split(VehiclePrice.prepare(raw, VehiclePrice.Config()), "random", 0.3, seed=0)
    return VehiclePrice.fit(parts.train, VehiclePrice.Params.parse({"max_iter": 20}, "test")), parts.holdout


@pytest.fixture(scope="module")
def campaigns() -> tuple[TopicFingerprints, pa.Table]:
    prepared = TopicFingerprints.prepare(generate_ad_campaigns(campaigns=120), PrepareConfig())
    parts = split(prepared, "random", 0.2, seed=0)
    return TopicFingerprints.fit(parts.train, FitParams.parse({"num_topics": 8}, "test")), parts.holdout


def test_probabilities_that_are_no_numbers_are_refused(sample: Sample, tmp_path: Path) -> None:
    one = sample.model
    spoiled = SpoiledClassifier(one.params, one.fitted, one.training, one.graph)
    judged = evaluate(spoiled, sample.holdout, GATES, plan=PLAN, predecessors=sample.predecessors())
    assert {"unscored_share", "auc"} <= set(refused(judged))
    files = [tmp_path / name for name in ("evaluation", "verdict", "report", "gates")]
    write_evaluation(judged, *files)
    assert "unscored_share" in files[2].read_text(encoding="utf-8")
    assert values(judged)["auc", "all"].note.endswith("rows have no probability")


def test_prices_that_are_no_numbers_are_refused(prices: tuple[VehiclePrice, pa.Table], tmp_path: Path) -> None:
    model, holdout = prices
    plan, gates = read_committed("vehicle-prices")
    spoiled = SpoiledPrices(model.params, model.fitted, model.training, model.references, model.graph)
    whole, broken = (evaluate(one, holdout, gates, plan=plan, predecessors=Predecessors()) for one in (model, spoiled))
    assert "unscored_share" not in refused(whole)
    assert "unscored_share" in refused(broken)
    write_evaluation(broken, *(tmp_path / name for name in ("evaluation", "verdict", "report", "gates")))


def test_every_committed_gates_file_asks_that_each_row_gets_a_score() -> None:
    for name in ("ad-campaigns", "credit-decisions", "vehicle-prices"):
        _, gates = read_committed(name)
        asked = [gate for gate in gates if gate.metric == "unscored_share"]
        assert [(gate.limit, gate.relation, gate.when_missing) for gate in asked] == [(0, "<=", "refuse")], name


def test_a_champion_of_another_task_is_named_with_both_ways_out(
    sample: Sample, prices: tuple[VehiclePrice, pa.Table], campaigns: tuple[TopicFingerprints, pa.Table]
) -> None:
    others: Iterator[tuple[Model, Model, pa.Table]] = iter(
        [
            (sample.model, prices[0], sample.holdout),
            (sample.model, campaigns[0], sample.holdout),
            (prices[0], sample.model, prices[1]),
        ]
    )
    for model, champion, holdout in others:
        with pytest.raises(UsageError) as raised:
            evaluate(
                model, holdout, (), plan=read_plan("schema: 1"), predecessors=Predecessors(Champion("x@4", champion))
            )
        assert raised.value.where == "champion x@4"
        assert f"it is a {type(champion).__name__}, which cannot score these rows" in raised.value.seen
        assert raised.value.fix == "register the new model under another name, or archive x@4"


class OtherClassifier(TabularClassifier):
    """Another class of models for the same task."""


def test_a_champion_of_another_class_and_the_same_task_is_compared(sample: Sample) -> None:
    older = sample.older
    other = OtherClassifier(older.params, older.fitted, older.training, older.graph)
    judged = evaluate(
        sample.model, sample.holdout, GATES, plan=PLAN, predecessors=Predecessors(Champion("credit@2", other))
    )
    found = values(judged)
    assert found["champion_loss_log_loss", "all"].value is not None
    assert found["breaking_contract_changes", "all"].value == 0


def test_a_champion_whose_files_are_gone_names_the_version_and_both_ways_out(sample: Sample, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(tmp_path / "registry.sqlite")
    folder = tmp_path / "model"
    hashed = sample.older.save(folder)
    registry.ensure_version("credit", str(folder), key="1", format_name="t", format_version="1", hash=hashed)
    registry.set_state("credit", "1", "approved", by="test", reason="test")
    with find_predecessors(registry.address, "credit", PLAN.champion.states) as found:
        assert found is not None
        judged = evaluate(sample.model, sample.holdout, GATES, plan=PLAN, predecessors=found)
    assert judged.champion == "credit@1"
    for file in folder.iterdir():
        file.unlink()
    gone = find_predecessors(registry.address, "credit", PLAN.champion.states)
    with pytest.raises(ModelFilesError, match=r"^champion credit@1 \(approved\): .*archive credit@1"), gone:
        pass


@pytest.mark.parametrize(
    ("address", "seen"), [("http://127.0.0.1:9", "no answer"), ("notes.txt", "not a readable SQLite database")]
)
def test_a_registry_that_does_not_answer_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, seen: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no registry, but a text that is long enough to be read as one " * 9, encoding="utf-8")
    with pytest.raises(RegistryError, match=seen), find_predecessors(address, "credit", PLAN.champion.states):
        pass


@pytest.mark.parametrize(
    ("text", "where", "seen"),
    [
        ("schema: 1\nfairnes: {groups: [sex]}", "fairnes", "known names are champion, explanations, fairness"),
        ("schema: 1\nfairness: {group: [sex]}", "fairness.group", "known names are confidence, decision_threshold"),
        ("schema: 1\nfairness: {groups: sex}", "fairness.groups", "a list is needed, as in"),
        ("schema: 1\nfairness: {groups: [{age: 25}]}", "fairness.groups", "as in {age: [25]}"),
        ("schema: 1\nchampion: {states: [gone]}", "champion.states.0", "'live', 'approved' or 'candidate'"),
        ("fairness: {groups: [sex]}", "schema", "start with `schema: 1`"),
        ("schema: 1\nfairness: [", "evaluation.yaml", "not YAML"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_field(text: str, where: str, seen: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_plan(text)
    assert raised.value.where.endswith(where)
    assert seen in str(raised.value)


def test_a_section_without_lines_means_its_defaults() -> None:
    assert read_plan("schema: 1\nfairness:\n  # groups: [sex]\n") == read_plan("schema: 1")


def test_a_history_of_one_version_is_no_trend_and_refuses_nothing(sample: Sample) -> None:
    gates = read_gates("schema: 1\ngates: [{metric: trend_decline_log_loss, at_most: 0, when_missing: skip}]")
    judged = evaluate(sample.model, sample.holdout, gates, plan=PLAN, predecessors=sample.predecessors())
    trend = values(judged)["trend_decline_log_loss", "all"]
    assert (trend.value, trend.note) == (None, "2 versions with log_loss, 4 are needed to tell a decline from chance")
    assert judged.verdict.holds


def test_the_gates_hold_with_a_plan_that_names_no_slices_and_no_groups(sample: Sample) -> None:
    judged = evaluate(sample.model, sample.holdout, GATES, plan=read_plan("schema: 1"), predecessors=Predecessors())
    assert judged.verdict.holds, refused(judged)
    gaps = [one for one in judged.verdict.results if "gap" in one.metric or one.metric == "selection_rate_ratio"]
    assert [one.holds for one in gaps] == [None] * 3
    assert values(judged)["unscored_share", "all"].value == 0.0


def test_an_optional_group_column_that_is_not_there_is_left_out(sample: Sample) -> None:
    (grouping,) = read_plan("schema: 1\nfairness: {groups: [{name: region, optional: true}]}").fairness.groups
    plan = replace_groups(PLAN, grouping)
    judged = evaluate(sample.model, sample.holdout, GATES, plan=plan, predecessors=sample.predecessors())
    assert not [name for _, name in values(judged) if "region" in name]


def replace_groups(plan: EvaluationPlan, *groups: Any) -> EvaluationPlan:
    fairness = plan.fairness.model_copy(update={"groups": groups})
    return plan.model_copy(update={"fairness": fairness})
