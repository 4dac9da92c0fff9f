"""What each term of a campaign brings to its topics.

One arithmetic for `predict`, which asks for few topics of many campaigns, and for `explain`, which asks for all. Both
algorithms split a share exactly among the features of a campaign (`Decomposition`). A feature's part is split
among the terms that bring it, by how much of it they bring; that is a sparse product over all campaigns at once.
Every sum runs over one campaign alone, in a fixed order, so a campaign gets the same bits by itself as among others.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from mlflywheel.models.topic_fingerprints.text import Bags, Counts


@dataclass(frozen=True)
class Decomposition:
    """Fingerprints, and what the features of the campaigns bring to them.

    The count in row r and column f brings `weights[count] * features[f, k] * scale[r, k]` to the share of topic k.

    Args:
        shares: The fingerprints, float32 (campaigns, topics).
        weights: One for each stored count, in the order of the counts' `data` (columns sorted in a row), float64.
        features: float (features, topics).
        scale: float64 (campaigns, topics).
        base: What no feature brings, float64 (campaigns, topics); base plus all parts is the share, up to float32.
    """

    shares: np.ndarray
    weights: np.ndarray
    features: np.ndarray
    scale: np.ndarray
    base: np.ndarray


class TermContributions:
    """Splits the shares of campaigns among their terms.

    Args:
        bags: The campaigns' terms.
        counts: Their features.
        parts: What `decompose` gave for these counts.
    """

    def __init__(self, bags: Bags, counts: Counts, parts: Decomposition) -> None:
        self._bags = bags
        self._parts = parts
        self._columns = counts.matrix.indices.astype(np.int64)
        self._count_rows = _row_of_each(counts.matrix)
        self._split, weights = self._split_features(counts)
        self._weights = parts.weights / np.where(weights > 0, weights, 1.0)

    def _split_features(self, counts: Counts) -> tuple[sp.csr_matrix, np.ndarray]:
        """Return how much of each count each term brings, CSR (terms, counts), and its sum over the terms."""
        terms, brought = self._bags.matrix, counts.term_features
        lengths = np.diff(brought.indptr)[terms.indices]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(brought.indptr[terms.indices] - indptr[:-1], lengths) + np.arange(indptr[-1])
        amounts = np.repeat(terms.data.astype(np.float64), lengths) * brought.data[source]
        # Both keys ascend by row, and the counts' also by column.
        width = counts.matrix.shape[1]
        keys = np.repeat(self._term_rows * width, lengths) + brought.indices[source]
        places = np.searchsorted(self._count_rows * width + self._columns, keys)
        split = sp.csr_matrix((amounts, places, indptr), shape=(terms.nnz, counts.matrix.nnz))
        return split, np.bincount(places, amounts, minlength=counts.matrix.nnz)

    @cached_property
    def _term_rows(self) -> np.ndarray:
        return _row_of_each(self._bags.matrix)

    def contribute(self, topics: np.ndarray) -> np.ndarray:
        """Return what each campaign's terms bring to some of its topics.

        Args:
            topics: The topics asked for, int64 (campaigns, m).

        Returns:
            float64 (terms of all campaigns, m), in the order of the bags' stored weights.
        """
        features, num_topics = self._parts.features, self._parts.features.shape[1]
        places = topics[self._count_rows]
        places += self._columns[:, None] * num_topics
        brought = self._split @ (features.ravel().take(places) * self._weights[:, None])
        brought *= np.take_along_axis(self._parts.scale, topics, axis=1)[self._term_rows]
        return np.asarray(brought)

    def list_largest(self, topics: np.ndarray, listed: np.ndarray, most: int) -> pa.Array:
        """List the terms that bring most to topics: the largest first, equal ones by term, none without a part.

        Args:
            topics: int64 (campaigns, m).
            listed: Which of them to list terms for, bool (campaigns, m).
            most: How many terms of each at most.

        Returns:
            `list<string>`, one list for each topic that is listed, campaign by campaign.
        """
        chosen = self._choose_largest(topics, most)[listed]
        found = chosen >= 0
        terms = self._bags.terms.take(pa.array(self._bags.matrix.indices[chosen[found]]))
        offsets = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), terms)

    def _choose_largest(self, topics: np.ndarray, most: int) -> np.ndarray:
        """Return stored weights by position, int64 (campaigns, m, most), -1 where there are no more."""
        chosen = np.full((most, topics.shape[1], topics.shape[0]), -1, dtype=np.int64)
        lengths = np.diff(self._bags.matrix.indptr)
        some = np.flatnonzero(lengths)
        if len(some):
            values = np.ascontiguousarray(self.contribute(topics).T)
            starts, lengths = self._bags.matrix.indptr[some], lengths[some]
            # A few passes over all terms cost less than sorting them.
            for place in range(most):
                best = np.maximum.reduceat(values, starts, axis=1)
                is_best = values == np.repeat(best, lengths, axis=1)
                # The bags' columns are the terms in alphabetical order, so that the first one is it.
                first = np.minimum.reduceat(
                    np.where(is_best, np.arange(values.shape[1]), values.shape[1]), starts, axis=1
                )
                slots, rows = np.nonzero(best > 0)
                chosen[place, slots, some[rows]] = first[slots, rows]
                values[slots, first[slots, rows]] = 0.0
        return chosen.transpose(2, 1, 0)


def _row_of_each(matrix: sp.csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
