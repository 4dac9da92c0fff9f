"""The model's own part of the report: simpler methods, calibration, right and wrong answers, errors by slice."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflywheel.models.contract import Measurement, Section
from mlflywheel.models.tabular_classifier.fitting import REFERENCE_NAMES

if TYPE_CHECKING:
    from mlflywheel.models.tabular_classifier.evaluation import Scored

_SLICE_MINIMUM = 30


def build_sections(scored: "Scored", measurements: Sequence[Measurement]) -> tuple[Section, ...]:
    """Build the report's sections.

    Args:
        scored: Held-out rows with what the model and simpler methods say; none gives the table of methods alone.
        measurements: What was measured.
    """
    sections = [_methods(scored, measurements)]
    if len(scored.truth):
        sections += [_calibration(scored), _answers(scored)]
        errors = _errors(measurements)
        if errors is not None:
            sections.append(errors)
    return tuple(sections)


def _methods(scored: "Scored", measurements: Sequence[Measurement]) -> Section:
    overall = {found.metric: found for found in measurements if found.slice == "all"}

    def interval(metric: str) -> dict[str, Any]:
        found = overall[metric]
        cell = {"value": found.value, "low": found.low, "high": found.high}
        return cell | ({"note": found.note} if found.note else {})

    rows: list[list[Any]] = []
    for prefix, name in (
        ("", "This model"),
        *((f"reference_{key}_", REFERENCE_NAMES[key]) for key in scored.references),
    ):
        names = ("auc", "log_loss", "brier", "error")
        rows.append([name, *(interval(f"{prefix}{metric}") for metric in names)])
    columns = [
        {"name": "Method", "kind": "text"},
        {"name": "Area under the ROC curve", "kind": "interval"},
        {"name": "Log loss", "kind": "interval"},
        {"name": "Brier score", "kind": "interval"},
        {"name": "Wrong answers", "kind": "interval"},
    ]
    text = (
        "The same held-out rows, by the model and by simpler methods fitted on the same training rows. The area is the "
        "chance that a positive row has a higher probability than another row; the other columns are better if lower."
    )
    return Section("table", "Against simpler methods", text, {"columns": columns, "rows": rows, "sortable": False})


def _calibration(scored: "Scored") -> Section:
    """Plot the share of positive rows against the probability, by tenths, with Wilson intervals as two lines."""
    from mlflywheel.models.tabular_classifier.evaluation import divide_by_probability
    from mlflywheel.statistics.intervals import estimate_share

    points: dict[str, list[list[float]]] = {"share": [], "low": [], "high": []}
    labels = []
    for part in divide_by_probability(scored):
        across = float(scored.probability[part].mean())
        found = estimate_share(int(scored.truth[part].sum()), len(part))
        for name, value in (("share", found.value), ("low", found.low), ("high", found.high)):
            points[name].append([across, float(value or 0.0)])
        labels.append(f"{len(part):,} rows")
    shares = {"name": "Share of positive rows", "style": "dots", "tone": "accent", "points": points["share"]}
    series: list[dict[str, Any]] = [
        {"name": "Equal", "style": "line", "tone": "quiet", "points": [[0.0, 0.0], [1.0, 1.0]]},
        {"name": "Upper end, 95 %", "style": "line", "tone": "warn", "points": points["high"]},
        {"name": "Lower end, 95 %", "style": "line", "tone": "warn", "points": points["low"]},
        {**shares, "labels": labels},
    ]
    text = (
        f"Held-out rows in up to {len(labels)} groups of equally many, by rising probability. Where the line of equal "
        "values leaves the interval, probabilities of that size are too high (below it) or too low."
    )
    data = {"series": series, "x_label": "Mean probability of the group", "y_label": "Share of positive rows"}
    return Section("lines", "Probabilities against what happened", text, data)


def _answers(scored: "Scored") -> Section:
    labels = scored.answers["label"].to_pylist()
    called = scored.probability >= scored.threshold
    positive = scored.truth > 0
    names = {bool(flag): label for flag, label in zip(called, labels, strict=True)}
    rows: list[list[Any]] = []
    for truth in (True, False):
        count = int(np.count_nonzero(positive == truth))
        right = int(np.count_nonzero((positive == truth) & (called == truth)))
        name = names.get(truth, "positive" if truth else "other")
        rows.append([name, count, right, count - right, right / count if count else None])
    columns = [
        {"name": "True class", "kind": "text"},
        {"name": "Rows", "kind": "number", "decimals": 0},
        {"name": "Called so", "kind": "number", "decimals": 0},
        {"name": "Called the other", "kind": "number", "decimals": 0},
        {"name": "Share called so", "kind": "share"},
    ]
    text = f"A row is called by the positive class, the first line, from a probability of {scored.threshold:g} on."
    return Section("table", "Answers and truth", text, {"columns": columns, "rows": rows, "sortable": False})


def _errors(measurements: Sequence[Measurement]) -> Section | None:
    """Show the share of wrong answers of each slice with enough rows, beside that of all rows."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in measurements:
        column, _, value = found.slice.partition("=")
        if found.metric == "error" and value and found.count >= _SLICE_MINIMUM:
            groups.setdefault(column.replace("_", " "), []).append(
                {"label": value, "value": found.value, "low": found.low, "high": found.high, "count": found.count}
            )
    if not groups:
        return None
    overall = next(found.value for found in measurements if found.metric == "error" and found.slice == "all")
    data: dict[str, Any] = {
        "groups": [{"name": name, "bars": bars} for name, bars in groups.items()],
        "unit": "share",
        "reference": {"value": overall, "label": "all rows"},
    }
    text = f"The share of wrong answers by the values of text columns; slices of at least {_SLICE_MINIMUM} rows."
    return Section("bars", "Wrong answers by slice", text, data)
