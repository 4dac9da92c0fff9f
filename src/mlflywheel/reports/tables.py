"""Tables and the small marks that stand in their cells: bars, whiskers, chips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.reports.formats import NOTHING, format_number, format_share, is_number, plural, shared_decimals
from mlflywheel.reports.markup import Html, join, tag

ROWS_SHOWN = 12
"""Rows of a collapsible table before "show all"; without scripts, and in print, every row is there."""

ROWS_BEFORE_FILTER = 15
_LONG_TEXT = 48
KINDS = ("text", "number", "share", "interval", "list")


@dataclass(frozen=True)
class Cell:
    """One cell: its markup, and the value that the column is sorted by (None goes last)."""

    html: Html
    sort: float | str | None = None


@dataclass(frozen=True)
class Heading:
    """A column's heading. `align` is `start` for text and `end` for numbers."""

    name: str
    align: str = "start"
    wide: bool = False


def table(
    caption: str,
    headings: Sequence[Heading],
    rows: Iterable[Sequence[Cell]],
    *,
    row_classes: Sequence[str | None] = (),
    sortable: bool = True,
    collapse: bool = False,
    noun: str = "row",
    class_: str = "",
) -> Html:
    """Build a table whose first column heads its rows, inside a box that scrolls sideways on its own.

    Sorting, filtering and collapsing are added by the script from the `data-` attributes, so that no control is there
    that would not work.

    Args:
        caption: For screen readers; the visible heading stands above the table.
        headings: One a column.
        rows: As many cells as headings, each.
        row_classes: Classes of the rows, in order; may be shorter than the rows.
        sortable: Whether a click on a heading sorts.
        collapse: Whether rows past `ROWS_SHOWN` hide behind a button.
        noun: What a row is, for that button and the filter.
        class_: Further classes of the table.
    """
    body = []
    for index, row in enumerate(rows):
        cells = [
            tag(
                "th" if position == 0 else "td",
                cell.html,
                scope="row" if position == 0 else None,
                class_=("end" if heading.align == "end" else "") + (" wide" if heading.wide else "") or None,
                data_sort=cell.sort,
            )
            for position, (heading, cell) in enumerate(zip(headings, row, strict=True))
        ]
        body.append(tag("tr", cells, class_=row_classes[index] if index < len(row_classes) else None))
    head = tag("tr", [tag("th", h.name, scope="col", class_="end" if h.align == "end" else None) for h in headings])
    filled = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", head),
        tag("tbody", body),
        class_=class_ or None,
        data_sortable=sortable and len(body) > 1,
    )
    return tag(
        "div",
        tag("div", filled, class_="scroll", tabindex="0", role="region", aria_label=caption),
        class_="table",
        data_filter=len(body) > ROWS_BEFORE_FILTER,
        data_collapse=ROWS_SHOWN if collapse and len(body) > ROWS_SHOWN + 2 else None,
        data_noun=plural(len(body), noun),
    )


def text_cell(value: Any, class_: str | None = None) -> Cell:
    """Show a value as text; None as an en dash."""
    if value is None or value == "":
        return Cell(tag("span", NOTHING, class_="none"), None)
    shown = format_number(value)
    return Cell(tag("span", shown, class_=class_) if class_ else join(shown), value if is_number(value) else shown)


def number_cell(value: Any, decimals: int | None = None) -> Cell:
    """Show a number; anything else as text."""
    if not is_number(value):
        return text_cell(value)
    return Cell(join(format_number(value, decimals)), value)


def full_bar(shares: Iterable[Any]) -> float:
    """Return the share that a full bar stands for: 1, or the largest where all are small.

    >>> full_bar([0.1, 0.7]), full_bar([0.02, 0.04])
    (1.0, 0.04)
    """
    largest = max((float(share) for share in shares if is_number(share)), default=1.0)
    return largest if 0 < largest < 0.5 else 1.0


def share_cell(value: Any, full: float = 1.0) -> Cell:
    """Show a share between 0 and 1 as a percentage with a bar, which is full at the share `full`."""
    if not is_number(value):
        return text_cell(value)
    return Cell(join(bar(value / full), tag("span", format_share(value), class_="value")), value)


def list_cell(values: Any) -> Cell:
    """Show a list of terms as chips."""
    if not values:
        return text_cell(None)
    items = [values] if isinstance(values, (str, Mapping)) else list(values)
    return Cell(chips(items), ", ".join(chip_text(item) for item in items))


def chip_text(item: Any) -> str:
    """Return a chip's term: of a string, or of a mapping with `text`."""
    return str(item["text"] if isinstance(item, Mapping) else item)


def chips(items: Sequence[Any]) -> Html:
    """Show terms as chips, tinted by weight relative to the heaviest of them.

    Args:
        items: Strings, or mappings with `text` and optionally `weight` (zero or more).
    """
    weights = [item.get("weight") for item in items if isinstance(item, Mapping)]
    heaviest: float = max((weight for weight in weights if is_number(weight)), default=0.0)
    shown = []
    for item in items:
        weight = item.get("weight") if isinstance(item, Mapping) else None
        style = title = None
        if is_number(weight) and heaviest > 0:
            style, title = f"--w:{percent(weight / heaviest)}", f"weight {format_number(weight)}"
        shown.append(tag("li", chip_text(item), style=style, title=title))
    return tag("ul", shown, class_="chips")


def percent(share: float) -> str:
    """Write a share as a CSS percentage, kept within 0 and 100."""
    return f"{100 * min(max(float(share), 0.0), 1.0):.2f}%"


def bar(share: float) -> Html:
    """Draw a small horizontal bar. The number itself stands beside it, so it is hidden from screen readers."""
    return tag("span", tag("span", style=f"--v:{percent(share)}"), class_="bar", aria_hidden="true")


@dataclass(frozen=True)
class Scale:
    """A common axis for marks that are compared with each other."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[Any], zero: bool = False) -> "Scale":
        """Span the finite ones among the values.

        Args:
            values: Values and interval ends; others are ignored.
            zero: Whether the axis includes 0, as lengths need. Otherwise it gets a margin of 6 % on both sides.
        """
        finite = [float(value) for value in values if is_number(value)]
        if zero:
            finite.append(0.0)
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        if low == high:
            low, high = (low - 0.5, high + 0.5) if not zero else (min(low, 0.0), max(high, 1.0))
        margin = 0.06 * (high - low)
        if zero:
            return cls(low - margin if low < 0 else 0.0, high + margin if high > 0 else 0.0)
        if low >= 0 and high <= 1:
            return cls(max(0.0, low - margin), min(1.0, high + margin))
        return cls(low - margin, high + margin)

    def at(self, value: float) -> str:
        """Return where the value lies, as a CSS percentage."""
        return percent((value - self.low) / (self.high - self.low))


def whisker(
    scale: Scale, value: Any, low: Any = None, high: Any = None, reference: Any = None, label: str | None = None
) -> Html:
    """Draw a value as a dot on its interval, with a tick at a reference.

    Args:
        scale: The axis, shared with the marks it is compared with.
        value: The value; nothing is drawn for None.
        low: Lower end of the interval, or None.
        high: Upper end, or None.
        reference: Where the tick goes, or None.
        label: What to say to a screen reader; without it the mark is hidden, as the numbers stand beside it.
    """
    marks = []
    if is_number(reference):
        marks.append(tag("i", class_="tick", style=f"--v:{scale.at(reference)}"))
    if is_number(low) and is_number(high):
        marks.append(tag("i", class_="range", style=f"--a:{scale.at(low)};--b:{scale.at(high)}"))
    if is_number(value):
        marks.append(tag("i", class_="dot", style=f"--v:{scale.at(value)}"))
    return tag(
        "span", marks, class_="whisker", role="img" if label else None, aria_label=label,
        aria_hidden=None if label else "true",
    )  # fmt: skip


def interval_text(value: Any, low: Any, high: Any, decimals: int | None = None) -> str:
    """Write a 95 % interval.

    >>> interval_text(0.9, 0.885, 0.915)
    '0.885 to 0.915'
    """
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{format_number(low, decimals)} to {format_number(high, decimals)}"


def interval_cell(value: Any, scale: Scale, decimals: int | None = None, reference: Any = None) -> Cell:
    """Show `[value, low, high]`, or a mapping with these names and a `note`, as a number with its whisker."""
    note = ""
    if isinstance(value, Mapping):
        note = str(value.get("note") or "")
        value = [value.get("value"), value.get("low"), value.get("high")]
    middle, low, high = value if value is not None else (None, None, None)
    if not is_number(middle):
        dash = text_cell(middle)
        return Cell(join(dash.html, tag("small", note, class_="note") if note else None), None)
    ends = interval_text(middle, low, high, decimals)
    return Cell(
        join(
            tag("span", format_number(middle, decimals), class_="value", title=note or None),
            tag("span", whisker(scale, middle, low, high, reference), title=ends or None),
            tag("span", f" ({ends})", class_="unseen") if ends else None,
        ),
        middle,
    )


def data_table(data: Mapping[str, Any], caption: str) -> Html:
    """Build the table of a `table` section.

    Raises:
        ValueError: A column kind that is not one of `KINDS`, or a row that is not as long as the columns.
    """
    columns = list(data["columns"])
    rows = [list(row) for row in data["rows"]]
    for column in columns:
        if column["kind"] not in KINDS:
            raise ValueError(f"column {column['name']} has kind {column['kind']}; one of {', '.join(KINDS)} is needed")
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {index} has {len(row)} cells; {len(columns)} are needed")
    headings = [
        Heading(
            str(c["name"]),
            "end" if c["kind"] in {"number", "share", "interval"} else "start",
            c["kind"] == "list" or (c["kind"] == "text" and index > 0 and any(_is_long(row[index]) for row in rows)),
        )
        for index, c in enumerate(columns)
    ]
    columns_of_cells = [
        _column_cells(column["kind"], [row[index] for row in rows], column.get("decimals"))
        for index, column in enumerate(columns)
    ]
    filled = [[cells[index] for cells in columns_of_cells] for index in range(len(rows))]
    return table(caption, headings, filled, sortable=bool(data.get("sortable", True)), collapse=True)


def _is_long(value: Any) -> bool:
    """Say whether a text cell, or the note under one, would be a tall block in a narrow column."""
    texts = (value.get("value"), value.get("note")) if isinstance(value, Mapping) else (value,)
    return any(isinstance(text, str) and len(text) > _LONG_TEXT for text in texts)


def _column_cells(kind: str, values: list[Any], decimals: int | None = None) -> list[Cell]:
    if kind == "interval":
        numbers = [number for value in values for number in _interval_numbers(value)]
        scale, decimals = Scale.around(numbers), shared_decimals(numbers) or None
        return [interval_cell(value, scale, decimals) for value in values]
    if kind == "list":
        return [list_cell(value) for value in values]
    bare = [value.get("value") if isinstance(value, Mapping) else value for value in values]
    notes = [str(value.get("note") or "") if isinstance(value, Mapping) else "" for value in values]
    if kind == "number":
        decimals = shared_decimals(bare) if decimals is None else int(decimals)
        cells = [number_cell(value, decimals) for value in bare]
    elif kind == "share":
        full = full_bar(bare)
        cells = [share_cell(value, full) for value in bare]
    else:
        cells = [text_cell(value) for value in bare]
    return [
        Cell(join(cell.html, tag("small", note, class_="note")), cell.sort) if note else cell
        for cell, note in zip(cells, notes, strict=True)
    ]


def _interval_numbers(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [value.get("value"), value.get("low"), value.get("high")]
    return list(value) if value is not None else []
