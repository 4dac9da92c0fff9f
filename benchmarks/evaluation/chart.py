"""Draw the committed results of this folder, and write them as tables into benchmarks/README.md.

    python -m benchmarks.evaluation.chart

Every figure of the tables and of the chart is read from `results/*.json`; nothing is measured here.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "benchmarks" / "README.md"
IMAGE = ROOT / "docs" / "images" / "benchmarks-evaluation.svg"
START, END = "<!-- evaluation: written by benchmarks.evaluation.chart -->", "<!-- end of evaluation -->"
TOPICS = ("slices", "fairness", "champion", "explanations", "german_credit")
_INK, _QUIET, _PANEL = "#1f2933", "#616e7c", "#f7f9fb"
_OURS, _PEER = "#1f5fa8", "#d9822b"
#: What is asked of every decision: the largest share of false blocks, the smallest of planted regressions found.
_MOST_BLOCKED, _LEAST_FOUND = 0.05, 0.9

Share = tuple[float, float, float]


def read_results(folder: Path = RESULTS) -> dict[str, Any]:
    """Return each topic's results, by its name."""
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TOPICS}


def read_share(found: Any) -> Share:
    """Return share, low and high of either form in which they are written.

    >>> read_share({"share": 0.05, "low": 0.04, "high": 0.06, "data_sets": 9}), read_share([0.5, 0.4, 0.6])
    ((0.05, 0.04, 0.06), (0.5, 0.4, 0.6))
    """
    if isinstance(found, dict):
        return found["share"], found["low"], found["high"]
    value, low, high = found
    return value, low, high


def show(found: Any) -> str:
    """Write a share with its interval, in percent.

    >>> show([0.05, 0.0381, 0.0653])
    '5.0 (3.8 to 6.5)'
    """
    value, low, high = (100 * part for part in read_share(found))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def format_tables(results: dict[str, Any]) -> Iterator[str]:
    """Return the lines of all tables."""
    yield from _format_slices(results["slices"])
    yield from _format_fairness(results["fairness"])
    yield from _format_champion(results["champion"]["parts"], results["champion"]["command"])
    yield from _format_explanations(results["explanations"])
    yield from _format_german_credit(results["german_credit"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join(["---"] + ["---:"] * (len(head) - 1)) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _format_slices(found: dict[str, Any]) -> Iterator[str]:
    methods = ("search", "bonferroni", "split", "naive")
    first = next(iter(found["false_alarms"].values()))
    yield f"### Weak slices: `{found['command']}`"
    yield ""
    yield (
        f"{found['rows']:,} rows, slices of at least {found['minimum_count']} rows, {found['permutations']} "
        f"permutations, {first['search']['data_sets']:,} data sets a row. False alarms, %: nothing is weak, and a "
        "slice is reported."
    )
    yield ""
    yield from _table(
        ("losses", "our search", "t test, Bonferroni", "two halves", "t test of every slice"),
        [(name, *(show(one[method]) for method in methods)) for name, one in found["false_alarms"].items()],
    )
    number = found["detections"][0]["search"]["data_sets"]
    yield f"Found, % of {number} data sets, by how much worse the slice is, in standard deviations of the losses:"
    yield ""
    yield from _table(
        ("losses, slice, worse by", "our search", "t test, Bonferroni", "two halves", "other slices reported"),
        [
            (
                f"{one['losses']}; {one['slice']}; {one['effect']:g}",
                *(show(one[method]) for method in methods[:3]),
                f"{one['search']['others']:.2f}",
            )
            for one in found["detections"]
        ],
    )
    speed = found["speed"]
    yield (
        f"A search over {speed['rows']:,} rows and {speed['attributes']} attributes ({speed['looked_at']}) takes "
        f"{speed['cpu_seconds']:.2f} CPU seconds and {speed['peak_mib']} MiB."
    )
    yield ""


def _format_fairness(found: dict[str, Any]) -> Iterator[str]:
    rules = ("intervals", "percentile", "basic", "value")
    yield f"### Gaps between groups: `{found['command']}`"
    yield ""
    yield (
        f"{found['data_sets']:,} data sets a row. Gates refuse with the whole interval: ours, two bootstraps of "
        f"{found['bootstrap_resamples']:,} resamples, and the plain value. A gate on a gap has the true gap as its "
        "limit: the hardest case, since a larger limit refuses less. A gate on a rise has the limit of the table. "
        "False blocks, %:"
    )
    yield ""
    yield from _table(
        (
            "groups",
            "gap: ours",
            "percentile",
            "basic",
            "value",
            "rise, limit",
            "rise: ours",
            "percentile",
            "basic",
            "value",
        ),
        [
            (
                f"{one['scenario']} ({_name_sizes(one['sizes'])})",
                *(show(one["gap"][rule]["refused"]) for rule in rules),
                f"{one['limit']:g}",
                *(show(one["rise"][rule]["refused"]) for rule in rules),
            )
            for one in found["within"]
        ],
    )
    limits = sorted({one["limit"] for one in found["planted"]})
    yield f"Planted rises found, %, with the limit {', '.join(f'{limit:g}' for limit in limits)}:"
    yield ""
    yield from _table(
        ("groups", "true rise", "ours", "percentile", "basic", "value"),
        [
            (
                one["scenario"],
                f"{one['true_rise']:g}",
                *(show(one["rise"][rule]["refused"]) for rule in rules),
            )
            for one in found["planted"]
        ],
    )
    yield (
        "Other gaps by our intervals, %: how often the whole interval is above the truth, which is how often a gate at "
        "the truth refuses; and how often the gates of the simulation refuse."
    )
    yield ""
    yield from _table(
        ("gap", "true gap", "interval above the truth", "gap refused", "rise refused"),
        [
            (
                f"{label}: {one['scenario']}",
                f"{one['true_gap']:g}",
                show(one["gap"]["truth_below"]),
                show(one["gap"]["refused"]),
                show(one["rise"]["refused"]),
            )
            for label, key in (("equalized odds", "equalized_odds"), ("means", "means"), ("exposure", "exposure"))
            for one in found[key]
        ],
    )


def _name_sizes(sizes: Sequence[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{len(sizes)} of {sizes[0]:,}"
    return ", ".join(f"{size:,}" for size in sizes)


def _format_champion(parts: dict[str, Any], command: str) -> Iterator[str]:
    yield f"### The version in use, and the trend: `{command}`"
    yield ""
    number = parts["non_inferiority"][0]["equal_blocked"]["data_sets"]
    yield (
        f"{number:,} data sets a row, %. `interval` and `whole_interval` have the margin as their limit. In brackets "
        "what `required_rows` asks for, to let nine of ten equal models pass."
    )
    yield ""
    yield from _table(
        (
            "metric, margin, rows (needs)", "`interval` refuses an equal model", "lets the margin pass",
            "twice the margin",
            "`whole_interval` refuses an equal model", "refuses twice the margin",
        ),
        [
            (
                f"{one['metric']}, {one['margin']:g}, {one['rows']:,} ({one['required_rows']:,})",
                *(
                    show(one[key])
                    for key in (
                        "equal_blocked", "at_margin_passed", "twice_margin_passed",
                        "harm_refuses_equal", "harm_refuses_twice_margin",
                    )
                ),
            )
            for one in parts["non_inferiority"]
        ],
    )  # fmt: skip
    slices = parts["slices"]
    keys = [key for key in slices[0] if " at " in key]
    yield (
        f"How often one of {slices[0]['slices']} slices refuses an equal model, %, "
        f"{slices[0][keys[0]]['data_sets']:,} data sets a row:"
    )
    yield ""
    yield from _table(
        ("rows of a slice", *(f"`{key.split(' at ')[0]}`, limit {key.split(' at ')[1]}" for key in keys)),
        [(f"{one['rows']:,}", *(show(one[key]) for key in keys)) for one in slices],
    )
    alarms = parts["trend"]["alarms"]
    kinds = list(dict.fromkeys(one["values"] for one in alarms))
    versions = list(dict.fromkeys(one["versions"] for one in alarms))
    shares = {(one["versions"], one["values"]): show(one["alarm"]) for one in alarms}
    yield f"Trends found where there is none, %, {alarms[0]['alarm']['data_sets']:,} histories a figure:"
    yield ""
    yield from _table(("versions", *kinds), [(str(one), *(shares[one, kind] for kind in kinds)) for one in versions])
    one = parts["trend"]["any_alarm_in_20_releases"]
    number = one["data_sets"]
    yield f"At least one alarm over 20 releases in a row, of values without a trend: {show(one)} % of {number:,}."
    yield ""
    yield "A decline of equal steps over 10 releases, %:"
    yield ""
    yield from _table(
        ("step, noise of a version", "a step is refused", "the trend is found", "only the trend finds it"),
        [
            (
                f"{row['step']:g}, {row['noise_of_a_version']:g}",
                *(show(row[key]) for key in ("any_step_refused", "trend_found", "only_the_trend_found_it")),
            )
            for row in parts["trend"]["declines"]
        ],
    )
    yield "Refits and damaged models beside the model that was fitted on the real files (loss, 95 % interval):"
    yield ""
    shown = {
        "vehicle_prices": ("champion_loss_absolute_relative_error", "champion_loss_within_10_percent"),
        "ad_campaigns": ("champion_loss_neighbour_purity_at_10", "champion_loss_hidden_keyword_recall_at_10"),
    }
    for name, metrics in shown.items():
        if name in parts["models"]:
            yield from _table(
                (
                    f"{name.replace('_', ' ')}, {parts['models'][name][0]['rows']:,} rows",
                    *(f"`{key}`" for key in metrics),
                ),
                [(row["model"], *(_show_loss(row[key]) for key in metrics)) for row in parts["models"][name]],
            )


def _show_loss(found: Sequence[float]) -> str:
    value, low, high = found
    return f"{value:.4f} ({low:.4f} to {high:.4f})"


def _format_explanations(found: dict[str, Any]) -> Iterator[str]:
    yield f"### Explanations: `{found['command']}`"
    yield ""
    yield (
        "CPU seconds of one thread. Agreement is Spearman's rank correlation of features. shap "
        f"{found['versions'].get('shap', '')} asks the same model."
    )
    yield ""

    def optional(value: Any, form: str) -> str:
        return "–" if value is None else format(value, form)

    yield from _table(
        (
            "model and data", "importance, s for 1,000 rows", "contributions / predict", "shap / predict",
            "contributions and importance", "contributions and shap",
        ),
        [
            (
                one["case"],
                f"{one['importance_cpu_seconds_per_1000_rows']:.2f}",
                f"{one['contributions_over_predict']:.2f}",
                optional(one.get("shap_over_predict"), ",.0f"),
                optional(one.get("own_against_importance"), ".2f"),
                optional(one.get("shap_against_own_of_the_same_rows"), ".2f"),
            )
            for one in found["cases"]
        ],
    )  # fmt: skip
    planted = found["planted_driver"]
    yield (
        "Of tables whose truth is made by one column alone, importance ranks it first in "
        f"{planted['first']['importance']} of {planted['trials']}, contributions in {planted['first']['own']} of "
        f"{planted['trials']}, shap in {planted['first']['shap']} of {planted['trials_of_shap']}."
    )
    yield ""
    yield "Intervals of the importance that hold the true value, %:"
    yield ""
    yield from _table(
        ("rows, permutations", "ours", "each row's rises alone"),
        [
            (
                f"{one['rows']:,}, {one['permutations']}",
                f"{100 * one['with_both_roles']:.1f}",
                f"{100 * one['own_rises_alone']:.1f}",
            )
            for one in found["coverage"]
        ],
    )


def _format_german_credit(found: dict[str, Any]) -> Iterator[str]:
    yield f"### Classifier beside scikit-learn: `{found['command']}`"
    yield ""
    yield (
        f"{found['rows']:,} applications, {found['folds']} folds, {found['repeats']} draws. Log loss with its 95 % "
        "interval; lower is better."
    )
    yield ""
    settings = found["settings"]
    yield from _table(
        ("method", *settings),
        [
            (
                method.replace("_", " "),
                *(
                    _show_loss([one["methods"][method][key] for key in ("log_loss", "log_loss_low", "log_loss_high")])
                    for one in settings.values()
                ),
            )
            for method in next(iter(settings.values()))["methods"]
        ],
    )


def read_points(results: dict[str, Any]) -> tuple[list[tuple[str, Share]], list[tuple[str, Share]]]:
    """Return what the chart shows: false blocks, and planted regressions found, each with a name."""
    slices, fairness, parts = results["slices"], results["fairness"], results["champion"]["parts"]
    blocked = [(f"slices: {name}", read_share(one["search"])) for name, one in slices["false_alarms"].items()]
    blocked += [
        (f"gap: {one['scenario']}", read_share(one["gap"]["intervals"]["refused"]))
        for one in fairness["within"]
        if one["true_gap"] == 0.0
    ]
    blocked += [
        (f"trend: {one['versions']} versions, {one['values']}", read_share(one["alarm"]))
        for one in parts["trend"]["alarms"]
        if one["versions"] in (4, 11)
    ]
    found = [
        (f"slices: {one['losses']}, {one['slice']}, {one['effect']:g} sd", read_share(one["search"]))
        for one in slices["detections"]
        if one["effect"] in (0.3, 0.5)
    ]
    found += [
        (f"rise: {one['scenario']}", read_share(one["rise"]["intervals"]["refused"])) for one in fairness["planted"]
    ]
    return blocked, found


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw false blocks and detections with their intervals, beside what is asked of them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": 8.0, "text.color": _INK, "axes.labelcolor": _INK,
        "xtick.color": _QUIET, "ytick.color": _INK, "axes.edgecolor": "#c3ccd5", "axes.facecolor": _PANEL,
        "figure.facecolor": _PANEL, "savefig.facecolor": _PANEL, "svg.fonttype": "path", "svg.hashsalt": "mlflywheel",
    }  # fmt: skip
    blocked, found = read_points(results)
    with plt.rc_context(style):
        figure, both = plt.subplots(1, 2, figsize=(11.5, 5.6), layout="constrained")
        for axes, points, limit, title in (
            (both[0], blocked, _MOST_BLOCKED, "False blocks: nothing is wrong, and it is refused"),
            (both[1], found, _LEAST_FOUND, "Found: something was made worse"),
        ):
            points = list(reversed(points))
            values = [100 * share[0] for _, share in points]
            ends = [[100 * (s[0] - s[1]) for _, s in points], [100 * (s[2] - s[0]) for _, s in points]]
            names = [name for name, _ in points]
            axes.axvline(100 * limit, color=_PEER, linewidth=1.2, zorder=1)
            axes.errorbar(values, names, xerr=ends, fmt="o", color=_OURS, markersize=4, linewidth=1.0, zorder=3)
            axes.set_xlim(0, 104 if limit > 0.5 else None)
            axes.set_xlabel(f"% of data sets; line: {100 * limit:.0f} %")
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(axis="x", color="#e3e8ed", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def write_tables(results: dict[str, Any], page: Path) -> None:
    """Put the tables between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    page.write_text("\n".join([before + START, *format_tables(results), END + after]), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, and write tables and chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go, between their markers")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where the chart goes")
    options = parser.parse_args(arguments)
    results = read_results()
    write_tables(results, options.page)
    draw(results, options.image)


if __name__ == "__main__":
    main()
