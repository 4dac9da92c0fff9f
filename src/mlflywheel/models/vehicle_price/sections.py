"""The model's own part of the report: prices against true ones, ranges, errors by slice, drivers, simpler methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflywheel.models.contract import Measurement, Section
from mlflywheel.models.vehicle_price.references import NAMES

if TYPE_CHECKING:
    from mlflywheel.models.vehicle_price.evaluation import Scored

_DOTS = 800
_RANGES = 300
_SLICED = ("fuel", "offer_type", "price_band", "age_band", "region", "body")
_SLICE_MINIMUM = 30


def build_sections(scored: "Scored", measurements: Sequence[Measurement]) -> tuple[Section, ...]:
    """Build the report's sections.

    Args:
        scored: Held-out listings with what the model and the references say; none gives the table of methods alone.
        measurements: What was measured.
    """
    sections: list[Section | None] = [_methods(measurements)]
    if len(scored.true):
        sections += [_prices(scored), _ranges(scored), _errors(measurements), _gaps(measurements), _drivers(scored)]
    return tuple(section for section in sections if section is not None)


def _methods(measurements: Sequence[Measurement]) -> Section:
    overall = {m.metric: m for m in measurements if m.slice == "all"}

    def interval(metric: str) -> dict[str, Any]:
        found = overall[metric]
        return {"value": found.value, "low": found.low, "high": found.high}

    rows: list[list[Any]] = []
    for prefix, name in (("", "This model"), *((f"reference_{key}_", text) for key, text in NAMES.items())):
        names = ("mdape", "within_10_percent", "mae", "bias")
        rows.append([name, *(interval(f"{prefix}{metric}") for metric in names)])
    columns = [
        {"name": "Method", "kind": "text"},
        {"name": "Median error", "kind": "interval"},
        {"name": "Within 10 %", "kind": "interval"},
        {"name": "Mean error, in the currency", "kind": "interval"},
        {"name": "Bias", "kind": "interval"},
    ]
    text = (
        "The same held-out listings, priced by the model and by simpler methods fitted on the same training rows. "
        "Median error and bias are shares of the true price; bias above 0 is too dear."
    )
    return Section("table", "Against simpler methods", text, {"columns": columns, "rows": rows, "sortable": False})


def _prices(scored: "Scored") -> Section:
    """Plot prices in thousands up to where the dearest per cent begins: beyond it lie a few luxury cars."""
    limit = float(np.quantile(scored.true, 0.99))
    shown = np.flatnonzero(scored.true <= limit)
    chosen = np.sort(np.random.default_rng(0).permutation(shown)[:_DOTS])
    inside = (scored.low <= scored.true) & (scored.true <= scored.high)
    labels = _labels(scored, chosen)
    series: list[dict[str, Any]] = []
    for name, tone, mask in (("In the range", "quiet", inside[chosen]), ("Outside it", "warn", ~inside[chosen])):
        rows = chosen[mask]
        series.append(
            {
                "name": name,
                "style": "dots",
                "tone": tone,
                "points": [[_thousands(scored.true[row]), _thousands(scored.price[row])] for row in rows],
                "labels": [label for label, kept in zip(labels, mask, strict=True) if kept],
            }
        )
    end = _thousands(limit)
    series.append({"name": "Equal", "style": "line", "tone": "accent", "points": [[0.0, 0.0], [end, end]]})
    text = (
        f"{len(chosen):,} of the held-out listings, drawn at random; the dearest 1 % are left out. A dot on the line "
        "is a price that is exactly right."
    )
    data = {
        "series": series,
        "x_label": f"True price, thousand {_currency(scored)}",
        "y_label": f"Model's price, thousand {_currency(scored)}",
    }
    return Section("lines", "Price against true price", text, data)


def _ranges(scored: "Scored") -> Section:
    width = (scored.high - scored.low) / scored.price
    order = np.argsort(width, kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, _RANGES).astype(np.int64))]
    across = 100.0 * np.linspace(0.0, 1.0, len(rows)) if len(rows) > 1 else np.zeros(len(rows))

    def points(values: np.ndarray) -> list[list[float]]:
        return [[float(x), float(value)] for x, value in zip(across, values[rows] / scored.price[rows], strict=True)]

    series: list[dict[str, Any]] = [
        {"name": "Upper end", "style": "line", "tone": "accent", "points": points(scored.high)},
        {"name": "Lower end", "style": "line", "tone": "accent", "points": points(scored.low)},
        {
            "name": "True price",
            "style": "dots",
            "tone": "quiet",
            "points": points(scored.true),
            "labels": _labels(scored, rows),
        },
    ]
    covered = float(np.mean((scored.low <= scored.true) & (scored.true <= scored.high)))
    text = (
        f"Held-out listings from the narrowest range to the widest, as shares of the model's price. {covered:.1%} of "
        "the true prices lie between the lines; the lines should part where the dots scatter."
    )
    data = {
        "series": series,
        "references": [{"value": 1.0, "label": "the model's price"}],
        "x_label": "Percent of the listings, by rising width",
        "y_label": "Share of the price",
    }
    return Section("lines", "Ranges by width", text, data)


def _errors(measurements: Sequence[Measurement]) -> Section:
    """Show the median signed error of each slice with enough rows."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in measurements:
        column, _, value = found.slice.partition("=")
        if found.metric == "bias" and column in _SLICED and found.count >= _SLICE_MINIMUM:
            groups.setdefault(column.replace("_", " "), []).append(
                {"label": value, "value": found.value, "low": found.low, "high": found.high, "count": found.count}
            )
    text = (
        "The middle of (price - true price) / true price: above 0 the model asks too much there, below 0 too little. "
        f"Slices of at least {_SLICE_MINIMUM} rows; a band of price is that of the model's price."
    )
    data = {"groups": [{"name": name, "bars": bars} for name, bars in groups.items()], "unit": "share"}
    return Section("bars", "Errors by slice", text, data)


def _gaps(measurements: Sequence[Measurement]) -> Section | None:
    """Show the median error of the groups that should be priced equally well."""
    columns = {m.slice.partition("=")[2]: m for m in measurements if m.slice.startswith("between=")}
    groups = []
    for column, gap in columns.items():
        bars = [
            {"label": m.slice.partition("=")[2], "value": m.value, "low": m.low, "high": m.high, "count": m.count}
            for m in measurements
            if m.metric == "mdape" and m.slice.startswith(f"{column}=") and m.count >= _SLICE_MINIMUM
        ]
        told = "no gap" if gap.value is None else f"gap {gap.value:.1%}"
        groups.append({"name": f"{column}, {told}", "bars": bars})
    if not groups:
        return None
    text = (
        f"The median error of each declared group of at least {_SLICE_MINIMUM} rows. The gap is between the largest "
        "and the smallest of the groups that are large enough to be judged; the note of mdape_gap names the others."
    )
    return Section("bars", "Errors by group", text, {"groups": groups, "unit": "share"})


def _drivers(scored: "Scored") -> Section | None:
    """Show what makes one price: the listing in the middle of the prices, of those that need no review."""
    calm = np.flatnonzero(~np.asarray(scored.answers["needs_review"].to_numpy(zero_copy_only=False), dtype=bool))
    rows = calm if len(calm) else np.arange(len(scored.price))
    row = int(rows[np.argsort(scored.price[rows], kind="stable")[len(rows) // 2]])
    answer = scored.answers.slice(row, 1).to_pylist()[0]
    if not answer["drivers"]:
        return None
    bars = [
        {
            "label": f"{driver['feature']}: {driver['value'] or 'missing'}",
            "value": float(driver["factor"]) - 1.0,
            "note": f"times {driver['factor']:.3f}",
        }
        for driver in answer["drivers"]
    ]
    currency = _currency(scored)
    text = (
        f"{_labels(scored, np.array([row]))[0]}: {answer['price']:,.0f} {currency}, from {answer['low']:,.0f} to "
        f"{answer['high']:,.0f}; asked were {scored.true[row]:,.0f}. Each bar is what a fact does to the price, as a "
        "share of it; the factors of all facts multiply up from the price of an average listing."
    )
    return Section("bars", "Drivers of one price", text, {"bars": bars, "unit": "share"})


def _labels(scored: "Scored", rows: np.ndarray) -> list[str]:
    """Name listings for people: make, model and year."""
    named = []
    names = [name for name in ("make", "model", "year") if name in scored.table.column_names]
    for listing in scored.table.select(names).take(rows.astype(np.int64)).to_pylist():
        cells = [listing[name] for name in names if listing[name] is not None]
        named.append(" ".join(f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in cells) or "a listing")
    return named


def _thousands(price: float) -> float:
    return round(float(price) / 1000.0, 3)


def _currency(scored: "Scored") -> str:
    return str(scored.answers["currency"][0].as_py())
