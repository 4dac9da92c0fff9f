"""A model's own part of the report: one drawing function for each kind of section."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflywheel.models.contract import Section
from mlflywheel.reports.formats import format_number, format_share, is_number, shared_decimals
from mlflywheel.reports.lines import draw_lines
from mlflywheel.reports.markup import Html, join, tag
from mlflywheel.reports.parallel import draw_parallel
from mlflywheel.reports.scatter import draw_map
from mlflywheel.reports.tables import Scale, bar, chips, data_table, full_bar


def draw_section(section: Section) -> Html:
    """Draw what stands under a section's heading and text.

    A section that does not have the documented shape becomes a visible note: one part of a report must not cost the
    reader all others, least of all the error of a failed run.
    """
    drawings = {
        "scatter": lambda: draw_map(section.data, section.title),
        "table": lambda: data_table(section.data, section.title),
        "bars": lambda: draw_bars(section.data, section.title),
        "cards": lambda: draw_cards(section.data),
        "lines": lambda: draw_lines(section.data, section.title),
        "parallel": lambda: draw_parallel(section.data, section.title),
        "text": lambda: draw_text(section.data),
    }
    try:
        return drawings[section.kind]()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return tag(
            "p",
            f"This section is not drawn: its data does not have the shape of the kind {section.kind} "
            f"({type(error).__name__}: {error}).",
            class_="defect",
        )


def draw_bars(data: Mapping[str, Any], title: str) -> Html:
    """Draw horizontal bars with intervals, in groups, on one axis with an optional reference marker.

    Text is HTML and only lengths are drawn, so a phone gets the same chart with the labels above the bars.
    """
    groups = data.get("groups") or [{"name": "", "bars": data.get("bars", [])}]
    bars = [entry for group in groups for entry in group["bars"]]
    reference = data.get("reference") or {}
    numbers = [number for entry in bars for number in (entry.get("value"), entry.get("low"), entry.get("high"))]
    axis = Scale.around([*numbers, reference.get("value")], zero=True)
    low = data["low"] if is_number(data.get("low")) else axis.low
    high = data["high"] if is_number(data.get("high")) else axis.high
    axis = Scale(float(low), float(high)) if high > low else axis
    decimals = shared_decimals(entry.get("value") for entry in bars)

    def write(value: Any) -> str:
        return format_share(value) if data.get("unit") == "share" else format_number(value, decimals)

    bodies = []
    for group in groups:
        rows = [_draw_bar(entry, axis, reference.get("value"), write) for entry in group["bars"]]
        name = str(group.get("name") or "")
        heading = tag("tr", tag("th", name, scope="rowgroup", colspan="3")) if name else None
        bodies.append(tag("tbody", heading, rows))
    key = None
    if is_number(reference.get("value")):
        label = str(reference.get("label") or "reference")
        key = tag("p", tag("i", class_="tick-key"), f"{label} {write(reference['value'])}", class_="key")
    head = tag("tr", [tag("th", name, scope="col") for name in ("Name", "Bar", "Value")])
    return join(
        tag(
            "table", tag("caption", title, class_="unseen"), tag("thead", head, class_="unseen"), bodies, class_="bars"
        ),
        key,
    )


def _draw_bar(entry: Mapping[str, Any], axis: Scale, reference: Any, write: Any) -> Html:
    value, low, high = entry.get("value"), entry.get("low"), entry.get("high")
    marks = []
    if is_number(value):
        start, end = sorted((min(max(0.0, axis.low), axis.high), float(value)))
        marks.append(tag("i", class_="length", style=f"--a:{axis.at(start)};--b:{axis.at(end)}"))
    if is_number(low) and is_number(high):
        marks.append(tag("i", class_="range", style=f"--a:{axis.at(low)};--b:{axis.at(high)}"))
    if is_number(reference):
        marks.append(tag("i", class_="tick", style=f"--v:{axis.at(reference)}"))
    ends = f"{write(low)} to {write(high)}" if is_number(low) and is_number(high) else ""
    notes = [ends, f"n = {entry['count']:,}" if is_number(entry.get("count")) else "", str(entry.get("note") or "")]
    return tag(
        "tr",
        tag("th", str(entry["label"]), scope="row", class_="accented" if entry.get("accent") else None),
        tag(
            "td", tag("span", marks, class_="track" + (" accented" if entry.get("accent") else ""), aria_hidden="true")
        ),
        tag(
            "td",
            tag("span", write(value), class_="value"),
            tag("small", ", ".join(note for note in notes if note), class_="note"),
        ),
    )


def draw_cards(data: Mapping[str, Any]) -> Html:
    """Draw example cards: a title, chips of weighted terms, and blocks of items with a value each."""
    cards = list(data["cards"])
    # Bars of the same block are compared from card to card, so they share a scale.
    shares: dict[str, list[Any]] = {}
    for card in cards:
        for block in card.get("blocks") or ():
            shares.setdefault(str(block["heading"]), []).extend(item.get("value") for item in block.get("items") or ())
    full = {heading: full_bar(values) for heading, values in shares.items()}
    return tag("div", [_draw_card(card, full) for card in cards], class_="cards")


def _draw_card(card: Mapping[str, Any], full: Mapping[str, float]) -> Html:
    subtitle = str(card.get("subtitle") or "")
    return tag(
        "article",
        tag("h3", str(card["title"])),
        tag("p", subtitle, class_="subtitle") if subtitle else None,
        chips(list(card["chips"])) if card.get("chips") else None,
        [_draw_block(block, full[str(block["heading"])]) for block in card.get("blocks") or ()],
        class_="card",
    )


def _draw_block(block: Mapping[str, Any], full: float) -> Html:
    items: Sequence[Mapping[str, Any]] = list(block.get("items") or ())
    values = [item.get("value") for item in items if is_number(item.get("value"))]
    shares = block.get("unit") == "share"
    decimals = shared_decimals(values)
    rows = []
    for item in items:
        value, note = item.get("value"), str(item.get("note") or "")
        shown = format_share(value) if shares else format_number(value, decimals)
        rows.append(
            tag(
                "li",
                tag("span", str(item["text"]), class_="name"),
                tag("span", shown, class_="value") if value is not None else None,
                bar(value / full) if shares and is_number(value) else None,
                tag("small", note, class_="note") if note else None,
            )
        )
    listed = tag("ul", rows, class_="items") if rows else tag("p", "none", class_="note")
    return join(tag("h4", str(block["heading"])), listed)


def draw_text(data: Mapping[str, Any]) -> Html:
    """Draw paragraphs."""
    return join([tag("p", str(paragraph)) for paragraph in data.get("paragraphs", ())])
