"""The plain methods that fingerprints are measured against: TF-IDF by itself, and with a truncated SVD."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

_COMPONENTS = 100


@dataclass(frozen=True)
class ReferenceNeighbours:
    """What one reference method finds.

    Args:
        name: For people.
        prefix: What stands between `reference_` and the metric's name; empty for the main reference.
        positions: Rows of the catalogue, int64 (queries, k), nearest first, -1 where there are fewer.
    """

    name: str
    prefix: str
    positions: np.ndarray


def find_reference_neighbours(
    catalogue: sp.csr_matrix, queries: sp.csr_matrix, k: int, seed: int = 0
) -> list[ReferenceNeighbours]:
    """Find nearest catalogue rows by TF-IDF cosine, and by cosine after a truncated SVD with 100 components.

    Args:
        catalogue: Word counts of the training campaigns, CSR (campaigns, words).
        queries: Word counts of other campaigns, same columns.
        k: Number of neighbours.
        seed: Of the SVD.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    names = (("TF-IDF and SVD(100)", ""), ("TF-IDF", "tfidf_"))
    if not queries.shape[0] or not catalogue.nnz:
        return [ReferenceNeighbours(name, prefix, np.full((queries.shape[0], k), -1)) for name, prefix in names]
    weighting = TfidfTransformer(sublinear_tf=True).fit(catalogue)
    fitted, asked = weighting.transform(catalogue), weighting.transform(queries)
    found = []
    if min(fitted.shape) > _COMPONENTS:
        # As `TruncatedSVD` does it, which divides by the variance of the rows even where they are all the same.
        components = randomized_svd(fitted, _COMPONENTS, n_iter=5, random_state=seed)[2].T
        found.append(_nearest(_to_unit(fitted @ components), _to_unit(asked @ components), k))
    else:
        # With fewer rows or words than components, the SVD keeps everything.
        found.append(_nearest(fitted, asked, k))
    found.append(_nearest(fitted, asked, k))
    return [
        ReferenceNeighbours(name, prefix, positions) for (name, prefix), positions in zip(names, found, strict=True)
    ]


def _nearest(fitted: np.ndarray | sp.csr_matrix, asked: np.ndarray | sp.csr_matrix, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    number = min(k, fitted.shape[0])
    index = NearestNeighbors(n_neighbors=number, metric="euclidean", algorithm="brute").fit(fitted)
    result = np.full((asked.shape[0], k), -1, dtype=np.int64)
    # To a row without a known word all others are equally far.
    known = np.flatnonzero(np.asarray(abs(asked).sum(axis=1)).ravel() > 0)
    if len(known):
        result[known, :number] = index.kneighbors(asked[known], return_distance=False)
    return result


def _to_unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0))
