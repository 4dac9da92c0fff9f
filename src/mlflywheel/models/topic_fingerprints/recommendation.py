"""Keywords that a campaign's nearest campaigns use and it does not, with the evidence for each.

The order was chosen by an experiment: hide 20 % of a campaign's terms, recommend from its 10 nearest other campaigns by
fingerprint, and look for the hidden terms among the first 10. On O*NET terms and farm advertisements this formula found
more of them than counting neighbours, and counting more than naming what most campaigns use. Weighing by how well a
term's topics fit the campaign's, or asking for two neighbours that use a term, found fewer. The experiment is not among
the committed benchmarks yet, so it stands here without figures.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mlflywheel.errors import UsageError

# Chosen by the experiment above. A neighbour without a common term keeps a tenth of the weight of one with the same
# terms, since its topics are the same.
_OVERLAP_FLOOR = 0.1
_RARITY_EXPONENT = 0.1

# + and # distinguish terms when they follow a letter: C, C++ and C#. In front, + is a mark of broad match.
_WORD = re.compile(r"\w[\w+#]*")


@dataclass(frozen=True)
class Recommendation:
    """One recommended keyword.

    Args:
        term: The keyword, as most campaigns of the catalogue spell it.
        score: Between 0 and 1; comparable inside one campaign's list, less so between campaigns.
        neighbours: Ids of the nearest campaigns that use it, nearest first.
        topics: Indices of at most three of the campaign's topics that the keyword belongs to, strongest first; empty
            if the catalogue has no topics.
    """

    term: str
    score: float
    neighbours: tuple[str, ...]
    topics: tuple[int, ...] = ()


def normalize_keyword(term: str) -> str:
    """Return what near-duplicates have in common: the same words in any order, case, spelling width and number.

    English plurals are folded by their ending; in other languages only case, order and punctuation are.

    >>> normalize_keyword("Running  Shoes") == normalize_keyword("shoe, running")
    True
    >>> normalize_keyword("C++") == normalize_keyword("C")
    False
    """
    text = unicodedata.normalize("NFKC", term).casefold()
    words = sorted({_fold_plural(word) for word in _WORD.findall(text)})
    return " ".join(words) or text.strip()


def _fold_plural(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


@dataclass(frozen=True, eq=False)
class KeywordCatalogue:
    """The keywords of all campaigns that recommendations are taken from. Build it with `KeywordCatalogue.build`.

    Args:
        campaign_ids: One a campaign, in the order that neighbour indices refer to.
        keywords: One spelling a column, sorted; near-duplicates share a column.
        columns: Column of each normalised keyword.
        use: Sparse, shape (campaigns, keywords), float64: 1 where a campaign uses a keyword.
        weighted_use: The same, weighted by rarity, rows of unit length.
        rarity: Shape (keywords,): logarithm of (campaigns + 1) / campaigns that use it; above 0.
        term_topics: Shape (keywords, topics), float32: each keyword's own fingerprint, or None.
    """

    campaign_ids: tuple[str, ...]
    keywords: tuple[str, ...]
    columns: dict[str, int]
    use: "sparse.csr_array"
    weighted_use: "sparse.csr_array"
    rarity: NDArray[np.float64]
    term_topics: NDArray[np.float32] | None = None

    @classmethod
    def build(cls, campaign_ids: Sequence[str], terms: Iterable[Collection[str]]) -> "KeywordCatalogue":
        """Collect the keywords of campaigns.

        Args:
            campaign_ids: One a campaign.
            terms: Each campaign's terms, in the same order; repeated terms count once.

        Raises:
            UsageError: The two have different lengths.
        """
        keys: dict[str, str] = {}
        spellings: dict[str, Counter[str]] = {}
        rows: list[set[str]] = []
        for campaign in terms:
            used = set()
            for term in set(campaign):
                key = keys.get(term)
                if key is None:
                    key = keys[term] = normalize_keyword(term)
                if key:
                    used.add(key)
                    spellings.setdefault(key, Counter())[term.strip()] += 1
            rows.append(used)
        if len(rows) != len(campaign_ids):
            raise UsageError(
                "KeywordCatalogue.build",
                f"{len(campaign_ids)} ids and {len(rows)} lists of terms",
                "one of each a campaign is needed",
                "take both from the same table",
            )
        spelled = sorted((_choose_spelling(counts), key) for key, counts in spellings.items())
        columns = {key: column for column, (_, key) in enumerate(spelled)}
        use = _to_rows([[columns[key] for key in row] for row in rows], len(columns))
        popularity = np.bincount(use.indices, minlength=len(columns))
        rarity = np.log((len(rows) + 1) / np.maximum(popularity, 1))
        return cls(
            tuple(campaign_ids),
            tuple(spelling for spelling, _ in spelled),
            columns,
            use,
            _weigh(use, rarity),
            np.asarray(rarity, dtype=np.float64),
        )

    def with_topics(self, term_topics: ArrayLike) -> "KeywordCatalogue":
        """Return the catalogue with each keyword's topics, which lets `recommend` name the topics that it serves.

        Args:
            term_topics: Shape (keywords, topics), shares from 0 to 1: the fingerprint of each of `keywords`, as of a
                campaign with this one term.

        Raises:
            UsageError: The shape does not fit.
        """
        topics = np.asarray(term_topics, dtype=np.float32)
        if topics.ndim != 2 or len(topics) != len(self.keywords):
            raise UsageError(
                "KeywordCatalogue.with_topics",
                f"fingerprints of shape {topics.shape}",
                f"one row for each of {len(self.keywords)} keywords is needed",
                "compute the fingerprints of catalogue.keywords",
            )
        return replace(self, term_topics=topics)


def recommend(
    catalogue: KeywordCatalogue,
    own_terms: Sequence[Collection[str]],
    neighbours: ArrayLike,
    similarities: ArrayLike,
    fingerprints: ArrayLike | None = None,
    *,
    limit: int = 10,
    preferred_support: int = 1,
) -> list[list[Recommendation]]:
    """Recommend keywords for campaigns: many rows or one, by the same arithmetic and with the same result.

    A neighbour weighs `similarity**3 * (0.1 + overlap)`, where `overlap` is the cosine of the two campaigns' terms
    weighted by rarity: fingerprints say that two campaigns are about the same, common terms that they are written
    alike. A term scores the share of the neighbours' weight that uses it, times `rarity**0.1`, 1 for the rarest term.

    Args:
        catalogue: What neighbour indices refer to.
        own_terms: Each campaign's terms; these and their near-duplicates are not recommended.
        neighbours: Shape (campaigns, k), integers: rows of the catalogue, nearest first. A campaign that is in the
            catalogue itself should not stand among its own neighbours.
        similarities: Shape (campaigns, k): cosines. A neighbour at 0, below, or NaN has no say.
        fingerprints: Shape (campaigns, topics), shares from 0 to 1, or None to name no topics. They do not change
            the order.
        limit: At most so many recommendations a campaign.
        preferred_support: Terms that fewer neighbours use come after all others. 2 keeps what one campaign alone uses,
            such as its brand, at the end, and costs some recall (see above).

    Returns:
        For each campaign its recommendations, best first; equal scores in the order of the terms. The list is empty
        where no neighbour has a say, or none has another term.

    Raises:
        UsageError: Shapes do not fit, a neighbour is not in the catalogue, or fingerprints are given for a catalogue
            without topics.

    >>> catalogue = KeywordCatalogue.build(["a", "b", "c"], [["shoes", "boots"], ["Boot", "laces"], ["tea"]])
    >>> found, = recommend(catalogue, [["shoe"]], [[0, 1]], [[0.9, 0.8]])
    >>> [(r.term, r.neighbours) for r in found]
    [('Boot', ('a', 'b')), ('laces', ('b',))]
    """
    nearest = np.asarray(neighbours, dtype=np.int64)
    alike = np.nan_to_num(np.asarray(similarities, dtype=np.float64), nan=0.0).clip(min=0.0)
    prints = None if fingerprints is None else np.asarray(fingerprints, dtype=np.float64)
    _check_shapes(catalogue, own_terms, nearest, alike, prints, limit)
    if not catalogue.keywords or not nearest.size:
        return [[] for _ in own_terms]
    own = _to_rows(_find_columns(catalogue, own_terms), len(catalogue.keywords))
    weights = alike * alike * alike * (_OVERLAP_FLOOR + _measure_overlap(catalogue, own, nearest))
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1.0)
    row, column, score, support = _score_candidates(catalogue, own, nearest, shares)
    # Columns stand in the order of the terms, so the last key makes equal scores alphabetical.
    order = np.lexsort((column, -score, support < preferred_support, row))
    row, column, score = row[order], column[order], score[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    chosen = place < limit
    row, column, score = row[chosen], column[chosen], score[chosen]
    users = _look_up(catalogue.use, nearest[row], column[:, None]) & (shares[row] > 0)
    topics = _find_topics(catalogue, prints, row, column)
    found: list[list[Recommendation]] = [[] for _ in own_terms]
    for i, campaign in enumerate(row):
        found[campaign].append(
            Recommendation(
                catalogue.keywords[column[i]],
                float(score[i]),
                tuple(catalogue.campaign_ids[j] for j in nearest[campaign][users[i]]),
                topics[i],
            )
        )
    return found


def _score_candidates(
    catalogue: KeywordCatalogue,
    own: "sparse.csr_array",
    nearest: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return campaign, column, score and number of neighbours of every term that is not the campaign's own."""
    by_share = _gather(shares, nearest, len(catalogue.campaign_ids)) @ catalogue.use
    by_count = _gather((shares > 0).astype(np.float64), nearest, len(catalogue.campaign_ids)) @ catalogue.use
    # Both products have entries at the same places (SciPy drops sums of 0), and sorting brings them into one order.
    by_share.sort_indices()
    by_count.sort_indices()
    row = np.repeat(np.arange(len(nearest)), np.diff(by_share.indptr))
    column = by_share.indices.astype(np.int64)
    new = ~_look_up(own, row, column)
    row, column = row[new], column[new]
    rarest = np.log(len(catalogue.campaign_ids) + 1)
    score = by_share.data[new].clip(max=1.0) * ((catalogue.rarity / rarest) ** _RARITY_EXPONENT)[column]
    return row, column, score, by_count.data[new].astype(np.int64)


def _measure_overlap(
    catalogue: KeywordCatalogue, own: "sparse.csr_array", nearest: NDArray[np.int64]
) -> NDArray[np.float64]:
    weighted = _weigh(own, catalogue.rarity)
    pairs = weighted[np.repeat(np.arange(len(nearest)), nearest.shape[1])]
    common = pairs.multiply(catalogue.weighted_use[nearest.ravel()]).sum(axis=1)
    return np.asarray(common, dtype=np.float64).reshape(nearest.shape)


def _find_topics(
    catalogue: KeywordCatalogue,
    prints: NDArray[np.float64] | None,
    row: NDArray[np.int64],
    column: NDArray[np.int64],
) -> list[tuple[int, ...]]:
    """Return the topics that a campaign and a term share most, by the product of their shares."""
    if prints is None or catalogue.term_topics is None:
        return [()] * len(row)
    product = prints[row] * catalogue.term_topics[column]
    best = np.argsort(-product, axis=1, kind="stable")[:, :3]
    shown = np.take_along_axis(product, best, axis=1)
    # A topic that carries less than a tenth of what the first one does explains nothing.
    kept = (shown > 0) & (shown >= 0.1 * shown[:, :1])
    return [tuple(int(t) for t in topics[keep]) for topics, keep in zip(best, kept, strict=True)]


def _check_shapes(
    catalogue: KeywordCatalogue,
    own_terms: Sequence[Collection[str]],
    nearest: NDArray[np.int64],
    alike: NDArray[np.float64],
    prints: NDArray[np.float64] | None,
    limit: int,
) -> None:
    if nearest.ndim != 2 or nearest.shape != alike.shape or len(nearest) != len(own_terms):
        raise UsageError(
            "recommend",
            f"{len(own_terms)} campaigns, neighbours of shape {nearest.shape}, similarities of shape {alike.shape}",
            "one row of neighbours and similarities a campaign is needed",
            "take all three from the same rows",
        )
    if nearest.size and not 0 <= nearest.min() <= nearest.max() < len(catalogue.campaign_ids):
        raise UsageError(
            "recommend, neighbours",
            f"rows {nearest.min()} to {nearest.max()}",
            f"the catalogue has rows 0 to {len(catalogue.campaign_ids) - 1}",
            "search the neighbours in the catalogue that is passed",
        )
    if limit < 1:
        raise UsageError("recommend, limit", str(limit), "at least 1 is needed", "ask for 10")
    if prints is None:
        return
    if catalogue.term_topics is None:
        raise UsageError(
            "recommend, fingerprints",
            "given for a catalogue without topics",
            "both or neither are needed",
            "build it with with_topics(), or pass no fingerprints",
        )
    shape = (len(own_terms), catalogue.term_topics.shape[1])
    if prints.shape != shape:
        raise UsageError(
            "recommend, fingerprints",
            f"shape {prints.shape}",
            f"shape {shape} is needed",
            "pass one fingerprint a campaign, of the model that the catalogue's topics come from",
        )


def _choose_spelling(counts: Counter[str]) -> str:
    """Return the spelling that most campaigns use; among equals the shorter, then the first in order."""
    return min(counts, key=lambda term: (-counts[term], len(term), term))


def _find_columns(catalogue: KeywordCatalogue, campaigns: Sequence[Collection[str]]) -> list[set[int]]:
    # Campaigns share terms, and folding one costs more than looking it up.
    distinct = {term for terms in campaigns for term in terms}
    columns = {term: catalogue.columns.get(normalize_keyword(term)) for term in distinct}
    return [{column for term in terms if (column := columns[term]) is not None} for terms in campaigns]


def _to_rows(columns: Sequence[Collection[int]], width: int) -> "sparse.csr_array":
    """Return a sparse 0/1 matrix with sorted columns; each row's columns are distinct."""
    ends = np.cumsum([0, *(len(row) for row in columns)])
    flat = np.fromiter((c for row in columns for c in sorted(row)), dtype=np.int64, count=int(ends[-1]))
    return sparse.csr_array((np.ones(len(flat)), flat, ends), shape=(len(columns), width))


def _weigh(use: "sparse.csr_array", rarity: NDArray[np.float64]) -> "sparse.csr_array":
    weighted = use.copy()
    weighted.data = rarity[use.indices]
    lengths = np.sqrt(np.asarray(weighted.power(2).sum(axis=1), dtype=np.float64))
    weighted.data = weighted.data / np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(use.indptr))
    return weighted


def _gather(values: NDArray[np.float64], nearest: NDArray[np.int64], width: int) -> "sparse.csr_array":
    rows, k = nearest.shape
    return sparse.csr_array((values.ravel(), nearest.ravel(), np.arange(0, rows * k + 1, k)), shape=(rows, width))


def _look_up(matrix: "sparse.csr_array", row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a 0/1 matrix with sorted columns has an entry at each pair of row and column (broadcast)."""
    rows, columns = np.broadcast_arrays(row, column)
    width = np.int64(matrix.shape[1])
    entries = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr)) * width + matrix.indices
    if not len(entries):
        return np.zeros(rows.shape, dtype=np.bool_)
    wanted = rows.astype(np.int64) * width + columns
    place = np.searchsorted(entries, wanted).clip(max=len(entries) - 1)
    return np.asarray(entries[place] == wanted, dtype=np.bool_)
