"""A rollout as parts of a report: how it ended, what the judge found, and who did what when and why."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflywheel.models.contract import Evaluation, Section
from mlflywheel.reports.formats import format_number, format_share, plural
from mlflywheel.reports.page import Report, render_report
from mlflywheel.rollouts.record import Record

SCHEMA = 1
NOT_ASKED_FOR = "not asked for"

_SAYS = {
    ("harm", True): "worse",
    ("harm", False): "not shown to be worse",
    ("margin", True): "within its margin",
    ("margin", False): "margin not shown",
}
_STATUS = {"promoted": "succeeded", "rolled_back": "gate_refused", "stopped": "failed"}
_REASON_CHARACTERS = 300


def build_rollout_sections(record: Record) -> tuple[Section, ...]:
    """Return the sections of a rollout; those without content are left out.

    Args:
        record: As it stands, ended or not.

    Returns:
        How it stands, the judge's findings, errors over time, and the history.
    """
    sections = (_tell(record), _list_findings(record), _draw_errors(record), _list_history(record))
    return tuple(section for section in sections if section is not None)


def render_rollout(record: Record) -> str:
    """Render a rollout as a page of its own, to be written as UTF-8."""
    summary: dict[str, Any] = {
        "status": _STATUS.get(record.phase, "running"),
        "pipeline": "rollout",
        "run_id": record.id,
        "error": record.message if record.phase in ("rolled_back", "stopped") else None,
        "service": record.service,
        "candidate": asdict(record.candidate),
        "parameters": {"policy": record.policy.to_dict()},
    }
    title = f"{record.candidate.model or record.candidate.storage_uri} on {record.service}"
    return render_report(Report(title, summary, Evaluation((), build_rollout_sections(record))))


def write_rollout(verdict: str, record: Record | None, rollout: Path, report: Path) -> None:
    """Write a deployment as JSON with the sections of the run's report, and as a page of its own.

    Args:
        verdict: How it ended.
        record: Its rollout; None if there was none.
        rollout: Where the JSON goes: `verdict`, `record` and `sections`.
        report: Where the page goes.
    """
    sections = () if record is None else build_rollout_sections(record)
    values = {
        "schema": SCHEMA,
        "verdict": verdict,
        "record": None if record is None else record.to_dict(),
        "sections": [asdict(section) for section in sections],
    }
    rollout.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
    page = f"<p>No rollout: the version is {verdict}.</p>" if record is None else render_rollout(record)
    report.write_text(page, encoding="utf-8")


def write_skipped_rollout(rollout: Path, report: Path) -> str:
    """Write what stands in place of a rollout that was not asked for, and return that verdict."""
    values = {"schema": SCHEMA, "verdict": NOT_ASKED_FOR, "record": None, "sections": []}
    rollout.write_text(json.dumps(values), encoding="utf-8")
    report.write_text("<p>No rollout: the pipeline's parameter <code>deploy</code> is false.</p>", encoding="utf-8")
    return NOT_ASKED_FOR


def _tell(record: Record) -> Section:
    what = record.candidate.model or record.candidate.storage_uri
    words = {
        "promoted": f"{what} is the version in use.",
        "rolled_back": f"{what} was rolled back: the version before it has all traffic.",
        "stopped": f"The rollout of {what} was stopped, and nothing was put back.",
    }
    paragraphs = [words.get(record.phase, f"{what} has {record.traffic_percent:g} % of the traffic.")]
    if record.message:
        paragraphs.append(f"Reason: {record.message}.")
    paragraphs += [f"Not judged: {note}." for note in record.verdict.get("notes", ())]
    steps = " → ".join(f"{percent:g}" for percent in record.policy.steps)
    return Section(
        "text",
        "Rollout",
        f"{record.service} was to give the candidate {steps} % of its requests, decided by a policy with alpha "
        f"{record.policy.alpha:g}.",
        {"paragraphs": paragraphs},
    )


def _list_findings(record: Record) -> Section | None:
    rows = []
    for one in record.verdict.get("findings", ()):
        rows.append(
            [
                f"{one['metric']}, {one['group']}" if one["group"] else one["metric"],
                one["test"],
                _SAYS[one["test"], one["is_reached"]],
                _show_rate(one, "stable"),
                _show_rate(one, "candidate"),
                # JSON has no infinity: the record says nothing there.
                "∞" if one["evidence"] is None else format_number(one["evidence"]),
                format_number(one["needed"]),
            ]
        )
    if not rows:
        return None
    names = ("Metric", "Test", "Says", "Stable", "Candidate", "Evidence", "Needed")
    return Section(
        "table",
        "What the judge found",
        "A test of harm rolls back once its evidence reaches what is needed; a promotion needs that of every margin. "
        "Shares are of bad events: errors, slow requests, losses.",
        {"columns": [{"name": name, "kind": "text"} for name in names], "rows": rows, "sortable": False},
    )


def _show_rate(finding: Mapping[str, Any], arm: str) -> dict[str, Any]:
    rate = finding[f"{arm}_rate"]
    return {
        "value": None if rate is None else format_share(rate),
        "note": f"of {finding[f'{arm}_total']:,.0f}",
    }


def _draw_errors(record: Record) -> Section | None:
    windows = [window for window in record.windows if not window.excluded_because]
    if len(windows) < 2:
        return None
    series = []
    for name, tone in (("stable", "quiet"), ("candidate", "accent")):
        points = []
        for window in windows:
            arm = getattr(window, name)
            minutes = (window.end - record.started) / 60
            points.append([minutes, 100 * arm.errors / arm.requests if arm.requests > 0 else None])
        series.append({"name": name, "points": points, "style": "line", "tone": tone})
    return Section(
        "lines",
        "Errors over time",
        f"Of {plural(len(windows), 'window')}, the newest that the record keeps; those that were not judged are left "
        "out.",
        {"series": series, "x_label": "minutes since the start", "y_label": "errors in %"},
    )


def _list_history(record: Record) -> Section:
    rows = [
        [
            datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            entry.who,
            entry.what,
            entry.why if len(entry.why) <= _REASON_CHARACTERS else f"{entry.why[:_REASON_CHARACTERS]}…",
        ]
        for entry in record.history
    ]
    columns = [{"name": name, "kind": "text"} for name in ("Time (UTC)", "Who", "What", "Why")]
    return Section("table", "History of the rollout", "", {"columns": columns, "rows": rows, "sortable": False})
