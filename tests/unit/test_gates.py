"""Gates: what a file may say, and when a measurement holds."""

import json
import math
from pathlib import Path

import pytest

from mlflywheel.decisions.gates import Gate, judge, read_gates
from mlflywheel.errors import GateRefusedError, UsageError
from mlflywheel.models.contract import Measurement

FILE = Path(__file__).parents[2] / "pipelines" / "ad_campaigns" / "gates.yaml"


def gate_of(fields: str) -> tuple[Gate, ...]:
    return read_gates(f"schema: 1\ngates:\n  - {{{fields}}}")


def holds(fields: str, *measurements: Measurement) -> list[bool | None]:
    return [result.holds for result in judge(gate_of(fields), measurements).results]


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ("at_least: 0.5", 0.5, True),
        ("at_least: 0.5", math.nextafter(0.5, 0), False),
        ("at_most: 0.5", 0.5, True),
        ("at_most: 0.5", math.nextafter(0.5, 1), False),
        ("at_least: 0.5", math.inf, True),
        ("at_most: 0.5", math.inf, False),
    ],
)
def test_limit_itself_holds_and_the_next_float_does_not(bound: str, value: float, expected: bool) -> None:
    assert holds(f"metric: m, {bound}", Measurement("m", value)) == [expected]


def test_difference_below_print_precision_is_printed() -> None:
    result = judge(gate_of("metric: m, at_least: 0.5"), [Measurement("m", math.nextafter(0.5, 0))]).results[0]
    assert result.reason == "m 0.49999999999999994 is below 0.5 on slice all"


@pytest.mark.parametrize("bound", ["at_least: 0.5", "at_most: 0.5", "at_least: 0.5, when_missing: skip"])
def test_nan_never_holds(bound: str) -> None:
    assert holds(f"metric: m, {bound}", Measurement("m", math.nan)) == [False]


def test_nan_reference_never_holds() -> None:
    fields = "metric: m, at_least_metric: r, when_missing: skip"
    assert holds(fields, Measurement("m", 1.0), Measurement("r", math.nan)) == [False]


@pytest.mark.parametrize(
    ("fields", "value", "expected"),
    [
        ("at_least_metric: r, margin: 0.25", 0.5, True),
        ("at_least_metric: r, margin: 0.25", 0.49, False),
        ("at_least_metric: r", 0.75, True),
        ("at_least_metric: r", 0.74, False),
        ("at_most_metric: r, margin: 0.25", 1.0, True),
        ("at_most_metric: r, margin: 0.25", 1.01, False),
    ],
)
def test_limit_from_another_metric_moves_by_the_margin(fields: str, value: float, expected: bool) -> None:
    assert holds(f"metric: m, {fields}", Measurement("r", 0.75), Measurement("m", value)) == [expected]


def test_reference_is_taken_from_the_same_slice() -> None:
    verdict = judge(
        gate_of("metric: m, at_least_metric: r, slices: ['locale=de']"),
        [
            Measurement("m", 0.5, "locale=de", 40),
            Measurement("r", 0.4, "locale=de", 40),
            Measurement("r", 0.9),
        ],
    )
    assert [(result.limit, result.holds) for result in verdict.results] == [(0.4, True)]


@pytest.mark.parametrize(("when_missing", "expected"), [("skip", None), ("refuse", False)])
@pytest.mark.parametrize(
    ("fields", "measurements"),
    [
        ("at_least: 0.5", []),
        ("at_least: 0.5", [Measurement("m", None, note="no vertical column")]),
        ("at_least: 0.5", [Measurement("m", 0.9, "locale=de", 50)]),
        ("at_least_metric: r", [Measurement("m", 0.9)]),
        ("at_least_metric: r", [Measurement("m", 0.9), Measurement("r", None)]),
        ("at_least: 0.5, slices: [locale]", [Measurement("m", 0.9)]),
        ("at_least: 0.5, min_count: 10", [Measurement("m", 0.9, count=9)]),
    ],
)
def test_missing_measurement_is_refused_unless_skipped(
    fields: str, measurements: list[Measurement], when_missing: str, expected: bool | None
) -> None:
    verdict = judge(gate_of(f"metric: m, {fields}, when_missing: {when_missing}"), measurements)
    assert [result.holds for result in verdict.results] == [expected]
    assert verdict.holds is (expected is None)


def test_missing_is_the_default_refusal() -> None:
    assert holds("metric: m, at_least: 0.5") == [False]


def test_column_judges_every_slice_with_enough_rows() -> None:
    measurements = [
        Measurement("m", 0.9, "locale=en", 100),
        Measurement("m", 0.1, "locale=de", 30),
        Measurement("m", 0.1, "locale=fr", 29),
        Measurement("m", 0.1, "locale_group=x", 100),
        Measurement("other", 0.1, "locale=it", 100),
        Measurement("m", 0.9),
    ]
    results = judge(gate_of("metric: m, at_least: 0.5, slices: [all, locale]"), measurements).results
    assert [(result.slice, result.holds) for result in results] == [
        ("all", True),
        ("locale=en", True),
        ("locale=de", False),
        ("locale=fr", None),
    ]
    assert results[3].reason == "m skipped on slice locale=fr: 29 rows, 30 are needed"


def test_column_whose_slices_are_all_too_small_is_missing() -> None:
    verdict = judge(gate_of("metric: m, at_least: 0.5, slices: [locale]"), [Measurement("m", 0.9, "locale=de", 5)])
    assert [(result.slice, result.holds) for result in verdict.results] == [("locale=de", None), ("locale", False)]


def test_slice_named_twice_is_judged_once() -> None:
    fields = "metric: m, at_least: 0.5, slices: ['locale=de', locale, all, all]"
    assert holds(fields, Measurement("m", 0.9, "locale=de", 50), Measurement("m", 0.9)) == [True, True]


@pytest.mark.parametrize(
    ("bound", "low", "high", "expected"),
    [
        ("at_least: 0.5", 0.5, 0.9, True),
        ("at_least: 0.5", 0.4, 0.9, False),
        ("at_most: 0.8", 0.5, 0.8, True),
        ("at_most: 0.8", 0.5, 0.9, False),
        ("at_least: 0.5", None, None, False),
        ("at_least: 0.5, when_missing: skip", None, None, False),
    ],
)
def test_interval_gate_judges_the_worse_end(bound: str, low: float | None, high: float | None, expected: bool) -> None:
    measured = Measurement("m", 0.7, low=low, high=high, count=50)
    assert holds(f"metric: m, {bound}, judge: interval", measured) == [expected]


def test_result_carries_value_and_judged_end() -> None:
    measured = Measurement("m", 0.7, low=0.4, high=0.9, count=50)
    result = judge(gate_of("metric: m, at_least: 0.5, judge: interval"), [measured]).results[0]
    assert (result.value, result.judged, result.limit, result.count) == (0.7, 0.4, 0.5, 50)
    assert result.reason == "m 0.7 (0.4 to 0.9) with an interval's low end 0.4 is below 0.5 on slice all"


@pytest.mark.parametrize(
    ("bound", "low", "high", "expected"),
    [
        ("at_most: 0.05", 0.051, 0.3, False),
        ("at_most: 0.05", 0.05, 0.3, True),
        ("at_most: 0.05", -0.1, 0.3, True),
        ("at_least: 0.8", 0.5, 0.79, False),
        ("at_least: 0.8", 0.5, 0.8, True),
        ("at_least: 0.8", 0.5, 0.95, True),
        ("at_most: 0.05", math.nan, 0.3, False),
        ("at_most: 0.05", None, 0.3, False),
        ("at_most: 9.0", None, None, False),
        ("at_most: 9.0, when_missing: skip", None, None, False),
    ],
)
def test_whole_interval_gate_refuses_only_what_lies_beyond_the_limit_entirely(
    bound: str, low: float | None, high: float | None, expected: bool
) -> None:
    measured = Measurement("m", 0.2, low=low, high=high, count=50)
    assert holds(f"metric: m, {bound}, judge: whole_interval", measured) == [expected]


@pytest.mark.parametrize("judged_by", ["value", "interval", "whole_interval"])
def test_nan_with_an_interval_never_holds(judged_by: str) -> None:
    measured = Measurement("m", math.nan, low=0.6, high=0.7, count=50)
    assert holds(f"metric: m, at_least: 0.5, judge: {judged_by}, when_missing: skip", measured) == [False]


def test_whole_interval_is_compared_with_the_other_metrics_value() -> None:
    fields = "metric: m, at_most_metric: r, margin: 0.1, judge: whole_interval"
    for low, expected in ((0.31, False), (0.29, True)):
        measured = Measurement("m", 0.5, low=low, high=0.6)
        assert holds(fields, measured, Measurement("r", 0.2)) == [expected]


def test_refusal_carries_value_interval_limit_slice_and_note_and_what_holds_does_not_carry_the_note() -> None:
    gates = gate_of("metric: selection_rate_gap_rise, at_most: 0.05, slices: [between], judge: whole_interval")
    note = "now highest above 25 0.7 (810 rows), lowest 25 or less 0.4 (190 rows)"

    def reason(low: float) -> str:
        rise = Measurement("selection_rate_gap_rise", 0.21, "between=age", 1000, low, 0.31, note)
        return judge(gates, [rise]).results[0].reason

    assert reason(0.11) == (
        "selection_rate_gap_rise 0.21 (0.11 to 0.31) is above 0.05 with its whole interval on slice between=age: "
        + note
    )
    assert reason(0.01) == (
        "selection_rate_gap_rise 0.21 (0.01 to 0.31) is not above 0.05 with its whole interval on slice between=age"
    )
    assert reason(math.nextafter(0.05, 1)).startswith(
        "selection_rate_gap_rise 0.21 (0.05000000000000001 to 0.31) is above 0.05 with"
    )


def test_value_without_an_interval_is_refused_with_its_note() -> None:
    gates = gate_of("metric: catalogue_coverage_gap, at_most: 0.5, judge: whole_interval")
    result = judge(gates, [Measurement("catalogue_coverage_gap", 0.1, note="highest a, lowest b")]).results[0]
    assert result.reason == (
        "catalogue_coverage_gap 0.1 has no interval on slice all, and the gate asks for one: highest a, lowest b"
    )


def test_verdict_is_strict_json() -> None:
    verdict = judge(gate_of("metric: m, at_least: 0.5"), [Measurement("m", math.nan)])
    (entry,) = json.loads(json.dumps(verdict.to_list(), allow_nan=False))
    assert {key: entry[key] for key in ("metric", "slice", "value", "limit", "holds")} == {
        "metric": "m",
        "slice": "all",
        "value": None,
        "limit": 0.5,
        "holds": False,
    }


def test_refusal_names_every_failed_gate_and_no_other() -> None:
    gates = (
        *gate_of("metric: purity, at_least_metric: reference, margin: 0.02"),
        *gate_of("metric: unknown, at_most: 0.4, slices: [locale]"),
        *gate_of("metric: diversity, at_least: 0.6"),
    )
    measurements = [
        Measurement("purity", 0.8),
        Measurement("reference", 0.9),
        Measurement("unknown", 0.55, "locale=de", 40),
        Measurement("diversity", 0.7),
    ]
    with pytest.raises(GateRefusedError) as caught:
        judge(gates, measurements).raise_if_refused("gates.yaml")
    assert caught.value.exit_code == 3
    assert caught.value.seen == (
        "2 of 3 do not hold: purity 0.8 is below 0.88 (reference - 0.02) on slice all; "
        "unknown 0.55 is above 0.4 on slice locale=de"
    )


def test_verdict_that_holds_does_not_raise() -> None:
    judge(gate_of("metric: m, at_least: 0.5"), [Measurement("m", 0.6)]).raise_if_refused()
    judge((), []).raise_if_refused()


def test_metric_measured_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="metric m: measured twice on slice all"):
        judge((), [Measurement("m", 0.5), Measurement("m", 0.6)])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ("metric: m, at_lest: 0.5", "f.yaml, gate 1, at_lest"),
        ("at_least: 0.5", "f.yaml, gate 1, metric"),
        ("metric: 7, at_least: 0.5", "f.yaml, gate 1, metric"),
        ("metric: m", "f.yaml, gate 1 (m)"),
        ("metric: m, at_least: 0.5, at_most: 0.6", "f.yaml, gate 1 (m)"),
        ("metric: m, at_least: yes", "f.yaml, gate 1 (m), at_least"),
        ("metric: m, at_least: .nan", "f.yaml, gate 1 (m), at_least"),
        ("metric: m, at_least: .inf", "f.yaml, gate 1 (m), at_least"),
        ("metric: m, at_least: 1e-3", "f.yaml, gate 1 (m), at_least"),
        ("metric: m, at_least_metric: m", "f.yaml, gate 1 (m), at_least_metric"),
        ("metric: m, at_least_metric: 0.5", "f.yaml, gate 1 (m), at_least_metric"),
        ("metric: m, at_least: 0.5, margin: 0.1", "f.yaml, gate 1 (m), margin"),
        ("metric: m, at_least_metric: r, margin: -0.1", "f.yaml, gate 1 (m), margin"),
        ("metric: m, at_least: 0.5, slices: locale", "f.yaml, gate 1 (m), slices"),
        ("metric: m, at_least: 0.5, slices: []", "f.yaml, gate 1 (m), slices"),
        ("metric: m, at_least: 0.5, slices: ['=de']", "f.yaml, gate 1 (m), slices"),
        ("metric: m, at_least: 0.5, min_count: -1", "f.yaml, gate 1 (m), min_count"),
        ("metric: m, at_least: 0.5, min_count: 2.5", "f.yaml, gate 1 (m), min_count"),
        ("metric: m, at_least: 0.5, when_missing: ignore", "f.yaml, gate 1 (m), when_missing"),
        ("metric: m, at_least: 0.5, judge: [value]", "f.yaml, gate 1 (m), judge"),
        ("metric: m, at_least: 0.5, at_least: 0.1", "f.yaml, at_least, in the fields that start at line 3"),
    ],
)
def test_wrong_field_is_refused_by_entry_and_name(fields: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_gates(f"schema: 1\ngates:\n  - {{{fields}}}", "f.yaml")
    assert caught.value.where == where


@pytest.mark.parametrize(
    "document",
    [
        "",
        "- metric: m",
        "gates: []",
        "schema: 2\ngates: []",
        "schema: true\ngates: []",
        "schema: 1",
        "schema: 1\ngates: {}",
        "schema: 1\ngates: [m]",
        "schema: 1\ngates: []\nmore: 1",
        "schema: 1\nschema: 1\ngates: []",
        "schema: [1",
        "schema: 1\ngates: !!python/object/apply:os.getcwd []",
        "schema: 1\ngates: 2026-99-99",
        "[" * 5000,
    ],
)
def test_document_that_is_no_gates_file_is_a_usage_error(document: str) -> None:
    with pytest.raises(UsageError):
        read_gates(document)


def test_text_that_looks_like_a_number_gets_a_fix() -> None:
    with pytest.raises(UsageError, match=r"YAML 1\.1 reads this as text: write it as a decimal"):
        gate_of("metric: m, at_least: 1e-3")


def test_empty_list_judges_nothing() -> None:
    assert judge(read_gates("schema: 1\ngates: []"), [Measurement("m", 0.1)]).results == ()


def test_gates_of_ad_campaigns_refuse_bad_topics_and_allow_a_table_without_verticals() -> None:
    gates = read_gates(FILE.read_text(encoding="utf-8"), FILE.name)
    good = {
        "coherence_c_npmi": 0.4,
        "topic_diversity": 0.85,
        "out_of_vocabulary_share": 0.2,
        "no_clear_topic_share": 0.2,
        "topic_stability": 0.7,
        "unscored_share": 0.0,
    }
    verdict = judge(gates, [Measurement(name, value) for name, value in good.items()])
    assert verdict.holds
    # Both comparisons with a vertical or with hidden keywords, the slices of a locale, and eight with older versions.
    assert sum(result.holds is None for result in verdict.results) == 11
    for name in good:
        worse = {**good, name: 1.0 - good[name] if name.endswith("share") else 0.04}
        refused = judge(gates, [Measurement(n, v) for n, v in worse.items()]).refused
        assert [result.metric for result in refused] == [name]
