"""Draw the committed results as charts for the documentation, and write them as tables into benchmarks/README.md.

    python -m benchmarks.fingerprints.chart

Charts stand on a panel of their own colour, so that they are readable on light and on dark pages.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fingerprints.goals import GOALS
from benchmarks.fingerprints.quality import REFERENCE
from benchmarks.fingerprints.run import RESULTS, ROOT
from benchmarks.fingerprints.tables import replace_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "benchmarks" / "README.md"
_TIMES = "\N{MULTIPLICATION SIGN}"
_INK, _QUIET, _PANEL = "#1f2933", "#616e7c", "#f7f9fb"
# Blue and orange differ for every kind of colour vision, and in print by lightness.
_OURS, _PEER = "#1f5fa8", "#d9822b"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _QUIET,
    "ytick.color": _INK,
    "axes.edgecolor": "#c3ccd5",
    "axes.facecolor": _PANEL,
    "figure.facecolor": _PANEL,
    "savefig.facecolor": _PANEL,
    "svg.fonttype": "path",
    "svg.hashsalt": "mlflywheel",
}

_SETS = ("campaigns", "campaigns, siblings left out", "unseen campaigns", "occupations", "advertisements")
# Method in the results, and its name in the chart.
_METHODS = (
    ("rotated-lsa (default)", "rotated LSA (default)"),
    ("rotated-lsa, no refinement", "rotated LSA, no refinement"),
    ("lda", "LDA, seeded by rotated LSA"),
    ("TF-IDF + SVD(100), words and pairs", "TF-IDF + SVD(100), with pairs"),
    (REFERENCE, "TF-IDF + SVD(100): the reference"),
    ("TF-IDF, words and pairs", "TF-IDF, with pairs"),
    ("TF-IDF, words", "TF-IDF"),
    ("scikit-learn NMF, words", "scikit-learn NMF"),
    ("gensim LdaModel, stock, 10 passes", "gensim LdaModel, stock"),
)
# Ratio in the results, the start of its case, and its name in the chart.
_SPEEDS = (
    ("inference/lda-same", "synthetic, 200 ", "LDA fingerprints, 200 tokens / gensim"),
    ("inference/lda-same", "synthetic, 20 ", "LDA fingerprints, 20 tokens / gensim"),
    ("inference/rotated-lsa", "synthetic, 200 ", "rotated-LSA fingerprints, 200 tokens / gensim LDA"),
    ("inference/lda-same-single-p50", "synthetic, 200 ", "one LDA fingerprint, p50 / gensim"),
    ("training/lda-engine", "synthetic", "LDA training, same settings / gensim"),
    ("training/lda-tuned", "O*NET", "LDA training, defaults / tuned gensim, O*NET"),
    ("training/lda-tomotopy", "synthetic", "LDA training, defaults / tomotopy"),
    ("training/lda-tomotopy", "O*NET", "LDA training, defaults / tomotopy, O*NET"),
    ("training/rotated-lsa-lda", "O*NET", "rotated-LSA training / tuned gensim LDA, O*NET"),
    ("training/rotated-lsa-lsi", "O*NET", "rotated-LSA training / gensim LSI, O*NET"),
    ("neighbours/exact", "10,000", "exact neighbours, 10,000 / cosine metric"),
    ("neighbours/exact", "50,000", "exact neighbours, 50,000 / cosine metric"),
    ("neighbours/approximate", "1,000,000", "inverted lists, 1,000,000 / brute force"),
    ("text/gensim", "campaigns of 40", "terms to counts, repeating terms / gensim"),
    ("text/gensim", "short distinct", "terms to counts, distinct texts / gensim"),
    ("text/sklearn", "short distinct", "terms to counts, distinct texts / CountVectorizer"),
    ("text/memory", "campaigns of 40", "memory of counts / lists of tuples"),
)


@dataclass(frozen=True)
class Point:
    """A value to draw.

    Args:
        label: Its row.
        value: The value.
        low: Lower end of its bar.
        high: Upper end of its bar.
        goal: What is aimed at, None without a goal.
    """

    label: str
    value: float
    low: float
    high: float
    goal: float | None = None


def read_purities(results: dict[str, Any]) -> dict[str, list[Point]]:
    """Return the neighbour purity of every set that was measured, by method, with 95 % intervals."""
    found: dict[str, list[Point]] = {}
    for name in _SETS:
        rows = {row["method"]: row for row in results["scores"] if (row["id"], row["case"]) == ("quality/purity", name)}
        points = [
            Point(label, rows[method]["value"]["median"], rows[method]["low"], rows[method]["high"])
            for method, label in _METHODS
            if method in rows
        ]
        if points:
            found[name] = points
    return found


def read_speeds(results: dict[str, Any]) -> list[Point]:
    """Return what peers need for each unit that we need, with the range over the runs and the goal."""
    found = []
    for id, case, label in _SPEEDS:
        for row in results["ratios"]:
            if row["id"] == id and row["case"].startswith(case) and row["denormals"] != "kept":
                ratio = row["peer_over_ours"]
                found.append(Point(label, ratio["median"], ratio["min"], ratio["max"], _find_goal(id, row["case"])))
    return found


def _find_goal(id: str, case: str) -> float | None:
    for goal in GOALS:
        if goal.id == id and goal.figure != "value" and (not goal.cases or case.startswith(goal.cases)):
            return goal.limit if goal.figure == "peer_over_ours" else 1.0 / goal.limit
    return None


def draw_purities(results: dict[str, Any]) -> "Figure":
    """Draw one panel a set, one row a method."""
    from matplotlib import pyplot as plt

    purities = read_purities(results)
    if not purities:
        return plt.figure(figsize=(11, 1))
    labels = [label for _, label in _METHODS]
    own = {label for method, label in _METHODS if method.startswith(("rotated-lsa", "lda"))}
    figure, panels = plt.subplots(1, len(purities), figsize=(11, 3.6), sharey=True, squeeze=False, layout="constrained")
    for axes, (name, points) in zip(panels[0], purities.items(), strict=True):
        for point in points:
            row = labels.index(point.label)
            colour, marker = (_OURS, "o") if point.label in own else (_PEER, "D")
            axes.plot([point.low, point.high], [row, row], color=colour, linewidth=2, alpha=0.45)
            axes.plot(point.value, row, marker, color=colour, markersize=5.5)
        reference = next((p.value for p in points if p.label.endswith("the reference")), None)
        if reference is not None:
            axes.axvline(reference, color=_QUIET, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(name.replace(", ", ",\n"), fontsize=9)
        _finish(axes)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    figure.suptitle("Share of a campaign's 10 nearest neighbours with its label, and its 95 % interval", fontsize=10)
    figure.supxlabel(
        "circles: ours · diamonds: others · dotted: the reference · O*NET terms, and real advertisements",
        fontsize=8,
        color=_QUIET,
    )
    return figure


def draw_speeds(results: dict[str, Any]) -> "Figure":
    """Draw one row a comparison, on a logarithmic axis."""
    from matplotlib import pyplot as plt

    points = read_speeds(results)
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(points) + 1.4), layout="constrained")
    for row, point in enumerate(points):
        met = point.goal is None or point.value >= point.goal
        colour = _OURS if met and point.value >= 1.0 else _PEER
        axes.plot([1.0, point.value], [row, row], color=colour, linewidth=1.2, alpha=0.35)
        axes.plot([point.low, point.high], [row, row], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
        axes.plot(point.value, row, "o", color=colour, markersize=5.5)
        if point.goal is not None:
            axes.plot(point.goal, row, "|", color=_INK, markersize=11, markeredgewidth=1.4)
        axes.text(
            1.01, row, f"{point.value:.3g}{_TIMES}", transform=axes.get_yaxis_transform(), va="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.axvline(1.0, color=_QUIET, linewidth=0.8)
    highest = max((max(point.high, point.goal or 0.0) for point in points), default=10.0)
    axes.set_xlim(min([0.5, *(point.low / 1.3 for point in points)]), highest * 1.3)
    ticks = [
        tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if axes.get_xlim()[0] <= tick <= highest * 1.3
    ]
    axes.set_xticks(ticks, [f"{tick:g}{_TIMES}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(points)), [point.label for point in points])
    axes.invert_yaxis()
    figure.suptitle("CPU time (or memory) that the other needs, divided by ours; right of 1 we need less", fontsize=10)
    axes.set_xlabel(
        "dot: median · band: all runs · tick: the goal · orange: below 1 or below the goal", fontsize=8, color=_QUIET
    )
    _finish(axes)
    return figure


def _finish(axes: "Axes") -> None:
    axes.grid(axis="x", color="#dde3e9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fingerprints.chart", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file that `run` wrote")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder to write the charts to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write the tables into")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.images.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({**_STYLE, "backend": "agg"}):
        for name, draw in (("quality", draw_purities), ("speed", draw_speeds)):
            # Without a date, the same results are the same bytes.
            figure = draw(results)
            figure.savefig(options.images / f"benchmarks-{name}.svg", metadata={"Date": None})
            plt.close(figure)
    replace_results(options.page, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
