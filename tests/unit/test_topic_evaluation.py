"""The evaluation says what is there: near 1 where verticals separate, near chance where they do not."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_campaigns import VERTICALS, campaigns_of, plant_campaigns

from mlflywheel.decisions.gates import judge, read_gates
from mlflywheel.evaluation.fairness import measure_unscored
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.models.topic_fingerprints.evaluation import clear_share
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.references import find_reference_neighbours
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.reports import Report, render_report

PURITY = "neighbour_purity_at_10"


def fit(table: pa.Table, **params: Any) -> TopicFingerprints:
    return TopicFingerprints.fit(table, FitParams.model_validate({"num_topics": 8, **params}))


@pytest.fixture(scope="module")
def model() -> TopicFingerprints:
    return fit(plant_campaigns(150))


@pytest.fixture(scope="module")
def holdout() -> pa.Table:
    return plant_campaigns(60, seed=9, prefix="new")


@pytest.fixture(scope="module")
def evaluation(model: TopicFingerprints, holdout: pa.Table) -> Evaluation:
    return model.evaluate(holdout)


def look_up(evaluation: Evaluation, metric: str, name: str = "all") -> Measurement:
    (found,) = [m for m in evaluation.measurements if m.metric == metric and m.slice == name]
    return found


def slices(evaluation: Evaluation, metric: str = PURITY) -> set[str]:
    return {m.slice for m in evaluation.measurements if m.metric == metric}


def assert_well_formed(evaluation: Evaluation) -> None:
    """JSON without NaN, one value for each metric and slice, and a report that can be drawn."""
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)).to_dict() == json.loads(text)
    keys = [(m.metric, m.slice) for m in evaluation.measurements]
    assert len(set(keys)) == len(keys)
    for m in evaluation.measurements:
        if m.low is not None:
            assert m.high is not None
            assert m.low <= m.value <= m.high
    page = render_report(Report(title="Test", summary={"status": "succeeded"}, evaluation=evaluation))
    for section in evaluation.sections:
        assert section.title in page


def replace_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))


def test_separable_verticals_are_pure(evaluation: Evaluation) -> None:
    assert look_up(evaluation, PURITY).value > 0.98
    assert look_up(evaluation, PURITY).count == 60
    assert look_up(evaluation, f"reference_{PURITY}").value > 0.9
    assert_well_formed(evaluation)


def test_shuffled_verticals_are_at_chance(holdout: pa.Table) -> None:
    random = np.random.default_rng(0)
    train = plant_campaigns(150)
    shuffled = replace_column(train, "vertical", random.permutation(train["vertical"].to_pylist()).tolist())
    found = fit(shuffled).evaluate(holdout)
    for metric in (PURITY, f"reference_{PURITY}", f"reference_tfidf_{PURITY}"):
        assert look_up(found, metric).value == pytest.approx(1 / len(VERTICALS), abs=0.08)


def test_all_metrics_are_there(evaluation: Evaluation) -> None:
    assert set(evaluation.metrics()) == {
        "coherence_c_npmi",
        "topic_diversity",
        "num_topics",
        "vocabulary_terms",
        "topic_stability",
        PURITY,
        f"reference_{PURITY}",
        f"reference_tfidf_{PURITY}",
        "neighbour_purity_gain",
        "out_of_vocabulary_share",
        "no_clear_topic_share",
        "no_known_term_share",
        "mean_neighbour_similarity",
        "hidden_keyword_recall_at_10",
        "reference_hidden_keyword_recall_at_10",
        "neighbour_occurrence_skewness",
    }
    assert look_up(evaluation, "coherence_c_npmi").value > 0.1
    assert look_up(evaluation, "topic_stability").value > 0.8
    assert look_up(evaluation, "no_known_term_share").value == 0.0


def test_the_gain_is_the_difference_to_the_reference(evaluation: Evaluation) -> None:
    gain = look_up(evaluation, PURITY).value - look_up(evaluation, f"reference_{PURITY}").value
    assert look_up(evaluation, "neighbour_purity_gain").value == pytest.approx(gain, abs=1e-9)


def test_slices_are_verticals_tiers_locales_and_sizes(evaluation: Evaluation) -> None:
    assert slices(evaluation) == {
        "all",
        *(f"vertical={name}" for name in VERTICALS),
        "advertiser_tier=small",
        "advertiser_tier=large",
        "locale=en-US",
        "size=thick",
    }
    counts = [look_up(evaluation, PURITY, f"vertical={name}").count for name in VERTICALS]
    assert counts == [10] * 6


def test_thin_campaigns_are_a_slice(model: TopicFingerprints) -> None:
    thin = plant_campaigns(12, terms=4, seed=3, prefix="thin")
    found = model.evaluate(pa.concat_tables([thin, plant_campaigns(18, seed=4, prefix="thick")]))
    assert look_up(found, PURITY, "size=thin").count == 12
    assert look_up(found, PURITY, "size=thick").count == 18


def test_exposure_is_measured_where_there_are_groups(model: TopicFingerprints, evaluation: Evaluation) -> None:
    ratios = {m.slice: m for m in evaluation.measurements if m.metric == "exposure_to_catalogue_ratio"}
    assert set(ratios) == {"advertiser_tier=small", "advertiser_tier=large", "locale=en-US"}
    assert ratios["locale=en-US"].value == pytest.approx(1.0)
    weights = {"small": 0.0, "large": 0.0}
    for name in model.catalogue["advertiser_tier"].to_pylist():
        weights[name] += 1 / 150
    mixed = sum(ratios[f"advertiser_tier={name}"].value * weight for name, weight in weights.items())
    assert mixed == pytest.approx(1.0)
    without = fit(plant_campaigns(60).drop_columns(["advertiser_tier", "locale"])).evaluate(plant_campaigns(12, seed=1))
    assert "exposure_to_catalogue_ratio" not in {m.metric for m in without.measurements}
    assert "Exposure in neighbour lists" not in {section.title for section in without.sections}


@pytest.mark.parametrize("nulls", [False, True])
def test_without_a_vertical_purity_is_none_with_a_note(nulls: bool, holdout: pa.Table) -> None:
    def strip(table: pa.Table) -> pa.Table:
        if nulls:
            return replace_column(table, "vertical", [None] * table.num_rows)
        return table.drop_columns(["vertical"])

    found = fit(strip(plant_campaigns(60))).evaluate(strip(holdout))
    for metric in (PURITY, f"reference_{PURITY}", "neighbour_purity_gain"):
        measured = look_up(found, metric)
        assert (measured.value, measured.low, measured.count) == (None, None, 0)
        assert measured.note == "no vertical to compare with"
    assert look_up(found, "mean_neighbour_similarity").value is not None
    assert_well_formed(found)


def test_campaigns_of_unknown_vertical_are_left_out(model: TopicFingerprints, holdout: pa.Table) -> None:
    some = [name if row % 3 else None for row, name in enumerate(holdout["vertical"].to_pylist())]
    found = model.evaluate(replace_column(holdout, "vertical", some))
    assert look_up(found, PURITY).count == 40
    assert look_up(found, PURITY).value > 0.98
    assert not any("None" in name for name in slices(found))
    assert_well_formed(found)


def test_no_holdout_leaves_only_what_needs_none(model: TopicFingerprints, holdout: pa.Table) -> None:
    found = model.evaluate(holdout.slice(0, 0))
    assert set(found.metrics()) == {
        "coherence_c_npmi",
        "topic_diversity",
        "num_topics",
        "vocabulary_terms",
        "topic_stability",
    }
    assert look_up(found, PURITY).value is None
    assert look_up(found, PURITY).count == 0
    assert_well_formed(found)


def test_one_row_has_values_with_wide_intervals(model: TopicFingerprints, holdout: pa.Table) -> None:
    found = model.evaluate(holdout.slice(0, 1))
    measured = look_up(found, PURITY)
    assert measured.value == 1.0
    assert measured.count == 1
    assert measured.low < 0.5
    assert_well_formed(found)


def test_campaigns_without_known_terms_are_counted_as_such(model: TopicFingerprints) -> None:
    strange = campaigns_of(["zyzzyva"], [], ["travel1 travel2", "quux"], ["travel3"])
    found = model.evaluate(strange)
    assert look_up(found, "no_known_term_share").value == 0.5
    assert look_up(found, "out_of_vocabulary_share").value == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-6)
    assert look_up(found, "out_of_vocabulary_share").count == 3
    assert look_up(found, "mean_neighbour_similarity").count == 2
    assert_well_formed(found)


@pytest.mark.parametrize(
    ("train", "asked"),
    [
        ([["tea pot"]], [["tea"], ["milk"]]),
        ([["tea pot"]] * 2, [["tea"]]),
        ([["tea pot"], ["tea cup"], ["milk cup"]], [["milk"], []]),
        ([["tea"], []], [["tea"]]),
        ([[f"word{number} other{number}" for number in range(120)]] * 150, [["word1"]]),
    ],
    ids=["one campaign", "two equal", "three small", "an empty one", "many equal"],
)
@pytest.mark.parametrize("algorithm", ["rotated-lsa", "lda"])
def test_odd_catalogues_are_measured(algorithm: str, train: list[list[str]], asked: list[list[str]]) -> None:
    assert_well_formed(fit(campaigns_of(*train), algorithm=algorithm).evaluate(campaigns_of(*asked)))


def test_lda_has_a_perplexity(holdout: pa.Table) -> None:
    found = fit(plant_campaigns(60), algorithm="lda").evaluate(holdout)
    assert 1 < look_up(found, "held_out_perplexity").value < 400
    # Ten campaigns of each vertical: every one of them has to be found.
    assert look_up(found, PURITY).value > 0.85
    assert_well_formed(found)


def test_a_clear_topic_is_relative_to_the_number_of_topics(model: TopicFingerprints) -> None:
    assert clear_share(model) == 4 / model.num_topics
    assert clear_share(fit(plant_campaigns(30), num_topics=2)) == 0.5


def test_examples_show_other_topics_and_a_thin_campaign(model: TopicFingerprints, evaluation: Evaluation) -> None:
    (section,) = [s for s in evaluation.sections if s.kind == "cards"]
    verticals = [card["subtitle"].split(" · ")[0] for card in section.data["cards"]]
    assert len(set(verticals)) >= 4
    for card in section.data["cards"]:
        assert [block["heading"] for block in card["blocks"]] == ["Topics", "Similar campaigns", "Recommended keywords"]


def test_progress_reaches_its_end(model: TopicFingerprints, holdout: pa.Table) -> None:
    calls: list[tuple[str, int, int]] = []
    model.evaluate(holdout.slice(0, 2), lambda *call: calls.append(call))
    assert calls[-1] == ("measuring", 5, 5)


def test_references_leave_out_what_they_do_not_know() -> None:
    import scipy.sparse as sp

    catalogue = sp.csr_matrix(np.eye(4, dtype=np.float32) + 1)
    asked = sp.csr_matrix(np.array([[0, 0, 0, 0], [0, 3, 0, 0]], dtype=np.float32))
    for reference in find_reference_neighbours(catalogue, asked, 6):
        assert (reference.positions[0] == -1).all()
        assert reference.positions[1, 0] == 1
        assert (reference.positions[1, 4:] == -1).all()


def test_campaigns_without_a_finite_fingerprint_are_refused_by_the_pipelines_gates(
    model: TopicFingerprints, holdout: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = type(model.topics).transform

    def fail_on_some(topics: Any, counts: Any) -> np.ndarray:
        fingerprints = np.array(transform(topics, counts))
        fingerprints[::5] = np.nan
        return fingerprints

    monkeypatch.setattr(type(model.topics), "transform", fail_on_some)
    rows = model.score_rows(holdout)
    share = measure_unscored(rows)
    assert [answer is None for answer in rows.answers.to_pylist()] == [row % 5 == 0 for row in range(len(rows.ids))]
    assert share.value == pytest.approx(-(-len(rows.ids) // 5) / len(rows.ids))
    gates = read_gates((find_pipeline("ad-campaigns").folder / "gates.yaml").read_text(encoding="utf-8"))
    (gate,) = (gate for gate in gates if gate.metric == share.metric)
    assert not judge([gate], [share]).holds
