"""The run report: one HTML file that shows a run on a desktop, on a phone, on paper and in a sandboxed iframe.

    page = render_report(Report(title="Ad campaigns", summary=summary, evaluation=evaluation))

The page around a model's sections is the same for every run: status, headline metrics beside their references, gates,
metrics by slice, data validation, step timings, parameters, artifacts and what it takes to reproduce the run. A metric
named `reference_x`, or `reference_<method>_x`, is shown beside the metric `x`.

**Sections.** A model adds its own parts as `mlflywheel.models.contract.Section(kind, title, text, data)`. `data` holds
JSON values, in one of these shapes; names marked `?` may be left out. Every string is data, never markup.

`table`:
    {"columns": [{"name": str, "kind": "text" | "number" | "share" | "interval" | "list",
                  "decimals"?: int}],           of a number column; otherwise as many as three digits need
     "rows": [[cell, ...]],                     one cell a column; None is shown as an en dash
     "sortable"?: bool}                         true unless said otherwise
    A cell is a string or number for `text` and `number`, a share between 0 and 1 for `share` (drawn as a bar, which
    is full at 1, or at the column's largest where all are below a half),
    `[value, low, high]` or {"value", "low", "high", "note"?} for `interval` (drawn as a whisker on the column's common
    axis), a list of strings or of {"text", "weight"?} for `list` (drawn as chips). A `text`, `number` or `share` cell
    may be {"value", "note"}, to say why a value is None. More than 14 rows fold to 12; more than 15 get a filter box.

`scatter`, the map:
    {"dots": [{"x": float, "y": float, "group"?: str, "label"?: str}],             many, small: one a campaign
     "bubbles": [{"x", "y", "size"?: float, "label": str, "group"?: str,           few, labelled: one a topic
                  "detail"?: [str, ...]}],                                         lines of its tooltip
     "groups"?: [str, ...],                     order of the legend; groups that are not named here follow
     "dot_noun"?: str, "bubble_noun"?: str}     singular: "campaign", "topic"
    Coordinates have any unit: both axes are stretched to the frame. A bubble's area grows with its size. Points
    without finite coordinates are left out. About 3,000 dots and 50 bubbles are what it is made for.

`bars`:
    {"groups": [{"name"?: str, "bars": [bar, ...]}]  or  "bars": [bar, ...],
     "reference"?: {"value": float, "label"?: str},                                a marker across all bars
     "unit"?: "share", "low"?: float, "high"?: float}                              ends of the axis
    A bar is {"label": str, "value": float | None, "low"?: float, "high"?: float, "count"?: int, "note"?: str,
    "accent"?: bool}. Bars start at 0. If any bar is accented, the others step back.

`lines`, dots and lines over numbers:
    {"series": [{"name": str, "points": [[x, y | None], ...],                     by rising x
                 "style": "dots" | "steps" | "line",
                 "mark"?: "dot" | "triangle" | "square" | "cross" | "diamond",     of dots; by their order otherwise
                 "tone"?: "accent" | "quiet" | "warn" | "bad" | "best",            quiet for dots, accent for the others
                 "labels"?: [str, ...]}],                                          one a point: head of its tooltip
     "references"?: [{"value": float, "label": str}],                              dashed levels across the chart
     "x_label"?: str, "y_label"?: str}
    A dot without a value is a cross below the axis; in a line it is a gap. A few values far from all others do not
    stretch the axis: their dots lie at its edge, with an arrow.

`parallel`, parallel coordinates:
    {"axes": [{"name": str, "kind": "number" | "category", "log"?: bool,
               "low"?: float, "high"?: float,   numbers: what the axis includes beside the values
               "values"?: [str, ...]}],         categories: their order from the top; others follow
     "lines": [{"label": str, "values": [float | str | None, ...],                 one an axis
                "score": float | None, "best"?: bool}],
     "score_label"?: str, "lower_is_better"?: bool}
    The score gets an axis of its own, the last. There are 2 to 12 axes with it. Lines are coloured by the rank of their
    score, so that one extreme does not take the whole ramp; those without a score are dashed.

`cards`:
    {"cards": [{"title": str, "subtitle"?: str, "chips"?: [str | {"text", "weight"?}, ...],
                "blocks"?: [{"heading": str, "unit"?: "share",
                             "items": [{"text": str, "value"?: float, "note"?: str}]}]}]}
    The values of a block with the unit `share` are shown as percentages and drawn as bars, on one scale for
    all blocks of that heading.

`text`:
    {"paragraphs": [str, ...]}                  or nothing: the section's own text is enough

**Sizes.** 3,000 dots with labels of 40 characters make a page of about 0.5 MB; 300 lines over 7 axes add about 0.1 MB.
"""

from mlflywheel.reports.page import Report, render_report

__all__ = ["Report", "render_report"]
