"""Neighbour search: exact beside scikit-learn's cosine metric, inverted lists beside brute force."""

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from benchmarks.fingerprints.corpora import TOPICS, read_onet
from benchmarks.fingerprints.measuring import Findings, Ratio, Sample, Score, Setting, time_each, time_once, time_pairs
from mlflywheel.models.topic_fingerprints.neighbours import NeighbourIndex, embed_cosine, embed_hellinger
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams
from mlflywheel.models.topic_fingerprints.text import TextOptions, learn_vocabulary, read_bags

_NEIGHBOURS = 10
_COSINE = 'scikit-learn NearestNeighbors, brute, metric="cosine"'
_BRUTE = 'scikit-learn NearestNeighbors, brute, metric="euclidean"'


def measure(setting: Setting) -> Findings:
    """Measure everything that belongs to neighbours."""
    found = Findings()
    for number in (setting.choose(10_000, 400), setting.choose(50_000, 800)):
        _compare_exact(found, setting, f"{number:,} mixtures", draw_mixtures(number))
    try:
        import faiss
    except ImportError:
        found.skip("neighbours/approximate", "faiss is not installed")
        return found
    faiss.omp_set_num_threads(1)
    for number in (setting.choose(200_000, 3000), setting.choose(1_000_000, 5000)):
        _compare_approximate(found, setting, f"{number:,} mixtures", draw_mixtures(number))
    real = _resample_onet(setting, setting.choose(200_000, 2000))
    if real is None:
        found.skip("neighbours/onet", "no O*NET terms in the data folder")
    else:
        _compare_approximate(found, setting, f"{len(real):,} resampled O*NET fingerprints", real)
    return found


def draw_mixtures(number: int) -> np.ndarray:
    """Return unit vectors of Dirichlet(0.05) mixtures of 50 topics, as LDA's fingerprints would be embedded."""
    shares = np.random.default_rng(0).dirichlet(np.full(TOPICS, 0.05), number)
    return embed_hellinger(shares.astype(np.float32))


def _resample_onet(setting: Setting, number: int) -> np.ndarray | None:
    """Return embedded fingerprints of made-up campaigns: half of one real campaign's terms and a fifth of another's."""
    onet = read_onet(setting.data_folder)
    if onet is None:
        return None
    bags = read_bags(pa.array(onet.terms, pa.list_(pa.string())))
    counts = learn_vocabulary(bags, TextOptions())[1]
    model = RotatedLsa.fit(counts.matrix, RotatedLsaParams(num_topics=TOPICS))
    rng = np.random.default_rng(0)
    parts = []
    for low in range(0, number, 50_000):
        rows = min(50_000, number - low)
        drawn = []
        for share in (0.5, 0.2):
            part = bags.matrix[rng.integers(0, bags.matrix.shape[0], rows)]
            part.data = (rng.random(part.nnz) < share).astype(np.float32)
            drawn.append(part)
        terms = sp.csr_matrix(drawn[0].maximum(drawn[1]))
        parts.append(model.transform(sp.csr_matrix(terms @ counts.term_features)))
    fingerprints = np.concatenate(parts)
    return embed_cosine(fingerprints, fingerprints.mean(axis=0))


def _compare_exact(found: Findings, setting: Setting, case: str, vectors: np.ndarray) -> None:
    from sklearn.neighbors import NearestNeighbors

    ids = [f"{row:07d}" for row in range(len(vectors))]
    queries = vectors[: setting.choose(5000, 100)]
    index = NeighbourIndex(ids, vectors, approximate=False)
    peer = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, algorithm="brute", metric="cosine").fit(vectors)
    # The first call of both looks for the thread pools of the process.
    index.search(queries[:100], _NEIGHBOURS)
    peer.kneighbors(queries[:100])
    ours, theirs, _, _ = time_pairs(
        lambda: index.search(queries, _NEIGHBOURS, ids[: len(queries)]),
        lambda: peer.kneighbors(queries),
        setting.choose(5, 1),
    )
    found.ratios.append(
        Ratio(
            "neighbours/exact",
            case,
            f"CPU seconds of {len(queries):,} queries",
            "NeighbourIndex, exact",
            _COSINE,
            ours,
            theirs,
            note="ours orders ties by id, and gives one campaign the same bits as a batch",
        )
    )
    singles = [queries[row : row + 1] for row in range(setting.choose(200, 10))]
    mine, other = [], []
    for _ in range(setting.choose(5, 1)):
        mine.append(1e3 * float(np.median(time_each(lambda one: index.search(one, _NEIGHBOURS), singles))))
        other.append(1e3 * float(np.median(time_each(peer.kneighbors, singles))))
    found.ratios.append(
        Ratio(
            "neighbours/exact-single",
            case,
            "CPU milliseconds of one query, p50",
            "NeighbourIndex, exact",
            _COSINE,
            Sample(tuple(mine)),
            Sample(tuple(other)),
        )
    )


def _compare_approximate(found: Findings, setting: Setting, case: str, vectors: np.ndarray) -> None:
    from sklearn.neighbors import NearestNeighbors

    ids = [f"{row:07d}" for row in range(len(vectors))]
    number = setting.choose(2000, 100)
    rows = np.random.default_rng(1).permutation(len(vectors))[:number]
    queries, own = vectors[rows], [ids[row] for row in rows]
    build_seconds, index = time_once(lambda: NeighbourIndex(ids, vectors, approximate=True))
    peer = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, algorithm="brute", metric="euclidean").fit(vectors)
    index.search(queries[:50], _NEIGHBOURS)
    peer.kneighbors(queries[:50])
    ours, theirs, neighbours, (_, brute) = time_pairs(
        lambda: index.search(queries, _NEIGHBOURS, own), lambda: peer.kneighbors(queries), setting.choose(3, 1)
    )
    method = "NeighbourIndex, inverted lists"
    found.ratios.append(
        Ratio("neighbours/approximate", case, f"CPU seconds of {number:,} queries", method, _BRUTE, ours, theirs)
    )
    scale = len(vectors) / number
    everything = Sample(tuple(build_seconds + scale * seconds for seconds in ours.runs))
    found.ratios.append(
        Ratio(
            "neighbours/all-pairs",
            case,
            "CPU seconds of all pairs, extrapolated",
            method + ", with its building",
            _BRUTE,
            everything,
            Sample(tuple(scale * seconds for seconds in theirs.runs)),
            note=f"from {number:,} queries; building took {build_seconds:.1f} CPU seconds",
        )
    )
    hits = [
        len(set(mine.tolist()) & set([other for other in theirs if other != row][:_NEIGHBOURS])) / _NEIGHBOURS
        for row, mine, theirs in zip(rows.tolist(), neighbours.positions, brute.tolist(), strict=True)
    ]
    found.scores.append(Score("neighbours/recall", case, method, Sample((float(np.mean(hits)),))))
    some = range(0, number, max(1, number // 300))
    same = [
        np.array_equal(
            index.search(queries[row : row + 1], _NEIGHBOURS, [own[row]]).positions[0], neighbours.positions[row]
        )
        for row in some
    ]
    found.scores.append(
        Score(
            "neighbours/batch-equals-single",
            case,
            "share of queries with the same neighbours alone and in a batch",
            Sample((float(np.mean(same)),)),
        )
    )
