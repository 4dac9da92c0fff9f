"""What groups of a catalogue are shown: ratios by hand, gaps and rises, catalogues that differ, empty lists."""

import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.decisions.gates import judge, read_gates
from mlflywheel.errors import DataError
from mlflywheel.evaluation.fairness import measure_fairness
from mlflywheel.evaluation.plan import FairnessPlan, read_plan
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores
from mlflywheel.models.topic_fingerprints.quality import measure_exposure

SECOND = 1 / np.log2(3)


def recommend(
    lists: Sequence[Sequence[str] | None],
    catalogue: dict[str, list[str | None]],
    attributes: dict[str, list[str | None]] | None = None,
) -> RowScores:
    count = len(lists)
    return RowScores(
        "recommendation",
        pa.array([str(n) for n in range(count)], pa.string()),
        pa.table(attributes if attributes is not None else {"other": ["x"] * count}),
        (RowMetric("purity", np.linspace(0.0, 1.0, count), "higher", (0.0, 1.0)),),
        pa.array(lists, pa.list_(pa.string())),
        catalogue=pa.table({**catalogue, "id": [f"i{n}" for n in range(len(next(iter(catalogue.values()))))]}),
    )


def plan_of(*groups: str, minimum_count: int = 2) -> FairnessPlan:
    return read_plan(f"schema: 1\nfairness: {{groups: [{', '.join(groups)}], minimum_count: {minimum_count}}}").fairness


def by_name(evaluation: Evaluation) -> dict[tuple[str, str], Measurement]:
    found = {(m.metric, m.slice): m for m in evaluation.measurements}
    assert len(found) == len(evaluation.measurements)
    return found


def draw(count: int, seed: int, favour: float = 0.0) -> RowScores:
    """Draw lists of four from 60 small and 60 large entries; of half the places and `favour` more the large ones."""
    random = np.random.default_rng(seed)
    lists: list[list[str] | None] = []
    for _ in range(count):
        large = random.random(4) < 0.5 + favour
        entries = random.integers(0, 60, 4) + np.where(large, 60, 0)
        lists.append([f"i{entry}" for entry in entries])
    tiers: list[str | None] = [*["small"] * 60, *["large"] * 60]
    queries: list[str | None] = [("small", "large")[n % 2] for n in range(count)]
    return recommend(lists, {"tier": tiers}, {"tier": queries})


def test_ratios_are_those_computed_by_hand() -> None:
    rows = recommend(
        [["i0", "i1"], ["i2", "i3"], ["i1"]],
        {"tier": ["small", "large", "large", "large", "small"]},
        {"tier": ["small", "large", "small"]},
    )
    found = by_name(measure_fairness(rows, plan_of("tier")))
    small, whole = 1.0, 3.0 + 2 * SECOND
    ratio = found["exposure_to_catalogue_ratio", "tier=small"]
    assert ratio.value == pytest.approx(small / whole / 0.4)
    assert ratio.note == f"40.0% of the catalogue, {small / whole:.1%} of the exposure"
    # Rows of the small tier ask for two lists: one of two entries, one of one.
    asked = 2.0 + SECOND
    assert found["exposure_to_relevance_ratio", "tier=small"].value == pytest.approx(small / asked)
    gap = found["exposure_gap", "between=tier"]
    assert gap.value == pytest.approx((whole - small) / whole / 0.6 - small / whole / 0.4)
    assert " for large (" in gap.note.partition(", lowest ")[0]
    assert found["catalogue_coverage", "all"].value == 0.8
    assert found["catalogue_coverage", "tier=small"].value == 0.5
    assert found["catalogue_coverage_gap", "between=tier"].value == pytest.approx(0.5)
    assert found["catalogue_coverage_gap", "between=tier"].low is None
    assert found["purity", "tier=large"].value == 0.5


def test_ratio_to_the_catalogue_agrees_with_that_of_the_campaign_model() -> None:
    rows = draw(300, 0, favour=0.1)
    found = by_name(measure_fairness(rows, plan_of("tier")))
    positions = [[int(one[1:]) for one in entries] for entries in rows.answers.to_pylist()]
    for exposure in measure_exposure(positions, ["small"] * 60 + ["large"] * 60):
        one = found["exposure_to_catalogue_ratio", f"tier={exposure.group}"]
        assert one.value == pytest.approx(exposure.ratio.value)
        assert one.low == pytest.approx(exposure.ratio.low, abs=0.02)
        assert one.high == pytest.approx(exposure.ratio.high, abs=0.02)


def test_favoured_group_is_found_and_refused_and_a_second_draw_is_not() -> None:
    gates = read_gates(
        "schema: 1\ngates: [{metric: exposure_gap_rise, at_most: 0.1, slices: [between], judge: whole_interval}]"
    )
    plan = plan_of("tier", minimum_count=50)
    champion = draw(400, 1)
    same = judge(gates, measure_fairness(draw(400, 2), plan, champion, "topics@4").measurements)
    assert same.holds
    verdict = judge(gates, measure_fairness(draw(400, 3, favour=0.2), plan, champion, "topics@4").measurements)
    (refused,) = verdict.refused
    assert "is above 0.1 with its whole interval on slice between=tier: now highest 1." in refused.reason
    assert re.search(r"lowest 0\.\d+ for small \(", refused.reason)
    assert "; topics@4 highest " in refused.reason
    assert "(60 entries)" in refused.reason


def test_same_lists_have_no_rise() -> None:
    rows = draw(200, 4, favour=0.3)
    found = by_name(measure_fairness(rows, plan_of("tier"), rows))
    for metric in ("exposure_gap_rise", "exposure_to_relevance_gap_rise"):
        one = found[metric, "between=tier"]
        assert one.value == 0.0
        # The gap is clear of 0, so both models have the same widest pair in every resample that counts.
        assert one.low == pytest.approx(0.0, abs=1e-6)
        assert one.high == pytest.approx(0.0, abs=1e-6)
    assert found["catalogue_coverage_gap_rise", "between=tier"].value == 0.0


def test_intervals_of_gaps_hold_the_truth_as_often_as_they_say() -> None:
    plan, missed = plan_of("tier", minimum_count=50), 0
    for seed in range(60):
        gap = by_name(measure_fairness(draw(80, seed, favour=0.15), plan))["exposure_gap", "between=tier"]
        assert gap.low is not None
        assert gap.high is not None
        # A share of 0.65 against 0.35, each over a half.
        missed += not gap.low <= 0.6 <= gap.high
    assert missed <= 9


def test_result_does_not_change_from_run_to_run() -> None:
    rows, plan = draw(50, 1), plan_of("tier")
    assert measure_fairness(rows, plan, seed=3) == measure_fairness(rows, plan, seed=3)
    assert measure_fairness(rows, plan, seed=3) != measure_fairness(rows, plan, seed=4)


def test_champion_recommends_from_its_own_catalogue() -> None:
    rows = recommend([["i0", "i2"]] * 4, {"tier": ["a", "a", "b", "b"]})
    # The same ids are other entries there, one is of a group that has gone, and one list names an unknown entry.
    old = recommend([["i0", "i5"]] * 3 + [["i9", "i9"]], {"tier": ["b", "b", "a", "a", "gone", "gone"]})
    found = by_name(measure_fairness(rows, plan_of("tier"), old, "topics@1"))
    rise = found["exposure_gap_rise", "between=tier"]
    new_gap = (1 - SECOND) / (1 + SECOND) / 0.5
    old_gap = 3.0 / (4 * (1 + SECOND)) / (2 / 6)
    assert rise.value == pytest.approx(new_gap - old_gap)
    assert re.search(r"topics@1 highest [\d.]+ for b \(", rise.note)
    assert found["catalogue_coverage_gap_rise", "between=tier"].value == pytest.approx(0.0 - 0.5)


def test_empty_results_are_counted_by_group_of_rows() -> None:
    lists: list[list[str] | None] = [[], None, ["i0"], ["i1"]] * 25
    rows = recommend(lists, {"tier": ["a", "b"]}, {"locale": ["de", "en", "en", "de"] * 25})
    old = recommend([["i0"]] * 100, {"tier": ["a", "b"]}, {"locale": ["de", "en", "en", "de"] * 25})
    found = by_name(measure_fairness(rows, plan_of("locale"), old))
    assert found["empty_result_rate", "all"].value == 0.5
    assert found["empty_result_rate", "locale=de"].value == 0.5
    assert found["empty_result_rate_gap", "between=locale"].value == 0.0
    assert found["empty_result_rate_gap_rise", "between=locale"].value == 0.0
    # Nothing is known of what this catalogue shows by locale: it has no such column.
    assert ("exposure_gap", "between=locale") not in found
    assert found["catalogue_coverage", "all"].value == 1.0


def test_one_group_with_more_empty_lists_is_found() -> None:
    plain, worse = draw(400, 0), draw(400, 0)
    lists = worse.answers.to_pylist()
    for n in range(0, 400, 4):
        lists[n] = []
    rows = recommend(lists, {"tier": worse.catalogue["tier"].to_pylist()} if worse.catalogue else {}, None)
    rows = RowScores(rows.task, rows.ids, plain.attributes, rows.metrics, rows.answers, None, None, {}, plain.catalogue)
    found = by_name(measure_fairness(rows, plan_of("tier"), plain))
    rise = found["empty_result_rate_gap_rise", "between=tier"]
    assert rise.value == 0.5
    assert rise.low is not None
    assert rise.low > 0.35


def test_column_of_the_catalogue_alone_has_exposure_and_no_relevance() -> None:
    rows = recommend([["i0", "i2"]] * 60, {"tier": ["a", "a", "b", "b"]})
    found = by_name(measure_fairness(rows, plan_of("tier")))
    assert found["exposure_gap", "between=tier"].value is not None
    missing = found["exposure_to_relevance_gap", "between=tier"]
    assert (missing.value, missing.note) == (
        None,
        "rows have no column tier, so what is relevant to them is not known",
    )
    assert ("exposure_to_relevance_ratio", "tier=a") not in found
    assert ("purity_group_gap", "between=tier") not in found
    with pytest.raises(DataError, match="group column nowhere"):
        measure_fairness(rows, plan_of("nowhere"))


def test_all_lists_empty_and_no_rows_are_defined_cases() -> None:
    for lists in ([[]] * 10, []):
        rows = recommend(lists, {"tier": ["a", "a", "b", "b"]}, {"tier": ["a", "b"] * (len(lists) // 2)})
        if not lists:
            rows = recommend(lists, {"tier": ["a", "a", "b", "b"]}, {"tier": pa.array([], pa.string())})
        evaluation = measure_fairness(rows, plan_of("tier"), rows)
        found = by_name(evaluation)
        for metric in ("exposure_gap", "exposure_to_relevance_gap", "exposure_gap_rise"):
            assert found[metric, "all"].value is None
            assert "all lists are empty" in found[metric, "all"].note
        assert found["exposure_to_catalogue_ratio", "tier=a"].value is None
        assert found["catalogue_coverage", "tier=a"].value == 0.0
        json.dumps(evaluation.to_dict(), allow_nan=False)


def test_small_groups_of_the_catalogue_are_measured_and_in_no_gap() -> None:
    tiers: list[str | None] = [*["a"] * 60, *["b"] * 60, None]
    rows = recommend([["i0", "i120", "i61"]] * 60, {"tier": tiers})
    found = by_name(measure_fairness(rows, plan_of("tier", minimum_count=50)))
    assert (found["exposure_to_catalogue_ratio", "tier=missing"].value or 0) > 30
    assert "in no gap: 1 entries, 50 are needed" in found["exposure_to_catalogue_ratio", "tier=missing"].note
    assert found["exposure_gap", "between=tier"].note.endswith("in no gap: missing (1 entries)")
    assert (found["exposure_gap", "between=tier"].value or 0) < 2
    one = by_name(measure_fairness(rows, plan_of("tier", minimum_count=61)))
    assert one["exposure_gap", "between=tier"].note.startswith("fewer than two groups of tier have 61 entries")


def test_what_the_model_measures_itself_is_left_out() -> None:
    rows = draw(50, 1)
    known = {("exposure_to_catalogue_ratio", "tier=small"), ("exposure_to_catalogue_ratio", "tier=large")}
    found = by_name(measure_fairness(rows, plan_of("tier"), existing=known))
    assert not known & set(found)
    assert ("exposure_gap", "between=tier") in found
