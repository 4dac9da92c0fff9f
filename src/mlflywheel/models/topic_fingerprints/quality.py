"""Measurements of topics and neighbours: coherence, diversity, stability, purity, hubness and exposure.

Pure functions on arrays. Those that describe rows return one value a row, so that the caller can average them over a
slice and put an interval beside the mean (`mlflywheel.statistics.intervals.estimate_mean`).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from mlflywheel.errors import UsageError
from mlflywheel.statistics.intervals import Interval, estimate_mean

# gensim's constant: what is added to a joint probability, so that its logarithm exists.
_EPSILON = 1e-12


def measure_coherence(top_terms: Sequence[Sequence[int]], documents: "sparse.csr_array") -> NDArray[np.float64]:
    """Measure each topic's coherence: the mean normalised pointwise mutual information (NPMI) of its top terms' pairs.

    Two terms that always stand in the same documents have 1, independent ones 0, two that never meet about -1. It
    equals gensim's `CoherenceModel(coherence="c_npmi")` with a window as long as the longest document; gensim's default
    window of 10 tokens has no meaning for a bag of keywords.

    Args:
        top_terms: Columns of each topic's top terms, usually 10; topics may have different numbers.
        documents: Sparse, shape (documents, terms); any value but 0 says that a document has the term.

    Returns:
        Shape (topics,), from -1 to 1. NaN for a topic of fewer than two terms, or with a term that no document has:
        its probability is 0, and gensim too has no number for it.

    Raises:
        UsageError: No document, or a column that does not exist.

    Sources: G. Bouma, "Normalized (pointwise) mutual information in collocation extraction", GSCL 2009; M. Röder,
    A. Both and A. Hinneburg, "Exploring the space of topic coherence measures", WSDM 2015.

    >>> together = sparse.csr_array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    >>> measure_coherence([[0, 1], [1, 2]], together).round(3).tolist()
    [1.0, -0.946]
    """
    used = np.unique(np.concatenate([np.asarray(topic, dtype=np.int64) for topic in top_terms] or [np.empty(0, int)]))
    number, width = documents.shape
    if number == 0 or (len(used) and not 0 <= used[0] <= used[-1] < width):
        raise UsageError(
            "measure_coherence",
            f"{number} documents of {width} terms, top terms up to column {used[-1] if len(used) else 'none'}",
            "documents with a column for every top term are needed",
            "pass the counts that belong to the vocabulary",
        )
    present = sparse.csc_array(documents)[:, used]
    present.data = (present.data != 0).astype(np.float64)
    together = np.asarray((present.T @ present).toarray(), dtype=np.float64) / number
    alone = np.diag(together)
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = together + _EPSILON
        npmi = np.log(joint / np.outer(alone, alone)) / -np.log(joint)
    result = np.full(len(top_terms), np.nan)
    for number_of_topic, topic in enumerate(top_terms):
        places = np.searchsorted(used, np.asarray(topic, dtype=np.int64))
        if len(places) < 2 or np.any(alone[places] == 0):
            continue
        pairs = npmi[np.ix_(places, places)]
        result[number_of_topic] = pairs[~np.eye(len(places), dtype=bool)].mean()
    return result


def measure_diversity(top_terms: Sequence[Sequence[Hashable]]) -> float:
    """Measure the share of top terms that are distinct: 1 if no two topics show the same term.

    Args:
        top_terms: Each topic's top terms, as text or as columns, usually 10.

    Returns:
        From above 0 to 1; NaN without any term.

    Source: A. B. Dieng, F. J. R. Ruiz and D. M. Blei, "Topic modeling in embedding spaces", TACL 8 (2020).

    >>> measure_diversity([["shoe", "boot"], ["shoe", "tea"]])
    0.75
    """
    shown = [term for topic in top_terms for term in topic]
    return len(set(shown)) / len(shown) if shown else float("nan")


def measure_purity(
    neighbours: ArrayLike, labels: Sequence[Hashable], catalogue_labels: Sequence[Hashable]
) -> NDArray[np.float64]:
    """Measure for each row the share of its neighbours that have its label.

    Args:
        neighbours: Shape (rows, k), integers: rows of the catalogue. A row should not be its own neighbour.
        labels: One a row; None or NaN where it is unknown.
        catalogue_labels: One a row of the catalogue; neighbours of unknown label are left out of the share.

    Returns:
        Shape (rows,), from 0 to 1; NaN where the row's own label, or every neighbour's, is unknown.

    Raises:
        UsageError: The lengths do not fit, or a neighbour is not in the catalogue.

    >>> measure_purity([[0, 1], [1, 2], [0, 1]], ["a", "b", None], ["a", "b", None]).tolist()
    [0.5, 1.0, nan]
    """
    nearest = _check_neighbours(neighbours, len(catalogue_labels), len(labels), "measure_purity")
    codes: dict[Hashable, int] = {}
    own, own_known = _encode(labels, codes)
    other, other_known = _encode(catalogue_labels, codes)
    counted = other_known[nearest]
    same = (own[:, None] == other[nearest]) & counted
    number = counted.sum(axis=1)
    defined = own_known & (number > 0)
    return np.where(defined, same.sum(axis=1) / np.maximum(number, 1), np.nan)


@dataclass(frozen=True, eq=False)
class Stability:
    """How well two fits agree on their topics.

    Args:
        per_topic: Shape (topics of the first fit,): likeness to the matched topic, 0 where there is none.
        matched: For each topic of the first fit the index of the second fit's, None where there is none.
        mean: Mean of `per_topic`.
    """

    per_topic: NDArray[np.float64]
    matched: tuple[int | None, ...]
    mean: float


def measure_stability(
    first: ArrayLike, second: ArrayLike, *, by: Literal["cosine", "top_terms"] = "cosine", top: int = 10
) -> Stability:
    """Match the topics of two fits one to one, as well as possible in sum, and measure how alike they are.

    Args:
        first: Shape (topics, terms), non-negative weights of terms in topics.
        second: Shape (other topics, terms), the same columns. The numbers of topics may differ.
        by: `cosine` of the weights, or the overlap of the `top` terms: common ones divided by all (Jaccard).
        top: Number of top terms; equal weights are taken in column order.

    Returns:
        Likeness from 0 to 1.

    Raises:
        UsageError: Not two tables with the same columns, or one without topics.

    Source: D. Greene, D. O'Callaghan and P. Cunningham, "How many topics? Stability analysis for topic models", ECML
    PKDD 2014; the matching is the Hungarian algorithm of H. W. Kuhn (1955).

    >>> measure_stability([[1, 0, 0], [0, 1, 1]], [[0, 2, 2], [3, 0, 0]]).mean.__round__(6)
    1.0
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1] or not left.size or not right.size:
        raise UsageError(
            "measure_stability",
            f"tables of shape {left.shape} and {right.shape}",
            "topics by the same terms are needed in both",
            "align the vocabularies of the two fits",
        )
    if by == "top_terms":
        shown_left, shown_right = _mark_top(left, top), _mark_top(right, top)
        common = shown_left @ shown_right.T
        alike = common / (shown_left.sum(axis=1)[:, None] + shown_right.sum(axis=1)[None, :] - common)
    else:
        alike = _to_unit(left) @ _to_unit(right).T
    rows, columns = optimize.linear_sum_assignment(alike, maximize=True)
    per_topic = np.zeros(len(left))
    per_topic[rows] = alike[rows, columns].clip(0.0, 1.0)
    partner = {int(row): int(column) for row, column in zip(rows, columns, strict=True)}
    matched = tuple(partner.get(topic) for topic in range(len(left)))
    return Stability(per_topic, matched, float(per_topic.mean()))


@dataclass(frozen=True, eq=False)
class Hubness:
    """How unevenly a catalogue's rows appear as neighbours.

    Args:
        occurrences: Shape (catalogue,), int64: in how many lists each row stands.
        skewness: Third standardised moment of `occurrences`: near 0 without hubs, above 1 where a few rows are
            everybody's neighbours; NaN if all rows appear equally often.
        never_share: Share of the catalogue that stands in no list, from 0 to 1.
    """

    occurrences: NDArray[np.int64]
    skewness: float
    never_share: float


def measure_hubness(neighbours: ArrayLike, catalogue_size: int) -> Hubness:
    """Measure hubness: in how many of the neighbour lists each row of the catalogue stands.

    Args:
        neighbours: Shape (rows, k), integers from 0 to `catalogue_size` - 1.
        catalogue_size: Rows of the catalogue, at least 1.

    Raises:
        UsageError: A neighbour is not in the catalogue.

    Source: M. Radovanović, A. Nanopoulos and M. Ivanović, "Hubs in space", JMLR 11 (2010).

    >>> hubs = measure_hubness([[0, 1], [0, 2], [0, 3]], 5)
    >>> hubs.occurrences.tolist(), round(hubs.skewness, 2), hubs.never_share
    ([3, 1, 1, 1, 0], 0.87, 0.2)
    """
    nearest = _check_neighbours(neighbours, catalogue_size, None, "measure_hubness")
    occurrences = np.asarray(np.bincount(nearest.ravel(), minlength=catalogue_size), dtype=np.int64)
    centred = occurrences - occurrences.mean()
    spread = float(np.sqrt((centred**2).mean()))
    skewness = float((centred**3).mean() / spread**3) if spread > 0 else float("nan")
    return Hubness(occurrences, skewness, float((occurrences == 0).mean()))


@dataclass(frozen=True)
class Exposure:
    """What a group of catalogue rows gets shown, relative to its size.

    Args:
        group: The group.
        ratio: Share of exposure divided by share of the catalogue, with its interval: 1 is parity.
        exposure_share: From 0 to 1.
        catalogue_share: From above 0 to 1.
        members: Rows of the catalogue in this group.
    """

    group: Hashable
    ratio: Interval
    exposure_share: float
    catalogue_share: float
    members: int


def measure_exposure(
    neighbours: ArrayLike,
    catalogue_groups: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> list[Exposure]:
    """Measure for each group how much of the neighbour lists it gets, relative to its share of the catalogue.

    A place counts 1 / log2(1 + rank), since the first ones are looked at more. It is a measurement of group parity,
    and no verdict: groups that differ in relevance differ in exposure for good reason.

    Args:
        neighbours: Shape (rows, k), integers: rows of the catalogue, nearest first.
        catalogue_groups: One a row of the catalogue. Rows of unknown group (None or NaN) take part in the totals, and
            get no result.
        clusters: One a row of `neighbours`, if rows resemble each other (campaigns of one advertiser); the interval
            then rests on clusters.
        confidence: Nominal coverage of the intervals. They say how much another sample of rows would move the ratio;
            the catalogue is taken as given.

    Returns:
        One a group, in the order of their names as text.

    Raises:
        UsageError: The lengths do not fit, or a neighbour is not in the catalogue.

    Source: A. Singh and T. Joachims, "Fairness of exposure in rankings", KDD 2018, arXiv 1802.07281.

    >>> small, large = measure_exposure([[0, 1], [0, 2]], ["small", "large", "large", "large"])
    >>> small.group, round(small.ratio.value, 2), round(large.ratio.value, 2)
    ('large', 0.52, 2.45)
    """
    rows = None if clusters is None else len(clusters)
    nearest = _check_neighbours(neighbours, len(catalogue_groups), rows, "measure_exposure")
    codes: dict[Hashable, int] = {}
    group, known = _encode(catalogue_groups, codes)
    number, k = nearest.shape
    discount = 1.0 / np.log2(2.0 + np.arange(k))
    # A row's shares by group; the last column is for unknown groups.
    column = np.where(known, group, len(codes))[nearest]
    place = np.arange(number)[:, None] * (len(codes) + 1) + column
    shown = np.bincount(
        place.ravel(), weights=np.tile(discount / discount.sum(), number), minlength=number * (len(codes) + 1)
    ).reshape(number, len(codes) + 1)
    shown = shown.clip(max=1.0)
    found = []
    for name, code in sorted(codes.items(), key=lambda item: str(item[0])):
        members = int((known & (group == code)).sum())
        share = members / len(catalogue_groups)
        ratio = estimate_mean(shown[:, code] / share, clusters, confidence=confidence, bounds=(0.0, 1.0 / share))
        found.append(Exposure(name, ratio, float(shown[:, code].mean()) if number else float("nan"), share, members))
    return found


def find_unclear(fingerprints: ArrayLike, threshold: float = 0.1) -> NDArray[np.bool_]:
    """Return which rows have no clear topic: their largest share is below a threshold.

    With 50 topics an even fingerprint has shares of 0.02; the default is five times that. Linear fingerprints are
    flatter than those of LDA, so a limit that suits one refuses the other. The mean of the result is
    `no_clear_topic_share`.

    Args:
        fingerprints: Shape (rows, topics), at least one topic, shares from 0 to 1.
        threshold: The share that a clear topic has at least.

    Returns:
        Shape (rows,), bool.

    >>> find_unclear([[0.7, 0.3], [0.5, 0.5]], 0.6).tolist()
    [False, True]
    """
    return np.asarray(np.asarray(fingerprints, dtype=np.float64).max(axis=1) < threshold, dtype=np.bool_)


def _check_neighbours(neighbours: ArrayLike, catalogue_size: int, rows: int | None, where: str) -> NDArray[np.int64]:
    nearest = np.asarray(neighbours, dtype=np.int64)
    if nearest.ndim != 2 or (rows is not None and len(nearest) != rows):
        raise UsageError(
            where,
            f"neighbours of shape {nearest.shape}" + (f" for {rows} rows" if rows is not None else ""),
            "one list of neighbours a row is needed",
            "take both from the same rows",
        )
    if nearest.size and not 0 <= nearest.min() <= nearest.max() < catalogue_size:
        raise UsageError(
            f"{where}, neighbours",
            f"rows {nearest.min()} to {nearest.max()}",
            f"the catalogue has rows 0 to {catalogue_size - 1}",
            "search the neighbours in the catalogue that is passed",
        )
    return nearest


def _encode(labels: Sequence[Hashable], codes: dict[Hashable, int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number labels, adding new ones to `codes`; the second array says where a label is known."""
    known = np.fromiter((label is not None and label == label for label in labels), dtype=np.bool_, count=len(labels))
    numbers = np.zeros(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        if known[row]:
            numbers[row] = codes.setdefault(label, len(codes))
    return numbers, known


def _mark_top(weights: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    best = np.argsort(-weights, axis=1, kind="stable")[:, :top]
    marked = np.zeros_like(weights)
    np.put_along_axis(marked, best, 1.0, axis=1)
    return marked


def _to_unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)
