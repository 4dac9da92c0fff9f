"""Nearest campaigns by fingerprint, equal for one campaign and for many.

Candidates come from scikit-learn's exact search on normalised vectors with `metric="euclidean"`, which ranks like
cosine and costs an eighth of `metric="cosine"`; above `FAISS_MINIMUM` vectors from faiss' inverted lists when faiss is
installed. Both round differently for one row than for a block, so every similarity is computed again pair by pair in
one fixed order, and ties are broken by campaign id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflywheel.errors import MissingExtraError
from mlflywheel.events import ProgressCallback, ignore_progress

# All-pairs search by inverted lists overtakes brute force at about 13,000 vectors; below 50,000 exactness is cheap.
FAISS_MINIMUM = 50_000
# Candidates beyond the k that are asked for, so that rounding in the search cannot cost a true neighbour its place.
_SPARE_CANDIDATES = 16
_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class Neighbours:
    """The nearest campaigns of some query campaigns.

    Args:
        positions: Positions in the catalogue, int64 (queries, k), nearest first, -1 where there are fewer than k.
        similarity: float32 (queries, k), NaN where there are fewer than k.
    """

    positions: np.ndarray
    similarity: np.ndarray


def embed_cosine(fingerprints: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return unit vectors whose dot product is the cosine after subtracting the corpus mean.

    Without the mean, two campaigns that share nothing but the common background look alike: purity@10 on O*NET terms is
    .919 without and .921 with it, and .881 against .876 on advertisements.

    Args:
        fingerprints: float32 (campaigns, topics).
        mean: float32 (topics,).

    Returns:
        float32 (campaigns, topics); zero rows where a fingerprint equals the mean.
    """
    centred = fingerprints.astype(np.float64) - mean.astype(np.float64)
    return _to_unit(centred)


def embed_hellinger(fingerprints: np.ndarray) -> np.ndarray:
    """Return unit vectors whose dot product is the Hellinger affinity, the sum of sqrt(p q), float32."""
    return _to_unit(np.sqrt(fingerprints.astype(np.float64)))


def _to_unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    # A fingerprint within rounding of the mean has no direction.
    return np.where(length > 1e-6, vectors / np.where(length > 1e-6, length, 1.0), 0.0).astype(np.float32)


class NeighbourIndex:
    """Exact or inverted-list search over catalogue vectors.

    Equal vectors are searched once and expanded afterwards: a thousand identical campaigns cost one candidate, and
    which of them are shown is decided by their ids.

    Args:
        ids: Campaign ids in catalogue order.
        vectors: Unit vectors, float32 (campaigns, topics).
        approximate: None to use faiss above `FAISS_MINIMUM` vectors when it is installed.
    """

    def __init__(self, ids: Sequence[str], vectors: np.ndarray, approximate: bool | None = None) -> None:
        self.ids = list(ids)
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        order = np.argsort(np.asarray(self.ids, dtype=object), kind="stable") if self.ids else np.empty(0, np.int64)
        self._id_rank = np.empty(len(self.ids), dtype=np.int64)
        self._id_rank[order] = np.arange(len(self.ids))
        self._distinct, owner = np.unique(self.vectors, axis=0, return_inverse=True)
        # Catalogue positions by distinct vector, each group in the order of ids.
        by_group = np.lexsort((self._id_rank, owner.ravel()))
        self._members = by_group
        self._first = np.searchsorted(owner.ravel()[by_group], np.arange(len(self._distinct) + 1))
        self._position = {campaign: position for position, campaign in enumerate(self.ids)}
        self._search = self._build(approximate)

    def _build(self, approximate: bool | None) -> Any:
        if approximate or (approximate is None and len(self._distinct) >= FAISS_MINIMUM):
            try:
                return _InvertedLists(self._distinct)
            except ImportError:
                if approximate:
                    raise MissingExtraError.of("faiss", "faiss", "approximate neighbours") from None
        return _Exact(self._distinct)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        own_ids: Sequence[str] | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> Neighbours:
        """Find the k most similar catalogue campaigns of each query, the query itself left out.

        Args:
            vectors: Unit vectors, float32 (queries, topics). A zero vector has no neighbours.
            k: Number of neighbours; fewer come back where the catalogue is smaller.
            own_ids: The queries' campaign ids; a catalogue campaign of the same id is not its own neighbour.
            progress: Called with the phase `neighbours`.
        """
        positions = np.full((len(vectors), k), -1, dtype=np.int64)
        similarity = np.full((len(vectors), k), np.nan, dtype=np.float32)
        if not self.ids:
            return Neighbours(positions, similarity)
        for start in range(0, len(vectors), _QUERY_BLOCK):
            progress("neighbours", start, len(vectors))
            block = np.ascontiguousarray(vectors[start : start + _QUERY_BLOCK], dtype=np.float32)
            groups = self._search(block, min(k + 1 + _SPARE_CANDIDATES, len(self._distinct)))
            for row, candidates in enumerate(groups):
                if not block[row].any():
                    continue
                own = self._position.get(own_ids[start + row]) if own_ids is not None else None
                found, values = self._rank(block[row], candidates[candidates >= 0], k, own)
                positions[start + row, : len(found)] = found
                similarity[start + row, : len(found)] = values
        progress("neighbours", len(vectors), len(vectors))
        return Neighbours(positions, similarity)

    def _rank(self, query: np.ndarray, groups: np.ndarray, k: int, own: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Expand candidate groups to campaigns and order them by exact similarity, then by id."""
        exact = (self._distinct[groups].astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
        # Each group offers its first k + 1 members: more can never be shown, even if one of them is the query.
        counts = np.minimum(self._first[groups + 1] - self._first[groups], k + 1)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        members = self._members[np.repeat(self._first[groups], counts) + offsets]
        values = np.repeat(exact, counts)
        if own is not None:
            kept = members != own
            members, values = members[kept], values[kept]
        order = np.lexsort((self._id_rank[members], -values))[:k]
        return members[order], values[order]


class _Exact:
    def __init__(self, vectors: np.ndarray) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(vectors)

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(self._index.kneighbors(queries, n_neighbors=k, return_distance=False))


class _InvertedLists:
    """faiss IVF-Flat with 2 sqrt(n) lists; a third of them probed, which measured recall@10 of .98 and above."""

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss

        lists = max(1, int(2 * np.sqrt(len(vectors))))
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        self._index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = 0
        self._index.train(vectors)
        self._index.add(vectors)
        self._index.nprobe = max(16, lists // 24)

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(self._index.search(queries, k)[1])
