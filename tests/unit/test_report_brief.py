"""The report in brief: what it says, about which gates, and of which measurements."""

from mlflywheel.models.contract import Evaluation, Measurement, Section
from mlflywheel.reports import Report, render_report
from mlflywheel.reports.brief import Line, list_lines

MEASURED = (
    Measurement("mdape", 0.08, count=500),
    Measurement("champion_loss_mdape", 0.004, count=500, low=0.001, high=0.007, about="champion"),
    Measurement("champion_churn", 0.25, count=500, low=0.2, high=0.3, about="champion"),
    Measurement("gain_over_ridge", 0.01, count=500, low=0.005, high=0.015, about="champion"),
    Measurement("slice_effect_mdape", 0.05, "fuel=Electric", 120, 0.02, 0.08, about="slices"),
    Measurement("slice_effect_mdape", 0.01, "gear=Manual", 300, -0.01, 0.03, about="slices"),
    Measurement("mdape_group_gap", 0.03, "between=fuel", 500, 0.01, 0.05, about="groups"),
    Measurement("mdape_group_gap", 0.01, "between=gear", 500, 0.0, 0.05, about="groups"),
    Measurement("mdape_group_gap_rise", 0.02, "between=fuel", 500, 0.005, 0.04, about="groups"),
    Measurement("feature_importance", 0.1, "feature=year", 500, about="explanations"),
    Measurement("feature_importance", 0.3, "feature=mileage_km", 500, about="explanations"),
    Measurement("feature_importance", -0.01, "feature=gear", 500, about="explanations"),
    Measurement("breaking_contract_changes", 2.0, about="contract", note="/request/required: year is new"),
    Measurement("trend_decline_mdape", 0.01, low=-0.01, high=0.03, count=6, about="trend"),
)
GATES = (
    {"metric": "mdape", "slice": "all", "value": 0.08, "limit": 0.1, "relation": "<=", "holds": True},
    {
        "metric": "mdape_group_gap",
        "slice": "between=fuel",
        "value": 0.03,
        "limit": 0.0,
        "relation": "<=",
        "holds": False,
        "reason": "mdape_group_gap 0.03 is above 0",
    },
    {"metric": "gone", "slice": "all", "value": None, "limit": 1.0, "relation": "<=", "holds": None},
)


def answers(champion: str | None = "vehicle-prices@3") -> dict[str, Line]:
    return {line.question: line for line in list_lines(Evaluation(MEASURED), GATES, champion)}


def test_refusing_gates_come_first_with_their_metric() -> None:
    first = list_lines(Evaluation(MEASURED), GATES, None)[0]
    assert first.answer == "No: 1 gate of 3 refuse it (mdape_group_gap). 1 gate had nothing to judge."


def test_champion_is_named_with_the_direction_and_the_interval() -> None:
    line = answers()["Is it as good as the version in use?"]
    assert "Against vehicle-prices@3" in line.answer
    assert "mdape 0.0040 worse (0.0010 to 0.0070)" in line.answer
    assert "25" in line.answer
    assert line.gates == ()


def test_absent_champion_is_said() -> None:
    line = answers(None)["Is it as good as the version in use?"]
    assert line.answer == "There is no version in use to compare it with."


def test_only_slices_shown_to_be_worse_are_named() -> None:
    assert answers()["Where is it weakest?"].answer == "In mdape: fuel=Electric (0.050 worse, 120 rows)."


def test_gaps_shown_to_be_there_are_named_with_the_gate_about_them() -> None:
    line = answers()["Do groups get the same?"]
    assert "between fuel 0.030 (0.010 to 0.050)" in line.answer
    assert "between gear" not in line.answer
    assert "a gap has grown" in line.answer
    assert line.gates == (False,)


def test_features_are_named_by_how_much_they_are_needed() -> None:
    assert answers()["What does it go by?"].answer == "Most by mileage_km, year."


def test_breaking_changes_are_listed() -> None:
    assert answers()["Do callers have to change?"].answer.endswith("/request/required: year is new")


def test_uncertain_decline_is_not_called_one() -> None:
    assert answers()["Does the model get worse from version to version?"].answer == "No decline is shown, in 1 metric."


def test_page_shows_the_brief_and_keeps_other_measurements_out_of_the_headlines() -> None:
    page = render_report(Report("Cars", {"status": "gate_refused", "gates": list(GATES)}, Evaluation(MEASURED)))
    assert 'id="brief"' in page
    tiles = page.split('class="tiles"')[1].split("</ul>")[0]
    assert "Mdape" in tiles
    assert "hampion" not in tiles
    assert "What else was measured" in page


def test_page_of_a_model_that_was_only_measured_by_itself_has_no_brief() -> None:
    page = render_report(Report("Cars", {}, Evaluation((Measurement("mdape", 0.1),), (Section("text", "A", "B"),))))
    assert 'id="brief"' not in page


def test_names_of_slices_cannot_become_markup() -> None:
    slice_ = Measurement("slice_effect_m", 0.5, "make=<script>x</script>", 99, 0.4, 0.6, about="slices")
    page = render_report(Report("Cars", {}, Evaluation((slice_,))))
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page
