"""The goals, and whether the figures of one run meet them: computed, never typed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Goal:
    """A limit on one kind of figure.

    Args:
        text: What is wanted, for people.
        id: Id of the ratios or scores that it looks at.
        side: Whether the figure must be at least or at most the limit.
        limit: The limit.
        figure: `peer_over_ours`, `ours_over_peer` of a ratio, or `value` of a score.
        cases: Only cases whose name starts with one of these; all if empty.
        method: Only this method of a score; all if empty.
        over: The figure is divided by that of this other method of the same score and case.
    """

    text: str
    id: str
    side: Literal["at least", "at most"]
    limit: float
    figure: Literal["peer_over_ours", "ours_over_peer", "value"] = "peer_over_ours"
    cases: tuple[str, ...] = ()
    method: str = ""
    over: str = ""


_TUNED = "gensim LdaModel, tuned"
_OURS = "Lda, defaults"

GOALS = (
    Goal(
        "fingerprints at 200 tokens, Lda with gensim's settings, times get_document_topics",
        "inference/lda-same",
        "at least",
        4.0,
        cases=("synthetic, 200 ",),
    ),
    Goal(
        "fingerprints at 50 tokens and fewer, the same",
        "inference/lda-same",
        "at least",
        8.0,
        cases=("synthetic, 50 ", "synthetic, 20 "),
    ),
    Goal(
        "campaigns within 1e-4 of gensim's engine from the same start", "inference/agreement", "at least", 0.99, "value"
    ),
    Goal(
        "one campaign, p50, Lda with gensim's settings, of get_document_topics",
        "inference/lda-same-single-p50",
        "at most",
        0.3,
        "ours_over_peer",
        cases=("synthetic, 200 ",),
    ),
    Goal(
        "one campaign, p99, the same",
        "inference/lda-same-single-p99",
        "at most",
        0.5,
        "ours_over_peer",
        cases=("synthetic, 200 ",),
    ),
    Goal(
        "campaigns with the same bits alone and in a batch", "inference/batch-equals-single", "at least", 1.0, "value"
    ),
    Goal(
        "held-out perplexity of Lda, of tuned gensim's, synthetic",
        "training/perplexity",
        "at most",
        0.8,
        "value",
        cases=("synthetic",),
        method=_OURS,
        over=_TUNED,
    ),
    Goal(
        "held-out perplexity of Lda, of tuned gensim's, real",
        "training/perplexity",
        "at most",
        0.9,
        "value",
        cases=("O*NET",),
        method=_OURS,
        over=_TUNED,
    ),
    Goal("CPU time of Lda, of tuned gensim's", "training/lda-tuned", "at most", 0.5, "ours_over_peer"),
    Goal(
        "held-out perplexity of Lda, of tomotopy's",
        "training/perplexity",
        "at most",
        1.02,
        "value",
        method=_OURS,
        over="tomotopy, 300 iterations",
    ),
    Goal("CPU time of Lda, of tomotopy's", "training/lda-tomotopy", "at most", 0.3, "ours_over_peer"),
    Goal(
        "recall of true neighbours by Lda, of that with the true topics",
        "training/recall",
        "at least",
        0.8,
        "value",
        method=_OURS,
        over="true topics",
    ),
    Goal("LDA engine alone, same start and settings, times gensim LdaModel", "training/lda-engine", "at least", 3.5),
    Goal(
        "its held-out perplexity, of gensim's",
        "training/engine-perplexity",
        "at most",
        1.01,
        "value",
        method="Lda, same settings",
        over="gensim, same settings",
    ),
    Goal('exact neighbours, times metric="cosine"', "neighbours/exact", "at least", 5.0),
    Goal(
        "neighbours by inverted lists at 1,000,000, times brute force, queries alone",
        "neighbours/approximate",
        "at least",
        20.0,
        cases=("1,000,000",),
    ),
    Goal(
        "the same for all pairs, with building the index",
        "neighbours/all-pairs",
        "at least",
        20.0,
        cases=("1,000,000",),
    ),
    Goal("recall@10 of inverted lists", "neighbours/recall", "at least", 0.97, "value"),
    Goal("terms to counts, times gensim", "text/gensim", "at least", 20.0),
    Goal("memory of counts, of lists of tuples", "text/memory", "at most", 0.1, "ours_over_peer"),
)


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one entry for each goal and case that was measured, and one without a figure for a goal that was not.

    Args:
        results: `ratios` and `scores` as `run` writes them.

    Returns:
        Dictionaries with `goal`, `case`, `denormals`, `figure`, `side`, `limit` and `met` (None if not measured).
    """
    judged = []
    for goal in GOALS:
        figures = list(_find_figures(goal, results))
        if not figures:
            judged.append(_describe(goal, "", "", None))
        judged += [_describe(goal, *figure) for figure in figures]
    return judged


def _find_figures(goal: Goal, results: dict[str, Any]) -> Iterable[tuple[str, str, float]]:
    for row in results["scores" if goal.figure == "value" else "ratios"]:
        fits = not goal.cases or row["case"].startswith(goal.cases)
        if row["id"] != goal.id or not fits or row["denormals"] == "kept":
            continue
        if goal.figure == "peer_over_ours":
            yield row["case"], row["denormals"], row["peer_over_ours"]["median"]
        elif goal.figure == "ours_over_peer":
            yield row["case"], row["denormals"], 1.0 / row["peer_over_ours"]["median"]
        elif not goal.over:
            if not goal.method or row["method"] == goal.method:
                yield row["case"], row["denormals"], row["value"]["median"]
        elif row["method"] == goal.method:
            for other in results["scores"]:
                same = all(other[name] == row[name] for name in ("id", "case", "denormals"))
                if same and other["method"].startswith(goal.over):
                    yield row["case"], row["denormals"], row["value"]["median"] / other["value"]["median"]


def _describe(goal: Goal, case: str, denormals: str, figure: float | None) -> dict[str, Any]:
    met = None
    if figure is not None:
        met = figure >= goal.limit if goal.side == "at least" else figure <= goal.limit
    return {
        "goal": goal.text,
        "case": case,
        "denormals": denormals,
        "figure": None if figure is None else round(figure, 4),
        "side": goal.side,
        "limit": goal.limit,
        "met": met,
    }
