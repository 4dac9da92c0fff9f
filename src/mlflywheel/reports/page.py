"""The page around the model's sections: what every run's report has in common."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from mlflywheel import __version__
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.reports.brief import draw_brief, list_lines
from mlflywheel.reports.formats import (
    NOTHING,
    flatten,
    format_number,
    format_pair,
    format_seconds,
    humanize,
    is_number,
    plural,
    shared_decimals,
    shorten_hash,
)
from mlflywheel.reports.markup import Html, code_name, join, tag
from mlflywheel.reports.sections import draw_section
from mlflywheel.reports.tables import (
    Cell,
    Heading,
    Scale,
    interval_cell,
    interval_text,
    number_cell,
    percent,
    table,
    text_cell,
    whisker,
)

TILES_SHOWN = 8
REFERENCE_PREFIX = "reference_"


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Args:
        title: Heading of the page.
        summary: The run's `summary.json`. Any part may be missing, as in a run that failed early.
        evaluation: What the model was measured at; None for a run that never got there.
        validation: `ValidationResult.to_dict()`, or None.
        steps: Mappings with `name`, `status` (`succeeded`, `failed`, `skipped` or another word), `seconds`, `error` (an
            error's mapping, text or None), and optionally `started`, in seconds since the run began: with it for
            every timed step the bars show when each ran, not only for how long.
    """

    title: str
    summary: Mapping[str, Any]
    evaluation: Evaluation | None = None
    validation: Mapping[str, Any] | None = None
    steps: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class _Part:
    """A part of the page with a heading, and its entry in the contents."""

    id: str
    title: str
    body: Html
    text: str = ""
    nav: str = ""


def render_report(report: Report) -> str:
    """Render a run's report as one HTML document that needs nothing else: no network, no storage, no server.

    It can be opened from a folder or shown in a sandboxed iframe with `allow-scripts`, as Kubeflow's UI does. Without
    scripts every table and value is still there. A content security policy in the page forbids any request, and any
    script but its own.

    Args:
        report: What to show. A section whose data does not have the documented shape is named as such in its place.

    Returns:
        The document, to be written as UTF-8.
    """
    summary = report.summary
    parts = [
        _draw_in_brief(report),
        _draw_metrics(report),
        _draw_gates(summary),
        *_draw_sections(report.evaluation),
        _draw_slices(report.evaluation),
        _draw_validation(report.validation),
        _draw_steps(report),
        _draw_parameters(summary),
        _draw_artifacts(summary),
        _draw_origin(summary),
    ]
    shown = [part for part in parts if part is not None]
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    entries = [tag("li", tag("a", part.nav or part.title, href=f"#{part.id}")) for part in shown]
    rail = tag(
        "nav",
        tag("p", _mark(), "mlflywheel", class_="brand"),
        tag("ol", entries),
        aria_label="Contents",
        class_="rail",
    )
    page = tag(
        "main",
        _draw_header(report),
        _draw_failure(report),
        [
            tag(
                "section",
                tag("h2", part.title),
                tag("p", part.text, class_="lead") if part.text else None,
                part.body,
                id=part.id,
                class_="part",
            )
            for part in shown
        ],
        tag(
            "footer", f"Written by mlflywheel {__version__}. Intervals are 95 % intervals unless a note says otherwise."
        ),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{report.title} {NOTHING} {summary.get('run_id') or 'run'}"),
        tag("style", Html(_asset("report.css"))),
    )
    body = tag("body", tag("div", rail, page, class_="frame"), tag("script", Html(script)))
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


@cache
def _asset(name: str) -> str:
    text = resources.files("mlflywheel.reports").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def _mark() -> Html:
    """Draw the wheel beside the name."""
    spokes = "M12 3v4M12 17v4M3 12h4M17 12h4"
    return tag(
        "svg",
        tag("circle", cx="12", cy="12", r="9"),
        tag("circle", cx="12", cy="12", r="3"),
        tag("path", d=spokes),
        viewBox="0 0 24 24",
        aria_hidden="true",
    )


_STATUSES = {
    "succeeded": ("good", "Succeeded"),
    "gate_refused": ("bad", "Gate refused"),
    "failed": ("bad", "Failed"),
    "passed": ("good", "Passed"),
    "skipped": ("quiet", "Skipped"),
    "cached": ("quiet", "Cached"),
    "error": ("bad", "Error"),
    "warning": ("warn", "Warning"),
}
_SIGNS = {"good": "✓", "bad": "✕", "warn": "!", "quiet": NOTHING}


def _badge(status: Any, words: str | None = None, tone: str | None = None) -> Html:
    known = _STATUSES.get(str(status), ("quiet", humanize(str(status or "unknown"))))
    tone = tone or known[0]
    return tag("span", tag("b", _SIGNS[tone], aria_hidden="true"), words or known[1], class_=f"badge {tone}")


def _copyable(full: str, shown: str | None = None) -> Html:
    return tag("code", shown or full, data_copy=full, title=full if shown and shown != full else None)


def _draw_header(report: Report) -> Html:
    summary = report.summary
    data, model = summary.get("data") or {}, summary.get("model") or {}
    facts: list[tuple[str, Any]] = []
    if model.get("name"):
        facts.append(("Model", tag("strong", _version_name(model))))
    if data.get("version"):
        facts.append(("Data version", _copyable(str(data["version"]), shorten_hash(str(data["version"])))))
    sizes = [f"{format_number(data[name])} {name}" for name in ("entities", "rows") if is_number(data.get(name))]
    if sizes:
        facts.append(("Data", ", ".join(sizes)))
    seconds = _run_seconds(report)
    if seconds is not None:
        facts.append(("Run time", format_seconds(seconds)))
    seed = _find_seed(summary.get("parameters") or {})
    if seed is not None:
        facts.append(("Seed", str(seed)))
    above = [str(part) for part in (summary.get("pipeline"), summary.get("run_id")) if part]
    return tag(
        "header",
        tag("p", tag("span", above[0]) if above else None, [_copyable(part) for part in above[1:]], class_="above"),
        tag("div", tag("h1", report.title), _badge(summary.get("status")), class_="heading"),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts"),
        class_="top",
    )


def _version_name(model: Mapping[str, Any]) -> str:
    version = model.get("version")
    return f"{model['name']}@{version}" if version is not None else str(model["name"])


def _find_seed(parameters: Mapping[str, Any]) -> Any:
    opened = {key: _open_json(value) for key, value in parameters.items()}
    flat = flatten(opened)
    found = [
        value for key, value in flat.items() if key.split(".")[-1] in {"seed", "random_seed"} and value is not None
    ]
    return found[0] if found else None


def _open_json(value: Any) -> Any:
    """Parse a parameter that is a JSON object or list as text; anything else is returned as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _timed_steps(report: Report) -> list[Mapping[str, Any]]:
    if report.steps:
        return list(report.steps)
    seconds = report.summary.get("seconds") or {}
    return [{"name": name, "status": None, "seconds": value, "error": None} for name, value in seconds.items()]


def _run_seconds(report: Report) -> float | None:
    steps = [step for step in _timed_steps(report) if is_number(step.get("seconds"))]
    if not steps:
        return None
    if all(is_number(step.get("started")) for step in steps):
        return float(max(s["started"] + s["seconds"] for s in steps) - min(s["started"] for s in steps))
    return float(sum(step["seconds"] for step in steps))


def _draw_failure(report: Report) -> Html | None:
    summary = report.summary
    error = _read_error(summary.get("error"))
    failed = [step for step in report.steps if step.get("status") == "failed"]
    if error is None and failed:
        error = _read_error(failed[0].get("error"))
    if error is not None:
        where = f"Step {failed[0]['name']} failed" if failed else "The run failed"
        if summary.get("status") == "gate_refused":
            where = "A gate refused this model"
        rows = [
            tag("div", tag("dt", name), tag("dd", str(error[key])))
            for key, name in (("where", "Where"), ("seen", "Found"), ("needed", "Needed"))
            if error.get(key)
        ]
        return tag(
            "div",
            tag("h2", where),
            tag("dl", rows) if rows else tag("p", str(error.get("message") or "no message was recorded")),
            tag("p", tag("b", "Fix"), tag("span", str(error["fix"])), class_="fix") if error.get("fix") else None,
            class_="failure",
            role="alert",
        )
    if summary.get("status") == "gate_refused":
        refused = [gate for gate in summary.get("gates") or () if gate.get("holds") is False]
        return tag(
            "div",
            tag("h2", "A gate refused this model"),
            tag("ul", [tag("li", _gate_words(gate)) for gate in refused]) if refused else None,
            None if summary.get("model") else tag("p", "No model version was registered."),
            class_="failure",
            role="alert",
        )
    if summary.get("status") == "failed":
        return tag(
            "div", tag("h2", "The run failed"), tag("p", "No error was recorded."), class_="failure", role="alert"
        )
    return None


def _read_error(error: Any) -> Mapping[str, Any] | None:
    if not error:
        return None
    return error if isinstance(error, Mapping) else {"message": str(error)}


_RELATIONS = {">=": "≥", "<=": "≤", ">": ">", "<": "<", "==": "="}


def _gate_words(gate: Mapping[str, Any]) -> str:
    value, limit = _gate_numbers(gate)
    place = "" if gate.get("slice") in (None, "all") else f" for {gate['slice']}"
    relation = _relation(gate)
    reason = f" ({gate['reason']})" if gate.get("reason") else ""
    return f"{gate.get('metric')}{place} is {value}; {relation} {limit} is needed{reason}"


def _lies_beyond(gate: Mapping[str, Any]) -> bool:
    value, limit = gate.get("value"), gate.get("limit")
    if not (is_number(value) and is_number(limit)):
        return False
    return bool(value > limit if gate.get("relation") == "<=" else value < limit)


def _rank_outcome(gate: Mapping[str, Any]) -> int:
    return {None: 0, True: 1}.get(gate.get("holds"), 2)


def _relation(gate: Mapping[str, Any]) -> str:
    return _RELATIONS.get(str(gate.get("relation") or ">="), str(gate.get("relation")))


def _gate_numbers(gate: Mapping[str, Any]) -> tuple[str, str]:
    value, limit = gate.get("value"), gate.get("limit")
    if is_number(value) and is_number(limit):
        return format_pair(float(value), float(limit))
    return format_number(value), format_number(limit)


def _draw_in_brief(report: Report) -> _Part | None:
    evaluation = report.evaluation
    if evaluation is None or all(found.about == "model" for found in evaluation.measurements):
        return None
    champion = report.summary.get("champion")
    lines = list_lines(evaluation, report.summary.get("gates") or (), None if champion is None else str(champion))
    text = "What was measured, for whoever answers for this model. Intervals stand in brackets; more stands below."
    return _Part("brief", "In brief", draw_brief(lines), text)


def _overall(report: Report) -> dict[str, Measurement]:
    if report.evaluation is not None:
        return {m.metric: m for m in report.evaluation.measurements if m.slice == "all" and m.about == "model"}
    metrics = report.summary.get("metrics") or {}
    return {str(name): Measurement(str(name), value if is_number(value) else None) for name, value in metrics.items()}


def pair_references(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Pair metrics with their references: `reference_x` and `reference_method_x` belong to `x`.

    >>> pair_references(["p", "reference_p", "reference_svd_p", "reference_q"])
    {'p': [('reference_p', 'Reference'), ('reference_svd_p', 'Reference SVD')]}
    """
    measured = sorted((name for name in names if not name.startswith(REFERENCE_PREFIX)), key=len, reverse=True)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if not name.startswith(REFERENCE_PREFIX):
            continue
        rest = name.removeprefix(REFERENCE_PREFIX)
        for metric in measured:
            if rest == metric or rest.endswith(f"_{metric}"):
                method = rest.removesuffix(metric).strip("_")
                pairs.setdefault(metric, []).append((name, humanize(f"reference_{method}")))
                break
    return pairs


def _draw_metrics(report: Report) -> _Part | None:
    overall = _overall(report)
    references = pair_references(list(overall))
    paired = {name for pairs in references.values() for name, _ in pairs}
    gates = [gate for gate in report.summary.get("gates") or () if gate.get("slice") in (None, "all")]
    # Of several gates about one metric the tile shows a refusing one, else one that had something to judge.
    gated = {str(gate.get("metric")): gate for gate in sorted(gates, key=_rank_outcome)}
    names = [name for name in overall if name not in paired]
    names.sort(key=lambda name: (name not in gated and name not in references, name not in references))
    if not names:
        return None
    tiles = [
        _draw_tile(
            overall[name], [(overall[other], words) for other, words in references.get(name, ())], gated.get(name)
        )
        for name in names[:TILES_SHOWN]
    ]
    rest = len(names) - len(tiles)
    more = f" {rest} more stand under Metrics by slice." if rest > 0 and report.evaluation else ""
    measured = "Measured on rows that the model was not fitted on." if report.evaluation else "Recorded by the run."
    if any(references.values()):
        measured += " A vertical tick marks the reference: a simpler method, measured on the same rows."
    return _Part("metrics", "Headline metrics", tag("ul", tiles, class_="tiles"), measured + more, "Metrics")


def _draw_tile(
    found: Measurement, references: Sequence[tuple[Measurement, str]], gate: Mapping[str, Any] | None
) -> Html:
    numbers = [found.value, found.low, found.high, *(other.value for other, _ in references)]
    drawn = None
    # Without a reference there is nothing to compare lengths with; the interval stands below in numbers.
    if is_number(found.value) and any(is_number(other.value) for other, _ in references):
        drawn = whisker(
            Scale.around(numbers), found.value, found.low, found.high, references[0][0].value if references else None
        )
    ends = interval_text(found.value, found.low, found.high)
    notes = [ends, f"n = {found.count:,}" if found.count else "", found.note]
    compared = []
    for other, words in references:
        difference = ""
        if is_number(found.value) and is_number(other.value):
            gap = found.value - other.value
            difference = f"{'+' if gap > 0 else ''}{format_number(gap, shared_decimals([found.value, other.value]))}"
        compared.append(
            tag(
                "p",
                tag("span", words),
                tag("span", format_number(other.value), class_="value"),
                tag("span", difference, class_="gap") if difference else None,
                class_="compared",
                title=other.note or None,
            )
        )
    pill = None
    if gate is not None:
        holds = gate.get("holds")
        words = f"{_relation(gate)} {_gate_numbers(gate)[1]}"
        tone = "good" if holds else "quiet" if holds is None else "bad"
        pill = tag("span", f"gate {words}", tag("b", _SIGNS[tone], aria_hidden="true"), class_=f"pill {tone}")
    return tag(
        "li",
        tag("h3", humanize(found.metric), title=found.metric),
        tag("p", tag("strong", format_number(found.value)), pill, class_="figure"),
        drawn,
        tag("p", " · ".join(note for note in notes if note), class_="note") if any(notes) else None,
        compared or None,
        class_="tile" + (" refused" if gate is not None and gate.get("holds") is False else ""),
    )


def _draw_gates(summary: Mapping[str, Any]) -> _Part | None:
    gates = sorted(
        summary.get("gates") or (), key=lambda gate: (gate.get("holds") is not False, bool(gate.get("holds")))
    )
    if not gates:
        return None
    rows = []
    for gate in gates:
        value, limit = _gate_numbers(gate)
        holds = gate.get("holds")
        badge = _badge(
            None, *(("Holds", "good") if holds else ("Not checked", "quiet") if holds is None else ("Refused", "bad"))
        )
        # The reason of a gate that holds repeats its row, and on a phone it would fill the page; unless the row looks
        # refused, because the gate asks more than one value beyond its limit.
        reason = None if holds and not _lies_beyond(gate) else gate.get("reason")
        metric = join(code_name(gate.get("metric")), tag("small", reason, class_="note") if reason else None)
        rows.append(
            [
                Cell(metric, str(gate.get("metric"))),
                text_cell(gate.get("slice") or "all"),
                Cell(join(value), gate["value"] if is_number(gate.get("value")) else None),
                Cell(join(f"{_relation(gate)} {limit}"), gate["limit"] if is_number(gate.get("limit")) else None),
                Cell(_draw_margin(gate), None),
                Cell(badge, str(holds)),
            ]
        )
    headings = [
        Heading("Metric"), Heading("Slice"), Heading("Value", "end"), Heading("Limit", "end"), Heading("Margin"),
        Heading("Decision"),
    ]  # fmt: skip
    refused = sum(gate.get("holds") is False for gate in gates)
    skipped = sum(gate.get("holds") is None for gate in gates)
    words = f"{refused} of {plural(len(gates), 'gate')} refused." if refused else f"{_all_of(len(gates) - skipped)}."
    if skipped:
        words += f" {plural(skipped, 'gate')} had nothing to judge."
    classes = ["bad" if gate.get("holds") is False else None for gate in gates]
    body = table("Gates", headings, rows, row_classes=classes, noun="gate", class_="gates")
    return _Part("gates", "Gates", body, f"{words} The tick is the limit, the dot the value.")


def _all_of(count: int) -> str:
    return {0: "No gate was judged", 1: "The one gate holds"}.get(count, f"All {count} gates hold")


def _draw_margin(gate: Mapping[str, Any]) -> Html:
    value, limit = gate.get("value"), gate.get("limit")
    if not (is_number(value) and is_number(limit)):
        return tag("span", NOTHING, class_="none")
    return whisker(
        Scale.around([value, limit, 0.0, 1.0 if 0 <= value <= 1 and 0 <= limit <= 1 else None]), value, reference=limit
    )


def _draw_sections(evaluation: Evaluation | None) -> list[_Part]:
    if evaluation is None:
        return []
    return [
        _Part(f"model-{index}", section.title, draw_section(section), section.text)
        for index, section in enumerate(evaluation.sections, 1)
    ]


def _draw_slices(evaluation: Evaluation | None) -> _Part | None:
    if evaluation is None or not evaluation.measurements:
        return None
    # What else was looked at has its own sections; its measurements follow below, all of them.
    own = [
        m for m in evaluation.measurements if m.about == "model" or (m.about == "slices" and "slice_" not in m.metric)
    ]
    overall = {m.metric: m for m in own if m.slice == "all"}
    columns: dict[str, dict[str, dict[str, Measurement]]] = {}
    for found in own:
        if found.slice != "all":
            column, _, value = found.slice.partition("=")
            columns.setdefault(column, {}).setdefault(value, {})[found.metric] = found
    blocks = [_draw_overall(list(overall.values()))] if overall else []
    for column, values in columns.items():
        blocks.append(tag("h3", f"By {humanize(column).lower()}"))
        blocks.append(_draw_column(column, values, overall))
    blocks += _draw_others([found for found in evaluation.measurements if not _is_own(found)])
    text = "Dots are values, lines their 95 % intervals."
    if columns:
        text += " The tick is the value over all rows."
    return _Part("slices", "Metrics by slice" if columns else "All metrics", join(blocks), text)


def _is_own(found: Measurement) -> bool:
    """Return whether it is a metric of the model, over all rows or on a declared slice."""
    declared = found.about == "slices" and found.slice != "all" and not found.metric.startswith("slice_effect_")
    return found.about == "model" or declared


def _draw_others(measurements: Sequence[Measurement]) -> list[Html]:
    """List what was measured beside the model's own metrics."""
    if not measurements:
        return []
    rows = [
        [
            Cell(join(code_name(m.metric), tag("small", m.note, class_="note") if m.note else None), m.metric),
            text_cell(m.slice),
            number_cell(m.value),
            text_cell(interval_text(m.value, m.low, m.high)),
            number_cell(m.count or None),
        ]
        for m in measurements
    ]
    headings = [
        Heading("Metric"), Heading("Slice"), Heading("Value", "end"), Heading("Interval", "end"),
        Heading("Rows", "end"),
    ]  # fmt: skip
    listed = table("What else was measured", headings, rows, noun="measurement", collapse=True)
    return [tag("h3", "Slices, groups, champion, explanations"), listed]


def _draw_overall(measurements: Sequence[Measurement]) -> Html:
    rows = []
    for found in measurements:
        name = join(code_name(found.metric), tag("small", found.note, class_="note") if found.note else None)
        rows.append(
            [
                Cell(name, found.metric),
                number_cell(found.value),
                text_cell(interval_text(found.value, found.low, found.high)),
                number_cell(found.count or None),
            ]
        )
    headings = [Heading("Metric"), Heading("Value", "end"), Heading("95 % interval", "end"), Heading("Rows", "end")]
    return table("All metrics over all rows", headings, rows, noun="metric", collapse=True)


def _draw_column(
    column: str, values: Mapping[str, Mapping[str, Measurement]], overall: Mapping[str, Measurement]
) -> Html:
    metrics = list(dict.fromkeys(metric for found in values.values() for metric in found))
    sizes = {value: max(m.count for m in found.values()) for value, found in values.items()}
    order = sorted(values, key=lambda value: -sizes[value])
    scales, decimals = {}, {}
    for metric in metrics:
        everywhere = [found[metric] for found in values.values() if metric in found]
        everywhere += [overall[metric]] if metric in overall else []
        numbers = [number for m in everywhere for number in (m.value, m.low, m.high)]
        scales[metric], decimals[metric] = Scale.around(numbers), shared_decimals(numbers) or None
    rows = []
    for value in order:
        cells = [text_cell(value or "(empty)"), number_cell(sizes[value])]
        for metric in metrics:
            found = values[value].get(metric)
            if found is None:
                cells.append(text_cell(None))
                continue
            parts = {"value": found.value, "low": found.low, "high": found.high, "note": found.note}
            everywhere_value = overall[metric].value if metric in overall else None
            cells.append(interval_cell(parts, scales[metric], decimals[metric], everywhere_value))
        rows.append(cells)
    headings = [Heading(humanize(column)), Heading("Rows", "end"), *(Heading(humanize(m), "end") for m in metrics)]
    return table(f"Metrics by {column}", headings, rows, collapse=True, noun="slice")


def _draw_validation(validation: Mapping[str, Any] | None) -> _Part | None:
    rules = list((validation or {}).get("rules") or ())
    if not rules:
        return None
    order = {"failed": 0, "skipped": 2, "passed": 3}
    rules.sort(key=lambda r: (order.get(str(r.get("status")), 1), r.get("severity") != "error"))
    rows = []
    for rule in rules:
        status = rule.get("status")
        tone = "warn" if status == "failed" and rule.get("severity") != "error" else None
        unexpected, count = rule.get("unexpected_count"), rule.get("count")
        share = (
            f"{format_number(unexpected)} of {format_number(count)}"
            if is_number(unexpected) and is_number(count)
            else None
        )
        rows.append(
            [
                Cell(_describe_rule(rule), str(rule.get("name"))),
                text_cell(rule.get("table")),
                text_cell(rule.get("severity")),
                Cell(_badge(status, tone=tone), str(status)),
                text_cell(_compact(rule.get("observed"))),
                Cell(text_cell(share if share else unexpected).html, unexpected if is_number(unexpected) else None),
            ]
        )
    headings = [
        Heading("Rule"), Heading("Table"), Heading("Severity"), Heading("Status"), Heading("Observed", "end"),
        Heading("Unexpected rows", "end"),
    ]  # fmt: skip
    held = sum(rule.get("status") == "passed" for rule in rules)
    failed = sum(rule.get("status") == "failed" for rule in rules)
    classes = [
        None if r.get("status") != "failed" else "bad" if r.get("severity") == "error" else "warn" for r in rules
    ]
    words = f"{held} of {plural(len(rules), 'rule')} passed" + (f", {failed} failed." if failed else ".")
    body = table("Data validation", headings, rows, row_classes=classes, collapse=True, noun="rule", class_="rules")
    return _Part("validation", "Data validation", body, words)


def _describe_rule(rule: Mapping[str, Any]) -> Html:
    examples = list(rule.get("examples") or ())
    return join(
        code_name(rule.get("name")),
        tag("small", rule["description"], class_="note") if rule.get("description") else None,
        tag("small", rule["reason"], class_="note") if rule.get("reason") else None,
        tag(
            "details",
            tag("summary", plural(len(examples), "example")),
            tag("ul", [tag("li", tag("code", _compact(example))) for example in examples]),
        )
        if examples
        else None,
    )


def _compact(value: Any) -> Any:
    """Write a nested value as one line of JSON; numbers, text and None stay what they are."""
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _draw_steps(report: Report) -> _Part | None:
    steps = _timed_steps(report)
    if not steps:
        return None
    timed = [step for step in steps if is_number(step.get("seconds"))]
    in_time = bool(timed) and all(is_number(step.get("started")) for step in timed)
    begin = min((step["started"] for step in timed), default=0.0) if in_time else 0.0
    span = (_run_seconds(report) if in_time else max((s["seconds"] for s in timed), default=0.0)) or 1.0
    rows = []
    top = _read_error(report.summary.get("error")) or {}
    for step in steps:
        seconds, error = step.get("seconds"), _read_error(step.get("error"))
        start = (step["started"] - begin) / span if in_time and is_number(step.get("started")) else 0.0
        failed = step.get("status") == "failed"
        note = str(error.get("message") or error.get("seen") or "") if error else ""
        if note == top.get("message"):
            note = ""  # It stands on top of the page already.
        length = None
        if is_number(seconds):
            length = tag("i", class_="length", style=f"--a:{percent(start)};--b:{percent(start + seconds / span)}")
        rows.append(
            tag(
                "tr",
                tag("th", str(step.get("name")), scope="row"),
                tag("td", tag("span", length, class_="track" + (" failed" if failed else ""), aria_hidden="true")),
                tag(
                    "td",
                    tag("span", format_seconds(seconds), class_="value"),
                    _badge(step["status"]) if step.get("status") not in (None, "succeeded") else None,
                    tag("small", note, class_="note") if note else None,
                ),
            )
        )
    words = f"{format_seconds(_run_seconds(report))} " + ("from start to end." if in_time else "in all steps together.")
    head = tag("tr", [tag("th", name, scope="col") for name in ("Step", "Bar", "Time")])
    body = tag(
        "table",
        tag("caption", "Step timings", class_="unseen"),
        tag("thead", head, class_="unseen"),
        tag("tbody", rows),
        class_="bars steps",
    )
    return _Part("steps", "Steps", body, words)


def _draw_parameters(summary: Mapping[str, Any]) -> _Part | None:
    flat = flatten(summary.get("parameters") or {})
    if not flat:
        return None
    rows = [[Cell(code_name(name), name), _value_cell(value)] for name, value in flat.items()]
    body = table("Parameters", [Heading("Name"), Heading("Value", wide=True)], rows, noun="parameter", class_="pairs")
    return _Part("parameters", "Parameters", body)


def _value_cell(value: Any) -> Cell:
    """Show a parameter as it would be typed; long ones, as configuration files are, folded."""
    opened = _open_json(value)
    if isinstance(opened, (Mapping, list, tuple)) and (isinstance(value, str) or len(str(value)) > 80):
        written = json.dumps(opened, indent=2, ensure_ascii=False, default=str)
    else:
        written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    lines = written.count("\n") + 1
    if lines > 1 or len(written) > 120:
        first = "JSON" if opened is not value or not isinstance(value, str) else "Text"
        return Cell(
            tag("details", tag("summary", f"{first}, {plural(lines, 'line')}"), tag("pre", written)), written[:80]
        )
    return Cell(tag("code", written or '""'), value if is_number(value) else written)


# A relative path, written by us into the run folder: no scheme, no host, no leading slash, no backslash.
_RELATIVE = re.compile(r"(?!/)(?![^/]*:)[^\\\x00-\x1f]+")


def _draw_artifacts(summary: Mapping[str, Any]) -> _Part | None:
    artifacts = flatten(summary.get("artifacts") or {})
    if not artifacts:
        return None
    rows = []
    for name, path in artifacts.items():
        target = str(path) if path is not None else ""
        linked = (
            tag("a", target, href=_quote(target)) if _RELATIVE.fullmatch(target) else tag("code", target or NOTHING)
        )
        rows.append([Cell(join(humanize(name)), name), Cell(linked, target)])
    body = table("Artifacts", [Heading("Artifact"), Heading("File", wide=True)], rows, noun="artifact", class_="pairs")
    return _Part("artifacts", "Artifacts", body, "Links work from inside the run folder.")


def _quote(path: str) -> str:
    return quote(path, safe="/-._~")


def _draw_origin(summary: Mapping[str, Any]) -> _Part | None:
    """List what it takes to run this again, and every fact of the summary that has no place of its own."""
    data, model = summary.get("data") or {}, summary.get("model") or {}
    facts: dict[str, Any] = {
        "pipeline": summary.get("pipeline"),
        "run id": summary.get("run_id"),
        "data": data.get("uri"),
        "data version": data.get("version"),
        "rows": data.get("rows"),
        "entities": data.get("entities"),
        "model version": _version_name(model) if model.get("name") else None,
        "model files": model.get("uri"),
    }
    placed = {"schema", "pipeline", "run_id", "status", "error", "data", "parameters"}
    placed |= {"metrics", "gates", "model", "artifacts", "seconds"}
    facts |= flatten({f"data.{k}": v for k, v in data.items() if k not in {"uri", "version", "rows", "entities"}})
    facts |= flatten({f"model.{k}": v for k, v in model.items() if k not in {"name", "version", "uri"}})
    facts |= flatten({key: value for key, value in summary.items() if key not in placed})
    rows = [
        [Cell(join(name[:1].upper() + name[1:]), name), _fact_cell(value)]
        for name, value in facts.items()
        if value is not None
    ]
    if not rows:
        return None
    body = table(
        "Reproducibility", [Heading("Fact"), Heading("Value", wide=True)], rows, sortable=False, class_="pairs"
    )
    return _Part("origin", "Reproducibility", body, "What this run read, and what it takes to run it again.")


def _fact_cell(value: Any) -> Cell:
    if isinstance(value, str) and len(value) <= 300 and "\n" not in value:
        return Cell(_copyable(value), value)
    return _value_cell(value) if not is_number(value) else number_cell(value)
