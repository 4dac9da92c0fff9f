"""Nearest campaigns by fingerprint, equal for one campaign and for many.

Candidates come from scikit-learn's exact search on unit vectors, `metric="euclidean"`; above `FAISS_MINIMUM` vectors,
where faiss is installed, from its inverted lists; or, exact at any size, from a GPU (`device`). All round differently
for one row than for a block, so every candidate's similarity is computed again, pair by pair in one fixed order, and
ties are broken by campaign id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflywheel.errors import MissingExtraError
from mlflywheel.events import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from mlflywheel.models.topic_fingerprints.device import Device, NearestVectors

# Below this an exact query takes a few milliseconds at most (benchmarks/fingerprints), and exactness is worth them.
FAISS_MINIMUM = 50_000
# Candidates beyond the k that are asked of a search, so that rounding there cannot cost a true neighbour its place.
_SPARE_CANDIDATES = 16
# The same for a GPU's products, and once more where so many are too near to be told apart.
_DEVICE_SPARE_CANDIDATES = (16, 256)
_QUERY_BLOCK = 1024
# A fingerprint nearer to the mean than this has no direction: what is left of it is rounding.
NO_DIRECTION = 1e-6
_PAIRS_AT_ONCE = 8192
# A sample of 512 knows its recall@10 to about .002.
_TARGET_RECALL = 0.975
_RECALL_NEIGHBOURS = 10
_RECALL_SAMPLE = 512
_FEWEST_PROBES = 8


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

    Without the mean, two campaigns that share nothing but the common background look alike.

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
    directed = length > NO_DIRECTION
    return np.where(directed, vectors / np.where(directed, length, 1.0), 0.0).astype(np.float32)


class NeighbourIndex:
    """Exact or inverted-list search over catalogue vectors.

    Equal vectors are searched once and expanded afterwards: a thousand identical campaigns cost one candidate, and
    which of them are shown is decided by their ids.

    Args:
        ids: Campaign ids in catalogue order.
        vectors: Unit vectors, float32 (campaigns, topics).
        approximate: None to use faiss above `FAISS_MINIMUM` vectors when it is installed.
        device: A GPU to search with instead, unless `approximate` is true.

    Raises:
        UsageError: The vectors do not fit on the device, and it has no fallback.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        approximate: bool | None = None,
        device: "Device | None" = None,
    ) -> None:
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
        self._search = self._build(approximate, device) if self.ids else None

    def _build(self, approximate: bool | None, device: "Device | None") -> Any:
        first_id = self._id_rank[self._members[self._first[:-1]]]
        nearest = device.load_vectors(self._distinct) if device is not None and not approximate else None
        if nearest is not None:
            return _OnDevice(self._distinct, first_id, nearest)
        if approximate or (approximate is None and len(self._distinct) >= FAISS_MINIMUM):
            try:
                return _InvertedLists(self._distinct, first_id)
            except ImportError:
                if approximate:
                    raise MissingExtraError.of("faiss", "faiss", "approximate neighbours") from None
        return _Exact(self._distinct, first_id)

    def find(self, campaign_id: str) -> np.ndarray | None:
        """Return the vector of a catalogue campaign, float32 (topics,), or None if there is no such campaign."""
        position = self._position.get(campaign_id)
        return None if position is None else self.vectors[position]

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
        if self._search is None:
            return Neighbours(positions, similarity)
        for start in range(0, len(vectors), _QUERY_BLOCK):
            progress("neighbours", start, len(vectors))
            block = np.ascontiguousarray(vectors[start : start + _QUERY_BLOCK], dtype=np.float32)
            own = None
            if own_ids is not None:
                own = np.array([self._position.get(name, -1) for name in own_ids[start : start + _QUERY_BLOCK]])
            some = np.flatnonzero(block.any(axis=1))
            # One more than k, since one can be the query itself.
            rows, groups, exact = self._search(block[some], min(k + 1, len(self._distinct)))
            rows, places, found, values = self._expand(some[rows], groups, exact, k, own)
            positions[start + rows, places] = found
            similarity[start + rows, places] = values
        progress("neighbours", len(vectors), len(vectors))
        return Neighbours(positions, similarity)

    def _expand(
        self, rows: np.ndarray, groups: np.ndarray, exact: np.ndarray, k: int, own: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Expand groups of equal vectors to campaigns and order those of each query by similarity, then by id.

        Args:
            rows: The query of each candidate, ascending.
            groups: The candidates.
            exact: Their similarities, float64.
            k: Number of neighbours.
            own: Catalogue positions of the queries, negative for strangers.

        Returns:
            Four arrays of one length: the query, the place from 0 to k - 1, the catalogue position, the similarity.
        """
        # Each group offers its first k + 1 members: more can never be shown, even if one of them is the query.
        counts = np.minimum(self._first[groups + 1] - self._first[groups], k + 1)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        members = self._members[np.repeat(self._first[groups], counts) + offsets]
        rows, values = np.repeat(rows, counts), np.repeat(exact, counts)
        if own is not None:
            kept = members != own[rows]
            rows, members, values = rows[kept], members[kept], values[kept]
        order = np.lexsort((self._id_rank[members], -values, rows))
        rows = rows[order]
        places = _count_within(rows)
        shown = places < k
        order = order[shown]
        return rows[shown], places[shown], members[order], values[order]


def _count_within(rows: np.ndarray) -> np.ndarray:
    """Number the entries of each row from 0; `rows` ascend."""
    return np.asarray(np.arange(len(rows)) - np.searchsorted(rows, rows))


class _Search:
    """What both ways of finding candidates share: the exact comparison.

    Args:
        vectors: Distinct unit vectors, float32 (groups, topics).
        first_id: The rank of each group's first campaign id, by which equal similarities are ordered.
    """

    def __init__(self, vectors: np.ndarray, first_id: np.ndarray) -> None:
        self._vectors = vectors
        self._first_id = first_id

    def _keep_nearest(
        self, queries: np.ndarray, rows: np.ndarray, groups: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute similarities in float64, and keep the k largest of each row: rows, groups and similarities."""
        exact = np.empty(len(rows))
        for low in range(0, len(rows), _PAIRS_AT_ONCE):
            part = slice(low, low + _PAIRS_AT_ONCE)
            exact[part] = (self._vectors[groups[part]].astype(np.float64) * queries[rows[part]]).sum(axis=1)
        return self._keep_largest(rows, groups, exact, k)

    def _keep_largest(
        self, rows: np.ndarray, groups: np.ndarray, exact: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.lexsort((self._first_id[groups], -exact, rows))
        order = order[_count_within(rows[order]) < k]
        return rows[order], groups[order], exact[order]


class _Exact(_Search):
    """scikit-learn's brute force: with `metric="cosine"` the same ranking would cost several times as much."""

    def __init__(self, vectors: np.ndarray, first_id: np.ndarray) -> None:
        from sklearn.neighbors import NearestNeighbors

        super().__init__(vectors, first_id)
        self._index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(vectors)

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k nearest vectors of each query: the query, the group and the similarity, nearest first."""
        width = min(k + _SPARE_CANDIDATES, len(self._vectors))
        candidates = np.empty((0, width), dtype=np.int64)
        if len(queries):
            candidates = self._index.kneighbors(queries, n_neighbors=width, return_distance=False)
        rows = np.repeat(np.arange(len(queries)), width)
        return self._keep_nearest(queries, rows, candidates.ravel(), k)


class _OnDevice(_Search):
    """Candidates from a GPU's float32 products: all that rounding leaves in question, so that none is missed.

    A product is off by the device's bound e at most. What is more than 2 e below the k-th largest cannot be one of the
    k nearest. Where that cannot be said of all that did not come back, more are fetched, and at last the CPU searches.
    """

    def __init__(self, vectors: np.ndarray, first_id: np.ndarray, nearest: "NearestVectors") -> None:
        super().__init__(vectors, first_id)
        self._nearest = nearest
        self._exact = _Exact(vectors, first_id)

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k nearest vectors of each query, as `_Exact` does."""
        groups = np.empty((len(queries), k), dtype=np.int64)
        similarity = np.empty((len(queries), k))
        open_rows = np.arange(len(queries))
        for spare in _DEVICE_SPARE_CANDIDATES:
            if len(open_rows):
                width = min(k + spare, len(self._vectors))
                candidates, products = self._nearest.find(queries[open_rows], width)
                limit = products[:, k - 1].astype(np.float64) - 2 * self._nearest.rounding
                sure = (products[:, -1] < limit) | (width == len(self._vectors))
                rows, places = np.nonzero((products >= limit[:, None]) & sure[:, None])
                found = self._keep_nearest(queries[open_rows], rows, candidates[rows, places], k)
                groups[open_rows[sure]], similarity[open_rows[sure]] = (part.reshape(-1, k) for part in found[1:])
                open_rows = open_rows[~sure]
        if len(open_rows):
            found = self._exact(queries[open_rows], k)
            groups[open_rows], similarity[open_rows] = (part.reshape(-1, k) for part in found[1:])
        return np.repeat(np.arange(len(queries)), k), groups.ravel(), similarity.ravel()


class _InvertedLists(_Search):
    """faiss IVF-Flat with 2 sqrt(n) lists, of which as many are probed as the recall needs.

    How many that is depends on the vectors: 16 of 2,000 lists gave a recall of .98 on a million mixtures of few topics,
    8 were enough for .99 on fingerprints of real terms. So it is measured when the index is built.
    """

    def __init__(self, vectors: np.ndarray, first_id: np.ndarray) -> None:
        import faiss

        super().__init__(vectors, first_id)
        lists = max(1, int(2 * np.sqrt(len(vectors))))
        quantizer = faiss.IndexFlatIP(vectors.shape[1])
        self._index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        # faiss' defaults, 25 rounds over 256 vectors a list, cost eight times as much for the same recall.
        self._index.cp.seed = 0
        self._index.cp.niter = 10
        self._index.cp.max_points_per_centroid = 64
        self._index.train(vectors)
        self._index.add(vectors)
        self._index.nprobe = self._measure_probes(vectors, lists)

    def _measure_probes(self, vectors: np.ndarray, lists: int) -> int:
        """Return the least number of probed lists that reaches the target recall on a sample of the catalogue."""
        sample = np.ascontiguousarray(vectors[:: max(1, len(vectors) // _RECALL_SAMPLE)])
        k = min(_RECALL_NEIGHBOURS + 1, len(vectors))
        exact = _Exact(vectors, self._first_id)
        # The nearest is the vector itself, which every search finds.
        true = np.concatenate(
            [
                exact(sample[low : low + _QUERY_BLOCK], k)[1].reshape(-1, k)[:, 1:]
                for low in range(0, len(sample), _QUERY_BLOCK)
            ]
        )
        probes = min(_FEWEST_PROBES, lists)
        while probes < lists:
            self._index.nprobe = probes
            found = self._find(sample, k)
            if np.mean((found[:, :, None] == true[:, None, :]).any(axis=1)) >= _TARGET_RECALL:
                return probes
            probes = min(lists, probes + max(1, probes // 8))
        return lists

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return about the k nearest vectors of each query, as `_Exact` does."""
        candidates = self._find(queries, min(k + _SPARE_CANDIDATES, len(self._vectors)))
        rows, columns = np.nonzero(candidates >= 0)
        return self._keep_nearest(queries, rows, candidates[rows, columns], k)

    def _find(self, queries: np.ndarray, k: int) -> np.ndarray:
        # faiss compares 20 queries and more with the lists by a matrix product, which rounds differently.
        parts = [self._index.search(queries[low : low + 16], k)[1] for low in range(0, len(queries), 16)]
        return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)
