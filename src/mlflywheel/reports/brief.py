"""The report in brief: what somebody needs who answers for a model, and does not read all of it.

Each line answers one question, and says whether a gate is about it: what no gate is about decides nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.reports.formats import format_number, format_share, humanize, plural
from mlflywheel.reports.markup import Html, tag

_SHOWN = 3
_LOSS, _GAIN, _EFFECT, _DECLINE = "champion_loss_", "gain_over_", "slice_effect_", "trend_decline_"


@dataclass(frozen=True)
class Line:
    """One line of the brief.

    Args:
        question: What is asked.
        answer: One sentence, or a few.
        gates: Outcomes of the gates that are about it: True, False, or None where one was skipped.
    """

    question: str
    answer: str
    gates: tuple[bool | None, ...] = ()


def list_lines(evaluation: Evaluation, gates: Sequence[Mapping[str, Any]], champion: str | None) -> list[Line]:
    """Return the lines for what was measured.

    Args:
        evaluation: Every measurement.
        gates: The gates' outcomes, as `summary.json` holds them.
        champion: `NAME@VERSION` that the model was compared with.
    """
    by_about: dict[str, list[Measurement]] = {}
    for measurement in evaluation.measurements:
        by_about.setdefault(measurement.about, []).append(measurement)
    topics: list[tuple[str, str, Callable[[list[Measurement]], str]]] = [
        ("champion", "Is it as good as the version in use?", lambda found: _tell_champion(found, champion)),
        ("champion", "Is it better than a simpler method?", _tell_gain),
        ("trend", "Does the model get worse from version to version?", _tell_trend),
        ("slices", "Where is it weakest?", _tell_slices),
        ("groups", "Do groups get the same?", _tell_groups),
        ("explanations", "What does it go by?", _tell_features),
        ("contract", "Do callers have to change?", _tell_contract),
    ]
    lines = [Line("May it be registered?", _tell_gates(gates), tuple(gate.get("holds") for gate in gates))]
    for about, question, tell in topics:
        found = by_about.get(about, [])
        if question.startswith("Is it better"):
            found = [one for one in found if one.metric.startswith(_GAIN)]
        elif about == "champion":
            found = [one for one in found if not one.metric.startswith(_GAIN)]
        answer = tell(found) if found else ""
        if answer:
            names = {(one.metric, one.slice) for one in found}
            asked = tuple(gate.get("holds") for gate in gates if (gate.get("metric"), gate.get("slice")) in names)
            lines.append(Line(question, answer[:1].upper() + answer[1:], asked))
    return lines


def draw_brief(lines: Sequence[Line]) -> Html:
    """Draw the lines as a list of questions and answers."""
    return tag("dl", [_draw_line(line) for line in lines], class_="brief")


def _draw_line(line: Line) -> Html:
    refused = sum(holds is False for holds in line.gates)
    held = sum(holds is True for holds in line.gates)
    if refused:
        tone, words = "bad", f"{plural(refused, 'gate')} refused"
    elif held:
        tone, words = "good", f"{plural(held, 'gate')} held"
    elif line.gates:
        tone, words = "quiet", "gates skipped"
    else:
        tone, words = "quiet", "no gate"
    sign = {"good": "✓", "bad": "✕", "quiet": "–"}[tone]
    badge = tag("span", tag("b", sign, aria_hidden="true"), words, class_=f"badge {tone}")
    return tag("div", tag("dt", line.question), tag("dd", line.answer), tag("dd", badge, class_="decided"))


def _tell_gates(gates: Sequence[Mapping[str, Any]]) -> str:
    refused = [gate for gate in gates if gate.get("holds") is False]
    skipped = sum(gate.get("holds") is None for gate in gates)
    if not gates:
        return "No gate is set, so nothing was asked of it."
    beside = f" {plural(skipped, 'gate')} had nothing to judge." if skipped else ""
    if not refused:
        return f"Yes: {len(gates) - skipped} of {plural(len(gates), 'gate')} hold, none refuses.{beside}"
    names = ", ".join(dict.fromkeys(str(gate.get("metric")) for gate in refused))
    return f"No: {plural(len(refused), 'gate')} of {len(gates)} refuse it ({names}).{beside}"


def _tell_champion(found: list[Measurement], champion: str | None) -> str:
    if champion is None:
        return "There is no version in use to compare it with."
    losses = [one for one in found if one.metric.startswith(_LOSS) and one.slice == "all" and one.value is not None]
    parts = []
    for one in losses[:_SHOWN]:
        parts.append(f"{_words(one.metric, _LOSS)} {_compare(one.value, one.low, one.high)}")
    changed = next((one for one in found if one.metric == "champion_churn" and one.slice == "all"), None)
    beside = ""
    if changed is not None and changed.value is not None:
        beside = f" Answers changed for {format_share(changed.value)} of the rows."
    return (f"Against {champion}, on the same rows: {'; '.join(parts)}." if parts else "") + beside


def _tell_gain(found: list[Measurement]) -> str:
    parts = []
    for one in found[:_SHOWN]:
        if one.value is not None and one.slice == "all":
            turned = [None if end is None else -end for end in (one.value, one.high, one.low)]
            parts.append(f"{_compare(*turned)} than {_words(one.metric, _GAIN)}")
    return f"By its first metric: {'; '.join(parts)}." if parts else ""


def _tell_trend(found: list[Measurement]) -> str:
    known = [one for one in found if one.metric.startswith(_DECLINE) and one.value is not None]
    if not known:
        return "Too few versions are registered to tell."
    certain = [one for one in known if one.low is not None and one.low > 0]
    if not certain:
        return f"No decline is shown, in {plural(len(known), 'metric')}."
    return "A decline is shown in " + "; ".join(f"{_words(one.metric, _DECLINE)} ({_ends(one)})" for one in certain)


def _tell_slices(found: list[Measurement]) -> str:
    effects = [one for one in found if one.metric.startswith(_EFFECT) and one.value is not None]
    certain = [one for one in effects if one.low is not None and one.low > 0]
    if not effects:
        return ""
    if not certain:
        return "No slice was found that is shown to be worse than the rest."
    named = "; ".join(f"{one.slice} ({_size(one)} worse, {one.count:,} rows)" for one in certain[:_SHOWN])
    more = f" and {len(certain) - _SHOWN} more" if len(certain) > _SHOWN else ""
    return f"In {_words(certain[0].metric, _EFFECT)}: {named}{more}."


def _tell_groups(found: list[Measurement]) -> str:
    gaps = [one for one in found if one.slice.startswith("between=") and one.value is not None]
    main = [one for one in gaps if not one.metric.endswith(("_rise", "_fall"))]
    parts = [
        f"{humanize(one.metric).lower()} between {one.slice.removeprefix('between=')} {format_number(one.value)} "
        f"({_ends(one)})"
        for one in _widest(main)
    ]
    rises = [one for one in gaps if one.metric.endswith(("_rise", "_fall")) and one.low is not None and one.low > 0]
    rises.sort(key=lambda one: -(one.low or 0.0))
    more = f" and {len(rises) - _SHOWN} more" if len(rises) > _SHOWN else ""
    beside = " Against the version in use a gap has grown: " + "; ".join(
        f"{humanize(one.metric).lower()} between {one.slice.removeprefix('between=')} ({_ends(one)})"
        for one in rises[:_SHOWN]
    )
    beside += more
    return ("; ".join(parts) + "." if parts else "") + (beside + "." if rises else "")


def _widest(gaps: Iterable[Measurement]) -> list[Measurement]:
    """Return the gaps that are shown to be there, by how far they are; all that there are if none is."""
    known = sorted(gaps, key=lambda one: -_distance(one))
    return [one for one in known if _distance(one) > 0][:_SHOWN] or known[:_SHOWN]


def _distance(gap: Measurement) -> float:
    """Return how far apart groups are at least: a gap's lower end, or what a ratio's upper end lacks to 1."""
    if gap.metric.endswith("_ratio"):
        return 1.0 - (1.0 if gap.high is None else gap.high)
    return gap.low or 0.0


def _tell_features(found: list[Measurement]) -> str:
    needed = [one for one in found if one.metric == "feature_importance" and one.value is not None and one.value > 0]
    needed.sort(key=lambda one: -(one.value or 0.0))
    names = [one.slice.removeprefix("feature=") for one in needed[:_SHOWN]]
    return f"Most by {', '.join(names)}." if names else ""


def _tell_contract(found: list[Measurement]) -> str:
    breaking = next((one for one in found if one.metric == "breaking_contract_changes"), None)
    if breaking is None or breaking.value is None:
        return ""
    if breaking.value:
        return f"Yes: {plural(int(breaking.value), 'change')} would break them. {breaking.note}"
    return "No change that would break them was found" + (f", {breaking.note}." if breaking.note else ".")


def _words(metric: str, prefix: str) -> str:
    return humanize(metric.removeprefix(prefix)).lower()


def _compare(loss: float | None, low: float | None, high: float | None) -> str:
    """Write how much worse a value is, with its interval: `0.02 better (0.01 to 0.03)`."""
    value = f"{format_number(abs(loss or 0.0))} {_side(loss)}"
    if low is None or high is None:
        return f"{value} (without an interval)"
    nearer, farther = sorted((abs(low), abs(high)))
    if (low > 0) == (high > 0):
        return f"{value} ({format_number(nearer)} to {format_number(farther)})"
    return f"{value} (between {format_number(-low)} better and {format_number(high)} worse)"


def _side(loss: float | None) -> str:
    return "worse" if (loss or 0.0) > 0 else "better"


def _size(found: Measurement) -> str:
    return format_number(abs(found.value or 0.0))


def _ends(found: Measurement) -> str:
    if found.low is None or found.high is None:
        return "without an interval"
    return f"{format_number(found.low)} to {format_number(found.high)}"
