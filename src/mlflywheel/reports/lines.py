"""A chart of numbered points: dots, lines and steps over one axis, with labelled levels across it.

Like the map it is drawn for three widths of its box, so text keeps its size. What differs in meaning differs in shape
too: each series of dots has a mark of its own, each level a dash pattern of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.reports.axes import Axis, choose_range, write_tick
from mlflywheel.reports.formats import format_number, is_number, plural
from mlflywheel.reports.markup import Html, json_script, tag
from mlflywheel.reports.scatter import label_width, shorten

MARKS = ("dot", "triangle", "square", "cross", "diamond")
STYLES = ("dots", "steps", "line")
TONES = ("accent", "quiet", "warn", "bad", "best")
_DASHES = ("7 4", "2 3", "9 3 2 3", "12 5")
_FONT = 11.5
_LABEL_LENGTH = 24


@dataclass(frozen=True)
class Layout:
    """One drawing of the chart. Lengths are CSS pixels at the width it is drawn for.

    Args:
        name: Class that the style sheet shows it by.
        width: Width of the drawing.
        height: Height of the drawing.
        ticks_across: About how many ticks the horizontal axis gets.
        mark: Radius of a dot.
    """

    name: str
    width: int
    height: int
    ticks_across: int
    mark: float


LAYOUTS = (
    Layout("broad", 1000, 380, 12, 4.0),
    Layout("middle", 640, 340, 9, 3.8),
    Layout("slim", 340, 300, 6, 3.2),
)


@dataclass(frozen=True)
class Series:
    """A series as it was read: its points with finite x, and what they look like."""

    name: str
    style: str
    mark: str
    tone: str
    points: tuple[tuple[float, float | None], ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A level across the chart."""

    value: float
    label: str
    dash: str


@dataclass(frozen=True)
class Frame:
    """Where the data lies in a drawing; the floor is the line of points that have no value."""

    left: float
    right: float
    top: float
    bottom: float
    floor: float | None
    across: Axis
    up: Axis
    whole: bool

    def x(self, value: float) -> float:
        """Return a value's place across."""
        return self.left + self.across.at(value) * (self.right - self.left)

    def y(self, value: float | None) -> float:
        """Return a value's height; the floor for None, the frame's edge for what is outside."""
        if value is None:
            return self.bottom if self.floor is None else self.floor
        return self.bottom - self.up.at(value) * (self.bottom - self.top)


def draw_lines(data: Mapping[str, Any], title: str) -> Html:
    """Build the chart of a `lines` section: drawings, key, and data for the tooltips.

    Raises:
        ValueError: A style, mark or tone that is none.
    """
    dots = 0
    series = []
    for entry in data["series"]:
        series.append(_read_series(entry, dots))
        dots += series[-1].style == "dots"
    references = [
        Reference(float(entry["value"]), str(entry["label"]), _DASHES[index % len(_DASHES)])
        for index, entry in enumerate(data.get("references") or ())
        if is_number(entry["value"])
    ]
    x_label, y_label = str(data.get("x_label") or ""), str(data.get("y_label") or "")
    across = Axis.around([x for one in series for x, _ in one.points], margin=0.02)
    up = _choose_up(series, references)
    spoken = _speak(title, series, references, x_label, y_label)
    drawings = [_draw(layout, series, references, across, up, (x_label, y_label), spoken) for layout in LAYOUTS]
    return tag(
        "div",
        tag("div", drawings, class_="drawings"),
        _draw_key(series, references, up),
        json_script(_payload(series, x_label), class_="chart-data"),
        class_="chart lines",
    )


def _read_series(entry: Mapping[str, Any], dots_before: int) -> Series:
    style = str(entry["style"])
    mark = str(entry.get("mark") or MARKS[dots_before % len(MARKS)])
    tone = str(entry.get("tone") or ("quiet" if style == "dots" else "accent"))
    for word, known in ((style, STYLES), (mark, MARKS), (tone, TONES)):
        if word not in known:
            raise ValueError(f"{word!r} is none of {', '.join(known)}")
    labels = [str(label) for label in entry.get("labels") or ()]
    points, kept = [], []
    for index, (x, y) in enumerate(entry["points"]):
        if is_number(x):
            points.append((float(x), float(y) if is_number(y) else None))
            kept.append(labels[index] if index < len(labels) else "")
    return Series(str(entry["name"]), style, mark, tone, tuple(points), tuple(kept))


def _choose_up(series: Sequence[Series], references: Sequence[Reference]) -> Axis:
    values = [y for one in series for _, y in one.points]
    # Where a line ends is what it says; dots with a tone of their own are few, and are to be seen.
    keep = [y for one in series if one.style != "dots" or one.tone == "best" for _, y in one.points[-1:]]
    low, high = choose_range(values, keep)
    reach = 1.5 * (high - low)
    near = [one.value for one in references if low - reach <= one.value <= high + reach]
    return Axis.around([low, high, *near], margin=0.06)


def _is_outside(value: float | None, up: Axis) -> bool:
    return value is not None and not up.low <= value <= up.high


def _speak(title: str, series: Sequence[Series], references: Sequence[Reference], x_label: str, y_label: str) -> str:
    parts = []
    for one in series:
        values = [y for _, y in one.points if y is not None]
        ends = f" from {format_number(min(values))} to {format_number(max(values))}" if values else ""
        parts.append(f"{one.name}, {plural(len(one.points), 'point')}{ends}")
    parts += [f"level {one.label} at {format_number(one.value)}" for one in references]
    return f"{title}: {y_label or 'values'} by {x_label or 'number'}. " + "; ".join(parts)


def _draw(
    layout: Layout,
    series: Sequence[Series],
    references: Sequence[Reference],
    across: Axis,
    up: Axis,
    axis_labels: tuple[str, str],
    spoken: str,
) -> Html:
    ticks_up = up.ticks(6 if layout.height > 320 else 5)
    inside = layout.name == "slim"
    written = [one for one in references if not _is_outside(one.value, up)]
    names = [shorten(one.label, _LABEL_LENGTH) for one in written]
    left = 12 + max((label_width(label, _FONT) for _, label in ticks_up), default=0.0)
    room = 0.0 if inside else max((label_width(name, _FONT) + 10 for name in names), default=0.0)
    missing = any(y is None for one in series if one.style == "dots" for _, y in one.points)
    bottom = layout.height - 40.0 - (24 if missing else 0)
    floor = layout.height - 46.0 if missing else None
    whole = all(x == int(x) for one in series for x, _ in one.points)
    frame = Frame(left, layout.width - 8.0 - room, 30.0, bottom, floor, across, up, whole)
    return tag(
        "svg",
        _draw_grid(frame, layout, ticks_up, axis_labels),
        _draw_references(frame, written, names, inside),
        tag("g", [_draw_line(one, frame) for one in series if one.style != "dots"], class_="strokes"),
        tag("g", [_draw_dots(one, frame, layout) for one in series if one.style == "dots"], class_="marks"),
        tag("g", class_="found"),
        class_=layout.name,
        viewBox=f"0 0 {layout.width} {layout.height}",
        role="group",
        aria_label=spoken,
        data_places=_places(series, frame),
    )


def _draw_grid(
    frame: Frame, layout: Layout, ticks_up: Sequence[tuple[float, str]], axis_labels: tuple[str, str]
) -> Html:
    x_label, y_label = axis_labels
    ticks_across = frame.across.ticks(layout.ticks_across, whole=frame.whole)
    rules = "".join(f"M{frame.left:.1f} {frame.y(value):.1f}H{frame.right:.1f}" for value, _ in ticks_up)
    floor = (
        tag("path", d=f"M{frame.left:.1f} {frame.floor:.1f}H{frame.right:.1f}", class_="floor") if frame.floor else None
    )
    texts = [
        tag("text", label, x=f"{frame.left - 7:.1f}", y=f"{frame.y(value) + 4:.1f}", text_anchor="end")
        for value, label in ticks_up
    ]
    base = (frame.floor + 8 if frame.floor else frame.bottom) + 17
    texts += [
        tag("text", label, x=f"{frame.x(value):.1f}", y=f"{base:.1f}", text_anchor="middle")
        for value, label in ticks_across
    ]
    if frame.floor is not None:
        texts.append(tag("text", "none", x=f"{frame.left - 7:.1f}", y=f"{frame.floor + 4:.1f}", text_anchor="end"))
    longest = int((layout.width - 20) / (0.62 * _FONT))
    return tag(
        "g",
        tag("path", d=rules, class_="rules"),
        floor,
        tag("g", texts, class_="ticks", font_size=_FONT),
        tag(
            "g",
            tag("text", shorten(y_label, longest), x="8", y="15"),
            tag("text", shorten(x_label, longest), x=f"{frame.right:.1f}", y=f"{layout.height - 5}", text_anchor="end"),
            class_="axis-names",
            font_size=_FONT,
        ),
        aria_hidden="true",
    )


def _draw_references(frame: Frame, references: Sequence[Reference], names: Sequence[str], inside: bool) -> Html:
    heights = [frame.y(one.value) for one in references]
    lines = [
        tag("path", d=f"M{frame.left:.1f} {y:.1f}H{frame.right:.1f}", stroke_dasharray=one.dash)
        for one, y in zip(references, heights, strict=True)
    ]
    apart = 1.25 * _FONT
    # Beside its line outside the frame, above it inside.
    wanted = [y - 5 if inside else y + 4 for y in heights]
    texts = []
    for name, y in zip(names, spread(wanted, apart, frame.top, frame.bottom), strict=True):
        x, anchor = (frame.right - 2, "end") if inside else (frame.right + 6, "start")
        texts.append(tag("text", name, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor))
    return tag("g", lines, tag("g", texts, font_size=_FONT), class_="levels", aria_hidden="true")


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Move heights so far that none is nearer to its neighbour than `apart`, as little as that takes.

    Args:
        wanted: Heights, in any order.
        apart: The smallest distance.
        low: The smallest height that is asked for; kept while there is room.
        high: The largest height.

    >>> spread([50.0, 52.0, 10.0], 10.0, 0.0, 100.0)
    [46.0, 56.0, 10.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[int]] = []

    def place(block: Sequence[int]) -> float:
        """Return where a block's first label goes: its labels' mean wish, inside the frame."""
        half = apart * (len(block) - 1) / 2
        start = sum(wanted[index] for index in block) / len(block) - half
        return max(low, min(start, high - 2 * half))

    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and place(blocks[-2]) + apart * len(blocks[-2]) > place(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    found = [0.0] * len(wanted)
    for block in blocks:
        start = place(block)
        for position, index in enumerate(block):
            found[index] = start + apart * position
    return found


def _draw_line(series: Series, frame: Frame) -> Html:
    parts: list[str] = []
    previous: float | None = None
    for x, y in series.points:
        if y is None:
            previous = None
            continue
        across, height = f"{frame.x(x):.1f}", frame.y(y)
        if series.style == "steps" and height == previous and (x, y) != series.points[-1]:
            continue
        if previous is None:
            parts.append(f"M{across} {height:.1f}")
        elif series.style == "steps":
            parts.append(f"H{across}" + ("" if previous == height else f"V{height:.1f}"))
        else:
            parts.append(f"L{across} {height:.1f}")
        previous = height
    # A line of one point is drawn as a short stroke, so that it is not invisible.
    return tag("path", d="".join(parts) + ("h.1" if len(series.points) == 1 else ""), class_=f"tone-{series.tone}")


def _draw_dots(series: Series, frame: Frame, layout: Layout) -> Html:
    size = layout.mark * (0.8 if len(series.points) > 150 else 1.0)
    path = []
    for x, y in series.points:
        left, top = frame.x(x), frame.y(y)
        outside = _is_outside(y, frame.up)
        shape = "cross" if y is None else series.mark
        path.append(mark_path(shape, left, top, size))
        if outside and y is not None:
            path.append(_arrow(left, top, size, up=y > frame.up.high))
    return tag("path", d="".join(path), class_=f"tone-{series.tone} mark-{series.mark}", style=f"--s:{2 * size:.1f}px")


def mark_path(mark: str, x: float, y: float, size: float) -> str:
    """Return the path of a mark of about the same area, whatever its shape."""
    if mark == "triangle":
        reach = 1.25 * size
        return f"M{x:.1f} {y - reach:.1f}l{1.1 * reach:.1f} {1.8 * reach:.1f}h{-2.2 * reach:.1f}z"
    if mark == "square":
        return f"M{x - 0.9 * size:.1f} {y - 0.9 * size:.1f}h{1.8 * size:.1f}v{1.8 * size:.1f}h{-1.8 * size:.1f}z"
    if mark == "diamond":
        reach = 1.75 * size
        return f"M{x:.1f} {y - reach:.1f}l{reach:.1f} {reach:.1f} {-reach:.1f} {reach:.1f} {-reach:.1f} {-reach:.1f}z"
    if mark == "cross":
        return (
            f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}"
            f"m0 {-2 * size:.1f}l{-2 * size:.1f} {2 * size:.1f}"
        )
    # A line of no length with round ends: a third of the bytes of a circle.
    return f"M{x:.1f} {y:.1f}h0"


def _arrow(x: float, y: float, size: float, *, up: bool) -> str:
    """Point out of the frame: the value is beyond it."""
    sign = -1 if up else 1
    tip = y + sign * 3.2 * size
    return (
        f"M{x - size:.1f} {tip - sign * 1.2 * size:.1f}L{x:.1f} {tip:.1f}L{x + size:.1f} {tip - sign * 1.2 * size:.1f}"
    )


def _places(series: Sequence[Series], frame: Frame) -> str:
    """Return where every dot lies, in the order of the tooltips, as whole pixels."""
    return " ".join(
        f"{frame.x(x):.0f} {frame.y(y):.0f}" for one in series if one.style == "dots" for x, y in one.points
    )


def _payload(series: Sequence[Series], x_label: str) -> dict[str, Any]:
    dots = [one for one in series if one.style == "dots"]
    return {
        "x_label": x_label or "x",
        "series": [one.name for one in dots],
        "points": [
            [index, write_tick(x), "none" if y is None else format_number(y), *([label] if label else [])]
            for index, one in enumerate(dots)
            for (x, y), label in zip(one.points, one.labels, strict=True)
        ],
    }


def _draw_key(series: Sequence[Series], references: Sequence[Reference], up: Axis) -> Html:
    items = [tag("li", _swatch(one), tag("span", one.name)) for one in series if one.points]
    for one in references:
        beyond = (
            "" if not _is_outside(one.value, up) else ", above the axis" if one.value > up.high else ", below the axis"
        )
        sample = tag(
            "svg",
            tag("path", d="M0 7H26", stroke_dasharray=one.dash),
            viewBox="0 0 26 14",
            class_="levels",
            aria_hidden="true",
        )
        items.append(tag("li", sample, tag("span", f"{one.label} {format_number(one.value)}{beyond}")))
    outside = sum(_is_outside(y, up) for one in series if one.style == "dots" for _, y in one.points)
    if outside:
        items.append(tag("li", tag("span", f"{plural(outside, 'point')} beyond the axis at its edge, with an arrow")))
    return tag("ul", items, class_="chart-key")


def _swatch(series: Series) -> Html:
    if series.style == "dots":
        path = tag(
            "path", d=mark_path(series.mark, 7, 7, 4), class_=f"tone-{series.tone} mark-{series.mark}", style="--s:8px"
        )
        return tag("svg", path, viewBox="0 0 14 14", class_="marks", aria_hidden="true")
    shape = "M0 11H13V3H26" if series.style == "steps" else "M0 7H26"
    path = tag("path", d=shape, class_=f"tone-{series.tone}")
    return tag("svg", path, viewBox="0 0 26 14", class_="strokes", aria_hidden="true")
