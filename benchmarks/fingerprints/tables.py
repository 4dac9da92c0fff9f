"""The results as Markdown tables, which `chart` puts into benchmarks/README.md."""

from pathlib import Path
from typing import Any

START, END = "<!-- results: written by benchmarks.fingerprints.chart -->\n", "<!-- end of results -->\n"
_QUALITY = (
    ("campaigns", "campaigns"),
    ("campaigns, siblings left out", "siblings left out"),
    ("unseen campaigns", "unseen"),
    ("campaigns of unseen occupations", "unseen occupations"),
    ("occupations", "occupations"),
    ("advertisements", "ads"),
    ("unseen advertisements", "unseen ads"),
)
_TOPICS = (
    ("quality/same-occupation", "same occupation @1"),
    ("quality/npmi-by-weight", "NPMI, by weight"),
    ("quality/diversity-by-weight", "diversity, by weight"),
    ("quality/npmi-by-relevance", "NPMI, by relevance"),
    ("quality/diversity-by-relevance", "diversity, by relevance"),
    ("quality/fit-seconds", "CPU s of the fit"),
)


def format_markdown(results: dict[str, Any]) -> str:
    """Return the tables of one run: goals, quality, ratios and the other measurements."""
    machine, versions = results["machine"], results["versions"]
    lines = [
        f"Measured {results['date']} with `{results['command']}` on {machine['cores']} cores,",
        f"{machine['architecture']}, {machine['processor']}, Python {machine['python']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ". One thread, CPU seconds.",
        "",
        *_format_goals(results["goals"]),
        *_format_quality(results["scores"]),
        *_format_ratios(results["ratios"]),
        *_format_scores(results["scores"]),
    ]
    if results["skipped"]:
        lines += ["Not measured: " + "; ".join(f"{row['id']}, {row['reason']}" for row in results["skipped"]) + ".", ""]
    return "\n".join(lines)


def replace_results(page: Path, results: dict[str, Any]) -> None:
    """Write the tables into a page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(before + START + "\n" + format_markdown(results) + END + after, encoding="utf-8")


def _format_goals(goals: list[dict[str, Any]]) -> list[str]:
    states = {True: "met", False: "**not met**", None: "not measured"}
    rows = [
        [goal["goal"], goal["case"], _number(goal["figure"]), f"{goal['side']} {goal['limit']:g}", states[goal["met"]]]
        for goal in goals
    ]
    return ["### Goals", "", *_table(["goal", "case", "measured", "wanted", ""], rows)]


def _format_quality(scores: list[dict[str, Any]]) -> list[str]:
    methods = list(dict.fromkeys(row["method"] for row in scores if row["id"].startswith("quality/")))
    if not methods:
        return []
    found = {(row["id"], row["case"], row["method"]): row for row in scores}
    purity = [
        [method, *(_purity(found.get(("quality/purity", case, method))) for case, _ in _QUALITY)] for method in methods
    ]
    above = [
        [method, *(_difference(found.get(("quality/purity-above-reference", case, method))) for case, _ in _QUALITY)]
        for method in methods
        if ("quality/purity-above-reference", _QUALITY[0][0], method) in found
    ]
    topics = [[method, *(_median(found.get((id, "campaigns", method))) for id, _ in _TOPICS)] for method in methods]
    names = [name for _, name in _QUALITY]
    return [
        "### Neighbour purity@10",
        "",
        "Median over seeds.",
        "",
        *_table(["method", *names], purity),
        "Difference to the reference on the same rows, with its 95 % interval over occupations (or ads):",
        "",
        *_table(["method", *names], above),
        "### Topics on O*NET campaigns",
        "",
        *_table(["method", *(name for _, name in _TOPICS)], topics),
    ]


def _format_ratios(ratios: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in ratios:
        ratio = row["peer_over_ours"]
        span = f"{_number(ratio['min'])} to {_number(ratio['max'])}, n={len(ratio['runs'])}"
        rows.append(
            [
                row["ours"],
                row["peer"],
                row["case"] + (", denormals kept" if row["denormals"] == "kept" else ""),
                row["quantity"],
                _number(row["ours_runs"]["median"]),
                _number(row["peer_runs"]["median"]),
                f"**{_number(ratio['median'])}** ({span})",
            ]
        )
    head = ["ours", "beside", "case", "quantity", "ours", "theirs", "theirs / ours (range)"]
    return ["### Ratios", "", "Above 1, ours needs less.", "", *_table(head, rows)] if rows else []


def _format_scores(scores: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["id"],
            row["method"],
            row["case"] + (", denormals kept" if row["denormals"] == "kept" else ""),
            _number(row["value"]["median"]),
        ]
        for row in scores
        if not row["id"].startswith("quality/")
    ]
    return ["### Other measurements", "", *_table(["measurement", "method", "case", "value"], rows)] if rows else []


def _purity(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']['median']:.3f}"


def _difference(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']['median']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _median(row: dict[str, Any] | None) -> str:
    return "" if row is None else _number(row["value"]["median"])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]
