"""The map: a layer of many small dots, a layer of labelled bubbles, and a legend that filters both.

It is drawn three times, for three widths of its box, and the style sheet shows one: text keeps its size on a phone, and
labels are placed for the room that is there, also without scripts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.reports.formats import format_number, is_number
from mlflywheel.reports.markup import Html, join, json_script, tag
from mlflywheel.reports.tables import Heading, list_cell, number_cell, table, text_cell


@dataclass(frozen=True)
class Layout:
    """One drawing of the map. Lengths are CSS pixels at the width it is drawn for.

    Args:
        name: Class that the style sheet shows it by.
        width: Width of the drawing.
        height: Height of the drawing.
        margin: Room around the outermost points.
        font_size: Of the labels.
        label_length: Characters after which a label is cut.
        dot: Diameter of a dot.
        radius_max: Radius of the largest bubble.
        radius_min: Radius of the smallest bubble.
        label_cost: What a label's place may cost, in pixels of other bubbles covered plus a price for distance; a label
            that would cost more is left out. A small map is better with fewer.
    """

    name: str
    width: int
    height: int
    margin: int
    font_size: float
    label_length: int
    dot: float
    radius_max: float
    radius_min: float
    label_cost: float


LAYOUTS = (
    Layout("broad", 880, 640, 26, 12.5, 30, 4.6, 20, 5, 60),
    Layout("middle", 640, 540, 22, 12, 24, 4.0, 17, 4.5, 45),
    Layout("slim", 340, 430, 14, 11, 18, 2.8, 11, 3, 11),
)


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Say whether two rectangles share area.

        >>> Box(0, 0, 2, 2).overlaps(Box(1, 1, 3, 3)), Box(0, 0, 2, 2).overlaps(Box(2, 0, 4, 2))
        (True, False)
        """
        return self.overlap(other) > 0

    def overlap(self, other: "Box") -> float:
        """Return the area that two rectangles share."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(across, 0.0) * max(down, 0.0)


@dataclass(frozen=True)
class Circle:
    """A bubble as the label placement sees it."""

    x: float
    y: float
    radius: float
    label: str


@dataclass(frozen=True)
class PlacedLabel:
    """Where a bubble's label went: its text, its box, and whether a line leads back to the bubble."""

    index: int
    text: str
    box: Box
    led: bool


def label_width(label: str, font_size: float) -> float:
    """Estimate a label's width in pixels in a semibold sans-serif, rather too wide than too narrow.

    >>> round(label_width("patient care", 12.5))
    78
    """
    ems = 0.0
    for character in label:
        if character in "iljtfrI.,:;'|!()[] ·-":
            ems += 0.40
        elif character in "mwMW@%&" or character.isupper() or character.isdigit():
            ems += 0.80 if character in "mwMW@%&" else 0.70
        elif ord(character) > 0x2E7F:
            ems += 1.05
        else:
            ems += 0.61
    return ems * font_size


def shorten(label: str, length: int) -> str:
    """Cut a label at a word's end, with an ellipsis.

    >>> shorten("machine operator, press, tender", 20)
    'machine operator…'
    """
    if len(label) <= length:
        return label
    cut = label[: length - 1]
    if " " in cut and not label[length - 1].isspace():
        before = cut[: cut.rindex(" ")]
        cut = before if len(before) >= length // 2 else cut
    return cut.rstrip(" ,·/-") + "…"


def place_labels(circles: Sequence[Circle], layout: Layout) -> list[PlacedLabel]:
    """Give each bubble's label a place where it covers no other label, the largest bubbles first.

    Greedy: inside the bubble if it fits, else the position around it that covers the least of other bubbles, else
    further out with a leading line. A label that fits nowhere is left out; the bubble keeps its tooltip and its row in
    the table.

    Returns:
        Placed labels, in order of placement.
    """
    height = layout.font_size * 1.25
    frame = Box(2, 2, layout.width - 2, layout.height - 2)
    blobs = [Box(c.x - c.radius, c.y - c.radius, c.x + c.radius, c.y + c.radius) for c in circles]
    placed: list[PlacedLabel] = []
    for index in sorted(range(len(circles)), key=lambda i: (-circles[i].radius, i)):
        circle = circles[index]
        best: tuple[float, PlacedLabel] | None = None
        for label in dict.fromkeys((shorten(circle.label, layout.label_length), shorten(circle.label, 14))):
            if not label:
                continue
            width = label_width(label, layout.font_size)
            for cost, led, box in _candidates(circle, width, height):
                if box.left < frame.left or box.right > frame.right or box.top < frame.top or box.bottom > frame.bottom:
                    continue
                if any(box.overlaps(other.box) for other in placed):
                    continue
                covered = sum(box.overlap(blob) for i, blob in enumerate(blobs) if i != index)
                total = cost + covered / height
                if best is None or total < best[0]:
                    best = total, PlacedLabel(index, label, box, led)
            if best is not None and best[0] <= layout.label_cost:
                break
        if best is not None and best[0] <= layout.label_cost:
            placed.append(best[1])
    return placed


def _candidates(circle: Circle, width: float, height: float) -> list[tuple[float, bool, Box]]:
    def box(centre_x: float, centre_y: float) -> Box:
        return Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)

    found = []
    if width < 2 * circle.radius - 2:
        found.append((0.0, False, box(circle.x, circle.y)))
    for ring, gap in enumerate((3.0, 11.0, 22.0, 36.0)):
        reach_x, reach_y = circle.radius + gap + width / 2, circle.radius + gap + height / 2
        diagonal = 0.72
        places = (
            (1, 0), (-1, 0), (0, -1), (0, 1), (diagonal, -1), (diagonal, 1), (-diagonal, -1), (-diagonal, 1),
            (1, -0.5), (1, 0.5), (-1, -0.5), (-1, 0.5),
        )  # fmt: skip
        for order, (across, down) in enumerate(places):
            found.append(
                (1.0 + 0.4 * order + 9.0 * ring, ring > 0, box(circle.x + across * reach_x, circle.y + down * reach_y))
            )
    return found


class Axis:
    """Maps one coordinate of the data to 0..1, over both layers."""

    def __init__(self, values: Sequence[float]) -> None:
        """Take the range from all values."""
        self._low = min(values, default=0.0)
        self._span = (max(values, default=1.0) - self._low) or 1.0
        self._single = max(values, default=1.0) == self._low

    def __call__(self, value: float) -> float:
        """Return the position, with 0.5 for data without any spread."""
        return 0.5 if self._single else round((value - self._low) / self._span, 4)


def draw_map(data: Mapping[str, Any], title: str) -> Html:
    """Build the map of a `scatter` section: drawings, legend, data for the tooltips, and the bubbles as a table."""
    dots = [dot for dot in data.get("dots", ()) if is_number(dot["x"]) and is_number(dot["y"])]
    bubbles = [bubble for bubble in data.get("bubbles", ()) if is_number(bubble["x"]) and is_number(bubble["y"])]
    groups = _groups(data, [*dots, *bubbles])
    dot_noun, bubble_noun = str(data.get("dot_noun", "point")), str(data.get("bubble_noun", "group"))
    across = Axis([float(point["x"]) for point in (*dots, *bubbles)])
    down = Axis([float(point["y"]) for point in (*dots, *bubbles)])
    # Up is more, as in every chart; SVG counts downwards.
    dot_places = [(across(d["x"]), 1 - down(d["y"]), groups.get(d.get("group"), -1)) for d in dots]
    bubble_places = [(across(b["x"]), 1 - down(b["y"]), groups.get(b.get("group"), -1)) for b in bubbles]
    parts = [f"{len(dots):,} {dot_noun}s" if dots else "", f"{len(bubbles):,} {bubble_noun}s" if bubbles else ""]
    spoken = f"{title}: a map of {' and '.join(part for part in parts if part) or 'no points'}"
    drawings = [_draw(layout, dot_places, bubble_places, bubbles, groups, spoken, bubble_noun) for layout in LAYOUTS]
    counts = [0] * len(groups)
    for _, _, group in dot_places if dots else bubble_places:
        if group >= 0:
            counts[group] += 1
    payload = {
        "groups": [str(group) for group in groups],
        "dots": {
            "x": [round(x, 4) for x, _, _ in dot_places],
            "y": [round(y, 4) for _, y, _ in dot_places],
            "group": [group for _, _, group in dot_places],
            "label": [str(dot.get("label") or "") for dot in dots],
        },
        "bubbles": [
            {
                "label": str(bubble.get("label") or ""),
                "group": groups.get(bubble.get("group"), -1),
                "detail": [str(line) for line in bubble.get("detail") or ()],
            }
            for bubble in bubbles
        ],
        "noun": dot_noun,
    }
    return join(
        tag(
            "div",
            tag("div", drawings, class_="drawings"),
            _legend(groups, counts) if groups else None,
            json_script(payload, class_="map-data"),
            class_="map" + (" with-legend" if groups else ""),
        ),
        _list_bubbles(bubbles, bubble_noun, title) if bubbles else None,
    )


def _groups(data: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    names = dict.fromkeys(data.get("groups", ()))
    names.update(dict.fromkeys(point["group"] for point in points if point.get("group") is not None))
    return {name: index for index, name in enumerate(names)}


def _colour(group: int) -> str:
    """Return the group's custom properties: hues a golden angle apart, so that neighbours in the legend differ."""
    if group < 0:
        return "--c:var(--muted)"
    return f"--h:{(252 + 137.508 * group) % 360:.0f};--l:var(--tone-{group % 3})"


def _draw(
    layout: Layout,
    dots: Sequence[tuple[float, float, int]],
    bubble_places: Sequence[tuple[float, float, int]],
    bubbles: Sequence[Mapping[str, Any]],
    groups: Mapping[Any, int],
    spoken: str,
    noun: str,
) -> Html:
    def place(x: float, y: float) -> tuple[float, float]:
        return (
            layout.margin + x * (layout.width - 2 * layout.margin),
            layout.margin + y * (layout.height - 2 * layout.margin),
        )

    # One path a group, each dot a line of no length with round ends: a tenth of the bytes of a circle each.
    paths: dict[int, list[str]] = {}
    for x, y, group in dots:
        left, top = place(x, y)
        paths.setdefault(group, []).append(f"M{left:.1f} {top:.1f}h0")
    layer = [
        tag("path", d="".join(path), style=_colour(group), data_group=group, stroke_width=layout.dot)
        for group, path in sorted(paths.items())
    ]
    largest = max((float(b["size"]) for b in bubbles if is_number(b.get("size"))), default=0.0)
    circles = []
    for (x, y, _), bubble in zip(bubble_places, bubbles, strict=True):
        size = float(bubble["size"]) if is_number(bubble.get("size")) else 0.0
        share = math.sqrt(max(size, 0.0) / largest) if largest > 0 else 0.0
        left, top = place(x, y)
        radius = layout.radius_min + share * (layout.radius_max - layout.radius_min)
        circles.append(Circle(left, top, radius, str(bubble.get("label") or "")))
    labels = {label.index: label for label in place_labels(circles, layout)}
    names = {index: name for name, index in groups.items()}
    # The largest first, so that a small bubble is never under a large one.
    drawn: list[Html] = []
    for index in sorted(range(len(circles)), key=lambda i: -circles[i].radius):
        circle, bubble, group = circles[index], bubbles[index], bubble_places[index][2]
        lines = [circle.label, *([str(names[group])] if group >= 0 else []), *map(str, bubble.get("detail") or ())]
        drawn.append(
            tag(
                "circle",
                tag("title", "\n".join(lines)),
                cx=f"{circle.x:.1f}", cy=f"{circle.y:.1f}", r=f"{circle.radius:.1f}", style=_colour(group),
                role="img", tabindex="0" if not drawn else "-1", aria_label=f"{noun} " + ", ".join(lines),
                data_bubble=index, data_group=group,
            )
        )  # fmt: skip
    leads, written = [], []
    for index, label in labels.items():
        circle, box, group = circles[index], label.box, bubble_places[index][2]
        if label.led:
            leads.append(_lead(circle, box, group))
        # The width is an estimate on the wide side: a label beside its bubble starts at the bubble.
        anchor, x = "middle", (box.left + box.right) / 2
        if box.left > circle.x:
            anchor, x = "start", box.left + 1
        elif box.right < circle.x:
            anchor, x = "end", box.right - 1
        written.append(
            tag(
                "text",
                label.text,
                x=f"{x:.1f}",
                y=f"{(box.top + box.bottom) / 2 + 0.35 * layout.font_size:.1f}",
                text_anchor=anchor,
                data_group=group,
                data_bubble=index,
            )
        )
    return tag(
        "svg",
        tag("g", layer, class_="dots"),
        tag("g", class_="found"),
        tag("g", leads, class_="leads"),
        tag("g", drawn, class_="bubbles"),
        tag("g", written, class_="labels", font_size=layout.font_size, aria_hidden="true"),
        class_=layout.name,
        viewBox=f"0 0 {layout.width} {layout.height}",
        role="group",
        aria_label=spoken,
        data_margin=layout.margin,
        data_dot=layout.dot,
    )


def _lead(circle: Circle, box: Box, group: int) -> Html:
    x = min(max(circle.x, box.left + 2), box.right - 2)
    y = min(max(circle.y, box.top + 2), box.bottom - 2)
    length = math.hypot(x - circle.x, y - circle.y) or 1.0
    start_x = circle.x + (x - circle.x) * circle.radius / length
    start_y = circle.y + (y - circle.y) * circle.radius / length
    return tag("line", x1=f"{start_x:.1f}", y1=f"{start_y:.1f}", x2=f"{x:.1f}", y2=f"{y:.1f}", data_group=group)


def _legend(groups: Mapping[Any, int], counts: Sequence[int]) -> Html:
    items = [
        tag(
            "li",
            tag("i", class_="swatch", style=_colour(index)),
            tag("span", str(name), class_="name"),
            tag("span", format_number(counts[index]), class_="count"),
            data_group=index,
            title=str(name),
        )
        for name, index in groups.items()
    ]
    return tag("div", tag("ul", items), class_="legend")


def _list_bubbles(bubbles: Sequence[Mapping[str, Any]], noun: str, title: str) -> Html:
    sized = any(is_number(bubble.get("size")) for bubble in bubbles)
    grouped = any(bubble.get("group") is not None for bubble in bubbles)
    headings = [Heading(noun[:1].upper() + noun[1:])]
    headings += [Heading("Size", "end")] if sized else []
    headings += [Heading("Group")] if grouped else []
    headings += [Heading("Detail", wide=True)]
    rows = []
    for bubble in sorted(bubbles, key=lambda b: -float(b["size"]) if is_number(b.get("size")) else 0.0):
        detail = [str(line) for line in bubble.get("detail") or ()]
        rows.append(
            [
                text_cell(bubble.get("label")),
                *([number_cell(bubble.get("size"))] if sized else []),
                *([text_cell(bubble.get("group"))] if grouped else []),
                list_cell(detail) if detail else text_cell(None),
            ]
        )
    return tag(
        "details",
        tag("summary", f"The {len(bubbles):,} {noun}s as a table"),
        table(f"{title}: {noun}s", headings, rows, noun=noun),
    )
