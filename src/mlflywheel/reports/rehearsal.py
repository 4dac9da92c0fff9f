"""The page of a rehearsal: the verdict, what it rests on, and how the answers of both versions differ."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflywheel.models.contract import Evaluation, Section
from mlflywheel.reports.formats import format_number, format_seconds, format_share, plural
from mlflywheel.reports.page import Report, render_report
from mlflywheel.rollouts.answer_differences import CLEAR_DISTANCE, DifferingAnswer, identify, mask

if TYPE_CHECKING:
    from mlflywheel.rollouts.rehearsal import Example, Rehearsal

_ITEMS_SHOWN = 12
_NUMBERS_SHOWN = 6
_LINES_SHOWN = 8
_EXAMPLES_SHOWN = 6
_TONES = ("accent", "warn", "quiet")
_OUTCOME_WORDS = {"answered": "answers", "refused": "refuses (4xx)", "failed": "fails"}


def render_rehearsal(rehearsal: "Rehearsal") -> str:
    """Render a rehearsal as a page of its own.

    Returns:
        The document, to be written as UTF-8.
    """
    refusal = rehearsal.refusal
    started = 0.0
    steps = []
    for name, seconds in rehearsal.seconds.items():
        steps.append({"name": name, "status": "succeeded", "seconds": seconds, "error": None, "started": started})
        started += seconds
    summary: dict[str, Any] = {
        "status": "passed" if refusal is None else "gate_refused",
        "pipeline": "rehearsal",
        "run_id": rehearsal.id,
        "error": None if refusal is None else refusal.to_dict(),
        "stable": rehearsal.stable.to_dict(),
        "candidate": rehearsal.candidate.to_dict(),
        "requests": {"source": rehearsal.recording.source, "sha256": rehearsal.recording.sha256},
        "parameters": {**rehearsal.settings.to_dict(), "policy": rehearsal.policy.to_dict()},
        "artifacts": {"summary": rehearsal.summary_path.name, "evidence": "evidence.json"},
    }
    title = f"{rehearsal.candidate.reference} beside {rehearsal.stable.reference}"
    return render_report(Report(title, summary, Evaluation((), build_rehearsal_sections(rehearsal)), steps=steps))


def build_rehearsal_sections(rehearsal: "Rehearsal") -> tuple[Section, ...]:
    """Return the sections of a rehearsal's page; those without content are left out."""
    sections = (
        _tell_verdict(rehearsal),
        _list_findings(rehearsal),
        _draw_evidence(rehearsal),
        _list_outcomes(rehearsal),
        _list_latency(rehearsal),
        _list_labels(rehearsal),
        _draw_shares(rehearsal),
        _list_columns(rehearsal),
        _list_worst(rehearsal),
        _tell_notes(rehearsal),
    )
    return tuple(section for section in sections if section is not None)


def _tell_verdict(rehearsal: "Rehearsal") -> Section:
    replay, verdict = rehearsal.replay, rehearsal.verdict
    words = {
        "rollback": f"Refused: the candidate is shown to be worse, after {replay.decided_after or 0:,} requests.",
        "promote": "Passes: every margin of the policy is shown.",
    }
    undecided = "Passes" if rehearsal.passes else "Refused"
    paragraphs = [words.get(verdict.action, f"{undecided}: no harm is shown, and not every margin either.")]
    if verdict.action != "rollback":
        paragraphs += [f"{one}." for one in rehearsal.detectable]
    differences = replay.differences
    if differences.requests:
        share = format_share(differences.clearly_differing_requests / differences.requests)
        paragraphs.append(
            f"Of {plural(differences.requests, 'request')} that both versions answered, "
            f"{differences.differing_requests:,} were answered differently, {differences.clearly_differing_requests:,} "
            f"({share}) by more than {format_share(CLEAR_DISTANCE)} in a column. "
            "A different answer need not be a worse one: the verdict does not rest on it."
        )
    return Section(
        "text",
        "Verdict",
        f"{plural(replay.requests, 'recorded request')} went to both versions, and the judge of a rollout looked at "
        "errors and latencies" + (", and at labels." if replay.losses else "."),
        {"paragraphs": paragraphs},
    )


def _list_findings(rehearsal: "Rehearsal") -> Section:
    rows = []
    for one in rehearsal.verdict.findings:
        words = {
            ("harm", True): "worse",
            ("harm", False): "not shown to be worse",
            ("margin", True): "within its margin",
            ("margin", False): "margin not shown",
        }[one.test, one.is_reached]
        if not one.candidate_total:
            words = f"{one.test} not judged"
        name = f"{one.metric}, {one.group}" if one.group else one.metric
        bound = rehearsal.replay.bounds_seconds.get(one.metric)
        rows.append(
            [
                {"value": name, "note": f"slower than {format_seconds(bound)}" if bound is not None else ""},
                words,
                _tell_share(one.stable_rate, one.stable_total),
                _tell_share(one.candidate_rate, one.candidate_total),
                format_number(one.evidence if math.isfinite(one.evidence) else None),
                format_number(one.needed),
            ]
        )
    names = ("Metric", "Finding", "Stable", "Candidate", "Evidence", "Needed")
    return Section(
        "table",
        "What the judge found",
        "A test of harm refuses once its evidence has ever reached what is needed. A test of the margin has to stand "
        "at it in the end. Shares are of bad events: errors, slow requests, losses.",
        {"columns": [{"name": name, "kind": "text"} for name in names], "rows": rows, "sortable": False},
    )


def _tell_share(rate: float | None, total: float) -> dict[str, str | None]:
    return {"value": None if rate is None else format_share(rate), "note": f"of {total:,.0f}" if total else ""}


def _draw_evidence(rehearsal: "Rehearsal") -> Section | None:
    trail = rehearsal.replay.trail
    last = trail[-1][1] if trail else {}
    names = sorted(last, key=lambda name: -last[name])
    if len(trail) < 2 or not names:
        return None
    series = []
    for number, name in enumerate(names[:_LINES_SHOWN]):
        points = [[0, 0.0], *([count, min(levels.get(name, 0.0), 1.5)] for count, levels in trail)]
        series.append({"name": name, "points": points, "style": "steps", "tone": _TONES[number % len(_TONES)]})
    # A line of its own, so that the axis reaches it.
    series.append({"name": "refuses", "points": [[0, 1.0], [trail[-1][0], 1.0]], "style": "line", "tone": "bad"})
    return Section(
        "lines",
        "Evidence of harm",
        "Highest so far after each window, on a log scale from 0 (none) to 1 (refuses).",
        {
            "series": series,
            "x_label": "requests",
            "y_label": "log evidence / log needed",
        },
    )


def _list_outcomes(rehearsal: "Rehearsal") -> Section:
    replay = rehearsal.replay
    rows: list[list[Any]] = [
        [_OUTCOME_WORDS[stable], _OUTCOME_WORDS[candidate], count, _blame(stable, candidate)]
        for (stable, candidate), count in sorted(replay.outcomes.items(), key=lambda one: -one[1])
    ]
    examples = [
        *_tell_examples(replay.candidate_problems[:_EXAMPLES_SHOWN]),
        *_tell_examples(replay.stable_problems[:_EXAMPLES_SHOWN]),
        *_tell_examples(replay.shared_problems[:2]),
    ]
    columns = [
        {"name": "Stable", "kind": "text"},
        {"name": "Candidate", "kind": "text"},
        {"name": "Requests", "kind": "number"},
        {"name": "Counts as", "kind": "text"},
    ]
    if not examples:
        return Section("table", "Answers and errors", "", {"columns": columns, "rows": rows, "sortable": False})
    cards = [
        {
            "title": "Requests by outcome",
            "blocks": [
                {
                    "heading": f"stable {row[0]}, candidate {row[1]}",
                    "items": [{"text": row[3], "value": row[2]}],
                }
                for row in rows
            ],
        },
        *examples,
    ]
    return Section(
        "cards",
        "Answers and errors",
        "A request that both versions refuse is nobody's error. The first requests that went wrong follow.",
        {"cards": cards},
    )


def _blame(stable: str, candidate: str) -> str:
    guilty = [
        name
        for name, own, other in (("stable", stable, candidate), ("candidate", candidate, stable))
        if own == "failed" or (own == "refused" and other == "answered")
    ]
    if guilty:
        return f"error of {' and '.join(guilty)}"
    return "answered" if stable == "answered" else "nobody's error"


def _tell_examples(examples: "Sequence[Example]") -> list[dict[str, Any]]:
    return [
        {
            "title": str(mask(one.request_id)),
            "subtitle": f"line {one.line}" if one.request_id != f"line {one.line}" else "",
            "blocks": [
                {"heading": "Stable", "items": [{"text": one.stable}]},
                {"heading": "Candidate", "items": [{"text": one.candidate}]},
            ],
        }
        for one in examples
    ]


def _list_latency(rehearsal: "Rehearsal") -> Section:
    stable, candidate = (rehearsal.replay.latency(arm) for arm in ("stable", "candidate"))
    words = {"p50": "half", "p100": "slowest"}
    rows = [
        [
            words.get(name, f"{name.removeprefix('p')} %"),
            format_seconds(stable[name]),
            format_seconds(candidate[name]),
            candidate[name] / stable[name] if stable[name] else None,
        ]
        for name in stable
    ]
    where = "in this process" if rehearsal.settings.in_process else "over HTTP on this machine"
    return Section(
        "table",
        "Latency",
        f"Seconds that so many of the requests took at most, as the client saw them {where}. Another machine is faster "
        "or slower for both.",
        {
            "columns": [
                {"name": "Requests", "kind": "text"},
                {"name": "Stable", "kind": "text"},
                {"name": "Candidate", "kind": "text"},
                {"name": "Ratio", "kind": "number", "decimals": 2},
            ],
            "rows": rows,
            "sortable": False,
        },
    )


def _list_labels(rehearsal: "Rehearsal") -> Section | None:
    losses = rehearsal.replay.losses
    if not losses:
        return None
    rows = []
    for metric, arms in losses.items():
        means = [sum(arms[arm]) / len(arms[arm]) if arms[arm] else None for arm in ("stable", "candidate")]
        rows.append([metric, *means, len(arms["candidate"])])
    return Section(
        "table",
        "Labels",
        "Mean loss of the labelled answers: 0 is as good as can be, 1 as bad.",
        {
            "columns": [
                {"name": "Metric", "kind": "text"},
                {"name": "Stable", "kind": "number", "decimals": 3},
                {"name": "Candidate", "kind": "number", "decimals": 3},
                {"name": "Labels", "kind": "number"},
            ],
            "rows": rows,
        },
    )


def _draw_shares(rehearsal: "Rehearsal") -> Section | None:
    differences = rehearsal.replay.differences
    if not differences.requests:
        return None
    tallies = {name: tally for name, tally in differences.columns.items() if tally.rows}
    groups = [
        {
            "name": f"By more than {format_share(CLEAR_DISTANCE)}",
            "bars": [
                {"label": name, "value": tally.differing_clearly / tally.rows, "count": tally.rows}
                for name, tally in tallies.items()
            ],
        },
        {
            "name": "At all",
            "bars": [{"label": name, "value": tally.differing / tally.rows} for name, tally in tallies.items()],
        },
    ]
    text = (
        "Share of the answered instances whose value differs, by column. How far two values are apart goes from 0 to "
        "100 %: of numbers by their ratio, of lists by the items that they share, of anything else all or nothing."
    )
    if differences.other_lengths:
        text += f" {plural(differences.other_lengths, 'answer')} had another number of predictions."
    return Section("bars", "Where answers differ", text, {"groups": groups, "unit": "share", "low": 0.0, "high": 1.0})


def _list_columns(rehearsal: "Rehearsal") -> Section | None:
    rows = []
    for name, tally in rehearsal.replay.differences.columns.items():
        found = tally.to_dict()
        if not tally.differing:
            continue
        gap: Mapping[str, float] = found["gap"] or {}
        overlap: Mapping[str, float] = found["overlap"] or {}
        note = f"only one version gives it in {tally.missing:,}" if tally.missing else ""
        if found["kind"] == "vector" and not gap:
            note = "of different lengths"
        rows.append(
            [
                {"value": name, "note": note},
                found["kind"],
                tally.differing,
                overlap.get("mean"),
                overlap.get("min"),
                gap.get("mean"),
                gap.get("p50"),
                gap.get("p90"),
                gap.get("max"),
            ]
        )
    if not rows:
        return None
    kinds = ("text", "text", "number", "share", "share", "number", "number", "number", "number")
    names = (
        "Column", "Kind", "Differing", "Mean overlap", "Least overlap", "Mean gap", "Half below", "90 % below",
        "Largest gap",
    )  # fmt: skip
    return Section(
        "table",
        "How far they differ",
        "Overlap: items that both lists have, over the longer list's length, also of equal lists. Gap: the largest "
        "absolute difference between numbers of one instance.",
        {"columns": [{"name": name, "kind": kind} for name, kind in zip(names, kinds, strict=True)], "rows": rows},
    )


def _list_worst(rehearsal: "Rehearsal") -> Section | None:
    worst = rehearsal.replay.differences.worst
    if not worst:
        return None
    rows = [row for one in worst for row in _tell_worst(one)]
    kinds = ("text", "text", "list", "list")
    names = ("Request", "Column", "Stable", "Candidate")
    return Section(
        "table",
        "Largest differences",
        f"The {len(worst)} requests whose answers are furthest apart, column by column. Tinted is what the other "
        "version does not have.",
        {
            "columns": [{"name": name, "kind": kind} for name, kind in zip(names, kinds, strict=True)],
            "rows": rows,
            "sortable": False,
        },
    )


def _tell_worst(one: DifferingAnswer) -> list[list[Any]]:
    place = f"line {-one.line}, instance {one.instance}" if one.instance else f"line {-one.line}"
    rows = []
    for number, (name, distance, stable, candidate) in enumerate(sorted(one.columns, key=lambda column: -column[1])):
        # Every row says which request it is about: rows are filtered and folded one by one.
        head = {"value": str(mask(one.request_id)), "note": place if number == 0 and place != one.request_id else ""}
        column = {"value": name, "note": f"distance {format_share(distance)}"}
        rows.append([head, column, *_tell_pair(mask(stable), mask(candidate))])
    return rows


def _tell_pair(stable: Any, candidate: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return both values as chips; those that the other one does not have weigh 1."""
    if isinstance(stable, list) and isinstance(candidate, list) and not _are_numbers([*stable, *candidate]):
        known = [{identify(item) for item in items} for items in (stable, candidate)]
        if known[0] == known[1]:
            same = [
                {
                    "text": f"the same {plural(len(stable), 'item')}, in another order or with other values",
                    "weight": 0.0,
                }
            ]
            return same, same
        chips = [
            [{"text": _tell(item), "weight": 0.0 if identify(item) in other else 1.0} for item in items[:_ITEMS_SHOWN]]
            for items, other in ((stable, known[1]), (candidate, known[0]))
        ]
        for items, shown in zip((stable, candidate), chips, strict=True):
            if len(items) > _ITEMS_SHOWN:
                shown.append({"text": f"and {len(items) - _ITEMS_SHOWN} more", "weight": 0.0})
        return chips[0], chips[1]
    return [{"text": _tell(stable), "weight": 1.0}], [{"text": _tell(candidate), "weight": 1.0}]


def _are_numbers(items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, int | float) for item in items)


def _tell(value: Any) -> str:
    """Write a value in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        named = [str(item) for item in value.values() if isinstance(item, str | int) and not isinstance(item, bool)]
        scores = [format_number(item) for item in value.values() if isinstance(item, float)]
        return " · ".join([*named, *scores]) or f"{len(value)} fields"
    if isinstance(value, list):
        shown = ", ".join(_tell(item) for item in value[:_NUMBERS_SHOWN])
        return f"{shown}, … ({len(value)})" if len(value) > _NUMBERS_SHOWN else shown or "empty"
    return format_number(value) if isinstance(value, float) else str(value) or '""'


def _tell_notes(rehearsal: "Rehearsal") -> Section | None:
    notes = [f"{_capitalise(note)}." for note in rehearsal.notes]
    return Section("text", "What did not count", "", {"paragraphs": notes}) if notes else None


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
