"""Parallel coordinates: an upright axis for each input, one for the score, and a line for each thing that has them.

It is drawn at a width that its labels need, and scrolls sideways inside its own box where there is less room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.reports.axes import Axis, choose_range
from mlflywheel.reports.formats import format_number, is_number, plural
from mlflywheel.reports.markup import Html, json_script, tag
from mlflywheel.reports.scatter import label_width, shorten

AXES_LEAST, AXES_MOST = 2, 12
"""With the axis of the score."""

_FONT = 11.5
_TOP, _HEIGHT, _BOTTOM = 64.0, 300.0, 40.0
_FLOOR = 26.0


@dataclass(frozen=True)
class Layout:
    """One drawing of the chart. Lengths are CSS pixels at the width it is drawn for.

    Args:
        name: Class that the style sheet shows it by.
        width: Width of the drawing, more where the axes need it.
        gap: The smallest distance of two axes.
    """

    name: str
    width: int
    gap: int


LAYOUTS = (Layout("broad", 1000, 92), Layout("slim", 330, 92))


@dataclass(frozen=True)
class Upright:
    """One axis: where a value lies on it, from 0 at its lower end to 1, and the ticks beside it."""

    name: str
    note: str
    ticks: tuple[tuple[float, str], ...]
    axis: Axis | None
    places: Mapping[str, float]

    def at(self, value: Any) -> float | None:
        """Return a value's place; None for one that this axis does not have."""
        if self.axis is None:
            return None if value is None else self.places.get(str(value))
        return self.axis.at(float(value)) if is_number(value) else None


@dataclass(frozen=True)
class Line:
    """One line as it was read: its values' places, the score's last, and what its tooltip says."""

    label: str
    places: tuple[float | None, ...]
    shown: tuple[str, ...]
    score: float | None
    best: bool
    rank: float


def draw_parallel(data: Mapping[str, Any], title: str) -> Html:
    """Build the chart of a `parallel` section: drawings, key, and data for the tooltips.

    Raises:
        ValueError: Fewer than 2 or more than 12 axes, an axis of another kind, or a line that is not as long as they.
    """
    entries = list(data["lines"])
    score_name, lower_is_better = str(data.get("score_label") or "score"), bool(data.get("lower_is_better"))
    uprights = [_read_axis(axis, index, entries) for index, axis in enumerate(data["axes"])]
    uprights.append(_score_axis(score_name, lower_is_better, entries))
    if not AXES_LEAST <= len(uprights) <= AXES_MOST:
        raise ValueError(f"{len(uprights)} axes with the score's; {AXES_LEAST} to {AXES_MOST} are needed")
    lines = _read_lines(entries, uprights, lower_is_better)
    scored = [line for line in lines if line.score is not None]
    spoken = (
        f"{title}: {plural(len(lines), 'line')} over the axes {', '.join(upright.name for upright in uprights)}. "
        f"{'Lower' if lower_is_better else 'Higher'} is better."
    )
    best = [line for line in lines if line.best]
    spoken += "".join(f" Best is {line.label} with {line.shown[-1]}." for line in best)
    payload = {
        "axes": [upright.name for upright in uprights],
        "lines": [[line.label, *line.shown] for line in lines],
    }
    return tag(
        "div",
        tag(
            "div",
            tag("div", [_draw(layout, uprights, lines, spoken) for layout in LAYOUTS], class_="sideways"),
            class_="drawings",
        ),
        _draw_key(lines, scored, uprights[-1].axis),
        json_script(payload, class_="chart-data"),
        class_="chart parallel",
    )


def _read_axis(axis: Mapping[str, Any], index: int, entries: Sequence[Mapping[str, Any]]) -> Upright:
    name, kind = str(axis["name"]), axis["kind"]
    values = [entry["values"][index] for entry in entries]
    if kind == "category":
        names = [str(value) for value in axis.get("values") or ()]
        names += [str(value) for value in values if value is not None]
        # Rising upwards reads like a list when the first is on top.
        order = list(dict.fromkeys(names))[::-1]
        places = {name: (place + 0.5) / len(order) for place, name in enumerate(order)}
        return Upright(name, "", tuple((places[name], name) for name in order), None, places)
    if kind != "number":
        raise ValueError(f"axis {name} has kind {kind}; number or category is needed")
    found = Axis.around([axis.get("low"), axis.get("high"), *values], log=bool(axis.get("log")))
    whole = all(value == int(value) for value in values if is_number(value))
    return Upright(name, "log" if found.log else "", _place_ticks(found, whole), found, {})


def _score_axis(name: str, lower_is_better: bool, entries: Sequence[Mapping[str, Any]]) -> Upright:
    scores = [entry.get("score") for entry in entries]
    best = [entry.get("score") for entry in entries if entry.get("best")]
    found = Axis.around(choose_range(scores, best))
    note = "lower is better" if lower_is_better else "higher is better"
    return Upright(name, note, _place_ticks(found, False), found, {})


def _place_ticks(axis: Axis, whole: bool) -> tuple[tuple[float, str], ...]:
    return tuple((axis.at(value), label) for value, label in axis.ticks(6, whole=whole))


def _read_lines(entries: Sequence[Mapping[str, Any]], uprights: Sequence[Upright], lower_is_better: bool) -> list[Line]:
    """Read the lines in the order they are drawn in: those without a score, then the worst, the best over all."""
    scores = sorted(
        {float(entry["score"]) for entry in entries if is_number(entry.get("score"))}, reverse=lower_is_better
    )
    ranks = {score: index / max(1, len(scores) - 1) for index, score in enumerate(scores)}
    lines = []
    for index, entry in enumerate(entries):
        values = list(entry["values"])
        if len(values) != len(uprights) - 1:
            raise ValueError(f"line {index} has {len(values)} values; {len(uprights) - 1} are needed")
        score = float(entry["score"]) if is_number(entry.get("score")) else None
        every = [*values, score]
        lines.append(
            Line(
                str(entry["label"]),
                tuple(upright.at(value) for upright, value in zip(uprights, every, strict=True)),
                tuple("none" if value is None else format_number(value) for value in every),
                score,
                bool(entry.get("best")),
                -1.0 if score is None else 1.0 if len(scores) == 1 else ranks[score],
            )
        )
    return sorted(lines, key=lambda line: (line.best, line.rank))


def _draw(layout: Layout, uprights: Sequence[Upright], lines: Sequence[Line], spoken: str) -> Html:
    last = uprights[-1]
    heading = layout.gap - 8.0
    room = 16 + max((label_width(shorten(label, 16), _FONT) for _, label in last.ticks), default=0.0)
    room = max(room, _heading_width(last, heading) / 2 + 4)
    left = max(20.0, _heading_width(uprights[0], heading) / 2 + 4)
    gap = max(float(layout.gap), (layout.width - left - room) / (len(uprights) - 1))
    width = left + room + gap * (len(uprights) - 1)
    missing = any(place is None for line in lines for place in line.places)
    height = _TOP + _HEIGHT + _BOTTOM + (_FLOOR if missing else 0.0) - 24
    across = [left + gap * index for index in range(len(uprights))]
    floor = _TOP + _HEIGHT + _FLOOR
    return tag(
        "svg",
        tag(
            "path",
            d="".join(f"M{x:.1f} {_TOP:.0f}v{_HEIGHT:.0f}" for x in across),
            class_="uprights",
        ),
        tag("path", d=f"M{across[0] - 8:.1f} {floor:.0f}H{across[-1] + 8:.1f}", class_="floor") if missing else None,
        tag("g", [_draw_strand(line, across, floor) for line in lines], class_="strands"),
        tag("g", class_="found"),
        tag("g", [_draw_ticks(upright, x, gap) for upright, x in zip(uprights, across, strict=True)], class_="ticks"),
        tag(
            "g",
            [_draw_heading(upright, x, heading) for upright, x in zip(uprights, across, strict=True)],
            class_="heads",
        ),
        tag("text", "none", x=f"{across[-1] + 7:.1f}", y=f"{floor + 4:.0f}") if missing else None,
        class_=layout.name + (" dense" if len(lines) > 80 else ""),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        style=f"--least:{width:.0f}px",
        font_size=_FONT,
        role="group",
        aria_label=spoken,
    )


def _draw_strand(line: Line, across: Sequence[float], floor: float) -> Html:
    points = [
        f"{x:.0f} {floor if place is None else _TOP + (1 - place) * _HEIGHT:.0f}"
        for x, place in zip(across, line.places, strict=True)
    ]
    kind = "best" if line.best else "void" if line.score is None else None
    return tag("path", d="M" + " ".join(points), class_=kind, style=None if kind else f"--q:{line.rank:.2f}")


def _draw_ticks(upright: Upright, x: float, gap: float) -> list[Html]:
    longest = max(4, int((gap - 14) / (0.6 * _FONT)))
    # Categories may be more than there is height for.
    apart = max(1, -(-len(upright.ticks) * int(1.2 * _FONT) // int(_HEIGHT)))
    found = []
    for place, label in upright.ticks[::apart]:
        y = _TOP + (1 - place) * _HEIGHT
        found.append(tag("path", d=f"M{x - 3:.1f} {y:.1f}h6"))
        found.append(tag("text", shorten(label, longest), x=f"{x + 7:.1f}", y=f"{y + 4:.1f}"))
    return found


def _heading_width(upright: Upright, width: float) -> float:
    return max(label_width(line, _FONT) for line in (*_wrap(upright.name, width), upright.note))


def _wrap(name: str, width: float) -> list[str]:
    """Break a name into at most two lines, after an underscore, hyphen, dot or space where there is one.

    >>> _wrap("learning_rate", 200.0), _wrap("initial_learning_rate", 90.0)
    (['learning_rate'], ['initial_', 'learning_rate'])
    """
    if label_width(name, _FONT) <= width:
        return [name]
    breaks = [index + 1 for index, character in enumerate(name[:-1]) if character in "_-. /"]
    fitting = [place for place in breaks if label_width(name[:place], _FONT) <= width]
    best = max(fitting, key=lambda place: -max(label_width(name[:place], 1), label_width(name[place:], 1)), default=0)
    if not best:
        best = next(
            place for place in range(len(name), 0, -1) if place == 1 or label_width(name[:place], _FONT) <= width
        )
    first, rest = name[:best], name[best:].lstrip()
    while len(rest) > 2 and label_width(rest, _FONT) > width:
        rest = rest.rstrip("…")[:-1] + "…"
    return [first, rest]


def _draw_heading(upright: Upright, x: float, width: float) -> Html:
    lines = _wrap(upright.name, width)
    texts = [
        tag("text", line, x=f"{x:.1f}", y=f"{_TOP - 28 - 14 * (len(lines) - 1 - index):.0f}", text_anchor="middle")
        for index, line in enumerate(lines)
    ]
    if upright.note:
        texts.append(
            tag("text", upright.note, x=f"{x:.1f}", y=f"{_TOP - 13:.0f}", text_anchor="middle", class_="axis-note")
        )
    return tag("g", tag("title", upright.name), texts)


def _draw_key(lines: Sequence[Line], scored: Sequence[Line], axis: Axis | None) -> Html:
    items = []
    # Ranks colour the lines, so the ends of the ramp are the worst and the best, whatever lies between them.
    if len({line.score for line in scored}) > 1:
        ends = min(scored, key=lambda line: line.rank), max(scored, key=lambda line: line.rank)
        items.append(
            tag(
                "li",
                tag("span", f"worst {ends[0].shown[-1]}"),
                tag("i", class_="ramp", aria_hidden="true"),
                tag("span", f"best {ends[1].shown[-1]}"),
            )
        )
    items += [tag("li", _sample("best"), tag("span", f"{line.label}, {line.shown[-1]}")) for line in lines if line.best]
    void = len(lines) - len(scored)
    if void:
        items.append(tag("li", _sample("void"), tag("span", f"{void:,} without a score")))
    beyond = sum(
        axis is not None and not axis.low <= line.score <= axis.high for line in scored if line.score is not None
    )
    if beyond:
        items.append(tag("li", tag("span", f"{beyond:,} with a score beyond its axis, drawn at the end of it")))
    return tag("ul", items, class_="chart-key")


def _sample(kind: str) -> Html:
    return tag("svg", tag("path", d="M0 7H26", class_=kind), viewBox="0 0 26 14", class_="strands", aria_hidden="true")
