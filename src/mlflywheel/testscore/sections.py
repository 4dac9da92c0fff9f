"""The score as sections of a report, and as a page of its own."""

from mlflywheel.models.contract import Evaluation, Section
from mlflywheel.testscore.rubric import SECTIONS
from mlflywheel.testscore.score import ScoredTest, TestScore

_MOST = 7.0


def sections(score: TestScore) -> tuple[Section, ...]:
    """Return the sections of a report: the four sums as bars, and each section's tests as a table."""
    limiting = " and ".join(score.limiting)
    bars = [
        {"label": name.capitalize(), "value": points, "accent": name in score.limiting}
        for name, points in score.sections.items()
    ]
    overview = Section(
        "bars",
        "ML Test Score",
        f"{score.score:g} of 7: {score.band}. The score is the lowest of four sections, here {limiting}. A test is "
        "worth half a point done by hand and recorded, and a point done by machines again and again "
        "(Breck et al. 2017, doi 10.1109/BigData.2017.8258038).",
        {"bars": bars, "low": 0.0, "high": _MOST},
    )
    return (overview, *(_list_section(score, name) for name in SECTIONS))


def _list_section(score: TestScore, name: str) -> Section:
    tests = [test for test in score.tests if test.section == name]
    columns: list[dict[str, object]] = [
        {"name": "Test", "kind": "text"},
        {"name": "Points", "kind": "number", "decimals": 1},
        {"name": "Evidence, and what would earn more", "kind": "text"},
    ]
    return Section(
        "table",
        f"ML Test Score: {name}",
        f"{sum(test.points for test in tests):g} of 7 points.",
        {"columns": columns, "rows": [_list_test(test) for test in tests], "sortable": False},
    )


def _list_test(test: ScoredTest) -> list[object]:
    """Return a row of three cells: with more columns a phone would show half of each."""
    places = [one.where if one.at is None else f"{one.where}, {one.at:%Y-%m-%d}" for one in test.evidence]
    notes = [f"{'; '.join(places)}."] if places else []
    if test.missing:
        notes.append(test.missing)
    shown = test.evidence[0].what if test.evidence else "no evidence"
    return [{"value": test.id, "note": test.title}, test.points, {"value": shown, "note": " ".join(notes)}]


def render_page(score: TestScore) -> str:
    """Render the score as a page of its own, to be written as UTF-8."""
    from mlflywheel.reports.page import Report, render_report

    summary = {"status": f"{score.score:g} of 7", "pipeline": "testscore", "run_id": f"{score.at:%Y-%m-%d %H:%M} UTC"}
    parts = sections(score)
    if score.notes:
        text = "What was seen, and does not count."
        parts += (Section("text", "Notes", text, {"paragraphs": [f"{note}." for note in score.notes]}),)
    title = f"ML Test Score of {score.reference}"
    return render_report(Report(title, summary, Evaluation((), parts)))
